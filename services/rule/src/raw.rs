//! JSON text as a tree whose parts keep their text: what is changed in one place stays byte for byte in all others.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// A part of JSON text.
#[derive(Debug)]
pub(crate) struct Raw<'t> {
    /// As it is written.
    pub(crate) text: &'t str,
    /// What is in it.
    pub(crate) parts: Parts<'t>,
}

/// What is in a part.
#[derive(Debug)]
pub(crate) enum Parts<'t> {
    /// Members in their order; one may stand twice.
    Object(Vec<(String, Raw<'t>)>),
    Array(Vec<Raw<'t>>),
    Other,
}

impl<'t> Raw<'t> {
    /// Reads text; none: it is not JSON.
    pub(crate) fn read(text: &'t str) -> Option<Self> {
        let text = text.trim_ascii();
        let parts = match text.as_bytes().first()? {
            b'{' => {
                let Members(members) = serde_json::from_str(text).ok()?;
                let read = |(key, raw): (String, &'t RawValue)| Some((key, Self::read(raw.get())?));
                Parts::Object(members.into_iter().map(read).collect::<Option<_>>()?)
            }
            b'[' => {
                let items: Vec<&'t RawValue> = serde_json::from_str(text).ok()?;
                let read = |raw: &'t RawValue| Self::read(raw.get());
                Parts::Array(items.into_iter().map(read).collect::<Option<_>>()?)
            }
            _ => Parts::Other,
        };
        Some(Self { text, parts })
    }

    /// The member of an object that counts: the last of its name.
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        let Parts::Object(members) = &self.parts else { return None };
        members.iter().rev().find(|(key, _)| key == name).map(|(_, raw)| raw)
    }

    /// What tells it from all other parts of the same text: each begins elsewhere, later ones higher.
    pub(crate) fn address(&self) -> usize {
        self.text.as_ptr() as usize
    }

    /// Where a part of it begins and ends in its text.
    pub(crate) fn span(&self, part: &Self) -> (usize, usize) {
        let from = part.address() - self.address();
        (from, from + part.text.len())
    }
}

struct Members<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
