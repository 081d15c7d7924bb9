//! Where a benchmark runs: a suite of its own or services that are there, and the workers beside.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use clap::Args;
use stepwell_client::Addresses;
use stepwell_suite::{
    Command, Counters, Counting, Guard, Kind, Process, ServerSetup, Signal, StatementCount, Suite,
    SuiteOptions,
};

use super::{
    Run,
    load::Load,
    pair,
    report::expected,
    watch::Watch,
    worker::{Executed, Seen, expected_file, read, ready_file, write},
};
use crate::{fault::Fault, output};

/// For a Postgres of its own. A log that begins empty is slow until its files are there; counting
/// statements costs a little.
const SETTINGS: [(&str, &str); 5] = [
    ("shared_preload_libraries", "pg_stat_statements"),
    ("pg_stat_statements.track", "top"),
    ("shared_buffers", "2GB"),
    ("max_wal_size", "12GB"),
    ("min_wal_size", "4GB"),
];

/// Everything that runs for a benchmark.
pub(super) struct Ground {
    pub(super) addresses: Addresses,
    suite: Option<Suite>,
    guard: Guard,
    folder: PathBuf,
    database_url: Option<String>,
    counting: Option<Counting>,
    executors: Vec<(PathBuf, Process)>,
    subscriber: Option<(PathBuf, Process)>,
}

impl Ground {
    pub(super) async fn prepare(run: &Run) -> Result<Self, Fault> {
        let (suite, guard, folder, addresses, database_url) = match &run.address {
            Some([task, step, event]) => {
                let guard = Guard::start(&std::env::current_exe()?)?;
                let folder = guard.folder(None, None).await?;
                let one = |address: &String| vec![address.clone()];
                let addresses = Addresses { task: one(task), step: one(step), event: one(event) };
                (None, guard, folder, addresses, run.database_url.clone())
            }
            None => {
                let suite = run.own.start().await?;
                let stepwell_suite::Addresses { task, step, event } = suite.addresses();
                let (guard, folder) = (suite.guard().clone(), suite.folder().to_owned());
                let url = suite.database_url().to_owned();
                (Some(suite), guard, folder, Addresses { task, step, event }, Some(url))
            }
        };
        let counting = match &database_url {
            Some(url) => Some(Counting::connect(url).await?),
            None => None,
        };
        let (executors, subscriber) = (Vec::new(), None);
        Ok(Self { addresses, suite, guard, folder, database_url, counting, executors, subscriber })
    }

    pub(super) async fn start_workers(&mut self, run: &Run) -> Result<(), Fault> {
        for n in 0..run.executors {
            let out = self.folder.join(format!("executor-{n}.json"));
            let steps = &self.addresses.step;
            let args = [
                ("--step-address", steps[usize::from(n) % steps.len()].clone()),
                ("--slots", run.slots().to_string()),
                ("--payload", run.payload.to_string()),
                ("--fail-rate", run.fail_rate.to_string()),
            ];
            let process = self.worker("__bench-executor", &args, &out).await?;
            self.executors.push((out, process));
        }
        if run.subscribers > 0 {
            let out = self.folder.join("subscriber.json");
            let args = [
                ("--event-address", self.addresses.event[0].clone()),
                ("--streams", run.subscribers.to_string()),
            ];
            let process = self.worker("__bench-subscriber", &args, &out).await?;
            self.subscriber = Some((out, process));
        }
        Ok(())
    }

