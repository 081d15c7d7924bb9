//! Outcomes to rows. One loop with one connection: while a call is in flight the next batch
//! collects, so batches are as large as the load makes them and nothing ever waits for a timer. When
//! many wait meanwhile, a second loop takes them with a connection of its own: one works while the
//! other waits for the disk. Acks go out after the commit, with the leases of the steps it released.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stepwell_proto::{
    id::{LeaseId, number_of, task_of},
    refusal::Refusal,
    v1::{Ack, ErrorReason},
};
use stepwell_store::{
    ChildSlots, Ending, Error, LeaseRow, Report, Settled, Store, StoredFailure, Sweep, Topic,
    Writer,
};
use tokio::sync::{
    Mutex, Notify,
    mpsc::{self, error::TrySendError},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::{
    dispatch::{Began, Dispatch},
    metrics::Way,
    node::{Acting, Node},
    sessions::{Child, Sessions},
    trace,
};

const ITEMS_MAX: usize = 500;
const BYTES_MAX: usize = 4 << 20;
/// Outcomes waiting for a settle loop; a full queue stops the readers of the streams.
pub(crate) const QUEUE_MAX: usize = 4096;
/// So many that wait are worth a call of their own while another is in flight. Fewer cost more, by
/// what a call costs however little it is given.
const MANY: usize = 48;

/// One lease that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) session: i64,
    pub(crate) lease: LeaseId,
    /// The queue of its step; tells which definition it is of.
    pub(crate) queue: i32,
    pub(crate) max_attempts: i32,
    pub(crate) ending: Ending,
    pub(crate) text: String,
    /// Custom events that come with it.
    pub(crate) events: Vec<String>,
    /// We end it, if the session still holds it, and not the executor.
    pub(crate) is_swept: bool,
    /// When we heard of it, or decided it.
    pub(crate) since: Instant,
    /// Of its way from here to the answer.
    pub(crate) span: Span,
}

impl Ended {
    /// A lease that was never sent: it goes back, uncounted.
    pub(crate) fn unsent(row: &LeaseRow, reason: &str) -> Self {
        Self {
            session: row.session,
            lease: row.id(),
            queue: row.queue,
            max_attempts: row.max_attempts,
            ending: Ending::HandBack,
            text: reason.to_owned(),
            events: Vec::new(),
            is_swept: true,
            since: Instant::now(),
            span: Span::none(),
        }
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.events.iter().map(String::len).sum::<usize>()
    }
}

/// Where ended leases go.
#[derive(Clone)]
pub(crate) struct Settler {
    queue: mpsc::Sender<Ended>,
    sessions: Arc<Sessions>,
    /// Rings when many wait.
    many: Arc<Notify>,
}

/// The far end of the queue, shared by the loops.
#[derive(Clone)]
pub(crate) struct Line {
    queue: Arc<Mutex<mpsc::Receiver<Ended>>>,
    many: Arc<Notify>,
}

/// When a loop takes what waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// As soon as there is something.
    Always,
    /// When many wait.
    Beside,
}

impl Line {
    /// What waits, as much as fits into a call; waits for the first. None: it is told to stop, and there
    /// is nothing.
    async fn batch(&self, turn: Turn, stop: &CancellationToken) -> Option<Vec<Ended>> {
        let mut queue = loop {
            if turn == Turn::Beside {
                tokio::select! {
                    () = self.many.notified() => {}
                    () = stop.cancelled() => return None,
                }
            }
            let queue = self.queue.lock().await;
            // The other loop may have taken them.
            if turn == Turn::Always || queue.len() >= MANY {
                break queue;
            }
        };
        let first = next(&mut queue, stop).await?;
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while batch.len() < ITEMS_MAX && bytes < BYTES_MAX {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.bytes();
            batch.push(next);
        }
        Some(batch)
    }
}

impl Settler {
    pub(crate) fn new(sessions: Arc<Sessions>) -> (Self, Line) {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let many = Arc::new(Notify::new());
        let line = Line { queue: Arc::new(Mutex::new(receiver)), many: Arc::clone(&many) };
        (Self { queue, sessions, many }, line)
    }

    /// The line of those that wait for a settle loop.
    pub(crate) fn line(&self) -> mpsc::WeakSender<Ended> {
        self.queue.downgrade()
    }

