//! Examples of what people build with Stepwell.

pub mod checkout;
pub mod subscribers;
