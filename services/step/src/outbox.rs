//! What waits to be sent to one executor. Bounded by what it answers: leases by the session's
//! slots, acks by the outcomes and publications it sent (the reader stops when too many wait), cancels by leases.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prost::Message;
use stepwell_proto::v1::{
    Ack, Drain, Heartbeat, Lease, LeaseCancel, PublishAck, Welcome, WorkResponse,
};
use tokio::{sync::Notify, time::Instant};

const FRAME_ITEMS_MAX: usize = 256;
const FRAME_BYTES_MAX: usize = 256 * 1024;
const ACKS_WAITING_MAX: usize = 10_000;

/// The queue of one stream.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    changed: Notify,
    room: Notify,
    /// Rings when acks come, and when it is closed.
    acked: Notify,
}

/// What one call takes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Taken {
    pub(crate) leases: Vec<Lease>,
    pub(crate) cancels: Vec<LeaseCancel>,
    pub(crate) drain: Option<Drain>,
    /// There was nothing, and nothing will come.
    pub(crate) closed: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    welcome: Option<Welcome>,
    leases: VecDeque<Lease>,
    acks: VecDeque<Ack>,
    published: VecDeque<PublishAck>,
    cancels: VecDeque<LeaseCancel>,
    drain: Option<Drain>,
    closed: bool,
    /// Since when something waits and nothing is taken.
    since: Option<Instant>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.welcome.is_none()
            && self.leases.is_empty()
            && self.acks.is_empty()
            && self.published.is_empty()
            && self.cancels.is_empty()
            && self.drain.is_none()
    }
}

impl Waiting {
    /// Few enough answers wait for more to be asked.
    fn has_room(&self) -> bool {
        self.acks.len() + self.published.len() < ACKS_WAITING_MAX
    }
}

