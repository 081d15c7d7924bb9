//! What an executor says it can run, and which queues that means. Pure.

use std::collections::HashSet;

use semver::{Version, VersionReq};
use stepwell_proto::{refusal::Refusal, v1::Hello};
use stepwell_store::QueueRow;

const NAME_BYTES_MAX: usize = 256;
const SDK_BYTES_MAX: usize = 64;
const HANDLERS_MAX: usize = 1000;
pub(crate) const SLOTS_MAX: i32 = 10_000;
const HELD_MAX: usize = 10_000;

/// A checked `hello`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// The executor's name, for people.
    pub(crate) name: String,
    /// The namespace its handlers are of.
    pub(crate) namespace: String,
    handlers: Vec<(String, VersionReq)>,
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
        if hello.held_leases.len() > HELD_MAX {
            fault("hello.held_leases".into(), format!("at most {HELD_MAX}"));
        }
        let mut handlers = Vec::new();
        for (i, offer) in hello.handlers.iter().enumerate().take(HANDLERS_MAX) {
            if !is_name(&offer.name) {
                fault(format!("hello.handlers[{i}].name"), NAME_RULE.into());
            }
            match VersionReq::parse(offer.definition_versions.as_str()) {
                Ok(versions) => handlers.push((offer.name.clone(), versions)),
                Err(_) if offer.definition_versions.is_empty() => {
                    handlers.push((offer.name.clone(), VersionReq::STAR));
                }
                Err(error) => {
                    let path = format!("hello.handlers[{i}].definition_versions");
                    fault(path, format!("not a semver range: {error}"));
                }
            }
        }
        if !faults.is_empty() {
            return Err(Refusal::fields(faults));
        }
        let namespace =
            if hello.namespace.is_empty() { "default" } else { hello.namespace.as_str() };
        Ok(Self { name: hello.name.clone(), namespace: namespace.to_owned(), handlers })
    }

    /// The names of its handlers.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = &str> {
        self.handlers.iter().map(|(name, _)| name.as_str())
    }

    /// The queues it serves.
    pub(crate) fn queues(&self, all: &[QueueRow]) -> HashSet<i32> {
        all.iter().filter(|q| self.handlers.iter().any(|h| serves(h, q))).map(|q| q.id).collect()
    }

    /// The handlers that no queue is for.
    pub(crate) fn unmatched(&self, all: &[QueueRow]) -> Vec<String> {
        let unmatched = self.handlers.iter().filter(|h| !all.iter().any(|q| serves(h, q)));
        unmatched.map(|(name, _)| name.clone()).collect()
    }
}

fn serves((handler, versions): &(String, VersionReq), queue: &QueueRow) -> bool {
    let part = |i: usize| queue.version.get(i).and_then(|v| u64::try_from(*v).ok()).unwrap_or(0);
    *handler == queue.handler && versions.matches(&Version::new(part(0), part(1), part(2)))
}

const NAME_RULE: &str = "1 to 64 bytes of letters, digits, `_`, `-`, `.`, `/`";

fn is_name(text: &str) -> bool {
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
        QueueRow { id, definition: id, handler: handler.into(), version: version.into() }
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
        let paths: Vec<_> =
            Offer::read(&bad).unwrap_err().violations.into_iter().map(|v| v.0).collect();
        assert_eq!(
            paths,
            [
                "hello.name",
                "hello.namespace",
                "hello.slots",
                "hello.handlers[0].name",
                "hello.handlers[1].definition_versions"
            ]
        );
        let paths = Offer::read(&hello(&[])).unwrap_err().violations;
        assert_eq!(paths[0].0, "hello.handlers");
    }
}
