//! Typed reading of nodes: each function takes a field, records where it stands, and either gives
//! its value or notes a fault and goes on, so that one look at a text finds all its faults.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use crate::{
    Places, TextFault,
    json::object_text,
    node::{Key, Node, Place, ScalarKind, Value, scalar_kind},
    rule::{self, FAULTS_MAX, Fault, quoted, suggestion},
};

/// Collects places and faults.
#[derive(Debug, Default)]
pub struct Reader {
    faults: Vec<TextFault>,
    places: Places,
}

/// The fields of a mapping.
#[derive(Debug)]
pub struct Fields<'n> {
    path: String,
    entries: Vec<(&'n str, &'n Node)>,
}

impl<'n> Fields<'n> {
    /// A field that is there, with its path.
    pub fn get(&self, key: &str) -> Option<(String, &'n Node)> {
        let (_, node) = self.entries.iter().find(|(k, _)| *k == key)?;
        Some((child(&self.path, key), node))
    }
}

/// A path longer than this is not made longer: it is for people.
const PATH_BYTES_MAX: usize = 200;

/// The path of a field of what is at `path`.
pub fn child(path: &str, key: &str) -> String {
    if path.is_empty() {
        return key.to_owned();
    }
    if path.len() + key.len() > PATH_BYTES_MAX {
        return path.to_owned();
    }
    format!("{path}.{key}")
}

impl Reader {
    /// What it found wrong, and where everything stands.
    pub fn done(self) -> (Vec<TextFault>, Places) {
        (self.faults, self.places)
    }

    /// Notes a fault.
    pub fn fault(&mut self, path: &str, at: Place, what: impl Into<String>) {
        // One more than is told, so that the reader of the list knows that there are more.
        if self.faults.len() <= FAULTS_MAX {
            self.faults.push(TextFault { path: path.to_owned(), at, what: what.into() });
        }
    }

    /// Notes where a field stands.
    pub fn place(&mut self, path: &str, at: Place) {
        self.places.put(path, at);
    }

    /// Takes faults that know their path only.
    pub fn add(&mut self, faults: &[Fault]) {
        for (path, what) in faults {
            if let Some(at) = self.places.around(path) {
                self.fault(path, at, what.clone());
            }
        }
    }

    /// The node as a mapping with these keys.
    pub fn fields<'n>(&mut self, path: &str, node: &'n Node, known: &[&'static str]) -> Fields<'n> {
        self.fields_of(path, node, known, true)
    }

    /// The node as a mapping of which only these keys are looked at.
    pub fn some_fields<'n>(
        &mut self,
        path: &str,
        node: &'n Node,
        known: &[&'static str],
    ) -> Fields<'n> {
        self.fields_of(path, node, known, false)
    }

