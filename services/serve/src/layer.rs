//! What happens to every request: it gets an id, which is in its log lines and in the answer; it
//! ends at the caller's deadline; and a failed call is logged once with its code. Payloads are
//! never logged.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::Either};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use stepwell_trace::TraceContext;
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::{
    answer::{Answer, log_failure},
    limits::CALL_WITHIN,
    rpc,
};

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Adds `Seen` around a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeenLayer {
    /// The name of the service in log lines.
    pub(crate) service: &'static str,
}

impl<S> Layer<S> for SeenLayer {
    type Service = Seen<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Seen { inner, service: self.service }
    }
}

/// A service whose requests have ids and deadlines.
#[derive(Clone, Debug)]
pub(crate) struct Seen<S> {
    inner: S,
    service: &'static str,
}

impl<S, B> Service<Request<B>> for Seen<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let headers = request.headers();
        let id = request_id(headers);
        let caller = rpc::caller(headers);
        let rpc = rpc::span(request.uri(), self.service, id.to_str().unwrap_or_default(), caller);
        // A trace that begins here is named too.
        let trace = caller.or_else(|| TraceContext::of(&rpc));
        let span = tracing::info_span!(
            "request",
            service = self.service,
            method = request.uri().path(),
            request_id = id.to_str().unwrap_or_default(),
            trace_id = trace.map(TraceContext::trace_id),
        );
        let grpc = is_grpc(headers);
        let deadline = grpc.then(|| Deadline::of(headers));
        let answer = self.inner.call(request);
        // Only up to the first answer: a stream may last longer than its caller waits for that.
        // It counts from now, not from when the future is first polled: the library around us has
        // a timer of its own, started after this one, which answers CANCELLED and without our id.
        let answer = match deadline {
            None => Either::Left(answer.map(Ok)),
            Some(deadline) => Either::Right(deadline.limit(answer)),
        };
        let seen = [span.clone(), rpc.clone()];
        let answered = async move {
            let mut response = match answer.await {
                Ok(answered) => answered?,
                Err(what) => Status::deadline_exceeded(what).into_http(),
            };
            let cause = response.extensions().get::<Status>().and_then(Error::source);
            log_failure(response.headers(), cause, &seen[1]);
            if grpc {
                response = response.map(|body| Answer::seen(body, seen));
            }
            response.headers_mut().insert(REQUEST_ID, id);
            Ok(response)
        };
        Box::pin(answered.instrument(rpc).instrument(span))
    }
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Until when a call must be answered: as long as its caller waits, and never longer than a call
/// may take.
enum Deadline {
    Callers(Duration),
    Ours,
}

impl Deadline {
    fn of(headers: &HeaderMap) -> Self {
        let shorter = timeout(headers).filter(|timeout| *timeout < CALL_WITHIN);
        shorter.map_or(Self::Ours, Self::Callers)
    }

    fn limit<F: Future>(self, answer: F) -> impl Future<Output = Result<F::Output, &'static str>> {
        let (within, what) = match self {
            Self::Callers(within) => (within, "the caller's deadline has passed"),
            Self::Ours => (CALL_WITHIN, "a call may not take longer"),
        };
        tokio::time::timeout(within, answer).map(move |answered| answered.map_err(|_| what))
    }
}

/// How long the caller waits: at most eight digits and a unit, as gRPC defines it.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n = digits.parse::<u64>().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// The caller's id if it is sane, else one of ours.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    });
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::now_v7().simple().to_string()).expect("hex digits")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_counts_from_the_call_and_not_from_the_first_look_at_it() {
        let silent = tower::service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let mut seen = SeenLayer { service: "test" }.layer(silent);
        let request = Request::post("/stepwell.test.Silent/Call")
            .header(CONTENT_TYPE, "application/grpc")
            .header("grpc-timeout", "50m")
            .body(())
            .unwrap();
        let called = tokio::time::Instant::now();
        let answer = seen.call(request);
        tokio::time::advance(Duration::from_millis(40)).await;
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED");
        let waited = called.elapsed();
        assert!(waited <= Duration::from_millis(51), "{waited:?}");
    }

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let of = |value| timeout(&with("grpc-timeout", value));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(of("99999999S"), Some(Duration::from_secs(99_999_999)));
        for bad in ["", "m", "5", "-5S", "+5S", "123456789S", "5 S", "5s", "5é"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_sane_request_id_is_kept() {
        assert_eq!(request_id(&with(REQUEST_ID, "a-1_B.2")), "a-1_B.2");
        for bad in ["", "two words", "id\"", &"x".repeat(65)] {
            let made = request_id(&with(REQUEST_ID, bad));
            assert_eq!(made.len(), 32, "{bad:?} became {made:?}");
        }
    }
}
