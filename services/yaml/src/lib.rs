//! What people write: YAML as a tree that knows where each node stands, read field by field so that one look
//! finds all faults with their places; and the rules that names, versions and durations obey.

mod json;
mod node;
mod read;

use std::{collections::HashMap, fmt};

use stepwell_rule as rule;

pub use node::{Broken, Key, Node, Place, START, ScalarKind, Value, parse, scalar_kind};
pub use read::{Fields, Reader, child};

/// A fault of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextFault {
    /// The field, such as `steps[2].timeout`; empty: the whole text.
    pub path: String,
    /// Where.
    pub at: Place,
    /// What is wrong.
    pub what: String,
}

/// Where the fields stand.
#[derive(Debug, Default)]
pub struct Places(HashMap<String, Place>);

impl Places {
    pub(crate) fn put(&mut self, path: &str, at: Place) {
        self.0.entry(path.to_owned()).or_insert(at);
    }

    /// The place of a field that is there.
    pub fn get(&self, path: &str) -> Option<Place> {
        self.0.get(path).copied()
    }

    /// The place of a field, or of the closest thing around it.
    pub fn around(&self, path: &str) -> Option<Place> {
        let mut path = path;
        loop {
            if let Some(at) = self.get(path) {
                return Some(at);
            }
            let Some(end) = path.rfind(['.', '[']) else { return self.get("") };
            path = &path[..end];
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The faults as an answer has them, in the order of the text.
pub fn told(mut faults: Vec<TextFault>) -> Vec<rule::Fault> {
    faults.sort_by_key(|fault| fault.at);
    let told = faults.into_iter().map(|TextFault { path, at, what }| {
        let path = if path.is_empty() { "yaml" } else { &path };
        (format!("{path} at {at}"), what)
    });
    told.collect()
}
