//! Leases to executors: what the verbs leased is held by its session, filled with what its step
//! needs, and put into the session's outbox. What was just settled is at hand; the rest is read by
//! one statement for the whole batch, aside, so that the verbs' loops do not wait for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use stepwell_proto::{
    id::{LeaseId, number_of, step_id, task_of},
    v1::{Ack, Lease, StepResult},
};
use stepwell_store::{
    Ending, Error, Inputs, LeaseRow, Report, Store, StoredDefinition, Topic, Writer, tasks_of,
};
use stepwell_trace::TraceContext;
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    contexts::{self, Contexts, Known},
    metrics::{Metrics, Way},
    node::{Acting, Node},
    sessions::{Held, Sessions},
    settle::{Ended, Settler, next},
    trace::{self, About},
};

/// A parent's result travels with the lease up to this size.
pub(crate) const RESULT_BYTES_MAX: i32 = 64 << 10;
/// All parents' results of a lease together.
const RESULTS_BYTES_MAX: i32 = 2 << 20;
/// Batches of leases whose inputs are still to be read.
pub(crate) const FILLS_MAX: usize = 64;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dispatch {
    store: Store,
    sessions: Arc<Sessions>,
    settler: Settler,
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    contexts: Arc<Mutex<Contexts>>,
    queues: Arc<RwLock<HashMap<i32, Arc<StoredDefinition>>>>,
    fills: mpsc::Sender<Vec<Filling>>,
    /// Leases on their way back.
    pub(crate) returns: TaskTracker,
    /// Rings when a timer may be due earlier than the timers' loop thinks.
    pub(crate) timers: Arc<Notify>,
}

/// How the leases of one commit came to be, and for each when what led to it began: the call that
/// claimed it, or the outcome that released its step.
pub(crate) struct Began {
    pub(crate) way: Way,
    pub(crate) since: Vec<Instant>,
}

/// A lease on its way to its session.
#[derive(Clone)]
pub(crate) struct Filling {
    row: LeaseRow,
    definition: Arc<StoredDefinition>,
    way: Way,
    since: Instant,
}

impl Filling {
    fn id(&self) -> LeaseId {
        self.row.id()
    }

    /// The keys of the step's parents.
    fn parents(&self) -> impl Iterator<Item = i64> {
        let number = number_of(self.row.step);
        let first = self.row.step - i64::from(number);
        let parents = usize::try_from(number).ok().and_then(|n| self.definition.parents.get(n));
        parents.into_iter().flatten().map(move |parent| first + i64::from(*parent))
    }
}

/// The far end of the queue of leases whose inputs are to be read.
pub(crate) struct Fills(mpsc::Receiver<Vec<Filling>>);

impl Dispatch {
    pub(crate) fn new(
        store: Store,
        sessions: Arc<Sessions>,
        settler: Settler,
        node: Arc<Node>,
        metrics: Arc<Metrics>,
    ) -> (Self, Fills) {
        let (fills, receiver) = mpsc::channel(FILLS_MAX);
        let timers = store.bell().listen(Topic::Timer);
        let dispatch = Self {
            store,
            sessions,
            settler,
            node,
            metrics,
            contexts: Arc::new(Mutex::new(Contexts::new(contexts::BYTES_MAX))),
            queues: Arc::default(),
            fills,
            returns: TaskTracker::new(),
            timers,
        };
        (dispatch, Fills(receiver))
    }

