-- The append: the one lock, then inserts only. Positions are in the order of commits, because a
-- position is drawn only under the lock and the lock is held to the commit. Steps that became ready
-- carry the batch as their place, so ready_step.id is in that order too.
--
-- The lock is also the fence of nodes: a verb that leased in the name of p_node fails here (SW001,
-- all undone) once that node is retired.
--
-- Answers the batch: the first position. Null when there is nothing to write.
create or replace function stepwell.append(
    p_ev stepwell.ev[], p_wait stepwell.waiter[], p_at timestamptz, p_node int default null)
  returns bigint language plpgsql volatile set search_path = stepwell as $$
declare
  v_n     int := coalesce(cardinality(p_ev), 0);
  v_first bigint;
  v_at    timestamptz;
begin
  if v_n = 0 and coalesce(cardinality(p_wait), 0) = 0 then return null; end if;
  perform pg_advisory_xact_lock(42);
  if p_node is not null then
    perform 1 from node where id = p_node and retired_at is null;
    if not found then raise exception 'node % is retired', p_node using errcode = 'SW001'; end if;
  end if;
  v_at    := coalesce(p_at, clock_timestamp());
  v_first := nextval('position');
  if v_n > 1 then perform setval('position', v_first + v_n - 1); end if;
  if v_n > 0 then
    insert into event (position, batch, at, task, uid, definition, no, type, from_state, to_state,
                       attempt, session, mark, text, names, trace)
    select v_first + e.i - 1, v_first, v_at, e.task, t.uid, t.definition, e.no, e.type, e.from_state, e.to_state,
           e.attempt, e.session, e.mark, e.text, e.names, t.trace
      from unnest(p_ev) with ordinality
             e(task, no, type, from_state, to_state, attempt, session, mark, text, names, i),
           lateral (select uid, definition, trace from task where id = e.task offset 0) t;
  end if;
  if cardinality(p_wait) > 0 then
    insert into timer      select due, key, attempt            from unnest(p_wait) where due > v_at;
    insert into ready_step select queue, v_first, key, attempt from unnest(p_wait) where due is null or due <= v_at;
  end if;
  return v_first;
end $$;

-- Keeps partitions of the log ahead of its head: two whole ones. Made apart and attached, because
-- making one in place would stall appends. Answers how many it made.
create or replace function stepwell.extend_event(p_size bigint default 33554432)
  returns int language plpgsql volatile set search_path = stepwell as $$
declare
  v_head bigint;
  v_next bigint;
  v_name text;
  v_made int := 0;
begin
  if not pg_try_advisory_xact_lock(43) then return 0; end if;
  select case when is_called then last_value else 0 end from position into v_head;
  select coalesce(max(substring(relname from 'event_([0-9]+)$')::bigint) + p_size, 0)
    from pg_class c join pg_inherits i on i.inhrelid = c.oid
   where i.inhparent = 'event'::regclass into v_next;
  while v_next < v_head + 2 * p_size loop
    v_name := format('event_%s', lpad(v_next::text, 19, '0'));
    execute format('create table %I (like event including defaults including constraints)', v_name);
    execute format('alter table %I add primary key (position)', v_name);
    execute format('alter table event attach partition %I for values from (%s) to (%s)',
                   v_name, v_next, v_next + p_size);
    v_next := v_next + p_size;
    v_made := v_made + 1;
  end loop;
  return v_made;
end $$;
