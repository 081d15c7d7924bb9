//! StepService: opens a session for each Work stream, reads outcomes off it, and answers what of
//! parents' results did not travel with a lease.

mod unary;

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::stream;
use stepwell_proto::{
    id::{LeaseId, executor_id, number_of, task_of},
    json,
    refusal::Refusal,
    v1::{
        Ack, AcquireStepsRequest, AcquireStepsResponse, CancelStepRequest, CancelStepResponse,
        DrainExecutorRequest, DrainExecutorResponse, ErrorReason, ExtendLeasesRequest,
        ExtendLeasesResponse, Failure, GetStepReadinessRequest, GetStepReadinessResponse,
        GetStepRequest, GetStepResponse, Hello, ListExecutorsRequest, ListExecutorsResponse,
        ListHandlersRequest, ListHandlersResponse, ListStepResultsRequest, ListStepResultsResponse,
        ListStepsRequest, ListStepsResponse, Outcome, Publication, Publish, PublishAck,
        ReportOutcomesRequest, ReportOutcomesResponse, ResolveStepRequest, ResolveStepResponse,
        RetryStepRequest, RetryStepResponse, SkipStepRequest, SkipStepResponse, StepResult,
        UpdateStepRequest, UpdateStepResponse, Welcome, WorkRequest, WorkResponse, outcome::Kind,
        step_service_server,
    },
};
use stepwell_rule::{Refused, Types};
use stepwell_serve::{Age, Line, Shutdown};
use stepwell_store::{Ending, Published};
use stepwell_trace::TraceContext;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};
use tracing::Instrument;

use self::unary::Callers;
use crate::{
    executors::Executors,
    offer::{Offer, SLOTS_MAX},
    operate::Operations,
    outbox::Outbox,
    publish::Publisher,
    sessions::{Held, Owned},
    settle::{Ended, lost},
    sweep::{Sweeps, queues_of},
    trace,
    walk::Walks,
};

const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long an executor that was told to go may take.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// How long an executor whose stream is old may take to go elsewhere.
const MOVED_WITHIN: Duration = Duration::from_secs(60);
const OUTCOMES_MAX: usize = 10_000;
const PUBLISH_MAX: usize = 1_000;
const REASON_BYTES_MAX: usize = 1024;
const LIST_BYTES_MAX: i32 = 3 << 20;
const STRANGE_TRIES: u32 = 20;
const STRANGE_AGAIN: Duration = Duration::from_millis(250);

/// The RPCs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Steps(Arc<Inner>);

struct Inner {
    operations: Operations,
    executors: Executors,
    sweeps: Sweeps,
    walks: Walks,
    shutdown: Shutdown,
    bounds: Bounds,
    number: AtomicI64,
    callers: Callers,
    types: Types,
    publisher: Publisher,
}

/// What the service allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How long leases of a lost stream are kept.
    pub(crate) grace: Duration,
    /// Both sides say something at least this often; one that is silent for three times as long is
    /// taken for dead.
    pub(crate) heartbeat: Duration,
    /// When a stream is old.
    pub(crate) age: Age,
    /// Of one result.
    pub(crate) result_bytes_max: usize,
    /// Executors at once.
    pub(crate) sessions_max: usize,
}

impl Steps {
    pub(crate) fn new(
        sweeps: Sweeps,
        walks: Walks,
        publisher: Publisher,
        shutdown: Shutdown,
        bounds: Bounds,
    ) -> Self {
        let operations = Operations::new(sweeps.store.clone(), bounds.result_bytes_max);
        let executors = Executors::new(sweeps.store.clone());
        let number = AtomicI64::new(1);
        let callers = Callers::default();
        let inner = Inner {
            operations,
            executors,
            sweeps,
            walks,
            shutdown,
            bounds,
            number,
            callers,
            types: Types::default(),
            publisher,
        };
        Self(Arc::new(inner))
    }

