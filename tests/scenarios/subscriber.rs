//! Handlers of events: each gets what it is for, and none is in another's way.

use std::sync::{Arc, Mutex};

use serde_json::json;
use stepwell_client::{
    EventFacts, Executor, HandlerError, Start, StepContext, Subscriber,
    v1::{StepCompleted, StepFailed},
};
use stepwell_tests::{World, check};
use tokio::sync::Notify;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_of_events_that_fails_or_panics_is_in_nobody_s_way() {
    let world = World::start().await;
    let retry = "retry: {max_attempts: 2, initial_backoff: 1ms}";
    world.define(&format!("{{name: d, steps: [{{name: a, {retry}}}]}}")).await;
    world.define("{name: other, steps: [{name: a}]}").await;
    let executor = Executor::new(&world.client, "e").handler("a", async |step: StepContext| {
        match step.attempt() {
            1 if step.definition_name() == "d" => {
                Err(HandlerError::new("GatewayTimeout", "no answer"))
            }
            attempt => Ok(attempt),
        }
    });
    let running = world.run(executor);
    let told = Arc::new(Mutex::new(Vec::new()));
    let (of_failed, of_done) = (Arc::clone(&told), Arc::clone(&told));
    let done = Arc::new(Notify::new());
    let ended = Arc::clone(&done);
    let subscriber = Subscriber::new(&world.client)
        .on::<StepFailed, _>(|_, _| async { Err(HandlerError::new("Broken", "always")) })
        .on::<StepFailed, _>(|event, _| async move {
            assert!(event.attempt > 1, "the first attempt is too much for this one");
            Ok(())
        })
        .on::<StepFailed, _>(move |event, _| {
            let labels = event.metric_labels().into_iter().map(|(_, value)| value);
            of_failed.lock().unwrap().push(labels.collect::<Vec<_>>().join(" "));
            async { Ok(()) }
        })
        .on::<StepCompleted, _>(move |event, detail| {
            assert!(event.ran_for().is_some());
            of_done.lock().unwrap().push(detail.result);
            let ended = Arc::clone(&ended);
            async move {
                ended.notify_one();
                Ok(())
            }
        })
        .should_process(|event| event.definition_name != "other")
        .from(Start::Earliest);
    let other = world.create("other", &json!({})).await;
    world.ended(&other.task_id).await;
    let task = world.create("d", &json!({})).await;
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let run = tokio::spawn(subscriber.run(async move { stopped.notified().await }));
    done.notified().await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    stop.notify_one();
    run.await.unwrap().unwrap();
    assert_eq!(*told.lock().unwrap(), ["default d a timeout true false", "2"]);
    running.stop().await;
    check(&mut world.connection().await).await;
}
