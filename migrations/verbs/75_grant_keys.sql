-- Gives concurrency keys to the oldest tasks that wait for them, as far as there is room; what of those was
-- parked becomes ready. One at a time for the whole database.
--
-- Locks   the grant, tasks, the append.
-- Answers how many tasks go on, how many steps became ready, and whether there is more to look at.
create or replace function stepwell.grant_keys(
    p_n int, p_at timestamptz default null, out granted_n int, out ready_n int, out more bool)
  language plpgsql volatile set search_path = stepwell as $$
declare
  v_id   bigint[];
  v_task bigint[];
  v_wait waiter[];
  v_at   timestamptz;
begin
  granted_n := 0; ready_n := 0; more := false;
  perform pg_advisory_xact_lock(49);
  with d as (
    delete from concurrency_wake w where w.ctid = any(array(select ctid from concurrency_wake limit p_n)) returning w.id)
  select array_agg(distinct id), count(*) = p_n from d into v_id, more;
  if v_id is null then return; end if;
  -- Those that have the key, and as many of those that wait as it has room for.
  v_task := array(
    select c.task
      from unnest(v_id) i,
           lateral (
             (select task from concurrency where id = i and granted)
             union all
             (select task from concurrency where id = i and not granted order by task
               limit (select max(room) from concurrency where id = i))) c);
  perform 1 from task where id = any(v_task) order by id for no key update;
  v_at := coalesce(p_at, clock_timestamp());
  -- Whoever has ended leaves; if it was one that waited, others wait that were not looked at.
  with d as (
    delete from concurrency c using unnest(v_id) i
     where c.id = i and c.task = any(v_task) and (select finished_at is not null from task where id = c.task)
    returning c.id, c.granted),
  w as (insert into concurrency_wake select distinct id from d where not granted returning 1)
  select more or exists (select from w) into more;
  with n as (
    select c.id, c.task
      from unnest(v_id) i,
           lateral (select id, task from concurrency where id = i and not granted and task = any(v_task) order by task
                     limit (select greatest(max(room) - count(*) filter (where granted), 0) from concurrency where id = i)) c),
  u as (
    update concurrency c set granted = true from n where c.id = n.id and c.task = n.task returning c.task),
  t as (
    update task t set held = false from (select (select ctid from task where id = u.task) place from u) u
     where t.ctid = u.place returning t.id)
  select array_agg(id) from t into v_task;
  if v_task is null then return; end if;
  v_wait := gate(v_task, array_fill(1000000, array[cardinality(v_task)]), null, v_at);
  perform append(null, v_wait, p_at);
  granted_n := cardinality(v_task);
  ready_n   := coalesce(cardinality(v_wait), 0);
end $$;
