//! `stepwell task`

use std::{io::Read, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use stepwell_client::Client;
use stepwell_proto::{
    catalog,
    v1::{
        CancelTaskRequest, CreateTaskRequest, Entity, EventFilter, GetTaskGraphRequest,
        GetTaskRequest, PauseTaskRequest, ResolveTaskRequest, ResumeTaskRequest, RetryTaskRequest,
        State, Step, Tags, Task, UpdateTaskRequest,
    },
};

use crate::{
    annotation,
    archive::Archive,
    bulk, completion,
    connect::{Namespace, Show},
    dag,
    diagram::Diagram,
    fault::Fault,
    follow, history,
    output::{self, Column, Listed, Thing, column, state, wide},
    span::Span,
    view,
    watch::Watch,
};

/// Exit codes of what a task came to.
const FAILED: u8 = 10;
pub(crate) const CANCELLED: u8 = 11;
const TIMED_OUT: u8 = 12;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a task, and follow it to its end. Exit codes: 0 complete or resolved, 10 error, 11 cancelled,
    /// 12 not ended in time.
    Run(follow::Run),
    /// Follow a task to its end. Exit codes as of `run`.
    Watch(follow::Watch),
    /// Create a task.
    Create(Create),
    /// Show a task and its steps.
    #[command(visible_alias = "get")]
    Describe(Describe),
    /// Say how a task stands: what of it is ready, blocked and why, and how far it is.
    Summary(view::Get),
    /// Show what of a task depends on what, level by level, with states.
    Graph(view::Get),
    /// Show what became of a task and its steps: who moved what, when and why.
    History(history::History),
    /// Draw a task: as Mermaid, for Graphviz, or as JSON.
    Diagram(Diagram),
    /// Wait for the end of a task. Exit codes: 0 complete or resolved, 10 error, 11 cancelled,
    /// 12 not ended in time.
    Wait(Wait),
    /// Cancel a task and its unfinished steps.
    Cancel(Cancel),
    /// Try the steps in error of a task in error again.
    Retry(Retry),
    /// Declare a task in error settled. Its steps stay as they are.
    Resolve(Resolve),
    /// Start no further step of a task until it is resumed. Steps that run go on.
    Pause(Resolve),
    /// Let a paused task go on.
    Resume(Resolve),
    /// Change what is said of a task: why it is, its labels, its priority.
    Update(Update),
    /// Keep facts with a task, or forget them, also after its end.
    Annotate(annotation::Annotate),
    /// List the tasks that fit a filter, newest first.
    List(bulk::List),
    /// Cancel, retry or resolve all tasks that fit a filter.
    #[command(subcommand)]
    Bulk(bulk::Command),
    /// Put tasks that ended long ago into a file, and remove them if that is wanted.
    Archive(Archive),
}

/// A task that is to be.
#[derive(Args)]
pub(crate) struct New {
    /// Name of the definition.
    #[arg(add = ArgValueCompleter::new(completion::definition_names))]
    definition: String,
    #[command(flatten)]
    namespace: Namespace,
    /// `MAJOR.MINOR.PATCH`; the latest unless given.
    #[arg(long, default_value = "")]
    version: String,
    /// The context: a JSON object, `@file`, or `-` for standard input.
    #[arg(long, short, default_value = "{}")]
    context: String,
    /// A UUID of one's own: repeating the command with it makes no second task.
    #[arg(long, default_value = "")]
    id: String,
    /// A key of one's own for tasks of this definition: a repeat with it answers the existing task.
    #[arg(long, default_value = "", value_name = "KEY")]
    key: String,
    /// How long after the task's creation the key holds, such as `24h`; as the definition says unless given,
    /// else as long as the task is kept.
    #[arg(long, requires = "key", value_name = "DURATION")]
    key_window: Option<Span>,
    /// Answer the existing task if one was created with the same content at most so long ago, such as `1m`;
    /// `0s`: never. As the definition says unless given.
    #[arg(long, conflicts_with = "key", value_name = "DURATION")]
    dedup: Option<Span>,
    /// Why.
    #[arg(long, default_value = "")]
    reason: String,
    /// A label; may be given several times.
    #[arg(long)]
    tag: Vec<String>,
    /// A fact to keep with it; may be given several times.
    #[arg(long, value_name = "NAME=TEXT", value_parser = annotation::fact)]
    annotation: Vec<(String, String)>,
    /// What it belongs to, as its events say; made up unless given.
    #[arg(long, default_value = "")]
    correlation_id: String,
    /// A step that is not to run; may be given several times.
    #[arg(long, value_name = "STEP")]
    bypass: Vec<String>,
    /// How urgent it is, from 1, first, to 5, last; as the definition says unless given.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=5))]
    priority: Option<i32>,
}

