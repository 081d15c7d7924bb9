//! The feed over plain HTTP: `GET /v1/events` answers with server-sent events, each a CloudEvent. It is a
//! subscription like any other, delivered by the same loop; a browser's `EventSource` comes again by itself
//! and says where it was.

use std::{iter, sync::Arc, time::Duration};

use axum::{
    BoxError, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use futures::{StreamExt, stream};
use prost::Message;
use prost_types::Timestamp;
use stepwell_proto::{
    EncodedEvent, proto_json,
    refusal::Refusal,
    v1::{
        Earliest, EventFilter, Latest, SubscribeRequest, SubscribeResponse,
        subscribe_request::Start, subscribe_response::Kind,
    },
};
use tonic::Status;
use url::form_urlencoded;

use crate::{cloud_event::CloudEvent, service::Feed};

const PATH: &str = "/v1/events";
const LAST_EVENT_ID: &str = "last-event-id";
/// Without a line for so long, a comment says that the feed is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// When a reader whose stream has ended comes again, in ms: not all at once.
const AGAIN_MS: std::ops::Range<u64> = 500..2000;

/// What is answered in plain HTTP.
pub(crate) fn routes(feed: Arc<Feed>) -> Router {
    Router::new().route(PATH, get(events)).with_state(feed)
}

async fn events(
    State(feed): State<Arc<Feed>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let last = headers.get(LAST_EVENT_ID).map(|id| String::from_utf8_lossy(id.as_bytes()));
    let request = request(&query.unwrap_or_default(), last.as_deref().unwrap_or_default());
    let opened = match request {
        Ok(request) => feed.open(request).await,
        Err(refusal) => Err(refusal),
    };
    let responses = match opened {
        Ok(responses) => responses,
        Err(refusal) => return stepwell_serve::refused(refusal).map(axum::body::Body::new),
    };
    let again = Duration::from_millis(rand::random_range(AGAIN_MS));
    let first = stream::iter([Ok(Event::default().retry(again))]);
    let lines = first.chain(responses.flat_map(|response| stream::iter(lines(response))));
    // Some proxies would wait for more than they have.
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
    let sse = Sse::new(lines).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    (unbuffered, sse).into_response()
}

// ── what is asked ───────────────────────────────────────────────────────────────────────────────────

/// The subscription that is asked for. What the reader says it had last goes before every other start.
fn request(query: &str, last_event_id: &str) -> Result<SubscribeRequest, Refusal> {
    let mut filter = EventFilter::default();
    let mut request = SubscribeRequest::default();
    let mut starts = Vec::new();
    let mut faults = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let mut flag = || match &*value {
            "" | "true" => true,
            "false" => false,
            _ => {
                faults.push((name.to_string(), "must be `true` or `false`".to_owned()));
                false
            }
        };
        match &*name {
            "only_final_failures" => filter.only_final_failures = flag(),
            "metadata_only" => request.metadata_only = flag(),
            "with_snapshot" => request.with_snapshot = flag(),
            "start" | "at_time" | "cursor" => match start(&name, &value) {
                Ok(start) => starts.push(start),
                Err(what) => faults.push((name.to_string(), what.to_owned())),
            },
            // A label may have a comma in it.
            "tags" | "tag" => filter.tags.push(value.into_owned()),
            _ => match list(&mut filter, &name) {
                Some(list) => list.extend(value.split(',').map(str::to_owned)),
                None => faults.push((name.to_string(), "there is no such parameter".to_owned())),
            },
        }
    }
    if starts.len() > 1 {
        let what = "only one of `start`, `at_time` and `cursor` may stand, and once".to_owned();
        faults.push(("start".to_owned(), what));
    }
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    request.start = match last_event_id {
        "" => starts.pop(),
        cursor => Some(Start::AfterCursor(cursor.to_owned())),
    };
    request.filter = Some(filter);
    Ok(request)
}

/// A list of the filter, by its name in the contract or by that of one of its values.
fn list<'f>(filter: &'f mut EventFilter, name: &str) -> Option<&'f mut Vec<String>> {
    Some(match name.strip_suffix('s').unwrap_or(name) {
        "name" => &mut filter.names,
        "task_id" => &mut filter.task_ids,
        "definition_name" => &mut filter.definition_names,
        "namespace" => &mut filter.namespaces,
        "step_name" => &mut filter.step_names,
        "correlation_id" => &mut filter.correlation_ids,
        _ => return None,
    })
}

