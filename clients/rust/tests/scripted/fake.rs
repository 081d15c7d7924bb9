//! Services that answer what a test tells them to: every call is handed to the test.

use std::{future::Future, time::Duration};

use futures::StreamExt;
use stepwell_client::{Addresses, Client, Limits, v1::*};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, oneshot},
    task::AbortHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream, metadata::MetadataMap};

use self::{
    event_service_server::{EventService, EventServiceServer},
    outcome::Kind,
    step_service_server::{StepService, StepServiceServer},
    subscription_service_server::{SubscriptionService, SubscriptionServiceServer},
    task_service_server::{TaskService, TaskServiceServer},
};

/// Fails instead of hanging.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), future).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// All three services at one address.
pub struct Fake {
    pub address: String,
    creates: Mutex<mpsc::Receiver<Call<CreateTaskRequest, CreateTaskResponse>>>,
    waits: Mutex<mpsc::Receiver<Call<WaitTaskRequest, WaitTaskResponse>>>,
    results: Mutex<mpsc::Receiver<Call<ListStepResultsRequest, ListStepResultsResponse>>>,
    works: Mutex<mpsc::Receiver<Work>>,
    feeds: Mutex<mpsc::Receiver<Feed>>,
    acks: Mutex<mpsc::Receiver<Call<AckEventsRequest, AckEventsResponse>>>,
    nacks: Mutex<mpsc::Receiver<Call<NackEventsRequest, NackEventsResponse>>>,
    gets: Mutex<mpsc::Receiver<Call<GetSubscriptionRequest, GetSubscriptionResponse>>>,
    server: AbortHandle,
}

/// One unary call that waits for its answer.
pub struct Call<Q, A> {
    pub request: Q,
    pub metadata: MetadataMap,
    pub answer: oneshot::Sender<Result<A, Status>>,
}

impl<Q, A> Call<Q, A> {
    pub fn answer(self, answer: Result<A, Status>) {
        let _ = self.answer.send(answer);
    }
}

struct Services {
    creates: mpsc::Sender<Call<CreateTaskRequest, CreateTaskResponse>>,
    waits: mpsc::Sender<Call<WaitTaskRequest, WaitTaskResponse>>,
    results: mpsc::Sender<Call<ListStepResultsRequest, ListStepResultsResponse>>,
    works: mpsc::Sender<Work>,
    feeds: mpsc::Sender<Feed>,
    acks: mpsc::Sender<Call<AckEventsRequest, AckEventsResponse>>,
    nacks: mpsc::Sender<Call<NackEventsRequest, NackEventsResponse>>,
    gets: mpsc::Sender<Call<GetSubscriptionRequest, GetSubscriptionResponse>>,
}

