//! What is measured agrees with what happened, and with what is written about it.

mod documents;
mod pushed;

use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, Start, StepContext, v1};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{Gate, SOON, Scrape, World, check, short_terms, until};
use tokio::time::Instant;

/// One of each service, which surveys every second.
async fn world() -> World {
    World::set_up(|options| {
        options.nodes = Nodes { task: 1, step: 1, event: 1 };
        options.env = short_terms();
        options.env.push(("STEPWELL_SURVEY_INTERVAL".into(), "1".into()));
    })
    .await
}

const DEFINITIONS: [&str; 3] = [
    "
name: d
defaults: {retry: {max_attempts: 3, initial_backoff: 20ms, multiplier: 1}}
steps:
  - name: a
  - {name: b, depends_on: [a]}
",
    "{name: slow, steps: [{name: hang, timeout: 300ms, retry: {max_attempts: 1}}]}",
    "{name: left, steps: [{name: nobody}]}",
];

fn executor(world: &World) -> Executor {
    Executor::new(&world.client, "e")
        .handler("a", async |step: StepContext| {
            let input: Value = step.input()?;
            match input["kind"].as_str() {
                Some("permanent") => Err(HandlerError::new("No", "never").permanent()),
                Some("busy") if step.attempt() < 3 => Err(HandlerError::new("Busy", "not yet")),
                _ => Ok("a secret result"),
            }
        })
        .handler("b", async |_| Ok::<_, HandlerError>(()))
        .handler("hang", async |_| {
            std::future::pending::<()>().await;
            Ok::<_, HandlerError>(())
        })
}

