//! EventService: a subscription is checked, gets its place, and is delivered from there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use stepwell_proto::{
    refusal::Refusal,
    v1::{
        ErrorReason, GetEventTypeRequest, GetEventTypeResponse, ListEventTypesRequest,
        ListEventTypesResponse, ListEventsRequest, ListEventsResponse, PublishEventsRequest,
        PublishEventsResponse, RegisterEventTypeRequest, RegisterEventTypeResponse,
        SubscribeRequest, SubscribeResponse, Task, event_service_server, subscribe_request::Start,
    },
};
use stepwell_rule::Types;
use stepwell_serve::{Age, Shutdown};
use stepwell_store::{PARTITIONS_MAX, Store, StoredSubscription};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, codegen::BoxStream};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    custom,
    deliver::Delivery,
    filter::Filter,
    list,
    metrics::{Metrics, Seats},
    place,
    ring::{Ring, strip_failure},
    said::SaidOf,
    subscription::{self, Keeper, Reading},
};

/// Responses that wait for a reader; with the transport's own buffers all that a slow one costs.
pub(crate) const RESPONSES_WAITING_MAX: usize = 4;

/// What a subscription delivers.
pub(crate) type Responses = ReceiverStream<Result<SubscribeResponse, Status>>;

/// The RPCs.
pub(crate) struct Feed {
    pub(crate) store: Store,
    pub(crate) ring: Arc<Ring>,
    pub(crate) said: Arc<SaidOf>,
    /// Rings when somebody subscribes.
    pub(crate) begun: Arc<Notify>,
    pub(crate) shutdown: Shutdown,
    pub(crate) subscriptions_max: usize,
    pub(crate) age: Age,
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) keeper: Arc<Keeper>,
    /// The name that this process reads subscriptions under whose events it delivers itself.
    pub(crate) courier: String,
    pub(crate) types: Types,
}

/// Where and with what a subscription begins.
struct Beginning {
    filter: Filter,
    epoch: i64,
    place: i64,
    snapshot: Option<Task>,
}

impl Feed {
    /// A stream of a durable subscription.
    async fn read(
        &self,
        request: SubscribeRequest,
        out: mpsc::Sender<Result<SubscribeResponse, Status>>,
    ) -> Result<Reading, Refusal> {
        let metadata_only = request.metadata_only;
        let start = subscription::start(&self.store, request).await?;
        let reading = self.reading(start.subscription, start.reader, out);
        Ok(Reading { wanted: start.partitions, most: start.most, metadata_only, ..reading })
    }

    /// The stream of a courier of this process, which rings when a partition is free.
    pub(crate) fn courier_s_reading(
        &self,
        subscription: StoredSubscription,
        out: mpsc::Sender<Result<SubscribeResponse, Status>>,
        free: Arc<Notify>,
    ) -> Reading {
        let reading = self.reading(subscription, self.courier.clone(), out);
        Reading { courier: Some(free), ..reading }
    }

    /// A stream of all partitions of a durable subscription.
    fn reading(
        &self,
        subscription: StoredSubscription,
        reader: String,
        out: mpsc::Sender<Result<SubscribeResponse, Status>>,
    ) -> Reading {
        Reading {
            store: self.store.clone(),
            ring: Arc::clone(&self.ring),
            said: Arc::clone(&self.said),
            shutdown: self.shutdown.clone(),
            begun: Arc::clone(&self.begun),
            keeper: Arc::clone(&self.keeper),
            age: self.age,
            out,
            metrics: Arc::clone(&self.metrics),
            seats: Arc::clone(&self.seats),
            most: usize::try_from(PARTITIONS_MAX).unwrap_or(usize::MAX),
            subscription,
            reader,
            wanted: Vec::new(),
            metadata_only: false,
            courier: None,
        }
    }

    /// Opens a subscription; what it delivers comes as it is taken.
    pub(crate) async fn open(&self, request: SubscribeRequest) -> Result<Responses, Refusal> {
        if self.shutdown.begun() {
            return Err(Refusal::new(ErrorReason::ShuttingDown, "this node goes down")
                .retry_after(Duration::from_millis(100)));
        }
        let open = Open::take(&self.open, self.subscriptions_max)?;
        let (out, responses) = mpsc::channel(RESPONSES_WAITING_MAX);
        if let Some(Start::Subscription(_)) = request.start {
            let reading = self.read(request, out).await?;
            let span = tracing::info_span!(
                "subscription",
                service = "event",
                name = reading.subscription.name
            );
            let read = async move {
                let _open = open;
                reading.run().await;
            };
            tokio::spawn(read.instrument(span));
            return Ok(ReceiverStream::new(responses));
        }
        let metadata_only = request.metadata_only;
        let Beginning { filter, epoch, place, snapshot } = self.begin(request).await?;
        let delivery = Delivery {
            store: self.store.clone(),
            ring: Arc::clone(&self.ring),
            said: Arc::clone(&self.said),
            shutdown: self.shutdown.clone(),
            begun: Arc::clone(&self.begun),
            filter,
            metadata_only,
            snapshot,
            epoch,
            place,
            age: self.age,
            out,
            metrics: Arc::clone(&self.metrics),
            seat: self.seats.take(place),
        };
        let span = tracing::info_span!("subscription", service = "event", from = place);
        let delivered = async move {
            let _open = open;
            delivery.run().await;
        };
        tokio::spawn(delivered.instrument(span));
        Ok(ReceiverStream::new(responses))
    }

