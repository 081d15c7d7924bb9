//! What most handlers want of an event, whatever its type is. Nothing here fails: what an event does not say
//! has a plain default.

use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use stepwell_proto::v1::{Event, Failure, event::Detail};

/// What stands for a name or an id that an event does not have.
const UNKNOWN: &str = "unknown";

/// Reads events without a match on their types.
pub trait EventFacts {
    /// What it is about, and when it happened.
    fn core(&self) -> CoreFacts<'_>;
    /// How long it took, from when to when, and how many steps there were.
    fn timing(&self) -> TimingFacts;
    /// What a step returned, as this type. None: it returned nothing, something else, or more than travels in
    /// events (8 KiB).
    fn result<T: DeserializeOwned>(&self) -> Option<T>;
    /// What the task was created with, as this type; only its first event says so. None: as for
    /// [`Self::result`].
    fn context<T: DeserializeOwned>(&self) -> Option<T>;
    /// How long what ended took: an attempt from its lease, a task from its first lease. None: nothing ended.
    fn ran_for(&self) -> Option<Duration>;
    /// How many steps the task has, if the event says so.
    fn total_steps(&self) -> Option<i32>;
    /// How long a failed step waits for its next attempt. None: it does not.
    fn retry_delay(&self) -> Option<Duration>;
    /// What went wrong; none: nothing did.
    fn failure(&self) -> Option<FailureFacts<'_>>;
    /// Labels for a metric, few enough values each: `namespace`, `definition`, `step` and, of failures,
    /// `category`, `retryable` and `final`. What the event does not have is left out.
    fn metric_labels(&self) -> Vec<(&'static str, String)>;
}

/// What every event is about. A name or an id that it does not have is `unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreFacts<'e> {
    /// The task's id.
    pub task_id: &'e str,
    /// The namespace of its definition.
    pub namespace: &'e str,
    /// The name of its definition.
    pub definition: &'e str,
    /// The version of its definition.
    pub version: &'e str,
    /// The step's id. None: it is about the task as a whole.
    pub step_id: Option<&'e str>,
    /// The step's name; none as for the id.
    pub step: Option<&'e str>,
    /// Which attempt of the step, from 1; 0: none was made, or it is about the task.
    pub attempt: i32,
    /// What the task belongs to in its creator's eyes.
    pub correlation_id: &'e str,
    /// When it happened, by the database's clock; 1970 if it does not say so.
    pub at: SystemTime,
}

/// When and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimingFacts {
    /// How long what ended took; 0: nothing ended, or it never ran.
    pub ran_for: Duration,
    /// When that began. None: nothing ended.
    pub started_at: Option<SystemTime>,
    /// When it ended. None: nothing did.
    pub ended_at: Option<SystemTime>,
    /// Steps of the task that ended; 0: none did.
    pub total_steps: i32,
    /// Of these, steps in error; at most 100 are counted.
    pub failed_steps: i32,
}

/// What an event says of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureFacts<'e> {
    /// Its class; `unknown` if there is none.
    pub class: &'e str,
    /// The same for people; may be empty.
    pub message: &'e str,
    /// What kind of failure it is.
    pub category: ErrorCategory,
    /// Which attempt failed, from 1; 0: none was made, or it is the task that failed.
    pub attempt: i32,
    /// It may be tried again.
    pub retryable: bool,
    /// It is not tried again by itself.
    pub is_final: bool,
}

/// A kind of failure, told by words in its class and its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCategory {
    /// Something took too long.
    Timeout,
    /// Somebody was asked too often.
    RateLimit,
    /// Somebody was not let in.
    Auth,
    /// Something is not there.
    NotFound,
    /// Somebody could not be reached.
    Network,
    /// What was asked was wrong.
    ClientError,
    /// Whoever was asked is in trouble.
    ServerError,
    /// The handler's own program is.
    Runtime,
    /// It has a class that says none of these.
    Other,
    /// Nothing is said of it.
    Unknown,
}

