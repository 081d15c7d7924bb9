//! The steps of a task as a drawing for a terminal, or level by level where a drawing would be too large.

use ascii_dag::{Graph, RenderOptions};
use stepwell_proto::v1::{GraphStep, State, TaskGraph};

use crate::{output, view};

/// More steps or edges than this are not drawn.
const STEPS_MAX: usize = 100;
const EDGES_MAX: usize = 300;
/// Names are cut behind so many characters.
const NAME_MAX: usize = 24;
/// Where there is no terminal.
const WIDTH: usize = 160;

/// The steps, each with its state, as what depends on what; as a table of levels if that has no room.
pub(crate) fn draw(graph: &TaskGraph) -> String {
    let width = output::width().map_or(WIDTH, usize::from);
    drawn(graph, width, output::colours()).unwrap_or_else(|| output::text(&view::levels(graph)))
}

fn drawn(graph: &TaskGraph, width: usize, coloured: bool) -> Option<String> {
    let edges: Vec<(usize, usize)> = graph
        .steps
        .iter()
        .flat_map(|step| step.parents.iter().map(|parent| (*parent, step.number)))
        .filter_map(|(from, to)| Some((usize::try_from(from).ok()?, usize::try_from(to).ok()?)))
        .collect();
    let left_out = graph
        .steps
        .iter()
        .any(|step| usize::try_from(step.parent_count).unwrap_or_default() != step.parents.len());
    if left_out || graph.steps.len() > STEPS_MAX || edges.len() > EDGES_MAX {
        return None;
    }
    let labels: Vec<(String, State)> =
        graph.steps.iter().map(|step| (label(step), step.state())).collect();
    let mut drawing = Graph::new();
    for (i, (label, _)) in labels.iter().enumerate() {
        drawing.add_node(i, label.as_str());
    }
    for (from, to) in edges {
        drawing.add_edge(from, to, None);
    }
    let text = drawing.compute_layout().render_string(&RenderOptions::plain());
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    if lines.iter().any(|line| line.chars().count() > width) {
        return None;
    }
    let mut text = lines.join("\n").trim_end().to_owned();
    if coloured {
        let mut labels = labels;
        labels.sort_by(|(a, _), (b, _)| a.cmp(b));
        labels.dedup_by(|(a, _), (b, _)| a == b);
        for (label, state) in labels {
            let node = format!("[{label}]");
            text = text.replace(&node, &output::state_text(state.word(), &node, true));
        }
    }
    Some(text)
}

/// A name with a mark for the state, so that what looks the same is in the same state.
fn label(step: &GraphStep) -> String {
    let mark = match step.state() {
        State::Complete => " ✔",
        State::ResolvedManually => " ✔ by hand",
        State::Error => " ✖",
        State::Cancelled => " ⊘",
        State::InProgress => " ▶",
        State::Pending | State::Unspecified => "",
    };
    format!("{}{mark}", output::cut(&step.name, NAME_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(steps: &[(&str, State, &[i32])]) -> TaskGraph {
        let steps = steps.iter().enumerate().map(|(number, (name, state, parents))| GraphStep {
            number: i32::try_from(number).unwrap(),
            name: (*name).to_owned(),
            state: (*state).into(),
            parents: parents.to_vec(),
            parent_count: i32::try_from(parents.len()).unwrap(),
            ..GraphStep::default()
        });
        TaskGraph { steps: steps.collect(), ..TaskGraph::default() }
    }

    #[test]
    fn a_diamond_is_drawn_with_states_and_arrows_from_parents_to_children() {
        let graph = graph(&[
            ("validate", State::Complete, &[]),
            ("charge", State::InProgress, &[0]),
            ("reserve", State::Error, &[0]),
            ("ship", State::Pending, &[1, 2]),
        ]);
        let text = drawn(&graph, 80, false).unwrap();
        let at = |what: &str| text.lines().position(|line| line.contains(what)).unwrap();
        assert!(at("[validate ✔]") < at("[charge ▶]"), "{text}");
        assert_eq!(at("[charge ▶]"), at("[reserve ✖]"), "{text}");
        assert!(at("[reserve ✖]") < at("[ship]"), "{text}");
        assert_eq!(text.matches('↓').count(), 3, "{text}");
        assert!(!text.contains('\u{1b}'));
        let coloured = drawn(&graph, 80, true).unwrap();
        assert!(coloured.contains("\u{1b}[31m[reserve ✖]\u{1b}[0m"), "{coloured}");
    }

    #[test]
    fn what_has_no_room_is_not_drawn() {
        let wide: Vec<(String, State, &[i32])> =
            (0..50).map(|i| (format!("step_{i}"), State::Pending, &[][..])).collect();
        let wide: Vec<(&str, State, &[i32])> =
            wide.iter().map(|(name, state, parents)| (name.as_str(), *state, *parents)).collect();
        assert_eq!(drawn(&graph(&wide), 80, false), None);
        assert!(drawn(&graph(&wide[..3]), 80, false).is_some());
        let many = vec![("a", State::Pending, &[][..]); STEPS_MAX + 1];
        assert_eq!(drawn(&graph(&many), 1_000_000, false), None);
        let mut left_out = graph(&[("a", State::Pending, &[])]);
        left_out.steps[0].parent_count = 7;
        assert_eq!(drawn(&left_out, 80, false), None);
    }

    #[test]
    fn names_that_are_long_or_odd_are_cut_and_move_no_terminal() {
        let name = "\u{1b}[2J".to_owned() + &"ß".repeat(100);
        let text = drawn(&graph(&[(&name, State::Complete, &[])]), 80, false).unwrap();
        assert!(text.contains('…') && !text.contains('\u{1b}'), "{text:?}");
        assert!(text.chars().count() < 40, "{text}");
    }
}
