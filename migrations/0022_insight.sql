-- Tasks by when they ended, for who looks at the last ones. The end of a task is not written in place anyhow
-- (task_open), so this adds one entry of an index, at its end, for each task that ends. The views over the whole are
-- applied with the verbs (verbs/91_insight.sql).

set local search_path = stepwell;

create index if not exists task_ended on task (finished_at) where finished_at is not null;

set local search_path to default;
