//! One stream to a step-service: opening it, hearing from it, noticing that it is dead, waiting
//! before the next one. What the messages mean is `session.rs`'s to know.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use stepwell_proto::v1::{Hello, WorkResponse, step_service_client::StepServiceClient};
use tokio::{
    select,
    time::{Instant, Sleep, sleep, timeout},
};
use tonic::Streaming;

use super::outbox::Outbox;
use crate::{
    backoff::Backoff,
    client::Client,
    error::Lost,
    pool::{MESSAGE_BYTES_MAX, open},
};

/// A service that does not say how often it speaks speaks this often.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// No service speaks less often.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60 * 60);
/// A third of the time in which the welcome must come.
const WELCOME: Duration = Duration::from_secs(5);
/// How long a service may take to end a stream that was ended here.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One stream, or the wait for the next one.
pub(super) struct Link {
    client: Client,
    turn: usize,
    backoff: Backoff,
    outbox: Arc<Outbox>,
    stage: Stage,
}

enum Stage {
    Down(Pin<Box<Sleep>>),
    Opening(BoxFuture<'static, Result<Streaming<WorkResponse>, Lost>>),
    Up(Box<Up>),
}

struct Up {
    stream: Streaming<WorkResponse>,
    welcomed: bool,
    /// The service speaks at least this often.
    interval: Duration,
    heard: Instant,
    alarm: Pin<Box<Sleep>>,
}

/// What comes from a link.
pub(super) enum Signal {
    /// It is time to open the stream: call [`Link::open`].
    Ready,
    /// A message. The first one has the welcome.
    Message(Box<WorkResponse>),
    /// One interval passed.
    Tick,
    /// The stream is gone, or could not be opened.
    Lost(Lost),
}

impl Link {
    pub(super) fn new(client: &Client) -> Self {
        Self::at(client, client.pools.step.turn(), Backoff::of_streams(), Duration::ZERO)
    }

    fn at(client: &Client, turn: usize, backoff: Backoff, wait: Duration) -> Self {
        Self {
            client: client.clone(),
            turn,
            backoff,
            outbox: Outbox::new(Hello::default()),
            stage: Stage::Down(Box::pin(sleep(wait))),
        }
    }

    /// A link to the next address, to take over from this one. Not at once: every executor of a
    /// node that goes down is told so in one moment, and the next address may be the same node's.
    pub(super) fn successor(&self) -> Self {
        let mut backoff = Backoff::of_streams();
        let wait = backoff.next();
        Self::at(&self.client, self.turn + 1, backoff, wait)
    }

    /// Where to put what is to be sent; none while there is no stream that was welcomed.
    pub(super) fn outbox(&self) -> Option<&Outbox> {
        match &self.stage {
            Stage::Up(up) if up.welcomed => Some(&self.outbox),
            _ => None,
        }
    }

    /// Opens the stream with this hello.
    pub(super) fn open(&mut self, hello: Hello) {
        self.outbox = Outbox::new(hello);
        let messages = self.outbox.messages();
        let endpoint = self.client.pools.step.endpoint(self.turn);
        let opening = open(endpoint, async move |channel| {
            let service = StepServiceClient::new(channel);
            let mut service = service.max_decoding_message_size(MESSAGE_BYTES_MAX);
            service.work(messages).await.map(tonic::Response::into_inner)
        });
        self.stage = Stage::Opening(opening.boxed());
    }

    /// Waits for the next signal. Nothing is lost when the wait is given up.
    pub(super) async fn next(&mut self) -> Signal {
        loop {
            let heard = match &mut self.stage {
                Stage::Down(wait) => {
                    wait.as_mut().await;
                    return Signal::Ready;
                }
                Stage::Opening(opening) => match opening.await {
                    Ok(stream) => {
                        self.stage = Stage::Up(Box::new(Up::new(stream)));
                        continue;
                    }
                    Err(lost) => Err(lost),
                },
                Stage::Up(up) => up.next(&self.outbox).await,
            };
            return match heard {
                Ok(Some(message)) => {
                    if message.welcome.is_some() {
                        self.backoff.reset();
                    }
                    Signal::Message(message)
                }
                Ok(None) => Signal::Tick,
                Err(lost) => self.down(lost),
            };
        }
    }

    /// Ends the stream in good order.
    pub(super) async fn close(mut self) {
        self.outbox.close();
        let Stage::Up(up) = &mut self.stage else { return };
        let ended = async { while let Ok(Some(_)) = up.stream.message().await {} };
        // Whether the service ends it too makes no difference any more.
        let _ = timeout(CLOSE_TIMEOUT, ended).await;
    }

    fn down(&mut self, lost: Lost) -> Signal {
        self.outbox.close();
        self.turn += 1;
        let wait = self.backoff.next().max(lost.retry_after().unwrap_or_default());
        self.stage = Stage::Down(Box::pin(sleep(wait)));
        Signal::Lost(lost)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

impl Up {
    fn new(stream: Streaming<WorkResponse>) -> Self {
        Self {
            stream,
            welcomed: false,
            interval: WELCOME,
            heard: Instant::now(),
            alarm: Box::pin(sleep(WELCOME)),
        }
    }

    /// The next message, or none when an interval passed without one.
    async fn next(&mut self, outbox: &Outbox) -> Result<Option<Box<WorkResponse>>, Lost> {
        let message = select! {
            biased;
            message = self.stream.message() => Some(message),
            () = self.alarm.as_mut() => None,
        };
        let Some(message) = message else { return self.tick(outbox).map(|()| None) };
        let message = message?.ok_or(Lost::Ended)?;
        self.heard = Instant::now();
        if !self.welcomed {
            self.welcome(&message)?;
        }
        Ok(Some(Box::new(message)))
    }

    fn welcome(&mut self, message: &WorkResponse) -> Result<(), Lost> {
        let welcome = message.welcome.as_ref().ok_or(Lost::Unexpected("a welcome"))?;
        let interval = welcome.heartbeat_interval.and_then(|i| Duration::try_from(i).ok());
        self.interval = interval.filter(|i| !i.is_zero()).unwrap_or(HEARTBEAT).min(HEARTBEAT_MAX);
        self.welcomed = true;
        self.alarm.as_mut().reset(self.heard + self.interval);
        Ok(())
    }

    fn tick(&mut self, outbox: &Outbox) -> Result<(), Lost> {
        let (now, dead) = (Instant::now(), self.heard + 3 * self.interval);
        if now >= dead {
            return Err(Lost::Silent(3 * self.interval));
        }
        if self.welcomed {
            outbox.sign_of_life();
        }
        self.alarm.as_mut().reset(dead.min(now + self.interval));
        Ok(())
    }
}
