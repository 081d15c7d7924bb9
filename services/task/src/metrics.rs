//! What is measured of creating tasks, of waiting for them, and of bulk operations.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use stepwell_store::{BulkKind, Created};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    create::{Answer, WAITING_MAX},
    wait::{self, Waiters},
};

/// The instruments of the creating loop.
pub(crate) struct Metrics {
    batch: Histogram<u64>,
    call: Histogram<f64>,
    wait: Histogram<f64>,
    answers: Counter<u64>,
    labels: [[KeyValue; 1]; 4],
}

/// What became of tasks, in the order of the labels.
#[derive(Default)]
pub(crate) struct Answered([u64; 4]);

impl Answered {
    pub(crate) fn count<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Self {
        let mut answered = Self::default();
        for answer in answers {
            answered.0[match answer {
                Ok((_, Created::New(_))) => 0,
                Ok((_, Created::Existing(_))) => 1,
                Ok((_, Created::Reused | Created::KeyReused)) => 2,
                Err(_) => 3,
            }] += 1;
        }
        answered
    }
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Self {
        let answers = meter
            .u64_counter("stepwell_task_create_answers_total")
            .with_description(
                "Tasks that were asked for and passed their checks, by the answer: new; \
                 existing: the same request came before; reused: another request had the id; \
                 failed: the database was away or refused it",
            )
            .build();
        let labels = ["new", "existing", "reused", "failed"].map(|a| [KeyValue::new("answer", a)]);
        for label in &labels {
            answers.add(0, label);
        }
        Self {
            batch: meter
                .u64_histogram("stepwell_task_create_batch_tasks")
                .with_description("Tasks of one call of create_tasks")
                .build(),
            call: meter
                .f64_histogram("stepwell_task_create_call_seconds")
                .with_description("One call of create_tasks, answered or failed")
                .with_unit("s")
                .build(),
            wait: meter
                .f64_histogram("stepwell_task_create_wait_seconds")
                .with_description(
                    "From a caller's checked tasks joining the line to their being durable, or \
                     given up",
                )
                .with_unit("s")
                .build(),
            answers,
            labels,
        }
    }

    /// A call of the verb was answered, or was not.
    pub(crate) fn called(&self, tasks: usize, since: Instant) {
        self.batch.record(u64::try_from(tasks).unwrap_or(u64::MAX), &[]);
        self.call.record(since.elapsed().as_secs_f64(), &[]);
    }

    /// Callers got their answers.
    pub(crate) fn answered(&self, answered: &Answered, since: impl Iterator<Item = Instant>) {
        for (n, label) in answered.0.iter().zip(&self.labels).filter(|(n, _)| **n > 0) {
            self.answers.add(*n, label);
        }
        for since in since {
            self.wait.record(since.elapsed().as_secs_f64(), &[]);
        }
    }
}

/// The line before the creating loop, looked at when somebody reads. It ends when nobody can join it
/// any more, so it is held weakly.
pub(crate) fn watch_line<T: Send + 'static>(
    meter: &Meter,
    queue: mpsc::WeakSender<T>,
    room: Weak<Semaphore>,
    bytes_max: usize,
) {
    meter
        .u64_observable_gauge("stepwell_task_create_waiting_items")
        .with_description(format!(
            "Callers' tasks, in parts of one call each, that wait for the creating loop; at most \
             {WAITING_MAX}"
        ))
        .with_callback(move |seen| {
            let waiting =
                queue.upgrade().map_or(0, |queue| queue.max_capacity() - queue.capacity());
            seen.observe(u64::try_from(waiting).unwrap_or(u64::MAX), &[]);
        })
        .build();
    meter
        .u64_observable_gauge("stepwell_task_create_waiting_bytes")
        .with_description(format!(
            "Bytes of the tasks that wait or are being created; at most {} MiB",
            bytes_max >> 20
        ))
        .with_unit("By")
        .with_callback(move |seen| {
            let taken = room.upgrade().map_or(0, |room| bytes_max - room.available_permits());
            seen.observe(u64::try_from(taken).unwrap_or(u64::MAX), &[]);
        })
        .build();
}

/// The counters of bulk operations.
pub(crate) struct Bulk {
    started: Counter<u64>,
    ended: Counter<u64>,
    moved: Counter<u64>,
}

/// How a bulk operation ended.
#[derive(Clone, Copy)]
pub(crate) enum BulkEnding {
    Done,
    Cancelled,
}

impl Bulk {
    pub(crate) fn new(meter: &Meter) -> Self {
        let counter =
            |name, description| meter.u64_counter(name).with_description(description).build();
        let bulk = Self {
            started: counter(
                "stepwell_bulk_started_total",
                "Bulk operations that this process started, by action",
            ),
            ended: counter(
                "stepwell_bulk_ended_total",
                "Bulk operations that ended in this process, by action: all tasks had their turn, \
                 or it was cancelled",
            ),
            moved: counter(
                "stepwell_bulk_moved_total",
                "Tasks that this process moved for bulk operations, by action",
            ),
        };
        for kind in [BulkKind::Cancel, BulkKind::Retry, BulkKind::Resolve] {
            bulk.started.add(0, &[action(kind)]);
            bulk.moved.add(0, &[action(kind)]);
            for ending in [BulkEnding::Done, BulkEnding::Cancelled] {
                bulk.ended.add(0, &[action(kind), ending.label()]);
            }
        }
        bulk
    }

    pub(crate) fn started(&self, kind: BulkKind) {
        self.started.add(1, &[action(kind)]);
    }

    pub(crate) fn ended(&self, kind: BulkKind, ending: BulkEnding) {
        self.ended.add(1, &[action(kind), ending.label()]);
    }

    pub(crate) fn moved(&self, kind: BulkKind, tasks: i32) {
        self.moved.add(u64::try_from(tasks).unwrap_or(0), &[action(kind)]);
    }
}

impl BulkEnding {
    fn label(self) -> KeyValue {
        KeyValue::new(
            "ending",
            match self {
                Self::Done => "done",
                Self::Cancelled => "cancelled",
            },
        )
    }
}

fn action(kind: BulkKind) -> KeyValue {
    KeyValue::new(
        "action",
        match kind {
            BulkKind::Cancel => "cancel",
            BulkKind::Retry => "retry",
            BulkKind::Resolve => "resolve",
        },
    )
}

/// Who waits for tasks to end.
pub(crate) fn watch_waiters(meter: &Meter, waiters: &Arc<Waiters>) {
    let waiters = Arc::downgrade(waiters);
    meter
        .u64_observable_gauge("stepwell_task_waiters")
        .with_description(format!(
            "Callers that wait for a task to end; at most {}",
            wait::WAITING_MAX
        ))
        .with_callback(move |seen| {
            let waiting = waiters.upgrade().map_or(0, |waiters| waiters.waiting());
            seen.observe(u64::try_from(waiting).unwrap_or(u64::MAX), &[]);
        })
        .build();
}
