//! `stepwell task history`: what became of a task and its steps, transition by transition.

use std::process::ExitCode;

use clap::Args;
use clap_complete::ArgValueCompleter;
use stepwell_proto::v1::{
    GetTransitionStatisticsRequest, GetTransitionStatisticsResponse, ListTransitionsRequest, State,
    Transition, TransitionScope,
};

use crate::{
    bulk, completion,
    connect::Show,
    fault::Fault,
    output::{self, Column, Listed, Thing, column, wide},
    span::shown_proto,
};

/// Most transitions of one page.
const PAGE_MAX: u32 = 1_000;

#[derive(Args)]
pub(crate) struct History {
    /// The task's id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// Only of the step with this number.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(0..))]
    step: Option<i32>,
    /// Only of the task itself, not of its steps.
    #[arg(long, conflicts_with = "step")]
    only_task: bool,
    /// Only to this state, such as `error`; may be given several times.
    #[arg(long = "to-state", value_name = "STATE", value_parser = bulk::state)]
    to_states: Vec<State>,
    /// Only of steps at their attempt of this number.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..))]
    attempt: Option<i32>,
    /// Only at this time or later, such as `2026-11-28T09:30:00Z`.
    #[arg(long = "from", value_name = "TIME", value_parser = bulk::time)]
    from_time: Option<prost_types::Timestamp>,
    /// Only before this time.
    #[arg(long = "until", value_name = "TIME", value_parser = bulk::time)]
    until_time: Option<prost_types::Timestamp>,
    /// What people changed without moving anything, too.
    #[arg(long)]
    changes: bool,
    /// The last one first.
    #[arg(long)]
    newest_first: bool,
    /// Show so many transitions at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on where an earlier list of the same ended.
    #[arg(long, default_value = "")]
    page_token: String,
    /// How many there are to each state, and how long they took, instead of the transitions.
    #[arg(long, conflicts_with_all = ["to_states", "attempt", "changes", "newest_first", "limit", "page_token"])]
    statistics: bool,
    #[command(flatten)]
    show: Show,
}

impl History {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let scope = TransitionScope {
            task_id: self.task_id.clone(),
            step_number: self.step,
            only_task: self.only_task,
        };
        if self.statistics {
            let request = GetTransitionStatisticsRequest { scope: Some(scope) };
            let answer = client.get_transition_statistics(request).await?;
            self.show.output.answer(
                "GetTransitionStatisticsResponse",
                &answer,
                [&self.task_id],
                || lines(&answer).join("\n"),
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut request = ListTransitionsRequest {
            scope: Some(scope),
            to_states: self.to_states.iter().map(|state| (*state).into()).collect(),
            attempt: self.attempt.unwrap_or_default(),
            from_time: self.from_time,
            until_time: self.until_time,
            include_changes: self.changes,
            newest_first: self.newest_first,
            page_token: self.page_token,
            ..ListTransitionsRequest::default()
        };
        let mut left = self.limit;
        let mut transitions = self.show.output.listing();
        loop {
            request.page_size = i32::try_from(left.min(PAGE_MAX)).unwrap_or(0);
            let page = client.list_transitions(request.clone()).await?;
            left = left.saturating_sub(u32::try_from(page.transitions.len()).unwrap_or(u32::MAX));
            transitions.add(page.transitions)?;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || left == 0 {
                transitions.end()?;
                if !page.complete {
                    let since = output::time(page.kept_from.as_ref());
                    output::note(format!("the oldest are no longer kept: the log begins {since}"));
                }
                bulk::go_on(&request.page_token);
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

impl Thing for Transition {
    const MESSAGE: &'static str = "Transition";

    fn name(&self) -> String {
        self.position.to_string()
    }
}

impl Listed for Transition {
    const COLUMNS: &'static [Column<Self>] = &[
        column("TIME", |of| output::time(of.time.as_ref())),
        column("STEP", |of| of.step_name.clone()),
        column("STATE", |of| match of.from_state() {
            State::Unspecified => of.to_state().word().to_owned(),
            from if from == of.to_state() => from.word().to_owned(),
            from => format!("{} > {}", from.word(), of.to_state().word()),
        }),
        column("AFTER", |of| shown_proto(of.since_previous.as_ref())),
        column("BY", |of| of.actor.clone()),
        column("", |of| of.description.clone()),
        wide("RAN FOR", |of| shown_proto(of.ran_for.as_ref())),
        wide("EVENT", |of| of.event.clone()),
        wide("REASON", |of| of.reason.clone()),
    ];
}

fn lines(of: &GetTransitionStatisticsResponse) -> Vec<String> {
    let states =
        of.by_state.iter().map(|count| format!("{} {}", count.count, count.state().word()));
    let mut lines =
        vec![format!("{} transitions: {}", of.total, states.collect::<Vec<_>>().join(", "))];
    lines.push(format!("{} retries, {} transitions within a day", of.retries, of.last_day));
    for (time, what) in [
        (&of.average_execution_time, "an attempt took"),
        (&of.average_time_between, "between two transitions"),
    ] {
        if let Some(time) = time {
            lines.push(format!("{what} {} on average", shown_proto(Some(time))));
        }
    }
    if !of.complete {
        lines.push("not of all: the oldest are left out".to_owned());
    }
    lines
}
