//! One stream of a durable subscription: it takes partitions that nobody reads, delivers their events, and
//! those that failed again, and notices what is not acknowledged in time.

use std::{collections::HashSet, sync::Arc, time::Duration};

use stepwell_proto::{
    EncodedEvent,
    refusal::Refusal,
    v1::{
        Checkpoint, EndReason, EventBatch, HeldPartition, PartitionDelivery, SubscribeResponse,
        subscribe_response::Kind,
    },
};
use stepwell_serve::{Age, Shutdown};
use stepwell_store::{Error, Nack, Nacked, Store, StoredSubscription, Taker};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tonic::Status;
use uuid::Uuid;

use super::{
    keeper::{Keeper, Stream},
    partition::{ALONE_MAX, Partition, partition_of},
    request::{filter_of, not_found},
};
use crate::{
    deliver::{
        CATCH_UP_ROWS, CHECKPOINT_AFTER, FRAME_BYTES_MAX, FRAME_EVENTS_MAX, LAST_WORD, Wanted, end,
        wanted,
    },
    filter::Filter,
    metrics::{Metrics, Seats},
    place,
    ring::{Forms, Found, Page, Ring, Visit},
    said::SaidOf,
    tail,
};

/// Between two attempts to take what has got free.
const BETWEEN_TAKES: Duration = Duration::from_millis(200);
/// How long a partition rests when there is no room to keep what follows parked events.
const REST_WHEN_FULL: Duration = Duration::from_secs(1);
const WAIT_FIRST: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The stream.
pub(crate) struct Reading {
    pub(crate) store: Store,
    pub(crate) ring: Arc<Ring>,
    pub(crate) said: Arc<SaidOf>,
    pub(crate) shutdown: Shutdown,
    /// Rung once it looks at the ring: a sleeping tail wakes.
    pub(crate) begun: Arc<Notify>,
    pub(crate) keeper: Arc<Keeper>,
    /// When it is old.
    pub(crate) age: Age,
    pub(crate) out: mpsc::Sender<Result<SubscribeResponse, Status>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) subscription: StoredSubscription,
    pub(crate) reader: String,
    /// Only these; empty: any.
    pub(crate) wanted: Vec<i32>,
    /// So many at once.
    pub(crate) most: usize,
    pub(crate) metadata_only: bool,
    /// Its reader is a courier of this process, which rings when something is free; it says itself what
    /// failed and when it ends. None: it is a peer.
    pub(crate) courier: Option<Arc<Notify>>,
}

/// An event of a partition, on its way out.
struct Sent {
    position: i64,
    task: Uuid,
    encoded: EncodedEvent,
}

/// Why a stream ends.
enum End {
    /// The reader has gone.
    Gone,
    /// The reader is told why.
    Refused(Refusal),
    /// The database does not answer; tried again.
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Reading {
    /// Delivers until the reader goes, the stream is old or shutdown begins; then others may read.
    pub(crate) async fn run(self) {
        let (shutdown, out) = (self.shutdown.clone(), self.out.clone());
        let (store, subscription) = (self.store.clone(), self.subscription.id);
        let (name, reader) = (self.subscription.name.clone(), self.reader.clone());
        let (stream, seated) = self.keeper.join(subscription, name, reader);
        let holder = stream.holder;
        let old = tokio::time::sleep(self.age.of_a_stream());
        let is_peer = self.courier.is_none();
        let last_word = tokio::select! {
            refusal = self.deliver(stream) => refusal.map(|refusal| Err(refusal.into())),
            // It goes on where its events were acknowledged, maybe elsewhere.
            () = old, if is_peer => Some(Ok(end(EndReason::Rotate))),
            () = shutdown.wait(), if is_peer => Some(Ok(end(EndReason::Drain))),
        };
        drop(seated);
        if let Err(error) = store.release_partitions(subscription, holder).await {
            // They are free when their lease is over.
            tracing::debug!(error = &error as &dyn std::error::Error, "partitions not released");
        }
        if let Some(last_word) = last_word {
            // A reader whose queue is full is waited for a little; it comes again in any case.
            let _ = tokio::time::timeout(LAST_WORD, out.send(last_word)).await;
        }
    }

    /// Delivers until the reader goes, or there is a reason to tell it.
    async fn deliver(self, stream: Arc<Stream>) -> Option<Refusal> {
        let filter = match filter_of(&self.subscription) {
            Ok(filter) => filter,
            Err(refusal) => return Some(refusal),
        };
        // A courier of this process is no subscriber.
        let seat = self.courier.is_none().then(|| self.seats.take(0));
        let taker = Taker {
            subscription: self.subscription.id,
            reader: self.reader.clone(),
            holder: stream.holder,
            wanted: self.wanted.clone(),
        };
        let mut stage = Stage {
            now_held: None,
            said: Instant::now(),
            take_at: Some(Instant::now()),
            taken_once: false,
            visit: None,
            table: None,
            wait: WAIT_FIRST,
            failing: false,
            filter,
            taker,
            stream,
            of: self,
        };
        loop {
            match stage.turn().await {
                Ok(()) => {
                    if std::mem::take(&mut stage.failing) {
                        tracing::info!("works again");
                    }
                    stage.wait = WAIT_FIRST;
                    let lowest = stage.stream.partitions().iter().map(|of| of.read).min();
                    if let Some(seat) = &seat {
                        seat.at(lowest.unwrap_or_default());
                    }
                }
                Err(End::Gone) => return None,
                Err(End::Refused(refusal)) => return Some(refusal),
                Err(End::Failed(error)) => {
                    if !std::mem::replace(&mut stage.failing, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "a partition cannot be read; trying again");
                    }
                    tokio::time::sleep(stage.wait).await;
                    stage.wait = (stage.wait * 2).min(WAIT_MAX);
                }
            }
        }
    }
}

