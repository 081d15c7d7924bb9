-- Changes what is said of a task: why it is, its labels, its priority; null leaves it. With another priority its
-- unfinished steps wait in the queues of that one.
--
-- Locks   new queues, the task, the append.
-- Answers the state it is in (null: there is no such task), how many queues it made (step-services must learn of
--         them), and how many steps wait in other queues, at once or once they are due.
create or replace function stepwell.update_task(
    p_uid uuid, p_reason text, p_tags text[], p_priority smallint, p_note text, p_at timestamptz default null,
    out t_was smallint, out queues_n int, out ready_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_task  bigint;
  v_ruled bool;
  v_wait  waiter[];
  v_at    timestamptz;
begin
  queues_n := 0; ready_n := 0;
  if p_priority is not null then
    queues_n := coalesce((select add_queues(array[definition], array[p_priority]) from task where uid = p_uid), 0);
  end if;
  select id from task where uid = p_uid for no key update into v_task;
  if v_task is null then return; end if;
  select state, ruled from task where id = v_task into t_was, v_ruled;
  v_at := coalesce(p_at, clock_timestamp());
  if p_priority <> (select priority from task_detail where task = v_task) then
    -- What stood in the old queues no longer holds there; what is parked stays so. Whoever releases the timers
    -- of a task that is not ruled has not locked it, and may be about to put what is due into the old queue: so
    -- each such step gets a timer of ours as well.
    with u as (
      update step s set queue = queue_at(s.queue, p_priority)
        from (select ctid place from step
               where key between v_task << 14 and (v_task << 14) + 16383 and state in (1, 2, 4) offset 0) o
       where s.ctid = o.place
      returning s.*)
    select array_agg((queue, key, attempt, case when not_before > v_at then not_before end)::waiter order by key) from u
     where state = 1 and waiting_on = 0 and (not_before is null or not_before <= v_at or not v_ruled)
       and not exists (select from parked_step p where p.task = v_task and p.key = u.key and p.attempt = u.attempt)
      into v_wait;
    update parked_step p set queue = (select queue from step where key = p.key) where task = v_task;
  end if;
  if p_tags is not null then
    delete from task_tag
     where task = v_task and tag = any((select tags from task_detail where task = v_task)::text[]) and tag <> all(p_tags);
    insert into task_tag select distinct unnest(p_tags), v_task on conflict do nothing;
  end if;
  update task_detail
     set reason = coalesce(p_reason, reason), tags = coalesce(p_tags, tags), priority = coalesce(p_priority, priority)
   where task = v_task;
  perform append(array[(v_task, null, 27, t_was, t_was, null, null, null, p_note, null)::ev], v_wait, p_at);
  ready_n := coalesce(cardinality(v_wait), 0);
end $$;

-- Changes how many attempts a step may make that is pending or in error, if it has not made more, and its config;
-- null leaves either. An empty config is the definition's again.
--
-- Locks   the task, the append.
-- Answers the states it and its task were in (null: there is no such step), how many attempts it has made, and
--         whether it was changed.
create or replace function stepwell.update_step(
    p_uid uuid, p_no int, p_max_attempts int, p_config text, p_note text, p_at timestamptz default null,
    out s_was smallint, out s_task smallint, out s_attempt int, out s_done bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint;
begin
  s_done := false;
  select id from task where uid = p_uid for no key update into v_task;
  if v_task is null then return; end if;
  select state from task where id = v_task into s_task;
  update step set max_attempts = coalesce(p_max_attempts, max_attempts),
         config = case when p_config is null then config else nullif(p_config, '') end
   where key = v_task << 14 | p_no and state in (1, 4) and attempt <= coalesce(p_max_attempts, attempt)
     and s_task in (1, 2, 4);
  s_done := found;
  select state, attempt from step where key = v_task << 14 | p_no into s_was, s_attempt;
  if s_done then
    perform append(array[(v_task, p_no, 47, s_was, s_was, s_attempt, null, null, p_note, null)::ev], null, p_at);
  end if;
end $$;
