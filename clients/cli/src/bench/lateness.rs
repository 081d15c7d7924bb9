//! `stepwell bench lateness`: how late comes what is due, at low load: retries after their back-off, and each
//! kind of time-out. What is due when, and when it came, is both said by events, by the clock of the database.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use clap::Args;
use serde::Serialize;
use stepwell_client::{
    Addresses, Client, EventStream, Executor, HandlerError, Start, StepContext, Subscription,
};
use stepwell_proto::v1::{CreateTaskRequest, Event, event::Detail};
use stepwell_suite::Suite;
use sysinfo::System;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use super::{NAMESPACE, ground::Own, tell};
use crate::{
    fault::Fault,
    output::{self, Format},
};

/// Every time-out that is measured.
const TIMEOUT: Duration = Duration::from_millis(730);
/// When nothing has come for so long, something is wrong.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// `stepwell bench lateness`
#[derive(Args)]
pub(crate) struct Lateness {
    /// Tasks of each kind. 1 to 100,000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tasks: u32,
    /// Tasks created in a second, of all kinds together. 1 to 1,000.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    #[command(flatten)]
    own: Own,
    /// How the result looks.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: Format,
}

/// What may be due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BackOff,
    QueueTimeout,
    AttemptTimeout,
    HeartbeatTimeout,
    TotalTimeout,
    Deadline,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::BackOff,
        Self::QueueTimeout,
        Self::AttemptTimeout,
        Self::HeartbeatTimeout,
        Self::TotalTimeout,
        Self::Deadline,
    ];

    /// The key in the JSON, and the name of the definition.
    fn name(self) -> &'static str {
        match self {
            Self::BackOff => "back_off",
            Self::QueueTimeout => "queue_timeout",
            Self::AttemptTimeout => "attempt_timeout",
            Self::HeartbeatTimeout => "heartbeat_timeout",
            Self::TotalTimeout => "total_timeout",
            Self::Deadline => "deadline",
        }
    }

    /// Times that it falls due in one task.
    fn times(self) -> u32 {
        if self == Self::BackOff { 3 } else { 1 }
    }

    /// The class of its failures; none: it fails nothing.
    fn class(self) -> Option<&'static str> {
        match self {
            Self::BackOff => None,
            Self::QueueTimeout => Some("QueueTimeout"),
            Self::AttemptTimeout => Some("Timeout"),
            Self::HeartbeatTimeout => Some("HeartbeatTimeout"),
            Self::TotalTimeout => Some("TotalTimeout"),
            Self::Deadline => Some("DeadlineExceeded"),
        }
    }

    /// It counts from the start of the attempt, not from the creation of the task.
    fn counts_from_start(self) -> bool {
        matches!(self, Self::AttemptTimeout | Self::HeartbeatTimeout)
    }

    fn yaml(self) -> String {
        let due = format!("{}ms", TIMEOUT.as_millis());
        let (task, step) = match self {
            Self::BackOff => {
                let retry = "{max_attempts: 4, initial_backoff: 100ms, multiplier: 3, jitter: 0}";
                (String::new(), format!("handler: fails, retry: {retry}"))
            }
            Self::QueueTimeout => (String::new(), format!("handler: nobody, queue_timeout: {due}")),
            Self::AttemptTimeout => (String::new(), format!("handler: hangs, timeout: {due}")),
            Self::HeartbeatTimeout => {
                (String::new(), format!("handler: hangs, timeout: 60s, heartbeat_timeout: {due}"))
            }
            Self::TotalTimeout => {
                (String::new(), format!("handler: hangs, timeout: 60s, total_timeout: {due}"))
            }
            Self::Deadline => {
                (format!("deadline: {due}\n"), "handler: hangs, timeout: 60s".to_owned())
            }
        };
        format!(
            "namespace: {NAMESPACE}\nname: {}\nversion: 1.0.0\n{task}\
             defaults: {{retry: {{max_attempts: 1}}}}\nsteps:\n  - {{name: s, {step}}}\n",
            self.name()
        )
    }
}

/// What came of it. The fields are the keys of the JSON.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    tasks: u32,
    rate: u32,
    cpus: usize,
    /// Processes that ran or wanted to, on average over a minute: before the run, and at its end.
    load: [f64; 2],
    kinds: Vec<Late>,
}

