//! `stepwell task list` and `stepwell task bulk`: many tasks by a filter.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use stepwell_client::Client;
use stepwell_proto::v1::{
    BulkAction, BulkCancel, BulkOperation, BulkPreview, BulkResolve, BulkRetry, BulkState,
    CancelBulkOperationRequest, GetBulkOperationRequest, ListBulkOperationsRequest,
    ListBulkOperationsResponse, ListTasksRequest, ListTasksResponse, StartBulkOperationRequest,
    State, TaskFilter, bulk_action::Action, start_bulk_operation_response::Outcome,
};

use crate::{
    connect::Show,
    fault::Fault,
    output,
    task::{CANCELLED, Note},
};

/// Most tasks of one page.
const PAGE_MAX: u32 = 1_000;
/// How often the progress of an operation is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Show so many tasks at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on where an earlier list with the same filter ended.
    #[arg(long, default_value = "")]
    page_token: String,
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
    Get(One),
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
/// all of them.
#[derive(Args)]
struct Filter {
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
    /// Created then or later, such as `2026-11-28T09:30:00Z`.
    #[arg(long, value_name = "TIME", value_parser = time)]
    created_after: Option<prost_types::Timestamp>,
    /// Created before then.
    #[arg(long, value_name = "TIME", value_parser = time)]
    created_before: Option<prost_types::Timestamp>,
    /// Who asked for them.
    #[arg(long = "initiator", value_name = "WHO")]
    initiators: Vec<String>,
    /// Which system asked for them.
    #[arg(long = "source-system", value_name = "SYSTEM")]
    source_systems: Vec<String>,
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

pub(crate) fn time(text: &str) -> Result<prost_types::Timestamp, String> {
    text.parse().map_err(|_| "must be a time such as 2026-11-28T09:30:00Z".to_owned())
}

impl From<Filter> for TaskFilter {
    fn from(filter: Filter) -> Self {
        Self {
            namespaces: filter.namespaces,
            definition_names: filter.definitions,
            definition_versions: filter.versions,
            states: filter.states.into_iter().map(i32::from).collect(),
            tags: filter.tags,
            created_after: filter.created_after,
            created_before: filter.created_before,
            initiators: filter.initiators,
            source_systems: filter.source_systems,
        }
    }
}

impl List {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let filter = TaskFilter::from(self.filter);
        let (mut left, mut page_token) = (self.limit, self.page_token);
        let mut tasks = Vec::new();
        loop {
            let page_size = i32::try_from(left.min(PAGE_MAX)).unwrap_or(i32::MAX);
            let request = ListTasksRequest { filter: Some(filter.clone()), page_size, page_token };
            let page = client.list_tasks(request).await?;
            left = left.saturating_sub(u32::try_from(page.tasks.len()).unwrap_or(u32::MAX));
            tasks.extend(page.tasks);
            page_token = page.next_page_token;
            if left == 0 || page_token.is_empty() {
                break;
            }
        }
        if self.show.output == output::Format::Json {
            let page = ListTasksResponse { tasks, next_page_token: page_token };
            output::line(output::json("ListTasksResponse", &page)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = output::table(&["TASK", "DEFINITION", "STATE", "CREATED", "TAGS"]);
        for task in &tasks {
            let name =
                format!("{}/{} {}", task.namespace, task.definition_name, task.definition_version);
            let paused = if task.paused { ", paused" } else { "" };
            table.add_row([
                task.task_id.clone(),
                name,
                format!("{}{paused}", task.state().word()),
                task.create_time.map(|at| at.to_string()).unwrap_or_default(),
                task.tags.join(", "),
            ]);
        }
        output::line(table.to_string())?;
        go_on(&page_token);
        Ok(ExitCode::SUCCESS)
    }
}

/// Says how to see more.
pub(crate) fn go_on(page_token: &str) {
    if !page_token.is_empty() {
        eprintln!("there may be more: --page-token {page_token}");
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
            Self::Get(One { operation_id, show }) => {
                let client = show.connect.client()?;
                operation(&show, &get(&client, operation_id).await?)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::List(list) => list.run().await,
            Self::Stop(One { operation_id, show }) => {
                let client = show.connect.client()?;
                let request = CancelBulkOperationRequest { operation_id };
                let answer = client.cancel_bulk_operation(request).await?;
                if answer.already_in_state {
                    eprintln!("it was stopped before");
                }
                operation(&show, &answer.operation.unwrap_or_default())?;
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
            filter: Some(self.filter.into()),
            reason: self.note.reason,
            requested_by: self.note.by,
            dry_run: self.dry_run,
        };
        let answer = client.start_bulk_operation(request).await?;
        if answer.already_existed {
            eprintln!("it was started before");
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
        operation(&self.show, &started)?;
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
        if self.show.output == output::Format::Json {
            output::line(output::json("ListBulkOperationsResponse", &page)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let ListBulkOperationsResponse { operations, next_page_token } = page;
        output::line(table(&operations).to_string())?;
        go_on(&next_page_token);
        Ok(ExitCode::SUCCESS)
    }
}

async fn get(client: &Client, operation_id: String) -> Result<BulkOperation, Fault> {
    let answer = client.get_bulk_operation(GetBulkOperationRequest { operation_id }).await?;
    Ok(answer.operation.unwrap_or_default())
}

fn preview(show: &Show, found: &BulkPreview) -> Result<(), Fault> {
    if show.output == output::Format::Json {
        return output::line(output::json("BulkPreview", found)?);
    }
    let at_least = if found.at_least { "at least " } else { "" };
    output::line(match found.matching_tasks {
        1 => format!("{at_least}1 task fits"),
        n => format!("{at_least}{n} tasks fit"),
    })?;
    found.first_task_ids.iter().try_for_each(output::line)
}

fn operation(show: &Show, operation: &BulkOperation) -> Result<(), Fault> {
    if show.output == output::Format::Json {
        return output::line(output::json("BulkOperation", operation)?);
    }
    output::line(table(std::slice::from_ref(operation)).to_string())
}

/// Operations, a row each.
fn table(operations: &[BulkOperation]) -> output::Table {
    let mut table =
        output::table(&["OPERATION", "ACTION", "STATE", "FITTED", "MOVED", "LEFT ALONE", "BY"]);
    for operation in operations {
        let action = operation.action.as_ref().and_then(|action| action.action.as_ref());
        table.add_row([
            operation.operation_id.clone(),
            match action {
                Some(Action::Cancel(_)) => "cancel",
                Some(Action::Retry(_)) => "retry",
                Some(Action::Resolve(_)) => "resolve",
                None => "",
            }
            .to_owned(),
            match operation.state() {
                BulkState::Running => "running",
                BulkState::Done => "done",
                BulkState::Cancelled => "cancelled",
                BulkState::Unspecified => "",
            }
            .to_owned(),
            operation.matched_tasks.to_string(),
            operation.moved_tasks.to_string(),
            operation.left_tasks.to_string(),
            operation.requested_by.clone(),
        ]);
    }
    table
}
