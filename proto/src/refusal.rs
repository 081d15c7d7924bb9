//! Refusals: why a call was not carried out, as a value, and its two forms on the wire. This is
//! the only place that builds a `tonic::Status` for callers.

use std::{collections::HashMap, error::Error, fmt, sync::Arc, time::Duration};

use tonic::Status;
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt};

use crate::v1::{self, ErrorReason, State};

/// `ErrorInfo.domain` of every refusal.
pub const DOMAIN: &str = "stepwell.v1";

/// Why a call was refused, with what the reason's contract in `error.proto` promises.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The stable reason.
    pub reason: ErrorReason,
    /// The same for people.
    pub message: String,
    /// The reason's metadata.
    pub metadata: HashMap<String, String>,
    /// Fields that are wrong: path and what is wanted.
    pub violations: Vec<(String, String)>,
    /// For a refused move: the subject and what its state would have to be.
    pub precondition: Option<(String, String)>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// What is behind it, for the service's own log.
    cause: Cause,
}

/// An error that does not travel, and says nothing about whether two refusals are the same.
#[derive(Clone, Debug, Default)]
struct Cause(Option<Arc<dyn Error + Send + Sync>>);

impl PartialEq for Cause {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Refusal {
    /// A refusal for this reason.
    pub fn new(reason: ErrorReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: HashMap::new(),
            violations: Vec::new(),
            precondition: None,
            retry_after: None,
            cause: Cause::default(),
        }
    }

    /// One wrong field of a request.
    pub fn field(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self::fields(vec![(path.into(), what.into())])
    }

    /// Wrong fields of a request; at least one.
    pub fn fields(violations: Vec<(String, String)>) -> Self {
        Self::new(ErrorReason::InvalidRequest, describe(&violations)).with_violations(violations)
    }

    /// A move that the state of its subject, such as `task 0193…`, does not allow.
    pub fn illegal(subject: &str, from: State, to: State, allowed: &[State]) -> Self {
        let words: Vec<&str> = allowed.iter().map(|state| state.word()).collect();
        let words = words.join(", ");
        let message =
            format!("{subject} is {}; it can become {} from {words}", from.word(), to.word());
        let mut refusal = Self::new(ErrorReason::IllegalTransition, message)
            .with("from_state", from.word())
            .with("to_state", to.word())
            .with("allowed_from", &words);
        refusal.precondition = Some((subject.to_owned(), format!("state is one of: {words}")));
        refusal
    }

    /// Something was to be done to a task, or to a step of it, that has ended.
    pub fn task_ended(task_id: &str, state: State) -> Self {
        let state = state.word();
        let message = format!("task {task_id} is {state}: neither it nor its steps go on");
        let mut refusal = Self::new(ErrorReason::TaskEnded, message)
            .with("task_id", task_id)
            .with("state", state);
        let wanted = "state is one of: pending, in_progress, error".to_owned();
        refusal.precondition = Some((format!("task {task_id}"), wanted));
        refusal
    }

    /// Adds wrong fields.
    #[must_use]
    pub fn with_violations(mut self, violations: Vec<(String, String)>) -> Self {
        self.violations = violations;
        self
    }

    /// Adds one piece of metadata.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Adds what is behind it: it is logged with the call that fails, and never travels.
    #[must_use]
    pub fn because_of(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.cause = Cause(Some(Arc::new(cause)));
        self
    }

    /// Reads a refusal back from a status; none if the status is not one of ours.
    pub fn from_status(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        let reason = ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))?;
        let violations = details.bad_request().map_or_else(Vec::new, |b| {
            b.field_violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect()
        });
        let precondition = details
            .precondition_failure()
            .and_then(|p| p.violations.first().map(|v| (v.subject.clone(), v.description.clone())));
        Some(Self {
            reason,
            message: status.message().to_owned(),
            metadata: info.metadata.clone(),
            violations,
            precondition,
            retry_after: details.retry_info().and_then(|r| r.retry_delay),
            cause: Cause::default(),
        })
    }
}

