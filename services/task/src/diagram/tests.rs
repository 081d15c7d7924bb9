//! Golden files stand in `tests/mermaid/golden`; `UPDATE=1` writes them anew. `tests/mermaid/check.mjs` has them
//! read by Mermaid and Graphviz themselves.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use proptest::prelude::*;
use stepwell_proto::v1::{Definition, StepTemplate};
use stepwell_store::{StandingStep, StoredDefinition, TaskSteps};

use super::*;

const FORMATS: [(DiagramFormat, &str); 3] =
    [(DiagramFormat::Mermaid, "mmd"), (DiagramFormat::Dot, "dot"), (DiagramFormat::Json, "json")];

/// Texts that would be more than text.
const HOSTILE: [&str; 21] = [
    "\"]",
    "\"]\n  click step_0 \"javascript:alert(1)\"",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "`**bold** _text_`",
    "%%{init: {\"securityLevel\": \"loose\"}}%%",
    "%% a comment",
    "#quot;]; #35;60;",
    "&lt;b&gt; &quot; &#34;",
    "end\nsubgraph x\nend",
    "a --> b; c -.-> d & e",
    "x|y{z}((r))[[s]]>t]",
    "style:#f00;",
    "style step_0 fill:#0f0;",
    "classDef x:#1;",
    "ﬂ°°60¶ß",
    "\\\" \\N \\G \\l \\",
    "\u{202e}txet\u{200b}\u{0}\u{7}\t\r\n",
    "naïve – 步骤 🚀",
    "---\ntitle: x\n---",
    "@{ shape: circ }",
];

/// Name, parents, state, standing and error of a step.
type Given = (String, Vec<i32>, State, Standing, Option<DrawnError>);

/// A task with these steps.
fn drawn(steps: Vec<Given>) -> Drawn {
    let mut definition = StoredDefinition {
        id: 1,
        version: [1, 2, 3],
        definition: Definition {
            namespace: "shop".into(),
            name: "order".into(),
            version: "1.2.3".into(),
            ..Definition::default()
        },
        ..StoredDefinition::default()
    };
    let (mut standing_steps, mut errors) = (Vec::new(), Vec::new());
    for (name, parents, state, standing, error) in steps {
        definition.definition.steps.push(StepTemplate { name, ..StepTemplate::default() });
        definition.parents.push(parents);
        standing_steps.push(StandingStep {
            state,
            standing,
            waiting_on: 0,
            attempt: i32::from(state != State::Pending),
            max_attempts: 3,
            not_before: None,
        });
        errors.push(error);
    }
    let task = TaskSteps {
        uid: "0198c0de-4a11-7c52-9e0f-3b1de5a7f001".parse().unwrap(),
        state: State::InProgress,
        definition: Arc::new(definition),
        paused: false,
        held: false,
        steps: standing_steps,
        running: 0,
    };
    Drawn { task, errors }
}

fn error(class: &str, message: &str) -> Option<DrawnError> {
    Some(DrawnError { class: class.into(), message: message.into() })
}

fn checkout() -> Drawn {
    use Standing::{Blocked, Ready, Unspecified, Waiting};
    let step = |name: &str, parents: &[i32], state, standing, error| {
        (name.to_owned(), parents.to_vec(), state, standing, error)
    };
    drawn(vec![
        step("validate", &[], State::Complete, Unspecified, None),
        step("reserve", &[0], State::InProgress, Unspecified, None),
        step(
            "charge",
            &[0],
            State::Error,
            Unspecified,
            error("CardDeclined", "the card \"4111\" was declined by the bank"),
        ),
        step("ship", &[2, 1], State::Pending, Blocked, None),
        step("notify", &[], State::Pending, Ready, None),
        step("audit", &[4], State::Cancelled, Unspecified, None),
        step("refund", &[4], State::ResolvedManually, Unspecified, None),
        step("report", &[1], State::Pending, Waiting, None),
    ])
}

