-- What makes two requests for tasks the same, beside their task_id: a key of the caller, or what they say. Only
-- requests that have such a thing come here, see verbs/21_create_identified.sql.

set local search_path = stepwell;

create table identity (
  key  uuid   primary key,   -- of SHA-256 of what is compared
  task bigint not null       -- the last task that was made for it
);
create index identity_task on identity (task);   -- it goes with its task

set local search_path to default;
