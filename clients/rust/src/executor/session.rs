//! The life of an executor, across all its streams: starts handlers for leases, reports outcomes
//! until they are acknowledged, moves to another stream, drains. One task owns all of it; handlers
//! run in tasks of their own, and `select!` is only around waiting.

use std::{collections::HashSet, future::pending, pin::pin, time::Duration};

use stepwell_proto::v1::{
    Ack, ErrorReason, Hello, Lease, Outcome, Publish, Welcome, WorkResponse, outcome::Kind,
};
use stepwell_trace::TraceContext;
use tokio::{
    select,
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{
    Executor, Observation, Report, StepContext,
    attempt::{self, Ended, STOP_GRACE},
    ledger::{About, Ending, Ledger, Waiting},
    link::{Link, Signal},
    publications::{Publications, Wish},
};
use crate::{error::Error, limits::after};

/// How long acknowledgements may take once every handler has ended.
const ACKS_TIMEOUT: Duration = Duration::from_secs(5);
/// Signs of progress that wait to be told; more are dropped, for their handlers make others.
const PROGRESS_MAX: usize = 1024;
/// Wishes to publish that wait to be taken; then handlers wait.
const WISHES_MAX: usize = 64;
const DRAINING: &str = "the executor drains";

pub(super) struct Session {
    executor: Executor,
    link: Link,
    /// The stream of a node that goes down, until the new one is welcomed.
    leaving: Option<Link>,
    ledger: Ledger,
    attempts: JoinSet<Ended>,
    drain: Option<Drain>,
    report: Report,
    /// Leases whose handlers make progress, from their contexts.
    progress: (mpsc::Sender<String>, mpsc::Receiver<String>),
    /// What handlers want to publish, from their contexts.
    wishes: (mpsc::Sender<Wish>, mpsc::Receiver<Wish>),
    publications: Publications,
}

/// The end of an executor: what it waits for, and until when.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drain {
    /// For handlers to end; then they are stopped.
    Handlers(Instant),
    /// For handlers that were told to stop; then they are left behind.
    Stopping(Instant),
    /// For acknowledgements; then they are given up.
    Acks(Instant),
}

enum Wake {
    Link(Signal),
    Leaving(Signal),
    Ended(Result<Ended, JoinError>),
    Progress(String),
    Wish(Wish),
    Shutdown,
    Late,
}

impl Session {
    pub(super) fn new(executor: Executor) -> Self {
        Self {
            link: Link::new(&executor.client),
            leaving: None,
            ledger: Ledger::new(executor.slots),
            attempts: JoinSet::new(),
            drain: None,
            report: Report::default(),
            progress: mpsc::channel(PROGRESS_MAX),
            wishes: mpsc::channel(WISHES_MAX),
            publications: Publications::default(),
            executor,
        }
    }

    pub(super) async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<Report, Error> {
        let mut shutdown = pin!(shutdown);
        let mut told = false;
        while !self.is_done() {
            let late = self.drain.map(Drain::until);
            let wake = select! {
                signal = self.link.next() => Wake::Link(signal),
                signal = next(&mut self.leaving) => Wake::Leaving(signal),
                Some(ended) = self.attempts.join_next() => Wake::Ended(ended),
                Some(lease_id) = self.progress.1.recv() => Wake::Progress(lease_id),
                Some(wish) = self.wishes.1.recv(), if self.publications.has_room() => Wake::Wish(wish),
                () = shutdown.as_mut(), if !told => Wake::Shutdown,
                () = until(late) => Wake::Late,
            };
            match wake {
                Wake::Link(signal) => self.on_link(signal)?,
                Wake::Leaving(signal) => self.on_leaving(signal),
                Wake::Ended(ended) => self.on_ended(ended),
                Wake::Progress(lease_id) => self.on_progress(lease_id),
                Wake::Wish(wish) => self.on_wish(wish),
                Wake::Shutdown => {
                    told = true;
                    self.begin_drain(after(self.executor.grace));
                }
                Wake::Late => {
                    if !self.on_late() {
                        break;
                    }
                }
            }
            self.start_what_fits();
            self.drain = self.drain.map(|drain| drain.after(self.ledger.is_running()));
        }
        self.report.unacknowledged =
            u64::try_from(self.ledger.unacknowledged()).unwrap_or(u64::MAX);
        self.link.close().await;
        Ok(self.report)
    }

