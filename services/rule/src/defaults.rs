//! The defaults of a JSON Schema, put into a value where it says nothing.
//!
//! A member that is missing takes the `default` of its schema: what stands in `properties`, of the whole and of what
//! is there, through `items`, `prefixItems` (`items` as a list in draft-07), `allOf` and a `$ref` within the schema
//! (no part of which has an `$id` of its own).
//! What stands first counts. A default that was put in takes defaults itself. Whether a part under `anyOf`, `oneOf`,
//! `if`, `not` and the like holds is known only when all values are there, so nothing is taken from those; nor
//! from `patternProperties` and `additionalProperties`, which name no member. Nothing is put into a list.
//!
//! Where a schema says defaults is found out once, in `read.rs`; filling looks at each member once.

mod read;

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use stepwell_proto::json::{BYTES_MAX, DEPTH_MAX};

use crate::{
    Fault,
    raw::{Parts, Raw},
    schema::dotted,
};

/// Most members that are put into one value.
const ADDED_MAX: usize = 10_000;

/// The defaults of a schema, ready to be put in.
#[derive(Debug)]
pub struct Defaults {
    /// The whole is the first.
    places: Vec<Place>,
    /// The keys of members, by which they are known here.
    keys: HashMap<String, usize>,
    /// Of keys that are put in: as JSON writes them.
    names: HashMap<usize, String>,
    /// Of parts of the schema: their default.
    texts: HashMap<usize, String>,
}

/// What a schema says of all values for which the same parts of it hold. Places are named by their numbers.
#[derive(Debug, Default)]
struct Place {
    /// The keys that have a default, each once, and the part that says it.
    defaults: Vec<(usize, usize)>,
    /// Where members are, by key.
    properties: HashMap<usize, usize>,
    /// Where the first items are.
    prefix: Vec<Option<usize>>,
    /// Where the items after those are.
    items: Option<usize>,
}

impl Defaults {
    /// The defaults of a schema (text), which was compiled before; none: it has none that could be taken. Or why they
    /// are too many to be read.
    pub fn of(text: &str) -> Result<Option<Self>, Fault> {
        let Some(root) = Raw::read(text) else { return Ok(None) };
        let schema = read::read(&root)?;
        let mut places = read::Places::new(&schema);
        let whole = places.place([0])?;
        let all = places.done()?;
        Ok(whole.map(|_| all))
    }

    /// The value (text) with its defaults; none: it stays as it is, byte for byte. Or what is wrong with the outcome.
    pub fn fill(&self, text: &str, bytes_max: usize) -> Result<Option<String>, String> {
        let Some(raw) = Raw::read(text) else { return Ok(None) };
        self.filled(Some(0), &raw, 1, &mut Work::new(raw.text.len(), bytes_max))
    }

    fn filled(
        &self,
        place: Option<usize>,
        raw: &Raw<'_>,
        depth: u32,
        work: &mut Work,
    ) -> Result<Option<String>, String> {
        let Some(place) = place.map(|place| &self.places[place]) else { return Ok(None) };
        if matches!(raw.parts, Parts::Other) {
            return Ok(None);
        }
        if depth > DEPTH_MAX {
            return Err(format!("is nested deeper than {DEPTH_MAX} levels with its defaults"));
        }
        let mut changes = Vec::new();
        let mut more = String::new();
        match &raw.parts {
            Parts::Object(members) => {
                let mut there = HashSet::new();
                for (key, part) in members {
                    work.looks += 1;
                    let Some(key) = self.keys.get(key) else { continue };
                    there.insert(*key);
                    let below = place.properties.get(key).copied();
                    if let Some(text) = self.filled(below, part, depth + 1, work)? {
                        changes.push((raw.span(part), text));
                    }
                }
                for (key, said) in &place.defaults {
                    work.looks += 1;
                    if there.contains(key) {
                        continue;
                    }
                    let comma = if members.is_empty() && more.is_empty() { "" } else { "," };
                    work.write(comma.len())?;
                    let below = place.properties.get(key).copied();
                    let text = self.added(below, (*key, *said), depth, work)?;
                    more.push_str(comma);
                    more.push_str(&text);
                }
            }
            Parts::Array(items) => {
                for (i, part) in items.iter().enumerate() {
                    work.looks += 1;
                    let below = place.prefix.get(i).copied().unwrap_or(place.items);
                    if let Some(text) = self.filled(below, part, depth + 1, work)? {
                        changes.push((raw.span(part), text));
                    }
                }
            }
            Parts::Other => {}
        }
        if changes.is_empty() && more.is_empty() {
            return Ok(None);
        }
        Ok(Some(changed(raw, &changes, &more)))
    }

