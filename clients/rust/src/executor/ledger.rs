//! What an executor holds: leases that wait for a slot, handlers that run, outcomes that are not
//! acknowledged. Pure memory; `session.rs` acts on it.

use std::collections::{HashMap, VecDeque};

use stepwell_proto::v1::{Lease, Outcome};
use stepwell_trace::TraceContext;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// More leases than this never wait: what a service sends above it goes back.
const WAITING_MAX: usize = 10_000;
/// A hello names at most this many held leases.
const HELD_MAX: usize = 10_000;

/// The leases of one executor.
pub(super) struct Ledger {
    slots: usize,
    waiting: VecDeque<Waiting>,
    held: HashMap<String, Held>,
    running: usize,
}

/// A lease whose handler was not started.
pub(super) struct Waiting {
    pub(super) lease: Lease,
    /// When it came.
    pub(super) at: Instant,
}

enum Held {
    /// Its handler runs; the token stops it.
    Running(CancellationToken, About),
    /// Its lease is void, but its handler still uses the slot.
    Void,
    /// Its handler has ended; the outcome is about to be kept.
    Ended(About),
    /// Its outcome is not acknowledged.
    Finished { outcome: Box<Outcome>, sent: bool, about: About },
}

/// Which step a lease is of, for lines of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct About {
    /// The step's id, which begins with its task's.
    pub(super) step: String,
    /// Which attempt; 0: the lease was not started.
    pub(super) attempt: i32,
    /// Where in a trace it is.
    pub(super) trace: Option<TraceContext>,
}

impl About {
    pub(super) fn of(lease: &Lease) -> Self {
        let (step, attempt) = (lease.step_id.clone(), lease.attempt);
        Self { step, attempt, trace: TraceContext::parse(&lease.traceparent) }
    }
}

/// Whether the outcome of a handler that ended is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Wanted,
    Void,
}

