//! Examples of what people build with Stepwell.

pub mod analytics;
mod caller;
pub mod cart;
pub mod checkout;
pub mod example;
mod ledger;
pub mod refund;
pub mod registration;
pub mod subscribers;

use crate::example::Example;

/// The examples beside the checkout.
pub const EXAMPLES: [&Example; 4] =
    [&analytics::EXAMPLE, &registration::EXAMPLE, &cart::EXAMPLE, &refund::EXAMPLE];
