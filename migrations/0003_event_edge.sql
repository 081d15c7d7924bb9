-- The legal transitions as one look into a list: the rule of 0001 in a form that every statement which
-- writes events gets ready for faster. What is in the log obeyed the same rule when it was written, so
-- it is not read again.
--
-- An edge is a number of four parts of 16 bits: 1 if it is a step's, the type, the state before plus
-- one (0: there was none), the state after.

set local search_path = stepwell;

alter table event drop constraint event_edge;
alter table event add constraint event_edge check (
  ((case when no is null then 0 else 65536 end + type::bigint)
    * 65536 + coalesce(from_state + 1, 0)) * 65536 + to_state
  = any (array[
    85899345921,      -- task.initialize_requested: none > 1
    90194444290,      -- task.start_requested: 1 > 2
    94489477123,      -- task.completed: 2 > 3
    98784378884,      -- task.failed: 1 > 4
    98784444420,      -- task.failed: 2 > 4
    103079346181,     -- task.cancelled: 1 > 5
    103079411717,     -- task.cancelled: 2 > 5
    103079542789,     -- task.cancelled: 4 > 5
    281646775533570,  -- step.execution_requested: 1 > 2
    281651070566403,  -- step.completed: 2 > 3
    281655365533700,  -- step.failed: 2 > 4
    281659660632065,  -- step.retry_requested: 4 > 1
    281663955468289,  -- step.lease_returned: 2 > 1
    281668250370053,  -- step.cancelled: 1 > 5
    281668250435589,  -- step.cancelled: 2 > 5
    281668250566661   -- step.cancelled: 4 > 5
  ])) not valid;

set local search_path to default;
