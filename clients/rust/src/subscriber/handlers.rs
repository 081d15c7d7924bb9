//! Subscribers: handlers of events, over a feed or over a durable subscription.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use stepwell_proto::{
    catalog::EventMessage,
    v1::{self, Event},
};
use tokio::{select, time::timeout};
use tracing::Instrument;

use super::{
    cursor::{CursorStore, NoCursor},
    durable::{DurableReader, DurableStream, may_pass},
    handler::{EventHandler, erased, patterns},
    pattern::{Pattern, brings},
    selection::{Start, Subscription},
    stream::{Delivery, EventStream},
};
use crate::{client::Client, error::Error, executor::HandlerError, trace};

/// Below the 30 s in which a durable subscription wants to hear something, unless it says otherwise.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) type Handler =
    Box<dyn Fn(Arc<Event>) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync>;

/// Calls handlers for events, in the order they come, one after the other.
///
/// Over a feed the service sends only events that some handler is for. A handler that fails, panics or takes
/// too long is logged, without its message unless at level DEBUG, and counted, and the others and the feed go
/// on. It runs in a span `event.handle`, which goes on from the task's trace. The cursor is saved after the
/// handlers ran: after a crash an event may be handled again, and none is left out.
///
/// Over a durable subscription ([`Self::durable`]) an event that all handlers took is acknowledged, and one that
/// any of them failed at comes again, to all of them: after a while, and as often as the subscription says. So
/// handlers that should not wait for each other's failures belong in subscribers of their own; see
/// [`crate::Subscribers`].
///
/// ```no_run
/// # async fn main_(client: stepwell_client::Client) -> Result<(), stepwell_client::Error> {
/// use stepwell_client::{FileCursor, Start, Subscriber, v1::StepCompleted};
///
/// let tally = Subscriber::new(&client)
///     .on::<StepCompleted, _>(|event, detail| async move {
///         println!("{} of {} returned {}", event.step_name, event.task_id, detail.result);
///         Ok(())
///     })
///     .on_name("task.*", |event| async move {
///         println!("{} {}", event.name, event.task_id);
///         Ok(())
///     })?
///     .from(Start::Earliest)
///     .cursor_store(FileCursor::new("orders.cursor"))
///     .run(std::future::pending())
///     .await?;
/// println!("{} events, {} failed", tally.handled, tally.failed);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is handled before `run`"]
pub struct Subscriber<S = NoCursor> {
    client: Client,
    start: Start,
    filter: Subscription,
    durable: Option<DurableReader>,
    handlers: Vec<Entry>,
    wants: Box<dyn Fn(&Event) -> bool + Send + Sync>,
    handler_timeout: Duration,
    store: S,
    has_store: bool,
}

struct Entry {
    patterns: Vec<Pattern>,
    handler: Handler,
}

/// What a subscriber did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that its handlers took, those left out included.
    pub handled: u64,
    /// Deliveries of events at which a handler failed.
    pub failed: u64,
}

/// Why a handler failed at an event.
struct Fault {
    reason: String,
    retry_after: Option<Duration>,
}

impl Subscriber {
    /// A subscriber without handlers.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            start: Start::default(),
            filter: Subscription::new(),
            durable: None,
            handlers: Vec::new(),
            wants: Box::new(|_| true),
            handler_timeout: HANDLER_TIMEOUT,
            store: NoCursor,
            has_store: false,
        }
    }
}

impl<S: CursorStore> Subscriber<S> {
    /// Calls the handler for events of this type, with what is special to it.
    pub fn on<T, F>(mut self, handler: impl Fn(Arc<Event>, T) -> F + Send + Sync + 'static) -> Self
    where
        T: EventMessage + Clone,
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handler: Handler = Box::new(move |event| {
            let detail = event.detail.as_ref().and_then(T::of).cloned();
            match detail {
                Some(detail) => handler(event, detail).boxed(),
                None => async move { Err(HandlerError::new("WrongDetail", T::NAME)) }.boxed(),
            }
        });
        self.handlers.push(Entry { patterns: vec![Pattern::Name(T::NAME.to_owned())], handler });
        self
    }

