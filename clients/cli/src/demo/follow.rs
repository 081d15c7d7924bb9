//! The demo's eye: everything it shows comes from the event stream.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::Write,
    path::Path,
    time::Duration,
};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use stepwell_client::EventStream;
use stepwell_examples::checkout::Line;
use stepwell_proto::v1::{Event, event::Detail};

use crate::{fault::Fault, output};

/// Follows the feed until every task has ended.
pub(crate) struct Follower {
    total: usize,
    bar: Option<ProgressBar>,
    file: Option<std::io::BufWriter<std::fs::File>>,
    report: Report,
    ended: HashSet<String>,
}

/// What the events tell.
#[derive(Default)]
pub(crate) struct Report {
    states: BTreeMap<&'static str, usize>,
    steps: usize,
    retries: usize,
    events: usize,
    first: Option<Duration>,
    last: Duration,
    /// By task: what its `create_order` says the order costs, in cents.
    amounts: HashMap<String, i64>,
    complete: HashSet<String>,
}

impl Follower {
    pub(crate) fn new(total: usize, file: Option<&Path>) -> Result<Self, Fault> {
        let style = "{bar:40} {pos}/{len} tasks  {msg}  {elapsed_precise}";
        let bar = output::is_terminal().then(|| {
            let bar = ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX));
            bar.with_style(ProgressStyle::with_template(style).expect("a fixed template"))
        });
        let file = file.map(std::fs::File::create).transpose()?.map(std::io::BufWriter::new);
        Ok(Self { total, bar, file, report: Report::default(), ended: HashSet::new() })
    }

    pub(crate) async fn follow(&mut self, mut feed: EventStream) -> Result<(), Fault> {
        let mut told = 0;
        while self.ended.len() < self.total {
            let Some(delivery) = feed.next().await else { break };
            for event in &delivery?.events {
                self.take(event)?;
            }
            if let Some(bar) = &self.bar {
                bar.set_position(u64::try_from(self.ended.len()).unwrap_or(0));
                bar.set_message(self.report.in_short());
            } else if self.ended.len() * 10 / self.total > told {
                told = self.ended.len() * 10 / self.total;
                output::note(format!(
                    "{:>4}/{} tasks  {}",
                    self.ended.len(),
                    self.total,
                    self.report.in_short()
                ));
            }
        }
        if let Some(bar) = &self.bar {
            bar.finish();
        }
        if let Some(file) = &mut self.file {
            file.flush()?;
        }
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<(), Fault> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", output::json("Event", event)?)?;
        }
        let at = event.at.map_or(Duration::ZERO, |at| {
            let seconds = u64::try_from(at.seconds).unwrap_or(0);
            Duration::new(seconds, u32::try_from(at.nanos).unwrap_or(0))
        });
        let report = &mut self.report;
        report.events += 1;
        report.first.get_or_insert(at);
        report.last = report.last.max(at);
        let task = &event.task_id;
        match &event.detail {
            Some(Detail::StepCompleted(completed)) => {
                report.steps += 1;
                if event.step_name == "create_order" {
                    let result: serde_json::Value =
                        serde_json::from_str(&completed.result).unwrap_or_default();
                    let amount = result["total_amount"].as_f64().unwrap_or(0.0);
                    report.amounts.insert(task.clone(), (amount * 100.0).round() as i64);
                }
            }
            Some(Detail::StepRetryRequested(_)) => report.retries += 1,
            Some(Detail::TaskCompleted(_) | Detail::TaskFailed(_) | Detail::TaskCancelled(_)) => {
                if self.ended.insert(task.clone()) {
                    *report.states.entry(event.to_state().word()).or_default() += 1;
                }
                if matches!(event.detail, Some(Detail::TaskCompleted(_))) {
                    report.complete.insert(task.clone());
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn report(&self) -> &Report {
        &self.report
    }
}

impl Report {
    fn in_short(&self) -> String {
        format!("{} steps, {} retries", self.steps, self.retries)
    }

    /// Cents by tier of customer, of complete tasks.
    fn revenue(&self, tasks: &[(String, Line)]) -> BTreeMap<String, i64> {
        let mut revenue = BTreeMap::new();
        for (task, line) in tasks.iter().filter(|(task, _)| self.complete.contains(task)) {
            let amount = self.amounts.get(task).copied().unwrap_or(0);
            *revenue.entry(line.order.customer_info.tier.clone()).or_default() += amount;
        }
        revenue
    }

    /// The table at the end.
    pub(crate) fn table(&self, tasks: &[(String, Line)], hand_overs: &[Duration]) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        for (state, n) in &self.states {
            table.add_row([format!("tasks {state}"), n.to_string()]);
        }
        let seconds = self.last.saturating_sub(self.first.unwrap_or_default()).as_secs_f64();
        let rate = if seconds > 0.0 { self.steps as f64 / seconds } else { 0.0 };
        table.add_row(["steps complete".to_owned(), self.steps.to_string()]);
        table.add_row(["retries".to_owned(), self.retries.to_string()]);
        table.add_row(["events".to_owned(), self.events.to_string()]);
        table.add_row(["steps per second".to_owned(), format!("{rate:.0}")]);
        table.add_row(["hand-over p50".to_owned(), quantile(hand_overs, 0.5)]);
        table.add_row(["hand-over p99".to_owned(), quantile(hand_overs, 0.99)]);
        for (tier, cents) in self.revenue(tasks) {
            let amount = format!("{}.{:02}", cents / 100, cents % 100);
            table.add_row([format!("revenue {tier}"), amount]);
        }
        table.to_string()
    }
}

/// Of sorted durations, the one that this share of them does not exceed.
fn quantile(sorted: &[Duration], share: f64) -> String {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or_else(String::new, |d| format!("{:.2} ms", d.as_secs_f64() * 1000.0))
}
