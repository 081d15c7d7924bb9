//! The Rust client of Stepwell.
//!
//! - [`Client`] makes the calls: definitions and tasks. Calls that may be repeated are, and all of
//!   them may: a repeat finds what the first one did.
//! - [`Executor`] runs the handlers of steps. It connects again for ever, keeps what its handlers
//!   returned until it is durable, and never runs more of them at once than it has slots.
//! - [`EventStream`] and [`Subscriber`] follow the feed of events, and resume by cursor by
//!   themselves; [`DurableStream`] reads a durable subscription, whose place is in the database.
//! - [`EventHandler`] is a type with a method for each event; [`testing`] calls one without services, and
//!   [`BusinessMetrics`] is one.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use stepwell_client::{Addresses, Client, Executor, HandlerError, StepContext};
//!
//! #[derive(Deserialize)]
//! struct Order {
//!     amount: u64,
//! }
//!
//! #[derive(Serialize)]
//! struct Payment {
//!     charged: u64,
//! }
//!
//! async fn charge(step: StepContext) -> Result<Payment, HandlerError> {
//!     let order: Order = step.input()?;
//!     if order.amount == 0 {
//!         return Err(HandlerError::new("NothingToCharge", "the amount is 0").permanent());
//!     }
//!     // `step_id` is the same for every attempt: a good idempotency key for the gateway.
//!     println!("charge {} under {}", order.amount, step.step_id());
//!     Ok(Payment { charged: order.amount })
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(Addresses::from_env())?;
//! let task = client
//!     .task("fulfil_order")
//!     .namespace("shop")
//!     .context(&serde_json::json!({"amount": 1999}))
//!     .create()
//!     .await?;
//! println!("created {}", task.task_id);
//!
//! Executor::new(&client, "till-1")
//!     .namespace("shop")
//!     .slots(50)
//!     .handler("charge", charge)
//!     .run(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
//!     .await?;
//! # Ok(())
//! # }
//! ```

mod addresses;
mod backoff;
mod business;
mod call;
mod client;
mod error;
mod executor;
mod limits;
mod pool;
mod subscriber;
mod subscriptions;
mod task;
pub mod testing;
mod trace;

pub use stepwell_proto::{catalog, refusal::Refusal, v1};
pub use stepwell_trace::{TraceContext, child_of, link};
pub use tokio_util::sync::CancellationToken;

pub use crate::{
    addresses::Addresses,
    business::BusinessMetrics,
    client::Client,
    error::{Error, Lost},
    executor::{Executor, HandlerError, Observation, Report, StepContext},
    limits::Limits,
    subscriber::{
        CoreFacts, CursorStore, Delivery, DurableEvent, DurableReader, DurableStream,
        ErrorCategory, EventFacts, EventHandler, EventStream, FailureFacts, FileCursor, NoCursor,
        Start, Subscriber, Subscribers, Subscription, Tally, TimingFacts,
    },
    task::TaskBuilder,
};

/// The snippets of the guide compile, and those with a `main` do what they say.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/subscribers.md")]
struct Guide;
