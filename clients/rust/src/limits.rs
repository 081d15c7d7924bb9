//! How long and how often a client tries.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds of a client's calls and streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How often a unary call is tried in all. Default 8; 0 counts as 1.
    pub attempts: u32,
    /// How long one attempt may take; sent along as its deadline. Default 10 s.
    pub attempt_timeout: Duration,
    /// How long a unary call may take with all its attempts and the waits between them; also how
    /// long [`crate::Client::subscribe`] tries to open a stream. Default 30 s.
    pub call_timeout: Duration,
    /// An event stream that says nothing for so long is taken for dead. The service speaks at
    /// least every 15 s. Default 45 s.
    pub stream_silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts: 8,
            attempt_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            stream_silence: Duration::from_secs(45),
        }
    }
}

/// The moment after this long. A wait without end ends in a year.
pub(crate) fn after(wait: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + wait.min(YEAR)
}
