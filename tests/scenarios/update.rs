//! What is changed of steps under way, and what their handlers see of it.

use serde_json::{Value, json};
use stepwell_client::{Error, Executor, HandlerError, Start, StepContext, v1};
use stepwell_proto::v1::ErrorReason;
use stepwell_tests::{World, check, until};

use super::cli::stepwell;

const DEFINITION: &str = "
name: mail
defaults: {retry: {max_attempts: 1}}
steps:
  - {name: first, handler: send, config: {host: down}}
  - {name: second, handler: send, depends_on: [first], config: {host: one}}
  - {name: third, handler: send, depends_on: [second], config: {host: one}}
";

/// A handler whose result is its config, unless that says that the host is down.
fn mailer(world: &World) -> Executor {
    Executor::new(&world.client, "e").handler("send", async |step: StepContext| {
        let config: Value = step.config()?;
        if config["host"] == "down" {
            return Err(HandlerError::new("Down", "nobody answers"));
        }
        Ok(config)
    })
}

fn update(task: &v1::Task, number: i32, config: Option<&str>) -> v1::UpdateStepRequest {
    v1::UpdateStepRequest {
        step_id: stepwell_proto::id::step_id(&task.task_id, number),
        config: config.map(str::to_owned),
        reason: "moved".into(),
        updated_by: "ops@mail".into(),
        ..Default::default()
    }
}

fn results(task: &v1::Task) -> Vec<Value> {
    task.steps.iter().map(|step| serde_json::from_str(&step.result).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_sees_the_new_config_at_the_next_attempt_and_so_does_a_child_that_is_handed_over()
{
    let world = World::start().await;
    world.define(DEFINITION).await;
    let mut feed = world.feed(Start::Latest).await;
    let running = world.run(mailer(&world));
    let task = world.create("mail", &json!({})).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "error");
    let new = r#"{"host": "two",  "tls": true}"#;
    let step = world.client.update_step(update(&task, 0, Some(new))).await.unwrap().step.unwrap();
    assert_eq!((step.state().word(), step.config.as_deref()), ("error", Some(new)));
    world.client.update_step(update(&task, 1, Some("{}"))).await.unwrap();
    let told = until(&mut feed, |event| event.step_name == "second").await.pop().unwrap();
    let Some(v1::event::Detail::StepUpdated(told)) = told.detail else { panic!("{told:?}") };
    assert_eq!((told.config.as_deref(), told.config_omitted), (Some("{}"), false));
    assert_eq!((told.updated_by.as_str(), told.max_attempts), ("ops@mail", 0));
    let retry = v1::RetryTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    world.client.retry_task(retry).await.unwrap();
    let ended = world.ended(&task.task_id).await;
    assert_eq!(ended.state().word(), "complete");
    let one = json!({"host": "one"});
    assert_eq!(results(&ended), [json!({"host": "two", "tls": true}), json!({}), one]);
    // Of one task alone.
    let other = world.create("mail", &json!({})).await;
    assert_eq!(world.ended(&other.task_id).await.state().word(), "error");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_never_ran_is_changed_and_changed_back_on_the_command_line() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let task = world.create("mail", &json!({})).await;
    let id = |number| stepwell_proto::id::step_id(&task.task_id, number);
    let change = |number, args: &[&str]| {
        let step = id(number);
        stepwell(&world, &[&["step", "update", &step][..], args].concat(), r#"{"host": "piped"}"#)
    };
    let (code, out, err) = change(0, &["--config", "-", "--max-attempts", "4", "--reason", "new"]);
    assert!(code == 0 && out.contains("0/4"), "{out} {err}");
    assert_eq!(change(1, &["--config", r#"{"host": "two"}"#]).0, 0);
    assert_eq!(change(1, &["--clear-config", "-o", "json"]).0, 0);
    let (_, out, _) = stepwell(&world, &["step", "get", &id(0), "-o", "json"], "");
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["config"], r#"{"host": "piped"}"#, "{out}");
    let (code, _, err) = change(0, &[]);
    assert!(code == 2 && err.contains("--config"), "{err}");
    let (code, _, err) = change(0, &["--config", "[]"]);
    assert!(code == 2 && err.contains("must be a JSON object"), "{err}");
    let running = world.run(mailer(&world));
    let ended = world.ended(&task.task_id).await;
    let one = json!({"host": "one"});
    assert_eq!(results(&ended), [json!({"host": "piped"}), one.clone(), one]);
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_that_no_definition_could_have_is_refused_and_changes_nothing() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let task = world.create("mail", &json!({})).await;
    let ended = world.create("mail", &json!({})).await;
    let cancel = v1::CancelTaskRequest { task_id: ended.task_id.clone(), ..Default::default() };
    world.client.cancel_task(cancel).await.unwrap();
    let before = (world.rows().await, world.task(&task.task_id).await);
    let refused = async |request: v1::UpdateStepRequest| {
        let error: Error = world.client.update_step(request).await.unwrap_err();
        (error.reason().unwrap(), error.to_string())
    };
    let large = format!(r#"{{"v": "{}"}}"#, "x".repeat(64 << 10));
    let deep = format!(r#"{{"v": {}{}}}"#, "[".repeat(64), "]".repeat(64));
    for (config, what) in [
        ("7", "must be a JSON object"),
        ("[{}]", "must be a JSON object"),
        (r#"{"a": 1"#, "is not JSON"),
        (" ", "is not JSON"),
        (r#"{"a": "\u0000"}"#, r"\u0000"),
        (&large, "at most 65536"),
        (&deep, "nested deeper"),
    ] {
        let (reason, text) = refused(update(&task, 0, Some(config))).await;
        assert_eq!(reason, ErrorReason::InvalidRequest);
        assert!(text.contains(what) && text.contains("config"), "{text}");
    }
    let (reason, _) = refused(update(&task, 0, None)).await;
    assert_eq!(reason, ErrorReason::InvalidRequest, "nothing is to be changed");
    let both = v1::UpdateStepRequest { max_attempts: 1001, ..update(&task, 0, Some("{}")) };
    assert_eq!(refused(both).await.0, ErrorReason::InvalidRequest);
    assert_eq!(refused(update(&task, 9, Some("{}"))).await.0, ErrorReason::StepNotFound);
    assert_eq!(refused(update(&ended, 0, Some("{}"))).await.0, ErrorReason::TaskEnded);
    assert_eq!((world.rows().await, world.task(&task.task_id).await), before);
}
