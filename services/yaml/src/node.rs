//! YAML text → a tree that knows where each node stands. Anchors and aliases are expanded here,
//! within bounds, so that nothing behind this file can be blown up by them. What the nodes mean
//! is decided by their readers.

use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Tag};

/// Most nodes of a document, aliases expanded.
const NODES_MAX: usize = 200_000;
/// Most bytes of text of a document, aliases expanded.
const BYTES_MAX: usize = 4 << 20;
/// Most levels of a document, aliases expanded.
const DEPTH_MAX: usize = 100;

/// A place in the text. Both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Character in the line.
    pub column: usize,
}

/// Where every text begins.
pub const START: Place = Place { line: 1, column: 1 };

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

/// One node of a document.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub at: Place,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text. Plain (unquoted) text may stand for a number, a boolean or nothing.
    Scalar {
        /// As it reads.
        text: String,
        /// True when it was not quoted.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the text, repeated keys included.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where it begins.
    pub at: Place,
    /// As it reads.
    pub text: String,
}

impl Value {
    /// For people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Scalar { plain: false, .. } => "text",
            Self::Scalar { text, .. } => match scalar_kind(text) {
                ScalarKind::Nothing => "empty",
                ScalarKind::Bool(_) => "a boolean",
                ScalarKind::Number(_) | ScalarKind::NotFinite => "a number",
                ScalarKind::Text => "text",
            },
        }
    }
}

/// What plain text stands for, by the core schema of YAML 1.2.
#[derive(Debug, PartialEq, Eq)]
pub enum ScalarKind {
    /// Null.
    Nothing,
    /// True or false.
    Bool(bool),
    /// A number, written as JSON writes it, digit for digit.
    Number(String),
    /// An infinity or no number.
    NotFinite,
    /// Itself.
    Text,
}

/// Decides what plain text stands for.
pub fn scalar_kind(text: &str) -> ScalarKind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return ScalarKind::Nothing,
        "true" | "True" | "TRUE" => return ScalarKind::Bool(true),
        "false" | "False" | "FALSE" => return ScalarKind::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return ScalarKind::NotFinite,
        _ => {}
    }
    if matches!(text.trim_start_matches(['+', '-']), ".inf" | ".Inf" | ".INF") {
        return ScalarKind::NotFinite;
    }
    number(text).map_or(ScalarKind::Text, ScalarKind::Number)
}

fn number(text: &str) -> Option<String> {
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            let digit = |c: char| c.is_digit(radix);
            let plain = !digits.is_empty() && digits.chars().all(digit);
            return plain.then(|| u128::from_str_radix(digits, radix).ok())?.map(|n| n.to_string());
        }
    }
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    let any = !whole.is_empty() || fraction.is_some_and(|f| !f.is_empty());
    if !any || !digits(whole) || !fraction.is_none_or(digits) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let mut json = format!("{sign}{}", if whole.is_empty() { "0" } else { whole });
    if let Some(fraction) = fraction.filter(|f| !f.is_empty()) {
        json += &format!(".{fraction}");
    }
    if let Some(exponent) = exponent {
        let power = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if power.is_empty() || !digits(power) {
            return None;
        }
        json += &format!("e{exponent}");
    }
    Some(json)
}

/// Why a text has no tree: where and what.
pub type Broken = (Place, String);

/// Reads one document.
pub fn parse(text: &str) -> Result<Node, Broken> {
    let mut builder = Builder::default();
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|e| {
            let what = e.to_string();
            (Place::from(*e.marker()), format!("is not YAML: {}", reason(&what)))
        })?;
        builder.take(event, span.start.into())?;
    }
    builder.root.ok_or_else(|| (START, "is empty".into()))
}

/// The parser's message without the place it appends.
fn reason(message: &str) -> &str {
    message
        .find(" at byte ")
        .or_else(|| message.find(" at line "))
        .map_or(message, |at| &message[..at])
}

/// A finished node and how much it holds.
#[derive(Clone)]
struct Sized {
    node: Node,
    nodes: usize,
    bytes: usize,
    depth: usize,
}

/// A collection whose end was not seen yet.
struct Frame {
    at: Place,
    anchor: usize,
    is_map: bool,
    key: Option<Key>,
    items: Vec<Node>,
    entries: Vec<(Key, Node)>,
    nodes: usize,
    bytes: usize,
    depth: usize,
}

