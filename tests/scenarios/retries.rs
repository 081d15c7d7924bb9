//! Failures: tried again, given up, timed out.

use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, Start, StepContext};
use stepwell_tests::{World, check, until};

const DEFINITION: &str = "
name: d
defaults: {retry: {max_attempts: 3, initial_backoff: 20ms, multiplier: 1, except: [Hopeless]}}
steps:
  - name: a
  - {name: b, depends_on: [a]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_works_at_last_completes_its_task() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let executor = Executor::new(&world.client, "e")
        .handler("a", async |step: StepContext| {
            if step.attempt() < 3 {
                return Err(HandlerError::new("Busy", "not yet").code("BUSY"));
            }
            Ok(step.attempt())
        })
        .handler("b", async |step: StepContext| step.parent::<i32>("a").await);
    let running = world.run(executor);
    let task = world.create("d", &json!({})).await;
    let task = world.ended(&task.task_id).await;
    assert_eq!(task.state().word(), "complete");
    assert_eq!((task.steps[0].attempt, task.steps[1].result.as_str()), (3, "3"));
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_says_why_and_ends_the_task_in_error() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let executor = Executor::new(&world.client, "e").handler("a", async |step: StepContext| {
        let kind: Value = step.input()?;
        Err::<(), _>(match kind["kind"].as_str() {
            Some("permanent") => HandlerError::new("No", "never").code("NEVER").permanent(),
            Some("hopeless") => HandlerError::new("Hopeless", "by policy"),
            Some("panic") => panic!("a bug"),
            _ => HandlerError::new("Busy", "always"),
        })
    });
    let running = world.run(executor);
    let mut feed = world.feed(Start::Latest).await;
    for (kind, attempts, class) in [
        ("permanent", 1, "No"),
        ("hopeless", 1, "Hopeless"),
        ("busy", 3, "Busy"),
        ("panic", 3, "Panic"),
    ] {
        let task = world.create("d", &json!({"kind": kind})).await;
        let task = world.ended(&task.task_id).await;
        let (a, b) = (&task.steps[0], &task.steps[1]);
        assert_eq!(
            (task.state().word(), a.state().word(), b.state().word()),
            ("error", "error", "pending")
        );
        let error = a.last_error.as_ref().unwrap();
        assert_eq!((a.attempt, error.error_class.as_str()), (attempts, class));
        let events = until(&mut feed, |event| event.name == "task.failed").await;
        let failed = events.iter().filter(|event| event.name == "step.failed").count();
        assert_eq!(failed, usize::try_from(attempts).unwrap());
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_takes_too_long_is_ended_and_tried_again() {
    let world = World::start().await;
    world
        .define("{name: d, steps: [{name: a, timeout: 300ms, retry: {max_attempts: 2, initial_backoff: 10ms}}]}")
        .await;
    let executor = Executor::new(&world.client, "e").handler("a", async |step: StepContext| {
        if step.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Ok::<_, HandlerError>("in time")
    });
    let running = world.run(executor);
    let mut feed = world.feed(Start::Latest).await;
    let task = world.create("d", &json!({})).await;
    let events = until(&mut feed, |event| event.name == "task.completed").await;
    let failed = events.iter().find_map(|event| match &event.detail {
        Some(stepwell_client::v1::event::Detail::StepFailed(failed)) => failed.error.clone(),
        _ => None,
    });
    assert_eq!(failed.unwrap().error_class, "Timeout");
    assert_eq!(world.ended(&task.task_id).await.steps[0].attempt, 2);
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_result_is_kept_and_fetched_by_the_child() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let executor = Executor::new(&world.client, "e")
        .handler("a", async |_| Ok::<_, HandlerError>("x".repeat(500_000)))
        .handler("b", async |step: StepContext| Ok(step.parent::<String>("a").await?.len()));
    let running = world.run(executor);
    let task = world.create("d", &json!({})).await;
    let task = world.ended(&task.task_id).await;
    assert!(task.steps[0].result_omitted);
    assert_eq!(task.steps[1].result, "500000");
    running.stop().await;
}