/// How late one kind came.
#[derive(Serialize)]
struct Late {
    kind: &'static str,
    count: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Late {
    /// Of times in microseconds, at least one.
    fn of(kind: Kind, mut micros: Vec<i64>) -> Self {
        micros.sort_unstable();
        let at = |share: f64| {
            let place = (share * micros.len() as f64).ceil() as usize;
            micros[place.clamp(1, micros.len()) - 1] as f64 / 1000.0
        };
        let (p50_ms, p99_ms, max_ms) = (at(0.5), at(0.99), at(1.0));
        Self { kind: kind.name(), count: micros.len(), p50_ms, p99_ms, max_ms }
    }
}

/// What is known of a task from its events, in microseconds of the database's clock.
struct Followed {
    kind: Kind,
    created: i64,
    started: Option<i64>,
    not_before: Option<i64>,
    /// So often it is still to fall due.
    left: u32,
}

/// Reads the events of tasks, and keeps how late each was that was due.
#[derive(Default)]
struct Follow {
    tasks: HashMap<String, Followed>,
    late: HashMap<&'static str, Vec<i64>>,
}

impl Follow {
    fn see(&mut self, event: &Event) -> Result<(), Fault> {
        let at = micros(event.at.as_ref())?;
        if let Some(Detail::TaskInitializeRequested(_)) = event.detail {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == event.definition_name);
            let kind = kind.ok_or_else(|| Fault::new("a task that is not of this run"))?;
            let task =
                Followed { kind, created: at, started: None, not_before: None, left: kind.times() };
            self.tasks.insert(event.task_id.clone(), task);
        }
        let Some(task) = self.tasks.get_mut(&event.task_id) else { return Ok(()) };
        let due = match &event.detail {
            Some(Detail::StepExecutionRequested(_)) => {
                task.started = Some(at);
                task.not_before.take()
            }
            Some(Detail::StepRetryRequested(retry)) => {
                task.not_before = Some(micros(retry.not_before.as_ref())?);
                None
            }
            Some(Detail::StepFailed(failed)) => {
                let error = failed.error.clone().unwrap_or_default();
                match task.kind.class() {
                    Some(class) if class == error.error_class => {
                        let started = task.started.filter(|_| task.kind.counts_from_start());
                        Some(started.unwrap_or(task.created) + span(TIMEOUT))
                    }
                    None if error.error_class == FAILS => None,
                    _ => {
                        let what = format!("a step failed as {}", error.error_class);
                        return Err(Fault::new(what).because(error.message));
                    }
                }
            }
            _ => None,
        };
        if let Some(due) = due {
            task.left = task.left.saturating_sub(1);
            self.late.entry(task.kind.name()).or_default().push(at - due);
        }
        Ok(())
    }

    /// Some did not come.
    fn missing(&self, all: usize) -> Fault {
        let what = format!("{} of {all} came; then nothing for {ENDS_WITHIN:?}", self.seen());
        let open = self.tasks.iter().filter(|(_, task)| task.left > 0).take(10);
        open.fold(Fault::new(what), |fault, (id, task)| {
            fault.because(format!("{} of task {id} did not come", task.kind.name()))
        })
    }

    fn seen(&self) -> usize {
        self.late.values().map(Vec::len).sum()
    }
}

/// The class of failures that are tried again.
const FAILS: &str = "AskedFor";

fn span(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn micros(at: Option<&prost_types::Timestamp>) -> Result<i64, Fault> {
    let at = at.ok_or_else(|| Fault::new("an event does not say when"))?;
    Ok(at.seconds * 1_000_000 + i64::from(at.nanos) / 1000)
}

impl Lateness {
    pub(super) async fn run(self) -> Result<ExitCode, Fault> {
        tell(self.measure(), self.output, table).await
    }

    async fn measure(&self) -> Result<Report, Fault> {
        let before = load();
        let (mut late, after) =
            self.own.run(async |suite| Ok((self.measure_on(suite).await?, load()))).await?;
        let kinds = Kind::ALL.map(|kind| {
            let micros = late.remove(kind.name());
            micros.map(|micros| Late::of(kind, micros))
        });
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            tasks: self.tasks,
            rate: self.rate,
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            load: [before, after],
            kinds: kinds.into_iter().flatten().collect(),
        })
    }

    async fn measure_on(&self, suite: &Suite) -> Result<HashMap<&'static str, Vec<i64>>, Fault> {
        let stepwell_suite::Addresses { task, step, event } = suite.addresses();
        let client = Client::connect(Addresses { task, step, event })?;
        for kind in Kind::ALL {
            client.register_yaml(kind.yaml()).await?;
        }
        let feed = Subscription::new()
            .names([
                "task.initialize_requested",
                "step.execution_requested",
                "step.retry_requested",
                "step.failed",
            ])
            .namespaces([NAMESPACE])
            .from(Start::Latest);
        let feed = client.subscribe(feed).await?;
        let (stop, stopped) = oneshot::channel::<()>();
        let executor = tokio::spawn(executor(&client).run(async move {
            // Dropped or told, it stops.
            drop(stopped.await);
        }));
        let times: u32 = Kind::ALL.iter().map(|kind| kind.times()).sum();
        let all = usize::try_from(times * self.tasks).unwrap_or(usize::MAX);
        output::note(format!("{} tasks, {} a second", 6 * self.tasks, self.rate));
        let ((), followed) = tokio::try_join!(self.create(&client), follow(feed, all))?;
        drop(stop);
        executor.await.map_err(|error| Fault::new(error.to_string()))??;
        Ok(followed.late)
    }

    /// Creates the tasks, one kind after the other.
    async fn create(&self, client: &Client) -> Result<(), Fault> {
        let began = Instant::now();
        let kinds = (0..self.tasks).flat_map(|_| Kind::ALL);
        for (n, kind) in (0_u32..).zip(kinds) {
            sleep_until(began + Duration::from_secs(1) * n / self.rate).await;
            let request = CreateTaskRequest {
                namespace: NAMESPACE.into(),
                definition_name: kind.name().into(),
                initiator: "bench".into(),
                ..CreateTaskRequest::default()
            };
            client.create_task(request).await?;
        }
        Ok(())
    }
}

