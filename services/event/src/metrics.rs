//! What is measured of the log and its feed, and what the survey finds of the whole.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Histogram, Meter},
};
use stepwell_proto::{
    catalog::{EVENTS, Edge, event_type, event_type_by_number},
    v1::{Entity, State},
};
use stepwell_serve::LABELS_MAX;
use stepwell_store::{Count, READY_COUNTED_MAX, Ready, SubscriptionProgress, Survey};

use crate::ring::Ring;

/// The ways of deliveries.
const WAYS: [&str; 4] = ["webhook", "log", "metrics", "alert"];

/// The instruments of the service.
pub(crate) struct Metrics {
    tasks: Counter<u64>,
    steps: Counter<u64>,
    task_start: Histogram<f64>,
    task_end: Histogram<f64>,
    step_run: Histogram<f64>,
    tail_lag: Histogram<f64>,
    tail_batch: Histogram<u64>,
    delivered: Counter<u64>,
    deliveries: Counter<u64>,
    delivery: Histogram<f64>,
    parked: Counter<u64>,
    told: Counter<u64>,
    told_ran: Histogram<f64>,
    told_steps: Histogram<u64>,
    /// What the metrics of subscriptions were told about.
    about: Mutex<HashSet<About>>,
    /// The names of custom events that are labels.
    customs: Mutex<HashSet<String>>,
    survey: Histogram<f64>,
    surveyed: Arc<Mutex<Option<Surveyed>>>,
    progress: Arc<Mutex<Vec<SubscriptionProgress>>>,
    /// Where microseconds are counted from here.
    began: Instant,
    /// The database's time at that moment, in microseconds; 0 until it was asked.
    database_began: AtomicI64,
    failed: Mutex<i64>,
}

/// A subscription; namespace, definition and step of its events.
type About = (String, [String; 3]);

/// What the metrics of a subscription are told of an event.
pub(crate) struct Told<'a> {
    pub(crate) subscription: &'a str,
    pub(crate) event: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) definition: &'a str,
    /// Empty: it is about the task.
    pub(crate) step: &'a str,
    /// Of a failed attempt: whether it was the last.
    pub(crate) is_final: Option<bool>,
    pub(crate) ran_for: Option<Duration>,
    /// Of a task that ended.
    pub(crate) steps: Option<u64>,
}

