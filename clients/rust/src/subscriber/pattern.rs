//! Names and prefixes of events.

use stepwell_proto::catalog::{EVENTS, EventType, elsewhere, event_type};

use crate::error::Error;

/// Names that are less similar than this are not suggested.
const SIMILAR: f64 = 0.8;

/// Which events a handler is for.
#[derive(Debug, PartialEq)]
pub(crate) enum Pattern {
    Recorded,
    /// With the dot.
    Prefix(String),
    Name(String),
}

impl Pattern {
    pub(super) fn read(text: &str) -> Result<Self, Error> {
        if text == "*" {
            return Ok(Self::Recorded);
        }
        if let Some(prefix) = text.strip_suffix('*').filter(|prefix| prefix.ends_with('.'))
            && EVENTS.iter().any(|event| event.name.starts_with(prefix))
        {
            return Ok(Self::Prefix(prefix.to_owned()));
        }
        if event_type(text).is_some() {
            return Ok(Self::Name(text.to_owned()));
        }
        // A custom one: the service knows which are registered.
        match text.strip_suffix(".*") {
            Some(words) if may_be_custom(words, 1) => Ok(Self::Prefix(format!("{words}."))),
            None if may_be_custom(text, 2) => Ok(Self::Name(text.to_owned())),
            _ => Err(unknown(text)),
        }
    }

    /// True if no event of the catalog fits.
    fn is_custom(&self) -> bool {
        !EVENTS.iter().any(|event| self.fits(event.name))
    }

    /// As a filter has it.
    pub(super) fn filter(&self) -> String {
        match self {
            Self::Recorded => "*".to_owned(),
            Self::Prefix(prefix) => format!("{prefix}*"),
            Self::Name(name) => name.clone(),
        }
    }

    pub(crate) fn fits(&self, name: &str) -> bool {
        match self {
            // A name newer than this library is a recorded one: no handler can ask for it
            // otherwise, unless by prefix.
            Self::Recorded => event_type(name).is_none_or(EventType::is_recorded),
            Self::Prefix(prefix) => name.starts_with(prefix),
            Self::Name(exact) => name == exact,
        }
    }
}

/// Whether custom events may be called so: at least so many words, the first not one of the catalog's, also not in
/// the plural.
fn may_be_custom(text: &str, words: usize) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let first = text.split('.').next().unwrap_or_default();
    let first = first.strip_suffix('s').unwrap_or(first);
    let is_ours =
        EVENTS.iter().any(|event| event.name.split('.').next().is_some_and(|word| word == first));
    !is_ours && text.split('.').count() >= words && text.split('.').all(is_word)
}

/// No event is named so.
pub(crate) fn unknown(name: &str) -> Error {
    Error::EventUnknown { name: name.to_owned(), suggestion: similar(name) }
}

/// True if a filter with these names brings any event that the pattern fits.
pub(super) fn brings(names: &[String], pattern: &Pattern) -> bool {
    let wanted = pattern.filter();
    let prefix = wanted.strip_suffix('*');
    names.is_empty() && brings(&["*".to_owned()], pattern)
        || names.iter().any(|name| name == "*") && pattern.is_custom()
        || names.iter().any(|name| match (Pattern::read(name), name.strip_suffix('*')) {
            (Ok(asked), _) if EVENTS.iter().any(|e| asked.fits(e.name) && pattern.fits(e.name)) => {
                true
            }
            // All that it means was compared above.
            (Ok(asked), _) if !asked.is_custom() => false,
            // Names that this library does not know.
            (_, Some(begin)) => {
                !begin.is_empty()
                    && (wanted.starts_with(begin) || prefix.is_some_and(|of| begin.starts_with(of)))
            }
            (_, None) => *name == wanted || prefix.is_some_and(|begin| name.starts_with(begin)),
        })
}

