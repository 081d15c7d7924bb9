//! Waits between attempts: exponential, with full jitter, so that many clients that lost one
//! service do not come back in one moment.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);

/// The waits of one series of attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// For unary calls: up to 0.1 s at first, up to 2 s in the end.
    pub(crate) fn of_calls() -> Self {
        Self { max: Duration::from_secs(2), failures: 0 }
    }

    /// For streams: up to 0.1 s at first, up to 5 s in the end.
    pub(crate) fn of_streams() -> Self {
        Self { max: Duration::from_secs(5), failures: 0 }
    }

    /// How long to wait after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::random_range(0.0..=1.0))
    }

    /// The next failure is the first of a new series.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    fn bound(&self) -> Duration {
        FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_a_success() {
        let mut backoff = Backoff::of_calls();
        let mut bounds = Vec::new();
        for _ in 0..40 {
            bounds.push(backoff.bound().as_millis());
            assert!(backoff.next().as_millis() <= bounds[bounds.len() - 1]);
        }
        assert_eq!(bounds[..6], [100, 200, 400, 800, 1600, 2000]);
        assert_eq!(bounds[39], 2000);
        backoff.reset();
        assert_eq!(backoff.bound(), FIRST);
    }
}