    fn is_done(&self) -> bool {
        self.drain.is_some() && self.ledger.is_empty()
    }

    // ── what the service says ───────────────────────────────────────────────────────────────────

    fn on_link(&mut self, signal: Signal) -> Result<(), Error> {
        match signal {
            Signal::Ready => {
                let hello = self.hello();
                self.link.open(hello);
            }
            Signal::Message(message) => self.on_message(*message),
            Signal::Tick => {
                let outcomes = self.ledger.unsent(false);
                self.send(outcomes);
            }
            Signal::Lost(lost) if lost.is_final() => return Err(lost.into()),
            Signal::Lost(lost) => {
                let executor = &self.executor.hello.name;
                tracing::warn!(%executor, %lost, "stream lost; connecting again");
            }
        }
        Ok(())
    }

    fn on_leaving(&mut self, signal: Signal) {
        match signal {
            Signal::Message(message) => {
                self.on_cancels_and_acks(&message);
                self.on_leases(message.leases);
                if let Some(drain) = message.drain.filter(|drain| drain.stop) {
                    self.on_stop(&drain.reason);
                }
            }
            Signal::Tick => {}
            Signal::Ready | Signal::Lost(_) => self.leaving = None,
        }
    }

    fn hello(&self) -> Hello {
        let mut hello = self.executor.hello.clone();
        hello.held_leases = self.ledger.ids();
        if self.drain.is_some() {
            hello.slots = 0;
        }
        hello
    }

    fn on_message(&mut self, message: WorkResponse) {
        if let Some(welcome) = &message.welcome {
            self.on_welcome(welcome);
        }
        self.on_cancels_and_acks(&message);
        self.on_leases(message.leases);
        if let Some(drain) = &message.drain
            && drain.stop
        {
            self.on_stop(&drain.reason);
        }
        // One that goes down says until when, also to an executor that is to stop.
        if let Some(drain) = message.drain
            && (!drain.stop || drain.deadline.is_some())
        {
            let executor = &self.executor.hello.name;
            tracing::info!(%executor, deadline = ?drain.deadline, "the node sends us on; moving to another");
            let successor = self.link.successor();
            self.leaving = Some(std::mem::replace(&mut self.link, successor));
        }
    }

    fn on_welcome(&mut self, welcome: &Welcome) {
        tracing::info!(
            executor = %self.executor.hello.name, executor_id = %welcome.executor_id, adopted = welcome.adopted_leases.len(),
            lost = welcome.lost_leases.len(), unmatched = ?welcome.unmatched_handlers, "connected"
        );
        self.report.sessions += 1;
        self.leaving = None;
        // An outcome that is lost in name may have been taken on the stream before: it is reported
        // again, and the answer to that says which.
        for lease_id in &welcome.lost_leases {
            if !self.ledger.has_outcome(lease_id) {
                self.void(lease_id);
            }
        }
        // Whatever was sent on an earlier stream may not have arrived.
        let mut outcomes = self.ledger.unsent(true);
        // What ended on the stream that is left, after the hello: here it would use a slot for
        // nothing.
        let held: HashSet<String> = self.ledger.ids().into_iter().collect();
        let ended = welcome.adopted_leases.iter().filter(|id| !held.contains(*id));
        outcomes.extend(ended.map(|id| attempt::hand_back(id.clone(), "ended before")));
        self.publish(self.publications.unanswered());
        self.send(outcomes);
        if self.drain.is_some() {
            self.link.outbox().expect("was welcomed").drain();
        }
    }

    fn on_cancels_and_acks(&mut self, message: &WorkResponse) {
        for cancel in &message.cancels {
            self.void(&cancel.lease_id);
        }
        for ack in &message.published {
            self.publications.answer(ack.clone());
        }
        for ack in &message.acks {
            self.on_ack(ack);
        }
    }

