//! The handlers of an executor, by name and version of the definition.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use semver::{Version, VersionReq};
use serde::Serialize;
use stepwell_proto::v1::{HandlerOffer, Lease};

use super::{context::StepContext, error::HandlerError};
use crate::error::Error;

/// A handler whose result is JSON text.
pub(super) type Handler =
    Arc<dyn Fn(StepContext) -> BoxFuture<'static, Result<String, HandlerError>> + Send + Sync>;

#[derive(Default)]
pub(super) struct Handlers(Vec<Entry>);

struct Entry {
    name: String,
    definition_versions: String,
    range: Result<VersionReq, semver::Error>,
    handler: Handler,
}

impl Handlers {
    pub(super) fn add<F, R>(
        &mut self,
        name: String,
        definition_versions: String,
        handler: impl Fn(StepContext) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<R, HandlerError>> + Send + 'static,
        R: Serialize,
    {
        let range = VersionReq::parse(&definition_versions);
        let handler: Handler = Arc::new(move |step| {
            let running = handler(step);
            async move { written(&running.await?) }.boxed()
        });
        self.0.push(Entry { name, definition_versions, range, handler });
    }

    /// What it offers to run; an error if that makes no sense.
    pub(super) fn offers(&self) -> Result<Vec<HandlerOffer>, Error> {
        if self.0.is_empty() {
            return Err(Error::Invalid("an executor needs at least one handler".into()));
        }
        let offer = |entry: &Entry| {
            if let Err(fault) = &entry.range {
                return Err(Error::Invalid(format!(
                    "handler {:?}: {:?} is no range of versions: {fault}",
                    entry.name, entry.definition_versions
                )));
            }
            Ok(HandlerOffer {
                name: entry.name.clone(),
                definition_versions: entry.definition_versions.clone(),
            })
        };
        self.0.iter().map(offer).collect()
    }

    /// The first one that fits the lease.
    pub(super) fn of(&self, lease: &Lease) -> Option<&Handler> {
        let version = Version::parse(&lease.definition_version);
        let fits = |entry: &&Entry| match (&entry.range, &version) {
            (Ok(range), Ok(version)) => *range == VersionReq::STAR || range.matches(version),
            (Ok(range), Err(_)) => *range == VersionReq::STAR,
            (Err(_), _) => false,
        };
        self.0.iter().filter(|e| e.name == lease.handler).find(fits).map(|e| &e.handler)
    }
}

fn written(result: &impl Serialize) -> Result<String, HandlerError> {
    serde_json::to_string(result)
        .map_err(|fault| HandlerError::new("InvalidResult", fault.to_string()).permanent())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers(offers: &[(&str, &str)]) -> Handlers {
        let mut handlers = Handlers::default();
        for (index, (name, range)) in offers.iter().enumerate() {
            let handler = move |_: StepContext| async move { Ok(index) };
            handlers.add((*name).into(), (*range).into(), handler);
        }
        handlers
    }

    fn lease(handler: &str, version: &str) -> Lease {
        let (handler, definition_version) = (handler.into(), version.into());
        Lease { handler, definition_version, ..Default::default() }
    }

    #[test]
    fn a_lease_gets_the_first_handler_of_its_name_whose_range_has_its_version() {
        let handlers =
            handlers(&[("pay", ">=1.2, <2"), ("pay", "*"), ("pay", ">=3"), ("ship", "^1")]);
        let chosen = |lease: &Lease| {
            let chosen = handlers.of(lease)?;
            handlers.0.iter().position(|e| Arc::ptr_eq(&e.handler, chosen))
        };
        assert_eq!(chosen(&lease("pay", "1.5.0")), Some(0));
        assert_eq!(chosen(&lease("pay", "1.1.0")), Some(1));
        assert_eq!(chosen(&lease("pay", "3.0.0")), Some(1));
        assert_eq!(chosen(&lease("pay", "2.0.0-rc.1")), Some(1));
        assert_eq!(chosen(&lease("ship", "2.0.0")), None);
        assert_eq!(chosen(&lease("mail", "1.0.0")), None);
    }

    #[test]
    fn nothing_to_run_and_a_wrong_range_are_refused() {
        assert!(handlers(&[]).offers().is_err());
        let error = handlers(&[("pay", "*"), ("ship", "about 2")]).offers().unwrap_err();
        assert!(error.to_string().contains("\"ship\": \"about 2\""), "{error}");
    }
}
