//! Several subscribers in one process, none in another's way.

use std::panic::AssertUnwindSafe;

use futures::{FutureExt, future::BoxFuture};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    cursor::CursorStore,
    handlers::{Subscriber, Tally},
};
use crate::error::Error;

type Run = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, Result<Tally, Error>> + Send>;

/// Runs several subscribers, each in a task and over a stream of its own: one that fails, is slow or ends is in
/// nobody's way, and what waits for one is bounded by its stream.
///
/// ```no_run
/// # use stepwell_client::{Client, Error, EventHandler, FileCursor, Subscriber, Subscribers, v1};
/// # struct Mails;
/// # impl EventHandler for Mails {
/// #     fn subscribe_to(&self) -> Vec<&str> { vec!["task.completed"] }
/// # }
/// # struct Failures;
/// # impl EventHandler for Failures {
/// #     fn subscribe_to(&self) -> Vec<&str> { vec!["step.failed"] }
/// # }
/// # async fn main_(client: Client, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
/// let mails = Subscriber::new(&client).handler(Mails)?.durable(client.durable("mails", "mails-1"));
/// let failures = Subscriber::new(&client).handler(Failures)?.only_final_failures();
/// let ended = Subscribers::new()
///     .add("mails", mails)
///     .add("failures", failures.cursor_store(FileCursor::new("failures.cursor")))
///     .run(shutdown)
///     .await?;
/// for (name, tally) in ended {
///     println!("{name}: {:?}", tally?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
#[must_use = "nothing runs before `run`"]
pub struct Subscribers {
    members: Vec<Member>,
}

struct Member {
    name: String,
    checked: Result<(), Error>,
    run: Run,
}

impl Subscribers {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more, under a name of its own for the log and the answer.
    pub fn add<S: CursorStore + 'static>(
        mut self,
        name: impl Into<String>,
        subscriber: Subscriber<S>,
    ) -> Self {
        let checked = subscriber.check();
        let run: Run = Box::new(move |stop| subscriber.run(stop.cancelled_owned()).boxed());
        self.members.push(Member { name: name.into(), checked, run });
        self
    }

    /// Runs them all until `shutdown` is done and their last handlers have ended, or until each has ended by
    /// itself. Answers how each ended, in the order in which they were added; an error is logged when it
    /// happens.
    ///
    /// Errors, before any of them runs: there is none, two have one name, or the settings of one are wrong.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Vec<(String, Result<Tally, Error>)>, Error> {
        let mut names: Vec<String> = Vec::new();
        let mut runs = Vec::new();
        for Member { name, checked, run } in self.members {
            checked?;
            if names.contains(&name) {
                return Err(Error::Invalid(format!("two subscribers are named {name:?}")));
            }
            names.push(name);
            runs.push(run);
        }
        if runs.is_empty() {
            return Err(Error::Invalid("at least one subscriber is wanted".into()));
        }
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        for (i, run) in runs.into_iter().enumerate() {
            let run = run(stop.clone());
            running.spawn(async move { (i, AssertUnwindSafe(run).catch_unwind().await) });
        }
        let ending = collect(names, running);
        tokio::pin!(ending, shutdown);
        tokio::select! {
            ended = &mut ending => Ok(ended),
            () = shutdown => {
                stop.cancel();
                Ok(ending.await)
            }
        }
    }
}

type Ended = std::thread::Result<Result<Tally, Error>>;

/// Waits for all of them.
async fn collect(
    names: Vec<String>,
    mut running: JoinSet<(usize, Ended)>,
) -> Vec<(String, Result<Tally, Error>)> {
    let unknown = |name| (name, Err(Error::Panicked));
    let mut all: Vec<(String, Result<Tally, Error>)> = names.into_iter().map(unknown).collect();
    while let Some(joined) = running.join_next().await {
        let Ok((i, outcome)) = joined else { continue };
        let (name, ended) = &mut all[i];
        *ended = outcome.unwrap_or(Err(Error::Panicked));
        if let Err(error) = ended {
            tracing::error!(subscriber = *name, %error, "a subscriber has ended");
        }
    }
    all
}
