//! A diagram as a graph for Graphviz.

use std::fmt::Write;

use stepwell_proto::v1::DiagramDirection;

use super::{Diagram, label_lines, shown};

/// The diagram.
pub(super) fn text(diagram: &Diagram) -> String {
    let direction = match diagram.direction {
        DiagramDirection::Unspecified | DiagramDirection::TopDown => "TB",
        DiagramDirection::BottomUp => "BT",
        DiagramDirection::LeftRight => "LR",
        DiagramDirection::RightLeft => "RL",
    };
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(out, "{text}").expect("text can always be written");
    };
    line(format_args!("digraph task {{"));
    line(format_args!("  graph [label=\"{}\", rankdir={direction}];", escaped(&diagram.title)));
    line(format_args!("  node [shape=box];"));
    for node in &diagram.nodes {
        let label: Vec<String> = label_lines(node).map(escaped).collect();
        let mut attributes = format!("label=\"{}\"", label.join("\\n"));
        if let Some(colour) = node.colour {
            let _ = write!(attributes, ", style=filled, fillcolor={colour}");
        }
        if let Some(url) = &node.url {
            let _ = write!(attributes, ", URL=\"{url}\"");
        }
        line(format_args!("  {} [{attributes}];", node.id));
    }
    for edge in &diagram.edges {
        let (source, target) = diagram.ends(edge);
        match edge.label {
            Some(label) => line(format_args!("  {source} -> {target} [label=\"{label}\"];")),
            None => line(format_args!("  {source} -> {target};")),
        }
    }
    line(format_args!("}}"));
    out
}

/// A text as it stands between quotes. Graphviz reads entities of HTML, and a backslash with what follows it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().map(shown) {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '&' => out.push_str("&amp;"),
            c => out.push(c),
        }
    }
    out
}