/// A stream at work.
struct Stage {
    of: Reading,
    stream: Arc<Stream>,
    filter: Filter,
    taker: Taker,
    /// When it asks for partitions again; none: when somebody rings.
    take_at: Option<Instant>,
    taken_once: bool,
    /// What the reader was told it reads.
    now_held: Option<Vec<HeldPartition>>,
    said: Instant,
    /// While it reads something, the ring is followed.
    visit: Option<Visit>,
    /// What was read of the table last.
    table: Option<Arc<Page>>,
    wait: Duration,
    failing: bool,
}

impl Stage {
    /// Takes what is free, delivers what there is, and waits for more.
    async fn turn(&mut self) -> Result<(), End> {
        if let Some(refusal) = self.stream.ended() {
            return Err(End::Refused(refusal));
        }
        self.take().await?;
        self.tell_held().await?;
        if let Some(visit) = &mut self.visit {
            visit.begin();
        }
        let numbers: Vec<i32> = self.stream.partitions().iter().map(|of| of.no).collect();
        let mut wake = self.said + CHECKPOINT_AFTER;
        let mut any = false;
        for no in numbers {
            any |= self.notice_overdue(no).await?;
            any |= self.deliver_alone(no).await?;
            any |= self.deliver_next(no, &mut wake).await?;
        }
        if any {
            return Ok(());
        }
        let deadline = self.deadline();
        let now = Instant::now();
        for partition in self.stream.partitions().iter() {
            let overdue_at = deadline.and_then(|deadline| partition.overdue_at(deadline));
            let times = [overdue_at, partition.again_at];
            wake = times.into_iter().flatten().fold(wake, Instant::min);
            wake = if partition.rest_until > now { wake.min(partition.rest_until) } else { wake };
        }
        wake = self.take_at.map_or(wake, |at| wake.min(at));
        let has_room = self.stream.partitions().len() < self.of.most;
        let soon = |at: Option<Instant>| Some(at.unwrap_or(Instant::now() + BETWEEN_TAKES));
        tokio::select! {
            () = self.stream.looked.notified() => {
                if has_room && self.of.courier.is_none() {
                    self.take_at = soon(self.take_at);
                }
            }
            () = rung(self.of.courier.as_ref()) => {
                self.take_at = soon(self.take_at);
            }
            () = changed(&mut self.visit) => {}
            () = tokio::time::sleep_until(wake) => {}
            () = self.of.out.closed() => return Err(End::Gone),
        }
        if self.said.elapsed() >= CHECKPOINT_AFTER {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Takes partitions that are free, if it may have more.
    async fn take(&mut self) -> Result<(), End> {
        let held = self.stream.partitions().len();
        if self.take_at.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        if held >= self.of.most {
            self.take_at = None;
            return Ok(());
        }
        let room = i32::try_from(self.of.most - held).unwrap_or(i32::MAX);
        let taken = self.of.store.take_partitions(&self.taker, room, !self.taken_once).await?;
        let gone = || End::Refused(not_found(&self.of.subscription.name));
        let taken = taken.ok_or_else(gone)?;
        self.taken_once = true;
        self.take_at = None;
        if taken.is_empty() {
            return Ok(());
        }
        // It may have been changed while nobody read it.
        let found = self.of.store.subscription(&self.of.subscription.name).await?;
        let found = found.filter(|found| found.id == self.taker.subscription).ok_or_else(gone)?;
        if self.of.courier.is_some() && found.revision != self.of.subscription.revision {
            // What is delivered now goes another way: another courier has it.
            return Err(End::Gone);
        }
        self.of.subscription = found;
        self.filter = filter_of(&self.of.subscription).map_err(End::Refused)?;
        self.visit = None;
        let now = Instant::now();
        let mut partitions = self.stream.partitions();
        for standing in &taken {
            partitions.retain(|of| of.no != standing.no);
            partitions.push(Partition::new(standing, now));
        }
        partitions.sort_by_key(|of| of.no);
        Ok(())
    }

    /// Says what is read, if that is not what was said.
    async fn tell_held(&mut self) -> Result<(), End> {
        let held: Vec<HeldPartition> = {
            let partitions = self.stream.partitions();
            let held = |of: &Partition| HeldPartition { partition: of.no, epoch: of.epoch };
            partitions.iter().map(held).collect()
        };
        if held.is_empty() {
            self.visit = None;
        } else if self.visit.is_none() {
            let forms = Forms { derived: self.filter.wants_derived(), bare: self.of.metadata_only };
            // Each partition has a place of its own: none may be skipped for another.
            self.visit = Some(self.of.ring.visit(&[], forms));
            self.of.begun.notify_one();
        }
        if self.now_held.as_ref() != Some(&held) {
            self.now_held = Some(held);
            self.checkpoint().await?;
        }
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), End> {
        self.send(SubscribeResponse {
            kind: Some(Kind::Checkpoint(Checkpoint {})),
            held: self.now_held.clone().unwrap_or_default(),
            ..SubscribeResponse::default()
        })
        .await
    }

    async fn send(&mut self, response: SubscribeResponse) -> Result<(), End> {
        self.of.out.send(Ok(response)).await.map_err(|_| End::Gone)?;
        self.said = Instant::now();
        Ok(())
    }

    /// Something of one of its partitions; none: it does not read it any more.
    fn with<T>(&self, no: i32, ask: impl FnOnce(&mut Partition) -> T) -> Option<T> {
        self.stream.partitions().iter_mut().find(|of| of.no == no).map(ask)
    }

    /// How long its reader may do nothing; none: for ever.
    fn deadline(&self) -> Option<Duration> {
        self.of.courier.is_none().then_some(self.of.subscription.ack_deadline)
    }

    /// An event that was not acknowledged in time has failed.
    async fn notice_overdue(&self, no: i32) -> Result<bool, End> {
        let Some(deadline) = self.deadline() else { return Ok(false) };
        let now = Instant::now();
        let found = self.with(no, |of| (of.overdue(deadline, now), of.epoch));
        let Some((Some((position, attempt)), epoch)) = found else { return Ok(false) };
        let reason = format!("not acknowledged within {deadline:?}");
        let nack = Nack {
            name: &self.of.subscription.name,
            no,
            epoch,
            position,
            attempt,
            reason: &reason,
            wait: None,
        };
        let nacked = self.of.store.nack_event(&nack).await?;
        self.with(no, |of| {
            if of.epoch == epoch {
                // If order matters it comes again under the next epoch, with all that was not acknowledged.
                of.dealt_with(position, matches!(nacked, Nacked::Done { .. }), Instant::now());
            }
        });
        Ok(true)
    }

    /// Delivers what failed before and is due.
    async fn deliver_alone(&mut self, no: i32) -> Result<bool, End> {
        let is_due = |of: &mut Partition| of.again_at.is_some_and(|at| at <= Instant::now());
        if self.with(no, is_due) != Some(true) {
            return Ok(false);
        }
        let (id, ordered) = (self.of.subscription.id, self.of.subscription.ordered);
        let most = i64::try_from(ALONE_MAX * 2).unwrap_or(i64::MAX);
        let table = self.of.store.again(id, no, ordered, most).await?;
        let found = self.with(no, |of| (of.alone(&table, Instant::now()), of.epoch));
        let Some((new, epoch)) = found.filter(|(new, _)| !new.is_empty()) else {
            return Ok(false);
        };
        let mut positions: Vec<i64> = new.iter().map(|of| of.position).collect();
        positions.sort_unstable();
        let read = tail::read_some(&self.of.store, &self.of.said, &positions).await;
        if read.is_err() {
            self.with(no, |of| {
                if of.epoch == epoch {
                    of.not_sent(&positions, Instant::now());
                }
            });
        }
        let page = Page::new(0, 0, read?);
        let events: Vec<Sent> =
            wanted(&page, 0, &self.filter).flat_map(|of| self.sent(&of)).collect();
        let sent: HashSet<i64> = events.iter().map(|event| event.position).collect();
        let attempt = |position: i64| {
            new.iter().find(|of| of.position == position).map_or(1, |of| of.attempt + 1)
        };
        let attempts: Vec<i32> = events.iter().map(|event| attempt(event.position)).collect();
        self.deliver(no, epoch, events, &attempts, true).await?;
        // What is not kept or not wanted any more is done with.
        positions.retain(|position| !sent.contains(position));
        if !positions.is_empty() {
            let name = &self.of.subscription.name;
            self.of.store.ack_events(name, no, epoch, 0, &positions).await?;
        }
        Ok(true)
    }

    /// Delivers what comes next in the log. `wake`: when it is worth a look again.
    async fn deliver_next(&mut self, no: i32, wake: &mut Instant) -> Result<bool, End> {
        let now = Instant::now();
        let ready = self.with(no, |of| {
            (of.rest_until <= now && of.room() > 0).then(|| (of.read, of.epoch, of.room()))
        });
        let Some(Some((read, epoch, room))) = ready else { return Ok(false) };
        let page = match self.of.ring.after(read) {
            Found::Level => return Ok(false),
            Found::Page(page) => {
                self.table = None;
                page
            }
            Found::Behind => match self.catch_up(read).await? {
                Some(page) => page,
                None => {
                    *wake = (*wake).min(now + WAIT_FIRST);
                    return Ok(false);
                }
            },
        };
        let (events, end) = self.next(no, &page, read, room);
        let Some(events) = self.without_parked(no, epoch, events).await? else {
            self.with(no, |of| of.rest_until = now + REST_WHEN_FULL);
            return Ok(false);
        };
        let mut positions: Vec<i64> = events.iter().map(|event| event.position).collect();
        positions.dedup();
        let attempts = self.with(no, |of| {
            (of.epoch == epoch && of.read == read).then(|| {
                let attempts: Vec<i32> = events.iter().map(|e| of.attempt(e.position)).collect();
                of.delivers(positions.into_iter(), end, Instant::now());
                attempts
            })
        });
        // Else it stands elsewhere by now.
        if let Some(Some(attempts)) = attempts {
            self.deliver(no, epoch, events, &attempts, false).await?;
        }
        Ok(true)
    }

    /// What comes next in the table; none: nothing yet. Partitions that are about as far read it once.
    async fn catch_up(&mut self, read: i64) -> Result<Option<Arc<Page>>, End> {
        if let Some(page) = self.table.as_ref().filter(|of| of.after <= read && read < of.last) {
            return Ok(Some(Arc::clone(page)));
        }
        match tail::read_page(&self.of.store, &self.of.said, read, CATCH_UP_ROWS).await {
            // Nobody may pass over what is gone but who is responsible for the subscription.
            Err(Error::Expired { earliest }) => {
                let epoch = self.of.store.log_epoch().await?;
                let refusal = place::expired(epoch, earliest);
                Err(End::Refused(refusal.with("name", &self.of.subscription.name)))
            }
            page => {
                self.table = page?.map(Arc::new);
                Ok(self.table.clone())
            }
        }
    }

    /// What of an event goes out.
    fn sent(&self, wanted: &Wanted<'_>) -> Vec<Sent> {
        let (position, task) = (wanted.recorded.position, wanted.recorded.task);
        let sent = wanted.sent(self.of.metadata_only);
        sent.map(|encoded| Sent { position, task, encoded }).collect()
    }

    /// The events of a page after a place that the partition wants, and where that ends: as many positions
    /// as there is room for.
    fn next(&self, no: i32, page: &Page, read: i64, room: usize) -> (Vec<Sent>, i64) {
        let partitions = self.of.subscription.partitions;
        let mut wanted = wanted(page, read, &self.filter)
            .filter(|wanted| partition_of(wanted.recorded.task, partitions) == no);
        let events: Vec<Sent> =
            wanted.by_ref().take(room).flat_map(|wanted| self.sent(&wanted)).collect();
        let end = match wanted.next() {
            Some(_) => events.last().map_or(read, |last| last.position),
            None => page.last,
        };
        (events, end)
    }

    /// The events without those that follow parked ones of their tasks: these are kept with them. None:
    /// there is no room for that, or the epoch is over.
    async fn without_parked(
        &self,
        no: i32,
        epoch: i64,
        mut events: Vec<Sent>,
    ) -> Result<Option<Vec<Sent>>, End> {
        if !self.of.subscription.ordered || events.is_empty() {
            return Ok(Some(events));
        }
        let id = self.of.subscription.id;
        if self.with(no, |of| of.parked.is_none()) == Some(true) {
            let tasks = self.of.store.parked_tasks(id, no).await?;
            let tasks = tasks.into_iter().collect();
            self.with(no, |of| of.parked = Some(tasks).filter(|_| of.epoch == epoch));
        }
        let mut follow: Vec<(i64, Uuid)> = Vec::new();
        self.with(no, |of| {
            let parked = of.parked.as_ref().filter(|parked| !parked.is_empty());
            let events = events.iter().filter(|e| parked.is_some_and(|p| p.contains(&e.task)));
            follow.extend(events.map(|event| (event.position, event.task)));
        });
        follow.dedup();
        if follow.is_empty() {
            return Ok(Some(events));
        }
        let passed = self.of.store.follow_parked(id, no, epoch, &follow).await?;
        let Some(passed) = passed else { return Ok(None) };
        if !passed.is_empty() {
            // Maybe nothing of these tasks is parked any more.
            self.with(no, |of| of.parked = None);
        }
        let kept: HashSet<i64> = follow.iter().map(|(position, _)| *position).collect();
        events.retain(|e| !kept.contains(&e.position) || passed.contains(&e.position));
        Ok(Some(events))
    }

    /// Sends events in frames of bounded size.
    async fn deliver(
        &mut self,
        no: i32,
        epoch: i64,
        events: Vec<Sent>,
        attempts: &[i32],
        retried: bool,
    ) -> Result<(), End> {
        if self.of.courier.is_none() {
            self.of.metrics.delivered(events.len());
        }
        let mut events = events.into_iter().zip(attempts.iter().copied()).peekable();
        while events.peek().is_some() {
            let (mut frame, mut attempts, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut last = None;
            while let Some((event, _)) = events.peek() {
                let size = event.encoded.encoded_len();
                let is_full = frame.len() >= FRAME_EVENTS_MAX || bytes + size > FRAME_BYTES_MAX;
                // Events of one position stay together: they are acknowledged together.
                if is_full && last.is_some_and(|last| last != event.position) {
                    break;
                }
                let Some((event, attempt)) = events.next() else { break };
                bytes += size;
                last = Some(event.position);
                frame.push(event.encoded);
                attempts.push(attempt);
            }
            let batch = EventBatch { encoded: frame, ..EventBatch::default() };
            self.send(SubscribeResponse {
                kind: Some(Kind::Events(batch)),
                delivery: Some(PartitionDelivery { partition: no, epoch, attempts, retried }),
                ..SubscribeResponse::default()
            })
            .await?;
        }
        Ok(())
    }
}

/// Waits until a courier is told that something is free; for ever if it is none.
async fn rung(courier: Option<&Arc<Notify>>) {
    match courier {
        Some(bell) => bell.notified().await,
        None => std::future::pending().await,
    }
}

/// Waits for the ring to change; for ever if it is not followed.
async fn changed(visit: &mut Option<Visit>) {
    match visit {
        Some(visit) => visit.changed().await,
        None => std::future::pending().await,
    }
}