/// The first category one of whose words is in the class, else in the message.
const WORDS: [(ErrorCategory, &[&str]); 8] = [
    (ErrorCategory::Timeout, &["timeout", "timedout", "timed out", "deadline"]),
    (
        ErrorCategory::RateLimit,
        &["ratelimit", "rate limit", "too many requests", "toomany", "throttl", "429"],
    ),
    (
        ErrorCategory::Auth,
        &["unauthor", "authent", "authoriz", "forbidden", "permission", "credential", "401", "403"],
    ),
    (ErrorCategory::NotFound, &["notfound", "not found", "nosuch", "no such", "404"]),
    (
        ErrorCategory::Network,
        &["network", "connect", "socket", "dns", "unreachable", "broken pipe", "leaseexpired"],
    ),
    (
        ErrorCategory::ServerError,
        &[
            "servererror",
            "server error",
            "internal",
            "unavailable",
            "bad gateway",
            "500",
            "502",
            "503",
            "504",
        ],
    ),
    (
        ErrorCategory::ClientError,
        &[
            "badrequest",
            "bad request",
            "invalid",
            "validation",
            "argument",
            "conflict",
            "400",
            "409",
            "422",
        ],
    ),
    (
        ErrorCategory::Runtime,
        &["panic", "runtime", "typeerror", "nullpointer", "overflow", "assert"],
    ),
];

impl ErrorCategory {
    /// Of an error.
    pub fn of(class: &str, message: &str) -> Self {
        if class.is_empty() && message.is_empty() {
            return Self::Unknown;
        }
        let told = |text: &str| {
            let text = text.to_lowercase();
            let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
            WORDS.iter().find(|(_, words)| says(words)).map(|(category, _)| *category)
        };
        told(class).or_else(|| told(message)).unwrap_or(Self::Other)
    }

    /// In small letters, with `_` between words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::RateLimit => "rate_limit",
            Self::Auth => "auth",
            Self::NotFound => "not_found",
            Self::Network => "network",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Runtime => "runtime",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }
}

