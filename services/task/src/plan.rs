//! A request becomes a task to store, or is refused with all its faults. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use stepwell_proto::{
    id::check_correlation_id,
    json,
    refusal::{Refusal, describe},
    v1::{
        self, Concurrency, CreateTaskRequest, Definition, ErrorReason, IdentityStrategy,
        UpdateTaskRequest,
    },
};
use stepwell_store::{Identity, NewTask, Note, StoredDefinition, Wanted};
use stepwell_trace::TraceContext;
use uuid::Uuid;

use crate::{
    annotate,
    canonical::{self, Hash},
    definition::{STEPS_MAX, SUGGESTIONS_MAX},
    rule::{self, Fault, NAMESPACE_DEFAULT, schema},
    trace::Call,
    validators::Validators,
};

const TEXT_BYTES_MAX: usize = 256;
const TAG_BYTES_MAX: usize = 128;
const TAGS_MAX: usize = 32;
const KEY_BYTES_MAX: usize = 256;
const WINDOW_MIN: Duration = Duration::from_millis(1);
const UNKNOWN: &str = "unknown";

/// A request that is right in itself; whether it fits its definition is still to be seen.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) uid: Uuid,
    pub(crate) wanted: Wanted,
    version_text: String,
    pub(crate) context: String,
    value: Value,
    /// The context as it was sent, in canonical form.
    canonical: String,
    initiator: String,
    source_system: String,
    reason: String,
    tags: Vec<String>,
    bypass_steps: Vec<String>,
    priority: Option<i16>,
    /// What the task belongs to, if its request says so.
    correlation_id: String,
    annotations: BTreeMap<String, String>,
    /// Where in a trace the task goes on.
    trace: Option<TraceContext>,
    hash: [u8; 32],
    /// The caller's own key; empty: none.
    idempotency_key: String,
    idempotency_window: Option<Duration>,
    /// How far back to look for a request that says the same; zero: not at all. None: as the definition says.
    dedup_window: Option<Duration>,
    context_bytes_max: usize,
}

impl Draft {
    /// Checks a request; all its faults at once, their paths beginning with `prefix`.
    pub(crate) fn read(
        request: CreateTaskRequest,
        context_bytes_max: usize,
        prefix: &str,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults { prefix, found: Vec::new() };
        let uid = faults.uid(&request.task_id);
        let (idempotency_window, dedup_window) = faults.identity(&request);
        let namespace = or(request.namespace, NAMESPACE_DEFAULT);
        faults.name("namespace", &namespace);
        faults.name("definition_name", &request.definition_name);
        let version = faults.version(&request.definition_version);
        let context = or(request.context, "{}");
        let value = faults.context(&context, context_bytes_max);
        let initiator = or(request.initiator, UNKNOWN);
        let source_system = or(request.source_system, UNKNOWN);
        let reason = or(request.reason, UNKNOWN);
        faults.text("initiator", &initiator, TEXT_BYTES_MAX);
        faults.text("source_system", &source_system, TEXT_BYTES_MAX);
        faults.text("reason", &reason, TEXT_BYTES_MAX);
        faults.tags("tags", &request.tags);
        let priority = faults.priority(request.priority);
        if !request.correlation_id.is_empty()
            && let Err(what) = check_correlation_id(&request.correlation_id)
        {
            faults.add("correlation_id", what);
        }
        annotate::facts("annotations", &request.annotations, &mut |path, what| {
            faults.add(&path, what);
        });
        if request.bypass_steps.len() > STEPS_MAX {
            faults.add("bypass_steps", format!("at most {STEPS_MAX} are allowed"));
        }
        if !faults.found.is_empty() {
            return Err(faults.found);
        }
        let canonical = canonical::text(&value);
        // What the caller sent, not what it resolved to: a repeat is the same request even if there
        // is a newer version by now.
        let mut hash = Hash::default()
            .part(&namespace)
            .part(&request.definition_name)
            .part(&request.definition_version)
            .part(&canonical)
            .part(&initiator)
            .part(&source_system)
            .part(&reason);
        for tag in &request.tags {
            hash = hash.part(tag);
        }
        for name in &request.bypass_steps {
            hash = hash.part("bypass").part(name);
        }
        if let Some(priority) = priority {
            hash = hash.part("priority").part(priority.to_string());
        }
        for (name, text) in &request.annotations {
            // No tag begins so.
            hash = hash.part("\0annotation").part(name).part(text);
        }
        Ok(Self {
            uid,
            wanted: Wanted { namespace, name: request.definition_name, version },
            version_text: request.definition_version,
            context,
            value,
            canonical,
            initiator,
            source_system,
            reason,
            tags: request.tags,
            bypass_steps: request.bypass_steps,
            priority,
            correlation_id: request.correlation_id,
            annotations: request.annotations,
            trace: TraceContext::parse(&request.traceparent),
            hash: hash.done(),
            idempotency_key: request.idempotency_key,
            idempotency_window,
            dedup_window,
            context_bytes_max,
        })
    }

