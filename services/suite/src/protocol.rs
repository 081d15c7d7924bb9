//! What a parent and its guard say to each other: one JSON object a line.

use std::path::PathBuf;

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
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Default: its output goes where our errors go.
    pub(crate) log: Option<PathBuf>,
    /// As whom it runs: user and group. Default: as us.
    pub(crate) user: Option<(u32, u32)>,
    /// How it is stopped, and when.
    pub(crate) kind: Kind,
}

impl Command {
    /// A program without arguments, in our environment, whose output goes where our errors go.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            log: None,
            user: None,
            kind: Kind::Ordinary,
        }
    }

    /// Further arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The file that its output is appended to.
    pub fn log(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
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
