-- What the verbs pass among themselves. Dropped and made again with them.
set local search_path = stepwell;
set local client_min_messages = warning;

drop type if exists ev, waiter, voided cascade;

-- One row of the log before it has a position.
create type ev as (task bigint, no int, type smallint, from_state smallint, to_state smallint,
                   attempt int, session bigint, mark timestamptz, text text, names int[]);
-- A step that waits for a slot, or for `due` first.
create type waiter as (queue int, key bigint, attempt int, due timestamptz);
-- A lease that ended without its executor.
create type voided as (node int, session bigint, key bigint, token bigint, attempt int);

set local search_path to default;
set local client_min_messages to default;
