//! The parent's side of a guard.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
    sync::{oneshot, watch},
};

use crate::{
    Error,
    protocol::{Answer, Command, Request, What},
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// A guard. When the last handle to it goes, or this process ends, everything it made is undone.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    input: tokio::sync::Mutex<ChildStdin>,
    said: Arc<Said>,
    child: tokio::sync::Mutex<Child>,
}

#[derive(Default)]
struct Said {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    asked: HashMap<u64, oneshot::Sender<Answer>>,
    exits: HashMap<i32, watch::Sender<Option<Exit>>>,
}

impl Guard {
    /// Starts a guard: `executable __guard`.
    pub fn start(executable: &Path) -> Result<Self, Error> {
        let mut child = tokio::process::Command::new(executable)
            .arg("__guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Error::Io(format!("cannot start {}", executable.display()), error))?;
        let lost = || Error::Failed("the guard has no pipes".into());
        let input = child.stdin.take().ok_or_else(lost)?;
        let output = child.stdout.take().ok_or_else(lost)?;
        let said = Arc::new(Said::default());
        tokio::spawn(listen(output, Arc::clone(&said)));
        let (input, child) = (tokio::sync::Mutex::new(input), tokio::sync::Mutex::new(child));
        Ok(Self(Arc::new(Inner { input, said, child })))
    }

    async fn ask(&self, what: What) -> Result<Answer, Error> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut state = self.0.said.lock();
            state.next_id += 1;
            let id = state.next_id;
            state.asked.insert(id, answer);
            id
        };
        let mut line = serde_json::to_vec(&Request { id, what }).expect("plain data");
        line.push(b'\n');
        let gone = |error| Error::Io("the guard is gone".into(), error);
        self.0.input.lock().await.write_all(&line).await.map_err(gone)?;
        match answered.await {
            Ok(Answer::Refused { why, .. }) => Err(Error::Failed(why)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(Error::Failed("the guard is gone".into())),
        }
    }

    /// A folder that goes with the guard.
    pub async fn folder(&self, owner: Option<(u32, u32)>) -> Result<PathBuf, Error> {
        match self.ask(What::Folder { owner }).await? {
            Answer::Folder { path, .. } => Ok(path),
            other => Err(Error::Failed(format!("the guard answered {other:?}"))),
        }
    }

    pub(crate) async fn spawn(&self, command: Command) -> Result<Process, Error> {
        let program = command.program.display().to_string();
        match self.ask(What::Spawn(command)).await {
            Ok(Answer::Started { pid, .. }) => {
                let mut state = self.0.said.lock();
                let exit = state.exits.entry(pid).or_insert_with(|| watch::channel(None).0);
                Ok(Process { pid, exit: exit.subscribe(), guard: self.clone() })
            }
            Ok(other) => Err(Error::Failed(format!("the guard answered {other:?}"))),
            Err(Error::Failed(why)) => Err(Error::Failed(format!("cannot start {program}: {why}"))),
            Err(error) => Err(error),
        }
    }

    /// Undoes everything and waits for it.
    pub async fn stop(self) -> Result<(), Error> {
        self.ask(What::Undo).await?;
        self.0.input.lock().await.shutdown().await.ok();
        let mut child = self.0.child.lock().await;
        // The guard ends by itself once its input has ended; it is not waited for without bound.
        tokio::time::timeout(Duration::from_secs(1), child.wait()).await.ok();
        Ok(())
    }
}

impl Said {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(output: ChildStdout, said: Arc<Said>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(answer) = serde_json::from_str::<Answer>(&line) else { break };
        let mut state = said.lock();
        match answer {
            Answer::Ended { pid, code, signal } => {
                let exit = state.exits.entry(pid).or_insert_with(|| watch::channel(None).0);
                exit.send_replace(Some(Exit { code, signal }));
            }
            Answer::Folder { id, .. }
            | Answer::Started { id, .. }
            | Answer::Done { id }
            | Answer::Refused { id, .. } => {
                if let Some(asked) = state.asked.remove(&id) {
                    // Whoever asked may have stopped waiting.
                    let _ = asked.send(answer);
                }
            }
        }
    }
    said.lock().asked.clear();
}

/// A process that the guard started.
#[derive(Clone)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    exit: watch::Receiver<Option<Exit>>,
    guard: Guard,
}

impl Process {
    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        ended.unwrap_or(Exit { code: None, signal: None })
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Sends it a signal.
    pub async fn kill(&self, signal: nix::sys::signal::Signal) -> Result<(), Error> {
        let (pid, signal) = (self.pid, signal as i32);
        self.guard.ask(What::Kill { pid, signal }).await.map(|_| ())
    }
}