/// Each hostile text as a name and as an error.
fn hostile() -> Drawn {
    let steps = HOSTILE.iter().enumerate().map(|(i, text)| {
        let parents = (i > 0).then(|| count(i) - 1).into_iter().collect();
        let error = error(text, if i % 3 == 0 { "" } else { text });
        ((*text).to_owned(), parents, State::Error, Standing::Unspecified, error)
    });
    drawn(steps.collect())
}

#[test]
fn diagrams_are_as_the_golden_files_have_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/mermaid/golden");
    let base = base::read("https://ui.example/stepwell/").unwrap();
    let mut wrong = Vec::new();
    for (name, drawn, direction, base) in [
        ("checkout", checkout(), DiagramDirection::Unspecified, None),
        ("checkout-links", checkout(), DiagramDirection::LeftRight, base.as_deref()),
        ("hostile", hostile(), DiagramDirection::BottomUp, base.as_deref()),
        ("one", drawn_chain(1), DiagramDirection::RightLeft, None),
    ] {
        let diagram = Diagram::of(&drawn, direction, base);
        for (format, end) in FORMATS {
            let (path, text) = (folder.join(format!("{name}.{end}")), diagram.written(format));
            if std::env::var_os("UPDATE").is_some() {
                fs::write(&path, &text).unwrap();
            }
            if fs::read_to_string(&path).unwrap_or_default() != text {
                wrong.push(path);
            }
        }
    }
    assert!(wrong.is_empty(), "UPDATE=1 writes anew: {wrong:?}");
}

fn drawn_chain(n: usize) -> Drawn {
    let step = |i: usize| {
        let parents = i.checked_sub(1).map(count).into_iter().collect();
        (format!("s{i}"), parents, State::Pending, Standing::Waiting, None)
    };
    drawn((0..n).map(step).collect())
}

/// How often each node and each edge stands in a text, by what their lines begin with or have in them.
fn counted(
    text: &str,
    format: DiagramFormat,
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let (mut nodes, mut edges) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_id = |word: &str| word.starts_with("step_") || word.starts_with("task_");
        let edge = match (format, &words[..]) {
            (DiagramFormat::Mermaid, [source, arrow, target]) if arrow.starts_with("-->") => {
                Some((source, *target))
            }
            (DiagramFormat::Dot, [source, "->", target, ..]) => {
                Some((source, target.trim_end_matches(';')))
            }
            _ => None,
        };
        match edge {
            Some((source, target)) => *edges.entry(format!("{source} {target}")).or_insert(0) += 1,
            None if is_id(line) => {
                let id = line.split(['[', ' ']).next().unwrap_or_default().to_owned();
                *nodes.entry(id).or_insert(0) += 1;
            }
            None => {}
        }
    }
    (nodes, edges)
}

