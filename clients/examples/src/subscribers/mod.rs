//! Subscribers to the events of a shop: mails about orders, figures, and alerts. Each runs as a program of its
//! own, against the checkout or anything else.

mod alerts;
mod notifications;
mod options;

pub use alerts::FailureAlerts;
pub use notifications::OrderNotifications;
pub use options::{Ends, Options, run};
