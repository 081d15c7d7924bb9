//! The parent's side of a guard.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
    sync::{oneshot, watch},
};

use crate::{
    Error, folder,
    protocol::{Answer, Command, Kind, Request, What},
};

/// A Postgres whose guard was killed was told to stop at once, and has this long.
const QUIT_WITHIN: Duration = Duration::from_secs(2);

/// How a process ended. Both are unknown if the guard went first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl Exit {
    const UNKNOWN: Self = Self { code: None, signal: None };
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
    /// Held while something is undone.
    undoing: Mutex<()>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    asked: HashMap<u64, oneshot::Sender<Answer>>,
    spawned: HashMap<u64, (Kind, watch::Sender<Option<Exit>>)>,
    /// What is left to undo, should the guard be killed.
    running: BTreeMap<u64, (Kind, Pid)>,
    folders: Vec<PathBuf>,
    /// True once the guard speaks no more.
    gone: bool,
}

impl Guard {
    /// Starts a guard: `executable __guard`, which must call `guard_main`. Within a runtime.
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

    /// A number for a request, and where its answer will come.
    fn enter(&self) -> Result<(u64, oneshot::Receiver<Answer>), Error> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.0.said.lock();
        if state.gone {
            return Err(gone());
        }
        state.next_id += 1;
        let id = state.next_id;
        state.asked.insert(id, answer);
        Ok((id, answered))
    }

    async fn tell(
        &self,
        request: Request,
        answered: oneshot::Receiver<Answer>,
    ) -> Result<Answer, Error> {
        let mut line = serde_json::to_vec(&request).expect("plain data");
        line.push(b'\n');
        let broken = |error| Error::Io("the guard is gone".into(), error);
        self.0.input.lock().await.write_all(&line).await.map_err(broken)?;
        match answered.await {
            Ok(Answer::Refused { why, .. }) => Err(Error::Failed(why)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(gone()),
        }
    }

    async fn ask(&self, what: What) -> Result<Answer, Error> {
        let (id, answered) = self.enter()?;
        self.tell(Request { id, what }, answered).await
    }

    /// Makes a folder under the temporary folder, or within another; it goes with the guard. It is
    /// open to its owner alone: a user and a group, by default ours.
    pub async fn folder(
        &self,
        within: Option<&Path>,
        owner: Option<(u32, u32)>,
    ) -> Result<PathBuf, Error> {
        let within = within.map(Path::to_owned);
        match self.ask(What::Folder { within, owner }).await? {
            Answer::Folder { path, .. } => Ok(path),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a process. It and what it starts end with the guard.
    pub async fn spawn(&self, command: Command) -> Result<Process, Error> {
        let program = command.program.display().to_string();
        let (id, answered) = self.enter()?;
        // From now on, so that an early end is not missed.
        let (ending, exit) = watch::channel(None);
        self.0.said.lock().spawned.insert(id, (command.kind, ending));
        match self.tell(Request { id, what: What::Spawn(command) }, answered).await {
            Ok(Answer::Started { pid, .. }) => Ok(Process { pid, id, exit, guard: self.clone() }),
            Ok(other) => Err(unexpected(&other)),
            Err(Error::Failed(why)) => Err(Error::Failed(format!("cannot start {program}: {why}"))),
            Err(error) => Err(error),
        }
    }

    /// Undoes everything and waits for it.
    pub async fn stop(self) -> Result<(), Error> {
        let undone = self.ask(What::Undo).await;
        self.0.input.lock().await.shutdown().await.ok();
        if undone.is_ok() {
            self.0.said.lock().folders.clear();
        } else {
            // It was killed: then what it made is ours to undo.
            let said = Arc::clone(&self.0.said);
            tokio::task::spawn_blocking(move || said.undo()).await.ok();
        }
        // The guard ends by itself once its input has ended; it is not waited for without bound.
        let mut child = self.0.child.lock().await;
        tokio::time::timeout(Duration::from_secs(1), child.wait()).await.ok();
        undone.map(drop)
    }
}

fn gone() -> Error {
    Error::Failed("the guard is gone".into())
}

fn unexpected(answer: &Answer) -> Error {
    Error::Failed(format!("the guard answered {answer:?}"))
}

impl Said {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, answer: Answer) {
        let mut state = self.lock();
        match &answer {
            Answer::Ended { process, code, signal } => {
                state.running.remove(process);
                if let Some((_, ending)) = state.spawned.remove(process) {
                    ending.send_replace(Some(Exit { code: *code, signal: *signal }));
                }
                return;
            }
            Answer::Folder { path, .. } => state.folders.push(path.clone()),
            Answer::Started { id, pid } => {
                let kind = state.spawned.get(id).map_or(Kind::Ordinary, |(kind, _)| *kind);
                state.running.insert(*id, (kind, Pid::from_raw(*pid)));
            }
            Answer::Refused { id, .. } => {
                state.spawned.remove(id);
            }
            Answer::Done { .. } => {}
        }
        let (Answer::Folder { id, .. }
        | Answer::Started { id, .. }
        | Answer::Done { id }
        | Answer::Refused { id, .. }
        | Answer::Ended { process: id, .. }) = answer;
        if let Some(asked) = state.asked.remove(&id) {
            // Whoever asked may have stopped waiting.
            let _ = asked.send(answer);
        }
    }

    /// What the guard would have done, had it not been killed. Does nothing after it was done.
    fn undo(&self) {
        let _undoing = self.undoing.lock().unwrap_or_else(PoisonError::into_inner);
        let (running, folders) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.running), std::mem::take(&mut state.folders))
        };
        // The leader of a group may have ended with the guard, but not what it started.
        for (kind, pid) in running.into_values() {
            if kind == Kind::Postgres && killpg(pid, Signal::SIGQUIT).is_ok() {
                let deadline = Instant::now() + QUIT_WITHIN;
                while killpg(pid, None).is_ok() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            let _ = killpg(pid, Signal::SIGKILL);
        }
        for folder in folders {
            folder::remove(&folder);
        }
    }
}

async fn listen(output: ChildStdout, said: Arc<Said>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(answer) = serde_json::from_str::<Answer>(&line) else { break };
        said.hear(answer);
    }
    {
        let mut state = said.lock();
        state.gone = true;
        state.asked.clear();
        state.spawned.clear();
    }
    tokio::task::spawn_blocking(move || said.undo()).await.ok();
}

/// A process that the guard started.
#[derive(Clone)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    id: u64,
    exit: watch::Receiver<Option<Exit>>,
    guard: Guard,
}

impl Process {
    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        ended.unwrap_or(Exit::UNKNOWN)
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Exit> {
        let ended = *self.exit.borrow();
        ended.or_else(|| self.exit.has_changed().is_err().then_some(Exit::UNKNOWN))
    }

    /// Sends it a signal.
    pub async fn kill(&self, signal: Signal) -> Result<(), Error> {
        let (process, signal) = (self.id, signal as i32);
        self.guard.ask(What::Kill { process, signal }).await.map(drop)
    }
}
