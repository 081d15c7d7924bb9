use std::collections::BTreeMap;

use stepwell_proto::v1::ErrorReason;

use super::*;
use crate::definition::{Written, declared, from_yaml, written};

const PAY: &str = "\
name: pay
variables:
  GATEWAY_URL: {default: 'http://localhost:9', description: Where the gateway is.}
  TIMEOUT: {default: 30s}
  TOKEN_NAME:
steps:
  - name: check
    config:
      url: ${GATEWAY_URL}/check
  - name: charge
    depends_on: [check]
    timeout: ${TIMEOUT}
    retry: {max_attempts: 3, initial_backoff: 2s}
    requires: {region: eu}
    config: {url: '${GATEWAY_URL}/charge?by=${GATEWAY_URL}', limits: {low: 1, high: 1.50}, code: 7}
environments:
  test:
    steps:
      charge:
        config: {url: 'http://fake/${TOKEN_NAME}', limits: {high: 2}}
        retry: {max_attempts: 1}
        timeout: 1s
  prod: {steps: {check: {requires: {zone: a}}}}
";

fn choices(environment: Option<&str>, set: &[(&str, &str)]) -> Choices {
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    Choices {
        environment: environment.map(str::to_owned),
        set: pairs(set),
        environ: pairs(&[("TIMEOUT", "7s"), ("PATH", "/bin"), ("GATEWAY_URL", "http://of-env")]),
    }
}

fn read(text: &str, choices: &Choices) -> Written {
    written(text, choices).unwrap_or_else(|refusal| panic!("{:?}", refusal.violations))
}

fn faults(text: &str, choices: &Choices) -> Vec<(String, String)> {
    let refusal = written(text, choices).expect_err(text);
    assert_eq!(refusal.reason, ErrorReason::InvalidDefinition);
    refusal.violations
}

