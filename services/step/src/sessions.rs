//! The executors of this process: what they can run, which slots are free, which leases they hold.
//! Plain memory behind one lock; nothing here waits. Slots that a verb may fill are reserved before
//! the call and given back after it, so no two verbs fill one slot.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stepwell_proto::{id::LeaseId, v1::LeaseCancel};
use stepwell_store::{LeaseRow, QueueRow, Slots};
use tokio::{sync::Notify, time::Instant};

use crate::{offer::Offer, outbox::Outbox, priorities::Priorities};

/// One claim or settle gets at most this many slots.
pub(crate) const SLOTS_PER_CALL_MAX: usize = 500;

/// A step that may become ready when its parent completes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    /// Its queue at its definition's priority.
    pub(crate) queue: i32,
    /// Its parent's queue: its task has one priority.
    pub(crate) like: i32,
    /// Its key.
    pub(crate) step: i64,
    /// Whose slot its parent frees.
    pub(crate) session: i64,
    /// It has no other parent.
    pub(crate) sure: bool,
}

/// Every session of this process.
#[derive(Default)]
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
    /// Rings when a slot becomes free or a session comes.
    pub(crate) freed: Arc<Notify>,
    /// Rings when the earliest deadline may have changed.
    pub(crate) deadline: Arc<Notify>,
    /// Rings when a session is gone for good or a lease ends.
    pub(crate) emptied: Notify,
    /// Rings when outcomes were settled.
    unsettled: Notify,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<i64, Session>,
    /// Sessions by the queue they serve, in the order in which their turn comes.
    serving: HashMap<i32, VecDeque<i64>>,
    deadlines: BTreeSet<(Instant, i64, LeaseId)>,
    /// Oldest step known to be left in a queue: younger ones do not go past it.
    heads: HashMap<i32, i64>,
    priorities: Priorities,
    /// Some queue was not looked at, because none of its slots was free: the next that frees rings.
    unseen: bool,
    /// Outcomes on their way to the database.
    settling: HashSet<LeaseId>,
}

struct Session {
    offer: Arc<Offer>,
    queues: HashSet<i32>,
    slots: usize,
    reserved: usize,
    /// How many more leases it asked for; none: as many as it has slots, whenever they are free.
    asked: Option<usize>,
    leases: HashMap<LeaseId, Held>,
    outbox: Arc<Outbox>,
    /// No more leases for it.
    draining: bool,
    /// Somebody told it to stop.
    stopping: bool,
    /// When it came.
    since: Instant,
    /// When it last said something.
    heard: Instant,
    /// Its stream is gone; until then it may come back.
    lost: Option<Instant>,
}

impl Session {
    fn free(&self) -> usize {
        if self.draining || self.lost.is_some() {
            return 0;
        }
        let free = self.slots.saturating_sub(self.leases.len() + self.reserved);
        self.asked.map_or(free, |asked| free.min(asked.saturating_sub(self.reserved)))
    }
}

/// What this process knows of a lease it gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// The queue of its step.
    pub(crate) queue: i32,
    /// Attempts the step may make in all.
    pub(crate) max_attempts: i32,
    /// When the attempt's time is up.
    pub(crate) ends: Instant,
    /// How long it may go without progress.
    heartbeat: Option<Duration>,
    /// When it is to be ended unless something is heard of it: `ends`, or sooner.
    deadline: Instant,
}

impl Held {
    pub(crate) fn new(
        queue: i32,
        max_attempts: i32,
        timeout: Duration,
        heartbeat: Option<Duration>,
    ) -> Self {
        let ends = Instant::now() + timeout;
        Self { queue, max_attempts, ends, heartbeat, deadline: ends }.heard()
    }

    /// Progress was made now.
    fn heard(self) -> Self {
        let quiet = self.heartbeat.map(|heartbeat| Instant::now() + heartbeat);
        Self { deadline: quiet.map_or(self.ends, |quiet| quiet.min(self.ends)), ..self }
    }

    /// True when nothing was heard of it for too long, though it had time.
    pub(crate) fn is_quiet(&self) -> bool {
        self.deadline < self.ends
    }
}

/// All sessions in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) connected: usize,
    pub(crate) lost: usize,
    /// Slots.
    pub(crate) free: usize,
    pub(crate) leases: usize,
}

/// One that is connected, as others may see it.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) session: i64,
    pub(crate) offer: Arc<Offer>,
    pub(crate) slots: usize,
    /// Slots that leases take.
    pub(crate) used: usize,
    pub(crate) draining: bool,
    pub(crate) stopping: bool,
    pub(crate) since: Instant,
    pub(crate) heard: Instant,
}

