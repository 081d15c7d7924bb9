//! The guard itself. It makes what its parent asks for, so it knows of everything from the first
//! moment on, and undoes it all when its standard input ends: because the parent is done, or because
//! the parent was killed.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, ExitCode, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, setsid},
};
use tokio::signal::unix::SignalKind;

use crate::{
    folder,
    protocol::{Answer, Command, Kind, Request, What},
};

/// Asked in peace, a process has this long.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// A Postgres that is told to stop at once kills what does not by itself after five seconds.
const QUIT_WITHIN: Duration = Duration::from_secs(7);
/// What was killed is gone within this time, or the kernel holds it.
const KILLED_WITHIN: Duration = Duration::from_secs(2);

/// Runs a guard until its standard input ends. Nothing else ends it, short of SIGKILL: it stands in
/// a session of its own, so that what the terminal sends to its parent does not reach it, and it is
/// deaf to requests to stop. Should it be killed, its processes are too where there is `setpriv`
/// (on Linux), and its parent removes its folders.
pub fn guard_main() -> ExitCode {
    // Refused only to a leader of a process group, which is then alone in it: just as good.
    let _ = setsid();
    if let Err(error) = deafen() {
        eprintln!("error: the guard cannot set up its signals: {error}");
        return ExitCode::FAILURE;
    }
    let mut guarded = Guarded::default();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(Request { id, what }) = serde_json::from_str(&line) else { break };
        let refused = |why: String| Answer::Refused { id, why };
        let answer = match what {
            What::Folder { within, owner } => match guarded.folder(within, owner) {
                Ok(path) => Answer::Folder { id, path },
                Err(error) => refused(error.to_string()),
            },
            What::Spawn(command) => match guarded.spawn(id, &command) {
                // It has been said: before the end of the process could be.
                Ok(()) => continue,
                Err(error) => refused(error.to_string()),
            },
            What::Kill { process, signal } => match guarded.signal(process, signal) {
                Ok(()) => Answer::Done { id },
                Err(why) => refused(why),
            },
            What::Undo => {
                guarded.undo();
                Answer::Done { id }
            }
        };
        say(&answer);
    }
    guarded.undo();
    ExitCode::SUCCESS
}

/// A handler that does nothing, instead of ignoring them: that would be inherited.
fn deafen() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    for kind in
        [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()]
    {
        // Once there, a handler stays.
        drop(tokio::signal::unix::signal(kind)?);
    }
    Ok(())
}

fn say(answer: &Answer) {
    let mut line = serde_json::to_vec(answer).expect("plain data");
    line.push(b'\n');
    let mut out = io::stdout().lock();
    // If nobody listens the input ends too, and everything is undone.
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

#[derive(Default)]
struct Guarded {
    folders: Vec<PathBuf>,
    running: Arc<Running>,
}

#[derive(Default)]
struct Running {
    /// By the id of the request that asked for them.
    processes: Mutex<BTreeMap<u64, (Pid, Kind)>>,
    ended: Condvar,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (Pid, Kind)>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pids(processes: &BTreeMap<u64, (Pid, Kind)>, wanted: Kind) -> Vec<Pid> {
        processes.values().filter(|(_, kind)| *kind == wanted).map(|(pid, _)| *pid).collect()
    }

    /// Waits for the end of a child, then for that of its group.
    fn watch(&self, process: u64, pid: Pid, mut child: Child) {
        let status = child.wait();
        // What it started and left in its group goes with it.
        let _ = killpg(pid, Signal::SIGKILL);
        self.lock().remove(&process);
        self.ended.notify_all();
        let (code, signal) = status.map_or((None, None), |s| (s.code(), s.signal()));
        say(&Answer::Ended { process, code, signal });
    }

    /// Sends a signal to all processes of a kind and waits for their ends. True if all have ended.
    fn stop(&self, kind: Kind, signal: Signal, within: Duration) -> bool {
        let mut processes = self.lock();
        for pid in Self::pids(&processes, kind) {
            if signal == Signal::SIGKILL {
                let _ = killpg(pid, signal);
                continue;
            }
            let _ = kill(pid, signal);
            // One that is held must wake up to end.
            let _ = kill(pid, Signal::SIGCONT);
        }
        let deadline = Instant::now() + within;
        while !Self::pids(&processes, kind).is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.ended.wait_timeout(processes, left);
            processes = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Guarded {
    fn folder(
        &mut self,
        within: Option<PathBuf>,
        owner: Option<(u32, u32)>,
    ) -> io::Result<PathBuf> {
        let path = folder::make(within, owner.is_some())?;
        self.folders.push(path.clone());
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        }
        Ok(path)
    }

    fn spawn(&mut self, id: u64, command: &Command) -> io::Result<()> {
        let mut spawned = bound(command);
        spawned.args(&command.args).envs(command.env.iter().cloned());
        spawned.stdin(Stdio::null()).process_group(0);
        if let Some(log) = &command.log {
            let log = std::fs::File::options().create(true).append(true).open(log)?;
            spawned.stdout(log.try_clone()?).stderr(log);
        } else {
            // Our standard output speaks to the parent; theirs goes where our errors go.
            spawned.stdout(io::stderr()).stderr(Stdio::inherit());
        }
        if let Some((uid, gid)) = command.user {
            // Where we are may be closed to that user.
            spawned.uid(uid).gid(gid).current_dir("/");
        }
        let mut processes = self.running.lock();
        let child = spawned.spawn()?;
        let pid = i32::try_from(child.id()).expect("a pid is an i32");
        processes.insert(id, (Pid::from_raw(pid), command.kind));
        drop(processes);
        say(&Answer::Started { id, pid });
        let running = Arc::clone(&self.running);
        std::thread::spawn(move || running.watch(id, Pid::from_raw(pid), child));
        Ok(())
    }

    fn signal(&self, process: u64, signal: i32) -> Result<(), String> {
        let signal = Signal::try_from(signal).map_err(|error| error.to_string())?;
        let processes = self.running.lock();
        let (pid, _) = processes.get(&process).ok_or("the process has ended")?;
        kill(*pid, signal).map_err(|error| error.to_string())
    }

    fn undo(&mut self) {
        let stop = |kind, signal, within| self.running.stop(kind, signal, within);
        let _ = stop(Kind::Ordinary, Signal::SIGTERM, STOP_WITHIN)
            || stop(Kind::Ordinary, Signal::SIGKILL, KILLED_WITHIN);
        let _ = stop(Kind::Postgres, Signal::SIGINT, STOP_WITHIN)
            || stop(Kind::Postgres, Signal::SIGQUIT, QUIT_WITHIN)
            || stop(Kind::Postgres, Signal::SIGKILL, KILLED_WITHIN);
        for folder in self.folders.drain(..) {
            folder::remove(&folder);
        }
    }
}

/// A command that dies with this guard, where there is `setpriv`.
fn bound(command: &Command) -> std::process::Command {
    let places = ["/usr/bin/setpriv", "/bin/setpriv"].map(PathBuf::from);
    let Some(setpriv) = places.into_iter().find(|path| cfg!(target_os = "linux") && path.exists())
    else {
        return std::process::Command::new(&command.program);
    };
    let signal = match command.kind {
        Kind::Ordinary => "KILL",
        // It takes its children with it.
        Kind::Postgres => "QUIT",
    };
    let mut bound = std::process::Command::new(setpriv);
    bound.args(["--pdeathsig", signal, "--"]).arg(&command.program);
    bound
}