#[test]
fn what_is_set_counts_before_the_environment_of_the_process_and_that_before_the_default() {
    let text = PAY.replace(
        "steps:\n  - name: check",
        "steps:\n  - name: check\n    description: ${TOKEN_NAME}",
    );
    let set = [("TOKEN_NAME", "t"), ("GATEWAY_URL", "http://set")];
    let definition = read(&text, &choices(None, &set)).definition;
    let [check, charge] = &definition.steps[..] else { panic!("two steps") };
    assert_eq!(
        (check.description.as_str(), check.config.as_str()),
        ("t", r#"{"url":"http://set/check"}"#)
    );
    assert_eq!(charge.timeout.map(|t| t.seconds), Some(7), "from the process");
    assert_eq!(
        charge.config,
        r#"{"url":"http://set/charge?by=http://set","limits":{"low":1,"high":1.50},"code":7}"#
    );
    let none = Choices::default();
    let definition = read(PAY, &none).definition;
    assert_eq!(definition.steps[1].timeout.map(|t| t.seconds), Some(30), "by default");
}

#[test]
fn an_environment_is_merged_key_by_key_and_is_itself_not_kept() {
    let base = read(PAY, &Choices::default()).definition;
    let test = read(PAY, &choices(Some("test"), &[("TOKEN_NAME", "x")])).definition;
    let charge = &test.steps[1];
    assert_eq!(charge.config, r#"{"url":"http://fake/x","limits":{"low":1,"high":2},"code":7}"#);
    let retry = charge.retry.as_ref().unwrap();
    assert_eq!((retry.max_attempts, retry.initial_backoff.map(|b| b.seconds)), (1, Some(2)));
    assert_eq!(
        (charge.timeout.map(|t| t.seconds), &charge.requires),
        (Some(1), &base.steps[1].requires)
    );
    assert_eq!(charge.depends_on, ["check"]);
    let prod = read(PAY, &choices(Some("prod"), &[])).definition;
    assert_eq!(prod.steps[0].requires.get("zone").map(String::as_str), Some("a"));
    // What is registered is what somebody would have written by hand.
    let by_hand = "name: pay\nsteps:\n  - {name: check, config: {url: http://of-env/check}, requires: {zone: a}}
  - name: charge\n    depends_on: [check]\n    timeout: 7s\n    retry: {max_attempts: 3, initial_backoff: 2s}
    requires: {region: eu}
    config: {url: 'http://of-env/charge?by=http://of-env', limits: {low: 1, high: 1.50}, code: 7}\n";
    assert_eq!(prod.content_hash, from_yaml(by_hand).unwrap().content_hash);
    assert_ne!(prod.content_hash, test.content_hash);
    let named = declared(PAY).unwrap();
    assert_eq!(named.variables, ["GATEWAY_URL", "TIMEOUT", "TOKEN_NAME"]);
    assert_eq!(named.environments, ["test", "prod"]);
    assert!(named.is_definition);
    assert_eq!(declared("subscriptions: [{name: a}]"), Some(Declared::default()));
    assert_eq!(declared("name: [a"), None);
}

#[test]
fn what_only_looks_like_a_variable_is_left_to_whoever_it_is_for() {
    let text = "name: d\nvariables: {URL: {default: u}}\nsteps:\n  - name: a\n    config:
      own: ${context.id} ${steps.a} $${context.id} ${lower} $ {URL} $URL ${
      literal: a $${URL} $$${URL} $${NOBODY}
      both: ${URL}${URL}
      ${URL}: key\n";
    let config = read(text, &Choices::default()).definition.steps.remove(0).config;
    assert_eq!(
        config,
        r#"{"own":"${context.id} ${steps.a} $${context.id} ${lower} $ {URL} $URL ${","literal":"a ${URL} $${URL} ${NOBODY}","both":"uu","${URL}":"key"}"#
    );
    // The service reads the same text the same way, as long as nothing is open.
    let closed = "name: d\nsteps: [{name: a, config: {a: '$${URL} ${context.id}'}}]";
    assert_eq!(from_yaml(closed).unwrap().steps[0].config, r#"{"a":"${URL} ${context.id}"}"#);
}

#[test]
fn a_value_is_text_whatever_it_looks_like() {
    let text = "name: d\nvariables: {V: {}}\nsteps: [{name: a, config: {v: '${V}'}}, {name: b}]\n";
    for value in ["7", "true", "~", "a: b\n- c", "\"", "{x: 1}", "${V}", ""] {
        let config = read(text, &choices(None, &[("V", value)])).definition.steps.remove(0).config;
        assert_eq!(config, serde_json::json!({"v": value}).to_string());
    }
}

#[test]
fn each_kind_of_fault_of_what_is_open_says_where_and_what_was_probably_meant() {
    let variables = |of: &str, value: &str| {
        format!("name: d\nvariables: {of}\nsteps:\n  - name: charge\n    description: {value}\n")
    };
    let environments =
        |of: &str| format!("name: d\nsteps: [{{name: charge}}]\nenvironments:\n  test: {of}\n");
    let (none, test) = (Choices::default(), choices(Some("test"), &[]));
    for (text, choices, path, what) in [
        (
            variables("{URL: {}}", "${URl}"),
            &none,
            "steps[0].description at 5:18",
            "did you mean `${URL}`?",
        ),
        (
            variables("{URL: {}}", "x${URLS}"),
            &none,
            "steps[0].description at 5:18",
            "no variable is named URLS; did you mean `URL`?",
        ),
        (
            variables("{URL: {}}", "${GATEWAY}"),
            &none,
            "steps[0].description at 5:18",
            "declare it under `variables`, or write `$${GATEWAY}`",
        ),
        (
            variables("{URL: {}}", "${URL} ${URL}"),
            &none,
            "steps[0].description at 5:18",
            "give `--set URL=…`",
        ),
        (variables("{url: {}}", "x"), &none, "variables.url at 2:13", "did you mean `URL`?"),
        (variables("{7URL: {}}", "x"), &none, "variables.7URL at 2:13", "upper-case letters"),
        (
            variables("{URL: {defualt: x}}", "x"),
            &none,
            "variables.URL.defualt at 2:19",
            "did you mean `default`?",
        ),
        (
            variables("{URL: {default: 7}}", "x"),
            &none,
            "variables.URL.default at 2:28",
            "is a number; quote it",
        ),
        (
            variables("{URL: x}", "x"),
            &none,
            "variables.URL at 2:18",
            "must be a mapping, but is text",
        ),
        (variables("[URL]", "x"), &none, "variables at 2:12", "must be a mapping, but is a list"),
        (variables("{URL: {}, URL: {}}", "x"), &none, "variables at 2:22", "twice; first at 2:13"),
        (
            environments("{steps: {charg: {}}}"),
            &none,
            "environments.test.steps.charg at 4:18",
            "did you mean `charge`?",
        ),
        (
            environments("{step: {}}"),
            &none,
            "environments.test.step at 4:10",
            "did you mean `steps`?",
        ),
        (
            environments("{steps: {charge: {timeot: 1s}}}"),
            &none,
            "environments.test.steps.charge.timeot at 4:27",
            "did you mean `timeout`?",
        ),
        (
            environments("{steps: {charge: {name: x}}}"),
            &none,
            "environments.test.steps.charge.name at 4:27",
            "is unknown",
        ),
        (
            environments("{steps: {charge: 1s}}"),
            &none,
            "environments.test.steps.charge at 4:26",
            "must be a mapping",
        ),
        (
            environments("{steps: [charge]}"),
            &none,
            "environments.test.steps at 4:17",
            "must be a mapping, but is a list",
        ),
        (environments("[]"), &none, "environments.test at 4:9", "must be a mapping, but is a list"),
        (
            environments("{}").replace("test:", "a b:"),
            &none,
            "environments.a b at 4:3",
            "may not contain ' '",
        ),
        (
            environments("{}").replace("test", "tset"),
            &test,
            "environments at 4:3",
            "did you mean `tset`?",
        ),
        (
            environments("{}").replace("test", "production"),
            &test,
            "environments at 4:3",
            "known are production",
        ),
        // What is merged is checked like what was there, and stands where it was written.
        (
            environments("{steps: {charge: {timeout: 30}}}"),
            &test,
            "steps[0].timeout at 4:36",
            "needs a unit: `30s`",
        ),
        (
            environments("{steps: {charge: {depends_on: [chrge]}}}"),
            &test,
            "steps[0].depends_on[0] at 4:40",
            "did you mean `charge`?",
        ),
    ] {
        let faults = faults(&text, choices);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].0 == path && faults[0].1.contains(what), "{text}: {faults:?}");
    }
}

#[test]
fn the_service_takes_no_text_in_which_something_is_open() {
    for (text, path) in [
        ("name: d\nvariables: {URL: {default: x}}\nsteps: [{name: a}]", "variables at 2:1"),
        ("name: d\nenvironments: {}\nsteps: [{name: a}]", "environments at 2:1"),
        ("name: d\nsteps:\n  - name: a\n    description: ${URL}", "steps[0].description at 4:18"),
    ] {
        let refusal = from_yaml(text).unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::InvalidDefinition);
        let [(at, what)] = &refusal.violations[..] else { panic!("{:?}", refusal.violations) };
        assert!(at == path && what.contains("stepwell definition apply"), "{at}: {what}");
    }
}

#[test]
fn values_are_bounded_one_by_one_and_together() {
    let text = |n: usize| {
        format!(
            "name: d\nvariables: {{V: {{}}}}\nsteps: [{{name: a, description: '{}'}}]",
            "${V}".repeat(n)
        )
    };
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    assert!(faults(&text(1), &choices(None, &[("V", &long)]))[0].1.contains("at most 16384"));
    assert!(
        faults(&text(65), &choices(None, &[("V", &long[1..])]))[0]
            .1
            .contains("1048576 bytes in all")
    );
    let many: Vec<String> = (0..101).map(|i| format!("V{i}: {{}}")).collect();
    let many = format!("name: d\nvariables: {{{}}}\nsteps: [{{name: a}}]", many.join(", "));
    assert_eq!(faults(&many, &Choices::default())[0].0, "variables at 2:12");
    let many: Vec<String> = (0..101).map(|i| format!("e{i}: {{}}")).collect();
    let many = format!("name: d\nenvironments: {{{}}}\nsteps: [{{name: a}}]", many.join(", "));
    assert_eq!(faults(&many, &Choices::default())[0].0, "environments at 2:15");
}

#[test]
fn subscriptions_are_passed_on_as_they_were_or_with_their_values_in_the_same_lines() {
    let text = "name: d\nvariables:\n  HOST: {default: 'ä\"b'}\nsteps: [{name: a}]\nsubscriptions:
  - name: s
    events: [task.failed]

    deliver:
      webhook: {url: 'https://${HOST}/x'}
    config: {n: 1.50, no: ~, on: true, t: '7'}
";
    assert_eq!(from_yaml("name: d\nsteps: [{name: a}]").map(|_| ()).ok(), Some(()));
    assert!(read("name: d\nsteps: [{name: a}]", &Choices::default()).subscriptions.is_none());
    let plain = text.replace("${HOST}", "h").replace("\nvariables:\n  HOST: {default: 'ä\"b'}", "");
    assert_eq!(read(&plain, &Choices::default()).subscriptions.as_deref(), Some(plain.as_str()));

    let passed = read(text, &Choices::default()).subscriptions.unwrap();
    let (before, after) =
        (stepwell_yaml::parse(text).unwrap(), stepwell_yaml::parse(&passed).unwrap());
    let leaf = |root: &Node, path: &[&str]| -> (usize, String) {
        let found = path.iter().fold(root.clone(), |node, name| {
            match (&node.value, name.parse::<usize>()) {
                (Value::List(items), Ok(i)) => items[i].clone(),
                _ => entry(&node, name).unwrap().clone(),
            }
        });
        let Value::Scalar { text, plain } = found.value else { panic!("{path:?}") };
        (found.at.line, format!("{text} {plain}"))
    };
    for path in [
        &["subscriptions", "0", "name"][..],
        &["subscriptions", "0", "events", "0"],
        &["subscriptions", "0", "config", "n"],
        &["subscriptions", "0", "config", "no"],
        &["subscriptions", "0", "config", "on"],
        &["subscriptions", "0", "config", "t"],
        &["name"],
    ] {
        let (is, was) = (leaf(&after, path), leaf(&before, path));
        assert_eq!((is.0, is.1.split(' ').next()), (was.0, was.1.split(' ').next()), "{passed}");
    }
    let url = leaf(&after, &["subscriptions", "0", "deliver", "webhook", "url"]);
    assert_eq!(url, (10, "https://ä\"b/x false".to_owned()));
    for number in ["n", "no", "on"] {
        assert!(leaf(&after, &["subscriptions", "0", "config", number]).1.ends_with("true"));
    }
    assert!(entry(&after, "variables").is_none());
}