    /// Opens a session: matched to queues, with what it still holds, welcomed.
    async fn open(&self, hello: Hello, asks: bool) -> Result<Arc<Session>, Refusal> {
        let inner = &self.0;
        if inner.shutdown.begun() {
            return Err(shutting_down());
        }
        let offer = Arc::new(Offer::read(&hello)?);
        if inner.sweeps.sessions.connected() >= inner.bounds.sessions_max {
            return Err(Refusal::new(ErrorReason::Overloaded, "this node has enough executors")
                .retry_after(Duration::from_secs(1)));
        }
        let dispatch = &inner.sweeps.dispatch;
        let queues = queues_of(dispatch.store(), dispatch, &offer.namespace).await?;
        let number = inner.number.fetch_add(1, Ordering::Relaxed);
        let node = dispatch.node().act(dispatch.store()).await?.id();
        let id = (i64::from(node) << 32) | number;
        let outbox = Arc::new(Outbox::default());
        // Of what it is about, not of the call: lines of it come when that was answered long since.
        let span = tracing::info_span!(
            "session", service = "step", session = id, executor = ?offer.name
        );
        let session = Arc::new(Session {
            id,
            namespace: offer.namespace.clone(),
            outbox: Arc::clone(&outbox),
            steps: self.clone(),
            fault: Mutex::default(),
            span,
        });
        inner.sweeps.sessions.know_queues(&queues);
        // Without slots until it knows what it holds: what it adopts takes some of them.
        let (offered, queues_of_it) = (Arc::clone(&offer), offer.queues(&queues));
        inner.sweeps.sessions.open(id, offered, queues_of_it, 0, asks, outbox);
        let (adopted, lost) = adopt(&session, hello.held_leases).await?;
        session.outbox.welcome(Welcome {
            executor_id: executor_id(id),
            grace: prost_types::Duration::try_from(inner.bounds.grace).ok(),
            heartbeat_interval: prost_types::Duration::try_from(inner.bounds.heartbeat).ok(),
            adopted_leases: adopted,
            lost_leases: lost,
            unmatched_handlers: offer.unmatched(&queues),
        });
        inner.sweeps.sessions.set_slots(id, usize::try_from(hello.slots).unwrap_or(0));
        session.span.in_scope(|| {
            let (namespace, slots, sdk) = (&offer.namespace, hello.slots, &hello.sdk);
            tracing::info!(%namespace, slots, ?sdk, "executor connected");
        });
        Ok(session)
    }

    async fn list_results(
        &self,
        request: &ListStepResultsRequest,
    ) -> Result<Vec<StepResult>, Refusal> {
        let Sweeps { store, .. } = &self.0.sweeps;
        let lease = LeaseId::decode(&request.lease_id)
            .ok_or_else(|| Refusal::field("lease_id", "not a lease id"))?;
        let Some(queue) = store.leased_queue(lease.step, lease.token).await? else {
            return Err(lost(&request.lease_id));
        };
        let definition = store.definition_of_queue(queue).await?;
        let number = number_of(lease.step);
        let parents = usize::try_from(number).ok().and_then(|n| definition.parents.get(n));
        let named = |no: i32| definition.step(no).map(|t| t.name.clone()).unwrap_or_default();
        let mut parents: Vec<(i32, String)> =
            parents.into_iter().flatten().map(|no| (*no, named(*no))).collect();
        let unknown = request.step_names.iter().enumerate();
        let unknown: Vec<_> = unknown
            .filter(|(_, name)| !parents.iter().any(|(_, parent)| parent == *name))
            .map(|(i, name)| {
                (format!("step_names[{i}]"), format!("{name:?} is no parent of this step"))
            })
            .collect();
        if !unknown.is_empty() {
            return Err(Refusal::fields(unknown));
        }
        if !request.step_names.is_empty() {
            parents.retain(|(_, name)| request.step_names.contains(name));
        }
        let first = stepwell_proto::id::step_key(task_of(lease.step), 0);
        let pairs: Vec<(i64, i64)> =
            parents.iter().map(|(no, _)| (lease.step, first + i64::from(*no))).collect();
        let mut inputs = store.inputs(&[], &pairs, &[], (LIST_BYTES_MAX, LIST_BYTES_MAX)).await?;
        let results = parents.into_iter().zip(pairs).map(|((_, step_name), pair)| {
            let result = inputs.results.remove(&pair).flatten();
            StepResult { step_name, omitted: result.is_none(), result: result.unwrap_or_default() }
        });
        Ok(results.collect())
    }
}

