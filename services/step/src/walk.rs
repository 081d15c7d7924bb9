//! What nodes leave behind. Each node extends its own lease, declares those dead that do not, and
//! walks the leases of one that is retired: its own former ids, whose leases it knows better than
//! anybody, and those of processes that are gone. Since a retired id gets no more leases, one walk
//! finds all.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use stepwell_proto::id::{LeaseId, number_of};
use stepwell_store::{Adopted, ChildSlots, Error, LeaseRow, Report, Sweep, TakenOver, Writer};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    metrics::Expiry,
    sessions::{Held, Owned},
    settle::Ended,
    sweep::{Sweeps, lost},
};

/// Open tasks looked at by one statement.
const CHUNK: i64 = 500;
/// Between two walks over an id that had leases on their way to the database.
const BETWEEN_WALKS: Duration = Duration::from_millis(100);
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Keeps the node alive, and walks what is left of others.
#[derive(Clone)]
pub(crate) struct Walks {
    sweeps: Sweeps,
    /// How long executors of a dead node may come back.
    grace: Duration,
    walking: Arc<Mutex<HashSet<i32>>>,
    /// One adoption at a time, from the look at what is held to holding it.
    adopter: Arc<tokio::sync::Mutex<Option<Writer>>>,
}

/// How long the node was extended without a gap: whoever was away for a while does not know whether
/// others could extend theirs.
#[derive(Default)]
struct Steady {
    /// The first and the last time.
    span: Option<(Instant, Instant)>,
}

impl Steady {
    /// The node was extended. Answers how long it was so without a gap of a whole lease.
    fn extended(&mut self, lease: Duration) -> Duration {
        let now = Instant::now();
        let span = self.span.filter(|(_, last)| now.duration_since(*last) < lease);
        let first = span.map_or(now, |(first, _)| first);
        self.span = Some((first, now));
        now.duration_since(first)
    }

    fn failed(&mut self) {
        self.span = None;
    }
}

impl Walks {
    pub(crate) fn new(sweeps: Sweeps, grace: Duration) -> Self {
        Self { sweeps, grace, walking: Arc::default(), adopter: Arc::default() }
    }

    // ── living ──────────────────────────────────────────────────────────────────────────────────

