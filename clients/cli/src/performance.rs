//! `stepwell performance`: how it went lately.

use std::process::ExitCode;

use clap::Args;
use stepwell_proto::v1::{
    DurationFigures, GetPerformanceRequest, Performance, StepPerformance, TaskPerformance,
};

use crate::{
    connect::Connect,
    fault::Fault,
    output,
    overview::definition,
    span::{Span, shown_proto},
};

#[derive(Args)]
pub(crate) struct Command {
    /// How far to look back: `90s`, `30m`, `24h`, `7d`.
    #[arg(long, default_value = "1h")]
    window: Span,
    /// Only of this namespace.
    #[arg(long, short, default_value = "")]
    namespace: String,
    /// Only of definitions of this name.
    #[arg(long, default_value = "")]
    definition: String,
    /// Only of this version.
    #[arg(long, default_value = "", requires = "definition")]
    version: String,
    /// How many of the slowest are named.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..=100))]
    slowest: i32,
    /// How it is shown.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: output::Format,
    #[command(flatten)]
    connect: Connect,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let request = GetPerformanceRequest {
            window: Some(self.window.proto()),
            until: None,
            namespace: self.namespace,
            definition_name: self.definition,
            definition_version: self.version,
            slowest: self.slowest,
        };
        let answer = self.connect.client()?.get_performance(request).await?;
        let performance = answer.performance.unwrap_or_default();
        self.output.answer("Performance", &performance, [""; 0], || tables(&performance))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn tables(performance: &Performance) -> String {
    let cut = if performance.complete { "" } else { "; what was earlier is left out" };
    let (since, until) =
        (output::time(performance.since.as_ref()), output::time(performance.until.as_ref()));
    let mut parts = vec![
        format!("{since} to {until}: {} events{cut}", performance.events),
        output::text(&tasks(performance)),
    ];
    if !performance.steps.is_empty() {
        parts.extend([String::new(), output::text(&steps(&performance.steps))]);
    }
    if !performance.errors.is_empty() {
        let mut table = output::table(&["WHY EXECUTIONS FAILED", "TIMES", "FOR GOOD"]);
        for error in &performance.errors {
            table.add_row([
                output::cut(&error.error_class, 60),
                error.count.to_string(),
                error.final_count.to_string(),
            ]);
        }
        parts.extend([String::new(), output::text(&table)]);
    }
    let slowest = slowest(performance);
    if !slowest.is_empty() {
        parts.extend([String::new(), output::text(&slowest)]);
    }
    parts.join("\n")
}

/// A rate in percent.
fn percent(rate: Option<f64>) -> String {
    rate.map(|rate| format!("{:.1}", rate * 100.0)).unwrap_or_default()
}

fn percentiles(figures: Option<&DurationFigures>) -> [String; 3] {
    let at = |of: fn(&DurationFigures) -> Option<&prost_types::Duration>| {
        shown_proto(figures.and_then(of))
    };
    [at(|of| of.p50.as_ref()), at(|of| of.p90.as_ref()), at(|of| of.p99.as_ref())]
}

fn tasks(performance: &Performance) -> output::Table {
    let mut table = output::table(&[
        "TASKS", "CREATED", "DONE", "ERROR", "ERROR %", "A SECOND", "P50", "P90", "P99",
    ]);
    let mut row = |name: String, of: &TaskPerformance| {
        let counts = [of.created, of.completed, of.failed].map(|n| n.to_string());
        let rates = [percent(of.error_rate), format!("{:.2}", of.throughput_per_second)];
        let figures = percentiles(of.duration.as_ref());
        table.add_row(std::iter::once(name).chain(counts).chain(rates).chain(figures));
    };
    for of in &performance.definitions {
        row(definition(&of.namespace, &of.definition_name, &of.definition_version), of);
    }
    row("all".into(), &performance.all.clone().unwrap_or_default());
    table
}

fn steps(steps: &[StepPerformance]) -> output::Table {
    let mut table = output::table(&[
        "STEPS", "DONE", "ERROR %", "RETRIED", "P50", "P90", "P99", "WAIT P50", "P99",
    ]);
    for of in steps {
        let name = format!("{} {}", of.definition_name, of.step_name);
        let [p50, p90, p99] = percentiles(of.execution.as_ref());
        let [wait, _, wait_p99] = percentiles(of.queue_wait.as_ref());
        table.add_row([
            output::cut(&name, 28),
            of.completed.to_string(),
            percent(of.error_rate),
            of.retried.to_string(),
            p50,
            p90,
            p99,
            wait,
            wait_p99,
        ]);
    }
    table
}

fn slowest(performance: &Performance) -> output::Table {
    let mut table = output::table(&["SLOWEST", "OF", "TOOK"]);
    for task in &performance.slowest_tasks {
        table.add_row([
            task.task_id.clone(),
            definition(&task.namespace, &task.definition_name, &task.definition_version),
            shown_proto(task.duration.as_ref()),
        ]);
    }
    for execution in &performance.slowest_executions {
        let name = format!("{} {}", execution.definition_name, execution.step_name);
        table.add_row([
            execution.step_id.clone(),
            output::cut(&name, 32),
            shown_proto(execution.duration.as_ref()),
        ]);
    }
    table
}