    /// The task goes on from the call that creates it, and belongs to what the call does, unless its
    /// request says otherwise.
    pub(crate) fn continuing(mut self, call: &Call) -> Self {
        self.trace = call.task(self.trace);
        self.correlation_id = call.correlation_id(self.correlation_id);
        self
    }

    /// The task to store, if the context fits the definition.
    pub(crate) fn plan(
        self,
        definition: Option<Arc<StoredDefinition>>,
        validators: &Validators,
        prefix: &str,
    ) -> Result<NewTask, Refusal> {
        let Some(definition) = definition else {
            return Err(not_found(&self.wanted, &self.version_text));
        };
        let identity = self.identity(&definition.definition, prefix)?;
        let (mut context, mut value) = (self.context, self.value);
        if let Some(schema) = validators.of(&definition) {
            let filled =
                schema.defaults.as_ref().map(|of| of.fill(&context, self.context_bytes_max));
            let violations = match filled.unwrap_or(Ok(None)) {
                Err(what) => vec![(String::new(), what)],
                Ok(filled) => {
                    if let Some(filled) = filled {
                        value = serde_json::from_str(&filled).unwrap_or(Value::Null);
                        context = filled;
                    }
                    schema::violations(&schema.validator, &value)
                }
            };
            if !violations.is_empty() {
                return Err(unfit(violations, &definition.definition, prefix));
            }
        }
        let skipped = skipped(&self.bypass_steps, &definition, prefix)?;
        let concurrency = concurrency(&value, &definition.definition, prefix)?;
        Ok(NewTask {
            uid: self.uid,
            definition,
            hash: self.hash,
            context,
            initiator: self.initiator,
            source_system: self.source_system,
            reason: self.reason,
            tags: self.tags,
            skipped,
            priority: self.priority,
            concurrency,
            identity,
            correlation_id: self.correlation_id,
            annotations: self.annotations,
            trace: self.trace,
            key: None,
        })
    }
}

impl Draft {
    /// Which other requests are the same, beside those with its id: what it says itself counts more than what its
    /// definition says.
    fn identity(&self, definition: &Definition, prefix: &str) -> Result<Option<Identity>, Refusal> {
        let said = definition.identity.as_ref();
        let strategy = said.map(v1::Identity::strategy).unwrap_or_default();
        let window = said.and_then(|said| said.window.as_ref());
        let window = window.and_then(stepwell_proto::time::duration);
        if !self.idempotency_key.is_empty() {
            let of_key = window.filter(|_| strategy == IdentityStrategy::Key);
            return Ok(Some(Identity {
                key: self.place("key").part(&self.idempotency_key).uuid(),
                window: self.idempotency_window.or(of_key),
                caller_key: Some(self.idempotency_key.clone()),
            }));
        }
        if strategy == IdentityStrategy::Key {
            let what = "is missing: the definition tells requests apart by it";
            return Err(Refusal::field(format!("{prefix}idempotency_key"), what));
        }
        let window = self.dedup_window.or(window.filter(|_| strategy == IdentityStrategy::Hash));
        Ok(window.filter(|window| !window.is_zero()).map(|window| Identity {
            key: self.content(),
            window: Some(window),
            caller_key: None,
        }))
    }

