//! Peers that come in numbers, or say too much, or nothing.

use std::{net::SocketAddr, time::Duration};

use stepwell_serve::Options;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::Instant,
};
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;

use crate::{
    Running,
    raw::{
        ACK, CONTINUATION, DATA, ENHANCE_YOUR_CALM, GO_AWAY, HEADERS, PING, Peer, SETTINGS,
        WINDOW_UPDATE, call, frame, head_of,
    },
    soon,
};

const WATCH: &str = "/grpc.health.v1.Health/Watch";

fn reason(away: &[u8]) -> u32 {
    u32::from_be_bytes(away[4..8].try_into().unwrap())
}

/// A peer that is being served.
async fn served(address: &str) -> Peer {
    let mut peer = Peer::connect(address).await;
    peer.send(&frame(SETTINGS, 0, 0, &[])).await;
    assert!(peer.next(SETTINGS).await.is_some(), "it is served");
    peer
}

/// A question whether the other side is there, and its answer.
async fn ping(peer: &mut Peer) {
    peer.send(&frame(PING, 0, 0, b"is there")).await;
    assert_eq!(peer.next(PING).await.unwrap().flags & ACK, ACK);
}

#[tokio::test]
async fn connections_over_the_limit_wait_and_are_served_when_others_end() {
    let options = Options { connections_max: 3, ..Options::default() };
    let running = Running::with(options, Routes::default()).await;
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(served(&running.address).await);
    }
    let mut late = Peer::connect(&running.address).await;
    late.send(&frame(SETTINGS, 0, 0, &[])).await;
    for peer in &mut peers {
        ping(peer).await;
    }
    let nothing = late.0.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "it waits");
    peers.pop();
    assert!(late.next(SETTINGS).await.is_some(), "there is room for it now");
}

#[tokio::test]
async fn one_address_takes_its_share_of_connections_and_leaves_the_rest_to_others() {
    let options =
        Options { connections_max: 10, connections_per_address_max: 3, ..Options::default() };
    let running = Running::with(options, Routes::default()).await;
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(served(&running.address).await);
    }
    for _ in 0..20 {
        let mut more = TcpStream::connect(&running.address).await.unwrap();
        let ended = soon(more.read(&mut [0; 1])).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "closed at once");
    }
    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let to: SocketAddr = running.address.parse().unwrap();
    let mut other = Peer(elsewhere.connect(to).await.unwrap());
    other.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    other.send(&frame(SETTINGS, 0, 0, &[])).await;
    assert!(other.next(SETTINGS).await.is_some(), "another address is served");
    ping(&mut peers[0]).await;
    peers.clear();
    running.health().await.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_makes_us_reset_its_streams_without_end_is_sent_away() {
    let running = Running::start().await;
    let mut peer = served(&running.address).await;
    let too_much = 0x7fff_ffff_u32.to_be_bytes();
    let mut flood = Vec::new();
    for stream in (0..300).map(|n| 2 * n + 1) {
        flood.extend(call(stream, WATCH));
        flood.extend(frame(WINDOW_UPDATE, 0, stream, &too_much));
    }
    peer.send(&flood).await;
    let away = peer.next(GO_AWAY).await.expect("the flood is stopped");
    assert_eq!(reason(&away.payload), ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn headers_that_never_end_are_stopped() {
    let running = Running::start().await;
    let mut other = running.health().await;
    let mut peer = served(&running.address).await;
    let header = [&[0, 6][..], b"x-long", &[100], &[b'x'; 100]].concat();
    let more = frame(CONTINUATION, 0, 1, &header.repeat(100));
    let flood = async {
        let mut bytes = 0;
        let mut flood = frame(HEADERS, 0, 1, &head_of(WATCH));
        while peer.0.write_all(&flood).await.is_ok() {
            bytes += flood.len();
            flood.clone_from(&more);
            assert!(bytes < 16 << 20, "nobody takes so much");
        }
    };
    soon(flood).await;
    other.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn frames_of_data_without_data_are_stopped() {
    let running = Running::start().await;
    let mut peer = served(&running.address).await;
    peer.send(&call(1, WATCH)).await;
    let flood = frame(DATA, 0, 1, &[]).repeat(1000);
    let flood = async {
        let mut frames = 0;
        while peer.0.write_all(&flood).await.is_ok() {
            frames += 1000;
            assert!(frames < 10_000_000, "nobody takes so many");
        }
    };
    soon(flood).await;
}

/// Whoever asks and does not hear the answers is not heard any more: nothing piles up. In the end he
/// is given up.
#[tokio::test]
async fn a_flood_of_questions_is_held_back_when_their_answers_are_not_read() {
    let options = Options { keepalive: 1, ..Options::default() };
    let running = Running::with(options, Routes::default()).await;
    let mut other = running.health().await;
    for question in [frame(PING, 0, 0, b"is there"), frame(SETTINGS, 0, 0, &[])] {
        let mut peer = Peer::connect(&running.address).await;
        peer.send(&frame(SETTINGS, 0, 0, &[])).await;
        let questions = question.repeat(10_000);
        let mut bytes = 0;
        let flood = async {
            while peer.0.write_all(&questions).await.is_ok() {
                bytes += questions.len();
                assert!(bytes < 256 << 20, "nobody takes so much");
            }
        };
        soon(flood).await;
        other.check(HealthCheckRequest::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_given_up_and_one_that_is_idle_is_not() {
    let options = Options { keepalive: 1, ..Options::default() };
    let running = Running::with(options, Routes::default()).await;
    let (mut gone, mut idle) = (served(&running.address).await, served(&running.address).await);
    let begun = Instant::now();
    let answering = tokio::spawn(async move {
        let asked = idle.next_while_alive(PING).await.is_some()
            && idle.next_while_alive(PING).await.is_some()
            && idle.next_while_alive(PING).await.is_some();
        (asked, idle)
    });
    assert!(gone.next(PING).await.is_some(), "it is asked");
    assert!(gone.next(PING).await.is_none(), "and given up");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let (asked, mut idle) = soon(answering).await.unwrap();
    assert!(asked);
    idle.send(&frame(PING, 0, 0, b"is there")).await;
    assert!(soon(idle.next_while_alive(PING)).await.is_some(), "it is served still");
}

#[tokio::test(start_paused = true)]
async fn a_peer_of_http_1_that_dawdles_or_idles_is_cut_off() {
    let running = Running::start().await;
    let begun = Instant::now();
    let asked = "GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n";
    for said in [format!("{asked}x-more: "), format!("{asked}\r\n")] {
        let mut stream = TcpStream::connect(&running.address).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        // To the end of the connection.
        stream.read_to_end(&mut Vec::new()).await.ok();
    }
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_old_is_told_so_and_closed_in_the_end() {
    let options = Options { connection_age: 600, ..Options::default() };
    let running = Running::with(options, Routes::default()).await;
    let mut peer = served(&running.address).await;
    let begun = Instant::now();
    peer.send(&[call(1, WATCH), frame(DATA, 1, 1, &[0; 5])].concat()).await;
    let away = peer.next_while_alive(GO_AWAY).await.expect("it is told");
    assert_eq!(reason(&away.payload), 0, "without blame");
    assert_eq!(begun.elapsed().as_secs(), 600);
    // Its stream goes on, and nothing else comes to an end until the connection does.
    while peer.next_while_alive(GO_AWAY).await.is_some() {}
    assert_eq!(begun.elapsed().as_secs(), 690);
}
