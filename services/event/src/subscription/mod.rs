//! Durable subscriptions: what their readers have done is kept in the database, by partitions.
//!
//! A partition's way: a stream `read`s it, once it has taken it, from the same ring and table as every
//! subscription → `partition` knows what was delivered and is not acknowledged → `keeper` extends what the
//! streams of this process hold, and tells them what was acknowledged or failed, here or elsewhere →
//! `service` has the calls that do that. `request` checks them.

mod keeper;
mod partition;
mod read;
mod request;
mod service;

pub(crate) use self::{keeper::Keeper, read::Reading, request::start, service::Subscriptions};
