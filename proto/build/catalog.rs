//! Reads the catalog out of a descriptor pool, or says what is wrong with it.

use std::collections::HashSet;

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumValueDescriptor, ExtensionDescriptor, FieldDescriptor,
    FileDescriptor, Kind, MessageDescriptor,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The detail of all events whose types are registered by users: no type of its own.
const CUSTOM: &str = "CustomEvent";

pub struct Catalog {
    pub events: Vec<Event>,
    pub reasons: Vec<Reason>,
}

pub struct Event {
    pub number: u32,
    pub message: String,
    pub member: String,
    pub doc: String,
    pub fields: Vec<Field>,
    pub schema: Value,
    pub option: EventOptions,
}

pub struct Field {
    pub name: String,
    pub kind: String,
    pub doc: String,
}

pub struct Reason {
    pub name: String,
    pub doc: String,
    pub option: RefusalOptions,
}

/// Mirrors of the option messages: the options are read through their ProtoJSON.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct EventOptions {
    pub name: String,
    pub category: String,
    pub entity: String,
    pub from_states: Vec<String>,
    pub to_state: String,
    pub emitters: Vec<String>,
    pub example: String,
    #[serde(skip)]
    pub example_bytes: Vec<u8>,
    pub derived_from: Vec<String>,
    pub stays: bool,
    pub since: String,
}

impl EventOptions {
    /// It records something of an entity's state.
    pub fn has_edge(&self) -> bool {
        self.stays || !self.to_state.is_empty()
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RefusalOptions {
    pub code: String,
    pub metadata: Vec<String>,
}

/// Collects faults, each with the file and line it is about.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, file: &FileDescriptor, path: &[i32], what: impl std::fmt::Display) {
        let line = location(file, path).map_or(0, |l| l.span[0] + 1);
        self.0.push(format!("proto/{}:{line}: {what}", file.name()));
    }
}

pub fn read(pool: &DescriptorPool) -> Result<Catalog, Vec<String>> {
    let mut faults = Faults::default();
    let event = pool.get_message_by_name("stepwell.v1.Event").expect("Event is in the contract");
    let members: Vec<_> = event
        .oneofs()
        .find(|o| o.name() == "detail")
        .expect("Event has a detail")
        .fields()
        .collect();
    let option =
        pool.get_extension_by_name("stepwell.v1.event").expect("options.proto is imported");
    let refusal =
        pool.get_extension_by_name("stepwell.v1.refusal").expect("options.proto is imported");

    let mut names = HashSet::new();
    let mut events = Vec::new();
    for member in &members {
        let Kind::Message(message) = member.kind() else { continue };
        if message.name() == CUSTOM {
            continue;
        }
        events.extend(read_event(member, &message, &option, &mut names, &mut faults));
    }

    check_derivations(&members, &events, &mut faults);

    // No message may carry the option without being in the envelope.
    for message in pool.all_messages().filter(|m| m.options().has_extension(&option)) {
        if !members.iter().any(|m| m.kind().as_message() == Some(&message)) {
            faults.add(
                &message.parent_file(),
                message.path(),
                format!("{} is not a member of Event.detail", message.name()),
            );
        }
    }

    let reasons =
        pool.get_enum_by_name("stepwell.v1.ErrorReason").expect("ErrorReason is in the contract");
    let reasons = reasons
        .values()
        .filter(|v| v.number() != 0)
        .filter_map(|v| read_reason(&v, &refusal, &mut faults))
        .collect();
    if faults.0.is_empty() { Ok(Catalog { events, reasons }) } else { Err(faults.0) }
}

