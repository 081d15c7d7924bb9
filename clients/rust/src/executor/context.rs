//! What a handler is given.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use stepwell_proto::v1;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{error::HandlerError, publications::Wish};
use crate::client::Client;

/// No service takes more custom events together, nor with more data.
const EVENTS_MAX: usize = 20;
const EVENT_BYTES_MAX: usize = 64 << 10;

/// The step that a handler runs: its identity, its input, and what its parents returned. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct StepContext(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lease: v1::Lease,
    deadline: Instant,
    cancelled: CancellationToken,
    client: Client,
    /// Results that did not travel with the lease, once fetched.
    fetched: Mutex<HashMap<String, Arc<str>>>,
    progress: mpsc::Sender<String>,
    /// When progress was last told.
    told: StdMutex<Option<Instant>>,
    wishes: mpsc::Sender<Wish>,
    /// What is published with the outcome.
    at_end: StdMutex<Vec<v1::Publication>>,
}

impl StepContext {
    pub(super) fn new(
        lease: v1::Lease,
        deadline: Instant,
        cancelled: CancellationToken,
        client: Client,
        progress: mpsc::Sender<String>,
        wishes: mpsc::Sender<Wish>,
    ) -> Self {
        Self(Arc::new(Inner {
            lease,
            deadline,
            cancelled,
            client,
            fetched: Mutex::default(),
            progress,
            told: StdMutex::default(),
            wishes,
            at_end: StdMutex::default(),
        }))
    }

    /// Publishes a custom event of this step now, in the latest version of its type, and waits until it is
    /// durable: once, however often the stream breaks meanwhile. What is refused is a permanent error of class
    /// `InvalidEvent`, and nothing is published; one of class `LeaseLost` says that the attempt is over.
    pub async fn publish(&self, name: &str, data: &impl Serialize) -> Result<(), HandlerError> {
        self.publish_all(vec![publication(name, data)?]).await
    }

    /// The same of several events, at most 20, together or not at all.
    pub async fn publish_all(&self, events: Vec<v1::Publication>) -> Result<(), HandlerError> {
        if let Some(what) = excess(&events) {
            return Err(HandlerError::new("InvalidEvent", what).permanent());
        }
        let over = || HandlerError::new("LeaseLost", "the attempt is over");
        let (answer, answered) = oneshot::channel();
        let lease_id = self.0.lease.lease_id.clone();
        let wish = Wish { lease_id, events, answer };
        self.0.wishes.send(wish).await.map_err(|_| over())?;
        match answered.await.map_err(|_| over())? {
            None => Ok(()),
            Some(refusal) if refusal.reason() == v1::ErrorReason::LeaseLost => Err(over()),
            Some(refusal) => Err(HandlerError::new("InvalidEvent", refusal.message).permanent()),
        }
    }

    /// Publishes a custom event of this step with its outcome, in the latest version of its type: with whatever
    /// the handler ends, in the same commit, or not at all if that does not count. If it is refused, the attempt
    /// fails for good as `InvalidEvent`.
    pub fn publish_at_end(&self, name: &str, data: &impl Serialize) -> Result<(), HandlerError> {
        self.publish_all_at_end(vec![publication(name, data)?]);
        Ok(())
    }

    /// The same of several events, at most 20 for one attempt.
    pub fn publish_all_at_end(&self, events: Vec<v1::Publication>) {
        self.0.at_end.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
    }

    /// What is published with the outcome.
    pub(super) fn take_at_end(&self) -> Vec<v1::Publication> {
        std::mem::take(&mut *self.0.at_end.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that the handler gets on. One whose step has a `heartbeat_timeout` has to say so at least
    /// that often, or its attempt is ended as `HeartbeatTimeout`. Cheap: call it in every round of a
    /// loop; what is said more often than needed is not sent.
    pub fn progress(&self) {
        let heartbeat = self.0.lease.heartbeat_timeout;
        let Some(heartbeat) = heartbeat.and_then(|h| Duration::try_from(h).ok()) else { return };
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if told.is_none_or(|told| now - told >= heartbeat / 4)
            && self.0.progress.try_send(self.0.lease.lease_id.clone()).is_ok()
        {
            *told = Some(now);
        }
    }

    /// The task's id.
    pub fn task_id(&self) -> &str {
        &self.0.lease.task_id
    }

    /// The step's id. The same for every attempt: good as an idempotency key.
    pub fn step_id(&self) -> &str {
        &self.0.lease.step_id
    }

    /// The step's name.
    pub fn step_name(&self) -> &str {
        &self.0.lease.step_name
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> i32 {
        self.0.lease.attempt
    }

    /// Attempts the step may make in all.
    pub fn max_attempts(&self) -> i32 {
        self.0.lease.max_attempts
    }

    /// True when a failure of this attempt is final.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt() >= self.max_attempts()
    }

    /// Namespace of the task's definition.
    pub fn namespace(&self) -> &str {
        &self.0.lease.namespace
    }

    /// Name of the task's definition.
    pub fn definition_name(&self) -> &str {
        &self.0.lease.definition_name
    }

    /// Version of the task's definition.
    pub fn definition_version(&self) -> &str {
        &self.0.lease.definition_version
    }

    /// The lease of this attempt, as it came.
    pub fn lease(&self) -> &v1::Lease {
        &self.0.lease
    }

    /// The task's context. One that does not fit the type is a permanent error of class
    /// `InvalidInput`.
    #[track_caller]
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        read("the task's context", &self.0.lease.context)
    }

    /// The step's configuration, from the definition or as UpdateStep changed it; `{}` if there is none. One
    /// that does not fit the type is a permanent error of class `InvalidInput`.
    #[track_caller]
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        let config = self.0.lease.config.as_str();
        read("the step's configuration", if config.is_empty() { "{}" } else { config })
    }