#[derive(Clone)]
struct Shared(std::sync::Arc<Services>);

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (creates, creates_out) = mpsc::channel(100);
        let (waits, waits_out) = mpsc::channel(100);
        let (results, results_out) = mpsc::channel(100);
        let (works, works_out) = mpsc::channel(100);
        let (feeds, feeds_out) = mpsc::channel(100);
        let (acks, acks_out) = mpsc::channel(100);
        let (nacks, nacks_out) = mpsc::channel(100);
        let (gets, gets_out) = mpsc::channel(100);
        let services = Services { creates, waits, results, works, feeds, acks, nacks, gets };
        let services = Shared(services.into());
        let serving = tonic::transport::Server::builder()
            .add_service(TaskServiceServer::new(services.clone()))
            .add_service(StepServiceServer::new(services.clone()))
            .add_service(EventServiceServer::new(services.clone()))
            .add_service(SubscriptionServiceServer::new(services))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(serving).abort_handle();
        Self {
            address,
            creates: creates_out.into(),
            waits: waits_out.into(),
            results: results_out.into(),
            works: works_out.into(),
            feeds: feeds_out.into(),
            acks: acks_out.into(),
            nacks: nacks_out.into(),
            gets: gets_out.into(),
            server,
        }
    }

    pub fn client(&self) -> Client {
        client(&[&self.address])
    }

    pub async fn create(&self) -> Call<CreateTaskRequest, CreateTaskResponse> {
        within("CreateTask", async { self.creates.lock().await.recv().await.unwrap() }).await
    }

    pub async fn wait(&self) -> Call<WaitTaskRequest, WaitTaskResponse> {
        within("WaitTask", async { self.waits.lock().await.recv().await.unwrap() }).await
    }

    pub async fn results(&self) -> Call<ListStepResultsRequest, ListStepResultsResponse> {
        within("ListStepResults", async { self.results.lock().await.recv().await.unwrap() }).await
    }

    /// The next executor that connects.
    pub async fn work(&self) -> Work {
        within("Work", async { self.works.lock().await.recv().await.unwrap() }).await
    }

    /// True if no call has come that was not taken yet.
    pub async fn is_idle(&self) -> bool {
        self.creates.lock().await.is_empty()
            && self.works.lock().await.is_empty()
            && self.feeds.lock().await.is_empty()
    }

    pub async fn ack(&self) -> Call<AckEventsRequest, AckEventsResponse> {
        within("AckEvents", async { self.acks.lock().await.recv().await.unwrap() }).await
    }

    pub async fn nack(&self) -> Call<NackEventsRequest, NackEventsResponse> {
        within("NackEvents", async { self.nacks.lock().await.recv().await.unwrap() }).await
    }

    /// Answers what a durable subscription is.
    pub async fn subscription(&self, name: &str, names: &[&str]) {
        let asked = async { self.gets.lock().await.recv().await.unwrap() };
        let call = within("GetSubscription", asked).await;
        assert_eq!(call.request.name, name);
        let names = names.iter().map(|&name| name.into()).collect();
        let filter = Some(EventFilter { names, ..Default::default() });
        let subscription = Some(Subscription { name: name.into(), filter, ..Default::default() });
        call.answer(Ok(GetSubscriptionResponse { subscription, ..Default::default() }));
    }

    /// True if no ack and no nack has come that was not taken yet.
    pub async fn nothing_is_settled(&self) -> bool {
        self.acks.lock().await.is_empty() && self.nacks.lock().await.is_empty()
    }

    /// The next subscriber that connects.
    pub async fn feed(&self) -> Feed {
        within("Subscribe", async { self.feeds.lock().await.recv().await.unwrap() }).await
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A client of services at these addresses.
pub fn client(addresses: &[&str]) -> Client {
    let list: Vec<String> = addresses.iter().map(|&a| a.to_owned()).collect();
    let addresses = Addresses { task: list.clone(), step: list.clone(), event: list };
    Client::connect(addresses).unwrap().with_limits(patient())
}

/// Limits that no test reaches, however busy the machine is.
pub fn patient() -> Limits {
    let long = Duration::from_secs(600);
    Limits { attempt_timeout: long, call_timeout: long, stream_silence: long, ..Limits::default() }
}

async fn ask<Q, A>(
    calls: &mpsc::Sender<Call<Q, A>>,
    request: Request<Q>,
) -> Result<Response<A>, Status> {
    let (answer, answered) = oneshot::channel();
    let metadata = request.metadata().clone();
    let call = Call { request: request.into_inner(), metadata, answer };
    calls.send(call).await.map_err(|_| Status::unavailable("the test is over"))?;
    let answer = answered.await.map_err(|_| Status::unavailable("the test is over"))?;
    answer.map(Response::new)
}

#[tonic::async_trait]
impl TaskService for Shared {
    async fn create_task(
        &self,
        request: Request<CreateTaskRequest>,
    ) -> Result<Response<CreateTaskResponse>, Status> {
        ask(&self.0.creates, request).await
    }

    async fn wait_task(
        &self,
        request: Request<WaitTaskRequest>,
    ) -> Result<Response<WaitTaskResponse>, Status> {
        ask(&self.0.waits, request).await
    }
}

#[tonic::async_trait]
impl StepService for Shared {
    async fn work(
        &self,
        request: Request<Streaming<WorkRequest>>,
    ) -> Result<Response<BoxStream<WorkResponse>>, Status> {
        let (responses, sent) = mpsc::channel(100);
        let work = Work { requests: request.into_inner(), responses };
        self.0.works.send(work).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(sent).boxed()))
    }

    async fn list_step_results(
        &self,
        request: Request<ListStepResultsRequest>,
    ) -> Result<Response<ListStepResultsResponse>, Status> {
        ask(&self.0.results, request).await
    }
}

