//! One test binary; the folders are its modules.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod scenarios;
mod verbs;
