-- Executors came back on other streams, or their node goes on under another id: their leases now
-- belong to this node and these sessions.
--
-- Locks   tasks, the append (it is the fence of nodes, see append).
-- Answers the leases that are still the executors', with how long ago each was given.
create or replace function stepwell.adopt_leases(
    p_key bigint[], p_token bigint[], p_node int, p_session bigint[], p_at timestamptz default null,
    out l_key bigint[], out l_token bigint[], out l_attempt int[], out l_max_attempts int[], out l_queue int[],
    out l_session bigint[], out l_age_ms bigint[])
  language plpgsql volatile set search_path = stepwell as $$
begin
  perform 1 from task where id = any(array(select distinct k >> 14 from unnest(p_key) k))
    order by id for no key update;
  perform pg_advisory_xact_lock(42);
  perform 1 from node where id = p_node and retired_at is null;
  if not found then raise exception 'node % is retired', p_node using errcode = 'SW001'; end if;
  with u as (
    update step s set node = p_node, session = p.session
      from unnest(p_key, p_token, p_session) i(key, token, session),
           lateral (select x.ctid place, i.session from step x
                     where x.key = i.key and x.state = 2 and x.token = i.token offset 0) p
     where s.ctid = p.place
    returning s.key, s.token, s.attempt, s.max_attempts, s.queue, s.session,
              (extract(epoch from coalesce(p_at, clock_timestamp()) - s.leased_at) * 1000)::bigint age)
  select array_agg(key), array_agg(token), array_agg(attempt), array_agg(max_attempts), array_agg(queue),
         array_agg(session), array_agg(age)
    from u into l_key, l_token, l_attempt, l_max_attempts, l_queue, l_session, l_age_ms;
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

-- A node goes on under a new id, which walks what is left of the old one. Answers the new id.
create or replace function stepwell.renew_node(p_old int, p_lease_ms bigint, p_at timestamptz default null)
  returns int language plpgsql volatile set search_path = stepwell as $$
declare
  v_at timestamptz := coalesce(p_at, clock_timestamp());
  v_id int;
begin
  perform retire_node(p_old, v_at);
  insert into node (started_at, lease_until) values (v_at, v_at + p_lease_ms * interval '1 ms')
  returning id into v_id;
  update node set taken_by = v_id where id = p_old and taken_by is null;
  return v_id;
end $$;

-- Declares nodes dead whose lease is over (p_declare; never within one lease of Postgres' start, when
-- nobody could have extended), and takes over retired nodes that no living node walks. A retired
-- node's row stays until its walk is over, and so does what was walked: who takes over goes on there.
--
-- Locks   the append if there is somebody to declare dead, then rows of nodes (SKIP LOCKED).
-- Answers all that p_node has taken over: the last task walked, and in how many milliseconds the
--         grace of its executors is over.
create or replace function stepwell.take_over(
    p_node int, p_lease_ms bigint, p_grace_ms bigint, p_declare bool, p_at timestamptz default null,
    out t_node int[], out t_walked bigint[], out t_wait_ms bigint[])
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_at   timestamptz := coalesce(p_at, clock_timestamp());
  v_dead int[];
  v_free int[];
begin
  if p_declare and v_at > pg_postmaster_start_time() + p_lease_ms * interval '1 ms' then
    select array_agg(id) from node where retired_at is null and lease_until < v_at into v_dead;
    if v_dead is not null then
      perform pg_advisory_xact_lock(42);
      update node set retired_at = v_at where id = any(v_dead) and retired_at is null and lease_until < v_at;
    end if;
  end if;
  -- Locked first and looked at after: who reads and locks at once reads what was before the wait.
  select array_agg(id) from (
      select id from node where retired_at is not null order by id limit 100 for update skip locked) n
    into v_free;
  update node n set taken_by = p_node
   where n.id = any(v_free)
     and not exists (select from node o where o.id = n.taken_by and o.retired_at is null);
  select array_agg(id), array_agg(walked),
         array_agg(greatest(0, ceil(extract(epoch from retired_at - v_at) * 1000 + p_grace_ms))::bigint)
    from node where taken_by = p_node
    into t_node, t_walked, t_wait_ms;
end $$;
