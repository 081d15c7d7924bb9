//! The `stepwell` command.

mod server;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "stepwell", version, about = "Durable tasks made of steps, and the events of their lives")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a service.
    #[command(subcommand)]
    Serve(server::Serve),
    /// Bring a database's schema up to date.
    Migrate(server::Migrate),
    #[command(name = "__guard", hide = true)]
    Guard,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Migrate(migrate) => migrate.run(),
        Command::Guard => stepwell_suite::guard_main(),
    }
}
