//! Lengths of time, as they are given and as they are shown: what is shown can be given again.

use std::{str::FromStr, time::Duration};

/// A length of time, given as `500ms`, `1.5s`, `90s`, `1m30s`, `24h`, `7d` or `1d12h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = match text.split_once('d') {
            None => stepwell_proto::time::written(text),
            Some((number, rest)) => days(number).and_then(|days| match rest {
                "" => Some(days),
                rest => days.checked_add(stepwell_proto::time::written(rest)?),
            }),
        };
        let wanted =
            || format!("{text:?} must be numbers with units, such as 500ms, 90s, 1m30s, 24h or 7d");
        span.map(Self).ok_or_else(wanted)
    }
}

/// Whole days.
fn days(number: &str) -> Option<Duration> {
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let days: u64 = number.parse().ok().filter(|_| digits)?;
    days.checked_mul(86_400).map(Duration::from_secs)
}

impl Span {
    /// As calls have it.
    pub(crate) fn proto(self) -> prost_types::Duration {
        prost_types::Duration {
            seconds: i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(self.0.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// A length in few characters: two units at most.
pub(crate) fn shown(of: Duration) -> String {
    let seconds = of.as_secs();
    match seconds {
        0 if of.is_zero() => "0s".to_owned(),
        0 if of.as_millis() == 0 => format!("{}µs", of.as_micros()),
        0 => format!("{}ms", of.as_millis()),
        1..60 => format!("{seconds}.{}s", of.subsec_millis() / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The same of what calls have; nothing: it is not known.
pub(crate) fn shown_proto(of: Option<&prost_types::Duration>) -> String {
    let of = of.and_then(|of| Duration::try_from(*of).ok());
    of.map(shown).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_numbers_with_units_and_what_is_shown_can_be_given_again() {
        for (text, millis, short) in [
            ("0s", 0, "0s"),
            ("500ms", 500, "500ms"),
            ("1.5s", 1_500, "1.5s"),
            ("90s", 90_000, "1m30s"),
            ("1m5s", 65_000, "1m05s"),
            ("30m", 1_800_000, "30m00s"),
            ("1.5h", 5_400_000, "1h30m"),
            ("24h", 86_400_000, "1d00h"),
            ("7d", 604_800_000, "7d00h"),
            ("1d12h", 129_600_000, "1d12h"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0.as_millis(), shown(span.0).as_str()), (millis, short));
            assert_eq!(short.parse(), Ok(span), "{text}");
        }
        let short = |micros| shown(Duration::from_micros(micros));
        assert_eq!([short(7), short(7_100), short(7_150_000)], ["7µs", "7ms", "7.1s"]);
        for text in [
            "",
            "7",
            "h",
            "d",
            "7 h",
            "-7h",
            "+7d",
            "7w",
            "1.5d",
            "1h1d",
            "1d1d",
            "1s1m",
            "99999999999999999999d",
            "9999999999999999999d",
            "200000000000000d18446744073709551615s",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
