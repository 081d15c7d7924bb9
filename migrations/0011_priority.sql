-- Priorities, and pauses of whole definitions. A queue is one handler of one definition with one set of
-- requirements at one priority; those of other priorities than the definition's own are made by the first task
-- that has one. An earlier release goes on, but knows one priority only.

set local search_path = stepwell;

alter table queue add column priority smallint not null default 3 check (priority between 1 and 5);  -- 1 = first
alter table queue
  drop constraint queue_handler_key,
  add constraint queue_handler_key unique (definition, handler, requires, priority);

alter table definition
  add column priority smallint not null default 3,   -- of its tasks that name none
  add column paused   bool     not null default false;  -- a row of `pause` covers it
alter table task_detail add column priority smallint not null default 3;

-- What people have paused: all versions of a definition, or all definitions of a namespace. Written alone
-- (see pause_definitions), read by those who lease, and almost always empty.
create table pause (
  namespace text        not null,
  name      text        not null,   -- '' = all of the namespace
  note      text        not null,   -- who and why
  at        timestamptz not null,
  primary key (namespace, name)
);

-- No release has called these in this form.
drop function if exists create_tasks, update_task;

set local search_path to default;
