//! `stepwell task list` and `stepwell task bulk`: many tasks by a filter.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use stepwell_client::Client;
use stepwell_filter::quoted;
use stepwell_proto::v1::{
    BulkAction, BulkCancel, BulkOperation, BulkPreview, BulkResolve, BulkRetry, BulkState,
    CancelBulkOperationRequest, EventFilter, GetBulkOperationRequest, ListBulkOperationsRequest,
    ListTasksRequest, StartBulkOperationRequest, State, bulk_action::Action,
    start_bulk_operation_response::Outcome,
};

use crate::{
    connect::Show,
    fault::Fault,
    output::{self, Column, Listed, Thing, column, state as state_column, wide},
    task::{CANCELLED, Note},
    watch::Watch,
};

/// Most tasks of one page.
const PAGE_MAX: u32 = 1_000;
/// How often the progress of an operation is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// `create_time` or `end_time`, with `desc` for the last one first. By `end_time` only those are shown that
    /// have ended.
    #[arg(long, default_value = "create_time desc")]
    order_by: String,
    /// Show so many tasks at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on where an earlier list with the same filter and order ended.
    #[arg(long, default_value = "")]
    page_token: String,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    show: Show,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Cancel tasks that are pending, in progress or in error, and their unfinished steps.
    Cancel(Cancel),
    /// Try the steps in error of tasks in error again.
    Retry(Retry),
    /// Declare tasks in error settled. Their steps stay as they are.
    Resolve(Start),
    /// Show an operation and how far it has come.
    #[command(visible_alias = "get")]
    Describe(One),
    /// List operations, those started last first.
    List(Operations),
    /// Stop an operation. What it has moved stays moved.
    Stop(One),
}

#[derive(Args)]
pub(crate) struct Cancel {
    /// Cancel complete and resolved ones too.
    #[arg(long)]
    r#override: bool,
    #[command(flatten)]
    start: Start,
}

#[derive(Args)]
pub(crate) struct Retry {
    /// How many more attempts each step may make; as many as the definition says unless given.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=1000))]
    attempts: Option<i32>,
    #[command(flatten)]
    start: Start,
}

