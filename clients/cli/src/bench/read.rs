//! `stepwell bench read`: what reads take among many tasks, one call after the other.

use std::{process::ExitCode, time::Instant};

use clap::Args;
use rand::RngExt;
use serde::Serialize;
use stepwell_client::{Addresses, Client, Error};
use stepwell_proto::v1::{
    GetOverviewRequest, GetTaskContextRequest, GetTaskDiagramRequest, GetTaskGraphRequest,
    GetTaskRequest, GetTaskSummaryRequest, ListStepReadinessRequest, ListStepsRequest,
    ListTasksRequest,
};
use stepwell_suite::{Suite, fill};

use super::{NAMESPACE, ground::Own, tell};
use crate::{
    fault::Fault,
    output::{self, Format},
};

/// Definitions, the last of which has one task of a thousand.
const NAMES: [&str; 4] = ["order", "refund", "report", "rare"];
/// Tasks whose ids are known, to be asked for.
const KNOWN: i32 = 1_000;

/// `stepwell bench read`
#[derive(Args)]
pub(crate) struct Read {
    /// Tasks that there are. 1,000 to 10,000,000.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    tasks: u32,
    /// Calls of each kind. 1 to 1,000,000.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    calls: u32,
    #[command(flatten)]
    own: Own,
    /// How the result looks.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: Format,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Task,
    Context,
    Summary,
    Readiness,
    Steps,
    Graph,
    Diagram,
    /// All namespaces.
    Overview,
    /// A page of 100 tasks: its name, the filter, and the order. `{}` is drawn anew for each call.
    Page(&'static str, &'static str, &'static str),
}

const KINDS: [Kind; 22] = [
    Kind::Task,
    Kind::Context,
    Kind::Summary,
    Kind::Readiness,
    Kind::Steps,
    Kind::Graph,
    Kind::Diagram,
    Kind::Overview,
    Kind::Page("newest", "", ""),
    Kind::Page("last_ended", "", "end_time desc"),
    Kind::Page("open", "state = pending OR state = in_progress", ""),
    Kind::Page("in_error", "state = error", ""),
    Kind::Page("frequent_tag", "tags:tenth", ""),
    Kind::Page("rare_tag", "tags:lot-{}", ""),
    Kind::Page("frequent_annotation", "annotations.team = payments", ""),
    Kind::Page("rare_annotation", "annotations.order = \"{}0\"", ""),
    Kind::Page("correlation_id", "correlation_id = order-{}", ""),
    Kind::Page("definition", "definition_name = rare", ""),
    Kind::Page("from_a_time", "create_time < \"-{}s\"", ""),
    Kind::Page("execution_status", "execution_status = has_ready_steps", ""),
    Kind::Page("initiator", "initiator = user-7", ""),
    // No task fits: a page looks at as many as it may.
    Kind::Page("nothing_found", "reason = \"*nowhere*\"", ""),
];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Context => "context",
            Self::Summary => "summary",
            Self::Readiness => "readiness",
            Self::Steps => "steps",
            Self::Graph => "graph",
            Self::Diagram => "diagram",
            Self::Overview => "overview",
            Self::Page(name, ..) => name,
        }
    }

    /// One call; how many tasks it answered.
    async fn ask(self, client: &Client, task_id: &str, drawn: u32) -> Result<usize, Error> {
        let task_id = task_id.to_owned();
        match self {
            Self::Task => {
                let request = GetTaskRequest { task_id, ..GetTaskRequest::default() };
                client.get_task(request).await?;
            }
            Self::Context => {
                client.get_task_context(GetTaskContextRequest { task_id }).await?;
            }
            Self::Summary => {
                client.get_task_summary(GetTaskSummaryRequest { task_id }).await?;
            }
            Self::Readiness => {
                let request =
                    ListStepReadinessRequest { task_id, ..ListStepReadinessRequest::default() };
                client.list_step_readiness(request).await?;
            }
            Self::Steps => {
                let request = ListStepsRequest { task_id, ..ListStepsRequest::default() };
                client.list_steps(request).await?;
            }
            Self::Graph => {
                client.get_task_graph(GetTaskGraphRequest { task_id }).await?;
            }
            Self::Diagram => {
                let request = GetTaskDiagramRequest { task_id, ..GetTaskDiagramRequest::default() };
                client.get_task_diagram(request).await?;
            }
            Self::Overview => {
                client.get_overview(GetOverviewRequest::default()).await?;
            }
            Self::Page(_, filter, order) => {
                let request = ListTasksRequest {
                    filter: filter.replace("{}", &drawn.to_string()),
                    order_by: order.to_owned(),
                    ..ListTasksRequest::default()
                };
                return Ok(client.list_tasks(request).await?.tasks.len());
            }
        }
        Ok(1)
    }

    /// From 0 up to this is drawn.
    fn range(self, tasks: u32) -> u32 {
        match self {
            Self::Page("rare_tag", ..) => tasks / 1000,
            Self::Page("rare_annotation", ..) => tasks / 10,
            Self::Page("correlation_id", ..) => tasks / 3,
            _ => tasks,
        }
    }
}

