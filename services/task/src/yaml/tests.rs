use stepwell_proto::{refusal::Refusal, v1::ErrorReason};

use crate::definition::from_yaml;

fn refused(text: &str) -> Refusal {
    let refusal = from_yaml(text).expect_err(text);
    assert_eq!(refusal.reason, ErrorReason::InvalidDefinition);
    refusal
}

/// The one fault of a text.
fn fault(text: &str) -> (String, String) {
    let mut violations = refused(text).violations;
    assert_eq!(violations.len(), 1, "{violations:?}");
    violations.remove(0)
}

const CHECKOUT: &str = "\
namespace: shop
name: fulfil_order
version: 1.2.0
description: Check out a cart.
context_schema:
  type: object
  required: [order_id]
  properties: {order_id: {type: integer, maximum: 12345678901234567890123}}
defaults:
  retry: {max_attempts: 5, initial_backoff: 200ms, jitter: 0}
  timeout: 1m30s
steps:
  - name: validate_cart
  - name: process_payment
    handler: pay
    depends_on: [validate_cart]
    retry: {max_attempts: 2, except: [CardDeclined]}
    timeout: 10s
    requires: {region: eu, zone: '1'}
    config: {gateway: test, limit: 1.10, on: true, none: ~, code: '007'}
";

#[test]
fn a_definition_is_read_with_its_defaults() {
    let read = from_yaml(CHECKOUT).unwrap();
    assert_eq!((read.namespace.as_str(), read.version.as_str()), ("shop", "1.2.0"));
    assert_eq!(
        read.context_schema,
        r#"{"type":"object","required":["order_id"],"properties":{"order_id":{"type":"integer","maximum":12345678901234567890123}}}"#
    );
    let [cart, pay] = read.steps.as_slice() else { panic!("two steps") };
    assert_eq!((cart.handler.as_str(), pay.handler.as_str()), ("validate_cart", "pay"));
    assert_eq!(cart.timeout.map(|t| t.seconds), Some(90));
    assert_eq!(pay.timeout.map(|t| t.seconds), Some(10));
    let (of_cart, of_pay) = (cart.retry.as_ref().unwrap(), pay.retry.as_ref().unwrap());
    assert_eq!((of_cart.max_attempts, of_pay.max_attempts), (5, 2));
    assert_eq!((of_cart.jitter, of_pay.jitter), (Some(0.0), Some(0.0)));
    assert_eq!(of_pay.initial_backoff.map(|b| b.nanos), Some(200_000_000));
    assert_eq!(of_pay.multiplier, 2.0);
    assert_eq!(of_pay.except, ["CardDeclined"]);
    assert_eq!(pay.config, r#"{"gateway":"test","limit":1.10,"on":true,"none":null,"code":"007"}"#);
    let requires: Vec<(&str, &str)> =
        pay.requires.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
    assert_eq!(requires, [("region", "eu"), ("zone", "1")]);
    assert!(cart.requires.is_empty());
    assert_eq!(read.content_hash.len(), 64);
}

#[test]
fn each_kind_of_fault_says_where_and_what_was_probably_meant() {
    let step = |rest: &str| format!("name: d\nsteps:\n  - name: one\n    {rest}\n");
    for (text, path, what) in [
        ("nmae: d\nsteps: [{name: a}]\n".to_owned(), "nmae at 1:1", "did you mean `name`?"),
        (
            "name: d\nurgency: 3\nsteps: [{name: a}]".into(),
            "urgency at 2:1",
            "is unknown; known are",
        ),
        (
            "name: d\npriority: 6\nsteps: [{name: a}]".into(),
            "priority at 2:11",
            "must be a whole number from 1 to 5",
        ),
        (step("depend_on: [a]"), "steps[0].depend_on at 4:5", "did you mean `depends_on`?"),
        (step("retry: {max_atempts: 3}"), "steps[0].retry.max_atempts at 4:13", "`max_attempts`"),
        (step("timeout: 30"), "steps[0].timeout at 4:14", "needs a unit: `30s`"),
        (step("timeout: 5 parsecs"), "steps[0].timeout at 4:14", "must be a duration"),
        (step("timeout: 25h"), "steps[0].timeout at 4:14", "at most 24h"),
        (step("timeout: 0s"), "steps[0].timeout at 4:14", "from 1ms to 24h"),
        (step("timeout: [1s]"), "steps[0].timeout at 4:14", "but is a list"),
        (step("heartbeat_timeout: 25h"), "steps[0].heartbeat_timeout at 4:24", "at most 24h"),
        (step("queue_timeout: 9000h"), "steps[0].queue_timeout at 4:20", "at most 8760h"),
        (step("total_timeout: 0s"), "steps[0].total_timeout at 4:20", "from 1ms to 8760h"),
        (
            "name: d\nconcurrency: {key: a..b}\nsteps: [{name: a}]".into(),
            "concurrency.key at 2:20",
            "names of fields",
        ),
        (
            "name: d\nconcurrency: {key: a, limit: 0}\nsteps: [{name: a}]".into(),
            "concurrency.limit at 2:30",
            "from 1 to 10000",
        ),
        (
            "name: d\nidentity: {strategy: hahs}\nsteps: [{name: a}]".into(),
            "identity.strategy at 2:22",
            "did you mean `hash`?",
        ),
        (
            "name: d\nidentity: {strategy: hash, windw: 1m}\nsteps: [{name: a}]".into(),
            "identity.windw at 2:28",
            "did you mean `window`?",
        ),
        (
            "name: d\nidentity: {strategy: hash, window: 0s}\nsteps: [{name: a}]".into(),
            "identity.window at 2:36",
            "from 1ms to 8760h",
        ),
        (
            "name: d\nidentity: {window: 1m}\nsteps: [{name: a}]".into(),
            "identity.window at 2:20",
            "`strategy: hash` or `key` is wanted",
        ),
        (
            "name: d\nidentity: hash\nsteps: [{name: a}]".into(),
            "identity at 2:11",
            "must be a mapping, but is text",
        ),
        (
            "name: d\nversion: 1.2.3-rc.1\nsteps: [{name: a}]".into(),
            "version at 2:10",
            "did you mean `1.2.3`?",
        ),
        (
            "name: d\ncontext_schema: {$schema: 'http://json-schema.org/draft-04/schema#'}\nsteps: [{name: a}]"
                .into(),
            "context_schema.$schema at 2:27",
            "draft/2020-12/schema` or `http://json-schema.org/draft-07/schema`",
        ),
        (
            "name: d\ncontext_schema:\n  properties:\n    n: {type: integer, default: x}\nsteps: [{name: a}]"
                .into(),
            "context_schema.properties.n.default at 4:33",
            "does not fit its own schema",
        ),
        (step("skippable: 1"), "steps[0].skippable at 4:16", "true or false"),
        (step("depends_on: one"), "steps[0].depends_on at 4:17", "must be a list, but is text"),
        (step("depends_on: [one]"), "steps[0].depends_on[0] at 4:18", "is the step itself"),
        (step("depends_on: [onee]"), "steps[0].depends_on[0] at 4:18", "did you mean `one`?"),
        (
            step("retry: {max_attempts: many}"),
            "steps[0].retry.max_attempts at 4:27",
            "whole number",
        ),
        (step("retry: {max_attempts: 0}"), "steps[0].retry.max_attempts at 4:27", "from 1 to 1000"),
        (step("retry: {multiplier: 0.5}"), "steps[0].retry.multiplier at 4:25", "from 1 to 100"),
        (step("retry: {jitter: 2}"), "steps[0].retry.jitter at 4:21", "from 0 to 1"),
        (step("retry: 3"), "steps[0].retry at 4:12", "must be a mapping, but is a number"),
        (step("description: 7"), "steps[0].description at 4:18", "is a number; quote it"),
        (step("description:"), "steps[0].description at 4:", "is empty; give text"),
        (step("handler: a b"), "steps[0].handler at 4:14", "may not contain ' '"),
        (step("handler: a\n    handler: b"), "steps[0] at 5:5", "twice; first at 4:5"),
        (step("config: {rate: .inf}"), "steps[0].config.rate at 4:20", "not finite"),
        (step("require: {region: eu}"), "steps[0].require at 4:5", "did you mean `requires`?"),
        (step("requires: [eu]"), "steps[0].requires at 4:15", "must be a mapping"),
        (step("requires: {zone: 7}"), "steps[0].requires.zone at 4:22", "is a number; quote it"),
        (step("requires: {a: x, a: y}"), "steps[0].requires at 4:22", "twice; first at 4:16"),
        (step("requires: {a b: x}"), "steps[0].requires at 4:15", "\"a b\" may not contain ' '"),
        (step("config: [1]"), "steps[0].config at 4:13", "must be a mapping"),
        (step("config: {a: \"\\0\"}"), "steps[0].config at 4:13", r"\u0000"),
        ("name: d\nsteps: []\n".into(), "steps at 2:8", "at least one"),
        ("name: d\n".into(), "steps at 1:1", "at least one"),
        ("steps: [{name: a}]\n".into(), "name at 1:1", "is missing"),
        ("name: d\nversion: 1.0\nsteps: [{name: a}]\n".into(), "version at 2:10", "quote it"),
        ("name: d\nversion: 1.0.x\nsteps: [{name: a}]\n".into(), "version at 2:10", "MAJOR"),
        (
            "name: d\nsteps: [{name: a}, {name: a}]\n".into(),
            "steps[1].name at 2:27",
            "steps[0] too",
        ),
        ("name: d\nsteps: {a: 1}\n".into(), "steps at 2:8", "must be a list"),
        ("- a\n".into(), "yaml at 1:1", "must be a mapping"),
        ("name: [d\n".into(), "yaml at ", "is not YAML"),
        (String::new(), "yaml at 1:1", "is empty"),
        (
            "name: d\ncontext_schema:\n  properties:\n    a: {type: strnig}\nsteps: [{name: a}]\n"
                .into(),
            "context_schema.properties.a.type at 4:15",
            "strnig",
        ),
        (
            "name: d\ndefaults: {retry: {multiplier: 200}}\nsteps: [{name: a}, {name: b}]\n".into(),
            "defaults.retry.multiplier at 2:32",
            "from 1 to 100",
        ),
    ] {
        // Some of these leave a second, honest fault behind: a name that is missing.
        let faults = refused(&text).violations;
        let (at, message) = &faults[0];
        assert!(at.starts_with(path) && message.contains(what), "{text}: {faults:?}");
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
    }
}

#[test]
fn several_faults_are_told_at_once() {
    let refusal = refused(
        "name: a b\nsteps:\n  - {name: one, timeout: 3, dependson: []}\n  - {name: two, depends_on: [tow, one, one]}\n",
    );
    let paths: Vec<&str> = refusal.violations.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "name at 1:7",
            "steps[0].timeout at 3:26",
            "steps[0].dependson at 3:29",
            "steps[1].depends_on[0] at 4:30",
            "steps[1].depends_on[2] at 4:40",
        ]
    );
    assert!(refusal.message.contains("did you mean `two`?"), "{}", refusal.message);
}

