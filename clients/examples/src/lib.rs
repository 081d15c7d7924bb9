//! Examples of what people build with Stepwell.

pub mod analytics;
mod caller;
pub mod checkout;
pub mod example;
mod ledger;
pub mod subscribers;

use crate::example::Example;

/// The examples beside the checkout.
pub const EXAMPLES: [&Example; 1] = [&analytics::EXAMPLE];
