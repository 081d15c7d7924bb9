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
