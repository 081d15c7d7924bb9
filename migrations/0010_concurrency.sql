-- Concurrency keys: of the tasks of one definition (all its versions) with the same key only so many run at
-- once. The others are `held`: their steps are parked, until the key is theirs.

set local search_path = stepwell;

alter table task
  add column concurrency bigint,                     -- what it shares its key with
  add column held        bool not null default false;

alter table definition add column concurrency_room int;  -- how many of its tasks with one key run at once

-- The open tasks of each key, and which of them have it. Written by those who have locked the task.
create table concurrency (
  id      bigint not null,                           -- hash of definition and key
  task    bigint not null,
  room    int    not null,                           -- how many may have it at once
  granted bool   not null default false,
  primary key (id, task)
);

-- Keys to look at: a task came or ended. Insert and delete only.
create table concurrency_wake (id bigint not null);

set local search_path to default;
