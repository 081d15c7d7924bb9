//! Handlers of events by name.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use stepwell_proto::{
    catalog::{EVENTS, EventMessage, EventType, elsewhere, event_type},
    v1::Event,
};
use tokio::select;
use tracing::Instrument;

use super::{
    cursor::{CursorStore, NoCursor},
    selection::{Start, Subscription},
    stream::{Delivery, EventStream},
};
use crate::{client::Client, error::Error, executor::HandlerError, trace};

/// Names that are less similar than this are not suggested.
const SIMILAR: f64 = 0.8;

type Handler =
    Box<dyn Fn(Arc<Event>) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync>;

/// Calls handlers for events, in the order of the feed, one after the other.
///
/// The service sends only events that some handler is for. A handler that fails or panics is
/// logged, without its message unless at level DEBUG, and the others and the feed go on. It runs in
/// a span `event.handle`, which goes on from the task's trace. The cursor is saved after the handlers
/// ran: after a crash an event may be handled again, and none is left out.
///
/// ```no_run
/// # async fn main_(client: stepwell_client::Client) -> Result<(), stepwell_client::Error> {
/// use stepwell_client::{FileCursor, Start, Subscriber, v1::StepCompleted};
///
/// Subscriber::new(&client)
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
///     .await
/// # }
/// ```
pub struct Subscriber<S = NoCursor> {
    client: Client,
    start: Start,
    filter: Subscription,
    handlers: Vec<(Pattern, Handler)>,
    wants: Box<dyn Fn(&Event) -> bool + Send + Sync>,
    store: S,
}

impl Subscriber {
    /// A subscriber without handlers.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            start: Start::default(),
            filter: Subscription::new(),
            handlers: Vec::new(),
            wants: Box::new(|_| true),
            store: NoCursor,
        }
    }
}

impl<S: CursorStore> Subscriber<S> {
    /// Calls the handler for events of this type, with what is special to it.
    #[must_use]
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
        self.handlers.push((Pattern::Name(T::NAME.to_owned()), handler));
        self
    }

    /// Calls the handler for events of this name: exact, `prefix.*`, or `*` for every recorded
    /// event. A name that the catalog does not have is refused.
    pub fn on_name<F>(
        mut self,
        name: &str,
        handler: impl Fn(Arc<Event>) -> F + Send + Sync + 'static,
    ) -> Result<Self, Error>
    where
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let pattern = Pattern::read(name)?;
        self.handlers.push((pattern, Box::new(move |event| handler(event).boxed())));
        Ok(self)
    }

    /// Calls handlers only for events of which this is true; the others count as handled. Default: all. What
    /// the filter can say is better said there: the service does not send it then.
    #[must_use]
    pub fn should_process(
        mut self,
        wants: impl Fn(&Event) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.wants = Box::new(wants);
        self
    }

    /// Where to begin when no cursor was saved. Default [`Start::Latest`].
    #[must_use]
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Only events of these tasks. Default: all; at most 1,000.
    #[must_use]
    pub fn tasks<T: Into<String>>(mut self, task_ids: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.tasks(task_ids);
        self
    }

    /// Only events of tasks of these definitions. Default: all; at most 100.
    #[must_use]
    pub fn definitions<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.definitions(names);
        self
    }

    /// Only events of tasks in these namespaces. Default: all; at most 100.
    #[must_use]
    pub fn namespaces<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.namespaces(names);
        self
    }

    /// Only events of these steps. Default: all; at most 100.
    #[must_use]
    pub fn steps<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.steps(names);
        self
    }

    /// Only events of tasks that have any of these tags. Default: all; at most 100.
    #[must_use]
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.tags(tags);
        self
    }

    /// Only events of tasks with these correlation ids. Default: all; at most 1,000.
    #[must_use]
    pub fn correlation_ids<T: Into<String>>(mut self, ids: impl IntoIterator<Item = T>) -> Self {
        self.filter = self.filter.correlation_ids(ids);
        self
    }

    /// Of `step.failed`, and of what is derived from it, only what is final.
    #[must_use]
    pub fn only_final_failures(mut self) -> Self {
        self.filter = self.filter.only_final_failures();
        self
    }

    /// Where to keep the cursor. Default: nowhere.
    pub fn cursor_store<N: CursorStore>(self, store: N) -> Subscriber<N> {
        let Self { client, start, filter, handlers, wants, store: _ } = self;
        Subscriber { client, start, filter, handlers, wants, store }
    }

    /// Runs until `shutdown` is done; handlers that were called are not interrupted. Waits for the
    /// service as long as it takes.
    ///
    /// Errors: the cursor cannot be loaded, or the service refuses the cursor or the filter.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let mut shutdown = pin!(shutdown);
        let start = match self.store.load().await.map_err(Error::Cursor)? {
            Some(cursor) => Start::After(cursor),
            None => self.start.clone(),
        };
        let subscription = self.subscription(start)?;
        let mut fault = None;
        let opened = select! {
            opened = EventStream::open(&self.client, subscription.into(), &mut fault) => Some(opened),
            () = shutdown.as_mut() => None,
        };
        let Some(opened) = opened else { return Ok(()) };
        let mut feed = opened?;
        loop {
            let delivery = select! {
                delivery = feed.next() => delivery,
                () = shutdown.as_mut() => None,
            };
            let Some(delivery) = delivery else { return Ok(()) };
            self.handle(delivery?).await;
        }
    }

    fn subscription(&self, start: Start) -> Result<Subscription, Error> {
        if self.handlers.is_empty() {
            return Err(Error::Invalid("a subscriber needs at least one handler".into()));
        }
        let mut names: Vec<String> = self.handlers.iter().map(|(p, _)| p.filter()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(self.filter.clone().names(names).from(start))
    }

    async fn handle(&self, delivery: Delivery) {
        for event in delivery.events.into_iter().filter(|event| (self.wants)(event)) {
            let event = Arc::new(event);
            for (pattern, handler) in &self.handlers {
                if pattern.fits(&event.name) {
                    call(handler, &event).await;
                }
            }
        }
        if let Some(cursor) = delivery.cursor
            && let Err(error) = self.store.save(&cursor).await
        {
            // A later one makes up for it.
            tracing::warn!(%error, "the cursor was not saved");
        }
    }
}

