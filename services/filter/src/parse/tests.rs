use proptest::prelude::*;
use stepwell_proto::v1::{ExecutionStatus, Health, State};

use super::*;
use crate::{BYTES_MAX, Flag, Time};

fn read(text: &str) -> Expr {
    parse(text).unwrap_or_else(|fault| panic!("{text}: {fault}")).unwrap()
}

/// As it is written again.
fn again(text: &str) -> String {
    read(text).to_string()
}

fn refused(text: &str) -> Fault {
    match parse(text) {
        Ok(expr) => panic!("{text}: {expr:?}"),
        Err(fault) => fault,
    }
}

#[test]
fn alternatives_bind_tighter_than_conjunctions() {
    for (text, meant) in [
        ("state = error", "state = error"),
        ("state=ERROR", "state = error"),
        ("state = STATE_ERROR", "state = error"),
        ("state = \"Error\"", "state = error"),
        ("state != error", "NOT state = error"),
        ("NOT state = error", "NOT state = error"),
        ("-state = error", "NOT state = error"),
        (
            "paused = true AND state = error OR state = pending",
            "paused = true AND (state = error OR state = pending)",
        ),
        (
            "(paused = true AND state = error) OR held = false",
            "(paused = true AND state = error) OR held = false",
        ),
        ("((priority <= 2))", "priority <= 2"),
        ("NOT (tags:eu OR tags:'us west')", "NOT (tags:\"eu\" OR tags:\"us west\")"),
        ("definition_name = order_*", "definition_name = \"order_*\""),
        ("definition_version = 1.*", "definition_version = \"1.*\""),
        ("initiator = \"*@shop\"", "initiator = \"*@shop\""),
        ("reason = '*'", "reason = \"*\""),
        (r#"reason = "a \* b \" c \\ d \'""#, r#"reason = "a \* b \" c \\ d '""#),
        ("annotations.team = blue", "annotations.\"team\" = \"blue\""),
        ("annotations.a.b:*", "annotations.\"a.b\" = \"*\""),
        ("annotations.\"of whom\" != x", "NOT annotations.\"of whom\" = \"x\""),
        ("annotations:team", "annotations.\"team\" = \"*\""),
        ("create_time > -1h", "create_time > \"-3600000ms\""),
        ("create_time >= \"-1.5s\"", "create_time >= \"-1500ms\""),
        (
            "end_time < \"2026-11-28T10:30:00.1234567+01:00\"",
            "end_time < \"2026-11-28T09:30:00.123456Z\"",
        ),
        ("end_time:*", "end_time:*"),
        ("- end_time : *", "NOT end_time:*"),
        ("execution_status = HAS_READY_STEPS", "execution_status = has_ready_steps"),
        (
            "health != healthy AND (execution_status = paused OR execution_status = processing)",
            "NOT health = healthy AND (execution_status = paused OR execution_status = processing)",
        ),
    ] {
        assert_eq!(again(text), meant, "{text}");
        assert_eq!(again(meant), meant);
    }
    assert_eq!(parse(""), Ok(None));
    assert_eq!(parse(" \n\t "), Ok(None));
}

#[test]
fn what_is_wrong_is_refused_where_it_stands_with_what_is_wanted() {
    for (text, offset, what, suggestion) in [
        ("stat = error", 0, "no field", Some("state")),
        ("paused = true AND definition = x", 18, "no field", Some("definition_name")),
        ("colour = red", 0, "there are task_id, state", None),
        ("state = eror", 8, "pending, in_progress", Some("error")),
        ("state = unspecified", 8, "pending", None),
        ("state = 4", 8, "pending", None),
        ("state = *", 8, "without `*`", None),
        ("state > error", 6, "`=` and `!=`", None),
        ("state:error", 5, "`=` and `!=`", None),
        ("state", 5, "the end is not wanted here", None),
        ("state =", 7, "the end is not wanted here, but a value", None),
        ("state = = error", 8, "a value", None),
        ("paused", 6, "`=`", Some("paused = true")),
        ("paused = yes", 9, "`true` or `false`", None),
        ("priority = high", 11, "whole number", None),
        ("priority = 1.5", 11, "whole number", None),
        ("priority:1", 8, "`<=`", None),
        ("tags = eu", 5, "`:`", Some("tags:\"eu\"")),
        ("tags != eu", 5, "`:`", Some("NOT tags:\"eu\"")),
        ("initiator:ops", 9, "`=`", Some("initiator = \"ops\"")),
        ("initiator < ops", 10, "`=`", None),
        ("reason = a*b", 10, "`*` stands", None),
        ("reason = \"a*b\"", 11, "`*` stands", None),
        ("definition_version = latest", 21, "a version", None),
        ("task_id = 7", 10, "UUID", None),
        ("create_time > yesterday", 14, "2026-11-28T09:30:00Z", None),
        ("create_time > 2026-11-28T09:30:00Z", 14, "2026-11-28T09:30:00Z", None),
        ("create_time > -1", 14, "a time", None),
        ("create_time > -99999999h", 14, "a time", None),
        ("create_time > \"1969-12-31T23:59:59Z\"", 14, "1970", None),
        ("create_time:x", 11, "`:*`", None),
        ("annotations = x", 12, "`:`", None),
        ("annotations. = x", 12, "key", None),
        ("annotations:\"\"", 12, "key", None),
        ("annotations.\"a*\" = x", 12, "`*`", None),
        ("state = error and paused = true", 14, "`AND`, `OR` or the end", Some("AND")),
        ("state = error paused = true", 14, "`AND`, `OR` or the end", None),
        ("state = error)", 13, "was not opened", None),
        ("(state = error", 14, "`)` for the `(` at 0", None),
        ("state = (error OR pending)", 8, "one value", None),
        ("()", 1, "name of a field", None),
        ("AND", 0, "name of a field", None),
        ("NOT NOT state = error", 4, "name of a field", None),
        ("= error", 0, "name of a field", None),
        ("gateway", 0, "nothing is searched for", Some("tags:\"gateway\"")),
        ("\"two words\"", 0, "nothing is searched for", Some("tags:\"two words\"")),
        ("reason = \"x", 9, "have no end", None),
        ("reason = \"", 9, "have no end", None),
        ("reason = \"\\n\"", 10, "backslash", None),
        ("reason = a\\b", 10, "only in quotes", None),
        ("reason = a,b", 10, "only in quotes", None),
        ("réson = x", 0, "no field", Some("reason")),
        ("reason = é AND ö = x", 16, "no field", None),
        ("reason = \"\0\"", 10, "NUL", None),
        ("reason = \u{7}", 9, "only in quotes", None),
        ("health = healthy OR paused = true", 0, "parts of their own", None),
        (
            "health = healthy AND (paused = true OR health = blocked)",
            39,
            "parts of their own",
            None,
        ),
        ("execution_status = paused OR health = blocked", 0, "parts of their own", None),
        ("execution_status = done", 19, "has_ready_steps", None),
        ("x' OR 1=1; drop table task; --", 1, "no end", None),
        ("state = error; drop table task", 8, "pending", Some("error")),
    ] {
        let fault = refused(text);
        assert_eq!(
            (fault.offset, fault.suggestion.as_deref()),
            (offset, suggestion),
            "{text}: {fault}"
        );
        assert!(fault.what.contains(what), "{text}: {fault}");
    }
}

#[test]
fn a_filter_has_bounds_in_bytes_comparisons_open_starts_and_depth() {
    let fits = format!("reason = \"{}\"", "x".repeat(BYTES_MAX - 11));
    assert_eq!(fits.len(), BYTES_MAX);
    assert!(parse(&fits).is_ok());
    assert_eq!(refused(&format!("{fits} ")).offset, BYTES_MAX);
    assert!(refused(&"(".repeat(1 << 20)).what.contains("at most 4096"));

    let terms = |n: usize| vec!["priority = 1"; n].join(" OR ");
    assert!(parse(&terms(TERMS_MAX)).is_ok());
    let fault = refused(&terms(TERMS_MAX + 1));
    assert_eq!(fault.offset, TERMS_MAX * "priority = 1 OR ".len());
    assert!(fault.what.contains("at most 100"), "{fault}");

    let open = |n: usize| vec!["reason = \"*x\""; n].join(" OR ");
    assert!(parse(&open(OPEN_STARTS_MAX)).is_ok());
    let fault = refused(&open(OPEN_STARTS_MAX + 1));
    assert_eq!(fault.offset, OPEN_STARTS_MAX * "reason = \"*x\" OR ".len() + "reason = ".len());
    assert!(fault.what.contains("at most 20"), "{fault}");
    // These are not searched for.
    let others = vec!["reason = \"x*\" OR tags:*"; 40].join(" AND ");
    assert!(parse(&others).is_ok());

    let deep = |n: usize| format!("{}paused = true{}", "(".repeat(n), ")".repeat(n));
    assert_eq!(read(&deep(DEPTH_MAX)), Expr::Flag(Flag::Paused, true));
    assert_eq!(refused(&deep(DEPTH_MAX + 1)).offset, DEPTH_MAX);
    assert_eq!(refused(&"NOT (".repeat(800)).offset, 5 * DEPTH_MAX + 4);
    assert_eq!(refused(&"(".repeat(BYTES_MAX)).offset, DEPTH_MAX);
    // What stands side by side is not deep.
    let flat = vec!["(paused = true)"; 50].join(" AND ");
    assert!(parse(&flat).is_ok());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,5}", "[\"'\\\\*(),.:=<>! \n-]{0,5}", any::<String>()]
        .prop_map(|text| text.replace('\0', ""))
}