impl Outbox {
    /// Changes what waits, and says so to whoever sends it.
    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let answer = self.take_of(change);
        self.changed.notify_one();
        answer
    }

    /// Takes some of what waits.
    fn take_of<T>(&self, take: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = take(&mut waiting);
        if waiting.is_empty() {
            waiting.since = None;
        } else if waiting.since.is_none() {
            waiting.since = Some(Instant::now());
        }
        answer
    }

    pub(crate) fn welcome(&self, welcome: Welcome) {
        self.with(|w| w.welcome = Some(welcome));
    }

    /// Leases and acks of one commit, which so travel together. False: the stream is gone.
    pub(crate) fn push(&self, leases: Vec<Lease>, acks: Vec<Ack>) -> bool {
        self.with(|w| {
            if w.closed {
                return false;
            }
            w.leases.extend(leases);
            if !acks.is_empty() {
                w.acks.extend(acks);
                self.acked.notify_waiters();
            }
            true
        })
    }

    /// Answers to what was published.
    pub(crate) fn published(&self, acks: impl IntoIterator<Item = PublishAck>) {
        self.with(|w| {
            if !w.closed {
                w.published.extend(acks);
            }
        });
    }

    /// A lease is void. Answers true when it had not been sent yet, so that nobody need be told.
    pub(crate) fn cancel(&self, cancel: LeaseCancel) -> bool {
        self.with(|w| {
            let before = w.leases.len();
            w.leases.retain(|lease| lease.lease_id != cancel.lease_id);
            let unsent = w.leases.len() < before;
            if !unsent {
                w.cancels.push_back(cancel);
            }
            unsent
        })
    }

    /// The executor is to go elsewhere within this time.
    pub(crate) fn drain(&self, deadline: Duration) {
        let deadline = prost_types::Duration::try_from(deadline).ok();
        // What it was not told yet stays: one that is to stop does not go on elsewhere.
        self.with(|w| w.drain = Some(Drain { deadline, ..w.drain.take().unwrap_or_default() }));
    }

    /// The executor is to stop.
    pub(crate) fn stop(&self, reason: &str) {
        self.with(|w| {
            let drain = w.drain.get_or_insert_default();
            drain.stop = true;
            reason.clone_into(&mut drain.reason);
        });
    }

    /// Ends the stream once what waits is sent.
    pub(crate) fn close(&self) {
        self.with(|w| w.closed = true);
        self.room.notify_one();
        self.acked.notify_waiters();
    }

    /// Closes it for good; answers the leases that were not sent.
    pub(crate) fn abandon(&self) -> Vec<Lease> {
        let unsent = self.with(|w| {
            w.closed = true;
            w.leases.drain(..).collect()
        });
        self.room.notify_one();
        self.acked.notify_waiters();
        unsent
    }

    // ── for executors without a stream ──────────────────────────────────────────────────────────

    /// The welcome, for an answer of its own.
    pub(crate) fn take_welcome(&self) -> Option<Welcome> {
        self.take_of(|w| w.welcome.take())
    }

    /// What there is but acks, as soon as there is something and up to a frame's bounds, with at most
    /// `max` leases. Nothing is taken when the wait is given up.
    pub(crate) async fn take(&self, max: usize, until: Instant) -> Taken {
        loop {
            let changed = self.changed.notified();
            let taken = self.take_of(|w| {
                let frame = take_frame(w, max, 0);
                let WorkResponse { leases, cancels, drain, .. } = frame;
                Taken { leases, cancels, drain, closed: w.closed }
            });
            if !taken.leases.is_empty() || !taken.cancels.is_empty() || taken.drain.is_some() {
                return Taken { closed: false, ..taken };
            }
            if taken.closed || tokio::time::timeout_at(until, changed).await.is_err() {
                return taken;
            }
        }
    }

    /// Leases that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.take_of(|w| w.leases.len())
    }

    /// Leases that nobody came for.
    pub(crate) fn take_leases(&self) -> Vec<Lease> {
        self.take_of(|w| w.leases.drain(..).collect())
    }

    /// Acks that nobody waits for any more.
    pub(crate) fn forget_acks(&self) {
        self.take_of(|w| w.acks.clear());
    }

    /// Waits for an ack of each of these leases; one that is named twice has two. Others are dropped.
    /// None: it was closed before.
    pub(crate) async fn acks_of(&self, leases: &[String]) -> Option<Vec<Ack>> {
        let mut came: HashMap<String, VecDeque<Ack>> = HashMap::new();
        let mut missing: HashMap<&str, usize> = HashMap::new();
        for lease in leases {
            *missing.entry(lease).or_default() += 1;
        }
        let mut left = leases.len();
        loop {
            let acked = self.acked.notified();
            let (acks, closed) = self.take_of(|w| (std::mem::take(&mut w.acks), w.closed));
            for ack in acks {
                let missing = missing.get_mut(ack.lease_id.as_str()).filter(|n| **n > 0);
                if let Some(n) = missing {
                    (*n, left) = (*n - 1, left - 1);
                    came.entry(ack.lease_id.clone()).or_default().push_back(ack);
                }
            }
            if left == 0 {
                return leases.iter().map(|lease| came.get_mut(lease)?.pop_front()).collect();
            }
            if closed {
                return None;
            }
            acked.await;
        }
    }

    /// Waits until it is closed.
    pub(crate) async fn ended(&self) {
        loop {
            let change = self.acked.notified();
            if self.take_of(|w| w.closed) {
                return;
            }
            change.await;
        }
    }

    /// Waits until few enough acks wait for the reader to take more outcomes.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.room.notified();
            {
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.closed || waiting.has_room() {
                    return;
                }
            }
            freed.await;
        }
    }

    /// True if something has waited for so long, and the executor took nothing.
    pub(crate) fn is_stuck(&self, patience: Duration) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        !waiting.is_empty() && waiting.since.is_some_and(|since| since.elapsed() >= patience)
    }

    /// The next message for the transport: what is there now, up to the frame's bounds, at once;
    /// a heartbeat when nothing was there for so long. None: the stream ends.
    pub(crate) async fn next(&self, heartbeat: Duration) -> Option<WorkResponse> {
        loop {
            let changed = self.changed.notified();
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if !waiting.is_empty() {
                    let frame = take_frame(&mut waiting, FRAME_ITEMS_MAX, FRAME_ITEMS_MAX);
                    waiting.since = (!waiting.is_empty()).then(Instant::now);
                    if waiting.has_room() {
                        self.room.notify_one();
                    }
                    return Some(frame);
                }
                if waiting.closed {
                    return None;
                }
            }
            if tokio::time::timeout(heartbeat, changed).await.is_err() {
                return Some(WorkResponse {
                    heartbeat: Some(Heartbeat {}),
                    ..WorkResponse::default()
                });
            }
        }
    }
}

