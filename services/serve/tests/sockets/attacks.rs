//! Peers that mean ill.

use stepwell_serve::Options;
use tonic::{Request, metadata::MetadataValue};
use tonic_health::pb::HealthCheckRequest;

use crate::{
    Running,
    raw::{
        DATA, ENHANCE_YOUR_CALM, GO_AWAY, HEADERS, Peer, REFUSED_STREAM, RESET, SETTINGS, call,
        frame,
    },
};

const STREAMS_MAX: u32 = 1024;
const WATCH: &str = "/grpc.health.v1.Health/Watch";

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

#[tokio::test]
async fn the_limits_are_announced() {
    let running = Running::start().await;
    let mut peer = Peer::connect(&running.address).await;
    peer.send(&frame(SETTINGS, 0, 0, &[])).await;
    let settings = peer.next(SETTINGS).await.unwrap().payload;
    let value = |id: u16| {
        let setting = settings.chunks(6).find(|s| s[..2] == id.to_be_bytes());
        setting.map(|s| number(&s[2..]))
    };
    assert_eq!(value(3), Some(STREAMS_MAX), "concurrent streams");
    assert_eq!(value(4), Some(1 << 20), "window of a stream");
    assert_eq!(value(6), Some(16 << 10), "bytes of headers");
}

#[tokio::test]
async fn of_a_flood_of_streams_those_over_the_limit_are_refused() {
    let running = Running::start().await;
    let mut peer = Peer::connect(&running.address).await;
    peer.send(&frame(SETTINGS, 0, 0, &[])).await;
    // They last: each is a watch, and none of them ends.
    let mut streams = (0..).map(|n| 2 * n + 1);
    for stream in streams.by_ref().take(STREAMS_MAX as usize) {
        let watch = [call(stream, WATCH), frame(DATA, 1, stream, &[0; 5])].concat();
        peer.send(&watch).await;
    }
    for _ in 0..STREAMS_MAX {
        assert!(peer.next(HEADERS).await.is_some(), "every one of them is answered");
    }
    for stream in streams.take(5) {
        peer.send(&call(stream, WATCH)).await;
        let reset = peer.next(RESET).await.unwrap();
        assert_eq!(number(&reset.payload), REFUSED_STREAM);
    }
}

#[tokio::test]
async fn a_peer_that_opens_and_resets_without_end_is_sent_away() {
    let running = Running::start().await;
    let mut peer = Peer::connect(&running.address).await;
    let mut flood = frame(SETTINGS, 0, 0, &[]);
    for stream in (0..500).map(|n| 2 * n + 1) {
        flood.extend(call(stream, WATCH));
        flood.extend(frame(RESET, 0, stream, &8_u32.to_be_bytes()));
    }
    peer.send(&flood).await;
    let away = peer.next(GO_AWAY).await.expect("the flood is stopped");
    assert_eq!(number(&away.payload[4..8]), ENHANCE_YOUR_CALM);
    assert!(peer.frame().await.is_none(), "and the connection ends");
}

#[tokio::test]
async fn a_huge_header_is_refused_and_harms_nobody_else() {
    let running = Running::start().await;
    let mut other = running.health().await;
    let mut request = Request::new(HealthCheckRequest::default());
    let huge = MetadataValue::try_from("x".repeat(64 << 10)).unwrap();
    request.metadata_mut().insert("x-huge", huge);
    running.health().await.check(request).await.expect_err("too large");
    other.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_even_begin_is_cut_off() {
    let running = Running::start().await;
    let begun = tokio::time::Instant::now();
    for start in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n"] {
        let mut peer = Peer(tokio::net::TcpStream::connect(&running.address).await.unwrap());
        peer.send(start).await;
        assert!(peer.frame().await.is_none(), "closed, though {start:?} was said");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(60));
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused() {
    let options = Options { listen: Some(([0, 0, 0, 0], 0).into()), ..Options::default() };
    let service = stepwell_serve::Service::start("test", &options).unwrap();
    let refused = service.bind(&options, 0).await.unwrap_err().to_string();
    assert!(refused.contains("--insecure"), "{refused}");
    let said = Options { insecure: true, ..options };
    service.bind(&said, 0).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let running = Running::start().await;
    let options = Options { listen: Some(running.address.parse().unwrap()), ..Options::default() };
    let refused = running.service.bind(&options, 0).await.unwrap_err().to_string();
    assert!(refused.contains(&running.address) && refused.contains("taken"), "{refused}");
}