fn start(name: &str, value: &str) -> Result<Start, &'static str> {
    match (name, value) {
        ("start", "earliest") => Ok(Start::Earliest(Earliest {})),
        ("start", "latest") => Ok(Start::Latest(Latest {})),
        ("start", _) => Err("must be `earliest` or `latest`"),
        ("at_time", time) => {
            let time = time.parse::<Timestamp>().map(Start::AtTime);
            time.map_err(|_| "must be a time such as `2026-11-28T09:30:00Z`")
        }
        (_, cursor) => Ok(Start::AfterCursor(cursor.to_owned())),
    }
}

// ── what is answered ────────────────────────────────────────────────────────────────────────────────

type Lines = Box<dyn Iterator<Item = Result<Event, BoxError>> + Send>;

/// A message of the feed in lines, made as they are taken.
fn lines(response: Result<SubscribeResponse, Status>) -> Lines {
    let SubscribeResponse { cursor, kind, .. } = match response {
        Ok(response) => response,
        Err(status) => return Box::new(iter::once_with(move || refused(&status))),
    };
    let said = match kind {
        Some(Kind::Events(batch)) => {
            let last = batch.encoded.len().saturating_sub(1);
            let events = batch.encoded.into_iter().enumerate();
            // Only after the last one nothing that was committed with it is missing.
            return Box::new(events.map(move |(i, encoded)| {
                event(&encoded).map(|event| at(event, if i == last { &cursor } else { "" }))
            }));
        }
        Some(Kind::Snapshot(task)) => notice("snapshot", "Task", &task),
        Some(Kind::FellBehind(said)) => notice("fell_behind", "FellBehind", &said),
        Some(Kind::CaughtUp(said)) => notice("caught_up", "CaughtUp", &said),
        Some(Kind::End(said)) => notice("end", "End", &said),
        // Nobody is told, but a reader that comes again says the cursor.
        Some(Kind::Checkpoint(_)) | None => Ok(Event::default().comment("checkpoint")),
    };
    Box::new(iter::once(said.map(|said| at(said, &cursor))))
}

/// With the cursor after it, if there is one.
fn at(event: Event, cursor: &str) -> Event {
    if cursor.is_empty() { event } else { event.id(cursor) }
}

fn event(encoded: &EncodedEvent) -> Result<Event, BoxError> {
    let event = encoded.decode()?;
    let json = serde_json::to_string(&CloudEvent::new(&event)?)?;
    Ok(Event::default().event(event.name).data(json))
}

fn notice(name: &str, message: &str, said: &impl Message) -> Result<Event, BoxError> {
    let json = serde_json::to_string(&proto_json::value(message, said)?)?;
    Ok(Event::default().event(name).data(json))
}

