//! Durable subscriptions: whoever reads and whoever dies, each event is acknowledged in the end, those of a
//! task in order, and no partition has two readers that can acknowledge.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use sqlx::{Connection, PgConnection};
use stepwell_proto::{
    refusal::Refusal,
    v1::{
        self, AckEventsRequest, CreateSubscriptionRequest, DeleteSubscriptionRequest, Earliest,
        ErrorReason, Event, EventFilter, GetSubscriptionRequest, GetSubscriptionResponse,
        HeldPartition, ListParkedEventsRequest, ListSubscriptionsRequest, NackEventsRequest,
        NackEventsResponse, PartitionDelivery, ReplayParkedEventsRequest, SubscribeRequest,
        SubscribeResponse, Subscription, SubscriptionStart, UpdateSubscriptionRequest,
        create_subscription_request, event_service_client::EventServiceClient, subscribe_request,
        subscribe_response::Kind, subscription_service_client::SubscriptionServiceClient,
        update_subscription_request::Seek,
    },
};
use stepwell_store::{Keep, Options, Store};
use stepwell_suite::{Kind as Service, Nodes, Signal};
use stepwell_tests::{SOON, Scrape, World, cut_log};
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Channel};

const ONE: &str = "{name: one, steps: [{name: a}]}";

fn reason(status: &Status) -> ErrorReason {
    Refusal::from_status(status).unwrap_or_else(|| panic!("no reason: {status:?}")).reason
}

async fn calls(world: &World, node: usize) -> SubscriptionServiceClient<Channel> {
    let address = world.suite.addresses().event[node].clone();
    SubscriptionServiceClient::connect(address).await.unwrap()
}

/// Makes a subscription of what was from the beginning.
async fn create(world: &World, subscription: Subscription) {
    let start = Some(create_subscription_request::Start::Earliest(Earliest {}));
    let request = CreateSubscriptionRequest { subscription: Some(subscription), start };
    calls(world, 0).await.create_subscription(request).await.unwrap();
}

fn named(name: &str, names: &[&str]) -> Subscription {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    let filter = Some(EventFilter { names, ..EventFilter::default() });
    Subscription { name: name.into(), filter, ..Subscription::default() }
}

async fn look(world: &World, name: &str) -> GetSubscriptionResponse {
    let request = GetSubscriptionRequest { name: name.into() };
    calls(world, 0).await.get_subscription(request).await.unwrap().into_inner()
}

/// A stream of a subscription at one node.
struct Reader {
    name: String,
    stream: Streaming<SubscribeResponse>,
    calls: SubscriptionServiceClient<Channel>,
    held: Vec<HeldPartition>,
}

impl Reader {
    async fn open(world: &World, node: usize, name: &str, reader_id: &str) -> Self {
        Self::of(world, node, name, reader_id, 0).await
    }

    async fn of(world: &World, node: usize, name: &str, reader_id: &str, most: i32) -> Self {
        let start = SubscriptionStart {
            name: name.into(),
            reader_id: reader_id.into(),
            partitions_max: most,
            ..SubscriptionStart::default()
        };
        let start = Some(subscribe_request::Start::Subscription(start));
        let address = world.suite.addresses().event[node].clone();
        let mut service = EventServiceClient::connect(address).await.unwrap();
        let request = SubscribeRequest { start, ..SubscribeRequest::default() };
        let stream = service.subscribe(request).await.unwrap().into_inner();
        let calls = calls(world, node).await;
        Self { name: name.into(), stream, calls, held: Vec::new() }
    }

    async fn message(&mut self) -> Result<SubscribeResponse, Status> {
        let message = timeout(SOON, self.stream.message()).await.expect("a message in time");
        let message = message?.expect("no end without a reason");
        if matches!(message.kind, Some(Kind::Checkpoint(_))) {
            self.held.clone_from(&message.held);
        }
        Ok(message)
    }

    /// The next events, by their partition.
    async fn events(&mut self) -> (PartitionDelivery, Vec<Event>) {
        loop {
            let message = self.message().await.unwrap();
            if let Some(Kind::Events(batch)) = message.kind {
                return (message.delivery.unwrap(), batch.events);
            }
        }
    }

    /// Waits until it reads so many partitions.
    async fn holds(&mut self, n: usize) {
        while self.held.len() != n {
            self.message().await.unwrap();
        }
    }

