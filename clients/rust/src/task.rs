//! Describing a task to create.

use std::time::Duration;

use serde::Serialize;
use stepwell_proto::v1;

use crate::{client::Client, error::Error};

/// A task that is about to be created; see [`Client::task`].
#[derive(Debug)]
#[must_use = "nothing is created before `create`"]
pub struct TaskBuilder {
    client: Client,
    request: v1::CreateTaskRequest,
    fault: Option<serde_json::Error>,
}

impl TaskBuilder {
    pub(crate) fn new(client: Client, definition_name: String) -> Self {
        let request = v1::CreateTaskRequest { definition_name, ..Default::default() };
        Self { client, request, fault: None }
    }

    /// A UUID, best of version 7: creating the task again under it is safe. Default: a new one.
    pub fn id(mut self, task_id: impl Into<String>) -> Self {
        self.request.task_id = task_id.into();
        self
    }

    /// A key of the caller's own, 1 to 256 bytes, for tasks of this definition: creating one again with it answers the
    /// existing task. Default: none.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.request.idempotency_key = key.into();
        self
    }

    /// How long after the task's creation the key holds. Default: what the definition says, else as long as the task
    /// is kept; 1 ms to 365 days.
    pub fn idempotency_window(mut self, window: Duration) -> Self {
        self.request.idempotency_window = Some(prost_duration(window));
        self
    }

    /// Answers the existing task if one with the same content was created at most so long ago; zero: never. Default:
    /// what the definition says; at most 365 days.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.request.dedup_window = Some(prost_duration(window));
        self
    }

    /// Namespace of the definition. Default `default`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.request.namespace = namespace.into();
        self
    }

    /// Version of the definition, `MAJOR.MINOR.PATCH`. Default: the latest.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.request.definition_version = version.into();
        self
    }

    /// What the task is about: anything that is a JSON object. Default `{}`.
    pub fn context(mut self, context: &impl Serialize) -> Self {
        match serde_json::to_string(context) {
            Ok(json) => self.request.context = json,
            Err(fault) => self.fault = Some(fault),
        }
        self
    }

    /// What the task is about, as JSON text.
    pub fn context_json(mut self, context: impl Into<String>) -> Self {
        self.request.context = context.into();
        self
    }

    /// Who asks. Default `unknown`; at most 256 bytes.
    pub fn initiator(mut self, initiator: impl Into<String>) -> Self {
        self.request.initiator = initiator.into();
        self
    }

    /// Which system asks. Default `unknown`; at most 256 bytes.
    pub fn source_system(mut self, source_system: impl Into<String>) -> Self {
        self.request.source_system = source_system.into();
        self
    }

    /// Why. Default `unknown`; at most 256 bytes.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.request.reason = reason.into();
        self
    }

    /// Free labels; at most 32 of 128 bytes.
    pub fn tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.request.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// What the task belongs to in the caller's eyes: a letter or digit, then letters, digits, `_` and
    /// `-`, 100 at most. Default: one is made.
    pub fn correlation_id(mut self, correlation_id: impl Into<String>) -> Self {
        self.request.correlation_id = correlation_id.into();
        self
    }

    /// Names of steps that are not to run; each has to be skippable by the definition.
    pub fn bypass_steps<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.request.bypass_steps.extend(names.into_iter().map(Into::into));
        self
    }

    /// A fact to keep with it, under a name; see [`Client::annotate`].
    pub fn annotation(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.request.annotations.insert(name.into(), text.into());
        self
    }

    /// Creates it, durably.
    pub async fn create(self) -> Result<v1::Task, Error> {
        if let Some(fault) = self.fault {
            return Err(fault.into());
        }
        let answer = self.client.create_task(self.request).await?;
        answer.task.ok_or(Error::Answer("it has no task"))
    }
}

/// As it goes over the wire; what is too long for that is refused by the service.
fn prost_duration(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or_default();
    prost_types::Duration { seconds, nanos }
}
