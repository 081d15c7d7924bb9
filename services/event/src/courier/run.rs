//! One courier: it reads the partitions of a subscription that nobody else does, hands their events out, and
//! says what became of them.

use std::{sync::Arc, time::Duration};

use stepwell_proto::{
    refusal::Refusal,
    v1::{SubscribeResponse, subscribe_response::Kind},
};
use stepwell_store::{Acked, Error, Nacked, Store};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    queue::{Failure, Nack, Parcel, Queue},
    ways::Way,
};
use crate::metrics::Metrics;

const WAIT_FIRST: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How long nothing is nacked after there was no room to keep what failed.
const REST_WHEN_FULL: Duration = Duration::from_secs(5);

/// What a courier works with.
pub(super) struct Courier {
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
    pub(super) name: String,
    pub(super) way: Arc<Way>,
    pub(super) queue: Queue,
    /// What it reads.
    pub(super) stream: mpsc::Receiver<Result<SubscribeResponse, Status>>,
    /// Room for events on their way, of all couriers; one has each courier beside that.
    pub(super) room: Arc<Semaphore>,
    /// It is to stop.
    pub(super) stop: CancellationToken,
    /// Whether it reads something.
    pub(super) held: watch::Sender<bool>,
}

/// An event that is on its way.
struct Ended {
    parcel: Parcel,
    ended: Result<(), Failure>,
    /// None: it went in the courier's own room.
    permit: Option<OwnedSemaphorePermit>,
}

impl Courier {
    /// Delivers until it is to stop, and waits for what is on its way; or until its stream ends, with the
    /// reason.
    pub(super) async fn run(mut self) -> Option<Refusal> {
        let (mut going, mut own_room_taken) = (JoinSet::new(), false);
        let (mut wait, mut rest_until) = (WAIT_FIRST, Instant::now());
        let mut refusal = None;
        // Room that was waited for; and something is still to be acknowledged or nacked.
        let (mut spare, mut unsettled) = (None, false);
        loop {
            let mut wants_room = false;
            let is_over = self.stop.is_cancelled() || refusal.is_some();
            if is_over && going.is_empty() {
                // What it says last is for others to repeat if it is lost.
                let _ = self.settle().await;
                return refusal;
            }
            while !is_over && going.len() < self.way.going_max() {
                let permit = match own_room_taken {
                    true => {
                        let room = || Arc::clone(&self.room).try_acquire_owned().ok();
                        let permit = spare.take().or_else(room);
                        if permit.is_none() {
                            wants_room = true;
                            break;
                        }
                        permit
                    }
                    false => None,
                };
                let Some(parcel) = self.queue.next() else { break };
                own_room_taken |= permit.is_none();
                going.spawn(deliver(
                    Arc::clone(&self.way),
                    Arc::clone(&self.metrics),
                    parcel,
                    permit,
                ));
            }
            let has_room = !is_over && self.queue.has_room();
            tokio::select! {
                message = self.stream.recv(), if has_room => match message {
                    Some(Ok(message)) => self.comes(message),
                    Some(Err(status)) => refusal = Some(of_status(&status)),
                    None => return None,
                },
                Some(ended) = going.join_next() => {
                    own_room_taken &= !self.ended(ended);
                    while let Some(ended) = going.try_join_next() {
                        own_room_taken &= !self.ended(ended);
                    }
                }
                () = self.stop.cancelled(), if !is_over => {}
                permit = Arc::clone(&self.room).acquire_owned(), if wants_room => {
                    spare = permit.ok();
                }
                () = tokio::time::sleep_until(rest_until), if unsettled => {}
            }
            unsettled = rest_until > Instant::now();
            if unsettled {
                continue;
            }
            match self.settle().await {
                Ok(true) => {
                    wait = WAIT_FIRST;
                }
                Ok(false) => (rest_until, unsettled) = (Instant::now() + REST_WHEN_FULL, true),
                Err(error) => {
                    if wait == WAIT_FIRST {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "deliveries cannot be acknowledged; trying again");
                    }
                    (rest_until, unsettled) = (Instant::now() + wait, true);
                    wait = (wait * 2).min(WAIT_MAX);
                }
            }
        }
    }

    fn comes(&mut self, message: SubscribeResponse) {
        match message.kind {
            Some(Kind::Checkpoint(_)) => {
                let held: Vec<i32> = message.held.iter().map(|held| held.partition).collect();
                self.queue.holds(&held);
                self.held.send_replace(!held.is_empty());
            }
            Some(Kind::Events(batch)) => {
                let of = message.delivery.unwrap_or_default();
                let events = batch.encoded.iter().filter_map(|encoded| encoded.decode().ok());
                self.queue.comes(&of, events.collect());
            }
            _ => {}
        }
    }

    /// Takes note of what became of an event; whether it went in the courier's own room.
    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) -> bool {
        match ended {
            Ok(Ended { parcel, ended, permit }) => {
                self.queue.ended(&parcel, ended);
                permit.is_none()
            }
            // Nothing is known of it: this courier ends, and what was not acknowledged comes to another.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Acknowledges what is done and nacks what failed; false: there was no room for one that failed.
    async fn settle(&mut self) -> Result<bool, Error> {
        for ack in self.queue.acks() {
            let acked = self
                .store
                .ack_events(&self.name, ack.partition, ack.epoch, ack.up_to, &ack.positions)
                .await?;
            match acked {
                Acked::To(_) => self.queue.acked(&ack),
                _ => self.queue.lost(ack.partition, ack.epoch),
            }
        }
        while let Some(nack) = self.queue.nack() {
            if !self.nack(nack).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn nack(&mut self, nack: Nack) -> Result<bool, Error> {
        let said = stepwell_store::Nack {
            name: &self.name,
            no: nack.partition,
            epoch: nack.epoch,
            position: nack.position,
            attempt: nack.attempt,
            reason: &nack.failure.reason,
            wait: nack.failure.wait,
        };
        match self.store.nack_event(&said).await? {
            Nacked::Done { epoch, attempt, parked, rest } => {
                let (position, reason) = (nack.position, &nack.failure.reason);
                if parked {
                    self.metrics.parked(self.way.word());
                    tracing::warn!(
                        position,
                        attempt,
                        reason,
                        "an event was not taken and is parked"
                    );
                } else {
                    tracing::debug!(position, attempt, reason, ?rest, "an event was not taken");
                }
                self.queue.nacked(&nack, epoch);
            }
            Nacked::NoEvent => self.queue.gone(&nack),
            Nacked::Full => return Ok(false),
            Nacked::Unknown | Nacked::NoPartition | Nacked::Fenced(_) => {
                self.queue.lost(nack.partition, nack.epoch);
            }
        }
        Ok(true)
    }
}

async fn deliver(
    way: Arc<Way>,
    metrics: Arc<Metrics>,
    parcel: Parcel,
    permit: Option<OwnedSemaphorePermit>,
) -> Ended {
    let began = Instant::now();
    let ended = way.deliver(&parcel).await;
    metrics.delivery(way.word(), ended.is_ok(), began.elapsed());
    Ended { parcel, ended, permit }
}

fn of_status(status: &Status) -> Refusal {
    Refusal::from_status(status).unwrap_or_else(|| {
        Refusal::new(stepwell_proto::v1::ErrorReason::Internal, status.message())
    })
}
