//! What runs on the server's side: the services, the schema they need, and a suite of all of it.

use std::{path::PathBuf, pin::pin, process::ExitCode};

use clap::{Args, Subcommand};
use stepwell_suite::{Logs, PostgresOptions, Suite, SuiteOptions, default_data_dir};

use crate::{example::told_to_stop, fault::Fault, output};

/// `stepwell server`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a service; it runs until it is told to stop.
    #[command(subcommand)]
    Start(Serve),
}

/// `stepwell server start`
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
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let version = stepwell_store::migrate(&self.database_url).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Fault::new(error.to_string()).because(cause.unwrap_or_default())
        })?;
        output::line(format!("schema version {version}"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// `stepwell dev`
#[derive(Args)]
pub(crate) struct Dev {
    /// A database that is there; a private Postgres unless given.
    #[arg(long, env = "STEPWELL_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Where the private Postgres keeps its data.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Keep nothing: the data goes with the suite.
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
    /// Take free ports instead of 7101 to 7103.
    #[arg(long)]
    random_ports: bool,
}

impl Dev {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let data_dir = match (self.ephemeral, self.data_dir) {
            (true, _) => None,
            (false, Some(given)) => Some(given),
            (false, None) => Some(default_data_dir()),
        };
        let kept = data_dir.as_ref().map(|dir| dir.display().to_string());
        let mut options = SuiteOptions::new(std::env::current_exe()?);
        options.database_url = self.database_url;
        options.postgres = PostgresOptions { data_dir, ..PostgresOptions::default() };
        options.ports = (!self.random_ports).then_some([
            stepwell_task::DEFAULT_PORT,
            stepwell_step::DEFAULT_PORT,
            stepwell_event::DEFAULT_PORT,
        ]);
        options.logs = Logs::Inherit;
        let mut stopped = pin!(told_to_stop());
        let suite = tokio::select! {
            suite = Suite::start(options) => suite?,
            () = &mut stopped => return Ok(ExitCode::SUCCESS),
        };
        let addresses = suite.addresses();
        output::line(format!("task-service   {}", addresses.task.join(",")))?;
        output::line(format!("step-service   {}", addresses.step.join(",")))?;
        output::line(format!("event-service  {}", addresses.event.join(",")))?;
        output::line(format!("database       {}", suite.database_url()))?;
        if suite.postgres().is_some() {
            output::line(format!(
                "data           {}",
                kept.as_deref().unwrap_or("goes at the end")
            ))?;
        }
        output::line("For development only. Ctrl-C stops it. Next, in another terminal:")?;
        output::line("  stepwell example checkout definition | stepwell definition apply -")?;
        let broke = suite.any_ended();
        tokio::select! {
            () = stopped => {}
            name = broke => {
                let what = format!("{name} ended; everything is stopped");
                suite.stop().await?;
                return Err(Fault::new(what));
            }
        }
        suite.stop().await?;
        Ok(ExitCode::SUCCESS)
    }
}
