//! For tests of event handlers: events without a service, and handlers called as a subscriber calls them.

use std::time::{Duration, SystemTime};

use stepwell_proto::{
    catalog::{EVENTS, EventMessage, EventType, example},
    v1::{Entity, Event, State, event::Detail},
};

use crate::{
    error::Error,
    executor::HandlerError,
    subscriber::{EventHandler, hand, patterns, unknown},
};

const TASK_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// An event of this name with the catalog's example as its detail, of a task `example` in the namespace
/// `default`; one about a step is of its step `charge`. Change what the test is about. Errors: no event has the
/// name.
pub fn sample(name: &str) -> Result<Event, Error> {
    let found = EVENTS.iter().find(|event| event.name == name);
    let event_type = found.ok_or_else(|| unknown(name))?;
    Ok(about(event_type, example(name)))
}

/// The same with a detail of the test's own: `event(StepCompleted { … })`.
pub fn event<T: EventMessage>(detail: T) -> Event {
    let found = EVENTS.iter().find(|event| event.name == T::NAME);
    about(found.expect("each type is in the catalog"), Some(detail.into()))
}

fn about(event_type: &EventType, detail: Option<Detail>) -> Event {
    let edge = event_type.edge.as_ref();
    let from = edge.and_then(|edge| edge.from.first().copied()).unwrap_or(State::Unspecified);
    let to = edge.map_or(State::Unspecified, |edge| edge.to.unwrap_or(from));
    let is_of_step = edge.is_some_and(|edge| edge.entity == Entity::Step)
        || event_type.derived_from.iter().any(|name| name.starts_with("step."));
    let mut event = Event {
        position: 1,
        name: event_type.name.to_owned(),
        task_id: TASK_ID.to_owned(),
        at: Some((SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).into()),
        namespace: "default".to_owned(),
        definition_name: "example".to_owned(),
        definition_version: "1.0.0".to_owned(),
        correlation_id: "example".to_owned(),
        detail,
        ..Event::default()
    };
    event.set_from_state(from);
    event.set_to_state(to);
    if is_of_step {
        event.step_id = format!("{TASK_ID}.1");
        event.step_name = "charge".to_owned();
        event.attempt = 1;
    }
    event
}

/// Calls the handler as a subscriber does: the method of the event's type, if it subscribes to the event and
/// `should_process` is true. False: it does not want it. A panic of the handler is the test's.
///
/// Errors: what the handler failed with, or a name in `subscribe_to` that no event has.
pub async fn handle(handler: &impl EventHandler, event: &Event) -> Result<bool, HandlerError> {
    let patterns = patterns(handler)?;
    if !patterns.iter().any(|pattern| pattern.fits(&event.name)) {
        return Ok(false);
    }
    hand(handler, event).await
}