/// The most similar name or prefix of the catalog.
fn similar(text: &str) -> Option<String> {
    let prefixes = EVENTS.iter().flat_map(|event| {
        event.name.match_indices('.').map(|(dot, _)| format!("{}.*", &event.name[..dot]))
    });
    let names = EVENTS.iter().map(|event| event.name.to_owned()).chain(prefixes);
    let scored = names.map(|name| (strsim::jaro_winkler(text, &name), name));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= SIMILAR && elsewhere(text).is_none()).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_catalog_does_not_have_is_refused_with_the_nearest() {
        for (name, suggestion) in [
            ("step.complete", Some("step.completed")),
            ("steps.*", Some("step.*")),
            ("tasks.failed", Some("task.failed")),
            ("task*", Some("task.*")),
            ("zzz", None),
            ("", None),
        ] {
            match Pattern::read(name) {
                Err(Error::EventUnknown { suggestion: s, .. }) => {
                    assert_eq!(s.as_deref(), suggestion, "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_custom_name_is_taken_unless_its_first_word_is_nearly_the_catalog_s() {
        for name in ["payment.captured", "payment.*", "shop.order.paid", "order.cancelled", "tax.*"]
        {
            let pattern = Pattern::read(name).unwrap();
            assert_eq!((pattern.filter().as_str(), pattern.is_custom()), (name, true));
        }
        for name in
            ["task.captured", "step.x.*", "Payment.captured", "payment", "pay..x", "tasks.failed"]
        {
            assert!(Pattern::read(name).is_err(), "{name}");
        }
        let captured = Pattern::read("payment.captured").unwrap();
        assert!(captured.fits("payment.captured") && !captured.fits("payment.refused"));
        assert!(Pattern::read("payment.*").unwrap().fits("payment.refused"));
        let brings = |name: &str| brings(&[name.to_owned()], &captured);
        assert!(brings("*") && brings("payment.*") && !brings("task.*"));
        let fits = |name: &str, pattern: &str| {
            super::brings(&[name.to_owned()], &Pattern::read(pattern).unwrap())
        };
        assert!(fits("payment.*", "*") && fits("shop.order.*", "shop.*"));
        assert!(!fits("workflow.step_completed", "*"), "what is derived is not recorded");
    }

    #[test]
    fn a_name_from_elsewhere_is_refused_with_what_stands_for_it() {
        let refused = Pattern::read("step.before_handle").unwrap_err().to_string();
        let (name, here) = ("no event is named \"step.before_handle\". ", "Executor::observer");
        assert!(refused.starts_with(name) && refused.contains(here), "{refused}");
    }

    #[test]
    fn a_filter_brings_what_some_of_its_names_fit() {
        let fits = |names: &[&str], pattern: &str| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            brings(&names, &Pattern::read(pattern).unwrap())
        };
        assert!(fits(&[], "step.failed") && fits(&["*"], "step.*") && fits(&["step.*"], "*"));
        assert!(fits(&["task.failed", "step.failed"], "step.*"));
        assert!(!fits(&["task.*"], "step.failed") && !fits(&["step.completed"], "step.failed"));
        assert!(!fits(&[], "workflow.*"), "what is derived comes only if it is asked for");
        assert!(fits(&["workflow.*"], "workflow.step_completed"));
        assert!(!fits(&["shop.order_paid"], "task.*"), "one that is newer than the catalog here");
    }

    #[test]
    fn patterns_fit_what_their_filters_ask_for() {
        let fits = |pattern: &str, name: &str| Pattern::read(pattern).unwrap().fits(name);
        assert!(fits("*", "step.completed") && !fits("*", "workflow.step_completed"));
        assert!(fits("workflow.*", "workflow.step_completed"));
        assert!(fits("observability.step.*", "observability.step.backoff"));
        assert!(!fits("task.*", "step.completed"));
        assert!(fits("step.failed", "step.failed") && !fits("step.failed", "step.completed"));
        for pattern in ["*", "workflow.*", "step.failed"] {
            assert_eq!(Pattern::read(pattern).unwrap().filter(), pattern);
        }
    }
}