/// The last survey.
struct Surveyed {
    survey: Survey,
    when: Instant,
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        let counter = |name, what: &'static str| -> Counter<u64> {
            meter.u64_counter(name).with_description(what).build()
        };
        let seconds = |name, what: &'static str| {
            meter.f64_histogram(name).with_description(what).with_unit("s").build()
        };
        let metrics = Self {
            tasks: counter(
                "stepwell_task_transitions_total",
                "Transitions of tasks in the log since this process began, whoever made them; \
                 every event-service counts all",
            ),
            steps: counter(
                "stepwell_step_transitions_total",
                "Transitions of steps in the log since this process began, whoever made them, \
                 and whether it was the step's last; every event-service counts all",
            ),
            task_start: seconds(
                "stepwell_task_start_seconds",
                "From a task's creation to the lease of its first step; every event-service \
                 counts all",
            ),
            task_end: seconds(
                "stepwell_task_end_to_end_seconds",
                "From a task's creation to its end, by how it ended; every event-service counts \
                 all",
            ),
            step_run: seconds(
                "stepwell_step_run_seconds",
                "From a lease to its end, by how the attempt ended; every event-service counts \
                 all",
            ),
            tail_lag: seconds(
                "stepwell_tail_lag_seconds",
                "From the oldest event of a read of the log's end to that read, by the clock of \
                 the database",
            ),
            tail_batch: meter
                .u64_histogram("stepwell_tail_batch_events")
                .with_description("Events of one read of the log's end")
                .build(),
            delivered: counter("stepwell_event_delivered_total", "Events sent to subscribers"),
            deliveries: counter(
                "stepwell_delivery_attempts_total",
                "Events that this process delivered itself, by the way they went and whether they \
                 were taken",
            ),
            delivery: seconds(
                "stepwell_delivery_seconds",
                "One attempt to deliver an event, by the way it went",
            ),
            parked: counter(
                "stepwell_delivery_parked_total",
                "Events that were not taken too often and are parked, by the way they went",
            ),
            told: counter(
                "stepwell_subscription_events_total",
                "Events of subscriptions with the delivery metrics; of failed attempts whether they \
                 were the step's last; past 200 definitions and steps, other; past 200 names of custom \
                 events, custom",
            ),
            told_ran: seconds(
                "stepwell_subscription_ran_seconds",
                "How long what ended ran, as the events of such subscriptions say: tasks from their \
                 first lease, attempts from theirs",
            ),
            told_steps: meter
                .u64_histogram("stepwell_subscription_task_steps")
                .with_description(
                    "Steps of tasks that ended, as the events of such subscriptions say",
                )
                .build(),
            about: Mutex::default(),
            customs: Mutex::default(),
            survey: seconds(
                "stepwell_survey_seconds",
                "One survey of the whole, counting of the log included",
            ),
            surveyed: Arc::default(),
            progress: Arc::default(),
            began: Instant::now(),
            database_began: AtomicI64::new(0),
            failed: Mutex::default(),
        };
        metrics.delivered.add(0, &[]);
        for way in WAYS {
            for taken in ["true", "false"] {
                let labels = [KeyValue::new("way", way), KeyValue::new("taken", taken)];
                metrics.deliveries.add(0, &labels);
            }
            metrics.parked.add(0, &[KeyValue::new("way", way)]);
        }
        metrics.begin_at_zero();
        watch_survey(meter, &metrics.surveyed);
        watch_progress(meter, &metrics.progress);
        metrics
    }

    fn begin_at_zero(&self) {
        for of in EVENTS.iter().filter(|of| of.is_recorded()) {
            let Some(Edge { entity, from, to: Some(to) }) = of.edge else { continue };
            let from = if from.is_empty() { &[State::Unspecified] } else { from };
            for from in from {
                self.add(entity, *from, to, to.is_final(), 0);
            }
            if (entity, to) == (Entity::Step, State::Error) {
                self.add(Entity::Step, State::InProgress, to, false, 0);
            }
        }
    }

    fn add(&self, of: Entity, from: State, to: State, is_final: bool, n: u64) {
        let states = [KeyValue::new("from", from.word()), KeyValue::new("to", to.word())];
        match of {
            Entity::Task => self.tasks.add(n, &states),
            Entity::Step => {
                let [from, to] = states;
                let is_final = if is_final { "true" } else { "false" };
                self.steps.add(n, &[from, to, KeyValue::new("final", is_final)]);
            }
            Entity::Unspecified => {}
        }
    }

    // ── what the log has ────────────────────────────────────────────────────────────────────────

    /// Transitions were counted.
    pub(crate) fn counted(&self, counts: &[Count]) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        for Move { of, from, to, is_final, n } in moves(counts, &mut failed) {
            self.add(of, from, to, is_final, n);
        }
        for count in counts {
            if let (Some(seconds), Some((of, to))) = (count.seconds, edge_of(count)) {
                self.took(of, to, seconds, u64::try_from(count.n).unwrap_or(0));
            }
        }
    }

    fn took(&self, of: Entity, to: State, seconds: f64, n: u64) {
        let (histogram, labels) = match (of, to) {
            (Entity::Task, State::InProgress) => (&self.task_start, Vec::new()),
            (Entity::Task, _) => (&self.task_end, vec![KeyValue::new("to", to.word())]),
            (Entity::Step, _) => (&self.step_run, vec![KeyValue::new("to", to.word())]),
            (Entity::Unspecified, _) => return,
        };
        // There is no way to record a value so many times at once.
        for _ in 0..n {
            histogram.record(seconds, &labels);
        }
    }

    // ── the feed ────────────────────────────────────────────────────────────────────────────────

    /// The log's end was read.
    pub(crate) fn tailed(&self, events: usize, oldest: Option<i64>) {
        self.tail_batch.record(count(events), &[]);
        let Some(at) = oldest else { return };
        let database_began = self.database_began.load(Ordering::Relaxed);
        if database_began == 0 {
            return;
        }
        let lag = database_began + micros(self.began.elapsed()) - at;
        self.tail_lag.record(Duration::from_micros(lag.try_into().unwrap_or(0)).as_secs_f64(), &[]);
    }

    /// Events went out to a subscriber.
    pub(crate) fn delivered(&self, events: usize) {
        self.delivered.add(count(events), &[]);
    }

    /// An event was delivered, and taken or not.
    pub(crate) fn delivery(&self, way: &'static str, is_taken: bool, took: Duration) {
        let taken = if is_taken { "true" } else { "false" };
        let way = KeyValue::new("way", way);
        self.delivery.record(took.as_secs_f64(), std::slice::from_ref(&way));
        self.deliveries.add(1, &[way, KeyValue::new("taken", taken)]);
    }

    /// An event is parked.
    pub(crate) fn parked(&self, way: &'static str) {
        self.parked.add(1, &[KeyValue::new("way", way)]);
    }

    /// An event of a subscription whose events are counted.
    pub(crate) fn told(&self, told: &Told<'_>) {
        let Told { subscription, event, is_final, .. } = *told;
        let about = [told.namespace, told.definition, told.step];
        let [namespace, definition, step] = about;
        let [subscription, namespace, definition, step] =
            match self.is_known(subscription, about) {
                true => [subscription, namespace, definition, step],
                false => ["other"; 4],
            }
            .map(str::to_owned);
        let event = event_type(event).map_or_else(|| self.custom(event), |of| of.name.to_owned());
        let label = |name: &'static str, value: String| KeyValue::new(name, value);
        let of = label("subscription", subscription);
        let (namespace, definition) =
            (label("namespace", namespace), label("definition", definition));
        if let Some(steps) = told.steps {
            let labels = [of.clone(), namespace.clone(), definition.clone()];
            self.told_steps.record(steps, &labels);
        }
        let labels = [of, label("event", event), namespace, definition, label("step", step)];
        if let Some(ran_for) = told.ran_for {
            self.told_ran.record(ran_for.as_secs_f64(), &labels);
        }
        let is_final = match is_final {
            None => "none",
            Some(true) => "true",
            Some(false) => "false",
        };
        self.told.add(1, &[&labels[..], &[KeyValue::new("final", is_final)]].concat());
    }

    /// Whether this has labels of its own: what came first does.
    fn is_known(&self, subscription: &str, about: [&str; 3]) -> bool {
        let about = (subscription.to_owned(), about.map(str::to_owned));
        let mut known = self.about.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&about) || known.len() < LABELS_MAX && known.insert(about)
    }

    /// A custom event as a label: of these there may be any number.
    fn custom(&self, name: &str) -> String {
        let mut known = self.customs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known =
            known.contains(name) || known.len() < LABELS_MAX && known.insert(name.to_owned());
        if is_known { name } else { "custom" }.to_owned()
    }

    // ── the survey ──────────────────────────────────────────────────────────────────────────────

    /// The whole was looked at, between these two moments.
    pub(crate) fn surveyed(&self, survey: Survey, asked: Instant, answered: Instant) {
        let since = |at: Instant| micros(at.saturating_duration_since(self.began));
        let middle = i64::midpoint(since(asked), since(answered));
        self.database_began.store(survey.at.timestamp_micros() - middle, Ordering::Relaxed);
        let surveyed = Surveyed { survey, when: Instant::now() };
        *self.surveyed.lock().unwrap_or_else(PoisonError::into_inner) = Some(surveyed);
    }

    /// How far durable subscriptions have come, those furthest behind first.
    pub(crate) fn subscriptions(&self, progress: Vec<SubscriptionProgress>) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// So long the survey took with the counting.
    pub(crate) fn survey_took(&self, took: Duration) {
        self.survey.record(took.as_secs_f64(), &[]);
    }
}