/// A lease with whose it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned {
    pub(crate) session: i64,
    pub(crate) lease: LeaseId,
    pub(crate) held: Held,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ── coming and going ────────────────────────────────────────────────────────────────────────

    /// A new session. It has slots from now on; one that asks for leases gets them when it does.
    pub(crate) fn open(
        &self,
        session: i64,
        offer: Arc<Offer>,
        queues: HashSet<i32>,
        slots: usize,
        asks: bool,
        outbox: Arc<Outbox>,
    ) {
        let mut inner = self.lock();
        for queue in &queues {
            inner.serving.entry(*queue).or_default().push_back(session);
        }
        let now = Instant::now();
        let opened = Session {
            offer,
            queues,
            slots,
            reserved: 0,
            asked: asks.then_some(0),
            leases: HashMap::new(),
            outbox,
            draining: false,
            stopping: false,
            since: now,
            heard: now,
            lost: None,
        };
        inner.sessions.insert(session, opened);
        drop(inner);
        self.freed.notify_one();
    }

    /// The stream is gone. Its leases are kept until `until` for the executor to come back.
    pub(crate) fn lose(&self, session: i64, until: Instant) {
        let mut inner = self.lock();
        let Some(lost) = inner.sessions.get_mut(&session) else { return };
        lost.lost = Some(until);
        if lost.leases.is_empty() {
            inner.remove(session);
        }
        drop(inner);
        self.emptied.notify_waiters();
    }

    /// Leases of sessions whose grace is over; they are forgotten here.
    pub(crate) fn take_lapsed(&self, now: Instant) -> Vec<Owned> {
        let mut inner = self.lock();
        let lapsed: Vec<i64> = inner
            .sessions
            .iter()
            .filter(|(_, s)| s.lost.is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect();
        let owned = lapsed.into_iter().flat_map(|id| inner.remove(id)).collect();
        drop(inner);
        self.emptied.notify_waiters();
        owned
    }

    /// The executor said something.
    pub(crate) fn hear(&self, session: i64) {
        if let Some(s) = self.lock().sessions.get_mut(&session) {
            s.heard = Instant::now();
        }
    }

    /// Those that are connected.
    pub(crate) fn present(&self) -> Vec<Present> {
        let inner = self.lock();
        let present = inner.sessions.iter().filter(|(_, s)| s.lost.is_none());
        let present = present.map(|(id, s)| Present {
            session: *id,
            offer: Arc::clone(&s.offer),
            slots: s.slots,
            used: s.leases.len(),
            draining: s.draining,
            stopping: s.stopping,
            since: s.since,
            heard: s.heard,
        });
        present.collect()
    }

    /// How many executors are connected.
    pub(crate) fn connected(&self) -> usize {
        self.lock().sessions.values().filter(|s| s.lost.is_none()).count()
    }

    /// How many there are, and what they have.
    pub(crate) fn figures(&self) -> Figures {
        let inner = self.lock();
        let mut figures = Figures::default();
        for session in inner.sessions.values() {
            match session.lost {
                None => figures.connected += 1,
                Some(_) => figures.lost += 1,
            }
            figures.free += session.free();
            figures.leases += session.leases.len();
        }
        figures
    }

    /// The offers of those that take leases.
    pub(crate) fn serving(&self) -> Vec<Arc<Offer>> {
        let inner = self.lock();
        let serving = inner.sessions.values().filter(|s| s.lost.is_none() && !s.draining);
        serving.map(|s| Arc::clone(&s.offer)).collect()
    }

    /// The offers of all sessions, for matching them to queues.
    pub(crate) fn offers(&self) -> Vec<(i64, Arc<Offer>)> {
        self.lock().sessions.iter().map(|(id, s)| (*id, Arc::clone(&s.offer))).collect()
    }

    /// A session serves these queues from now on.
    pub(crate) fn serve(&self, session: i64, queues: HashSet<i32>) {
        let mut inner = self.lock();
        let Some(known) = inner.sessions.get_mut(&session) else { return };
        let new: Vec<i32> = queues.difference(&known.queues).copied().collect();
        known.queues.extend(&new);
        for queue in &new {
            inner.serving.entry(*queue).or_default().push_back(session);
        }
        drop(inner);
        if !new.is_empty() {
            self.freed.notify_one();
        }
    }

    pub(crate) fn set_slots(&self, session: i64, slots: usize) {
        if let Some(s) = self.lock().sessions.get_mut(&session) {
            s.slots = slots;
        }
        self.freed.notify_one();
    }

    /// The executor wants so many leases more; 0: none for now.
    pub(crate) fn ask(&self, session: i64, leases: usize) {
        if let Some(s) = self.lock().sessions.get_mut(&session) {
            s.asked = Some(leases);
        }
        if leases > 0 {
            self.freed.notify_one();
        }
    }

    /// The executor wants no more leases.
    pub(crate) fn drain(&self, session: i64) {
        if let Some(s) = self.lock().sessions.get_mut(&session) {
            s.draining = true;
        }
    }

    /// The executor is to stop: no more leases for it, and it is told.
    pub(crate) fn stop(&self, session: i64, reason: &str) {
        if let Some(s) = self.lock().sessions.get_mut(&session) {
            (s.draining, s.stopping) = (true, true);
            s.outbox.stop(reason);
        }
    }

    /// A stream that is old is moved: no more leases on it, and its executor is told.
    pub(crate) fn relieve(&self, session: i64, deadline: Duration) {
        if let Some(s) = self.lock().sessions.get_mut(&session) {
            s.draining = true;
            s.outbox.drain(deadline);
        }
    }

    /// The process goes down: no session gets leases any more, and each is told.
    pub(crate) fn drain_all(&self, deadline: Duration) {
        for session in self.lock().sessions.values_mut() {
            session.draining = true;
            session.outbox.drain(deadline);
        }
    }

    /// Ends the streams of sessions that hold nothing, or of all.
    pub(crate) fn close(&self, all: bool) {
        for session in self.lock().sessions.values().filter(|s| all || s.leases.is_empty()) {
            session.outbox.close();
        }
    }

    // ── slots ───────────────────────────────────────────────────────────────────────────────────

    /// Queues that some free slot serves, to be looked at, and how many slots are free. If there are queues of
    /// several priorities, all that are served: whoever hands slots on has to know what waits for them. But while
    /// no slot is free, only if it is time to look.
    pub(crate) fn open_queues(&self, time: bool) -> (Vec<i32>, usize) {
        let mut inner = self.lock();
        let mut free = 0;
        let mut queues = HashSet::new();
        for session in inner.sessions.values().filter(|s| s.free() > 0) {
            free += session.free();
            queues.extend(&session.queues);
        }
        let served = inner.serving.iter().filter(|(_, by)| !by.is_empty()).map(|(queue, _)| *queue);
        if inner.priorities.are_several() && (free > 0 || time) {
            queues.extend(served);
            inner.unseen = false;
        } else {
            inner.unseen = served.into_iter().any(|queue| !queues.contains(&queue));
        }
        (queues.into_iter().collect(), free)
    }

    /// Reserves a slot for each of these ready steps, those of each priority oldest first, as far as there are
    /// any, and remembers the oldest step of each queue that got none.
    pub(crate) fn reserve_for_ready(&self, ready: &[(i32, i64, i64)], asked: &[i32]) -> Slots {
        let mut inner = self.lock();
        let inner = &mut *inner;
        for queue in asked {
            inner.heads.remove(queue);
        }
        let mut granted: Vec<(i32, Vec<i64>)> = Vec::new();
        let mut lines = inner.priorities.lines(ready);
        while let Some((priority, (queue, _, step))) = inner.priorities.next(&mut lines) {
            match inner.reserve(*queue, None) {
                Some(session) => {
                    inner.priorities.served(priority);
                    add(&mut granted, *queue, session);
                }
                None => {
                    let head = inner.heads.entry(*queue).or_insert(*step);
                    *head = (*head).min(*step);
                }
            }
        }
        slots(granted)
    }

    /// Reserves the same number of slots for each of these queues, of a quarter of those that are free:
    /// the rest is for the children of what ends meanwhile. Answers them, and how many each queue has.
    /// None: there are too few for all of them, or a queue is known to have older steps than slots.
    pub(crate) fn reserve_shares(&self, queues: &[i32], free: usize) -> Option<(Slots, usize)> {
        let share = (free / 4).min(SLOTS_PER_CALL_MAX) / queues.len().max(1);
        let mut inner = self.lock();
        if share == 0 || !inner.heads.is_empty() {
            return None;
        }
        let mut slots = Slots::default();
        for queue in queues {
            slots.push(*queue, (0..share).map_while(|_| inner.reserve(*queue, None)));
        }
        if slots.sessions().count() < share * queues.len() {
            inner.unreserve(slots.sessions());
            return None;
        }
        Some((slots, share))
    }

    /// Reserves a slot for each child that may become ready, first in its parent's session; none for one
    /// that has been named before. A child younger than the oldest step left in its queue gets none: the
    /// slot goes to that one. While steps of other priorities wait for its parent's slot, it gets one if it
    /// is its priority's turn, and if it is sure to be ready.
    pub(crate) fn reserve_for_children(&self, children: &[Child]) -> Vec<Option<i64>> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let several = inner.priorities.are_several();
        let mut waiting: HashMap<i64, Vec<i16>> = HashMap::new();
        let mut seen = HashSet::with_capacity(children.len());
        let mut left = SLOTS_PER_CALL_MAX;
        let reserve = |child: &Child| {
            if left == 0 || !seen.insert(child.step) {
                return None;
            }
            let (mut queue, mut shared, mut turn) = (child.queue, false, true);
            let own = inner.priorities.of(child.like);
            if several {
                queue = inner.priorities.beside(queue, child.like);
                let waiting =
                    waiting.entry(child.session).or_insert_with(|| inner.waiting(child.session));
                shared = waiting.iter().any(|other| *other != own);
                turn = !shared || child.sure && inner.priorities.is_turn(own, waiting);
            }
            if !turn || inner.heads.get(&queue).is_some_and(|head| *head < child.step) {
                if child.sure {
                    let head = inner.heads.entry(queue).or_insert(child.step);
                    *head = (*head).min(child.step);
                }
                self.freed.notify_one();
                return None;
            }
            let session = inner.reserve(queue, Some(child.session))?;
            left -= 1;
            if shared {
                inner.priorities.served(own);
            }
            Some(session)
        };
        children.iter().map(reserve).collect()
    }

    /// Gives reserved slots back; those that were filled are held by their leases by now.
    pub(crate) fn unreserve<'a>(&self, slots: impl Iterator<Item = &'a i64>) {
        let mut inner = self.lock();
        inner.unreserve(slots);
        let wanted = inner.is_wanted();
        drop(inner);
        if wanted {
            self.freed.notify_one();
        }
    }

    /// The queues there are.
    pub(crate) fn know_queues(&self, queues: &[QueueRow]) {
        self.lock().priorities.know(queues);
    }

    // ── leases ──────────────────────────────────────────────────────────────────────────────────

    /// A session holds this lease from now on. False: there is no such session any more.
    pub(crate) fn hold(
        &self,
        row: &LeaseRow,
        timeout: Duration,
        heartbeat: Option<Duration>,
    ) -> bool {
        let lease = row.id();
        let held = Held::new(row.queue, row.max_attempts, timeout, heartbeat);
        let deadline = held.deadline;
        let mut inner = self.lock();
        let Some(session) = inner.sessions.get_mut(&row.session) else { return false };
        session.leases.insert(lease, held);
        session.asked = session.asked.map(|asked| asked.saturating_sub(1));
        let first = inner.deadlines.first().is_none_or(|(at, ..)| deadline < *at);
        inner.deadlines.insert((deadline, row.session, lease));
        drop(inner);
        if first {
            self.deadline.notify_one();
        }
        true
    }

    /// Handlers of these leases, as far as the session holds them, have made progress.
    pub(crate) fn progress(&self, session: i64, leases: impl Iterator<Item = LeaseId>) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(s) = inner.sessions.get_mut(&session) else { return };
        for lease in leases {
            if let Some(held) = s.leases.get_mut(&lease).filter(|held| held.heartbeat.is_some()) {
                inner.deadlines.remove(&(held.deadline, session, lease));
                *held = held.heard();
                inner.deadlines.insert((held.deadline, session, lease));
            }
        }
    }

    /// The session's lease ends; its slot is free. None: the session does not hold it.
    pub(crate) fn release(&self, session: i64, lease: LeaseId) -> Option<Held> {
        let mut inner = self.lock();
        let held = inner.release(session, lease)?;
        let wanted = inner.is_wanted();
        drop(inner);
        if wanted {
            self.freed.notify_one();
        }
        self.emptied.notify_waiters();
        Some(held)
    }

    /// True while the session holds the lease, or its outcome is on the way.
    pub(crate) fn holds(&self, session: i64, lease: LeaseId) -> bool {
        let inner = self.lock();
        inner.settling.contains(&lease)
            || inner.sessions.get(&session).is_some_and(|s| s.leases.contains_key(&lease))
    }

    /// Leases that move to another session of this process are no longer their old one's.
    pub(crate) fn forget(&self, leases: &[LeaseId], but: i64) {
        let mut inner = self.lock();
        let holders: Vec<(i64, LeaseId)> = inner
            .sessions
            .iter()
            .filter(|(id, _)| **id != but)
            .flat_map(|(id, s)| {
                leases.iter().filter(|l| s.leases.contains_key(l)).map(|l| (*id, *l))
            })
            .collect();
        for (session, lease) in holders {
            inner.release(session, lease);
            if inner.sessions.get(&session).is_some_and(|s| s.lost.is_some() && s.leases.is_empty())
            {
                inner.remove(session);
            }
        }
    }

    /// The lease ends, whichever session holds it.
    pub(crate) fn release_of_any(&self, lease: LeaseId) -> Option<Held> {
        let mut inner = self.lock();
        let session = inner.sessions.iter().find(|(_, s)| s.leases.contains_key(&lease));
        let session = *session?.0;
        inner.release(session, lease)
    }

    /// All leases that are held: step, token and session of each.
    pub(crate) fn held(&self) -> Vec<(LeaseId, i64)> {
        let inner = self.lock();
        let held = |(id, s): (&i64, &Session)| {
            let id = *id;
            s.leases.keys().map(move |lease| (*lease, id)).collect::<Vec<_>>()
        };
        inner.sessions.iter().flat_map(held).collect()
    }

    /// Tells the session's executor that a lease is void, and frees its slot.
    pub(crate) fn cancel(&self, session: i64, lease: LeaseId, reason: &str) {
        self.release(session, lease);
        if let Some(s) = self.lock().sessions.get(&session) {
            s.outbox.cancel(LeaseCancel { lease_id: lease.encode(), reason: reason.to_owned() });
        }
    }

    /// Leases whose time is up, and when the next one's is.
    pub(crate) fn take_overdue(&self, now: Instant) -> (Vec<Owned>, Option<Instant>) {
        let mut inner = self.lock();
        let mut overdue = Vec::new();
        while let Some((at, session, lease)) = inner.deadlines.first().copied() {
            if at > now {
                return (overdue, Some(at));
            }
            match inner.release(session, lease) {
                Some(held) => overdue.push(Owned { session, lease, held }),
                None => {
                    inner.deadlines.pop_first();
                }
            }
        }
        (overdue, None)
    }

    /// When the first lost session's grace ends.
    pub(crate) fn next_lapse(&self) -> Option<Instant> {
        self.lock().sessions.values().filter_map(|s| s.lost).min()
    }

    pub(crate) fn outbox(&self, session: i64) -> Option<Arc<Outbox>> {
        self.lock().sessions.get(&session).map(|s| Arc::clone(&s.outbox))
    }

    // ── outcomes on their way ───────────────────────────────────────────────────────────────────

    pub(crate) fn settling(&self, lease: LeaseId) {
        self.lock().settling.insert(lease);
    }

    pub(crate) fn settled(&self, leases: impl Iterator<Item = LeaseId>) {
        let mut inner = self.lock();
        for lease in leases {
            inner.settling.remove(&lease);
        }
        drop(inner);
        self.unsettled.notify_waiters();
    }

    /// Waits until no outcome of these leases is on the way.
    pub(crate) async fn settled_all(&self, leases: &[LeaseId]) {
        loop {
            let change = self.unsettled.notified();
            if !leases.iter().any(|lease| self.lock().settling.contains(lease)) {
                return;
            }
            change.await;
        }
    }

    /// True when some session holds it or its outcome is on the way.
    pub(crate) fn knows(&self, lease: LeaseId) -> bool {
        let inner = self.lock();
        inner.settling.contains(&lease)
            || inner.sessions.values().any(|s| s.leases.contains_key(&lease))
    }
}

