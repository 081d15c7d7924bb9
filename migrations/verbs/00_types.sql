-- What the verbs pass among themselves. One that is there stays: a verb that is running has it in hand. So one whose
-- columns change gets a new name, and so does a function whose signature has it.
do $$ begin
  set local search_path = stepwell;

  -- One row of the log before it has a position.
  if to_regtype('ev') is null then
    create type ev as (task bigint, no int, type smallint, from_state smallint, to_state smallint,
                       attempt int, session bigint, mark timestamptz, text text, names int[]);
  end if;
  -- A step that waits for a slot, or for `due` first.
  if to_regtype('waiter') is null then
    create type waiter as (queue int, key bigint, attempt int, due timestamptz);
  end if;
  -- A lease that ended without its executor.
  if to_regtype('voided') is null then
    create type voided as (node int, session bigint, key bigint, token bigint, attempt int);
  end if;

  set local search_path to default;
end $$;