    /// Names of the parents, in the order of the definition.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.lease.parents.iter().map(|parent| parent.step_name.as_str())
    }

    /// What a parent returned. A result that was too large to travel with the lease is fetched,
    /// once. A name that is no parent's, and a result that does not fit the type, are permanent
    /// errors of classes `UnknownParent` and `InvalidInput`.
    pub async fn parent<T: DeserializeOwned>(&self, name: &str) -> Result<T, HandlerError> {
        read(&format!("the result of {name}"), &self.parent_json(name).await?)
    }

    /// What a parent returned, as JSON text; see [`StepContext::parent`].
    pub async fn parent_json(&self, name: &str) -> Result<Arc<str>, HandlerError> {
        let parent = self.0.lease.parents.iter().find(|parent| parent.step_name == name);
        let Some(parent) = parent else {
            let message = format!("{name:?} is no parent of {:?}", self.step_name());
            return Err(HandlerError::new("UnknownParent", message).permanent());
        };
        if !parent.omitted {
            return Ok(parent.result.as_str().into());
        }
        let mut fetched = self.0.fetched.lock().await;
        if let Some(result) = fetched.get(name) {
            return Ok(Arc::clone(result));
        }
        let result = self.fetch(name).await?;
        fetched.insert(name.to_owned(), Arc::clone(&result));
        Ok(result)
    }

    async fn fetch(&self, name: &str) -> Result<Arc<str>, HandlerError> {
        let request = v1::ListStepResultsRequest {
            lease_id: self.0.lease.lease_id.clone(),
            step_names: vec![name.to_owned()],
        };
        let answer = self.0.client.list_step_results(request).await?;
        let result = answer.results.into_iter().find(|r| r.step_name == name && !r.omitted);
        let result = result.ok_or_else(|| {
            HandlerError::new("MissingResult", format!("the service has no result of {name:?}"))
        })?;
        Ok(result.result.into())
    }

    /// Done when the handler should stop: its lease is void, its time is up, or the executor's
    /// grace period is over. What it returns after that is reported only if the lease still holds.
    pub async fn cancelled(&self) {
        self.0.cancelled.cancelled().await;
    }

    /// The same as a token, to be handed on.
    pub fn cancellation(&self) -> CancellationToken {
        self.0.cancelled.clone()
    }

    /// How much of the attempt's time-out is left.
    pub fn remaining(&self) -> Duration {
        self.0.deadline.saturating_duration_since(Instant::now())
    }
}

fn publication(name: &str, data: &impl Serialize) -> Result<v1::Publication, HandlerError> {
    match serde_json::to_string(data) {
        Ok(data) => Ok(v1::Publication { name: name.to_owned(), version: 0, data }),
        Err(fault) => Err(HandlerError::new("InvalidEvent", fault.to_string()).permanent()),
    }
}

#[track_caller]
fn read<T: DeserializeOwned>(what: &str, json: &str) -> Result<T, HandlerError> {
    // Not `map_err`: the error's place is the handler's line.
    match serde_json::from_str(json) {
        Ok(value) => Ok(value),
        Err(fault) => {
            Err(HandlerError::new("InvalidInput", format!("{what}: {fault}")).permanent())
        }
    }
}
/// Why no service takes these events, if it is their number or size: what is too large could not even be sent.
pub(super) fn excess(events: &[v1::Publication]) -> Option<String> {
    let bytes =
        |of: fn(&v1::Publication) -> &str| events.iter().map(|e| of(e).len()).sum::<usize>();
    let most = bytes(|event| &event.data).max(bytes(|event| &event.name));
    if events.len() > EVENTS_MAX {
        return Some(format!(
            "{} events; at most {EVENTS_MAX} can be published together",
            events.len()
        ));
    }
    (most > EVENT_BYTES_MAX).then(|| {
        format!("the events have {most} bytes; at most {EVENT_BYTES_MAX} can be published together")
    })
}