/// Of the leases an executor still holds: those that are now this session's, and the others. Goes on
/// if the executor does not wait for it: the session holds what was adopted, as one that was lost.
async fn adopt(
    session: &Arc<Session>,
    held: Vec<String>,
) -> Result<(Vec<String>, Vec<String>), Refusal> {
    let leases: Vec<LeaseId> = held.iter().filter_map(|id| LeaseId::decode(id)).collect();
    if leases.is_empty() {
        return Ok((Vec::new(), held));
    }
    let adopting = Arc::clone(session);
    let span = session.span.clone();
    let adopting = async move { adopting.steps.0.walks.adopt(&leases, adopting.id).await };
    let adopting = tokio::spawn(adopting.instrument(span));
    let adopted = adopting.await.map_err(|_| {
        Refusal::new(ErrorReason::Internal, "a fault of the service; see its log")
    })??;
    let adopted: Vec<String> = adopted.into_iter().map(LeaseId::encode).collect();
    let lost = held.into_iter().filter(|id| !adopted.contains(id)).collect();
    Ok((adopted, lost))
}

/// One executor, by its stream or its calls. When it is dropped the executor is lost, until it comes back.
struct Session {
    id: i64,
    /// That of its handlers, and so of the tasks whose steps it runs.
    namespace: String,
    outbox: Arc<Outbox>,
    steps: Steps,
    /// Why it was ended, for the executor.
    fault: Mutex<Option<Refusal>>,
    /// Around what its lines in the log are about.
    span: tracing::Span,
}

impl Drop for Session {
    fn drop(&mut self) {
        let (id, steps) = (self.id, self.steps.clone());
        let unsent: Vec<LeaseId> =
            self.outbox.abandon().iter().filter_map(|l| LeaseId::decode(&l.lease_id)).collect();
        let inner = &steps.0;
        inner.sweeps.sessions.lose(id, Instant::now() + inner.bounds.grace);
        inner.sweeps.sessions.deadline.notify_one();
        self.span.in_scope(|| tracing::info!("executor gone"));
        if !unsent.is_empty() {
            inner.sweeps.dispatch.take_back(id, unsent);
        }
    }
}

impl Session {
    /// Reads the stream to its end. An executor that neither goes nor reads then is cut off: what
    /// waits for it would wait for ever.
    async fn read(self: Arc<Self>, requests: Streaming<WorkRequest>, line: Option<Arc<Line>>) {
        self.read_all(requests).await;
        self.outbox.close();
        if !self.outbox.is_stuck(self.silence()) {
            tokio::time::sleep(GONE_WITHIN).await;
        }
        if let Some(line) = line {
            tracing::debug!(session = self.id, "connection cut");
            line.cut();
        }
    }

    fn silence(&self) -> Duration {
        3 * self.steps.0.bounds.heartbeat
    }

    async fn read_all(&self, mut requests: Streaming<WorkRequest>) {
        let silence = self.silence();
        let mut old = pin!(tokio::time::sleep(self.steps.0.bounds.age.of_a_stream()));
        let mut moved = false;
        loop {
            let next = async {
                self.outbox.room().await;
                requests.message().await
            };
            let next = tokio::select! {
                biased;
                next = tokio::time::timeout(silence, next) => next,
                () = old.as_mut(), if !moved => {
                    moved = true;
                    self.steps.0.sweeps.sessions.relieve(self.id, MOVED_WITHIN);
                    continue;
                }
            };
            let Ok(next) = next else {
                tracing::info!(?silence, "nothing was heard; stream ended");
                return;
            };
            let taken = match next {
                Ok(Some(request)) => {
                    self.steps.0.sweeps.sessions.hear(self.id);
                    self.take(request).await
                }
                Ok(None) => return,
                Err(status) => Err(Refusal::from_status(&status).unwrap_or_else(|| {
                    let what = status.message();
                    Refusal::field("", format!("the message cannot be read: {what}"))
                })),
            };
            if let Err(refusal) = taken {
                tracing::info!(%refusal, "stream ended");
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
                return;
            }
            if self.outbox.is_stuck(silence) {
                tracing::info!(?silence, "nothing was taken; stream ended");
                return;
            }
        }
    }