fn take_frame(waiting: &mut Waiting, leases_max: usize, acks_max: usize) -> WorkResponse {
    // By itself: whoever reads the first message for its welcome alone misses nothing.
    if let welcome @ Some(_) = waiting.welcome.take() {
        return WorkResponse { welcome, ..WorkResponse::default() };
    }
    let mut frame = WorkResponse { drain: waiting.drain.take(), ..WorkResponse::default() };
    let (mut items, mut bytes) = (0, 0);
    let mut fits = |size: usize| {
        let fits = items == 0 || (items < FRAME_ITEMS_MAX && bytes + size <= FRAME_BYTES_MAX);
        items += 1;
        bytes += size;
        fits
    };
    while let Some(cancel) = waiting.cancels.pop_front_if(|c| fits(c.encoded_len())) {
        frame.cancels.push(cancel);
    }
    while frame.acks.len() < acks_max
        && let Some(ack) = waiting.acks.pop_front_if(|a| fits(a.encoded_len()))
    {
        frame.acks.push(ack);
    }
    while frame.published.len() < acks_max
        && let Some(ack) = waiting.published.pop_front_if(|a| fits(a.encoded_len()))
    {
        frame.published.push(ack);
    }
    while frame.leases.len() < leases_max
        && let Some(lease) = waiting.leases.pop_front_if(|l| fits(l.encoded_len()))
    {
        frame.leases.push(lease);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: usize, bytes: usize) -> Lease {
        Lease { lease_id: id.to_string(), context: "x".repeat(bytes), ..Lease::default() }
    }

    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_frame_is_bounded_in_items_and_bytes_and_loses_nothing() {
        let outbox = Outbox::default();
        let sizes = [10, 300_000, 10, 200_000, 100_000];
        let leases = (0..600).map(|i| lease(i, sizes.get(i).copied().unwrap_or(1)));
        assert!(outbox.push(leases.collect(), Vec::new()));
        outbox.close();
        let mut seen = Vec::new();
        while let Some(frame) = outbox.next(SOON).await {
            let large = frame.encoded_len() > FRAME_BYTES_MAX + 20_000;
            assert!(frame.leases.len() <= FRAME_ITEMS_MAX && (!large || frame.leases.len() == 1));
            seen.extend(frame.leases.into_iter().map(|l| l.lease_id));
        }
        assert_eq!(seen, (0..600).map(|i| i.to_string()).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_becomes_a_heartbeat() {
        let outbox = Outbox::default();
        assert!(outbox.next(Duration::from_secs(15)).await.unwrap().heartbeat.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_executor_is_stuck_when_something_waits_and_it_takes_nothing() {
        let (outbox, patience) = (Outbox::default(), Duration::from_secs(45));
        tokio::time::advance(patience).await;
        assert!(!outbox.is_stuck(patience), "nothing waits");
        outbox.push((0..2 * FRAME_ITEMS_MAX).map(|i| lease(i, 1)).collect(), Vec::new());
        assert!(!outbox.is_stuck(patience), "it has only begun to wait");
        tokio::time::advance(patience).await;
        assert!(outbox.is_stuck(patience));
        outbox.next(SOON).await.unwrap();
        assert!(!outbox.is_stuck(patience), "one frame was taken");
        tokio::time::advance(patience).await;
        assert!(outbox.is_stuck(patience), "and no other");
    }

    #[tokio::test]
    async fn a_lease_cancelled_before_it_was_sent_is_never_sent() {
        let outbox = Outbox::default();
        outbox.push(vec![lease(1, 1), lease(2, 1)], Vec::new());
        let cancel = |id: &str| LeaseCancel { lease_id: id.into(), reason: String::new() };
        assert!(outbox.cancel(cancel("1")));
        assert_eq!(outbox.next(SOON).await.unwrap().leases[0].lease_id, "2");
        assert!(!outbox.cancel(cancel("2")));
        assert_eq!(outbox.next(SOON).await.unwrap().cancels.len(), 1);
    }

    #[tokio::test]
    async fn the_welcome_comes_first_and_alone_however_early_an_outcome_was_answered() {
        let outbox = Outbox::default();
        outbox.push(vec![lease(1, 1)], vec![Ack::default()]);
        outbox.drain(SOON);
        outbox.welcome(Welcome::default());
        let first = outbox.next(SOON).await.unwrap();
        let alone = WorkResponse { welcome: Some(Welcome::default()), ..WorkResponse::default() };
        assert_eq!(first, alone);
        let second = outbox.next(SOON).await.unwrap();
        assert_eq!((second.acks.len(), second.leases.len(), second.drain.is_some()), (1, 1, true));
    }

    #[tokio::test]
    async fn who_is_to_stop_is_told_so_whatever_else_it_is_told_at_once() {
        for order in [true, false] {
            let outbox = Outbox::default();
            if order {
                outbox.stop("enough");
            }
            outbox.drain(SOON);
            if !order {
                outbox.stop("enough");
            }
            let drain = outbox.next(SOON).await.unwrap().drain.unwrap();
            assert!(drain.stop && drain.reason == "enough" && drain.deadline.is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_takes_what_there_is_but_acks_and_no_more_leases_than_it_may() {
        let outbox = Outbox::default();
        let soon = || Instant::now() + SOON;
        assert_eq!(outbox.take(5, soon()).await, Taken::default());
        outbox.push(vec![lease(1, 1), lease(2, 1), lease(3, 300_000)], vec![Ack::default()]);
        outbox.stop("");
        let taken = outbox.take(1, soon()).await;
        assert_eq!((taken.leases.len(), taken.drain.is_some()), (1, true));
        assert_eq!(outbox.take(5, soon()).await.leases.len(), 1, "the large one travels alone");
        assert_eq!(outbox.take(5, soon()).await.leases.len(), 1);
        assert_eq!(outbox.take(5, soon()).await, Taken::default(), "the ack is not for it");
        outbox.close();
        assert!(outbox.take(5, Instant::now() + Duration::from_secs(3600)).await.closed);
    }

    #[tokio::test]
    async fn a_report_waits_for_its_own_acks_each_once_and_in_order() {
        let outbox = Outbox::default();
        let ack = |lease_id: &str| Ack { lease_id: lease_id.into(), refusal: None };
        let leases = ["a", "b", "a"].map(str::to_owned);
        let report = outbox.acks_of(&leases);
        let answers = async {
            for of in [["c", "b"], ["a", "c"], ["a", "a"]] {
                outbox.push(Vec::new(), of.map(ack).into());
                tokio::task::yield_now().await;
            }
        };
        let (acks, ()) = tokio::join!(report, answers);
        assert_eq!(acks.unwrap(), ["a", "b", "a"].map(ack));
        outbox.close();
        assert_eq!(outbox.acks_of(&leases).await, None);
    }

    #[tokio::test]
    async fn what_was_not_sent_comes_back_when_the_stream_is_gone() {
        let outbox = Outbox::default();
        outbox.push(vec![lease(1, 1)], Vec::new());
        assert_eq!(outbox.abandon().len(), 1);
        assert!(!outbox.push(vec![lease(2, 1)], Vec::new()));
        assert!(outbox.next(SOON).await.is_none());
    }
}
