//! A reader of a durable subscription: its stream, what it was given and has not handed out, and the loop that
//! tells the service what is done with. What is held is `held.rs`'s to know.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt, Stream, StreamExt,
    stream::{self, FuturesUnordered},
};
use stepwell_proto::v1::{
    AckEventsRequest, ErrorReason, Event, NackEventsRequest, SubscribeRequest, SubscribeResponse,
    SubscriptionStart, subscribe_request::Start, subscribe_response::Kind,
};
use tokio::{
    select,
    sync::Notify,
    time::{sleep, timeout},
};
use tonic::Code;

use super::{
    held::{Failed, Holding, Job, Waiting},
    link::{First, Link},
};
use crate::{
    backoff::Backoff,
    client::Client,
    error::{Error, Lost},
};

/// Before a stream is opened anew, what is done is told; no longer than this.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);
const REASON_BYTES_MAX: usize = 1024;
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How a durable subscription is read; see [`Client::durable`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read before `open`"]
pub struct DurableReader {
    client: Client,
    start: SubscriptionStart,
    metadata_only: bool,
    in_flight: usize,
}

impl DurableReader {
    pub(crate) fn new(client: &Client, name: String, reader_id: String) -> Self {
        let start = SubscriptionStart { name, reader_id, ..SubscriptionStart::default() };
        Self { client: client.clone(), start, metadata_only: false, in_flight: 256 }
    }

    /// Only these partitions. Default any.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = i32>) -> Self {
        self.start.partitions.extend(partitions);
        self
    }

    /// At most so many partitions at once, 1 to 64. Default as many as are free.
    pub fn partitions_max(mut self, partitions: i32) -> Self {
        self.start.partitions_max = partitions;
        self
    }

    /// Without contexts, results, configs and what failures say: see `SubscribeRequest.metadata_only`.
    pub fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }

    /// No more is read while so many events are here and not settled. Default 256; 0 counts as 1. What is here
    /// must be settled within the subscription's `ack_deadline`, so a slow reader wants few.
    pub fn in_flight(mut self, events: usize) -> Self {
        self.in_flight = events.max(1);
        self
    }

    /// Opens the stream. Errors: the service refuses, or does not answer within `Limits::call_timeout`.
    pub async fn open(self) -> Result<DurableStream, Error> {
        let wait = self.client.limits.call_timeout;
        let mut fault = None;
        match timeout(wait, self.open_in_time(&mut fault)).await {
            Ok(opened) => opened,
            Err(_) => Err(fault.map_or(Error::NoAnswer(wait), Error::from)),
        }
    }

    /// The same, waiting for the service as long as it takes. Leaves in `fault` why it was not there the last
    /// time.
    pub(super) async fn open_in_time(
        self,
        fault: &mut Option<Lost>,
    ) -> Result<DurableStream, Error> {
        let mut stream = DurableStream {
            link: Link::new(&self.client, First::IsBare),
            shared: Arc::new(Shared::default()),
            of: self,
            is_over: false,
        };
        loop {
            match stream.hear().await {
                Ok(first) => {
                    stream.take(first);
                    break;
                }
                Err(lost) if is_final(&lost) => return Err(lost.into()),
                Err(lost) => {
                    tracing::debug!(%lost, "no stream yet; trying again");
                    *fault = Some(lost);
                }
            }
        }
        let (client, name) = (stream.of.client.clone(), stream.of.start.name.clone());
        tokio::spawn(settle(client, name, Arc::clone(&stream.shared)));
        Ok(stream)
    }

    /// The subscription's.
    pub(super) fn name(&self) -> &str {
        &self.start.name
    }

    fn request(&self) -> SubscribeRequest {
        SubscribeRequest {
            start: Some(Start::Subscription(self.start.clone())),
            metadata_only: self.metadata_only,
            ..SubscribeRequest::default()
        }
    }
}

/// What the stream, its events and the loop that settles them share.
#[derive(Debug, Default)]
struct Shared {
    holding: Mutex<Holding>,
    /// Events that were handed out and not settled.
    in_hand: AtomicUsize,
    /// There is something to tell.
    to_tell: Notify,
    /// Something was told, or an event has come out of hand.
    changed: Notify,
    is_closed: AtomicBool,
}

impl Shared {
    fn holding(&self) -> MutexGuard<'_, Holding> {
        // Nothing panics half-way through a change.
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything that is done is told.
    async fn settled(&self) {
        while !self.holding().is_settled() {
            let changed = self.changed.notified();
            if self.holding().is_settled() {
                return;
            }
            changed.await;
        }
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.to_tell.notify_one();
    }
}

