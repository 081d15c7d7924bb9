//! Creates tasks, as many as are to be in flight or as a rate says, and follows them to their ends.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use stepwell_client::{CancellationToken, Client, EventStream, Start, Subscription};
use stepwell_proto::v1::{BatchCreateTasksRequest, CreateTaskRequest, Event, event::Detail};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    NAMESPACE,
    shape::Definition,
    worker::{Times, now, stamped},
};
use crate::fault::Fault;

/// Tasks of one call, at most.
const CALL_MAX: usize = 200;
/// Calls at once.
const CALLS_MAX: usize = 16;
/// More tasks under way than this and a rate is not kept up any more.
const UNDER_WAY_MAX: u64 = 200_000;
/// How often a rate is looked at.
const TICK: Duration = Duration::from_millis(1);

/// How tasks are created.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// So many under way at all times: when one ends the next is created.
    InFlight(usize),
    /// So many a second, whatever becomes of them. Times count from when a task was due, so that a
    /// stall is not hidden by what was not sent meanwhile.
    Rate(f64),
}

/// The tasks of a run. Cheap to clone.
#[derive(Clone)]
pub(super) struct Load(Arc<Inner>);

struct Inner {
    client: Client,
    definitions: Vec<Definition>,
    payload: usize,
    created: AtomicU64,
    steps: AtomicU64,
    ended: AtomicU64,
    ended_steps: AtomicU64,
    changed: Notify,
    /// Those under way: when each was due, and how many steps it has.
    under_way: Mutex<HashMap<String, (u64, u64)>>,
    /// Ended otherwise than complete.
    astray: AtomicU64,
    create: Times,
    end_to_end: Times,
    /// End-to-end times since the last look, for the picture over time.
    lately: Times,
}

impl Load {
    pub(super) fn new(
        client: Client,
        definitions: Vec<Definition>,
        payload: usize,
        measuring: &Arc<AtomicBool>,
    ) -> Self {
        let always = Arc::new(AtomicBool::new(true));
        Self(Arc::new(Inner {
            client,
            definitions,
            payload,
            created: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            ended_steps: AtomicU64::new(0),
            changed: Notify::new(),
            under_way: Mutex::default(),
            astray: AtomicU64::new(0),
            create: Times::new(measuring),
            end_to_end: Times::new(measuring),
            lately: Times::new(&always),
        }))
    }

    pub(super) fn create_times(&self) -> &Times {
        &self.0.create
    }

    pub(super) fn end_to_end_times(&self) -> &Times {
        &self.0.end_to_end
    }

    pub(super) fn lately(&self) -> &Times {
        &self.0.lately
    }

    /// Tasks created, and steps they have.
    pub(super) fn created(&self) -> (u64, u64) {
        (self.0.created.load(Ordering::Relaxed), self.0.steps.load(Ordering::Relaxed))
    }

    /// Tasks ended, and steps they had.
    pub(super) fn ended(&self) -> (u64, u64) {
        (self.0.ended.load(Ordering::Relaxed), self.0.ended_steps.load(Ordering::Relaxed))
    }

    /// Tasks that ended otherwise than complete.
    pub(super) fn astray(&self) -> u64 {
        self.0.astray.load(Ordering::Relaxed)
    }

    pub(super) fn under_way(&self) -> u64 {
        self.created().0 - self.ended().0
    }

    /// Waits until no more than so many are under way.
    pub(super) async fn down_to(&self, tasks: u64) {
        loop {
            let changed = self.0.changed.notified();
            if self.under_way() <= tasks {
                return;
            }
            changed.await;
        }
    }

    /// The feed to follow; it is there before the first task.
    pub(super) async fn feed(&self) -> Result<EventStream, Fault> {
        let ends = Subscription::new()
            .names(["task.completed", "task.failed", "task.cancelled"])
            .namespaces([NAMESPACE])
            .from(Start::Latest);
        Ok(self.0.client.subscribe(ends).await?)
    }

