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

set local search_path to default;
