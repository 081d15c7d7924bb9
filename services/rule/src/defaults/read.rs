//! Where a schema says defaults. First its parts, each read once; then, for each place in a value, the parts that hold
//! there together, so that who fills a value looks at each member once. What it takes grows with the text, but for
//! parts that hold together in many ways: those are counted, and refused when they are too many.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::{Defaults, Place, escaped};
use crate::{
    Fault,
    raw::{Parts, Raw},
    schema::Draft,
};

/// Most defaults of a schema.
pub(super) const DEFAULTS_MAX: usize = 1_000;
/// Most looks at which parts hold together.
pub(super) const LOOKS_MAX: usize = 100_000;

/// What one part of a schema says; parts are named by their places in the list, the whole is the first.
pub(super) struct Node<'r, 't> {
    part: &'r Raw<'t>,
    /// Its own default.
    own: Option<&'r Raw<'t>>,
    /// By key.
    properties: Vec<(usize, usize)>,
    /// The keys that have a default, with the part that says it.
    defaults: Vec<(usize, usize)>,
    prefix: Vec<usize>,
    items: Option<usize>,
    /// Others that say more of the same value.
    also: Vec<usize>,
}

impl<'r, 't> Node<'r, 't> {
    /// Where it stands (a JSON pointer), and its default.
    pub(super) fn default(&self, root: &Raw<'t>) -> Option<(String, &'r Raw<'t>)> {
        Some((pointer(root, self.part), self.own?))
    }

    fn next(&self) -> impl Iterator<Item = usize> {
        let below = self.properties.iter().map(|(_, below)| below);
        below.chain(&self.prefix).chain(&self.items).chain(&self.also).copied()
    }

    /// It says something of what is in a value.
    fn leads_below(&self) -> bool {
        let leads = self.defaults.is_empty() && self.properties.is_empty();
        !leads || !self.prefix.is_empty() || self.items.is_some()
    }
}

/// A schema that was read.
pub(super) struct Schema<'r, 't> {
    pub(super) nodes: Vec<Node<'r, 't>>,
    /// The keys of members, which are named by their places in the list.
    keys: HashMap<&'r str, usize>,
}

/// Reads a schema; what leads to no default is left out.
pub(super) fn read<'r, 't>(root: &'r Raw<'t>) -> Result<Schema<'r, 't>, Fault> {
    let mut reader = Reader::new(root);
    reader.node(root);
    let mut read = 0;
    while read < reader.nodes.len() {
        reader.read(read);
        read += 1;
    }
    let Reader { mut nodes, keys, .. } = reader;
    let said = said(&nodes)?;
    let mut count = 0;
    for node in &mut nodes {
        let all = node.properties.iter();
        node.defaults = all.filter_map(|(key, below)| Some((*key, said[*below]?))).collect();
        count += node.defaults.len();
    }
    if count > DEFAULTS_MAX {
        let what = format!("has more than {DEFAULTS_MAX} defaults; no more are allowed");
        return Err((String::new(), what));
    }
    prune(&mut nodes);
    Ok(Schema { nodes, keys })
}

impl Schema<'_, '_> {
    /// Of each default the part that says it, and the part that takes it.
    pub(super) fn each(&self) -> impl Iterator<Item = (usize, Option<usize>)> {
        self.nodes.iter().flat_map(|node| {
            let below: HashMap<usize, usize> = node.properties.iter().copied().collect();
            node.defaults.iter().map(move |(key, said)| (*said, below.get(key).copied()))
        })
    }
}

/// Reads a schema, part by part.
struct Reader<'r, 't> {
    root: &'r Raw<'t>,
    draft: Draft,
    nodes: Vec<Node<'r, 't>>,
    keys: HashMap<&'r str, usize>,
    /// By address.
    known: HashMap<usize, usize>,
    /// Of objects in which references have looked, by address: their members.
    members: HashMap<usize, HashMap<&'r str, &'r Raw<'t>>>,
    /// Parts with a name of their own.
    anchors: HashMap<String, &'r Raw<'t>>,
    /// What a reference means hangs on where it stands.
    has_bases: bool,
}

