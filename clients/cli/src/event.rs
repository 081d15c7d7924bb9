//! `stepwell event`

use std::{pin::pin, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use stepwell_proto::v1::{
    Earliest, Entity, Event, EventCategory, EventFilter, EventType, GetEventTypeRequest, Latest,
    ListEventTypesRequest, ListEventsRequest, State, SubscribeRequest, event::Detail,
    list_events_request, subscribe_request::Start,
};

use crate::{
    bulk::go_on,
    connect::{Namespace, Show},
    custom,
    example::told_to_stop,
    fault::Fault,
    output::{self, Column, Listed, Thing, column, wide},
};

/// Most events of one page.
const PAGE_MAX: u32 = 1_000;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Follow events until interrupted. The last line of standard error is the cursor to go on from.
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
    #[command(flatten)]
    namespace: Namespace,
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
    #[command(flatten)]
    show: Show,
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
        let mut types = self.show.output.listing();
        loop {
            let page = client.list_event_types(request.clone()).await?;
            types.add(page.event_types)?;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        types.end()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Type {
    async fn run(self) -> Result<ExitCode, Fault> {
        let request = GetEventTypeRequest {
            name: self.name,
            namespace: self.namespace.get()?,
            version: self.version,
        };
        let answer = self.show.connect.client()?.get_event_type(request).await?;
        let of_type = answer.event_type.unwrap_or_default();
        self.show.output.one(&of_type, || explained(&of_type))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A type of events as people read it.
fn explained(of_type: &EventType) -> String {
    let mut table = output::table(&["RECORDS", "BY", "SINCE", "NUMBER", "MESSAGE"]);
    table.add_row([
        records(of_type),
        of_type.emitters.join(", "),
        since(of_type),
        of_type.number.to_string(),
        of_type.message.clone(),
    ]);
    let (name, description) =
        (output::plain(&of_type.name), output::plain_lines(&of_type.description));
    let mut text = format!("{name}\n\n{description}\n\n{}", output::text(&table));
    let texts = [("schema", &of_type.schema), ("example", &of_type.example)];
    for (what, json) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        let shown = serde_json::from_str::<serde_json::Value>(json)
            .and_then(|json| serde_json::to_string_pretty(&json));
        let shown = shown.map_or_else(|_| output::plain_lines(json), output::escaped);
        text += &format!("\n\n{what}:\n{shown}");
    }
    text
}

impl Thing for EventType {
    const MESSAGE: &'static str = "EventType";

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Listed for EventType {
    const COLUMNS: &'static [Column<Self>] = &[
        column("NAME", |of_type| of_type.name.clone()),
        column("SINCE", since),
        column("RECORDS", records),
        column("MEANING", |of_type| {
            of_type.description.split(". ").next().unwrap_or_default().to_owned()
        }),
        wide("BY", |of_type| of_type.emitters.join(", ")),
        wide("NUMBER", |of_type| of_type.number.to_string()),
        wide("MESSAGE", |of_type| of_type.message.clone()),
    ];
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
        let client = self.show.connect.client()?;
        let mut stopped = pin!(told_to_stop());
        let mut feed = tokio::select! {
            feed = client.subscribe(wanted) => feed?,
            () = &mut stopped => return Ok(ExitCode::SUCCESS),
        };
        let mut left = self.limit.unwrap_or(usize::MAX);
        let mut cursor = feed.cursor().to_owned();
        while left > 0 {
            let delivery = tokio::select! {
                delivery = feed.next() => delivery,
                () = &mut stopped => break,
            };
            let Some(delivery) = delivery else { break };
            let delivery = delivery?;
            let is_cut = delivery.events.len() > left;
            for event in delivery.events.iter().take(left) {
                left -= 1;
                self.show.output.next(event, || describe(event))?;
            }
            // Behind one that was cut there are events that were not shown: it comes again as a whole.
            if !is_cut {
                feed.cursor().clone_into(&mut cursor);
            }
        }
        output::note(format!("cursor: {cursor}"));
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
        let mut events = self.show.output.listing();
        loop {
            request.page_size = i32::try_from(left.min(PAGE_MAX)).unwrap_or_default();
            let page = client.list_events(request.clone()).await?;
            left = left.saturating_sub(u32::try_from(page.events.len()).unwrap_or(left));
            events.add(page.events)?;
            request.page_token = page.next_page_token;
            if left == 0 || request.page_token.is_empty() {
                events.end()?;
                go_on(&request.page_token);
                output::note(format!("cursor: {}", page.cursor));
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

impl Thing for Event {
    const MESSAGE: &'static str = "Event";

    /// Its position.
    fn name(&self) -> String {
        self.position.to_string()
    }
}

impl Listed for Event {
    const COLUMNS: &'static [Column<Self>] = &[
        column("TIME", |event| output::time_of_day(event.at.as_ref())),
        column("EVENT", |event| event.name.clone()),
        column("OF", |event| about(event).to_owned()),
        column("STEP", step),
        column("MOVED", moved),
        column("", more),
        wide("POSITION", |event| event.position.to_string()),
        wide("DEFINITION", |event| {
            format!("{}/{} {}", event.namespace, event.definition_name, event.definition_version)
        }),
        wide("CORRELATION", |event| event.correlation_id.clone()),
    ];
}

/// The step or task that it is about.
fn about(event: &Event) -> &str {
    if event.step_id.is_empty() { &event.task_id } else { &event.step_id }
}

fn step(event: &Event) -> String {
    match (event.step_name.as_str(), event.attempt) {
        ("", _) => String::new(),
        (name, 0) => name.to_owned(),
        (name, attempt) => format!("{name} #{attempt}"),
    }
}

fn moved(event: &Event) -> String {
    match (event.from_state(), event.to_state()) {
        (_, State::Unspecified) => String::new(),
        (from, to) => format!("{} → {}", from.word(), to.word()),
    }
}

/// What is worth knowing of its detail.
pub(crate) fn more(event: &Event) -> String {
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
    more.unwrap_or_default()
}

/// An event on one line.
pub(crate) fn describe(event: &Event) -> String {
    let at = output::time_of_day(event.at.as_ref());
    let about = about(event).to_owned();
    let parts = [at, event.name.clone(), about, step(event), moved(event), more(event)];
    let parts = parts.iter().filter(|part| !part.is_empty()).map(|part| output::plain(part));
    parts.collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_explained_of_a_type_moves_no_terminal() {
        let moving = "\u{1b}[2J\u{9b}2J".to_owned();
        let of_type = EventType {
            name: moving.clone(),
            description: format!("one {moving}\ntwo"),
            emitters: vec![moving.clone()],
            since: moving.clone(),
            message: moving.clone(),
            schema: format!("{{\"title\": \"{}\"}}", "\u{9b}2J"),
            example: format!("{{{moving}"),
            ..EventType::default()
        };
        let text = explained(&of_type);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.contains("one  [2J 2J\ntwo") && text.contains("\\u009b2J"), "{text:?}");
    }
}