fn pattern_of() -> impl Strategy<Value = Pattern> {
    (text(), any::<bool>(), any::<bool>()).prop_map(|(text, open_start, open_end)| {
        if text.is_empty() && (open_start || open_end) {
            return Pattern::any();
        }
        Pattern { text, open_start, open_end }
    })
}

fn compared() -> impl Strategy<Value = Compare> {
    use Compare::{Above, AtLeast, AtMost, Below, Is};
    prop::sample::select(vec![Below, AtMost, Is, AtLeast, Above])
}

fn leaf() -> impl Strategy<Value = Expr> {
    let moment = prop_oneof![
        (0..253_402_300_799_999_999_i64)
            .prop_map(|micros| Moment::At(DateTime::from_timestamp_micros(micros).unwrap())),
        (0..300_000_000_000_u64).prop_map(|ms| Moment::Ago(Duration::from_millis(ms))),
    ];
    let texts: Vec<Text> =
        Text::ALL.into_iter().filter(|text| *text != Text::DefinitionVersion).collect();
    prop_oneof![
        any::<u128>().prop_map(|id| Expr::Id(Uuid::from_u128(id))),
        (1..=6).prop_map(|n| Expr::State(State::try_from(n).unwrap())),
        (prop::sample::select(texts), pattern_of()).prop_map(|(text, like)| Expr::Text(text, like)),
        pattern_of().prop_map(Expr::Tag),
        (text().prop_filter("a key", |key| !key.is_empty()), pattern_of())
            .prop_map(|(key, like)| Expr::Annotation(key, like)),
        (compared(), any::<i64>()).prop_map(|(compare, n)| Expr::Priority(compare, n)),
        (prop::sample::select(Time::ALL.to_vec()), compared(), moment)
            .prop_map(|(time, compare, at)| Expr::Time(time, compare, at)),
        prop::sample::select(Time::ALL.to_vec()).prop_map(Expr::Set),
        (prop::sample::select(Flag::ALL.to_vec()), any::<bool>())
            .prop_map(|(flag, is)| Expr::Flag(flag, is)),
    ]
}