impl<'r, 't> Reader<'r, 't> {
    fn new(root: &'r Raw<'t>) -> Self {
        let named = root.member("$schema").and_then(|raw| serde_json::from_str(raw.text).ok());
        let named: Option<Value> = named;
        let draft = named.map(|named| Draft::of(&serde_json::json!({"$schema": named})));
        let mut anchors = HashMap::new();
        let has_bases = anchors_of(root, true, &mut anchors);
        Self {
            root,
            draft: draft.and_then(Result::ok).unwrap_or(Draft::TwentyTwenty),
            nodes: Vec::new(),
            keys: HashMap::new(),
            known: HashMap::new(),
            members: HashMap::new(),
            anchors,
            has_bases,
        }
    }

    /// The node of a part, which is still to be read if it is new.
    fn node(&mut self, part: &'r Raw<'t>) -> usize {
        match self.known.entry(part.address()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let node = *new.insert(self.nodes.len());
                self.nodes.push(Node {
                    part,
                    own: None,
                    properties: Vec::new(),
                    defaults: Vec::new(),
                    prefix: Vec::new(),
                    items: None,
                    also: Vec::new(),
                });
                node
            }
        }
    }

    fn key(&mut self, key: &'r str) -> usize {
        let next = self.keys.len();
        *self.keys.entry(key).or_insert(next)
    }

    fn read(&mut self, node: usize) {
        let part = self.nodes[node].part;
        let reference = part.member("$ref").and_then(|raw| self.referred(raw));
        let mut also: Vec<usize> = reference.map(|part| self.node(part)).into_iter().collect();
        // Beside a reference nothing counts in draft-07.
        if self.draft == Draft::TwentyTwenty || part.member("$ref").is_none() {
            let of = |name| part.member(name).map(|raw| &raw.parts);
            if let Some(Parts::Array(all)) = of("allOf") {
                also.extend(all.iter().map(|part| self.node(part)));
            }
            if let Some(Parts::Object(members)) = of("properties") {
                let last: HashMap<&str, &Raw<'t>> =
                    members.iter().map(|(key, part)| (&**key, part)).collect();
                let is_last = |key: &str, part: &Raw<'t>| last[key].address() == part.address();
                let all = members.iter().filter(|(key, part)| is_last(key, part));
                self.nodes[node].properties =
                    all.map(|(key, part)| (self.key(key), self.node(part))).collect();
            }
            let (prefix, rest) = match self.draft {
                Draft::Seven => ("items", "additionalItems"),
                Draft::TwentyTwenty => ("prefixItems", "items"),
            };
            let prefix = match of(prefix) {
                Some(Parts::Array(items)) => items.as_slice(),
                _ => &[],
            };
            let is_for_all = self.draft == Draft::Seven && prefix.is_empty();
            let rest = part.member(if is_for_all { "items" } else { rest });
            let rest = rest.filter(|raw| matches!(raw.parts, Parts::Object(_)));
            self.nodes[node].prefix = prefix.iter().map(|part| self.node(part)).collect();
            self.nodes[node].items = rest.map(|part| self.node(part));
            self.nodes[node].own = part.member("default");
        }
        self.nodes[node].also = also;
    }

    /// What a reference means, within the schema.
    fn referred(&mut self, reference: &Raw<'t>) -> Option<&'r Raw<'t>> {
        if self.has_bases {
            return None;
        }
        let text: String = serde_json::from_str(reference.text).ok()?;
        let fragment = percent_decode_str(text.strip_prefix('#')?).decode_utf8().ok()?;
        if !fragment.is_empty() && !fragment.starts_with('/') {
            return self.anchors.get(&*fragment).copied();
        }
        fragment.split('/').skip(1).try_fold(self.root, |raw, segment| match &raw.parts {
            Parts::Array(items) => items.get(segment.parse::<usize>().ok()?),
            Parts::Object(members) => {
                let members = self
                    .members
                    .entry(raw.address())
                    .or_insert_with(|| members.iter().map(|(key, part)| (&**key, part)).collect());
                members.get(&*segment.replace("~1", "/").replace("~0", "~")).copied()
            }
            Parts::Other => None,
        })
    }
}

