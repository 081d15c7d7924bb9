//! Declared handlers: a type says what it wants, and has a method for each event it knows. The methods are made
//! of the catalog.

use std::sync::Arc;

use futures::FutureExt;
use stepwell_proto::v1::{self, Event, event::Detail};

use super::{handlers::Handler, pattern::Pattern};
use crate::{error::Error, executor::HandlerError};

macro_rules! event_handler {
    ($($method:ident $message:ident $name:literal $doc:literal)*) => {
        /// Handles events: says which, and has a method for each type, named after the event.
        ///
        /// A method that no event has does not compile; a name in [`Self::subscribe_to`] is checked
        /// as by [`crate::Subscriber::on_name`], when the subscriber is made. Give it to
        /// [`crate::Subscriber::handler`].
        ///
        /// ```
        /// use stepwell_client::{EventFacts, EventHandler, HandlerError, v1};
        ///
        /// struct Failures;
        ///
        /// impl EventHandler for Failures {
        ///     fn subscribe_to(&self) -> Vec<&str> {
        ///         vec!["step.failed", "task.*"]
        ///     }
        ///
        ///     async fn handle_step_failed(
        ///         &self,
        ///         event: &v1::Event,
        ///         _: &v1::StepFailed,
        ///     ) -> Result<(), HandlerError> {
        ///         let failure = event.failure().map_or("unknown", |failure| failure.class);
        ///         println!("{} failed with {failure}", event.step_name);
        ///         Ok(())
        ///     }
        ///
        ///     /// What has no method of its own: the other events of tasks.
        ///     async fn handle(&self, event: &v1::Event) -> Result<(), HandlerError> {
        ///         println!("{} {}", event.name, event.core().task_id);
        ///         Ok(())
        ///     }
        /// }
        /// ```
        ///
        /// ```compile_fail,E0407
        /// # use stepwell_client::{EventHandler, HandlerError, v1};
        /// # struct Failures;
        /// impl EventHandler for Failures {
        /// #   fn subscribe_to(&self) -> Vec<&str> { vec!["step.failed"] }
        ///     // The event is `step.failed`.
        ///     async fn handle_step_failure(
        ///         &self,
        ///         _: &v1::Event,
        ///         _: &v1::StepFailed,
        ///     ) -> Result<(), HandlerError> {
        ///         Ok(())
        ///     }
        /// }
        /// ```
        pub trait EventHandler: Send + Sync + 'static {
            /// Which events it wants: names, `prefix.*`, or `*` for every recorded one.
            fn subscribe_to(&self) -> Vec<&str>;

            /// False: this one is left out, and counts as handled. Default true.
            fn should_process(&self, event: &Event) -> bool {
                let _ = event;
                true
            }

            /// An event whose type has no method here. Default: it is logged and counts as handled.
            fn handle(
                &self,
                event: &Event,
            ) -> impl Future<Output = Result<(), HandlerError>> + Send {
                tracing::warn!(event = event.name, "nothing here handles this event");
                async { Ok(()) }
            }

            $(
                #[doc = concat!("`", $name, "`: ", $doc)]
                fn $method(
                    &self,
                    event: &Event,
                    detail: &v1::$message,
                ) -> impl Future<Output = Result<(), HandlerError>> + Send {
                    let _ = detail;
                    self.handle(event)
                }
            )*
        }

        /// Calls the method that is for the event.
        async fn route(handler: &impl EventHandler, event: &Event) -> Result<(), HandlerError> {
            match &event.detail {
                $(Some(Detail::$message(detail)) => handler.$method(event, detail).await,)*
                _ => handler.handle(event).await,
            }
        }
    };
}

stepwell_proto::for_each_event!(event_handler);

/// What it wants, or which of it no event is named.
pub(crate) fn patterns(handler: &impl EventHandler) -> Result<Vec<Pattern>, Error> {
    let patterns: Vec<Pattern> =
        handler.subscribe_to().into_iter().map(Pattern::read).collect::<Result<_, _>>()?;
    if patterns.is_empty() {
        return Err(Error::Invalid("a handler of events must subscribe to at least one".into()));
    }
    Ok(patterns)
}

/// Hands it an event that it subscribed to. False: it does not want this one.
pub(crate) async fn hand(handler: &impl EventHandler, event: &Event) -> Result<bool, HandlerError> {
    if !handler.should_process(event) {
        return Ok(false);
    }
    route(handler, event).await?;
    Ok(true)
}

/// As the runner calls it.
pub(super) fn erased(handler: impl EventHandler) -> Handler {
    let handler = Arc::new(handler);
    Box::new(move |event| {
        let handler = Arc::clone(&handler);
        async move { hand(&*handler, &event).await.map(|_| ()) }.boxed()
    })
}
