-- Applies what the verbs did to the live steps of tasks, and ends a task when none is left: complete
-- when every step is complete or resolved, else error. The look at the steps is made only then.
-- Answers the events of it.
create or replace function stepwell.finish(p_change stepwell.change[], p_at timestamptz)
  returns stepwell.ev[] language plpgsql volatile set search_path = stepwell as $$
declare
  v_ev ev[];
begin
  with d as (
    select task, sum(live)::int live from unnest(p_change) group by task having sum(live) <> 0),
  o as (
    select t.place, d.live, t.started_at, e.failed,
           case when t.live_n + d.live > 0 then t.state when e.failed is null then 3 else 4 end::smallint to_state
      from d,
           lateral (select t.ctid place, t.* from task t where t.id = d.task offset 0) t,
           lateral (select (array_agg((s.key & 16383)::int order by s.key) filter (where s.state not in (3, 6)))[:100] failed
                      from step s
                     where t.live_n + d.live = 0 and s.key between t.id << 14 and (t.id << 14) + 16383
                       and s.state in (3, 4, 6)) e),
  u as (
    update task t set live_n = t.live_n + o.live, state = o.to_state,
           finished_at = case when o.to_state in (3, 4) then p_at end
      from o where t.ctid = o.place
    returning t.id, o.to_state, o.failed, t.started_at)
  select array_agg((id, null, case to_state when 3 then 22 else 23 end, 2, to_state, null, null, started_at, null,
                    failed)::ev order by id)
    from u where to_state in (3, 4) into v_ev;
  return coalesce(v_ev, '{}');
end $$;

