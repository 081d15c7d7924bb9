//! What a run costs: processor time and memory of each process, and what the database waits for.

use std::collections::{BTreeMap, HashMap};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::fault::Fault;

/// Processes by name. Those of one name are added up.
pub(super) struct Watch {
    system: System,
    named: Vec<(String, Pid)>,
    /// Its sessions are processes that come and go.
    postgres: Option<Pid>,
    /// By process, also of those that are gone: its name, and milliseconds of processor time.
    used: HashMap<Pid, (String, u64)>,
}

/// One look.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// Seconds of processor time so far, by name.
    pub(super) cpu_seconds: BTreeMap<String, f64>,
    /// Resident bytes, by name; not of Postgres, whose processes share most of theirs.
    pub(super) rss_bytes: BTreeMap<String, u64>,
    /// Share of the whole machine's processors in use since the last look, 0 to 1.
    pub(super) machine: f64,
}

/// What all of Postgres' processes are called.
pub(super) const POSTGRES: &str = "postgres";

impl Watch {
    pub(super) fn new(named: Vec<(String, i32)>, postgres: Option<i32>) -> Result<Self, Fault> {
        let pid = |pid: i32| Pid::from_u32(pid.unsigned_abs());
        let named = named.into_iter().map(|(name, id)| (name, pid(id))).collect();
        let postgres = postgres.map(pid);
        let system = System::new().map_err(|error| Fault::new(error.to_string()))?;
        Ok(Self { system, named, postgres, used: HashMap::new() })
    }

    pub(super) fn look(&mut self) -> Look {
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        self.system.refresh_cpu_usage();
        let mut look =
            Look { machine: f64::from(self.system.global_cpu_usage()) / 100.0, ..Look::default() };
        for (pid, process) in self.system.processes() {
            let named = self.named.iter().find(|(_, known)| known == pid);
            let is_postgres = self.postgres.is_some()
                && (Some(*pid) == self.postgres || process.parent() == self.postgres);
            let name = match named {
                Some((name, _)) => {
                    *look.rss_bytes.entry(name.clone()).or_default() += process.memory();
                    name.clone()
                }
                None if is_postgres => POSTGRES.to_owned(),
                None => continue,
            };
            self.used.insert(*pid, (name, process.accumulated_cpu_time()));
        }
        for (name, millis) in self.used.values() {
            *look.cpu_seconds.entry(name.clone()).or_default() += *millis as f64 / 1000.0;
        }
        look
    }
}
