//! The loops beside a step's way: attempts whose time is up, executors that did not come back,
//! retries that are due, leases that others have voided, definitions that are new.

use std::{collections::HashSet, sync::Arc, time::Duration};

use rand::RngExt;
use stepwell_proto::{
    id::{LeaseId, number_of, task_of},
    v1::Failure,
};
use stepwell_serve::Ticker;
use stepwell_store::{Due, Ending, Error, LeaseRow, Store, StoredFailure, Topic, Writer};
use stepwell_trace::TraceContext;
use tokio::time::Instant;
use tracing::{Level, field::display};

use crate::{
    dispatch::Dispatch,
    metrics::Expiry,
    sessions::{Held, Owned, Sessions},
    settle::{Ended, Settler},
    trace::{self, About},
    verdict::{self, Attempt},
};

const TIMERS_MAX: i32 = 500;

/// What every sweep needs.
#[derive(Clone)]
pub(crate) struct Sweeps {
    pub(crate) store: Store,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) settler: Settler,
    pub(crate) dispatch: Dispatch,
}

impl Sweeps {
    /// Ends attempts whose time is up, and leases of executors whose grace is over.
    pub(crate) async fn run_deadlines(self, mut ticker: Ticker) {
        while ticker.next().await {
            let now = Instant::now();
            let (overdue, next) = self.sessions.take_overdue(now);
            let metrics = self.dispatch.metrics();
            metrics.expired(Expiry::TimeOut, overdue.len());
            for owned in overdue {
                self.sessions.cancel(owned.session, owned.lease, "the attempt's time is up");
                let (class, message) = if owned.held.is_quiet() {
                    (
                        "HeartbeatTimeout",
                        "the handler showed no progress within its heartbeat_timeout",
                    )
                } else {
                    ("Timeout", "the attempt took longer than its time-out")
                };
                self.fail(owned, class, message).await;
            }
            let lapsed = self.sessions.take_lapsed(now);
            metrics.expired(Expiry::ExecutorLost, lapsed.len());
            for owned in lapsed {
                self.fail(owned, "LeaseExpired", "the executor was lost").await;
            }
            if let Some(at) = [next, self.sessions.next_lapse()].into_iter().flatten().min() {
                ticker.at(at);
            }
        }
    }

    async fn fail(&self, owned: Owned, class: &str, message: &str) {
        let Owned { session, lease, held } = owned;
        let failure = lost(class, message);
        // The executor says nothing any more, so this goes on from the task.
        let trace = self.dispatch.known(task_of(lease.step)).and_then(|known| known.trace);
        let (ending, mut stored) = self.judge(&owned, &failure, trace);
        let (queue, max_attempts) = (held.queue, held.max_attempts);
        let (is_swept, since) = (true, std::time::Instant::now());
        let span = trace::settle(ending, trace, || self.dispatch.about(lease, queue, session));
        if let Some(here) = TraceContext::of(&span) {
            stored.traceparent = Some(here.to_string());
        }
        let (text, events) = (stored.to_text(), Vec::new());
        let ended = Ended {
            session,
            lease,
            queue,
            max_attempts,
            ending,
            text,
            events,
            is_swept,
            since,
            span,
        };
        self.settler.push(ended).await;
    }

    /// The verdict on a failure of a step, by the policy of its definition. The attempt's place in a
    /// trace is stored with it, for the next one to link to.
    pub(crate) fn judge(
        &self,
        owned: &Owned,
        failure: &Failure,
        trace: Option<TraceContext>,
    ) -> (Ending, StoredFailure) {
        let Owned { session, lease, held: Held { queue, max_attempts, .. } } = *owned;
        let definition = self.dispatch.definition_of(queue);
        let template = definition.as_ref().and_then(|d| d.step(number_of(lease.step)));
        let policy = template.and_then(|t| t.retry.clone()).unwrap_or_default();
        let attempt = Attempt { attempt: lease.attempt, max_attempts };
        let spread = rand::rng().random_range(-1.0..=1.0);
        let (ending, mut stored) = verdict::on_failure(&policy, attempt, failure, spread);
        let sampled = trace.filter(|trace| trace.is_sampled());
        stored.traceparent = sampled.map(|trace| trace.to_string());
        tell(&stored, trace, || self.dispatch.about(lease, queue, session));
        (ending, stored)
    }

    /// Makes the definitions of leases known.
    pub(crate) async fn learn(&self, leases: &[LeaseRow]) -> Result<(), Error> {
        let mut queues: Vec<i32> = leases.iter().map(|row| row.queue).collect();
        queues.retain(|queue| self.dispatch.definition_of(*queue).is_none());
        if !queues.is_empty() {
            self.dispatch.know(self.store.definitions_of_queues(&queues).await?);
        }
        Ok(())
    }

    /// Makes steps ready whose retry is due.
    pub(crate) async fn run_timers(self, mut ticker: Ticker) {
        let (mut writer, mut due) = (None, None);
        while ticker.next().await {
            match self.release_due(&mut writer, &mut due).await {
                Ok(again) => {
                    ticker.ok();
                    match again {
                        Some(Duration::ZERO) => ticker.again(),
                        Some(wait) => ticker.at(Instant::now() + wait),
                        None => {}
                    }
                }
                Err(error) => {
                    writer = None;
                    ticker.back_off(&error);
                }
            }
        }
    }

