//! What is measured of a step's way through this service. Recorded per batch where a batch is what
//! happens; labels are made once.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use stepwell_serve::LABELS_MAX;
use stepwell_store::Ending;
use tokio::sync::mpsc;

use crate::{
    dispatch::FILLS_MAX,
    sessions::Sessions,
    settle::{Ended, QUEUE_MAX},
};

/// How a lease came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A ready step got a free slot.
    Claimed,
    /// A parent's end released it, and it got a slot in the same commit.
    HandedOver,
}

/// Why we end a lease that its executor did not end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expiry {
    /// The attempt took longer than its time-out.
    TimeOut,
    /// The executor did not come back within the grace.
    ExecutorLost,
    /// The executor and its node were lost.
    NodeLost,
}

/// The instruments of the service.
pub(crate) struct Metrics {
    claim_batch: Histogram<u64>,
    claim_call: Histogram<f64>,
    settle_batch: Histogram<u64>,
    settle_call: Histogram<f64>,
    dispatch: Histogram<f64>,
    handover: Histogram<f64>,
    timer_late: Histogram<f64>,
    timers: Counter<u64>,
    given: Counter<u64>,
    given_by: [[KeyValue; 1]; 2],
    ended: Counter<u64>,
    /// By the executor and by us: complete, retry, error, hand back.
    ended_by: [[[KeyValue; 2]; 4]; 2],
    lost: Counter<u64>,
    expired: Counter<u64>,
    expired_by: [[KeyValue; 1]; 3],
    adopted: Counter<u64>,
    given_up: Counter<u64>,
    taken_over: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        let seconds = |name, what| histogram(meter, name, what);
        let items =
            |name, what: &'static str| meter.u64_histogram(name).with_description(what).build();
        let of = |name, what: &'static str| meter.u64_counter(name).with_description(what).build();
        // Counters without labels begin at zero, so that their first increase is seen.
        let from_zero = |name, what| {
            let counter: Counter<u64> = of(name, what);
            counter.add(0, &[]);
            counter
        };
        let metrics = Self {
            claim_batch: items("stepwell_step_claim_batch_leases", "Leases of one call of claim"),
            claim_call: seconds(
                "stepwell_step_claim_call_seconds",
                "One call of claim, answered or failed",
            ),
            settle_batch: items(
                "stepwell_step_settle_batch_outcomes",
                "Outcomes of one call of settle",
            ),
            settle_call: seconds(
                "stepwell_step_settle_call_seconds",
                "One call of settle, answered or failed",
            ),
            dispatch: seconds(
                "stepwell_step_dispatch_seconds",
                "From the call that claimed a ready step to its lease in the executor's outbox",
            ),
            handover: seconds(
                "stepwell_step_handover_seconds",
                "From a parent's outcome coming in to its child's lease in an executor's outbox, \
                 of children that got a slot in the same commit",
            ),
            timer_late: seconds(
                "stepwell_timer_late_seconds",
                "From the time the next retry was known to be due to its release, once per look \
                 that released some",
            ),
            timers: from_zero(
                "stepwell_timer_released_total",
                "Retries that were due and became ready",
            ),
            given: of(
                "stepwell_lease_given_total",
                "Leases given: to ready steps by claim, to released children by settle",
            ),
            given_by: ["claim", "settle"].map(|by| [KeyValue::new("by", by)]),
            ended: of(
                "stepwell_lease_ended_total",
                "Leases that ended, by what became of the step and by who ended it: the \
                 executor's report or this service",
            ),
            ended_by: ["executor", "service"].map(|by| {
                ["complete", "retry", "error", "hand_back"]
                    .map(|ending| [KeyValue::new("ending", ending), KeyValue::new("by", by)])
            }),
            lost: from_zero(
                "stepwell_lease_lost_total",
                "Outcomes that were refused because their lease was over",
            ),
            expired: of(
                "stepwell_lease_expired_total",
                "Leases that this service failed, by cause: the attempt's time-out; an executor \
                 that did not come back within the grace; one that was lost together with its \
                 node",
            ),
            expired_by: ["time_out", "executor_lost", "node_lost"]
                .map(|c| [KeyValue::new("cause", c)]),
            adopted: from_zero(
                "stepwell_lease_adopted_total",
                "Leases that executors kept over a lost stream",
            ),
            given_up: from_zero(
                "stepwell_node_given_up_total",
                "Node ids this process gave up: it was declared dead, or lost the answer of a \
                 verb that leases",
            ),
            taken_over: from_zero(
                "stepwell_node_taken_over_total",
                "Dead nodes whose leases this process walked",
            ),
        };
        metrics.begin_at_zero();
        metrics
    }

    fn begin_at_zero(&self) {
        self.given_by.iter().for_each(|label| self.given.add(0, label));
        self.ended_by.iter().flatten().for_each(|labels| self.ended.add(0, labels));
        self.expired_by.iter().for_each(|label| self.expired.add(0, label));
    }

    /// A call of `claim` was answered, or was not.
    pub(crate) fn claimed(&self, leases: usize, since: Instant) {
        self.claim_batch.record(count(leases), &[]);
        self.claim_call.record(since.elapsed().as_secs_f64(), &[]);
        self.given.add(count(leases), &self.given_by[0]);
    }

    /// A call of `settle` was answered, or was not; `leases` to children are known to be given.
    pub(crate) fn settled(&self, outcomes: usize, leases: usize, since: Instant) {
        self.settle_batch.record(count(outcomes), &[]);
        self.settle_call.record(since.elapsed().as_secs_f64(), &[]);
        self.given.add(count(leases), &self.given_by[1]);
    }

    /// What became of the leases of a batch.
    pub(crate) fn ended(&self, batch: &[Ended], accepted: &[bool]) {
        let (mut ended, mut lost) = ([[0; 4]; 2], 0);
        for (item, accepted) in batch.iter().zip(accepted) {
            let kind = match item.ending {
                Ending::Complete => 0,
                Ending::Fail { wait_ms: Some(_) } => 1,
                Ending::Fail { wait_ms: None } => 2,
                Ending::HandBack => 3,
            };
            match (accepted, item.is_swept) {
                (true, is_swept) => ended[usize::from(is_swept)][kind] += 1,
                (false, false) => lost += 1,
                // Somebody else ended it, or it was adopted: nothing happened here.
                (false, true) => {}
            }
        }
        let labelled = ended.iter().flatten().zip(self.ended_by.iter().flatten());
        for (n, labels) in labelled.filter(|(n, _)| **n > 0) {
            self.ended.add(*n, labels);
        }
        self.lost(lost);
    }

    /// Outcomes were refused: their leases are over.
    pub(crate) fn lost(&self, n: u64) {
        if n > 0 {
            self.lost.add(n, &[]);
        }
    }

    /// Leases were put into outboxes.
    pub(crate) fn sent(&self, way: Way, since: impl IntoIterator<Item = Instant>) {
        let now = Instant::now();
        let histogram = match way {
            Way::Claimed => &self.dispatch,
            Way::HandedOver => &self.handover,
        };
        for since in since {
            histogram.record(now.duration_since(since).as_secs_f64(), &[]);
        }
    }

    /// We failed leases.
    pub(crate) fn expired(&self, cause: Expiry, n: usize) {
        let label = match cause {
            Expiry::TimeOut => &self.expired_by[0],
            Expiry::ExecutorLost => &self.expired_by[1],
            Expiry::NodeLost => &self.expired_by[2],
        };
        if n > 0 {
            self.expired.add(count(n), label);
        }
    }

    /// Retries that were due became ready; `late`: how long after the first of them was.
    pub(crate) fn released(&self, timers: usize, late: Option<Duration>) {
        self.timers.add(count(timers), &[]);
        if let Some(late) = late {
            self.timer_late.record(late.as_secs_f64(), &[]);
        }
    }

    /// Executors came back with leases.
    pub(crate) fn adopted(&self, n: usize) {
        self.adopted.add(count(n), &[]);
    }

    /// A node id of this process must not be used again.
    pub(crate) fn gave_up(&self) {
        self.given_up.add(1, &[]);
    }

    /// The leases of a dead node are walked here.
    pub(crate) fn took_over(&self) {
        self.taken_over.add(1, &[]);
    }
}