/// Figures of the last survey; until there is one, none.
fn watch_survey(meter: &Meter, surveyed: &Arc<Mutex<Option<Surveyed>>>) {
    let last = |read: fn(&Surveyed) -> f64| {
        let surveyed = Arc::clone(surveyed);
        move |seen: &dyn AsyncInstrument<f64>| {
            let surveyed = surveyed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(surveyed) = surveyed.as_ref() {
                seen.observe(read(surveyed), &[]);
            }
        }
    };
    let gauge = |name, what: &'static str, unit: &'static str, read: fn(&Surveyed) -> f64| {
        let gauge = meter.f64_observable_gauge(name).with_description(what).with_unit(unit);
        gauge.with_callback(last(read)).build();
    };
    gauge(
        "stepwell_survey_age_seconds",
        "How long ago the figures of the survey were read",
        "s",
        |s| s.when.elapsed().as_secs_f64(),
    );
    gauge("stepwell_log_position", "Position of the last event in the log", "", |s| {
        whole(s.survey.head)
    });
    gauge(
        "stepwell_timer_overdue_seconds",
        "How long ago the most overdue retry was due; 0: none is",
        "s",
        |s| s.survey.timer_overdue,
    );
    gauge("stepwell_node_retired", "Retired nodes whose leases are still to be walked", "", |s| {
        whole(s.survey.nodes_retired)
    });
    gauge("stepwell_append_waiters", "Transactions that wait for the append lock", "", |s| {
        whole(s.survey.append_waiters)
    });
    gauge(
        "stepwell_append_wait_seconds",
        "How long the first of those that wait for the append lock has waited; 0: nobody waits",
        "s",
        |s| s.survey.append_wait,
    );
    gauge(
        "stepwell_cluster_oldest_transaction_seconds",
        "Age of the oldest transaction in the cluster, prepared ones included, that the \
         service's role may see",
        "s",
        |s| s.survey.oldest_transaction,
    );
    gauge(
        "stepwell_cluster_prepared_transactions",
        "Transactions in the cluster that were prepared and neither committed nor rolled back",
        "",
        |s| whole(s.survey.prepared_transactions),
    );
    watch_ready(meter, surveyed);
}

