//! The defaults of a JSON Schema, put into a value where it says nothing.
//!
//! A member that is missing takes the `default` of its schema: what stands in `properties`, of the whole and of what
//! is there, through `items`, `prefixItems` (`items` as a list in draft-07), `allOf` and a `$ref` within the schema
//! (no part of which has an `$id` of its own).
//! What stands first counts. A default that was put in takes defaults itself. Whether a part under `anyOf`, `oneOf`,
//! `if`, `not` and the like holds is known only when all values are there, so nothing is taken from those; nor
//! from `patternProperties` and `additionalProperties`, which name no member. Nothing is put into a list.

use std::collections::{HashMap, HashSet};

use percent_encoding::percent_decode_str;
use serde_json::Value;
use stepwell_proto::json::{BYTES_MAX, DEPTH_MAX};

use crate::{
    Fault,
    raw::{Parts, Raw},
    schema::{Draft, dotted},
};

/// Most defaults of a schema.
const DEFAULTS_MAX: usize = 1_000;
/// Most members that are put into one value.
const ADDED_MAX: usize = 10_000;
/// Most looks that are taken for that.
const LOOKS_MAX: usize = 1_000_000;

/// The defaults of a schema, ready to be put in.
#[derive(Debug)]
pub struct Defaults(Vec<Node>);

/// What one part of a schema says; parts are named by their places in the list.
#[derive(Debug, Default)]
struct Node {
    /// The members that have a default, with its text.
    defaults: Vec<(String, String)>,
    /// Where the schema says that.
    at: Vec<String>,
    properties: HashMap<String, usize>,
    prefix: Vec<usize>,
    items: Option<usize>,
    /// Others that say more of the same value.
    also: Vec<usize>,
}

impl Node {
    fn next(&self) -> impl Iterator<Item = usize> {
        let below = self.properties.values().chain(&self.prefix).chain(&self.items);
        below.chain(&self.also).copied()
    }
}

impl Defaults {
    /// The defaults of a schema (text), which was compiled before; none: it has none that could be taken.
    pub fn of(text: &str) -> Option<Self> {
        Reader::read(text)?.done()
    }

    /// The value (text) with its defaults; none: it stays as it is, byte for byte. Or what is wrong with the outcome.
    pub fn fill(&self, text: &str, bytes_max: usize) -> Result<Option<String>, String> {
        let Some(raw) = Raw::read(text) else { return Ok(None) };
        let mut work = Work { looks: 0, added: 0, bytes: text.len(), bytes_max };
        self.filled(&[0], &raw, 1, &mut work)
    }

