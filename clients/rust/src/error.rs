//! What can go wrong for a caller, and why a stream ended.

use std::time::Duration;

use stepwell_proto::{catalog::elsewhere, refusal::Refusal, v1::ErrorReason};
use tonic::{Code, Status};

/// Why a call, an executor or a subscriber failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service refused, with a reason.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The call failed in another way: the service cannot be reached, or it is not ours.
    #[error("the call failed ({:?}): {}", .0.code(), .0.message())]
    Status(#[source] Box<Status>),
    /// There was no answer in time. What the call asked for may have been done; repeating it is
    /// safe.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    /// The answer lacks what the contract promises.
    #[error("the answer is wrong: {0}")]
    Answer(&'static str),
    /// An address cannot be used.
    #[error("the address {address:?} {what}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no Tokio runtime around the call.
    #[error("must be called inside a Tokio runtime")]
    NoRuntime,
    /// A value cannot be written as JSON.
    #[error("cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// A setting is wrong.
    #[error("{0}")]
    Invalid(String),
    /// No event of the catalog has this name.
    #[error("no event is named {name:?}{}", instead(name, suggestion.as_deref()))]
    EventUnknown {
        /// As it was given.
        name: String,
        /// The most similar name, if one is similar.
        suggestion: Option<String>,
    },
    /// A cursor store panicked; its subscriber has ended.
    #[error("it panicked")]
    Panicked,
    /// The cursor could not be loaded.
    #[error("the cursor cannot be loaded")]
    Cursor(#[source] std::io::Error),
}

/// What to try in place of a name: the one that was meant, or what stands for it here.
fn instead(name: &str, suggestion: Option<&str>) -> String {
    match (elsewhere(name), suggestion) {
        (Some(there), _) => format!(". {}", there.here),
        (None, Some(meant)) => format!("; did you mean {meant:?}?"),
        (None, None) => String::new(),
    }
}

impl Error {
    /// The reason, if the service refused.
    pub fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Refused(refusal) => Some(refusal.reason),
            _ => None,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        match Refusal::from_status(&status) {
            Some(refusal) => Self::Refused(Box::new(refusal)),
            None => Self::Status(Box::new(status)),
        }
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The service ended it.
    #[error("the service ended the stream")]
    Ended,
    /// Nothing was heard for so long.
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    /// The service did not begin as the contract says.
    #[error("the service began with something else than {0}")]
    Unexpected(&'static str),
    /// An error of the call or the connection.
    #[error("{}", describe(.0))]
    Failed(Box<Status>),
}

impl Lost {
    /// True when trying again cannot help: what was asked is wrong.
    pub(crate) fn is_final(&self) -> bool {
        let Self::Failed(status) = self else { return false };
        // Out of range is what a message above the size limit is answered with.
        matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange)
    }

    /// How long the service asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let Self::Failed(status) = self else { return None };
        tonic_types::StatusExt::get_details_retry_info(&**status)?.retry_delay
    }
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        Self::Failed(Box::new(status))
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Failed(status) => (*status).into(),
            Lost::Silent(wait) => Self::NoAnswer(wait),
            Lost::Unexpected(what) => Self::Answer(what),
            Lost::Ended => Self::Answer("the stream ended at once"),
        }
    }
}

fn describe(status: &Status) -> String {
    match Refusal::from_status(status) {
        Some(refusal) => refusal.to_string(),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}
