//! One stream of events after another: whatever ends one, the next is opened, elsewhere and after a wait.

use std::{pin::Pin, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use stepwell_proto::v1::{
    SubscribeRequest, SubscribeResponse, event_service_client::EventServiceClient,
    subscribe_response::Kind,
};
use tokio::{
    select,
    time::{Sleep, sleep},
};
use tonic::Streaming;

use crate::{
    backoff::Backoff,
    client::Client,
    error::Lost,
    limits::after,
    pool::{MESSAGE_BYTES_MAX, open},
};

/// The way to event-service.
pub(super) struct Link {
    client: Client,
    turn: usize,
    backoff: Backoff,
    first: First,
    stage: Stage,
}

/// What a stream's first checkpoint must have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// A cursor: it can be taken up again there.
    HasCursor,
    /// Nothing: a durable subscription has its place in the database.
    IsBare,
}

enum Stage {
    Down(Pin<Box<Sleep>>),
    Opening(BoxFuture<'static, Result<Streaming<SubscribeResponse>, Lost>>),
    Up(Box<Up>),
}

struct Up {
    stream: Streaming<SubscribeResponse>,
    /// What the first message must have; none: it came.
    wanted: Option<First>,
    silence: Duration,
    alarm: Pin<Box<Sleep>>,
}

impl Link {
    pub(super) fn new(client: &Client, first: First) -> Self {
        Self {
            client: client.clone(),
            turn: client.pools.event.turn(),
            backoff: Backoff::of_streams(),
            first,
            stage: Stage::Down(Box::pin(sleep(Duration::ZERO))),
        }
    }

    /// The next message, or why there is none; after an error a stream is opened anew, for what `request`
    /// then says. Nothing is lost when the wait is given up.
    pub(super) async fn hear(
        &mut self,
        request: impl Fn() -> SubscribeRequest,
    ) -> Result<SubscribeResponse, Lost> {
        loop {
            let heard = match &mut self.stage {
                Stage::Down(wait) => {
                    wait.as_mut().await;
                    self.stage = Stage::Opening(self.open_stream(request()));
                    continue;
                }
                Stage::Opening(opening) => match opening.await {
                    Ok(stream) => {
                        let silence = self.client.limits.stream_silence;
                        self.stage = Stage::Up(Box::new(Up::new(stream, silence, self.first)));
                        continue;
                    }
                    Err(lost) => Err(lost),
                },
                Stage::Up(up) => up.next().await,
            };
            match &heard {
                Ok(_) => self.backoff.reset(),
                Err(lost) => self.down(lost),
            }
            return heard;
        }
    }

    fn open_stream(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'static, Result<Streaming<SubscribeResponse>, Lost>> {
        let endpoint = self.client.pools.event.endpoint(self.turn);
        let opening = open(endpoint, async move |channel| {
            let service = EventServiceClient::new(channel);
            let mut service = service.max_decoding_message_size(MESSAGE_BYTES_MAX);
            service.subscribe(request).await.map(tonic::Response::into_inner)
        });
        opening.boxed()
    }

    fn down(&mut self, lost: &Lost) {
        self.turn += 1;
        let wait = self.backoff.next().max(lost.retry_after().unwrap_or_default());
        self.stage = Stage::Down(Box::pin(sleep(wait)));
    }
}

impl Up {
    fn new(stream: Streaming<SubscribeResponse>, silence: Duration, first: First) -> Self {
        Self { stream, wanted: Some(first), silence, alarm: Box::pin(sleep(silence)) }
    }

    async fn next(&mut self) -> Result<SubscribeResponse, Lost> {
        // What is there goes first, so that a caller who was away for long does not count as
        // silence.
        let message = select! {
            biased;
            message = self.stream.message() => Some(message),
            () = self.alarm.as_mut() => None,
        };
        let message = message.ok_or(Lost::Silent(self.silence))??.ok_or(Lost::Ended)?;
        self.alarm.as_mut().reset(after(self.silence));
        if matches!(message.kind, Some(Kind::End(_))) {
            return Err(Lost::Ended);
        }
        if let Some(first) = self.wanted.take() {
            let is_first = matches!(message.kind, Some(Kind::Checkpoint(_) | Kind::Snapshot(_)));
            if !is_first || first == First::HasCursor && message.cursor.is_empty() {
                return Err(Lost::Unexpected("a checkpoint"));
            }
        }
        Ok(message)
    }
}