    async fn try_ack(&mut self, of: &PartitionDelivery, event: &Event) -> Result<i64, Status> {
        let (up_to_position, retried_positions) =
            if of.retried { (0, vec![event.position]) } else { (event.position, Vec::new()) };
        let request = AckEventsRequest {
            name: self.name.clone(),
            partition: of.partition,
            epoch: of.epoch,
            up_to_position,
            retried_positions,
        };
        Ok(self.calls.ack_events(request).await?.into_inner().position)
    }

    async fn ack(&mut self, of: &PartitionDelivery, event: &Event) {
        self.try_ack(of, event).await.unwrap();
    }

    async fn nack(
        &mut self,
        of: &PartitionDelivery,
        event: &Event,
        attempt: i32,
    ) -> NackEventsResponse {
        let request = NackEventsRequest {
            name: self.name.clone(),
            partition: of.partition,
            epoch: of.epoch,
            position: event.position,
            attempt,
            reason: "it broke".into(),
            retry_after: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        };
        self.calls.nack_events(request).await.unwrap().into_inner()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_goes_on_where_events_were_acknowledged_and_each_is_in_the_end() {
    let world = World::with(Nodes { task: 1, step: 1, event: 2 }, &[]).await;
    create(&world, Subscription { partitions: 4, ..named("all", &["*"]) }).await;
    world.run_ones(30).await;
    let wanted = world.positions().await;
    let mut acked: BTreeMap<i64, i32> = BTreeMap::new();
    let mut of_partition: HashMap<i32, Vec<i64>> = HashMap::new();
    let mut partition_of_task: HashMap<String, i32> = HashMap::new();
    let mut kept = |of: &PartitionDelivery, event: &Event| {
        *acked.entry(event.position).or_default() += 1;
        of_partition.entry(of.partition).or_default().push(event.position);
        let partition = partition_of_task.entry(event.task_id.clone()).or_insert(of.partition);
        assert_eq!(*partition, of.partition, "a task stays in its partition");
        acked.len()
    };
    // The first one reads at a node that dies, the second at another one, the third when Postgres is back.
    let mut reader = Reader::open(&world, 1, "all", "r1").await;
    reader.holds(4).await;
    let mut n = 0;
    while n < 30 {
        let (of, events) = reader.events().await;
        for event in events.iter().take(5) {
            reader.ack(&of, event).await;
            n = kept(&of, event);
        }
        assert!(of.attempts.iter().all(|attempt| *attempt == 1), "{of:?}");
        if events.len() > 5 && n >= 20 {
            break;
        }
    }
    world.suite.process(Service::Event, 1).unwrap().kill(Signal::SIGKILL).await.unwrap();
    let mut reader = Reader::of(&world, 0, "all", "r2", 4).await;
    reader.holds(4).await;
    let all = wanted.len();
    while n < all {
        let (of, events) = reader.events().await;
        for event in &events {
            n = kept(&of, event);
        }
        reader.ack(&of, events.last().unwrap()).await;
    }
    assert_eq!(acked.keys().copied().collect::<BTreeSet<_>>(), wanted, "each is acknowledged");
    assert!(acked.values().all(|n| *n == 1), "what was acknowledged did not come again");
    for positions in of_partition.values() {
        assert!(positions.is_sorted_by(|a, b| a < b), "in order: {positions:?}");
    }
    assert!(of_partition.len() > 1, "tasks are spread");
    let partitions = look(&world, "all").await.partitions;
    assert!(partitions.iter().all(|of| of.reader_id == "r2"), "{partitions:?}");
    // What is not wanted or done with is told to the database when the stream is extended.
    let request = UpdateSubscriptionRequest {
        name: "all".into(),
        paused: Some(true),
        ..UpdateSubscriptionRequest::default()
    };
    calls(&world, 0).await.update_subscription(request).await.unwrap();
    reader.holds(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_has_one_reader_that_can_acknowledge_and_the_others_wait_for_it() {
    let world = World::with(Nodes { task: 1, step: 1, event: 2 }, &[]).await;
    create(&world, Subscription { partitions: 2, ..named("s", &["*"]) }).await;
    world.run_ones(8).await;
    let mut first = Reader::open(&world, 0, "s", "a").await;
    first.holds(2).await;
    let mut other = Reader::open(&world, 1, "s", "b").await;
    other.message().await.unwrap();
    assert_eq!(other.held, [], "nothing is free");
    let (of, events) = first.events().await;
    // The reader comes again, at another node, before its former stream has ended.
    let mut again = Reader::open(&world, 1, "s", "a").await;
    again.holds(2).await;
    let refused = first.try_ack(&of, &events[0]).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::SubscriptionEpochOld);
    let ended = loop {
        if let Err(status) = first.message().await {
            break status;
        }
    };
    assert_eq!(reason(&ended), ErrorReason::SubscriptionReaderReplaced);
    let (of_again, events_again) = loop {
        let (of_again, events) = again.events().await;
        if of_again.partition == of.partition {
            break (of_again, events);
        }
    };
    assert_eq!(
        events_again[0].position, events[0].position,
        "it begins after what is acknowledged"
    );
    assert!(of_again.epoch > of.epoch);
    again.ack(&of_again, &events_again[0]).await;
    // One that closes its stream leaves it to those who wait, at once.
    drop(again);
    other.holds(2).await;
    let (of_other, events_other) = loop {
        let (of_other, events) = other.events().await;
        if of_other.partition == of.partition {
            break (of_other, events);
        }
    };
    assert_eq!(events_other[0].position, events[1].position);
    other.ack(&of_other, &events_other[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_keeps_failing_is_parked_with_what_follows_of_its_task_and_replayed_in_order()
{
    let world = World::start().await;
    create(&world, Subscription { max_attempts: 2, ..named("s", &["*"]) }).await;
    let tasks = world.run_ones(4).await;
    let bad = &tasks[1];
    let mut reader = Reader::open(&world, 0, "s", "r").await;
    let wanted = world.positions().await;
    let fails = |event: &Event| event.task_id == *bad && event.name == "step.execution_requested";
    let (mut seen, mut attempts) = (BTreeSet::new(), Vec::new());
    let mut epoch = 0;
    // The partition stops at the event until it is parked; then the others go on.
    while seen.len() < wanted.len() - 3 {
        let (of, events) = reader.events().await;
        if of.epoch < epoch {
            continue;
        }
        for (event, attempt) in events.iter().zip(&of.attempts) {
            if fails(event) {
                attempts.push(*attempt);
                let nacked = reader.nack(&of, event, *attempt).await;
                assert_eq!((nacked.failed_attempts, nacked.parked), (*attempt, *attempt == 2));
                let late = reader.try_ack(&of, event).await.unwrap_err();
                assert_eq!(reason(&late), ErrorReason::SubscriptionEpochOld);
                epoch = nacked.epoch;
                break;
            }
            reader.ack(&of, event).await;
            seen.insert(event.position);
        }
    }
    assert_eq!(attempts, [1, 2]);
    let request = ListParkedEventsRequest { name: "s".into(), ..Default::default() };
    let parked = reader.calls.list_parked_events(request.clone()).await.unwrap().into_inner();
    let positions = |events: &[Event]| events.iter().map(|e| e.position).collect::<Vec<_>>();
    let kept: Vec<Event> = parked.events.iter().map(|of| of.event.clone().unwrap()).collect();
    assert_eq!(kept.len(), 3, "{parked:?}");
    assert!(fails(&kept[0]) && kept.iter().all(|event| event.task_id == *bad));
    assert_eq!((parked.events[0].failed_attempts, parked.events[1].failed_attempts), (2, 0));
    assert_eq!(parked.events[0].reason, "it broke");
    assert!(kept.iter().all(|event| !seen.contains(&event.position)), "none came meanwhile");

    let replay = ReplayParkedEventsRequest {
        name: "s".into(),
        positions: vec![kept[2].position],
        drop: false,
    };
    let replayed = reader.calls.replay_parked_events(replay).await.unwrap().into_inner();
    assert_eq!(replayed.events, 3, "all of the task");
    let mut again = Vec::new();
    while again.len() < 3 {
        let (of, events) = reader.events().await;
        assert!(of.retried && events.len() == 1, "one of a task at a time: {of:?}");
        if again.is_empty() && of.attempts == [1] {
            // It fails once more, and the others wait for it.
            assert!(!reader.nack(&of, &events[0], 1).await.parked);
            continue;
        }
        reader.ack(&of, &events[0]).await;
        again.extend(events);
    }
    assert_eq!(positions(&again), positions(&kept));
    let parked = reader.calls.list_parked_events(request).await.unwrap().into_inner();
    assert_eq!(parked.events, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_order_does_not_matter_an_event_that_fails_comes_again_alone() {
    let world = World::start().await;
    let unordered =
        Subscription { unordered: true, max_attempts: 3, ..named("s", &["task.completed"]) };
    create(&world, unordered).await;
    world.run_ones(5).await;
    let mut reader = Reader::open(&world, 0, "s", "r").await;
    let mut events = Vec::new();
    let mut first = None;
    while events.len() < 5 {
        let (of, more) = reader.events().await;
        if first.is_none() {
            assert_eq!(reader.nack(&of, &more[0], 1).await.epoch, of.epoch);
            // Said twice, it counts once.
            assert_eq!(reader.nack(&of, &more[0], 1).await.failed_attempts, 1);
            first = Some(more[0].clone());
        }
        if !of.retried {
            reader.ack(&of, more.last().unwrap()).await;
            events.extend(more);
        } else {
            assert_eq!(more, [first.clone().unwrap()]);
        }
    }
    let first = first.unwrap();
    let mut reader = {
        drop(reader);
        Reader::open(&world, 0, "s", "r2").await
    };
    for attempt in [2, 3] {
        let (of, again) = reader.events().await;
        assert_eq!((of.retried, of.attempts.as_slice()), (true, &[attempt][..]));
        assert_eq!(again[0].position, first.position);
        assert_eq!(reader.nack(&of, &again[0], attempt).await.parked, attempt == 3);
    }
    let partition = look(&world, "s").await.partitions[0].clone();
    assert_eq!((partition.parked_events, partition.retried_events), (1, 0));
    let drop = ReplayParkedEventsRequest { name: "s".into(), drop: true, positions: Vec::new() };
    let dropped = reader.calls.replay_parked_events(drop).await.unwrap().into_inner();
    assert_eq!(dropped.events, 1);
    assert_eq!(look(&world, "s").await.partitions[0].parked_events, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acknowledged_in_time_comes_again_and_the_late_one_is_refused() {
    let world = World::start().await;
    let deadline = prost_types::Duration { seconds: 1, nanos: 0 };
    let hasty = Subscription { ack_deadline: Some(deadline), ..named("s", &["task.completed"]) };
    create(&world, hasty).await;
    world.run_ones(2).await;
    let mut reader = Reader::open(&world, 0, "s", "r").await;
    let (of, events) = reader.events().await;
    let (of_second, second) = reader.events().await;
    let (of_second, second) =
        if of_second.epoch == of.epoch { reader.events().await } else { (of_second, second) };
    assert_eq!((second[0].position, of_second.attempts[0]), (events[0].position, 2));
    let late = reader.try_ack(&of, &events[0]).await.unwrap_err();
    assert_eq!(reason(&late), ErrorReason::SubscriptionEpochOld);
    reader.ack(&of_second, second.last().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_subscription_is_read_by_nobody_and_may_be_moved_and_changed() {
    let world = World::start().await;
    create(&world, named("s", &["task.completed"])).await;
    let tasks = world.run_ones(3).await;
    let mut reader = Reader::open(&world, 0, "s", "r").await;
    let (of, events) = reader.events().await;
    reader.ack(&of, events.last().unwrap()).await;
    let update = UpdateSubscriptionRequest { name: "s".into(), ..Default::default() };
    let earliest = Some(Seek::Earliest(Earliest {}));
    let mut calls = calls(&world, 0).await;
    for wrong in [
        UpdateSubscriptionRequest { seek: earliest.clone(), ..update.clone() },
        UpdateSubscriptionRequest { partitions: 2, ..update.clone() },
        UpdateSubscriptionRequest { filter: Some(EventFilter::default()), ..update.clone() },
    ] {
        let refused = calls.update_subscription(wrong).await.unwrap_err();
        assert_eq!(reason(&refused), ErrorReason::SubscriptionNotPaused);
    }
    let pause = UpdateSubscriptionRequest { paused: Some(true), ..update.clone() };
    assert!(
        calls.update_subscription(pause).await.unwrap().into_inner().subscription.unwrap().paused
    );
    reader.holds(0).await;
    // The stream lives on, and gets all of it again in other partitions when it may.
    let filter = EventFilter { task_ids: vec![tasks[1].clone()], ..EventFilter::default() };
    let resume = UpdateSubscriptionRequest {
        paused: Some(false),
        partitions: 3,
        filter: Some(filter),
        seek: earliest,
        ..update
    };
    calls.update_subscription(resume).await.unwrap();
    reader.holds(3).await;
    let mut seen = 0;
    while seen < 5 {
        let (of, events) = reader.events().await;
        assert!(events.iter().all(|event| event.task_id == tasks[1]));
        reader.ack(&of, events.last().unwrap()).await;
        seen += events.len();
    }
    let delete = DeleteSubscriptionRequest { name: "s".into() };
    calls.delete_subscription(delete.clone()).await.unwrap();
    let ended = loop {
        if let Err(status) = reader.message().await {
            break status;
        }
    };
    assert_eq!(reason(&ended), ErrorReason::SubscriptionNotFound);
    let gone = calls.delete_subscription(delete).await.unwrap_err();
    assert_eq!(reason(&gone), ErrorReason::SubscriptionNotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_subscription_is_refused_with_its_reason_and_changes_nothing() {
    let world = World::start().await;
    let mut calls = calls(&world, 0).await;
    let request = |subscription| CreateSubscriptionRequest {
        subscription: Some(subscription),
        ..CreateSubscriptionRequest::default()
    };
    let good = named("s", &["task.*"]);
    let wrong = [
        (named("", &[]), ErrorReason::InvalidRequest),
        (Subscription { partitions: 65, ..good.clone() }, ErrorReason::InvalidRequest),
        (Subscription { max_attempts: -1, ..good.clone() }, ErrorReason::InvalidRequest),
        (
            Subscription { ack_deadline: Some(prost_types::Duration::default()), ..good.clone() },
            ErrorReason::InvalidRequest,
        ),
        (named("s", &["task.complete"]), ErrorReason::EventUnknown),
    ];
    for (subscription, why) in wrong {
        let refused = calls.create_subscription(request(subscription)).await.unwrap_err();
        assert_eq!(reason(&refused), why);
    }
    let listed = calls.list_subscriptions(ListSubscriptionsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().subscriptions, []);
    let made = calls.create_subscription(request(good.clone())).await.unwrap().into_inner();
    assert!(!made.already_existed);
    let again = calls.create_subscription(request(good.clone())).await.unwrap().into_inner();
    assert!(again.already_existed && again.subscription == made.subscription);
    let other = Subscription { partitions: 2, ..good };
    let refused = calls.create_subscription(request(other)).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::SubscriptionExists);
    let ack = AckEventsRequest { name: "s".into(), ..AckEventsRequest::default() };
    for (ack, why) in [
        (AckEventsRequest { name: "t".into(), ..ack.clone() }, ErrorReason::SubscriptionNotFound),
        (AckEventsRequest { partition: 1, ..ack.clone() }, ErrorReason::InvalidRequest),
        (AckEventsRequest { epoch: 7, ..ack.clone() }, ErrorReason::SubscriptionEpochOld),
        (AckEventsRequest { up_to_position: 1 << 40, ..ack }, ErrorReason::InvalidRequest),
    ] {
        assert_eq!(reason(&calls.ack_events(ack).await.unwrap_err()), why);
    }
    // What cannot be a name is none.
    let none = "s\0".to_owned();
    let update = UpdateSubscriptionRequest { name: none.clone(), ..Default::default() };
    let delete = DeleteSubscriptionRequest { name: none.clone() };
    let replay = ReplayParkedEventsRequest { name: none.clone(), ..Default::default() };
    for refused in [
        calls.get_subscription(GetSubscriptionRequest { name: none.clone() }).await.err(),
        calls.update_subscription(update).await.err(),
        calls.delete_subscription(delete).await.err(),
        calls.replay_parked_events(replay).await.err(),
        calls.ack_events(AckEventsRequest { name: none.clone(), ..Default::default() }).await.err(),
        calls
            .nack_events(NackEventsRequest { name: none, position: 1, ..Default::default() })
            .await
            .err(),
    ]
    .map(Option::unwrap)
    {
        assert_eq!(reason(&refused), ErrorReason::SubscriptionNotFound);
    }
    // A change that is refused is not made.
    let change = UpdateSubscriptionRequest {
        name: "s".into(),
        partitions: 1,
        max_attempts: 3,
        ..Default::default()
    };
    let refused = calls.update_subscription(change).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::SubscriptionNotPaused);
    assert_eq!(look(&world, "s").await.subscription, made.subscription);
    let nack = NackEventsRequest { name: "s".into(), position: 9, ..NackEventsRequest::default() };
    let refused = calls.nack_events(nack).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::InvalidRequest);
    let mut service =
        EventServiceClient::connect(world.suite.addresses().event[0].clone()).await.unwrap();
    for (name, reader_id, filter, why) in [
        ("t", "r", None, ErrorReason::SubscriptionNotFound),
        ("s", "", None, ErrorReason::InvalidRequest),
        ("s", "r", named("", &["*"]).filter, ErrorReason::InvalidRequest),
    ] {
        let start = SubscriptionStart {
            name: name.into(),
            reader_id: reader_id.into(),
            ..SubscriptionStart::default()
        };
        let start = Some(subscribe_request::Start::Subscription(start));
        let refused =
            service.subscribe(SubscribeRequest { start, filter, ..SubscribeRequest::default() });
        let refused = refused.await.unwrap_err();
        assert_eq!(reason(&refused), why);
    }
    let partition = &look(&world, "s").await.partitions[0];
    assert_eq!((partition.reader_id.as_str(), partition.events_behind), ("", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_what_is_no_longer_kept_is_told_and_only_a_seek_passes_over_it() {
    let database = stepwell_suite::test_database().await.unwrap();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    cut_log(&mut connection, 10, 20).await;
    let store = Store::connect(&Options::new(&database.url), "test").await.unwrap();
    let world = World::over(database, |options| {
        options.env = vec![("STEPWELL_RING_MIB".into(), "1".into())];
    })
    .await;
    create(&world, named("s", &["task.*"])).await;
    world.run_ones(10).await;
    sqlx::query("update stepwell.event set at = at - interval '2 hours'")
        .execute(&mut connection)
        .await
        .unwrap();
    let keep = Keep { age: Some(Duration::from_secs(3600)), bytes: None };
    while store.earliest().await.unwrap() < store.head().await.unwrap() - 10 {
        store.drop_old_events(keep).await.unwrap();
    }
    let mut reader = Reader::open(&world, 0, "s", "r").await;
    let refused = loop {
        match reader.message().await {
            Ok(message) => assert!(matches!(message.kind, Some(Kind::Checkpoint(_)))),
            Err(status) => break Refusal::from_status(&status).unwrap(),
        }
    };
    assert_eq!(
        (refused.reason, refused.metadata["name"].as_str()),
        (ErrorReason::CursorExpired, "s")
    );
    let earliest = refused.metadata["earliest"].clone();
    let update = UpdateSubscriptionRequest { name: "s".into(), ..Default::default() };
    let mut calls = calls(&world, 0).await;
    for change in [
        UpdateSubscriptionRequest { paused: Some(true), ..update.clone() },
        UpdateSubscriptionRequest {
            paused: Some(false),
            seek: Some(Seek::AfterCursor(earliest)),
            ..update
        },
    ] {
        calls.update_subscription(change).await.unwrap();
    }
    let mut reader = Reader::open(&world, 0, "s", "r").await;
    world.run_ones(1).await;
    let (_, events) = reader.events().await;
    let kept = store.earliest().await.unwrap();
    assert!(events.iter().all(|event| event.position > kept), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_behind_reads_the_table_once_for_all_its_partitions() {
    let world = World::start().await;
    world.define(ONE).await;
    create(&world, Subscription { partitions: 32, ..named("s", &["*"]) }).await;
    for _ in 0..25 {
        let request = v1::CreateTaskRequest {
            definition_name: "one".into(),
            context: "{}".into(),
            ..v1::CreateTaskRequest::default()
        };
        let request = v1::BatchCreateTasksRequest { requests: vec![request; 100] };
        world.client.batch_create_tasks(request).await.unwrap();
    }
    let wanted = world.positions().await;
    assert_eq!(wanted.len(), 2_500);
    let event = &world.suite.addresses().event[0];
    let statements =
        async || Scrape::of(event).await.sum("stepwell_database_statement_seconds_count", &[]);
    let before = statements().await;
    let mut reader = Reader::open(&world, 0, "s", "r").await;
    let mut seen = BTreeSet::new();
    while seen.len() < wanted.len() {
        let (_, events) = reader.events().await;
        seen.extend(events.iter().map(|event| event.position));
    }
    let sent = statements().await - before;
    // Five pages, each with what is said of its tasks; apart, each partition would read them all.
    assert!(sent < 120.0, "{sent} statements");
    assert_eq!(seen, wanted);
}
