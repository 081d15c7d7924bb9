-- Timers that are due: their steps become ready. Locks no task: what it reads can only be stale in
-- the harmless direction, and a row made in vain is dropped by claim.
--
-- Answers how many timers it took and in how many milliseconds the next is due (null: there is none).
create or replace function stepwell.release_due(
    p_n int, p_at timestamptz default null, out taken_n int, out next_ms bigint)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_key  bigint[];
  v_att  int[];
  v_wait waiter[];
  v_at   timestamptz := coalesce(p_at, clock_timestamp());
begin
  with d as (
    delete from timer t where t.ctid = any(array(
      select ctid from timer where due <= v_at order by due limit p_n for update skip locked))
    returning t.key, t.attempt)
  select array_agg(key), array_agg(attempt) from d into v_key, v_att;
  taken_n := coalesce(cardinality(v_key), 0);
  if taken_n > 0 then
    select array_agg((s.queue, s.key, s.attempt, null)::waiter order by s.not_before, s.key)
      from unnest(v_key, v_att) i(key, attempt),
           lateral (select * from step where key = i.key offset 0) s
     where s.state = 1 and s.attempt = i.attempt and s.waiting_on = 0
       and (s.not_before is null or s.not_before <= v_at)
      into v_wait;
    perform append(null, v_wait, p_at);   -- no event: the append draws one position for their place
  end if;
  select ceil(greatest(0, extract(epoch from due - v_at) * 1000))::bigint
    from timer order by due limit 1 into next_ms;
end $$;