    fn void(&mut self, lease_id: &str) {
        self.publications.forget(lease_id);
        if let Some(About { step, attempt, trace }) = self.ledger.void(lease_id) {
            let trace_id = trace.map(TraceContext::trace_id);
            tracing::debug!(%step, attempt, trace_id, "lease is void");
            self.report.voided += 1;
        }
    }

    fn on_ack(&mut self, ack: &Ack) {
        if ack.refusal.as_ref().is_some_and(|refusal| may_pass(refusal.reason())) {
            self.ledger.postpone(&ack.lease_id);
            return;
        }
        let Some((outcome, about)) = self.ledger.acknowledge(&ack.lease_id) else { return };
        self.observe(Observation::Acknowledged(ack));
        match (&ack.refusal, outcome.kind) {
            (Some(refusal), _) => {
                let About { step, attempt, trace } = about;
                let (trace_id, reason) = (trace.map(TraceContext::trace_id), refusal.reason());
                tracing::info!(%step, attempt, trace_id, ?reason, "outcome refused");
                self.report.refused += 1;
            }
            (None, Some(Kind::Complete(_))) => self.report.completed += 1,
            (None, Some(Kind::HandBack(_))) => self.report.handed_back += 1,
            (None, _) => self.report.failed += 1,
        }
    }

    fn on_leases(&mut self, leases: Vec<Lease>) {
        let now = Instant::now();
        let mut returned = Vec::new();
        for lease in leases {
            if self.ledger.knows(&lease.lease_id) {
                continue;
            }
            if self.drain.is_some() {
                returned.push(attempt::hand_back(lease.lease_id, DRAINING));
            } else if self.ledger.is_full() {
                returned.push(attempt::hand_back(lease.lease_id, "too many leases"));
            } else {
                self.report.leases += 1;
                self.observe(Observation::Leased(&lease));
                self.ledger.wait(lease, now);
                self.start_what_fits();
            }
        }
        self.finish(returned);
    }

    // ── handlers ────────────────────────────────────────────────────────────────────────────────

    fn start_what_fits(&mut self) {
        let mut unknown = Vec::new();
        while let Some(Waiting { lease, at }) = self.ledger.next() {
            let Some(handler) = self.executor.handlers.of(&lease) else {
                unknown.push(attempt::unknown_handler(lease));
                continue;
            };
            let stop = CancellationToken::new();
            self.ledger.start(&lease, stop.clone());
            let deadline = attempt::deadline(&lease, at);
            let client = self.executor.client.clone();
            let (cancelled, progress) = (stop.child_token(), self.progress.0.clone());
            let step = StepContext::new(
                lease,
                deadline,
                cancelled,
                client,
                progress,
                self.wishes.0.clone(),
            );
            self.attempts.spawn(attempt::run(handler.clone(), step, deadline, stop));
        }
        self.finish(unknown);
    }

    /// Handlers made progress: of this lease, and of whichever others by now. Without a stream it is
    /// not told: whoever takes the lease up again gives it its whole time.
    fn on_progress(&mut self, first: String) {
        let others = std::iter::from_fn(|| self.progress.1.try_recv().ok());
        let leases: Vec<String> = std::iter::once(first).chain(others).collect();
        if let Some(outbox) = self.outbox() {
            outbox.progress(leases);
        }
    }

    /// A handler wants to publish. Without a stream that is said on the next one.
    fn on_wish(&mut self, wish: Wish) {
        // Of a lease that is over meanwhile nothing is published: the handler is told by the answer that
        // never comes.
        if self.ledger.runs(&wish.lease_id) {
            let publish = self.publications.add(wish);
            self.publish(vec![publish]);
        }
    }

    fn publish(&self, publish: Vec<Publish>) {
        if let Some(outbox) = self.outbox()
            && !publish.is_empty()
        {
            outbox.publish(publish);
        }
    }

