//! Durable subscriptions: one method for each RPC, and their readers.

use stepwell_proto::v1::{self, subscription_service_client::SubscriptionServiceClient};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    call::call, client::Client, error::Error, pool::MESSAGE_BYTES_MAX, subscriber::DurableReader,
};

impl Client {
    /// Reads a durable subscription under a reader id of its own: 1 to 64 letters, digits, `_`, `-`, `.`, `/`.
    /// Whoever comes under an id takes over from the one that was there.
    pub fn durable(
        &self,
        subscription: impl Into<String>,
        reader_id: impl Into<String>,
    ) -> DurableReader {
        DurableReader::new(self, subscription.into(), reader_id.into())
    }

    /// Makes a durable subscription; a repeat with the same content changes nothing.
    pub async fn create_subscription(
        &self,
        request: v1::CreateSubscriptionRequest,
    ) -> Result<v1::CreateSubscriptionResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.create_subscription(request).await
        })
        .await
    }

    /// A durable subscription, how far it has come, and who reads it.
    pub async fn get_subscription(
        &self,
        request: v1::GetSubscriptionRequest,
    ) -> Result<v1::GetSubscriptionResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.get_subscription(request).await
        })
        .await
    }

    /// A page of the durable subscriptions, by name.
    pub async fn list_subscriptions(
        &self,
        request: v1::ListSubscriptionsRequest,
    ) -> Result<v1::ListSubscriptionsResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.list_subscriptions(request).await
        })
        .await
    }

    /// Pauses, resumes or changes a durable subscription.
    pub async fn update_subscription(
        &self,
        request: v1::UpdateSubscriptionRequest,
    ) -> Result<v1::UpdateSubscriptionResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.update_subscription(request).await
        })
        .await
    }

    /// Forgets a durable subscription, and what is parked of it.
    pub async fn delete_subscription(
        &self,
        request: v1::DeleteSubscriptionRequest,
    ) -> Result<v1::DeleteSubscriptionResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.delete_subscription(request).await
        })
        .await
    }

    /// Says that events of a partition are done with; [`crate::DurableStream`] does it by itself.
    pub async fn ack_events(
        &self,
        request: v1::AckEventsRequest,
    ) -> Result<v1::AckEventsResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.ack_events(request).await
        })
        .await
    }

    /// Says that an event failed; [`crate::DurableStream`] does it by itself.
    pub async fn nack_events(
        &self,
        request: v1::NackEventsRequest,
    ) -> Result<v1::NackEventsResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.nack_events(request).await
        })
        .await
    }

    /// A page of the events that failed too often, or follow such ones.
    pub async fn list_parked_events(
        &self,
        request: v1::ListParkedEventsRequest,
    ) -> Result<v1::ListParkedEventsResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.list_parked_events(request).await
        })
        .await
    }

    /// Delivers parked events again, or drops them.
    pub async fn replay_parked_events(
        &self,
        request: v1::ReplayParkedEventsRequest,
    ) -> Result<v1::ReplayParkedEventsResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.replay_parked_events(request).await
        })
        .await
    }

    /// Makes or changes the subscriptions that texts declare, all of them or none.
    pub async fn apply_subscriptions(
        &self,
        request: v1::ApplySubscriptionsRequest,
    ) -> Result<v1::ApplySubscriptionsResponse, Error> {
        self.subscriptions(&request, |mut service, request| async move {
            service.apply_subscriptions(request).await
        })
        .await
    }

    async fn subscriptions<Q: Clone, A, F>(
        &self,
        request: &Q,
        rpc: impl Fn(SubscriptionServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        call(&self.pools.event, &self.limits, request, |channel, request| {
            let service = SubscriptionServiceClient::new(channel);
            rpc(service.max_decoding_message_size(MESSAGE_BYTES_MAX), request)
        })
        .await
    }
}
