//! Durable subscriptions: what their readers have done is kept in the database, by partitions.
//!
//! A partition's way: a stream `read`s it, once it has taken it, from the same ring and table as every
//! subscription → `partition` knows what was delivered and is not acknowledged → `keeper` extends what the
//! streams of this process hold, and tells them what was acknowledged or failed, here or elsewhere →
//! `service` has the calls that do that. `request` checks them; `declared` reads those that people
//! write.

mod declared;
mod keeper;
mod partition;
mod read;
mod request;
mod service;

pub(crate) use self::{
    declared::{apply, check},
    keeper::Keeper,
    read::Reading,
    request::{Faults, start},
    service::Subscriptions,
};
