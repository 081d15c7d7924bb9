//! A Postgres of our own and the services as processes: what `stepwell dev`, the demo, the benches
//! and the tests stand on. Every process and every folder is made by a guard, a tiny process that
//! undoes all of it when its parent ends, however that ends.

mod binaries;
mod counters;
mod fill;
mod folder;
mod guard;
mod postgres;
mod protocol;
mod services;
mod tests;
mod undo;

pub use counters::{Counters, Counting, ServerSetup, StatementCount};
pub use fill::fill;
pub use guard::{Exit, Guard, Process};
pub use nix::sys::signal::Signal;
pub use postgres::{Postgres, PostgresOptions, default_data_dir};
pub use protocol::Command;
pub use services::{Addresses, Kind, Logs, Nodes, Suite, SuiteOptions};
pub use tests::{TestDatabase, built_stepwell, test_database};
pub use undo::guard_main;

/// Why something could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something; the text says what and how to get it.
    #[error("{0}")]
    Missing(String),
    /// A process did not come up; the text has the end of its log.
    #[error("{0}")]
    Failed(String),
    /// The operating system refused.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
    /// The database refused.
    #[error("{0}: {1}")]
    Database(String, #[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the schema could not be brought up to date: {0}")]
    Schema(#[from] stepwell_store::Error),
}
