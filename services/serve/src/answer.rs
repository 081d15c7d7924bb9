//! The body of an answer to a gRPC call, seen until its end: it is made within the span of its
//! request, and a call that fails after its first message is logged as one that fails before it.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};
use tracing::Span;

use crate::rpc;

/// Logs a call that failed, once, with what is behind it: its code stands in the headers if nothing
/// was answered before, else in the trailers. Callers cause most failures, so those are quiet, and so
/// is what the service says by itself when it goes down.
pub(crate) fn log_failure(said: &HeaderMap, cause: Option<&(dyn Error + 'static)>, rpc: &Span) {
    let Some(code) = said.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes())) else {
        return;
    };
    rpc::ended(rpc, code);
    log_code(code, cause);
}

/// The same for an answer in plain HTTP.
pub(crate) fn log_code(code: Code, cause: Option<&(dyn Error + 'static)>) {
    match code {
        Code::Ok => {}
        // These are ours to look into.
        Code::Unknown | Code::Internal | Code::DataLoss => {
            tracing::error!(?code, error = cause, "failed");
        }
        Code::Unavailable if cause.is_some() => tracing::warn!(?code, error = cause, "failed"),
        _ => tracing::debug!(?code, "refused"),
    }
}

/// A body with the spans of its request: that of the log and that of the trace.
pub(crate) struct Answer {
    body: Body,
    spans: [Span; 2],
}

impl Answer {
    /// What ends with its headers stays as it is: there is nothing more to see.
    pub(crate) fn seen(body: Body, spans: [Span; 2]) -> Body {
        if http_body::Body::is_end_stream(&body) {
            return body;
        }
        Body::new(Self { body, spans })
    }
}

impl http_body::Body for Answer {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let answer = &mut *self;
        let [of_log, of_trace] = &answer.spans;
        let (_logged, _traced) = (of_log.enter(), of_trace.enter());
        let frame = Pin::new(&mut answer.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            log_failure(trailers, None, of_trace);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible, io, sync::Arc};

    use axum::body::Bytes;
    use http::{HeaderValue, Request, Response};
    use tower::{Layer, ServiceExt};

    use super::*;
    use crate::{layer::SeenLayer, log::Log};

    /// Frames that are there already.
    struct Frames(VecDeque<Frame<Bytes>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            tracing::info!("made");
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn status(code: &'static str) -> HeaderMap {
        HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(code))])
    }

    /// The lines that a call leaves which answers with these headers and frames.
    async fn lines(headers: HeaderMap, frames: Vec<Frame<Bytes>>) -> Vec<String> {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let mut answer = Response::new(Body::new(Frames(frames.into())));
        *answer.headers_mut() = headers;
        let mut answer = Some(answer);
        let service = tower::service_fn(move |_: Request<&str>| {
            std::future::ready(Ok::<_, Infallible>(answer.take().unwrap()))
        });
        let request = Request::post("/stepwell.test.Feed/Read")
            .header("content-type", "application/grpc")
            .header("x-request-id", "order-17")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .body("secret")
            .unwrap();
        let seen = SeenLayer { service: "test" }.layer(service);
        let mut body = seen.oneshot(request).await.unwrap().into_body();
        while let Some(frame) =
            std::future::poll_fn(|c| http_body::Body::poll_frame(Pin::new(&mut body), c)).await
        {
            frame.unwrap();
        }
        let written = log.text();
        written.lines().map(str::to_owned).collect()
    }

    fn about<'a>(lines: &'a [String], word: &str) -> Vec<&'a String> {
        lines.iter().filter(|line| line.contains(word)).collect()
    }

    #[tokio::test]
    async fn a_stream_that_fails_after_messages_is_logged_once_with_what_finds_it_again() {
        let message = Frame::data(Bytes::from_static(b"secret"));
        let lines = lines(HeaderMap::new(), vec![message, Frame::trailers(status("13"))]).await;
        let failed = about(&lines, "failed");
        assert_eq!(failed.len(), 1, "{lines:?}");
        for word in [
            "ERROR",
            "Internal",
            "order-17",
            "4bf92f3577b34da6a3ce929d0e0e4736",
            "/stepwell.test.Feed/Read",
        ] {
            assert!(failed[0].contains(word), "{word}: {lines:?}");
        }
        let made = about(&lines, "made");
        assert!(!made.is_empty() && made.iter().all(|line| line.contains("order-17")), "{made:?}");
        assert!(about(&lines, "secret").is_empty(), "no payloads: {lines:?}");
    }

    #[tokio::test]
    async fn what_is_behind_a_failure_is_in_its_one_line() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let service = tower::service_fn(|_: Request<()>| async {
            let mut status = Status::unavailable("the database does not answer");
            status.set_source(Arc::new(io::Error::other("connection refused")));
            Ok::<_, Infallible>(status.into_http::<Body>())
        });
        let request = Request::post("/stepwell.test.Feed/Read").body(()).unwrap();
        let seen = SeenLayer { service: "test" }.layer(service);
        seen.oneshot(request).await.unwrap();
        let written = log.text();
        let lines: Vec<String> = written.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        for word in ["WARN", "failed", "Unavailable", "connection refused", "Feed/Read"] {
            assert!(lines[0].contains(word), "{word}: {lines:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_logged_once_and_quietly() {
        let lines = lines(status("5"), Vec::new()).await;
        let refused = about(&lines, "refused");
        assert_eq!(refused.len(), 1, "{lines:?}");
        assert!(refused[0].contains("DEBUG") && refused[0].contains("NotFound"), "{lines:?}");
    }

    #[tokio::test]
    async fn what_went_well_is_not_logged() {
        let lines = lines(HeaderMap::new(), vec![Frame::trailers(status("0"))]).await;
        assert!(about(&lines, "failed").is_empty() && about(&lines, "refused").is_empty());
        assert!(!about(&lines, "made").is_empty(), "the log is heard at all");
    }
}