fn watch_ready(meter: &Meter, surveyed: &Arc<Mutex<Option<Surveyed>>>) {
    let looked_at = Arc::clone(surveyed);
    meter
        .f64_observable_gauge("stepwell_queue_ready_steps")
        .with_description(format!(
            "Steps of a handler that are ready and have no slot, those left over from cancelled \
             tasks included; of each definition up to {READY_COUNTED_MAX}; past {LABELS_MAX} \
             handlers, other"
        ))
        .with_callback(move |seen| {
            observe_ready(&looked_at, seen, |ready| whole(ready.steps), |sum, next| sum + next);
        })
        .build();
    let looked_at = Arc::clone(surveyed);
    meter
        .f64_observable_gauge("stepwell_queue_oldest_ready_seconds")
        .with_description(format!(
            "How long the oldest ready step of a handler has waited for a slot; past \
             {LABELS_MAX} handlers, other"
        ))
        .with_unit("s")
        .with_callback(move |seen| observe_ready(&looked_at, seen, |ready| ready.oldest, f64::max))
        .build();
}

fn watch_progress(meter: &Meter, progress: &Arc<Mutex<Vec<SubscriptionProgress>>>) {
    let gauge = |name,
                 what: &str,
                 unit,
                 read: fn(&SubscriptionProgress) -> f64,
                 and: fn(f64, f64) -> f64| {
        let progress = Arc::clone(progress);
        let what = format!("{what}; past {LABELS_MAX} subscriptions, other");
        let gauge = meter.f64_observable_gauge(name).with_description(what).with_unit(unit);
        let observe = move |seen: &dyn AsyncInstrument<f64>| {
            let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            for of in progress.iter().take(LABELS_MAX) {
                seen.observe(read(of), &[KeyValue::new("subscription", of.name.clone())]);
            }
            if let Some(rest) = progress.iter().skip(LABELS_MAX).map(read).reduce(and) {
                seen.observe(rest, &[KeyValue::new("subscription", "other")]);
            }
        };
        gauge.with_callback(observe).build();
    };
    gauge(
        "stepwell_subscription_behind_seconds",
        "Age of the oldest event of the log that a durable subscription has still to do with, wanted \
         or not; 0 while it is paused or disabled",
        "s",
        |of| of.behind,
        f64::max,
    );
    gauge(
        "stepwell_subscription_parked_events",
        "Events of a durable subscription that are parked",
        "",
        |of| whole(of.parked),
        |sum, next| sum + next,
    );
}