    fn fields_of<'n>(
        &mut self,
        path: &str,
        node: &'n Node,
        known: &[&'static str],
        only: bool,
    ) -> Fields<'n> {
        self.place(path, node.at);
        let mut fields = Fields { path: path.to_owned(), entries: Vec::new() };
        let Value::Map(entries) = &node.value else {
            self.wrong::<()>(path, node, "a mapping");
            return fields;
        };
        for (key, value) in self.unique(path, entries) {
            if known.contains(&key.text.as_str()) {
                self.place(&child(path, &key.text), value.at);
                fields.entries.push((&key.text, value));
            } else if only {
                let hint = match suggestion(&key.text, known.iter().copied()) {
                    hint if hint.is_empty() => format!("; known are {}", known.join(", ")),
                    hint => hint,
                };
                let name = key.text.chars().take(rule::NAME_BYTES_MAX).collect::<String>();
                self.fault(&child(path, &name), key.at, format!("is unknown{hint}"));
            }
        }
        fields
    }

    /// The entries of a mapping whose keys are free, each key once.
    pub fn entries<'n>(&mut self, path: &str, node: &'n Node) -> Vec<&'n (Key, Node)> {
        self.place(path, node.at);
        let Value::Map(entries) = &node.value else {
            self.wrong::<()>(path, node, "a mapping");
            return Vec::new();
        };
        self.unique(path, entries)
    }

    /// The entries of a mapping without those whose key was there before.
    pub(crate) fn unique<'n>(
        &mut self,
        path: &str,
        entries: &'n [(Key, Node)],
    ) -> Vec<&'n (Key, Node)> {
        let mut seen = std::collections::HashMap::new();
        let mut unique = Vec::with_capacity(entries.len());
        for entry in entries {
            let (key, _) = entry;
            match seen.insert(key.text.as_str(), key.at) {
                None => unique.push(entry),
                Some(first) => {
                    let what = format!("has the key {} twice; first at {first}", quoted(&key.text));
                    self.fault(path, key.at, what);
                }
            }
        }
        unique
    }

    /// The items of a list of mappings, each with its path.
    pub fn items<'n>(&mut self, fields: &Fields<'n>, key: &str) -> Vec<(String, &'n Node)> {
        let Some((path, node)) = fields.get(key) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.wrong::<()>(&path, node, "a list");
            return Vec::new();
        };
        items.iter().enumerate().map(|(i, item)| (format!("{path}[{i}]"), item)).collect()
    }

    /// A field that is text; empty if it is not there.
    pub fn text(&mut self, fields: &Fields<'_>, key: &str) -> String {
        let Some((path, node)) = fields.get(key) else { return String::new() };
        self.text_of(&path, node).unwrap_or_default()
    }

    /// A field that is a list of text; empty if it is not there.
    pub fn texts(&mut self, fields: &Fields<'_>, key: &str) -> Vec<String> {
        let items = self.items(fields, key);
        let mut texts = Vec::with_capacity(items.len());
        for (path, node) in items {
            self.place(&path, node.at);
            texts.extend(self.text_of(&path, node));
        }
        texts
    }

    /// A field that is a mapping of text to text; empty if it is not there.
    pub fn text_map(&mut self, fields: &Fields<'_>, key: &str) -> BTreeMap<String, String> {
        let Some((path, node)) = fields.get(key) else { return BTreeMap::new() };
        let Value::Map(entries) = &node.value else {
            self.wrong::<()>(&path, node, "a mapping");
            return BTreeMap::new();
        };
        let mut map = BTreeMap::new();
        for (key, value) in self.unique(&path, entries) {
            let path = child(&path, &key.text);
            self.place(&path, value.at);
            map.extend(self.text_of(&path, value).map(|text| (key.text.clone(), text)));
        }
        map
    }

    fn text_of(&mut self, path: &str, node: &Node) -> Option<String> {
        match &node.value {
            Value::Scalar { text, plain } if !plain || scalar_kind(text) == ScalarKind::Text => {
                Some(text.clone())
            }
            Value::Scalar { text, .. } if scalar_kind(text) != ScalarKind::Nothing => {
                let kind = node.value.kind();
                self.fault(path, node.at, format!("must be text, but is {kind}; quote it"));
                None
            }
            _ => self.wrong(path, node, "text"),
        }
    }

    /// A field that is a whole number within bounds.
    pub fn whole(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        bounds: RangeInclusive<i32>,
    ) -> Option<i32> {
        self.parsed(fields, key, "a whole number", bounds)
    }

    /// A field that is a number within bounds.
    pub fn number(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        bounds: RangeInclusive<f64>,
    ) -> Option<f64> {
        self.parsed(fields, key, "a number", bounds)
    }

    fn parsed<T: FromStr + PartialOrd + Display>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        wanted: &str,
        bounds: RangeInclusive<T>,
    ) -> Option<T> {
        let (path, node) = fields.get(key)?;
        let number = match &node.value {
            Value::Scalar { text, plain: true } => match scalar_kind(text) {
                ScalarKind::Number(number) => Some(number),
                _ => None,
            },
            _ => None,
        };
        let Some(number) = number else { return self.wrong(&path, node, wanted) };
        match number.parse::<T>() {
            Ok(n) if bounds.contains(&n) => Some(n),
            _ => {
                let (low, high) = bounds.into_inner();
                self.fault(&path, node.at, format!("must be {wanted} from {low} to {high}"));
                None
            }
        }
    }

    /// A field that is true or false; false if it is not there.
    pub fn truth(&mut self, fields: &Fields<'_>, key: &str) -> bool {
        let Some((path, node)) = fields.get(key) else { return false };
        if let Value::Scalar { text, plain: true } = &node.value
            && let ScalarKind::Bool(truth) = scalar_kind(text)
        {
            return truth;
        }
        self.wrong(&path, node, "true or false").unwrap_or_default()
    }

    /// A field that is a duration.
    pub fn duration(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        max: Duration,
    ) -> Option<prost_types::Duration> {
        let (path, node) = fields.get(key)?;
        let Value::Scalar { text, .. } = &node.value else {
            return self.wrong(&path, node, "a duration such as `30s`");
        };
        match rule::duration(text) {
            Ok(duration) if duration <= max => {
                Some(duration.try_into().expect("it fits into the message"))
            }
            Ok(_) => {
                self.fault(&path, node.at, format!("must be at most {}", rule::most(max)));
                None
            }
            Err(what) => {
                self.fault(&path, node.at, what);
                None
            }
        }
    }

    /// A field that is a mapping, as JSON text; empty if it is not there.
    pub fn json_object(&mut self, fields: &Fields<'_>, key: &str) -> String {
        let Some((path, node)) = fields.get(key) else { return String::new() };
        if let Value::Map(_) = node.value {
            return object_text(self, &path, node);
        }
        self.wrong::<()>(&path, node, "a mapping");
        String::new()
    }

    fn wrong<T>(&mut self, path: &str, node: &Node, wanted: &str) -> Option<T> {
        let kind = node.value.kind();
        let what = match kind {
            "empty" => format!("is empty; give {wanted} or leave it out"),
            kind => format!("must be {wanted}, but is {kind}"),
        };
        self.fault(path, node.at, what);
        None
    }
}