-- Ends leases: outcomes 1 complete, 2 fail (p_wait: milliseconds until the next attempt, null = final),
-- 3 hand back (uncounted). Children of completed steps wait for one parent less; those with nothing
-- left to wait for take the free slots at once, the rest become ready.
--
-- Reports match the token. A sweep (expiry, time-out, hand-back by the node) matches the holder too:
-- the session of each lease (p_of_session; a session's id is of one node and is never used again) or
-- the node (p_of_node, of a take-over). So an adopted lease is safe from who held it before.
--
-- Slots   as in claim.
-- Locks   tasks, the append; checks p_node after it (SW001).
-- Answers a_status for each item (1 accepted, now or before; 0 the lease is lost), the number of steps
--         that became ready without a slot, and the leases of those that got one.
create or replace function stepwell.settle(
    p_key bigint[], p_token bigint[], p_kind smallint[], p_wait bigint[], p_text text[],
    q_queue int[], q_n int[], q_at int[], p_session bigint[], p_node int,
    p_of_node int default null, p_of_session bigint[] default null, p_at timestamptz default null,
    out a_status smallint[], out ready_n int,
    out l_key bigint[], out l_token bigint[], out l_attempt int[], out l_max_attempts int[], out l_queue int[],
    out l_session bigint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_sweep  bool := p_of_node is not null or p_of_session is not null;
  v_done   settled[];
  v_freed  freed[];
  v_ev     ev[];
  v_wait   waiter[];
  v_change change[];
  v_at     timestamptz;
begin
  perform lock_tasks(p_key);
  v_at := coalesce(p_at, clock_timestamp());
  with i as (
    select distinct on (s.place) i.*, s.place, v_at + i.wait * interval '1 ms' due
      from unnest(p_key, p_token, p_kind, p_wait, p_text, p_of_session) i(key, token, kind, wait, text, session),
           lateral (select s.ctid place, s.state, s.token, s.node, s.session from step s where s.key = i.key offset 0) s
     where s.state = 2 and s.token = i.token
       and (p_of_node is null or s.node = p_of_node) and (i.session is null or s.session = i.session)),
  u as (
    update step s set
           state        = case i.kind when 1 then 3 when 2 then case when i.due is null then 4 else 1 end else 1 end,
           result       = case when i.kind = 1 then i.text else s.result end,
           last_error   = case when i.kind = 2 then i.text else s.last_error end,
           not_before   = case when i.kind = 2 then i.due else s.not_before end,
           max_attempts = case when i.kind = 3 then s.max_attempts + 1 else s.max_attempts end,
           token = null, node = null, session = null,
           last_token = i.token, last_kind = case when v_sweep then 9 else i.kind end
      from i where s.ctid = i.place
    returning s.key, i.kind, s.attempt, s.queue, i.due, s.leased_at, i.text, s.children),
  less as (
    select (u.key & ~16383::bigint) | c as key, count(*)::int n, max(u.key) parent
      from u, unnest(u.children) c where u.kind = 1 group by 1),
  child as (
    select l.*, k.queue, k.place, k.state = 1 and k.waiting_on = l.n as free
      from less l,
           lateral (select s.ctid place, s.queue, s.state, s.waiting_on from step s where s.key = l.key offset 0) k),
  ranked as (
    select c.*, case when free then row_number() over (partition by c.queue, c.free order by c.key) end::int rank
      from child c),
  taken as (
    select r.*, case when r.rank <= q.n then p_session[q.at + r.rank - 1] end as session
      from ranked r left join unnest(q_queue, q_n, q_at) q(queue, n, at) on q.queue = r.queue),
  f as (
    update step k set waiting_on = k.waiting_on - t.n,
           state     = case when t.session is null then k.state     else 2 end,
           attempt   = case when t.session is null then k.attempt   else k.attempt + 1 end,
           token     = case when t.session is null then k.token     else new_token() end,
           node      = case when t.session is null then k.node      else p_node end,
           leased_at = case when t.session is null then k.leased_at else v_at end,
           session   = case when t.session is null then k.session   else t.session end
      from taken t where k.ctid = t.place
    returning k.key, t.parent, k.queue, k.attempt, t.session, k.token, k.max_attempts, t.free)
  select (select array_agg((key, kind, attempt, queue, due, leased_at, text)::settled order by key) from u),
         (select array_agg((key, parent, queue, attempt, null, case when session is not null then token end, session,
                            max_attempts)::freed order by key) from f where free)
    into v_done, v_freed;

  ready_n := 0;
  if v_done is not null then
    select array_agg(e order by i, key) from (
        select 1 i, d.key,
               (d.key >> 14, d.key & 16383, 40 + d.kind + case when d.kind = 3 then 1 else 0 end, 2,
                case d.kind when 1 then 3 when 2 then 4 else 1 end, d.attempt, null, d.leased_at,
                case when d.kind <> 1 or octet_length(d.text) <= 8192 then d.text end, r.names)::ev e
          from unnest(v_done) d
          left join (select parent, array_agg((key & 16383)::int) names from unnest(v_freed) group by parent) r
            on r.parent = d.key
        union all
        select 2, key, (key >> 14, key & 16383, 43, 4, 1, attempt, null, due, null, null)::ev
          from unnest(v_done) where kind = 2 and due is not null
        union all
        select 3, key, (key >> 14, key & 16383, 40, 1, 2, attempt, session, null, null, null)::ev
          from unnest(v_freed) where token is not null) x
      into v_ev;
    select array_agg(c) from (
        select (key >> 14, -1)::change c from unnest(v_done) where kind = 1 or kind = 2 and due is null
        union all
        select (key >> 14, 1)::change from unnest(v_freed)) x
      into v_change;
    if v_change is not null then v_ev := v_ev || finish(v_change, v_at); end if;
    select array_agg(w) from (
        select (queue, key, attempt, due)::waiter w from unnest(v_done) where kind = 3 or kind = 2 and due is not null
        union all
        select (queue, key, attempt, null)::waiter from unnest(v_freed) where token is null) x
      into v_wait;
    perform append(v_ev, v_wait, p_at, p_node);
    ready_n := coalesce(cardinality(v_wait), 0);
  end if;

  if cardinality(v_done) = cardinality(p_key) then           -- the usual case: everything accepted
    a_status := array_fill(1::smallint, array[cardinality(p_key)]);
  else                                                       -- the same report again is accepted again
    select array_agg(case when s.last_token = i.token and s.last_kind = case when v_sweep then 9 else i.kind end
                          then 1 else 0 end::smallint order by i.no)
      from unnest(p_key, p_token, p_kind) with ordinality i(key, token, kind, no)
      left join lateral (select last_token, last_kind from step where key = i.key offset 0) s on true
      into a_status;
  end if;
  select array_agg(key), array_agg(token), array_agg(attempt), array_agg(max_attempts), array_agg(queue), array_agg(session)
    from unnest(v_freed) where token is not null
    into l_key, l_token, l_attempt, l_max_attempts, l_queue, l_session;
end $$;