#[tonic::async_trait]
impl EventService for Shared {
    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<BoxStream<SubscribeResponse>>, Status> {
        let (responses, sent) = mpsc::channel(100);
        let feed = Feed { request: request.into_inner(), responses };
        self.0.feeds.send(feed).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(sent).boxed()))
    }
}

#[tonic::async_trait]
impl SubscriptionService for Shared {
    async fn ack_events(
        &self,
        request: Request<AckEventsRequest>,
    ) -> Result<Response<AckEventsResponse>, Status> {
        ask(&self.0.acks, request).await
    }

    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Result<Response<GetSubscriptionResponse>, Status> {
        ask(&self.0.gets, request).await
    }

    async fn nack_events(
        &self,
        request: Request<NackEventsRequest>,
    ) -> Result<Response<NackEventsResponse>, Status> {
        ask(&self.0.nacks, request).await
    }
}

/// One executor's stream, from the service's side.
pub struct Work {
    requests: Streaming<WorkRequest>,
    responses: mpsc::Sender<Result<WorkResponse, Status>>,
}

impl Work {
    /// The next message; none at the end of the stream.
    pub async fn request(&mut self) -> Option<WorkRequest> {
        within("a message of the executor", self.requests.message()).await.ok().flatten()
    }

    pub async fn hello(&mut self) -> Hello {
        self.request().await.and_then(|r| r.hello).expect("the first message has a hello")
    }

    /// The next outcomes, this many.
    pub async fn outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            outcomes.extend(self.request().await.expect("the stream goes on").outcomes);
        }
        assert_eq!(outcomes.len(), count, "{outcomes:?}");
        outcomes
    }

    /// Says that this executor drains.
    pub async fn drained(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        loop {
            let request = self.request().await.expect("the stream goes on");
            outcomes.extend(request.outcomes);
            if request.drain {
                return outcomes;
            }
        }
    }

    /// Waits for the executor to end the stream; answers the outcomes that came before.
    pub async fn ended(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(request) = self.request().await {
            outcomes.extend(request.outcomes);
        }
        outcomes
    }

    pub async fn send(&self, response: WorkResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// Welcomes with a heartbeat that no test waits for.
    pub async fn welcome(&self, adopted: &[&str], lost: &[&str]) {
        self.welcome_every(Duration::from_secs(60), adopted, lost).await;
    }

    pub async fn welcome_every(&self, interval: Duration, adopted: &[&str], lost: &[&str]) {
        let welcome = Welcome {
            executor_id: "1-1".into(),
            heartbeat_interval: interval.try_into().ok(),
            adopted_leases: adopted.iter().map(|&l| l.into()).collect(),
            lost_leases: lost.iter().map(|&l| l.into()).collect(),
            ..Default::default()
        };
        self.send(WorkResponse { welcome: Some(welcome), ..Default::default() }).await;
    }

    /// Leases these, each named as its lease, to a handler.
    pub async fn lease(&self, handler: &str, leases: &[&str]) {
        let leases = leases.iter().map(|lease| lease_of(handler, lease)).collect();
        self.send(WorkResponse { leases, ..Default::default() }).await;
    }

    pub async fn ack(&self, leases: &[&str]) {
        let ack = |lease: &&str| Ack { lease_id: (*lease).into(), refusal: None };
        let acks = leases.iter().map(ack).collect();
        self.send(WorkResponse { acks, ..Default::default() }).await;
    }

    pub async fn refuse(&self, lease: &str, reason: ErrorReason) {
        let refusal = Refusal { reason: reason.into(), ..Default::default() };
        let acks = vec![Ack { lease_id: lease.into(), refusal: Some(refusal) }];
        self.send(WorkResponse { acks, ..Default::default() }).await;
    }

    pub async fn cancel(&self, lease: &str) {
        let cancels = vec![LeaseCancel { lease_id: lease.into(), reason: "task cancelled".into() }];
        self.send(WorkResponse { cancels, ..Default::default() }).await;
    }

    pub async fn drain(&self) {
        self.send(WorkResponse { drain: Some(Drain::default()), ..Default::default() }).await;
    }

    /// The executor is to stop.
    pub async fn stop(&self) {
        let drain = Drain { stop: true, reason: "enough".into(), ..Default::default() };
        self.send(WorkResponse { drain: Some(drain), ..Default::default() }).await;
    }

    /// Ends the stream with an error.
    pub async fn cut(self, status: impl Into<Status>) {
        self.responses.send(Err(status.into())).await.unwrap();
    }
}

