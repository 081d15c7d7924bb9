//! A definition as people write it → the message, with the place of every field. Decides what
//! only the text knows: unknown keys, wrong types, durations, defaults; before that, in `written.rs`, variables and
//! environments. Everything else is left to `definition.rs`, which is given the places to point at.

use stepwell_proto::v1::{
    Concurrency, Definition, EventTypeSpec, Identity, IdentityStrategy, RetryPolicy, StepTemplate,
};
use stepwell_yaml::{Fields, Node, Places, Reader, START, TextFault, Value};

use crate::{
    definition::{PARALLEL_MAX, ROOM_MAX, check_retry},
    rule::{DURATION_MAX, LONG_MAX, PRIORITY_MAX, suggestion},
    written::{Choices, Declared, Settled, settle, text_of},
};

/// Most bytes of a definition's text: 1 MiB.
pub const BYTES_MAX: usize = 1 << 20;

const DEFINITION: [&str; 15] = [
    "namespace",
    "name",
    "version",
    "description",
    "context_schema",
    "max_parallel_steps",
    "priority",
    "deadline",
    "concurrency",
    "identity",
    "defaults",
    "steps",
    // Event-service reads them.
    "subscriptions",
    // Taken out before; known all the same.
    "variables",
    "environments",
];
const IDENTITY: [&str; 2] = ["strategy", "window"];
const STRATEGIES: [(&str, IdentityStrategy); 3] = [
    ("random", IdentityStrategy::Random),
    ("hash", IdentityStrategy::Hash),
    ("key", IdentityStrategy::Key),
];
const CONCURRENCY: [&str; 2] = ["key", "limit"];
const DEFAULTS: [&str; 2] = ["retry", "timeout"];
/// The keys of a step; its name is the first.
pub(crate) const STEP: [&str; 13] = [
    "name",
    "handler",
    "description",
    "depends_on",
    "retry",
    "timeout",
    "queue_timeout",
    "total_timeout",
    "heartbeat_timeout",
    "config",
    "skippable",
    "requires",
    "publishes",
];
const EVENT_TYPE: [&str; 5] = ["name", "version", "schema", "description", "example"];
const RETRY: [&str; 6] =
    ["max_attempts", "initial_backoff", "multiplier", "max_backoff", "jitter", "except"];

/// What was read.
#[derive(Debug)]
pub struct Loaded {
    /// The definition, as far as it could be read.
    pub definition: Definition,
    /// What could not.
    pub faults: Vec<TextFault>,
    /// Where the fields stand.
    pub places: Places,
    /// What could be chosen; none: the text could not be read at all.
    pub declared: Option<Declared>,
    /// The subscriptions that it declares, with what else event-service needs to know: text of the same lines. None:
    /// it declares none.
    pub subscriptions: Option<String>,
}

/// Reads a definition, with what was chosen; without choices the text may leave nothing open.
pub fn load(text: &str, choices: Option<&Choices>) -> Loaded {
    let mut reader = Reader::default();
    let mut loaded = Loaded {
        definition: Definition::default(),
        faults: Vec::new(),
        places: Places::default(),
        declared: None,
        subscriptions: None,
    };
    if text.len() > BYTES_MAX {
        let what = format!("has {} bytes; at most {BYTES_MAX} are allowed", text.len());
        reader.fault("", START, what);
    } else {
        match stepwell_yaml::parse(text) {
            Ok(root) => {
                let Settled { root, declared, is_changed } = settle(&mut reader, root, choices);
                loaded.definition = definition(&mut reader, &root);
                loaded.subscriptions = subscriptions(text, &root, is_changed);
                loaded.declared = Some(declared);
            }
            Err((at, what)) => reader.fault("", at, what),
        }
    }
    (loaded.faults, loaded.places) = reader.done();
    loaded
}

/// What event-service reads of a definition: the text itself, as long as it says what is meant.
fn subscriptions(text: &str, root: &Node, is_changed: bool) -> Option<String> {
    let Value::Map(entries) = &root.value else { return None };
    let read = |name: &str| matches!(name, "namespace" | "name" | "subscriptions");
    entries.iter().find(|(key, _)| key.text == "subscriptions")?;
    if !is_changed {
        return Some(text.to_owned());
    }
    let read: Vec<_> = entries.iter().filter(|(key, _)| read(&key.text)).collect();
    Some(text_of(&read))
}

fn definition(reader: &mut Reader, root: &Node) -> Definition {
    let fields = reader.fields("", root, &DEFINITION);
    let defaults = defaults(reader, &fields);
    let steps = reader.items(&fields, "steps");
    let steps =
        steps.into_iter().map(|(path, node)| step(reader, &path, node, &defaults)).collect();
    Definition {
        namespace: reader.text(&fields, "namespace"),
        name: reader.text(&fields, "name"),
        version: reader.text(&fields, "version"),
        description: reader.text(&fields, "description"),
        context_schema: reader.json_object(&fields, "context_schema"),
        steps,
        content_hash: String::new(),
        create_time: None,
        max_parallel_steps: reader
            .whole(&fields, "max_parallel_steps", 0..=PARALLEL_MAX)
            .unwrap_or_default(),
        deadline: reader.duration(&fields, "deadline", LONG_MAX),
        concurrency: concurrency(reader, &fields),
        priority: reader.whole(&fields, "priority", 1..=PRIORITY_MAX).unwrap_or_default(),
        identity: identity(reader, &fields),
    }
}