impl EventFacts for Event {
    fn core(&self) -> CoreFacts<'_> {
        let known = |text: &'_ str| !text.is_empty();
        let or_unknown = |text| if known(text) { text } else { UNKNOWN };
        CoreFacts {
            task_id: or_unknown(&self.task_id),
            namespace: or_unknown(&self.namespace),
            definition: or_unknown(&self.definition_name),
            version: or_unknown(&self.definition_version),
            step_id: Some(self.step_id.as_str()).filter(|id| known(id)),
            step: Some(self.step_name.as_str()).filter(|name| known(name)),
            attempt: self.attempt,
            correlation_id: or_unknown(&self.correlation_id),
            at: at(self).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    fn timing(&self) -> TimingFacts {
        let failed_steps = match &self.detail {
            Some(Detail::TaskFailed(it)) => it.failed_steps.len().try_into().unwrap_or(i32::MAX),
            _ => 0,
        };
        let ran_for = self.ran_for();
        let ended_at = ran_for.and_then(|_| at(self));
        TimingFacts {
            ran_for: ran_for.unwrap_or_default(),
            started_at: ended_at.and_then(|end| end.checked_sub(ran_for?)),
            ended_at,
            total_steps: self.total_steps().unwrap_or_default(),
            failed_steps,
        }
    }

    fn result<T: DeserializeOwned>(&self) -> Option<T> {
        let result = match self.detail.as_ref()? {
            Detail::StepCompleted(it) => &it.result,
            Detail::StepResolvedManually(it) => &it.result,
            _ => return None,
        };
        serde_json::from_str(result).ok()
    }

    fn context<T: DeserializeOwned>(&self) -> Option<T> {
        let context = match self.detail.as_ref()? {
            Detail::TaskInitializeRequested(it) => &it.context,
            Detail::ObservabilityTaskEnqueue(it) => &it.task_context,
            _ => return None,
        };
        serde_json::from_str(context).ok()
    }

    fn ran_for(&self) -> Option<Duration> {
        let ran_for = match self.detail.as_ref()? {
            Detail::StepCompleted(it) => it.ran_for,
            Detail::StepFailed(it) => it.ran_for,
            Detail::TaskCompleted(it) => it.ran_for,
            Detail::TaskFailed(it) => it.ran_for,
            _ => None,
        };
        Duration::try_from(ran_for?).ok()
    }

    fn total_steps(&self) -> Option<i32> {
        match self.detail.as_ref()? {
            Detail::TaskCompleted(it) => Some(it.total_steps),
            Detail::TaskFailed(it) => Some(it.total_steps),
            _ => None,
        }
    }

    fn retry_delay(&self) -> Option<Duration> {
        match self.detail.as_ref()? {
            Detail::StepFailed(it) => Duration::try_from(it.backoff?).ok(),
            _ => None,
        }
    }

    fn failure(&self) -> Option<FailureFacts<'_>> {
        match self.detail.as_ref()? {
            Detail::StepFailed(it) => {
                static NOTHING: Failure = Failure {
                    error_class: String::new(),
                    message: String::new(),
                    error_code: String::new(),
                    backtrace: Vec::new(),
                    retryable: false,
                    retry_after: None,
                    context: String::new(),
                };
                let error = it.error.as_ref().unwrap_or(&NOTHING);
                let (class, message) = (error.error_class.as_str(), error.message.as_str());
                Some(FailureFacts {
                    class: if class.is_empty() { UNKNOWN } else { class },
                    message,
                    category: ErrorCategory::of(class, message),
                    attempt: self.attempt,
                    retryable: error.retryable,
                    is_final: it.r#final,
                })
            }
            Detail::TaskFailed(it) => Some(FailureFacts {
                class: UNKNOWN,
                message: &it.error_message,
                category: ErrorCategory::Unknown,
                attempt: 0,
                retryable: false,
                is_final: true,
            }),
            _ => None,
        }
    }

    fn metric_labels(&self) -> Vec<(&'static str, String)> {
        let about = [
            ("namespace", &self.namespace),
            ("definition", &self.definition_name),
            ("step", &self.step_name),
        ];
        let about = about.into_iter().filter(|(_, value)| !value.is_empty());
        let mut labels: Vec<_> = about.map(|(label, value)| (label, value.clone())).collect();
        if let Some(failure) = self.failure() {
            labels.push(("category", failure.category.as_str().to_owned()));
            labels.push(("retryable", failure.retryable.to_string()));
            labels.push(("final", failure.is_final.to_string()));
        }
        labels
    }
}

/// When it happened.
fn at(event: &Event) -> Option<SystemTime> {
    SystemTime::try_from(event.at?).ok()
}

#[cfg(test)]
mod tests {
    use stepwell_proto::{
        catalog::{EVENTS, example},
        v1::{StepFailed, TaskFailed},
    };

    use super::*;

    fn failed(class: &str, message: &str) -> Event {
        let error = Failure {
            error_class: class.into(),
            message: message.into(),
            retryable: true,
            ..Failure::default()
        };
        let backoff = Duration::from_millis(1500).try_into().ok();
        let detail = StepFailed { error: Some(error), backoff, ..StepFailed::default() };
        Event {
            definition_name: "d".into(),
            step_name: "a".into(),
            attempt: 2,
            detail: Some(Detail::StepFailed(detail)),
            ..Event::default()
        }
    }

    #[test]
    fn a_failure_is_told_whole_and_labelled() {
        let event = failed("GatewayTimeout", "it took 30 s");
        let failure = event.failure().unwrap();
        assert_eq!((failure.class, failure.attempt), ("GatewayTimeout", 2));
        assert_eq!(event.retry_delay(), Some(Duration::from_millis(1500)));
        let labels: Vec<String> =
            event.metric_labels().iter().map(|(label, value)| format!("{label}={value}")).collect();
        let expected =
            ["definition=d", "step=a", "category=timeout", "retryable=true", "final=false"];
        assert_eq!(labels, expected);
    }

