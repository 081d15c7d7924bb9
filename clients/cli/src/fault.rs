//! What went wrong, as a person reads it: what, why, and what to try; and as a script reads it: the
//! exit code.

use std::{fmt::Write, process::ExitCode};

use stepwell_client::Error;
use stepwell_proto::{
    refusal::{Refusal, word},
    v1::ErrorReason,
};
use tonic::Code;

/// A command that did not succeed.
pub(crate) struct Fault {
    what: String,
    why: Vec<String>,
    hint: Option<String>,
    code: u8,
}

/// Exit codes.
pub(crate) const UNEXPECTED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const CONFLICT: u8 = 4;
const UNAVAILABLE: u8 = 5;

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

    /// Prints it; answers the exit code.
    pub(crate) fn tell(self) -> ExitCode {
        if self.what.is_empty() {
            return ExitCode::from(self.code);
        }
        let mut text = format!("error: {}", self.what);
        for why in &self.why {
            let _ = write!(text, "\n  why: {why}");
        }
        if let Some(hint) = &self.hint {
            let _ = write!(text, "\n  try: {hint}");
        }
        eprintln!("{text}");
        ExitCode::from(self.code)
    }

    fn refused(refusal: &Refusal) -> Self {
        let mut fault = Self {
            what: format!("{} ({})", refusal.message, word(refusal.reason)),
            code: match refusal.reason.code() {
                Code::InvalidArgument => USAGE,
                Code::NotFound => NOT_FOUND,
                Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange => CONFLICT,
                Code::Unavailable | Code::ResourceExhausted => UNAVAILABLE,
                _ => UNEXPECTED,
            },
            ..Self::new("")
        };
        if refusal.violations.len() > 1 {
            fault.what = format!("{} faults ({})", refusal.violations.len(), word(refusal.reason));
        }
        if !refusal.violations.is_empty() {
            let faults = refusal.violations.iter();
            fault.why.extend(faults.map(|(field, what)| format!("{field}: {what}")));
        }
        fault.hint = match refusal.reason {
            ErrorReason::DefinitionNotFound => Some("stepwell definition apply FILE".into()),
            ErrorReason::SubscriptionNotPaused => Some("stepwell subscription pause NAME".into()),
            ErrorReason::DefinitionChanged => Some("raise the version in the file".into()),
            ErrorReason::EventUnknown => refusal.metadata.get("suggestion").cloned(),
            ErrorReason::CursorAhead | ErrorReason::CursorExpired => Some("--from earliest".into()),
            _ => None,
        };
        fault
    }
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
        let (code, hint) = match &error {
            Error::Status(_) | Error::NoAnswer(_) => {
                (UNAVAILABLE, Some("is the service running? `stepwell dev` starts one".to_owned()))
            }
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