    fn place(&self, kind: &str) -> Hash {
        Hash::default().part(kind).part(&self.wanted.namespace).part(&self.wanted.name)
    }

    /// Of what a request says: as it was sent, so that a repeat is the same whatever there is by now.
    fn content(&self) -> Uuid {
        let mut names: Vec<&String> = self.bypass_steps.iter().collect();
        names.sort_unstable();
        names.dedup();
        let hash = self
            .place("content")
            .part(&self.version_text)
            .part(&self.initiator)
            .part(&self.source_system)
            .part(&self.canonical)
            .part(&self.reason);
        names.into_iter().fold(hash, Hash::part).uuid()
    }
}

/// The refusal of a context.
fn unfit(violations: Vec<Fault>, found: &Definition, prefix: &str) -> Refusal {
    let at = |(pointer, what)| (format!("{prefix}context{pointer}"), what);
    let violations: Vec<Fault> = violations.into_iter().map(at).collect();
    Refusal::new(
        ErrorReason::ContextSchemaViolation,
        format!("the context does not fit the definition: {}", describe(&violations)),
    )
    .with("namespace", &found.namespace)
    .with("definition", &found.name)
    .with("version", &found.version)
    .with_violations(violations)
}

/// What the task shares its concurrency key with, if its definition has one.
fn concurrency(
    context: &Value,
    definition: &Definition,
    prefix: &str,
) -> Result<Option<i64>, Refusal> {
    let Some(Concurrency { key, .. }) = &definition.concurrency else { return Ok(None) };
    let value = key.split('.').try_fold(context, |value, name| value.get(name));
    let key_of = match value {
        Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => {
            canonical::text(value)
        }
        _ => {
            let what = format!(
                "has no text, number or boolean at {key}, the definition's concurrency key"
            );
            return Err(Refusal::field(format!("{prefix}context"), what));
        }
    };
    // All versions share their keys.
    let hash =
        Hash::default().part(&definition.namespace).part(&definition.name).part(key_of).done();
    let (first, _) = hash.split_first_chunk().expect("it has 32 bytes");
    Ok(Some(i64::from_be_bytes(*first)))
}

/// The numbers of the steps that are not to run; each has to be one that may be skipped.
fn skipped(
    names: &[String],
    definition: &StoredDefinition,
    prefix: &str,
) -> Result<Vec<i32>, Refusal> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let steps = &definition.definition.steps;
    let numbers: HashMap<&str, i32> =
        steps.iter().map(|step| step.name.as_str()).zip(0..).collect();
    let (mut skipped, mut faults) = (Vec::new(), Vec::new());
    for (i, name) in names.iter().enumerate() {
        let number = numbers.get(name.as_str()).copied();
        let step = number.and_then(|number| definition.step(number));
        let what = match (number, step) {
            (Some(number), Some(step)) if step.skippable => {
                skipped.push(number);
                continue;
            }
            (Some(_), _) => "the definition does not let it be skipped".to_owned(),
            _ => {
                let known = (faults.len() < SUGGESTIONS_MAX).then_some(&numbers);
                let known = known.into_iter().flat_map(HashMap::keys).copied();
                let (name, meant) = (rule::quoted(name), rule::suggestion(name, known));
                format!("the definition has no step {name}{meant}")
            }
        };
        faults.push((format!("{prefix}bypass_steps[{i}]"), what));
    }
    skipped.sort_unstable();
    skipped.dedup();
    if faults.is_empty() { Ok(skipped) } else { Err(Refusal::fields(rule::bounded(faults))) }
}