/// An event of a durable subscription: to be settled by [`Self::ack`] or [`Self::nack`].
///
/// Dropped without a word it is neither: it comes again once the subscription's `ack_deadline` is over, or
/// another stream reads its partition.
#[derive(Debug)]
#[must_use = "an event that is not acknowledged comes again"]
pub struct DurableEvent {
    waiting: Waiting,
    shared: Arc<Shared>,
}

impl DurableEvent {
    /// The event.
    pub fn event(&self) -> &Event {
        &self.waiting.event
    }

    /// The same, to be kept.
    pub(super) fn shared(&self) -> Arc<Event> {
        Arc::clone(&self.waiting.event)
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> i32 {
        self.waiting.of.attempt
    }

    /// The partition of its task.
    pub fn partition(&self) -> i32 {
        self.waiting.of.partition
    }

    /// It is done with. Told in the background, many at once; in a partition whatever came before must be
    /// settled first. Nothing happens if the event comes again anyhow.
    pub fn ack(self) {
        self.shared.holding().finish(&self.waiting.of);
        self.shared.to_tell.notify_one();
    }

    /// It failed, for this reason (at most 1 KiB, the rest is cut). It comes again after `retry_after` (24 h at
    /// most), by default after 1 s, and twice as long after each further failure, 5 min at most; after too many
    /// it is parked. Unless order does not matter to the subscription, its partition waits for it, and what
    /// was handed out after it comes again.
    pub fn nack(self, reason: impl Into<String>, retry_after: impl Into<Option<Duration>>) {
        let mut reason = reason.into().replace('\0', "\u{fffd}");
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX.min(reason.len())));
        let retry_after = retry_after.into().map(|wait| wait.min(RETRY_AFTER_MAX));
        self.shared.holding().fail(Failed { of: self.waiting.of, reason, retry_after });
        self.shared.to_tell.notify_one();
    }
}

impl Drop for DurableEvent {
    fn drop(&mut self) {
        self.shared.in_hand.fetch_sub(1, Ordering::Relaxed);
        self.shared.changed.notify_waiters();
    }
}

/// The events of a durable subscription that one reader gets; see [`Client::durable`].
///
/// Each comes at least once until it is acknowledged, those of a task in order; partitions take turns. Whatever
/// ends the stream, another is opened, and what was not acknowledged comes again. Whoever settles each event
/// before the next sees repeats only if a reader or a service died, or somebody else had the partition in
/// between. It ends only after an error that trying again cannot help: the subscription is gone, or another
/// reader came under the same id.
pub struct DurableStream {
    of: DurableReader,
    link: Link,
    shared: Arc<Shared>,
    is_over: bool,
}

impl DurableStream {
    /// The next event. None: an error was delivered before. Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Option<Result<DurableEvent, Error>> {
        loop {
            if self.is_over {
                return None;
            }
            // All that has come is looked at first: it may say that what waits here is another's now.
            while self.has_room()
                && let Some(heard) = self.hear().now_or_never()
            {
                if let Some(error) = self.heard(heard).await {
                    return Some(Err(error));
                }
            }
            let shared = Arc::clone(&self.shared);
            let changed = shared.changed.notified();
            if self.shared.in_hand.load(Ordering::Relaxed) < self.of.in_flight
                && let Some(waiting) = self.shared.holding().next()
            {
                self.shared.in_hand.fetch_add(1, Ordering::Relaxed);
                return Some(Ok(DurableEvent { waiting, shared: Arc::clone(&shared) }));
            }
            let has_room = self.has_room();
            let heard = select! {
                heard = self.hear(), if has_room => heard,
                () = changed => continue,
            };
            if let Some(error) = self.heard(heard).await {
                return Some(Err(error));
            }
        }
    }

    /// The same as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<DurableEvent, Error>> + Send {
        stream::unfold(self, |mut stream| async move {
            let event = stream.next().await?;
            Some((event, stream))
        })
    }

    /// The partitions that it reads, as far as was heard.
    pub fn partitions(&self) -> Vec<i32> {
        self.shared.holding().held().to_vec()
    }

    /// Waits until what was settled is told, as long as `Limits::call_timeout`, and leaves the partitions to
    /// others. A stream that is just dropped does the same without waiting.
    pub async fn close(self) {
        // What is not told comes again.
        let _ = timeout(self.of.client.limits.call_timeout, self.shared.settled()).await;
    }

    fn has_room(&self) -> bool {
        let in_hand = self.shared.in_hand.load(Ordering::Relaxed);
        self.shared.holding().waiting() + in_hand < self.of.in_flight
    }

    async fn hear(&mut self) -> Result<SubscribeResponse, Lost> {
        let of = &self.of;
        self.link.hear(|| of.request()).await
    }

    /// Takes what was heard; the error that ends it all.
    async fn heard(&mut self, heard: Result<SubscribeResponse, Lost>) -> Option<Error> {
        let lost = match heard {
            Ok(message) => {
                self.take(message);
                return None;
            }
            Err(lost) => lost,
        };
        self.shared.holding().cut();
        if is_final(&lost) {
            self.is_over = true;
            return Some(lost.into());
        }
        match &lost {
            // A stream that is old is ended, for the next one to begin elsewhere.
            Lost::Ended => tracing::debug!(%lost, "resuming"),
            _ => tracing::warn!(%lost, "stream cut; resuming"),
        }
        // The next stream takes the partitions under new epochs: what is done is told before.
        let _ = timeout(SETTLED_WITHIN, self.shared.settled()).await;
        None
    }

    fn take(&self, message: SubscribeResponse) {
        match (message.kind, message.delivery) {
            (Some(Kind::Events(batch)), Some(delivery)) => {
                self.shared.holding().take(&delivery, batch.events);
            }
            (Some(Kind::Checkpoint(_)), _) => self.shared.holding().hold(&message.held),
            _ => {}
        }
    }
}