/// What came of it. The fields are the keys of the JSON.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    tasks: u32,
    calls: u32,
    cpus: usize,
    fill_seconds: f64,
    reads: Vec<Took>,
}

/// What one kind of read took.
#[derive(Serialize)]
struct Took {
    read: &'static str,
    /// Tasks answered by a call, on average.
    answered: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Took {
    /// Of times in milliseconds, at least one.
    fn of(kind: Kind, answered: usize, mut ms: Vec<f64>) -> Self {
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (share * ms.len() as f64).ceil() as usize;
            ms[place.clamp(1, ms.len()) - 1]
        };
        let answered = answered as f64 / ms.len() as f64;
        let (p50_ms, p99_ms, max_ms) = (at(0.5), at(0.99), at(1.0));
        Self { read: kind.name(), answered, p50_ms, p99_ms, max_ms }
    }
}

impl Read {
    pub(super) async fn run(self) -> Result<ExitCode, Fault> {
        let measure = self.own.run(async |suite| self.measure_on(suite).await);
        tell(measure, self.output, table).await
    }

    async fn measure_on(&self, suite: &Suite) -> Result<Report, Fault> {
        let stepwell_suite::Addresses { task, step, event } = suite.addresses();
        let client = Client::connect(Addresses { task, step, event })?;
        for name in NAMES {
            let steps =
                "[{name: one}, {name: two, depends_on: [one]}, {name: three, depends_on: [two]}]";
            let yaml =
                format!("{{namespace: {NAMESPACE}, name: {name}, version: 1.0.0, steps: {steps}}}");
            client.register_yaml(yaml).await?;
        }
        output::note(format!("filling: {} tasks", self.tasks));
        let began = Instant::now();
        fill(suite.database_url(), NAMESPACE, self.tasks).await?;
        let fill_seconds = began.elapsed().as_secs_f64();
        let request = ListTasksRequest { page_size: KNOWN, ..ListTasksRequest::default() };
        let known = client.list_tasks(request).await?.tasks;
        let mut reads = Vec::new();
        for kind in KINDS {
            output::note(format!("{}: {} calls", kind.name(), self.calls));
            let (mut answered, mut took) = (0, Vec::new());
            for _ in 0..self.calls {
                let (task, drawn) = {
                    let mut random = rand::rng();
                    let task = &known[random.random_range(0..known.len())];
                    (task, random.random_range(0..kind.range(self.tasks)))
                };
                let began = Instant::now();
                answered += kind.ask(&client, &task.task_id, drawn).await?;
                took.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            reads.push(Took::of(kind, answered, took));
        }
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            tasks: self.tasks,
            calls: self.calls,
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            fill_seconds,
            reads,
        })
    }
}

fn table(report: &Report) -> output::Table {
    let mut table = output::table(&["READ", "TASKS ANSWERED", "P50, MS", "P99, MS", "MAX, MS"]);
    for took in &report.reads {
        let ms = |ms: f64| format!("{ms:.1}");
        table.add_row([
            took.read.to_owned(),
            format!("{:.0}", took.answered),
            ms(took.p50_ms),
            ms(took.p99_ms),
            ms(took.max_ms),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_occurred() {
        let of = Took::of(Kind::Task, 400, (1..=200).rev().map(f64::from).collect());
        assert_eq!((of.answered, of.p50_ms, of.p99_ms, of.max_ms), (2.0, 100.0, 198.0, 200.0));
    }

    #[test]
    fn every_filter_that_is_measured_can_be_read() {
        for kind in KINDS {
            if let Kind::Page(name, filter, _) = kind {
                let filter = filter.replace("{}", "7");
                assert!(stepwell_filter::parse(&filter).is_ok(), "{name}");
            }
        }
    }
}
