//! Handlers of events: each gets what it is for, and none is in another's way.

use std::sync::{Arc, Mutex};

use serde_json::json;
use stepwell_client::{
    CancellationToken, EventFacts, EventHandler, Executor, HandlerError, Start, StepContext,
    Subscriber, Subscribers,
    v1::{self, Event, StepCompleted, StepFailed, TaskCompleted},
};
use stepwell_tests::{SOON, World, check};
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

/// Fails at every event of one task.
struct Picky {
    bad: String,
    seen: Arc<Mutex<Vec<(i64, String)>>>,
    all: CancellationToken,
    wanted: usize,
}

impl EventHandler for Picky {
    fn subscribe_to(&self) -> Vec<&str> {
        vec!["task.completed"]
    }

    async fn handle_task_completed(
        &self,
        event: &Event,
        _: &TaskCompleted,
    ) -> Result<(), HandlerError> {
        if event.task_id == self.bad {
            return Err(HandlerError::new("Picky", "not this one")
                .retry_after(std::time::Duration::from_millis(1)));
        }
        let mut seen = self.seen.lock().unwrap();
        seen.push((event.position, event.core().task_id.to_owned()));
        if seen.len() == self.wanted {
            self.all.cancel();
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_fails_at_an_event_has_it_again_and_parked_while_another_goes_on() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let running = world.run(
        Executor::new(&world.client, "e").handler("a", async |_| Ok::<_, HandlerError>(json!({}))),
    );
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(world.create("d", &json!({})).await.task_id);
    }
    for task in &tasks {
        world.ended(task).await;
    }
    running.stop().await;
    for name in ["picky", "calm"] {
        let names = vec!["task.*".to_owned()];
        let subscription = v1::Subscription {
            name: name.into(),
            filter: Some(v1::EventFilter { names, ..v1::EventFilter::default() }),
            max_attempts: 2,
            ..v1::Subscription::default()
        };
        let start = Some(v1::create_subscription_request::Start::Earliest(v1::Earliest {}));
        let request = v1::CreateSubscriptionRequest { subscription: Some(subscription), start };
        world.client.create_subscription(request).await.unwrap();
    }
    let mut subscribers = Subscribers::new();
    let mut all = Vec::new();
    for (name, bad) in [("picky", tasks[2].as_str()), ("calm", "nobody")] {
        let handler = Picky {
            bad: bad.to_owned(),
            seen: Arc::default(),
            all: CancellationToken::new(),
            wanted: if name == "picky" { 5 } else { 6 },
        };
        all.push((handler.all.clone(), Arc::clone(&handler.seen)));
        let subscriber = Subscriber::new(&world.client).handler(handler).unwrap();
        subscribers = subscribers.add(name, subscriber.durable(world.client.durable(name, "r")));
    }
    let stop = CancellationToken::new();
    let run = tokio::spawn(subscribers.run(stop.clone().cancelled_owned()));
    for (all, seen) in &all {
        tokio::time::timeout(SOON, all.cancelled()).await.unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "once each, in order: {seen:?}");
    }
    stop.cancel();
    let ended = run.await.unwrap().unwrap();
    let tallies: Vec<_> = ended.into_iter().map(|(_, tally)| tally.unwrap()).collect();
    assert_eq!(tallies[0].failed, 2, "two attempts");
    assert_eq!(tallies[1].failed, 0);
    let request = v1::ListParkedEventsRequest { name: "picky".into(), ..Default::default() };
    let parked = world.client.list_parked_events(request).await.unwrap().events;
    assert_eq!(parked[0].event.as_ref().unwrap().task_id, tasks[2]);
    assert_eq!(parked[0].reason, "Picky: not this one");
    check(&mut world.connection().await).await;
}
