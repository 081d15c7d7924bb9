//! The feed: the same for everybody, in the order of the log, without a gap.

use serde_json::json;
use sqlx::Row;
use stepwell_client::{Executor, HandlerError, Start, Subscription, v1};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, World, check, until};

const CHAIN: &str =
    "{name: chain, steps: [{name: a}, {name: b, depends_on: [a]}, {name: c, depends_on: [b]}]}";

fn executor(world: &World) -> Executor {
    let mut executor = Executor::new(&world.client, "e");
    for name in ["a", "b", "c"] {
        executor = executor.handler(name, async |_| Ok::<_, HandlerError>(json!({"ok": true})));
    }
    executor
}

/// Position and name of everything recorded, from the table.
async fn recorded(world: &World) -> Vec<(i64, String)> {
    let rows = sqlx::query("select position, type from stepwell.event order by position")
        .fetch_all(&mut world.connection().await)
        .await
        .unwrap();
    rows.iter()
        .map(|row| {
            let number = u32::try_from(row.get::<i16, _>("type")).unwrap();
            let of_type = stepwell_proto::catalog::event_type_by_number(number).unwrap();
            (row.get("position"), of_type.name.to_owned())
        })
        .collect()
}

fn seen(events: &[v1::Event]) -> Vec<(i64, String)> {
    events.iter().map(|event| (event.position, event.name.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_from_before_during_and_after_a_run_get_the_same_sequence() {
    let mut world = World::with(Nodes { task: 1, step: 1, event: 2 }, &[]).await;
    world.define(CHAIN).await;
    let mut before = world.feed(Start::Latest).await;
    let running = world.run(executor(&world));
    let mut tasks = Vec::new();
    for _ in 0..30 {
        tasks.push(world.create("chain", &json!({})).await.task_id);
    }
    let mut during = world.feed(Start::Earliest).await;
    // In the midst of it one event-service is gone, and comes again.
    world.suite.process(Kind::Event, 0).unwrap().kill(Signal::SIGKILL).await.unwrap();
    world.suite.restart(Kind::Event, 0).await.unwrap();
    for task in &tasks {
        world.ended(task).await;
    }
    running.stop().await;
    let recorded = recorded(&world).await;
    let last = recorded.last().unwrap().0;
    let mut after = world.feed(Start::Earliest).await;
    for feed in [&mut before, &mut during, &mut after] {
        assert_eq!(seen(&until(feed, |event| event.position == last).await), recorded);
    }
    // And from any cursor on, the rest. In the middle of a commit there is none.
    let mut some = world.feed(Start::Earliest).await;
    let mut first = Vec::new();
    let cursor = loop {
        let delivery = some.next().await.unwrap().unwrap();
        first.extend(delivery.events);
        if let Some(cursor) = delivery.cursor.filter(|_| !first.is_empty()) {
            break cursor;
        }
    };
    let mut both = seen(&first);
    if both.last().is_some_and(|(position, _)| *position != last) {
        let mut rest = world.feed(Start::After(cursor)).await;
        both.extend(seen(&until(&mut rest, |event| event.position == last).await));
    }
    assert_eq!(both, recorded);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn derived_events_come_when_asked_for_and_filters_hold() {
    let world = World::start().await;
    world.define(CHAIN).await;
    let running = world.run(executor(&world));
    let other = world.create("chain", &json!({})).await;
    world.ended(&other.task_id).await;
    let task = world.create("chain", &json!({"n": 1})).await;
    world.ended(&task.task_id).await;
    let wanted = Subscription::new()
        .names(["workflow.*", "step.initialize_requested", "task.completed"])
        .tasks([task.task_id.clone()])
        .from(Start::Earliest);
    let mut feed = world.client.subscribe(wanted).await.unwrap();
    let name = "workflow.task_finalization_completed";
    let events = until(&mut feed, |event| event.name == name).await;
    assert!(events.iter().all(|event| event.task_id == task.task_id));
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "step.initialize_requested",
            "step.initialize_requested",
            "step.initialize_requested",
            "workflow.viable_steps_discovered",
            "workflow.task_started",
            "workflow.step_completed",
            "workflow.viable_steps_discovered",
            "workflow.step_completed",
            "workflow.viable_steps_discovered",
            "workflow.step_completed",
            "workflow.no_viable_steps",
            "task.completed",
            "workflow.task_finalization_started",
            "workflow.task_completed",
            "workflow.task_finalization_completed",
        ]
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_hangs_makes_nobody_skip_and_creators_wait_no_longer_than_the_time_out() {
    let world =
        World::with(Nodes { task: 1, step: 1, event: 1 }, &["--database-timeout", "1"]).await;
    world.define(CHAIN).await;
    let mut feed = world.feed(Start::Latest).await;
    let first = world.create("chain", &json!({})).await;
    let mut latch = world.connection().await;
    sqlx::raw_sql("begin; select pg_advisory_xact_lock(42)").execute(&mut latch).await.unwrap();
    // Reads go on meanwhile.
    assert_eq!(world.task(&first.task_id).await.steps.len(), 3);
    let empty = json!({});
    let creating = world.create("chain", &empty);
    let freeing = async {
        // Until it was refused once by the time-out and tries again.
        let deadline = tokio::time::Instant::now() + SOON;
        while !world.suite.log_of(Kind::Task, 0).contains("again") {
            assert!(tokio::time::Instant::now() < deadline, "nobody was timed out");
            tokio::task::yield_now().await;
        }
        sqlx::raw_sql("rollback").execute(&mut latch).await.unwrap();
    };
    let (second, ()) = tokio::join!(creating, freeing);
    let running = world.run(executor(&world));
    world.ended(&second.task_id).await;
    world.ended(&first.task_id).await;
    running.stop().await;
    let recorded = recorded(&world).await;
    let last = recorded.last().unwrap().0;
    assert_eq!(seen(&until(&mut feed, |event| event.position == last).await), recorded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_falls_behind_is_served_from_the_table_and_misses_nothing() {
    let world = World::with(Nodes { task: 1, step: 1, event: 1 }, &[]).await;
    world.define(CHAIN).await;
    let mut slow = world.feed(Start::Latest).await;
    let running = world.run(executor(&world));
    let context = json!({"fill": "x".repeat(4000)});
    let mut last_task = String::new();
    for _ in 0..10 {
        let requests = (0..100).map(|_| v1::CreateTaskRequest {
            definition_name: "chain".into(),
            context: context.to_string(),
            ..v1::CreateTaskRequest::default()
        });
        let request = v1::BatchCreateTasksRequest { requests: requests.collect() };
        let answer = world.client.batch_create_tasks(request).await.unwrap();
        if let Some(v1::batch_create_tasks_result::Outcome::Task(task)) =
            &answer.results[99].outcome
        {
            last_task.clone_from(&task.task_id);
        }
    }
    world.ended(&last_task).await;
    running.stop().await;
    let recorded = recorded(&world).await;
    let last = recorded.last().unwrap().0;
    assert_eq!(seen(&until(&mut slow, |event| event.position == last).await), recorded);
}
