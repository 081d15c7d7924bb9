//! Subscriptions that event-service delivers itself: whatever a receiver does, each event reaches it in the end,
//! those of a task in order, and nobody else waits for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, Response, Uri},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, v1};
use stepwell_proto::{
    refusal::Refusal,
    v1::{
        ApplyOutcome, ApplySubscriptionsRequest, CreateSubscriptionRequest, Delivery, Earliest,
        ErrorReason, EventFilter, GetSubscriptionRequest, ListParkedEventsRequest, LogDelivery,
        ReplayParkedEventsRequest, SubscribeRequest, Subscription, SubscriptionStart,
        SubscriptionText, UpdateSubscriptionRequest, WebhookDelivery, create_subscription_request,
        delivery::Kind, event_service_client::EventServiceClient, subscribe_request,
    },
};
use stepwell_suite::{Kind as Service, Nodes, Signal, Suite, SuiteOptions};
use stepwell_tests::{SOON, World, short_terms};
use tokio::{net::TcpSocket, sync::watch, task::JoinHandle, time::timeout};

use super::cli::stepwell;

const ONE: &str = "{name: one, steps: [{name: a}]}";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

// ── a receiver ──────────────────────────────────────────────────────────────────────────────────

/// A request that came.
#[derive(Clone, Debug)]
struct Came {
    path: String,
    headers: HashMap<String, String>,
    body: String,
    at: Instant,
    taken: bool,
}

impl Came {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn kind(&self) -> String {
        self.event()["type"].as_str().unwrap().to_owned()
    }

    fn position(&self) -> i64 {
        self.event()["data"]["position"].as_str().unwrap().parse().unwrap()
    }

    fn task(&self) -> String {
        self.event()["partitionkey"].as_str().unwrap().to_owned()
    }

    fn attempt(&self) -> i32 {
        self.header("stepwell-attempt").parse().unwrap()
    }
}

/// What a receiver does with a request.
enum Answer {
    Take,
    Status(u16),
    With(u16, &'static str, String),
    /// Takes it, and goes on answering for ever.
    Drip,
    Hang,
}

type Answers = Arc<dyn Fn(&Came) -> Answer + Send + Sync>;

/// A server of HTTP that keeps what comes, until it is stopped.
struct Receiver {
    address: SocketAddr,
    came: watch::Sender<Vec<Came>>,
    answers: Arc<Mutex<Answers>>,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    came: watch::Sender<Vec<Came>>,
    answers: Arc<Mutex<Answers>>,
}

impl Receiver {
    fn start(answers: impl Fn(&Came) -> Answer + Send + Sync + 'static) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let answers: Answers = Arc::new(answers);
        Self::at(any, watch::Sender::new(Vec::new()), Arc::new(Mutex::new(answers)))
    }

    fn at(
        address: SocketAddr,
        came: watch::Sender<Vec<Came>>,
        answers: Arc<Mutex<Answers>>,
    ) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared { came: came.clone(), answers: Arc::clone(&answers) };
        let router = Router::new().fallback(take).with_state(shared);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, came, answers, server }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn answers(&self, answers: impl Fn(&Came) -> Answer + Send + Sync + 'static) {
        *self.answers.lock().unwrap() = Arc::new(answers);
    }

    fn came(&self) -> Vec<Came> {
        self.came.borrow().clone()
    }

    /// What came to a path and was taken.
    fn taken(&self, path: &str) -> Vec<Came> {
        self.came().into_iter().filter(|came| came.taken && came.path == path).collect()
    }

    /// Waits until what came satisfies the condition.
    async fn until(&self, what: &str, found: impl Fn(&[Came]) -> bool) {
        let mut came = self.came.subscribe();
        let waiting = async { came.wait_for(|came| found(came)).await.map(drop) };
        match timeout(SOON, waiting).await {
            Ok(waited) => waited.unwrap(),
            Err(_) => panic!("{what}: {:#?}", self.came()),
        }
    }

