//! SubscriptionService: durable subscriptions are made, changed and acknowledged.

use std::{sync::Arc, time::Duration};

use prost::Message;
use stepwell_proto::{
    id::Cursor,
    page,
    refusal::Refusal,
    v1::{
        AckEventsRequest, AckEventsResponse, ApplySubscriptionsRequest, ApplySubscriptionsResponse,
        CreateSubscriptionRequest, CreateSubscriptionResponse, DeleteSubscriptionRequest,
        DeleteSubscriptionResponse, ErrorReason, Event, GetSubscriptionRequest,
        GetSubscriptionResponse, ListParkedEventsRequest, ListParkedEventsResponse,
        ListSubscriptionsRequest, ListSubscriptionsResponse, NackEventsRequest, NackEventsResponse,
        ParkedEvent, ReplayParkedEventsRequest, ReplayParkedEventsResponse, Subscription,
        SubscriptionPartition, UpdateSubscriptionRequest, UpdateSubscriptionResponse,
        subscription_service_server::SubscriptionService,
    },
};
use stepwell_store::{
    Acked, Changed, Made, Nack, Nacked, PARKED_MAX, PartitionRow, Store, StoredSubscription,
    timestamp,
};
use tonic::{Request, Response, Status};

use super::{
    declared,
    request::{self, not_found},
};
use crate::{courier::Ways, said::SaidOf, tail};

/// Bytes of the events of a page, about.
const PAGE_BYTES_MAX: usize = 2 << 20;

/// The RPCs.
pub(crate) struct Subscriptions {
    pub(crate) store: Store,
    pub(crate) said: Arc<SaidOf>,
    pub(crate) ways: Arc<Ways>,
}

impl Subscriptions {
    async fn find(&self, name: &str) -> Result<StoredSubscription, Refusal> {
        request::find(&self.store, name).await
    }

    /// The events kept apart of a page, and where the next one begins.
    async fn page_of_parked(
        &self,
        subscription: i32,
        after: i64,
        size: i32,
    ) -> Result<(Vec<ParkedEvent>, Option<i64>), Refusal> {
        let mut rows = self.store.parked(subscription, after, i64::from(size) + 1).await?;
        let size = usize::try_from(size).unwrap_or_default();
        let more = rows.len() > size;
        rows.truncate(size);
        let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
        let kept = tail::read_some(&self.store, &self.said, &positions).await?;
        let (mut parked, mut bytes, mut last) = (Vec::new(), 0, None);
        for row in rows {
            let event = kept.iter().find(|of| of.position == row.position);
            let event = event.and_then(|of| of.piece.sent(false).decode().ok());
            let one = ParkedEvent {
                event: Some(
                    event.unwrap_or_else(|| Event { position: row.position, ..Event::default() }),
                ),
                partition: row.no,
                failed_attempts: row.attempt,
                reason: row.reason,
                park_time: Some(timestamp(row.at)),
                retried: row.retried,
            };
            bytes += one.encoded_len();
            if bytes > PAGE_BYTES_MAX && !parked.is_empty() {
                return Ok((parked, last));
            }
            last = Some(row.position);
            parked.push(one);
        }
        Ok((parked, last.filter(|_| more)))
    }
}

fn duration(wait: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(wait).unwrap_or_default()
}

fn subscription(stored: StoredSubscription) -> Subscription {
    Subscription {
        name: stored.name,
        filter: Some(stored.filter),
        partitions: stored.partitions,
        unordered: !stored.ordered,
        max_attempts: stored.max_attempts,
        ack_deadline: Some(duration(stored.ack_deadline)),
        paused: stored.paused,
        create_time: Some(timestamp(stored.created_at)),
        delivery: stored.delivery,
        config: stored.config,
        namespace: stored.namespace,
        definition_name: stored.definition,
        disabled: stored.disabled,
        declared: stored.declared,
    }
}

fn partition(row: PartitionRow, epoch: i64) -> SubscriptionPartition {
    let time_behind = row.behind_ms.and_then(|millis| u64::try_from(millis).ok());
    SubscriptionPartition {
        partition: row.no,
        cursor: Cursor { epoch, position: row.place }.encode(),
        reader_id: row.reader.unwrap_or_default(),
        events_behind: row.behind,
        time_behind: time_behind.map(|millis| duration(Duration::from_millis(millis))),
        parked_events: row.parked,
        retried_events: row.retried,
        failing_position: row.failing.unwrap_or_default(),
        failed_attempts: row.attempt,
    }
}

