//! Definitions from files, as their writer sees them; and tasks that are made once.

use std::time::Duration;

use serde_json::json;
use stepwell_proto::v1;
use stepwell_suite::Nodes;
use stepwell_tests::World;

use super::cli::stepwell;

const PAY: &str = "\
namespace: shop
name: pay
variables:
  GATEWAY_URL: {description: Where the gateway is.}
  TIMEOUT: {default: 30s}
steps:
  - name: check
  - name: charge
    depends_on: [check]
    timeout: ${TIMEOUT}
    config: {url: '${GATEWAY_URL}/charge', id: '${context.id}'}
environments:
  test: {steps: {charge: {config: {url: 'fake:${GATEWAY_URL}'}, retry: {max_attempts: 1}}}}
subscriptions:
  - name: pay_failed
    events: [task.failed]
    deliver: {log: {}}
    config: {gateway: '${GATEWAY_URL}'}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_definitions_is_checked_tried_and_applied_for_an_environment() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("a.yaml"), PAY).unwrap();
    std::fs::write(folder.path().join("b.yml"), "name: other\nsteps: [{name: a}]\n").unwrap();
    std::fs::write(folder.path().join("notes.txt"), "no definition").unwrap();
    let definition = |args: &[&str]| stepwell(&world, &[&["definition"][..], args].concat(), "");

    let (code, _, err) = definition(&["validate", at]);
    assert!(code == 2 && err.contains("a.yaml: steps[1].config.url at 11:19"), "{err}");
    assert!(err.contains("--set GATEWAY_URL="), "{err}");
    let set = ["--set", "GATEWAY_URL=http://g"];
    let (code, out, err) = definition(&[&["validate", at][..], &set].concat());
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "shop/pay 0.1.0 is right (2 steps)",
            "shop/pay 0.1.0 [test] is right (2 steps)",
            "default/other 0.1.0 is right (1 steps)",
        ]
    );
    for (args, said) in [
        (&["--env", "tset"][..], "declared: test"),
        (&["--set", "GATEWAY=x"], "declared: GATEWAY_URL, TIMEOUT"),
        (&["--set", "GATEWAY_URL"], "NAME=VALUE is wanted"),
    ] {
        let (code, _, err) = definition(&[&["apply", at][..], args].concat());
        assert!(code == 2 && err.contains(said), "{args:?}: {err}");
    }

    let test = [&["apply", at, "--env", "test"][..], &set].concat();
    let (code, out, _) = definition(&[&test[..], &["--dry-run"]].concat());
    assert!(code == 0 && out.matches("would be registered").count() == 2, "{out}");
    assert!(definition(&["list"]).1.lines().count() <= 1, "nothing was registered");
    let (code, out, err) = definition(&test);
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "shop/pay 0.1.0 registered (2 steps)",
            "subscription pay_failed created",
            "default/other 0.1.0 registered (1 steps)",
        ]
    );
    let (_, out, _) = definition(&["describe", "pay", "-n", "shop", "-o", "json"]);
    let stored: serde_json::Value = serde_json::from_str(&out).unwrap();
    let charge = &stored["steps"][1];
    assert_eq!(charge["config"], json!(r#"{"url":"fake:http://g","id":"${context.id}"}"#));
    assert_eq!((&charge["retry"]["maxAttempts"], &charge["timeout"]), (&json!(1), &json!("30s")));
    let (_, out, _) = stepwell(&world, &["subscription", "describe", "pay_failed"], "");
    assert!(out.contains(r#"config: {"gateway":"http://g"}"#), "{out}");

    // Its subscriptions by themselves are the same ones, with what is chosen for it.
    let alone = [&["subscription", "apply", at][..], &test[2..]].concat();
    let (code, out, err) = stepwell(&world, &alone, "");
    assert_eq!((code, &*out), (0, "subscription pay_failed unchanged\n"), "{err}");
    let other = ["subscription", "apply", at, "--set", "GATEWAY_URL=http://h", "--prune"];
    assert_eq!(stepwell(&world, &other, "").1, "subscription pay_failed changed\n");
    let (_, out, _) = stepwell(&world, &["subscription", "describe", "pay_failed"], "");
    assert!(out.contains(r#"config: {"gateway":"http://h"}"#), "{out}");
    for (args, said) in
        [(&[][..], "a.yaml: steps[1].config.url at 11:19"), (&["--env", "tset"], "declared: test")]
    {
        let (code, _, err) =
            stepwell(&world, &[&["subscription", "apply", at][..], args].concat(), "");
        assert!(code == 2 && err.contains(said), "{args:?}: {err}");
    }
    assert_eq!(stepwell(&world, &alone, "").1, "subscription pay_failed changed\n");

    // Again it is nothing; for another environment it is another content.
    assert_eq!(definition(&test).1.matches("unchanged").count(), 3);
    let base = [&["apply", at][..], &set].concat();
    for args in [&[&base[..], &["--dry-run"]].concat(), &base] {
        let (code, _, err) = definition(args);
        assert!(code == 4 && err.contains("DEFINITION_CHANGED"), "{err}");
    }
    // One that is wrong keeps all from being registered.
    std::fs::write(folder.path().join("c.yaml"), "name: c\nsteps: [{name: a, dependson: []}]")
        .unwrap();
    std::fs::write(
        folder.path().join("b.yml"),
        "name: other\nversion: 2.0.0\nsteps: [{name: a}]\n",
    )
    .unwrap();
    let (code, _, err) = definition(&test);
    assert!(
        code == 2
            && err.contains("c.yaml: steps[0].dependson at 2:19")
            && err.contains("`depends_on`"),
        "{err}"
    );
    // Of one that is no YAML the fault is told, whatever was chosen: what it declares is not known.
    std::fs::write(folder.path().join("c.yaml"), "name: c\nsteps: [{name: a}\nversion: 1.0.0\n")
        .unwrap();
    for chosen in [&["--env", "nowhere"], &["--set", "NOBODY=x"]] {
        for command in ["apply", "validate"] {
            let (code, _, err) = definition(&[&[command, at], &chosen[..]].concat());
            assert!(code == 2 && err.contains("c.yaml: "), "{err}");
            assert!(err.contains(" at 3:") && !err.contains("declared"), "{err}");
        }
    }
    let (code, out, _) = definition(&["versions", "other"]);
    assert!(code == 0 && !out.contains("2.0.0"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_registered_is_listed_and_its_graph_shown() {
    let world = World::start().await;
    for version in ["1.9.0", "1.10.0"] {
        world.define(&format!("{{name: d, version: {version}, steps: [{{name: a}}, {{name: b, depends_on: [a]}}]}}")).await;
    }
    let definition = |args: &[&str]| stepwell(&world, &[&["definition"][..], args].concat(), "");
    let (_, out, _) = definition(&["list"]);
    assert!(out.contains("1.10.0") && !out.contains("1.9.0"), "{out}");
    let (_, out, _) = definition(&["list", "--all-versions", "-o", "jsonl"]);
    let versions: Vec<serde_json::Value> =
        out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        versions.iter().map(|v| v["version"].as_str().unwrap()).collect::<Vec<_>>(),
        ["1.9.0", "1.10.0"]
    );
    let (_, out, _) = definition(&["versions", "d"]);
    assert!(out.lines().last().unwrap().contains("1.10.0") && out.contains("latest"), "{out}");
    assert_eq!(definition(&["versions", "none"]).0, 3);
    let (_, out, _) = definition(&["namespaces"]);
    let row: Vec<&str> = out.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row, ["default", "1", "2"]);
    let (_, out, _) = definition(&["graph", "d"]);
    for line in ["default/d 1.10.0", "roots: a", "leaves: b", "longest path: a > b"] {
        assert!(out.lines().any(|l| l.trim() == line), "{line}: {out}");
    }
    // Without any service.
    let wrong =
        "{name: d, steps: [{name: a}], subscriptions: [{name: s, events: [task.complete]}]}";
    let (code, _, err) = stepwell(&world, &["definition", "validate", "-"], wrong);
    assert!(
        code == 2
            && err.contains("subscriptions[0].events[0] at 1:66")
            && err.contains("task.completed"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_who_create_the_same_at_once_over_two_services_make_one_task() {
    let world = World::with(Nodes { task: 2, step: 1, event: 1 }, &[]).await;
    world.define("{name: d, steps: [{name: a}]}").await;
    world.define("{name: h, identity: {strategy: hash, window: 10m}, steps: [{name: a}]}").await;
    let by_key = || world.client.task("d").idempotency_key("k").create();
    let by_content = || {
        world
            .client
            .task("d")
            .context(&json!({"n": 1}))
            .dedup_window(Duration::from_secs(600))
            .create()
    };
    let by_definition = || world.client.task("h").create();
    let keyed = futures::future::join_all((0..200).map(|_| by_key()));
    let same = futures::future::join_all((0..200).map(|_| by_content()));
    let defined = futures::future::join_all((0..200).map(|_| by_definition()));
    let (keyed, same, defined) = tokio::join!(keyed, same, defined);
    for tasks in [keyed, same, defined] {
        let tasks: Vec<v1::Task> = tasks.into_iter().map(Result::unwrap).collect();
        assert_eq!(tasks.len(), 200);
        assert!(tasks.iter().all(|task| task.task_id == tasks[0].task_id));
    }
    let made: i64 = sqlx::query_scalar("select count(*) from stepwell.task")
        .fetch_one(&mut world.connection().await)
        .await
        .unwrap();
    assert_eq!(made, 3);

    let create = ["task", "create", "d", "--key", "mine", "-c"];
    let (code, first, _) = stepwell(&world, &[&create[..], &["{}"]].concat(), "");
    let (_, again, err) = stepwell(&world, &[&create[..], &["{}"]].concat(), "");
    assert!(
        code == 0 && first == again && err.contains("was there already"),
        "{first}{again}{err}"
    );
    let (code, _, err) = stepwell(&world, &[&create[..], &[r#"{"n": 2}"#]].concat(), "");
    assert!(code == 4 && err.contains("REQUEST_ID_REUSED"), "{err}");
    let create = ["task", "create", "d", "--dedup", "1m", "-c", r#"{"n": 3}"#];
    assert_eq!(stepwell(&world, &create, "").1, stepwell(&world, &create, "").1);
}
