//! Creating tasks: callers that wait at the same moment share one call of the verb. One loop with
//! one connection; no timer: while a call is in flight the next batch collects. What comes here is
//! planned already, so no caller's faults reach the others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::metrics::Meter;
use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use stepwell_store::{Created, Error, NewTask, Store, Writer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};
use tracing::Instrument;

use crate::trace;

use crate::metrics::{Answered, Metrics, watch_line};

/// Most tasks of one call of the verb.
const TASKS_MAX: usize = 200;
/// Most bytes of one call, unless a single task has more.
const BYTES_MAX: usize = 4 << 20;
/// Most steps of one call, unless a single task has more: it must end well within its time-out.
const STEPS_MAX: usize = 20_000;
/// Most items that wait.
pub(crate) const WAITING_MAX: usize = 1024;
/// Most bytes that wait.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// A task is tried for so long, from the moment it was given here.
pub(crate) const TRIED_FOR: Duration = Duration::from_secs(8);

/// What became of one task.
pub(crate) type Answer = Result<(NewTask, Created), Refusal>;

/// How much there is to create.
#[derive(Clone, Copy, Default)]
struct Load {
    tasks: usize,
    bytes: usize,
    steps: usize,
}

impl Load {
    fn of(task: &NewTask) -> Self {
        let tags = task.tags.iter().map(String::len).sum::<usize>();
        let facts = task.annotations.iter().map(|(name, text)| name.len() + text.len());
        let text = task.context.len() + tags + facts.sum::<usize>();
        Self { tasks: 1, bytes: text + 1024, steps: task.definition.queues.len() }
    }

    fn and(self, other: Self) -> Self {
        Self {
            tasks: self.tasks + other.tasks,
            bytes: self.bytes + other.bytes,
            steps: self.steps + other.steps,
        }
    }

    fn fits(self) -> bool {
        self.tasks <= TASKS_MAX && self.bytes <= BYTES_MAX && self.steps <= STEPS_MAX
    }
}

/// Tasks of one caller, no more than one call of the verb takes.
struct Item {
    tasks: Vec<NewTask>,
    load: Load,
    since: Instant,
    answer: oneshot::Sender<Vec<Answer>>,
    /// The room its caller takes.
    _room: Arc<OwnedSemaphorePermit>,
}

/// Where tasks go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Creator {
    queue: mpsc::Sender<Item>,
    room: Arc<Semaphore>,
}

/// The loop behind it.
pub(crate) struct Creating {
    store: Store,
    queue: mpsc::Receiver<Item>,
    /// Taken from the queue, but it did not fit into the last batch.
    held: Option<Item>,
    writer: Option<Writer>,
    metrics: Metrics,
}

impl Creator {
    pub(crate) fn new(store: Store, meter: &Meter) -> (Self, Creating) {
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        let room = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
        watch_line(meter, sender.downgrade(), Arc::downgrade(&room), WAITING_BYTES_MAX);
        let metrics = Metrics::new(meter);
        (Self { queue: sender, room }, Creating { store, queue, held: None, writer: None, metrics })
    }

    /// Creates tasks; answers once they are durable, in their order. Takes all or none.
    pub(crate) async fn create(&self, tasks: Vec<NewTask>) -> Result<Vec<Answer>, Refusal> {
        let bytes: usize = tasks.iter().map(|task| Load::of(task).bytes).sum();
        let bytes = u32::try_from(bytes.min(WAITING_BYTES_MAX)).expect("a bound below 4 GiB");
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|e| match e {
            TryAcquireError::NoPermits => overloaded(),
            TryAcquireError::Closed => going_down(),
        })?;
        let (room, since) = (Arc::new(room), Instant::now());
        let parts = parts(tasks);
        let places = self.queue.try_reserve_many(parts.len()).map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => overloaded(),
            mpsc::error::TrySendError::Closed(()) => going_down(),
        })?;
        let mut answers = Vec::with_capacity(parts.len());
        for (place, (tasks, load)) in places.zip(parts) {
            let (answer, answered) = oneshot::channel();
            place.send(Item { tasks, load, since, answer, _room: Arc::clone(&room) });
            answers.push(answered);
        }
        let mut all = Vec::new();
        for answered in answers {
            all.extend(answered.await.map_err(|_| going_down())?);
        }
        Ok(all)
    }
}

/// The tasks in parts that fit into one call each.
fn parts(tasks: Vec<NewTask>) -> Vec<(Vec<NewTask>, Load)> {
    let mut parts: Vec<(Vec<NewTask>, Load)> = Vec::new();
    for task in tasks {
        let load = Load::of(&task);
        match parts.last_mut() {
            Some((part, of_part)) if of_part.and(load).fits() => {
                part.push(task);
                *of_part = of_part.and(load);
            }
            _ => parts.push((vec![task], load)),
        }
    }
    parts
}

pub(crate) fn overloaded() -> Refusal {
    Refusal::new(ErrorReason::Overloaded, "too many tasks wait to be created")
        .retry_after(Duration::from_millis(100))
}

pub(crate) fn going_down() -> Refusal {
    Refusal::new(ErrorReason::ShuttingDown, "this node goes down")
        .retry_after(Duration::from_millis(100))
}

