-- An executor came back on another stream: its leases now belong to this node and session.
--
-- Locks   tasks, the append (it is the fence of nodes, see append).
-- Answers the leases that are still the executor's, with how long ago each was given.
create or replace function stepwell.adopt(
    p_key bigint[], p_token bigint[], p_node int, p_session bigint, p_at timestamptz default null,
    out l_key bigint[], out l_token bigint[], out l_attempt int[], out l_max_attempts int[], out l_queue int[], out l_age_ms bigint[])
  language plpgsql volatile set search_path = stepwell as $$
begin
  perform lock_tasks(p_key);
  perform pg_advisory_xact_lock(42);
  perform 1 from node where id = p_node and retired_at is null;
  if not found then raise exception 'node % is retired', p_node using errcode = 'SW001'; end if;
  with u as (
    update step s set node = p_node, session = p_session
      from unnest(p_key, p_token) i(key, token),
           lateral (select x.ctid place from step x where x.key = i.key and x.state = 2 and x.token = i.token offset 0) p
     where s.ctid = p.place
    returning s.key, s.token, s.attempt, s.max_attempts, s.queue,
              (extract(epoch from coalesce(p_at, clock_timestamp()) - s.leased_at) * 1000)::bigint age)
  select array_agg(key), array_agg(token), array_agg(attempt), array_agg(max_attempts), array_agg(queue), array_agg(age)
    from u into l_key, l_token, l_attempt, l_max_attempts, l_queue, l_age_ms;
end $$;

-- A node gives up its id. After this commits every lease it ever got is visible and it can get no
-- more. Answers false when it was retired before.
create or replace function stepwell.retire_node(p_node int, p_at timestamptz default null)
  returns bool language plpgsql volatile set search_path = stepwell as $$
begin
  perform pg_advisory_xact_lock(42);
  update node set retired_at = coalesce(p_at, clock_timestamp()) where id = p_node and retired_at is null;
  return found;
end $$;
