//! A diagram as a Mermaid flowchart.

use std::fmt::Write;

use super::{Diagram, label_lines, letters, shown};

/// The diagram.
pub(super) fn text(diagram: &Diagram) -> String {
    let mut out = format!("graph {}\n", letters(diagram.direction));
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(out, "{text}").expect("text can always be written");
    };
    line(format_args!("subgraph \"{}\"", escaped(&diagram.title)));
    for node in &diagram.nodes {
        let label: Vec<String> = label_lines(node).map(escaped).collect();
        line(format_args!("  {}[\"{}\"]", node.id, label.join("<br/>")));
        if let Some(url) = &node.url {
            line(format_args!("  click {} \"{url}\"", node.id));
        }
        if let Some(colour) = node.colour {
            line(format_args!("  style {} fill:{colour};", node.id));
        }
    }
    for edge in &diagram.edges {
        let (source, target) = diagram.ends(edge);
        match edge.label {
            Some(label) => line(format_args!("  {source} -->|\"{label}\"| {target}")),
            None => line(format_args!("  {source} --> {target}")),
        }
    }
    line(format_args!("end"));
    out
}

/// A text as it stands between quotes: whatever Mermaid, Markdown or HTML could take for their own is a
/// numeric entity. A colon is plain only before a space, where no `style` statement goes on; `_` and `-` only
/// inside words and dots only in rows, where they mean nothing.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().map(shown).peekable();
    let mut before = ' ';
    while let Some(c) = rest.next() {
        let next = rest.peek().copied().unwrap_or('\n');
        let is_plain = match c {
            ' ' | ',' | '/' | '\'' => true,
            ':' => next == ' ',
            '.' => before == '.' || next == '.',
            '_' | '-' => before.is_alphanumeric() && next.is_alphanumeric(),
            c => c.is_alphanumeric(),
        };
        match c {
            '"' => out.push('\''),
            c if is_plain => out.push(c),
            c => write!(out, "#{};", u32::from(c)).expect("text can always be written"),
        }
        before = c;
    }
    out
}
