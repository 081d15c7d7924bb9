//! What becomes of a failed attempt: tried again, and after how long, or final. Pure.

use std::time::Duration;

use stepwell_proto::{
    json,
    v1::{Failure, RetryPolicy},
};
use stepwell_store::{Ending, StoredFailure};

/// No wait is longer, whoever asks for it.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
const CLASS_BYTES_MAX: usize = 256;
const MESSAGE_BYTES_MAX: usize = 4096;
const BACKTRACE_LINES_MAX: usize = 10;
const CONTEXT_BYTES_MAX: usize = 8 << 10;

/// The attempt a failure ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// Which attempt it was, from 1; hand-backs count here.
    pub(crate) attempt: i32,
    /// Attempts the step may make in all; grows with hand-backs.
    pub(crate) max_attempts: i32,
}

/// Decides on a failure. `spread` is a random number in -1..=1: where in the jitter's range the
/// wait lies.
pub(crate) fn on_failure(
    policy: &RetryPolicy,
    attempt: Attempt,
    failure: &Failure,
    spread: f64,
) -> (Ending, StoredFailure) {
    let retry_after = failure.retry_after.as_ref().map(|d| to_std(d).min(WAIT_MAX));
    let again = failure.retryable
        && attempt.attempt < attempt.max_attempts
        && !policy.except.contains(&failure.error_class);
    let wait = again.then(|| retry_after.unwrap_or_else(|| back_off(policy, attempt, spread)));
    let stored = StoredFailure {
        error_class: cut(&failure.error_class, CLASS_BYTES_MAX),
        message: cut(&failure.message, MESSAGE_BYTES_MAX),
        error_code: cut(&failure.error_code, CLASS_BYTES_MAX),
        backtrace: failure
            .backtrace
            .iter()
            .take(BACKTRACE_LINES_MAX)
            .map(|line| cut(line, CLASS_BYTES_MAX))
            .collect(),
        context: context(&failure.context),
        retryable: failure.retryable,
        retry_after_ms: retry_after.map(millis),
        is_final: wait.is_none(),
        max_attempts: attempt.max_attempts,
        backoff_ms: wait.map(millis),
        traceparent: None,
    };
    let wait_ms = wait.map(|wait| i64::try_from(millis(wait)).expect("at most a day"));
    (Ending::Fail { wait_ms }, stored)
}

/// What the handler knew, if it is what it should be: a failure counts whatever is said with it.
fn context(text: &str) -> String {
    let is_right = json::check_object(text, CONTEXT_BYTES_MAX).is_ok();
    if is_right { text.to_owned() } else { String::new() }
}

/// The policy's wait after this attempt: exponential in the failures so far, capped, spread.
fn back_off(policy: &RetryPolicy, attempt: Attempt, spread: f64) -> Duration {
    let handed_back = attempt.max_attempts - policy.max_attempts;
    let failures = (attempt.attempt - handed_back).max(1);
    let first = policy.initial_backoff.as_ref().map_or(Duration::ZERO, to_std).as_secs_f64();
    let longest = policy.max_backoff.as_ref().map_or(WAIT_MAX, to_std).as_secs_f64();
    let wait = (first * policy.multiplier.powi(failures - 1)).min(longest);
    let spread = wait * policy.jitter.unwrap_or(0.0) * spread.clamp(-1.0, 1.0);
    Duration::from_secs_f64((wait + spread).clamp(0.0, WAIT_MAX.as_secs_f64()))
}

