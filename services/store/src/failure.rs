//! How a failed attempt is stored: JSON text, in `step.last_error` and in the `step.failed` event.

use serde::{Deserialize, Serialize};
use stepwell_proto::v1::{BackoffType, Failure};

/// One failed attempt with what was decided about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredFailure {
    /// Class of the error.
    pub error_class: String,
    /// The same for people.
    pub message: String,
    /// The handler's own code.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error_code: String,
    /// Where it happened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
    /// What the handler knew: a JSON object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub context: String,
    /// False: the handler said that trying again is of no use.
    pub retryable: bool,
    /// The wait the handler asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// True: the step is not tried again by itself.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Attempts the step may make in all.
    pub max_attempts: i32,
    /// The wait before the next attempt; none when final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_ms: Option<u64>,
    /// The `traceparent` of the attempt, for the next one to link to; none: it is not traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl StoredFailure {
    /// As it is stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// Reads what was stored.
    pub fn from_text(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| Self {
            message: format!("the stored failure cannot be read: {error}"),
            ..Self::default()
        })
    }

    /// What the handler said.
    pub fn to_proto(&self) -> Failure {
        Failure {
            error_class: self.error_class.clone(),
            message: self.message.clone(),
            error_code: self.error_code.clone(),
            backtrace: self.backtrace.clone(),
            context: self.context.clone(),
            retryable: self.retryable,
            retry_after: self.retry_after_ms.map(duration),
        }
    }

    /// The wait before the next attempt; none when final.
    pub fn backoff(&self) -> Option<prost_types::Duration> {
        self.backoff_ms.map(duration)
    }

    /// Where that wait comes from.
    pub fn backoff_type(&self) -> BackoffType {
        match (self.backoff_ms, self.retry_after_ms) {
            (None, _) => BackoffType::Unspecified,
            (Some(_), Some(_)) => BackoffType::ServerRequested,
            (Some(_), None) => BackoffType::Exponential,
        }
    }
}

fn duration(ms: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000).expect("below a thousand") * 1_000_000,
    }
}
