//! What an executor says it can run, and which queues that means. Pure.

use std::collections::{BTreeMap, HashSet};

use semver::{Version, VersionReq};
use stepwell_proto::{refusal::Refusal, v1::Hello};
use stepwell_store::QueueRow;

const NAME_BYTES_MAX: usize = 256;
const SDK_BYTES_MAX: usize = 64;
const HANDLERS_MAX: usize = 1000;
pub(crate) const SLOTS_MAX: i32 = 10_000;
pub(crate) const HELD_MAX: usize = 10_000;
const LABELS_MAX: usize = 32;
const LABEL_BYTES_MAX: usize = 128;
const RANGE_BYTES_MAX: usize = 256;

/// A checked `hello`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// The executor's name, for people.
    pub(crate) name: String,
    /// The namespace its handlers are of.
    pub(crate) namespace: String,
    /// Client library and version.
    pub(crate) sdk: String,
    handlers: Vec<(String, VersionReq)>,
    /// What it says of itself.
    pub(crate) labels: BTreeMap<String, String>,
}

impl Offer {
    /// Checks a `hello`; all its faults at once.
    pub(crate) fn read(hello: &Hello) -> Result<Self, Refusal> {
        let mut faults = Vec::new();
        let mut fault = |path: String, what: String| faults.push((path, what));
        let within = |text: &str, max: usize| text.len() <= max && !text.contains('\0');
        if !within(&hello.name, NAME_BYTES_MAX) {
            fault("hello.name".into(), format!("at most {NAME_BYTES_MAX} bytes, without NUL"));
        }
        if !within(&hello.sdk, SDK_BYTES_MAX) {
            fault("hello.sdk".into(), format!("at most {SDK_BYTES_MAX} bytes, without NUL"));
        }
        if !hello.namespace.is_empty() && !is_name(&hello.namespace) {
            fault("hello.namespace".into(), NAME_RULE.into());
        }
        if !(0..=SLOTS_MAX).contains(&hello.slots) {
            fault("hello.slots".into(), format!("0 to {SLOTS_MAX}"));
        }
        if hello.handlers.is_empty() || hello.handlers.len() > HANDLERS_MAX {
            fault("hello.handlers".into(), format!("1 to {HANDLERS_MAX} handlers"));
        }
        if hello.labels.len() > LABELS_MAX {
            fault("hello.labels".into(), format!("at most {LABELS_MAX}"));
        }
        for (label, value) in hello.labels.iter().take(LABELS_MAX) {
            if !is_name(label) {
                fault("hello.labels".into(), format!("a label's name: {NAME_RULE}"));
            } else if !within(value, LABEL_BYTES_MAX) {
                let what = format!("at most {LABEL_BYTES_MAX} bytes, without NUL");
                fault(format!("hello.labels.{label}"), what);
            }
        }
        if hello.held_leases.len() > HELD_MAX {
            fault("hello.held_leases".into(), format!("at most {HELD_MAX}"));
        }
        let mut handlers = Vec::new();
        for (i, offer) in hello.handlers.iter().enumerate().take(HANDLERS_MAX) {
            if !is_name(&offer.name) {
                fault(format!("hello.handlers[{i}].name"), NAME_RULE.into());
            }
            let path = || format!("hello.handlers[{i}].definition_versions");
            if offer.definition_versions.len() > RANGE_BYTES_MAX {
                fault(path(), format!("at most {RANGE_BYTES_MAX} bytes"));
                continue;
            }
            match VersionReq::parse(offer.definition_versions.as_str()) {
                Ok(versions) => handlers.push((offer.name.clone(), versions)),
                Err(_) if offer.definition_versions.is_empty() => {
                    handlers.push((offer.name.clone(), VersionReq::STAR));
                }
                Err(error) => {
                    fault(path(), format!("not a semver range: {error}"));
                }
            }
        }
        if !faults.is_empty() {
            return Err(Refusal::fields(faults));
        }
        let namespace =
            if hello.namespace.is_empty() { "default" } else { hello.namespace.as_str() };
        let (name, namespace) = (hello.name.clone(), namespace.to_owned());
        let (sdk, labels) = (hello.sdk.clone(), hello.labels.clone());
        Ok(Self { name, namespace, sdk, handlers, labels })
    }

