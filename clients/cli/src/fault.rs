//! What went wrong, as a person reads it: what, why, and what to try; and as a script reads it: the
//! exit code.

use std::{
    fmt::{self, Write},
    process::ExitCode,
};

use stepwell_client::Error;
use stepwell_proto::{
    refusal::{Refusal, word},
    v1::ErrorReason,
};
use tonic::Code;

use crate::{output, span};

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) struct Fault {
    what: String,
    why: Vec<String>,
    hint: Option<String>,
    code: u8,
}

/// Exit codes; those of what a task came to are in `task.rs`. `docs/cli.md` has the table.
pub(crate) const UNEXPECTED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const CONFLICT: u8 = 4;
const UNAVAILABLE: u8 = 5;
/// Kept for services that ask who calls.
const NOT_ALLOWED: u8 = 6;

impl Fault {
    /// Something unexpected.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), why: Vec::new(), hint: None, code: UNEXPECTED }
    }

    /// The command was given something wrong.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { code: USAGE, ..Self::new(what) }
    }

    #[must_use]
    pub(crate) fn because(mut self, why: impl Into<String>) -> Self {
        self.why.push(why.into());
        self
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What and why on one line, and what to try.
    pub(crate) fn in_short(self) -> (String, Option<String>) {
        let parts = std::iter::once(self.what).chain(self.why);
        (parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": "), self.hint)
    }

    /// Prints it; answers the exit code.
    pub(crate) fn tell(self) -> ExitCode {
        if !self.what.is_empty() {
            output::note(self.to_string());
        }
        ExitCode::from(self.code)
    }

    fn refused(refusal: &Refusal) -> Self {
        let mut fault = Self {
            what: format!("{} ({})", refusal.message, word(refusal.reason)),
            code: code(refusal.reason),
            hint: hint(refusal),
            ..Self::new("")
        };
        if refusal.violations.len() > 1 {
            fault.what = format!("{} faults ({})", refusal.violations.len(), word(refusal.reason));
        }
        let faults = refusal.violations.iter().map(|(field, what)| format!("{field}: {what}"));
        // The only one may be all that the message says.
        fault.why.extend(faults.filter(|why| *why != refusal.message));
        if let Some((subject, wanted)) = &refusal.precondition {
            fault.why.push(format!("{subject}: {wanted}"));
        }
        if fault.why.is_empty() {
            fault.why.extend(told(refusal));
        }
        if let Some(wait) = refusal.retry_after {
            fault.why.push(format!("the service asks to wait {}", span::shown(wait)));
        }
        fault
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Lines of their own may be many, such as a log's; what moves a terminal stays out.
        let shown = |text: &str| output::plain_lines(text.trim_end()).replace('\n', "\n       ");
        let mut text = format!("error: {}", shown(&self.what));
        for why in self.why.iter().filter(|why| !why.is_empty()) {
            write!(text, "\n  why: {}", shown(why))?;
        }
        if let Some(hint) = &self.hint {
            write!(text, "\n  try: {}", shown(hint))?;
        }
        f.write_str(&text)
    }
}

/// The exit code of a refusal.
fn code(reason: ErrorReason) -> u8 {
    match reason.code() {
        Code::InvalidArgument => USAGE,
        Code::NotFound => NOT_FOUND,
        Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange => CONFLICT,
        Code::ResourceExhausted if reason != ErrorReason::Overloaded => CONFLICT,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => UNAVAILABLE,
        Code::Unauthenticated | Code::PermissionDenied => NOT_ALLOWED,
        _ => UNEXPECTED,
    }
}

/// What the refusal is about, as its metadata has it.
fn told(refusal: &Refusal) -> Option<String> {
    let mut about: Vec<String> = refusal
        .metadata
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    about.sort();
    (!about.is_empty()).then(|| about.join(", "))
}