#[derive(Args)]
pub(crate) struct Start {
    #[command(flatten)]
    filter: Filter,
    /// A UUID of one's own: repeating the command with it starts no second operation.
    #[arg(long, default_value = "")]
    id: String,
    /// Say only how many tasks fit, and which are the first.
    #[arg(long)]
    dry_run: bool,
    /// Wait for the operation's end. Exit codes: 0 done, 11 cancelled.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    note: Note,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct One {
    /// Its id.
    operation_id: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Operations {
    /// Only those in this state; may be given several times.
    #[arg(long = "state", value_name = "STATE", value_parser = ["running", "done", "cancelled"])]
    states: Vec<String>,
    /// Show so many operations at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=100))]
    limit: i32,
    /// Go on where an earlier list of the same states ended.
    #[arg(long, default_value = "")]
    page_token: String,
    #[command(flatten)]
    show: Show,
}

/// Which tasks: those that fit every flag. A flag that is given several times takes any of its values, `--tag`
/// and `--filter` all of them.
#[derive(Args)]
struct Filter {
    /// What they are like, such as `priority <= 2 AND end_time > "-1h"`.
    #[arg(long = "filter", short, value_name = "FILTER", value_parser = filter)]
    filters: Vec<String>,
    /// Namespace of their definition.
    #[arg(long = "namespace", short, value_name = "NAMESPACE")]
    namespaces: Vec<String>,
    /// Name of their definition.
    #[arg(long = "definition", value_name = "NAME")]
    definitions: Vec<String>,
    /// Version of their definition.
    #[arg(long = "version", value_name = "VERSION")]
    versions: Vec<String>,
    /// The state they are in.
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    states: Vec<State>,
    /// A label they have.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Created then or later, such as `2026-11-28T09:30:00Z`, or `-1h` for an hour ago.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    created_after: Option<String>,
    /// Created before then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    created_before: Option<String>,
    /// Who asked for them.
    #[arg(long = "initiator", value_name = "WHO")]
    initiators: Vec<String>,
    /// Which system asked for them.
    #[arg(long = "source-system", value_name = "SYSTEM")]
    source_systems: Vec<String>,
    /// What they belong to in their creator's eyes.
    #[arg(long = "correlation-id", value_name = "ID")]
    correlation_ids: Vec<String>,
}

const STATES: [State; 6] = [
    State::Pending,
    State::InProgress,
    State::Complete,
    State::Error,
    State::Cancelled,
    State::ResolvedManually,
];

pub(crate) fn state(text: &str) -> Result<State, String> {
    let words: Vec<&str> = STATES.iter().map(|state| state.word()).collect();
    let found = STATES.into_iter().find(|state| state.word() == text);
    found.ok_or_else(|| format!("must be one of {}", words.join(", ")))
}

/// A filter that says something, or what is wrong with it.
fn filter(text: &str) -> Result<String, String> {
    match stepwell_filter::parse(text) {
        Ok(Some(_)) => Ok(text.to_owned()),
        Ok(None) => Err("it says nothing".to_owned()),
        Err(fault) => Err(fault.to_string()),
    }
}

pub(crate) fn time(text: &str) -> Result<prost_types::Timestamp, String> {
    text.parse().map_err(|_| "must be a time such as 2026-11-28T09:30:00Z".to_owned())
}

impl Filter {
    /// All flags as one filter; empty: none was given.
    fn written(&self) -> String {
        // `AND` binds least: a filter may stand beside another as it is.
        let mut parts = self.filters.clone();
        for (field, values) in [
            ("namespace", &self.namespaces),
            ("definition_name", &self.definitions),
            ("definition_version", &self.versions),
            ("initiator", &self.initiators),
            ("source_system", &self.source_systems),
            ("correlation_id", &self.correlation_ids),
        ] {
            let any = values.iter().map(|value| format!("{field} = {}", quoted(value)));
            parts.push(any.collect::<Vec<_>>().join(" OR "));
        }
        let states = self.states.iter().map(|state| format!("state = {}", state.word()));
        parts.push(states.collect::<Vec<_>>().join(" OR "));
        parts.extend(self.tags.iter().map(|tag| format!("tags:{}", quoted(tag))));
        for (sign, time) in [(">=", &self.created_after), ("<", &self.created_before)] {
            parts.extend(time.iter().map(|time| format!("create_time {sign} {}", quoted(time))));
        }
        parts.retain(|part| !part.is_empty());
        parts.join(" AND ")
    }
}

impl List {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let filter = self.filter.written();
        // What happens to tasks and can change what is listed; steps' moves can only if a filter asks how tasks
        // stand.
        let names = if self.filter.filters.is_empty() { "task.*" } else { "*" };
        let events = EventFilter {
            names: vec![names.to_owned()],
            namespaces: self.filter.namespaces.clone(),
            definition_names: self.filter.definitions.clone(),
            ..EventFilter::default()
        };
        let look = async || {
            let (mut left, mut page_token) = (self.limit, self.page_token.clone());
            let mut tasks = self.show.output.listing();
            loop {
                let page_size = i32::try_from(left.min(PAGE_MAX)).unwrap_or(i32::MAX);
                let (filter, order_by) = (filter.clone(), self.order_by.clone());
                let request = ListTasksRequest { filter, page_size, page_token, order_by };
                let page = client.list_tasks(request).await?;
                left = left.saturating_sub(u32::try_from(page.tasks.len()).unwrap_or(u32::MAX));
                tasks.add(page.tasks)?;
                page_token = page.next_page_token;
                if left == 0 || page_token.is_empty() {
                    break;
                }
            }
            tasks.end()?;
            go_on(&page_token);
            Ok(())
        };
        self.watch.show(&client, events, look).await
    }
}