fn expr() -> impl Strategy<Value = Expr> {
    leaf().prop_recursive(4, 20, 4, |inner| {
        let several = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            several.clone().prop_map(Expr::And),
            several.prop_map(Expr::Or),
            inner.prop_map(|part| Expr::Not(Box::new(part))),
        ]
    })
}

/// With what is derived beside it.
fn whole() -> impl Strategy<Value = Expr> {
    let status = (1..=10).prop_map(|n| Expr::Status(ExecutionStatus::try_from(n).unwrap()));
    let health = (1..=3).prop_map(|n| Expr::Health(Health::try_from(n).unwrap()));
    prop_oneof![
        expr(),
        (expr(), prop::collection::vec(status, 2..4), health).prop_map(|(part, some, health)| {
            Expr::And(vec![part, Expr::Or(some), Expr::Not(Box::new(health))])
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_again_as_it_was(expr in whole()) {
        let text = expr.to_string();
        prop_assume!(text.len() <= BYTES_MAX);
        prop_assert_eq!(parse(&text), Ok(Some(expr)), "{}", text);
    }

    #[test]
    fn any_text_is_read_or_refused_within_it(text in any::<String>()) {
        if let Err(fault) = parse(&text) {
            prop_assert!(fault.offset <= text.len() && text.is_char_boundary(fault.offset), "{:?}", fault);
        }
    }

    #[test]
    fn words_in_any_order_are_read_or_refused_at_one_of_them(
        words in prop::collection::vec(prop::sample::select(vec![
            "state", "tags", "annotations.", "annotations", "priority", "end_time", "health", "=", "!=", "<", ":", "(",
            ")", "AND", "OR", "NOT", "-", "error", "\"x*\"", "'y'", "3", "*", "-1h", "healthy", "x.y",
        ]), 0..12)
    ) {
        let text = words.join(" ");
        match parse(&text) {
            Err(fault) => prop_assert!(fault.offset <= text.len(), "{:?}", fault),
            Ok(Some(expr)) => prop_assert_eq!(parse(&expr.to_string()), Ok(Some(expr))),
            Ok(None) => prop_assert!(text.is_empty()),
        }
    }
}

#[test]
fn a_filter_counts_from_now_if_any_part_of_it_says_how_long_ago() {
    for (written, counts) in [
        ("create_time > \"-1h\"", true),
        ("state = error AND (paused = true OR NOT end_time < \"-1m30s\")", true),
        ("create_time > \"2026-11-28T09:30:00Z\" AND start_time:*", false),
        ("reason = \"-1h\"", false),
    ] {
        assert_eq!(read(written).counts_from_now(), counts, "{written}");
    }
}
