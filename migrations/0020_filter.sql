-- Finding tasks: what leads from a part of a filter straight to the tasks that fit it. Nothing here changes while a
-- step moves, but for `task_failed` and `task_ended`, which the last change of a task touches like `task_open`.

set local search_path = stepwell;

-- The tags of tasks, one row each: of a frequent one the newest tasks are found without looking at all.
create table task_tag (
  tag  text   not null,
  task bigint not null,
  primary key (tag, task)
);
insert into task_tag select distinct unnest(tags), task from task_detail where tags <> '{}';

create index task_correlation on task_detail (correlation_id, task);
create index task_created on task_detail (created_at, task);
create index task_definition on task (definition, id);
-- Those in error, and those that were declared settled.
create index task_failed on task (id) where finished_at is not null and failed_n > 0;
create index task_ended on task (finished_at, id) where finished_at is not null;

-- What an operation is on, as it was written. Those of the earlier form cannot be read any more: they are stopped.
alter table bulk_operation add column written text not null default '';
update bulk_operation set state = 3, ended_at = clock_timestamp() where ended_at is null;
update bulk_operation set filter = '{}';

-- No release has called these in this form.
drop function if exists match_tasks, start_bulk;

set local search_path to default;
