//! A suite with a Postgres of its own, its clients as processes, and what can be done to them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use stepwell_suite::{
    Command, Exit, Kind, Nodes, PostgresOptions, Process, Signal, Suite, SuiteOptions,
};
use stepwell_tests::{check, history, short_terms, violations};
use tokio::time::Instant;

/// A seed from the environment, or a new one; printed, so that a run can be repeated.
pub(crate) fn seed() -> u64 {
    let seed = number("CHAOS_SEED").unwrap_or_else(rand::random);
    eprintln!("CHAOS_SEED={seed}");
    seed
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Who a client is.
#[derive(Clone)]
pub(crate) struct Role {
    name: String,
    args: Vec<String>,
    life: usize,
    process: Option<Process>,
}

/// The suite, its clients, and the folder of their histories.
pub(crate) struct Stage {
    pub(crate) suite: Suite,
    pub(crate) roles: Vec<Role>,
    histories: PathBuf,
    seed: u64,
}

/// The places of a rush's clients.
pub(crate) struct Cast {
    pub(crate) executors: [usize; 2],
    pub(crate) subscribers: [usize; 2],
    pub(crate) producer: usize,
}

impl Stage {
    /// Two of each service.
    pub(crate) async fn set(seed: u64) -> Self {
        Self::with_env(seed, Nodes { task: 2, step: 2, event: 2 }, short_terms()).await
    }

    /// So many of each, whose environment has these variables.
    pub(crate) async fn with_env(seed: u64, nodes: Nodes, env: Vec<(String, String)>) -> Self {
        let mut options = SuiteOptions::new(stepwell_suite::built_stepwell().unwrap());
        options.nodes = nodes;
        options.env = env;
        // What is killed here is processes; the machine stays.
        options.postgres = PostgresOptions { fsync: false, ..PostgresOptions::default() };
        let suite = Suite::start(options).await.unwrap();
        let histories = suite.folder().join("histories");
        std::fs::create_dir(&histories).unwrap();
        Self { suite, roles: Vec::new(), histories, seed }
    }

    /// Two executors, a fast and a slow subscriber, and a producer of so many tasks, a pause apart.
    pub(crate) async fn rush(seed: u64, tasks: u64, every_us: u64) -> (Self, Cast) {
        let mut stage = Self::set(seed).await;
        let executors = [
            stage.enter("executor-0", &["executor"]).await,
            stage.enter("executor-1", &["executor", "--slots", "50"]).await,
        ];
        let subscribers = [stage.subscriber(0, "0").await, stage.subscriber(1, "20").await];
        let (tasks, every) = (tasks.to_string(), every_us.to_string());
        let args = ["producer", "--tasks", &tasks, "--in-flight", "300", "--every-us", &every];
        let producer = stage.enter("producer", &args).await;
        (stage, Cast { executors, subscribers, producer })
    }

    async fn subscriber(&mut self, n: usize, rest_ms: &str) -> usize {
        let cursor = self.histories.join(format!("cursor-{n}"));
        let args = ["subscriber", "--cursor", cursor.to_str().unwrap(), "--rest-ms", rest_ms];
        self.enter(&format!("subscriber-{n}"), &args).await
    }

    /// Every task ends, nothing is left, and all promises held.
    pub(crate) async fn finish(&mut self, cast: &Cast, within: Duration) {
        self.ended(cast.producer, within).await;
        self.at_rest(Duration::from_secs(60)).await;
        self.close().await;
        self.judge().await;
    }

    /// Starts a client; answers its place among the roles.
    pub(crate) async fn enter(&mut self, name: &str, args: &[&str]) -> usize {
        self.enter_with(name, args, &[]).await
    }

    /// The same, with variables in its environment, for its first life.
    pub(crate) async fn enter_with(
        &mut self,
        name: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> usize {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.roles.push(Role { name: name.into(), args, life: 0, process: None });
        let place = self.roles.len() - 1;
        self.revive_with(place, env).await;
        place
    }

    /// Starts a client that is not there any more again.
    pub(crate) async fn revive(&mut self, place: usize) {
        self.revive_with(place, &[]).await;
    }

    pub(crate) async fn revive_with(&mut self, place: usize, env: &[(&str, &str)]) {
        let addresses = self.suite.addresses();
        let role = &mut self.roles[place];
        role.life += 1;
        let history = self.histories.join(format!("{}.{}.jsonl", role.name, role.life));
        let seed = self.seed.to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_actor"))
            .args(["--history", history.to_str().unwrap(), "--seed", &seed])
            .args(role.args.iter().cloned())
            .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
            .env("STEPWELL_STEP_ADDRESS", addresses.step.join(","))
            .env("STEPWELL_EVENT_ADDRESS", addresses.event.join(","))
            .log(self.histories.join(format!("{}.log", role.name)));
        for (name, value) in env {
            command = command.env(*name, *value);
        }
        role.process = Some(self.suite.guard().spawn(command).await.unwrap());
    }

    pub(crate) fn process(&self, place: usize) -> &Process {
        self.roles[place].process.as_ref().unwrap()
    }

    /// Kills a client and starts it again.
    pub(crate) async fn replace(&mut self, place: usize) {
        let process = self.process(place).clone();
        // It may have ended by itself.
        let _ = process.kill(Signal::SIGKILL).await;
        process.wait().await;
        self.revive(place).await;
    }

    /// Kills a service and starts it again.
    pub(crate) async fn replace_service(&mut self, kind: Kind, index: usize) {
        self.kill_service(kind, index, Signal::SIGKILL).await;
        self.suite.restart(kind, index).await.unwrap();
    }

    pub(crate) async fn kill_service(&self, kind: Kind, index: usize, signal: Signal) {
        let process = self.suite.process(kind, index).unwrap();
        if process.ended().is_none() {
            process.kill(signal).await.unwrap();
        }
    }

    /// Ends Postgres by this signal and starts it again.
    pub(crate) async fn restart_postgres(&mut self, signal: Signal) {
        self.suite.postgres().unwrap().process().kill(signal).await.unwrap();
        self.suite.restart_postgres().await.unwrap();
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(self.suite.database_url()).await.unwrap()
    }

    pub(crate) fn histories(&self) -> &Path {
        &self.histories
    }

    /// Waits until a query answers true.
    pub(crate) async fn until(&self, what: &str, within: Duration, sql: &str) {
        let mut connection = self.connection().await;
        let deadline = Instant::now() + within;
        loop {
            let sql = sqlx::AssertSqlSafe(sql.to_owned());
            let yes: bool = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
            if yes {
                return;
            }
            assert!(Instant::now() < deadline, "not {what} within {within:?}; {}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The ends of the services' logs.
    pub(crate) fn logs(&self) -> String {
        let mut logs = String::new();
        for kind in [Kind::Task, Kind::Step, Kind::Event] {
            for index in 0..2 {
                let log = self.suite.log_of(kind, index);
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(12)..].join("\n");
                logs += &format!("\n── {} {index}\n{end}", kind.word());
            }
        }
        logs
    }

    /// Waits until a client ends by itself.
    pub(crate) async fn ended(&self, place: usize, within: Duration) {
        let role = &self.roles[place];
        let ended = tokio::time::timeout(within, self.process(place).wait()).await;
        let log = std::fs::read_to_string(self.histories.join(format!("{}.log", role.name)));
        assert!(
            matches!(ended, Ok(Exit { code: Some(0), .. })),
            "{} {ended:?}: {}{}",
            role.name,
            log.unwrap_or_default(),
            self.logs(),
        );
    }

    /// Nothing runs or waits any more.
    pub(crate) async fn at_rest(&self, within: Duration) {
        let sql = "select not exists (select from stepwell.task where finished_at is null)
            and not exists (select from stepwell.step where state = 2)
            and not exists (select from stepwell.ready_step)
            and not exists (select from stepwell.timer) and not exists (select from stepwell.signal)
            and not exists (select from stepwell.node where retired_at is not null)";
        self.until("at rest", within, sql).await;
    }

    /// Waits until the subscribers have seen the whole log.
    pub(crate) async fn close_feeds(&self) {
        let head: i64 = sqlx::query_scalar("select coalesce(max(position), 0) from stepwell.event")
            .fetch_one(&mut self.connection().await)
            .await
            .unwrap();
        for place in 0..self.roles.len() {
            if self.roles[place].name.starts_with("subscriber") {
                self.seen(place, head).await;
            }
        }
    }

    /// Waits until the subscribers have seen the whole log, then ends all clients in peace.
    pub(crate) async fn close(&mut self) {
        self.close_feeds().await;
        for place in 0..self.roles.len() {
            let process = self.process(place).clone();
            if process.ended().is_none() {
                process.kill(Signal::SIGTERM).await.unwrap();
            }
            self.ended(place, Duration::from_secs(30)).await;
        }
    }

    /// Waits until a subscriber has seen this position, in this life or one before.
    pub(crate) async fn seen(&self, place: usize, position: i64) {
        let role = &self.roles[place];
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let last = (1..=role.life).filter_map(|life| {
                let file = self.histories.join(format!("{}.{life}.jsonl", role.name));
                let last = |entry: &Value| entry["events"].as_array()?.last()?[0].as_i64();
                history::read(&file).iter().rev().find_map(last)
            });
            let last = last.max();
            if last >= Some(position) {
                return;
            }
            if Instant::now() > deadline {
                let ended = self.process(place).ended();
                self.fail(&format!("{} ({ended:?}) is at {last:?} of {position}", role.name));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All promises held.
    pub(crate) async fn judge(&self) {
        let mut connection = self.connection().await;
        // For the judge alone: the services have no use for it.
        sqlx::raw_sql("create index on stepwell.event (task, no, position); analyze")
            .execute(&mut connection)
            .await
            .unwrap();
        check(&mut connection).await;
        let verdict = violations(self.histories(), &mut connection).await;
        eprintln!("{:?}", verdict.counts);
        if !verdict.violations.is_empty() {
            self.fail(&verdict.violations.join("\n"));
        }
    }

    /// Keeps the histories and says what was wrong.
    fn fail(&self, what: &str) -> ! {
        let kept = std::env::temp_dir().join(format!("chaos-{}", self.seed));
        std::fs::create_dir_all(&kept).unwrap();
        for file in std::fs::read_dir(&self.histories).unwrap().flatten() {
            std::fs::copy(file.path(), kept.join(file.file_name())).unwrap();
        }
        panic!("{what}\nhistories: {}\n{}", kept.display(), self.logs());
    }
}
