//! Why a call failed, with what the log says of it.

use std::time::Duration;

use reqwest::StatusCode;
use stepwell_client::HandlerError;

use crate::problem::Problem;

/// A failed call.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Its error class.
    pub(crate) class: &'static str,
    /// What the server answered, if it did.
    pub(crate) status: Option<u16>,
    /// What is reported.
    pub(crate) error: HandlerError,
}

impl Failure {
    /// Something that may pass.
    pub(crate) fn passing(class: &'static str, message: String) -> Self {
        Self { class, status: None, error: HandlerError::new(class, message) }
    }

    /// A status that is no success.
    pub(crate) fn status(status: StatusCode, message: String) -> Self {
        const CLASS: &str = "HttpStatus";
        let error = HandlerError::new(CLASS, message).code(format!("HTTP_{}", status.as_u16()));
        Self { class: CLASS, status: Some(status.as_u16()), error }
    }

    /// A response with more bytes than the step wants.
    pub(crate) fn too_large(status: StatusCode, message: String) -> Self {
        const CLASS: &str = "ResponseTooLarge";
        let error = HandlerError::new(CLASS, message).permanent();
        Self { class: CLASS, status: Some(status.as_u16()), error }
    }

    pub(crate) fn permanent(self) -> Self {
        Self { error: self.error.permanent(), ..self }
    }

    pub(crate) fn retry_after(self, wait: Duration) -> Self {
        Self { error: self.error.retry_after(wait), ..self }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { class: problem.class(), status: None, error: problem.into() }
    }
}

/// What the client says of the lease: context and results that cannot be read or fetched.
impl From<HandlerError> for Failure {
    fn from(error: HandlerError) -> Self {
        Self { class: "InputUnavailable", status: None, error }
    }
}