proptest! {
    #[test]
    fn every_step_is_a_node_once_and_every_dependency_an_edge_once(
        graph in prop::collection::vec(
            (prop::collection::btree_set(0..20_i32, 0..4), 1..7_i32, 0..HOSTILE.len()), 1..20),
        direction in 0..5_i32,
        linked: bool,
    ) {
        let steps = graph.iter().enumerate().map(|(i, (parents, state, text))| {
            let parents = parents.iter().copied().filter(|p| *p < count(i)).collect();
            let state = State::try_from(*state).unwrap();
            let text = HOSTILE[*text];
            let error = error(text, text).filter(|_| state == State::Error);
            (format!("{text}{i}"), parents, state, Standing::Unspecified, error)
        });
        let drawn = drawn(steps.collect());
        let direction = DiagramDirection::try_from(direction).unwrap();
        let diagram = Diagram::of(&drawn, direction, linked.then_some("https://x.example"));
        let task = "task_0198c0de_4a11_7c52_9e0f_3b1de5a7f001";
        let mut nodes = BTreeMap::from([(task.to_owned(), 1)]);
        let mut edges = BTreeMap::new();
        for (i, parents) in drawn.task.definition.parents.iter().enumerate() {
            nodes.insert(format!("step_{i}"), 1);
            if parents.is_empty() {
                edges.insert(format!("{task} step_{i}"), 1);
            }
            for parent in parents {
                edges.insert(format!("step_{parent} step_{i}"), 1);
            }
        }
        for format in [DiagramFormat::Mermaid, DiagramFormat::Dot] {
            let text = diagram.written(format);
            prop_assert_eq!(&counted(&text, format), &(nodes.clone(), edges.clone()), "{}", text);
        }
        let json: Value = serde_json::from_str(&diagram.written(DiagramFormat::Json)).unwrap();
        let ids = json["nodes"].as_array().unwrap().iter().map(|n| n["id"].as_str().unwrap());
        prop_assert_eq!(ids.collect::<Vec<_>>().len(), nodes.len());
        let ends = json["edges"].as_array().unwrap().iter().map(|edge| {
            format!("{} {}", edge["source_id"].as_str().unwrap(), edge["target_id"].as_str().unwrap())
        });
        prop_assert_eq!(ends.map(|ends| (ends, 1)).collect::<BTreeMap<_, _>>(), edges);
    }

    #[test]
    fn whatever_a_text_has_it_stays_between_its_quotes(text: String, error_text: String) {
        let drawn = drawn(vec![(
            text,
            Vec::new(),
            State::Error,
            Standing::Unspecified,
            error("E", &error_text),
        )]);
        let diagram = Diagram::of(&drawn, DiagramDirection::TopDown, None);
        let mermaid = diagram.written(DiagramFormat::Mermaid);
        for line in mermaid.lines() {
            let quotes = line.matches('"').count();
            prop_assert!(quotes == 0 || quotes == 2, "{line}");
            let inside = line.split('"').nth(1).unwrap_or_default().replace("<br/>", "");
            prop_assert!(!inside.contains(['<', '>', '`', '%', '[', ']', '&', '{', '}', '|', '\\']), "{line}");
        }
        // Two lines of the task, three of the step.
        prop_assert_eq!(mermaid.lines().count(), 7, "{}", mermaid);
        prop_assert_eq!(diagram.written(DiagramFormat::Dot).lines().count(), 7);
    }
}

#[test]
fn what_is_too_large_to_be_seen_is_refused_and_the_largest_fits_into_an_answer() {
    let uid = Uuid::nil();
    let longest = drawn_chain(STEPS_MAX);
    assert!(check_size(uid, &longest).is_ok());
    let refused = check_size(uid, &drawn_chain(STEPS_MAX + 1)).unwrap_err();
    assert_eq!(refused.reason, ErrorReason::DiagramTooLarge);
    assert_eq!((&*refused.metadata["steps"], &*refused.metadata["edges"]), ("1001", "1001"));
    let dense = |n: i32, parents: i32| {
        let step = |i: i32| {
            let parents = ((i - parents).max(0)..i).collect();
            let error = error(&"<".repeat(200), &"\"".repeat(200));
            (format!("{i:0>64}"), parents, State::Error, Standing::Unspecified, error)
        };
        drawn((0..n).map(step).collect())
    };
    let refused = check_size(uid, &dense(1_000, 6)).unwrap_err();
    assert_eq!(refused.reason, ErrorReason::DiagramTooLarge);
    let largest = dense(1_000, 5);
    assert!(check_size(uid, &largest).is_ok());
    let base = format!("https://{}.example", "a".repeat(2_000));
    let diagram = Diagram::of(&largest, DiagramDirection::TopDown, Some(&base));
    for (format, _) in FORMATS {
        let bytes = diagram.written(format).len();
        assert!(check_text(uid, &largest, bytes).is_ok(), "{format:?}: {bytes} bytes");
    }
    assert!(check_text(uid, &longest, BYTES_MAX).is_ok());
    let refused = check_text(uid, &longest, BYTES_MAX + 1).unwrap_err();
    assert_eq!(refused.reason, ErrorReason::DiagramTooLarge);
    assert_eq!((&*refused.metadata["steps"], &*refused.metadata["edges"]), ("1000", "1000"));
}
