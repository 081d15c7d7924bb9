//! The `stepwell-http` program: the library with options, a log, and signals.

mod options;

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use stepwell_client::Report;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::options::{LogFormat, Options};

/// Libraries that would say where calls go and what is sent: they are heard when a filter names them.
const QUIET: &str = "h2=info,hyper=info,hyper_util=info,reqwest=info,rustls=info,tower=info";

fn main() -> ExitCode {
    let options = Options::parse();
    let ended = log(&options).and_then(|()| run(options));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn run(options: Options) -> anyhow::Result<()> {
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(term), Ok(int)] = signals else { anyhow::bail!("signals cannot be heard") };
    let executor = options.executor()?;
    tracing::info!(
        executor = options.name,
        version = env!("CARGO_PKG_VERSION"),
        namespace = options.namespace,
        handlers = options.handlers.join(","),
        slots = options.slots,
        "starting"
    );
    let name = options.name;
    let report = executor.run(told_to_stop(name.clone(), term, int)).await?;
    let Report { completed, failed, handed_back, unacknowledged, .. } = report;
    tracing::info!(executor = name, completed, failed, handed_back, unacknowledged, "stopped");
    Ok(())
}

/// Until SIGTERM or SIGINT; a second one ends the process at once.
async fn told_to_stop(executor: String, mut term: Signal, mut int: Signal) {
    told(&mut term, &mut int).await;
    tracing::info!(executor, "going down");
    tokio::spawn(async move {
        told(&mut term, &mut int).await;
        std::process::exit(1);
    });
}

async fn told(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn log(options: &Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", options.log_filter));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter.context("--log-filter cannot be read")?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match options.log {
        LogFormat::Human => lines.with_target(false).compact().init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
