//! Which events a subscriber wants, and from where.

use std::time::SystemTime;

use stepwell_proto::v1::{self, subscribe_request};

/// Where a feed begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the oldest event that is kept.
    Earliest,
    /// With the first event after the call.
    #[default]
    Latest,
    /// With the first commit at or after this time of the database; before all that is kept:
    /// `Earliest`, yet to come: `Latest`.
    At(SystemTime),
    /// After this cursor, taken from an earlier delivery.
    After(String),
}

/// A request for events; see [`crate::Client::subscribe`]. An event must match every list that is
/// not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "nothing is asked for before `Client::subscribe`"]
pub struct Subscription {
    start: Start,
    filter: v1::EventFilter,
    metadata_only: bool,
    with_snapshot: bool,
}

impl Subscription {
    /// Every recorded event from now on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where to begin. Default [`Start::Latest`].
    pub fn from(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Names: exact, `prefix.*`, or `*` for every recorded event. Default `*`; at most 100.
    pub fn names<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Ids of tasks. Default: all; at most 1,000.
    pub fn tasks<T: Into<String>>(mut self, task_ids: impl IntoIterator<Item = T>) -> Self {
        self.filter.task_ids.extend(task_ids.into_iter().map(Into::into));
        self
    }

    /// Names of definitions. Default: all; at most 100.
    pub fn definitions<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter.definition_names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Namespaces. Default: all; at most 100.
    pub fn namespaces<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter.namespaces.extend(names.into_iter().map(Into::into));
        self
    }

    /// Names of steps; events about a task as a whole have none. Default: all; at most 100.
    pub fn steps<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.filter.step_names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Tags: events of tasks that have any of them. Default: all; at most 100.
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.filter.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Correlation ids of tasks. Default: all; at most 1,000.
    pub fn correlation_ids<T: Into<String>>(mut self, ids: impl IntoIterator<Item = T>) -> Self {
        self.filter.correlation_ids.extend(ids.into_iter().map(Into::into));
        self
    }

    /// Of `step.failed`, and of what is derived from it, only what is final. Other events come too.
    pub fn only_final_failures(mut self) -> Self {
        self.filter.only_final_failures = true;
        self
    }
}

impl Subscription {
    /// Without contexts, results, configs and what failures say: see `SubscribeRequest.metadata_only`.
    pub fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }

    /// Begin with the task as it is, see [`crate::EventStream::snapshot`]; the events after it follow,
    /// nothing missing and nothing twice. Wants exactly one task, and no start but [`Start::Latest`].
    pub fn with_snapshot(mut self) -> Self {
        self.with_snapshot = true;
        self
    }
}

impl From<Subscription> for v1::SubscribeRequest {
    fn from(subscription: Subscription) -> Self {
        let start = match subscription.start.clone() {
            Start::Earliest => subscribe_request::Start::Earliest(v1::Earliest {}),
            Start::Latest => subscribe_request::Start::Latest(v1::Latest {}),
            Start::At(time) => subscribe_request::Start::AtTime(time.into()),
            Start::After(cursor) => subscribe_request::Start::AfterCursor(cursor),
        };
        let Subscription { filter, metadata_only, with_snapshot, .. } = subscription;
        Self { start: Some(start), filter: Some(filter), metadata_only, with_snapshot }
    }
}
