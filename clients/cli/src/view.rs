//! `stepwell task summary` and `stepwell task graph`: how a task stands.

use std::process::ExitCode;

use clap::Args;
use clap_complete::ArgValueCompleter;
use stepwell_proto::v1::{
    GetTaskGraphRequest, GetTaskSummaryRequest, GraphStep, Standing, TaskContext, TaskGraph,
    TaskSummary,
};

use crate::{completion, connect::Show, fault::Fault, output};

/// A line names so many steps.
const NAMED_MAX: usize = 10;
/// Deeper levels are indented no further.
const INDENT_MAX: i32 = 20;

#[derive(Args)]
pub(crate) struct Get {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    #[command(flatten)]
    show: Show,
}

impl Get {
    pub(crate) async fn summary(self) -> Result<ExitCode, Fault> {
        let request = GetTaskSummaryRequest { task_id: self.task_id };
        let answer = self.show.connect.client()?.get_task_summary(request).await?;
        let summary = answer.summary.unwrap_or_default();
        let task_id = summary.context.as_ref().map(|context| context.task_id.as_str());
        self.show.output.answer("TaskSummary", &summary, task_id, || lines(&summary).join("\n"))?;
        Ok(ExitCode::SUCCESS)
    }

    pub(crate) async fn graph(self) -> Result<ExitCode, Fault> {
        let request = GetTaskGraphRequest { task_id: self.task_id };
        let answer = self.show.connect.client()?.get_task_graph(request).await?;
        let graph = answer.graph.unwrap_or_default();
        self.show.output.answer("TaskGraph", &graph, [&graph.task_id], || drawn(&graph))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A graph as people read it.
fn drawn(graph: &TaskGraph) -> String {
    let path: Vec<&str> = graph.longest_path.iter().map(|number| name(graph, *number)).collect();
    let (task, state) = (output::plain(&graph.task_id), graph.state().word());
    let path = output::plain(&some(&path, " > "));
    format!("{task}  {state}\n{}\nlongest path: {path}", output::text(&levels(graph)))
}

/// A value of the contract as a word.
fn word(value: &str, of: &str) -> String {
    value.strip_prefix(of).unwrap_or(value).trim_start_matches('_').to_lowercase()
}

fn lines(summary: &TaskSummary) -> Vec<String> {
    let context = summary.context.clone().unwrap_or_default();
    let mut state = context.state().word().to_owned();
    for (is, what) in [(context.paused, "paused"), (context.held, "held")] {
        if is {
            state = format!("{state}, {what}");
        }
    }
    let health = word(context.health().as_str_name(), "HEALTH");
    let status = word(context.execution_status().as_str_name(), "EXECUTION_STATUS");
    let action = word(context.recommended_action().as_str_name(), "RECOMMENDED_ACTION");
    let percentage = context.completion_percentage;
    let mut lines = vec![
        format!("{}  {state}, {health}, {percentage} %", context.task_id),
        format!("{status}: {action}"),
        counts(&context),
    ];
    let next: Vec<&str> =
        summary.next_executable_steps.iter().map(|step| step.name.as_str()).collect();
    if !next.is_empty() {
        let strategy = word(summary.processing_strategy().as_str_name(), "PROCESSING_STRATEGY");
        lines.push(format!("next ({strategy}, {}): {}", summary.batch_size, some(&next, ", ")));
    }
    for blocked in &summary.blocked_steps {
        let name = blocked.step.as_ref().map(|step| step.name.as_str()).unwrap_or_default();
        let reasons: Vec<&str> =
            blocked.reasons.iter().map(|reason| reason.message.as_str()).collect();
        lines.push(format!("blocked: {name}: {}", reasons.join("; ")));
    }
    let listed = i32::try_from(summary.blocked_steps.len()).unwrap_or(i32::MAX);
    if context.blocked_steps > listed {
        lines.push(format!("blocked: {} more", context.blocked_steps - listed));
    }
    lines.iter().map(|line| output::plain(line)).collect()
}

/// How many steps stand how; what there is none of is left out.
fn counts(context: &TaskContext) -> String {
    let counted = [
        (context.complete_steps - context.resolved_steps, "complete"),
        (context.resolved_steps, "resolved"),
        (context.in_progress_steps, "in progress"),
        (context.ready_steps, "ready"),
        (context.parked_steps, "parked"),
        (context.backing_off_steps, "backing off"),
        (context.waiting_steps, "waiting"),
        (context.blocked_steps, "blocked"),
        (context.error_steps, "in error"),
        (context.cancelled_steps, "cancelled"),
    ];
    let counted = counted.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
    format!("{} steps: {}", context.total_steps, counted.collect::<Vec<_>>().join(", "))
}

/// The steps by level, a row each.
pub(crate) fn levels(graph: &TaskGraph) -> output::Table {
    let mut table = output::table(&["LEVEL", "#", "STEP", "STATE", "AFTER"]);
    let numbers = graph.levels.iter().flat_map(|level| &level.steps);
    for step in numbers.filter_map(|number| step(graph, *number)) {
        let after: Vec<&str> = step.parents.iter().map(|parent| name(graph, *parent)).collect();
        table.add_row([
            step.level.to_string(),
            step.number.to_string(),
            indented(&step.name, step.level),
            stands(step),
            some(&after, ", "),
        ]);
    }
    table
}

/// The name of a step, further to the right the deeper it lies.
pub(crate) fn indented(name: &str, level: i32) -> String {
    let indent = usize::try_from(level.min(INDENT_MAX)).unwrap_or_default();
    format!("{}{name}", "  ".repeat(indent))
}

/// The state of a step, and of a pending one why it has not been started.
fn stands(step: &GraphStep) -> String {
    match step.standing() {
        Standing::Unspecified => step.state().word().to_owned(),
        standing => {
            format!("{}, {}", step.state().word(), word(standing.as_str_name(), "STANDING"))
        }
    }
}

fn step(graph: &TaskGraph, number: i32) -> Option<&GraphStep> {
    graph.steps.get(usize::try_from(number).ok()?)
}

fn name(graph: &TaskGraph, number: i32) -> &str {
    step(graph, number).map(|step| step.name.as_str()).unwrap_or_default()
}

/// The first names, and how many more there are.
pub(crate) fn some(names: &[&str], between: &str) -> String {
    let shown = names[..names.len().min(NAMED_MAX)].join(between);
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::{BlockedStep, GraphLevel, Obstacle, StepRef};

    use super::*;

    #[test]
    fn names_and_reasons_of_others_move_no_terminal() {
        let moving = "\u{1b}[2J\u{9b}2J\n".to_owned();
        let step = StepRef { name: moving.clone(), ..StepRef::default() };
        let reason = Obstacle { message: moving.clone(), ..Obstacle::default() };
        let blocked = BlockedStep { step: Some(step.clone()), reasons: vec![reason] };
        let context = TaskContext { task_id: moving.clone(), ..TaskContext::default() };
        let summary = TaskSummary {
            context: Some(context),
            next_executable_steps: vec![step],
            blocked_steps: vec![blocked],
            ..TaskSummary::default()
        };
        let graph = TaskGraph {
            task_id: moving.clone(),
            steps: vec![GraphStep { name: moving, ..GraphStep::default() }],
            levels: vec![GraphLevel { steps: vec![0] }],
            longest_path: vec![0],
            ..TaskGraph::default()
        };
        let told = lines(&summary);
        assert_eq!(told.len(), 5, "{told:?}");
        let drawn = drawn(&graph);
        assert_eq!(drawn.lines().count(), 4, "{drawn:?}");
        for line in told.iter().map(String::as_str).chain(drawn.lines()) {
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}
