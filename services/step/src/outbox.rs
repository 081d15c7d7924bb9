//! What waits to be sent to one executor. Bounded by what it answers: leases by the session's
//! slots, acks by the outcomes it sent (the reader stops when too many wait), cancels by leases.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prost::Message;
use stepwell_proto::v1::{Ack, Drain, Heartbeat, Lease, LeaseCancel, Welcome, WorkResponse};
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
}

#[derive(Debug, Default)]
struct Waiting {
    welcome: Option<Welcome>,
    leases: VecDeque<Lease>,
    acks: VecDeque<Ack>,
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
            && self.cancels.is_empty()
            && self.drain.is_none()
    }
}

impl Outbox {
    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut waiting);
        if waiting.is_empty() {
            waiting.since = None;
        } else if waiting.since.is_none() {
            waiting.since = Some(Instant::now());
        }
        drop(waiting);
        self.changed.notify_one();
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
            w.acks.extend(acks);
            true
        })
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
    }

    /// Closes it for good; answers the leases that were not sent.
    pub(crate) fn abandon(&self) -> Vec<Lease> {
        let unsent = self.with(|w| {
            w.closed = true;
            w.leases.drain(..).collect()
        });
        self.room.notify_one();
        unsent
    }

    /// Waits until few enough acks wait for the reader to take more outcomes.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.room.notified();
            {
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.closed || waiting.acks.len() < ACKS_WAITING_MAX {
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
                    let frame = take_frame(&mut waiting);
                    waiting.since = (!waiting.is_empty()).then(Instant::now);
                    if waiting.acks.len() < ACKS_WAITING_MAX {
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

fn take_frame(waiting: &mut Waiting) -> WorkResponse {
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
    while let Some(ack) = waiting.acks.pop_front_if(|a| fits(a.encoded_len())) {
        frame.acks.push(ack);
    }
    while let Some(lease) = waiting.leases.pop_front_if(|l| fits(l.encoded_len())) {
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

    #[tokio::test]
    async fn what_was_not_sent_comes_back_when_the_stream_is_gone() {
        let outbox = Outbox::default();
        outbox.push(vec![lease(1, 1)], Vec::new());
        assert_eq!(outbox.abandon().len(), 1);
        assert!(!outbox.push(vec![lease(2, 1)], Vec::new()));
        assert!(outbox.next(SOON).await.is_none());
    }
}
