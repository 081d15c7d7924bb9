-- Requests that are done once, however often they are asked for: what each was answered, for 48 hours. A
-- partition for each day (UTC), so that old ones are dropped whole, see extend_request.

set local search_path = stepwell;

create table request (
  id     text        not null,   -- the caller's
  method smallint    not null,   -- 1 RetryTask, 2 RetryStep, 3 UpdateTask, 4 UpdateStep
  at     timestamptz not null,   -- when it was done
  hash   bytea       not null,   -- SHA-256 of the request
  answer json        not null,   -- of its verb
  primary key (id, method, at)
) partition by range (at);

-- It answers more now; who asks for less gets what it got.
drop function if exists run_bulk;

set local search_path to default;