    fn take_fault(&self) -> Option<Refusal> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn take(&self, request: WorkRequest) -> Result<(), Refusal> {
        let sessions = &self.steps.0.sweeps.sessions;
        if request.hello.is_some() {
            return Err(Refusal::field("hello", "only in the first message"));
        }
        if request.outcomes.len() > OUTCOMES_MAX {
            return Err(Refusal::field("outcomes", format!("at most {OUTCOMES_MAX}")));
        }
        if let Some(slots) = request.slots {
            if !(0..=SLOTS_MAX).contains(&slots) {
                return Err(Refusal::field("slots", format!("0 to {SLOTS_MAX}")));
            }
            sessions.set_slots(self.id, usize::try_from(slots).unwrap_or(0));
        }
        if request.progress.len() > OUTCOMES_MAX {
            return Err(Refusal::field("progress", format!("at most {OUTCOMES_MAX}")));
        }
        let progress = request.progress.iter();
        sessions.progress(self.id, progress.filter_map(|id| LeaseId::decode(id)));
        if request.drain {
            sessions.drain(self.id);
        }
        if request.publish.len() > PUBLISH_MAX {
            return Err(Refusal::field("publish", format!("at most {PUBLISH_MAX}")));
        }
        for publish in request.publish {
            self.publish(publish).await;
        }
        let mut strange = Vec::new();
        for outcome in request.outcomes {
            self.settle(outcome, &mut strange).await;
        }
        if !strange.is_empty() {
            self.answer_strange(strange).await;
        }
        Ok(())
    }

    async fn settle(&self, outcome: Outcome, strange: &mut Vec<(LeaseId, Ending)>) {
        let lease_id = outcome.lease_id;
        let (Some(lease), Some(kind)) = (LeaseId::decode(&lease_id), outcome.kind) else {
            let refusal = Refusal::field("outcomes", "needs a lease id and a kind").into();
            self.outbox.push(Vec::new(), vec![Ack { lease_id, refusal: Some(refusal) }]);
            return;
        };
        // While the lease is still held: whoever gives up here has lost nothing.
        let (kind, events) = self.with_events(kind, &outcome.events).await;
        let sweeps = &self.steps.0.sweeps;
        // An outcome that was on its way on an old stream counts, though a new one holds the lease.
        let held = sweeps.sessions.release(self.id, lease);
        let held = held.or_else(|| sweeps.sessions.release_of_any(lease));
        let Some(held) = held else {
            strange.push((lease, ending_of(&kind)));
            return;
        };
        let trace = TraceContext::parse(&outcome.traceparent);
        let session = self.id;
        let since = std::time::Instant::now();
        let is_swept = false;
        let is_failure = matches!(kind, Kind::Fail(_));
        let (ending, text) = self.judge(kind, &Owned { session, lease, held }, trace);
        // A result that is refused takes its events with it.
        let stands = is_failure || ending == Ending::Complete;
        let events = if stands { events } else { Vec::new() };
        let Held { queue, max_attempts, .. } = held;
        let span = trace::settle(ending, trace, || sweeps.dispatch.about(lease, queue, session));
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
        sweeps.settler.push(ended).await;
    }

    /// Hands on what a handler publishes, or says why not. One after the other: those of a lease stay in their
    /// order.
    async fn publish(&self, publish: Publish) {
        let Publish { lease_id, number, events } = publish;
        let lease = LeaseId::decode(&lease_id).filter(|_| number > 0);
        let checked = match lease {
            Some(lease) => self.checked(&events).await.map(|events| (lease, events)),
            None => Err(Refusal::field("publish", "needs a lease id and a number from 1")),
        };
        match checked {
            Ok((lease, events)) => {
                let published = Published { lease, number, events };
                self.steps.0.publisher.push(published, Arc::clone(&self.outbox)).await;
            }
            Err(refusal) => {
                let refusal = Some(refusal.into());
                self.outbox.published([PublishAck { lease_id, number, refusal }]);
            }
        }
    }

    /// How an attempt ended, with the texts of the events that come with that. If one of these is wrong,
    /// that is how it ended.
    async fn with_events(&self, kind: Kind, events: &[Publication]) -> (Kind, Vec<String>) {
        if events.is_empty() || matches!(kind, Kind::HandBack(_)) {
            return (kind, Vec::new());
        }
        let refusal = match self.checked(events).await {
            Ok(events) => return (kind, events),
            Err(refusal) => refusal,
        };
        let mut message = refusal.message;
        if let Kind::Fail(failure) = &kind {
            let Failure { error_class, message: of_it, .. } = failure;
            message = format!("{message}; the attempt had failed as {error_class}: {of_it}");
        }
        let error_class = "InvalidEvent".to_owned();
        (Kind::Fail(Failure { error_class, message, ..Failure::default() }), Vec::new())
    }

