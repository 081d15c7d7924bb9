//! The backlog: steps that became ready when no slot was free, and the first steps of new tasks.
//! While slots are plenty, each queue that they serve is given its share of a part of them, unseen. When
//! a share was not enough, or slots are scarce, the oldest ready steps are read first, and as many leased
//! as there are slots, oldest first over all queues.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use stepwell_serve::Ticker;
use stepwell_store::{Claimed, Error, Slots, Store, Topic, Writer};

use crate::{
    dispatch::{Began, Dispatch},
    metrics::Way,
    node::Acting,
    sessions::{SLOTS_PER_CALL_MAX, Sessions},
};

/// Places in the queues from which a look starts are forgotten this often: rows below them may
/// have been left by a claim that was undone.
const PLACES_KEPT: Duration = Duration::from_secs(1);

/// While no slot is free, what waits is looked at no more often than this.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// The loop.
pub(crate) struct Claiming {
    pub(crate) store: Store,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) dispatch: Dispatch,
    pub(crate) writer: Option<Writer>,
    pub(crate) places: HashMap<i32, i64>,
    pub(crate) places_since: Instant,
    /// When it last looked.
    pub(crate) looked: Instant,
    /// The last shares were not enough, or there are more steps than slots.
    pub(crate) crowded: bool,
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
            looked: Instant::now(),
            crowded: false,
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
        let (queues, free) = self.sessions.open_queues(self.looked.elapsed() >= BETWEEN_LOOKS);
        if queues.is_empty() {
            return Ok(false);
        }
        self.looked = Instant::now();
        if !self.crowded
            && let Some((slots, share)) = self.sessions.reserve_shares(&queues, free)
        {
            let leased = self.fill(&queues, slots).await?;
            self.crowded = leased.values().any(|n| *n >= share);
            return Ok(self.crowded);
        }
        let max = free.min(SLOTS_PER_CALL_MAX);
        // One more than there are slots: the oldest that stays tells whom a freed slot belongs to.
        let read = i64::try_from(max + 1).expect("bounded");
        let writer = self.store.connected(&mut self.writer).await?;
        let ready = writer.ready(&queues, &self.places, read).await;
        if ready.is_err() {
            self.writer = None;
        }
        let ready = ready?;
        let full = ready.len() > max;
        let slots = self.sessions.reserve_for_ready(&ready, &queues);
        self.crowded = full;
        if slots.is_empty() {
            return Ok(false);
        }
        self.fill(&queues, slots).await?;
        Ok(full)
    }

    /// Leases what is ready to these slots. Answers how many of each queue.
    async fn fill(&mut self, queues: &[i32], slots: Slots) -> Result<HashMap<i32, usize>, Error> {
        let since = Instant::now();
        let claimed = self.claim(&slots).await;
        if let Ok((claimed, _)) = &claimed {
            if claimed.ready > 0 {
                self.store.bell().ring(Topic::Ready);
            }
            for queue in queues {
                match claimed.places.get(queue) {
                    Some(place) => self.places.insert(*queue, *place),
                    None => self.places.remove(queue),
                };
            }
        }
        let answer = match claimed {
            Ok((mut claimed, acting)) if !claimed.leases.is_empty() => {
                fault_point!("claim::unsent");
                self.store.bell().ring(Topic::Event);
                self.dispatch.learn(std::mem::take(&mut claimed.tasks));
                let began = Began { way: Way::Claimed, since: vec![since; claimed.leases.len()] };
                self.dispatch.send(&claimed.leases, acting, &[], Vec::new(), began).await;
                let mut leased = HashMap::new();
                claimed.leases.iter().for_each(|l| *leased.entry(l.queue).or_default() += 1);
                Ok(leased)
            }
            Ok(_) => Ok(HashMap::new()),
            Err(error) => Err(error),
        };
        self.sessions.unreserve(slots.sessions());
        answer
    }

    async fn claim(&mut self, slots: &Slots) -> Result<(Claimed, Acting), Error> {
        let writer = self.store.connected(&mut self.writer).await?;
        let node = self.dispatch.node();
        let acting = node.act(&self.store).await?;
        let since = Instant::now();
        let claimed = writer.claim(slots, &self.places, acting.id()).await;
        let leases = claimed.as_ref().map_or(0, |claimed| claimed.leases.len());
        self.dispatch.metrics().claimed(leases, since);
        match claimed {
            Ok(claimed) => Ok((claimed, acting)),
            Err(error) => {
                node.judge(acting.id(), &error);
                if !error.is_undone() && !error.is_retired() {
                    self.writer = None;
                }
                Err(error)
            }
        }
    }
}
