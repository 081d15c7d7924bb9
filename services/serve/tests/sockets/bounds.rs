//! Calls that are too large, too slow, or cannot be read: each is refused with a reason, its
//! connection goes on, and others are served.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use stepwell_serve::Options;
use tokio::time::Instant;
use tonic::{
    Code, Status,
    body::Body,
    codec::CompressionEncoding::{Gzip, Zstd},
    server::NamedService,
    service::Routes,
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{
    Running,
    calls::Slow,
    raw::{DATA, END, HEADERS, Peer, SETTINGS, call, frame, message},
    soon,
};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const MIB: usize = 1 << 20;

fn refused(status: &Status) -> Refusal {
    Refusal::from_status(status).unwrap_or_else(|| panic!("no reason: {status:?}"))
}

fn ask(service: String) -> HealthCheckRequest {
    HealthCheckRequest { service }
}

/// Sends frames of a call on a connection of its own; the answer's headers, or its trailers.
async fn answer(address: &str, path: &str, body: Vec<u8>, whole: bool) -> HeaderMap {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (answer, mut sent) = sender.send_request(request, false).unwrap();
    sent.send_data(body.into(), whole).unwrap();
    let answer = answer.await.unwrap();
    assert!(answer.headers().contains_key("grpc-status"), "{answer:?}");
    answer.headers().clone()
}

#[tokio::test]
async fn a_message_of_five_mebibytes_is_refused_with_a_reason_and_its_connection_goes_on() {
    let running = Running::start().await;
    let mut health = running.health().await;
    for _ in 0..3 {
        let refusal = refused(&health.check(ask("x".repeat(5 * MIB))).await.unwrap_err());
        assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
        assert!(refusal.message.contains("at most 4194304"), "{refusal}");
        health.check(ask(String::new())).await.unwrap();
    }
}

#[tokio::test]
async fn a_bomb_is_refused_with_a_reason_and_its_connection_goes_on() {
    let running = Running::start().await;
    for encoding in [Gzip, Zstd] {
        let mut bomber = running.health().await.send_compressed(encoding);
        for _ in 0..3 {
            // A few thousand bytes on the wire.
            let refusal = refused(&bomber.check(ask("x".repeat(32 * MIB))).await.unwrap_err());
            assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
            assert!(refusal.message.contains("4194304"), "{refusal}");
            bomber.check(ask(String::new())).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_no_message_is_the_caller_s_fault_and_is_refused_with_a_reason() {
    let running = Running::start().await;
    // Groups in groups, deeper than any stack.
    let nested = message(&[0x1b; 100_000]);
    let garbage = message(&[0xff; 100]);
    let unflagged = [7, 0, 0, 0, 0].to_vec();
    let cut_short = message(b"\x0a\x01x")[..6].to_vec();
    for body in [nested, garbage, unflagged, cut_short] {
        let said = soon(answer(&running.address, CHECK, body, true)).await;
        let status = Status::from_header_map(&said).unwrap();
        assert_eq!(refused(&status).reason, ErrorReason::InvalidRequest, "{status:?}");
    }
    running.health().await.check(ask(String::new())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_begun_and_never_ended_is_refused() {
    let running = Running::start().await;
    // The last one lacks only the end of the call.
    for begun in [&message(&[0; 10_000])[..9000], &message(&[0; 10])[..5], &[0, 0], &message(&[])] {
        let since = Instant::now();
        let said = answer(&running.address, CHECK, begun.to_vec(), false).await;
        let status = Status::from_header_map(&said).unwrap();
        assert_eq!(refused(&status).reason, ErrorReason::InvalidRequest, "{status:?}");
        assert_eq!(since.elapsed().as_secs(), 30);
    }
}

#[tokio::test]
async fn half_sent_messages_take_no_more_memory_than_there_is_for_them() {
    let running = Running::start().await;
    let mut small = running.health().await;
    let mut peer = Peer::connect(&running.address).await;
    peer.send(&frame(SETTINGS, 0, 0, &[])).await;
    // Each announces four mebibytes: 64 of them are as much as there may be.
    let begun = |stream| {
        let announced = (4_u32 << 20).to_be_bytes();
        let start = [&[0], &announced[..], b"x"].concat();
        [call(stream, CHECK), frame(DATA, 0, stream, &start)].concat()
    };
    for n in 0..64 {
        peer.send(&begun(2 * n + 1)).await;
    }
    peer.send(&begun(2 * 64 + 1)).await;
    assert!(peer.next(HEADERS).await.is_some(), "one more is refused");
    let mut large = running.health().await;
    let refusal = refused(&large.check(ask("x".repeat(MIB))).await.unwrap_err());
    assert_eq!(refusal.reason, ErrorReason::Overloaded);
    assert!(refusal.retry_after.is_some());
    small.check(ask(String::new())).await.expect("small ones are served");
    drop(peer);
    // The health service knows no such name, once it hears it.
    let heard = async {
        while large.check(ask("x".repeat(MIB))).await.unwrap_err().code() != Code::NotFound {}
    };
    soon(heard).await;
}

/// A service with large answers, all of the same bytes.
#[derive(Clone)]
struct Large(Bytes);

impl NamedService for Large {
    const NAME: &'static str = "stepwell.test.Large";
}

impl tower::Service<Request<Body>> for Large {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let well =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let frames = vec![Frame::trailers(well), Frame::data(self.0.clone())];
        let answer = Response::new(Body::new(Frames(frames)));
        ready(Ok(answer))
    }
}

/// Frames, the last one first.
struct Frames(Vec<Frame<Bytes>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop().map(Ok))
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_takes_are_bounded_in_memory_and_time() {
    const GET: &str = "/stepwell.test.Large/Get";
    let routes = Routes::new(Large(message(&vec![0; 4 * MIB - 5]).into()));
    let running = Running::with(Options::default(), routes).await;
    let begun = Instant::now();
    let mut peer = Peer::connect(&running.address).await;
    // Nothing may be sent to it but headers.
    peer.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    let get = |stream| [call(stream, GET), frame(DATA, END, stream, &message(&[]))].concat();
    for n in 0..64 {
        peer.send(&get(2 * n + 1)).await;
        assert!(peer.next(HEADERS).await.is_some());
    }
    let said = answer(&running.address, GET, message(&[]), true).await;
    let refusal = refused(&Status::from_header_map(&said).unwrap());
    assert_eq!(refusal.reason, ErrorReason::Overloaded);
    running.health().await.check(ask(String::new())).await.expect("small ones are served");
    // It says that it is there, and takes nothing.
    while peer.next_while_alive(HEADERS).await.is_some() {}
    assert_eq!(begun.elapsed().as_secs(), 60, "closed");
    let mut reader = Peer::connect(&running.address).await;
    reader.send(&frame(SETTINGS, 0, 0, &[])).await;
    reader.send(&get(1)).await;
    assert!(soon(reader.next(DATA)).await.is_some(), "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_deadline_has_ours_and_one_with_a_longer_one_as_well() {
    let running = Running::with(Options::default(), Routes::new(Slow(Default::default()))).await;
    for deadline in [None, Some("99999999H")] {
        let begun = Instant::now();
        let stream = tokio::net::TcpStream::connect(&running.address).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut request =
            Request::post(format!("http://{}/stepwell.test.Slow/Wait", running.address))
                .header("content-type", "application/grpc");
        if let Some(deadline) = deadline {
            request = request.header("grpc-timeout", deadline);
        }
        let (answer, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED: {answer:?}");
        assert_eq!(begun.elapsed().as_secs(), 75);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_lasts_longer_than_any_call() {
    let running = Running::start().await;
    let mut watch = running.health().await.watch(ask(String::new())).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    running.service.shutdown().begin();
    let last = soon(watch.message()).await.unwrap().unwrap();
    assert_eq!(last.status(), ServingStatus::NotServing);
}