#[derive(Args)]
pub(crate) struct Create {
    #[command(flatten)]
    new: New,
    /// Wait for the task's end, this many seconds at most.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Describe {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// Show the steps' results too.
    #[arg(long)]
    results: bool,
    /// Draw what depends on what, with states.
    #[arg(long)]
    graph: bool,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Wait {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// Seconds to wait at most.
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Cancel {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// Cancel it even if it is complete or resolved.
    #[arg(long)]
    r#override: bool,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Retry {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// How many more attempts each step may make; as many as the definition says unless given.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=1000))]
    attempts: Option<i32>,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Update {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    /// Why the task is, from now on.
    #[arg(long, value_name = "REASON")]
    task_reason: Option<String>,
    /// A label from now on, instead of those it has; may be given several times.
    #[arg(long, conflicts_with = "no_tags")]
    tag: Vec<String>,
    /// It has no labels from now on.
    #[arg(long)]
    no_tags: bool,
    /// How urgent it is from now on: from 1, first, to 5, last.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=5))]
    priority: Option<i32>,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Resolve {
    /// Its id.
    #[arg(add = ArgValueCompleter::new(completion::task_ids))]
    task_id: String,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    show: Show,
}

/// The request for a move.
#[derive(Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) note: Note,
    /// An id of one's own for the request, which goes into the events: repeating a retry with it within
    /// 48 hours retries nothing. 1 to 128 characters without spaces; retries make one unless given.
    #[arg(long, default_value = "", value_name = "ID")]
    pub(crate) request_id: String,
}

/// What goes into the events of a move.
#[derive(Args)]
pub(crate) struct Note {
    /// Why.
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// Who asks.
    #[arg(long, env = "USER", default_value = "")]
    pub(crate) by: String,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Run(run) => run.run().await,
            Self::Watch(watch) => watch.run().await,
            Self::Create(create) => create.run().await,
            Self::Describe(describe) => describe.run().await,
            Self::Summary(get) => get.summary().await,
            Self::Graph(get) => get.graph().await,
            Self::History(history) => history.run().await,
            Self::Diagram(diagram) => diagram.run().await,
            Self::Wait(wait) => {
                wait_for(&wait.show, &wait.task_id, Duration::from_secs(wait.timeout)).await
            }
            Self::Cancel(cancel) => cancel.run().await,
            Self::Retry(retry) => retry.run().await,
            Self::Resolve(resolve) => resolve.run().await,
            Self::Pause(pause) => pause.pause().await,
            Self::Resume(resume) => resume.resume().await,
            Self::Update(update) => update.run().await,
            Self::Annotate(annotate) => annotate.run().await,
            Self::List(list) => list.run().await,
            Self::Bulk(command) => command.run().await,
            Self::Archive(archive) => archive.run().await,
        }
    }
}

impl New {
    pub(crate) async fn create(self, client: &Client) -> Result<Task, Fault> {
        let request = CreateTaskRequest {
            task_id: self.id,
            namespace: self.namespace.get()?,
            definition_name: self.definition,
            definition_version: self.version,
            context: text(&self.context)?,
            initiator: std::env::var("USER").unwrap_or_default(),
            source_system: "stepwell-cli".into(),
            reason: self.reason,
            tags: self.tag,
            bypass_steps: self.bypass,
            priority: self.priority.unwrap_or_default(),
            correlation_id: self.correlation_id,
            annotations: self.annotation.into_iter().collect(),
            // As scripts hand on where they are in a trace.
            traceparent: std::env::var("TRACEPARENT").unwrap_or_default(),
            idempotency_key: self.key,
            idempotency_window: self.key_window.map(Span::proto),
            dedup_window: self.dedup.map(Span::proto),
        };
        let answer = client.create_task(request).await?;
        if answer.already_existed {
            output::note("the task was there already");
        }
        Ok(answer.task.unwrap_or_default())
    }
}

impl Create {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let task = self.new.create(&client).await?;
        let Some(wait) = self.wait else {
            self.show.output.one(&task, || output::plain(&task.task_id))?;
            return Ok(ExitCode::SUCCESS);
        };
        wait_for(&self.show, &task.task_id, Duration::from_secs(wait)).await
    }
}