/// Seven tasks: four complete, one of them after two retries; two fail, one of them by time-out; one is
/// cancelled before anybody took its step.
async fn run_seven(world: &World) -> Scrape {
    let left = world.create("left", &json!({"secret": "context"})).await;
    for kind in ["", "", "", "busy", "permanent"] {
        let task = world.create("d", &json!({"kind": kind})).await;
        world.ended(&task.task_id).await;
    }
    let task = world.create("slow", &json!({})).await;
    world.ended(&task.task_id).await;
    let event = &world.suite.addresses().event[0];
    let nobody = [("namespace", "default"), ("handler", "nobody")];
    let waits = Scrape::until(event, |scrape| {
        scrape.sum("stepwell_queue_oldest_ready_seconds", &nobody) > 0.0
    })
    .await;
    assert_eq!(waits.sum("stepwell_queue_ready_steps", &nobody), 1.0);
    let request = v1::CancelTaskRequest { task_id: left.task_id, ..Default::default() };
    world.client.cancel_task(request).await.unwrap();
    waits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_measure_what_ran_and_tell_what_is_documented() {
    let world = world().await;
    for definition in DEFINITIONS {
        world.define(definition).await;
    }
    subscribe_durably(&world).await;
    let running = world.run(executor(&world));
    subscriptions(&world).await;
    let mut feed = world.feed(Start::Latest).await;
    let waits = run_seven(&world).await;
    let events = until(&mut feed, |event| event.name == "task.cancelled").await;
    let addresses = world.suite.addresses();

    let task = Scrape::of(&addresses.task[0]).await;
    assert_eq!(task.sum("stepwell_task_create_answers_total", &[("answer", "new")]), 7.0);
    assert_eq!(task.sum("stepwell_task_create_answers_total", &[]), 7.0);
    assert_eq!(task.sum("stepwell_task_create_batch_tasks_sum", &[]), 7.0);
    assert_eq!(task.sum("stepwell_task_create_wait_seconds_count", &[]), 7.0);
    for name in ["stepwell_task_create_waiting_items", "stepwell_task_waiters"] {
        assert_eq!(task.sum(name, &[]), 0.0, "{name}");
    }

    // All slots are free again only after the last outcome is committed.
    let step = Scrape::until(&addresses.step[0], |scrape| {
        scrape.sum("stepwell_lease_held", &[]) == 0.0
            && scrape.sum("stepwell_lease_ended_total", &[]) == 12.0
    })
    .await;
    for (by, ending, n) in [
        ("executor", "complete", 8.0),
        ("executor", "retry", 2.0),
        ("executor", "error", 1.0),
        ("service", "error", 1.0),
    ] {
        let labels = [("by", by), ("ending", ending)];
        assert_eq!(step.sum("stepwell_lease_ended_total", &labels), n, "{labels:?}");
    }
    assert_eq!(step.sum("stepwell_lease_given_total", &[("by", "claim")]), 8.0);
    assert_eq!(step.sum("stepwell_step_dispatch_seconds_count", &[]), 8.0);
    assert_eq!(step.sum("stepwell_lease_given_total", &[("by", "settle")]), 4.0);
    assert_eq!(step.sum("stepwell_step_handover_seconds_count", &[]), 4.0);
    assert_eq!(step.sum("stepwell_lease_expired_total", &[("cause", "time_out")]), 1.0);
    assert_eq!(step.sum("stepwell_lease_expired_total", &[]), 1.0);
    assert_eq!(step.sum("stepwell_step_claim_batch_leases_sum", &[]), 8.0);
    assert_eq!(step.sum("stepwell_step_settle_batch_outcomes_sum", &[]), 12.0);
    assert_eq!(step.sum("stepwell_timer_released_total", &[]), 2.0);
    assert_eq!(step.sum("stepwell_queue_executors", &[("handler", "a")]), 1.0);
    assert!(!step.has("stepwell_queue_executors", &[("handler", "nobody")]));
    assert_eq!(step.sum("stepwell_executor_sessions", &[("state", "connected")]), 1.0);

    let cancelled = [("from", "pending"), ("to", "cancelled")];
    let event = Scrape::until(&addresses.event[0], |scrape| {
        scrape.sum("stepwell_task_transitions_total", &cancelled) == 1.0
    })
    .await;
    counted(&event);
    let unread = [("subscription", "unread")];
    assert!(event.sum("stepwell_subscription_behind_seconds", &unread) > 0.0);
    assert_eq!(event.sum("stepwell_subscription_parked_events", &unread), 0.0);
    let paused = [("subscription", "paused")];
    assert!(event.has("stepwell_subscription_behind_seconds", &paused));
    assert_eq!(event.sum("stepwell_subscription_behind_seconds", &paused), 0.0);
    let event = told(&addresses.event[0]).await;
    assert_eq!(event.sum("stepwell_subscriber_open", &[]), 1.0);
    assert_eq!(event.sum("stepwell_subscriber_lag_events", &[]), 0.0);
    let delivered = event.sum("stepwell_event_delivered_total", &[]);
    assert_eq!(delivered, f64::from(u32::try_from(events.len()).unwrap()));
    let mut connection = world.connection().await;
    let head: i64 = sqlx::query_scalar("select max(position) from stepwell.event")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(event.sum("stepwell_log_position", &[]), f64::from(i32::try_from(head).unwrap()));

    documents::agree(&task.and(&step).and(&event).and(&waits));
    running.stop().await;
    check(&mut connection).await;
}

/// Two subscriptions that nobody reads, one of them paused.
async fn subscribe_durably(world: &World) {
    for name in ["unread", "paused"] {
        let subscription =
            Some(v1::Subscription { name: name.into(), ..v1::Subscription::default() });
        let request = v1::CreateSubscriptionRequest { subscription, start: None };
        world.client.create_subscription(request).await.unwrap();
    }
    let pause = v1::UpdateSubscriptionRequest {
        name: "paused".into(),
        paused: Some(true),
        ..v1::UpdateSubscriptionRequest::default()
    };
    world.client.update_subscription(pause).await.unwrap();
}

/// Two whose events event-service takes itself: one counts them, one writes those of tasks to the log.
async fn subscriptions(world: &World) {
    let declared = "
subscriptions:
  - {name: a, deliver: {metrics: {}}}
  - {name: b, events: [task.completed], deliver: {log: {}}}
";
    let text = v1::SubscriptionText { source: "test".into(), yaml: declared.into() };
    let request = v1::ApplySubscriptionsRequest { texts: vec![text], prune: false };
    world.client.apply_subscriptions(request).await.unwrap();
}

/// What was delivered of the seven tasks, once all of it was.
async fn told(event: &str) -> Scrape {
    let scrape = Scrape::until(event, |scrape| {
        let of = |event| [("subscription", "a"), ("event", event)];
        scrape.sum("stepwell_subscription_events_total", &of("task.cancelled")) == 1.0
            && scrape.sum("stepwell_subscription_events_total", &of("step.cancelled")) == 1.0
            && scrape.sum("stepwell_delivery_attempts_total", &[("way", "log")]) == 4.0
    })
    .await;
    for (event, last, n) in [
        ("task.completed", "none", 4.0),
        ("task.failed", "none", 2.0),
        ("step.completed", "none", 8.0),
        ("step.failed", "true", 2.0),
        ("step.failed", "false", 2.0),
    ] {
        let labels = [("event", event), ("final", last)];
        assert_eq!(scrape.sum("stepwell_subscription_events_total", &labels), n, "{labels:?}");
    }
    let hang = [("step", "hang"), ("event", "step.failed")];
    assert!(scrape.sum("stepwell_subscription_ran_seconds_sum", &hang) >= 0.3);
    assert_eq!(scrape.sum("stepwell_subscription_task_steps_sum", &[("definition", "d")]), 10.0);
    assert_eq!(scrape.sum("stepwell_delivery_attempts_total", &[("taken", "false")]), 0.0);
    scrape
}

/// What the log has of the seven tasks.
fn counted(event: &Scrape) {
    for (from, to, n) in [
        ("none", "pending", 7.0),
        ("pending", "in_progress", 6.0),
        ("in_progress", "complete", 4.0),
        ("in_progress", "error", 2.0),
    ] {
        let labels = [("from", from), ("to", to)];
        assert_eq!(event.sum("stepwell_task_transitions_total", &labels), n, "{labels:?}");
    }
    for (from, to, last, n) in [
        ("pending", "in_progress", "false", 12.0),
        ("in_progress", "complete", "true", 8.0),
        ("in_progress", "error", "false", 2.0),
        ("in_progress", "error", "true", 2.0),
        ("error", "pending", "false", 2.0),
        ("in_progress", "pending", "false", 0.0),
        ("pending", "cancelled", "true", 1.0),
    ] {
        let labels = [("from", from), ("to", to), ("final", last)];
        assert_eq!(event.sum("stepwell_step_transitions_total", &labels), n, "{labels:?}");
    }
    assert_eq!(event.sum("stepwell_task_start_seconds_count", &[]), 6.0);
    for (to, n) in [("complete", 4.0), ("error", 2.0), ("cancelled", 1.0)] {
        assert_eq!(event.sum("stepwell_task_end_to_end_seconds_count", &[("to", to)]), n, "{to}");
    }
    for (to, n) in [("complete", 8.0), ("error", 4.0)] {
        assert_eq!(event.sum("stepwell_step_run_seconds_count", &[("to", to)]), n, "{to}");
    }
    // The step that hung ran as long as it may.
    let ran = event.sum("stepwell_step_run_seconds_sum", &[("to", "error")]);
    assert!((0.3..SOON.as_secs_f64()).contains(&ran), "{ran}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_beyond_two_hundred_share_one_label() {
    let world = world().await;
    let handlers: Vec<String> = (0..210).map(|i| format!("h{i:03}")).collect();
    let steps: Vec<Value> = handlers.iter().map(|name| json!({"name": name})).collect();
    world.define(&json!({"name": "wide", "steps": steps}).to_string()).await;
    let task = world.create("wide", &json!({})).await;
    let addresses = world.suite.addresses();
    let ready = Scrape::until(&addresses.event[0], |scrape| {
        scrape.sum("stepwell_queue_ready_steps", &[]) == 210.0
    })
    .await;
    assert_eq!(ready.of_name("stepwell_queue_ready_steps", &[]).count(), 201);
    assert_eq!(ready.sum("stepwell_queue_ready_steps", &[("handler", "other")]), 10.0);
    assert!(ready.sum("stepwell_queue_oldest_ready_seconds", &[("handler", "other")]) > 0.0);

    let executor = handlers.iter().fold(Executor::new(&world.client, "e"), |executor, name| {
        executor.handler(name, async |_| Ok::<_, HandlerError>(()))
    });
    let running = world.run(executor);
    world.ended(&task.task_id).await;
    let served = Scrape::of(&addresses.step[0]).await;
    assert_eq!(served.of_name("stepwell_queue_executors", &[]).count(), 201);
    assert_eq!(served.sum("stepwell_queue_executors", &[("handler", "other")]), 10.0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_executors_and_nodes_took_with_them_are_told_by_cause() {
    let world = World::hasty(Nodes { task: 1, step: 2, event: 1 }).await;
    world.define("{name: d, steps: [{name: a, retry: {initial_backoff: 10ms}}]}").await;
    let gate = Gate::default();
    let task = world.create("d", &json!({})).await;
    let executor = || gate.guard(Executor::new(&world.client, "e"));

    // It dies alone: its node ends the lease after the grace.
    let vanishing = world.run(executor());
    gate.started().await;
    let nodes = world.suite.addresses().step;
    let node = holder(&nodes).await;
    vanishing.vanish();
    let lost = [("cause", "executor_lost")];
    Scrape::until(&nodes[node], |s| s.sum("stepwell_lease_expired_total", &lost) == 1.0).await;

    // It dies with its node: the other one walks what is left.
    let vanishing = world.run(executor());
    gate.started().await;
    let node = holder(&nodes).await;
    world.suite.process(Kind::Step, node).unwrap().kill(Signal::SIGKILL).await.unwrap();
    vanishing.vanish();
    let lost = [("cause", "node_lost")];
    let other = &nodes[1 - node];
    let survivor =
        Scrape::until(other, |s| s.sum("stepwell_lease_expired_total", &lost) == 1.0).await;
    assert_eq!(survivor.sum("stepwell_node_taken_over_total", &[]), 1.0);

    let running = world.run(executor());
    gate.started().await;
    gate.open();
    assert_eq!(world.ended(&task.task_id).await.steps[0].attempt, 3);
    running.stop().await;
    check(&mut world.connection().await).await;
}

/// Which of the nodes has the lease.
async fn holder(nodes: &[String]) -> usize {
    for (i, node) in nodes.iter().enumerate() {
        if Scrape::of(node).await.sum("stepwell_lease_held", &[]) == 1.0 {
            return i;
        }
    }
    panic!("no node holds it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_event_service_sends_two_statements_a_second_at_most() {
    let world = world().await;
    let _feed = world.feed(Start::Latest).await;
    let event = &world.suite.addresses().event[0];
    let surveys = |scrape: &Scrape| scrape.sum("stepwell_survey_seconds_count", &[]);
    let statements = |s: &Scrape| s.sum("stepwell_database_statement_seconds_count", &[]);
    let first = Scrape::until(event, |scrape| surveys(scrape) > 1.0).await;
    let began = Instant::now();
    let last = Scrape::until(event, |scrape| surveys(scrape) > surveys(&first) + 5.0).await;
    // One survey a second, of two statements, is fifteen times as many as there are usually.
    let sent = statements(&last) - statements(&first) - 2.0 * (surveys(&last) - surveys(&first));
    assert!(sent <= 2.0 * began.elapsed().as_secs_f64() + 1.0, "{sent} in {:?}", began.elapsed());
}
