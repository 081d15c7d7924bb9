//! A task as a diagram. Pure but for the read: what is drawn is built here, and written by `mermaid`, `dot` or,
//! as it is, as JSON. No name and no text of a handler can be anything but text in what is written.

mod base;
mod dot;
mod mermaid;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};
use stepwell_proto::{
    id::step_id,
    refusal::Refusal,
    v1::{
        DiagramDirection, DiagramFormat, ErrorReason, GetTaskDiagramRequest,
        GetTaskDiagramResponse, Standing, State,
    },
};
use stepwell_serve::MESSAGE_BYTES_MAX;
use stepwell_store::{Drawn, DrawnError, Store};
use uuid::Uuid;

use crate::service::{task_id, task_not_found};

/// Most steps of a diagram.
const STEPS_MAX: usize = 1_000;
/// Most edges of a diagram, those to roots included.
const EDGES_MAX: usize = 5_000;
/// Most bytes of a diagram as it is written: an answer has a little more.
const BYTES_MAX: usize = MESSAGE_BYTES_MAX - (64 << 10);
/// An error that is longer is cut to so many characters and three dots.
const ERROR_MAX: usize = 30;
const ERROR_CUT: usize = 28;

/// A task as a diagram in the format that is asked for.
pub(crate) async fn get(
    store: &Store,
    request: GetTaskDiagramRequest,
) -> Result<GetTaskDiagramResponse, Refusal> {
    let uid = task_id(&request.task_id)?;
    let format = match request.format() {
        DiagramFormat::Unspecified => DiagramFormat::Mermaid,
        format => format,
    };
    let mut faults = Vec::new();
    if DiagramFormat::try_from(request.format).is_err() {
        faults.push(("format".to_owned(), "must be a format".to_owned()));
    }
    let direction = DiagramDirection::try_from(request.direction).unwrap_or_else(|_| {
        faults.push(("direction".to_owned(), "must be a direction".to_owned()));
        DiagramDirection::Unspecified
    });
    let base = base::read(&request.base_url).unwrap_or_else(|what| {
        faults.push(("base_url".to_owned(), what));
        None
    });
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    let drawn = store.task_drawn(uid, request.with_errors).await?;
    let drawn = drawn.ok_or_else(|| task_not_found(uid))?;
    check_size(uid, &drawn)?;
    let diagram = Diagram::of(&drawn, direction, base.as_deref());
    let text = diagram.written(format);
    check_text(uid, &drawn, text.len())?;
    Ok(GetTaskDiagramResponse {
        diagram: text,
        format: format.into(),
        step_count: count(diagram.nodes.len() - 1),
        edge_count: count(diagram.edges.len()),
    })
}

fn count(of: usize) -> i32 {
    i32::try_from(of).unwrap_or(i32::MAX)
}

/// Steps and edges of a task, those to roots included.
fn size(drawn: &Drawn) -> (usize, usize) {
    let parents = &drawn.task.definition.parents;
    (parents.len(), parents.iter().map(|of| of.len().max(1)).sum())
}

fn check_size(uid: Uuid, drawn: &Drawn) -> Result<(), Refusal> {
    let (steps, edges) = size(drawn);
    if steps <= STEPS_MAX && edges <= EDGES_MAX {
        return Ok(());
    }
    let what = format!(
        "task {uid} has {steps} steps and {edges} edges; at most {STEPS_MAX} and {EDGES_MAX} are drawn"
    );
    Err(too_large(uid, drawn, what))
}

/// What is written has to fit into an answer.
fn check_text(uid: Uuid, drawn: &Drawn, bytes: usize) -> Result<(), Refusal> {
    if bytes <= BYTES_MAX {
        return Ok(());
    }
    let what = format!("the diagram of task {uid} has {bytes} bytes; at most {BYTES_MAX} are sent");
    Err(too_large(uid, drawn, what))
}

fn too_large(uid: Uuid, drawn: &Drawn, what: String) -> Refusal {
    let (steps, edges) = size(drawn);
    Refusal::new(ErrorReason::DiagramTooLarge, what)
        .with("task_id", uid.to_string())
        .with("steps", steps.to_string())
        .with("edges", edges.to_string())
}

