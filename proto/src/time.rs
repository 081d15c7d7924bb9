//! Durations as callers send and write them. The library's own conversion counts on sane ones: it may
//! overflow.

use std::time::Duration;

/// No duration that is sent is longer: ten years.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The duration; none if it is negative, longer than any may be, or malformed.
pub fn duration(sent: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(sent.seconds).ok()?;
    let nanos = u32::try_from(sent.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos)).filter(|duration| *duration <= DURATION_MAX)
}

/// Reads a duration as people write it: `200ms`, `1.5s`, `1m30s`, `1h`. None if it is not one.
pub fn written(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut last) = (text, Duration::ZERO, u64::MAX);
    while !rest.is_empty() {
        let (number, unit, tail) = segment(rest)?;
        if unit >= last {
            return None;
        }
        last = unit;
        total = total.checked_add(scaled(number, unit)?)?;
        rest = tail;
    }
    (last != u64::MAX).then_some(total)
}

/// One number with its unit in milliseconds, and what follows.
fn segment(text: &str) -> Option<(&str, u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, rest) = text.split_at(end);
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
    Some((number, factor, &rest[unit.len()..]))
}

/// The number times the unit, exact to the nanosecond.
fn scaled(number: &str, unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.len() > 9 || fraction.is_empty() {
        return None;
    }
    let digits = format!("{fraction:0<9}").parse::<u64>().ok()?;
    let nanos = digits.checked_mul(unit)? / 1000;
    Duration::from_millis(whole.parse::<u64>().ok()?.checked_mul(unit)?)
        .checked_add(Duration::from_nanos(nanos))
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