impl Describe {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let filter = EventFilter { task_ids: vec![self.task_id.clone()], ..EventFilter::default() };
        let look = async || {
            let (task_id, include_results) = (self.task_id.clone(), self.results);
            let request = GetTaskRequest { task_id, include_results, ..Default::default() };
            let task = client.get_task(request).await?.task.unwrap_or_default();
            self.show.task(&task)?;
            if self.graph && self.show.output.is_for_people() {
                let request = GetTaskGraphRequest { task_id: self.task_id.clone() };
                let graph = client.get_task_graph(request).await?.graph.unwrap_or_default();
                output::line(format!("\n{}", dag::draw(&graph)))?;
            }
            Ok(())
        };
        self.watch.show(&client, filter, look).await
    }
}

async fn wait_for(show: &Show, task_id: &str, timeout: Duration) -> Result<ExitCode, Fault> {
    let client = show.connect.client()?;
    let task = client.wait_task(task_id, timeout).await?;
    show.task(&task)?;
    Ok(ended(task.state()))
}

/// The exit code for how a task ended, or did not in time.
pub(crate) fn ended(state: State) -> ExitCode {
    match state {
        State::Complete | State::ResolvedManually => ExitCode::SUCCESS,
        State::Error => ExitCode::from(FAILED),
        State::Cancelled => ExitCode::from(CANCELLED),
        State::Unspecified | State::Pending | State::InProgress => ExitCode::from(TIMED_OUT),
    }
}

