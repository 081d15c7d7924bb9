//! What makes a type of custom events valid, and what of it may be changed. Pure.

use serde_json::Value;
use stepwell_proto::{
    json,
    refusal::{Refusal, describe},
    v1::{ErrorReason, EventTypeSpec},
};
use stepwell_store::{Change, EventTypeRow};

use crate::{Fault, NAME_BYTES_MAX, change, schema};

/// Names of ours begin so.
const OURS: [&str; 4] = ["task.", "step.", "workflow.", "observability."];
const SCHEMA_BYTES_MAX: usize = 64 << 10;
const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
/// Most bytes of the data of the events that are published together.
pub(crate) const DATA_BYTES_MAX: usize = 64 << 10;
/// Most versions of one name.
const VERSIONS_MAX: usize = 100;

/// Checks a type, and fills in the defaults. Paths of faults begin with that of the type.
pub fn check_event_type(path: &str, spec: &mut EventTypeSpec, faults: &mut Vec<Fault>) {
    let mut fault = |field: &str, what: Option<String>| {
        faults.extend(what.map(|what| (format!("{path}.{field}"), what)));
    };
    if spec.version == 0 {
        spec.version = 1;
    }
    fault("name", name_fault(&spec.name));
    fault("version", (spec.version < 1).then(|| "must be from 1".to_owned()));
    let bytes = spec.description.len();
    let what = || format!("has {bytes} bytes; at most {DESCRIPTION_BYTES_MAX} are allowed");
    fault("description", (bytes > DESCRIPTION_BYTES_MAX).then(what));
    fault("description", spec.description.contains('\0').then(|| "may not contain NUL".into()));
    let of_schema = match spec.schema.as_str() {
        "" => None,
        text => schema::text_fault(text, SCHEMA_BYTES_MAX),
    };
    if let Some((rest, what)) = of_schema {
        return fault(&format!("schema{rest}"), Some(what));
    }
    if spec.example.is_empty() {
        return;
    }
    if let Err(what) = json::check_object(&spec.example, DATA_BYTES_MAX) {
        return fault("example", Some(what.to_string()));
    }
    let Ok(validator) = schema::compile(&schema_of(&spec.schema)) else { return };
    let example: Value = serde_json::from_str(&spec.example).unwrap_or_default();
    for (pointer, what) in schema::violations(&validator, &example) {
        fault(&format!("example{}", schema::dotted(&pointer)), Some(what));
    }
}

/// Whether a type of custom events may have this name.
pub fn is_event_name(name: &str) -> bool {
    name_fault(name).is_none()
}

/// Whether names of custom types may begin with this, which ends with a dot.
pub fn is_event_prefix(prefix: &str) -> bool {
    prefix.ends_with('.') && is_event_name(&format!("{prefix}x"))
}

/// What the name of a type must be, if this is none.
fn name_fault(name: &str) -> Option<String> {
    if name.len() > NAME_BYTES_MAX {
        return Some(format!("has {} bytes; at most {NAME_BYTES_MAX} are allowed", name.len()));
    }
    if let Some(prefix) = OURS.iter().find(|prefix| name.starts_with(**prefix)) {
        return Some(format!("may not begin with `{prefix}`: these are events of ours"));
    }
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let is_right = name.contains('.') && name.split('.').all(is_word);
    let wanted = "must be two words or more with dots between, of lower-case letters, digits and \
                  `_`, such as `payment.captured`";
    (!is_right).then(|| wanted.to_owned())
}

/// A schema as it is stored.
pub(crate) fn schema_of(text: &str) -> Value {
    if text.is_empty() {
        return serde_json::json!({"type": "object"});
    }
    serde_json::from_str(text).unwrap_or_default()
}

/// Decides on a type that was checked, given all versions of its name that are there.
pub fn judge(there: &[EventTypeRow], spec: &EventTypeSpec) -> Result<Change, Refusal> {
    let Some(same) = there.iter().find(|row| row.version == spec.version) else {
        let latest = there.iter().map(|row| row.version).max().unwrap_or(0);
        if latest > spec.version {
            let what = format!("version {latest} is there already: a new one must be higher");
            return Err(changed(there, spec, vec![("version".into(), what)]));
        }
        if there.len() >= VERSIONS_MAX {
            let message = format!("{} has {VERSIONS_MAX} versions: no more are taken", spec.name);
            return Err(Refusal::new(ErrorReason::EventTypeLimit, message).with("name", &spec.name));
        }
        return Ok(Change::Insert);
    };
    let (old, new) = (schema_of(&same.schema), schema_of(&spec.schema));
    let example = |text: &str| serde_json::from_str::<Value>(text).ok();
    let is_same = same.description == spec.description
        && example(&same.example) == example(&spec.example)
        && old == new;
    if is_same {
        return Ok(Change::Nothing);
    }
    let faults = change::faults(&old, &new);
    if faults.is_empty() {
        return Ok(Change::Update);
    }
    let at = |(pointer, what): Fault| (format!("schema{}", schema::dotted(&pointer)), what);
    Err(changed(there, spec, faults.into_iter().map(at).collect()))
}

