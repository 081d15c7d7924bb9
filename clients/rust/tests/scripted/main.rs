//! The client against services whose answers the tests script, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod calls;
mod durable;
mod executor;
mod executor_end;
mod executor_stream;
mod fake;
mod feed;
mod handlers;
mod subscribers;
