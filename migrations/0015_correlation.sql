-- What a task belongs to in its creator's eyes. It stands in every event of the task, but not in the rows of the
-- log: who reads the log looks it up once per task.

set local search_path = stepwell;

alter table task_detail add column correlation_id text not null default '';  -- '' = the task is older than this

-- No release has called it in this form.
drop function if exists create_tasks;

set local search_path to default;
