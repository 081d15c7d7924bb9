//! Why the shop cannot do something: its own words, and how they become a handler's error.

use std::time::Duration;

use stepwell_client::HandlerError;

/// Why the shop cannot do something.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    /// The kind of problem, a name that retry policies can match.
    pub(super) class: &'static str,
    /// What exactly.
    pub(super) code: &'static str,
    /// The same for people.
    pub(super) message: String,
    /// Whether it may go away.
    pub(super) cure: Cure,
}

/// Whether a problem may go away.
#[derive(Debug, PartialEq)]
pub(super) enum Cure {
    /// It will not.
    None,
    /// With time.
    Time,
    /// Whoever has it says when to come back.
    After(Duration),
}

impl Problem {
    /// The order is wrong: to try again is of no use.
    pub(super) fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self { class: "OrderRefused", code, message: message.into(), cure: Cure::None }
    }

    /// What is not there may come.
    pub(super) fn out_of_stock(message: impl Into<String>) -> Self {
        let (class, code) = ("InsufficientStock", "INSUFFICIENT_STOCK");
        Self { class, code, message: message.into(), cure: Cure::Time }
    }

    /// A server does not answer, or not now.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        let (class, code) = ("ServiceUnavailable", "SERVICE_UNAVAILABLE");
        Self { class, code, message: message.into(), cure: Cure::Time }
    }

    /// A server is asked too often.
    pub(super) fn rate_limited(message: impl Into<String>, wait: Duration) -> Self {
        let (class, code) = ("RateLimited", "RATE_LIMITED");
        Self { class, code, message: message.into(), cure: Cure::After(wait) }
    }
}

impl From<Problem> for HandlerError {
    #[track_caller]
    fn from(problem: Problem) -> Self {
        let error = Self::new(problem.class, problem.message).code(problem.code);
        match problem.cure {
            Cure::None => error.permanent(),
            Cure::Time => error,
            Cure::After(wait) => error.retry_after(wait),
        }
    }
}
