//! Alerts when tasks fail too often, printed: `failure-alerts --failures 3 --within-minutes 60`.

use std::{error::Error, io::stdout, time::Duration};

use clap::Parser;
use stepwell_examples::subscribers::{FailureAlerts, Options, run};

/// Prints an alert when so many tasks of one definition failed within so long.
#[derive(Parser)]
struct Program {
    /// So many failures
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    failures: u32,
    /// Within so many minutes
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    within_minutes: u64,
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Program { failures, within_minutes, options } = Program::parse();
    let window = Duration::from_secs(within_minutes * 60);
    let alerts = FailureAlerts::new(failures as usize, window, stdout());
    let tally = run(&options, &Options::client()?, alerts, &[]).await?;
    eprintln!("{} events, {} failed", tally.handled, tally.failed);
    Ok(())
}