/// Says how to see more.
pub(crate) fn go_on(page_token: &str) {
    if !page_token.is_empty() {
        output::note(format!("there may be more: --page-token {page_token}"));
    }
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Cancel(Cancel { r#override, start }) => {
                start.run(Action::Cancel(BulkCancel { r#override })).await
            }
            Self::Retry(Retry { attempts, start }) => {
                let attempts = attempts.unwrap_or_default();
                start.run(Action::Retry(BulkRetry { attempts })).await
            }
            Self::Resolve(start) => start.run(Action::Resolve(BulkResolve {})).await,
            Self::Describe(One { operation_id, show }) => {
                let client = show.connect.client()?;
                show.output.row(&get(&client, operation_id).await?)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::List(list) => list.run().await,
            Self::Stop(One { operation_id, show }) => {
                let client = show.connect.client()?;
                let request = CancelBulkOperationRequest { operation_id };
                let answer = client.cancel_bulk_operation(request).await?;
                if answer.already_in_state {
                    output::note("it was stopped before");
                }
                show.output.row(&answer.operation.unwrap_or_default())?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Start {
    async fn run(self, action: Action) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = StartBulkOperationRequest {
            operation_id: self.id,
            action: Some(BulkAction { action: Some(action) }),
            filter: self.filter.written(),
            reason: self.note.reason,
            requested_by: self.note.by,
            dry_run: self.dry_run,
        };
        let answer = client.start_bulk_operation(request).await?;
        if answer.already_existed {
            output::note("it was started before");
        }
        let mut started = match answer.outcome {
            Some(Outcome::Preview(found)) => {
                preview(&self.show, &found)?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(Outcome::Operation(started)) => started,
            None => return Err(Fault::new("the answer has no operation")),
        };
        while self.wait && started.state() == BulkState::Running {
            tokio::time::sleep(LOOK_EVERY).await;
            started = get(&client, started.operation_id).await?;
        }
        self.show.output.row(&started)?;
        let stopped = self.wait && started.state() == BulkState::Cancelled;
        Ok(if stopped { ExitCode::from(CANCELLED) } else { ExitCode::SUCCESS })
    }
}

impl Operations {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let states = self.states.iter().map(|word| {
            let name = format!("BULK_STATE_{}", word.to_uppercase());
            BulkState::from_str_name(&name).unwrap_or_default().into()
        });
        let request = ListBulkOperationsRequest {
            states: states.collect(),
            page_size: self.limit,
            page_token: self.page_token,
        };
        let page = client.list_bulk_operations(request).await?;
        self.show.output.all(page.operations)?;
        go_on(&page.next_page_token);
        Ok(ExitCode::SUCCESS)
    }
}

async fn get(client: &Client, operation_id: String) -> Result<BulkOperation, Fault> {
    let answer = client.get_bulk_operation(GetBulkOperationRequest { operation_id }).await?;
    Ok(answer.operation.unwrap_or_default())
}

fn preview(show: &Show, found: &BulkPreview) -> Result<(), Fault> {
    show.output.answer("BulkPreview", found, &found.first_task_ids, || {
        let at_least = if found.at_least { "at least " } else { "" };
        let fits = match found.matching_tasks {
            1 => format!("{at_least}1 task fits"),
            n => format!("{at_least}{n} tasks fit"),
        };
        let ids = found.first_task_ids.iter().map(|id| output::plain(id));
        std::iter::once(fits).chain(ids).collect::<Vec<_>>().join("\n")
    })
}

impl Thing for BulkOperation {
    const MESSAGE: &'static str = "BulkOperation";

    fn name(&self) -> String {
        self.operation_id.clone()
    }
}

impl Listed for BulkOperation {
    const COLUMNS: &'static [Column<Self>] = &[
        column("OPERATION", |operation| operation.operation_id.clone()),
        column("ACTION", |operation| {
            let action = operation.action.as_ref().and_then(|action| action.action.as_ref());
            match action {
                Some(Action::Cancel(_)) => "cancel",
                Some(Action::Retry(_)) => "retry",
                Some(Action::Resolve(_)) => "resolve",
                None => "",
            }
            .to_owned()
        }),
        state_column("STATE", |operation| {
            match operation.state() {
                BulkState::Running => "running",
                BulkState::Done => "done",
                BulkState::Cancelled => "cancelled",
                BulkState::Unspecified => "",
            }
            .to_owned()
        }),
        column("FITTED", |operation| operation.matched_tasks.to_string()),
        column("MOVED", |operation| operation.moved_tasks.to_string()),
        column("LEFT ALONE", |operation| operation.left_tasks.to_string()),
        column("BY", |operation| operation.requested_by.clone()),
        wide("REASON", |operation| operation.reason.clone()),
    ];
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        filter: Filter,
    }

    fn written(flags: &[&str]) -> String {
        Flags::try_parse_from(["x"].iter().chain(flags)).unwrap().filter.written()
    }

    #[test]
    fn flags_are_conjuncts_of_the_filter_and_mean_what_they_say() {
        for (flags, text) in [
            (vec![], ""),
            (vec!["--state", "error", "--state", "pending"], "state = error OR state = pending"),
            (vec!["--tag", "a*", "--tag", "b\"c"], r#"tags:"a\*" AND tags:"b\"c""#),
            (
                vec![
                    "--filter",
                    "paused = true OR held = true",
                    "--definition",
                    "order",
                    "--created-after",
                    "-1h",
                ],
                r#"paused = true OR held = true AND definition_name = "order" AND create_time >= "-1h""#,
            ),
            (
                vec!["-f", "paused = true AND held = true", "-f", "priority < 3"],
                "paused = true AND held = true AND priority < 3",
            ),
        ] {
            let filter = written(&flags);
            assert_eq!(filter, text);
            stepwell_filter::parse(&filter).unwrap();
        }
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_refused_before_anything_is_asked() {
        let refused = Flags::try_parse_from(["x", "--filter", "stat = error"]).err().unwrap();
        let text = refused.to_string();
        assert!(text.contains("at 0") && text.contains("did you mean `state`?"), "{text}");
        assert!(Flags::try_parse_from(["x", "--filter", " "]).is_err());
    }
}
