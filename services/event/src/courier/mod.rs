//! What event-service delivers itself: a durable subscription that has a delivery is read here, by whichever
//! process holds its partitions.
//!
//! An event's way: `Reading` delivers it to a `courier` as it would to a peer → the courier's `queue` says which
//! events may go, those of a task one after the other → a way (`webhook`, `line`, `tally`, `alert`) takes it or fails → it is
//! acknowledged, or nacked and comes again, by what durable subscriptions have for that. `couriers` keeps one
//! courier for each subscription, `ways` checks and opens what a delivery says.

mod alert;
mod couriers;
mod line;
mod queue;
mod run;
mod tally;
mod ways;
mod webhook;

pub(crate) use self::{couriers::Couriers, ways::Ways};
