use proptest::prelude::*;

use super::*;

fn step(name: &str, depends_on: &[&str]) -> StepTemplate {
    let depends_on = depends_on.iter().map(|&name| name.to_owned()).collect();
    StepTemplate { name: name.into(), depends_on, ..StepTemplate::default() }
}

fn definition(steps: Vec<StepTemplate>) -> Definition {
    Definition { name: "d".into(), steps, ..Definition::default() }
}

fn paths(definition: Definition) -> Vec<String> {
    let faults = normalise(definition).expect_err("it is wrong");
    faults.into_iter().map(|(path, _)| path).collect()
}

#[test]
fn every_default_is_filled_in() {
    let filled = from_message(definition(vec![step("a", &[])])).unwrap();
    assert_eq!((filled.namespace.as_str(), filled.version.as_str()), ("default", "0.1.0"));
    let step = &filled.steps[0];
    let retry = step.retry.as_ref().unwrap();
    assert_eq!(step.handler, "a");
    assert_eq!(step.timeout.map(|t| t.seconds), Some(30));
    assert_eq!((retry.max_attempts, retry.multiplier, retry.jitter), (3, 2.0, Some(0.1)));
    assert_eq!(retry.initial_backoff.map(|b| b.seconds), Some(1));
    assert_eq!(retry.max_backoff.map(|b| b.seconds), Some(300));
    // What was filled in once stays as it is.
    assert_eq!(from_message(filled.clone()).unwrap(), filled);
}

