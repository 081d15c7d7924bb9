//! What is answered.

use std::{
    convert::Infallible,
    future::Pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use stepwell_serve::Options;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    codec::CompressionEncoding::{Gzip, Zstd},
    server::NamedService,
    service::Routes,
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{Running, raw, soon};

#[tokio::test]
async fn it_is_alive_at_once_and_ready_when_its_checks_pass() {
    let running = Running::start().await;
    assert!(raw::get(&running.address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(raw::get(&running.address, "/readyz").await.starts_with("HTTP/1.1 200"));
    let works = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&works);
    running.service.ready("database", move || {
        let works = asked.load(Ordering::Relaxed);
        Box::pin(async move { if works { Ok(()) } else { Err("secret detail".to_owned()) } })
    });
    let answer = raw::get(&running.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("database"), "{answer}");
    assert!(!answer.contains("secret"), "what is wrong stands in the log only: {answer}");
    assert!(raw::get(&running.address, "/livez").await.starts_with("HTTP/1.1 200"));
    works.store(true, Ordering::Relaxed);
    assert!(raw::get(&running.address, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn probes_call_by_any_name_and_pages_only_by_one_that_is_ours() {
    let running = Running::start().await;
    for (path, status) in
        [("/livez", 200), ("/readyz", 200), ("/metrics", 403), ("/openapi.json", 403), ("/x", 403)]
    {
        for named in ["host: task.internal:7101", "host: localhost\r\norigin: http://task.internal"]
        {
            let head = format!("GET {path} HTTP/1.1\r\n{named}\r\n");
            let answer = raw::ask(&running.address, &head, "").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{named} {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_deadline_in_json_that_cannot_be_read_is_refused() {
    let running = Running::start().await;
    for (timeout, status) in [("50", 501), ("9999999999", 501), ("10000000000", 400), ("soon", 400)]
    {
        let head = format!(
            "POST /stepwell.v1.TaskService/GetTask HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\nconnect-timeout-ms: {timeout}\r\n"
        );
        let answer = raw::ask(&running.address, &head, "{}").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{timeout}: {answer}");
        let told = answer.contains("invalid_argument") && answer.contains("INVALID_REQUEST");
        assert_eq!(told, status == 400, "{timeout}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_has_failed() {
    let running = Running::start().await;
    running.service.ready("stuck", || Box::pin(std::future::pending()));
    let answer = raw::get(&running.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("stuck"), "{answer}");
}

#[tokio::test]
async fn health_knows_the_service_and_the_whole() {
    let running = Running::start().await;
    for encoding in [None, Some(Gzip), Some(Zstd)] {
        let mut health = running.health().await;
        if let Some(encoding) = encoding {
            health = health.send_compressed(encoding);
        }
        for name in ["", "stepwell.v1.TaskService"] {
            let request = HealthCheckRequest { service: name.to_owned() };
            let answer = health.check(request).await.unwrap().into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{name}, {encoding:?}");
        }
    }
    let unknown = HealthCheckRequest { service: "stepwell.v1.Nothing".to_owned() };
    let refused = running.health().await.check(unknown).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_request_id_is_echoed_or_made() {
    let running = Running::start().await;
    let mut health = running.health().await;
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("x-request-id", "order-17".parse().unwrap());
    let answer = health.check(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "order-17");
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("x-request-id", "two words".parse().unwrap());
    let answer = health.check(request).await.unwrap();
    let made = answer.metadata().get("x-request-id").unwrap().to_str().unwrap();
    assert_eq!(made.len(), 32, "{made}");
    let unknown = HealthCheckRequest { service: "nothing".into() };
    let refused = health.check(unknown).await.unwrap_err();
    assert!(refused.metadata().get("x-request-id").is_some(), "refusals have one too");
}

/// Lists services by one version of reflection. The two differ in their package only.
macro_rules! listed {
    ($version:ident, $channel:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let asked = futures::stream::iter([request]);
        let mut client = ServerReflectionClient::new($channel);
        let mut answers = client.server_reflection_info(asked).await.unwrap().into_inner();
        match answers.message().await.unwrap().unwrap().message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|s| s.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    }};
}

#[tokio::test]
async fn reflection_lists_our_services_in_both_versions() {
    let running = Running::start().await;
    for names in [listed!(v1, running.channel().await), listed!(v1alpha, running.channel().await)] {
        for name in [
            "stepwell.v1.TaskService",
            "stepwell.v1.StepService",
            "stepwell.v1.EventService",
            "grpc.health.v1.Health",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} is in {names:?}");
        }
    }
}

/// A service that never answers, and says so when nobody waits for it any more.
#[derive(Clone)]
pub(crate) struct Slow(pub(crate) CancellationToken);

impl NamedService for Slow {
    const NAME: &'static str = "stepwell.test.Slow";
}

impl tower::Service<Request<Body>> for Slow {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        futures::future::Map<GuardedPending, fn(Infallible) -> Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let waiting = GuardedPending(std::future::pending(), self.0.clone());
        futures::FutureExt::map(waiting, |never| match never {})
    }
}

pub(crate) struct GuardedPending(Pending<Infallible>, CancellationToken);

impl Future for GuardedPending {
    type Output = Infallible;

    fn poll(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Infallible> {
        std::pin::Pin::new(&mut self.get_mut().0).poll(context)
    }
}

impl Drop for GuardedPending {
    fn drop(&mut self) {
        self.1.cancel();
    }
}

#[tokio::test]
async fn a_call_ends_at_its_callers_deadline() {
    let given_up = CancellationToken::new();
    let routes = Routes::new(Slow(given_up.clone()));
    let running = Running::with(Options::default(), routes).await;
    let stream = tokio::net::TcpStream::connect(&running.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{}/stepwell.test.Slow/Wait", running.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "50m")
        .body(())
        .unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(bytes::Bytes::from_static(&[0; 5]), true).unwrap();
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED: {answer:?}");
    assert!(answer.headers().contains_key("x-request-id"));
    soon(given_up.cancelled()).await;
}