fn read_event(
    member: &FieldDescriptor,
    message: &MessageDescriptor,
    extension: &ExtensionDescriptor,
    names: &mut HashSet<String>,
    faults: &mut Faults,
) -> Option<Event> {
    let file = message.parent_file();
    let before = faults.0.len();
    let mut fault =
        |what: String| faults.add(&file, message.path(), format!("{}: {what}", message.name()));

    let Some(mut option) = extension_of::<EventOptions>(&message.options(), extension) else {
        fault("an event needs `option (event) = {…}`".into());
        return None;
    };
    let doc = comment(&file, message.path());
    if doc.is_empty() {
        fault("needs a leading comment; it becomes the description".into());
    }
    if !names.insert(option.name.clone()) {
        fault(format!("the name {:?} is taken", option.name));
    }
    if option.name.replace('.', "_") != member.name() {
        fault(format!(
            "the name {:?} does not match its member `{}` in Event.detail",
            option.name,
            member.name()
        ));
    }
    if camel(member.name()) != message.name() {
        fault(format!(
            "its member in Event.detail is `{}`; that needs the message name {}",
            member.name(),
            camel(member.name())
        ));
    }
    if option.category
        != format!("EVENT_CATEGORY_{}", option.name.split('.').next().unwrap_or("").to_uppercase())
    {
        fault(format!(
            "the category {} is not the first segment of {:?}",
            option.category, option.name
        ));
    }
    if option.emitters.is_empty() {
        fault("needs at least one emitter".into());
    }
    let numbers: Vec<_> = option.since.split('.').map(str::parse::<u32>).collect();
    if numbers.len() != 3 || numbers.iter().any(Result::is_err) {
        fault("needs `since`, a release like 0.1.0".into());
    }
    if option.entity.is_empty() == option.has_edge()
        || (!option.has_edge() && !option.from_states.is_empty())
    {
        fault("an edge needs both `entity` and `to_state` (or `stays`); without an edge neither they nor `from_states` may be set".into());
    }
    if option.stays && (!option.to_state.is_empty() || option.from_states.is_empty()) {
        fault("what stays has `from_states` and no `to_state`".into());
    }
    match canonical(message, &option.example) {
        Ok((example, bytes)) => (option.example, option.example_bytes) = (example, bytes),
        Err(error) => fault(format!("the example does not parse as this message: {error}")),
    }
    let fields: Vec<_> = message
        .fields()
        .map(|f| Field {
            name: f.json_name().into(),
            kind: kind_name(&f),
            doc: comment(&file, f.path()),
        })
        .collect();
    for field in fields.iter().filter(|f| f.doc.is_empty()) {
        fault(format!("the field `{}` needs a comment", field.name));
    }
    (faults.0.len() == before).then(|| Event {
        number: member.number(),
        message: message.name().into(),
        member: member.name().into(),
        doc,
        fields,
        schema: document(&option.name, message),
        option,
    })
}

/// A derived event comes from recorded ones, and records no transition itself.
fn check_derivations(members: &[FieldDescriptor], events: &[Event], faults: &mut Faults) {
    for event in events.iter().filter(|e| !e.option.derived_from.is_empty()) {
        let Some(member) = members.iter().find(|m| m.name() == event.member) else { continue };
        let Kind::Message(message) = member.kind() else { continue };
        let mut fault = |what: String| {
            let what = format!("{}: {what}", message.name());
            faults.add(&message.parent_file(), message.path(), what);
        };
        if event.option.has_edge() {
            fault("a derived event has no row, so it cannot record a transition".into());
        }
        for source in &event.option.derived_from {
            match events.iter().find(|e| e.option.name == *source) {
                None => fault(format!("it is derived from {source:?}, which is not an event")),
                Some(e) if !e.option.derived_from.is_empty() => {
                    fault(format!("it is derived from {source:?}, which is itself derived"));
                }
                Some(_) => {}
            }
        }
    }
}

fn read_reason(
    value: &EnumValueDescriptor,
    extension: &ExtensionDescriptor,
    faults: &mut Faults,
) -> Option<Reason> {
    let file = value.parent_enum().parent_file();
    let option =
        extension_of::<RefusalOptions>(&value.options(), extension).filter(|o| !o.code.is_empty());
    let doc = comment(&file, value.path());
    if option.is_none() || doc.is_empty() {
        faults.add(
            &file,
            value.path(),
            format!("{}: needs a comment and `[(refusal) = {{code: …}}]`", value.name()),
        );
    }
    Some(Reason { name: value.name().strip_prefix("ERROR_REASON_")?.into(), doc, option: option? })
}

