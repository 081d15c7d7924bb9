-- Limits and time-outs. A task that has any, or is paused, is `ruled`: the verbs see that where they lock it,
-- and only then do more. All others pay nothing.

set local search_path = stepwell;

alter table definition
  add column max_parallel int  not null default 0,      -- steps of a task in progress at once; 0 = any number
  add column deadline_ms  bigint,                       -- of a task, from its creation
  add column ruled        bool not null default false;  -- it has one of these, or a step of it a time-out of its own

alter table step_template
  add column queue_timeout_ms bigint,   -- from ready to leased
  add column total_timeout_ms bigint;   -- from ready the first time to its end

alter table task
  add column ruled        bool not null default false,
  add column paused       bool not null default false,
  add column max_parallel int  not null default 0,
  add column running_n    int  not null default 0 check (running_n >= 0),  -- steps in progress; of ruled tasks only
  add column deadline     timestamptz;

alter table step add column due timestamptz;              -- its total time-out

alter table timer add column kind smallint not null default 0;  -- 0 ready, 1 queue, 2 total, 3 deadline of the task

-- Steps with nothing to wait for that their task has no room for. Under its lock: insert and delete only.
create table parked_step (task bigint not null, queue int not null, key bigint not null, attempt int not null);
create index parked_step_order on parked_step (task, queue, key);

-- No release has called these in this form.
drop function if exists create_tasks, claim, release_due;

set local search_path to default;
