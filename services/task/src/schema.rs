//! JSON Schema: whether a schema is one, and whether a context fits it. Nothing is fetched, and
//! patterns run in time linear to the text.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use stepwell_store::StoredDefinition;

use crate::rule::Fault;

/// Most violations that are listed.
const VIOLATIONS_MAX: usize = 50;
/// A message is cut after this many bytes.
const MESSAGE_BYTES_MAX: usize = 300;
/// Most compiled schemas that are kept.
const KEPT_MAX: usize = 1_000;

/// Compiles a schema, or says where it is wrong (a JSON pointer) and why.
pub fn compile(schema: &Value) -> Result<Validator, Fault> {
    jsonschema::options()
        .offline()
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
        .map_err(|error| (error.instance_path().to_string(), cut(error.to_string())))
}

/// Every way in which the value does not fit: JSON pointer and what is wanted. The value itself is
/// not repeated: it may be large, or nobody's business.
pub fn violations(validator: &Validator, value: &Value) -> Vec<Fault> {
    if validator.is_valid(value) {
        return Vec::new();
    }
    validator
        .iter_errors(value)
        .take(VIOLATIONS_MAX)
        .map(|e| (e.instance_path().to_string(), cut(e.masked_with("the value").to_string())))
        .collect()
}

fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}

/// Compiled schemas by definition, up to a bound; past it some are forgotten and compiled again.
#[derive(Default)]
pub struct Validators(Mutex<HashMap<i32, Arc<Validator>>>);

impl Validators {
    /// The definition's validator; none: it takes any object.
    pub fn of(&self, stored: &StoredDefinition) -> Option<Arc<Validator>> {
        if stored.definition.context_schema.is_empty() {
            return None;
        }
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&stored.id).cloned();
        kept.or_else(|| self.compile(stored))
    }

    fn compile(&self, stored: &StoredDefinition) -> Option<Arc<Validator>> {
        let schema = serde_json::from_str(&stored.definition.context_schema).ok()?;
        let validator = match compile(&schema) {
            Ok(validator) => Arc::new(validator),
            Err((pointer, what)) => {
                // It was compiled when it was registered, by an earlier build perhaps.
                tracing::error!(definition = stored.id, pointer, what, "schema does not compile");
                return None;
            }
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX
            && let Some(id) = kept.keys().next().copied()
        {
            kept.remove(&id);
        }
        kept.insert(stored.id, Arc::clone(&validator));
        Some(validator)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_violation_is_listed_with_its_pointer_and_without_the_value() {
        let schema = json!({
            "type": "object",
            "required": ["id"],
            "properties": {"items": {"items": {"type": "integer"}}, "card": {"pattern": "^[0-9]+$"}},
        });
        let validator = compile(&schema).unwrap();
        let faults = violations(&validator, &json!({"items": [1, "x"], "card": "s3cret"}));
        let pointers: Vec<&str> = faults.iter().map(|(p, _)| p.as_str()).collect();
        assert_eq!(pointers.len(), 3);
        for pointer in ["", "/items/1", "/card"] {
            assert!(pointers.contains(&pointer), "{pointers:?}");
        }
        assert!(!faults.iter().any(|(_, what)| what.contains("s3cret")), "{faults:?}");
        assert_eq!(violations(&validator, &json!({"id": 1})), []);
    }

    #[test]
    fn large_integers_are_compared_as_written() {
        let schema = r#"{"properties": {"n": {"maximum": 12345678901234567890122}}}"#;
        let validator = compile(&serde_json::from_str(schema).unwrap()).unwrap();
        let fits =
            |text: &str| violations(&validator, &serde_json::from_str(text).unwrap()).is_empty();
        assert!(fits(r#"{"n": 12345678901234567890122}"#));
        assert!(!fits(r#"{"n": 12345678901234567890123}"#));
    }

    #[test]
    fn what_is_no_schema_is_refused_and_nothing_is_fetched() {
        let wrong = compile(&json!({"properties": {"a": {"type": "strnig"}}})).unwrap_err();
        assert_eq!(wrong.0, "/properties/a/type");
        assert!(compile(&json!({"$ref": "http://127.0.0.1:9/schema.json"})).is_err());
        assert!(compile(&json!({"$ref": "file:///etc/passwd"})).is_err());
        assert!(compile(&json!({"pattern": "(a"})).is_err());
        assert!(compile(&json!({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}})).is_ok());
    }
}
