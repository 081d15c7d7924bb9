//! Whether a schema may take another's place under the same version: what fitted still fits, and what was
//! said of a property is still said of it. What cannot be told is refused. Only a property of which nothing was
//! said may be added with a schema of its own, though it may have been there before. Pure.

use serde_json::{Map, Value};

use crate::{Fault, quoted};

/// They say nothing of what fits.
const ANNOTATIONS: [&str; 8] = [
    "title",
    "description",
    "$comment",
    "examples",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
];
/// Looked at one by one.
const KNOWN: [&str; 7] =
    ["type", "enum", "const", "properties", "required", "additionalProperties", "items"];
/// What fits is not less.
const LEAST: [&str; 5] = ["minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"];
/// What fits is not more.
const MOST: [&str; 5] = ["maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"];
/// They may go, and may not come or change.
const MAY_GO: [&str; 4] = ["pattern", "format", "multipleOf", "uniqueItems"];

/// What is in the way of the change: a JSON pointer into the schemas, and why. Empty: nothing is.
pub(crate) fn faults(old: &Value, new: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    compare(old, new, "", &mut faults);
    faults
}

fn compare(old: &Value, new: &Value, at: &str, faults: &mut Vec<Fault>) {
    if old == new {
        return;
    }
    let mut fault = |what: String| faults.push((at.to_owned(), what));
    let any = Map::new();
    let (old, new) = match (old, new) {
        (Value::Bool(false), _) => return,
        (_, Value::Bool(false)) => return fault("nothing fits any more".into()),
        (old, new) => (old.as_object().unwrap_or(&any), new.as_object().unwrap_or(&any)),
    };
    if let Some(types) = types(new) {
        let lost = self::types(old)
            .map_or(Some("any type"), |old| old.into_iter().find(|t| !covers(&types, t)));
        if let Some(lost) = lost {
            fault(format!("`type` no longer has {lost}"));
        }
    }
    // Both may stand there: then only what is in both fits.
    let before = values(old).into_iter().next();
    for now in values(new) {
        match &before {
            None => fault("only certain values fit now".into()),
            Some(before) => {
                if let Some(gone) = before.iter().find(|value| !now.contains(value)) {
                    fault(format!("the value {} is gone", quoted(&gone.to_string())));
                }
            }
        }
    }
    for (keyword, sign) in LEAST.map(|k| (k, 1)).into_iter().chain(MOST.map(|k| (k, -1))) {
        if !is_wider(old.get(keyword), new.get(keyword), sign) {
            fault(format!("`{keyword}` is narrower"));
        }
    }
    for keyword in MAY_GO {
        let now = new.get(keyword).filter(|value| **value != Value::Bool(false));
        if now.is_some() && now != old.get(keyword) {
            fault(format!("`{keyword}` is new or another"));
        }
    }
    for keyword in keywords(old, new) {
        if old.get(keyword) != new.get(keyword) {
            fault(format!("what changes with `{keyword}` cannot be told"));
        }
    }
    required(old, new, at, faults);
    properties(old, new, at, faults);
    for keyword in ["additionalProperties", "items"] {
        let of = |schema: &Map<String, Value>| schema.get(keyword).cloned();
        let (before, now) = (of(old), of(new).unwrap_or(Value::Bool(true)));
        compare(&before.unwrap_or(Value::Bool(true)), &now, &format!("{at}/{keyword}"), faults);
    }
}

/// All other keywords, which must stay as they are.
fn keywords<'s>(old: &'s Map<String, Value>, new: &'s Map<String, Value>) -> Vec<&'s str> {
    let known = [&ANNOTATIONS[..], &KNOWN, &LEAST, &MOST, &MAY_GO].concat();
    let mut all: Vec<&str> = old.keys().chain(new.keys()).map(String::as_str).collect();
    all.sort_unstable();
    all.dedup();
    all.retain(|keyword| !known.contains(keyword));
    all
}

