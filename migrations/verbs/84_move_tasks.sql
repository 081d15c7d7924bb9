-- Tells the nodes that hold these leases that they are void.
create or replace function stepwell.signal_void(p_void stepwell.voided[], p_reason text)
  returns void language sql volatile set search_path = stepwell as $$
  insert into signal (node, session, key, token, attempt, reason)
  select node, session, key, token, attempt, p_reason from unnest(p_void)
$$;

-- Cancels tasks and their unfinished steps at once; p_override: complete and resolved ones too, of which
-- complete steps stay as they are. Leases that are running are void; their nodes are told by signals.
--
-- Locks   tasks, the append.
-- Answers the state each task was in: 1, 2, 4, and with p_override 3 and 6 = it was moved; any other = it was
--         left alone (5 = it was cancelled before). Null: no such task. `told_n` = signals written.
create or replace function stepwell.cancel_tasks(
    p_uid uuid[], p_override bool, p_note text, p_reason text, p_at timestamptz default null,
    out t_was smallint[], out told_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at   timestamptz;
  v_ev   ev[];
  v_void voided[];
begin
  told_n := 0;
  perform 1 from task where uid = any(p_uid) order by id for no key update;
  v_at := coalesce(p_at, clock_timestamp());
  select array_agg(t.state order by i.place)
    from unnest(p_uid) with ordinality i(uid, place)
    left join lateral (select state from task where uid = i.uid offset 0) t on true
    into t_was;
  with o as (
    select t.*
      from (select distinct uid from unnest(p_uid) uid) i,
           lateral (select ctid place, id, state from task where uid = i.uid offset 0) t
     where t.state in (1, 2, 4) or p_override and t.state in (3, 6)),
  s as (
    update step s set state = 5, token = null, node = null, session = null
      from (select s.* from o,
                   lateral (select ctid place, key, state, attempt, node, session, token from step
                             where key between o.id << 14 and (o.id << 14) + 16383 and state in (1, 2, 4) offset 0) s) w
     where s.ctid = w.place
    returning w.*),
  t as (
    update task t set state = 5, live_n = 0, failed_n = 0, running_n = 0, cancelled_n = t.cancelled_n + coalesce(c.n, 0),
           finished_at = coalesce(t.finished_at, v_at)
      from o left join (select key >> 14 task, count(*)::int n from s group by 1) c on c.task = o.id
     where t.ctid = o.place
    returning o.id, o.state, t.concurrency),
  w as (insert into concurrency_wake select distinct concurrency from t where concurrency is not null),
  p as (delete from parked_step where task = any(array(select id from t)))
  select array_agg(e order by task, no nulls last),
         (select array_agg((node, session, key, token, attempt)::voided) from s where state = 2)
    from (select (key >> 14, key & 16383, 45, state, 5, attempt, null, null, p_note, null)::ev e, key >> 14 task, (key & 16383)::int no from s
          union all
          select (id, null, 24, state, 5, null, null, null, p_note, null)::ev, id, null from t) x
    into v_ev, v_void;
  perform append(v_ev, null, p_at);
  perform signal_void(v_void, p_reason);
  told_n := coalesce(cardinality(v_void), 0);
end $$;

-- Retries every step in error of tasks in error, but those behind a cancelled step.
--
-- Locks   tasks, the append.
-- Answers the state each task was in (4 = it was in error; null: no such task), how many of its steps are
--         tried again (0: all of them wait behind cancelled ones), and how many steps became ready.
create or replace function stepwell.retry_tasks(
    p_uid uuid[], p_note text, p_more int, p_at timestamptz default null,
    out t_was smallint[], out t_steps int[], out ready_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at     timestamptz;
  v_task   bigint[];
  v_behind bigint[];
  m        record;
begin
  perform 1 from task where uid = any(p_uid) order by id for no key update;
  v_at := coalesce(p_at, clock_timestamp());
  select array_agg(t.state order by i.place), array_agg(t.id order by i.place)
    from unnest(p_uid) with ordinality i(uid, place)
    left join lateral (select id, state from task where uid = i.uid offset 0) t on true
    into t_was, v_task;
  v_behind := behind_cancelled(array(select t from unnest(v_task, t_was) x(t, was) where was = 4));
  select * from moved(array(
        select s.key
          from (select distinct t from unnest(v_task, t_was) x(t, was) where was = 4) t,
               lateral (select key from step
                         where key between t << 14 and (t << 14) + 16383 and state = 4 offset 0) s
         where not coalesce(s.key = any(v_behind), false)),
      '{4}', 1::smallint, 43::smallint, p_note, p_more, null, v_at) into m;
  perform append(m.v_ev, m.v_wait, p_at);
  t_steps := array(
    select coalesce(n, 0) from unnest(v_task) with ordinality i(task, place)
      left join (select k >> 14 task, count(*)::int n from unnest(m.m_key) k group by 1) m using (task) order by place);
  ready_n := coalesce(cardinality(m.v_wait), 0);
end $$;

-- Declares tasks in error settled by a person. Their steps stay as they are.
--
-- Locks   tasks, the append.
-- Answers the state each task was in: 4 = it was moved. Null: no such task.
create or replace function stepwell.resolve_tasks(
    p_uid uuid[], p_note text, p_at timestamptz default null, out t_was smallint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_ev ev[];
begin
  perform 1 from task where uid = any(p_uid) order by id for no key update;
  select array_agg(t.state order by i.place)
    from unnest(p_uid) with ordinality i(uid, place)
    left join lateral (select state from task where uid = i.uid offset 0) t on true
    into t_was;
  with u as (update task set state = 6 where uid = any(p_uid) and state = 4 returning id)
  select array_agg((id, null, 26, 4, 6, null, null, null, p_note, null)::ev order by id) from u into v_ev;
  perform append(v_ev, null, p_at);
end $$;

-- Pauses tasks that are pending, in progress or in error, or lets paused ones go on: what was parked meanwhile
-- becomes ready, as far as there is room.
--
-- Locks   tasks, the append.
-- Answers the state each task was in (null: no such task), whether it was paused before, and how many steps
--         became ready.
create or replace function stepwell.pause_tasks(
    p_uid uuid[], p_paused bool, p_note text, p_at timestamptz default null,
    out t_was smallint[], out t_paused bool[], out ready_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at   timestamptz;
  v_task bigint[];
  v_ev   ev[];
  v_wait waiter[];
begin
  perform 1 from task where uid = any(p_uid) order by id for no key update;
  v_at := coalesce(p_at, clock_timestamp());
  select array_agg(t.state order by i.place), array_agg(t.paused order by i.place)
    from unnest(p_uid) with ordinality i(uid, place)
    left join lateral (select state, paused from task where uid = i.uid offset 0) t on true
    into t_was, t_paused;
  with u as (
    update task t set paused = p_paused, ruled = p_paused or (select d.ruled from definition d where d.id = t.definition),
           -- Nobody counted unless it was ruled.
           running_n = case when t.ruled then t.running_n else
             (select count(*) from step s where s.key between t.id << 14 and (t.id << 14) + 16383 and s.state = 2) end
     where t.uid = any(p_uid) and t.state in (1, 2, 4) and t.paused <> p_paused
    returning t.id, t.state)
  select array_agg(id), array_agg((id, null, case when p_paused then 28 else 29 end, state, state, null, null, null, p_note, null)::ev order by id)
    from u into v_task, v_ev;
  if not p_paused and v_task is not null then
    v_wait := gate(v_task, array_fill(1000000, array[cardinality(v_task)]), null, v_at);
  end if;
  perform append(v_ev, v_wait, p_at);
  ready_n := coalesce(cardinality(v_wait), 0);
end $$;