#[test]
fn a_cycle_is_named_in_order_and_pointed_at() {
    let text = "\
name: d
steps:
  - name: a
    depends_on: [c]
  - name: b
    depends_on: [a]
  - name: c
    depends_on: [b]
  - name: behind
    depends_on: [c]
";
    let (path, what) = fault(text);
    assert!(
        ["a → b → c → a", "b → c → a → b", "c → a → b → c"].iter().any(|c| what.contains(c)),
        "{what}"
    );
    assert!(path.starts_with("steps[") && path.contains("depends_on[0] at "), "{path}");
}

#[test]
fn what_is_too_large_or_grows_too_large_is_refused() {
    let (path, what) = fault(&format!("name: d\ndescription: {}\n", "x".repeat(1 << 20)));
    assert!(path == "yaml at 1:1" && what.contains("at most 1048576"), "{path} {what}");

    let long = "x".repeat(4000);
    let text = format!("name: d\nsteps:\n  - {{name: a, description: &l {long}}}\n");
    let more: String = (0..900).map(|i| format!("  - {{name: a{i}, description: *l}}\n")).collect();
    let (path, what) = fault(&(text + &more));
    assert!(what.contains("defaults included"), "{path} {what}");
}

#[test]
fn a_flood_of_faults_is_cut() {
    let unknown: String = (0..5000).map(|i| format!("key{i}: 1\n")).collect();
    let refusal = refused(&unknown);
    assert!(refusal.violations.len() <= 102, "{}", refusal.violations.len());
    assert!(refusal.message.len() < 40_000);
}