    /// Extends the node's lease until it is told to stop, and takes over from the dead.
    pub(crate) async fn run_lease(self, stop: CancellationToken) {
        let node = Arc::clone(self.sweeps.dispatch.node());
        let (mut writer, mut steady) = (None, Steady::default());
        let (mut wait, mut failing) = (Duration::ZERO, false);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = node.doubt.notified() => {}
                () = sleep(wait) => {}
            }
            wait = node.lease() / 3;
            let extended = self.extend(&mut writer, &mut steady).await;
            let failed_before = std::mem::replace(&mut failing, extended.is_err());
            if let Err(error) = extended {
                if !failed_before {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the node's lease was not extended; trying again"
                    );
                }
                steady.failed();
                writer = None;
                wait = AGAIN_AFTER.min(wait);
            }
        }
    }

    async fn extend(&self, writer: &mut Option<Writer>, steady: &mut Steady) -> Result<(), Error> {
        let Sweeps { store, dispatch, .. } = &self.sweeps;
        let node = dispatch.node();
        let lease = node.lease();
        let id = node.act(store).await?.id();
        let writer = store.connected(writer).await?;
        if !writer.extend_node(id, lease).await? {
            tracing::warn!(node = id, "this node was declared dead");
            node.give_up(id);
            steady.failed();
            return Ok(());
        }
        let may_declare = steady.extended(lease) >= lease;
        let taken = writer.take_over(id, lease, self.grace, may_declare).await?;
        for over in taken {
            if self.walking.lock().unwrap_or_else(PoisonError::into_inner).insert(over.node) {
                let walks = self.clone();
                let walk = async move { walks.walk_other(over, id).await };
                tokio::spawn(walk.in_current_span());
            }
        }
        Ok(())
    }

    // ── the leases of others ────────────────────────────────────────────────────────────────────

    /// Gives the executors of a dead node their grace, then fails what they did not claim.
    async fn walk_other(&self, over: TakenOver, by: i32) {
        let TakenOver { node, walked, wait } = over;
        tracing::warn!(node, after = walked, "taking over from a node that is gone");
        self.sweeps.dispatch.metrics().took_over();
        sleep(wait).await;
        let (mut writer, mut after, mut expired) = (None, walked, 0);
        let mut failing = false;
        loop {
            match self.expire_chunk(&mut writer, node, by, after).await {
                Ok((n, next)) => {
                    failing = false;
                    expired += n;
                    match next {
                        Some(next) => after = next,
                        None => break,
                    }
                }
                Err(error) => {
                    walking_again(&error, node, &mut failing);
                    writer = None;
                    sleep(AGAIN_AFTER).await;
                }
            }
        }
        tracing::warn!(node, expired, "took over from a node that is gone");
        self.walking.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    /// One chunk of tasks: fails the node's leases, and keeps the place.
    async fn expire_chunk(
        &self,
        writer: &mut Option<Writer>,
        node: i32,
        by: i32,
        after: i64,
    ) -> Result<(usize, Option<i64>), Error> {
        let Sweeps { store, dispatch, .. } = &self.sweeps;
        let writer = store.connected(writer).await?;
        let (leases, next) = writer.leases_of(node, after, CHUNK).await?;
        self.sweeps.learn(&leases).await?;
        for part in leases.chunks(500) {
            let reports: Vec<Report> = part.iter().map(|row| self.expired(row)).collect();
            let none = ChildSlots::default();
            let sweep = Sweep::Node(node);
            let (settled, _) = writer.settle_each(&reports, &none, by, Some(&sweep)).await?;
            let expired = settled.accepted.iter().filter(|accepted| **accepted).count();
            dispatch.metrics().expired(Expiry::NodeLost, expired);
            store.bell().ring_moves(true, settled.ready > 0, false);
            dispatch.timers.notify_one();
        }
        match next {
            Some(task) => writer.walked(node, by, task).await?,
            None => writer.forget_node(node, by).await?,
        }
        Ok((leases.len(), next))
    }

    fn expired(&self, row: &LeaseRow) -> Report {
        let failure = lost("LeaseExpired", "the executor and its node were lost");
        let LeaseRow { queue, max_attempts, session, .. } = *row;
        let held = Held::new(queue, max_attempts, Duration::ZERO, None);
        let owned = Owned { session, lease: row.id(), held };
        let (ending, stored) = self.sweeps.judge(&owned, &failure, None);
        Report {
            step: row.step,
            token: row.token,
            ending,
            text: stored.to_text(),
            events: Vec::new(),
        }
    }

    // ── the leases of our own former ids ────────────────────────────────────────────────────────

    /// Walks ids of this process that were given up.
    pub(crate) async fn run_own(self, mut left: mpsc::Receiver<i32>) {
        while let Some(node) = left.recv().await {
            self.sweeps.dispatch.metrics().gave_up();
            self.walking.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
            let (mut writer, mut failing) = (None, false);
            loop {
                match self.walk_own(&mut writer, node).await {
                    Ok(true) => break,
                    Ok(false) => {
                        failing = false;
                        sleep(BETWEEN_WALKS).await;
                    }
                    Err(error) => {
                        walking_again(&error, node, &mut failing);
                        writer = None;
                        sleep(AGAIN_AFTER).await;
                    }
                }
            }
            tracing::info!(node, "a node id that was given up was walked");
            self.sweeps.dispatch.node().walked(node);
            self.walking.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        }
    }

    /// What our sessions hold goes on under the new id; what no session knows of was never sent
    /// and goes back, uncounted. True: nothing is left.
    async fn walk_own(&self, writer: &mut Option<Writer>, node: i32) -> Result<bool, Error> {
        let Sweeps { store, sessions, settler, .. } = &self.sweeps;
        let by = self.keep().await?;
        let (mut after, mut left) = (0, 0);
        loop {
            let (leases, next) =
                store.connected(writer).await?.leases_of(node, after, CHUNK).await?;
            left += leases.len();
            for row in leases {
                if !sessions.knows(row.id()) {
                    let reason = "the node lost track of it before it was sent";
                    settler.push(Ended::unsent(&row, reason)).await;
                }
            }
            match next {
                Some(next) => after = next,
                None => break,
            }
        }
        if left == 0 {
            self.sweeps.take_signals(writer).await?;
            store.connected(writer).await?.forget_node(node, by).await?;
        }
        Ok(left == 0)
    }

    /// All leases of our sessions belong to the node's current id from now on; those that are lost
    /// are cancelled. Answers that id.
    async fn keep(&self) -> Result<i32, Error> {
        let Sweeps { store, sessions, dispatch, .. } = &self.sweeps;
        let mut writer = self.adopter.lock().await;
        let acting = dispatch.node().act(store).await?;
        for part in sessions.held().chunks(1000) {
            let keys: Vec<_> =
                part.iter().map(|(l, session)| (l.step, l.token, *session)).collect();
            let kept = self.call_adopt(&mut writer, &keys, acting.id()).await?;
            let kept: HashSet<LeaseId> = kept.iter().map(|kept| kept.lease.id()).collect();
            for (lease, session) in part.iter().filter(|(lease, _)| !kept.contains(lease)) {
                sessions.cancel(*session, *lease, "the lease was lost");
            }
        }
        Ok(acting.id())
    }

    // ── executors that come back ────────────────────────────────────────────────────────────────

    /// Moves leases that an executor holds to its new session; answers those. Tries until the
    /// answer is known: leases that were adopted and are held by no session would be nobody's.
    pub(crate) async fn adopt(
        &self,
        leases: &[LeaseId],
        session: i64,
    ) -> Result<Vec<LeaseId>, Error> {
        let (mut in_doubt, mut failing) = (false, false);
        loop {
            let error = match self.adopt_once(leases, session).await {
                Ok(adopted) => return Ok(adopted),
                Err(error) => error,
            };
            in_doubt |= error.is_lost();
            if !in_doubt && !error.is_retired() {
                return Err(error);
            }
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    session,
                    leases = leases.len(),
                    "leases cannot be adopted; trying again"
                );
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    async fn adopt_once(&self, leases: &[LeaseId], session: i64) -> Result<Vec<LeaseId>, Error> {
        let Sweeps { store, sessions, dispatch, .. } = &self.sweeps;
        let keys: Vec<_> = leases.iter().map(|l| (l.step, l.token, session)).collect();
        let mut writer = self.adopter.lock().await;
        let acting = dispatch.node().act(store).await?;
        let adopted = self.call_adopt(&mut writer, &keys, acting.id()).await?;
        let rows: Vec<LeaseRow> = adopted.iter().map(|kept| kept.lease).collect();
        let mut failing = false;
        while let Err(error) = self.sweeps.learn(&rows).await {
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    session,
                    "definitions cannot be read; trying again"
                );
            }
            sleep(AGAIN_AFTER).await;
        }
        for Adopted { lease: row, age_ms } in &adopted {
            let (definition, number) = (dispatch.definition_of(row.queue), number_of(row.step));
            let timeout = definition.as_ref().map(|of| of.timeout(number)).unwrap_or_default();
            let heartbeat = definition.and_then(|of| of.heartbeat_timeout(number));
            let age = Duration::from_millis(u64::try_from(*age_ms).unwrap_or(0));
            sessions.hold(row, timeout.saturating_sub(age), heartbeat);
        }
        let adopted: Vec<LeaseId> = rows.iter().map(LeaseRow::id).collect();
        sessions.forget(&adopted, session);
        dispatch.metrics().adopted(adopted.len());
        Ok(adopted)
    }

    async fn call_adopt(
        &self,
        writer: &mut Option<Writer>,
        keys: &[(i64, i64, i64)],
        node: i32,
    ) -> Result<Vec<Adopted>, Error> {
        let Sweeps { store, dispatch, .. } = &self.sweeps;
        let adopted = store.connected(writer).await?.adopt(keys, node).await;
        if let Err(error) = &adopted {
            if !error.is_undone() && !error.is_retired() {
                *writer = None;
            }
            // A lost answer does no harm here: the same is asked again until it is known.
            if error.is_retired() {
                dispatch.node().give_up(node);
            }
        }
        adopted
    }
}

fn walking_again(error: &Error, node: i32, failing: &mut bool) {
    if !std::mem::replace(failing, true) {
        let error = error as &dyn std::error::Error;
        tracing::warn!(error, node, "a node's leases cannot be walked; trying again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_was_away_for_a_lease_declares_nobody_dead_for_another() {
        let lease = Duration::from_secs(15);
        let mut steady = Steady::default();
        for seconds in [0, 5, 10, 15, 20] {
            assert_eq!(steady.extended(lease), Duration::from_secs(seconds));
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        // Stopped, or the machine slept: the next extension works, and says nothing of others.
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(steady.extended(lease), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(steady.extended(lease), Duration::from_secs(5));
        steady.failed();
        assert_eq!(steady.extended(lease), Duration::ZERO);
    }
}