    /// The definition a queue is of, if it is known here.
    pub(crate) fn definition_of(&self, queue: i32) -> Option<Arc<StoredDefinition>> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).get(&queue).cloned()
    }

    /// Makes the definitions of queues known.
    pub(crate) fn know(&self, known: impl IntoIterator<Item = (i32, Arc<StoredDefinition>)>) {
        self.queues.write().unwrap_or_else(PoisonError::into_inner).extend(known);
    }

    /// Makes what never changes of tasks known.
    pub(crate) fn learn(&self, tasks: Vec<(i64, Uuid, String, Option<TraceContext>)>) {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        for (task, uid, context, trace) in tasks {
            let known = Known { uid, context: context.into(), trace };
            let bytes = known.bytes();
            contexts.put(task, known, bytes);
        }
    }

    /// Sends leases of one commit to their sessions, with the acks of that commit. `settled` are
    /// the reports of it: results of parents that need not be read again. The node acts until the
    /// sessions hold their leases.
    pub(crate) async fn send(
        &self,
        leases: &[LeaseRow],
        acting: Acting,
        settled: &[Report],
        acks: Vec<(i64, Ack)>,
        Began { way, since }: Began,
    ) {
        let mut outgoing: HashMap<i64, (Vec<Lease>, Vec<Ack>)> = HashMap::new();
        for (session, ack) in acks {
            outgoing.entry(session).or_default().1.push(ack);
        }
        let (mut filled, mut unfilled) = (Vec::with_capacity(leases.len()), Vec::new());
        let results = completed(settled);
        for (row, since) in leases.iter().zip(since) {
            let Some(filling) = self.hold(*row, way, since) else { continue };
            match self.fill_at_hand(&filling, &results) {
                Some(lease) => {
                    outgoing.entry(row.session).or_default().0.push(lease);
                    filled.push(since);
                }
                None => unfilled.push(filling),
            }
        }
        drop(acting);
        self.push(outgoing);
        self.metrics.sent(way, filled);
        if !unfilled.is_empty() {
            // The loop runs as long as anybody can send.
            let _ = self.fills.send(unfilled).await;
        }
    }

    /// Lets the session hold the lease; if it is gone, the lease goes back.
    fn hold(&self, row: LeaseRow, way: Way, since: Instant) -> Option<Filling> {
        let definition = self.definition_of(row.queue);
        let number = number_of(row.step);
        let held = definition.as_ref().is_some_and(|of| {
            self.sessions.hold(&row, of.timeout(number), of.heartbeat_timeout(number))
        });
        match definition {
            Some(definition) if held => Some(Filling { row, definition, way, since }),
            _ => {
                self.hand_back(&row, "the executor is gone");
                None
            }
        }
    }

    fn hand_back(&self, row: &LeaseRow, reason: &str) {
        let ended = Ended::unsent(row, reason);
        // Not awaited here: a settle loop itself may be the caller.
        let settler = self.settler.clone();
        self.returns.spawn(async move { settler.push(ended).await });
    }

    fn push(&self, outgoing: HashMap<i64, (Vec<Lease>, Vec<Ack>)>) {
        for (session, (leases, acks)) in outgoing {
            let ids: Vec<LeaseId> =
                leases.iter().filter_map(|l| LeaseId::decode(&l.lease_id)).collect();
            let sent =
                self.sessions.outbox(session).is_some_and(|outbox| outbox.push(leases, acks));
            if !sent {
                self.take_back(session, ids);
            }
        }
    }

    /// Leases that were never sent go back uncounted.
    pub(crate) fn take_back(&self, session: i64, leases: Vec<LeaseId>) {
        for lease in leases {
            if let Some(Held { queue, max_attempts, .. }) = self.sessions.release(session, lease) {
                let (step, token, attempt) = (lease.step, lease.token, lease.attempt);
                let own_config = false;
                let row =
                    LeaseRow { step, token, attempt, max_attempts, queue, session, own_config };
                self.hand_back(&row, "the executor went before it was sent");
            }
        }
    }

    fn fill_at_hand(&self, filling: &Filling, results: &HashMap<i64, &str>) -> Option<Lease> {
        if filling.row.own_config {
            return None;
        }
        let mut total = 0;
        for parent in filling.parents() {
            let bytes = results.get(&parent)?.len();
            total += bytes;
            if bytes > max(RESULT_BYTES_MAX) || total > max(RESULTS_BYTES_MAX) {
                return None;
            }
        }
        let task = task_of(filling.row.step);
        let known = self.known(task)?;
        if known.trace.is_some() && filling.row.attempt > 1 {
            // The attempt before is to be read.
            return None;
        }
        let result = |parent| results.get(&parent).map(|r| (*r).to_owned());
        Some(lease(filling, &known, None, result))
    }

    /// Reads what leases need and sends them, until it is told to stop and there are none.
    pub(crate) async fn run_fills(self, mut fills: Fills, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut reader = None;
        while let Some(first) = next(&mut fills.0, &stop).await {
            batch.extend(first);
            while batch.len() < 500 {
                let Ok(next) = fills.0.try_recv() else { break };
                batch.extend(next);
            }
            self.fill(&mut reader, &std::mem::take(&mut batch)).await;
        }
    }

    async fn fill(&self, reader: &mut Option<Writer>, batch: &[Filling]) {
        let tasks = tasks_of(batch.iter().map(|f| f.row.step));
        let pairs: Vec<(i64, i64)> =
            batch.iter().flat_map(|f| f.parents().map(|parent| (f.row.step, parent))).collect();
        let configured = batch.iter().filter(|f| f.row.own_config).map(|f| f.row.step);
        let configured: Vec<i64> = configured.collect();
        let mut wait = Duration::from_millis(10);
        let mut failing = false;
        let inputs = loop {
            let error = match self.inputs(reader, &tasks, &pairs, &configured).await {
                Ok(inputs) => break inputs,
                Err(error) => error,
            };
            *reader = None;
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    leases = batch.len(),
                    "inputs cannot be read; trying again"
                );
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        };
        let previous = self.previous(batch, &inputs).await;
        self.send_filled(batch, inputs, &previous);
    }

    async fn inputs(
        &self,
        reader: &mut Option<Writer>,
        tasks: &[i64],
        pairs: &[(i64, i64)],
        configured: &[i64],
    ) -> Result<Inputs, Error> {
        let reader = self.store.connected(reader).await?;
        let most = (RESULT_BYTES_MAX, RESULTS_BYTES_MAX);
        reader.inputs(tasks, pairs, configured, most).await
    }

    /// Where the attempts before those of the batch are in a trace. Nothing is read for tasks that
    /// are not traced, and without an exporter.
    async fn previous(&self, batch: &[Filling], inputs: &Inputs) -> HashMap<i64, TraceContext> {
        if !stepwell_trace::is_exported() {
            return HashMap::new();
        }
        let is_traced = |step| inputs.tasks.get(&task_of(step)).is_some_and(|t| t.2.is_some());
        let retries = batch.iter().filter(|f| f.row.attempt > 1 && is_traced(f.row.step));
        let steps: Vec<i64> = retries.map(|f| f.row.step).collect();
        if steps.is_empty() {
            return HashMap::new();
        }
        // A link is worth no second try.
        self.store.previous_traces(&steps).await.unwrap_or_default()
    }

    fn send_filled(
        &self,
        batch: &[Filling],
        mut inputs: Inputs,
        previous: &HashMap<i64, TraceContext>,
    ) {
        let mut known: HashMap<i64, Known> = HashMap::new();
        {
            let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
            for (task, (uid, context, trace)) in inputs.tasks.drain() {
                let of_task = Known { uid, context: context.into(), trace };
                contexts.put(task, of_task.clone(), of_task.bytes());
                known.insert(task, of_task);
            }
        }
        let mut outgoing: HashMap<i64, (Vec<Lease>, Vec<Ack>)> = HashMap::new();
        for filling in batch {
            let step = filling.row.step;
            let Some(known) = known.get(&task_of(step)) else {
                let LeaseRow { attempt, session, .. } = filling.row;
                tracing::error!(
                    key = step,
                    attempt,
                    session,
                    "a leased step's task has no context"
                );
                continue;
            };
            let result = |parent| inputs.results.get(&(step, parent)).cloned().flatten();
            let mut lease = lease(filling, known, previous.get(&step).copied(), result);
            if let Some(config) = inputs.configs.get(&step) {
                lease.config.clone_from(config);
            }
            outgoing.entry(filling.row.session).or_default().0.push(lease);
        }
        self.push(outgoing);
        for filling in batch {
            self.metrics.sent(filling.way, [filling.since]);
        }
    }

    /// What is measured.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The line of leases whose inputs are to be read.
    pub(crate) fn line(&self) -> mpsc::WeakSender<Vec<Filling>> {
        self.fills.downgrade()
    }

    /// What is known here of a task; none: none of its steps was leased here lately.
    pub(crate) fn known(&self, task: i64) -> Option<Known> {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner).get(task)
    }

    /// The step of a lease, for lines of the log and for spans.
    pub(crate) fn about(&self, lease: LeaseId, queue: i32, session: i64) -> About {
        let definition = self.definition_of(queue);
        let step = definition.as_ref().and_then(|d| d.step(number_of(lease.step)));
        About {
            task: self.known(task_of(lease.step)).map(|known| known.uid),
            step: step.map(|step| step.name.clone()).unwrap_or_default(),
            attempt: lease.attempt,
            session,
        }
    }

    /// The store, for reads.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Who this process is.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