/// Of each node the one that says its default: itself, or the first that does of those that say more of its value.
fn said(nodes: &[Node<'_, '_>]) -> Result<Vec<Option<usize>>, Fault> {
    // A node is known when all that say more are. In circles none ever is.
    let mut said: Vec<Option<usize>> = vec![None; nodes.len()];
    let mut is_known = vec![false; nodes.len()];
    let (mut left, mut before) = (vec![0; nodes.len()], vec![Vec::new(); nodes.len()]);
    for (i, node) in nodes.iter().enumerate().filter(|(_, node)| node.own.is_none()) {
        left[i] = node.also.len();
        node.also.iter().for_each(|also| before[*also].push(i));
    }
    let mut open: Vec<usize> = (0..nodes.len()).filter(|i| left[*i] == 0).collect();
    while let Some(i) = open.pop() {
        let first = || nodes[i].also.iter().find_map(|also| said[*also]);
        said[i] = if nodes[i].own.is_some() { Some(i) } else { first() };
        is_known[i] = true;
        for before in &before[i] {
            left[*before] -= 1;
            if left[*before] == 0 {
                open.push(*before);
            }
        }
    }
    let mut looks = Looks(0);
    for start in (0..nodes.len()).filter(|i| !is_known[*i]) {
        let (mut seen, mut open) = (HashSet::new(), vec![start]);
        while let Some(i) = open.pop() {
            looks.take(1)?;
            if is_known[i] && said[i].is_some() {
                said[start] = said[i];
                break;
            }
            if !is_known[i] && seen.insert(i) {
                open.extend(nodes[i].also.iter().rev());
            }
        }
    }
    Ok(said)
}

/// Forgets what leads to no default.
fn prune(nodes: &mut [Node<'_, '_>]) {
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
    for node in nodes {
        node.properties.retain(|(_, below)| leads[*below]);
        node.also.retain(|also| leads[*also]);
        node.items = node.items.filter(|items| leads[*items]);
        // The places of the others count.
        if !node.prefix.iter().any(|below| leads[*below]) && node.items.is_none() {
            node.prefix.clear();
        }
    }
}

/// How often it was looked at which parts hold together.
struct Looks(usize);

impl Looks {
    fn take(&mut self, looks: usize) -> Result<(), Fault> {
        self.0 += looks;
        if self.0 > LOOKS_MAX {
            let what = "says of too many values with too many of its parts at once what they have";
            let what = format!("{what} by default: it takes more than {LOOKS_MAX} looks");
            return Err((String::new(), what));
        }
        Ok(())
    }
}

/// Finds which parts hold together, from some places down to all below them.
pub(super) struct Places<'n, 'r, 't> {
    schema: &'n Schema<'r, 't>,
    known: HashMap<Vec<usize>, usize>,
    places: Vec<Place>,
    open: Vec<(usize, Vec<usize>)>,
    looks: Looks,
}

impl<'n, 'r, 't> Places<'n, 'r, 't> {
    pub(super) fn new(schema: &'n Schema<'r, 't>) -> Self {
        let (known, places, open) = Default::default();
        Self { schema, known, places, open, looks: Looks(0) }
    }

    /// The place where these parts hold, and all that say more of the same value; none: they say nothing of what is in
    /// it.
    pub(super) fn place(
        &mut self,
        nodes: impl IntoIterator<Item = usize>,
    ) -> Result<Option<usize>, Fault> {
        let mut open: Vec<usize> = nodes.into_iter().collect();
        open.reverse();
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        while let Some(node) = open.pop() {
            self.looks.take(1)?;
            if seen.insert(node) {
                let said = &self.schema.nodes[node];
                open.extend(said.also.iter().rev());
                if said.leads_below() {
                    all.push(node);
                }
            }
        }
        if all.is_empty() {
            return Ok(None);
        }
        let next = self.places.len();
        let place = *self.known.entry(all.clone()).or_insert(next);
        if place == next {
            self.places.push(Place::default());
            self.open.push((place, all));
        }
        Ok(Some(place))
    }

    /// Reads the places that were asked for, and those below them.
    fn read_all(&mut self) -> Result<(), Fault> {
        while let Some((place, all)) = self.open.pop() {
            self.places[place] = self.read(&all)?;
        }
        Ok(())
    }

    /// The defaults at the places that were asked for, and below them.
    pub(super) fn done(mut self) -> Result<Defaults, Fault> {
        self.read_all()?;
        let Schema { nodes, keys } = self.schema;
        // What is not said at these places is not kept.
        let taken = || self.places.iter().flat_map(|place| &place.defaults);
        let names: HashSet<usize> = taken().map(|(key, _)| *key).collect();
        let texts: HashSet<usize> = taken().map(|(_, said)| *said).collect();
        let below = self.places.iter().flat_map(|place| place.properties.keys());
        let used: HashSet<usize> = names.iter().chain(below).copied().collect();
        let known = keys.iter().filter(|(_, i)| used.contains(i)).map(|(key, i)| (*i, *key));
        let known: HashMap<usize, &str> = known.collect();
        Ok(Defaults {
            places: self.places,
            names: names
                .into_iter()
                .map(|key| (key, Value::from(known[&key]).to_string()))
                .collect(),
            keys: known.into_iter().map(|(i, key)| (key.to_owned(), i)).collect(),
            texts: texts
                .into_iter()
                .filter_map(|said| Some((said, nodes[said].own?.text.to_owned())))
                .collect(),
        })
    }

