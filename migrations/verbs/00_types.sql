-- What the verbs pass among themselves. Dropped and made again with them.
set local search_path = stepwell;
set local client_min_messages = warning;

drop type if exists ev, waiter, change, settled, freed cascade;

-- One row of the log before it has a position.
create type ev as (task bigint, no int, type smallint, from_state smallint, to_state smallint,
                   attempt int, session bigint, mark timestamptz, text text, names int[]);
-- A step that waits for a slot, or for `due` first.
create type waiter as (queue int, key bigint, attempt int, due timestamptz);
-- What a verb does to the counters of a task.
create type change as (task bigint, live int);
-- A lease that has ended.
create type settled as (key bigint, kind smallint, attempt int, queue int, due timestamptz, leased_at timestamptz, text text);
-- A step with nothing left to wait for; token null: it got no slot.
create type freed as (key bigint, parent bigint, queue int, attempt int, due timestamptz,
                      token bigint, session bigint, max_attempts int);

set local search_path to default;
set local client_min_messages to default;
