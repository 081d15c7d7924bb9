//! The writing verbs on real Postgres, before any transport: what they do, and what they do when
//! two meet. A race is arranged: a third session holds the lock that both need until both stand in
//! line, so the outcome does not hang on luck.

mod annotate;
mod archive;
mod bulk;
mod edges;
mod executors;
mod find;
mod history;
mod identity;
mod insight;
mod life;
mod limits;
mod moves;
mod nodes;
mod operate;
mod plans;
mod priority;
mod priority_races;
mod publish;
mod races;
mod reads;
mod removal;
mod requests;
mod retention;
mod square;
mod subscriptions;
mod survey;
mod truth;
mod unserved;
mod update;
mod upgrade;
mod views;
mod wide;
