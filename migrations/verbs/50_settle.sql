-- Ends leases: outcomes 1 complete, 2 fail (p_wait: milliseconds until the next attempt, null = final),
-- 3 hand back (uncounted). Children of completed steps wait for one parent less; those with nothing
-- left to wait for take the slots that were reserved for them at once, the rest become ready. A task
-- with no live step left ends: in error if some step is, else cancelled if some step is, else complete.
--
-- Reports match the token. A sweep (expiry, time-out, hand-back by the node) matches the holder too:
-- the session of each lease (p_of_session; a session's id is of one node and is never used again) or
-- the node (p_of_node, of a take-over). So an adopted lease is safe from who held it before. Of two
-- reports of one lease the first counts.
--
-- Custom events (p_event, of the report p_event_of, from 1) stand before the rows of the outcomes, if these are
-- accepted now.
--
-- Slots   the n-th child of the i-th report may take one of session p_session[p_slot[i] + n - 1], if
--         it is not null; but of limited and paused tasks, and of paused definitions, none does: `claim`
--         decides for them.
-- Locks   the pauses (shared), tasks, the append; checks p_node after it (SW001).
-- Answers a_status for each item (1 accepted, now or before; 0 the lease is lost), the number of steps
--         that became ready without a slot, and the leases of those that got one; l_own are the steps of them
--         that have a config of their own.
create or replace function stepwell.settle(
    p_key bigint[], p_token bigint[], p_kind smallint[], p_wait bigint[], p_text text[],
    p_slot int[], p_session bigint[], p_node int,
    p_of_node int default null, p_of_session bigint[] default null, p_at timestamptz default null,
    p_event_of int[] default null, p_event text[] default null,
    out a_status smallint[], out ready_n int,
    out l_key bigint[], out l_token bigint[], out l_attempt int[], out l_max_attempts int[], out l_queue int[],
    out l_session bigint[], out l_own bigint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_sweep  bool := p_of_node is not null or p_of_session is not null;
  v_done   bigint[];
  v_ev     ev[];
  v_end    ev[];
  v_wait   waiter[];
  v_at     timestamptz;
  v_ruled  bigint[];
  v_narrow bigint[];
begin
  perform pg_advisory_xact_lock_shared(45);
  select array_agg(id) filter (where ruled),
         array_agg(id) filter (where ruled and (paused or held or max_parallel > 0) or stopped)
    from (select id, ruled, paused, held, max_parallel,
                 case when exists (select from pause) then (select paused from definition where id = t.definition) else false end stopped
            from task t
           where id = any(array(select distinct k >> 14 from unnest(p_key) k)) order by id for no key update) t
    into v_ruled, v_narrow;
  v_at := coalesce(p_at, clock_timestamp());
  -- Rows are found by one probe each and written by their place: no plan can turn that round.
  with u as (
    update step s set
           state        = case i.kind when 1 then 3 when 2 then case when i.due is null then 4 else 1 end else 1 end,
           result       = case when i.kind = 1 then i.text else s.result end,
           last_error   = case when i.kind = 2 then i.text else s.last_error end,
           not_before   = case when i.kind = 2 then i.due else s.not_before end,
           max_attempts = case when i.kind = 3 then s.max_attempts + 1 else s.max_attempts end,
           token = null, node = null, session = null,
           last_token = i.token, last_kind = case when v_sweep then 9 else i.kind end
      from (select i.*, v_at + i.wait * interval '1 ms' due,
                   (select x.ctid from step x
                     where x.key = i.key and x.state = 2 and x.token = i.token
                       and (p_of_node is null or x.node = p_of_node)
                       and (i.session is null or x.session = i.session)) place
              from unnest(p_key, p_token, p_kind, p_wait, p_text, p_slot, p_of_session)
                     i(key, token, kind, wait, text, slot, session)) i
     where s.ctid = i.place
    returning s.key, i.kind, s.attempt, s.queue, i.due, s.leased_at, i.text, s.children, i.slot),
  less as (
    select (key & ~16383::bigint) | child as key, count(*)::int n, max(key) parent,
           max(case when v_narrow is null or not key >> 14 = any(v_narrow) then p_session[slot + nth - 1] end) session
      from (select key, slot, unnest(children) child, generate_subscripts(children, 1) nth from u where kind = 1) c
     group by 1),
  f as (
    update step k set waiting_on = k.waiting_on - t.n,
           state     = case when t.session is not null and k.state = 1 and k.waiting_on = t.n then 2 else k.state end,
           attempt   = case when t.session is not null and k.state = 1 and k.waiting_on = t.n
                            then k.attempt + 1 else k.attempt end,
           token     = case when t.session is not null and k.state = 1 and k.waiting_on = t.n
                            then new_token() else k.token end,
           node      = case when t.session is not null and k.state = 1 and k.waiting_on = t.n
                            then p_node else k.node end,
           leased_at = case when t.session is not null and k.state = 1 and k.waiting_on = t.n
                            then v_at else k.leased_at end,
           session   = case when t.session is not null and k.state = 1 and k.waiting_on = t.n
                            then t.session else k.session end
      from (select l.*, (select ctid from step where key = l.key) place from less l) t
     where k.ctid = t.place
    returning k.key, t.parent, k.queue, k.attempt, k.session, k.token, k.max_attempts, k.config is not null own,
              k.waiting_on = 0 and k.state in (1, 2) free),       -- it waited, so it was pending
  o as (
    update task t set live_n = t.live_n + d.live, failed_n = t.failed_n + d.failed,
           state = case when t.live_n + d.live > 0 then t.state when t.failed_n + d.failed > 0 then 4
                        when t.cancelled_n > 0 then 5 else 3 end,
           finished_at = case when t.live_n + d.live = 0 then v_at end
      from (select d.*, (select ctid from task where id = d.task) place
              from (select task, sum(live)::int live, sum(failed)::int failed
                      from (select key >> 14 task, -1 live, case kind when 2 then 1 else 0 end failed
                              from u where kind = 1 or kind = 2 and due is null
                            union all
                            select key >> 14, 1, 0 from f where free) x
                     group by task
                    having sum(live) <> 0 or sum(failed) <> 0) d) d
     where t.ctid = d.place
    returning t.id, t.live_n, t.state, t.started_at)
  select * from
      (select array_agg(key) from u) n,
      (select array_agg(e) from (                 -- in the order of the branches
        select (key >> 14, key & 16383, 40 + kind + case kind when 3 then 1 else 0 end, 2,
                case kind when 1 then 3 when 2 then 4 else 1 end, attempt, null, leased_at,
                case when kind <> 1 or octet_length(text) <= 8192 then text end, r.names)::ev e
          from u left join (select parent, array_agg((key & 16383)::int order by key) names from f where free group by parent) r
                   on r.parent = u.key
        union all
        select (key >> 14, key & 16383, 43, 4, 1, attempt, null, due, null, null)::ev
          from u where kind = 2 and due is not null
        union all
        select (key >> 14, key & 16383, 40, 1, 2, attempt, session, null, null, null)::ev
          from f where token is not null
        union all
        select (id, null, 22, 2, 3, null, null, started_at, null, null)::ev
          from o where live_n = 0 and state = 3) x) e,
      (select array_agg((id, null, case state when 4 then 23 else 24 end, 2, state, null, null,
                         case state when 4 then started_at end, null, null)::ev)
         from o where live_n = 0 and state in (4, 5)) ended,
      (select array_agg(w) from (
        select (queue, key, attempt, due)::waiter w from u where kind = 3 or kind = 2 and due is not null
        union all
        select (queue, key, attempt, null)::waiter from f where free and token is null) x) w,
      (select array_agg(key), array_agg(token), array_agg(attempt), array_agg(max_attempts), array_agg(queue),
              array_agg(session), array_agg(key) filter (where own)
         from f where token is not null) l
    into v_done, v_ev, v_end, v_wait, l_key, l_token, l_attempt, l_max_attempts, l_queue, l_session, l_own;

  if p_event is not null and v_done is not null then
    v_ev := (select array_agg((s.key >> 14, s.key & 16383, 100, 2, 2, s.attempt, null, null, e.text, null)::ev order by e.i)
               from unnest(p_event_of, p_event) with ordinality e(of, text, i),
                    lateral (select key, attempt, last_token from step where key = p_key[e.of] offset 0) s
              where s.key = any(v_done) and s.last_token = p_token[e.of]) || v_ev;
  end if;
  if v_end is not null then v_ev := v_ev || end_tasks(v_end); end if;
  if v_ruled is not null and v_done is not null then
    perform start_clocks(v_ruled, v_wait, l_key, v_at);
    v_wait := count_running(v_ruled, v_done, l_key, v_wait, v_at);
  end if;
  if v_done is not null then perform append(v_ev, v_wait, p_at, p_node); end if;
  ready_n := coalesce(cardinality(v_wait), 0);

  if coalesce(cardinality(v_done), 0) = cardinality(p_key) then  -- the usual case: everything accepted
    a_status := array_fill(1::smallint, array[cardinality(p_key)]);
  else                                            -- the same report again is accepted again
    select array_agg(case when s.last_token = i.token and s.last_kind = case when v_sweep then 9 else i.kind end
                          then 1 else 0 end::smallint order by i.no)
      from unnest(p_key, p_token, p_kind) with ordinality i(key, token, kind, no)
      left join lateral (select last_token, last_kind from step where key = i.key offset 0) s on true
      into a_status;
  end if;
end $$;