    /// Waits for room in the queue. What was begun here is ended, also when the wait is given up: a
    /// lease that is neither held nor settled would be nobody's.
    pub(crate) async fn push(&self, ended: Ended) {
        self.sessions.settling(ended.lease);
        // The loops run as long as anybody can push.
        if let Err(TrySendError::Full(ended)) = self.queue.try_send(ended) {
            let queue = self.queue.clone();
            let _ = tokio::spawn(async move { queue.send(ended).await }).await;
        }
        if self.queue.max_capacity() - self.queue.capacity() >= MANY {
            self.many.notify_one();
        }
    }
}

/// A loop.
pub(crate) struct Settling {
    pub(crate) store: Store,
    pub(crate) node: Arc<Node>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) dispatch: Dispatch,
    pub(crate) line: Line,
    pub(crate) turn: Turn,
    pub(crate) writer: Option<Writer>,
}

impl Settling {
    /// Runs until it is told to stop and the queue is empty.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while let Some(mut batch) = self.line.batch(self.turn, &stop).await {
            // In the order of keys: the leases' slots then line up with their parents' sessions.
            batch.sort_by_key(|e| (e.is_swept, e.lease.step));
            for part in batch.chunk_by(|a, b| a.is_swept == b.is_swept) {
                self.settle(part).instrument(trace::batch(part)).await;
            }
        }
    }

    async fn settle(&mut self, batch: &[Ended]) {
        let mut reports: Vec<Report> = batch.iter().map(report).collect();
        let slots = self.slots(batch);
        let is_swept = batch.first().is_some_and(|e| e.is_swept);
        let sweep = is_swept.then(|| Sweep::Sessions(batch.iter().map(|e| e.session).collect()));
        let (mut settled, poison, acting) = self.carry_out(&reports, &slots, sweep.as_ref()).await;
        for index in poison {
            // The database refused the result itself: that is the outcome.
            reports[index] = refused_result(&batch[index]);
            let one = std::slice::from_ref(&reports[index]);
            let sweep = is_swept.then(|| Sweep::Sessions(vec![batch[index].session]));
            let (alone, ..) = self.carry_out(one, &ChildSlots::default(), sweep.as_ref()).await;
            settled.accepted[index] = alone.accepted.first().copied().unwrap_or(false);
        }
        self.store.bell().ring(Topic::Event);
        if settled.ready > 0 {
            self.store.bell().ring(Topic::Ready);
        }
        let has_key = |e: &Ended| {
            let definition = self.dispatch.definition_of(e.queue);
            definition.is_some_and(|d| d.definition.concurrency.is_some())
        };
        if batch.iter().any(has_key) {
            self.store.bell().ring(Topic::Key);
        }
        let is_timed = |e: &Ended| self.dispatch.definition_of(e.queue).is_some_and(|d| d.is_timed);
        if batch
            .iter()
            .any(|e| matches!(e.ending, Ending::Fail { wait_ms: Some(_) }) || is_timed(e))
        {
            self.dispatch.timers.notify_one();
        }
        self.dispatch.metrics().ended(batch, &settled.accepted);
        for (ended, _) in batch.iter().zip(&settled.accepted).filter(|(_, accepted)| !**accepted) {
            ended.span.record("stepwell.lease_lost", true);
        }
        let acks = acks(batch, &settled);
        fault_point!("settle::unacknowledged");
        let since = settled.leases.iter().map(|row| released_at(batch, row)).collect();
        let began = Began { way: Way::HandedOver, since };
        self.dispatch.send(&settled.leases, acting, &reports, acks, began).await;
        self.sessions.unreserve(slots.sessions());
        self.sessions.settled(batch.iter().map(|e| e.lease));
    }

    /// Reserves slots for the children of the steps that completed: they may become ready.
    fn slots(&self, batch: &[Ended]) -> ChildSlots {
        let mut children = Vec::with_capacity(batch.len());
        let mut ends = Vec::with_capacity(batch.len());
        for ended in batch {
            if ended.ending == Ending::Complete {
                self.children(ended, &mut children);
            }
            ends.push(children.len());
        }
        let sessions = self.sessions.reserve_for_children(&children);
        let mut slots = ChildSlots::default();
        let mut first = 0;
        for end in ends {
            slots.push(&sessions[first..end]);
            first = end;
        }
        slots
    }

    /// Adds the children of a step.
    fn children(&self, ended: &Ended, children: &mut Vec<Child>) {
        let number = number_of(ended.lease.step);
        let first = ended.lease.step - i64::from(number);
        let Some(definition) = self.dispatch.definition_of(ended.queue) else { return };
        let place = |number: i32| usize::try_from(number).ok();
        let Some(numbers) = place(number).and_then(|n| definition.children.get(n)) else { return };
        children.extend(numbers.iter().map(|child| {
            let queue = place(*child).and_then(|n| definition.queues.get(n)).copied();
            let step = first + i64::from(*child);
            let sure =
                place(*child).and_then(|n| definition.parents.get(n)).is_some_and(|p| p.len() == 1);
            Child {
                queue: queue.unwrap_or_default(),
                like: ended.queue,
                step,
                session: ended.session,
                sure,
            }
        }));
    }

    /// Calls the verb until its answer is known. Repeating is safe: the tokens stay the same.
    async fn carry_out(
        &mut self,
        reports: &[Report],
        slots: &ChildSlots,
        sweep: Option<&Sweep>,
    ) -> (Settled, Vec<usize>, Acting) {
        let mut wait = Duration::from_millis(10);
        let mut failing = false;
        loop {
            let error = match self.once(reports, slots, sweep).await {
                Ok(answer) => return answer,
                Err(error) => error,
            };
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    outcomes = reports.len(),
                    "outcomes cannot be settled; trying again"
                );
            }
            if !error.is_undone() && !error.is_retired() {
                self.writer = None;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }

    async fn once(
        &mut self,
        reports: &[Report],
        slots: &ChildSlots,
        sweep: Option<&Sweep>,
    ) -> Result<(Settled, Vec<usize>, Acting), Error> {
        let writer = self.store.connected(&mut self.writer).await?;
        let acting = self.node.act(&self.store).await?;
        fault_point!("settle::uncommitted");
        let since = Instant::now();
        let settled = writer.settle_each(reports, slots, acting.id(), sweep).await;
        let leases = settled.as_ref().map_or(0, |(settled, _)| settled.leases.len());
        self.dispatch.metrics().settled(reports.len(), leases, since);
        match settled {
            Ok((settled, poison)) => {
                fault_point!("settle::committed");
                Ok((settled, poison, acting))
            }
            Err(error) => {
                if !slots.is_empty() {
                    self.node.judge(acting.id(), &error);
                }
                Err(error)
            }
        }
    }
}

