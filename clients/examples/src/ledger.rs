//! What a server did, by idempotency key: it does a thing once, however often it is asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Json,
    extract::FromRequestParts,
    http::{StatusCode, header::RETRY_AFTER, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// The `Idempotency-Key` of a request; one without is refused.
pub(crate) struct Key(pub(crate) String);

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let key = parts.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        let key = key.filter(|key| (1..=256).contains(&key.len()));
        let missing = || Refused::new(StatusCode::BAD_REQUEST, "an Idempotency-Key is wanted");
        key.map(|key| Self(key.to_owned())).ok_or_else(missing)
    }
}

/// What a server does not do.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    error: String,
    retry_after: Option<u32>,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), retry_after: None }
    }

    /// Not now, but in a second.
    pub(crate) fn busy() -> Self {
        let busy = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited");
        Self { retry_after: Some(1), ..busy }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({"error": self.error}))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Requests of type `Q` and what was answered to those that were carried out.
pub(crate) struct Ledger<Q, A>(Arc<Mutex<HashMap<String, Entry<Q, A>>>>);

struct Entry<Q, A> {
    calls: u32,
    done: Option<(Q, A)>,
}

impl<Q: PartialEq, A: Clone> Ledger<Q, A> {
    /// Does what is asked, unless it was done; `act` is told which call with this key it is.
    pub(crate) fn once(
        &self,
        key: &str,
        request: Q,
        act: impl FnOnce(&Q, u32) -> Result<A, Refused>,
    ) -> Result<A, Refused> {
        let mut entries = self.entries();
        let fresh = || Entry { calls: 0, done: None };
        let entry = entries.entry(key.to_owned()).or_insert_with(fresh);
        entry.calls += 1;
        match &entry.done {
            Some((done, answer)) if *done == request => Ok(answer.clone()),
            Some(_) => {
                let what = "the Idempotency-Key was used for another request";
                Err(Refused::new(StatusCode::BAD_REQUEST, what))
            }
            None => {
                let answer = act(&request, entry.calls)?;
                entry.done = Some((request, answer.clone()));
                Ok(answer)
            }
        }
    }

    /// The requests that were carried out, seen through `read`.
    pub(crate) fn done<T>(&self, read: impl Fn(&Q) -> T) -> Vec<T> {
        self.entries().values().filter_map(|e| e.done.as_ref()).map(|(q, _)| read(q)).collect()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry<Q, A>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q, A> Clone for Ledger<Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q, A> Default for Ledger<Q, A> {
    fn default() -> Self {
        Self(Arc::default())
    }
}
