//! What is wrong with a call before it is made, or with where it is sent: never tried again.

use std::fmt;

use stepwell_client::HandlerError;
use stepwell_outbound::NotAllowed;

use crate::secrets::Hider;

/// Why a call is not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// A key of the configuration says what cannot be.
    Config { key: String, what: String },
    /// A value that the configuration names is not there.
    Missing { path: String, what: &'static str },
    /// A value cannot stand where the configuration puts it.
    Value { key: String, what: String },
    /// The request is larger than any may be.
    RequestTooLarge { bytes_max: usize },
    /// The host is not allowed, or has no address that is.
    Host { host: String, what: &'static str },
    /// A redirect is not followed.
    Redirect { what: String },
}

impl Problem {
    pub(crate) fn config(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Config { key: key.into(), what: what.into() }
    }

    pub(crate) fn value(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Value { key: key.into(), what: what.into() }
    }

    /// Without what nobody may see: of all of it only a host may be a secret.
    pub(crate) fn hidden(self, hider: &Hider) -> Self {
        match self {
            Self::Host { host, what } => Self::Host { host: hider.text(host), what },
            other => other,
        }
    }

    /// Its error class, which retry policies and people find it by.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Config { .. } => "ConfigurationError",
            Self::Missing { .. } => "MissingValue",
            Self::Value { .. } => "InvalidValue",
            Self::RequestTooLarge { .. } => "RequestTooLarge",
            Self::Host { .. } => "HostNotAllowed",
            Self::Redirect { .. } => "RedirectRefused",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { key, what } if key.is_empty() => write!(f, "config {what}"),
            Self::Config { key, what } => write!(f, "config.{key}: {what}"),
            Self::Missing { path, what } => write!(f, "${{{path}}} {what}"),
            Self::Value { key, what } => write!(f, "{key}: {what}"),
            Self::RequestTooLarge { bytes_max } => {
                write!(f, "the request has more than {bytes_max} bytes")
            }
            Self::Host { host, what } => write!(f, "{host} {what}"),
            Self::Redirect { what } => write!(f, "the redirect is not followed: {what}"),
        }
    }
}

impl From<NotAllowed> for Problem {
    fn from(NotAllowed { host, what }: NotAllowed) -> Self {
        Self::Host { host, what }
    }
}

impl From<Problem> for HandlerError {
    fn from(problem: Problem) -> Self {
        Self::new(problem.class(), problem.to_string()).permanent()
    }
}
