//! What a status means: the step's result, a failure for good, or one to try again. Pure.

use std::ops::RangeInclusive;

use serde_json::Value;

/// Most entries of one list.
const RANGES_MAX: usize = 100;

/// What becomes of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is complete.
    Success,
    /// It fails and is not tried again.
    Permanent,
    /// It fails and is tried again; if `heeded`, after as long as the server asks for.
    Retry { heeded: bool },
}

/// Statuses, as a configuration lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statuses(Vec<RangeInclusive<u16>>);

/// What statuses mean to one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Complete it.
    pub(crate) success: Statuses,
    /// Fail it for good.
    pub(crate) permanent: Statuses,
    /// Fail it, to be tried again.
    pub(crate) retry: Statuses,
}

impl Rules {
    /// What the step's own lists say of a status; where several have it, the first of success,
    /// permanent and retry.
    pub(crate) fn listed(&self, status: u16) -> Option<Verdict> {
        if self.success.has(status) {
            Some(Verdict::Success)
        } else if self.permanent.has(status) {
            Some(Verdict::Permanent)
        } else {
            self.retry.has(status).then_some(Verdict::Retry { heeded: true })
        }
    }

    /// What a status means: as listed, else as usual.
    pub(crate) fn verdict(&self, status: u16) -> Verdict {
        self.listed(status).unwrap_or(match status {
            200..=226 => Verdict::Success,
            400 | 401 | 403 | 404 | 422 => Verdict::Permanent,
            429 | 503 => Verdict::Retry { heeded: true },
            _ => Verdict::Retry { heeded: false },
        })
    }
}

impl Statuses {
    /// Reads a list of statuses, `409`, and ranges, `"500-599"`. Or what is wrong.
    pub(crate) fn parse(list: &Value) -> Result<Self, String> {
        let wrong = "must be a list of statuses such as 409 and ranges such as \"500-599\"";
        let list = list.as_array().ok_or(wrong)?;
        if list.len() > RANGES_MAX {
            return Err(format!("has {} entries; at most {RANGES_MAX} are allowed", list.len()));
        }
        let ranges = list.iter().map(|entry| {
            let text = match entry {
                Value::Number(number) => number.to_string(),
                Value::String(text) => text.clone(),
                _ => return Err(wrong.to_owned()),
            };
            range(&text).ok_or_else(|| format!("{entry} is no status and no range of 100 to 599"))
        });
        ranges.collect::<Result<_, _>>().map(Self)
    }

    fn has(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten().filter(|s| (100..=599).contains(s))
    };
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_status_has_a_meaning() {
        let rules = Rules::default();
        for status in 100..=599 {
            let expected = match status {
                200..=226 => Verdict::Success,
                400 | 401 | 403 | 404 | 422 => Verdict::Permanent,
                429 | 503 => Verdict::Retry { heeded: true },
                _ => Verdict::Retry { heeded: false },
            };
            assert_eq!(rules.verdict(status), expected, "{status}");
        }
    }

    #[test]
    fn a_step_may_give_statuses_another_meaning_and_the_milder_list_goes_first() {
        let rules = Rules {
            success: Statuses::parse(&json!([409, "410"])).unwrap(),
            permanent: Statuses::parse(&json!(["400-499", 501])).unwrap(),
            retry: Statuses::parse(&json!(["500-599", 404])).unwrap(),
        };
        for (status, verdict) in [
            (409, Verdict::Success),
            (410, Verdict::Success),
            (429, Verdict::Permanent),
            (404, Verdict::Permanent),
            (501, Verdict::Permanent),
            (500, Verdict::Retry { heeded: true }),
            (200, Verdict::Success),
            (302, Verdict::Retry { heeded: false }),
        ] {
            assert_eq!(rules.verdict(status), verdict, "{status}");
        }
        assert_eq!(rules.listed(200), None);
    }

    #[test]
    fn what_is_no_list_of_statuses_is_named() {
        for wrong in [
            json!(409),
            json!([true]),
            json!([99]),
            json!([600]),
            json!([4.5]),
            json!(["599-500"]),
            json!(["4xx"]),
            json!(["+40"]),
            json!(["400-"]),
            json!([-1]),
            json!(vec![200; 101]),
        ] {
            assert!(Statuses::parse(&wrong).is_err(), "{wrong}");
        }
        assert!(Statuses::parse(&json!([])).is_ok());
    }
}