    /// Waits until these positions were taken at a path.
    async fn has(&self, path: &str, positions: &BTreeSet<i64>) {
        let has = |came: &[Came]| {
            let taken = came.iter().filter(|came| came.taken && came.path == path);
            let taken: BTreeSet<i64> = taken.map(Came::position).collect();
            taken.is_superset(positions)
        };
        self.until(&format!("{positions:?} at {path}"), has).await;
    }

    /// Its process dies: nothing listens, and connections are gone.
    async fn die(self) -> (SocketAddr, watch::Sender<Vec<Came>>, Arc<Mutex<Answers>>) {
        self.server.abort();
        let _ = self.server.await;
        (self.address, self.came, self.answers)
    }
}

async fn take(
    State(shared): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let mut came = Came {
        path: uri.path().to_owned(),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: String::from_utf8(body.to_vec()).unwrap(),
        at: Instant::now(),
        taken: false,
    };
    let answers = Arc::clone(&shared.answers.lock().unwrap());
    let answer = answers(&came);
    came.taken = matches!(answer, Answer::Take | Answer::Drip);
    shared.came.send_modify(|all| all.push(came));
    let response = Response::builder();
    let response = match answer {
        Answer::Take => response.status(204),
        Answer::Drip => {
            let body = Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
            return response.body(body).unwrap();
        }
        Answer::Status(status) => response.status(status),
        Answer::With(status, name, value) => response.status(status).header(name, value),
        Answer::Hang => std::future::pending().await,
    };
    response.body(Body::from("says why")).unwrap()
}

// ── a world ─────────────────────────────────────────────────────────────────────────────────────

fn env() -> Vec<(String, String)> {
    let mut env = short_terms();
    env.push(("STEPWELL_WEBHOOK_HOST".into(), "127.0.0.1,*".into()));
    env.push(("STEPWELL_SECRET_HOOK".into(), SECRET.into()));
    env
}

async fn world(event: usize) -> World {
    World::set_up(|options| {
        options.nodes = Nodes { task: 1, step: 1, event };
        options.env = env();
    })
    .await
}

/// A webhook that is given two seconds.
fn to(name: &str, url: &str) -> Subscription {
    within(2, name, url)
}

fn within(wait: i64, name: &str, url: &str) -> Subscription {
    let webhook = WebhookDelivery {
        url: url.into(),
        secret_env: "STEPWELL_SECRET_HOOK".into(),
        timeout: Some(prost_types::Duration { seconds: wait, nanos: 0 }),
    };
    Subscription {
        name: name.into(),
        delivery: Some(Delivery { kind: Some(Kind::Webhook(webhook)) }),
        ..Subscription::default()
    }
}

async fn create(world: &World, subscription: Subscription) {
    let start = Some(create_subscription_request::Start::Earliest(Earliest {}));
    let request = CreateSubscriptionRequest { subscription: Some(subscription), start };
    world.client.create_subscription(request).await.unwrap();
}

/// Of each task, what was taken first comes in the order of the log.
fn in_order(taken: &[Came]) {
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for came in taken {
        let position = came.position();
        if seen.insert(position) {
            let before = last.insert(came.task(), position).unwrap_or_default();
            assert!(before < position, "{} after {before} of task {}", position, came.task());
        }
    }
}

/// Asks until the subscription is as it should be; the feed has no event for that.
async fn stands(
    world: &World,
    name: &str,
    is_so: impl Fn(&v1::GetSubscriptionResponse) -> bool,
) -> v1::GetSubscriptionResponse {
    let asking = async {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        loop {
            pace.tick().await;
            let request = GetSubscriptionRequest { name: name.into() };
            let answer = world.client.get_subscription(request).await.unwrap();
            if is_so(&answer) {
                return answer;
            }
        }
    };
    timeout(SOON, asking).await.expect("the subscription stands as it should in time")
}

fn parked(answer: &v1::GetSubscriptionResponse) -> i32 {
    answer.partitions.iter().map(|of| of.parked_events).sum()
}

fn refusal(error: stepwell_client::Error) -> Refusal {
    match error {
        stepwell_client::Error::Refused(refusal) => *refusal,
        other => panic!("{other}"),
    }
}

