-- Facts that people and programs keep with a task, and the log of one task. Most tasks have no facts: their creation
-- pays nothing. What is in the log obeyed a narrower rule, so it is not read again.

set local search_path = stepwell;

alter table task_detail add column annotations jsonb not null default '{}';   -- texts by name

-- The same, one row each: of a frequent one the newest tasks are found without looking at all.
create table task_annotation (
  name text   not null,
  text text   not null,
  task bigint not null,
  primary key (name, text, task)
);

-- Whose index is not made here: that would hold up all who append. Whoever migrates makes it for each partition that is
-- there, beside them (services/store/src/migrate.rs); those to come have it from the beginning. It has the position as
-- a sum, so that it serves who asks for a task and nobody else: where a partition is still empty, it would else seem as
-- good as the primary key to who asks for a position, and be read from end to end once there is something in it.
create index event_task on only event (task, (position + 0));

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
    103079477253,     -- task.cancelled: 3 > 5
    103079542789,     -- task.cancelled: 4 > 5
    103079673861,     -- task.cancelled: 6 > 5
    107374510081,     -- task.retry_requested: 4 > 1
    111669477382,     -- task.resolved_manually: 4 > 6
    115964248065,     -- task.updated: 1
    115964313602,     -- task.updated: 2
    115964379139,     -- task.updated: 3
    115964444676,     -- task.updated: 4
    115964510213,     -- task.updated: 5
    115964575750,     -- task.updated: 6
    120259215361,     -- task.paused: 1
    120259280898,     -- task.paused: 2
    120259411972,     -- task.paused: 4
    124554182657,     -- task.resumed: 1
    124554248194,     -- task.resumed: 2
    124554379268,     -- task.resumed: 4
    128849149953,     -- task.annotated: 1
    128849215490,     -- task.annotated: 2
    128849281027,     -- task.annotated: 3
    128849346564,     -- task.annotated: 4
    128849412101,     -- task.annotated: 5
    128849477638,     -- task.annotated: 6
    281646775533570,  -- step.execution_requested: 1 > 2
    281651070566403,  -- step.completed: 2 > 3
    281655365468164,  -- step.failed: 1 > 4
    281655365533700,  -- step.failed: 2 > 4
    281659660632065,  -- step.retry_requested: 4 > 1
    281663955468289,  -- step.lease_returned: 2 > 1
    281668250370053,  -- step.cancelled: 1 > 5
    281668250435589,  -- step.cancelled: 2 > 5
    281668250566661,  -- step.cancelled: 4 > 5
    281672545337350,  -- step.resolved_manually: 1 > 6
    281672545533958,  -- step.resolved_manually: 4 > 6
    281676840304641,  -- step.updated: 1
    281676840501252,  -- step.updated: 4
    281681135271937,  -- step.unserved: 1
    281904473571329,  -- custom, of a step: 1
    281904473636866,  -- custom, of a step: 2
    281904473702403,  -- custom, of a step: 3
    281904473767940,  -- custom, of a step: 4
    281904473833477,  -- custom, of a step: 5
    281904473899014,  -- custom, of a step: 6
    433791827969,     -- custom, of a task: 1
    433791893506,     -- custom, of a task: 2
    433791959043,     -- custom, of a task: 3
    433792024580,     -- custom, of a task: 4
    433792090117,     -- custom, of a task: 5
    433792155654      -- custom, of a task: 6
  ])) not valid;

set local search_path to default;
