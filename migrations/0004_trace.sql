-- The trace context a task was created in: trace id (16 bytes), span id (8), flags (1). Null when its
-- caller had none. `append` copies the task's into its events, so that a feed is read without looking
-- at tasks; a null takes no room in a row.

alter table stepwell.task  add column trace bytea;
alter table stepwell.event add column trace bytea;
