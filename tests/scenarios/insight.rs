//! What people look at: diagrams, the whole, how it went, and what is put away.

mod archive;
mod diagram;
mod whole;

use stepwell_client::{Error, v1};

/// Why it was refused, and the fields that are wrong.
fn reason(error: &Error) -> (v1::ErrorReason, String) {
    let Error::Refused(refusal) = error else { panic!("{error:?}") };
    let fields: Vec<&str> = refusal.violations.iter().map(|(field, _)| field.as_str()).collect();
    (refusal.reason, fields.join(","))
}
