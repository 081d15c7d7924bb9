-- What the verbs alone do, without services, executors and subscribers: tasks of three steps in a row, created,
-- claimed and settled in batches by a loop in the server. On a database of its own, migrated:
--
--   psql "$DATABASE_URL" -f tests/benches/verbs.sql
--   psql "$DATABASE_URL" -c "call bench.run(1, 100, '8 s')"                                  # one loop
--   for i in 1 2; do psql "$DATABASE_URL" -c "call bench.run($i, 100, '8 s')" & done; wait   # two
--
-- Each prints its steps per second. Loop n has the definition n: give each loop another.

drop schema if exists bench cascade;
create schema bench;

select stepwell.extend_event();
insert into stepwell.definition (namespace, name, version, hash, content, roots)
select 'bench', 'd' || i, '{1,0,0}', 'x', '', 1 from generate_series(1, 8) i
on conflict do nothing;
insert into stepwell.queue (definition, namespace, handler)
select id, namespace, 'h' from stepwell.definition where namespace = 'bench'
on conflict do nothing;
insert into stepwell.step_template (definition, no, queue, waiting_on, max_attempts, children)
select q.definition, no, q.id, (no > 0)::int, 3, case when no < 2 then array[no + 1] else '{}' end
  from stepwell.queue q, generate_series(0, 2) no where q.namespace = 'bench'
on conflict do nothing;
insert into stepwell.node (lease_until) values (now() + interval '1 day');

create procedure bench.run(p_loop int, p_batch int, p_for interval) language plpgsql as $$
declare
  v_since   timestamptz := clock_timestamp();
  v_queue   int;
  v_plan    int;
  v_node    int;
  v_session bigint[] := array_fill(7::bigint, array[p_batch]);
  v_slot    int[] := array(select generate_series(1, p_batch));
  v_task    bigint[];
  v_done    bigint := 0;
  n         int;
  l         record;
begin
  -- As the services set their connections up.
  perform set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false),
          set_config('jit', 'off', false);
  select q.id, q.definition from stepwell.queue q join stepwell.definition d on d.id = q.definition
   where d.namespace = 'bench' and d.name = 'd' || p_loop into v_queue, v_plan;
  select max(id) from stepwell.node into v_node;
  while clock_timestamp() < v_since + p_for loop
    v_task := array(select nextval('stepwell.task_id') from generate_series(1, p_batch));
    perform stepwell.create_tasks(
      v_task, array(select gen_random_uuid() from generate_series(1, p_batch)), array_fill(v_plan, array[p_batch]),
      array_fill('x'::bytea, array[p_batch]), array_fill(format('{"text": "%s"}', repeat('x', 88)), array[p_batch]),
      array_fill('bench'::text, array[p_batch]), array_fill('bench'::text, array[p_batch]),
      array_fill('bench'::text, array[p_batch]), array_fill(null::text, array[p_batch]),
      array_fill(null::bytea, array[p_batch]), array_fill(null::text, array[p_batch]),
      array_fill(null::bigint, array[p_batch]), array_fill(null::int, array[p_batch]),
      array_fill(null::smallint, array[p_batch]), array_fill('bench'::text, array[p_batch]));
    commit;
    select * from stepwell.claim(array[v_queue], '{0}', array[p_batch], '{1}', v_session, v_node) into l;
    commit;
    while l.l_key is not null loop
      n := cardinality(l.l_key);
      v_done := v_done + n;
      select * from stepwell.settle(
        l.l_key, l.l_token, array_fill(1::smallint, array[n]), array_fill(null::bigint, array[n]),
        array_fill(to_json(repeat('x', 98))::text, array[n]), v_slot[:n], v_session, v_node) into l;
      commit;
    end loop;
  end loop;
  raise notice 'loop %: % steps/s', p_loop, round(v_done / extract(epoch from clock_timestamp() - v_since));
end $$;
