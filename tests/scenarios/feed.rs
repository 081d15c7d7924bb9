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
            "task.completed",
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

/// Every event of a subscription from the earliest on, up to the end of this task.
async fn of(world: &World, wanted: Subscription, last: &str) -> Vec<v1::Event> {
    let names = ["*", "workflow.step_failed", "step.initialize_requested"];
    let wanted = wanted.names(names).from(Start::Earliest);
    let mut feed = world.client.subscribe(wanted).await.unwrap();
    let ends = |event: &v1::Event| event.task_id == last && event.name == "task.completed";
    until(&mut feed, ends).await
}

fn tasks_of(events: &[v1::Event]) -> Vec<&str> {
    let mut tasks: Vec<&str> = events.iter().map(|event| event.task_id.as_str()).collect();
    tasks.sort_unstable();
    tasks.dedup();
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_found_by_what_their_task_belongs_to_by_its_tags_and_by_step() {
    let world = World::start().await;
    world.define(CHAIN).await;
    let running = world.run(executor(&world));
    let create = async |correlation_id: &str, tags: &[&str]| {
        let task = world.client.task("chain").correlation_id(correlation_id);
        let task = task.tags(tags.iter().copied()).create().await.unwrap();
        world.ended(&task.task_id).await
    };
    let (one, two) = (create("order-1", &["eu"]).await, create("order-2", &["us", "vip"]).await);
    let made = create("", &[]).await;
    let last = create("last", &["eu", "us"]).await;
    assert_eq!((one.correlation_id.as_str(), last.correlation_id.as_str()), ("order-1", "last"));
    stepwell_proto::id::check_correlation_id(&made.correlation_id).unwrap();
    running.stop().await;

    let everything = of(&world, Subscription::new(), &last.task_id).await;
    for task in [&one, &two, &made, &last] {
        let of_task = everything.iter().filter(|event| event.task_id == task.task_id);
        assert!(of_task.clone().count() > 10, "recorded and derived");
        assert!(of_task.clone().all(|event| event.correlation_id == task.correlation_id));
    }
    let wanted = Subscription::new().correlation_ids(["order-1", "last", "nobody-s"]);
    let found = of(&world, wanted, &last.task_id).await;
    let is_theirs = |event: &&v1::Event| [&one.task_id, &last.task_id].contains(&&event.task_id);
    assert_eq!(found, everything.iter().filter(is_theirs).cloned().collect::<Vec<_>>());
    let found = of(&world, Subscription::new().tags(["vip", "eu"]), &last.task_id).await;
    let mut with_tags = [one.task_id.as_str(), &two.task_id, &last.task_id];
    with_tags.sort_unstable();
    assert_eq!(tasks_of(&found), with_tags);

    let wanted =
        Subscription::new().steps(["b"]).tasks([one.task_id.clone()]).from(Start::Earliest);
    let wanted = wanted.names(["step.*"]);
    let mut feed = world.client.subscribe(wanted).await.unwrap();
    let found = until(&mut feed, |event| event.name == "step.completed").await;
    let names: Vec<_> = found.iter().map(|e| (e.name.as_str(), e.step_name.as_str())).collect();
    assert_eq!(
        names,
        [
            ("step.initialize_requested", "b"),
            ("step.execution_requested", "b"),
            ("step.completed", "b")
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_feed_follows_the_tags_of_a_task_as_they_change() {
    let world = World::start().await;
    world.define("{name: held, steps: [{name: nobody_serves}]}").await;
    let tagged = Subscription::new().tags(["new"]).names(["*"]);
    let mut feed = world.client.subscribe(tagged.clone().from(Start::Latest)).await.unwrap();
    let task = world.client.task("held").tags(["old"]).create().await.unwrap();
    let update = async |tags: &[&str]| {
        let values = tags.iter().map(|&tag| tag.to_owned()).collect();
        let request = v1::UpdateTaskRequest {
            task_id: task.task_id.clone(),
            tags: Some(v1::Tags { values }),
            ..v1::UpdateTaskRequest::default()
        };
        world.client.update_task(request).await.unwrap();
    };
    update(&["new", "other"]).await;
    let request = v1::PauseTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    world.client.pause_task(request).await.unwrap();
    update(&["old"]).await;
    let request = v1::ResumeTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    world.client.resume_task(request).await.unwrap();
    update(&["new"]).await;
    let changed_again = |event: &v1::Event| match &event.detail {
        Some(v1::event::Detail::TaskUpdated(updated)) => updated.tags == ["new"],
        _ => false,
    };
    let found = until(&mut feed, changed_again).await;
    let names: Vec<&str> = found.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["task.updated", "task.paused", "task.updated"]);
    assert!(found.iter().all(|event| event.correlation_id == task.correlation_id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_failures_only_the_final_ones_come_if_that_is_wanted() {
    let world = World::start().await;
    world
        .define(
            "{name: frail, steps: [{name: a, retry: {max_attempts: 3, initial_backoff: 10ms}}]}",
        )
        .await;
    let failing = Executor::new(&world.client, "e")
        .handler("a", async |_| Err::<(), _>(HandlerError::new("Broken", "no")));
    let running = world.run(failing);
    let task = world.create("frail", &json!({})).await;
    world.ended(&task.task_id).await;
    running.stop().await;
    let names = ["*", "workflow.step_failed", "observability.step.*"];
    let wanted = Subscription::new().names(names).from(Start::Earliest);
    let mut feed = world.client.subscribe(wanted.clone()).await.unwrap();
    let all = until(&mut feed, |event| event.name == "task.failed").await;
    let mut feed = world.client.subscribe(wanted.only_final_failures()).await.unwrap();
    let found = until(&mut feed, |event| event.name == "task.failed").await;
    let n = |events: &[v1::Event], name: &str| events.iter().filter(|e| e.name == name).count();
    let counts = ["step.failed", "workflow.step_failed", "observability.step.backoff"]
        .map(|name| (n(&all, name), n(&found, name)));
    assert_eq!(counts, [(3, 1), (3, 1), (2, 0)]);
    assert_eq!(n(&found, "observability.step.max_retries_reached"), 1);
    assert_eq!(n(&found, "step.execution_requested"), 3, "what is no failure is not touched");
}
