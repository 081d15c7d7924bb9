//! Readers that keep their cursors themselves.

use std::time::Duration;

use stepwell_proto::{
    id::Cursor,
    refusal::Refusal,
    v1::{
        Earliest, ErrorReason, EventFilter, SubscribeRequest,
        event_service_client::EventServiceClient, subscribe_request::Start,
        subscribe_response::Kind,
    },
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Row, is_inside};

/// What a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    Everything,
    /// Nothing that happens.
    Nothing,
}

/// What a message had: positions, and the place after it.
#[derive(Debug)]
struct Message {
    positions: Vec<i64>,
    cursor: Option<i64>,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Life {
    wants: Wants,
    /// The place it asked for; none: the earliest.
    asked: Option<i64>,
    messages: Vec<Message>,
    /// It was told that events are gone, and where the others begin.
    told: Option<i64>,
}

impl Life {
    pub(super) fn was_told(&self) -> bool {
        self.told.is_some()
    }
}

fn place(text: &str) -> i64 {
    Cursor::decode(text).unwrap().position
}

/// Follows a feed from its beginning to the end of the log, whatever happens.
pub(super) async fn follow(
    urls: Vec<String>,
    wants: Wants,
    pace: Duration,
    last: watch::Receiver<Option<i64>>,
) -> Vec<Life> {
    let mut lives = Vec::new();
    let mut cursor: Option<String> = None;
    for n in 0.. {
        let asked = cursor.as_deref().map(place);
        let mut life = Life { wants, asked, messages: Vec::new(), told: None };
        // Whatever ends it, the next one goes on.
        let ended = one(&urls[n % urls.len()], &mut life, &mut cursor, pace, &last).await;
        lives.push(life);
        if ended {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    lives
}

/// True when it has come to the end of the log.
async fn one(
    url: &str,
    life: &mut Life,
    cursor: &mut Option<String>,
    pace: Duration,
    last: &watch::Receiver<Option<i64>>,
) -> bool {
    let connecting = EventServiceClient::connect(url.to_owned());
    let Ok(Ok(mut service)) = timeout(Duration::from_secs(5), connecting).await else {
        return false;
    };
    let names = match life.wants {
        Wants::Everything => "*",
        Wants::Nothing => "task.cancelled",
    };
    let filter = Some(EventFilter { names: vec![names.into()], ..EventFilter::default() });
    let start = Some(match &cursor {
        Some(cursor) => Start::AfterCursor(cursor.clone()),
        None => Start::Earliest(Earliest {}),
    });
    let request = SubscribeRequest { start, filter, ..SubscribeRequest::default() };
    let mut stream = match timeout(Duration::from_secs(5), service.subscribe(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return gone(life, cursor, &status),
        Err(_) => return false,
    };
    loop {
        // A checkpoint comes at least every 15 s.
        let message = match timeout(Duration::from_secs(20), stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Err(status)) => return gone(life, cursor, &status),
            Ok(Ok(None)) => return false,
            Err(_) => panic!("a stream that lives says nothing"),
        };
        let positions = match message.kind {
            Some(Kind::Events(batch)) => batch.events.iter().map(|event| event.position).collect(),
            _ => Vec::new(),
        };
        let at = Some(message.cursor).filter(|cursor| !cursor.is_empty());
        life.messages.push(Message { positions, cursor: at.as_deref().map(place) });
        *cursor = at.or(cursor.take());
        let end = *last.borrow();
        let is_there = |end| cursor.as_deref().is_some_and(|cursor| place(cursor) >= end);
        if end.is_some_and(is_there) {
            return true;
        }
        if end.is_none() && !pace.is_zero() {
            sleep(pace).await;
        }
    }
}

/// The stream ended with an error. False: it has not come to the end of the log.
fn gone(life: &mut Life, cursor: &mut Option<String>, status: &tonic::Status) -> bool {
    let refusal = Refusal::from_status(status);
    if let Some(refusal) = refusal.filter(|of| of.reason == ErrorReason::CursorExpired) {
        let earliest = refusal.metadata["earliest"].clone();
        life.told = Some(place(&earliest));
        *cursor = Some(earliest);
    }
    false
}

/// Holds what a reader received to the promises of the feed.
pub(super) fn judge(name: &str, lives: &[Life], log: &[Row], head: i64) {
    let mut kept: Option<i64> = None;
    let mut came = 0;
    for life in lives {
        // It is resumed after the last cursor, or where it was told.
        assert_eq!(life.asked, kept, "{name}");
        let begins = life.messages.first().map(|first| first.cursor.expect("a first checkpoint"));
        if let (Some(asked), Some(begins)) = (life.asked, begins) {
            assert_eq!(asked, begins, "{name} begins elsewhere");
        }
        let mut place = begins.unwrap_or_default();
        let mut next = log.partition_point(|row| row.position <= place);
        for message in &life.messages {
            for position in &message.positions {
                // Ordered, unique and without gaps.
                assert_eq!(life.wants, Wants::Everything, "{name} got what it does not want");
                let must = log.get(next).map(|row| row.position);
                assert_eq!(Some(*position), must, "{name} after {place}");
                next += 1;
                came += 1;
            }
            let Some(cursor) = message.cursor else { continue };
            assert!(cursor >= place, "{name} goes back from {place} to {cursor}");
            assert!(!is_inside(log, cursor), "{name}: {cursor} lies inside a commit");
            let all = log.partition_point(|row| row.position <= cursor);
            if life.wants == Wants::Everything {
                assert_eq!(all, next, "{name}: {cursor} is not where it is");
            }
            (place, kept) = (cursor, Some(cursor));
        }
        if let Some(earliest) = life.told {
            assert!(kept.is_none_or(|kept| kept < earliest), "{name}: nothing of it was gone");
            kept = Some(earliest);
        }
    }
    assert!(kept.is_some_and(|kept| kept >= head), "{name} is at {kept:?} of {head}");
    assert!(came > 0 || lives[0].wants == Wants::Nothing, "{name} got nothing");
}
