-- Removes tasks with all that is theirs: the caller has locked them. Events stay, and so do rows of queues and clocks,
-- which hold for nothing without their step.
create or replace function stepwell.drop_tasks(p_task bigint[]) returns void
  language plpgsql volatile set search_path = stepwell as $$
begin
  with c as (
    delete from concurrency c using unnest(p_task) t(id)
     where c.id = (select concurrency from task where id = t.id) and c.task = t.id
    returning c.id)
  insert into concurrency_wake select distinct id from c;
  delete from parked_step where task = any(p_task);
  delete from step s using unnest(p_task) t(id) where s.key between t.id << 14 and (t.id << 14) + 16383;
  delete from task_tag g
   using unnest(p_task) t(id), lateral (select distinct unnest(tags) tag from task_detail where task = t.id offset 0) d
   where g.tag = d.tag and g.task = t.id;
  delete from task_annotation a
   using unnest(p_task) t(id),
         lateral (select key, value from task_detail, jsonb_each_text(annotations) where task = t.id offset 0) d
   where a.name = d.key and a.text = d.value and a.task = t.id;
  delete from identity where task = any(p_task);
  delete from task_detail where task = any(p_task);
  delete from task where id = any(p_task);
end $$;

-- Removes tasks that ended long ago with all that is theirs, oldest first: those above the key p_after that are complete,
-- cancelled or resolved and ended p_age_s seconds ago or earlier, and those in error that did so p_error_s seconds ago
-- (0: they are kept). p_limit at most, out of p_scan that are looked at. One that somebody else has locked is
-- passed, and so is one whose key somebody asks for just now.
--
-- Locks   the keys of requests, tasks (both SKIP LOCKED), then what is theirs.
-- Answers how many it removed, and the key above which to go on. Null: there are no more, or those to come were
--         created too late.
create or replace function stepwell.remove_tasks(
    p_after bigint, p_age_s bigint, p_error_s bigint, p_scan int, p_limit int, p_at timestamptz default null,
    out removed_n int, out m_next bigint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at    timestamptz := coalesce(p_at, clock_timestamp());
  v_age   timestamptz := case when p_age_s > 0 then v_at - p_age_s * interval '1 s' end;
  v_error timestamptz := case when p_error_s > 0 then v_at - p_error_s * interval '1 s' end;
  v_seen  bigint[];
  v_task  bigint[];
  v_key   uuid[];
begin
  v_seen := array(select id from task where id > p_after order by id limit p_scan);
  v_task := array(select id from task
                   where id = any(v_seen)
                     and (state in (3, 5, 6) and finished_at <= v_age or state = 4 and finished_at <= v_error)
                   order by id limit p_limit);
  if cardinality(v_task) = p_limit then
    m_next := v_task[p_limit];
  elsif cardinality(v_seen) = p_scan then
    select v_seen[p_scan] from task_detail
     where task = v_seen[p_scan] and created_at <= greatest(v_age, v_error) into m_next;
  end if;
  v_key  := array(select key from identity where task = any(v_task) order by key for update skip locked);
  v_task := array(select id from task t
                   where id = any(v_task)
                     and (state in (3, 5, 6) and finished_at <= v_age or state = 4 and finished_at <= v_error)
                     and not exists (select from identity i where i.task = t.id and i.key <> all(v_key))
                   order by id for update skip locked);
  removed_n := cardinality(v_task);
  if removed_n = 0 then return; end if;
  perform drop_tasks(v_task);
end $$;

-- Removes particular tasks that have ended, in error only if p_error. One is removed only if it is in the state and
-- ended at the time given with it, if they are not null.
--
-- Locks   the keys of requests (by key), tasks (by id), then what is theirs.
-- Answers what became of each: 1 removed, 2 there is no such task, 3 it was left; and the state of those that were.
create or replace function stepwell.remove_named(
    p_uid uuid[], p_state smallint[], p_end timestamptz[], p_error bool,
    out a_status smallint[], out a_state smallint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_task bigint[];
begin
  v_task := array(select (select id from task where uid = u) from unnest(p_uid) u);
  perform 1 from identity where task = any(v_task) order by key for update;
  perform 1 from task where id = any(v_task) order by id for update;
  -- They may have gone or moved before they were locked.
  select array_agg(case when t.id is null then 2
                        when (t.state in (3, 5, 6) or t.state = 4 and p_error)
                             and coalesce(t.state = i.state, true) and coalesce(t.finished_at = i.ended, true) then 1
                        else 3 end::smallint order by i.no),
         array_agg(t.state order by i.no),
         array_agg(t.id) filter (where (t.state in (3, 5, 6) or t.state = 4 and p_error)
                             and coalesce(t.state = i.state, true) and coalesce(t.finished_at = i.ended, true))
    from unnest(v_task, p_state, p_end) with ordinality i(task, state, ended, no)
    left join lateral (select id, state, finished_at from task where id = i.task offset 0) t on true
    into a_status, a_state, v_task;
  if v_task is not null then perform drop_tasks(v_task); end if;
end $$;
