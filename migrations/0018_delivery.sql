-- Subscriptions whose events event-service delivers itself, and where they were declared. Written by
-- verbs/89_subscription.sql alone.

set local search_path = stepwell;

alter table subscription
  add delivery   bytea,                              -- stepwell.v1.Delivery; null: readers come for its events
  add config     text    not null default '',        -- a JSON object that is handed on; '': none
  add namespace  text    not null default '',        -- only tasks of this definition; '': of any
  add definition text    not null default '',
  add disabled   bool    not null default false,     -- as declared; paused is for those who operate it
  add declared   bool    not null default false,     -- by apply_subscriptions, which may change and prune it
  add revision   int     not null default 1,         -- grows when what is delivered, or how, is another
  add check ((namespace = '') = (definition = ''));

-- What subscriptions with alerts have counted, one row for each definition whose events came.
create table alert (
  subscription int           not null,
  namespace    text          not null,
  definition   text          not null,
  position     bigint        not null,   -- the last event that was counted
  seen         timestamptz[] not null,   -- when the last ones were, at most as many as make it fire
  firing       bool          not null,
  no           int           not null,   -- of its last change: odd, it fires; even, it is resolved
  primary key (subscription, namespace, definition)
);

-- Changes of alerts that are still to be told of.
create table alert_change (
  subscription int         not null,
  namespace    text        not null,
  definition   text        not null,
  no           int         not null,
  at           timestamptz not null,   -- by the time of events
  position     bigint      not null,   -- the event that made it fire; 0: it is resolved
  primary key (subscription, namespace, definition, no)
);

set local search_path to default;