    /// Follows the feed without end.
    pub(super) async fn follow(&self, mut feed: EventStream) -> Result<(), Fault> {
        while let Some(delivery) = feed.next().await {
            let events = delivery?.events;
            let now = now();
            let mut ours = Vec::with_capacity(events.len());
            {
                let mut under_way = self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
                for event in &events {
                    ours.extend(under_way.remove(&event.task_id));
                    self.judge(event);
                }
            }
            for (due, steps) in &ours {
                self.0.end_to_end.record(now.saturating_sub(*due));
                self.0.lately.record(now.saturating_sub(*due));
                self.0.ended_steps.fetch_add(*steps, Ordering::Relaxed);
            }
            self.0.ended.fetch_add(ours.len() as u64, Ordering::Relaxed);
            self.0.changed.notify_waiters();
        }
        Err(Fault::new("the feed ended"))
    }

    fn judge(&self, event: &Event) {
        if !matches!(event.detail, Some(Detail::TaskCompleted(_))) {
            self.0.astray.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Creates tasks at a pace until it is told to stop.
    pub(super) async fn create(&self, pace: Pace, stop: CancellationToken) -> Result<(), Fault> {
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        let mut calling = tokio::task::JoinSet::new();
        let began = Instant::now();
        let began_at = now();
        let mut sent = 0;
        let created = loop {
            let due: Vec<u64> = match pace {
                Pace::InFlight(n) => {
                    let changed = self.0.changed.notified();
                    let room = (n as u64).saturating_sub(self.under_way());
                    if room == 0 {
                        tokio::select! {
                            () = changed => continue,
                            () = stop.cancelled() => break Ok(()),
                        }
                    }
                    vec![now(); usize::try_from(room).unwrap_or(usize::MAX).min(CALL_MAX)]
                }
                Pace::Rate(rate) => {
                    // The task with number n is due n / rate seconds after the beginning.
                    let due = (began.elapsed().as_secs_f64() * rate) as u64;
                    let end = due.min(sent + CALL_MAX as u64);
                    let at = |n: u64| began_at + (n as f64 / rate * 1e6) as u64;
                    let some: Vec<u64> = (sent..end).map(at).collect();
                    sent = end;
                    if some.is_empty() {
                        tokio::select! {
                            () = sleep_until(Instant::now() + TICK) => {}
                            () = stop.cancelled() => break Ok(()),
                        }
                        continue;
                    }
                    some
                }
            };
            if stop.is_cancelled() {
                break Ok(());
            }
            if self.under_way() > UNDER_WAY_MAX {
                break Err(Fault::new("the rate is not kept up: 200,000 tasks are under way"));
            }
            let requests = self.requests(&due);
            while let Some(called) = calling.try_join_next() {
                called.map_err(|error| Fault::new(error.to_string()))??;
            }
            let permit = Arc::clone(&calls).acquire_owned().await;
            let load = self.clone();
            calling.spawn(async move {
                let _permit = permit;
                let from = now();
                load.0.client.batch_create_tasks(BatchCreateTasksRequest { requests }).await?;
                load.0.create.since(from);
                Ok::<_, Fault>(())
            });
        };
        while let Some(called) = calling.join_next().await {
            called.map_err(|error| Fault::new(error.to_string()))??;
        }
        created
    }

    fn requests(&self, due: &[u64]) -> Vec<CreateTaskRequest> {
        let Inner { definitions, payload, .. } = &*self.0;
        let first = self.0.created.fetch_add(due.len() as u64, Ordering::Relaxed);
        let mut under_way = self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = due.iter().zip(first..).map(|(at, n)| {
            let task_id = Uuid::now_v7().to_string();
            let turn = usize::try_from(n).unwrap_or(0) % definitions.len();
            let Definition { name, steps, .. } = &definitions[turn];
            self.0.steps.fetch_add(*steps, Ordering::Relaxed);
            under_way.insert(task_id.clone(), (*at, *steps));
            CreateTaskRequest {
                task_id,
                namespace: NAMESPACE.into(),
                definition_name: name.clone(),
                context: stamped(*at, *payload),
                initiator: "bench".into(),
                ..CreateTaskRequest::default()
            }
        });
        requests.collect()
    }
}