    async fn begin(&self, request: SubscribeRequest) -> Result<Beginning, Refusal> {
        let SubscribeRequest { start, filter, metadata_only, with_snapshot } = request;
        let filter = Filter::check(&self.store, filter.unwrap_or_default()).await?;
        let task = snapshot_of(with_snapshot, start.as_ref(), &filter)?;
        let epoch = self.store.log_epoch().await?;
        let mut snapshot = None;
        let place = match start {
            // A durable subscription has its place in the database, and does not come here.
            None | Some(Start::Latest(_) | Start::Subscription(_)) => match task {
                None => self.store.head().await?,
                Some(uid) => {
                    let (mut task, place) =
                        self.store.snapshot(uid).await?.ok_or_else(|| task_not_found(uid))?;
                    if metadata_only {
                        task.context.clear();
                        task.steps.iter_mut().for_each(|s| strip_failure(s.last_error.as_mut()));
                    }
                    snapshot = Some(task);
                    place
                }
            },
            Some(Start::Earliest(_)) => place::earliest(&self.store, filter.tasks()).await?,
            Some(Start::AtTime(time)) => place::at_time(&self.store, "at_time", &time).await?,
            Some(Start::AfterCursor(text)) => {
                place::after_cursor(&self.store, epoch, "after_cursor", &text).await?
            }
        };
        Ok(Beginning { filter, epoch, place, snapshot })
    }
}

/// The task that a snapshot is wanted of; none: none is.
fn snapshot_of(
    with_snapshot: bool,
    start: Option<&Start>,
    filter: &Filter,
) -> Result<Option<Uuid>, Refusal> {
    if !with_snapshot {
        return Ok(None);
    }
    if matches!(start, Some(Start::Earliest(_) | Start::AtTime(_))) {
        let what = "a snapshot is of now: only `latest` or a cursor may stand with it";
        return Err(Refusal::field("with_snapshot", what));
    }
    match filter.tasks() {
        [task] => Ok(Some(*task)),
        _ => Err(Refusal::field("filter.task_ids", "a snapshot wants exactly one")),
    }
}

pub(crate) fn task_not_found(uid: Uuid) -> Refusal {
    Refusal::new(ErrorReason::TaskNotFound, format!("there is no task {uid}"))
        .with("task_id", uid.to_string())
}

/// One open subscription; counts as long as it lives.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn take(open: &Arc<AtomicUsize>, max: usize) -> Result<Self, Refusal> {
        if open.fetch_add(1, Ordering::AcqRel) >= max {
            open.fetch_sub(1, Ordering::AcqRel);
            return Err(Refusal::new(
                ErrorReason::Overloaded,
                "this node has enough subscriptions",
            )
            .retry_after(Duration::from_secs(1)));
        }
        Ok(Self(Arc::clone(open)))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[tonic::async_trait]
impl event_service_server::EventService for Feed {
    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<BoxStream<SubscribeResponse>>, Status> {
        Ok(Response::new(Box::pin(self.open(request.into_inner()).await?)))
    }

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        Ok(Response::new(list::list(&self.store, &self.said, request.into_inner()).await?))
    }

    async fn list_event_types(
        &self,
        request: Request<ListEventTypesRequest>,
    ) -> Result<Response<ListEventTypesResponse>, Status> {
        Ok(Response::new(custom::list(&self.store, request.get_ref()).await?))
    }

    async fn get_event_type(
        &self,
        request: Request<GetEventTypeRequest>,
    ) -> Result<Response<GetEventTypeResponse>, Status> {
        Ok(Response::new(custom::get(&self.store, request.into_inner()).await?))
    }

    async fn register_event_type(
        &self,
        request: Request<RegisterEventTypeRequest>,
    ) -> Result<Response<RegisterEventTypeResponse>, Status> {
        Ok(Response::new(custom::register(&self.store, request.into_inner()).await?))
    }

    async fn publish_events(
        &self,
        request: Request<PublishEventsRequest>,
    ) -> Result<Response<PublishEventsResponse>, Status> {
        Ok(Response::new(custom::publish(&self.store, &self.types, request.get_ref()).await?))
    }
}