impl Inner {
    /// Steps may wait for a slot.
    fn is_wanted(&self) -> bool {
        self.unseen || !self.heads.is_empty()
    }

    /// Of which priorities steps are known to wait for the session's slots.
    fn waiting(&self, session: i64) -> Vec<i16> {
        let Some(session) = self.sessions.get(&session) else { return Vec::new() };
        let heads = self.heads.keys().filter(|queue| session.queues.contains(queue));
        let mut waiting: Vec<i16> = heads.map(|queue| self.priorities.of(*queue)).collect();
        waiting.sort_unstable();
        waiting.dedup();
        waiting
    }

    fn remove(&mut self, id: i64) -> Vec<Owned> {
        let Some(session) = self.sessions.remove(&id) else { return Vec::new() };
        for queue in &session.queues {
            if let Some(serving) = self.serving.get_mut(queue) {
                serving.retain(|s| *s != id);
            }
        }
        let owned =
            session.leases.into_iter().map(|(lease, held)| Owned { session: id, lease, held });
        let owned: Vec<Owned> = owned.collect();
        for o in &owned {
            self.deadlines.remove(&(o.held.deadline, id, o.lease));
        }
        owned
    }

    fn release(&mut self, session: i64, lease: LeaseId) -> Option<Held> {
        let held = self.sessions.get_mut(&session)?.leases.remove(&lease)?;
        self.deadlines.remove(&(held.deadline, session, lease));
        Some(held)
    }