    /// The text of a member that is put in.
    fn added(
        &self,
        below: Option<usize>,
        (key, said): (usize, usize),
        depth: u32,
        work: &mut Work,
    ) -> Result<String, String> {
        work.added += 1;
        if work.added > ADDED_MAX {
            return Err(format!("takes more than {ADDED_MAX} defaults; no more are allowed"));
        }
        let (name, text) = (&self.names[&key], &self.texts[&said]);
        work.write(name.len() + 1 + text.len())?;
        if depth >= DEPTH_MAX && text.starts_with(['{', '[']) {
            return Err(format!("is nested deeper than {DEPTH_MAX} levels with its defaults"));
        }
        let raw = below.and_then(|_| Raw::read(text));
        let filled = raw.map_or(Ok(None), |raw| self.filled(below, &raw, depth + 1, work))?;
        Ok(format!("{name}:{}", filled.as_deref().unwrap_or(text)))
    }
}

/// The text with some of its parts in other words, and more at its end.
fn changed(raw: &Raw<'_>, changes: &[((usize, usize), String)], more: &str) -> String {
    let (mut out, mut at) = (String::new(), 0);
    for ((from, to), text) in changes {
        out += &raw.text[at..*from];
        out += text;
        at = *to;
    }
    let end = match &raw.parts {
        Parts::Object(members) if !more.is_empty() => {
            members.last().map_or(1, |(_, last)| raw.span(last).1)
        }
        _ => raw.text.len(),
    };
    out += &raw.text[at..end];
    out += more;
    out += &raw.text[end..];
    out
}

/// What it took so far.
struct Work {
    /// Members, items and defaults that were looked at.
    looks: usize,
    added: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Work {
    fn new(bytes: usize, bytes_max: usize) -> Self {
        Self { looks: 0, added: 0, bytes, bytes_max }
    }

    fn write(&mut self, bytes: usize) -> Result<(), String> {
        self.bytes += bytes;
        let max = self.bytes_max;
        if self.bytes > max {
            return Err(format!(
                "has more than {max} bytes with its defaults; no more are allowed"
            ));
        }
        Ok(())
    }
}

/// What is wrong with the defaults of a schema: the rest of a path, and why.
pub(crate) fn fault(text: &str) -> Option<Fault> {
    Raw::read(text).and_then(|root| check(text, &root).err())
}

fn check(text: &str, root: &Raw<'_>) -> Result<(), Fault> {
    let schema = read::read(root)?;
    let mut places = read::Places::new(&schema);
    places.place([0])?;
    let (mut each, mut seen) = (Vec::new(), HashSet::new());
    for (said, below) in schema.each() {
        let place = places.place(below)?;
        if seen.insert((said, place)) {
            each.push((said, place));
        }
    }
    let defaults = places.done()?;
    // All of them together take no more than one value may.
    let mut work = Work::new(0, BYTES_MAX);
    let (mut pointers, mut bytes) = (Vec::new(), 0);
    let mut values = serde_json::Map::new();
    for (said, place) in each {
        let Some((pointer, default)) = schema.nodes[said].default(root) else { continue };
        bytes += pointer.len();
        if bytes > BYTES_MAX {
            let what = "names the places of its defaults with more than";
            return Err((String::new(), format!("{what} {BYTES_MAX} bytes; no more are allowed")));
        }
        let told = |what| (format!("{}.default", dotted(&pointer)), what);
        work.write(default.text.len()).map_err(told)?;
        let filled = defaults.filled(place, default, 1, &mut work).map_err(told)?;
        let filled = filled.as_deref().unwrap_or(default.text);
        values.insert(pointers.len().to_string(), serde_json::from_str(filled).unwrap_or_default());
        pointers.push(pointer);
    }
    let places: Vec<&str> = pointers.iter().map(String::as_str).collect();
    let Some((i, what)) = crate::schema::misfit(text, &places, &Value::Object(values)) else {
        return Ok(());
    };
    let at = places.get(i).copied().unwrap_or_default();
    Err((format!("{}.default", dotted(at)), format!("does not fit its own schema: {what}")))
}

/// A name as a segment of a pointer.
pub(crate) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests;
