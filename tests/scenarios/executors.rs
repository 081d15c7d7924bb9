//! Executors come, share the work, vanish, and come back.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, Start, StepContext};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{Gate, World, check, until};
use tokio::sync::Notify;

const DIAMOND: &str = "
name: diamond
steps:
  - name: a
  - {name: b, depends_on: [a]}
  - {name: c, depends_on: [a]}
  - {name: d, depends_on: [b, c]}
";

/// Runs `name`: adds one to the sum of the parents' results.
async fn sum(step: StepContext) -> Result<i64, HandlerError> {
    let mut sum = 1;
    for parent in step.parents().map(str::to_owned).collect::<Vec<_>>() {
        sum += step.parent::<i64>(&parent).await?;
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_tasks_over_two_of_everything_run_each_attempt_once() {
    let world = World::with(Nodes { task: 2, step: 2, event: 1 }, &[]).await;
    world.define(DIAMOND).await;
    let ran: Arc<Mutex<HashMap<(String, i32), usize>>> = Arc::default();
    let executors: Vec<_> = (0..2)
        .map(|n| {
            let mut executor = Executor::new(&world.client, format!("e{n}")).slots(20);
            for name in ["a", "b", "c", "d"] {
                let ran = Arc::clone(&ran);
                executor = executor.handler(name, move |step: StepContext| {
                    let key = (step.step_id().to_owned(), step.attempt());
                    *ran.lock().unwrap().entry(key).or_default() += 1;
                    sum(step)
                });
            }
            world.run(executor)
        })
        .collect();
    let requests = (0..500).map(|i| stepwell_client::v1::CreateTaskRequest {
        definition_name: "diamond".into(),
        context: json!({"i": i}).to_string(),
        ..Default::default()
    });
    let request = stepwell_client::v1::BatchCreateTasksRequest { requests: requests.collect() };
    let created = world.client.batch_create_tasks(request).await.unwrap();
    for result in created.results {
        let Some(stepwell_client::v1::batch_create_tasks_result::Outcome::Task(task)) =
            result.outcome
        else {
            panic!("{result:?}");
        };
        let task = world.ended(&task.task_id).await;
        assert_eq!(task.state().word(), "complete");
        assert_eq!(task.steps[3].result, "5", "d sees b and c, which each see a");
    }
    let mut done = 0;
    for executor in executors {
        done += executor.stop().await.completed;
    }
    assert_eq!(done, 2000);
    let ran = std::mem::take(&mut *ran.lock().unwrap());
    assert_eq!(ran.len(), 2000);
    assert!(ran.values().all(|n| *n == 1));
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_three_step_task_costs_at_most_three_and_a_half_events_a_step() {
    let world = World::start().await;
    world.define("{name: chain, steps: [{name: a}, {name: b, depends_on: [a]}, {name: c, depends_on: [b]}]}").await;
    let executor =
        Executor::new(&world.client, "e").handler("a", sum).handler("b", sum).handler("c", sum);
    let running = world.run(executor);
    let task = world.create("chain", &json!({})).await;
    world.ended(&task.task_id).await;
    let events: i64 = sqlx::query_scalar("select count(*) from stepwell.event")
        .fetch_one(&mut world.connection().await)
        .await
        .unwrap();
    assert!(events as f64 / 3.0 <= 3.5, "{events} events");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_keeps_its_running_steps_over_a_restart_of_the_service() {
    let mut world = World::start().await;
    world.define("{name: long, steps: [{name: a}]}").await;
    let gate = Gate::default();
    let running = world.run(gate.guard(Executor::new(&world.client, "e")));
    let task = world.create("long", &json!({})).await;
    gate.started().await;
    let process = world.suite.process(Kind::Step, 0).unwrap().clone();
    process.kill(Signal::SIGKILL).await.unwrap();
    world.suite.restart(Kind::Step, 0).await.unwrap();
    gate.open();
    let task = world.ended(&task.task_id).await;
    assert_eq!((task.state().word(), task.steps[0].attempt), ("complete", 1));
    assert_eq!(running.stop().await.completed, 1);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_step_of_a_vanished_executor_is_tried_again_elsewhere() {
    let world = World::with(Nodes { task: 1, step: 1, event: 1 }, &[]).await;
    world
        .define("{name: d, defaults: {retry: {initial_backoff: 10ms}}, steps: [{name: a, timeout: 2s}]}")
        .await;
    let started = Arc::new(Notify::new());
    let starts = Arc::clone(&started);
    let stuck = Executor::new(&world.client, "stuck").handler("a", move |_| {
        let started = Arc::clone(&starts);
        async move {
            started.notify_one();
            std::future::pending::<Result<Value, HandlerError>>().await
        }
    });
    let stuck = world.run(stuck);
    let mut feed = world.feed(Start::Latest).await;
    let task = world.create("d", &json!({})).await;
    started.notified().await;
    stuck.vanish();
    let ran = world.run(Executor::new(&world.client, "other").handler("a", sum));
    let events = until(&mut feed, |event| event.name == "task.completed").await;
    assert!(events.iter().any(|event| event.name == "step.failed"));
    let task = world.ended(&task.task_id).await;
    assert_eq!(task.steps[0].attempt, 2);
    ran.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_registered_later_reaches_executors_that_were_there_before() {
    let world = World::start().await;
    let running = world.run(Executor::new(&world.client, "early").handler("a", sum));
    world.define("{name: late, steps: [{name: a}]}").await;
    let task = world.create("late", &json!({})).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_goes_only_to_an_executor_with_the_labels_it_requires() {
    let world = World::start().await;
    // One handler, three queues: what anybody runs, and what only some may.
    world
        .define(
            "{name: placed, steps: [\
             {name: any, handler: run}, \
             {name: eu, handler: run, requires: {region: eu}, depends_on: [any]}, \
             {name: us, handler: run, requires: {region: us}, depends_on: [any]}]}",
        )
        .await;
    let ran: Arc<Mutex<Vec<(String, &str)>>> = Arc::default();
    let executor = |region: &'static str| {
        let ran = Arc::clone(&ran);
        let executor = Executor::new(&world.client, region).slots(5);
        executor.label("region", region).label("zone", "1").handler(
            "run",
            move |step: StepContext| {
                ran.lock().unwrap().push((step.step_name().to_owned(), region));
                sum(step)
            },
        )
    };
    let eu = world.run(executor("eu"));
    let mut feed = world.feed(Start::Earliest).await;
    let tasks: Vec<_> = futures::future::join_all(
        (0..20).map(async |i| world.create("placed", &json!({"i": i})).await.task_id),
    )
    .await;
    let done = Cell::new(0);
    let counted = |name: &str| done.set(done.get() + usize::from(name == "step.completed"));
    until(&mut feed, |event| {
        counted(&event.name);
        done.get() == 40
    })
    .await;
    let of_eu = |step: &(String, &str)| step.1 == "eu" && step.0 != "us";
    assert!(ran.lock().unwrap().iter().all(of_eu), "and nobody runs the others yet");
    let us = world.run(executor("us"));
    for task in &tasks {
        assert_eq!(world.ended(task).await.state().word(), "complete");
    }
    let ran = std::mem::take(&mut *ran.lock().unwrap());
    let by = |name: &str, region: &str| {
        ran.iter().filter(|(step, at)| step == name && *at == region).count()
    };
    assert_eq!((by("eu", "eu"), by("us", "us"), ran.len()), (20, 20, 60));
    eu.stop().await;
    us.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_whose_node_is_gone_keeps_its_step_on_another_and_the_take_over_spares_it() {
    let world = World::hasty(Nodes { task: 1, step: 2, event: 1 }).await;
    world.define("{name: long, steps: [{name: a}]}").await;
    let gate = Gate::default();
    let running = world.run(gate.guard(Executor::new(&world.client, "e")));
    let task = world.create("long", &json!({})).await;
    gate.started().await;
    let holder = (0..2).find(|i| world.suite.log_of(Kind::Step, *i).contains("executor connected"));
    let process = world.suite.process(Kind::Step, holder.unwrap()).unwrap().clone();
    process.kill(Signal::SIGKILL).await.unwrap();
    // The dead node is declared dead, its executors' grace passes, its leases are walked.
    let mut connection = world.connection().await;
    let deadline = tokio::time::Instant::now() + stepwell_tests::SOON;
    loop {
        let nodes: i64 = sqlx::query_scalar("select count(*) from stepwell.node")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if nodes == 1 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{nodes} nodes");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    gate.open();
    let task = world.ended(&task.task_id).await;
    assert_eq!((task.state().word(), task.steps[0].attempt), ("complete", 1));
    assert_eq!(running.stop().await.completed, 1);
    check(&mut connection).await;
}
