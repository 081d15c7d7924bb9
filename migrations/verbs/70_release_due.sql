-- Timers that are due: steps become ready, or have waited too long, or their task has taken too long. Those
-- that only become ready lock no task: what it reads can only be stale in the harmless direction, and a
-- row made in vain is dropped by claim. A task in error has ended: no deadline touches what of it still waits.
--
-- Locks   timers (SKIP LOCKED), then tasks of the others, then the append.
-- Answers how many timers it took, in how many milliseconds the next is due (null: there is none), how many
--         steps ran out of time, and how many leases are void with them (their nodes are told by signals).
create or replace function stepwell.release_due(
    p_n int, p_at timestamptz default null,
    out taken_n int, out next_ms bigint, out late_n int, out told_n int)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_key   bigint[];
  v_att   int[];
  v_kind  smallint[];
  v_lock  bigint[];
  v_ruled bigint[];
  v_ev    ev[];
  v_wait  waiter[];
  v_void  voided[];
  v_more  waiter[];
  v_late  bigint[];
  k       record;
  m       record;
  v_at    timestamptz := coalesce(p_at, clock_timestamp());
begin
  late_n := 0;
  told_n := 0;
  with d as (
    delete from timer t where t.ctid = any(array(
      select ctid from timer where due <= v_at order by due limit p_n for update skip locked))
    returning t.key, t.attempt, t.kind)
  select array_agg(key), array_agg(attempt), array_agg(kind),
         array_agg(distinct key >> 14) filter (where kind > 0 or (select ruled from task where id = key >> 14))
    from d into v_key, v_att, v_kind, v_lock;
  taken_n := coalesce(cardinality(v_key), 0);
  if v_lock is not null then
    select array_agg(id) filter (where ruled)
      from (select id, ruled from task where id = any(v_lock) order by id for no key update) t into v_ruled;
    for k in
      select * from (values                       -- deadlines first: they end what the others would
        (3, '{1,2}'::smallint[], 'DeadlineExceeded', 'its task took longer than its deadline'),
        (2, '{1,2}', 'TotalTimeout', 'with all its attempts it took longer than its total_timeout'),
        (1, '{1}', 'QueueTimeout', 'nobody took it within its queue_timeout')) k(kind, states, class, message)
    loop
      select array_agg(distinct s.key)
        from unnest(v_key, v_att, v_kind) i(key, attempt, kind),
             lateral (
               select key from step
                where k.kind = 3 and key between i.key and i.key + 16383 and state in (1, 2)
                  and (select deadline <= v_at and state in (1, 2) from task where id = i.key >> 14)
               union all
               select key from step
                where k.kind = 2 and key = i.key and due <= v_at
               union all
               select key from step
                where k.kind = 1 and key = i.key and attempt = i.attempt and waiting_on = 0
                  and (not_before is null or not_before <= v_at)) s
       where i.kind = k.kind
        into v_late;
      continue when v_late is null;
      select * from moved(v_late, k.states, 4::smallint, 42::smallint,
                          json_build_object('error_class', k.class, 'message', k.message, 'final', true)::text,
                          null, null, v_at) into m;
      late_n := late_n + coalesce(cardinality(m.m_key), 0);
      v_ev   := v_ev || m.v_ev;
      v_more := v_more || m.v_wait;
      v_void := v_void || m.v_void;
    end loop;
  end if;
  if taken_n > 0 then
    select array_agg((s.queue, s.key, s.attempt, null)::waiter order by s.not_before, s.key)
      from unnest(v_key, v_att, v_kind) i(key, attempt, kind),
           lateral (select * from step where key = i.key offset 0) s
     where i.kind = 0 and s.state = 1 and s.attempt = i.attempt and s.waiting_on = 0
       and (s.not_before is null or s.not_before <= v_at)
      into v_wait;
    if v_ruled is not null then
      perform start_clocks(v_ruled, v_wait, null, v_at);
      v_wait := gate(v_ruled, null, v_wait, v_at);
    end if;
    perform append(v_ev, v_more || v_wait, p_at);   -- without events it draws one position for their place
    perform signal_void(v_void, 'its time is up');
    told_n := coalesce(cardinality(v_void), 0);
  end if;
  select ceil(greatest(0, extract(epoch from due - v_at) * 1000))::bigint
    from timer order by due limit 1 into next_ms;
end $$;