impl Cancel {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = CancelTaskRequest {
            task_id: self.task_id,
            reason: self.ask.note.reason,
            cancelled_by: self.ask.note.by,
            request_id: self.ask.request_id,
            r#override: self.r#override,
        };
        let answer = client.cancel_task(request).await?;
        if answer.already_in_state {
            output::note("it was cancelled before");
        }
        self.show.task(&answer.task.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Retry {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = RetryTaskRequest {
            task_id: self.task_id,
            reason: self.ask.note.reason,
            retried_by: self.ask.note.by,
            request_id: self.ask.request_id,
            attempts: self.attempts.unwrap_or_default(),
        };
        let answer = client.retry_task(request).await?;
        match answer.retried_steps {
            _ if answer.already_in_state => output::note("it is under way"),
            1 => output::note("1 step is tried again"),
            n => output::note(format!("{n} steps are tried again")),
        }
        self.show.task(&answer.task.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Resolve {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = ResolveTaskRequest {
            task_id: self.task_id,
            reason: self.ask.note.reason,
            resolved_by: self.ask.note.by,
            request_id: self.ask.request_id,
        };
        let answer = client.resolve_task(request).await?;
        if answer.already_in_state {
            output::note("it was resolved before");
        }
        self.show.task(&answer.task.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Resolve {
    async fn pause(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = PauseTaskRequest {
            task_id: self.task_id,
            reason: self.ask.note.reason,
            paused_by: self.ask.note.by,
            request_id: self.ask.request_id,
        };
        let answer = client.pause_task(request).await?;
        if answer.already_in_state {
            output::note("it was paused before");
        }
        self.show.task(&answer.task.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }

    async fn resume(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let request = ResumeTaskRequest {
            task_id: self.task_id,
            reason: self.ask.note.reason,
            resumed_by: self.ask.note.by,
            request_id: self.ask.request_id,
        };
        let answer = client.resume_task(request).await?;
        if answer.already_in_state {
            output::note("it was not paused");
        }
        self.show.task(&answer.task.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Update {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let tags = (self.no_tags || !self.tag.is_empty()).then_some(Tags { values: self.tag });
        let request = UpdateTaskRequest {
            task_id: self.task_id,
            task_reason: self.task_reason,
            tags,
            priority: self.priority.unwrap_or_default(),
            reason: self.ask.note.reason,
            updated_by: self.ask.note.by,
            request_id: self.ask.request_id,
        };
        let answer = client.update_task(request).await?;
        self.show.task(&answer.task.unwrap_or_default())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    pub(crate) fn task(&self, task: &Task) -> Result<(), Fault> {
        self.output.one(task, || {
            let mut text = headline(task);
            for (name, fact) in &task.annotations {
                text += &format!("\n  {}", output::plain(&format!("{name} = {fact}")));
            }
            if !task.steps.is_empty() {
                text = format!("{text}\n{}", self.output.rows(&task.steps));
            }
            text
        })
    }
}

/// A task on one line.
pub(crate) fn headline(task: &Task) -> String {
    let paused = if task.paused { ", paused" } else { "" };
    let urgent = match task.priority {
        0 | 3 => String::new(),
        priority => format!(", priority {priority}"),
    };
    let word = task.state().word();
    let word = output::state_text(word, word, output::colours());
    let named = output::plain(&format!("{}  {}", task.task_id, plan(task)));
    format!("{named}  {word}{paused}{urgent}")
}

/// The definition of a task, with its version.
fn plan(task: &Task) -> String {
    format!("{}/{} {}", task.namespace, task.definition_name, task.definition_version)
}

impl Thing for Task {
    const MESSAGE: &'static str = "Task";

    fn name(&self) -> String {
        self.task_id.clone()
    }
}

impl Listed for Task {
    const COLUMNS: &'static [Column<Self>] = &[
        column("TASK", |task| task.task_id.clone()),
        column("DEFINITION", plan),
        state("STATE", |task| {
            let paused = if task.paused { ", paused" } else { "" };
            format!("{}{paused}", task.state().word())
        }),
        column("CREATED", |task| output::time(task.create_time.as_ref())),
        column("TAGS", |task| task.tags.join(", ")),
        wide("STARTED", |task| output::time(task.start_time.as_ref())),
        wide("ENDED", |task| output::time(task.end_time.as_ref())),
        wide("STEPS", |task| task.total_steps.to_string()),
        wide("PRIORITY", |task| task.priority.to_string()),
        wide("BY", |task| task.initiator.clone()),
        wide("FROM", |task| task.source_system.clone()),
        wide("REASON", |task| task.reason.clone()),
        wide("CORRELATION", |task| task.correlation_id.clone()),
    ];
}

impl Thing for Step {
    const MESSAGE: &'static str = "Step";

    fn name(&self) -> String {
        self.step_id.clone()
    }
}

impl Listed for Step {
    const COLUMNS: &'static [Column<Self>] = &[
        column("#", |step| step.number.to_string()),
        column("STEP", |step| step.name.clone()),
        state("STATE", |step| step.state().word().to_owned()),
        column("ATTEMPT", |step| format!("{}/{}", step.attempt, step.max_attempts)),
        column("", remark),
        wide("HANDLER", |step| step.handler.clone()),
        wide("AFTER", |step| step.depends_on.join(", ")),
        wide("STARTED", |step| output::time(step.start_time.as_ref())),
        wide("NOT BEFORE", |step| output::time(step.not_before.as_ref())),
        wide("ID", |step| step.step_id.clone()),
    ];
}

/// What is worth knowing of a step beside its state.
fn remark(step: &Step) -> String {
    if let Some(error) = &step.last_error
        && !matches!(step.state(), State::Complete | State::ResolvedManually)
    {
        let code = if error.error_code.is_empty() { &error.error_class } else { &error.error_code };
        return format!("{code}: {}", error.message);
    }
    if step.waiting_on > 0
        && catalog::origins(Entity::Step, State::InProgress).contains(&step.state())
    {
        return format!("waits for {} of {}", step.waiting_on, step.depends_on.join(", "));
    }
    step.result.clone()
}

/// Text that is given as it is, in a file, or on standard input.
pub(crate) fn text(given: &str) -> Result<String, Fault> {
    let read = match given.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file),
        None if given == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        None => return Ok(given.to_owned()),
    };
    read.map_err(|error| Fault::usage(format!("cannot read {given}")).because(error.to_string()))
}