    /// Handlers ended: this one, and whichever others have by now.
    fn on_ended(&mut self, first: Result<Ended, JoinError>) {
        let mut outcomes = Vec::new();
        let mut next = Some(first);
        while let Some(ended) = next {
            // Attempts catch panics, so an error only says that the runtime goes down.
            if let Ok(Ended { lease_id, outcome }) = ended {
                self.publications.forget(&lease_id);
                if self.ledger.end(&lease_id) == Ending::Wanted {
                    outcomes.push(outcome);
                }
            }
            next = self.attempts.try_join_next();
        }
        self.finish(outcomes);
    }

    /// Keeps the outcomes until they are acknowledged, and sends them.
    fn finish(&mut self, outcomes: Vec<Outcome>) {
        let sent = self.outbox().is_some();
        for outcome in &outcomes {
            self.observe(Observation::Ended(outcome));
            self.ledger.finish(outcome.clone(), sent);
        }
        self.send(outcomes);
    }

    fn send(&self, outcomes: Vec<Outcome>) {
        if let Some(outbox) = self.outbox()
            && !outcomes.is_empty()
        {
            outbox.report(outcomes);
        }
    }

    fn outbox(&self) -> Option<&super::outbox::Outbox> {
        self.link.outbox().or_else(|| self.leaving.as_ref()?.outbox())
    }

    fn observe(&self, observation: Observation<'_>) {
        if let Some(observer) = &self.executor.observer {
            observer(observation);
        }
    }

    // ── the end ─────────────────────────────────────────────────────────────────────────────────

    fn on_stop(&mut self, reason: &str) {
        tracing::info!(executor = %self.executor.hello.name, reason, "told to stop");
        self.report.stopped = true;
        self.begin_drain(after(Duration::MAX));
    }

    /// Takes no more steps; running handlers have until then.
    fn begin_drain(&mut self, until: Instant) {
        if let Some(begun) = self.drain {
            self.drain = Some(begun.sooner(until));
            return;
        }
        tracing::info!(executor = %self.executor.hello.name, "draining");
        self.drain = Some(Drain::Handlers(until));
        if let Some(outbox) = self.outbox() {
            outbox.drain();
        }
        let waiting = self.ledger.take_waiting();
        self.finish(waiting.into_iter().map(|l| attempt::hand_back(l, DRAINING)).collect());
    }

    /// What was waited for took too long. False: there is nothing left to wait for.
    fn on_late(&mut self) -> bool {
        if !matches!(self.drain, Some(Drain::Handlers(_))) {
            return false;
        }
        self.ledger.stop_all();
        // A handler that blocks its thread does not end, but the others may report until then.
        self.drain = Some(Drain::Stopping(after(STOP_GRACE + ACKS_TIMEOUT)));
        true
    }
}

impl Drain {
    fn until(self) -> Instant {
        let (Self::Handlers(until) | Self::Stopping(until) | Self::Acks(until)) = self;
        until
    }

    /// The same with less time for handlers that run.
    fn sooner(self, until: Instant) -> Self {
        match self {
            Self::Handlers(at) => Self::Handlers(at.min(until)),
            Self::Stopping(_) | Self::Acks(_) => self,
        }
    }

    /// What is waited for next, while handlers run or not. None are started during a drain.
    fn after(self, is_running: bool) -> Self {
        match self {
            Self::Handlers(_) | Self::Stopping(_) if !is_running => Self::Acks(after(ACKS_TIMEOUT)),
            _ => self,
        }
    }
}

/// The next signal of the link that leaves, if there is one.
async fn next(leaving: &mut Option<Link>) -> Signal {
    match leaving {
        Some(link) => link.next().await,
        None => pending().await,
    }
}

/// Waits for a moment that may never come.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// True when the same outcome may be accepted later.
fn may_pass(reason: ErrorReason) -> bool {
    matches!(reason.code(), Code::Unavailable | Code::ResourceExhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_without_handlers_waits_for_acknowledgements_and_not_for_the_grace_period() {
        let grace = Drain::Handlers(after(Duration::MAX));
        assert_eq!(grace.after(true), grace);
        let acks = grace.after(false);
        assert!(acks.until() <= after(ACKS_TIMEOUT), "{acks:?}");
        assert_eq!(acks.after(false), acks);
    }
}
