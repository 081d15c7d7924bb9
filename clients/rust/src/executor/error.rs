//! What a handler fails with, and how that travels.

use std::{error::Error, fmt, panic::Location, time::Duration};

use serde::Serialize;
use stepwell_proto::v1::Failure;

const CLASS_BYTES_MAX: usize = 256;
const CODE_BYTES_MAX: usize = 256;
const MESSAGE_BYTES_MAX: usize = 4096;
const CONTEXT_BYTES_MAX: usize = 8 << 10;
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a handler failed.
///
/// Every error converts into it with `?`. Unless it says otherwise, the step is tried again as its
/// retry policy says; only a `serde_json::Error` about the text is permanent, since the same text
/// fails in the same way. The class is a name that policies can match (`except: [CardDeclined]`); for
/// a converted error it is the name of its type: `CardDeclined` for `shop::CardDeclined`, and
/// `serde_json::Error`, with the crate, for types that are merely called `Error`.
///
/// ```
/// use std::time::Duration;
/// use stepwell_client::HandlerError;
///
/// // Never tried again:
/// HandlerError::new("CardDeclined", "the bank said no").code("CARD_DECLINED").permanent();
/// // Tried again in two seconds:
/// HandlerError::new("Busy", "the gateway has no room").retry_after(Duration::from_secs(2));
/// ```
#[derive(Debug)]
pub struct HandlerError {
    class: String,
    message: String,
    code: String,
    at: &'static Location<'static>,
    permanent: bool,
    retry_after: Option<Duration>,
    context: String,
}

impl HandlerError {
    /// An error of this class; the class is at most 256 bytes, the message 4 KiB, the rest is cut.
    #[track_caller]
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            class: class.into(),
            message: message.into(),
            code: String::new(),
            at: Location::caller(),
            permanent: false,
            retry_after: None,
            context: String::new(),
        }
    }

    /// The handler's own code for it, such as `CARD_DECLINED`. At most 256 bytes, the rest is cut.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// The step is not tried again, whatever its policy says.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// The step is tried again after this long instead of its policy's wait; at most 24 h. An
    /// attempt must be left.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait.min(RETRY_AFTER_MAX));
        self
    }

    /// What the handler knew when it failed: anything that is a JSON object, at most 8 KiB. It stands
    /// in the event and with the step; what is no such object is left out.
    #[must_use]
    pub fn context(mut self, context: &impl Serialize) -> Self {
        self.context = serde_json::to_string(context).unwrap_or_default();
        if self.context.len() > CONTEXT_BYTES_MAX {
            self.context = String::new();
        }
        self
    }

    /// Its class, for lines of the log: its message may quote anything.
    pub(crate) fn class(&self) -> &str {
        &self.class
    }

    /// Where it was made.
    pub(crate) fn place(&self) -> &'static Location<'static> {
        self.at
    }

    /// After how long it should be tried again, if it says so.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// As it travels.
    pub(super) fn into_failure(self) -> Failure {
        let class = cut(self.class, CLASS_BYTES_MAX);
        Failure {
            error_class: if class.is_empty() { "Error".to_owned() } else { class },
            message: cut(self.message, MESSAGE_BYTES_MAX),
            error_code: cut(self.code, CODE_BYTES_MAX),
            backtrace: vec![cut(format!("{}:{}", self.at.file(), self.at.line()), 256)],
            retryable: !self.permanent,
            retry_after: self.retry_after.map(|wait| wait.try_into().expect("at most a day fits")),
            context: self.context,
        }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}

// Like any type with this conversion, it cannot be an `Error` itself.
impl<E: Error + 'static> From<E> for HandlerError {
    #[track_caller]
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            // Many errors repeat their cause in their own text.
            if !message.ends_with(&text) {
                message = message + ": " + &text;
            }
            cause = inner.source();
        }
        let json = (&error as &dyn Error).downcast_ref::<serde_json::Error>();
        let permanent = json.is_some_and(|fault| !fault.is_io());
        Self { permanent, ..Self::new(class_of(std::any::type_name::<E>()), message) }
    }
}

/// The last part of a type's path; with the crate's name if that is just `Error`.
fn class_of(type_name: &str) -> String {
    let path = type_name.split('<').next().unwrap_or_default();
    let krate = path.split("::").next().unwrap_or_default();
    match path.rsplit("::").next() {
        Some("Error") if krate != "Error" => format!("{krate}::Error"),
        last => last.unwrap_or_default().to_owned(),
    }
}

/// What is left of a text that must be storable and not longer than this.
fn cut(text: String, bytes_max: usize) -> String {
    let mut text = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    text.truncate(text.floor_char_boundary(bytes_max.min(text.len())));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn any_error_becomes_a_failure_with_its_class_its_causes_and_its_place() {
        let fail = || -> Result<(), HandlerError> {
            Err(Outer("x".parse::<i32>().unwrap_err()))?;
            Ok(())
        };
        let line = line!() - 3;
        let failure = fail().unwrap_err().into_failure();
        assert_eq!(failure.error_class, "Outer");
        assert_eq!(failure.message, "outer: invalid digit found in string");
        assert!(failure.retryable && failure.retry_after.is_none());
        assert_eq!(failure.backtrace, [format!("{}:{line}", file!())]);
    }

    #[test]
    fn text_that_is_not_the_json_that_was_wanted_is_permanent() {
        let fail = |error: serde_json::Error| HandlerError::from(error).into_failure();
        let failure = fail(serde_json::from_str::<u8>("[]").unwrap_err());
        assert_eq!((failure.error_class.as_str(), failure.retryable), ("serde_json::Error", false));
        assert!(fail(serde_json::Error::io(std::io::Error::other("cut"))).retryable);
    }

    #[test]
    fn a_class_that_is_just_error_names_its_crate() {
        for (name, class) in [
            ("shop::cards::CardDeclined", "CardDeclined"),
            ("serde_json::error::Error", "serde_json::Error"),
            ("shop::Broken<alloc::string::String>", "Broken"),
            ("Error", "Error"),
        ] {
            assert_eq!(class_of(name), class);
        }
    }

    #[test]
    fn a_permanent_error_is_not_retryable_and_long_texts_are_cut() {
        let failure = HandlerError::new("ä".repeat(200), "x\0".repeat(9000))
            .code("NO")
            .retry_after(Duration::from_secs(1_000_000))
            .permanent()
            .into_failure();
        assert!(!failure.retryable);
        assert_eq!(failure.error_code, "NO");
        assert_eq!((failure.error_class.len(), failure.message.len()), (256, 4096));
        assert!(!failure.message.contains('\0'));
        assert_eq!(failure.retry_after.unwrap().seconds, 86_400);
    }
}
