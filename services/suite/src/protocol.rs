//! What a parent and its guard say to each other: one JSON object a line.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// From the parent, on the guard's standard input. Its end means: undo everything.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Names the answer; of a `Spawn`, the process too.
    pub(crate) id: u64,
    pub(crate) what: What,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum What {
    /// Make a folder; it goes with the guard.
    Folder {
        /// Where; none: under the temporary folder.
        within: Option<PathBuf>,
        /// Who owns it, if not us.
        owner: Option<(u32, u32)>,
    },
    /// Start a process in a group of its own.
    Spawn(Command),
    /// Send a signal to a process that was started.
    Kill { process: u64, signal: i32 },
    /// Undo everything and answer when it is done.
    Undo,
}

/// A process to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// The program: a path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Set in its environment, which is ours otherwise.
    pub env: Vec<(String, String)>,
    /// The file that its output is appended to. Default: it goes where our errors go.
    pub log: Option<PathBuf>,
    /// As whom it runs: user and group. Default: as us.
    pub(crate) user: Option<(u32, u32)>,
    /// How it is stopped, and when.
    pub(crate) kind: Kind,
}

impl Command {
    /// A program without arguments.
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            log: None,
            user: None,
            kind: Kind::Ordinary,
        }
    }
}

/// What it takes to stop a process in peace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// SIGTERM.
    Ordinary,
    /// A Postgres: after all others; SIGINT waits for nobody's session, SIGQUIT not even for itself.
    Postgres,
}

/// From the guard, on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Folder { id: u64, path: PathBuf },
    Started { id: u64, pid: i32 },
    Done { id: u64 },
    Refused { id: u64, why: String },
    Ended { process: u64, code: Option<i32>, signal: Option<i32> },
}