fn histogram(meter: &Meter, name: &'static str, what: &'static str) -> Histogram<f64> {
    meter.f64_histogram(name).with_description(what).with_unit("s").build()
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// What executors hold and wait for, looked at when somebody reads.
pub(crate) fn watch_sessions(meter: &Meter, sessions: &Arc<Sessions>) {
    let looked_at = Arc::clone(sessions);
    meter
        .u64_observable_gauge("stepwell_executor_sessions")
        .with_description("Executors of this node: connected, or lost and within their grace")
        .with_callback(move |seen| {
            let figures = looked_at.figures();
            seen.observe(count(figures.connected), &[KeyValue::new("state", "connected")]);
            seen.observe(count(figures.lost), &[KeyValue::new("state", "lost")]);
        })
        .build();
    let looked_at = Arc::clone(sessions);
    meter
        .u64_observable_gauge("stepwell_executor_slots_free")
        .with_description("Slots of connected executors that no lease takes")
        .with_callback(move |seen| seen.observe(count(looked_at.figures().free), &[]))
        .build();
    let looked_at = Arc::clone(sessions);
    meter
        .u64_observable_gauge("stepwell_lease_held")
        .with_description("Leases the executors of this node hold: steps that run")
        .with_callback(move |seen| seen.observe(count(looked_at.figures().leases), &[]))
        .build();
    let looked_at = Arc::clone(sessions);
    meter
        .u64_observable_gauge("stepwell_queue_executors")
        .with_description(format!(
            "Executors of this node that take steps of a handler, in some version; past \
             {LABELS_MAX} handlers, other"
        ))
        .with_callback(move |seen| {
            let mut executors = BTreeMap::new();
            for offer in looked_at.serving() {
                for handler in offer.handlers() {
                    *executors
                        .entry((offer.namespace.clone(), handler.to_owned()))
                        .or_insert(0u64) += 1;
                }
            }
            let rest: u64 = executors.values().skip(LABELS_MAX).sum();
            for ((namespace, handler), n) in executors.into_iter().take(LABELS_MAX) {
                let labels =
                    [KeyValue::new("namespace", namespace), KeyValue::new("handler", handler)];
                seen.observe(n, &labels);
            }
            if rest > 0 {
                let other = ["namespace", "handler"].map(|label| KeyValue::new(label, "other"));
                seen.observe(rest, &other);
            }
        })
        .build();
}

/// The line before the settle loops, and batches whose inputs are still to be read.
pub(crate) fn watch_lines<T: Send + 'static>(
    meter: &Meter,
    outcomes: mpsc::WeakSender<Ended>,
    fills: mpsc::WeakSender<T>,
) {
    meter
        .u64_observable_gauge("stepwell_step_settle_waiting_outcomes")
        .with_description(format!(
            "Outcomes that wait for a settle loop; at {QUEUE_MAX} the streams are read no \
             further"
        ))
        .with_callback(move |seen| seen.observe(waiting(&outcomes), &[]))
        .build();
    meter
        .u64_observable_gauge("stepwell_step_dispatch_waiting_batches")
        .with_description(format!(
            "Batches of leases whose inputs are still to be read; at {FILLS_MAX} the verbs wait"
        ))
        .with_callback(move |seen| seen.observe(waiting(&fills), &[]))
        .build();
}

fn waiting<T>(queue: &mpsc::WeakSender<T>) -> u64 {
    queue.upgrade().map_or(0, |queue| count(queue.max_capacity() - queue.capacity()))
}