    /// The names of its handlers.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = &str> {
        self.handlers.iter().map(|(name, _)| name.as_str())
    }

    /// About how much it says.
    pub(crate) fn bytes(&self) -> usize {
        let handlers: usize = self.handlers.iter().map(|(name, _)| name.len() + 64).sum();
        let labels: usize =
            self.labels.iter().map(|(label, value)| label.len() + value.len()).sum();
        self.name.len() + self.sdk.len() + handlers + labels
    }

    /// Its handlers, each with its range of versions.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (&str, String)> {
        self.handlers.iter().map(|(name, versions)| (name.as_str(), versions.to_string()))
    }

    /// The queues it serves.
    pub(crate) fn queues(&self, all: &[QueueRow]) -> HashSet<i32> {
        let served = all.iter().filter(|q| self.handlers.iter().any(|h| self.serves(h, q)));
        served.map(|q| q.id).collect()
    }

    /// The handlers that no queue is for.
    pub(crate) fn unmatched(&self, all: &[QueueRow]) -> Vec<String> {
        let unmatched = self.handlers.iter().filter(|h| !all.iter().any(|q| self.serves(h, q)));
        unmatched.map(|(name, _)| name.clone()).collect()
    }

    /// One of its handlers serves the queue: its name, its versions, and the executor's labels fit.
    fn serves(&self, (handler, versions): &(String, VersionReq), queue: &QueueRow) -> bool {
        let part =
            |i: usize| queue.version.get(i).and_then(|v| u64::try_from(*v).ok()).unwrap_or(0);
        *handler == queue.handler
            && versions.matches(&Version::new(part(0), part(1), part(2)))
            && queue.requires.iter().all(|(label, value)| self.labels.get(label) == Some(value))
    }
}

pub(crate) const NAME_RULE: &str = "1 to 64 bytes of letters, digits, `_`, `-`, `.`, `/`";

pub(crate) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stepwell_proto::v1::HandlerOffer;

    fn hello(handlers: &[(&str, &str)]) -> Hello {
        let handlers = handlers.iter().map(|(name, versions)| HandlerOffer {
            name: (*name).into(),
            definition_versions: (*versions).into(),
        });
        Hello { handlers: handlers.collect(), slots: 1, ..Hello::default() }
    }

    fn queue(id: i32, handler: &str, version: [i32; 3]) -> QueueRow {
        let (handler, version) = (handler.into(), version.into());
        QueueRow { id, definition: id, handler, requires: BTreeMap::new(), priority: 3, version }
    }

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(label, value)| ((*label).into(), (*value).into())).collect()
    }

    #[test]
    fn a_queue_is_served_by_executors_with_all_its_labels() {
        let queues: Vec<QueueRow> =
            [&[][..], &[("region", "eu")], &[("region", "us")], &[("region", "eu"), ("gpu", "")]]
                .into_iter()
                .zip(1..)
                .map(|(requires, id)| QueueRow {
                    requires: labels(requires),
                    ..queue(id, "charge", [1, 0, 0])
                })
                .collect();
        let serves = |of: &[(&str, &str)]| {
            let hello = Hello { labels: labels(of), ..hello(&[("charge", "")]) };
            let offer = Offer::read(&hello).unwrap();
            let mut served: Vec<i32> = offer.queues(&queues).into_iter().collect();
            served.sort_unstable();
            (served, offer.unmatched(&queues[1..]).len())
        };
        assert_eq!(serves(&[]), (vec![1], 1), "and nobody else's steps are for it");
        assert_eq!(serves(&[("region", "eu"), ("zone", "1")]), (vec![1, 2], 0));
        assert_eq!(serves(&[("region", "EU")]), (vec![1], 1));
        assert_eq!(serves(&[("region", "eu"), ("gpu", "")]), (vec![1, 2, 4], 0));
    }

    #[test]
    fn a_handler_serves_the_versions_in_its_range() {
        let offer = Offer::read(&hello(&[("charge", ">=1.2, <2"), ("ship", "")])).unwrap();
        let queues = [
            queue(1, "charge", [1, 1, 9]),
            queue(2, "charge", [1, 2, 0]),
            queue(3, "charge", [2, 0, 0]),
            queue(4, "ship", [9, 9, 9]),
        ];
        assert_eq!(offer.queues(&queues), HashSet::from([2, 4]));
        assert!(offer.unmatched(&queues).is_empty());
        assert_eq!(offer.unmatched(&queues[3..]), ["charge"]);
    }

    #[test]
    fn every_fault_of_a_hello_is_named() {
        let mut bad = hello(&[("no spaces", "*"), ("ok", "not a range")]);
        bad.slots = -1;
        bad.name = "x".repeat(300);
        bad.namespace = "ä".into();
        bad.labels = labels(&[("a b", ""), ("region", &"x".repeat(129))]);
        let paths: Vec<_> =
            Offer::read(&bad).unwrap_err().violations.into_iter().map(|v| v.0).collect();
        assert_eq!(
            paths,
            [
                "hello.name",
                "hello.namespace",
                "hello.slots",
                "hello.labels",
                "hello.labels.region",
                "hello.handlers[0].name",
                "hello.handlers[1].definition_versions"
            ]
        );
        let paths = Offer::read(&hello(&[])).unwrap_err().violations;
        assert_eq!(paths[0].0, "hello.handlers");
        let long = format!(">=1{}", " ".repeat(256));
        let path = &Offer::read(&hello(&[("a", &long)])).unwrap_err().violations[0].0;
        assert_eq!(path, "hello.handlers[0].definition_versions");
        let many = (0..33).map(|n| (format!("l{n}"), String::new())).collect();
        let many = Hello { labels: many, ..hello(&[("a", "")]) };
        assert_eq!(Offer::read(&many).unwrap_err().violations[0].0, "hello.labels");
    }
}
