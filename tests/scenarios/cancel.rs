//! Cancelling: at once, told to the executor, and once only.

use std::sync::Arc;

use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, StepContext, v1};
use stepwell_proto::v1::ErrorReason;
use stepwell_tests::{World, check};
use tokio::sync::Notify;

fn cancel(task_id: &str) -> v1::CancelTaskRequest {
    v1::CancelTaskRequest {
        task_id: task_id.to_owned(),
        reason: "changed my mind".into(),
        cancelled_by: "me".into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_stops_its_handler_and_a_repeat_says_so() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let (started, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, stops) = (Arc::clone(&started), Arc::clone(&stopped));
    let executor = Executor::new(&world.client, "e").handler("a", move |step: StepContext| {
        let (started, stopped) = (Arc::clone(&starts), Arc::clone(&stops));
        let token = step.cancellation();
        tokio::spawn(async move {
            token.cancelled().await;
            stopped.notify_one();
        });
        async move {
            started.notify_one();
            std::future::pending::<Result<Value, HandlerError>>().await
        }
    });
    let running = world.run(executor);
    let task = world.create("d", &json!({})).await;
    started.notified().await;
    let answer = world.client.cancel_task(cancel(&task.task_id)).await.unwrap();
    assert!(!answer.already_in_state);
    assert_eq!(answer.task.unwrap().state().word(), "cancelled");
    stopped.notified().await;
    let again = world.client.cancel_task(cancel(&task.task_id)).await.unwrap();
    assert!(again.already_in_state);
    let task = world.ended(&task.task_id).await;
    assert!(task.steps.iter().all(|step| step.state().word() == "cancelled"));
    assert_eq!(running.stop().await.voided, 1);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_task_cannot_be_cancelled_and_the_refusal_says_what_could() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let executor = Executor::new(&world.client, "e");
    let running = world.run(executor.handler("a", async |_| Ok::<_, HandlerError>(1)));
    let task = world.create("d", &json!({})).await;
    world.ended(&task.task_id).await;
    let before = world.rows().await;
    let refused = world.client.cancel_task(cancel(&task.task_id)).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::IllegalTransition));
    let text = refused.to_string();
    assert!(text.contains("complete") && text.contains("in_progress"), "{text}");
    assert_eq!(world.rows().await, before);
    running.stop().await;
}
