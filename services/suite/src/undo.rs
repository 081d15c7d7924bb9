//! The guard itself. It makes what its parent asks for, so it knows of everything from the first
//! moment on, and undoes it all when its standard input ends: because the parent is done, or because
//! the parent was killed.

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
    os::unix::{
        fs::{DirBuilderExt, chown},
        process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{ExitCode, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, setsid},
};

use crate::protocol::{Answer, Command, Request, What};

const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Runs a guard until its standard input ends. It stands in a session of its own, so that what the
/// terminal sends to its parent does not reach it.
pub fn guard_main() -> ExitCode {
    // Refused only to a leader of a process group, which is then alone in it: just as good.
    let _ = setsid();
    let mut guarded = Guarded::default();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(Request { id, what }) = serde_json::from_str(&line) else { break };
        match what {
            What::Folder { owner } => match guarded.folder(owner) {
                Ok(path) => say(&Answer::Folder { id, path }),
                Err(error) => say(&Answer::Refused { id, why: error.to_string() }),
            },
            What::Spawn(command) => match guarded.spawn(&command) {
                Ok(pid) => say(&Answer::Started { id, pid }),
                Err(error) => say(&Answer::Refused { id, why: error.to_string() }),
            },
            What::Kill { pid, signal } => {
                match guarded.signal(pid, signal) {
                    Ok(()) => say(&Answer::Done { id }),
                    Err(why) => say(&Answer::Refused { id, why }),
                };
            }
            What::Undo => {
                guarded.undo();
                say(&Answer::Done { id });
            }
        }
    }
    guarded.undo();
    ExitCode::SUCCESS
}

fn say(answer: &Answer) {
    let mut line = serde_json::to_vec(answer).expect("plain data");
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
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
    /// By pid: whether it is stopped last.
    processes: Mutex<BTreeMap<i32, bool>>,
    ended: Condvar,
}

impl Guarded {
    fn folder(&mut self, owner: Option<(u32, u32)>) -> std::io::Result<PathBuf> {
        let name = format!("stepwell-{:08x}", rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        self.folders.push(path.clone());
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        if let Some((uid, gid)) = owner {
            chown(&path, Some(uid), Some(gid))?;
        }
        Ok(path)
    }

    fn spawn(&mut self, command: &Command) -> std::io::Result<i32> {
        // Where there is setpriv, a process also dies with this guard, should that be killed.
        let mut spawned = match setpriv() {
            Some(setpriv) => {
                let mut spawned = std::process::Command::new(setpriv);
                spawned.args(["--pdeathsig", "KILL", "--"]).arg(&command.program);
                spawned
            }
            None => std::process::Command::new(&command.program),
        };
        spawned.args(&command.args).envs(command.env.iter().cloned()).stdin(Stdio::null());
        spawned.process_group(0);
        if let Some(log) = &command.log {
            let log = std::fs::File::options().create(true).append(true).open(log)?;
            spawned.stdout(log.try_clone()?).stderr(log);
        } else {
            // Our standard output speaks to the parent; theirs goes where our errors go.
            spawned.stdout(std::io::stderr()).stderr(Stdio::inherit());
        }
        if let Some((uid, gid)) = command.user {
            spawned.uid(uid).gid(gid).current_dir("/");
        }
        let mut processes =
            self.running.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = spawned.spawn()?;
        let pid = i32::try_from(child.id()).expect("a pid is an i32");
        processes.insert(pid, command.last);
        drop(processes);
        let running = Arc::clone(&self.running);
        std::thread::spawn(move || {
            let status = child.wait();
            running.processes.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
            running.ended.notify_all();
            let (code, signal) = status.map_or((None, None), |s| (s.code(), s.signal()));
            say(&Answer::Ended { pid, code, signal });
        });
        Ok(pid)
    }

    fn signal(&self, pid: i32, signal: i32) -> Result<(), String> {
        let processes = self.running.processes.lock().unwrap_or_else(PoisonError::into_inner);
        if !processes.contains_key(&pid) {
            return Err(format!("process {pid} has ended"));
        }
        let signal = Signal::try_from(signal).map_err(|error| error.to_string())?;
        kill(Pid::from_raw(pid), signal).map_err(|error| error.to_string())
    }

    fn undo(&mut self) {
        self.stop(false, Signal::SIGTERM);
        self.stop(true, Signal::SIGINT);
        for folder in self.folders.drain(..) {
            // A process that was just killed may still have written into it: a few times, then.
            for _ in 0..50 {
                match std::fs::remove_dir_all(&folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    _ => break,
                }
            }
        }
    }

    /// Stops all processes of a kind, in peace first.
    fn stop(&self, last: bool, signal: Signal) {
        let mut processes = self.running.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = |processes: &BTreeMap<i32, bool>| -> Vec<Pid> {
            processes.iter().filter(|(_, l)| **l == last).map(|(pid, _)| Pid::from_raw(*pid)).collect()
        };
        for pid in kind(&processes) {
            let _ = kill(pid, signal);
            // A stopped process must wake up to end.
            let _ = kill(pid, Signal::SIGCONT);
        }
        let deadline = Instant::now() + STOP_WITHIN;
        let mut killed = false;
        while !kind(&processes).is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if killed {
                    return;
                }
                for pid in kind(&processes) {
                    let _ = killpg(pid, Signal::SIGKILL);
                }
                killed = true;
            }
            let wait = if killed { STOP_WITHIN } else { left };
            let waited = self.running.ended.wait_timeout(processes, wait);
            processes = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn setpriv() -> Option<PathBuf> {
    ["/usr/bin/setpriv", "/bin/setpriv"].iter().map(PathBuf::from).find(|path| path.exists())
}