    #[test]
    fn what_an_event_does_not_say_has_a_default_and_never_fails() {
        for event in EVENTS {
            let event = Event { name: event.name.into(), ..Event::default() };
            assert_eq!((event.ran_for(), event.failure(), event.total_steps()), (None, None, None));
            assert!(event.metric_labels().is_empty());
        }
        let bare =
            Event { detail: Some(Detail::StepFailed(StepFailed::default())), ..Event::default() };
        let failure = bare.failure().unwrap();
        assert_eq!((failure.class, failure.category), ("unknown", ErrorCategory::Unknown));
        assert_eq!(bare.ran_for(), None);
        let task =
            Event { detail: Some(Detail::TaskFailed(TaskFailed::default())), ..Event::default() };
        assert!(task.failure().unwrap().is_final);
    }

    #[test]
    fn an_empty_event_has_unknown_names_and_no_times() {
        let event = Event::default();
        let core = event.core();
        assert_eq!((core.task_id, core.namespace, core.definition), (UNKNOWN, UNKNOWN, UNKNOWN));
        assert_eq!((core.step_id, core.step, core.attempt), (None, None, 0));
        assert_eq!((core.correlation_id, core.at), (UNKNOWN, SystemTime::UNIX_EPOCH));
        assert_eq!(event.timing(), TimingFacts::default());
    }

    #[test]
    fn every_type_of_the_catalog_can_be_asked_everything_and_examples_say_it() {
        let second = Duration::from_millis(1250);
        for event in EVENTS {
            let at = Some(prost_types::Timestamp { seconds: 100, nanos: 0 });
            let detail = example(event.name);
            let event = Event { name: event.name.into(), at, detail, ..Event::default() };
            let timing = event.timing();
            assert_eq!(timing.ended_at.is_some(), event.ran_for().is_some(), "{}", event.name);
            let _ = (event.failure(), event.retry_delay(), event.metric_labels());
            let said: Option<serde_json::Value> = event.result();
            match event.name.as_str() {
                "step.completed" => assert!(said.unwrap()["total"].is_number()),
                "task.failed" => {
                    assert_eq!((timing.ran_for, timing.failed_steps), (second, 1));
                    assert_eq!(timing.ended_at.unwrap(), timing.started_at.unwrap() + second);
                }
                "task.initialize_requested" | "observability.task.enqueue" => {
                    let context: serde_json::Value = event.context().unwrap();
                    assert_eq!(context["order_id"], 17);
                }
                _ => assert_eq!(event.context::<serde_json::Value>(), None, "{}", event.name),
            }
            assert_eq!(event.result::<Vec<u8>>(), None, "it is something else");
        }
    }

    #[test]
    fn the_class_decides_the_category_before_the_message_does() {
        for (class, message, category) in [
            ("Timeout", "", ErrorCategory::Timeout),
            ("DeadlineExceeded", "", ErrorCategory::Timeout),
            ("HttpStatus", "answered 429", ErrorCategory::RateLimit),
            ("Unauthorized", "connection closed", ErrorCategory::Auth),
            ("ConnectionRefused", "", ErrorCategory::Network),
            ("LeaseExpired", "", ErrorCategory::Network),
            ("OrderNotFound", "", ErrorCategory::NotFound),
            ("Http503", "", ErrorCategory::ServerError),
            ("ValidationFailed", "", ErrorCategory::ClientError),
            ("Panic", "index out of range", ErrorCategory::Runtime),
            ("CardDeclined", "the bank said no", ErrorCategory::Other),
            ("", "", ErrorCategory::Unknown),
        ] {
            assert_eq!(ErrorCategory::of(class, message), category, "{class} {message}");
        }
    }
}