/// The option as its mirror struct, or nothing when it is absent.
fn extension_of<T: DeserializeOwned>(
    options: &DynamicMessage,
    extension: &ExtensionDescriptor,
) -> Option<T> {
    if !options.has_extension(extension) {
        return None;
    }
    let value = options.get_extension(extension);
    let json = serde_json::to_value(value.as_message()?).expect("an option is plain data");
    Some(serde_json::from_value(json).expect("the mirror struct has the option's fields"))
}

fn location<'a>(file: &'a FileDescriptor, path: &[i32]) -> Option<&'a Location> {
    file.file_descriptor_proto().source_code_info.as_ref()?.location.iter().find(|l| l.path == path)
}
type Location = prost_reflect::prost_types::source_code_info::Location;

/// The leading comment without its indentation.
pub(crate) fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let text = location(file, path).and_then(|l| l.leading_comments.as_deref()).unwrap_or_default();
    text.lines()
        .map(|l| l.strip_prefix(' ').unwrap_or(l).trim_end())
        .collect::<Vec<_>>()
        .join("\n")
        .trim()
        .into()
}

/// The example as a subscriber would see it, defaults left out, numbers and times in their one form; and as it
/// travels.
fn canonical(
    message: &MessageDescriptor,
    example: &str,
) -> Result<(String, Vec<u8>), Box<dyn std::error::Error>> {
    let mut json = serde_json::Deserializer::from_str(example);
    let parsed = DynamicMessage::deserialize(message.clone(), &mut json)?;
    json.end()?;
    let bytes = prost_reflect::prost::Message::encode_to_vec(&parsed);
    let seen = DynamicMessage::decode(message.clone(), bytes.as_slice())?;
    Ok((serde_json::to_string(&seen)?, bytes))
}

/// `step_completed` → `StepCompleted`.
fn camel(name: &str) -> String {
    name.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect()
}

fn kind_name(field: &FieldDescriptor) -> String {
    let of = |kind: &Kind| match kind {
        Kind::Message(m) => m.name().to_string(),
        Kind::Enum(e) => e.name().to_string(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            format!(
                "map<{}, {}>",
                of(&entry.map_entry_key_field().kind()),
                of(&entry.map_entry_value_field().kind())
            )
        }
        kind if field.is_list() => format!("repeated {}", of(&kind)),
        kind => of(&kind),
    }
}

/// The schema of a detail, as a document that stands alone.
fn document(name: &str, message: &MessageDescriptor) -> Value {
    let mut schema = schema(message);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = name.into();
    schema["description"] = comment(&message.parent_file(), message.path()).into();
    schema
}

/// JSON Schema of the message as ProtoJSON. Defaults are left out on the wire, so nothing is required.
fn schema(message: &MessageDescriptor) -> Value {
    let file = message.parent_file();
    let properties: serde_json::Map<_, _> = message
        .fields()
        .map(|field| {
            let mut schema = field_schema(&field, &schema);
            schema["description"] = comment(&file, field.path()).into();
            (field.json_name().to_string(), schema)
        })
        .collect();
    json!({"type": "object", "properties": properties})
}

/// JSON Schema of a field; that of messages of ours as it is asked for.
pub(crate) fn field_schema(
    field: &FieldDescriptor,
    ours: &dyn Fn(&MessageDescriptor) -> Value,
) -> Value {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let values = kind_schema(&entry.map_entry_value_field().kind(), ours);
            json!({"type": "object", "additionalProperties": values})
        }
        kind if field.is_list() => json!({"type": "array", "items": kind_schema(&kind, ours)}),
        kind => kind_schema(&kind, ours),
    }
}

fn kind_schema(kind: &Kind, ours: &dyn Fn(&MessageDescriptor) -> Value) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        Kind::Double | Kind::Float => json!({"type": ["number", "string"]}),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            json!({"type": "string", "pattern": "^-?[0-9]+$"})
        }
        Kind::Uint64 | Kind::Fixed64 => json!({"type": "string", "pattern": "^[0-9]+$"}),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer"}),
        Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "minimum": 0}),
        Kind::Enum(e) => {
            json!({"enum": e.values().map(|v| v.name().to_string()).collect::<Vec<_>>()})
        }
        Kind::Message(m) => match m.full_name() {
            "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
            "google.protobuf.Duration" => {
                json!({"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{1,9})?s$"})
            }
            _ => ours(m),
        },
    }
}
