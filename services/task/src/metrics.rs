//! What is measured of creating tasks and of waiting for them.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use stepwell_store::Created;
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
                Ok((_, Created::Reused)) => 2,
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