/// The refusal of a definition that is not there.
pub(crate) fn not_found(wanted: &Wanted, version: &str) -> Refusal {
    let (namespace, name) = (&wanted.namespace, &wanted.name);
    let of_version = if version.is_empty() { String::new() } else { format!(" version {version}") };
    Refusal::new(
        ErrorReason::DefinitionNotFound,
        format!("no definition {namespace}/{name}{of_version} is registered"),
    )
    .with("namespace", namespace)
    .with("definition", name)
    .with("version", version)
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

/// Reads an id; or says what it must be.
pub(crate) fn uid(text: &str) -> Result<Uuid, String> {
    // Only the usual form: an id is compared as text elsewhere.
    let hyphenated = text.len() == 36;
    Uuid::try_parse(text)
        .ok()
        .filter(|_| hyphenated)
        .ok_or_else(|| format!("must be a UUID, but is {}", rule::quoted(text)))
}

/// What is to be said of a task from now on, added to the note.
pub(crate) fn words(note: &mut Note, request: UpdateTaskRequest) -> Result<(), Refusal> {
    let mut faults = Faults { prefix: "", found: Vec::new() };
    (note.task_reason, note.tags) = (request.task_reason, request.tags.map(|tags| tags.values));
    note.priority = faults.priority(request.priority);
    faults.text("task_reason", note.task_reason.as_deref().unwrap_or_default(), TEXT_BYTES_MAX);
    faults.tags("tags.values", note.tags.as_deref().unwrap_or_default());
    if faults.found.is_empty()
        && (&note.task_reason, &note.tags, note.priority) == (&None, &None, None)
    {
        faults.add("tags", "these, `task_reason` or `priority` are wanted");
    }
    if faults.found.is_empty() { Ok(()) } else { Err(Refusal::fields(faults.found)) }
}

struct Faults<'a> {
    prefix: &'a str,
    found: Vec<Fault>,
}

