//! One feed of events, over as many streams as it takes: it is opened again for ever after the last
//! cursor. What was delivered before is `resume.rs`'s to know.

use std::{pin::Pin, time::Duration};

use futures::{FutureExt, Stream, future::BoxFuture, stream};
use stepwell_proto::v1::{
    SubscribeRequest, SubscribeResponse, Task, event_service_client::EventServiceClient,
    subscribe_request::Start, subscribe_response::Kind,
};
use tokio::{
    select,
    time::{Sleep, sleep},
};
use tonic::Streaming;

pub use super::resume::Delivery;
use super::resume::Progress;
use crate::{
    backoff::Backoff,
    client::Client,
    error::{Error, Lost},
    limits::after,
    pool::{MESSAGE_BYTES_MAX, open},
};

/// A feed of events; see [`Client::subscribe`].
///
/// It delivers each event once, in order, without a gap, across any number of broken connections.
/// It ends only after an error that trying again cannot help, such as a cursor of another log.
pub struct EventStream {
    client: Client,
    request: SubscribeRequest,
    progress: Progress,
    turn: usize,
    backoff: Backoff,
    stage: Stage,
    snapshot: Option<Task>,
    is_behind: bool,
}

enum Stage {
    Down(Pin<Box<Sleep>>),
    Opening(BoxFuture<'static, Result<Streaming<SubscribeResponse>, Lost>>),
    Up(Box<Up>),
    Over,
}

struct Up {
    stream: Streaming<SubscribeResponse>,
    /// The first message came.
    begun: bool,
    silence: Duration,
    alarm: Pin<Box<Sleep>>,
}

impl EventStream {
    /// Opens the feed and waits for its first checkpoint, as long as it takes. Leaves in `fault`
    /// why it was not there the last time.
    pub(crate) async fn open(
        client: &Client,
        request: SubscribeRequest,
        fault: &mut Option<Lost>,
    ) -> Result<Self, Error> {
        let mut feed = Self {
            client: client.clone(),
            request,
            progress: Progress::default(),
            turn: client.pools.event.turn(),
            backoff: Backoff::of_streams(),
            stage: Stage::Down(Box::pin(sleep(Duration::ZERO))),
            snapshot: None,
            is_behind: false,
        };
        while feed.progress.cursor().is_empty() {
            match feed.hear().await {
                Ok(first) => {
                    feed.progress.take(first);
                }
                Err(lost) if lost.is_final() => return Err(lost.into()),
                Err(lost) => {
                    tracing::debug!(%lost, "no feed yet; trying again");
                    *fault = Some(lost);
                }
            }
        }
        Ok(feed)
    }

    /// The last cursor: a feed that starts after it goes on where the last delivery with a cursor
    /// ended.
    pub fn cursor(&self) -> &str {
        self.progress.cursor()
    }

    /// The task as it was when the feed began, if [`crate::Subscription::with_snapshot`] asked for it:
    /// its deliveries are what happened since.
    pub fn snapshot(&self) -> Option<&Task> {
        self.snapshot.as_ref()
    }

    /// True while what comes next is read from the table: the feed began in the past, or is read too
    /// slowly.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// The next events. None: an error was delivered before. Nothing is lost when the wait is given
    /// up.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        loop {
            if matches!(self.stage, Stage::Over) {
                return None;
            }
            match self.hear().await {
                Ok(message) => {
                    if let Some(delivery) = self.progress.take(message) {
                        return Some(Ok(delivery));
                    }
                }
                Err(lost) if lost.is_final() => {
                    self.stage = Stage::Over;
                    return Some(Err(lost.into()));
                }
                // A stream that is old is ended, for the next one to begin elsewhere.
                Err(lost @ Lost::Ended) => tracing::debug!(%lost, "resuming"),
                Err(lost) => tracing::warn!(%lost, "feed cut; resuming"),
            }
        }
    }

    /// The same as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Delivery, Error>> + Send {
        stream::unfold(self, |mut feed| async move {
            let delivery = feed.next().await?;
            Some((delivery, feed))
        })
    }

    /// The next message, or why there is none; after an error the feed begins again.
    async fn hear(&mut self) -> Result<SubscribeResponse, Lost> {
        loop {
            let heard = match &mut self.stage {
                Stage::Down(wait) => {
                    wait.as_mut().await;
                    self.stage = Stage::Opening(self.open_stream());
                    continue;
                }
                Stage::Opening(opening) => match opening.await {
                    Ok(stream) => {
                        let silence = self.client.limits.stream_silence;
                        self.stage = Stage::Up(Box::new(Up::new(stream, silence)));
                        continue;
                    }
                    Err(lost) => Err(lost),
                },
                Stage::Up(up) => up.next().await,
                Stage::Over => Err(Lost::Ended),
            };
            match &heard {
                Ok(message) => {
                    self.backoff.reset();
                    self.note(message);
                }
                Err(lost) => self.down(lost),
            }
            return heard;
        }
    }

    /// Keeps what is told beside the events.
    fn note(&mut self, message: &SubscribeResponse) {
        match &message.kind {
            Some(Kind::Snapshot(task)) => self.snapshot = Some(task.clone()),
            Some(Kind::FellBehind(_)) => self.is_behind = true,
            Some(Kind::CaughtUp(_)) => self.is_behind = false,
            _ => {}
        }
    }

    fn open_stream(&self) -> BoxFuture<'static, Result<Streaming<SubscribeResponse>, Lost>> {
        let mut request = self.request.clone();
        if !self.progress.cursor().is_empty() {
            request.start = Some(Start::AfterCursor(self.progress.cursor().to_owned()));
        }
        let endpoint = self.client.pools.event.endpoint(self.turn);
        let opening = open(endpoint, async move |channel| {
            let service = EventServiceClient::new(channel);
            let mut service = service.max_decoding_message_size(MESSAGE_BYTES_MAX);
            service.subscribe(request).await.map(tonic::Response::into_inner)
        });
        opening.boxed()
    }

    fn down(&mut self, lost: &Lost) {
        self.progress.rewind();
        self.is_behind = false;
        self.turn += 1;
        let wait = self.backoff.next().max(lost.retry_after().unwrap_or_default());
        self.stage = Stage::Down(Box::pin(sleep(wait)));
    }
}

impl Up {
    fn new(stream: Streaming<SubscribeResponse>, silence: Duration) -> Self {
        Self { stream, begun: false, silence, alarm: Box::pin(sleep(silence)) }
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
        let is_first = matches!(message.kind, Some(Kind::Checkpoint(_) | Kind::Snapshot(_)));
        if !self.begun && (!is_first || message.cursor.is_empty()) {
            return Err(Lost::Unexpected("a checkpoint with a cursor"));
        }
        self.begun = true;
        Ok(message)
    }
}
