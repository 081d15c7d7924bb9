//! Lengths of time, as they are given and as they are shown.

use std::{str::FromStr, time::Duration};

/// A length of time, given as `500ms`, `90s`, `30m`, `24h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            || format!("{text:?} must be a number and a unit, such as 90s, 30m, 24h or 7d");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wanted)?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().map_err(|_| wanted())?;
        let of = |seconds: u64| number.checked_mul(seconds).map(Duration::from_secs);
        let span = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => of(1),
            "m" => of(60),
            "h" => of(3_600),
            "d" => of(86_400),
            _ => None,
        };
        span.map(Self).ok_or_else(wanted)
    }
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
        0 if of.as_millis() == 0 => format!("{} µs", of.as_micros()),
        0 => format!("{} ms", of.as_millis()),
        1..60 => format!("{seconds}.{} s", of.subsec_millis() / 100),
        60..3_600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
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
    fn a_length_is_a_number_with_a_unit_and_is_shown_by_two_units_at_most() {
        for (text, seconds, short) in [
            ("0s", 0, "0 µs"),
            ("90s", 90, "1 m 30 s"),
            ("30m", 1_800, "30 m 0 s"),
            ("24h", 86_400, "1 d 0 h"),
            ("7d", 604_800, "7 d 0 h"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0.as_secs(), shown(span.0).as_str()), (seconds, short));
        }
        let short = |micros| shown(Duration::from_micros(micros));
        assert_eq!([short(7), short(7_100), short(7_150_000)], ["7 µs", "7 ms", "7.1 s"]);
        for text in [
            "",
            "7",
            "h",
            "7 h",
            "-7h",
            "7w",
            "1.5h",
            "99999999999999999999d",
            "9999999999999999999d",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
