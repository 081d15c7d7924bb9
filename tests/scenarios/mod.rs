//! Stories over real processes, a real Postgres and real sockets.

mod bad_input;
mod bench;
mod bulk;
mod cancel;
mod checkout;
mod cli;
mod docs;
mod executors;
mod feed;
mod hostile;
mod idle;
mod limits;
mod logs;
mod metrics;
mod operate;
mod presence;
mod priority;
mod retention;
mod retries;
mod rules;
mod schema;
mod traces;
mod unary;
mod unserved;
mod update;
mod views;
