//! The feed: the same for everybody, in the order of the log, without a gap.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::Row;
use stepwell_client::{Error, Executor, HandlerError, Start, Subscription, v1};
use stepwell_proto::v1::{
    event_service_client::EventServiceClient, subscribe_request, subscribe_response::Kind as Said,
};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, Scrape, World, check, until};
use tonic::Streaming;

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
    let mut everything = world.feed(Start::Latest).await;
    let task = world.client.task("held").tags(["old"]).create().await.unwrap();
    // Tags are those of when an event is read: this one is read before they change.
    until(&mut everything, |event| event.name == "task.initialize_requested").await;
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
async fn tags_that_changed_while_nobody_followed_count_for_who_follows_then() {
    let world = World::start().await;
    world.define("{name: held, steps: [{name: nobody}]}").await;
    let event_service = world.suite.addresses().event[0].clone();
    let mut feed = world.feed(Start::Latest).await;
    let task = world.client.task("held").tags(["old"]).create().await.unwrap();
    until(&mut feed, |event| event.task_id == task.task_id).await;
    drop(feed);
    // Nobody follows: event-service sleeps, and what it had of the log is gone.
    Scrape::until(&event_service, |scrape| scrape.sum("stepwell_ring_bytes", &[]) == 0.0).await;
    let update = async |tags: Option<&str>| {
        let tags = tags.map(|tag| v1::Tags { values: vec![tag.to_owned()] });
        let request = v1::UpdateTaskRequest {
            task_id: task.task_id.clone(),
            task_reason: Some("another".into()),
            tags,
            ..Default::default()
        };
        world.client.update_task(request).await.unwrap();
    };
    update(Some("new")).await;
    // Who lists meanwhile sees the tags of today.
    let filter = Some(v1::EventFilter { tags: vec!["new".into()], ..v1::EventFilter::default() });
    let listed = v1::ListEventsRequest { filter, ..v1::ListEventsRequest::default() };
    let listed = world.client.list_events(listed).await.unwrap().events;
    assert!(listed.iter().all(|event| event.task_id == task.task_id), "{listed:?}");
    assert_eq!(listed[0].name, "task.initialize_requested", "also for what was before");
    let wanted = Subscription::new().tags(["new"]).names(["*"]);
    let mut feed = world.client.subscribe(wanted).await.unwrap();
    let mut everything = world.feed(Start::Latest).await;
    update(None).await;
    until(&mut everything, |event| event.name == "task.updated").await;
    // What comes after is delivered after: so the first one shows whether the one before was.
    let other = world.client.task("held").tags(["new"]).create().await.unwrap();
    let events = until(&mut feed, |event| event.task_id == other.task_id).await;
    assert_eq!(events[0].task_id, task.task_id);
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

/// A subscription as the service sees it, without the client's patience.
async fn raw(world: &World, request: v1::SubscribeRequest) -> Streaming<v1::SubscribeResponse> {
    let address = world.suite.addresses().event[0].clone();
    let mut service = EventServiceClient::connect(address).await.unwrap();
    service.subscribe(request).await.unwrap().into_inner()
}

async fn message(feed: &mut Streaming<v1::SubscribeResponse>) -> Option<v1::SubscribeResponse> {
    tokio::time::timeout(SOON, feed.message()).await.unwrap().unwrap()
}

fn position(cursor: &str) -> i64 {
    stepwell_proto::id::Cursor::decode(cursor).unwrap().position
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_may_begin_at_a_time() {
    let world = World::start().await;
    world.define(CHAIN).await;
    let running = world.run(executor(&world));
    for _ in 0..5 {
        let task = world.create("chain", &json!({})).await;
        world.ended(&task.task_id).await;
    }
    running.stop().await;
    let mut feed = world.feed(Start::Earliest).await;
    let last = recorded(&world).await.last().unwrap().0;
    let all = until(&mut feed, |event| event.position == last).await;
    let at = |event: &v1::Event| std::time::SystemTime::try_from(event.at.unwrap()).unwrap();
    let micro = std::time::Duration::from_micros(1);
    for from in all.iter().step_by(7) {
        for time in [at(from) - micro, at(from)] {
            let mut feed = world.feed(Start::At(time)).await;
            let found = until(&mut feed, |event| event.position == last).await;
            let wanted = all.iter().filter(|event| at(event) >= time).cloned();
            assert_eq!(found, wanted.collect::<Vec<_>>());
        }
    }
    let mut feed = world.feed(Start::At(std::time::UNIX_EPOCH)).await;
    assert_eq!(until(&mut feed, |event| event.position == last).await, all);
    let future = at(all.last().unwrap()) + std::time::Duration::from_secs(3600);
    let mut feed = world.feed(Start::At(future)).await;
    let task = world.create("chain", &json!({})).await;
    let found = until(&mut feed, |_| true).await;
    assert_eq!(found[0].task_id, task.task_id, "what has not come yet is now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_says_when_it_reads_the_table_and_when_it_is_level_and_why_it_ends() {
    let world = World::start().await;
    world.define("{name: held, steps: [{name: nobody_serves}]}").await;
    for _ in 0..3 {
        world.create("held", &json!({})).await;
    }
    let start = Some(subscribe_request::Start::Earliest(v1::Earliest {}));
    let mut feed = raw(&world, v1::SubscribeRequest { start, ..Default::default() }).await;
    let mut kinds = Vec::new();
    let mut cursor = String::new();
    while kinds.last() != Some(&"caught_up") {
        let message = message(&mut feed).await.unwrap();
        kinds.push(match message.kind.unwrap() {
            Said::Checkpoint(_) => "checkpoint",
            Said::FellBehind(_) => "fell_behind",
            Said::CaughtUp(_) => "caught_up",
            Said::Events(_) => "events",
            other => panic!("{other:?}"),
        });
        cursor = message.cursor;
    }
    assert_eq!(kinds, ["checkpoint", "fell_behind", "events", "caught_up"]);
    assert_eq!(position(&cursor), recorded(&world).await.last().unwrap().0);

    world.suite.process(Kind::Event, 0).unwrap().kill(Signal::SIGTERM).await.unwrap();
    let end = message(&mut feed).await.unwrap();
    assert_eq!(end.cursor, "");
    let Some(Said::End(end)) = end.kind else { panic!("{end:?}") };
    assert_eq!(end.reason(), v1::EndReason::Drain);
    assert_eq!(message(&mut feed).await, None, "nothing is wrong");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_has_everything_but_what_may_be_large_or_private() {
    let world = World::start().await;
    world
        .define(
            "{name: pair, steps: [{name: a}, {name: b, depends_on: [a], retry: {max_attempts: 1}}]}",
        )
        .await;
    let running = world.run(
        Executor::new(&world.client, "e")
            .handler("a", async |_| Ok::<_, HandlerError>(json!("secret")))
            .handler("b", async |_| Err::<(), _>(HandlerError::new("Broken", "secret"))),
    );
    let names = ["*", "observability.*"];
    let wanted = Subscription::new().names(names).from(Start::Earliest);
    let mut live = world.client.subscribe(wanted.clone().metadata_only()).await.unwrap();
    let task = world.create("pair", &json!({"card": "secret"})).await;
    world.ended(&task.task_id).await;
    running.stop().await;
    let mut full = world.client.subscribe(wanted.clone()).await.unwrap();
    let mut late = world.client.subscribe(wanted.metadata_only()).await.unwrap();
    let ends = |event: &v1::Event| event.name == "task.failed";
    let (full, live) = (until(&mut full, ends).await, until(&mut live, ends).await);
    assert_eq!(live, until(&mut late, ends).await, "from the ring and from the table");
    assert!(format!("{full:?}").contains("secret") && !format!("{live:?}").contains("secret"));
    let same = |events: &[v1::Event]| -> Vec<_> {
        let bare = |event: &v1::Event| v1::Event { detail: None, ..event.clone() };
        events.iter().map(bare).collect()
    };
    assert_eq!(same(&live), same(&full));
    let class = live.iter().find_map(|event| match &event.detail {
        Some(v1::event::Detail::StepFailed(failed)) => failed.error.clone(),
        _ => None,
    });
    assert_eq!(class.unwrap().error_class, "Broken");
}

/// What the events up to a place say of a task and its steps: their states.
fn states(events: &[v1::Event], place: i64) -> (i32, BTreeMap<String, i32>) {
    let (mut task, mut steps) = (v1::State::Pending.into(), BTreeMap::new());
    for event in events.iter().filter(|event| event.position <= place && event.to_state != 0) {
        match event.step_name.as_str() {
            "" => task = event.to_state,
            name => drop(steps.insert(name.to_owned(), event.to_state)),
        }
    }
    (task, steps)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_the_events_after_it_are_exact_while_the_task_goes_on() {
    let world = World::start().await;
    let steps: Vec<String> = (0..60)
        .map(|i| match i {
            0 => "{name: s0, handler: a}".to_owned(),
            _ => format!("{{name: s{i}, handler: a, depends_on: [s{}]}}", i - 1),
        })
        .collect();
    world.define(&format!("{{name: long, steps: [{}]}}", steps.join(", "))).await;
    let task = world.create("long", &json!({"n": 1})).await;
    let running = world.run(executor(&world));
    let wanted = Subscription::new().tasks([task.task_id.clone()]);
    let mut taken = Vec::new();
    loop {
        let feed = world.client.subscribe(wanted.clone().with_snapshot()).await.unwrap();
        let ended = feed.snapshot().unwrap().state().is_final();
        taken.push(feed);
        if ended {
            break;
        }
    }
    running.stop().await;
    let mut all = world.client.subscribe(wanted.clone().from(Start::Earliest)).await.unwrap();
    let all = until(&mut all, |event| event.name == "task.completed").await;
    let last = all.last().unwrap().position;
    let mut between = 0;
    for mut feed in taken {
        let place = position(feed.cursor());
        let snapshot = feed.snapshot().unwrap().clone();
        assert_eq!(snapshot.context, r#"{"n":1}"#);
        let (state, mut known) = states(&all, place);
        for step in &snapshot.steps {
            let of_events = known.remove(&step.name).unwrap_or(v1::State::Pending.into());
            assert_eq!(step.state, of_events, "{} at {place}", step.name);
        }
        assert_eq!((snapshot.state, known.len(), snapshot.steps.len()), (state, 0, 60));
        if place < last {
            between += 1;
            let rest = until(&mut feed, |event| event.position == last).await;
            let wanted = all.iter().filter(|event| event.position > place).cloned();
            assert_eq!(rest, wanted.collect::<Vec<_>>());
        }
    }
    assert!(between > 1, "the task went on meanwhile");

    for (request, field) in [
        (wanted.clone().with_snapshot().from(Start::Earliest), "with_snapshot"),
        (Subscription::new().with_snapshot(), "filter.task_ids"),
    ] {
        let Err(Error::Refused(refusal)) = world.client.subscribe(request).await else {
            panic!("{field} is wrong")
        };
        assert_eq!(refusal.violations[0].0, field);
    }
    let nobody = Subscription::new().tasks(["00000000-0000-7000-8000-000000000000"]);
    let Err(Error::Refused(refusal)) = world.client.subscribe(nobody.with_snapshot()).await else {
        panic!("there is no such task")
    };
    assert_eq!(refusal.reason, v1::ErrorReason::TaskNotFound);
}