impl Drop for DurableStream {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Trying again cannot help.
fn is_final(lost: &Lost) -> bool {
    let Lost::Failed(status) = lost else { return false };
    // A subscription that is gone does not come back by itself.
    lost.is_final() || status.code() == Code::NotFound
}

/// Tells what is done with and what failed, until the stream is closed and all is told. No partition waits for
/// another one's call.
async fn settle(client: Client, name: String, shared: Arc<Shared>) {
    let mut telling = FuturesUnordered::new();
    let mut backoffs: HashMap<i32, Backoff> = HashMap::new();
    loop {
        for job in shared.holding().jobs() {
            let backoff = backoffs.remove(&job.partition).unwrap_or_else(Backoff::of_streams);
            telling.push(tell(&client, &name, &shared, job, backoff));
        }
        if telling.is_empty() && shared.is_closed.load(Ordering::Relaxed) {
            return;
        }
        // While calls are in flight the next jobs grow.
        select! {
            Some((partition, again)) = telling.next() => {
                backoffs.extend(again.map(|backoff| (partition, backoff)));
            }
            () = shared.to_tell.notified() => {}
        }
    }
}

/// Does one job, and answers its partition. If it is to be tried again, it has waited for that.
async fn tell(
    client: &Client,
    name: &str,
    shared: &Shared,
    job: Job,
    mut backoff: Backoff,
) -> (i32, Option<Backoff>) {
    let partition = job.partition;
    let mut again = None;
    match call(client, name, &job).await {
        Ok(epoch) => shared.holding().told(&job, epoch),
        Err(error) if error.reason() == Some(ErrorReason::SubscriptionEpochOld) => {
            shared.holding().refused(&job);
        }
        Err(error) if may_pass(&error) && !shared.is_closed.load(Ordering::Relaxed) => {
            tracing::debug!(%error, "not told yet; trying again");
            sleep(backoff.next()).await;
            shared.holding().put_back(job);
            again = Some(backoff);
        }
        Err(error) => {
            tracing::warn!(%error, partition, "events cannot be settled; they come again");
            shared.holding().refused(&job);
        }
    }
    shared.changed.notify_waiters();
    (partition, again)
}

/// Makes the job's calls; the epoch of the partition after them.
async fn call(client: &Client, name: &str, job: &Job) -> Result<i64, Error> {
    if job.acks() {
        let request = AckEventsRequest {
            name: name.to_owned(),
            partition: job.partition,
            epoch: job.epoch,
            up_to_position: job.up_to,
            retried_positions: job.retried.clone(),
        };
        client.ack_events(request).await?;
    }
    let Some(failed) = &job.failed else { return Ok(job.epoch) };
    let retry_after = failed.retry_after.and_then(|wait| wait.try_into().ok());
    let request = NackEventsRequest {
        name: name.to_owned(),
        partition: job.partition,
        epoch: job.epoch,
        position: failed.of.position,
        attempt: failed.of.attempt,
        reason: failed.reason.clone(),
        retry_after,
    };
    Ok(client.nack_events(request).await?.epoch)
}

/// Trying again may help.
pub(super) fn may_pass(error: &Error) -> bool {
    let code = match error {
        Error::Refused(refusal) => refusal.reason.code(),
        Error::Status(status) => status.code(),
        Error::NoAnswer(_) => return true,
        _ => return false,
    };
    !matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}
