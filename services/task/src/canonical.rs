//! One form for equal JSON: keys sorted, no space, numbers digit for digit as they were written.
//! What is compared by hash is brought into it first.

use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The value in canonical form.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            list(('{', '}'), entries, out, |(key, value), out| {
                string(key, out);
                out.push(':');
                write(value, out);
            });
        }
        Value::Array(items) => list(('[', ']'), items, out, write),
        Value::String(text) => string(text, out),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::Bool(bool) => out.push_str(if *bool { "true" } else { "false" }),
        Value::Null => out.push_str("null"),
    }
}

fn list<T>(
    (open, close): (char, char),
    items: impl IntoIterator<Item = T>,
    out: &mut String,
    write: impl Fn(T, &mut String),
) {
    out.push(open);
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(close);
}

fn string(text: &str, out: &mut String) {
    out.push_str(&Value::from(text).to_string());
}

/// SHA-256 of parts, each with its length in front, so that no two lists of parts are alike.
#[derive(Default)]
pub struct Hash(Sha256);

impl Hash {
    /// Adds a part.
    #[must_use]
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    /// The first half of the hash, where it stands for what it is of.
    pub fn uuid(self) -> Uuid {
        let hash = self.done();
        let (first, _) = hash.split_first_chunk().expect("it has 32 bytes");
        Uuid::from_bytes(*first)
    }

    /// The hash of the parts.
    pub fn done(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(json: &str) -> String {
        text(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn order_and_space_do_not_count_but_digits_do() {
        let form = r#"{"a":[1,{"x":null,"y":true}],"b":"ä\n"}"#;
        assert_eq!(canonical(r#" {"b": "\u00e4\n", "a": [1, {"y": true, "x": null}]} "#), form);
        assert_eq!(canonical("12345678901234567890123"), "12345678901234567890123");
        assert_ne!(canonical("1.0"), canonical("1.00"));
        assert_ne!(canonical("1"), canonical("1.0"));
        assert_ne!(canonical("[1,2]"), canonical("[2,1]"));
    }

    #[test]
    fn parts_do_not_run_together() {
        let hash = |parts: &[&str]| parts.iter().fold(Hash::default(), Hash::part).done();
        assert_eq!(hash(&["ab", "c"]), hash(&["ab", "c"]));
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["ab", ""]), hash(&["ab"]));
    }

    proptest::proptest! {
        #[test]
        fn canonical_form_is_json_of_the_same_value(
            keys in proptest::collection::vec("[a-c\"\\\\ä]{0,3}", 0..5), n in proptest::num::f64::NORMAL,
        ) {
            let map: serde_json::Map<_, _> =
                keys.iter().map(|k| (k.clone(), serde_json::json!([n, k]))).collect();
            let value = Value::Object(map);
            let form = text(&value);
            let again: Value = serde_json::from_str(&form).unwrap();
            proptest::prop_assert_eq!(&again, &value);
            proptest::prop_assert_eq!(text(&again), form);
        }
    }
}
