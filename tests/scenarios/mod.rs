//! Stories over real processes, a real Postgres and real sockets.

mod bad_input;
mod cancel;
mod checkout;
mod cli;
mod docs;
mod executors;
mod feed;
mod logs;
mod retries;
mod schema;
mod traces;