    fn unreserve<'a>(&mut self, slots: impl Iterator<Item = &'a i64>) {
        for session in slots {
            if let Some(s) = self.sessions.get_mut(session) {
                s.reserved = s.reserved.saturating_sub(1);
            }
        }
    }

    /// One free slot that serves the queue: of the preferred session, else of the one whose turn
    /// it is.
    fn reserve(&mut self, queue: i32, preferred: Option<i64>) -> Option<i64> {
        let serving = self.serving.get_mut(&queue)?;
        let preferred = preferred.filter(|id| {
            self.sessions.get(id).is_some_and(|s| s.free() > 0 && s.queues.contains(&queue))
        });
        let chosen = match preferred {
            Some(id) => id,
            None => {
                let turn = serving
                    .iter()
                    .position(|id| self.sessions.get(id).is_some_and(|s| s.free() > 0))?;
                serving.rotate_left(turn + 1);
                *serving.back()?
            }
        };
        self.sessions.get_mut(&chosen)?.reserved += 1;
        Some(chosen)
    }
}

fn add(granted: &mut Vec<(i32, Vec<i64>)>, queue: i32, session: i64) {
    match granted.iter_mut().find(|(q, _)| *q == queue) {
        Some((_, sessions)) => sessions.push(session),
        None => granted.push((queue, vec![session])),
    }
}

