use super::*;
use crate::schema::context_fault;

/// The context with its defaults, or what is wrong with the outcome.
fn fill(schema: &str, context: &str) -> Result<String, String> {
    assert_eq!(context_fault(schema, 1 << 20), None, "{schema}");
    let Some(defaults) = Defaults::of(schema).unwrap() else { return Ok(context.to_owned()) };
    Ok(defaults.fill(context, 1 << 20)?.unwrap_or_else(|| context.to_owned()))
}

fn filled(schema: &str, context: &str) -> String {
    fill(schema, context).unwrap()
}

const TWENTY: &str = "https://json-schema.org/draft/2020-12/schema";
const SEVEN: &str = "http://json-schema.org/draft-07/schema#";

#[test]
fn what_is_missing_takes_its_default_and_all_else_stays_byte_for_byte() {
    let schema = r#"{"properties": {"z": {"default": 1e3}, "a": {"default": {"y": 1.0, "b": 12345678901234567890123}}}}"#;
    assert_eq!(filled(schema, "{}"), r#"{"z":1e3,"a":{"y": 1.0, "b": 12345678901234567890123}}"#);
    assert_eq!(
        filled(schema, "{ \"n\" : 1E+2 ,\n \"z\":null }"),
        "{ \"n\" : 1E+2 ,\n \"z\":null,\"a\":{\"y\": 1.0, \"b\": 12345678901234567890123} }"
    );
    let whole = r#" {"a": 1.00,  "z":  "\u00e4"} "#;
    assert_eq!(filled(schema, whole), whole);
}

#[test]
fn defaults_are_found_in_all_that_holds_for_sure() {
    for (schema, context, with) in [
        // In what is there, and in what was put in.
        (
            r#"{"properties": {"a": {"properties": {"b": {"default": 1}}}}}"#,
            r#"{"a": {"c": 2}}"#,
            r#"{"a": {"c": 2,"b":1}}"#,
        ),
        (r#"{"properties": {"a": {"properties": {"b": {"default": 1}}}}}"#, "{}", "{}"),
        (
            r#"{"properties": {"a": {"default": {}, "properties": {"b": {"default": 1}}}}}"#,
            "{}",
            r#"{"a":{"b":1}}"#,
        ),
        // In items of lists, but no item is made.
        (
            r#"{"properties": {"l": {"items": {"properties": {"n": {"default": 0}}}}}}"#,
            r#"{"l": [{}, {"n": 1}, 7]}"#,
            r#"{"l": [{"n":0}, {"n": 1}, 7]}"#,
        ),
        (
            r#"{"properties": {"l": {"prefixItems": [true, {"properties": {"n": {"default": 0}}}], "items": {"properties": {"m": {"default": 2}}}}}}"#,
            r#"{"l": [{}, {}, {}]}"#,
            r#"{"l": [{}, {"n":0}, {"m":2}]}"#,
        ),
        // Through allOf and references, those with a name and those in circles too.
        (
            r##"{"allOf": [{"properties": {"a": {"default": 1}}}, {"properties": {"a": {"default": 2}, "b": {"$ref": "#/$defs/b~1c%20d"}}}], "$defs": {"b/c d": {"default": true}}}"##,
            "{}",
            r#"{"a":1,"b":true}"#,
        ),
        (
            r##"{"$ref": "#named", "properties": {"x": {"default": 1}}, "$defs": {"o": {"$anchor": "named", "properties": {"x": {"default": 9}, "y": {"default": 2}}}}}"##,
            "{}",
            r#"{"x":1,"y":2}"#,
        ),
        (
            r##"{"properties": {"next": {"$ref": "#"}, "n": {"default": 1}}}"##,
            r#"{"next": {"next": {}}}"#,
            r#"{"next": {"next": {"n":1},"n":1},"n":1}"#,
        ),
        (
            r##"{"allOf": [{"$ref": "#"}], "properties": {"n": {"default": 1}}}"##,
            "{}",
            r#"{"n":1}"#,
        ),
        // Not of what may not hold, nor of what names no member.
        (
            r#"{"anyOf": [{"properties": {"a": {"default": 1}}}], "oneOf": [{"properties": {"b": {"default": 1}}}], "if": {"properties": {"c": {"default": 1}}}, "additionalProperties": {"properties": {"d": {"default": 1}}}}"#,
            r#"{"x": {}}"#,
            r#"{"x": {}}"#,
        ),
        // What is a default's name is no default.
        (r#"{"properties": {"default": {"type": "integer"}}}"#, "{}", "{}"),
        ("true", "{}", "{}"),
    ] {
        if schema != "true" {
            assert_eq!(filled(schema, context), with, "{schema}");
        }
    }
}

#[test]
fn each_draft_has_its_own_lists_and_references() {
    let list = |draft: &str, list: &str| {
        format!(r#"{{"$schema": "{draft}", "properties": {{"l": {list}}}}}"#)
    };
    let of_seven = r#"{"items": [{"properties": {"n": {"default": 0}}}], "additionalItems": {"properties": {"m": {"default": 2}}}}"#;
    assert_eq!(
        filled(&list(SEVEN, of_seven), r#"{"l": [{}, {}]}"#),
        r#"{"l": [{"n":0}, {"m":2}]}"#
    );
    let of_twenty = r#"{"prefixItems": [{"properties": {"n": {"default": 0}}}]}"#;
    assert_eq!(filled(&list(TWENTY, of_twenty), r#"{"l": [{}]}"#), r#"{"l": [{"n":0}]}"#);
    assert_eq!(filled(&list(SEVEN, of_twenty), r#"{"l": [{}]}"#), r#"{"l": [{}]}"#);
    // Beside a reference nothing counts in draft-07.
    let beside = |draft: &str| {
        format!(
            r##"{{"$schema": "{draft}", "definitions": {{"n": {{"type": "integer"}}}}, "properties": {{"n": {{"$ref": "#/definitions/n", "default": 1}}}}}}"##
        )
    };
    assert_eq!(filled(&beside(TWENTY), "{}"), r#"{"n":1}"#);
    assert_eq!(filled(&beside(SEVEN), "{}"), "{}");
}

#[test]
fn a_default_that_does_not_fit_its_own_schema_is_named() {
    for (schema, at, what) in [
        (
            r#"{"properties": {"n": {"type": "integer", "default": "x"}}}"#,
            ".properties.n.default",
            "integer",
        ),
        (
            r##"{"properties": {"a/b": {"$ref": "#/$defs/a%20b"}}, "$defs": {"a b": {"maximum": 3, "default": 4}}}"##,
            ".$defs.a b.default",
            "maximum",
        ),
        (
            r#"{"properties": {"o": {"required": ["n"], "default": {}}}}"#,
            ".properties.o.default",
            "required",
        ),
    ] {
        let (path, told) = context_fault(schema, 1 << 20).unwrap();
        assert_eq!(path, at, "{told}");
        assert!(told.contains("does not fit its own schema") && told.contains(what), "{told}");
    }
    // With what it takes itself it does.
    let nested = r#"{"properties": {"o": {"required": ["n"], "default": {}, "properties": {"n": {"default": 1}}}}}"#;
    assert_eq!(filled(nested, "{}"), r#"{"o":{"n":1}}"#);
}

#[test]
fn what_grows_without_end_is_refused() {
    let endless = r##"{"$defs": {"o": {"default": {}, "properties": {"o": {"$ref": "#/$defs/o"}}}}, "properties": {"o": {"$ref": "#/$defs/o"}}}"##;
    let (_, what) = context_fault(endless, 1 << 20).unwrap();
    assert!(what.contains("deeper than 64"), "{what}");
    // Each level twice as many: neither time nor memory.
    let double = r##"{"$defs": {"o": {"default": {}, "properties": {"a": {"$ref": "#/$defs/o"}, "b": {"$ref": "#/$defs/o"}}}}, "properties": {"o": {"$ref": "#/$defs/o"}}}"##;
    assert!(context_fault(double, 1 << 20).is_some());

    let properties: Vec<String> =
        (0..500).map(|i| format!(r#""p{i}": {{"default": "{i}"}}"#)).collect();
    let many = format!(
        r#"{{"properties": {{"l": {{"items": {{"properties": {{{}}}}}}}}}}}"#,
        properties.join(",")
    );
    let list = |n: usize| format!(r#"{{"l": [{}]}}"#, vec!["{}"; n].join(","));
    assert!(fill(&many, &list(20)).is_ok());
    assert!(fill(&many, &list(21)).unwrap_err().contains("10000 defaults"));
    let long = format!(
        r#"{{"properties": {{"l": {{"items": {{"properties": {{"t": {{"default": "{}"}}}}}}}}}}}}"#,
        "x".repeat(100_000)
    );
    assert!(fill(&long, &list(11)).unwrap_err().contains("1048576 bytes"));
    let of_many = |n: usize| {
        let all: Vec<String> = (0..n).map(|i| format!(r#""p{i}": {{"default": {i}}}"#)).collect();
        format!(r#"{{"properties": {{{}}}}}"#, all.join(","))
    };
    assert_eq!(context_fault(&of_many(1000), 1 << 20), None);
    assert!(context_fault(&of_many(1001), 1 << 20).unwrap().1.contains("1000 defaults"));
}

/// What filling a value looked at.
fn looks(schema: &str, context: &str) -> (usize, bool) {
    let defaults = Defaults::of(schema).unwrap().unwrap();
    let mut work = Work::new(context.len(), usize::MAX);
    let filled = defaults.filled(Some(0), &Raw::read(context).unwrap(), 1, &mut work).unwrap();
    (work.looks, filled.is_some())
}

#[test]
fn each_member_is_looked_at_once_however_many_parts_of_the_schema_say_something_of_it() {
    let member = |i: usize| format!(r#""p{i}": {{"properties": {{"a": {{"default": {i}}}}}}}"#);
    let all: Vec<String> = (0..1_000).map(member).collect();
    let parts: Vec<String> =
        (0..1_000).map(|i| format!(r#"{{"properties": {{{}}}}}"#, member(i))).collect();
    let members: Vec<String> = (0..1_000).map(|i| format!(r#""p{i}": {{"a": 0}}"#)).collect();
    let context = format!("{{{}}}", members.join(","));
    let others: Vec<String> = (0..1_000).map(|i| format!(r#""x{i}": {{}}"#)).collect();
    for schema in [
        format!(r#"{{"properties": {{{}}}}}"#, all.join(",")),
        format!(r#"{{"allOf": [{}]}}"#, parts.join(",")),
    ] {
        // Each member, what is in it, and its default.
        assert_eq!(looks(&schema, &context), (3_000, false));
        assert_eq!(looks(&schema, &format!("{{{}}}", others.join(","))), (1_000, false));
    }
    let items = parts.join(",").replace("properties", "items").replace(r#""p"#, r#""q"#);
    let list = format!(
        r#"{{"allOf": [{items}, {{"items": {{"properties": {{"a": {{"default": 0}}}}}}}}]}}"#
    );
    assert_eq!(looks(&list, &format!("[{}]", vec!["{}"; 1_000].join(","))), (2_000, true));
}

#[test]
fn what_is_put_in_is_counted_as_it_is_written() {
    for key in ["a", r#"\""#, r"\\", r"\u0001\n", "ä", r"\u00e4"] {
        for context in ["{}", r#"{"b": 0}"#, r#" {"o": {"c": 1}} "#] {
            let inner = format!(r#"{{"{key}{key}": {{"default": "\u0001"}}}}"#);
            let schema = format!(
                r#"{{"properties": {{"{key}": {{"default": {{}}, "properties": {inner}}}, "o": {{"properties": {inner}}}}}}}"#
            );
            let defaults = Defaults::of(&schema).unwrap().unwrap();
            let filled = defaults.fill(context, 1 << 20).unwrap().unwrap();
            serde_json::from_str::<Value>(&filled).unwrap();
            assert_eq!(defaults.fill(context, filled.len()), Ok(Some(filled.clone())));
            let refused = defaults.fill(context, filled.len() - 1).unwrap_err();
            assert!(refused.contains("bytes with its defaults"), "{refused}");
        }
    }
}

#[test]
fn defaults_are_bounded_together_in_what_they_say_and_in_where() {
    let takers = |n: usize, default: &str| {
        let all = (0..n).map(|i| format!(r##""p{i}": {{"$ref": "#/$defs/d"}}"##));
        let all = all.collect::<Vec<_>>().join(",");
        format!(
            r#"{{"properties": {{{all}}}, "$defs": {{"d": {{"default": {default}, "properties": {{"n": {{"default": 1}}}}}}}}}}"#
        )
    };
    let long = format!(r#"{{"t": "{}"}}"#, "x".repeat(100_000));
    // What many take is checked once.
    assert_eq!(context_fault(&takers(999, &long), 256 << 10), None);
    let each = |n: usize| {
        let all = (0..n).map(|i| {
            format!(
                r##""p{i}": {{"$ref": "#/$defs/d", "properties": {{"n{i}": {{"default": 1}}}}}}"##
            )
        });
        let all = all.collect::<Vec<_>>().join(",");
        format!(r#"{{"properties": {{{all}}}, "$defs": {{"d": {{"default": {long}}}}}}}"#)
    };
    assert_eq!(context_fault(&each(10), 256 << 10), None);
    let (at, what) = context_fault(&each(11), 256 << 10).unwrap();
    assert_eq!(at, ".$defs.d.default");
    assert!(what.contains("1048576 bytes"), "{what}");

    let far = |key: usize| {
        let all: Vec<String> = (0..500).map(|i| format!(r#""p{i}": {{"default": {i}}}"#)).collect();
        let (key, all) = ("k".repeat(key), all.join(","));
        format!(r#"{{"properties": {{"{key}": {{"properties": {{{all}}}}}}}}}"#)
    };
    assert_eq!(context_fault(&far(2_000), 256 << 10), None);
    let (at, what) = context_fault(&far(2_100), 256 << 10).unwrap();
    assert!(at.is_empty() && what.contains("1048576 bytes"), "{at}: {what}");
}