/// What is drawn. The first node is the task.
#[derive(Debug)]
struct Diagram {
    title: String,
    direction: DiagramDirection,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

#[derive(Debug)]
struct Node {
    /// Letters, digits and `_`.
    id: String,
    /// Its label, line by line: any text.
    lines: Vec<String>,
    /// A name of a colour; none: as whoever draws it likes.
    colour: Option<&'static str>,
    /// Where it leads: printable ASCII without quotes.
    url: Option<String>,
    attributes: Value,
}

/// From a node to another, by their places.
#[derive(Debug)]
struct Edge {
    source: usize,
    target: usize,
    /// None of an edge from the task to a root.
    label: Option<&'static str>,
}

impl Diagram {
    fn of(drawn: &Drawn, direction: DiagramDirection, base: Option<&str>) -> Self {
        let (task, uid) = (&drawn.task, drawn.task.uid.to_string());
        let definition = &task.definition.definition;
        let url = base.map(|base| format!("{base}/tasks/{uid}"));
        let mut nodes = vec![Node {
            id: format!("task_{}", uid.replace('-', "_")),
            lines: vec![
                format!("Task: {}", definition.name),
                format!("ID: {uid}"),
                format!("Status: {}", task.state.word()),
            ],
            colour: None,
            url: url.clone(),
            attributes: json!({
                "task_id": uid,
                "namespace": definition.namespace,
                "definition_name": definition.name,
                "definition_version": definition.version,
                "state": task.state.word(),
            }),
        }];
        let mut edges = Vec::new();
        for (i, step) in task.steps.iter().enumerate() {
            let number = count(i);
            let id = step_id(&uid, number);
            let name = task.definition.step(number).map(|step| step.name.as_str());
            let name = name.unwrap_or_default();
            let error = drawn.errors.get(i).and_then(Option::as_ref);
            let standing = (step.standing != Standing::Unspecified).then(|| {
                step.standing.as_str_name().trim_start_matches("STANDING_").to_lowercase()
            });
            let status = match &standing {
                None => step.state.word().to_owned(),
                Some(standing) => format!("{} ({standing})", step.state.word()),
            };
            let mut lines = vec![
                format!("Step: {name}"),
                format!("Status: {status}"),
                format!("Attempts: {}", step.attempt),
            ];
            let mut attributes = json!({
                "step_id": id,
                "number": number,
                "name": name,
                "state": step.state.word(),
                "attempt": step.attempt,
                "max_attempts": step.max_attempts,
            });
            if let Some(standing) = standing {
                attributes["standing"] = standing.into();
            }
            if let Some(DrawnError { class, message }) = error {
                lines.push(format!(
                    "Error: {}",
                    cut(if message.is_empty() { class } else { message })
                ));
                attributes["error_class"] = class.as_str().into();
                attributes["error"] = message.as_str().into();
            }
            let url = url.as_ref().map(|url| format!("{url}/steps/{id}"));
            let colour = Some(colour(step.state));
            nodes.push(Node { id: format!("step_{number}"), lines, colour, url, attributes });
            let mut parents = task.definition.parents[i].clone();
            parents.sort_unstable();
            if parents.is_empty() {
                edges.push(Edge { source: 0, target: i + 1, label: None });
            }
            edges.extend(parents.into_iter().filter_map(|parent| {
                let source = usize::try_from(parent).ok()? + 1;
                Some(Edge { source, target: i + 1, label: Some("provides") })
            }));
        }
        Self { title: format!("Task {uid}: {}", definition.name), direction, nodes, edges }
    }

    fn written(&self, format: DiagramFormat) -> String {
        match format {
            DiagramFormat::Unspecified | DiagramFormat::Mermaid => mermaid::text(self),
            DiagramFormat::Dot => dot::text(self),
            DiagramFormat::Json => format!("{:#}\n", self.json()),
        }
    }

    /// The edge's ends, by their ids.
    fn ends(&self, edge: &Edge) -> (&str, &str) {
        (&self.nodes[edge.source].id, &self.nodes[edge.target].id)
    }

    fn json(&self) -> Value {
        let node = |node: &Node| {
            let mut value = json!({
                "id": node.id,
                "label": node.lines.join("\n"),
                "shape": "box",
                "attributes": node.attributes,
            });
            if let Some(colour) = node.colour {
                value["style"] = format!("fill:{colour};").into();
            }
            if let Some(url) = &node.url {
                value["url"] = url.as_str().into();
            }
            value
        };
        let edge = |edge: &Edge| {
            let (source, target) = self.ends(edge);
            let mut value = json!({
                "source_id": source,
                "target_id": target,
                "type": if edge.label.is_none() { "root" } else { "dependency" },
                "direction": "forward",
            });
            if let Some(label) = edge.label {
                value["label"] = label.into();
            }
            value
        };
        json!({
            "title": self.title,
            "direction": letters(self.direction),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "edges": self.edges.iter().map(edge).collect::<Vec<_>>(),
            "attributes": self.nodes[0].attributes,
        })
    }
}

/// As the formats name it.
fn letters(direction: DiagramDirection) -> &'static str {
    match direction {
        DiagramDirection::Unspecified | DiagramDirection::TopDown => "TD",
        DiagramDirection::BottomUp => "BT",
        DiagramDirection::LeftRight => "LR",
        DiagramDirection::RightLeft => "RL",
    }
}

fn colour(state: State) -> &'static str {
    match state {
        State::Pending => "lightblue",
        State::InProgress => "lightgreen",
        State::Complete => "green",
        State::Error => "red",
        State::Cancelled => "gray",
        State::ResolvedManually | State::Unspecified => "lightgray",
    }
}

/// Short enough for a label.
fn cut(text: &str) -> String {
    if text.chars().count() <= ERROR_MAX {
        return text.to_owned();
    }
    text.chars().take(ERROR_CUT).chain("...".chars()).collect()
}

/// A character that a label can show. What turns the direction of text, joins it or has no width is told by
/// a mark: it could make a label look like another.
fn shown(c: char) -> char {
    let hidden = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}');
    match c {
        '\t' => ' ',
        c if c.is_control() || hidden => '\u{fffd}',
        c => c,
    }
}

/// The lines of a label, cut where its texts break lines.
fn label_lines(node: &Node) -> impl Iterator<Item = &str> {
    node.lines.iter().flat_map(|line| line.split(['\n', '\r']))
}