#[derive(Default)]
struct Builder {
    open: Vec<Frame>,
    anchors: HashMap<usize, Sized>,
    anchored: usize,
    nodes: usize,
    bytes: usize,
    documents: usize,
    root: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Place) -> Result<(), Broken> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err((at, "must be one document".into()));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                no_tag(tag.as_deref(), at)?;
                let (bytes, plain) = (text.len(), style == ScalarStyle::Plain);
                let value = Value::Scalar { text: text.into_owned(), plain };
                let sized = Sized { node: Node { at, value }, nodes: 1, bytes, depth: 1 };
                self.count(1, bytes, at)?;
                self.finish(sized, anchor)?;
            }
            Event::Alias(anchor) => {
                let Some(sized) = self.anchors.get(&anchor) else {
                    return Err((at, "is an alias inside of what it stands for".into()));
                };
                let (nodes, bytes) = (sized.nodes, sized.bytes);
                self.count(nodes, bytes, at)?;
                let mut copy = self.anchors[&anchor].clone();
                copy.node.at = at;
                self.finish(copy, 0)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                no_tag(tag.as_deref(), at)?;
                self.start(at, anchor, false)?;
            }
            Event::MappingStart(_, anchor, tag) => {
                no_tag(tag.as_deref(), at)?;
                self.start(at, anchor, true)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.end()?,
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self, at: Place, anchor: usize, is_map: bool) -> Result<(), Broken> {
        self.count(1, 0, at)?;
        let (items, entries) = (Vec::new(), Vec::new());
        let (nodes, bytes, depth) = (1, 0, 1);
        self.open.push(Frame {
            at,
            anchor,
            is_map,
            key: None,
            items,
            entries,
            nodes,
            bytes,
            depth,
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Broken> {
        let frame = self.open.pop().expect("the parser pairs starts and ends");
        let Frame { at, items, entries, nodes, bytes, depth, .. } = frame;
        let value = if frame.is_map { Value::Map(entries) } else { Value::List(items) };
        self.finish(Sized { node: Node { at, value }, nodes, bytes, depth }, frame.anchor)
    }

    /// Puts a finished node where it belongs.
    fn finish(&mut self, sized: Sized, anchor: usize) -> Result<(), Broken> {
        if sized.depth > DEPTH_MAX {
            return Err((sized.node.at, format!("is nested deeper than {DEPTH_MAX} levels")));
        }
        if anchor != 0 {
            // Kept copies of copies would grow as the square of the text.
            self.anchored += sized.nodes;
            if self.anchored > NODES_MAX {
                return Err((sized.node.at, "has too much under anchors".into()));
            }
            self.anchors.insert(anchor, sized.clone());
        }
        let Some(frame) = self.open.last_mut() else {
            self.root = Some(sized.node);
            return Ok(());
        };
        frame.nodes += sized.nodes;
        frame.bytes += sized.bytes;
        frame.depth = frame.depth.max(sized.depth + 1);
        if !frame.is_map {
            frame.items.push(sized.node);
        } else if let Some(key) = frame.key.take() {
            frame.entries.push((key, sized.node));
        } else {
            frame.key = Some(key(sized.node)?);
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, bytes: usize, at: Place) -> Result<(), Broken> {
        self.nodes += nodes;
        self.bytes += bytes;
        if self.nodes > NODES_MAX || self.bytes > BYTES_MAX {
            return Err((at, "grows too large when its aliases are expanded".into()));
        }
        Ok(())
    }
}

fn key(node: Node) -> Result<Key, Broken> {
    match node.value {
        Value::Scalar { text, plain } if !(plain && text == "<<") => Ok(Key { at: node.at, text }),
        Value::Scalar { .. } => Err((node.at, "`<<` is not supported; write the keys out".into())),
        _ => Err((node.at, "is a key and must be text".into())),
    }
}

fn no_tag(tag: Option<&Tag>, at: Place) -> Result<(), Broken> {
    tag.map_or(Ok(()), |_| Err((at, "has a tag; tags are not supported".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_means_what_the_core_schema_says() {
        let number = |text: &str| ScalarKind::Number(text.into());
        for (text, kind) in [
            ("~", ScalarKind::Nothing),
            ("True", ScalarKind::Bool(true)),
            ("yes", ScalarKind::Text),
            ("12345678901234567890123", number("12345678901234567890123")),
            ("1.10", number("1.10")),
            ("+7", number("7")),
            ("-007", number("-7")),
            (".5", number("0.5")),
            ("5.", number("5")),
            ("1E+3", number("1e+3")),
            ("0x1F", number("31")),
            ("0o17", number("15")),
            ("-.inf", ScalarKind::NotFinite),
            ("1.0.0", ScalarKind::Text),
            ("1e", ScalarKind::Text),
            ("1_000", ScalarKind::Text),
            ("0x", ScalarKind::Text),
            (".", ScalarKind::Text),
            ("-", ScalarKind::Text),
            ("1é", ScalarKind::Text),
        ] {
            assert_eq!(scalar_kind(text), kind, "{text}");
        }
    }

    #[test]
    fn aliases_are_expanded_within_bounds() {
        let node = parse("a: &x [1, 2]\nb: *x\n").unwrap();
        let Value::Map(entries) = node.value else { panic!("a mapping") };
        assert!(matches!(&entries[1].1.value, Value::List(items) if items.len() == 2));
        assert_eq!(entries[1].1.at, Place { line: 2, column: 4 });

        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let before = format!("*a{}", i - 1);
            bomb += &format!("a{i}: &a{i} [{}]\n", [before.as_str(); 9].join(", "));
        }
        let (at, what) = parse(&bomb).unwrap_err();
        assert!(what.contains("too "), "{what}");
        assert!(at.line < 8);

        let mut chain = String::from("a0: &a0 x\n");
        for i in 1..300 {
            chain += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
        }
        assert!(parse(&chain).unwrap_err().1.contains("deeper"));
        assert!(parse("a: &a [*a]").is_err());
    }

    #[test]
    fn what_is_not_one_plain_document_is_refused() {
        for (text, line, what) in [
            ("", 1, "is empty"),
            ("a: 1\n---\nb: 2\n", 2, "one document"),
            ("a: !!binary xx\n", 1, "tags"),
            ("a: *x\n", 1, "is not YAML"),
            ("a: [1\nb: 2\n", 2, "is not YAML"),
            ("b: &b {x: 1}\na:\n  <<: *b\n", 3, "`<<`"),
            ("? [a]\n: 1\n", 1, "must be text"),
        ] {
            let (at, message) = parse(text).unwrap_err();
            assert_eq!((at.line, message.contains(what)), (line, true), "{text}: {at:?} {message}");
        }
        assert!(parse(&"[".repeat(5000)).is_err());
    }
}
