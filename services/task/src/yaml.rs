//! A definition as people write it → the message, with the place of every field. Decides what
//! only the text knows: unknown keys, wrong types, durations, defaults. Everything else is left to
//! `definition.rs`, which is given the places to point at.

use stepwell_proto::v1::{Concurrency, Definition, EventTypeSpec, RetryPolicy, StepTemplate};
use stepwell_yaml::{Fields, Node, Places, Reader, START, TextFault};

use crate::{
    definition::{PARALLEL_MAX, ROOM_MAX, check_retry},
    rule::{DURATION_MAX, LONG_MAX, PRIORITY_MAX},
};

/// Most bytes of a definition's text: 1 MiB.
pub const BYTES_MAX: usize = 1 << 20;

const DEFINITION: [&str; 12] = [
    "namespace",
    "name",
    "version",
    "description",
    "context_schema",
    "max_parallel_steps",
    "priority",
    "deadline",
    "concurrency",
    "defaults",
    "steps",
    // Event-service reads them.
    "subscriptions",
];
const CONCURRENCY: [&str; 2] = ["key", "limit"];
const DEFAULTS: [&str; 2] = ["retry", "timeout"];
const STEP: [&str; 13] = [
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
}

/// Reads a definition.
pub fn load(text: &str) -> Loaded {
    let mut reader = Reader::default();
    if text.len() > BYTES_MAX {
        let what = format!("has {} bytes; at most {BYTES_MAX} are allowed", text.len());
        reader.fault("", START, what);
        return done(reader, Definition::default());
    }
    match stepwell_yaml::parse(text) {
        Ok(root) => {
            let definition = definition(&mut reader, &root);
            done(reader, definition)
        }
        Err((at, what)) => {
            reader.fault("", at, what);
            done(reader, Definition::default())
        }
    }
}

fn done(reader: Reader, definition: Definition) -> Loaded {
    let (faults, places) = reader.done();
    Loaded { definition, faults, places }
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
    }
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
