//! Readers whose places the database keeps: killed, and doubled under each other's ids.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use stepwell_proto::v1::{
    AckEventsRequest, CreateSubscriptionRequest, Earliest, GetSubscriptionRequest,
    SubscribeRequest, Subscription, SubscriptionStart, create_subscription_request,
    event_service_client::EventServiceClient, subscribe_request::Start, subscribe_response::Kind,
    subscription_service_client::SubscriptionServiceClient,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::Row;

const NAME: &str = "done";
const PARTITIONS: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(5);

/// What happened, in the order of each stream.
#[derive(Clone, Debug)]
enum Seen {
    /// Came by a stream.
    Delivered { stream: u64, partition: i32, epoch: i64, position: i64, task: String },
    /// The service said that this is acknowledged.
    Acked { partition: i32, epoch: i64, up_to: i64 },
}

/// Of all readers.
#[derive(Default)]
pub(super) struct Record(Mutex<Vec<Seen>>);

impl Record {
    fn note(&self, seen: Seen) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }
}

/// A subscription of everything from the beginning, of which nothing is parked.
pub(super) async fn create(url: &str) {
    let subscription = Subscription {
        name: NAME.into(),
        partitions: PARTITIONS,
        max_attempts: 1_000,
        ..Subscription::default()
    };
    let start = Some(create_subscription_request::Start::Earliest(Earliest {}));
    let request = CreateSubscriptionRequest { subscription: Some(subscription), start };
    let mut calls = SubscriptionServiceClient::connect(url.to_owned()).await.unwrap();
    calls.create_subscription(request).await.unwrap();
}

