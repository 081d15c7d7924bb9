//! What makes a schema a burden that no other limit bounds. How often it holds one value to its parts: the validator goes
//! along a reference each time it comes to it, so a few that each lead twice to the next would hold one value to the last of
//! them more often than anybody can wait for. Whatever is below a value is another value. And how long the pointers to
//! its parts are: the compiler keeps one for each.

use std::collections::HashMap;

use jsonschema::{Draft, Registry};
use serde_json::Value;

use crate::Fault;

/// Most times that one value is held to parts.
const HELD_MAX: u64 = 10_000;
/// Most bytes of the pointers to all parts: 8 MiB.
const POINTERS_BYTES_MAX: usize = 8 << 20;
const URI: &str = "urn:stepwell:schema";

/// Under these keys stand parts for the same value: one, a list of them, some by name.
const ONE: [&str; 4] = ["not", "if", "then", "else"];
const LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const NAMED: [&str; 2] = ["dependentSchemas", "dependencies"];
const REFERENCES: [&str; 2] = ["$ref", "$dynamicRef"];

/// What is wrong with a schema before it is compiled.
pub(crate) fn early_fault(schema: &Value) -> Option<Fault> {
    (pointers(schema, 0) > POINTERS_BYTES_MAX).then(|| {
        let what = "needs for the pointers to its parts more than";
        (String::new(), format!("{what} {POINTERS_BYTES_MAX} bytes; shorten the names of its keys"))
    })
}

/// The bytes of the pointers to a part, whose own has so many, and to all that is in it.
fn pointers(part: &Value, bytes: usize) -> usize {
    let below = |(key, part): (usize, &Value)| pointers(part, bytes + 1 + key);
    let below: usize = match part {
        Value::Object(all) => all.iter().map(|(key, part)| below((key.len(), part))).sum(),
        Value::Array(all) => all.iter().map(|part| below((5, part))).sum(),
        _ => 0,
    };
    bytes + below
}

/// What is wrong with a schema, which was compiled before.
pub(crate) fn fault(schema: &Value) -> Option<Fault> {
    let registry = Registry::new().add(URI, schema).and_then(jsonschema::RegistryBuilder::prepare);
    let held = held(&edges(&registry.ok()?)?);
    (held > HELD_MAX).then(|| {
        let what = "holds one value to its parts more than";
        (String::new(), format!("{what} {HELD_MAX} times; no more are allowed"))
    })
}

/// Of each part of a schema, which others say more of the same value; parts are named by their places in the list.
fn edges(registry: &Registry<'_>) -> Option<Vec<Vec<usize>>> {
    let root = registry.resolver(jsonschema::uri::from_str(URI).ok()?).lookup(URI).ok()?;
    let (root, resolver, draft) = root.into_inner();
    let mut known = HashMap::new();
    let mut edges: Vec<Vec<usize>> = Vec::new();
    let mut open = Vec::new();
    let mut node = |part, resolver, open: &mut Vec<_>| {
        let next = known.len();
        let node = *known.entry(std::ptr::from_ref::<Value>(part)).or_insert(next);
        if node == next {
            open.push((node, part, resolver));
        }
        node
    };
    node(root, resolver, &mut open);
    while let Some((i, part, resolver)) = open.pop() {
        let mut also = Vec::new();
        let of = |key: &str| part.get(key).and_then(Value::as_str);
        for reference in REFERENCES.into_iter().filter_map(of) {
            if let Ok(meant) = resolver.lookup(reference) {
                let (meant, resolver, _) = meant.into_inner();
                also.push(node(meant, resolver, &mut open));
            }
        }
        let below = |part| resolver.in_subresource(draft.create_resource_ref(part));
        for other in same(part) {
            also.push(node(other, below(other).unwrap_or_else(|_| resolver.clone()), &mut open));
        }
        for other in Draft::subresources_of(draft, part) {
            node(other, below(other).unwrap_or_else(|_| resolver.clone()), &mut open);
        }
        if edges.len() <= i {
            edges.resize(i + 1, Vec::new());
        }
        edges[i] = also;
    }
    Some(edges)
}

/// The parts in a part that are for the same value.
fn same(part: &Value) -> impl Iterator<Item = &Value> {
    let ones = ONE.into_iter().filter_map(|key| part.get(key));
    let lists = LISTS.into_iter().filter_map(|key| part.get(key)?.as_array()).flatten();
    let named = NAMED.into_iter().filter_map(|key| part.get(key)?.as_object());
    let named = named.flat_map(|named| named.values());
    ones.chain(lists).chain(named).filter(|part| part.is_object())
}