fn max(bytes: i32) -> usize {
    usize::try_from(bytes).unwrap_or(0)
}

/// Results by step, of the reports that completed.
fn completed(reports: &[Report]) -> HashMap<i64, &str> {
    let complete = reports.iter().filter(|r| r.ending == Ending::Complete);
    complete.map(|r| (r.step, r.text.as_str())).collect()
}

fn lease(
    filling: &Filling,
    task: &Known,
    previous: Option<TraceContext>,
    mut result: impl FnMut(i64) -> Option<String>,
) -> Lease {
    let Filling { row, definition, .. } = filling;
    let number = number_of(row.step);
    let template = definition.step(number);
    let task_id = task.uid.to_string();
    let parents = filling.parents().map(|parent| {
        let name = definition.step(number_of(parent)).map(|t| t.name.clone());
        let result = result(parent);
        StepResult {
            step_name: name.unwrap_or_default(),
            omitted: result.is_none(),
            result: result.unwrap_or_default(),
        }
    });
    let mut lease = Lease {
        lease_id: filling.id().encode(),
        step_id: step_id(&task_id, number),
        task_id,
        step_name: template.map(|t| t.name.clone()).unwrap_or_default(),
        handler: template.map(|t| t.handler.clone()).unwrap_or_default(),
        namespace: definition.definition.namespace.clone(),
        definition_name: definition.definition.name.clone(),
        definition_version: definition.definition.version.clone(),
        attempt: row.attempt,
        max_attempts: row.max_attempts,
        context: task.context.as_ref().to_owned(),
        config: template.map(|t| t.config.clone()).unwrap_or_default(),
        parents: parents.collect(),
        timeout: template.and_then(|t| t.timeout),
        traceparent: String::new(),
        heartbeat_timeout: template.and_then(|t| t.heartbeat_timeout),
    };
    trace::dispatch(&mut lease, row.session, task.trace, previous);
    lease
}
