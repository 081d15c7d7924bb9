//! Durations as callers send them. The library's own conversion counts on sane ones: it may overflow.

use std::time::Duration;

/// No duration that is sent is longer: ten years.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The duration; none if it is negative, longer than any may be, or malformed.
pub fn duration(sent: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(sent.seconds).ok()?;
    let nanos = u32::try_from(sent.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos)).filter(|duration| *duration <= DURATION_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(seconds: i64, nanos: i32) -> Option<Duration> {
        duration(&prost_types::Duration { seconds, nanos })
    }

    #[test]
    fn a_duration_is_neither_negative_nor_endless_nor_malformed() {
        assert_eq!(of(1, 500_000_000), Some(Duration::from_millis(1500)));
        assert_eq!(of(0, 0), Some(Duration::ZERO));
        let ten_years = i64::try_from(DURATION_MAX.as_secs()).unwrap();
        assert_eq!(of(ten_years, 0), Some(DURATION_MAX));
        for (seconds, nanos) in [
            (ten_years, 1),
            (-1, 0),
            (0, -1),
            (1, -1),
            (0, 1_000_000_000),
            (i64::MAX, i32::MAX),
            (i64::MIN, i32::MIN),
        ] {
            assert_eq!(of(seconds, nanos), None, "{seconds} s, {nanos} ns");
        }
    }
}
