-- The tables of Stepwell. Verbs (verbs/*.sql) are the only writers of the hot ones.
--
-- Keys     A step's key is task * 16384 + number: one bigint, so every look-up is one probe.
-- States   1 pending  2 in_progress  3 complete  4 error  5 cancelled  6 resolved_manually
-- Outcomes 1 complete  2 fail  3 hand back  (9: ended by a sweep; never equals a report)
-- Events   the member numbers of `Event.detail` in proto/stepwell/v1/event.proto

create schema stepwell;
set local search_path = stepwell;

-- ── definitions: written once, never changed ────────────────────────────────────────────────────

create table definition (
  id         int         primary key generated always as identity,
  namespace  text        not null,
  name       text        not null,
  version    int[]       not null check (cardinality(version) = 3),  -- arrays order as versions do
  hash       bytea       not null,   -- SHA-256 of the content
  content    bytea       not null,   -- stepwell.v1.Definition, normalised
  roots      int         not null check (roots > 0),   -- steps without parents
  created_at timestamptz not null default clock_timestamp(),
  constraint definition_version_key unique (namespace, name, version)
);

-- What a slot can be free for: one handler of one definition.
create table queue (
  id         int  primary key generated always as identity,
  definition int  not null references definition (id),
  namespace  text not null,
  handler    text not null,
  constraint queue_handler_key unique (definition, handler)
);

-- The plan of a definition: what `create` copies for each task.
create table step_template (
  definition   int      not null references definition (id),
  no           int      not null,
  queue        int      not null references queue (id),
  waiting_on   int      not null,   -- how many parents
  max_attempts int      not null,
  children     int[]    not null,   -- numbers
  primary key (definition, no)
);

-- ── tasks and steps: hot; no index on a column that changes, room for updates in the page ───────

create sequence task_id;

create table task (
  id          bigint      primary key,
  uid         uuid        not null constraint task_uid_key unique,
  definition  int         not null,
  state       smallint    not null,
  live_n      int         not null check (live_n >= 0),  -- steps in_progress, or pending with nothing to wait for
  started_at  timestamptz,                               -- first lease of its first step
  finished_at timestamptz                                -- null = pending or in_progress
) with (fillfactor = 60);
create index task_open on task (id) where finished_at is null;

-- What of a task never changes.
create table task_detail (
  task           bigint      primary key,
  hash           bytea       not null,   -- SHA-256 of the request
  context        text        not null,
  initiator      text        not null,
  source_system  text        not null,
  reason         text        not null,
  tags           text[]      not null,
  created_at     timestamptz not null,
  first_position bigint      not null    -- of its first event
);

create table step (
  key          bigint      primary key,
  state        smallint    not null,
  waiting_on   int         not null check (waiting_on >= 0),  -- parents not complete and not resolved
  attempt      int         not null default 0,                -- only grows; + 1 per lease
  max_attempts int         not null,                          -- raised by hand-backs
  queue        int         not null,
  children     int[]       not null,
  not_before   timestamptz,                                   -- back-off
  leased_at    timestamptz,                                   -- of the last lease
  token        bigint,                                        -- the lease: set exactly while in_progress
  node         int,
  session      bigint,
  last_token   bigint,                                        -- the last settled lease and how it ended
  last_kind    smallint,
  result       text,
  last_error   text,
  check ((state = 2) = (token is not null)),
  check (state <> 2 or waiting_on = 0)
) with (fillfactor = 50);

-- ── queues: narrow, insert and delete only ──────────────────────────────────────────────────────
-- No unique key on purpose: two rows for one step and attempt are legitimate (a stale one and a new
-- one), and a unique index would make an inserter that holds a task wait for a claim that holds the
-- row and waits for the task.

create table ready_step (queue int not null, id bigint not null, key bigint not null, attempt int not null);
create index ready_step_order on ready_step (queue, id, key);
create table timer (due timestamptz not null, key bigint not null, attempt int not null);
create index timer_due on timer (due);

-- A step-service process. From `retired_at` on no verb may lease in its name.
create table node (
  id         int         primary key generated always as identity,
  started_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz
);

-- What must reach a particular node: a lease of one of its sessions is void.
create table signal (
  id      bigint primary key generated always as identity,
  node    int    not null,
  session bigint not null,
  key     bigint not null,
  token   bigint not null,
  attempt int    not null,
  reason  text   not null
);
create index signal_node on signal (node, id);

-- ── the log ─────────────────────────────────────────────────────────────────────────────────────
-- Append-only: the audit trail, the outbox and the feed. Written by `append` alone, in the order of
-- commits. Partitioned by position, so that old ones can be dropped.

create sequence position;

create table event (
  position   bigint      not null,
  batch      bigint      not null,   -- first position of its append: what one commit wrote
  at         timestamptz not null,
  task       bigint      not null,
  uid        uuid        not null,   -- of the task
  definition int         not null,
  no         int,                    -- null: the transition is the task's
  type       smallint    not null,
  from_state smallint,
  to_state   smallint    not null,
  attempt    int,
  session    bigint,                 -- step.execution_requested: who got the lease
  mark       timestamptz,            -- completed, failed, returned: start of what ended; retry_requested: not_before
  text       text,                   -- context, result, error or reason, by type
  names      int[],                  -- step.completed: numbers of the steps it released; task.failed: of those in error
  -- The legal transitions, as the catalog has them. Hot types first.
  constraint event_edge check (case when no is null then case type
      when 20 then from_state is null and to_state = 1
      when 21 then from_state is not distinct from 1 and to_state = 2
      when 22 then from_state is not distinct from 2 and to_state = 3
      when 23 then from_state is not null and from_state in (1, 2) and to_state = 4
      when 24 then from_state is not null and from_state in (1, 2, 4) and to_state = 5
      else false end else case type
      when 40 then from_state is not distinct from 1 and to_state = 2
      when 41 then from_state is not distinct from 2 and to_state = 3
      when 42 then from_state is not distinct from 2 and to_state = 4
      when 43 then from_state is not distinct from 4 and to_state = 1
      when 44 then from_state is not distinct from 2 and to_state = 1
      when 45 then from_state is not null and from_state in (1, 2, 4) and to_state = 5
      else false end end)
) partition by range (position);

set local search_path to default;