fn slots(granted: Vec<(i32, Vec<i64>)>) -> Slots {
    let mut slots = Slots::default();
    for (queue, sessions) in granted {
        slots.push(queue, sessions);
    }
    slots
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn open(sessions: &Sessions, id: i64, queues: &[i32], slots: usize) -> Arc<Outbox> {
        let outbox = Arc::new(Outbox::default());
        let queues = queues.iter().copied().collect();
        sessions.open(id, Arc::new(Offer::default()), queues, slots, false, Arc::clone(&outbox));
        outbox
    }

    fn queue(id: i32, priority: i16) -> QueueRow {
        let (handler, requires) = ("h".into(), std::collections::BTreeMap::new());
        QueueRow { id, definition: 1, handler, requires, priority, version: vec![1, 0, 0] }
    }

    fn reserve(sessions: &Sessions, children: &[(i32, i64, i64)]) -> Vec<Option<i64>> {
        let child = |(queue, step, session): &(i32, i64, i64)| {
            let (queue, step, session) = (*queue, *step, *session);
            Child { queue, like: queue, step, session, sure: true }
        };
        sessions.reserve_for_children(&children.iter().map(child).collect::<Vec<_>>())
    }

    fn lease(step: i64, session: i64) -> LeaseRow {
        LeaseRow {
            step,
            token: step + 1,
            attempt: 1,
            max_attempts: 3,
            queue: 1,
            session,
            ..LeaseRow::default()
        }
    }

    fn id(step: i64) -> LeaseId {
        LeaseId { step, token: step + 1, attempt: 1 }
    }

    #[test]
    fn no_slot_is_granted_twice() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1, 2], 2);
        let first = sessions.reserve_for_ready(&[(1, 1, 10), (2, 2, 11), (1, 3, 12)], &[1, 2]);
        assert_eq!(first.sessions().count(), 2);
        assert_eq!(reserve(&sessions, &[(1, 5, 7)]), [None]);
        sessions.unreserve(first.sessions());
        let children = [(1, 5, 7), (1, 5, 7), (1, 6, 7), (1, 8, 7)];
        let once = [Some(7), None, Some(7), None];
        assert_eq!(reserve(&sessions, &children), once);
    }

    #[test]
    fn queues_share_a_quarter_of_the_free_slots_unless_older_steps_wait() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1, 2], 16);
        let (shares, each) = sessions.reserve_shares(&[1, 2], 16).unwrap();
        assert_eq!((shares.sessions().count(), each), (4, 2));
        sessions.unreserve(shares.sessions());
        assert!(sessions.reserve_shares(&[1, 2], 7).is_none(), "too few for both");
        open(&sessions, 8, &[3], 200);
        assert!(
            sessions.reserve_shares(&[1, 3], 216).is_none(),
            "a queue that cannot be given its share has to be looked at"
        );
        let (shares, each) = sessions.reserve_shares(&[3], 200).unwrap();
        assert_eq!(
            (shares.sessions().count(), each),
            (50, 50),
            "and what was reserved for others is given back"
        );
        sessions.unreserve(shares.sessions());
        let all: Vec<_> = (0..17).map(|step| (1, step, step)).collect();
        let taken = sessions.reserve_for_ready(&all, &[1]);
        sessions.unreserve(taken.sessions());
        assert!(
            sessions.reserve_shares(&[1, 2], 16).is_none(),
            "the oldest that waits comes first"
        );
    }

    #[test]
    fn the_first_slot_that_frees_rings_when_a_queue_was_not_looked_at_for_want_of_one() {
        let sessions = Sessions::default();
        let rung = |sessions: &Sessions| sessions.freed.notified().now_or_never().is_some();
        open(&sessions, 7, &[1], 1);
        open(&sessions, 8, &[2], 9);
        assert!(rung(&sessions), "a session came");
        sessions.hold(&lease(3, 7), Duration::from_secs(1), None);
        assert_eq!(sessions.open_queues(true), (vec![2], 9));
        sessions.release(7, id(3));
        assert!(rung(&sessions), "a step of queue 1 may have become ready meanwhile");
        assert_eq!(sessions.open_queues(true).1, 10);
        sessions.hold(&lease(4, 7), Duration::from_secs(1), None);
        sessions.release(7, id(4));
        assert!(!rung(&sessions), "all was looked at");
    }

    #[test]
    fn with_several_priorities_what_waits_is_looked_at_though_no_slot_is_free() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1, 2], 1);
        sessions.hold(&lease(3, 7), Duration::from_secs(1), None);
        assert!(sessions.open_queues(true).0.is_empty(), "all are alike");
        sessions.know_queues(&[queue(2, 5)]);
        assert_eq!(sessions.open_queues(true).0.len(), 2);
        assert!(sessions.open_queues(false).0.is_empty(), "it is not time yet");
        let rung = || sessions.freed.notified().now_or_never();
        rung();
        sessions.release(7, id(3));
        assert!(rung().is_some(), "nobody looked meanwhile");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_quiet_when_nothing_is_heard_of_it_but_late_when_its_time_is_up() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1], 9);
        let seconds = Duration::from_secs;
        let began = Instant::now();
        sessions.hold(&lease(3, 7), seconds(25), Some(seconds(10)));
        let overdue = |at: u64| {
            let (overdue, next) = sessions.take_overdue(began + seconds(at));
            let quiet: Vec<bool> = overdue.iter().map(|owned| owned.held.is_quiet()).collect();
            (quiet, next.map(|next| next - began))
        };
        assert_eq!(overdue(9), (vec![], Some(seconds(10))));
        tokio::time::advance(seconds(9)).await;
        sessions.progress(7, [id(3), id(4)].into_iter());
        assert_eq!(overdue(18), (vec![], Some(seconds(19))), "heard at 9");
        tokio::time::advance(seconds(9)).await;
        sessions.progress(8, [id(3)].into_iter());
        assert_eq!(overdue(18), (vec![], Some(seconds(19))), "another has no say in it");
        sessions.progress(7, [id(3)].into_iter());
        assert_eq!(overdue(24), (vec![], Some(seconds(25))), "no heartbeat makes it longer");
        assert_eq!(overdue(25), (vec![false], None));
        sessions.hold(&lease(4, 7), seconds(25), Some(seconds(10)));
        assert_eq!(overdue(28), (vec![true], None));
    }

    #[test]
    fn a_held_lease_takes_its_slot_until_it_ends() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1], 1);
        assert!(sessions.hold(&lease(3, 7), Duration::from_secs(1), None));
        assert_eq!(reserve(&sessions, &[(1, 5, 7)]), [None]);
        assert!(sessions.release(7, id(3)).is_some() && sessions.release(7, id(3)).is_none());
        assert_eq!(reserve(&sessions, &[(1, 5, 7)]), [Some(7)]);
    }

    #[test]
    fn who_asks_for_leases_gets_so_many_and_no_more_than_it_has_slots() {
        let sessions = Sessions::default();
        let (offer, outbox) = (Arc::default(), Arc::default());
        sessions.open(7, offer, HashSet::from([1]), 3, true, outbox);
        let reserved = |steps: std::ops::Range<i64>| {
            let ready: Vec<_> = steps.map(|step| (1, step, step)).collect();
            let slots = sessions.reserve_for_ready(&ready, &[1]);
            slots.sessions().count()
        };
        assert_eq!(reserved(0..9), 0, "it did not ask");
        sessions.ask(7, 2);
        assert_eq!(reserved(0..9), 2);
        assert_eq!(reserved(0..9), 0);
        for step in 0..2 {
            sessions.hold(&lease(step, 7), Duration::from_secs(1), None);
        }
        sessions.unreserve([7, 7].iter());
        assert_eq!(reserved(2..9), 0, "it has what it asked for");
        sessions.release(7, id(0));
        assert_eq!(reserved(2..9), 0, "a slot that frees is not asked for");
        sessions.ask(7, 9);
        assert_eq!(reserved(2..9), 2, "it has three slots, one of them taken");
    }

    #[test]
    fn a_younger_child_does_not_go_past_the_oldest_waiting_step() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1], 1);
        let taken = sessions.reserve_for_ready(&[(1, 1, 10), (1, 2, 20)], &[1]);
        sessions.unreserve(taken.sessions());
        assert_eq!(reserve(&sessions, &[(1, 30, 7)]), [None]);
        assert_eq!(reserve(&sessions, &[(1, 15, 7)]), [Some(7)]);
    }

    #[test]
    fn a_child_gets_its_parent_s_slot_in_its_turn_while_other_priorities_wait_for_it() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1, 2], 1);
        open(&sessions, 8, &[1], 1);
        sessions.know_queues(&[queue(1, 1), queue(2, 5)]);
        let taken = sessions.reserve_for_ready(&[(2, 1, 10), (2, 2, 20)], &[1, 2]);
        sessions.unreserve(taken.sessions());
        let child = |session, sure| Child { queue: 1, like: 1, step: 30, session, sure };
        let once = |child| {
            let slots = sessions.reserve_for_children(&[child]);
            sessions.unreserve(slots.iter().flatten());
            slots[0].is_some()
        };
        assert!(!once(child(7, false)), "it may have to wait for another parent");
        assert!(once(child(8, false)), "none of queue 2 waits for this slot");
        let turns = (0..170).filter(|_| once(child(7, true))).count();
        assert!((15..=17).contains(&turns), "until queue 2 has had its turn, but {turns}");
    }

    #[test]
    fn slots_go_round_but_a_child_prefers_its_parent_s_session() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1], 5);
        open(&sessions, 8, &[1], 5);
        let granted =
            sessions.reserve_for_ready(&[(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 4)], &[1]);
        let of = |s: i64| granted.sessions().filter(|x| **x == s).count();
        assert_eq!((of(7), of(8)), (2, 2));
        assert_eq!(reserve(&sessions, &[(1, 5, 8), (1, 6, 8)]), [Some(8), Some(8)]);
    }

    #[tokio::test(start_paused = true)]
    async fn time_out_and_grace_each_end_a_lease_once() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1], 5);
        sessions.hold(&lease(3, 7), Duration::from_secs(1), None);
        sessions.hold(&lease(4, 7), Duration::from_secs(9), None);
        let now = Instant::now();
        assert!(sessions.take_overdue(now).0.is_empty());
        let (overdue, next) = sessions.take_overdue(now + Duration::from_secs(1));
        assert_eq!((overdue.len(), next), (1, Some(now + Duration::from_secs(9))));
        sessions.lose(7, now + Duration::from_secs(2));
        assert!(sessions.take_lapsed(now).is_empty());
        assert_eq!(sessions.take_lapsed(now + Duration::from_secs(2)).len(), 1);
        assert!(sessions.take_overdue(now + Duration::from_secs(99)).0.is_empty());
    }

    #[test]
    fn an_adopted_lease_is_no_longer_its_old_session_s() {
        let sessions = Sessions::default();
        open(&sessions, 7, &[1], 5);
        open(&sessions, 8, &[1], 5);
        sessions.hold(&lease(3, 7), Duration::from_secs(1), None);
        sessions.lose(7, Instant::now());
        sessions.hold(&lease(3, 8), Duration::from_secs(1), None);
        sessions.forget(&[id(3)], 8);
        assert!(sessions.take_lapsed(Instant::now()).is_empty());
        assert!(sessions.knows(id(3)));
    }
}