    async fn worker(
        &self,
        command: &str,
        args: &[(&str, String)],
        out: &Path,
    ) -> Result<Process, Fault> {
        let log = out.with_extension("log");
        let mut words = vec![command.to_owned()];
        words.extend(args.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]));
        words.extend(["--out".to_owned(), out.display().to_string()]);
        let program = Command::new(std::env::current_exe()?).args(words).log(&log);
        let process = self.guard.spawn(program).await?;
        while !ready_file(out).exists() {
            if process.ended().is_some() {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(Fault::new(format!("{command} did not start")).because(said));
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(process)
    }

    pub(super) async fn signal_workers(&self, signal: Signal) -> Result<(), Fault> {
        for (_, process) in self.executors.iter().chain(&self.subscriber) {
            process.kill(signal).await?;
        }
        Ok(())
    }

    /// Stops the workers and asks what they saw. The executors first: only they know what failed,
    /// and so how many events there must be.
    pub(super) async fn stop_workers(&mut self, load: &Load) -> Result<(Executed, Seen), Fault> {
        let mut all = Executed::default();
        for (out, process) in &self.executors {
            process.kill(Signal::SIGTERM).await?;
            process.wait().await;
            let executed: Executed = read(out)?;
            all.completed += executed.completed;
            all.failed += executed.failed;
            all.start.extend(executed.start);
            all.hand_over.extend(executed.hand_over);
        }
        let Some((out, process)) = &self.subscriber else { return Ok((all, Seen::default())) };
        let (tasks, steps) = load.created();
        let events: u64 = expected(tasks, steps, all.failed).iter().map(|(_, n)| n).sum();
        write(&expected_file(out), &events)?;
        process.kill(Signal::SIGTERM).await?;
        process.wait().await;
        Ok((all, read(out)?))
    }

    /// Watches all processes that are ours.
    pub(super) fn watch(&self) -> Result<Watch, Fault> {
        let mut named = vec![("load".to_owned(), std::process::id().cast_signed())];
        for (n, (_, process)) in self.executors.iter().enumerate() {
            named.push((format!("executor {n}"), process.pid));
        }
        named.extend(self.subscriber.iter().map(|(_, p)| ("subscriber".to_owned(), p.pid)));
        let mut postgres = None;
        if let Some(suite) = &self.suite {
            for (kind, name) in [
                (Kind::Task, "task-service"),
                (Kind::Step, "step-service"),
                (Kind::Event, "event-service"),
            ] {
                named.extend(suite.process(kind, 0).map(|p| (name.to_owned(), p.pid)));
            }
            postgres = suite.postgres().map(|p| p.process().pid);
        }
        Watch::new(named, postgres)
    }

    pub(super) async fn counters(&mut self) -> Result<Option<Counters>, Fault> {
        Ok(match &mut self.counting {
            Some(counting) => Some(counting.counters().await?),
            None => None,
        })
    }

    pub(super) async fn statements(
        &mut self,
    ) -> Result<HashMap<(i64, bool), StatementCount>, Fault> {
        Ok(match &mut self.counting {
            Some(counting) => counting.statements().await?,
            None => HashMap::new(),
        })
    }

    pub(super) async fn waits(&mut self) -> Result<Vec<String>, Fault> {
        Ok(match &mut self.counting {
            Some(counting) => counting.waits().await?,
            None => Vec::new(),
        })
    }

    pub(super) async fn setup(&mut self) -> Result<Option<ServerSetup>, Fault> {
        Ok(match &mut self.counting {
            Some(counting) => Some(counting.setup().await?),
            None => None,
        })
    }

    /// A transaction that has written and does not end.
    pub(super) async fn open_transaction(&self) -> Result<Counting, Fault> {
        let url = self.database_url.as_ref();
        let url = url.ok_or_else(|| Fault::usage("--open-transaction needs --database-url"))?;
        let mut holding = Counting::connect(url).await?;
        holding.hold_transaction().await?;
        Ok(holding)
    }

    pub(super) async fn stop(self) -> Result<(), Fault> {
        match self.suite {
            Some(suite) => suite.stop().await?,
            None => self.guard.stop().await?,
        }
        Ok(())
    }
}

/// The suite that a benchmark starts for itself.
#[derive(Args, Clone, Debug)]
pub(super) struct Own {
    /// The program to run as services; this one unless given.
    #[arg(long)]
    pub(super) executable: Option<PathBuf>,
    /// A variable for the services' environment, such as STEPWELL_WORKER_THREADS=1; may be repeated.
    #[arg(long = "set", value_parser = pair)]
    set: Vec<(String, String)>,
    /// A setting of Postgres, such as synchronous_commit=off; may be repeated.
    #[arg(long, value_parser = pair)]
    postgres: Vec<(String, String)>,
}

impl Own {
    /// Postgres with what the bench sets and what is told, and the three services.
    async fn start(&self) -> Result<Suite, Fault> {
        let executable = match &self.executable {
            Some(given) => given.clone(),
            None => std::env::current_exe()?,
        };
        let mut options = SuiteOptions::new(executable);
        let ours = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        options.postgres.settings = ours.into_iter().chain(self.postgres.iter().cloned()).collect();
        options.env.clone_from(&self.set);
        output::note("starting Postgres and the three services");
        Ok(Suite::start(options).await?)
    }

    /// What is measured on it, before it goes away.
    pub(super) async fn run<R>(
        &self,
        measure: impl AsyncFnOnce(&Suite) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        let suite = self.start().await?;
        let measured = measure(&suite).await;
        let stopped = suite.stop().await;
        let measured = measured?;
        stopped?;
        Ok(measured)
    }
}