impl Ledger {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots, waiting: VecDeque::new(), held: HashMap::new(), running: 0 }
    }

    /// True if the lease is here, be it void.
    pub(super) fn knows(&self, lease_id: &str) -> bool {
        self.held.contains_key(lease_id)
            || self.waiting.iter().any(|w| w.lease.lease_id == lease_id)
    }

    /// True while its handler runs and its lease is not void.
    pub(super) fn runs(&self, lease_id: &str) -> bool {
        matches!(self.held.get(lease_id), Some(Held::Running(..)))
    }

    /// True when no more leases may wait.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }

    /// The lease waits for a slot.
    pub(super) fn wait(&mut self, lease: Lease, at: Instant) {
        self.waiting.push_back(Waiting { lease, at });
    }

    /// True while a handler uses a slot.
    pub(super) fn is_running(&self) -> bool {
        self.running > 0
    }

    /// The next lease to start, if a slot is free.
    pub(super) fn next(&mut self) -> Option<Waiting> {
        if self.running < self.slots { self.waiting.pop_front() } else { None }
    }

    /// The handler of a lease was started and uses a slot.
    pub(super) fn start(&mut self, lease: &Lease, stop: CancellationToken) {
        self.held.insert(lease.lease_id.clone(), Held::Running(stop, About::of(lease)));
        self.running += 1;
    }

    /// A handler ended; its slot is free.
    pub(super) fn end(&mut self, lease_id: &str) -> Ending {
        self.running -= 1;
        match self.held.remove(lease_id) {
            Some(Held::Running(_, about)) => {
                self.held.insert(lease_id.to_owned(), Held::Ended(about));
                Ending::Wanted
            }
            _ => Ending::Void,
        }
    }

    /// This outcome is to be kept until it is acknowledged.
    pub(super) fn finish(&mut self, outcome: Outcome, sent: bool) {
        let about = match self.held.remove(&outcome.lease_id) {
            Some(Held::Ended(about)) => about,
            _ => About::default(),
        };
        let (lease_id, outcome) = (outcome.lease_id.clone(), Box::new(outcome));
        self.held.insert(lease_id, Held::Finished { outcome, sent, about });
    }

    /// An outcome was answered. None: there was none to answer.
    pub(super) fn acknowledge(&mut self, lease_id: &str) -> Option<(Outcome, About)> {
        match self.held.remove(lease_id) {
            Some(Held::Finished { outcome, about, .. }) => Some((*outcome, about)),
            Some(other) => {
                self.held.insert(lease_id.to_owned(), other);
                None
            }
            None => None,
        }
    }

    /// True if its handler has ended, and the outcome waits to be acknowledged.
    pub(super) fn has_outcome(&self, lease_id: &str) -> bool {
        matches!(self.held.get(lease_id), Some(Held::Finished { .. }))
    }

    /// An outcome is to be sent again later.
    pub(super) fn postpone(&mut self, lease_id: &str) {
        if let Some(Held::Finished { sent, .. }) = self.held.get_mut(lease_id) {
            *sent = false;
        }
    }

    /// A lease is void: nothing is reported of it, and its handler is stopped. None: it was not
    /// held.
    pub(super) fn void(&mut self, lease_id: &str) -> Option<About> {
        match self.held.get_mut(lease_id) {
            Some(Held::Void) => None,
            Some(held @ Held::Running(..)) => match std::mem::replace(held, Held::Void) {
                Held::Running(stop, about) => {
                    stop.cancel();
                    Some(about)
                }
                _ => None,
            },
            Some(Held::Finished { .. } | Held::Ended(_)) => match self.held.remove(lease_id)? {
                Held::Finished { about, .. } | Held::Ended(about) => Some(about),
                _ => None,
            },
            None => {
                let at = self.waiting.iter().position(|w| w.lease.lease_id == lease_id)?;
                self.waiting.remove(at).map(|waiting| About::of(&waiting.lease))
            }
        }
    }

    /// Leases that were not started, which are held no longer.
    pub(super) fn take_waiting(&mut self) -> Vec<String> {
        self.waiting.drain(..).map(|w| w.lease.lease_id).collect()
    }

    /// Tells every handler to stop.
    pub(super) fn stop_all(&self) {
        for held in self.held.values() {
            if let Held::Running(stop, _) = held {
                stop.cancel();
            }
        }
    }

    /// Leases that a new stream should name.
    pub(super) fn ids(&self) -> Vec<String> {
        let held = self.held.iter().filter(|(_, held)| !matches!(held, Held::Void));
        let held = held.map(|(id, _)| id.clone());
        held.chain(self.waiting.iter().map(|w| w.lease.lease_id.clone())).take(HELD_MAX).collect()
    }

    /// Outcomes to send: all that are not acknowledged, or only those not sent. They count as sent.
    pub(super) fn unsent(&mut self, all: bool) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for held in self.held.values_mut() {
            if let Held::Finished { outcome, sent, .. } = held
                && (all || !*sent)
            {
                *sent = true;
                outcomes.push((**outcome).clone());
            }
        }
        outcomes
    }

    /// How many outcomes are not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.held.values().filter(|h| matches!(h, Held::Finished { .. })).count()
    }

    /// True when nothing is held and nothing runs.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str) -> Lease {
        Lease { lease_id: id.into(), step_id: format!("step of {id}"), ..Default::default() }
    }

    fn outcome(id: &str) -> Outcome {
        Outcome { lease_id: id.into(), ..Outcome::default() }
    }

    fn start_next(ledger: &mut Ledger) -> Option<(String, CancellationToken)> {
        let waiting = ledger.next()?;
        let stop = CancellationToken::new();
        ledger.start(&waiting.lease, stop.clone());
        Some((waiting.lease.lease_id, stop))
    }

    #[test]
    fn a_lease_waits_until_a_slot_is_free_even_of_a_handler_that_is_being_stopped() {
        let mut ledger = Ledger::new(1);
        for id in ["a", "b"] {
            ledger.wait(lease(id), Instant::now());
        }
        assert!(ledger.knows("b") && !ledger.knows("c"));
        let (id, stop) = start_next(&mut ledger).unwrap();
        assert!(id == "a" && start_next(&mut ledger).is_none());
        assert!(ledger.void("a").is_some() && stop.is_cancelled());
        assert!(ledger.void("a").is_none());
        assert!(start_next(&mut ledger).is_none() && ledger.knows("a") && ledger.is_running());
        assert_eq!(ledger.end("a"), Ending::Void);
        assert!(!ledger.knows("a") && !ledger.is_running());
        assert_eq!(start_next(&mut ledger).unwrap().0, "b");
        assert!(ledger.knows("b"));
    }

    #[test]
    fn a_new_stream_names_what_waits_what_runs_and_what_is_not_acknowledged() {
        let mut ledger = Ledger::new(3);
        for id in ["void", "run", "done", "wait"] {
            ledger.wait(lease(id), Instant::now());
        }
        for _ in 0..3 {
            start_next(&mut ledger);
        }
        ledger.void("void");
        assert_eq!(ledger.end("done"), Ending::Wanted);
        ledger.finish(outcome("done"), true);
        let mut ids = ledger.ids();
        ids.sort();
        assert_eq!(ids, ["done", "run", "wait"]);
        assert_eq!(ledger.unsent(false), []);
        assert_eq!(ledger.unsent(true), [outcome("done")]);
        assert_eq!(ledger.acknowledge("run"), None);
        let (acknowledged, about) = ledger.acknowledge("done").unwrap();
        assert_eq!((acknowledged, about.step.as_str()), (outcome("done"), "step of done"));
        assert_eq!(ledger.acknowledge("done"), None);
    }

    #[test]
    fn a_void_lease_is_forgotten_wherever_it_is() {
        let mut ledger = Ledger::new(1);
        ledger.wait(lease("a"), Instant::now());
        ledger.wait(lease("b"), Instant::now());
        start_next(&mut ledger);
        ledger.end("a");
        ledger.finish(outcome("a"), false);
        let voided = ["a", "b", "c"].map(|id| ledger.void(id).map(|about| about.step));
        assert_eq!(voided, [Some("step of a".into()), Some("step of b".into()), None]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_postponed_outcome_is_sent_again() {
        let mut ledger = Ledger::new(1);
        ledger.finish(outcome("a"), true);
        assert_eq!(ledger.unsent(false), []);
        ledger.postpone("a");
        assert_eq!(ledger.unsent(false), [outcome("a")]);
        assert_eq!(ledger.unacknowledged(), 1);
    }
}
