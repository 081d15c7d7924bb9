//! The way of handlers to servers over HTTP. What has no answer, and statuses that mean the same everywhere,
//! become a handler's error here; what only one server means by a status is said by the handler that calls it.

use std::time::Duration;

use reqwest::{Client as Http, Method, StatusCode, header::RETRY_AFTER};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stepwell_client::{HandlerError, StepContext};

/// Servers at one address. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    http: Http,
    address: String,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// After how long it wants to be asked again.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Value,
    /// What was called.
    path: String,
}

impl Caller {
    /// The servers at `http://host:port`.
    pub(crate) fn at(address: &str) -> Self {
        // Another part of the process may have chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // They are beside us: a proxy for the world outside is not asked, and no roots are trusted.
        let http = Http::builder().no_proxy().tls_certs_only([]).build();
        let http = http.expect("nothing to set up that can fail");
        Self { http, address: address.to_owned() }
    }

    /// Calls a server for a step, whose id is the idempotency key: it is the same in every attempt. No answer
    /// within the time is an error of class `Timeout`, no connection one of class `Unreachable`; both are tried
    /// again.
    pub(crate) async fn call(
        &self,
        step: &StepContext,
        (method, path): (Method, &str),
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Answer, HandlerError> {
        let no_answer = |error: reqwest::Error| match error.is_timeout() {
            true => HandlerError::new("Timeout", format!("{path}: no answer within {within:?}"))
                .code("TIMEOUT"),
            false => {
                HandlerError::new("Unreachable", format!("{path}: {error}")).code("UNREACHABLE")
            }
        };
        let request = self.http.request(method, format!("{}{path}", self.address));
        let request = request.header("idempotency-key", step.step_id());
        let request = request.timeout(within.min(step.remaining()));
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let response = request.send().await.map_err(no_answer)?;
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| Some(Duration::from_secs(value.to_str().ok()?.parse().ok()?)));
        let status = response.status();
        let text = response.text().await.map_err(no_answer)?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, retry_after, body, path: path.to_owned() })
    }
}

impl Answer {
    /// The body, if it is a success; else what its status means for the step: whether to try again, and when.
    /// `wait` is for servers that ask to wait and do not say how long.
    pub(crate) fn into_success<T: DeserializeOwned>(
        self,
        wait: Duration,
    ) -> Result<T, HandlerError> {
        if self.status.is_success() {
            return serde_json::from_value(self.body).map_err(|error| {
                HandlerError::new("BadAnswer", format!("{}: {error}", self.path))
                    .code("BAD_ANSWER")
                    .permanent()
            });
        }
        Err(self.into_error(wait))
    }

    fn into_error(self, wait: Duration) -> HandlerError {
        let why = self.body["error"].as_str().unwrap_or("no reason given");
        let message = format!("{}: {}: {why}", self.path, self.status);
        let refused = |class: &str, code: &str| {
            HandlerError::new(class, message.clone()).code(code).permanent()
        };
        match self.status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                refused("Refused", "INVALID_REQUEST")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => refused("Refused", "AUTH_ERROR"),
            StatusCode::NOT_FOUND => refused("Refused", "RESOURCE_NOT_FOUND"),
            StatusCode::TOO_MANY_REQUESTS => HandlerError::new("RateLimited", message)
                .code("RATE_LIMITED")
                .retry_after(self.retry_after.unwrap_or(wait)),
            // Also what nobody has heard of: it may go away.
            _ => HandlerError::new("ServiceUnavailable", message).code("SERVICE_UNAVAILABLE"),
        }
    }
}