fn identity(reader: &mut Reader, fields: &Fields<'_>) -> Option<Identity> {
    let (path, node) = fields.get("identity")?;
    let fields = reader.fields(&path, node, &IDENTITY);
    let name = reader.text(&fields, "strategy");
    let strategy = STRATEGIES.iter().find(|(known, _)| *known == name).map(|(_, is)| *is);
    if let Some((path, node)) = fields.get("strategy")
        && strategy.is_none()
        && !name.is_empty()
    {
        let meant = suggestion(&name, STRATEGIES.iter().map(|(known, _)| *known));
        reader.fault(&path, node.at, format!("must be `random`, `hash` or `key`{meant}"));
    }
    Some(Identity {
        strategy: strategy.unwrap_or_default().into(),
        window: reader.duration(&fields, "window", LONG_MAX),
    })
}

fn concurrency(reader: &mut Reader, fields: &Fields<'_>) -> Option<Concurrency> {
    let (path, node) = fields.get("concurrency")?;
    let fields = reader.fields(&path, node, &CONCURRENCY);
    Some(Concurrency {
        key: reader.text(&fields, "key"),
        limit: reader.whole(&fields, "limit", 1..=ROOM_MAX).unwrap_or_default(),
    })
}

/// What steps take that do not say otherwise.
#[derive(Default)]
struct Defaults {
    retry: Option<RetryPolicy>,
    timeout: Option<prost_types::Duration>,
}

fn defaults(reader: &mut Reader, fields: &Fields<'_>) -> Defaults {
    let Some((path, node)) = fields.get("defaults") else { return Defaults::default() };
    let fields = reader.fields(&path, node, &DEFAULTS);
    let retry = retry(reader, &fields).filter(|policy| {
        // Told once, here, and not again for every step that would take it.
        let mut faults = Vec::new();
        check_retry("defaults.retry", policy, &mut faults);
        reader.add(&faults);
        faults.is_empty()
    });
    Defaults { retry, timeout: reader.duration(&fields, "timeout", DURATION_MAX) }
}

fn step(reader: &mut Reader, path: &str, node: &Node, defaults: &Defaults) -> StepTemplate {
    let fields = reader.fields(path, node, &STEP);
    let own = retry(reader, &fields);
    StepTemplate {
        name: reader.text(&fields, "name"),
        handler: reader.text(&fields, "handler"),
        description: reader.text(&fields, "description"),
        depends_on: reader.texts(&fields, "depends_on"),
        retry: merged(own, defaults.retry.as_ref()),
        timeout: reader.duration(&fields, "timeout", DURATION_MAX).or(defaults.timeout),
        queue_timeout: reader.duration(&fields, "queue_timeout", LONG_MAX),
        total_timeout: reader.duration(&fields, "total_timeout", LONG_MAX),
        heartbeat_timeout: reader.duration(&fields, "heartbeat_timeout", DURATION_MAX),
        config: reader.json_object(&fields, "config"),
        skippable: reader.truth(&fields, "skippable"),
        requires: reader.text_map(&fields, "requires"),
        publishes: publishes(reader, &fields),
    }
}

fn publishes(reader: &mut Reader, fields: &Fields<'_>) -> Vec<EventTypeSpec> {
    let items = reader.items(fields, "publishes");
    let spec = |(path, node): (String, &Node)| {
        let fields = reader.fields(&path, node, &EVENT_TYPE);
        EventTypeSpec {
            name: reader.text(&fields, "name"),
            version: reader.whole(&fields, "version", 1..=i32::MAX).unwrap_or_default(),
            schema: reader.json_object(&fields, "schema"),
            description: reader.text(&fields, "description"),
            example: reader.json_object(&fields, "example"),
        }
    };
    items.into_iter().map(spec).collect()
}

fn retry(reader: &mut Reader, fields: &Fields<'_>) -> Option<RetryPolicy> {
    let (path, node) = fields.get("retry")?;
    let fields = reader.fields(&path, node, &RETRY);
    Some(RetryPolicy {
        max_attempts: reader.whole(&fields, "max_attempts", 1..=1000).unwrap_or_default(),
        initial_backoff: reader.duration(&fields, "initial_backoff", DURATION_MAX),
        multiplier: reader.number(&fields, "multiplier", 1.0..=100.0).unwrap_or_default(),
        max_backoff: reader.duration(&fields, "max_backoff", DURATION_MAX),
        jitter: reader.number(&fields, "jitter", 0.0..=1.0),
        except: reader.texts(&fields, "except"),
    })
}

/// The step's own policy, filled up from the defaults key by key.
fn merged(own: Option<RetryPolicy>, defaults: Option<&RetryPolicy>) -> Option<RetryPolicy> {
    let (Some(own), Some(base)) = (&own, defaults) else {
        return own.or_else(|| defaults.cloned());
    };
    Some(RetryPolicy {
        max_attempts: if own.max_attempts == 0 { base.max_attempts } else { own.max_attempts },
        initial_backoff: own.initial_backoff.or(base.initial_backoff),
        multiplier: if own.multiplier == 0.0 { base.multiplier } else { own.multiplier },
        max_backoff: own.max_backoff.or(base.max_backoff),
        jitter: own.jitter.or(base.jitter),
        except: if own.except.is_empty() { base.except.clone() } else { own.except.clone() },
    })
}

#[cfg(test)]
mod tests;
