-- Finding tasks: what leads from a part of a filter straight to the tasks that fit it. The indexes of it are not made
-- here: that would hold up all who create and move tasks. Whoever migrates makes them beside those who run
-- (services/store/src/migrate.rs).

set local search_path = stepwell;

-- The tags of tasks, one row each: of a frequent one the newest tasks are found without looking at all.
create table task_tag (
  tag  text   not null,
  task bigint not null,
  primary key (tag, task)
);

-- While it has a row, tasks below that key may lack their rows in `task_tag`: a verb of an earlier release made or changed
-- them. Those rows are written beside those who run, too (fill_tags); until then tags lead nowhere and are asked of each
-- task.
create table task_untagged (place bigint not null);
insert into task_untagged values (9223372036854775807);

-- What an operation is on, as it was written. Those of the earlier form cannot be read any more: they are stopped.
alter table bulk_operation add column written text not null default '';
update bulk_operation set state = 3, ended_at = clock_timestamp() where ended_at is null;
update bulk_operation set filter = '{}';

-- No release has called these in this form.
drop function if exists match_tasks, start_bulk;

set local search_path to default;