/// The violations as one sentence.
pub fn describe(violations: &[(String, String)]) -> String {
    let faults: Vec<_> = violations
        .iter()
        .map(
            |(field, what)| {
                if field.is_empty() { what.clone() } else { format!("{field}: {what}") }
            },
        )
        .collect();
    faults.join("; ")
}

/// The reason as `ErrorInfo.reason` has it.
pub fn word(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", word(self.reason), self.message)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let cause = self.cause.0.as_deref()?;
        Some(cause)
    }
}

/// Refusals travel in headers, of which most peers take 16 KiB: what is wrong is told as far as it
/// fits. Bytes of the message, and of all violations.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
const VIOLATIONS_BYTES_MAX: usize = 6 << 10;

impl Refusal {
    fn cut(mut self) -> Self {
        let end = self.message.floor_char_boundary(MESSAGE_BYTES_MAX.min(self.message.len()));
        self.message.truncate(end);
        let mut left = VIOLATIONS_BYTES_MAX;
        self.violations.retain(|(field, what)| {
            let fits = left.checked_sub(field.len() + what.len() + 8);
            left = fits.unwrap_or(0);
            fits.is_some()
        });
        self
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let refusal = refusal.cut();
        let mut details =
            ErrorDetails::with_error_info(word(refusal.reason), DOMAIN, refusal.metadata);
        if !refusal.violations.is_empty() {
            let violations = refusal.violations.into_iter();
            details.set_bad_request(
                violations
                    .map(|(field, what)| FieldViolation::new(field, what))
                    .collect::<Vec<_>>(),
            );
        }
        if let Some((subject, wanted)) = refusal.precondition {
            let violation = PreconditionViolation::new("STATE", subject, wanted);
            details.set_precondition_failure(vec![violation]);
        }
        if let Some(wait) = refusal.retry_after {
            details.set_retry_info(Some(wait));
        }
        let (code, message) = (refusal.reason.code(), refusal.message);
        let mut status = Status::with_error_details(code, message, details);
        if let Some(cause) = refusal.cause.0 {
            status.set_source(cause);
        }
        status
    }
}

impl From<Refusal> for v1::Refusal {
    fn from(refusal: Refusal) -> Self {
        let refusal = refusal.cut();
        Self { reason: refusal.reason.into(), message: refusal.message, metadata: refusal.metadata }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        let mut refusal = Refusal::field("context", "is not JSON")
            .with("task_id", "x")
            .retry_after(Duration::from_millis(1500));
        refusal.precondition = Some(("task x".into(), "pending".into()));
        let status = Status::from(refusal.clone());
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(Refusal::from_status(&status), Some(refusal));
    }

    #[test]
    fn a_refusal_fits_into_headers_however_much_is_wrong() {
        let fault = |n| (format!("requests[{n}].context"), "must not be as it is, ü".to_owned());
        let refusal = Refusal::fields((0..100_000).map(fault).collect());
        let status = Status::from(refusal);
        let headers = status.clone().into_http::<()>().into_parts().0.headers;
        let bytes: usize = headers.iter().map(|(k, v)| k.as_str().len() + v.len() + 32).sum();
        assert!(bytes < 15 << 10, "{bytes}");
        let told = Refusal::from_status(&status).unwrap();
        assert!(told.violations.len() > 50 && told.violations[0] == fault(0));
        let long = Status::from(Refusal::field("f".repeat(100_000), "é".repeat(100_000)));
        assert_eq!(Refusal::from_status(&long).unwrap().violations, []);
    }

    #[test]
    fn what_is_behind_a_refusal_stays_here() {
        let refusal = Refusal::new(ErrorReason::Internal, "see the log");
        let status = Status::from(refusal.clone().because_of(std::io::Error::other("secret")));
        assert_eq!(status.source().unwrap().to_string(), "secret");
        let sent = status.into_http::<()>();
        assert!(!format!("{:?}", sent.headers()).contains("secret"));
        let received = Status::from_header_map(sent.headers()).unwrap();
        assert_eq!(Refusal::from_status(&received), Some(refusal));
    }

    #[test]
    fn a_foreign_status_is_no_refusal() {
        assert_eq!(Refusal::from_status(&Status::not_found("no")), None);
    }
}
