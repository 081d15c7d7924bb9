-- Bulk operations: one action on all tasks that fit a filter, in chunks. The row is the operation: what it does,
-- to which tasks, and how far it has come.

set local search_path = stepwell;

create table bulk_operation (
  id         uuid        primary key,
  seq        bigint      not null unique generated always as identity,  -- in the order of their starts
  action     smallint    not null check (action in (1, 2, 3)),          -- 1 cancel, 2 retry, 3 resolve
  override   bool        not null,                                      -- of cancel
  attempts   int,                                                       -- of retry; null: as the definition says
  filter     text        not null,                                      -- JSON, see match_tasks
  note       text        not null,                                      -- who and why: goes into the events
  position   bigint      not null,   -- tasks whose first event has a higher one came later, and are not touched
  place      bigint      not null,   -- tasks with this key or a higher one have had their turn
  matched_n  bigint      not null default 0,
  moved_n    bigint      not null default 0,
  state      smallint    not null default 1 check (state in (1, 2, 3)), -- 1 running, 2 done, 3 cancelled
  created_at timestamptz not null,
  ended_at   timestamptz,
  constraint bulk_operation_ended check ((state = 1) = (ended_at is null))
) with (fillfactor = 50);
create index bulk_operation_running on bulk_operation (seq) where ended_at is null;

set local search_path to default;