    /// The texts of events, however long their types cannot be looked up.
    async fn checked(&self, events: &[Publication]) -> Result<Vec<String>, Refusal> {
        let Inner { types, sweeps, .. } = &*self.steps.0;
        let mut failing = false;
        loop {
            match types.check(&sweeps.store, &self.namespace, events).await {
                Ok(events) => return Ok(events),
                Err(Refused::Wrong(refusal)) => return Err(refusal),
                Err(Refused::Unknown(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "types of events cannot be looked up; trying again"
                        );
                    }
                    tokio::time::sleep(STRANGE_AGAIN).await;
                }
            }
        }
    }

    fn judge(&self, kind: Kind, owned: &Owned, trace: Option<TraceContext>) -> (Ending, String) {
        let sweeps = &self.steps.0.sweeps;
        let failure = match kind {
            Kind::HandBack(hand_back) => {
                let reason = hand_back.reason.replace('\0', "\u{fffd}");
                let end = reason.floor_char_boundary(REASON_BYTES_MAX.min(reason.len()));
                return (Ending::HandBack, reason[..end].to_owned());
            }
            Kind::Complete(completion) => {
                let result = if completion.result.is_empty() {
                    "null".to_owned()
                } else {
                    completion.result
                };
                match json::check(&result, self.steps.0.bounds.result_bytes_max) {
                    Ok(()) => return (Ending::Complete, result),
                    Err(fault) => Failure {
                        error_class: "InvalidResult".into(),
                        message: fault.to_string(),
                        retryable: false,
                        ..Failure::default()
                    },
                }
            }
            Kind::Fail(failure) => failure,
        };
        let (ending, stored) = sweeps.judge(owned, &failure, trace);
        (ending, stored.to_text())
    }

    /// Outcomes of leases this session does not hold: accepted if they are repeats of what was
    /// accepted before, else lost.
    async fn answer_strange(&self, strange: Vec<(LeaseId, Ending)>) {
        let reports: Vec<_> = strange.iter().map(|(l, e)| (l.step, l.token, *e)).collect();
        let Sweeps { store, sessions, .. } = &self.steps.0.sweeps;
        // What was reported before may be on its way still.
        let leases: Vec<LeaseId> = strange.iter().map(|(lease, _)| *lease).collect();
        sessions.settled_all(&leases).await;
        let mut tries = 0;
        let known = loop {
            let error = match store.settled_before(&reports).await {
                Ok(known) => break known,
                Err(error) => error,
            };
            tries += 1;
            if tries == STRANGE_TRIES {
                // Without an answer the executor keeps the outcome and reports it again later.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    outcomes = strange.len(),
                    "outcomes stay unanswered"
                );
                self.outbox.close();
                return;
            }
            tokio::time::sleep(STRANGE_AGAIN).await;
        };
        let lost_n = known.iter().filter(|known| !**known).count();
        self.steps.0.sweeps.dispatch.metrics().lost(u64::try_from(lost_n).unwrap_or(u64::MAX));
        let acks = strange.iter().zip(known).map(|((lease, _), known)| {
            let lease_id = lease.encode();
            let refusal = (!known).then(|| lost(&lease_id).into());
            Ack { lease_id, refusal }
        });
        self.outbox.push(Vec::new(), acks.collect());
    }
}

fn shutting_down() -> Refusal {
    Refusal::new(ErrorReason::ShuttingDown, "this node goes down")
        .retry_after(Duration::from_millis(100))
}

fn ending_of(kind: &Kind) -> Ending {
    match kind {
        Kind::Complete(_) => Ending::Complete,
        Kind::Fail(_) => Ending::Fail { wait_ms: None },
        Kind::HandBack(_) => Ending::HandBack,
    }
}

