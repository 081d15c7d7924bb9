//! HTTP calls that go out, whoever makes them: where they may go, by which client, and how long they are
//! asked to wait.

mod clients;
mod hosts;
mod retry_after;

pub use crate::{
    clients::{Clients, reason},
    hosts::{AllowedHost, Hosts, NoHost, NotAllowed, Trust, is_public},
    retry_after::{RETRY_AFTER_MAX, retry_after},
};