impl Creating {
    /// Runs until no one can ask any more.
    pub(crate) async fn run(mut self) {
        while let Some(batch) = self.batch().await {
            let since = batch.iter().map(|item| item.since).min();
            let until = since.unwrap_or_else(Instant::now) + TRIED_FOR;
            let (mut tasks, mut callers) = (Vec::new(), Vec::with_capacity(batch.len()));
            for item in batch {
                callers.push((item.tasks.len(), item.since, item.answer, item._room));
                tasks.extend(item.tasks);
            }
            let span = trace::batch(&tasks);
            let answers = self.create_each(tasks, until).instrument(span).await;
            let waited = callers.iter().map(|(_, since, ..)| *since);
            self.metrics.answered(&Answered::count(&answers), waited);
            let mut answers = answers.into_iter();
            for (n, _, caller, _room) in callers {
                // A caller that has gone needs no answer.
                drop(caller.send(answers.by_ref().take(n).collect()));
            }
        }
    }

    /// What waits, as much as fits; waits for the first. None: no one can ask any more.
    async fn batch(&mut self) -> Option<Vec<Item>> {
        let first = match self.held.take() {
            Some(held) => held,
            None => self.queue.recv().await?,
        };
        let mut load = first.load;
        let mut batch = vec![first];
        while let Ok(next) = self.queue.try_recv() {
            load = load.and(next.load);
            if !load.fits() {
                self.held = Some(next);
                break;
            }
            batch.push(next);
        }
        Some(batch)
    }

    /// Creates them all. If the database refuses someone's data, or takes too long over them, the
    /// culprit is found by halving.
    async fn create_each(&mut self, tasks: Vec<NewTask>, until: Instant) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = tasks.iter().map(|_| None).collect();
        let mut parts = vec![(0, tasks)];
        while let Some((first, mut part)) = parts.pop() {
            match self.create(&mut part, until).await {
                Ok(created) => {
                    for (i, answer) in part.into_iter().zip(created).enumerate() {
                        answers[first + i] = Some(Ok(answer));
                    }
                }
                Err(error) if part.len() > 1 && is_divisible(&error) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push((first + part.len(), rest));
                    parts.push((first, part));
                }
                Err(error) => {
                    let refusal = Refusal::from(error);
                    for i in 0..part.len() {
                        answers[first + i] = Some(Err(refusal.clone()));
                    }
                }
            }
        }
        let unanswered = || Err(Refusal::new(ErrorReason::Internal, "a task was not answered"));
        answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    /// Calls the verb until its answer is known, for a bounded time. Repeating is safe: ids and
    /// keys stay the same.
    async fn create(
        &mut self,
        tasks: &mut [NewTask],
        until: Instant,
    ) -> Result<Vec<Created>, Error> {
        let mut wait = Duration::from_millis(10);
        let mut failing = false;
        loop {
            let error = match self.once(tasks).await {
                Ok(created) => return Ok(created),
                Err(error) => error,
            };
            if !error.is_undone() && !error.is_data() {
                self.writer = None;
            }
            let is_divisible = tasks.len() > 1 && is_divisible(&error);
            if is_divisible || !error.is_transient() || Instant::now() + wait > until {
                return Err(error);
            }
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    tasks = tasks.len(),
                    "tasks cannot be created; trying again"
                );
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
    }

    async fn once(&mut self, tasks: &mut [NewTask]) -> Result<Vec<Created>, Error> {
        let writer = self.store.connected(&mut self.writer).await?;
        let since = Instant::now();
        let answer = writer.create_tasks(&self.store, tasks).await;
        self.metrics.called(tasks.len(), since);
        answer
    }
}

/// A smaller batch may do better: the error is about some item, or the time-out struck.
fn is_divisible(error: &Error) -> bool {
    error.is_data() || error.code().as_deref() == Some("57014")
}

#[cfg(test)]
mod tests {
    use stepwell_store::StoredDefinition;
    use uuid::Uuid;

    use super::*;

    fn task(steps: usize, bytes: usize) -> NewTask {
        let definition = StoredDefinition {
            id: 1,
            version: [1, 0, 0],
            queues: vec![1; steps],
            ..StoredDefinition::default()
        };
        NewTask {
            uid: Uuid::now_v7(),
            definition: Arc::new(definition),
            hash: [0; 32],
            context: "x".repeat(bytes),
            initiator: String::new(),
            source_system: String::new(),
            reason: String::new(),
            tags: Vec::new(),
            skipped: Vec::new(),
            priority: None,
            concurrency: None,
            identity: None,
            correlation_id: String::new(),
            annotations: Default::default(),
            trace: None,
            key: None,
        }
    }

    fn sizes(tasks: Vec<NewTask>) -> Vec<usize> {
        parts(tasks).into_iter().map(|(part, _)| part.len()).collect()
    }

    #[test]
    fn one_call_is_bounded_in_tasks_steps_and_bytes() {
        let many = |n: usize, steps, bytes| (0..n).map(|_| task(steps, bytes)).collect();
        assert_eq!(sizes(many(450, 3, 2)), [200, 200, 50]);
        assert_eq!(sizes(many(5, 10_000, 2)), [2, 2, 1]);
        assert_eq!(sizes(many(5, 1, 2 << 20)), [1, 1, 1, 1, 1]);
        assert_eq!(sizes(many(5, 1, 1 << 20)), [3, 2]);
        assert_eq!(sizes(many(1, 30_000, 9 << 20)), [1], "what is larger goes alone");
        assert!(sizes(Vec::new()).is_empty());
    }
}