    /// Calls the handler for events of this name: exact, `prefix.*`, or `*` for every recorded
    /// event, custom ones included. A name of `task.`, `step.` and the like that the catalog does not have is
    /// refused; custom ones are known to the service.
    pub fn on_name<F>(
        mut self,
        name: &str,
        handler: impl Fn(Arc<Event>) -> F + Send + Sync + 'static,
    ) -> Result<Self, Error>
    where
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let patterns = vec![Pattern::read(name)?];
        let handler: Handler = Box::new(move |event| handler(event).boxed());
        self.handlers.push(Entry { patterns, handler });
        Ok(self)
    }

    /// Calls the methods of this handler for the events it subscribes to. Names as for
    /// [`Self::on_name`].
    pub fn handler(mut self, handler: impl EventHandler) -> Result<Self, Error> {
        let patterns = patterns(&handler)?;
        self.handlers.push(Entry { patterns, handler: erased(handler) });
        Ok(self)
    }

    /// Reads a durable subscription instead of a feed. It has its filter, its place and how often an event may
    /// fail in the database: what is said of those here is refused when it runs.
    pub fn durable(mut self, reader: DurableReader) -> Self {
        self.durable = Some(reader);
        self
    }

    /// A handler that takes longer has failed at the event, as `Timeout`: it is dropped where it waits. Default
    /// 20 s. For a durable subscription keep it below the `ack_deadline`.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = timeout;
        self
    }

    /// Calls handlers only for events of which this is true; the others count as handled. Default: all. What
    /// the filter can say is better said there: the service does not send it then.
    pub fn should_process(
        mut self,
        wants: impl Fn(&Event) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.wants = Box::new(wants);
        self
    }

    /// Where to begin when no cursor was saved. Default [`Start::Latest`].
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Only events of these tasks. Default: all; at most 1,000.
    pub fn tasks<T: Into<String>>(mut self, task_ids: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.tasks(task_ids);
        self
    }

    /// Only events of tasks of these definitions. Default: all; at most 100.
    pub fn definitions<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.definitions(names);
        self
    }

    /// Only events of tasks in these namespaces. Default: all; at most 100.
    pub fn namespaces<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.namespaces(names);
        self
    }

    /// Only events of these steps. Default: all; at most 100.
    pub fn steps<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.steps(names);
        self
    }

    /// Only events of tasks that have any of these tags. Default: all; at most 100.
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.tags(tags);
        self
    }

    /// Only events of tasks with these correlation ids. Default: all; at most 1,000.
    pub fn correlation_ids<T: Into<String>>(mut self, ids: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.correlation_ids(ids);
        self
    }

    /// Of `step.failed`, and of what is derived from it, only what is final.
    pub fn only_final_failures(mut self) -> Self {
        self.filter = self.filter.only_final_failures();
        self
    }

    /// Where to keep the cursor. Default: nowhere.
    pub fn cursor_store<N: CursorStore>(self, store: N) -> Subscriber<N> {
        let Self { client, start, filter, durable, handlers, wants, handler_timeout, .. } = self;
        let has_store = true;
        Subscriber {
            client,
            start,
            filter,
            durable,
            handlers,
            wants,
            handler_timeout,
            store,
            has_store,
        }
    }

    /// Runs until `shutdown` is done; handlers that were called are not interrupted. Waits for the
    /// service as long as it takes. Answers what it did.
    ///
    /// Errors: the settings are wrong; the cursor cannot be loaded; the service refuses the cursor, the filter
    /// or the durable subscription; this does not bring what a handler is for.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Tally, Error> {
        self.check()?;
        let mut tally = Tally::default();
        match self.durable.clone() {
            None => self.follow(pin!(shutdown), &mut tally).await?,
            Some(reader) => self.read(reader, pin!(shutdown), &mut tally).await?,
        }
        Ok(tally)
    }

    /// What is wrong with its settings.
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Invalid(what.to_owned()));
        if self.handlers.is_empty() {
            return wrong("a subscriber needs at least one handler");
        }
        if self.handler_timeout.is_zero() {
            return wrong("a handler needs time: the time-out is 0");
        }
        let is_plain = self.filter == Subscription::new() && self.start == Start::default();
        if self.durable.is_some() && (self.has_store || !is_plain) {
            return wrong(
                "a durable subscription has its filter and its place in the database: \
                 a subscriber of one takes no filter, start or cursor store",
            );
        }
        Ok(())
    }

    /// Over a feed.
    async fn follow(
        &self,
        mut shutdown: impl Future<Output = ()> + Unpin,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let start = match self.store.load().await.map_err(Error::Cursor)? {
            Some(cursor) => Start::After(cursor),
            None => self.start.clone(),
        };
        let subscription = self.subscription(start);
        let mut fault = None;
        let opened = select! {
            opened = EventStream::open(&self.client, subscription.into(), &mut fault) => Some(opened),
            () = &mut shutdown => None,
        };
        let Some(opened) = opened else { return Ok(()) };
        let mut feed = opened?;
        loop {
            let delivery = select! {
                biased;
                () = &mut shutdown => None,
                delivery = feed.next() => delivery,
            };
            let Some(delivery) = delivery else { return Ok(()) };
            self.take(delivery?, tally).await;
        }
    }

    fn subscription(&self, start: Start) -> Subscription {
        let patterns = self.handlers.iter().flat_map(|entry| &entry.patterns);
        let mut names: Vec<String> = patterns.map(Pattern::filter).collect();
        names.sort_unstable();
        names.dedup();
        self.filter.clone().names(names).from(start)
    }

    async fn take(&self, delivery: Delivery, tally: &mut Tally) {
        for event in delivery.events {
            // Where it failed is logged: nothing else can be done about it.
            let _ = self.handle(Arc::new(event), tally).await;
        }
        if let Some(cursor) = delivery.cursor
            && let Err(error) = self.store.save(&cursor).await
        {
            // A later one makes up for it.
            tracing::warn!(%error, "the cursor was not saved");
        }
    }

    /// Over a durable subscription.
    async fn read(
        &self,
        reader: DurableReader,
        mut shutdown: impl Future<Output = ()> + Unpin,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let opening = async {
            let name = reader.name().to_owned();
            let stream = reader.open_in_time(&mut None).await?;
            self.check_names(name).await.map(|()| stream)
        };
        let opened = select! {
            opened = opening => Some(opened),
            () = &mut shutdown => None,
        };
        let Some(opened) = opened else { return Ok(()) };
        let mut stream = opened?;
        let ended = self.settle_all(&mut stream, shutdown, tally).await;
        stream.close().await;
        ended
    }

    async fn settle_all(
        &self,
        stream: &mut DurableStream,
        mut shutdown: impl Future<Output = ()> + Unpin,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        loop {
            let event = select! {
                biased;
                () = &mut shutdown => None,
                event = stream.next() => event,
            };
            let Some(event) = event else { return Ok(()) };
            let event = event?;
            match self.handle(event.shared(), tally).await {
                Ok(()) => event.ack(),
                Err(Fault { reason, retry_after }) => event.nack(reason, retry_after),
            }
        }
    }

    /// A handler that would never be called is a mistake.
    async fn check_names(&self, name: String) -> Result<(), Error> {
        let request = v1::GetSubscriptionRequest { name: name.clone() };
        let found = match self.client.get_subscription(request).await {
            Ok(found) => found,
            Err(error) if error.reason().is_some() && !may_pass(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "what the subscription brings could not be asked");
                return Ok(());
            }
        };
        let filter = found.subscription.and_then(|it| it.filter).unwrap_or_default();
        let patterns = self.handlers.iter().flat_map(|entry| &entry.patterns);
        for pattern in patterns {
            if !brings(&filter.names, pattern) {
                let (wanted, names) = (pattern.filter(), filter.names.join(", "));
                return Err(Error::Invalid(format!(
                    "a handler is for {wanted:?}, which the subscription {name:?} does not bring; its names are {names}"
                )));
            }
        }
        Ok(())
    }

    /// Calls every handler that is for the event; the first fault.
    async fn handle(&self, event: Arc<Event>, tally: &mut Tally) -> Result<(), Fault> {
        let mut ended = Ok(());
        let wanted = std::panic::catch_unwind(AssertUnwindSafe(|| (self.wants)(&event)));
        let is_wanted = wanted.unwrap_or_else(|_| {
            tracing::error!(event = event.name, "`should_process` panicked");
            ended = Err(Fault { reason: "Panic".into(), retry_after: None });
            false
        });
        for entry in self.handlers.iter().filter(|_| is_wanted) {
            if entry.patterns.iter().any(|pattern| pattern.fits(&event.name)) {
                let called = call(&entry.handler, &event, self.handler_timeout).await;
                ended = ended.and(called);
            }
        }
        match ended {
            Ok(()) => tally.handled += 1,
            Err(_) => tally.failed += 1,
        }
        ended
    }
}

async fn call(handler: &Handler, event: &Arc<Event>, patience: Duration) -> Result<(), Fault> {
    let span = trace::handle_event(event);
    let handled = async { handler(Arc::clone(event)).await }.instrument(span.clone());
    let ended = timeout(patience, AssertUnwindSafe(handled).catch_unwind()).await;
    // The span says which event it is.
    let _within = span.enter();
    match ended {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => {
            let (error_class, at) = (error.class(), error.place());
            tracing::error!(error_class, %at, "an event's handler failed");
            tracing::debug!(%error, "what it said");
            trace::event_failed(&span, error_class);
            Err(Fault { reason: error.to_string(), retry_after: error.wait() })
        }
        Ok(Err(_)) => {
            tracing::error!("an event's handler panicked");
            trace::event_failed(&span, "Panic");
            Err(Fault { reason: "Panic".into(), retry_after: None })
        }
        Err(_) => {
            tracing::error!(?patience, "an event's handler took too long");
            trace::event_failed(&span, "Timeout");
            let reason = format!("Timeout: the handler took longer than {patience:?}");
            Err(Fault { reason, retry_after: None })
        }
    }
}
