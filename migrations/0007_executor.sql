-- Steps may require labels of their executors: a queue is one handler of one definition with one set of
-- requirements, so whoever claims from it needs to know no more than that it serves the queue. An
-- earlier release knows of none and goes on.

set local search_path = stepwell;

alter table queue add column requires text not null default '{}';  -- a JSON object, keys sorted, no space
alter table queue
  drop constraint queue_handler_key,
  add constraint queue_handler_key unique (definition, handler, requires);

set local search_path to default;