/// A proto duration as one of ours; negative ones are none, and endless ones as long as any wait.
pub(crate) fn to_std(duration: &prost_types::Duration) -> Duration {
    if duration.seconds < 0 || duration.nanos < 0 {
        return Duration::ZERO;
    }
    stepwell_proto::time::duration(duration).unwrap_or(WAIT_MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The text cut to a number of bytes, at a character, and without what Postgres cannot store.
fn cut(text: &str, bytes_max: usize) -> String {
    let clean = text.replace('\0', "\u{fffd}");
    let end = clean.floor_char_boundary(bytes_max.min(clean.len()));
    clean[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(max_attempts: i32, jitter: f64) -> RetryPolicy {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        RetryPolicy {
            max_attempts,
            initial_backoff: seconds(1),
            multiplier: 2.0,
            max_backoff: seconds(300),
            jitter: Some(jitter),
            except: vec!["CardDeclined".into()],
        }
    }

    fn failure(class: &str, retryable: bool) -> Failure {
        Failure { error_class: class.into(), retryable, ..Failure::default() }
    }

    fn wait(ending: Ending) -> Option<i64> {
        match ending {
            Ending::Fail { wait_ms } => wait_ms,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let waits: Vec<_> = (1..12)
            .map(|attempt| {
                let attempt = Attempt { attempt, max_attempts: 20 };
                wait(on_failure(&policy(20, 0.0), attempt, &failure("X", true), 0.5).0)
            })
            .collect();
        let expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300].map(|s| Some(s * 1000));
        assert_eq!(waits, expected);
    }

    #[test]
    fn a_hand_back_does_not_lengthen_the_wait() {
        let attempt = Attempt { attempt: 3, max_attempts: 5 };
        let (ending, _) = on_failure(&policy(3, 0.0), attempt, &failure("X", true), 0.0);
        assert_eq!(wait(ending), Some(1000));
    }

    #[test]
    fn a_wait_that_an_executor_asks_for_is_neither_negative_nor_longer_than_a_day() {
        let day = i64::try_from(WAIT_MAX.as_millis()).unwrap();
        for (seconds, nanos, expected) in [
            (2, 0, 2000),
            (-1, 0, 0),
            (i64::MIN, i32::MIN, 0),
            (i64::MAX, i32::MAX, day),
            (11 * 365 * 24 * 3600, 0, day),
        ] {
            let retry_after = Some(prost_types::Duration { seconds, nanos });
            let failure = Failure { retry_after, ..failure("X", true) };
            let attempt = Attempt { attempt: 1, max_attempts: 3 };
            let (ending, _) = on_failure(&policy(3, 0.1), attempt, &failure, 0.0);
            assert_eq!(wait(ending), Some(expected), "{seconds} s, {nanos} ns");
        }
    }

    #[test]
    fn what_cannot_succeed_is_not_tried_again() {
        let first = Attempt { attempt: 1, max_attempts: 3 };
        let last = Attempt { attempt: 3, max_attempts: 3 };
        for (attempt, failure) in [
            (first, failure("X", false)),
            (first, failure("CardDeclined", true)),
            (last, failure("X", true)),
        ] {
            let (ending, stored) = on_failure(&policy(3, 0.1), attempt, &failure, 0.0);
            assert_eq!(wait(ending), None);
            assert!(stored.is_final && stored.backoff_ms.is_none());
        }
    }

    #[test]
    fn the_handler_s_wish_goes_before_the_policy() {
        let mut failure = failure("RateLimited", true);
        failure.retry_after = Some(prost_types::Duration { seconds: 30, nanos: 0 });
        let attempt = Attempt { attempt: 1, max_attempts: 3 };
        let (ending, stored) = on_failure(&policy(3, 1.0), attempt, &failure, 1.0);
        assert_eq!(wait(ending), Some(30_000));
        assert_eq!(stored.retry_after_ms, Some(30_000));
        failure.retry_after = Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 });
        let (ending, _) = on_failure(&policy(3, 1.0), attempt, &failure, 1.0);
        assert_eq!(wait(ending), Some(86_400_000));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = "ä".repeat(5000) + "\0";
        let failure = Failure {
            message: text.clone(),
            error_class: "a\0b".into(),
            backtrace: vec![text; 20],
            ..Failure::default()
        };
        let attempt = Attempt { attempt: 1, max_attempts: 1 };
        let (_, stored) = on_failure(&policy(1, 0.0), attempt, &failure, 0.0);
        assert_eq!((stored.message.len(), stored.backtrace.len()), (4096, 10));
        assert_eq!(stored.error_class, "a\u{fffd}b");
    }

    #[test]
    fn what_the_handler_knew_is_kept_unless_it_is_no_object_or_too_large() {
        let kept = |context: &str| {
            let failure = Failure { context: context.into(), ..failure("X", true) };
            let attempt = Attempt { attempt: 1, max_attempts: 1 };
            on_failure(&policy(1, 0.0), attempt, &failure, 0.0).1.context
        };
        let known = r#"{"order": 17, "amount": 12345678901234567890.10}"#;
        assert_eq!(kept(known), known);
        let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(8 << 10));
        for wrong in ["", "7", "[1]", "{", r#"{"a": "\u0000"}"#, &large] {
            assert_eq!(kept(wrong), "", "{wrong:.20}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_stays_within_the_jitter_of_the_policy_s(
            attempt in 1..1000, jitter in 0.0..1.0f64, spread in -1.0..1.0f64,
        ) {
            let at = Attempt { attempt, max_attempts: 1001 };
            let exact = wait(on_failure(&policy(1001, 0.0), at, &failure("X", true), 0.0).0);
            let spread = wait(on_failure(&policy(1001, jitter), at, &failure("X", true), spread).0);
            let (exact, spread) = (exact.unwrap() as f64, spread.unwrap() as f64);
            prop_assert!((exact - spread).abs() <= exact * jitter + 1.0);
        }
    }
}
