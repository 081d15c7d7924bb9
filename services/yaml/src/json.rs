//! Free mappings (schemas, configurations) → JSON text. Numbers keep their digits.

use crate::{
    node::{Node, ScalarKind, Value, scalar_kind},
    read::{Reader, child},
};

/// The node as JSON text.
pub(crate) fn object_text(reader: &mut Reader, path: &str, node: &Node) -> String {
    let mut text = String::new();
    write(reader, path, node, &mut text);
    text
}

fn write(reader: &mut Reader, path: &str, node: &Node, out: &mut String) {
    reader.place(path, node.at);
    match &node.value {
        Value::Map(entries) => {
            out.push('{');
            for (i, (key, value)) in reader.unique(path, entries).into_iter().enumerate() {
                separate(i, out);
                string(&key.text, out);
                out.push(':');
                write(reader, &child(path, &key.text), value, out);
            }
            out.push('}');
        }
        Value::List(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(i, out);
                write(reader, &format!("{path}[{i}]"), item, out);
            }
            out.push(']');
        }
        Value::Scalar { text, plain: false } => string(text, out),
        Value::Scalar { text, plain: true } => match scalar_kind(text) {
            ScalarKind::Nothing => out.push_str("null"),
            ScalarKind::Bool(bool) => out.push_str(if bool { "true" } else { "false" }),
            ScalarKind::Number(number) => out.push_str(&number),
            ScalarKind::Text => string(text, out),
            ScalarKind::NotFinite => {
                reader.fault(path, node.at, "is not finite, and JSON has no such number");
                out.push_str("null");
            }
        },
    }
}

fn separate(i: usize, out: &mut String) {
    if i > 0 {
        out.push(',');
    }
}

fn string(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("every string has a JSON form"));
}