fn required(old: &Map<String, Value>, new: &Map<String, Value>, at: &str, faults: &mut Vec<Fault>) {
    let of = |schema: &Map<String, Value>| -> Vec<String> {
        let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (before, now) = (of(old), of(new));
    let mut fault = |name: &str, what: &str| {
        faults.push((format!("{at}/required"), format!("{} {what}", quoted(name))));
    };
    now.iter().filter(|n| !before.contains(n)).for_each(|n| fault(n, "is required now"));
    before.iter().filter(|n| !now.contains(n)).for_each(|n| fault(n, "is no longer required"));
}

fn properties(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    at: &str,
    faults: &mut Vec<Fault>,
) {
    let of = |schema: &Map<String, Value>| {
        schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (before, now) = (of(old), of(new));
    let pointer =
        |name: &str| format!("{at}/properties/{}", name.replace('~', "~0").replace('/', "~1"));
    for (name, schema) in &before {
        match now.get(name) {
            Some(new) => compare(schema, new, &pointer(name), faults),
            None => faults.push((pointer(name), "is gone".into())),
        }
    }
    let added = || now.iter().filter(|(name, _)| !before.contains_key(*name));
    if old.contains_key("patternProperties") {
        let what = "is new, and `patternProperties` may have said something of it";
        faults.extend(added().map(|(name, _)| (pointer(name), what.to_owned())));
    }
    // What was allowed beside the properties was said of this one too.
    let beside = old.get("additionalProperties").filter(|schema| schema.is_object());
    if let Some(beside) = beside {
        for (name, schema) in added() {
            compare(beside, schema, &pointer(name), faults);
        }
    }
}

fn types(schema: &Map<String, Value>) -> Option<Vec<&str>> {
    match schema.get("type")? {
        Value::Array(types) => Some(types.iter().filter_map(Value::as_str).collect()),
        one => Some(one.as_str().into_iter().collect()),
    }
}

fn covers(types: &[&str], one: &str) -> bool {
    types.contains(&one) || one == "integer" && types.contains(&"number")
}

/// The only values that fit, by `const` and by `enum`.
fn values(schema: &Map<String, Value>) -> Vec<Vec<&Value>> {
    let one = schema.get("const").map(|one| vec![one]);
    let all = schema.get("enum").and_then(Value::as_array).map(|all| all.iter().collect());
    one.into_iter().chain(all).collect()
}

/// A bound that went or let go; sign 1: what fits is not less, -1: not more.
fn is_wider(old: Option<&Value>, new: Option<&Value>, sign: i8) -> bool {
    let (Some(new), true) = (new, old != new) else { return true };
    let number = |value: &Value| value.as_f64().map(|n| n * f64::from(sign));
    old.and_then(number).zip(number(new)).is_some_and(|(old, new)| new < old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{compile, violations};

    fn payment() -> Value {
        json!({
            "type": "object",
            "required": ["total"],
            "properties": {
                "total": {"type": "integer", "minimum": 0, "maximum": 1000},
                "currency": {"enum": ["EUR", "USD"]},
                "card": {"type": "string", "pattern": "^[0-9]+$", "maxLength": 19},
                "lines": {"type": "array", "items": {"type": "object", "properties": {"sku": {"type": "string"}}}},
            },
            "additionalProperties": false,
        })
    }

    fn changed(pointer: &str, value: Value) -> Value {
        let mut schema = payment();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        schema.pointer_mut(parent).unwrap()[key] = value;
        schema
    }

    #[test]
    fn what_only_lets_in_more_may_take_its_place_and_what_fitted_fits() {
        let fitting = [
            json!({"total": 0}),
            json!({"total": 1000, "currency": "EUR", "card": "1", "lines": [{"sku": "a"}, {}]}),
        ];
        for new in [
            payment(),
            changed("/properties/paid_at", json!({"type": "string"})),
            changed("/properties/lines/items/properties/count", json!({"type": "integer"})),
            changed("/properties/currency", json!({"enum": ["USD", "EUR", "CHF"]})),
            changed("/properties/currency", json!({})),
            changed("/properties/total", json!({"type": ["number", "null"]})),
            changed("/properties/total/minimum", json!(-5)),
            changed("/properties/total/maximum", json!(1000.5)),
            changed("/properties/card", json!({"type": "string"})),
            changed("/additionalProperties", json!(true)),
            changed("/additionalProperties", json!({"type": "string"})),
            changed("/title", json!("A payment")),
            changed("/properties/total/description", json!("In cents")),
        ] {
            assert_eq!(faults(&payment(), &new), [], "{new}");
            let validator = compile(&new).unwrap();
            for data in &fitting {
                assert_eq!(violations(&validator, data), [], "{new}");
            }
        }
    }

    #[test]
    fn what_lets_in_less_or_takes_something_away_is_told_with_its_place() {
        for (pointer, value, at) in [
            ("/required", json!(["total", "currency"]), "/required"),
            ("/required", json!([]), "/required"),
            ("/type", json!("array"), ""),
            ("/properties/total/type", json!("string"), "/properties/total"),
            ("/properties/total/minimum", json!(1), "/properties/total"),
            ("/properties/total/maximum", json!(999), "/properties/total"),
            ("/properties/total/multipleOf", json!(10), "/properties/total"),
            ("/properties/total/exclusiveMaximum", json!(5000), "/properties/total"),
            ("/properties/total/enum", json!([1, 2]), "/properties/total"),
            ("/properties/currency", json!({"enum": ["EUR"]}), "/properties/currency"),
            ("/properties/currency", json!({"const": "EUR"}), "/properties/currency"),
            ("/properties/currency", json!({"type": "string"}), "/properties/currency"),
            ("/properties/card/pattern", json!("^[0-9]*$"), "/properties/card"),
            ("/properties/card", json!(false), "/properties/card"),
            ("/properties/lines/items", json!({"type": "string"}), "/properties/lines/items"),
            ("/properties", json!({"total": {"type": "integer"}}), "/properties/currency"),
            ("/not", json!({"required": ["x"]}), ""),
            ("/anyOf", json!([{}]), ""),
        ] {
            let new = changed(pointer, value);
            let found = faults(&payment(), &new);
            assert!(found.iter().any(|(pointer, _)| pointer == at), "{new}: {found:?}");
        }
    }

    #[test]
    fn what_may_stand_beside_the_properties_is_kept_to() {
        let open = json!({"type": "object"});
        assert_eq!(
            faults(&open, &json!({"properties": {"a": {"type": "string"}}, "type": "object"})),
            []
        );
        assert!(
            !faults(&open, &json!({"type": "object", "additionalProperties": false})).is_empty()
        );
        let text = json!({"additionalProperties": {"type": "string"}});
        let with = |of: &str| json!({"properties": {"a": {"type": of}}, "additionalProperties": {"type": "string"}});
        assert_eq!(faults(&text, &with("string")), []);
        assert_eq!(faults(&text, &with("integer"))[0].0, "/properties/a");
        assert_eq!(faults(&json!(true), &json!({})), []);
        assert_eq!(faults(&json!(false), &text), []);
        let pattern = |properties| json!({"patternProperties": {"^a": {"type": "string"}}, "properties": properties});
        let new = pattern(json!({"a": {"type": "integer"}}));
        assert_eq!(faults(&pattern(json!({})), &new)[0].0, "/properties/a");
        assert!(!faults(&json!({"const": 1}), &json!({"const": 1, "enum": [2]})).is_empty());
        assert_eq!(faults(&json!({"const": 1}), &json!({"enum": [1, 2]})), []);
    }
}
