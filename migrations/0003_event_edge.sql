-- The legal transitions as one look into a list: the rule of 0001 in a form that every statement which
-- writes events gets ready for faster. What is in the log obeyed the same rule when it was written, so
-- it is not read again.
--
-- An edge is a number: 65536 for a step's, + type * 256 + from * 16 + to; from 0: there was none.

set local search_path = stepwell;

alter table event drop constraint event_edge;
alter table event add constraint event_edge check (
  case when no is null then 0 else 65536 end + type * 256 + coalesce(from_state, 0) * 16 + to_state
  = any (array[
    5121,                  -- task.initialize_requested: none > 1
    5394,                  -- task.start_requested: 1 > 2
    5667,                  -- task.completed: 2 > 3
    5908, 5924,            -- task.failed: 1 > 4, 2 > 4
    6165, 6181, 6213,      -- task.cancelled: 1 > 5, 2 > 5, 4 > 5
    75794,                 -- step.execution_requested: 1 > 2
    76067,                 -- step.completed: 2 > 3
    76324,                 -- step.failed: 2 > 4
    76609,                 -- step.retry_requested: 4 > 1
    76833,                 -- step.lease_returned: 2 > 1
    77077, 77093, 77125    -- step.cancelled: 1 > 5, 2 > 5, 4 > 5
  ])) not valid;

set local search_path to default;