#[test]
fn the_hash_is_of_what_it_says_not_of_how_it_is_laid_out() {
    let with = |schema: &str, config: &str| {
        let step = StepTemplate { config: config.into(), ..step("a", &[]) };
        let context_schema = schema.into();
        from_message(Definition { context_schema, ..definition(vec![step]) }).unwrap().content_hash
    };
    let plain = with(r#"{"type":"object","required":["a"]}"#, r#"{"x":1.0,"y":2}"#);
    assert_eq!(plain, with(r#"{ "required": ["a"], "type": "object" }"#, r#"{"y": 2, "x": 1.0}"#));
    assert_ne!(plain, with(r#"{"type":"object"}"#, r#"{"x":1.0,"y":2}"#));
    assert_ne!(plain, with(r#"{"type":"object","required":["a"]}"#, r#"{"x":1,"y":2}"#));
    let requiring = |labels: &[(&str, &str)]| {
        let requires = labels.iter().map(|(l, v)| ((*l).into(), (*v).into())).collect();
        let step = StepTemplate { requires, ..step("a", &[]) };
        from_message(definition(vec![step])).unwrap().content_hash
    };
    assert_eq!(requiring(&[("a", "1"), ("b", "2")]), requiring(&[("b", "2"), ("a", "1")]));
    assert_ne!(requiring(&[("a", "1")]), requiring(&[("a", "2")]));
    // Output-only fields of the request do not count, and saying a default is saying nothing.
    let spoken = Definition {
        namespace: "default".into(),
        content_hash: "x".into(),
        create_time: Some(prost_types::Timestamp::default()),
        ..definition(vec![StepTemplate { handler: "a".into(), ..step("a", &[]) }])
    };
    let silent = from_message(definition(vec![step("a", &[])])).unwrap();
    assert_eq!(from_message(spoken).unwrap(), silent);
}

#[test]
fn all_faults_are_told_at_once_with_their_paths() {
    let long = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let wrong = Definition {
        namespace: "a b".into(),
        version: "1".into(),
        description: "x".repeat(5000),
        context_schema: "[]".into(),
        steps: vec![
            StepTemplate {
                handler: "ä".into(),
                timeout: long(90_000),
                config: "7".into(),
                retry: Some(RetryPolicy {
                    max_attempts: -1,
                    initial_backoff: long(-1),
                    multiplier: f64::NAN,
                    max_backoff: long(i64::MAX),
                    jitter: Some(-0.1),
                    except: vec![String::new(), "x".repeat(300)],
                }),
                requires: [("a b", "x"), ("zone", &"x".repeat(129)), ("nul", "\0")]
                    .map(|(label, value)| (label.into(), value.into()))
                    .into(),
                ..step("one", &["two", "two", "nowhere"])
            },
            step("", &[]),
            step("two", &[]),
            step("two", &["two"]),
        ],
        ..Definition::default()
    };
    let mut found = paths(wrong);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "context_schema",
            "description",
            "name",
            "namespace",
            "steps[0].config",
            "steps[0].depends_on[1]",
            "steps[0].depends_on[2]",
            "steps[0].handler",
            "steps[0].requires",
            "steps[0].requires.nul",
            "steps[0].requires.zone",
            "steps[0].retry.except[0]",
            "steps[0].retry.except[1]",
            "steps[0].retry.initial_backoff",
            "steps[0].retry.jitter",
            "steps[0].retry.max_attempts",
            "steps[0].retry.max_backoff",
            "steps[0].retry.multiplier",
            "steps[0].timeout",
            "steps[1].name",
            "steps[3].name",
            "version",
        ]
    );
}

#[test]
fn a_definition_is_bounded_in_steps_edges_and_bytes() {
    assert_eq!(paths(definition(Vec::new())), ["steps"]);
    let many = |n: usize| (0..n).map(|i| step(&format!("s{i}"), &[])).collect::<Vec<_>>();
    assert!(from_message(definition(many(STEPS_MAX))).is_ok());
    assert_eq!(paths(definition(many(STEPS_MAX + 1))), ["steps"]);

    let mut dense = many(600);
    let names: Vec<String> = dense.iter().map(|s| s.name.clone()).collect();
    for (i, step) in dense.iter_mut().enumerate() {
        step.depends_on = names[..i].to_vec();
    }
    assert_eq!(paths(definition(dense)), ["steps"]);

    let requires = |n: usize| {
        let requires = (0..n).map(|i| (format!("l{i}"), String::new())).collect();
        definition(vec![StepTemplate { requires, ..step("a", &[]) }])
    };
    assert!(from_message(requires(REQUIRES_MAX)).is_ok());
    assert_eq!(paths(requires(REQUIRES_MAX + 1)), ["steps[0].requires"]);

    let config = format!(r#"{{"a": "{}"}}"#, "x".repeat(60_000));
    let heavy =
        many(40).into_iter().map(|s| StepTemplate { config: config.clone(), ..s }).collect();
    assert_eq!(paths(definition(heavy)), [""]);
}

#[test]
fn a_schema_that_reaches_out_is_refused() {
    for (schema, path) in [
        (r#"{"$ref": "http://example.com/s.json"}"#, "context_schema"),
        (r#"{"properties": {"a": {"type": 7}}}"#, "context_schema.properties.a.type"),
        (r#"{"properties": {"a": {"pattern": "("}}}"#, "context_schema.properties.a.pattern"),
        (r#"{"allOf": [{}, {"minimum": "x"}]}"#, "context_schema.allOf[1].minimum"),
        (r#"{"type": "object""#, "context_schema"),
    ] {
        let definition =
            Definition { context_schema: schema.into(), ..definition(vec![step("a", &[])]) };
        assert_eq!(paths(definition), [path], "{schema}");
    }
}

proptest! {
    #[test]
    fn any_graph_is_accepted_unless_it_has_a_cycle(
        edges in prop::collection::btree_set((0usize..8, 0usize..8), 0..14),
    ) {
        let edges: Vec<_> = edges.into_iter().filter(|(a, b)| a != b).collect();
        let names: Vec<String> = (0..8).map(|i| format!("s{i}")).collect();
        let steps = (0..8).map(|i| {
            let parents: Vec<&str> =
                edges.iter().filter(|(_, c)| *c == i).map(|(p, _)| names[*p].as_str()).collect();
            step(&names[i], &parents)
        });
        let accepted = normalise(definition(steps.collect()));
        // Brute force: strike nodes without parents until none is left to strike.
        let mut left: Vec<usize> = (0..8).collect();
        while let Some(at) = left
            .iter()
            .position(|c| !edges.iter().any(|(p, child)| child == c && left.contains(p)))
        {
            left.remove(at);
        }
        prop_assert_eq!(accepted.is_ok(), left.is_empty());
        if let Err(faults) = accepted {
            let (_, what) = &faults[0];
            let (_, circle) = what.rsplit_once(": ").unwrap();
            let circle: Vec<usize> =
                circle.split(" → ").map(|name| name[1..].parse().unwrap()).collect();
            prop_assert!(circle.len() > 2 && circle.first() == circle.last());
            for pair in circle.windows(2) {
                prop_assert!(edges.contains(&(pair[0], pair[1])), "{what}");
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-c:\\-\\[\\]{}&*!?,|>\"' \n#0]{0,60}") {
        drop(from_yaml(&text));
        drop(from_yaml(&format!("name: d\nsteps:\n  - {text}")));
    }
}

fn publishing(steps: &[&[(&str, &str)]]) -> Definition {
    let steps = steps.iter().enumerate().map(|(i, types)| {
        let spec = |(name, schema): &(&str, &str)| {
            let (name, schema) = ((*name).to_owned(), (*schema).to_owned());
            EventTypeSpec { name, schema, ..EventTypeSpec::default() }
        };
        let publishes = types.iter().map(spec).collect();
        StepTemplate { publishes, ..step(&format!("s{i}"), &[]) }
    });
    definition(steps.collect())
}

#[test]
fn what_steps_publish_is_bounded_and_said_once() {
    let twice = publishing(&[&[("a.b", "")], &[("a.b", "")]]);
    let filled = from_message(twice).unwrap();
    assert_eq!(filled.steps[1].publishes[0].version, 1);
    let unlike = publishing(&[&[("a.b", "")], &[("a.b", "{}")]]);
    assert_eq!(paths(unlike), ["steps[1].publishes[0]"]);
    let wrong = publishing(&[&[("a.b", ""), ("step.b", ""), ("a.c", r#"{"type": 3}"#)]]);
    assert_eq!(paths(wrong), ["steps[0].publishes[1].name", "steps[0].publishes[2].schema.type"]);
    let names: Vec<String> = (0..120).map(|i| format!("a.b{i}")).collect();
    let types: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(paths(publishing(&[&types[..21]])), ["steps[0].publishes"]);
    let many: Vec<&[(&str, &str)]> = types.chunks(20).collect();
    assert!(from_message(publishing(&many[..5])).is_ok());
    assert_eq!(paths(publishing(&many)), ["steps"]);
}

#[test]
fn a_type_that_may_not_be_changed_is_refused_at_the_step_that_publishes_it() {
    let definition = from_message(publishing(&[&[], &[("a.c", ""), ("a.b", "")]])).unwrap();
    let refusal = Refusal::new(ErrorReason::EventTypeChanged, "changed")
        .with("name", "a.b")
        .with("version", "1")
        .with_violations(vec![("schema.type".into(), "is narrower".into())]);
    let placed = placed(&definition, refusal);
    assert_eq!(placed.violations[0].0, "steps[1].publishes[1].schema.type");
}
