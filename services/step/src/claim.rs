//! The backlog: steps that became ready when no slot was free, and the first steps of new tasks.
//! Each look reads the oldest ready steps of the queues that free slots serve, and leases as many
//! as there are slots, oldest first over all queues.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use stepwell_serve::Ticker;
use stepwell_store::{Error, Store, Topic, Writer};

use crate::{
    dispatch::Dispatch,
    sessions::{SLOTS_PER_CALL_MAX, Sessions},
};

/// Places in the queues from which a look starts are forgotten this often: rows below them may
/// have been left by a claim that was undone.
const PLACES_KEPT: Duration = Duration::from_secs(1);

/// The loop.
pub(crate) struct Claiming {
    pub(crate) store: Store,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) dispatch: Dispatch,
    pub(crate) writer: Option<Writer>,
    pub(crate) places: HashMap<i32, i64>,
    pub(crate) places_since: Instant,
}

impl Claiming {
    pub(crate) fn new(store: Store, sessions: Arc<Sessions>, dispatch: Dispatch) -> Self {
        Self {
            store,
            sessions,
            dispatch,
            writer: None,
            places: HashMap::new(),
            places_since: Instant::now(),
        }
    }

    /// Runs until shutdown begins.
    pub(crate) async fn run(mut self, mut ticker: Ticker) {
        while ticker.next().await {
            match self.tick().await {
                Ok(more) => {
                    ticker.ok();
                    if more {
                        ticker.again();
                    }
                }
                Err(error) => ticker.back_off(&error),
            }
        }
    }

    /// True when there may be more to lease at once.
    async fn tick(&mut self) -> Result<bool, Error> {
        if self.places_since.elapsed() > PLACES_KEPT {
            self.places.clear();
            self.places_since = Instant::now();
        }
        let (queues, free) = self.sessions.open_queues();
        if free == 0 {
            return Ok(false);
        }
        let max = free.min(SLOTS_PER_CALL_MAX);
        // One more than there are slots: the oldest that stays tells whom a freed slot belongs to.
        let read = i64::try_from(max + 1).expect("bounded");
        let ready = self.store.ready(&queues, &self.places, read).await?;
        let full = ready.len() > max;
        let slots = self.sessions.reserve_for_ready(&ready, &queues);
        if slots.is_empty() {
            return Ok(false);
        }
        let node = self.dispatch.node().current();
        let claimed = self.claim(&slots, node).await;
        if let Ok(claimed) = &claimed {
            for queue in &queues {
                match claimed.places.get(queue) {
                    Some(place) => self.places.insert(*queue, *place),
                    None => self.places.remove(queue),
                };
            }
            if !claimed.leases.is_empty() {
                self.store.bell().ring(Topic::Event);
                self.dispatch.send(&claimed.leases, node, &[], Vec::new()).await;
            }
        }
        self.sessions.unreserve(&slots);
        claimed.map(|_| full)
    }

    async fn claim(
        &mut self,
        slots: &stepwell_store::Slots,
        node: i32,
    ) -> Result<stepwell_store::Claimed, Error> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(self.store.writer().await?),
        };
        let claimed = writer.claim(slots, &self.places, node).await;
        if let Err(error) = &claimed {
            if !error.is_undone() && !error.is_retired() {
                self.writer = None;
            }
            if error.is_lost() || error.is_retired() {
                self.dispatch.node().renew(&self.store, node).await?;
            }
        }
        claimed
    }
}
