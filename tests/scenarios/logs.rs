//! Logs: each line stands alone, and none says what is not its to say.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stepwell_client::v1;
use stepwell_suite::{Kind, Signal};
use stepwell_tests::World;

use super::traces::{executor, stopped};

/// Stands wherever payloads and secrets do.
const SECRET: &str = "s3cr3t-of-nobody-s-business";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

const DEFINITIONS: [&str; 2] = [
    "
name: told
defaults: {retry: {max_attempts: 3, initial_backoff: 10ms}}
steps:
  - {name: a, handler: told}
  - {name: b, handler: told, depends_on: [a]}
",
    "{name: slow, steps: [{name: a, handler: told, timeout: 300ms, retry: {max_attempts: 1}}]}",
];

/// The lines of a log. Each is a JSON object that says when, how bad, from where and what.
fn lines(name: &str, text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}"));
        for field in ["timestamp", "level", "target"] {
            assert!(line[field].is_string(), "{name}: no {field}: {line}");
        }
        assert!(!is_ours(&line) || line["message"].is_string(), "{name}: no message: {line}");
        line
    });
    lines.collect()
}

/// Not a library's.
fn is_ours(line: &Value) -> bool {
    line["target"].as_str().is_some_and(|target| target.starts_with("stepwell"))
}

/// A field of a line: its own, or of what it happened in.
fn field<'a>(line: &'a Value, name: &str) -> &'a Value {
    let around = line["spans"].as_array().into_iter().flatten().rev().map(|span| &span[name]);
    let mut found = std::iter::once(&line[name]).chain(around).filter(|value| !value.is_null());
    found.next().unwrap_or(&Value::Null)
}

async fn create(world: &World, definition: &str, context: &Value) -> v1::Task {
    let request = v1::CreateTaskRequest {
        definition_name: definition.into(),
        context: context.to_string(),
        traceparent: format!("00-{TRACE}-00f067aa0ba902b7-01"),
        ..Default::default()
    };
    world.client.create_task(request).await.unwrap().task.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_stands_alone_and_none_has_payloads_or_secrets() {
    let world = World::set_up(|options| {
        let url = options.database_url.as_ref().unwrap();
        assert!(url.contains("@"), "{url}");
        // Nobody asks for it.
        options.database_url = Some(url.replacen('@', &format!(":{SECRET}@"), 1));
        options.args = ["--log", "json", "--log-filter", "debug"].map(str::to_owned).into();
    })
    .await;
    for definition in DEFINITIONS {
        world.define(definition).await;
    }
    world.define("{name: gate, steps: [{name: closed}]}").await;
    let gate = world.create("gate", &json!({"says": SECRET})).await;
    let process = executor(&world, &[("STEPWELL_LOG".into(), "json".into())]).await;

    // One works at last, one is given up, one takes too long.
    let works = create(&world, "told", &json!({"fails": "a", "says": SECRET})).await;
    let dies = create(&world, "told", &json!({"dies": "b", "says": SECRET})).await;
    let waits = json!({"waits": "a", "waits_for": gate.task_id, "says": SECRET});
    let slow = create(&world, "slow", &waits).await;
    for (task, state) in [(&works, "complete"), (&dies, "error"), (&slow, "error")] {
        assert_eq!(world.ended(&task.task_id).await.state().word(), state);
    }
    // Requests that are wrong, and a database that goes away for a moment.
    for (definition, context) in [("told", format!("{{{SECRET:?}: 1")), ("nowhere", "{}".into())] {
        let request = v1::CreateTaskRequest {
            definition_name: definition.into(),
            context,
            ..Default::default()
        };
        world.client.create_task(request).await.unwrap_err();
    }
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where application_name like 'stepwell-%' and datname = current_database()",
    )
    .execute(&mut world.connection().await)
    .await
    .unwrap();
    let again = create(&world, "told", &json!({"says": SECRET})).await;
    assert_eq!(world.ended(&again.task_id).await.state().word(), "complete");
    let request = v1::CancelTaskRequest {
        task_id: gate.task_id,
        reason: SECRET.into(),
        cancelled_by: "test".into(),
        ..Default::default()
    };
    world.client.cancel_task(request).await.unwrap();
    process.kill(Signal::SIGTERM).await.unwrap();
    process.wait().await;
    stopped(&world).await;

    let mut all = BTreeMap::new();
    for name in ["task-0", "step-0", "event-0", "executor"] {
        let text =
            std::fs::read_to_string(world.suite.folder().join(format!("{name}.log"))).unwrap();
        assert!(!text.contains(SECRET), "{name}: {:#?}", text.lines().find(|l| l.contains(SECRET)));
        all.insert(name, lines(name, &text));
    }
    for kind in [Kind::Task, Kind::Step, Kind::Event] {
        let lines = &all[format!("{}-0", kind.word()).as_str()];
        assert!(lines.iter().any(|line| line["message"] == "stopped"), "the log is whole");
        for line in lines.iter().filter(|line| is_ours(line)) {
            assert_eq!(field(line, "service"), kind.word(), "{line}");
        }
    }

    // Once per failure, by the one who decides on it, and with what finds it again.
    let of = |message: &str, task: &v1::Task| -> Vec<Value> {
        let lines = all["step-0"].iter().filter(|line| {
            line["message"] == message && field(line, "task") == task.task_id.as_str()
        });
        lines.cloned().collect()
    };
    for (task, message, step, class) in [
        (&works, "attempt failed", "a", "Flaky"),
        (&dies, "step given up", "b", "Doomed"),
        (&slow, "step given up", "a", "Timeout"),
    ] {
        let [line] = &of(message, task)[..] else { panic!("{message}: {:?}", of(message, task)) };
        assert_eq!((&line["step"], &line["attempt"]), (&json!(step), &json!(1)));
        assert_eq!((&line["error_class"], &line["trace_id"]), (&json!(class), &json!(TRACE)));
        assert!(line["session"].is_i64(), "{line}");
    }
    assert!(of("step given up", &works).is_empty() && of("attempt failed", &dies).is_empty());

    // What a handler says is about its step.
    let told: Vec<&Value> =
        all["executor"].iter().filter(|line| line["message"] == "told").collect();
    assert!(told.len() >= 8, "{told:?}");
    for line in told {
        for name in ["namespace", "task", "step", "attempt"] {
            assert!(!field(line, name).is_null(), "no {name}: {line}");
        }
        assert_eq!(field(line, "trace_id"), TRACE);
    }
}