/// The next item; none: it is told to stop and there is none.
pub(crate) async fn next<T>(queue: &mut mpsc::Receiver<T>, stop: &CancellationToken) -> Option<T> {
    tokio::select! {
        biased;
        item = queue.recv() => item,
        () = stop.cancelled() => None,
    }
}

fn report(ended: &Ended) -> Report {
    Report {
        step: ended.lease.step,
        token: ended.lease.token,
        ending: ended.ending,
        text: ended.text.clone(),
        events: ended.events.clone(),
    }
}

fn refused_result(ended: &Ended) -> Report {
    let failure = StoredFailure {
        error_class: "InvalidResult".into(),
        message: "the database refused the result".into(),
        is_final: true,
        max_attempts: ended.max_attempts,
        ..StoredFailure::default()
    };
    let (ending, text) = (Ending::Fail { wait_ms: None }, failure.to_text());
    Report { ending, text, events: Vec::new(), ..report(ended) }
}

/// When the outcome came in that released a step: the last of its task in the batch, which is in the
/// order of steps.
fn released_at(batch: &[Ended], row: &LeaseRow) -> Instant {
    let task = task_of(row.step);
    let first = batch.partition_point(|ended| task_of(ended.lease.step) < task);
    let of_task = batch[first..].iter().take_while(|ended| task_of(ended.lease.step) == task);
    let complete = of_task.filter(|ended| ended.ending == Ending::Complete);
    complete.map(|ended| ended.since).max().unwrap_or_else(Instant::now)
}

/// Answers for the executors; what we ended ourselves needs none.
fn acks(batch: &[Ended], settled: &Settled) -> Vec<(i64, Ack)> {
    let reported = batch.iter().zip(&settled.accepted).filter(|(e, _)| !e.is_swept);
    let acks = reported.map(|(ended, accepted)| {
        let lease_id = ended.lease.encode();
        let refusal = (!accepted).then(|| lost(&lease_id).into());
        (ended.session, Ack { lease_id, refusal })
    });
    acks.collect()
}