/// The most that one value is held to parts, the first of which is any.
fn held(edges: &[Vec<usize>]) -> u64 {
    let mut held = vec![1_u64; edges.len()];
    let mut left: Vec<usize> = edges.iter().map(Vec::len).collect();
    let mut before = vec![Vec::new(); edges.len()];
    for (i, also) in edges.iter().enumerate() {
        also.iter().for_each(|also| before[*also].push(i));
    }
    let mut open: Vec<usize> = (0..edges.len()).filter(|i| left[*i] == 0).collect();
    while let Some(i) = open.pop() {
        for before in &before[i] {
            held[*before] = held[*before].saturating_add(held[i]);
            left[*before] -= 1;
            if left[*before] == 0 {
                open.push(*before);
            }
        }
    }
    // The others lead into circles. Those are gone round once, unless there are several ways round.
    let others = || (0..edges.len()).filter(|i| left[*i] > 0);
    let forks = others().any(|i| left[i] > 1);
    let round = others().fold(0_u64, |sum, i| sum.saturating_add(held[i]));
    let most = held.iter().copied().max().unwrap_or_default();
    if forks { u64::MAX } else { most.max(round) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{compile, text_fault};

    /// How often one value is held to parts.
    fn of(schema: &Value) -> u64 {
        compile(schema).unwrap();
        let registry = Registry::new().add(URI, schema).unwrap().prepare().unwrap();
        held(&edges(&registry).unwrap())
    }

    /// Links that each lead twice to the next, by a reference as `refer` writes it.
    fn chain(links: usize, keyword: &str, refer: impl Fn(usize) -> Value) -> Value {
        let link = |i: usize| (format!("d{i}"), json!({keyword: [refer(i + 1), refer(i + 1)]}));
        let mut all: serde_json::Map<_, _> = (0..links).map(link).collect();
        all.insert(format!("d{links}"), json!({"type": "integer"}));
        json!({"properties": {"a": refer(0)}, "$defs": all})
    }

    #[test]
    fn a_chain_of_references_that_each_lead_twice_to_the_next_is_refused_before_anything_is_held_to_it()
     {
        let plain = |i| json!({"$ref": format!("#/$defs/d{i}")});
        assert_eq!(of(&chain(1, "allOf", plain)), 6);
        for keyword in ["allOf", "anyOf", "oneOf"] {
            let fits = chain(10, keyword, plain);
            assert_eq!(text_fault(&fits.to_string(), 1 << 20), None);
            let (at, what) = text_fault(&chain(40, keyword, plain).to_string(), 1 << 20).unwrap();
            assert!(at.is_empty() && what.contains("10000 times"), "{at}: {what}");
        }
        // By whatever name.
        let mut named = chain(40, "allOf", |i| json!({"$ref": format!("urn:d:{i}")}));
        for i in 0..=40 {
            named["$defs"][format!("d{i}")]["$id"] = format!("urn:d:{i}").into();
        }
        assert!(text_fault(&named.to_string(), 1 << 20).unwrap().1.contains("10000 times"));
        let mut named = chain(40, "allOf", |i| json!({"$dynamicRef": format!("#n{i}")}));
        for i in 0..=40 {
            named["$defs"][format!("d{i}")]["$dynamicAnchor"] = format!("n{i}").into();
        }
        assert!(text_fault(&named.to_string(), 1 << 20).unwrap().1.contains("10000 times"));
    }

    #[test]
    fn a_circle_may_be_gone_round_in_one_way_only() {
        assert_eq!(of(&json!({"allOf": [{"$ref": "#"}], "properties": {"a": {}}})), 2);
        assert_eq!(of(&json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})), u64::MAX);
        // Below a value is another one.
        let tree = json!({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}});
        assert_eq!(of(&tree), 2);
    }

    #[test]
    fn a_long_name_above_many_parts_is_refused_before_the_schema_is_compiled() {
        let schema = |bytes: usize, parts: usize| {
            let all: serde_json::Map<_, _> =
                (0..parts).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
            json!({"properties": {"k".repeat(bytes): {"properties": all}}}).to_string()
        };
        for (bytes, parts) in [(64, 8_000), (60_000, 50), (1_000, 4_000)] {
            assert_eq!(text_fault(&schema(bytes, parts), 256 << 10), None);
        }
        let (at, what) = text_fault(&schema(60_000, 80), 256 << 10).unwrap();
        assert!(at.is_empty() && what.contains("8388608 bytes"), "{what}");
    }

    #[test]
    fn many_parts_in_a_row_are_each_counted_once() {
        let all: Vec<Value> = (0..5_000).map(|i| json!({"minimum": i})).collect();
        assert_eq!(of(&json!({"anyOf": all})), 5_001);
        let all: Vec<Value> = (0..10_001).map(|i| json!({"minimum": i})).collect();
        assert!(fault(&json!({"anyOf": all})).is_some());
    }
}
