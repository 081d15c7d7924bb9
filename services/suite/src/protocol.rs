//! What a parent and its guard say to each other: one JSON object a line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// From the parent, on the guard's standard input. Its end means: undo everything.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) what: What,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum What {
    /// Make a folder under the temporary folder; it goes with the guard.
    Folder {
        /// Who owns it, if not us.
        owner: Option<(u32, u32)>,
    },
    /// Start a process in a group of its own.
    Spawn(Command),
    /// Send a signal to a process that was started.
    Kill { pid: i32, signal: i32 },
    /// Undo everything and answer when it is done.
    Undo,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Where its output goes; none: where ours goes.
    pub(crate) log: Option<PathBuf>,
    /// As whom, if not as us.
    pub(crate) user: Option<(u32, u32)>,
    /// Stopped by SIGINT, after all others: a Postgres.
    pub(crate) last: bool,
}

/// From the guard, on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Folder { id: u64, path: PathBuf },
    Started { id: u64, pid: i32 },
    Done { id: u64 },
    Refused { id: u64, why: String },
    Ended { pid: i32, code: Option<i32>, signal: Option<i32> },
}