    fn read(&mut self, all: &[usize]) -> Result<Place, Fault> {
        let mut place = Place::default();
        let (mut known, mut below) = (HashSet::new(), HashMap::<_, Vec<usize>>::new());
        let nodes: Vec<&Node<'r, 't>> = all.iter().map(|node| &self.schema.nodes[*node]).collect();
        for node in &nodes {
            self.looks.take(node.defaults.len() + node.properties.len())?;
            let first = node.defaults.iter().filter(|(key, _)| known.insert(*key));
            place.defaults.extend(first);
            for (key, node) in &node.properties {
                below.entry(*key).or_default().push(*node);
            }
        }
        for (key, nodes) in below {
            if let Some(below) = self.place(nodes)? {
                place.properties.insert(key, below);
            }
        }
        for i in 0..nodes.iter().map(|node| node.prefix.len()).max().unwrap_or_default() {
            self.looks.take(nodes.len())?;
            let here = nodes.iter().filter_map(|node| node.prefix.get(i).copied().or(node.items));
            place.prefix.push(self.place(here)?);
        }
        place.items = self.place(nodes.iter().filter_map(|node| node.items))?;
        Ok(place)
    }
}

/// Where a part of a schema stands: a JSON pointer.
fn pointer(root: &Raw<'_>, part: &Raw<'_>) -> String {
    let (mut raw, mut pointer) = (root, String::new());
    while raw.address() != part.address() {
        let is_before = |other: &Raw<'_>| other.address() <= part.address();
        // Parts stand in the order of their addresses.
        let (segment, below) = match &raw.parts {
            Parts::Object(members) => {
                let next = members.partition_point(|(_, other)| is_before(other));
                let member = next.checked_sub(1).and_then(|i| members.get(i));
                (member.map(|(key, _)| escaped(key)), member.map(|(_, below)| below))
            }
            Parts::Array(items) => {
                let next = items.partition_point(is_before);
                let i = next.checked_sub(1);
                (i.map(|i| i.to_string()), i.and_then(|i| items.get(i)))
            }
            Parts::Other => (None, None),
        };
        let (Some(segment), Some(below)) = (segment, below) else { break };
        pointer.push('/');
        pointer.push_str(&segment);
        raw = below;
    }
    pointer
}

