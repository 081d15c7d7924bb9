//! Executors: what an application says to run the handlers of steps. The life of an executor goes
//! on in `session.rs`.

mod attempt;
mod context;
mod error;
mod handlers;
mod ledger;
mod link;
mod outbox;
mod publications;
mod session;

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use stepwell_proto::v1;

pub use self::{context::StepContext, error::HandlerError};
use self::{handlers::Handlers, session::Session};
use crate::{client::Client, error::Error};

/// An executor runs at most this many handlers at once.
const SLOTS_MAX: usize = 10_000;

/// Runs the handlers of steps until it is told to stop.
///
/// - It connects again for ever when its stream breaks, to the next address, and names the leases
///   it still holds. What a handler returned is kept and reported until it is acknowledged.
/// - It never runs more handlers at once than it has slots.
/// - A handler whose lease is void (its task was cancelled, its time is up, the lease was lost) is
///   told through [`StepContext::cancelled`] and dropped at its next `await` a second later; what
///   it returns is not reported. A handler that blocks its thread cannot be stopped: use
///   `tokio::task::spawn_blocking` for such work.
/// - A handler that panics fails its attempt with the error class `Panic`.
/// - A handler runs in a span `step.handle` with its namespace, task, step and attempt, which goes on
///   from the task's trace: its lines in the log say which step they are about.
pub struct Executor {
    client: Client,
    hello: v1::Hello,
    slots: usize,
    handlers: Handlers,
    grace: Duration,
    observer: Option<Observer>,
}

/// Told of each thing that an executor observes.
type Observer = Arc<dyn Fn(Observation<'_>) + Send + Sync>;

/// Something that happened to a lease; see [`Executor::observer`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Observation<'a> {
    /// A lease arrived.
    Leased(&'a v1::Lease),
    /// The handler ended and its outcome is about to be reported.
    Ended(&'a v1::Outcome),
    /// The service answered an outcome.
    Acknowledged(&'a v1::Ack),
}

/// What an executor did; see [`Executor::run`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Streams that were opened and welcomed.
    pub sessions: u64,
    /// Leases that arrived.
    pub leases: u64,
    /// Results that are durable.
    pub completed: u64,
    /// Failures that are durable.
    pub failed: u64,
    /// Leases that went back without being started.
    pub handed_back: u64,
    /// Outcomes that were refused because their lease was lost.
    pub refused: u64,
    /// Leases that became void while they were held.
    pub voided: u64,
    /// Outcomes that were not acknowledged before the executor gave up.
    pub unacknowledged: u64,
    /// The service told it to stop.
    pub stopped: bool,
}

impl Executor {
    /// An executor without handlers. The name is for people, such as host and process; at most
    /// 256 bytes.
    pub fn new(client: &Client, name: impl Into<String>) -> Self {
        Self {
            client: client.clone(),
            hello: v1::Hello {
                name: name.into(),
                sdk: concat!("rust/", env!("CARGO_PKG_VERSION")).into(),
                ..Default::default()
            },
            slots: 16,
            handlers: Handlers::default(),
            grace: Duration::from_secs(30),
            observer: None,
        }
    }

    /// The namespace its handlers are of. Default `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.hello.namespace = namespace.into();
        self
    }

    /// Says something of the executor, such as `region` `eu`: steps that require labels come only to
    /// executors that have all of them with the same values. At most 32; a name has at most 64 bytes
    /// of letters, digits, `_`, `-`, `.`, `/`, a value at most 128 bytes.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.hello.labels.insert(name.into(), value.into());
        self
    }

    /// How many handlers it runs at once. Default 16; 1 to 10,000.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// Runs this handler for steps of all versions of definitions. See [`HandlerError`] for what
    /// becomes of errors.
    #[must_use]
    pub fn handler<F, R>(
        self,
        name: impl Into<String>,
        handler: impl Fn(StepContext) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<R, HandlerError>> + Send + 'static,
        R: Serialize,
    {
        self.handler_for(name, "*", handler)
    }

    /// Runs this handler for steps of definitions whose versions are in a semver range such as
    /// `>=1.2, <2`. Where several handlers of one name fit, the one named first runs.
    #[must_use]
    pub fn handler_for<F, R>(
        mut self,
        name: impl Into<String>,
        definition_versions: impl Into<String>,
        handler: impl Fn(StepContext) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<R, HandlerError>> + Send + 'static,
        R: Serialize,
    {
        self.handlers.add(name.into(), definition_versions.into(), handler);
        self
    }

    /// How long running handlers may go on once the executor is told to stop. Those that are not
    /// done by then are cancelled, and fail as `ExecutorShutdown`, to be tried again. Default 30 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Told of each lease and each outcome, for measuring. Must be quick.
    #[must_use]
    pub fn observer(mut self, observer: impl Fn(Observation<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Runs until `shutdown` is done, then drains: takes no more leases, hands back those it has
    /// not started, lets running handlers end within the grace period, and returns once every
    /// outcome is acknowledged, or 5 s after the last handler ended.
    ///
    /// It drains in the same way when the service tells it to stop (`stepwell executor drain`), but lets
    /// running handlers take the time they need, and answers with [`Report::stopped`]. It does not take
    /// steps again: whether another executor starts in its place is up to the caller.
    ///
    /// Errors: a setting is wrong, or the service says that the executor's messages are.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<Report, Error> {
        if !(1..=SLOTS_MAX).contains(&self.slots) {
            return Err(Error::Invalid(format!("slots must be 1 to {SLOTS_MAX}")));
        }
        self.hello.slots = i32::try_from(self.slots).expect("at most 10,000");
        self.hello.handlers = self.handlers.offers()?;
        Session::new(self).run(shutdown).await
    }
}