/// The last word of a feed that cannot go on.
fn refused(status: &Status) -> Result<Event, BoxError> {
    Ok(Event::default().event("refused").data(proto_json::error(status).to_string()))
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::{
        self, CaughtUp, Checkpoint, End, EndReason, ErrorReason, EventBatch, FellBehind,
    };

    use super::*;

    /// What goes over the wire for these messages.
    async fn wire(responses: Vec<Result<SubscribeResponse, Status>>) -> Vec<String> {
        let lines = stream::iter(responses).flat_map(|response| stream::iter(lines(response)));
        let body = Sse::new(lines).into_response().into_body();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let mut blocks: Vec<String> = text.split("\n\n").map(str::to_owned).collect();
        assert_eq!(blocks.pop().as_deref(), Some(""), "the last one is whole");
        blocks
    }

    fn response(cursor: &str, kind: Kind) -> Result<SubscribeResponse, Status> {
        let (cursor, kind) = (cursor.to_owned(), Some(kind));
        Ok(SubscribeResponse { cursor, kind, ..SubscribeResponse::default() })
    }

    #[tokio::test]
    async fn only_the_last_event_before_a_cursor_has_it_as_its_id() {
        let batch = |positions: &[i64]| {
            let event = |position: &i64| {
                let (position, name) = (*position, "step.completed".to_owned());
                EncodedEvent::new(v1::Event { position, name, ..v1::Event::default() })
            };
            let encoded = positions.iter().map(event).collect();
            Kind::Events(EventBatch { encoded, ..EventBatch::default() })
        };
        // A commit of three events, in two frames.
        let sent = wire(vec![response("", batch(&[7, 8])), response("c", batch(&[9]))]).await;
        assert_eq!(sent.len(), 3);
        for (block, sequence) in sent.iter().zip(["7", "8", "9"]) {
            assert!(block.starts_with("event: step.completed\ndata: {"), "{block}");
            assert!(block.contains(&format!("{sequence}\",")), "{block}");
        }
        assert!(sent[..2].iter().all(|block| !block.contains("\nid:")), "{sent:?}");
        assert!(sent[2].ends_with("\nid: c"), "{sent:?}");
    }

    #[tokio::test]
    async fn notices_are_events_of_their_own_and_a_checkpoint_is_only_an_id() {
        let refusal = Refusal::new(ErrorReason::CursorExpired, "gone").with("earliest", "e");
        let sent = wire(vec![
            response("a", Kind::Checkpoint(Checkpoint {})),
            response("b", Kind::FellBehind(FellBehind {})),
            response("c", Kind::CaughtUp(CaughtUp {})),
            response("", Kind::End(End { reason: EndReason::Rotate.into() })),
            Err(refusal.into()),
        ])
        .await;
        let [checkpoint, behind, level, end, refused] = sent.try_into().unwrap();
        assert_eq!(checkpoint, ": checkpoint\nid: a");
        assert_eq!(behind, "event: fell_behind\ndata: {}\nid: b");
        assert_eq!(level, "event: caught_up\ndata: {}\nid: c");
        assert_eq!(end, "event: end\ndata: {\"reason\":\"END_REASON_ROTATE\"}");
        assert!(
            refused.starts_with("event: refused\ndata: {\"code\":\"out_of_range\","),
            "{refused}"
        );
        assert!(refused.contains("\"reason\":\"CURSOR_EXPIRED\""), "{refused}");
    }

    #[test]
    fn lists_are_repeated_or_have_commas_and_are_called_as_in_the_contract_or_in_the_singular() {
        let query = "names=task.*,step.failed&name=step.completed&task_ids=a&task_id=b,c\
                     &definition_name=d&namespaces=shop%2Feu&step_names=s&correlation_id=x\
                     &tag=eu,west&tags=us&only_final_failures&metadata_only=true&with_snapshot=false";
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let filter = EventFilter {
            names: texts(&["task.*", "step.failed", "step.completed"]),
            task_ids: texts(&["a", "b", "c"]),
            definition_names: texts(&["d"]),
            namespaces: texts(&["shop/eu"]),
            step_names: texts(&["s"]),
            tags: texts(&["eu,west", "us"]),
            correlation_ids: texts(&["x"]),
            only_final_failures: true,
        };
        let wanted = SubscribeRequest {
            filter: Some(filter),
            metadata_only: true,
            ..SubscribeRequest::default()
        };
        assert_eq!(request(query, ""), Ok(wanted));
    }

    #[test]
    fn what_was_had_last_goes_before_every_start() {
        let start = |query, last| request(query, last).unwrap().start;
        let after = |cursor: &str| Some(Start::AfterCursor(cursor.to_owned()));
        assert_eq!(start("", ""), None);
        assert_eq!(start("start=earliest", ""), Some(Start::Earliest(Earliest {})));
        assert_eq!(start("start=latest", ""), Some(Start::Latest(Latest {})));
        assert_eq!(start("cursor=c", ""), after("c"));
        let time = Timestamp { seconds: 1, nanos: 0 };
        assert_eq!(start("at_time=1970-01-01T00:00:01Z", ""), Some(Start::AtTime(time)));
        for query in ["", "start=earliest", "at_time=1970-01-01T00:00:01Z", "cursor=c"] {
            assert_eq!(start(query, "last"), after("last"));
        }
    }

    #[test]
    fn every_fault_of_a_query_is_named() {
        let query = "start=now&at_time=noon&nmaes=x&metadata_only=yes&cursor=a&cursor=b";
        let refusal = request(query, "").unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
        let paths: Vec<_> = refusal.violations.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["start", "at_time", "nmaes", "metadata_only", "start"]);
    }
}