/// A lease whose step is named as its id.
pub fn lease_of(handler: &str, lease: &str) -> Lease {
    Lease {
        lease_id: lease.into(),
        task_id: "task".into(),
        step_id: format!("task.{lease}"),
        step_name: lease.into(),
        handler: handler.into(),
        definition_version: "1.0.0".into(),
        attempt: 1,
        max_attempts: 3,
        context: "{}".into(),
        timeout: Duration::from_secs(60).try_into().ok(),
        ..Default::default()
    }
}

/// The leases of outcomes, sorted.
pub fn ids(outcomes: &[Outcome]) -> Vec<&str> {
    let mut ids: Vec<&str> = outcomes.iter().map(|o| o.lease_id.as_str()).collect();
    ids.sort_unstable();
    ids
}

/// What an outcome completed with.
pub fn result_of(outcome: &Outcome) -> &str {
    match &outcome.kind {
        Some(Kind::Complete(completion)) => &completion.result,
        other => panic!("{other:?}"),
    }
}

/// What an outcome failed with.
pub fn failure_of(outcome: &Outcome) -> &Failure {
    match &outcome.kind {
        Some(Kind::Fail(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

/// One subscriber's stream, from the service's side.
pub struct Feed {
    pub request: SubscribeRequest,
    responses: mpsc::Sender<Result<SubscribeResponse, Status>>,
}

impl Feed {
    pub async fn checkpoint(&self, cursor: &str) {
        let kind = Some(subscribe_response::Kind::Checkpoint(Checkpoint {}));
        self.send(SubscribeResponse { cursor: cursor.into(), kind, ..Default::default() }).await;
    }

    pub async fn events(&self, cursor: &str, events: &[Event]) {
        let batch = EventBatch { events: events.to_vec(), ..EventBatch::default() };
        let kind = Some(subscribe_response::Kind::Events(batch));
        self.send(SubscribeResponse { cursor: cursor.into(), kind, ..Default::default() }).await;
    }

    /// Of a durable subscription: the stream reads these partitions, each with its epoch.
    pub async fn held(&self, held: &[(i32, i64)]) {
        let held = held.iter().map(|&(partition, epoch)| HeldPartition { partition, epoch });
        let kind = Some(subscribe_response::Kind::Checkpoint(Checkpoint {}));
        let held = held.collect();
        self.send(SubscribeResponse { held, kind, ..Default::default() }).await;
    }

    /// Of a durable subscription: events of a partition, all in the same attempt.
    pub async fn deliver(&self, (partition, epoch): (i32, i64), attempt: i32, events: &[Event]) {
        let attempts = vec![attempt; events.len()];
        let delivery = PartitionDelivery { partition, epoch, attempts, retried: false };
        let batch = EventBatch { events: events.to_vec(), ..EventBatch::default() };
        let kind = Some(subscribe_response::Kind::Events(batch));
        let delivery = Some(delivery);
        self.send(SubscribeResponse { delivery, kind, ..Default::default() }).await;
    }

    /// The stream ends on purpose.
    pub async fn end(self) {
        let end = End { reason: EndReason::Rotate.into() };
        let kind = Some(subscribe_response::Kind::End(end));
        self.send(SubscribeResponse { kind, ..Default::default() }).await;
    }

    async fn send(&self, response: SubscribeResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// Ends the stream with an error.
    pub async fn cut(self, status: impl Into<Status>) {
        self.responses.send(Err(status.into())).await.unwrap();
    }

    /// The cursor it was asked to start after.
    pub fn after(&self) -> Option<&str> {
        match &self.request.start {
            Some(subscribe_request::Start::AfterCursor(cursor)) => Some(cursor),
            _ => None,
        }
    }
}
