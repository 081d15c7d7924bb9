//! Writes the catalog in each form that wants it.

use std::fmt::Write;

use crate::{
    catalog::{Catalog, Event, Reason},
    elsewhere::ELSEWHERE,
};

/// `EVENT_CATEGORY_TASK` → `Task`, as prost names enum values.
fn variant(value: &str, prefix: &str) -> String {
    let rest = value.strip_prefix(prefix).unwrap_or(value);
    rest.split('_').map(|w| w[..1].to_string() + &w[1..].to_lowercase()).collect()
}

/// `STATE_IN_PROGRESS` → `in_progress`.
fn state(value: &str) -> String {
    value.trim_start_matches("STATE_").to_lowercase()
}

pub fn rust(catalog: &Catalog) -> String {
    let mut text = String::from(
        "// Generated from proto/stepwell/v1. Do not edit.\n\n\
         /// Every event type, in the order of the envelope.\n\
         pub static EVENTS: &[EventType] = &[\n",
    );
    catalog.events.iter().for_each(|event| text += &event_type(event));
    text += "];\n\n";
    catalog.events.iter().for_each(|event| text += &event_impls(event));
    text += &detail_impl(&catalog.events);
    text += &lookup(&catalog.events);
    text += &examples(&catalog.events);
    text += &each(&catalog.events);
    text += &reasons(&catalog.reasons);
    text
}

fn event_type(event: &Event) -> String {
    let option = &event.option;
    let edge = match option.has_edge() {
        false => "None".to_string(),
        true => format!(
            "Some(Edge {{ entity: Entity::{}, from: &[{}], to: {} }})",
            variant(&option.entity, "ENTITY_"),
            option
                .from_states
                .iter()
                .map(|s| format!("State::{}", variant(s, "STATE_")))
                .collect::<Vec<_>>()
                .join(", "),
            match option.to_state.as_str() {
                "" => "None".to_string(),
                to => format!("Some(State::{})", variant(to, "STATE_")),
            },
        ),
    };
    let fields: String = event
        .fields
        .iter()
        .map(|f| {
            let (name, kind, doc) = (&f.name, &f.kind, &f.doc);
            format!("        Field {{ name: {name:?}, kind: {kind:?}, doc: {doc:?} }},\n")
        })
        .collect();
    format!(
        "    EventType {{\n        number: {},\n        name: {:?},\n        message: {:?},\n        \
         category: EventCategory::{},\n        edge: {edge},\n        derived_from: &{:?},\n        \
         since: {:?},\n        emitters: &{:?},\n        doc: {:?},\n        fields: &[\n{fields}        ],\n        \
         example: {:?},\n        schema: {:?},\n    }},\n",
        event.number,
        option.name,
        event.message,
        variant(&option.category, "EVENT_CATEGORY_"),
        option.derived_from,
        option.since,
        option.emitters,
        event.doc,
        option.example,
        event.schema.to_string(),
    )
}

fn event_impls(event: &Event) -> String {
    let (message, name, number) = (&event.message, &event.option.name, event.number);
    format!(
        "impl EventMessage for {message} {{\n    const NAME: &'static str = {name:?};\n    \
         const NUMBER: u32 = {number};\n    fn of(detail: &Detail) -> Option<&Self> {{\n        \
         if let Detail::{message}(it) = detail {{ Some(it) }} else {{ None }}\n    }}\n}}\n\
         impl From<{message}> for Detail {{\n    \
         fn from(it: {message}) -> Self {{ Detail::{message}(it) }}\n}}\n\n"
    )
}

fn detail_impl(events: &[Event]) -> String {
    let mut text = String::from(
        "impl Detail {\n    /// The name of the event it is the detail of; empty: the event alone knows.\n    \
         pub fn name(&self) -> &'static str {\n        match self {\n            \
         Detail::CustomEvent(_) => \"\",\n",
    );
    for Event { message, .. } in events {
        writeln!(text, "            Detail::{message}(_) => {message}::NAME,")
            .expect("a string takes all");
    }
    text + "        }\n    }\n}\n\n"
}

fn lookup(events: &[Event]) -> String {
    let mut text = String::from(
        "/// Looks a type up by name.\n\
         pub fn event_type(name: &str) -> Option<&'static EventType> {\n    match name {\n",
    );
    for (index, event) in events.iter().enumerate() {
        writeln!(text, "        {:?} => Some(&EVENTS[{index}]),", event.option.name)
            .expect("a string takes all");
    }
    text + "        _ => None,\n    }\n}\n\n"
}

fn examples(events: &[Event]) -> String {
    let mut text = String::from(
        "/// A detail of the event of this name: the example of the catalog.\n\
         pub fn example(name: &str) -> Option<Detail> {\n    match name {\n",
    );
    for Event { message, option, .. } in events {
        let (name, bytes) = (&option.name, &option.example_bytes);
        writeln!(
            text,
            "        {name:?} => <{message} as prost::Message>::decode(&{bytes:?}[..]).ok().map(Detail::{message}),"
        )
        .expect("a string takes all");
    }
    text + "        _ => None,\n    }\n}\n\n"
}

/// The catalog as a macro: others make code of it, as they need it.
fn each(events: &[Event]) -> String {
    let mut text = String::from(
        "/// Hands every event type to a macro, in the order of the envelope, each as\n\
         /// `handle_step_completed StepCompleted \"step.completed\" \"What it means.\"`.\n\
         #[macro_export]\nmacro_rules! for_each_event {\n    ($with:ident) => {\n        $with! {\n",
    );
    for Event { message, member, option, doc, .. } in events {
        writeln!(text, "            handle_{member} {message} {:?} {doc:?}", option.name)
            .expect("a string takes all");
    }
    text + "        }\n    };\n}\n\n"
}