#[tonic::async_trait]
impl step_service_server::StepService for Steps {
    async fn work(
        &self,
        request: Request<Streaming<WorkRequest>>,
    ) -> Result<Response<BoxStream<WorkResponse>>, Status> {
        if self.0.shutdown.begun() {
            return Err(shutting_down().into());
        }
        let line = Line::of(request.extensions());
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(HELLO_WITHIN, requests.message())
            .await
            .map_err(|_| Refusal::field("hello", "did not come within 10 s"))?;
        let hello = first?.and_then(|first| first.hello);
        let hello = hello.ok_or_else(|| Refusal::field("hello", "wanted in the first message"))?;
        let session = self.open(hello, false).await?;
        let reading = Arc::clone(&session).read(requests, line).instrument(session.span.clone());
        let reader = tokio::spawn(reading);
        let end = Reading { session, reader, leases_sent: false };
        let responses = stream::unfold(end, async |mut end| {
            if std::mem::take(&mut end.leases_sent) {
                fault_point!("lease::sent");
            }
            let heartbeat = end.session.steps.0.bounds.heartbeat;
            let Some(response) = end.session.outbox.next(heartbeat).await else {
                return end.session.take_fault().map(|fault| (Err(fault.into()), end));
            };
            end.leases_sent = !response.leases.is_empty();
            Some((Ok(response), end))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn acquire_steps(
        &self,
        request: Request<AcquireStepsRequest>,
    ) -> Result<Response<AcquireStepsResponse>, Status> {
        Ok(Response::new(self.acquire(request.into_inner()).await?))
    }

    async fn report_outcomes(
        &self,
        request: Request<ReportOutcomesRequest>,
    ) -> Result<Response<ReportOutcomesResponse>, Status> {
        Ok(Response::new(self.report(request.into_inner()).await?))
    }

    async fn extend_leases(
        &self,
        request: Request<ExtendLeasesRequest>,
    ) -> Result<Response<ExtendLeasesResponse>, Status> {
        Ok(Response::new(self.extend(&request.into_inner())?))
    }

    async fn list_step_results(
        &self,
        request: Request<ListStepResultsRequest>,
    ) -> Result<Response<ListStepResultsResponse>, Status> {
        let results = self.list_results(request.get_ref()).await?;
        Ok(Response::new(ListStepResultsResponse { results }))
    }

    async fn get_step(
        &self,
        request: Request<GetStepRequest>,
    ) -> Result<Response<GetStepResponse>, Status> {
        Ok(Response::new(self.0.operations.get(request.get_ref()).await?))
    }

    async fn list_steps(
        &self,
        request: Request<ListStepsRequest>,
    ) -> Result<Response<ListStepsResponse>, Status> {
        Ok(Response::new(self.0.operations.list(request.into_inner()).await?))
    }

    async fn get_step_readiness(
        &self,
        request: Request<GetStepReadinessRequest>,
    ) -> Result<Response<GetStepReadinessResponse>, Status> {
        Ok(Response::new(self.0.operations.readiness(request.get_ref()).await?))
    }

    async fn retry_step(
        &self,
        request: Request<RetryStepRequest>,
    ) -> Result<Response<RetryStepResponse>, Status> {
        Ok(Response::new(self.0.operations.retry(request.into_inner()).await?))
    }

    async fn resolve_step(
        &self,
        request: Request<ResolveStepRequest>,
    ) -> Result<Response<ResolveStepResponse>, Status> {
        Ok(Response::new(self.0.operations.resolve(request.into_inner()).await?))
    }

    async fn skip_step(
        &self,
        request: Request<SkipStepRequest>,
    ) -> Result<Response<SkipStepResponse>, Status> {
        Ok(Response::new(self.0.operations.skip(request.into_inner()).await?))
    }

    async fn update_step(
        &self,
        request: Request<UpdateStepRequest>,
    ) -> Result<Response<UpdateStepResponse>, Status> {
        Ok(Response::new(self.0.operations.update(request.into_inner()).await?))
    }

    async fn cancel_step(
        &self,
        request: Request<CancelStepRequest>,
    ) -> Result<Response<CancelStepResponse>, Status> {
        Ok(Response::new(self.0.operations.cancel(request.into_inner()).await?))
    }

    async fn list_executors(
        &self,
        request: Request<ListExecutorsRequest>,
    ) -> Result<Response<ListExecutorsResponse>, Status> {
        Ok(Response::new(self.0.executors.list(request.into_inner()).await?))
    }

    async fn list_handlers(
        &self,
        request: Request<ListHandlersRequest>,
    ) -> Result<Response<ListHandlersResponse>, Status> {
        Ok(Response::new(self.0.executors.list_handlers(request.into_inner()).await?))
    }

    async fn drain_executor(
        &self,
        request: Request<DrainExecutorRequest>,
    ) -> Result<Response<DrainExecutorResponse>, Status> {
        Ok(Response::new(self.0.executors.drain(request.into_inner()).await?))
    }
}

/// The two halves of a stream: when the sending half is dropped, reading ends too.
struct Reading {
    session: Arc<Session>,
    reader: tokio::task::JoinHandle<()>,
    /// The message before this one had leases.
    leases_sent: bool,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