fn no_partition(no: i32) -> Refusal {
    Refusal::field("partition", format!("the subscription has no partition {no}"))
}

fn fenced(name: &str, no: i32, now: i64) -> Refusal {
    let what = format!(
        "partition {no} of {name} has another epoch now: another reader has it, or its events are \
         delivered again"
    );
    Refusal::new(ErrorReason::SubscriptionEpochOld, what)
        .with("name", name)
        .with("partition", no.to_string())
        .with("epoch", now.to_string())
}

#[tonic::async_trait]
impl SubscriptionService for Subscriptions {
    async fn create_subscription(
        &self,
        request: Request<CreateSubscriptionRequest>,
    ) -> Result<Response<CreateSubscriptionResponse>, Status> {
        let new = request::create(&self.store, &self.ways, request.into_inner()).await?;
        let already_existed = match self.store.create_subscription(&new).await? {
            Made::Now => {
                tracing::info!(name = new.name, "subscription created");
                false
            }
            Made::Before => true,
            Made::Other => {
                let what = format!("another subscription is called {}", new.name);
                let refusal = Refusal::new(ErrorReason::SubscriptionExists, what);
                return Err(refusal.with("name", &new.name).into());
            }
            Made::TooMany => {
                let what = "there are enough subscriptions: delete one that nobody reads";
                let refusal = Refusal::new(ErrorReason::Overloaded, what);
                return Err(refusal.retry_after(Duration::from_secs(60)).into());
            }
        };
        let subscription = Some(subscription(self.find(&new.name).await?));
        Ok(Response::new(CreateSubscriptionResponse { subscription, already_existed }))
    }

    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Result<Response<GetSubscriptionResponse>, Status> {
        let stored = self.find(&request.into_inner().name).await?;
        let epoch = self.store.log_epoch().await?;
        let rows = self.store.partitions(stored.id).await?;
        Ok(Response::new(GetSubscriptionResponse {
            subscription: Some(subscription(stored)),
            partitions: rows.into_iter().map(|row| partition(row, epoch)).collect(),
        }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let request = request.into_inner();
        let size = request::page_size(request.page_size)?;
        if request.page_token.contains('\0') {
            return Err(page::strange("not one that was received").into());
        }
        let mut rows = self.store.subscriptions(&request.page_token, i64::from(size) + 1).await?;
        let more = rows.len() > usize::try_from(size).unwrap_or_default();
        rows.truncate(usize::try_from(size).unwrap_or_default());
        let last = rows.last().filter(|_| more).map(|last| last.name.clone());
        Ok(Response::new(ListSubscriptionsResponse {
            subscriptions: rows.into_iter().map(subscription).collect(),
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn update_subscription(
        &self,
        request: Request<UpdateSubscriptionRequest>,
    ) -> Result<Response<UpdateSubscriptionResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        let change = request::update(&self.store, &self.ways, request).await?;
        match self.store.update_subscription(&name, &change).await? {
            Changed::Done => tracing::info!(name, paused = change.paused, "subscription changed"),
            Changed::Unknown => return Err(not_found(&name).into()),
            Changed::NotPaused => {
                let what = "filter, partitions and place are changed only while it is paused";
                let refusal = Refusal::new(ErrorReason::SubscriptionNotPaused, what);
                return Err(refusal.with("name", name).into());
            }
            Changed::NoDelivery => {
                let what = "readers come for its events: make another one for a delivery";
                return Err(Refusal::field("delivery", what).into());
            }
            Changed::Parked => {
                let what = "partitions are changed only when nothing is parked or retried";
                let refusal = Refusal::new(ErrorReason::SubscriptionNotDrained, what);
                return Err(refusal.with("name", name).into());
            }
        }
        let subscription = Some(subscription(self.find(&name).await?));
        Ok(Response::new(UpdateSubscriptionResponse { subscription }))
    }

    async fn apply_subscriptions(
        &self,
        request: Request<ApplySubscriptionsRequest>,
    ) -> Result<Response<ApplySubscriptionsResponse>, Status> {
        let ApplySubscriptionsRequest { texts, prune } = request.into_inner();
        if texts.is_empty() {
            return Err(Refusal::field("texts", "is missing").into());
        }
        let subscriptions = declared::apply(&self.store, &self.ways, &texts, prune).await?;
        Ok(Response::new(ApplySubscriptionsResponse { subscriptions }))
    }

    async fn delete_subscription(
        &self,
        request: Request<DeleteSubscriptionRequest>,
    ) -> Result<Response<DeleteSubscriptionResponse>, Status> {
        let name = request.into_inner().name;
        request::known(&name)?;
        if !self.store.delete_subscription(&name).await? {
            return Err(not_found(&name).into());
        }
        tracing::info!(name, "subscription deleted");
        Ok(Response::new(DeleteSubscriptionResponse {}))
    }

    async fn ack_events(
        &self,
        request: Request<AckEventsRequest>,
    ) -> Result<Response<AckEventsResponse>, Status> {
        let request = request.into_inner();
        request::known(&request.name)?;
        request::ack(&request)?;
        let AckEventsRequest { name, partition, epoch, up_to_position, retried_positions } =
            request;
        let acked = self
            .store
            .ack_events(&name, partition, epoch, up_to_position, &retried_positions)
            .await?;
        match acked {
            Acked::To(position) => Ok(Response::new(AckEventsResponse { position })),
            Acked::Unknown => Err(not_found(&name).into()),
            Acked::NoPartition => Err(no_partition(partition).into()),
            Acked::Fenced(now) => Err(fenced(&name, partition, now).into()),
            Acked::Ahead(head) => {
                let what = format!("nothing was delivered after position {head}");
                Err(Refusal::field("up_to_position", what).into())
            }
        }
    }

    async fn nack_events(
        &self,
        request: Request<NackEventsRequest>,
    ) -> Result<Response<NackEventsResponse>, Status> {
        let request = request.into_inner();
        request::known(&request.name)?;
        let wait = request::nack(&request)?;
        let nack = Nack {
            name: &request.name,
            no: request.partition,
            epoch: request.epoch,
            position: request.position,
            attempt: request.attempt.max(1),
            reason: if request.reason.is_empty() { "not said" } else { &request.reason },
            wait,
        };
        match self.store.nack_event(&nack).await? {
            Nacked::Done { epoch, attempt, parked, rest } => {
                Ok(Response::new(NackEventsResponse {
                    epoch,
                    failed_attempts: attempt,
                    parked,
                    retry_after: Some(duration(rest)),
                }))
            }
            Nacked::Unknown => Err(not_found(&request.name).into()),
            Nacked::NoPartition => Err(no_partition(request.partition).into()),
            Nacked::NoEvent => {
                let what = "no event that is kept has this position";
                Err(Refusal::field("position", what).into())
            }
            Nacked::Fenced(now) => Err(fenced(&request.name, request.partition, now).into()),
            Nacked::Full => {
                let what =
                    format!("{PARKED_MAX} events are parked or retried: replay or drop them");
                let refusal = Refusal::new(ErrorReason::Overloaded, what);
                Err(refusal.retry_after(Duration::from_secs(5)).into())
            }
        }
    }

    async fn list_parked_events(
        &self,
        request: Request<ListParkedEventsRequest>,
    ) -> Result<Response<ListParkedEventsResponse>, Status> {
        let request = request.into_inner();
        let size = request::page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => 0,
            text => text.parse().map_err(|_| page::strange("not one that was received"))?,
        };
        let stored = self.find(&request.name).await?;
        let (events, next) = self.page_of_parked(stored.id, after, size).await?;
        let next_page_token = next.map(|position| position.to_string()).unwrap_or_default();
        Ok(Response::new(ListParkedEventsResponse { events, next_page_token }))
    }

    async fn replay_parked_events(
        &self,
        request: Request<ReplayParkedEventsRequest>,
    ) -> Result<Response<ReplayParkedEventsResponse>, Status> {
        let ReplayParkedEventsRequest { name, positions, drop } = request.into_inner();
        request::known(&name)?;
        request::replay(&positions)?;
        let events = self.store.replay_parked(&name, &positions, drop).await?;
        let events = events.ok_or_else(|| not_found(&name))?;
        tracing::info!(name, events, drop, "parked events replayed or dropped");
        Ok(Response::new(ReplayParkedEventsResponse { events }))
    }
}
