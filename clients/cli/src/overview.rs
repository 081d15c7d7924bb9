//! `stepwell overview`: the whole at one moment.

use std::process::ExitCode;

use clap::Args;
use prost_types::Timestamp;
use stepwell_proto::v1::{GetOverviewRequest, HandlerSlots, Overview, ReadySteps, TaskCounts};

use crate::{
    connect::Connect,
    fault::Fault,
    output,
    span::{Span, shown},
};

#[derive(Args)]
pub(crate) struct Command {
    /// Only of this namespace.
    #[arg(long, short, default_value = "")]
    namespace: String,
    /// How long ago tasks may have ended that are counted: `90s`, `30m`, `24h`, `7d`.
    #[arg(long, default_value = "24h")]
    window: Span,
    /// How it is shown.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: output::Format,
    #[command(flatten)]
    connect: Connect,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let request =
            GetOverviewRequest { namespace: self.namespace, window: Some(self.window.proto()) };
        let answer = self.connect.client()?.get_overview(request).await?;
        let overview = answer.overview.unwrap_or_default();
        self.output.answer("Overview", &overview, [""; 0], || tables(&overview))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn tables(overview: &Overview) -> String {
    let mut parts = vec![output::text(&tasks(overview))];
    for (is_complete, what) in [
        (overview.open_complete, "there are more open tasks than are counted"),
        (overview.ended_complete, "more tasks ended than are counted"),
        (overview.ready_complete, "more steps are ready than are looked at"),
        (overview.handlers_complete, "there are more handlers than are listed"),
    ] {
        if !is_complete {
            parts.push(what.to_owned());
        }
    }
    if !overview.ready.is_empty() {
        parts.extend([String::new(), output::text(&ready(overview))]);
    }
    if !overview.handlers.is_empty() {
        parts.extend([String::new(), output::text(&handlers(&overview.handlers))]);
    }
    parts.join("\n")
}

/// A definition, cut to what a table has room for.
pub(crate) fn definition(namespace: &str, name: &str, version: &str) -> String {
    output::cut(&format!("{namespace}/{name} {version}"), 32)
}

fn tasks(overview: &Overview) -> output::Table {
    let mut table = output::table(&[
        "TASKS",
        "PENDING",
        "RUNNING",
        "BLOCKED",
        "RECOVER",
        "DONE",
        "ERROR",
        "CANCELLED",
        "RESOLVED",
    ]);
    let mut row = |name: String, of: &TaskCounts| {
        let counts = [
            of.pending_tasks,
            of.in_progress_tasks,
            of.blocked_tasks,
            of.recovering_tasks,
            of.complete_tasks,
            of.error_tasks,
            of.cancelled_tasks,
            of.resolved_tasks,
        ];
        table.add_row(std::iter::once(name).chain(counts.map(|n| n.to_string())));
    };
    for of in &overview.definitions {
        row(definition(&of.namespace, &of.definition_name, &of.definition_version), of);
    }
    row("all".into(), &overview.all.clone().unwrap_or_default());
    table
}

fn ready(overview: &Overview) -> output::Table {
    let mut table = output::table(&["READY", "OF", "STEPS", "OLDEST", ""]);
    for ready in &overview.ready {
        table.add_row([
            output::cut(&ready.handler, 28),
            definition(&ready.namespace, &ready.definition_name, &ready.definition_version),
            ready.steps.to_string(),
            age(overview.as_of, ready.oldest_ready_time),
            remark(ready, overview).to_owned(),
        ]);
    }
    table
}

/// What keeps ready steps from being taken.
fn remark(ready: &ReadySteps, overview: &Overview) -> &'static str {
    let mut offers = overview
        .handlers
        .iter()
        .filter(|of| of.namespace == ready.namespace && of.handler == ready.handler);
    match offers.next() {
        _ if ready.paused => "paused",
        None if overview.handlers_complete => "no executor",
        None => "",
        Some(offer) if offer.slots_used >= offer.slots => "no free slot",
        Some(_) => "",
    }
}

fn handlers(offers: &[HandlerSlots]) -> output::Table {
    let mut table = output::table(&["HANDLER", "EXECUTORS", "SLOTS", "IN USE"]);
    for offer in offers {
        table.add_row([
            output::cut(&format!("{}/{}", offer.namespace, offer.handler), 60),
            offer.executors.to_string(),
            offer.slots.to_string(),
            offer.slots_used.to_string(),
        ]);
    }
    table
}

/// How long ago something was, at a moment.
fn age(now: Option<Timestamp>, since: Option<Timestamp>) -> String {
    let (Some(now), Some(since)) = (now, since) else { return String::new() };
    let nanos = |at: Timestamp| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let nanos = u64::try_from((nanos(now) - nanos(since)).max(0)).unwrap_or(u64::MAX);
    shown(std::time::Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_handler_that_is_not_listed_nothing_is_said_unless_all_are() {
        let ready = ReadySteps { handler: "h".into(), ..ReadySteps::default() };
        let offer = HandlerSlots { handler: "h".into(), slots: 1, ..HandlerSlots::default() };
        let listed = |handlers: Vec<HandlerSlots>, handlers_complete| Overview {
            handlers,
            handlers_complete,
            ready: vec![ready.clone()],
            ..Overview::default()
        };
        assert_eq!(remark(&ready, &listed(Vec::new(), true)), "no executor");
        let cut = listed(Vec::new(), false);
        assert_eq!(remark(&ready, &cut), "");
        assert!(tables(&cut).contains("more handlers than are listed"));
        let full = HandlerSlots { slots_used: 1, ..offer.clone() };
        assert_eq!(remark(&ready, &listed(vec![full], false)), "no free slot");
        assert_eq!(remark(&ready, &listed(vec![offer], true)), "");
    }
}
