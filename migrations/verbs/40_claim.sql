create or replace function stepwell.new_token() returns bigint language sql volatile as $$
  select (random() * 9e15)::bigint
$$;

-- Leases ready steps to free slots: of each queue the oldest, from place q_from on. Queue rows first
-- (SKIP LOCKED), then tasks: nobody who holds a task ever waits for a queue row. Rows that no longer
-- hold (another attempt or priority, cancelled, still waiting) are dropped. Nothing is leased of definitions that
-- are paused.
--
-- Of limited tasks it leases no more than they have room for; the rest is parked.
--
-- Slots   q_queue[i] has q_n[i] of them, for the sessions from p_session[q_at[i]] on.
-- Locks   the pauses (shared), queue rows, tasks, the append; checks its node after it (SW001).
-- Answers the leases, and how many steps became ready in exchange for rows of limited tasks that no longer
--         held; `place` is where in its queue each stood. l_own are the steps of them that have a config of
--         their own. And of their tasks what a handler needs, if the context is short: the rest is read aside.
create or replace function stepwell.claim(
    q_queue int[], q_from bigint[], q_n int[], q_at int[], p_session bigint[], p_node int,
    p_at timestamptz default null,
    out l_key bigint[], out l_token bigint[], out l_attempt int[], out l_max_attempts int[], out l_queue int[],
    out l_session bigint[], out l_place bigint[], out l_own bigint[], out ready_n int,
    out t_id bigint[], out t_uid uuid[], out t_context text[], out t_trace bytea[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_key   bigint[];
  v_queue int[];
  v_att   int[];
  v_id    bigint[];
  v_ev    ev[];
  v_at    timestamptz;
  v_ruled bigint[];
  v_more  int[];
  v_wait  waiter[];
begin
  ready_n := 0;
  perform pg_advisory_xact_lock_shared(45);
  with d as (
    delete from ready_step r where r.ctid = any(array(
      select x.ctid
        from unnest(q_queue, q_from, q_n) q(queue, place, n),
             lateral (select r.ctid from ready_step r where r.queue = q.queue and r.id >= q.place
                       order by r.queue, r.id, r.key limit q.n for update skip locked) x
       where case when exists (select from pause) then
               not (select paused from definition where id = (select definition from queue where id = q.queue)) else true end))
    returning r.key, r.queue, r.attempt, r.id)
  select array_agg(key), array_agg(queue), array_agg(attempt), array_agg(id) from d into v_key, v_queue, v_att, v_id;
  if v_key is null then return; end if;

  select array_agg(id) filter (where ruled)
    from (select id, ruled from task where id = any(array(select distinct k >> 14 from unnest(v_key) k))
           order by id for no key update) t
    into v_ruled;
  v_at := coalesce(p_at, clock_timestamp());
  if v_ruled is not null then                     -- of these, what holds and has room; the rest is parked
    with r as (
      select r.*, key >> 14 task,
             exists (select from step s where s.key = r.key and s.state = 1 and s.attempt = r.attempt and s.waiting_on = 0
                        and s.queue = r.queue and (s.not_before is null or s.not_before <= v_at)) holds
        from (select key, queue, attempt, min(id) id from unnest(v_key, v_queue, v_att, v_id) r(key, queue, attempt, id)
               where key >> 14 = any(v_ruled) group by key, queue, attempt) r),
    n as (
      select r.*, row_number() over (partition by r.task order by r.id, r.key) > t.room beyond
        from r, lateral (select case when paused or held then 0 when max_parallel = 0 then 1000000 else max_parallel - running_n end room
                           from task where id = r.task offset 0) t
       where r.holds),
    p as (insert into parked_step select task, queue, key, attempt from n where beyond),
    k as (
      select key, queue, attempt, id from n where not beyond
      union all
      select * from unnest(v_key, v_queue, v_att, v_id) r(key, queue, attempt, id) where not (key >> 14 = any(v_ruled)))
    select a.*, g.*
      from (select array_agg(key), array_agg(queue), array_agg(attempt), array_agg(id) from k) a,
           (select array_agg(stale) from (select (select count(*) from r where r.task = t and not holds)::int stale
                                            from unnest(v_ruled) with ordinality x(t, i) order by i) s) g
      into v_key, v_queue, v_att, v_id, v_more;
    v_wait := gate(v_ruled, v_more, null, v_at);
  end if;
  with able as (                                  -- grouped: two rows of one step in one claim
    select place, queue, min(id) id, key
      from (select r.*,
                   (select s.ctid from step s
                     where s.key = r.key and s.state = 1 and s.attempt = r.attempt and s.waiting_on = 0 and s.queue = r.queue
                       and (s.not_before is null or s.not_before <= v_at)) place
              from unnest(v_key, v_queue, v_att, v_id) r(key, queue, attempt, id)) r
     where place is not null and (select state in (1, 2) from task where id = key >> 14)
     group by place, queue, key),
  u as (
    update step k set state = 2, attempt = k.attempt + 1, token = new_token(), node = p_node, leased_at = v_at,
           session = p_session[q.at + a.rank - 1]
      from (select *, row_number() over (partition by queue order by id, key)::int rank from able) a
           join unnest(q_queue, q_at) q(queue, at) on q.queue = a.queue
     where k.ctid = a.place
    returning k.key, k.queue, k.attempt, k.token, k.session, k.max_attempts, k.config is not null own, a.id),
  begun as (
    update task t set state = 2, started_at = coalesce(t.started_at, v_at)
      from (select (select ctid from task where id = i.task and state = 1) place
              from (select distinct key >> 14 task from u) i) i
     where t.ctid = i.place
    returning t.id)
  select * from
      (select array_agg(e) from (                 -- in the order of the branches
        select (id, null, 21, 1, 2, null, null, null, null, null)::ev e from begun
        union all
        select (key >> 14, key & 16383, 40, 1, 2, attempt, session, null, null, null)::ev from u) x) e,
      (select array_agg(key), array_agg(token), array_agg(attempt), array_agg(max_attempts), array_agg(queue),
              array_agg(session), array_agg(id), array_agg(key) filter (where own)
         from (select * from u order by id, key) l) l
    into v_ev, l_key, l_token, l_attempt, l_max_attempts, l_queue, l_session, l_place, l_own;
  ready_n := coalesce(cardinality(v_wait), 0);
  if v_ev is null then
    perform append(null, v_wait, p_at);
    return;
  end if;
  if v_ruled is not null then
    update task t set running_n = t.running_n + n.n
      from (select n, (select ctid from task where id = n.task) place
              from (select key >> 14 task, count(*)::int n from unnest(l_key) key where key >> 14 = any(v_ruled) group by 1) n) n
     where t.ctid = n.place;
  end if;
  select array_agg(id), array_agg(uid), array_agg(context), array_agg(trace)
    from (select distinct k >> 14 task from unnest(l_key) k) i,
         lateral (select id, uid, trace from task where id = i.task offset 0) t,
         lateral (select context from task_detail where task = i.task and octet_length(context) <= 8192 offset 0) d
    into t_id, t_uid, t_context, t_trace;
  perform append(v_ev, v_wait, p_at, p_node);
end $$;
