//! `stepwell event`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use stepwell_client::{Start, Subscription};
use stepwell_proto::v1::{Event, State, event::Detail};

use crate::{connect::Connect, fault::Fault, output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Follow events until interrupted.
    Subscribe(Subscribe),
}

#[derive(Args)]
pub(crate) struct Subscribe {
    /// Names: exact, `prefix.*`, or `*`; everything recorded unless given.
    names: Vec<String>,
    /// Where to start: `earliest`, `latest`, a time such as `2026-11-28T12:00:00Z`, or a cursor that was
    /// printed.
    #[arg(long, default_value = "latest")]
    from: String,
    /// Only events of this task; may be given several times.
    #[arg(long)]
    task: Vec<String>,
    /// Only events of tasks of this definition; may be given several times.
    #[arg(long)]
    definition: Vec<String>,
    /// Only events of this namespace; may be given several times.
    #[arg(long, short)]
    namespace: Vec<String>,
    /// Only events of this step; may be given several times.
    #[arg(long)]
    step: Vec<String>,
    /// Only events of tasks with this label; may be given several times: any of them.
    #[arg(long)]
    tag: Vec<String>,
    /// Only events of tasks with this correlation id; may be given several times.
    #[arg(long)]
    correlation_id: Vec<String>,
    /// Of failures of steps only those that are final.
    #[arg(long)]
    only_final_failures: bool,
    /// Without contexts, results, configs and what failures say.
    #[arg(long)]
    metadata_only: bool,
    /// End after this many events.
    #[arg(long)]
    limit: Option<usize>,
    /// How they are shown. The last line of standard error is the cursor to go on from.
    #[arg(long, short, value_enum, default_value_t)]
    output: output::Format,
    #[command(flatten)]
    connect: Connect,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let Self::Subscribe(subscribe) = self;
        subscribe.run().await
    }
}

impl Subscribe {
    async fn run(self) -> Result<ExitCode, Fault> {
        let start = match self.from.as_str() {
            "earliest" => Start::Earliest,
            "latest" => Start::Latest,
            // No cursor has a colon.
            time if time.contains(':') => {
                let time: prost_types::Timestamp =
                    time.parse().map_err(|_| Fault::usage(format!("{time:?} is no time")))?;
                Start::At(time.try_into().map_err(|_| Fault::usage("the time is too far away"))?)
            }
            cursor => Start::After(cursor.to_owned()),
        };
        let mut wanted = Subscription::new()
            .names(self.names.clone())
            .tasks(self.task.clone())
            .definitions(self.definition.clone())
            .namespaces(self.namespace.clone())
            .steps(self.step.clone())
            .tags(self.tag.clone())
            .correlation_ids(self.correlation_id.clone())
            .from(start);
        if self.only_final_failures {
            wanted = wanted.only_final_failures();
        }
        if self.metadata_only {
            wanted = wanted.metadata_only();
        }
        let mut feed = self.connect.client()?.subscribe(wanted).await?;
        let mut left = self.limit.unwrap_or(usize::MAX);
        while left > 0 {
            let delivery = tokio::select! {
                delivery = feed.next() => delivery,
                _ = tokio::signal::ctrl_c() => break,
            };
            let Some(delivery) = delivery else { break };
            for event in delivery?.events.iter().take(left) {
                left -= 1;
                let line = match self.output {
                    output::Format::Json => output::json("Event", event)?,
                    output::Format::Table => describe(event),
                };
                output::line(line)?;
            }
        }
        eprintln!("cursor: {}", feed.cursor());
        Ok(ExitCode::SUCCESS)
    }
}

/// An event on one line.
fn describe(event: &Event) -> String {
    let moved = match (event.from_state(), event.to_state()) {
        (_, State::Unspecified) => String::new(),
        (from, to) => format!("{} → {}", from.word(), to.word()),
    };
    let of = if event.step_id.is_empty() { &event.task_id } else { &event.step_id };
    let step = match (event.step_name.as_str(), event.attempt) {
        ("", _) => String::new(),
        (name, 0) => name.to_owned(),
        (name, attempt) => format!("{name} #{attempt}"),
    };
    let more = match &event.detail {
        Some(Detail::StepFailed(failed)) => {
            failed.error.as_ref().map(|e| format!("{}: {}", e.error_class, e.message))
        }
        Some(Detail::StepCompleted(completed)) => Some(completed.result.clone()),
        Some(Detail::TaskFailed(failed)) => Some(failed.failed_steps.join(", ")),
        Some(Detail::TaskCancelled(cancelled)) => Some(cancelled.reason.clone()),
        Some(Detail::TaskRetryRequested(retried)) => Some(retried.reason.clone()),
        Some(Detail::TaskResolvedManually(resolved)) => Some(resolved.reason.clone()),
        Some(Detail::StepRetryRequested(retried)) => Some(retried.reason.clone()),
        Some(Detail::StepCancelled(cancelled)) => Some(cancelled.reason.clone()),
        Some(Detail::StepResolvedManually(resolved)) => Some(resolved.reason.clone()),
        _ => None,
    };
    let at = output::time_of_day(event.at.as_ref());
    let line = [at, event.name.clone(), of.clone(), step, moved, more.unwrap_or_default()];
    line.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
}
