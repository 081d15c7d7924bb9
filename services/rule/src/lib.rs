//! The rules that names, versions, durations, schemas and custom events obey, wherever they come from, and
//! how a breach is told. Pure, but for `publish`, which looks up the types of events.

mod change;
mod defaults;
mod event_type;
mod publish;
mod raw;
pub mod schema;
mod weight;

use std::time::Duration;

pub use defaults::Defaults;
pub use event_type::{check_event_type, is_event_name, is_event_prefix, judge};
pub use publish::{Refused, Types};

/// Most bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;
/// The namespace of what names none.
pub const NAMESPACE_DEFAULT: &str = "default";
/// Most faults that one refusal lists.
pub const FAULTS_MAX: usize = 100;
/// No wait and no time-out is longer.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// But of what may span many attempts.
pub const LONG_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A wrong field: its path, such as `steps[2].name`, and what is wanted.
pub type Fault = (String, String);

/// What a name must be, if this is none.
pub fn name_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is missing".into());
    }
    if name.len() > NAME_BYTES_MAX {
        return Some(format!("has {} bytes; at most {NAME_BYTES_MAX} are allowed", name.len()));
    }
    let strange = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"_-./".contains(*c))?;
    Some(format!("may not contain {strange:?}; letters, digits, `_`, `-`, `.` and `/` may stand"))
}

/// The version as three numbers, or what it must be.
pub fn version(text: &str) -> Result<[i32; 3], String> {
    let wanted =
        || format!("must be `MAJOR.MINOR.PATCH`, such as `1.0.0`, but is {}", quoted(text));
    let mut numbers = text.split('.').map(|part| {
        let plain =
            part.bytes().all(|b| b.is_ascii_digit()) && (part.len() == 1 || !part.starts_with('0'));
        if plain { part.parse::<i32>().map_err(|_| wanted()) } else { Err(wanted()) }
    });
    let mut next = || numbers.next().unwrap_or_else(|| Err(wanted()));
    let read = [next(), next(), next()];
    if let ([Ok(major), Ok(minor), Ok(patch)], None) = (&read, numbers.next()) {
        return Ok([*major, *minor, *patch]);
    }
    let Some((triple, _)) =
        text.split_once(['-', '+']).filter(|(triple, _)| version(triple).is_ok())
    else {
        return Err(wanted());
    };
    Err(format!(
        "must be `MAJOR.MINOR.PATCH`; what goes before a release, or tells builds apart, has no \
         order here: did you mean `{triple}`?"
    ))
}

/// Reads a duration as people write it: `200ms`, `1.5s`, `1m30s`, `1h`. Or what it must be.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wanted =
        || format!("must be a duration such as `30s`, `200ms` or `1m30s`, but is {}", quoted(text));
    if (1..20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(format!("needs a unit: `{text}s`, for example"));
    }
    stepwell_proto::time::written(text).ok_or_else(wanted)
}

/// The longest duration of a field, as people write it.
pub fn most(max: Duration) -> String {
    format!("{}h", max.as_secs() / 3600)
}

/// The least urgent; 1 is the most.
pub const PRIORITY_MAX: i32 = 5;

/// Reads a priority; none: nothing is said.
pub fn priority(number: i32) -> Result<Option<i16>, String> {
    match i16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(priority) if (1..=PRIORITY_MAX).contains(&number) => Ok(Some(priority)),
        _ => Err(format!("must be from 1, first, to {PRIORITY_MAX}, last")),
    }
}

/// Text of a request as it may stand in a message: quoted, and cut when it is long.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(NAME_BYTES_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The known name that was probably meant.
pub fn closest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    if name.len() > 2 * NAME_BYTES_MAX {
        return None;
    }
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .filter(|(distance, k)| *distance <= allowed && *distance < k.chars().count())
        .min()
        .map(|(_, known)| known)
}

/// `; did you mean …?`, or nothing.
pub fn suggestion<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> String {
    closest(name, known).map_or_else(String::new, |k| format!("; did you mean `{k}`?"))
}

/// A list of faults that fits into an answer.
pub fn bounded(mut faults: Vec<Fault>) -> Vec<Fault> {
    if faults.len() > FAULTS_MAX {
        let more = faults.len() - FAULTS_MAX;
        faults.truncate(FAULTS_MAX);
        faults.push((String::new(), format!("and {more} more faults")));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_three_plain_numbers() {
        assert_eq!(version("1.20.2147483647"), Ok([1, 20, i32::MAX]));
        for text in
            ["", "1", "1.0", "1.0.0.0", "01.0.0", "1.0.-1", "1.0.+1", "1..0", "1.0.2147483648"]
        {
            assert!(version(text).is_err(), "{text}");
        }
        for text in ["1.2.3-rc.1", "1.2.3+build.7", "1.2.3-rc.1+7"] {
            let what = version(text).unwrap_err();
            assert!(what.contains("did you mean `1.2.3`?"), "{what}");
        }
        for text in ["1.2-rc.1", "-1.2.3", "v1.2.3-rc"] {
            assert!(!version(text).unwrap_err().contains("did you mean"), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in [
            ("200ms", 200),
            ("1s", 1000),
            ("1.5s", 1500),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1h0m0s1ms", 3_600_001),
            ("0s", 0),
            ("0.25h", 900_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in
            ["", "s", "1", "1.5", "-1s", "1d", "1 s", "1s1s", "1s1m", "1.s", "1x", "1e3s", "ms"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("99999999999999999999h").is_err());
        assert_eq!(duration("30").unwrap_err(), "needs a unit: `30s`, for example");
    }

    #[test]
    fn a_name_that_is_close_is_suggested() {
        let known = ["depends_on", "description", "name"];
        assert_eq!(closest("depend_on", known), Some("depends_on"));
        assert_eq!(closest("nmae", known), Some("name"));
        assert_eq!(closest("priority", known), None);
        assert_eq!(closest("x", ["y"]), None);
    }

    #[test]
    fn a_name_is_short_and_plain() {
        assert_eq!(name_fault("shop/fulfil_order-2.x"), None);
        for name in ["", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(name_fault(name).is_some(), "{name}");
        }
    }
}
