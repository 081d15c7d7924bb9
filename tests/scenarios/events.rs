//! Events in lists and over plain HTTP: the same as in the feed, whoever asks and however.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use stepwell_client::{
    Error, Executor, HandlerError, Start, Subscription,
    v1::{self, ErrorReason},
};
use stepwell_proto::v1::list_events_request;
use stepwell_store::{Keep, Options, Store};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, World, cut_log, http, until};

use super::cli::stepwell;

const CHAIN: &str =
    "{name: chain, steps: [{name: a}, {name: b, depends_on: [a]}, {name: c, depends_on: [b]}]}";
const CREATED: &str = "task.initialize_requested";
const HELD: &str = "{name: held, steps: [{name: nobody_serves}]}";

fn executor(world: &World) -> Executor {
    let mut executor = Executor::new(&world.client, "e");
    for name in ["a", "b", "c"] {
        executor = executor.handler(name, async |_| Ok::<_, HandlerError>(json!({"ok": true})));
    }
    executor
}

fn names(names: &[&str]) -> Option<v1::EventFilter> {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    Some(v1::EventFilter { names, ..v1::EventFilter::default() })
}

// ── lists ───────────────────────────────────────────────────────────────────────────────────────────

/// All pages of a list, and where it ends; after the first one something else happens.
async fn pages(
    world: &World,
    mut request: v1::ListEventsRequest,
    meanwhile: impl AsyncFnOnce(),
) -> (Vec<Vec<v1::Event>>, String) {
    let first = world.client.list_events(request.clone()).await.unwrap();
    meanwhile().await;
    let (mut pages, mut token) = (vec![first.events], first.next_page_token);
    while !token.is_empty() {
        request.page_token = token;
        let page = world.client.list_events(request.clone()).await.unwrap();
        assert_eq!(page.cursor, first.cursor);
        pages.push(page.events);
        token = page.next_page_token;
    }
    (pages, first.cursor)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_has_what_the_feed_has_up_to_its_cursor_in_both_orders_and_the_feed_goes_on_there() {
    let world = World::start().await;
    world.define(CHAIN).await;
    let running = world.run(executor(&world));
    let mut tasks = Vec::new();
    for n in 0..4 {
        let task = world.create("chain", &json!({"n": n})).await;
        tasks.push(world.ended(&task.task_id).await.task_id);
    }
    let all = ["*", "workflow.*", "step.initialize_requested"];
    let wanted = Subscription::new().names(all).from(Start::Earliest);
    let mut feed = world.client.subscribe(wanted).await.unwrap();
    let is_last = |event: &v1::Event| {
        event.task_id == tasks[3] && event.name == "workflow.task_finalization_completed"
    };
    let seen = until(&mut feed, is_last).await;
    let request = v1::ListEventsRequest { filter: names(&all), ..Default::default() };

    let mut later = None;
    let request_of_7 = v1::ListEventsRequest { page_size: 7, ..request.clone() };
    let (in_order, cursor) = pages(&world, request_of_7, async || {
        let task = world.create("chain", &json!({})).await;
        later = Some(world.ended(&task.task_id).await.task_id);
    })
    .await;
    assert!(in_order.iter().all(|page| page.len() <= 7));
    assert_eq!(in_order.concat(), seen, "what came after the first page is not in the list");
    let wanted = Subscription::new().from(Start::After(cursor.clone()));
    let mut feed = world.client.subscribe(wanted).await.unwrap();
    let later = later.unwrap();
    let next = until(&mut feed, |_| true).await;
    assert_eq!((next[0].task_id.as_str(), next[0].name.as_str()), (later.as_str(), CREATED));

    // The other way round, down to the place where the rest begins.
    let start = Some(list_events_request::Start::AfterCursor(cursor));
    let newest = v1::ListEventsRequest { newest_first: true, page_size: 5, ..request.clone() };
    let rest = v1::ListEventsRequest { start, ..newest.clone() };
    let (rest, _) = pages(&world, rest, async || ()).await;
    assert!(rest.concat().iter().all(|event| event.task_id == later));
    let (backwards, _) = pages(&world, newest, async || ()).await;
    let mut backwards = backwards.concat();
    backwards.reverse();
    let (before, after) = backwards.split_at(seen.len());
    assert_eq!(before, seen);
    assert_eq!(after.iter().rev().cloned().collect::<Vec<_>>(), rest.concat());

    // Of one task, bare.
    let filter = v1::EventFilter { task_ids: vec![tasks[1].clone()], ..Default::default() };
    let bare =
        v1::ListEventsRequest { filter: Some(filter), metadata_only: true, ..Default::default() };
    let (bare, _) = pages(&world, bare, async || ()).await;
    let bare = bare.concat();
    let of_task = seen.iter().filter(|e| e.task_id == tasks[1] && !e.name.starts_with("workflow"));
    assert_eq!(bare.len(), of_task.count() - 3, "recorded ones");
    let Some(v1::event::Detail::TaskInitializeRequested(created)) = &bare[0].detail else {
        panic!("{bare:?}")
    };
    assert!(created.context.is_empty() && created.context_omitted);

    // And as its user types it.
    let list = ["event", "list", "task.*", "--limit", "2", "--newest-first", "--task", &tasks[1]];
    let bare = [&list[..], &["--no-headers"]].concat();
    let (code, out, err) = stepwell(&world, &bare, "");
    let listed: Vec<&str> = out.lines().filter_map(|l| l.split_whitespace().nth(1)).collect();
    assert_eq!((code, listed), (0, vec!["task.completed", "task.start_requested"]), "{err}");
    let token = err.split_once("--page-token ").unwrap().1.split_whitespace().next().unwrap();
    let (code, out, err) =
        stepwell(&world, &[&list[..], &["--page-token", token, "-o", "jsonl"]].concat(), "");
    let line: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!((code, line["name"].as_str()), (0, Some(CREATED)), "{err}");
    assert!(err.contains("cursor: "), "{err}");
    running.stop().await;
}

/// Creates many tasks at once.
async fn create_many(world: &World, n: usize, context: &Value) {
    for _ in 0..n.div_ceil(500) {
        let requests = (0..500).map(|_| v1::CreateTaskRequest {
            definition_name: "held".into(),
            context: context.to_string(),
            ..v1::CreateTaskRequest::default()
        });
        let request = v1::BatchCreateTasksRequest { requests: requests.collect() };
        world.client.batch_create_tasks(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_ends_its_look_and_has_a_token_even_if_it_found_nothing_and_one_task_is_found_at_once()
 {
    let world = World::start().await;
    world.define(HELD).await;
    create_many(&world, 11_000, &json!({})).await;
    let task = world.client.task("held").correlation_id("needle").create().await.unwrap();
    let correlation_ids = vec!["needle".to_owned()];
    let filter = Some(v1::EventFilter { correlation_ids, ..v1::EventFilter::default() });
    let needle = v1::ListEventsRequest { filter, ..v1::ListEventsRequest::default() };
    let (found, _) = pages(&world, needle.clone(), async || ()).await;
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(found[1][0].task_id, task.task_id);
    let newest = v1::ListEventsRequest { newest_first: true, ..needle };
    let (found, _) = pages(&world, newest, async || ()).await;
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0]);
    let filter = v1::EventFilter { task_ids: vec![task.task_id.clone()], ..Default::default() };
    for newest_first in [false, true] {
        let filter = Some(filter.clone());
        let request = v1::ListEventsRequest { filter, newest_first, ..Default::default() };
        let (found, _) = pages(&world, request, async || ()).await;
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [1], "the log is not walked");
    }
    let nobody = vec!["00000000-0000-7000-8000-000000000000".to_owned()];
    let filter = Some(v1::EventFilter { task_ids: nobody, ..Default::default() });
    let request = v1::ListEventsRequest { filter, ..Default::default() };
    assert_eq!(pages(&world, request, async || ()).await.0, [vec![]]);
}

/// How a list is refused.
async fn refused(world: &World, request: v1::ListEventsRequest) -> stepwell_client::Refusal {
    match world.client.list_events(request).await {
        Err(Error::Refused(refusal)) => *refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_cannot_be_is_refused_with_its_reason_and_so_is_one_whose_next_events_are_gone()
{
    let database = stepwell_suite::test_database().await.unwrap();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    cut_log(&mut connection, 100, 20).await;
    let store = Store::connect(&Options::new(&database.url), "test").await.unwrap();
    let world = World::over(database, |options| {
        options.nodes = Nodes { task: 1, step: 1, event: 1 };
    })
    .await;
    world.define(HELD).await;
    create_many(&world, 500, &json!({})).await;
    let rows = world.rows().await;
    let plain = v1::ListEventsRequest::default();
    let first = v1::ListEventsRequest { page_size: 10, ..v1::ListEventsRequest::default() };
    let page = world.client.list_events(first.clone()).await.unwrap();
    let after = |text: &str| Some(list_events_request::Start::AfterCursor(text.to_owned()));
    let elsewhere = stepwell_proto::id::Cursor { epoch: 7, position: 1 }.encode();
    let strange = v1::EventFilter {
        names: vec!["order.paid".into()],
        namespaces: vec!["\0".into()],
        ..v1::EventFilter::default()
    };
    for (request, reason, field) in [
        (
            v1::ListEventsRequest { filter: Some(strange), ..plain.clone() },
            ErrorReason::InvalidRequest,
            Some("filter.namespaces[0]"),
        ),
        (
            v1::ListEventsRequest { page_size: -1, ..plain.clone() },
            ErrorReason::InvalidRequest,
            Some("page_size"),
        ),
        (
            v1::ListEventsRequest { page_size: 1001, ..plain.clone() },
            ErrorReason::InvalidRequest,
            Some("page_size"),
        ),
        (
            v1::ListEventsRequest { page_token: "x".into(), ..plain.clone() },
            ErrorReason::PageTokenInvalid,
            Some("page_token"),
        ),
        (
            v1::ListEventsRequest {
                page_token: page.next_page_token.clone(),
                newest_first: true,
                ..plain.clone()
            },
            ErrorReason::PageTokenInvalid,
            Some("page_token"),
        ),
        (
            v1::ListEventsRequest { filter: names(&["task.complete"]), ..plain.clone() },
            ErrorReason::EventUnknown,
            Some("filter.names[0]"),
        ),
        (
            v1::ListEventsRequest { start: after("x"), ..plain.clone() },
            ErrorReason::CursorMalformed,
            Some("after_cursor"),
        ),
        (
            v1::ListEventsRequest { start: after(&elsewhere), ..plain.clone() },
            ErrorReason::CursorAhead,
            None,
        ),
    ] {
        let refusal = refused(&world, request).await;
        let path = refusal.violations.first().map(|(path, _)| path.as_str());
        assert_eq!((refusal.reason, path), (reason, field), "{refusal}");
    }
    assert_eq!(world.rows().await, rows, "nothing was changed");

    // The partitions from which the next page and a cursor go on are dropped.
    sqlx::query("update stepwell.event set at = at - interval '2 hours' where position < 300")
        .execute(&mut connection)
        .await
        .unwrap();
    let keep = Keep { age: Some(Duration::from_secs(3600)), bytes: None };
    while store.earliest().await.unwrap() < 299 {
        let _ = store.drop_old_events(keep).await;
    }
    let next = v1::ListEventsRequest { page_token: page.next_page_token, ..first.clone() };
    let refusal = refused(&world, next).await;
    assert_eq!(refusal.reason, ErrorReason::CursorExpired);
    let request =
        v1::ListEventsRequest { start: after(&refusal.metadata["earliest"]), ..plain.clone() };
    let kept = world.client.list_events(request).await.unwrap();
    assert!(kept.events[0].position > 299);
    assert_eq!(world.client.list_events(plain).await.unwrap().events, kept.events);
}

// ── over plain HTTP ─────────────────────────────────────────────────────────────────────────────────

/// What a browser keeps of the stream: what it was sent, and what it would say when it comes again.
struct Source {
    response: reqwest::Response,
    text: String,
    last_event_id: String,
    comments: usize,
}

#[derive(Debug)]
struct Message {
    event: String,
    data: Value,
    /// Whether a cursor came with it.
    has_id: bool,
}

fn url(world: &World, query: &str) -> String {
    format!("{}/v1/events?{query}", world.suite.addresses().event[0])
}

impl Source {
    async fn open(url: &str, last_event_id: &str) -> Self {
        let response = get(url, last_event_id).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        let (text, last_event_id) = (String::new(), last_event_id.to_owned());
        Self { response, text, last_event_id, comments: 0 }
    }

    /// The next message; none: the stream has ended, or was cut.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(block) = self.block().await?
                && let Some(message) = self.read(&block)
            {
                return Some(message);
            }
        }
    }

    /// The next lines up to an empty one.
    async fn block(&mut self) -> Option<Option<String>> {
        if let Some((block, rest)) = self.text.split_once("\n\n") {
            let (block, rest) = (block.to_owned(), rest.to_owned());
            self.text = rest;
            return Some(Some(block));
        }
        let chunk = tokio::time::timeout(SOON, self.response.chunk()).await.unwrap();
        self.text += std::str::from_utf8(&chunk.ok()??).unwrap();
        Some(None)
    }

    /// Waits until so many comments have come, and no message.
    async fn commented(&mut self, n: usize) {
        while self.comments < n {
            if let Some(block) = self.block().await.unwrap() {
                assert!(self.read(&block).is_none(), "{block}");
            }
        }
    }

    /// The ids of so many events, and what else came.
    async fn events(&mut self, n: usize) -> (Vec<String>, Vec<String>) {
        let (mut ids, mut others) = (Vec::new(), Vec::new());
        while ids.len() < n {
            let message = self.next().await.unwrap();
            if message.event.contains('.') {
                ids.push(message.data["id"].to_string());
            } else {
                others.push(message.event);
            }
        }
        (ids, others)
    }

    /// Reads lines as the standard says.
    fn read(&mut self, block: &str) -> Option<Message> {
        let (mut event, mut data, mut has_id) = (String::new(), None, false);
        for line in block.lines() {
            let (field, value) = line.split_once(':').unwrap();
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => self.comments += 1,
                "event" => event = value.to_owned(),
                "data" => assert!(data.replace(value.to_owned()).is_none(), "one line"),
                "id" => (self.last_event_id, has_id) = (value.to_owned(), true),
                "retry" => assert!(value.parse::<u32>().unwrap() >= 500),
                other => panic!("{other}"),
            }
        }
        let data = serde_json::from_str(&data?).unwrap();
        Some(Message { event, data, has_id })
    }

    /// The events up to the first for which this holds.
    async fn until(&mut self, found: impl Fn(&Value) -> bool) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.next().await.unwrap();
            let is_last = found(&message.data);
            messages.push(message);
            if is_last {
                return messages;
            }
        }
    }
}

