//! JSON Schema: whether a schema is one, and whether a context or an event fits it. Nothing is fetched, and
//! patterns run in time linear to the text.

use jsonschema::{PatternOptions, Registry, ValidationOptions, Validator};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use stepwell_proto::json;

use crate::{Fault, defaults, quoted, weight};

/// Most violations that are listed.
const VIOLATIONS_MAX: usize = 50;
/// A message is cut after this many bytes.
const MESSAGE_BYTES_MAX: usize = 300;
/// A pointer is cut after this many bytes.
const POINTER_BYTES_MAX: usize = 200;

/// A version of JSON Schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draft {
    /// draft-07.
    Seven,
    /// 2020-12, which is also meant where none is named.
    TwentyTwenty,
}

/// How a schema says which version it is of.
const DRAFTS: [(&str, Draft); 2] = [
    ("https://json-schema.org/draft/2020-12/schema", Draft::TwentyTwenty),
    ("http://json-schema.org/draft-07/schema", Draft::Seven),
];

impl Draft {
    /// The version of a schema, or what it must be.
    pub(crate) fn of(schema: &Value) -> Result<Self, String> {
        let Some(named) = schema.get("$schema") else { return Ok(Self::TwentyTwenty) };
        let text = named.as_str().unwrap_or_default();
        let text = text.strip_suffix('#').unwrap_or(text);
        let known = DRAFTS.iter().find(|(name, _)| *name == text);
        known.map(|(_, draft)| *draft).ok_or_else(|| {
            let names: Vec<String> = DRAFTS.iter().map(|(name, _)| format!("`{name}`")).collect();
            format!("must be {}, but is {}", names.join(" or "), quoted(text))
        })
    }
}

fn options<'r>() -> ValidationOptions<'r> {
    jsonschema::options().offline().with_pattern_options(PatternOptions::regex())
}

/// Compiles a schema, or says where it is wrong (a JSON pointer) and why.
pub fn compile(schema: &Value) -> Result<Validator, Fault> {
    options()
        .build(schema)
        .map_err(|error| (error.instance_path().to_string(), cut(error.to_string())))
}

/// The ways in which the value does not fit, 50 at most: JSON pointer and what is wanted. The value itself is
/// not repeated: it may be large, or nobody's business.
pub fn violations(validator: &Validator, value: &Value) -> Vec<Fault> {
    if validator.is_valid(value) {
        return Vec::new();
    }
    let mut violations: Vec<Fault> = validator
        .iter_errors(value)
        .take(VIOLATIONS_MAX + 1)
        .map(|e| {
            let pointer = cut_to(e.instance_path().to_string(), POINTER_BYTES_MAX);
            (pointer, cut(e.masked_with("the value").to_string()))
        })
        .collect();
    if violations.len() > VIOLATIONS_MAX {
        violations[VIOLATIONS_MAX] = (String::new(), "and more that does not fit".into());
    }
    violations
}

fn cut(message: String) -> String {
    cut_to(message, MESSAGE_BYTES_MAX)
}

fn cut_to(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
        text.push('…');
    }
    text
}

/// The first of some values that does not fit its own part of a schema (text): its place among the parts, which are
/// named by pointers, and what is wrong. The values are members, by place.
pub(crate) fn misfit(text: &str, parts: &[&str], values: &Value) -> Option<(usize, String)> {
    const URI: &str = "urn:stepwell:schema";
    let schema: Value = serde_json::from_str(text).ok()?;
    let part = |pointer: &&str| {
        let segments = pointer.split('/');
        let segments =
            segments.map(|segment| utf8_percent_encode(segment, NON_ALPHANUMERIC).to_string());
        json!({"$ref": format!("{URI}#{}", segments.collect::<Vec<_>>().join("/"))})
    };
    let parts = parts.iter().enumerate().map(|(i, pointer)| (i.to_string(), part(pointer)));
    let mut all = json!({"properties": parts.collect::<serde_json::Map<_, _>>()});
    if let Some(draft) = schema.get("$schema") {
        all["$schema"] = draft.clone();
    }
    let registry = Registry::new().add(URI, schema).and_then(jsonschema::RegistryBuilder::prepare);
    let compiled = registry.map_err(|error| error.to_string());
    let compiled = compiled.and_then(|registry| {
        options().with_registry(&registry).build(&all).map_err(|error| error.to_string())
    });
    match compiled {
        Err(what) => Some((0, cut(what))),
        Ok(validator) => {
            let (pointer, what) = violations(&validator, values).into_iter().next()?;
            let place = pointer.split('/').nth(1).and_then(|place| place.parse().ok());
            Some((place.unwrap_or(0), what))
        }
    }
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
            if let Err(what) = Draft::of(&schema) {
                return Some((".$schema".into(), what));
            }
            if let Some(fault) = weight::early_fault(&schema) {
                return Some(fault);
            }
            if let Err((pointer, what)) = compile(&schema) {
                return Some((dotted(&pointer), what));
            }
            weight::fault(&schema)
        }
    }
}

/// The same of a schema whose defaults are put in: each must fit where it stands.
pub fn context_fault(text: &str, bytes_max: usize) -> Option<Fault> {
    text_fault(text, bytes_max).or_else(|| defaults::fault(text))
}

#[cfg(test)]
mod tests {
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
    fn violations_are_bounded_in_number_and_their_pointers_in_length() {
        let validator = compile(&json!({"additionalProperties": {"type": "integer"}})).unwrap();
        let many: serde_json::Map<_, _> = (0..500).map(|i| (i.to_string(), json!("x"))).collect();
        let faults = violations(&validator, &many.into());
        assert_eq!(faults.len(), 51);
        assert_eq!(faults[50], (String::new(), "and more that does not fit".into()));
        let exactly: serde_json::Map<_, _> = (0..50).map(|i| (i.to_string(), json!("x"))).collect();
        assert!(violations(&validator, &exactly.into()).iter().all(|(at, _)| !at.is_empty()));
        let long = violations(&validator, &json!({"ä".repeat(1 << 19): "x"}));
        assert!(long[0].0.len() < 210 && long[0].0.ends_with('…'), "{}", long[0].0.len());
    }

    #[test]
    fn a_schema_is_of_one_of_two_drafts_and_each_means_what_it_says() {
        for (draft, fits) in [
            (r#""$schema": "http://json-schema.org/draft-07/schema#", "#, false),
            (r#""$schema": "https://json-schema.org/draft/2020-12/schema", "#, true),
            ("", true),
        ] {
            // A list of schemas is for each item in draft-07 only, and in the other it is no schema.
            let text =
                format!(r#"{{{draft}"prefixItems": [{{"type": "string"}}], "items": false}}"#);
            assert_eq!(text_fault(&text, 1000), None, "{text}");
            let validator = compile(&serde_json::from_str(&text).unwrap()).unwrap();
            assert_eq!(violations(&validator, &json!(["x"])).is_empty(), fits, "{text}");
        }
        for other in [
            "http://json-schema.org/draft-04/schema#",
            "https://json-schema.org/draft/2019-09/schema",
            "https://json-schema.org/draft-07/schema",
            "https://example.com/mine",
        ] {
            let (at, what) = text_fault(&json!({"$schema": other}).to_string(), 1000).unwrap();
            assert!(at == ".$schema" && what.contains("draft-07"), "{at}: {what}");
        }
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
