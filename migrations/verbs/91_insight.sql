-- The whole, for people: read by TaskService and by whoever asks with psql, never by a verb.

-- The place before the first event at or after a time: all events up to it were earlier, all behind it were not.
-- Events are in the order of times, but where the clock was set back: so it is found by halving, one row each time.
create or replace function stepwell.place_at(p_at timestamptz)
  returns bigint language plpgsql stable set search_path = stepwell as $$
declare
  v_low  bigint := 0;
  v_high bigint := coalesce((select position from event order by position desc limit 1), 0);
  v_mid  bigint;
  m      record;
begin
  -- The first row behind v_low is too early, or nothing is known of it; that behind v_high is not.
  while v_low < v_high loop
    v_mid := v_low + (v_high - v_low) / 2;
    select position, at from event where position > v_mid order by position limit 1 into m;
    if m.at < p_at then v_low := m.position; else v_high := v_mid; end if;
  end loop;
  return v_low;
end $$;

-- Open tasks, counted: the oldest p_tasks, by definition and state. The oldest of them, as long as they have no more
-- than p_steps steps together and no more than p_broken of them have failed or cancelled steps, also by what
-- task_context says of them; of the others that is null. What it says of a task without failed and cancelled steps
-- is said here by the same rules, without a look at what is behind each step.
create or replace function stepwell.open_tasks(p_tasks int, p_steps bigint, p_broken int)
  returns table (definition int, state smallint, execution_status text, health text, n bigint)
  language sql stable set search_path = stepwell as $$
  with o as materialized (
    select t.id, t.uid, t.definition, t.state, t.failed_n + t.cancelled_n > 0 broken,
           t.paused or d.paused paused, t.held, t.max_parallel, t.running_n,
           sum(d.steps) over w <= p_steps and count(*) filter (where t.failed_n + t.cancelled_n > 0) over w <= p_broken seen
      from (select * from task where finished_at is null order by id limit p_tasks) t
      join (select id, paused, (select no + 1 from step_template where definition = id order by no desc limit 1) steps
              from definition d) d on d.id = t.definition
    window w as (order by t.id)),
  s as (
    select o.*, n.*
      from o, lateral (
        select count(*) filter (where state = 1 and waiting_on = 0 and not coalesce(not_before > statement_timestamp(), false)) due_n,
               count(*) filter (where state = 1 and waiting_on = 0 and not_before > statement_timestamp()) backing_off_n,
               count(*) filter (where state = 2) in_progress_n,
               count(*) filter (where state in (1, 2) and last_error is not null) retrying_n
          from step where key between o.id << 14 and (o.id << 14) + 16383) n
     where seen and not broken),
  c as (
    select definition, state,
           case when due_n > 0 and not (paused or held or coalesce(max_parallel > 0 and running_n >= max_parallel, false)) then 'has_ready_steps'
                when in_progress_n > 0                           then 'processing'
                when paused and due_n + backing_off_n > 0        then 'paused'
                when held and due_n + backing_off_n > 0          then 'waiting_for_key'
                when backing_off_n > 0                           then 'backing_off'
                else                                                  'waiting_for_dependencies' end execution_status,
           case when retrying_n > 0 then 'recovering' else 'healthy' end health
      from s
    union all
    select c.definition, c.state, c.execution_status, c.health
      from task_context(array(select uid from o where seen and broken)) c
    union all
    select definition, state, null, null from o where not seen)
  select definition, state, execution_status, health, count(*) from c group by 1, 2, 3, 4
$$;
