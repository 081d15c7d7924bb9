-- An earlier release goes on with it in its new form, and keeps no facts.
drop function if exists stepwell.create_tasks(
    bigint[], uuid[], int[], bytea[], text[], text[], text[], text[], text[], bytea[], text[], bigint[], int[], smallint[],
    text[], timestamptz);

-- Stores tasks with all their steps, as their definitions plan them. A uid that is there already is
-- left alone: ids in one order for all, so two batches with the same uids neither deadlock nor double.
-- Steps whose numbers stand in t_skipped (an array as text) are resolved at once. A task with a concurrency key
-- is held until the key is given to it, see grant_keys; t_room of those with its key may run at once. A task
-- without a priority has its definition's. Annotations are a JSON object of texts for each task; null: there are none.
--
-- Locks   new queues, the uids (sorted), then the append.
-- Answers the keys of the tasks it made, and when; the caller's other keys go unused. And how many queues it
--         made: step-services must learn of them.
create or replace function stepwell.create_tasks(
    t_id bigint[], t_uid uuid[], t_definition int[], t_hash bytea[], t_context text[],
    t_initiator text[], t_source_system text[], t_reason text[], t_tags text[], t_trace bytea[],
    t_skipped text[], t_concurrency bigint[], t_room int[], t_priority smallint[], t_correlation text[],
    p_at timestamptz default null, t_annotations text[] default null,
    out n_key bigint[], out n_at timestamptz, out queues_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_ev    ev[];
  v_wait  waiter[];
  v_batch bigint;
  v_ruled bigint[];
  m       record;
begin
  queues_n := case when array_remove(t_priority, null) = '{}' then 0 else add_queues(t_definition, t_priority) end;
  with n as (
    insert into task (id, uid, definition, state, live_n, trace, ruled, max_parallel, deadline, concurrency, held)
    select t.id, t.uid, t.definition, 1, d.roots, t.trace, d.ruled, d.max_parallel,
           coalesce(p_at, clock_timestamp()) + d.deadline_ms * interval '1 ms', t.concurrency, t.concurrency is not null
      from unnest(t_id, t_uid, t_definition, t_trace, t_concurrency) t(id, uid, definition, trace, concurrency),
           lateral (select roots, ruled, max_parallel, deadline_ms from definition where id = t.definition offset 0) d
     order by t.uid
    on conflict (uid) do nothing
    returning id, ruled)
  select array_agg(id order by id), array_agg(id) filter (where ruled) from n into n_key, v_ruled;
  if n_key is null then return; end if;

  with t as materialized (
    select t.*, t.id = any(n_key) as new
      from unnest(t_id, t_definition, t_context, t_priority) t(id, definition, context, priority)),
  s as (
    insert into step (key, state, waiting_on, max_attempts, queue, children)
    select t.id * 16384 + p.no, 1, p.waiting_on, p.max_attempts,
           case when t.priority is null then p.queue else queue_at(p.queue, t.priority) end, p.children
      from t, lateral (select * from step_template where definition = t.definition order by no offset 0) p
     where t.new
    returning key, queue, waiting_on)
  select (select array_agg((id, null, 20, null, 1, null, null, null,
                            case when octet_length(context) <= 8192 then context end, null)::ev order by id)
            from t where new),
         (select array_agg((queue, key, 0, null)::waiter order by key) from s where waiting_on = 0)
    into v_ev, v_wait;

  if array_remove(t_skipped, null) <> '{}' then
    select * from moved(
        array(select id * 16384 + no from unnest(t_id, t_skipped) t(id, skipped), unnest(skipped::int[]) no where id = any(n_key)),
        '{1}', 6::smallint, 46::smallint, '{"reason": "bypass_steps", "skipped": true}', null, null,
        coalesce(p_at, clock_timestamp())) into m;
    v_ev   := v_ev || m.v_ev;
    v_wait := array(select w from unnest(v_wait || m.v_wait) w where w.key <> all(coalesce(m.m_key, '{}')));
  end if;
  if v_ruled is not null then
    perform start_clocks(v_ruled, v_wait, null, coalesce(p_at, clock_timestamp()));
    insert into timer (due, key, attempt, kind)
    select deadline, id << 14, 0, 3 from unnest(v_ruled) i, lateral (select id, deadline from task where id = i offset 0) t
     where deadline is not null;
    with k as (
      insert into concurrency (id, task, room)
      select key, id, room from unnest(t_id, t_concurrency, t_room) t(id, key, room) where key is not null and id = any(v_ruled)
      returning id)
    insert into concurrency_wake select distinct id from k;
    v_wait := gate(v_ruled, null, v_wait, coalesce(p_at, clock_timestamp()));
  end if;
  if array_remove(t_tags, null) <> '{}' then
    insert into task_tag
    select distinct tag, id from unnest(t_id, t_tags) t(id, tags), json_array_elements_text(t.tags::json) tag
     where id = any(n_key);
  end if;
  if array_remove(t_annotations, null) <> '{}' then
    insert into task_annotation
    select name, text, id from unnest(t_id, t_annotations) t(id, annotations), json_each_text(t.annotations::json) a(name, text)
     where id = any(n_key);
  end if;
  v_batch := append(v_ev, v_wait, p_at);
  n_at    := coalesce(p_at, clock_timestamp());
  insert into task_detail (task, hash, context, initiator, source_system, reason, tags, created_at, first_position,
                           priority, correlation_id, annotations)
  select id, hash, context, initiator, source_system, reason,
         case when tags is null then '{}' else array(select json_array_elements_text(tags::json)) end,
         n_at, v_batch, coalesce(t.priority, (select priority from definition where id = t.definition)), t.correlation,
         coalesce(t.annotations::jsonb, '{}')
    from unnest(t_id, t_hash, t_context, t_initiator, t_source_system, t_reason, t_tags, t_priority, t_definition, t_correlation,
                t_annotations)
           t(id, hash, context, initiator, source_system, reason, tags, priority, definition, correlation, annotations)
   where id = any(n_key);
end $$;