// ── webhooks ────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_receiver_does_each_event_reaches_it_in_order_and_others_do_not_wait() {
    let world = world(1).await;
    // Each event of a task is refused in its own way, the first time.
    let receiver = Receiver::start(|came| match (came.path.as_str(), came.attempt()) {
        ("/good", _) => Answer::Take,
        (_, 1) => match came.kind().as_str() {
            "task.initialize_requested" => Answer::Drip,
            "task.start_requested" => Answer::Status(500),
            "step.execution_requested" => Answer::Hang,
            "step.completed" => Answer::With(429, "retry-after", "3".into()),
            "task.completed" => Answer::With(302, "location", "/elsewhere".into()),
            _ => Answer::Take,
        },
        _ => Answer::Take,
    });
    let bad = Subscription { partitions: 4, ..to("bad", &receiver.url("/bad")) };
    create(&world, bad).await;
    create(&world, within(30, "good", &receiver.url("/good"))).await;
    world.run_ones(3).await;
    let all = world.positions().await;
    receiver.has("/good", &all).await;
    let failing = receiver.taken("/bad").len() < all.len();
    assert!(failing, "the good one does not wait for the bad one");
    receiver.has("/bad", &all).await;
    in_order(&receiver.taken("/bad"));
    in_order(&receiver.taken("/good"));
    let good = receiver.taken("/good");
    assert_eq!((good.len(), good.iter().all(|came| came.attempt() == 1)), (all.len(), true));
    assert!(receiver.came().iter().all(|came| came.path != "/elsewhere"), "nothing is redirected");
    // Whoever asks for time gets it.
    let bad: Vec<Came> = receiver.came().into_iter().filter(|came| came.path == "/bad").collect();
    let drips = bad.iter().filter(|came| came.kind() == "task.initialize_requested");
    assert_eq!(drips.count(), 3, "an answer without an end takes its event");
    let asked = bad.iter().filter(|came| came.kind() == "step.completed" && !came.taken);
    for asked in asked {
        let again = bad.iter().find(|came| came.position() == asked.position() && came.taken);
        let again = again.unwrap();
        assert!(again.at - asked.at >= Duration::from_secs(3), "{:?}", again.at - asked.at);
        assert_eq!((again.attempt(), again.header("webhook-id")), (2, asked.header("webhook-id")));
    }
    let done =
        stands(&world, "bad", |answer| answer.partitions.iter().all(|of| of.events_behind == 0));
    assert_eq!(parked(&done.await), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_is_a_cloud_event_that_another_implementation_verifies() {
    let world = world(1).await;
    let receiver = Receiver::start(|_| Answer::Take);
    let config = r#"{"channel":"ops"}"#.to_owned();
    create(&world, Subscription { config, ..to("s", &receiver.url("/a?b=c")) }).await;
    let tasks = world.run_ones(1).await;
    receiver.has("/a", &world.positions().await).await;
    let key = STANDARD.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let mut ids = BTreeSet::new();
    for came in receiver.came() {
        let (id, sent_at) = (came.header("webhook-id"), came.header("webhook-timestamp"));
        let signed = format!("{id}.{sent_at}.{}", came.body);
        let signature = came.header("webhook-signature").strip_prefix("v1,").unwrap();
        let signature = STANDARD.decode(signature).unwrap();
        ring::hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
        assert!(ring::hmac::verify(&key, format!("{signed} ").as_bytes(), &signature).is_err());
        let age = std::time::UNIX_EPOCH + Duration::from_secs(sent_at.parse().unwrap());
        assert!(age.elapsed().unwrap() < SOON);
        assert_eq!(came.header("content-type"), "application/cloudevents+json");
        assert_eq!(came.header("stepwell-subscription"), "s");
        let event = came.event();
        assert_eq!((&event["specversion"], &event["subscription"]), (&json!("1.0"), &json!("s")));
        assert_eq!(event["subscriptionconfig"], r#"{"channel":"ops"}"#);
        assert_eq!(event["data"]["taskId"], tasks[0].as_str());
        assert_eq!(event["id"].as_str().unwrap().replace('.', "_"), id);
        ids.insert(id.to_owned());
    }
    assert_eq!(ids.len(), 5, "each event has an id of its own");
    verified_as_the_document_says(&receiver.came()[0]);
}

/// Runs what docs/webhooks.md shows, if there is a Python to run it.
fn verified_as_the_document_says(came: &Came) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = std::fs::read_to_string(root.join("docs/webhooks.md")).unwrap();
    let (_, snippet) = document.split_once("```python\n").unwrap();
    let (snippet, _) = snippet.split_once("```").unwrap();
    let run = |headers: &HashMap<String, String>, body: &str| {
        let calls = "import json, sys\nof = json.load(sys.stdin)\n\
                     sys.exit(0 if verify(of['secret'], of['headers'], of['body'].encode()) else 3)\n";
        let mut python = Command::new("python3")
            .args(["-c", &format!("{snippet}\n{calls}")])
            .stdin(Stdio::piped())
            .spawn()
            .ok()?;
        let of = json!({"secret": SECRET, "headers": headers, "body": body}).to_string();
        python.stdin.take()?.write_all(of.as_bytes()).ok()?;
        python.wait().ok()?.code()
    };
    let Some(code) = run(&came.headers, &came.body) else {
        eprintln!("there is no Python: the snippet is not run");
        return;
    };
    assert_eq!(code, 0, "what was sent");
    assert_eq!(run(&came.headers, &format!("{} ", came.body)), Some(3), "another body");
    let mut old = came.headers.clone();
    old.insert("webhook-timestamp".into(), "1700000000".into());
    assert_eq!(run(&old, &came.body), Some(3), "another time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_dies_and_an_event_service_that_is_killed_lose_nothing() {
    let mut world = world(2).await;
    let receiver = Receiver::start(|_| Answer::Take);
    let subscription = Subscription { partitions: 2, ..to("s", &receiver.url("/s")) };
    create(&world, subscription).await;
    world.run_ones(3).await;
    receiver.has("/s", &world.positions().await).await;
    let (address, came, answers) = receiver.die().await;
    world.run_ones(3).await;
    stands(&world, "s", |answer| answer.partitions.iter().any(|of| of.failed_attempts > 0)).await;
    // Whoever has it dies too; the other takes over when the lease is over.
    for index in [0, 1] {
        world.suite.process(Service::Event, index).unwrap().kill(Signal::SIGKILL).await.unwrap();
        let receiver = Receiver::at(address, came.clone(), Arc::clone(&answers));
        world.suite.restart(Service::Event, index).await.unwrap();
        world.run_ones(2).await;
        receiver.has("/s", &world.positions().await).await;
        in_order(&receiver.taken("/s"));
        receiver.die().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_never_taken_is_parked_with_its_task_and_replayed_when_it_can_be() {
    let world = world(1).await;
    let poison = world.run_ones(1).await.remove(0);
    let refused = poison.clone();
    let receiver = Receiver::start(move |came| match came.task() == refused {
        true => Answer::Status(410),
        false => Answer::Take,
    });
    create(&world, Subscription { max_attempts: 2, ..to("s", &receiver.url("/s")) }).await;
    let others = world.run_ones(2).await;
    let all = world.positions().await;
    let parked_now = stands(&world, "s", |answer| parked(answer) == 5).await;
    assert_eq!(parked_now.partitions[0].retried_events, 0);
    let request =
        ListParkedEventsRequest { name: "s".into(), ..ListParkedEventsRequest::default() };
    let listed = world.client.list_parked_events(request).await.unwrap().events;
    assert_eq!((listed[0].failed_attempts, &*listed[0].reason), (2, "410 Gone: says why"));
    assert!(listed.iter().all(|of| of.event.as_ref().unwrap().task_id == poison));
    let of_others = |came: &[Came]| came.iter().filter(|came| came.taken).count() == 10;
    receiver.until("those of other tasks", of_others).await;
    assert!(receiver.taken("/s").iter().all(|came| others.contains(&came.task())));
    receiver.answers(|_| Answer::Take);
    let replay = ReplayParkedEventsRequest { name: "s".into(), ..Default::default() };
    assert_eq!(world.client.replay_parked_events(replay).await.unwrap().events, 5);
    receiver.has("/s", &all).await;
    in_order(&receiver.taken("/s"));
    stands(&world, "s", |answer| answer.partitions[0].retried_events == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_where_it_may_not_go_and_nobody_else_reads_what_is_delivered() {
    let world = world(1).await;
    let receiver = Receiver::start(|_| Answer::Take);
    let attempt = |subscription: Subscription| {
        let client = world.client.clone();
        async move {
            let subscription = Some(subscription);
            let request = CreateSubscriptionRequest { subscription, start: None };
            refusal(client.create_subscription(request).await.unwrap_err())
        }
    };
    for (subscription, path) in [
        (to("s", "http://10.0.0.1/"), "subscription.delivery.webhook.url"),
        (to("s", "file:///etc/passwd"), "subscription.delivery.webhook.url"),
        (
            Subscription { delivery: Some(Delivery { kind: None }), ..to("s", "") },
            "subscription.delivery",
        ),
        (
            Subscription { config: "[]".into(), ..to("s", "https://hooks.example") },
            "subscription.config",
        ),
        (
            Subscription { config: "{}".into(), delivery: None, ..to("s", "") },
            "subscription.config",
        ),
        (
            Subscription { namespace: "shop".into(), ..to("s", "https://hooks.example") },
            "subscription.definition_name",
        ),
    ] {
        let refused = attempt(subscription).await;
        assert_eq!(refused.reason, ErrorReason::InvalidRequest);
        assert_eq!(refused.violations.len(), 1, "{refused:?}");
        assert_eq!(refused.violations[0].0, path);
    }
    // A name says nothing of its address: that is looked at when it is called.
    let inside = receiver.url("/s").replace("127.0.0.1", "localhost");
    create(&world, Subscription { max_attempts: 1, ..to("inside", &inside) }).await;
    world.define(ONE).await;
    world.create("one", &json!({})).await;
    stands(&world, "inside", |answer| parked(answer) == 1).await;
    let request =
        ListParkedEventsRequest { name: "inside".into(), ..ListParkedEventsRequest::default() };
    let listed = world.client.list_parked_events(request).await.unwrap().events;
    assert!(listed[0].reason.contains("has no public address"), "{}", listed[0].reason);
    assert!(receiver.came().is_empty());
    let start = SubscriptionStart {
        name: "inside".into(),
        reader_id: "r".into(),
        ..SubscriptionStart::default()
    };
    let start = Some(subscribe_request::Start::Subscription(start));
    let address = world.suite.addresses().event[0].clone();
    let mut service = EventServiceClient::connect(address).await.unwrap();
    let request = SubscribeRequest { start, ..SubscribeRequest::default() };
    let refused = Refusal::from_status(&service.subscribe(request).await.unwrap_err()).unwrap();
    assert_eq!(refused.reason, ErrorReason::SubscriptionHasDelivery);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_become_lines_of_the_log_and_a_pause_stops_them() {
    let world = world(1).await;
    let delivery = Some(Delivery { kind: Some(Kind::Log(LogDelivery {})) });
    let filter = Some(EventFilter { names: vec!["task.completed".into()], ..Default::default() });
    let lines = Subscription { name: "lines".into(), filter, delivery, ..Subscription::default() };
    create(&world, lines).await;
    let done = |answer: &v1::GetSubscriptionResponse| answer.partitions[0].events_behind == 0;
    let first = world.run_ones(2).await;
    stands(&world, "lines", done).await;
    let change = |paused: Option<bool>, disabled: Option<bool>| UpdateSubscriptionRequest {
        name: "lines".into(),
        paused,
        disabled,
        ..UpdateSubscriptionRequest::default()
    };
    world.client.update_subscription(change(Some(true), None)).await.unwrap();
    let second = world.run_ones(1).await;
    let log = || world.suite.log_of(Service::Event, 0);
    let told = |task: &String| {
        let log = log();
        log.lines().filter(|l| l.contains("task.completed") && l.contains(task.as_str())).count()
    };
    assert!(first.iter().all(|task| told(task) == 1), "{}", log());
    assert_eq!(told(&second[0]), 0);
    // Both must let it go on.
    world.client.update_subscription(change(Some(false), Some(true))).await.unwrap();
    let still = stands(&world, "lines", |answer| answer.partitions[0].reader_id.is_empty()).await;
    assert!(still.subscription.unwrap().disabled && still.partitions[0].events_behind > 0);
    world.client.update_subscription(change(None, Some(false))).await.unwrap();
    stands(&world, "lines", done).await;
    assert_eq!(told(&second[0]), 1);
}

// ── alerts ──────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_failures_fire_an_alert_once_and_it_is_resolved_when_they_are_over_whoever_dies() {
    let mut world = world(1).await;
    // The first time each change is told of, the receiver fails.
    let seen = Mutex::new(BTreeSet::new());
    let receiver = Receiver::start(move |came| {
        let is_new = seen.lock().unwrap().insert(came.header("webhook-id").to_owned());
        if is_new { Answer::Status(500) } else { Answer::Take }
    });
    let yaml = format!(
        "subscriptions:\n  - name: alerts\n    events: [task.failed]\n    config: {{to: ops}}\n    \
         deliver: {{alert: {{rule: 3_failures_per_hour, webhook: {{url: '{}', secret_env: STEPWELL_SECRET_HOOK}}}}}}\n",
        receiver.url("/alerts")
    );
    let texts = vec![SubscriptionText { source: "a.yaml".into(), yaml }];
    let request = ApplySubscriptionsRequest { texts, prune: false };
    world.client.apply_subscriptions(request).await.unwrap();
    // A change is held to the rules of an alert, as its declaration was.
    let update = UpdateSubscriptionRequest { name: "alerts".into(), ..Default::default() };
    let unnamed = Some(EventFilter::default());
    for (wrong, field) in [
        (UpdateSubscriptionRequest { partitions: 2, ..update.clone() }, "partitions"),
        (UpdateSubscriptionRequest { filter: unnamed, ..update.clone() }, "filter.names"),
    ] {
        let refused = refusal(world.client.update_subscription(wrong).await.unwrap_err());
        assert_eq!(refused.violations[0].0, field);
    }
    world.define("{name: bad, steps: [{name: fails, retry: {max_attempts: 1}}]}").await;
    let executor = Executor::new(&world.client, "e")
        .handler("fails", async |_| Err::<(), _>(HandlerError::new("No", "never").permanent()));
    let running = world.run(executor);
    let fail = async |world: &World, n: usize| {
        for _ in 0..n {
            let task = world.create("bad", &json!({})).await.task_id;
            world.ended(&task).await;
        }
        stands(world, "alerts", |answer| answer.partitions[0].events_behind == 0).await;
    };
    fail(&world, 2).await;
    assert!(receiver.came().is_empty(), "two are not too many");
    fail(&world, 1).await;
    receiver.until("it fires", |came| came.iter().any(|came| came.taken)).await;
    let first = receiver.taken("/alerts").remove(0);
    let event = first.event();
    assert_eq!(
        (&event["type"], &event["subscription"]),
        (&json!("alert.firing"), &json!("alerts"))
    );
    assert_eq!(event["subscriptionconfig"], r#"{"to":"ops"}"#);
    assert_eq!(event["data"]["rule"], "3_failures_per_hour");
    assert_eq!(event["data"]["definitionName"], "bad");
    assert!(first.header("webhook-signature").starts_with("v1,"));
    // It goes on firing, and nothing more is said of that.
    fail(&world, 2).await;
    world.suite.process(Service::Event, 0).unwrap().kill(Signal::SIGKILL).await.unwrap();
    let an_hour_ago =
        "update stepwell.alert set seen = array(select s - interval '2 h' from unnest(seen) s)";
    sqlx::query(an_hour_ago).execute(&mut world.connection().await).await.unwrap();
    world.suite.restart(Service::Event, 0).await.unwrap();
    let taken = |came: &[Came]| came.iter().filter(|came| came.taken).count() == 2;
    receiver.until("it is resolved", taken).await;
    fail(&world, 1).await;
    let kinds: Vec<String> = receiver.taken("/alerts").iter().map(Came::kind).collect();
    assert_eq!(kinds, ["alert.firing", "alert.resolved"]);
    assert_eq!(receiver.came().len(), 4, "each is told until it is taken, and not once more");
    running.stop().await;
}

// ── declarations ────────────────────────────────────────────────────────────────────────────────

fn outcomes(answer: v1::ApplySubscriptionsResponse) -> Vec<(String, ApplyOutcome)> {
    let of = answer.subscriptions.into_iter();
    of.map(|applied| (applied.name.clone(), applied.outcome())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_declared_is_applied_once_and_a_change_goes_on_where_it_is() {
    let world = world(1).await;
    let receiver = Receiver::start(|_| Answer::Take);
    let apply = |yaml: String, prune: bool| {
        let texts = vec![SubscriptionText { source: "a.yaml".into(), yaml }];
        world.client.apply_subscriptions(ApplySubscriptionsRequest { texts, prune })
    };
    let declared = |events: &str, path: &str| {
        let url = receiver.url(path);
        format!(
            "subscriptions:\n  - name: orders\n    events: [{events}]\n    start: earliest\n    \
             deliver: {{webhook: {{url: '{url}', secret_env: STEPWELL_SECRET_HOOK}}}}\n"
        )
    };
    let first = declared("task.completed", "/first");
    let of = |outcome| [("orders".to_owned(), outcome)];
    assert_eq!(outcomes(apply(first.clone(), false).await.unwrap()), of(ApplyOutcome::Created));
    let before = world.run_ones(2).await;
    let done = |answer: &v1::GetSubscriptionResponse| answer.partitions[0].events_behind == 0;
    receiver.until("two events", |came| came.len() == 2).await;
    stands(&world, "orders", done).await;
    assert_eq!(outcomes(apply(first, false).await.unwrap()), of(ApplyOutcome::Unchanged));
    // Another filter and another url: from where it is, and nothing of before comes again.
    let second = declared("task.completed, step.completed", "/second");
    assert_eq!(outcomes(apply(second, false).await.unwrap()), of(ApplyOutcome::Changed));
    let after = world.run_ones(1).await;
    receiver.until("two more", |came| came.len() == 4).await;
    assert_eq!(receiver.taken("/first").len(), 2);
    let second = receiver.taken("/second");
    let kinds: Vec<String> = second.iter().map(Came::kind).collect();
    assert_eq!(kinds, ["step.completed", "task.completed"]);
    assert!(second.iter().all(|came| after.contains(&came.task())), "{before:?}");
    // What a peer made is not for declarations to change, and what is declared no more stays unless pruned.
    create(&world, to("by-hand", &receiver.url("/hand"))).await;
    let by_hand = "subscriptions: [{name: by-hand}]".to_owned();
    let refused = refusal(apply(by_hand, false).await.unwrap_err());
    assert_eq!(refused.reason, ErrorReason::SubscriptionExists);
    assert_eq!(refused.violations[0].0, "a.yaml: subscriptions[0] at 1:24");
    let other = "subscriptions: [{name: other, deliver: {log: {}}}]".to_owned();
    apply(other.clone(), false).await.unwrap();
    let pruned = outcomes(apply(other, true).await.unwrap());
    assert_eq!(
        pruned,
        [
            ("other".to_owned(), ApplyOutcome::Unchanged),
            ("orders".to_owned(), ApplyOutcome::Pruned)
        ]
    );
    let names: Vec<String> =
        sqlx::query_scalar("select name from stepwell.subscription order by name")
            .fetch_all(&mut world.connection().await)
            .await
            .unwrap();
    assert_eq!(names, ["by-hand", "other"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_inside_a_definition_is_applied_with_it_and_has_only_its_tasks() {
    let world = world(1).await;
    let receiver = Receiver::start(|_| Answer::Take);
    world.run_ones(1).await;
    let yaml = format!(
        "name: two\nsteps: [{{name: a}}]\nsubscriptions:\n  - name: of-two\n    events: [task.completed]\n    \
         start: earliest\n    deliver: {{webhook: {{url: '{}'}}}}\n",
        receiver.url("/two")
    );
    let (code, out, err) = stepwell(&world, &["definition", "apply", "-"], &yaml);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("default/two 0.1.0 registered") && out.contains("subscription of-two created")
    );
    let executor =
        Executor::new(&world.client, "e").handler("a", async |_| Ok::<_, HandlerError>(json!({})));
    let running = world.run(executor);
    let task = world.create("two", &json!({})).await.task_id;
    world.ended(&task).await;
    running.stop().await;
    receiver.until("its event", |came| !came.is_empty()).await;
    stands(&world, "of-two", |answer| answer.partitions[0].events_behind == 0).await;
    let came = receiver.came();
    assert_eq!((came.len(), came[0].task()), (1, task));
    assert_eq!(came[0].header("webhook-signature"), "", "without a secret nothing is signed");
    let (code, out, _) = stepwell(&world, &["subscription", "list"], "");
    assert!(code == 0 && out.contains("default/two") && out.contains("webhook"), "{out}");
    let (code, out, _) = stepwell(&world, &["subscription", "describe", "of-two"], "");
    assert!(
        code == 0 && out.contains(&receiver.url("/two")) && out.contains("event-service/"),
        "{out}"
    );
    for (command, said) in [
        (vec!["pause", "of-two"], "of-two is paused"),
        (vec!["seek", "of-two", "earliest"], "of-two is moved"),
        (vec!["resume", "of-two"], "of-two goes on"),
    ] {
        let (code, out, err) = stepwell(&world, &[vec!["subscription"], command].concat(), "");
        assert!(code == 0 && out.contains(said), "{out}{err}");
    }
    receiver.until("it comes again", |came| came.len() == 2).await;
    let (code, out, _) = stepwell(&world, &["subscription", "parked", "of-two"], "");
    assert!(code == 0 && !out.contains("task.completed"), "{out}");
    let (code, out, _) = stepwell(&world, &["subscription", "replay", "of-two", "--all"], "");
    assert_eq!((code, out.trim()), (0, "of-two: 0 events to be delivered again"));
    let (code, ..) = stepwell(&world, &["subscription", "delete", "of-two"], "");
    assert_eq!(code, 0);
    let (code, ..) = stepwell(&world, &["subscription", "describe", "of-two"], "");
    assert_eq!(code, 3);
    let wrong = "subscriptions:\n  - {name: a, events: [task.complete]}\n";
    let (code, _, err) = stepwell(&world, &["subscription", "apply", "-"], wrong);
    assert!(code == 2 && err.contains("2:24") && err.contains("task.completed"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_applies_its_folder_at_start_and_does_not_start_with_a_fault_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let good = "subscriptions: [{name: lines, deliver: {log: {}}}]";
    std::fs::write(folder.path().join("a.yaml"), good).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not for us").unwrap();
    let mut vars = env();
    vars.push(("STEPWELL_SUBSCRIPTIONS".into(), folder.path().display().to_string()));
    let started = World::set_up(|options| options.env = vars.clone()).await;
    let answer = stands(&started, "lines", |_| true).await;
    assert!(answer.subscription.unwrap().declared);
    std::fs::write(folder.path().join("b.yml"), "subscriptions: [{nam: b}]").unwrap();
    let mut options = SuiteOptions::new(stepwell_suite::built_stepwell().unwrap());
    options.database_url = Some(started.suite.database_url().to_owned());
    options.nodes = Nodes { task: 0, step: 0, event: 1 };
    options.env = vars;
    let Err(error) = Suite::start(options).await else { panic!("it has started") };
    let said = error.to_string();
    assert!(
        said.contains("b.yml: subscriptions[0].nam at 1:18") && said.contains("`name`"),
        "{said}"
    );
}
