-- Steps may require labels of their executors: a queue is one handler of one definition with one set of
-- requirements, so whoever claims from it needs to know no more than that it serves the queue. An
-- earlier release goes on, but heeds no requirement: definitions that have some are for the time when no
-- step-service of it is left.

set local search_path = stepwell;

alter table queue add column requires text not null default '{}';  -- a JSON object, keys sorted, no space
alter table queue
  drop constraint queue_handler_key,
  add constraint queue_handler_key unique (definition, handler, requires);

-- Who is connected, for people to see: written now and then by the nodes, read by no verb. Of a node that
-- is retired or dead the rows say nothing; they go with it. After a crash of the database nodes write them
-- anew.
create unlogged table executor (
  session      bigint      primary key,
  node         int         not null,
  namespace    text        not null,
  name         text        not null,
  sdk          text        not null,
  handlers     jsonb       not null,   -- [{"name", "versions"}]
  labels       jsonb       not null,
  slots        int         not null,
  used         int         not null,
  draining     boolean     not null,
  stop_asked   boolean     not null,   -- by DrainExecutor; stays
  connected_at timestamptz not null,
  seen_at      timestamptz not null
) with (fillfactor = 50);
create index executor_node on executor (node);

-- A signal with `stop` tells an executor to stop. Its lease is nobody's: for an earlier release it is a lease
-- that is void and that no session has.
alter table signal add column stop boolean not null default false;

set local search_path to default;
