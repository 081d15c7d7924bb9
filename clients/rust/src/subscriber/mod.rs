//! Subscribers: which events are wanted, the feed of them, and handlers by event name.

mod cursor;
mod facts;
mod handlers;
mod resume;
mod selection;
mod stream;

pub use self::{
    cursor::{CursorStore, FileCursor, NoCursor},
    facts::{ErrorCategory, EventFacts, FailureFacts},
    handlers::Subscriber,
    selection::{Start, Subscription},
    stream::{Delivery, EventStream},
};
