//! What runs on the server's side: the services themselves, and the schema they need.

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// `stepwell serve`
#[derive(Subcommand)]
pub(crate) enum Serve {
    /// Definitions and tasks.
    Task(stepwell_task::Options),
    /// Executors and their steps.
    Step(stepwell_step::Options),
    /// The feed of events.
    Event(stepwell_event::Options),
}

impl Serve {
    pub(crate) fn run(self) -> ExitCode {
        match self {
            Self::Task(options) => stepwell_task::main(options),
            Self::Step(options) => stepwell_step::main(options),
            Self::Event(options) => stepwell_event::main(options),
        }
    }
}

/// `stepwell migrate`
#[derive(Args)]
pub(crate) struct Migrate {
    /// The database: `postgres://user@host/name`, a unix socket as `?host=/path`.
    #[arg(long, env = "STEPWELL_DATABASE_URL", hide_env_values = true)]
    database_url: String,
}

impl Migrate {
    pub(crate) fn run(self) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let migrated = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
            Ok(runtime.block_on(stepwell_store::migrate(&self.database_url))?)
        });
        match migrated {
            Ok(version) => {
                println!("schema version {version}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}
