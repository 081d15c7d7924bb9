//! The network between executors, clients, subscribers and services: partitions in one direction,
//! silence, cuts in the midst of anything.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use stepwell_client::{
    Addresses, Client, Executor, HandlerError, Limits, Start, StepContext, Subscription,
    v1::{self, step_service_client::StepServiceClient},
};
use stepwell_suite::{Kind, Nodes};
use stepwell_tests::{Proxy, SOON, Way, World, check, until};
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;

use crate::stage::number;

const ONE: Nodes = Nodes { task: 1, step: 1, event: 1 };
const STEP: &str = "
name: one
defaults: {retry: {max_attempts: 5, initial_backoff: 10ms, multiplier: 1}}
steps: [{name: a}]
";

/// A client whose services are reached through these, where they are given.
fn through(
    world: &World,
    task: Option<&Proxy>,
    step: Option<&Proxy>,
    event: Option<&Proxy>,
) -> Client {
    let of = world.suite.addresses();
    let address = |proxy: Option<&Proxy>, all: Vec<String>| proxy.map_or(all, |p| vec![p.url()]);
    let addresses = Addresses {
        task: address(task, of.task),
        step: address(step, of.step),
        event: address(event, of.event),
    };
    Client::connect(addresses).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_partition_in_either_direction_an_executor_loses_its_step_to_another() {
    for way in [Way::Up, Way::Down] {
        let world = World::hasty(ONE).await;
        world.define(STEP).await;
        let proxy = Proxy::of_service(&world.suite.addresses().step[0]).await;
        let (started, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (starts, stops) = (Arc::clone(&started), Arc::clone(&stopped));
        let cut_off = Executor::new(&through(&world, None, Some(&proxy), None), "cut off").handler(
            "a",
            move |step: StepContext| {
                let (started, stopped) = (Arc::clone(&starts), Arc::clone(&stops));
                async move {
                    started.notify_one();
                    step.cancelled().await;
                    stopped.notify_one();
                    Ok::<_, HandlerError>("late")
                }
            },
        );
        let cut_off = world.run(cut_off);
        let task = world.create("one", &json!({})).await;
        started.notified().await;
        proxy.blackhole(way);
        let other = Executor::new(&world.client, "other")
            .handler("a", async |step: StepContext| Ok(step.attempt()));
        let other = world.run(other);
        let ended = world.ended(&task.task_id).await;
        assert_eq!((ended.state().word(), ended.steps[0].result.as_str()), ("complete", "2"));
        proxy.heal();
        // It comes back, names its lease, and hears that it is lost.
        tokio::time::timeout(SOON, stopped.notified()).await.unwrap();
        let report = cut_off.stop().await;
        assert_eq!((report.completed, report.voided), (0, 1), "{way:?}: {report:?}");
        other.stop().await;
        check(&mut world.connection().await).await;
    }
}

/// A stream that says hello and nothing after.
async fn mute(
    world: &World,
) -> (
    tonic::Streaming<v1::WorkResponse>,
    tokio::sync::mpsc::Sender<v1::WorkRequest>,
    tonic::transport::Channel,
) {
    let hello = v1::Hello {
        handlers: vec![v1::HandlerOffer { name: "a".into(), ..Default::default() }],
        slots: 1,
        ..Default::default()
    };
    let address = world.suite.addresses().step[0].clone();
    let channel =
        tonic::transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    let (send, receive) = tokio::sync::mpsc::channel(4);
    send.send(v1::WorkRequest { hello: Some(hello), ..Default::default() }).await.unwrap();
    let mut service = StepServiceClient::new(channel.clone());
    let answers = service.work(ReceiverStream::new(receive)).await.unwrap().into_inner();
    (answers, send, channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_lives_and_says_nothing_is_ended_and_its_lease_goes_to_another() {
    let world = World::hasty(ONE).await;
    world.define(STEP).await;
    let (mut answers, _send, _channel) = mute(&world).await;
    let task = world.create("one", &json!({})).await;
    loop {
        let message = answers.message().await.unwrap().unwrap();
        if !message.leases.is_empty() {
            break;
        }
    }
    // HTTP/2 answers pings below it; what counts is what the executor says.
    let ending = async { while let Ok(Some(_)) = answers.message().await {} };
    tokio::time::timeout(SOON, ending).await.unwrap();
    let other = Executor::new(&world.client, "other")
        .handler("a", async |step: StepContext| Ok(step.attempt()));
    let other = world.run(other);
    assert_eq!(world.ended(&task.task_id).await.steps[0].result, "2");
    other.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_whose_connection_lives_but_whose_stream_is_closed_gets_nothing() {
    let world = World::hasty(ONE).await;
    world.define(STEP).await;
    let (answers, send, channel) = mute(&world).await;
    drop((answers, send));
    let task = world.create("one", &json!({})).await;
    let other = Executor::new(&world.client, "other")
        .handler("a", async |step: StepContext| Ok(step.attempt()));
    let other = world.run(other);
    let ended = world.ended(&task.task_id).await;
    assert_eq!(ended.state().word(), "complete");
    drop(channel);
    other.stop().await;
    check(&mut world.connection().await).await;
}

const CHAIN: &str = "
name: chain
defaults: {retry: {max_attempts: 20, initial_backoff: 10ms, multiplier: 1}}
steps:
  - name: a
  - {name: b, depends_on: [a]}
  - {name: c, depends_on: [b]}
";

fn chain(client: &Client, runs: &Arc<AtomicUsize>) -> Executor {
    let mut executor = Executor::new(client, "e");
    for name in ["a", "b", "c"] {
        let runs = Arc::clone(runs);
        executor = executor.handler(name, move |step: StepContext| {
            runs.fetch_add(1, Ordering::Relaxed);
            async move {
                let mut n = 1;
                for parent in step.parents().map(str::to_owned).collect::<Vec<_>>() {
                    n += step.parent::<i64>(&parent).await?;
                }
                Ok::<_, HandlerError>(n)
            }
        });
    }
    executor
}

/// Every so many bytes; 1 in the long run.
fn stride() -> u64 {
    number("CHAOS_STRIDE").unwrap_or(97)
}

/// What has to pass for one task does not fit into fewer, whoever's connection it is.
const EXCHANGE_BYTES_MIN: u64 = 250;

/// Who runs tasks through a proxy that is cut: several at once, since each cut is waited out.
struct Lane {
    proxy: Proxy,
    client: Client,
    namespace: String,
}

/// Runs a task again and again, each time cut after some more bytes, until it is through before the
/// cut comes. Lanes take turns at the places.
async fn cut_everywhere(world: &World, lanes: &[Lane]) {
    let step = stride() * lanes.len() as u64;
    let lanes = lanes.iter().zip((0..).map(|lane| lane * stride()));
    let runs = lanes.map(|(lane, first)| cut_lane(world, lane, first, step));
    let through = futures::future::join_all(runs).await.into_iter().min();
    assert!(through > Some(EXCHANGE_BYTES_MIN), "a task was done within {through:?} bytes");
    let doubled: i64 =
        sqlx::query_scalar("select count(*) - count(distinct uid) from stepwell.task")
            .fetch_one(&mut world.connection().await)
            .await
            .unwrap();
    assert_eq!(doubled, 0);
}

async fn cut_lane(world: &World, lane: &Lane, first: u64, step: u64) -> u64 {
    let Lane { proxy, client, namespace } = lane;
    let mut n = first;
    loop {
        let from = proxy.passed();
        proxy.cut_at(from + n);
        let task = client.task("chain").namespace(namespace).context(&json!({"n": n}));
        let task = world.ended(&task.create().await.unwrap().task_id).await;
        assert_eq!(task.state().word(), "complete", "cut after {n} bytes");
        assert_eq!(task.steps[2].result, "3", "cut after {n} bytes");
        if proxy.passed() < from + n {
            // What is said while nothing happens may be cut as well; that is another test.
            return n;
        }
        n += step;
    }
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_s_connection_may_be_cut_after_any_byte() {
    let world = World::hasty(ONE).await;
    world.define(CHAIN).await;
    let (mut lanes, mut running) = (Vec::new(), Vec::new());
    for n in 0..number("CHAOS_LANES").unwrap_or(4) {
        let proxy = Proxy::of_service(&world.suite.addresses().step[0]).await;
        let namespace = format!("lane{n}");
        world.define(&format!("namespace: {namespace}{CHAIN}")).await;
        let executor = chain(&through(&world, None, Some(&proxy), None), &Arc::default());
        running.push(world.run(executor.namespace(&namespace)));
        lanes.push(Lane { proxy, client: world.client.clone(), namespace });
    }
    cut_everywhere(&world, &lanes).await;
    for executor in running {
        executor.stop().await;
    }
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_s_connection_may_be_cut_after_any_byte_and_makes_each_task_once() {
    let world = World::hasty(ONE).await;
    world.define(CHAIN).await;
    let runs = Arc::default();
    let running = world.run(chain(&world.client, &runs));
    let proxy = Proxy::of_service(&world.suite.addresses().task[0]).await;
    let client = through(&world, Some(&proxy), None, None);
    cut_everywhere(&world, &[Lane { proxy, client, namespace: "default".into() }]).await;
    let tasks: i64 = sqlx::query_scalar("select count(*) from stepwell.task")
        .fetch_one(&mut world.connection().await)
        .await
        .unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 3 * usize::try_from(tasks).unwrap());
    running.stop().await;
    check(&mut world.connection().await).await;
}

/// Between a service and Postgres: what was asked may have been done, or not, and only looking says
/// which.
async fn database_cut_everywhere(kind: Kind) {
    let database = stepwell_suite::test_database().await.unwrap();
    let (proxy, url) = Proxy::of_database(&database.url).await;
    let world = World::over(database, |options| {
        options.env = stepwell_tests::short_terms();
        options.detours = vec![(kind, url)];
    })
    .await;
    world.define(CHAIN).await;
    let running = world.run(chain(&world.client, &Arc::default()));
    let (client, namespace) = (world.client.clone(), "default".into());
    cut_everywhere(&world, &[Lane { proxy, client, namespace }]).await;
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_service_s_connections_to_postgres_may_be_cut_after_any_byte() {
    database_cut_everywhere(Kind::Step).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_service_s_connections_to_postgres_may_be_cut_after_any_byte() {
    database_cut_everywhere(Kind::Task).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_is_cut_all_the_time_has_every_event_once_and_in_order() {
    let world = World::hasty(ONE).await;
    world.define(CHAIN).await;
    let proxy = Proxy::of_service(&world.suite.addresses().event[0]).await;
    proxy.delay(Way::Down, Duration::from_millis(3));
    let client = through(&world, None, None, Some(&proxy))
        .with_limits(Limits { call_timeout: SOON, ..Limits::default() });
    let mut feed =
        client.subscribe(Subscription::new().names(["*"]).from(Start::Earliest)).await.unwrap();
    let running = world.run(chain(&world.client, &Arc::default()));
    let cutting = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy.reset();
        }
    };
    let seconds = number("CHAOS_SECONDS").unwrap_or(6);
    let working = async {
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
        while tokio::time::Instant::now() < end {
            let task = world.create("chain", &json!({})).await;
            world.ended(&task.task_id).await;
        }
    };
    let (seen, recorded) = tokio::select! {
        () = cutting => unreachable!(),
        both = async {
            let marker = json!({"is": "last"});
            let (seen, ()) = tokio::join!(
                async {
                    until(&mut feed, |event| event.name == "task.completed"
                        && event.definition_name == "marker").await
                },
                async {
                    working.await;
                    world.define("{name: marker, steps: [{name: a}]}").await;
                    let task = world.create("marker", &marker).await;
                    world.ended(&task.task_id).await;
                },
            );
            let recorded: Vec<i64> =
                sqlx::query_scalar("select position from stepwell.event order by position")
                    .fetch_all(&mut world.connection().await)
                    .await
                    .unwrap();
            (seen, recorded)
        } => both,
    };
    assert_eq!(seen.iter().map(|event| event.position).collect::<Vec<_>>(), recorded);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_that_has_said_its_last_word_is_reconnected_and_its_work_goes_on() {
    let world = World::hasty(ONE).await;
    world.define(CHAIN).await;
    let proxy = Proxy::of_service(&world.suite.addresses().step[0]).await;
    let running = world.run(chain(&through(&world, None, Some(&proxy), None), &Arc::default()));
    for way in [Way::Up, Way::Down] {
        let task = world.create("chain", &json!({})).await;
        world.ended(&task.task_id).await;
        proxy.half_close(way);
        let task = world.create("chain", &json!({"after": format!("{way:?}")})).await;
        proxy.heal();
        assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_reader_that_is_cut_all_the_time_has_every_event_and_those_of_a_task_in_order() {
    let world = World::hasty(ONE).await;
    world.define(CHAIN).await;
    let subscription =
        v1::Subscription { name: "s".into(), partitions: 2, ..v1::Subscription::default() };
    let start = Some(v1::create_subscription_request::Start::Earliest(v1::Earliest {}));
    let request = v1::CreateSubscriptionRequest { subscription: Some(subscription), start };
    world.client.create_subscription(request).await.unwrap();
    let proxy = Proxy::of_service(&world.suite.addresses().event[0]).await;
    proxy.delay(Way::Down, Duration::from_millis(3));
    let client = through(&world, None, None, Some(&proxy))
        .with_limits(Limits { call_timeout: SOON, ..Limits::default() });
    let mut stream = client.durable("s", "r").open().await.unwrap();
    let running = world.run(chain(&world.client, &Arc::default()));
    let cutting = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy.reset();
        }
    };
    let (recorded, worked) = (OnceLock::new(), Notify::new());
    let working = async {
        let seconds = number("CHAOS_SECONDS").unwrap_or(6);
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
        while tokio::time::Instant::now() < end {
            let task = world.create("chain", &json!({})).await;
            world.ended(&task.task_id).await;
        }
        let positions: Vec<i64> = sqlx::query_scalar("select position from stepwell.event")
            .fetch_all(&mut world.connection().await)
            .await
            .unwrap();
        recorded.set(BTreeSet::from_iter(positions)).unwrap();
        worked.notify_one();
    };
    let reading = async {
        let mut seen = BTreeSet::new();
        let mut of_task: HashMap<String, Vec<i64>> = HashMap::new();
        while recorded.get().is_none_or(|all| seen != *all) {
            let event = tokio::select! {
                event = stream.next() => event.unwrap().unwrap(),
                () = worked.notified() => continue,
            };
            let v1::Event { task_id, position, .. } = event.event().clone();
            let before = of_task.entry(task_id).or_default();
            // What comes again goes on in order from there.
            if let Some(again) = before.iter().position(|of| *of == position) {
                before.truncate(again);
            }
            before.push(position);
            seen.insert(position);
            event.ack();
        }
        of_task
    };
    let of_task = tokio::select! {
        () = cutting => unreachable!(),
        (of_task, ()) = async { tokio::join!(reading, working) } => of_task,
    };
    assert!(of_task.values().all(|positions| positions.is_sorted_by(|a, b| a < b)));
    stream.close().await;
    let request = v1::GetSubscriptionRequest { name: "s".into() };
    let partitions = world.client.get_subscription(request).await.unwrap().partitions;
    assert!(partitions.iter().all(|of| of.parked_events == 0), "{partitions:?}");
    // All of it is acknowledged: another reader gets nothing.
    let mut other = world.client.durable("s", "other").open().await.unwrap();
    let more = tokio::time::timeout(Duration::from_millis(500), other.next()).await;
    assert!(more.is_err(), "{more:?}");
    running.stop().await;
}