#[test]
fn what_a_step_publishes_is_read_and_its_faults_have_line_and_path() {
    let text = "\
name: d
steps:
  - name: a
    publishes:
      - {name: order.paid, version: 2, schema: {type: object}, example: {n: 1}}
      - name: order.sent
        description: It is under way.
";
    let publishes = from_yaml(text).unwrap().steps.remove(0).publishes;
    let [paid, sent] = &publishes[..] else { panic!("{publishes:?}") };
    assert_eq!((paid.name.as_str(), paid.version), ("order.paid", 2));
    assert_eq!(
        (paid.schema.as_str(), paid.example.as_str()),
        (r#"{"type":"object"}"#, r#"{"n":1}"#)
    );
    assert_eq!((sent.version, sent.description.as_str()), (1, "It is under way."));
    for (from, to, at, path) in [
        ("order.sent", "sent", "6:15", "steps[0].publishes[1].name"),
        ("description", "descripton", "7:9", "steps[0].publishes[1].descripton"),
        ("type: object", "type: objekt", "5:55", "steps[0].publishes[0].schema.type"),
        ("version: 2", "version: 0", "5:37", "steps[0].publishes[0].version"),
    ] {
        let (told, what) = fault(&text.replace(from, to));
        assert_eq!(told, format!("{path} at {at}"), "{what}");
    }
}