    /// `due` is when the first of those that are left was said to be due.
    async fn release_due(
        &self,
        writer: &mut Option<Writer>,
        due: &mut Option<Instant>,
    ) -> Result<Option<Duration>, Error> {
        let Due { taken, next_ms, late, told } =
            self.store.connected(writer).await?.release_due(TIMERS_MAX).await?;
        let (next, now) = (next_ms.map(Duration::from_millis), Instant::now());
        self.store.bell().ring_moves(late > 0, false, told > 0);
        if taken > 0 {
            self.store.bell().ring(Topic::Ready);
            let late = due.filter(|due| *due <= now).map(|due| now.duration_since(due));
            self.dispatch.metrics().released(taken, late);
        }
        // Those that are due already were so before this look: they keep their time.
        if next != Some(Duration::ZERO) {
            *due = next.map(|wait| now + wait);
        }
        Ok(next)
    }

    /// Gives concurrency keys to tasks that wait for them.
    pub(crate) async fn run_keys(self, mut ticker: Ticker) {
        let mut writer = None;
        while ticker.next().await {
            match self.grant_keys(&mut writer).await {
                Ok(more) => {
                    ticker.ok();
                    if more {
                        ticker.again();
                    }
                }
                Err(error) => {
                    writer = None;
                    ticker.back_off(&error);
                }
            }
        }
    }

    async fn grant_keys(&self, writer: &mut Option<Writer>) -> Result<bool, Error> {
        let (ready, more) = self.store.connected(writer).await?.grant_keys().await?;
        self.store.bell().ring_moves(false, ready > 0, false);
        Ok(more)
    }

    /// Tells executors what others have to tell them.
    pub(crate) async fn run_signals(self, mut ticker: Ticker) {
        let mut writer = None;
        while ticker.next().await {
            match self.take_signals(&mut writer).await {
                Ok(()) => ticker.ok(),
                Err(error) => {
                    writer = None;
                    ticker.back_off(&error);
                }
            }
        }
    }

    /// Passes on what is there; a signal is dropped only when it was.
    pub(crate) async fn take_signals(&self, writer: &mut Option<Writer>) -> Result<(), Error> {
        loop {
            let nodes = self.dispatch.node().ids();
            let writer = self.store.connected(writer).await?;
            let signals = writer.signals(&nodes).await?;
            if signals.is_empty() {
                return Ok(());
            }
            for signal in &signals {
                if signal.stop {
                    self.sessions.stop(signal.session, &signal.reason);
                    continue;
                }
                let (step, token, attempt) = (signal.step, signal.token, signal.attempt);
                let lease = LeaseId { step, token, attempt };
                self.sessions.cancel(signal.session, lease, &signal.reason);
            }
            let ids: Vec<i64> = signals.iter().map(|signal| signal.id).collect();
            writer.drop_signals(&ids).await?;
        }
    }

    /// Gives sessions the queues of definitions that came after them.
    pub(crate) async fn run_queues(self, mut ticker: Ticker) {
        while ticker.next().await {
            match self.match_queues().await {
                Ok(()) => ticker.ok(),
                Err(error) => ticker.back_off(&error),
            }
        }
    }

    async fn match_queues(&self) -> Result<(), Error> {
        let offers = self.sessions.offers();
        let namespaces: HashSet<&str> = offers.iter().map(|(_, o)| o.namespace.as_str()).collect();
        for namespace in namespaces {
            let queues = queues_of(&self.store, &self.dispatch, namespace).await?;
            self.sessions.know_queues(&queues);
            for (session, offer) in offers.iter().filter(|(_, o)| o.namespace == namespace) {
                self.sessions.serve(*session, offer.queues(&queues));
            }
        }
        Ok(())
    }
}

/// One line for each attempt that failed: loud if the step is given up, quiet if it is tried again.
/// What the handler said of it is in the event; it may quote anything.
fn tell(failed: &StoredFailure, trace: Option<TraceContext>, about: impl FnOnce() -> About) {
    if failed.is_final && tracing::enabled!(Level::INFO) {
        let About { task, step, attempt, session } = about();
        let (task, trace_id) = (task.map(display), trace.map(TraceContext::trace_id));
        let error_class = failed.error_class.as_str();
        tracing::info!(task, step, attempt, session, trace_id, error_class, "step given up");
    } else if tracing::enabled!(Level::DEBUG) {
        let About { task, step, attempt, session } = about();
        let (task, trace_id) = (task.map(display), trace.map(TraceContext::trace_id));
        let (error_class, wait_ms) = (failed.error_class.as_str(), failed.backoff_ms);
        tracing::debug!(
            task,
            step,
            attempt,
            session,
            trace_id,
            error_class,
            wait_ms,
            "attempt failed"
        );
    }
}

/// The failure of an attempt that we end: it may be tried again.
pub(crate) fn lost(class: &str, message: &str) -> Failure {
    Failure {
        error_class: class.into(),
        message: message.into(),
        retryable: true,
        ..Failure::default()
    }
}

/// The queues of a namespace; their definitions are known to `dispatch` afterwards.
pub(crate) async fn queues_of(
    store: &Store,
    dispatch: &Dispatch,
    namespace: &str,
) -> Result<Vec<stepwell_store::QueueRow>, Error> {
    let queues = store.queues(namespace).await?;
    let unknown: Vec<i32> = queues
        .iter()
        .filter(|q| dispatch.definition_of(q.id).is_none())
        .map(|q| q.definition)
        .collect();
    if !unknown.is_empty() {
        let definitions = store.definitions(&unknown).await?;
        let known =
            queues.iter().filter_map(|q| Some((q.id, Arc::clone(definitions.get(&q.definition)?))));
        dispatch.know(known);
    }
    Ok(queues)
}
