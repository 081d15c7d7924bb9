//! Examples of what people build with Stepwell.
#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that fails says where"))]

pub mod checkout;