/// The load of the machine over the last minute; 0 where it does not say.
fn load() -> f64 {
    System::load_average().map_or(0.0, |load| load.one)
}

/// One whose handlers fail, or hang whatever they are told.
fn executor(client: &Client) -> Executor {
    Executor::new(client, "bench")
        .namespace(NAMESPACE)
        .slots(10_000)
        .handler("fails", async |step: StepContext| {
            if step.attempt() < step.lease().max_attempts {
                return Err(HandlerError::new(FAILS, "to be tried again"));
            }
            Ok(())
        })
        // One that came back at its time-out, as well-behaved ones do, would spare the service the time-out.
        .handler("hangs", async |_| std::future::pending::<Result<(), HandlerError>>().await)
}

/// Reads the feed until so many were seen that were due.
async fn follow(mut feed: EventStream, all: usize) -> Result<Follow, Fault> {
    let mut follow = Follow::default();
    while follow.seen() < all {
        let next = timeout(ENDS_WITHIN, feed.next()).await;
        let next = next.map_err(|_| follow.missing(all))?;
        for event in next.ok_or_else(|| Fault::new("the feed ended"))??.events {
            follow.see(&event)?;
        }
    }
    Ok(follow)
}

fn table(report: &Report) -> output::Table {
    let mut table = output::table(&["LATE BY, MS", "COUNT", "P50", "P99", "MAX"]);
    for late in &report.kinds {
        let ms = |ms: f64| format!("{ms:.1}");
        table.add_row([
            late.kind.to_owned(),
            late.count.to_string(),
            ms(late.p50_ms),
            ms(late.p99_ms),
            ms(late.max_ms),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::{
        Failure, StepExecutionRequested, StepFailed, StepRetryRequested, TaskInitializeRequested,
    };

    use super::*;

    fn at(ms: i64) -> Option<prost_types::Timestamp> {
        let nanos = i32::try_from(ms % 1000 * 1_000_000).unwrap();
        Some(prost_types::Timestamp { seconds: ms / 1000, nanos })
    }

    fn event(kind: Kind, ms: i64, detail: Detail) -> Event {
        Event {
            task_id: kind.name().into(),
            definition_name: kind.name().into(),
            at: at(ms),
            detail: Some(detail),
            ..Event::default()
        }
    }

    fn late(kind: Kind, events: impl IntoIterator<Item = (i64, Detail)>) -> Vec<i64> {
        let mut follow = Follow::default();
        let created = Detail::TaskInitializeRequested(TaskInitializeRequested::default());
        follow.see(&event(kind, 5_000, created)).ok().unwrap();
        for (ms, detail) in events {
            follow.see(&event(kind, ms, detail)).ok().unwrap();
        }
        follow.late.remove(kind.name()).unwrap_or_default()
    }

    fn started() -> Detail {
        Detail::StepExecutionRequested(StepExecutionRequested::default())
    }

    fn failed(class: &str) -> Detail {
        let error = Some(Failure { error_class: class.into(), ..Failure::default() });
        Detail::StepFailed(StepFailed { error, ..StepFailed::default() })
    }

    #[test]
    fn a_retry_is_late_by_what_its_start_is_after_its_time_and_a_first_start_never_is() {
        let retry = StepRetryRequested { not_before: at(5_200), ..StepRetryRequested::default() };
        let retry = Detail::StepRetryRequested(retry);
        let events =
            [(5_050, started()), (5_100, failed(FAILS)), (5_100, retry), (5_203, started())];
        assert_eq!(late(Kind::BackOff, events), [3_000]);
    }

    #[test]
    fn a_time_out_is_late_by_what_its_failure_is_after_what_it_counts_from() {
        let due = 730;
        for kind in Kind::ALL {
            let Some(class) = kind.class() else { continue };
            let from = if kind.counts_from_start() { 5_050 } else { 5_000 };
            let events = [(5_050, started()), (from + due + 4, failed(class))];
            assert_eq!(late(kind, events), [4_000], "{kind:?}");
        }
    }

    #[test]
    fn another_failure_than_the_kind_has_ends_the_run() {
        let mut follow = Follow::default();
        let created = Detail::TaskInitializeRequested(TaskInitializeRequested::default());
        follow.see(&event(Kind::Deadline, 5_000, created)).ok().unwrap();
        assert!(follow.see(&event(Kind::Deadline, 5_001, failed("LeaseExpired"))).is_err());
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let of = Late::of(Kind::Deadline, (1..=200).rev().map(|ms| ms * 1000).collect());
        assert_eq!((of.count, of.p50_ms, of.p99_ms, of.max_ms), (200, 100.0, 198.0, 200.0));
        let one = Late::of(Kind::Deadline, vec![-500]);
        assert_eq!((one.p50_ms, one.p99_ms, one.max_ms), (-0.5, -0.5, -0.5));
    }
}
