-- Durable subscriptions: what a reader of the feed has done is kept here, by partitions of the tasks. Written by
-- verbs/89_subscription.sql alone; nothing on a step's way looks here.

set local search_path = stepwell;

create table subscription (
  id              int         primary key generated always as identity,
  name            text        not null constraint subscription_name_key unique,
  filter          bytea       not null,   -- stepwell.v1.EventFilter
  ordered         bool        not null,   -- the events of a task one after the other
  max_attempts    int         not null check (max_attempts > 0),
  ack_deadline_ms bigint      not null check (ack_deadline_ms > 0),
  partitions      int         not null check (partitions between 1 and 64),
  paused          bool        not null default false,
  created_at      timestamptz not null
);

-- The place up to which events are done with, and who reads on from there.
create table subscription_partition (
  subscription int         not null,
  no           int         not null,
  place        bigint      not null,            -- what comes up to there is acked, not wanted, or in parked_event
  epoch        bigint      not null default 0,  -- the fence: what was delivered under another cannot be acked
  holder       bigint,                          -- the stream that reads; null: nobody
  reader       text,                            -- its reader's id
  lease_until  timestamptz,                     -- then it may be taken over
  failing      bigint,                          -- ordered: the event that failed last
  attempt      int         not null default 0,  -- how often it has
  not_before   timestamptz,                     -- when it is delivered again
  primary key (subscription, no),
  check ((holder is null) = (reader is null) and (holder is null) = (lease_until is null))
) with (fillfactor = 50);

-- Events that a place may have passed and that are not done with.
create table parked_event (
  subscription int         not null,
  partition    int         not null,
  position     bigint      not null,
  uid          uuid        not null,   -- of its task
  state        smallint    not null check (state in (1, 2)),  -- 1 parked, 2 to be delivered again
  attempt      int         not null,   -- how often it has failed
  due          timestamptz not null,   -- when it is delivered again
  reason       text        not null,   -- of the last failure; '': it follows one of its task that failed
  at           timestamptz not null,   -- since when it is here
  primary key (subscription, partition, position)
);
create index parked_event_task on parked_event (subscription, partition, uid, position);
create index parked_event_parked on parked_event (subscription) where state = 1;   -- they are counted now and then

set local search_path to default;
