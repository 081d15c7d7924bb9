//! The parent: it starts what it is told, says so on its output, and stays until it is killed.

use std::{path::PathBuf, process::ExitCode};

use stepwell_suite::{Command, Guard, Postgres, PostgresOptions};

use crate::block_on;

/// What a parent says once everything runs.
pub(crate) const UP: &str = "up";

pub(crate) fn main(mut args: impl Iterator<Item = String>) -> ExitCode {
    let what = args.next().unwrap_or_default();
    let place = args.next().map(PathBuf::from);
    let done = block_on(async {
        match what.as_str() {
            // Answers and ends: for what can be seen from outside.
            "answer" => answer(place).await,
            // Has all that a suite has: a folder, a Postgres, and a process that starts others.
            "stay" => stay(place, false).await,
            // The same, but that process does not listen to requests to stop.
            _ => stay(place, true).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(data_dir: Option<PathBuf>) -> PostgresOptions {
    PostgresOptions { data_dir, fsync: false, ..PostgresOptions::default() }
}

async fn answer(data_dir: Option<PathBuf>) -> Result<(), stepwell_suite::Error> {
    let guard = Guard::start(&std::env::current_exe().unwrap())?;
    let postgres = Postgres::start(&guard, &options(data_dir)).await?;
    crate::postgres::answers(&postgres).await;
    guard.stop().await
}

async fn stay(data_dir: Option<PathBuf>, deaf: bool) -> Result<(), stepwell_suite::Error> {
    let guard = Guard::start(&std::env::current_exe().unwrap())?;
    let folder = guard.folder(None, None).await?;
    let deaf = if deaf { "trap '' TERM INT HUP;" } else { "" };
    let script = format!("{deaf} sleep 1000 & while true; do sleep 1000; done");
    let shell = Command::new("/bin/sh").args(["-c", &script]).log(folder.join("log"));
    let shell = guard.spawn(shell).await?;
    let _postgres = Postgres::start(&guard, &options(data_dir)).await?;
    println!("{UP}");
    shell.wait().await;
    // It never ends by itself; if it did, nobody must take that for a kill.
    std::future::pending().await
}
