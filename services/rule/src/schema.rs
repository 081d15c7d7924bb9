//! JSON Schema: whether a schema is one, and whether a context or an event fits it. Nothing is fetched, and
//! patterns run in time linear to the text.

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use stepwell_proto::json;

use crate::Fault;

/// Most violations that are listed.
const VIOLATIONS_MAX: usize = 50;
/// A message is cut after this many bytes.
const MESSAGE_BYTES_MAX: usize = 300;

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

/// A JSON pointer as the rest of a path.
pub fn dotted(pointer: &str) -> String {
    let segments = pointer.split('/').skip(1).map(|segment| match segment.parse::<usize>() {
        Ok(index) => format!("[{index}]"),
        Err(_) => format!(".{}", segment.replace("~1", "/").replace("~0", "~")),
    });
    segments.collect()
}

/// What is wrong with the text of a schema: the rest of a path, and why. It is an object, and compiles.
pub fn text_fault(text: &str, bytes_max: usize) -> Option<Fault> {
    if let Err(fault) = json::check_object(text, bytes_max) {
        return Some((String::new(), fault.to_string()));
    }
    match serde_json::from_str(text) {
        Err(error) => Some((String::new(), format!("cannot be read: {error}"))),
        Ok(schema) => {
            let (pointer, what) = compile(&schema).err()?;
            Some((dotted(&pointer), what))
        }
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
