//! `stepwell event`

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use stepwell_proto::v1::{
    Earliest, Entity, Event, EventCategory, EventFilter, EventType, GetEventTypeRequest, Latest,
    ListEventTypesRequest, ListEventsRequest, State, SubscribeRequest, event::Detail,
    list_events_request, subscribe_request::Start,
};

use crate::{
    bulk::go_on,
    connect::{Connect, Show},
    custom,
    fault::Fault,
    output,
};

/// Most events of one page.
const PAGE_MAX: u32 = 1_000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Follow events until interrupted.
    Subscribe(Subscribe),
    /// Show events that are kept.
    List(List),
    /// Show which types of events there are.
    Types(Types),
    /// Show one type of events: what it means, its schema, an example.
    Type(Type),
    /// Register a type of custom events, or change it as far as that is allowed.
    Register(custom::Register),
    /// Publish a custom event about a task or one of its steps.
    Publish(custom::Publish),
}

#[derive(Args)]
pub(crate) struct Types {
    /// Only this category.
    #[arg(long, value_enum)]
    category: Option<Category>,
    /// Only names that begin so.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only those with this text in name or description, in upper or lower case.
    #[arg(long, default_value = "")]
    search: String,
    /// Only custom types of this namespace.
    #[arg(long, short, default_value = "")]
    namespace: String,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
pub(crate) struct Type {
    /// Its name: `step.completed`.
    name: String,
    /// Of a custom type, the namespace.
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Of a custom type, the version; the latest unless given.
    #[arg(long, default_value_t = 0)]
    version: i32,
    #[command(flatten)]
    show: Show,
}

/// What events are about.
#[derive(Clone, Copy, ValueEnum)]
enum Category {
    /// Tasks.
    Task,
    /// Steps.
    Step,
    /// The engine's decisions.
    Workflow,
    /// For watching only.
    Observability,
    /// Your own.
    Custom,
}

#[derive(Args)]
pub(crate) struct Subscribe {
    #[command(flatten)]
    filter: Filter,
    /// Where to start: `earliest`, `latest`, a time such as `2026-11-28T12:00:00Z`, or a cursor that was
    /// printed.
    #[arg(long, default_value = "latest")]
    from: String,
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

/// Which events: those that fit every flag.
#[derive(Args)]
struct Filter {
    /// Names: exact, `prefix.*`, or `*`; everything recorded unless given.
    names: Vec<String>,
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
}

impl From<Filter> for EventFilter {
    fn from(filter: Filter) -> Self {
        Self {
            names: filter.names,
            task_ids: filter.task,
            definition_names: filter.definition,
            namespaces: filter.namespace,
            step_names: filter.step,
            tags: filter.tag,
            correlation_ids: filter.correlation_id,
            only_final_failures: filter.only_final_failures,
        }
    }
}

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Where to start: `earliest`, a time such as `2026-11-28T12:00:00Z`, or a cursor that was printed.
    #[arg(long, default_value = "earliest")]
    from: String,
    /// The last event first, down to where the list would start.
    #[arg(long)]
    newest_first: bool,
    /// Without contexts, results, configs and what failures say.
    #[arg(long)]
    metadata_only: bool,
    /// Show so many events at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on where an earlier list of the same events ended.
    #[arg(long, default_value = "")]
    page_token: String,
    #[command(flatten)]
    show: Show,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Subscribe(subscribe) => subscribe.run().await,
            Self::List(list) => list.run().await,
            Self::Types(types) => types.run().await,
            Self::Type(of_type) => of_type.run().await,
            Self::Register(register) => register.run().await,
            Self::Publish(publish) => publish.run().await,
        }
    }
}