/// Reads until everything is acknowledged.
pub(super) async fn read(
    urls: Vec<String>,
    n: u64,
    record: Arc<Record>,
    last: watch::Receiver<Option<i64>>,
) {
    let mut dice = StdRng::seed_from_u64(n);
    for life in 0.. {
        let url = &urls[dice.random_range(0..urls.len())];
        // Now and then under another's id.
        let id = if dice.random_range(0..4) == 0 { dice.random_range(0..3) } else { n };
        let messages = dice.random_range(1..10);
        let end = *last.borrow();
        // In the end nobody is killed any more.
        let messages = if end.is_some() { 1_000_000 } else { messages };
        if one(url, id, n << 32 | life, messages, &mut dice, &record, &last).await.is_some() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// One stream, that is left after so many messages. Some: everything is acknowledged.
async fn one(
    url: &str,
    id: u64,
    stream: u64,
    messages: usize,
    dice: &mut impl Rng,
    record: &Record,
    last: &watch::Receiver<Option<i64>>,
) -> Option<()> {
    let connecting = EventServiceClient::connect(url.to_owned());
    let mut service = timeout(PATIENCE, connecting).await.ok()?.ok()?;
    let connecting = SubscriptionServiceClient::connect(url.to_owned());
    let mut calls = timeout(PATIENCE, connecting).await.ok()?.ok()?;
    let start = SubscriptionStart {
        name: NAME.into(),
        reader_id: format!("r{id}"),
        // Two cannot read all.
        partitions_max: 2,
        ..SubscriptionStart::default()
    };
    let start = Some(Start::Subscription(start));
    let request = SubscribeRequest { start, ..SubscribeRequest::default() };
    let mut feed = timeout(PATIENCE, service.subscribe(request)).await.ok()?.ok()?.into_inner();
    for _ in 0..messages {
        let message = match timeout(Duration::from_secs(1), feed.message()).await {
            Ok(message) => message.ok()??,
            Err(_) => {
                let end = *last.borrow();
                if let Some(end) = end
                    && all_done(&mut calls, end).await
                {
                    return Some(());
                }
                continue;
            }
        };
        let (Some(Kind::Events(batch)), Some(of)) = (message.kind, message.delivery) else {
            continue;
        };
        let (partition, epoch) = (of.partition, of.epoch);
        for event in &batch.events {
            let (position, task) = (event.position, event.task_id.clone());
            record.note(Seen::Delivered { stream, partition, epoch, position, task });
        }
        let n = dice.random_range(0..=batch.events.len());
        // It may die before it has acknowledged anything, or all.
        let is_left = last.borrow().is_none() && dice.random_range(0..10) == 0;
        let Some(up_to) = batch.events[..n].last().map(|event| event.position) else { continue };
        for up_to in [up_to, batch.events.last()?.position] {
            let request = AckEventsRequest {
                name: NAME.into(),
                partition,
                epoch,
                up_to_position: up_to,
                ..AckEventsRequest::default()
            };
            // Without an answer nobody knows.
            timeout(PATIENCE, calls.ack_events(request)).await.ok()?.ok()?;
            record.note(Seen::Acked { partition, epoch, up_to });
            if is_left {
                return None;
            }
        }
    }
    None
}

async fn all_done(
    calls: &mut SubscriptionServiceClient<tonic::transport::Channel>,
    end: i64,
) -> bool {
    let request = GetSubscriptionRequest { name: NAME.into() };
    let Ok(answer) = calls.get_subscription(request).await else { return false };
    let partitions = answer.into_inner().partitions;
    assert!(partitions.iter().all(|of| of.parked_events == 0), "{partitions:?}");
    let at = |cursor: &str| stepwell_proto::id::Cursor::decode(cursor).unwrap().position;
    partitions.iter().all(|of| at(&of.cursor) >= end)
}

/// Holds what readers received and acknowledged to the promises of a durable subscription.
pub(super) fn judge(record: &Record, log: &[Row]) {
    let seen = record.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut of_task: HashMap<&str, i32> = HashMap::new();
    for seen in seen.iter() {
        if let Seen::Delivered { partition, task, .. } = seen {
            let of = of_task.entry(task).or_insert(*partition);
            assert_eq!(of, partition, "task {task} changed its partition");
        }
    }
    // What each partition must deliver, in order. Every task had a partition: nothing was left out.
    let mut must: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for row in log {
        let partition = of_task.get(row.task.as_str());
        let partition = partition.unwrap_or_else(|| panic!("{row:?} was never delivered"));
        must.entry(*partition).or_default().push(row.position);
    }
    assert_eq!(must.len(), usize::try_from(PARTITIONS).unwrap(), "tasks are spread");
    let mut owners: HashMap<(i32, i64), u64> = HashMap::new();
    let mut streams = HashSet::new();
    for (partition, must) in &must {
        let mut epochs: BTreeMap<i64, (Vec<i64>, i64)> = BTreeMap::new();
        for seen in seen.iter() {
            match seen {
                Seen::Delivered { stream, partition: of, epoch, position, .. }
                    if of == partition =>
                {
                    let owner = owners.entry((*of, *epoch)).or_insert(*stream);
                    assert_eq!(owner, stream, "two readers have partition {of} at epoch {epoch}");
                    epochs.entry(*epoch).or_default().0.push(*position);
                    streams.insert(*stream);
                }
                Seen::Acked { partition: of, epoch, up_to } if of == partition => {
                    let acked = &mut epochs.entry(*epoch).or_default().1;
                    *acked = (*acked).max(*up_to);
                }
                _ => {}
            }
        }
        let mut acked = 0;
        let mut delivered = 0;
        for (epoch, (positions, acked_now)) in &epochs {
            let first = positions[0];
            assert!(first > acked, "{first} came again at epoch {epoch}, after an ack of {acked}");
            let from = must.partition_point(|position| *position < first);
            // Each epoch goes on at the latest behind what was delivered before it.
            assert!(
                from <= delivered,
                "epoch {epoch} of {partition} left out what is before {first}"
            );
            let run = &must[from..(from + positions.len()).min(must.len())];
            assert_eq!(run, positions.as_slice(), "epoch {epoch} of partition {partition}");
            delivered = delivered.max(from + positions.len());
            acked = acked.max(*acked_now);
        }
        assert_eq!(delivered, must.len(), "partition {partition} is not at its end");
    }
    assert!(streams.len() > 3, "{} streams", streams.len());
    eprintln!("durable: {} streams, {} epochs", streams.len(), owners.len());
}