fn reasons(reasons: &[Reason]) -> String {
    let mut text = String::from(
        "impl ErrorReason {\n    /// The status code it is sent with.\n    \
         pub fn code(self) -> tonic::Code {\n        match self {\n            \
         ErrorReason::Unspecified => tonic::Code::Internal,\n",
    );
    for reason in reasons {
        let code = variant(&reason.option.code, "STATUS_CODE_");
        let name = variant(&reason.name, "");
        writeln!(text, "            ErrorReason::{name} => tonic::Code::{code},")
            .expect("a string takes all");
    }
    text += "        }\n    }\n\n    /// The metadata it always carries.\n    \
             pub fn metadata(self) -> &'static [&'static str] {\n        match self {\n            \
             ErrorReason::Unspecified => &[],\n";
    for reason in reasons {
        let (name, metadata) = (variant(&reason.name, ""), &reason.option.metadata);
        writeln!(text, "            ErrorReason::{name} => &{metadata:?},")
            .expect("a string takes all");
    }
    text + "        }\n    }\n}\n"
}

pub fn markdown(catalog: &Catalog) -> String {
    let mut text = String::from(
        "# Events\n\nGenerated from `proto/stepwell/v1/event.proto`. Do not edit.\n\n\
         Recorded events are rows of the log; derived ones are made from a recorded one when a \
         subscriber asks for them.\n\n| # | Event | Transition | Derived from | Emitted by |\n\
         |---|---|---|---|---|\n",
    );
    for event in &catalog.events {
        let anchor = event.option.name.replace('.', "");
        let (number, name) = (event.number, &event.option.name);
        let derived = event.option.derived_from.join(", ");
        let emitters = event.option.emitters.join(", ");
        let edge = edge(event);
        writeln!(text, "| {number} | [`{name}`](#{anchor}) | {edge} | {derived} | {emitters} |")
            .expect("a string takes all");
    }
    for event in &catalog.events {
        write!(text, "\n## {}\n\n{}\n\n", event.option.name, event.doc)
            .expect("a string takes all");
        let Event { message, member, option, .. } = event;
        writeln!(
            text,
            "Message `{message}`, handler method `handle_{member}`, since {}.\n",
            option.since
        )
        .expect("a string takes all");
        if !event.fields.is_empty() {
            text += "| Field | Type | |\n|---|---|---|\n";
            for field in &event.fields {
                let doc = field.doc.replace('\n', " ");
                writeln!(text, "| `{}` | {} | {doc} |", field.name, field.kind)
                    .expect("a string takes all");
            }
            text.push('\n');
        }
        writeln!(text, "```json\n{}\n```", event.option.example).expect("a string takes all");
    }
    text += "\n# No events here\n\nNames that other engines publish as events, and what stands for them here.\n\n\
             | Name | Here |\n|---|---|\n";
    for elsewhere in ELSEWHERE {
        writeln!(text, "| `{}` | {} |", elsewhere.name, elsewhere.here)
            .expect("a string takes all");
    }
    text += "\n# Errors\n\nGenerated from `proto/stepwell/v1/error.proto`. Do not edit.\n\n\
             | Reason | Code | Metadata | |\n|---|---|---|---|\n";
    for reason in &catalog.reasons {
        let code = reason.option.code.trim_start_matches("STATUS_CODE_");
        let (metadata, doc) = (reason.option.metadata.join(", "), reason.doc.replace('\n', " "));
        writeln!(text, "| `{}` | {code} | {metadata} | {doc} |", reason.name)
            .expect("a string takes all");
    }
    text
}

fn edge(event: &Event) -> String {
    match event.option.to_state.as_str() {
        "" if event.option.stays => {
            let in_states: Vec<_> = event.option.from_states.iter().map(|s| state(s)).collect();
            format!("stays {}", in_states.join(", "))
        }
        "" => "–".into(),
        to if event.option.from_states.is_empty() => format!("created as {}", state(to)),
        to => {
            let from: Vec<_> = event.option.from_states.iter().map(|s| state(s)).collect();
            format!("{} → {}", from.join(", "), state(to))
        }
    }
}

/// One `values` row per legal (number, entity, from, to) of the recorded events, as numbers;
/// null where there is none.
pub fn sql(catalog: &Catalog) -> String {
    let code = |s: &str| match s {
        "STATE_PENDING" => "1",
        "STATE_IN_PROGRESS" => "2",
        "STATE_COMPLETE" => "3",
        "STATE_ERROR" => "4",
        "STATE_CANCELLED" => "5",
        "STATE_RESOLVED_MANUALLY" => "6",
        _ => "null",
    };
    let recorded = catalog.events.iter().filter(|e| e.option.derived_from.is_empty());
    let rows = recorded.flat_map(|event| {
        let from: Vec<_> = if event.option.from_states.is_empty() {
            vec!["null"]
        } else {
            event.option.from_states.iter().map(|s| code(s)).collect()
        };
        let entity = if event.option.entity == "ENTITY_STEP" { "step" } else { "task" };
        let (number, to) = (event.number, code(&event.option.to_state));
        let stays = event.option.stays;
        from.into_iter().map(move |from| {
            let to = if stays { from } else { to };
            format!("  ({number}, '{entity}', {from}, {to})")
        })
    });
    format!("values\n{}\n", rows.collect::<Vec<_>>().join(",\n"))
}
