//! Readers of durable subscriptions in the client: whoever dies, each event is handed out until it is
//! acknowledged, those of a task in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use stepwell_client::{DurableEvent, DurableStream, v1};
use stepwell_suite::{Kind as Service, Nodes, Signal};
use stepwell_tests::{SOON, World, check};
use tokio::time::timeout;

/// Makes a subscription of what was from the beginning.
async fn create(world: &World, subscription: v1::Subscription) {
    let start = Some(v1::create_subscription_request::Start::Earliest(v1::Earliest {}));
    let request = v1::CreateSubscriptionRequest { subscription: Some(subscription), start };
    let made = world.client.create_subscription(request.clone()).await.unwrap();
    assert!(!made.already_existed);
    assert!(world.client.create_subscription(request).await.unwrap().already_existed);
}

fn named(name: &str, names: &[&str]) -> v1::Subscription {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    let filter = Some(v1::EventFilter { names, ..v1::EventFilter::default() });
    v1::Subscription { name: name.into(), filter, ..v1::Subscription::default() }
}

async fn partitions(world: &World, name: &str) -> Vec<v1::SubscriptionPartition> {
    let request = v1::GetSubscriptionRequest { name: name.into() };
    world.client.get_subscription(request).await.unwrap().partitions
}

async fn next(stream: &mut DurableStream) -> DurableEvent {
    timeout(SOON, stream.next()).await.expect("an event in time").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_services_die_gets_every_event_and_those_of_a_task_in_order() {
    let mut world = World::with(Nodes { task: 1, step: 1, event: 2 }, &[]).await;
    create(&world, v1::Subscription { partitions: 4, ..named("all", &["*"]) }).await;
    world.run_ones(30).await;
    let wanted = world.positions().await;
    let mut stream = world.client.durable("all", "r").in_flight(40).open().await.unwrap();
    let mut of_task: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut killed = [false, false];
    while seen.len() < wanted.len() {
        let event = next(&mut stream).await;
        let v1::Event { task_id, position, .. } = event.event().clone();
        let before = of_task.entry(task_id).or_default();
        // What comes again begins after what is acknowledged, and goes on in order.
        if let Some(again) = before.iter().position(|of| *of == position) {
            before.truncate(again);
        }
        before.push(position);
        seen.insert(position);
        event.ack();
        let half = seen.len() / (wanted.len() / 3);
        if (1..=2).contains(&half) && !std::mem::replace(&mut killed[half - 1], true) {
            // One after the other, so it reads from one that dies.
            let service = world.suite.process(Service::Event, half - 1).unwrap();
            service.kill(Signal::SIGKILL).await.unwrap();
            service.wait().await;
            world.suite.restart(Service::Event, half - 1).await.unwrap();
        }
    }
    assert_eq!(seen, wanted);
    assert!(of_task.values().all(|of| of.is_sorted_by(|a, b| a < b) && of.len() == 5));
    stream.close().await;
    let left = partitions(&world, "all").await;
    assert!(left.iter().all(|of| of.failed_attempts == 0 && of.parked_events == 0), "{left:?}");
    let mut again = world.client.durable("all", "other").open().await.unwrap();
    let none = timeout(Duration::from_millis(500), again.next()).await;
    assert!(none.is_err(), "all of it is acknowledged: {none:?}");
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_comes_again_before_what_follows_until_it_is_parked_and_replayed() {
    let world = World::start().await;
    create(&world, v1::Subscription { max_attempts: 2, ..named("s", &["*"]) }).await;
    let tasks = world.run_ones(3).await;
    let mut stream = world.client.durable("s", "r").open().await.unwrap();
    let fails = |event: &v1::Event| event.task_id == tasks[1] && event.name == "step.completed";
    let (mut seen, mut attempts) = (Vec::new(), Vec::new());
    // One is parked, and the end of its task with it.
    while seen.len() < 3 * 5 - 2 {
        let event = next(&mut stream).await;
        if fails(event.event()) {
            attempts.push(event.attempt());
            event.nack("it broke", Duration::from_millis(1));
        } else {
            seen.push(event.event().position);
            event.ack();
        }
    }
    assert_eq!(attempts, [1, 2]);
    assert!(seen.is_sorted_by(|a, b| a < b), "once each and in order: {seen:?}");
    let request = v1::ListParkedEventsRequest { name: "s".into(), ..Default::default() };
    let parked = world.client.list_parked_events(request).await.unwrap().events;
    assert_eq!((parked.len(), parked[0].reason.as_str()), (2, "it broke"));
    let replay = v1::ReplayParkedEventsRequest { name: "s".into(), ..Default::default() };
    assert_eq!(world.client.replay_parked_events(replay).await.unwrap().events, 2);
    for wanted in &parked {
        let event = next(&mut stream).await;
        assert_eq!(event.event().position, wanted.event.as_ref().unwrap().position);
        event.ack();
    }
    stream.close().await;
    assert_eq!(partitions(&world, "s").await[0].parked_events, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_share_partitions_and_one_that_closes_leaves_its_own_to_the_others() {
    let world = World::start().await;
    create(&world, v1::Subscription { partitions: 2, ..named("s", &["task.completed"]) }).await;
    let mut first = world.client.durable("s", "a").partitions_max(1).open().await.unwrap();
    let mut second = world.client.durable("s", "b").open().await.unwrap();
    let tasks = world.run_ones(12).await;
    let mut seen = BTreeSet::new();
    let of_first = next(&mut first).await;
    let of_second = next(&mut second).await;
    assert_eq!((first.partitions().len(), second.partitions().len()), (1, 1));
    assert_ne!(of_first.partition(), of_second.partition());
    for event in [of_first, of_second] {
        seen.insert(event.event().task_id.clone());
        event.ack();
    }
    first.close().await;
    while seen.len() < tasks.len() {
        let event = next(&mut second).await;
        assert!(
            seen.insert(event.event().task_id.clone()),
            "what was acknowledged comes not again"
        );
        event.ack();
    }
    assert_eq!(second.partitions().len(), 2);
    // Paused, nobody reads; what is gone ends its reader.
    let update = v1::UpdateSubscriptionRequest {
        name: "s".into(),
        paused: Some(true),
        ..v1::UpdateSubscriptionRequest::default()
    };
    assert!(world.client.update_subscription(update).await.unwrap().subscription.unwrap().paused);
    let listed = world.client.list_subscriptions(v1::ListSubscriptionsRequest::default());
    assert_eq!(listed.await.unwrap().subscriptions.len(), 1);
    let delete = v1::DeleteSubscriptionRequest { name: "s".into() };
    world.client.delete_subscription(delete).await.unwrap();
    let ended = timeout(SOON, second.next()).await.expect("the end in time").unwrap();
    assert_eq!(ended.unwrap_err().reason(), Some(v1::ErrorReason::SubscriptionNotFound));
}