fn observe_ready(
    surveyed: &Mutex<Option<Surveyed>>,
    seen: &dyn AsyncInstrument<f64>,
    read: fn(&Ready) -> f64,
    and: fn(f64, f64) -> f64,
) {
    let surveyed = surveyed.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Surveyed { survey, .. }) = surveyed.as_ref() else { return };
    for ready in survey.ready.iter().take(LABELS_MAX) {
        let (namespace, handler) = (ready.namespace.clone(), ready.handler.clone());
        seen.observe(
            read(ready),
            &[KeyValue::new("namespace", namespace), KeyValue::new("handler", handler)],
        );
    }
    if let Some(rest) = survey.ready.iter().skip(LABELS_MAX).map(read).reduce(and) {
        let other = ["namespace", "handler"].map(|label| KeyValue::new(label, "other"));
        seen.observe(rest, &other);
    }
}

/// So many transitions of one kind.
#[derive(Debug, PartialEq)]
struct Move {
    of: Entity,
    from: State,
    to: State,
    is_final: bool,
    n: u64,
}

fn edge_of(count: &Count) -> Option<(Entity, State)> {
    let of = event_type_by_number(u32::try_from(count.r#type).ok()?)?;
    of.edge.as_ref().and_then(|edge| Some((edge.entity, edge.to?)))
}

/// What the counts come to. Which failures were a step's last stands between the lines: those after
/// which it was not told to be tried again, in the same commit. Counts may be cut within a commit:
/// `failed` is what a cut has left over, failures that were taken for the last and were not.
fn moves(counts: &[Count], failed: &mut i64) -> Vec<Move> {
    let mut moves = Vec::with_capacity(counts.len() + 1);
    for count in counts {
        let (Some((of, to)), Ok(n)) = (edge_of(count), u64::try_from(count.n)) else { continue };
        let from = count.from_state.and_then(|from| State::try_from(i32::from(from)).ok());
        let from = from.unwrap_or(State::Unspecified);
        if (of, from, to) == (Entity::Step, State::InProgress, State::Error) {
            *failed += count.n;
            continue;
        }
        if (of, from, to) == (Entity::Step, State::Error, State::Pending) && !count.by_hand {
            *failed -= count.n;
            let (from, to) = (State::InProgress, State::Error);
            moves.push(Move { of, from, to, is_final: false, n });
        }
        moves.push(Move { of, from, to, is_final: to.is_final(), n });
    }
    if let Ok(n @ 1..) = u64::try_from(*failed) {
        let (of, from, to) = (Entity::Step, State::InProgress, State::Error);
        moves.push(Move { of, from, to, is_final: true, n });
        *failed = 0;
    }
    moves
}

// ── subscribers ─────────────────────────────────────────────────────────────────────────────────

/// Where each subscription is.
#[derive(Default)]
pub(crate) struct Seats {
    seats: Mutex<HashMap<u64, Arc<Place>>>,
    next: AtomicU64,
}

#[derive(Default)]
struct Place {
    position: AtomicI64,
    /// It reads the table: what comes next has fallen out of the ring.
    is_behind: AtomicBool,
}

/// The place of one subscription, as long as it lives.
pub(crate) struct Seat {
    place: Arc<Place>,
    id: u64,
    of: Weak<Seats>,
}

impl Seats {
    /// One more subscription, from this position on.
    pub(crate) fn take(self: &Arc<Self>, position: i64) -> Seat {
        let place = Arc::new(Place { position: position.into(), ..Place::default() });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Arc::clone(&place));
        Seat { place, id, of: Arc::downgrade(self) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Place>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are, how many are behind the ring, and the lowest position.
    fn figures(&self) -> (usize, usize, Option<i64>) {
        let seats = self.lock();
        let behind = seats.values().filter(|p| p.is_behind.load(Ordering::Relaxed)).count();
        let lowest = seats.values().map(|place| place.position.load(Ordering::Relaxed)).min();
        (seats.len(), behind, lowest)
    }
}

impl Seat {
    /// Everything up to this position was sent.
    pub(crate) fn at(&self, position: i64) {
        self.place.position.store(position, Ordering::Relaxed);
    }

    /// It has everything, and hears when there is more.
    pub(crate) fn level(&self) {
        self.at(i64::MAX);
    }

    /// It reads the table, or the ring again.
    pub(crate) fn behind(&self, is_behind: bool) {
        self.place.is_behind.store(is_behind, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(of) = self.of.upgrade() {
            of.lock().remove(&self.id);
        }
    }
}

/// Subscribers and the ring, looked at when somebody reads.
pub(crate) fn watch_feed(meter: &Meter, seats: &Arc<Seats>, ring: &Arc<Ring>) {
    let looked_at = Arc::clone(seats);
    meter
        .u64_observable_gauge("stepwell_subscriber_open")
        .with_description("Subscriptions of this node")
        .with_callback(move |seen| seen.observe(count(looked_at.figures().0), &[]))
        .build();
    let looked_at = Arc::clone(seats);
    meter
        .u64_observable_gauge("stepwell_subscriber_behind")
        .with_description(
            "Subscriptions of this node that read the table, because what comes next for them \
             has fallen out of memory",
        )
        .with_callback(move |seen| seen.observe(count(looked_at.figures().1), &[]))
        .build();
    let (looked_at, end) = (Arc::clone(seats), Arc::clone(ring));
    meter
        .u64_observable_gauge("stepwell_subscriber_lag_events")
        .with_description(
            "Positions in the log that the slowest subscription of this node has still to be \
             sent, wanted or not",
        )
        .with_callback(move |seen| {
            let lag = end.end().zip(looked_at.figures().2).map_or(0, |(end, at)| end - at);
            seen.observe(u64::try_from(lag).unwrap_or(0), &[]);
        })
        .build();
    let ring = Arc::clone(ring);
    meter
        .u64_observable_gauge("stepwell_ring_bytes")
        .with_description("Memory of the latest part of the log, kept for all subscriptions")
        .with_unit("By")
        .with_callback(move |seen| seen.observe(count(ring.bytes()), &[]))
        .build();
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Exact up to 2^53, which no count here comes to.
#[expect(clippy::cast_precision_loss, reason = "exact for every count that can be")]
fn whole(n: i64) -> f64 {
    n as f64
}

fn micros(passed: Duration) -> i64 {
    i64::try_from(passed.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(r#type: i16, from: i16, to: i16, n: i64) -> Count {
        Count { r#type, from_state: Some(from), by_hand: false, to_state: to, n, seconds: None }
    }

    fn failures(moves: &[Move], is_final: bool) -> u64 {
        let failed = moves.iter().filter(|m| m.to == State::Error && m.is_final == is_final);
        failed.map(|m| m.n).sum()
    }

    #[test]
    fn a_failure_that_is_not_tried_again_is_the_step_s_last() {
        let mut left = 0;
        let moves = moves(&[count(42, 2, 4, 5), count(43, 4, 1, 3), count(41, 2, 3, 9)], &mut left);
        assert_eq!((failures(&moves, true), failures(&moves, false), left), (2, 3, 0));
        assert!(moves.contains(&Move {
            of: Entity::Step,
            from: State::InProgress,
            to: State::Complete,
            is_final: true,
            n: 9
        }));
    }

    #[test]
    fn a_retry_by_hand_takes_no_failure_back_and_what_fails_while_it_waits_fails_for_good() {
        let mut left = 0;
        let by_hand = Count { by_hand: true, ..count(43, 4, 1, 7) };
        let moves = moves(&[count(42, 2, 4, 2), by_hand, count(42, 1, 4, 3)], &mut left);
        assert_eq!((failures(&moves, true), failures(&moves, false), left), (5, 0, 0));
        let retried = moves.iter().find(|m| m.to == State::Pending).map(|m| m.n);
        assert_eq!(retried, Some(7));
    }

    #[test]
    fn a_count_that_was_cut_within_a_commit_is_made_good_by_the_next() {
        let mut left = 0;
        // Five failures, four of which are tried again, as the second part of the commit says.
        let first = moves(&[count(42, 2, 4, 5)], &mut left);
        let second = moves(&[count(43, 4, 1, 4), count(42, 2, 4, 6)], &mut left);
        let sum = |is_final| failures(&first, is_final) + failures(&second, is_final);
        assert_eq!((sum(true), sum(false), left), (7, 4, 0));
    }

    #[test]
    fn a_seat_is_free_again_when_its_subscription_ends() {
        let seats = Arc::new(Seats::default());
        let (one, other) = (seats.take(5), seats.take(9));
        other.behind(true);
        assert_eq!(seats.figures(), (2, 1, Some(5)));
        one.at(12);
        assert_eq!(seats.figures(), (2, 1, Some(9)));
        drop(other);
        assert_eq!(seats.figures(), (1, 0, Some(12)));
        drop(one);
        assert_eq!(seats.figures(), (0, 0, None));
    }
}