impl Faults<'_> {
    fn add(&mut self, path: &str, what: impl Into<String>) {
        self.found.push((format!("{}{path}", self.prefix), what.into()));
    }

    fn priority(&mut self, number: i32) -> Option<i16> {
        rule::priority(number).unwrap_or_else(|what| {
            self.add("priority", what);
            None
        })
    }

    /// The windows of a key and of what a request says.
    fn identity(&mut self, request: &CreateTaskRequest) -> (Option<Duration>, Option<Duration>) {
        let key = &request.idempotency_key;
        self.text("idempotency_key", key, KEY_BYTES_MAX);
        let mut window = |path: &str, window: Option<&prost_types::Duration>, least: Duration| {
            let window = window?;
            let read = stepwell_proto::time::duration(window);
            let read = read.filter(|window| (least..=rule::LONG_MAX).contains(window));
            if read.is_none() {
                let least = if least.is_zero() { "0" } else { "1ms" };
                self.add(path, format!("must be from {least} to {}", rule::most(rule::LONG_MAX)));
            }
            read
        };
        let of_key = window("idempotency_window", request.idempotency_window.as_ref(), WINDOW_MIN);
        let of_content = window("dedup_window", request.dedup_window.as_ref(), Duration::ZERO);
        let is_sub_milli = |window: Duration| !window.is_zero() && window < WINDOW_MIN;
        if of_content.is_some_and(is_sub_milli) {
            self.add("dedup_window", "must be 0 or from 1ms");
        }
        if key.is_empty() && request.idempotency_window.is_some() {
            self.add("idempotency_window", "is of an `idempotency_key`, and there is none");
        }
        if !key.is_empty() && of_content.is_some_and(|window| !window.is_zero()) {
            self.add(
                "dedup_window",
                "the `idempotency_key` tells already what is the same; leave one out",
            );
        }
        (of_key, of_content)
    }

    fn uid(&mut self, text: &str) -> Uuid {
        if text.is_empty() {
            return Uuid::now_v7();
        }
        uid(text).unwrap_or_else(|what| {
            self.add("task_id", what);
            Uuid::nil()
        })
    }

    fn name(&mut self, path: &str, name: &str) {
        if let Some(what) = rule::name_fault(name) {
            self.add(path, what);
        }
    }

    fn version(&mut self, text: &str) -> Option<[i32; 3]> {
        if text.is_empty() {
            return None;
        }
        rule::version(text).map_err(|what| self.add("definition_version", what)).ok()
    }

    fn context(&mut self, text: &str, bytes_max: usize) -> Value {
        if let Err(fault) = json::check_object(text, bytes_max) {
            self.add("context", fault.to_string());
            return Value::Null;
        }
        serde_json::from_str(text).unwrap_or_else(|error| {
            self.add("context", format!("is not JSON: {error}"));
            Value::Null
        })
    }

    fn tags(&mut self, path: &str, tags: &[String]) {
        if tags.len() > TAGS_MAX {
            self.add(path, format!("at most {TAGS_MAX} are allowed"));
        }
        for (i, tag) in tags.iter().take(TAGS_MAX).enumerate() {
            self.text(&format!("{path}[{i}]"), tag, TAG_BYTES_MAX);
        }
    }

    fn text(&mut self, path: &str, text: &str, bytes_max: usize) {
        if text.len() > bytes_max {
            self.add(path, format!("has {} bytes; at most {bytes_max} are allowed", text.len()));
        } else if text.contains('\0') {
            self.add(path, "may not contain NUL");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(context: &str) -> CreateTaskRequest {
        CreateTaskRequest {
            definition_name: "d".into(),
            context: context.into(),
            ..CreateTaskRequest::default()
        }
    }

    fn draft(request: CreateTaskRequest) -> Draft {
        Draft::read(request, 1 << 20, "").unwrap()
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let request = CreateTaskRequest {
            task_id: "no".into(),
            namespace: "a b".into(),
            definition_version: "1".into(),
            context: "[]".into(),
            initiator: "x".repeat(300),
            tags: vec!["\0".into()],
            correlation_id: "-".into(),
            ..CreateTaskRequest::default()
        };
        let faults = Draft::read(request, 100, "requests[3].").unwrap_err();
        let paths: Vec<_> = faults.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "requests[3].task_id",
                "requests[3].namespace",
                "requests[3].definition_name",
                "requests[3].definition_version",
                "requests[3].context",
                "requests[3].initiator",
                "requests[3].tags[0]",
                "requests[3].correlation_id"
            ]
        );
    }

    #[test]
    fn a_bad_context_is_refused_and_says_why() {
        for (context, why) in [
            ("{", "is not JSON"),
            (r#"{"a": "\u0000"}"#, "u0000"),
            (r#"{"a": "\ud800"}"#, "surrogate"),
            ("7", "object"),
            (&format!("{}{}", r#"{"a":"#.repeat(65), "}".repeat(65)), "deep"),
            (&format!(r#"{{"a": "{}"}}"#, "x".repeat(1 << 20)), "at most"),
        ] {
            let faults = Draft::read(request(context), 1 << 20, "").unwrap_err();
            assert!(faults[0].0 == "context" && faults[0].1.contains(why), "{:?}", faults[0]);
        }
    }

    #[test]
    fn the_same_request_in_another_spelling_has_the_same_hash() {
        let one = draft(request(r#"{"a": 1.0, "b": [true]}"#));
        let other = draft(request(r#"{ "b":[true],"a":1.0}"#));
        assert_eq!(one.hash, other.hash);
        assert_ne!(one.uid, other.uid);
        assert_ne!(one.hash, draft(request(r#"{"a": 1, "b": [true]}"#)).hash);
        let tagged =
            CreateTaskRequest { tags: vec!["t".into()], ..request(r#"{"a": 1.0, "b": [true]}"#) };
        assert_ne!(one.hash, draft(tagged).hash);
        let named = CreateTaskRequest {
            correlation_id: "c".into(),
            ..request(r#"{"a": 1.0, "b": [true]}"#)
        };
        assert_eq!(one.hash, draft(named).hash);
    }

    #[test]
    fn the_context_is_kept_as_written() {
        let written = r#"{ "n": 12345678901234567890.10 }"#;
        assert_eq!(draft(request(written)).context, written);
    }
}