/// What to try after a refusal: a command where there is one.
fn hint(refusal: &Refusal) -> Option<String> {
    let of = |key: &str, word: &str| {
        let value = refusal.metadata.get(key).filter(|value| !value.is_empty());
        value.cloned().unwrap_or_else(|| word.to_owned())
    };
    let (task, name) = (of("task_id", "TASK_ID"), of("name", "NAME"));
    Some(match refusal.reason {
        ErrorReason::Unspecified => return None,
        ErrorReason::InvalidRequest => "--help of this command says what is taken".into(),
        ErrorReason::InvalidDefinition => "mend the file where it says, and apply it again".into(),
        ErrorReason::ContextSchemaViolation => {
            format!("stepwell definition describe {} -o json", of("definition", "NAME"))
        }
        ErrorReason::DefinitionNotFound => {
            "stepwell definition list, which says what there is in which namespace".into()
        }
        ErrorReason::DefinitionChanged => "raise the version in the file".into(),
        ErrorReason::TaskNotFound => "stepwell task list".into(),
        ErrorReason::StepNotFound => {
            "stepwell task describe TASK_ID, which numbers its steps".into()
        }
        ErrorReason::RequestIdReused => "another id, or none".into(),
        ErrorReason::IllegalTransition => {
            "stepwell task describe TASK_ID, to see how it stands".into()
        }
        ErrorReason::TaskEnded => format!("stepwell task describe {task}"),
        ErrorReason::LeaseLost => "report nothing more: the step is run anew".into(),
        ErrorReason::CursorMalformed => "--from earliest, or a cursor as it was printed".into(),
        ErrorReason::CursorAhead | ErrorReason::CursorExpired => "--from earliest".into(),
        ErrorReason::EventUnknown => match refusal.metadata.get("suggestion") {
            Some(suggestion) => suggestion.clone(),
            None => "stepwell event types".into(),
        },
        ErrorReason::FilterInvalid => {
            "a filter such as 'state = error AND create_time > \"-1h\"'".into()
        }
        ErrorReason::DiagramTooLarge => format!("stepwell task graph {task}"),
        ErrorReason::WindowExpired => "a shorter --window".into(),
        ErrorReason::TaskNotRemovable => format!("stepwell task describe {task}"),
        ErrorReason::AnnotationLimit => format!("stepwell task annotate {task} NAME-"),
        ErrorReason::Overloaded => "the same again in a while".into(),
        ErrorReason::DatabaseUnavailable => "stepwell doctor, or the same again in a while".into(),
        ErrorReason::ShuttingDown => "the same again: another copy of the service takes it".into(),
        ErrorReason::Internal => "the service's log says more".into(),
        ErrorReason::ParentCancelled => {
            "stepwell step resolve STEP_ID, or stepwell task cancel TASK_ID".into()
        }
        ErrorReason::StepNotSkippable => "stepwell step resolve STEP_ID --result JSON".into(),
        ErrorReason::ExecutorNotFound => "stepwell executor list".into(),
        ErrorReason::PageTokenInvalid => "the same without --page-token".into(),
        ErrorReason::BulkOperationNotFound => "stepwell task bulk list".into(),
        ErrorReason::BulkOperationDone => {
            format!("stepwell task bulk describe {}", of("operation_id", "OPERATION_ID"))
        }
        ErrorReason::EventTypeChanged => "register it under a higher --version".into(),
        ErrorReason::EventTypeUnknown => match refusal.metadata.get("suggestion") {
            Some(suggestion) => suggestion.clone(),
            None => "stepwell event types --category custom".into(),
        },
        ErrorReason::EventInvalid => format!("stepwell event type {name}"),
        ErrorReason::EventTypeLimit => "a name or version that is there".into(),
        ErrorReason::SubscriptionNotFound => "stepwell subscription list".into(),
        ErrorReason::SubscriptionExists | ErrorReason::SubscriptionHasDelivery => {
            format!("stepwell subscription describe {name}")
        }
        ErrorReason::SubscriptionEpochOld => "read on: the events come again".into(),
        ErrorReason::SubscriptionNotPaused => format!("stepwell subscription pause {name}"),
        ErrorReason::SubscriptionNotDrained => format!("stepwell subscription replay {name} --all"),
        ErrorReason::SubscriptionReaderReplaced => "an id of its own for each reader".into(),
    })
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        if let Error::Refused(refusal) = &error {
            return Self::refused(refusal);
        }
        let mut why = Vec::new();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            why.push(inner.to_string());
            cause = inner.source();
        }
        why.dedup();
        if matches!(error, Error::Status(_)) {
            // A status repeats what is behind it; the last of it is what happened.
            why = why.pop().filter(|_| !why.is_empty()).into_iter().collect();
        }
        let (code, hint) = match &error {
            Error::NoAnswer(_) => (UNAVAILABLE, Some("stepwell doctor".to_owned())),
            Error::Status(status) => called(status.code()),
            Error::Address { .. } => {
                (USAGE, Some("an address looks like http://127.0.0.1:7101".to_owned()))
            }
            Error::EventUnknown { suggestion, .. } => (USAGE, suggestion.clone()),
            Error::Invalid(_) | Error::Json(_) => (USAGE, None),
            _ => (UNEXPECTED, None),
        };
        Self { why, hint, code, ..Self::new(error.to_string()) }
    }
}