impl Types {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let category =
            self.category.map_or(EventCategory::Unspecified, |category| match category {
                Category::Task => EventCategory::Task,
                Category::Step => EventCategory::Step,
                Category::Workflow => EventCategory::Workflow,
                Category::Observability => EventCategory::Observability,
                Category::Custom => EventCategory::Custom,
            });
        let (prefix, search, namespace) = (self.prefix, self.search, self.namespace);
        let category = category.into();
        let mut request = ListEventTypesRequest {
            category,
            prefix,
            search,
            namespace,
            ..ListEventTypesRequest::default()
        };
        let mut table = output::table(&["NAME", "SINCE", "RECORDS", "MEANING"]);
        loop {
            let page = client.list_event_types(request.clone()).await?;
            for of_type in page.event_types {
                if self.show.output == output::Format::Json {
                    output::line(output::json("EventType", &of_type)?)?;
                    continue;
                }
                let meaning = of_type.description.split(". ").next().unwrap_or_default();
                let meaning = meaning.replace('\n', " ");
                let records = records(&of_type);
                let since = since(&of_type);
                table.add_row([of_type.name, since, records, meaning]);
            }
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        if self.show.output == output::Format::Table {
            output::line(table.to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Type {
    async fn run(self) -> Result<ExitCode, Fault> {
        let request = GetEventTypeRequest {
            name: self.name,
            namespace: self.namespace,
            version: self.version,
        };
        let answer = self.show.connect.client()?.get_event_type(request).await?;
        let of_type = answer.event_type.unwrap_or_default();
        if self.show.output == output::Format::Json {
            output::line(output::json("EventType", &of_type)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        output::line(format!("{}\n\n{}\n", of_type.name, of_type.description))?;
        let mut table = output::table(&["RECORDS", "BY", "SINCE", "NUMBER", "MESSAGE"]);
        table.add_row([
            records(&of_type),
            of_type.emitters.join(", "),
            since(&of_type),
            of_type.number.to_string(),
            of_type.message,
        ]);
        output::line(table.to_string())?;
        let texts = [("schema", of_type.schema), ("example", of_type.example)];
        for (what, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            let shown = serde_json::from_str::<serde_json::Value>(&text)
                .and_then(|json| serde_json::to_string_pretty(&json));
            output::line(format!("\n{what}:\n{}", shown.unwrap_or(text)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The release that had it first, or of a custom type its version.
fn since(of_type: &EventType) -> String {
    match of_type.version {
        0 => of_type.since.clone(),
        version => format!("version {version}"),
    }
}

/// What it records, or what it is made from.
fn records(of_type: &EventType) -> String {
    if of_type.version > 0 {
        return format!("custom, of {}", of_type.namespace);
    }
    if !of_type.derived_from.is_empty() {
        return format!("from {}", of_type.derived_from.join(", "));
    }
    let entity = if of_type.entity() == Entity::Step { "step" } else { "task" };
    let from = of_type.from_states().map(State::word).collect::<Vec<_>>().join(", ");
    match (from.as_str(), of_type.to_state()) {
        (_, State::Unspecified) => format!("{entity} stays {from}"),
        ("", to) => format!("{entity} is {}", to.word()),
        (from, to) => format!("{entity} {from} → {}", to.word()),
    }
}

impl Subscribe {
    async fn run(self) -> Result<ExitCode, Fault> {
        let start = match Place::read(&self.from)? {
            Place::Earliest => Start::Earliest(Earliest {}),
            Place::Latest => Start::Latest(Latest {}),
            Place::At(time) => Start::AtTime(time),
            Place::After(cursor) => Start::AfterCursor(cursor),
        };
        let wanted = SubscribeRequest {
            start: Some(start),
            filter: Some(self.filter.into()),
            metadata_only: self.metadata_only,
            with_snapshot: false,
        };
        let mut feed = self.connect.client()?.subscribe(wanted).await?;
        let mut left = self.limit.unwrap_or(usize::MAX);
        let mut cursor = feed.cursor().to_owned();
        while left > 0 {
            let delivery = tokio::select! {
                delivery = feed.next() => delivery,
                _ = tokio::signal::ctrl_c() => break,
            };
            let Some(delivery) = delivery else { break };
            let delivery = delivery?;
            let is_cut = delivery.events.len() > left;
            for event in delivery.events.iter().take(left) {
                left -= 1;
                show(event, self.output)?;
            }
            // Behind one that was cut there are events that were not shown: it comes again as a whole.
            if !is_cut {
                feed.cursor().clone_into(&mut cursor);
            }
        }
        eprintln!("cursor: {cursor}");
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    async fn run(self) -> Result<ExitCode, Fault> {
        let client = self.show.connect.client()?;
        let start = match Place::read(&self.from)? {
            Place::Earliest => list_events_request::Start::Earliest(Earliest {}),
            Place::Latest => return Err(Fault::usage("nothing follows `latest` in a list")),
            Place::At(time) => list_events_request::Start::AtTime(time),
            Place::After(cursor) => list_events_request::Start::AfterCursor(cursor),
        };
        let mut request = ListEventsRequest {
            start: Some(start),
            filter: Some(self.filter.into()),
            metadata_only: self.metadata_only,
            newest_first: self.newest_first,
            page_token: self.page_token,
            ..ListEventsRequest::default()
        };
        let mut left = self.limit;
        loop {
            request.page_size = i32::try_from(left.min(PAGE_MAX)).unwrap_or_default();
            let page = client.list_events(request.clone()).await?;
            for event in &page.events {
                show(event, self.show.output)?;
            }
            left = left.saturating_sub(u32::try_from(page.events.len()).unwrap_or(left));
            request.page_token = page.next_page_token;
            if left == 0 || request.page_token.is_empty() {
                go_on(&request.page_token);
                eprintln!("cursor: {}", page.cursor);
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Where to start, as it is typed.
enum Place {
    Earliest,
    Latest,
    At(Timestamp),
    After(String),
}

impl Place {
    fn read(text: &str) -> Result<Self, Fault> {
        Ok(match text {
            "earliest" => Self::Earliest,
            "latest" => Self::Latest,
            // No cursor has a colon.
            time if time.contains(':') => {
                Self::At(time.parse().map_err(|_| Fault::usage(format!("{time:?} is no time")))?)
            }
            cursor => Self::After(cursor.to_owned()),
        })
    }
}

fn show(event: &Event, format: output::Format) -> Result<(), Fault> {
    output::line(match format {
        output::Format::Json => output::json("Event", event)?,
        output::Format::Table => describe(event),
    })
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
        Some(Detail::CustomEvent(custom)) => Some(custom.data.clone()),
        _ => None,
    };
    let at = output::time_of_day(event.at.as_ref());
    let line = [at, event.name.clone(), of.clone(), step, moved, more.unwrap_or_default()];
    line.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
}