fn changed(there: &[EventTypeRow], spec: &EventTypeSpec, faults: Vec<Fault>) -> Refusal {
    let faults = crate::bounded(faults);
    let EventTypeSpec { name, version, .. } = spec;
    let message = format!(
        "version {version} of {name} cannot be registered so: {}; register the change under a \
         higher version",
        describe(&faults)
    );
    Refusal::new(ErrorReason::EventTypeChanged, message)
        .with("namespace", there.first().map_or("", |row| &row.namespace))
        .with("name", name)
        .with("version", version.to_string())
        .with_violations(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, version: i32, schema: &str) -> EventTypeSpec {
        let (name, schema) = (name.into(), schema.into());
        EventTypeSpec { name, version, schema, ..EventTypeSpec::default() }
    }

    fn row(spec: &EventTypeSpec) -> EventTypeRow {
        let EventTypeSpec { name, version, schema, description, example } = spec.clone();
        EventTypeRow {
            id: 1,
            namespace: "default".into(),
            name,
            version,
            schema,
            description,
            example,
            created_at: std::time::SystemTime::UNIX_EPOCH.into(),
        }
    }

    #[test]
    fn a_name_is_words_with_dots_between_and_none_of_ours() {
        for name in ["payment.captured", "a.b.c", "shop.order_2.paid"] {
            assert_eq!(name_fault(name), None, "{name}");
        }
        for name in [
            "",
            "payment",
            "payment.",
            ".x",
            "a..b",
            "Payment.captured",
            "a.2b",
            "a.b c",
            "a.b@1",
            "a.ä",
            "step.paid",
            "task.completed",
            "workflow.x",
            "observability.step.x",
            &format!("a.{}", "x".repeat(63)),
        ] {
            assert!(name_fault(name).is_some(), "{name}");
        }
        assert!(is_event_prefix("payment.") && is_event_prefix("a.b."));
        assert!(!["", "payment", "a..", "step.", "A."].iter().any(|p| is_event_prefix(p)));
    }

    #[test]
    fn every_fault_of_a_type_is_named_with_its_field() {
        let faults = |mut spec: EventTypeSpec| -> Vec<String> {
            let mut faults = Vec::new();
            check_event_type("t", &mut spec, &mut faults);
            faults.into_iter().map(|(path, _)| path).collect()
        };
        assert!(faults(spec("payment.captured", 0, "")).is_empty());
        let mut wrong = spec("payment", -1, r#"{"properties": {"a": {"type": "strnig"}}}"#);
        wrong.description = "x".repeat(4097);
        let all = ["t.name", "t.version", "t.description", "t.schema.properties.a.type"];
        assert_eq!(faults(wrong), all);
        let mut unlike = spec("a.b", 1, r#"{"properties": {"n": {"type": "integer"}}}"#);
        unlike.example = r#"{"n": "x"}"#.into();
        assert_eq!(faults(unlike), ["t.example.n"]);
        let mut no_object = spec("a.b", 1, "");
        no_object.example = "[]".into();
        assert_eq!(faults(no_object), ["t.example"]);
        assert_eq!(faults(spec("a.b", 1, "[]")), ["t.schema"]);
    }

    #[test]
    fn a_version_is_there_is_new_or_is_changed_so_that_what_fitted_fits() {
        let first = spec("a.b", 2, r#"{"properties": {"n": {"type": "integer"}}}"#);
        let there = [row(&first)];
        assert_eq!(judge(&[], &first), Ok(Change::Insert));
        assert_eq!(judge(&there, &first), Ok(Change::Nothing));
        let spaced = spec("a.b", 2, r#" {"properties":{"n":{"type":"integer"}}}"#);
        assert_eq!(judge(&there, &spaced), Ok(Change::Nothing), "its form does not count");
        let told = EventTypeSpec { description: "What it means.".into(), ..first.clone() };
        assert_eq!(judge(&there, &told), Ok(Change::Update));
        let wider = spec("a.b", 2, r#"{"properties": {"n": {"type": "number"}}}"#);
        assert_eq!(judge(&there, &wider), Ok(Change::Update));
        let other = |version| spec("a.b", version, r#"{"properties": {"n": {"type": "string"}}}"#);
        let refusal = judge(&there, &other(2)).unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::EventTypeChanged);
        assert_eq!(refusal.violations[0].0, "schema.properties.n");
        assert_eq!(judge(&there, &other(3)), Ok(Change::Insert));
        assert_eq!(judge(&there, &other(1)).unwrap_err().violations[0].0, "version");
        let many: Vec<_> = (1..=100).map(|version| row(&other(version))).collect();
        assert_eq!(judge(&many, &other(101)).unwrap_err().reason, ErrorReason::EventTypeLimit);
    }
}