/// A call that failed with this code, and no reason of ours.
fn called(code: Code) -> (u8, Option<String>) {
    let (code, hint) = match code {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted => (
            UNAVAILABLE,
            "is the service running? `stepwell dev` starts one, `stepwell doctor` looks",
        ),
        Code::Unauthenticated | Code::PermissionDenied => {
            (NOT_ALLOWED, "something before the service wants to know who calls")
        }
        Code::Unimplemented => {
            (UNEXPECTED, "stepwell doctor: the service is older than this command, or another one")
        }
        _ => (UNEXPECTED, "stepwell doctor: is it a Stepwell service that answers there?"),
    };
    (code, Some(hint.to_owned()))
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Whoever read us has seen enough.
            return Self { code: 0, ..Self::new("") };
        }
        Self::new(error.to_string())
    }
}

impl From<stepwell_suite::Error> for Fault {
    fn from(error: stepwell_suite::Error) -> Self {
        let text = error.to_string();
        match text.split_once('\n') {
            Some((what, log)) => Self::new(what).because(log),
            None => Self::new(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_on_lines_of_its_own_and_moves_no_terminal() {
        let fault = Fault::usage("bad \u{1b}[2J").because("one\ntwo").because("").hint("less");
        assert_eq!(fault.to_string(), "error: bad  [2J\n  why: one\n       two\n  try: less");
    }

    #[test]
    fn the_only_fault_of_a_refusal_is_told_once_and_several_are_all_told() {
        let mut refusal = Refusal::field("steps", "is missing");
        let told = Fault::refused(&refusal).to_string();
        assert_eq!(told.matches("steps: is missing").count(), 1, "{told}");
        refusal.violations.push(("name".into(), "is missing".into()));
        let told = Fault::refused(&refusal).to_string();
        assert!(told.contains("2 faults"), "{told}");
        assert!(told.contains("why: name: is missing"), "{told}");
    }

    #[test]
    fn every_refusal_has_something_to_try_and_an_exit_code() {
        let reasons = (1..100).filter_map(|number| ErrorReason::try_from(number).ok());
        let mut told = 0;
        for reason in reasons {
            let fault = Fault::from(Error::Refused(Box::new(Refusal::new(reason, "no"))));
            assert!(fault.hint.is_some(), "{reason:?}");
            let internal = reason == ErrorReason::Internal;
            assert_eq!(fault.code == UNEXPECTED, internal, "{reason:?}");
            told += 1;
        }
        assert!(told > 30, "{told}");
    }
}
