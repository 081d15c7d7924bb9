//! One feed of events, over as many streams as it takes: it is opened again for ever after the last
//! cursor. What was delivered before is `resume.rs`'s to know.

use futures::{Stream, stream};
use stepwell_proto::v1::{
    SubscribeRequest, SubscribeResponse, Task, subscribe_request::Start, subscribe_response::Kind,
};

pub use super::resume::Delivery;
use super::{
    link::{First, Link},
    resume::Progress,
};
use crate::{
    client::Client,
    error::{Error, Lost},
};

/// A feed of events; see [`Client::subscribe`].
///
/// It delivers each event once, in order, without a gap, across any number of broken connections.
/// It ends only after an error that trying again cannot help, such as a cursor of another log.
pub struct EventStream {
    link: Link,
    request: SubscribeRequest,
    progress: Progress,
    snapshot: Option<Task>,
    is_behind: bool,
    is_over: bool,
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
            link: Link::new(client, First::HasCursor),
            request,
            progress: Progress::default(),
            snapshot: None,
            is_behind: false,
            is_over: false,
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
            if self.is_over {
                return None;
            }
            match self.hear().await {
                Ok(message) => {
                    if let Some(delivery) = self.progress.take(message) {
                        return Some(Ok(delivery));
                    }
                }
                Err(lost) if lost.is_final() => {
                    self.is_over = true;
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
        let (request, cursor) = (&self.request, self.progress.cursor());
        let heard = self.link.hear(|| Self::asked(request, cursor)).await;
        match &heard {
            Ok(message) => self.note(message),
            Err(_) => {
                self.progress.rewind();
                self.is_behind = false;
            }
        }
        heard
    }

    /// What is asked for: to go on after the cursor, if there is one.
    fn asked(request: &SubscribeRequest, cursor: &str) -> SubscribeRequest {
        let mut request = request.clone();
        if !cursor.is_empty() {
            request.start = Some(Start::AfterCursor(cursor.to_owned()));
        }
        request
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
}