async fn call(handler: &Handler, event: &Arc<Event>) {
    let span = trace::handle_event(event);
    let handled = async { handler(Arc::clone(event)).await }.instrument(span.clone());
    let ended = AssertUnwindSafe(handled).catch_unwind().await;
    // The span says which event it is.
    let _within = span.enter();
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let (error_class, at) = (error.class(), error.place());
            tracing::error!(error_class, %at, "an event's handler failed");
            tracing::debug!(%error, "what it said");
            trace::event_failed(&span, error_class);
        }
        Err(_) => {
            tracing::error!("an event's handler panicked");
            trace::event_failed(&span, "Panic");
        }
    }
}

/// Which events a handler is for.
#[derive(Debug, PartialEq)]
enum Pattern {
    Recorded,
    /// With the dot.
    Prefix(String),
    Name(String),
}

impl Pattern {
    fn read(text: &str) -> Result<Self, Error> {
        if text == "*" {
            return Ok(Self::Recorded);
        }
        if let Some(prefix) = text.strip_suffix('*').filter(|prefix| prefix.ends_with('.'))
            && EVENTS.iter().any(|event| event.name.starts_with(prefix))
        {
            return Ok(Self::Prefix(prefix.to_owned()));
        }
        if event_type(text).is_some() {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(Error::EventUnknown { name: text.to_owned(), suggestion: similar(text) })
    }

    /// As a filter has it.
    fn filter(&self) -> String {
        match self {
            Self::Recorded => "*".to_owned(),
            Self::Prefix(prefix) => format!("{prefix}*"),
            Self::Name(name) => name.clone(),
        }
    }

    fn fits(&self, name: &str) -> bool {
        match self {
            // A name newer than this library is a recorded one: no handler can ask for it
            // otherwise, unless by prefix.
            Self::Recorded => event_type(name).is_none_or(EventType::is_recorded),
            Self::Prefix(prefix) => name.starts_with(prefix),
            Self::Name(exact) => name == exact,
        }
    }
}

/// The most similar name or prefix of the catalog.
fn similar(text: &str) -> Option<String> {
    let prefixes = EVENTS.iter().flat_map(|event| {
        event.name.match_indices('.').map(|(dot, _)| format!("{}.*", &event.name[..dot]))
    });
    let names = EVENTS.iter().map(|event| event.name.to_owned()).chain(prefixes);
    let scored = names.map(|name| (strsim::jaro_winkler(text, &name), name));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= SIMILAR && elsewhere(text).is_none()).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_catalog_does_not_have_is_refused_with_the_nearest() {
        for (name, suggestion) in [
            ("step.complete", Some("step.completed")),
            ("steps.*", Some("step.*")),
            ("tasks.failed", Some("task.failed")),
            ("task*", Some("task.*")),
            ("zzz", None),
            ("", None),
        ] {
            match Pattern::read(name) {
                Err(Error::EventUnknown { suggestion: s, .. }) => {
                    assert_eq!(s.as_deref(), suggestion, "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_name_from_elsewhere_is_refused_with_what_stands_for_it() {
        let refused = Pattern::read("step.before_handle").unwrap_err().to_string();
        let (name, here) = ("no event is named \"step.before_handle\". ", "Executor::observer");
        assert!(refused.starts_with(name) && refused.contains(here), "{refused}");
    }

    #[test]
    fn patterns_fit_what_their_filters_ask_for() {
        let fits = |pattern: &str, name: &str| Pattern::read(pattern).unwrap().fits(name);
        assert!(fits("*", "step.completed") && !fits("*", "workflow.step_completed"));
        assert!(fits("workflow.*", "workflow.step_completed"));
        assert!(fits("observability.step.*", "observability.step.backoff"));
        assert!(!fits("task.*", "step.completed"));
        assert!(fits("step.failed", "step.failed") && !fits("step.failed", "step.completed"));
        for pattern in ["*", "workflow.*", "step.failed"] {
            assert_eq!(Pattern::read(pattern).unwrap().filter(), pattern);
        }
    }
}
