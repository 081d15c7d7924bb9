//! What happens to every request: it gets an id, which is in its log lines and in the answer, and a
//! failed call is logged once with its code. Payloads are never logged.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Adds `Identified` around a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdentifyLayer;

impl<S> Layer<S> for IdentifyLayer {
    type Service = Identified<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Identified { inner }
    }
}

/// A service whose requests have ids.
#[derive(Clone, Debug)]
pub(crate) struct Identified<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Identified<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let id = request_id(&request);
        let trace_id = trace_id(&request).unwrap_or_default();
        let span = tracing::info_span!(
            "request",
            method = request.uri().path(),
            request_id = id.to_str().unwrap_or_default(),
            trace_id
        );
        let answer = self.inner.call(request);
        let answered = async move {
            let mut response = answer.await?;
            if let Some(code) = response.headers().get("grpc-status").filter(|c| *c != "0") {
                tracing::info!(code = code.to_str().unwrap_or_default(), "refused");
            }
            response.headers_mut().insert(REQUEST_ID, id);
            Ok(response)
        };
        Box::pin(answered.instrument(span))
    }
}

/// The caller's id if it is sane, else one of ours.
fn request_id<B>(request: &Request<B>) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID).filter(|id| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    });
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::now_v7().simple().to_string()).expect("hex digits")
    })
}

/// The trace id of a W3C `traceparent`.
fn trace_id<B>(request: &Request<B>) -> Option<String> {
    let parent = request.headers().get("traceparent")?.to_str().ok()?;
    let id = parent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}
