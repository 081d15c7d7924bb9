//! The loop that has one courier for each subscription with a delivery, and tells them what is free: one
//! statement for all.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use stepwell_serve::Ticker;
use stepwell_store::{Delivered, Error, StoredSubscription};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    queue::Queue,
    run::Courier,
    ways::{Way, Ways},
};
use crate::{
    service::{Feed, RESPONSES_WAITING_MAX},
    subscription::Reading,
};

/// Between two looks: what was said meanwhile is seen by one of them.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// A courier that ended for a reason of its own is not replaced before.
const REST: Duration = Duration::from_secs(30);

/// The couriers of this process.
pub(crate) struct Couriers {
    /// What subscriptions are read with.
    pub(crate) feed: Arc<Feed>,
    pub(crate) ways: Arc<Ways>,
    /// Room for events on their way, of all couriers; one has each courier beside that.
    pub(crate) room: Arc<Semaphore>,
    /// Rings when a courier has ended.
    pub(crate) look: Arc<Notify>,
}

/// A courier at work, or one that ended for a reason of its own.
struct Sent {
    revision: i32,
    /// Rings when a partition is free.
    free: Arc<Notify>,
    stop: CancellationToken,
    ended: JoinHandle<()>,
    rest_until: Instant,
}

impl Couriers {
    /// Looks until shutdown begins; then waits for the couriers.
    pub(crate) async fn run(self, mut ticker: Ticker, grace: Duration) {
        let mut sent = HashMap::new();
        while ticker.next().await {
            match self.look(&mut sent).await {
                Ok(()) => ticker.ok(),
                Err(error) => ticker.back_off(&error),
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        sent.values().for_each(|courier| courier.stop.cancel());
        let all = async {
            for (_, courier) in sent {
                // One that has panicked has said so.
                let _ = courier.ended.await;
            }
        };
        // What is on its way still is delivered again, by who reads on.
        let _ = tokio::time::timeout(grace, all).await;
    }

    async fn look(&self, sent: &mut HashMap<i32, Sent>) -> Result<(), Error> {
        let wanted = self.feed.store.delivered_subscriptions().await?;
        let ids: HashSet<i32> = wanted.iter().map(|of| of.id).collect();
        sent.retain(|id, courier| {
            let is_wanted = ids.contains(id);
            if !is_wanted {
                courier.stop.cancel();
            }
            is_wanted || !courier.ended.is_finished()
        });
        for Delivered { id, name, revision, is_free } in wanted {
            if let Some(courier) = sent.get(&id) {
                if courier.revision != revision {
                    courier.stop.cancel();
                }
                if is_free && courier.revision == revision {
                    courier.free.notify_one();
                }
                let rests = courier.revision == revision && courier.rest_until > Instant::now();
                if !courier.ended.is_finished() || rests {
                    continue;
                }
            }
            if is_free
                && let Some(subscription) = self.feed.store.subscription(&name).await?
                && subscription.delivery.is_some()
            {
                sent.insert(id, self.send(subscription));
            }
        }
        Ok(())
    }

    fn send(&self, subscription: StoredSubscription) -> Sent {
        let (free, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let revision = subscription.revision;
        let span =
            tracing::info_span!("delivery", service = "event", subscription = subscription.name);
        let work = self.work(subscription, Arc::clone(&free), stop.clone());
        let look = Arc::clone(&self.look);
        let work = async move {
            work.await;
            look.notify_one();
        };
        let ended = tokio::spawn(work.instrument(span));
        Sent { revision, free, stop, ended, rest_until: Instant::now() + REST }
    }

    /// A courier's whole life.
    fn work(
        &self,
        subscription: StoredSubscription,
        free: Arc<Notify>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let (out, stream) = mpsc::channel(RESPONSES_WAITING_MAX);
        let opened = self.ways.open(&subscription, &self.feed.metrics, &self.feed.store);
        let (name, ordered) = (subscription.name.clone(), subscription.ordered);
        let (feed, room) = (Arc::clone(&self.feed), Arc::clone(&self.room));
        async move {
            let way = match opened {
                Ok(way) => Arc::new(way),
                Err(reason) => {
                    tracing::error!(reason, "not delivered by this process");
                    return;
                }
            };
            let held = watch::Sender::new(false);
            let telling = tell(&way, held.subscribe());
            let courier = Courier {
                store: feed.store.clone(),
                metrics: Arc::clone(&feed.metrics),
                name,
                way,
                queue: Queue::new(ordered),
                stream,
                room,
                stop,
                held,
            };
            let reading: Reading = feed.courier_s_reading(subscription, out, free);
            // Without its reader the stream ends, and gives up what it holds.
            let delivered = async { tokio::join!(reading.run(), courier.run()) };
            let ((), refusal) = tokio::select! {
                ended = delivered => ended,
                // It has no end; what it was telling is told again.
                () = telling => return,
            };
            if let Some(refusal) = refusal {
                tracing::warn!(reason = refusal.message, "deliveries end");
            }
        }
    }
}

/// Tells of alerts while the subscription is read here; others have nothing to tell.
fn tell(way: &Way, held: watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
    let alerts = match way {
        Way::Alert(alerts) => Some(Arc::clone(alerts)),
        _ => None,
    };
    async move {
        match alerts {
            Some(alerts) => alerts.tell(held).await,
            None => std::future::pending().await,
        }
    }
}