/// The parts that have a name, wherever they stand; and whether a part has an address of its own.
fn anchors_of<'r, 't>(
    raw: &'r Raw<'t>,
    is_root: bool,
    anchors: &mut HashMap<String, &'r Raw<'t>>,
) -> bool {
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
                            has_bases |= id.is_some() && !is_root;
                            None
                        }
                    },
                    _ => None,
                };
                if let Some(name) = name {
                    anchors.entry(name).or_insert(raw);
                }
                has_bases |= anchors_of(part, false, anchors);
            }
        }
        Parts::Array(items) => {
            for part in items {
                has_bases |= anchors_of(part, false, anchors);
            }
        }
        Parts::Other => {}
    }
    has_bases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many parts a schema has that were read, and how often it was looked at which hold together.
    fn looks(text: &str) -> Result<(usize, usize), Fault> {
        let root = Raw::read(text).unwrap();
        let schema = read(&root)?;
        let mut places = Places::new(&schema);
        places.place([0])?;
        places.read_all()?;
        Ok((schema.nodes.len(), places.looks.0))
    }

    /// Links that each refer twice to the next, and members that refer to the first.
    fn chain(links: usize, takers: usize, last: &str) -> String {
        let twice = |i: usize| {
            let next = format!(r##"{{"$ref": "#/$defs/d{}"}}"##, i + 1);
            format!(r#""d{i}": {{"allOf": [{next}, {next}]}}"#)
        };
        let all =
            |n: usize, one: &dyn Fn(usize) -> String| (0..n).map(one).collect::<Vec<_>>().join(",");
        let takers = all(takers, &|i| format!(r##""p{i}": {{"$ref": "#/$defs/d0"}}"##));
        let links = all(links, &twice);
        format!(r#"{{"properties": {{{takers}}}, "$defs": {{{links}, "last": {last}}}}}"#)
            .replace(r#""last""#, &format!(r#""d{}""#, links.matches("allOf").count()))
    }

    #[test]
    fn a_chain_of_references_is_gone_along_once_however_many_lead_to_it() {
        let (nodes, count) = looks(&chain(1_000, 900, r#"{"default": 1}"#)).unwrap();
        assert_eq!(nodes, 1 + 900 + 3 * 1_000 + 1);
        assert!(count < 2 * nodes, "{count}");
        // What leads to what is in it is gone along by each that does so.
        let below = r#"{"properties": {"a": {"default": 1}}}"#;
        assert!(looks(&chain(100, 100, below)).unwrap().1 < 60_000);
        let (at, what) = looks(&chain(1_000, 900, below)).unwrap_err();
        assert!(at.is_empty() && what.contains("100000 looks"), "{what}");
    }

    #[test]
    fn a_circle_without_a_default_is_gone_round_so_often_and_no_more() {
        let circle = |links: usize| {
            chain(
                links,
                1,
                r##"{"allOf": [{"$ref": "#/$defs/d0"}], "properties": {"a": {"default": 1}}}"##,
            )
        };
        assert!(looks(&circle(50)).is_ok());
        assert!(looks(&circle(1_000)).unwrap_err().1.contains("100000 looks"));
    }

    #[test]
    fn parts_that_hold_together_in_too_many_ways_are_refused() {
        // Whether an `a` stood so many levels above: each level doubles what is to be known.
        let schema = |levels: usize| {
            let next = |i: usize| {
                let next = format!(r##"{{"$ref": "#/$defs/q{}"}}"##, i + 1);
                format!(r#""q{i}": {{"properties": {{"a": {next}, "b": {next}}}}}"#)
            };
            let all: Vec<String> = (1..levels).map(next).collect();
            format!(
                r##"{{"$ref": "#/$defs/q0", "$defs": {{
                    "q0": {{"properties": {{"a": {{"allOf": [{{"$ref": "#/$defs/q0"}}, {{"$ref": "#/$defs/q1"}}]}},
                                            "b": {{"$ref": "#/$defs/q0"}}}}}},
                    {}, "q{levels}": {{"properties": {{"c": {{"default": 1}}}}}}}}}}"##,
                all.join(",")
            )
        };
        assert!(looks(&schema(8)).is_ok());
        assert!(looks(&schema(20)).unwrap_err().1.contains("100000 looks"));
    }

    #[test]
    fn the_largest_ordinary_schema_is_far_from_the_bound() {
        let address = r##"{"$ref": "#/$defs/address"}"##;
        let all: Vec<String> = (0..900).map(|i| format!(r#""address_{i}": {address}"#)).collect();
        let parts: Vec<String> = (0..900)
            .map(|i| format!(r#""part_{i}": {{"default": "{}"}}"#, "x".repeat(100)))
            .collect();
        let text = format!(
            r#"{{"properties": {{{}}}, "$defs": {{"address": {{"properties": {{{}}}}}}}}}"#,
            all.join(","),
            parts.join(",")
        );
        assert!((100_000..256 << 10).contains(&text.len()), "{}", text.len());
        let (_, looks) = looks(&text).unwrap();
        assert!(looks < LOOKS_MAX / 10, "{looks}");
    }

    #[test]
    fn a_part_is_found_again_where_it_stands() {
        let text = r#"{"a": [1, {"b/c": {}, "b~": {"default": 1}}], "": [[true]]}"#;
        let root = Raw::read(text).unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        let mut open = vec![(String::new(), &root)];
        while let Some((at, part)) = open.pop() {
            assert_eq!(pointer(&root, part), at);
            assert_eq!(value.pointer(&at), serde_json::from_str(part.text).ok().as_ref());
            match &part.parts {
                Parts::Object(members) => open.extend(
                    members.iter().map(|(key, below)| (format!("{at}/{}", escaped(key)), below)),
                ),
                Parts::Array(items) => {
                    let items = items.iter().enumerate();
                    open.extend(items.map(|(i, below)| (format!("{at}/{i}"), below)));
                }
                Parts::Other => {}
            }
        }
    }
}