    fn filled(
        &self,
        nodes: &[usize],
        raw: &Raw<'_>,
        depth: u32,
        work: &mut Work,
    ) -> Result<Option<String>, String> {
        let nodes = self.all(nodes, work)?;
        if nodes.is_empty() || matches!(raw.parts, Parts::Other) {
            return Ok(None);
        }
        if depth > DEPTH_MAX {
            return Err(format!("is nested deeper than {DEPTH_MAX} levels with its defaults"));
        }
        let mut changes = Vec::new();
        let mut more = String::new();
        match &raw.parts {
            Parts::Object(members) => {
                for (key, part) in members {
                    let below = self.below(&nodes, key);
                    if let Some(text) = self.filled(&below, part, depth + 1, work)? {
                        changes.push((raw.span(part), text));
                    }
                }
                let mut known: HashSet<&str> = members.iter().map(|(key, _)| &**key).collect();
                for (key, text) in nodes.iter().flat_map(|node| &self.0[*node].defaults) {
                    work.look()?;
                    if !known.insert(key) {
                        continue;
                    }
                    let text = self.added(&nodes, key, text, depth, work)?;
                    let comma = if members.is_empty() && more.is_empty() { "" } else { "," };
                    more += &format!("{comma}{}:{text}", Value::from(&**key));
                }
            }
            Parts::Array(items) => {
                for (i, part) in items.iter().enumerate() {
                    let below = nodes.iter().map(|node| &self.0[*node]);
                    let below = below.filter_map(|node| node.prefix.get(i).copied().or(node.items));
                    let below: Vec<usize> = below.collect();
                    if let Some(text) = self.filled(&below, part, depth + 1, work)? {
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
        nodes: &[usize],
        key: &str,
        text: &str,
        depth: u32,
        work: &mut Work,
    ) -> Result<String, String> {
        work.added += 1;
        work.bytes += key.len() + text.len() + 4;
        if work.added > ADDED_MAX {
            return Err(format!("takes more than {ADDED_MAX} defaults; no more are allowed"));
        }
        if work.bytes > work.bytes_max {
            let max = work.bytes_max;
            return Err(format!(
                "has more than {max} bytes with its defaults; no more are allowed"
            ));
        }
        if depth >= DEPTH_MAX && text.starts_with(['{', '[']) {
            return Err(format!("is nested deeper than {DEPTH_MAX} levels with its defaults"));
        }
        let Some(raw) = Raw::read(text) else { return Ok(text.to_owned()) };
        let filled = self.filled(&self.below(nodes, key), &raw, depth + 1, work)?;
        Ok(filled.unwrap_or_else(|| text.to_owned()))
    }

    fn below(&self, nodes: &[usize], key: &str) -> Vec<usize> {
        nodes.iter().filter_map(|node| self.0[*node].properties.get(key).copied()).collect()
    }

    /// The nodes with all that say more of the same value, each once, in the order of the schema.
    fn all(&self, nodes: &[usize], work: &mut Work) -> Result<Vec<usize>, String> {
        let mut all = Vec::new();
        let mut seen = HashSet::new();
        let mut open: Vec<usize> = nodes.iter().rev().copied().collect();
        while let Some(node) = open.pop() {
            work.look()?;
            if seen.insert(node) {
                all.push(node);
                open.extend(self.0[node].also.iter().rev());
            }
        }
        Ok(all)
    }

    /// Of each default where the schema says it, and the default with those that it takes itself.
    fn each(&self) -> impl Iterator<Item = (&str, Result<String, String>)> {
        let all = self
            .0
            .iter()
            .flat_map(|node| node.defaults.iter().zip(&node.at).map(move |of| (node, of)));
        // All of them together take no longer than one value may.
        let mut work = Work { looks: 0, added: 0, bytes: 0, bytes_max: BYTES_MAX };
        all.map(move |(node, ((key, text), at))| {
            let below: Vec<usize> = node.properties.get(key).copied().into_iter().collect();
            let raw = Raw::read(text);
            let filled = raw.map_or(Ok(None), |raw| self.filled(&below, &raw, 1, &mut work));
            (at.as_str(), filled.map(|filled| filled.unwrap_or_else(|| text.clone())))
        })
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
    looks: usize,
    added: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Work {
    fn look(&mut self) -> Result<(), String> {
        self.looks += 1;
        if self.looks > LOOKS_MAX {
            return Err("takes too long to be given its defaults".into());
        }
        Ok(())
    }
}

/// Reads a schema, part by part.
struct Reader<'t> {
    root: Raw<'t>,
    draft: Draft,
    nodes: Vec<Node>,
    /// By pointer.
    known: HashMap<String, usize>,
    /// Pointers of parts with a name of their own.
    anchors: HashMap<String, String>,
    /// What a reference means hangs on where it stands.
    has_bases: bool,
}

impl<'t> Reader<'t> {
    fn read(text: &'t str) -> Option<Self> {
        let root = Raw::read(text)?;
        let draft = Draft::of(&serde_json::from_str(text).ok()?).ok()?;
        let mut anchors = HashMap::new();
        let has_bases = anchors_of(&root, "", &mut anchors);
        let (nodes, known) = Default::default();
        let mut reader = Self { root, draft, nodes, known, anchors, has_bases };
        let mut open = Vec::new();
        reader.node(String::new(), &mut open);
        while let Some((node, pointer)) = open.pop() {
            reader.fill(node, &pointer, &mut open);
        }
        Some(reader)
    }

    /// The node of a part, which is still to be read if it is new.
    fn node(&mut self, pointer: String, open: &mut Vec<(usize, String)>) -> usize {
        if let Some(node) = self.known.get(&pointer) {
            return *node;
        }
        let node = self.nodes.len();
        self.nodes.push(Node::default());
        self.known.insert(pointer.clone(), node);
        open.push((node, pointer));
        node
    }

    fn fill(&mut self, node: usize, pointer: &str, open: &mut Vec<(usize, String)>) {
        let Some(part) = at(&self.root, pointer) else { return };
        let mut said = Node::default();
        let reference = self.reference(part);
        let ignores_others = self.draft == Draft::Seven && part.member("$ref").is_some();
        let keys = |name: &str| -> Vec<String> {
            match part.member(name).map(|raw| &raw.parts) {
                Some(Parts::Object(members)) => members.iter().map(|(k, _)| k.clone()).collect(),
                _ => Vec::new(),
            }
        };
        let number = |name: &str| match part.member(name).map(|raw| &raw.parts) {
            Some(Parts::Array(items)) => items.len(),
            _ => 0,
        };
        let is_schema =
            |name: &str| part.member(name).is_some_and(|raw| matches!(raw.parts, Parts::Object(_)));
        let (names, all) = (keys("properties"), number("allOf"));
        let (prefix, items) = match self.draft {
            Draft::Seven => (("items", number("items")), "additionalItems"),
            Draft::TwentyTwenty => (("prefixItems", number("prefixItems")), "items"),
        };
        let items = match self.draft {
            Draft::Seven if prefix.1 == 0 => is_schema("items").then_some("items"),
            _ => is_schema(items).then_some(items),
        };
        if !ignores_others {
            for name in names {
                let below = format!("{pointer}/properties/{}", escaped(&name));
                if let Some((at, text)) = self.default(&below) {
                    said.defaults.push((name.clone(), text));
                    said.at.push(at);
                }
                let below = self.node(below, open);
                said.properties.insert(name, below);
            }
            let under = |i: usize| format!("{pointer}/{}/{i}", prefix.0);
            said.prefix = (0..prefix.1).map(|i| self.node(under(i), open)).collect();
            said.items = items.map(|items| self.node(format!("{pointer}/{items}"), open));
        }
        said.also.extend(reference.map(|reference| self.node(reference, open)));
        if !ignores_others {
            let under = (0..all).map(|i| format!("{pointer}/allOf/{i}"));
            said.also.extend(under.map(|under| self.node(under, open)).collect::<Vec<_>>());
        }
        self.nodes[node] = said;
    }

    /// The pointer of what a part refers to within the schema.
    fn reference(&self, part: &Raw<'_>) -> Option<String> {
        if self.has_bases {
            return None;
        }
        let text: String = serde_json::from_str(part.member("$ref")?.text).ok()?;
        let fragment = percent_decode_str(text.strip_prefix('#')?).decode_utf8().ok()?.into_owned();
        if fragment.is_empty() || fragment.starts_with('/') {
            return Some(fragment);
        }
        self.anchors.get(&fragment).cloned()
    }

    /// The default of a part: its own, or that of what it stands for; where it is said, and its text.
    fn default(&self, pointer: &str) -> Option<(String, String)> {
        let mut seen = HashSet::new();
        let mut open = vec![pointer.to_owned()];
        while let Some(pointer) = open.pop() {
            let Some(part) = at(&self.root, &pointer) else { continue };
            if !seen.insert(pointer.clone()) {
                continue;
            }
            let reference = self.reference(part);
            if self.draft == Draft::TwentyTwenty || part.member("$ref").is_none() {
                if let Some(default) = part.member("default") {
                    return Some((pointer, default.text.to_owned()));
                }
                if let Some(Parts::Array(all)) = part.member("allOf").map(|raw| &raw.parts) {
                    open.extend((0..all.len()).rev().map(|i| format!("{pointer}/allOf/{i}")));
                }
            }
            open.extend(reference);
        }
        None
    }

    /// The nodes that lead to a default; none: none does.
    fn done(self) -> Option<Defaults> {
        let mut nodes = self.nodes;
        let mut leads: Vec<bool> = nodes.iter().map(|node| !node.defaults.is_empty()).collect();
        let mut before = vec![Vec::new(); nodes.len()];
        for (i, node) in nodes.iter().enumerate() {
            node.next().for_each(|next| before[next].push(i));
        }
        let mut open: Vec<usize> = (0..nodes.len()).filter(|i| leads[*i]).collect();
        while let Some(node) = open.pop() {
            for before in &before[node] {
                if !std::mem::replace(&mut leads[*before], true) {
                    open.push(*before);
                }
            }
        }
        if !*leads.first()? {
            return None;
        }
        for node in &mut nodes {
            node.properties.retain(|_, below| leads[*below]);
            node.also.retain(|also| leads[*also]);
            node.items = node.items.filter(|items| leads[*items]);
            // The places of the others count.
            if !node.prefix.iter().any(|below| leads[*below]) && node.items.is_none() {
                node.prefix.clear();
            }
        }
        Some(Defaults(nodes))
    }
}

/// What is wrong with the defaults of a schema: the rest of a path, and why.
pub(crate) fn fault(text: &str) -> Option<Fault> {
    let defaults = Defaults::of(text)?;
    let mut places = Vec::new();
    let mut values = serde_json::Map::new();
    for (at, filled) in defaults.each() {
        let told = |what: String| Some((format!("{}.default", dotted(at)), what));
        if places.len() == DEFAULTS_MAX {
            let what = format!("has more than {DEFAULTS_MAX} defaults; no more are allowed");
            return Some((String::new(), what));
        }
        match filled {
            Ok(text) => {
                let value = serde_json::from_str(&text).unwrap_or_default();
                values.insert(places.len().to_string(), value);
                places.push(at);
            }
            Err(what) => return told(what),
        }
    }
    let (place, what) = crate::schema::misfit(text, &places, &Value::Object(values))?;
    let at = places.get(place)?;
    Some((format!("{}.default", dotted(at)), format!("does not fit its own schema: {what}")))
}

/// The part of a schema at a pointer.
fn at<'r, 't>(root: &'r Raw<'t>, pointer: &str) -> Option<&'r Raw<'t>> {
    pointer.split('/').skip(1).try_fold(root, |raw, segment| match &raw.parts {
        Parts::Array(items) => items.get(segment.parse::<usize>().ok()?),
        _ => raw.member(&segment.replace("~1", "/").replace("~0", "~")),
    })
}

/// A name as a segment of a pointer.
pub(crate) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The pointers of the parts that have a name, wherever they stand; and whether a part has an address of its own.
fn anchors_of(raw: &Raw<'_>, pointer: &str, anchors: &mut HashMap<String, String>) -> bool {
    let mut has_bases = false;
    match &raw.parts {
        Parts::Object(members) => {
            for (key, part) in members {
                let text = || serde_json::from_str::<String>(part.text).ok();
                let name = match key.as_str() {
                    "$anchor" => text(),
                    "$id" => match text() {
                        Some(id) if id.starts_with('#') => Some(id[1..].to_owned()),
                        id => {
                            has_bases |= id.is_some() && !pointer.is_empty();
                            None
                        }
                    },
                    _ => None,
                };
                if let Some(name) = name {
                    anchors.entry(name).or_insert_with(|| pointer.to_owned());
                }
                has_bases |= anchors_of(part, &format!("{pointer}/{}", escaped(key)), anchors);
            }
        }
        Parts::Array(items) => {
            for (i, part) in items.iter().enumerate() {
                has_bases |= anchors_of(part, &format!("{pointer}/{i}"), anchors);
            }
        }
        Parts::Other => {}
    }
    has_bases
}

#[cfg(test)]
mod tests;
