//! What a definition rules: how many steps at once, how long anything may take; and pauses.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use stepwell_client::{Executor, HandlerError, Start, StepContext, v1};
use stepwell_proto::v1::ErrorReason;
use stepwell_tests::{World, check, until};
use tokio::sync::Notify;

use super::cli::stepwell;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_steps_never_more_than_three_run_at_once() {
    let world = World::start().await;
    let steps: String = (0..10).map(|n| format!("{{name: s{n}, handler: h}}, ")).collect();
    world.define(&format!("{{name: d, max_parallel_steps: 3, steps: [{steps}]}}")).await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, peak) = (Arc::clone(&now), Arc::clone(&most));
    let executor = Executor::new(&world.client, "e").slots(20).handler("h", move |_| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Until three have been there at once.
            while most.load(Ordering::SeqCst) < 3 {
                tokio::task::yield_now().await;
            }
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, HandlerError>(())
        }
    });
    let executor = world.run(executor);
    let task = world.create("d", &json!({})).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    assert_eq!((peak.load(Ordering::SeqCst), running.load(Ordering::SeqCst)), (3, 0));
    executor.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_shows_no_progress_is_ended_and_one_that_does_may_take_its_time() {
    let world = World::start().await;
    world
        .define(
            "{name: d, steps: [{name: a, heartbeat_timeout: 400ms, timeout: 60s, \
              retry: {max_attempts: 2, initial_backoff: 10ms}}]}",
        )
        .await;
    let executor = Executor::new(&world.client, "e").handler("a", async |step: StepContext| {
        if step.attempt() == 1 {
            step.cancelled().await;
            return Err(HandlerError::new("Stopped", "too late to say"));
        }
        // Three times as long as it may be quiet.
        for _ in 0..60 {
            step.progress();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(step.attempt())
    });
    let running = world.run(executor);
    let mut feed = world.feed(Start::Latest).await;
    let task = world.create("d", &json!({})).await;
    let events = until(&mut feed, |event| event.name == "task.completed").await;
    let failed: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.detail {
            Some(v1::event::Detail::StepFailed(failed)) => failed.error.clone(),
            _ => None,
        })
        .map(|error| error.error_class)
        .collect();
    assert_eq!(failed, ["HeartbeatTimeout"]);
    assert_eq!(world.ended(&task.task_id).await.steps[0].result, "2");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_or_takes_too_long_ends_with_an_event_that_says_so() {
    let world = World::start().await;
    world
        .define("{name: late, deadline: 1s, steps: [{name: a}, {name: nobody, depends_on: [a]}]}")
        .await;
    world.define("{name: queued, steps: [{name: nobody, queue_timeout: 200ms}]}").await;
    world.define("{name: begun, steps: [{name: c}]}").await;
    world
        .define(
            "{name: total, steps: [{name: b, total_timeout: 300ms, \
              retry: {max_attempts: 1000, initial_backoff: 5ms, max_backoff: 5ms}}]}",
        )
        .await;
    let stopped = Arc::new(Notify::new());
    let stops = Arc::clone(&stopped);
    let executor = Executor::new(&world.client, "e")
        .handler("a", move |step: StepContext| {
            let stopped = Arc::clone(&stops);
            async move {
                step.cancelled().await;
                stopped.notify_one();
                Ok::<_, HandlerError>(())
            }
        })
        .handler("b", async |_| Err::<(), _>(HandlerError::new("Busy", "always")))
        .handler("c", async |_| Ok::<_, HandlerError>(()));
    let running = world.run(executor);
    // The executor is there before any clock runs.
    let begun = world.create("begun", &json!({})).await;
    world.ended(&begun.task_id).await;
    for (name, class, number) in [
        ("late", "DeadlineExceeded", 0),
        ("queued", "QueueTimeout", 0),
        ("total", "TotalTimeout", 0),
    ] {
        let mut feed = world.feed(Start::Latest).await;
        let task = world.create(name, &json!({})).await;
        let events = until(&mut feed, |event| event.name == "task.failed").await;
        let ended = world.ended(&task.task_id).await;
        assert_eq!(ended.state().word(), "error", "{name}");
        let error = ended.steps[number].last_error.clone().unwrap();
        assert_eq!(error.error_class, class);
        let last = events.iter().rev().find_map(|event| match &event.detail {
            Some(v1::event::Detail::StepFailed(failed)) if failed.r#final => failed.error.clone(),
            _ => None,
        });
        assert_eq!(last.unwrap().error_class, class);
    }
    stopped.notified().await;
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_task_waits_until_it_is_resumed() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, goes) = (Arc::clone(&started), Arc::clone(&go));
    let executor = Executor::new(&world.client, "e")
        .handler("a", move |_| {
            let (started, go) = (Arc::clone(&starts), Arc::clone(&goes));
            async move {
                started.notify_one();
                go.notified().await;
                Ok::<_, HandlerError>(1)
            }
        })
        .handler("b", async |_| Ok::<_, HandlerError>(2));
    let running = world.run(executor);
    let mut feed = world.feed(Start::Latest).await;
    let task = world.create("d", &json!({})).await;
    started.notified().await;
    let (code, out, _) = stepwell(&world, &["task", "pause", &task.task_id, "--by", "me"], "");
    assert!(code == 0 && out.contains("in_progress, paused"), "{out}");
    go.notify_one();
    until(&mut feed, |event| event.name == "step.completed").await;
    // Another task goes the same way meanwhile, and is through before this one is let go.
    let other = world.create("d", &json!({})).await;
    started.notified().await;
    go.notify_one();
    assert_eq!(world.ended(&other.task_id).await.state().word(), "complete");
    let get = v1::GetTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    let paused = world.client.get_task(get).await.unwrap().task.unwrap();
    assert_eq!((paused.paused, paused.steps[1].state().word()), (true, "pending"));
    let resume = v1::ResumeTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    assert!(!world.client.resume_task(resume.clone()).await.unwrap().already_in_state);
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    let refused = world.client.resume_task(resume).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::TaskEnded));
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_about_the_same_customer_run_one_after_the_other_and_others_beside_them() {
    let world = World::start().await;
    world
        .define(
            "{name: d, concurrency: {key: customer.id}, \
              steps: [{name: a}, {name: b, depends_on: [a]}]}",
        )
        .await;
    let running = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let step = move |end: bool| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        move |step: StepContext| {
            let context: serde_json::Value = step.input().unwrap();
            let customer = context["customer"]["id"].to_string();
            let mut now = now.lock().unwrap();
            let n = now.entry(customer).or_default();
            // A task counts from its first step to its last.
            if end {
                *n -= 1;
            } else {
                *n += 1;
                peak.fetch_max(*n, Ordering::SeqCst);
            }
            async { Ok::<_, HandlerError>(()) }
        }
    };
    let executor =
        Executor::new(&world.client, "e").handler("a", step(false)).handler("b", step(true));
    let executor = world.run(executor);
    let refused = world.client.task("d").context(&json!({"customer": {}})).create().await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("customer.id"), "{refused}");
    let mut tasks = Vec::new();
    for n in 0..12 {
        let customer = json!({"customer": {"id": if n % 3 == 0 { json!(7) } else { json!("7") }}});
        tasks.push(world.create("d", &customer).await);
    }
    for task in &tasks {
        assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    executor.stop().await;
    check(&mut world.connection().await).await;
}