/// A world whose event-service has one option of its own.
async fn of_event_service(name: &str, value: &str) -> World {
    World::set_up(|options| options.env = vec![(name.to_owned(), value.to_owned())]).await
}

/// A client of plain HTTP. It wants to know how to speak TLS, though nobody does here.
async fn get(url: &str, last_event_id: &str) -> reqwest::Response {
    let request = http().get(url);
    let request = match last_event_id {
        "" => request,
        id => request.header("Last-Event-ID", id),
    };
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_that_comes_again_after_a_kill_gets_every_event_from_its_last_id_on() {
    let mut world = World::start().await;
    world.define(CHAIN).await;
    let running = world.run(executor(&world));
    let mut source = Source::open(&url(&world, "start=earliest"), "").await;
    let mut tasks = Vec::new();
    let mut seen: Vec<Message> = Vec::new();
    for n in 0..12 {
        tasks.push(world.create("chain", &json!({})).await.task_id);
        if n == 5 {
            // It has read some when its service is gone, and reads what was on its way.
            seen.push(source.next().await.unwrap());
            world.suite.process(Kind::Event, 0).unwrap().kill(Signal::SIGKILL).await.unwrap();
            while let Some(message) = source.next().await {
                seen.push(message);
            }
            world.suite.restart(Kind::Event, 0).await.unwrap();
            // What it says it had goes before what its address says.
            source = Source::open(&url(&world, "start=latest"), &source.last_event_id).await;
        }
    }
    for task in &tasks {
        world.ended(task).await;
    }
    running.stop().await;
    let request = v1::ListEventsRequest { page_size: 1000, ..Default::default() };
    let listed = world.client.list_events(request).await.unwrap().events;
    let last = listed.last().unwrap().position.to_string();
    seen.extend(source.until(|data| data["data"]["position"] == last.as_str()).await);

    // By id each is there, in order, and as everybody gets it.
    let mut ids = BTreeSet::new();
    let is_event = |message: &&Message| message.event.contains('.');
    let once: Vec<&Message> = seen
        .iter()
        .filter(is_event)
        .filter(|message| ids.insert(message.data["id"].as_str().unwrap().to_owned()))
        .collect();
    let positions: Vec<String> = listed.iter().map(|event| event.position.to_string()).collect();
    let sent: Vec<&str> =
        once.iter().map(|message| message.data["data"]["position"].as_str().unwrap()).collect();
    assert_eq!(sent, positions);
    for (message, event) in once.iter().zip(&listed) {
        assert_eq!(message.event, event.name);
        assert_eq!(message.data["type"], event.name.as_str());
        assert_eq!(message.data["specversion"], "1.0");
        assert_eq!(
            message.data["subject"].as_str().is_some_and(|s| s.contains('.')),
            !event.step_id.is_empty()
        );
        assert_eq!(message.data["data"]["taskId"], event.task_id.as_str());
    }
    // No id lies within a commit.
    let ends: Vec<i64> =
        sqlx::query_scalar("select max(position) from stepwell.event group by batch")
            .fetch_all(&mut world.connection().await)
            .await
            .unwrap();
    let with_id = seen.iter().filter(is_event).filter(|message| message.has_id);
    let with_id: Vec<i64> = with_id
        .map(|message| message.data["data"]["position"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(!with_id.is_empty() && with_id.iter().all(|position| ends.contains(position)));
    let cursor = stepwell_proto::id::Cursor::decode(&source.last_event_id).unwrap();
    assert_eq!(cursor.position.to_string(), last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_is_told_what_a_feed_is_told_and_its_stream_ends_cleanly() {
    let world = World::start().await;
    world.define(HELD).await;
    let task = world.create("held", &json!({"card": "secret"})).await;
    let other = world.create("held", &json!({})).await;
    // One task, bare, from the table; `fell_behind` and `caught_up` stand around it.
    let query = format!("start=earliest&metadata_only&task_id={}&names=task.*", other.task_id);
    let mut source = Source::open(&url(&world, &query), "").await;
    let told = source.until(|data| data["type"] == CREATED).await;
    let last = told.last().unwrap();
    assert_eq!(told.iter().map(|m| m.event.as_str()).next(), Some("fell_behind"));
    assert_eq!(last.data["data"]["taskId"], other.task_id.as_str());
    let detail = &last.data["data"]["taskInitializeRequested"];
    assert_eq!((&detail["context"], &detail["contextOmitted"]), (&Value::Null, &json!(true)));
    let caught_up = source.next().await.unwrap();
    assert_eq!((caught_up.event.as_str(), caught_up.has_id), ("caught_up", true));

    let query = format!("with_snapshot=true&task_ids={}", task.task_id);
    let mut of_task = Source::open(&url(&world, &query), "").await;
    let snapshot = of_task.next().await.unwrap();
    assert_eq!((snapshot.event.as_str(), snapshot.has_id), ("snapshot", true));
    assert_eq!(snapshot.data["context"], r#"{"card":"secret"}"#);

    // What goes on reaches both; what is not asked for neither.
    for id in [&task.task_id, &other.task_id] {
        let request = v1::CancelTaskRequest { task_id: id.clone(), ..Default::default() };
        world.client.cancel_task(request).await.unwrap();
    }
    let cancelled = source.next().await.unwrap();
    assert_eq!(cancelled.data["data"]["taskId"], other.task_id.as_str());
    assert_eq!(cancelled.event, "task.cancelled");
    let told = of_task.until(|data| data["type"] == "task.cancelled").await;
    assert!(told.iter().all(|m| m.data["partitionkey"] == task.task_id.as_str()));

    world.suite.process(Kind::Event, 0).unwrap().kill(Signal::SIGTERM).await.unwrap();
    for source in [&mut source, &mut of_task] {
        let end = source.next().await.unwrap();
        assert_eq!((end.event.as_str(), end.has_id), ("end", false));
        assert_eq!(end.data, json!({"reason": "END_REASON_DRAIN"}));
        assert!(source.response.chunk().await.unwrap().is_none(), "it ends and is not cut");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_http_that_takes_nothing_holds_up_nobody_and_gets_everything_from_the_table() {
    let world = of_event_service("STEPWELL_RING_MIB", "1").await;
    world.define(HELD).await;
    let mut slow = Source::open(&url(&world, "names=task.*"), "").await;
    let mut quick = Source::open(&url(&world, "names=task.*&metadata_only"), "").await;
    // Much more than what waits on the way to it.
    create_many(&world, 4_000, &json!({"fill": "x".repeat(5_000)})).await;
    let (quick, _) = quick.events(4_000).await;
    let (slow, told) = slow.events(4_000).await;
    assert!(told.contains(&"fell_behind".to_owned()), "it was in no hurry: {told:?}");
    assert_eq!(slow, quick);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_http_that_cannot_be_is_answered_with_a_status_and_its_reason() {
    let world = of_event_service("STEPWELL_SUBSCRIPTIONS_MAX", "1").await;
    for (query, last, status, reason, field) in [
        ("nmaes=x", "", 400, "INVALID_REQUEST", Some("nmaes")),
        ("task_id=seven", "", 400, "INVALID_REQUEST", Some("filter.task_ids[0]")),
        ("names=task.complete", "", 400, "EVENT_UNKNOWN", Some("filter.names[0]")),
        ("start=earliest", "x", 400, "CURSOR_MALFORMED", Some("after_cursor")),
        (
            "with_snapshot&task_id=00000000-0000-7000-8000-000000000000",
            "",
            404,
            "TASK_NOT_FOUND",
            None,
        ),
    ] {
        let answer = get(&url(&world, query), last).await;
        assert_eq!(answer.status(), status, "{query}");
        assert_eq!(answer.headers()["content-type"], "application/json");
        let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let details: Vec<_> =
            body["details"].as_array().unwrap().iter().map(|of| &of["debug"]).collect();
        let info = details.iter().find(|of| of["reason"].is_string()).unwrap();
        assert_eq!((&info["reason"], &info["domain"]), (&json!(reason), &json!("stepwell.v1")));
        let wrong = details.iter().find_map(|of| of["fieldViolations"][0]["field"].as_str());
        assert_eq!(wrong, field, "{body}");
    }
    let mut open = Source::open(&url(&world, ""), "").await;
    let full = get(&url(&world, ""), "").await;
    assert_eq!(
        (full.status().as_u16(), &full.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    let post = http().post(url(&world, "")).send().await.unwrap();
    assert_eq!(post.status(), 405);
    // A quiet feed says that it lives; then there is room again for another.
    let within = Duration::from_secs(15);
    tokio::time::timeout(within, open.commented(2)).await.unwrap();
    drop(open);
    let freed = async { while get(&url(&world, ""), "").await.status() != 200 {} };
    tokio::time::timeout(SOON, freed).await.unwrap();
}