/// The refusal of an outcome whose lease is over.
pub(crate) fn lost(lease_id: &str) -> Refusal {
    Refusal::new(ErrorReason::LeaseLost, "the lease is over; drop the outcome")
        .with("lease_id", lease_id)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use stepwell_proto::id::step_key;

    use super::*;

    #[test]
    fn a_step_was_released_when_the_last_outcome_of_its_task_came_in() {
        let began = Instant::now();
        let ended = |task, no, ending, after| {
            let (step, token) = (step_key(task, no), 1);
            let row = LeaseRow {
                step,
                token,
                attempt: 1,
                max_attempts: 3,
                queue: 1,
                session: 7,
                ..LeaseRow::default()
            };
            let since = began + Duration::from_secs(after);
            Ended { ending, since, is_swept: false, ..Ended::unsent(&row, "") }
        };
        let failed = Ending::Fail { wait_ms: None };
        let batch = [
            ended(1, 0, Ending::Complete, 1),
            ended(2, 0, Ending::Complete, 5),
            ended(2, 1, Ending::Complete, 3),
            ended(2, 2, failed, 8),
            ended(3, 0, Ending::Complete, 2),
        ];
        let (step, token) = (step_key(2, 3), 1);
        let child = LeaseRow {
            step,
            token,
            attempt: 1,
            max_attempts: 3,
            queue: 1,
            session: 7,
            ..LeaseRow::default()
        };
        assert_eq!(released_at(&batch, &child), began + Duration::from_secs(5));
    }

    #[tokio::test]
    async fn what_was_begun_with_an_outcome_is_ended_though_nobody_waits_for_it() {
        let (settler, line) = Settler::new(Arc::default());
        let ended = |step| {
            let (token, attempt, max_attempts) = (1, 1, 3);
            Ended::unsent(
                &LeaseRow {
                    step,
                    token,
                    attempt,
                    max_attempts,
                    queue: 1,
                    session: 7,
                    ..LeaseRow::default()
                },
                "",
            )
        };
        let all = i64::try_from(QUEUE_MAX).unwrap();
        for step in 0..all {
            settler.push(ended(step)).await;
        }
        assert!(settler.push(ended(all)).now_or_never().is_none(), "there is no room");
        let (stop, mut last) = (CancellationToken::new(), 0);
        while last < all {
            let batch = line.batch(Turn::Always, &stop);
            let batch =
                tokio::time::timeout(Duration::from_secs(20), batch).await.unwrap().unwrap();
            last = batch.last().unwrap().lease.step;
        }
    }

    #[tokio::test]
    async fn the_loop_beside_takes_what_waits_only_when_that_is_many_and_both_end_with_the_queue() {
        let (settler, line) = Settler::new(Arc::default());
        let stop = CancellationToken::new();
        let row = |key| LeaseRow {
            step: step_key(key, 0),
            token: key,
            attempt: 1,
            max_attempts: 3,
            queue: 1,
            session: 7,
            ..LeaseRow::default()
        };
        let push = async |n: usize| {
            for _ in 0..n {
                settler.push(Ended::unsent(&row(1), "")).await;
            }
        };
        push(MANY - 1).await;
        assert!(line.batch(Turn::Beside, &stop).now_or_never().is_none(), "too few");
        push(1).await;
        let many = line.batch(Turn::Beside, &stop).now_or_never().flatten();
        assert_eq!(many.map(|batch| batch.len()), Some(MANY));
        push(MANY).await;
        let all = line.batch(Turn::Always, &stop).await;
        assert_eq!(all.map(|batch| batch.len()), Some(MANY));
        push(1).await;
        assert!(
            line.batch(Turn::Beside, &stop).now_or_never().is_none(),
            "it was rung, but the other took them, and one is too few"
        );
        stop.cancel();
        assert!(line.batch(Turn::Beside, &stop).await.is_none());
        let last = line.batch(Turn::Always, &stop).await;
        assert_eq!(last.map(|batch| batch.len()), Some(1), "what was pushed before is settled");
        assert!(line.batch(Turn::Always, &stop).await.is_none());
    }
}
