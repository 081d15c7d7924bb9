//! Subscribers: which events are wanted, the feed of them, and handlers by event name.

mod cursor;
mod durable;
mod facts;
mod handler;
mod handlers;
mod held;
mod link;
mod pattern;
mod resume;
mod runner;
mod selection;
mod stream;

pub use self::{
    cursor::{CursorStore, FileCursor, NoCursor},
    durable::{DurableEvent, DurableReader, DurableStream},
    facts::{CoreFacts, ErrorCategory, EventFacts, FailureFacts, TimingFacts},
    handler::EventHandler,
    handlers::{Subscriber, Tally},
    runner::Subscribers,
    selection::{Start, Subscription},
    stream::{Delivery, EventStream},
};

pub(crate) use self::{
    handler::{hand, patterns},
    pattern::unknown,
};
