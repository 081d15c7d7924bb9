//! The catalog of events: the table generated from the options in `event.proto`, and look-ups.

use crate::v1::{event::Detail, *};

pub use crate::elsewhere::{ELSEWHERE, Elsewhere};

/// One row of the catalog.
#[derive(Debug)]
pub struct EventType {
    /// The type's stable number: its member's number in `Event.detail`.
    pub number: u32,
    /// Dotted public name.
    pub name: &'static str,
    /// Name of the detail's message.
    pub message: &'static str,
    /// First segment of the name.
    pub category: EventCategory,
    /// The transition it records.
    pub edge: Option<Edge>,
    /// Recorded events it is made from; empty: it is recorded itself.
    pub derived_from: &'static [&'static str],
    /// The release that had it first.
    pub since: &'static str,
    /// Services that may emit it.
    pub emitters: &'static [&'static str],
    /// What it means.
    pub doc: &'static str,
    /// The detail's fields.
    pub fields: &'static [Field],
    /// A detail as ProtoJSON.
    pub example: &'static str,
    /// JSON Schema of the detail as ProtoJSON.
    pub schema: &'static str,
}

impl EventType {
    /// True when it has rows of its own in the log.
    pub fn is_recorded(&self) -> bool {
        self.derived_from.is_empty()
    }
}

/// What an event records of a state: a transition, or something in one. Empty `from` is creation.
#[derive(Debug)]
pub struct Edge {
    /// Whose state.
    pub entity: Entity,
    /// States it may come from.
    pub from: &'static [State],
    /// State it is in afterwards; none: it stays in the one it is in.
    pub to: Option<State>,
}

/// One field of a detail.
#[derive(Debug)]
pub struct Field {
    /// Its ProtoJSON name.
    pub name: &'static str,
    /// Its type.
    pub kind: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// A typed event detail.
pub trait EventMessage: prost::Message + Default + Into<Detail> {
    /// The event's name.
    const NAME: &'static str;
    /// The event's number.
    const NUMBER: u32;
    /// The detail as this type, if it is one.
    fn of(detail: &Detail) -> Option<&Self>;
}

/// Looks a recorded type up by number.
pub fn event_type_by_number(number: u32) -> Option<&'static EventType> {
    EVENTS.iter().find(|e| e.number == number)
}

/// What stands for a name that other engines publish as an event and this one does not.
pub fn elsewhere(name: &str) -> Option<&'static Elsewhere> {
    ELSEWHERE.iter().find(|e| e.name == name)
}

/// The events that may record this move.
pub fn edges(
    entity: Entity,
    from: Option<State>,
    to: State,
) -> impl Iterator<Item = &'static EventType> {
    EVENTS.iter().filter(move |e| {
        e.edge.as_ref().is_some_and(|x| {
            x.entity == entity
                && x.to.map_or(from == Some(to), |x| x == to)
                && from.map_or(x.from.is_empty(), |f| x.from.contains(&f))
        })
    })
}

/// States from which the entity may move to `to`, in the order of their numbers.
pub fn origins(entity: Entity, to: State) -> Vec<State> {
    let mut states: Vec<State> = EVENTS
        .iter()
        .filter_map(|e| e.edge.as_ref())
        .filter(|x| x.entity == entity && x.to == Some(to))
        .flat_map(|x| x.from.iter().copied())
        .collect();
    states.sort_unstable();
    states.dedup();
    states
}

impl State {
    /// The public word for it: `in_progress`.
    pub fn word(self) -> &'static str {
        match self {
            State::Unspecified => "none",
            State::Pending => "pending",
            State::InProgress => "in_progress",
            State::Complete => "complete",
            State::Error => "error",
            State::Cancelled => "cancelled",
            State::ResolvedManually => "resolved_manually",
        }
    }

    /// True when a task in this state has ended.
    pub fn is_final(self) -> bool {
        !matches!(self, State::Unspecified | State::Pending | State::InProgress)
    }
}

include!(concat!(env!("OUT_DIR"), "/catalog.rs"));
