//! Traces: what a receiver of OTLP gets from the services, an executor and a client.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};
use stepwell_client::{Start, Subscriber, v1};
use stepwell_suite::{Command, Kind, Process, Signal};
use stepwell_tests::{Exports, Receiver, SOON, Span, World, check, drawn};
use tokio::sync::Notify;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tracing::{Instrument, instrument::WithSubscriber};

const DEFINITION: &str = "
name: traced
defaults: {retry: {max_attempts: 3, initial_backoff: 10ms}}
steps:
  - {name: a, handler: told}
  - {name: b, handler: told, depends_on: [a]}
";

/// Services that export to the receiver, with further variables.
async fn world(receiver: &Receiver, further: &[(&str, &str)]) -> World {
    let further = further.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let env = receiver.env().into_iter().chain(further).collect();
    let world = World::set_up(|options| options.env = env).await;
    world.define(DEFINITION).await;
    world
}

/// An executor as a process of its own.
pub(super) async fn executor(world: &World, env: &[(String, String)]) -> Process {
    let addresses = world.suite.addresses();
    let history = world.suite.folder().join("executor.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_actor"))
        .args(["--history", history.to_str().unwrap(), "executor"])
        .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
        .env("STEPWELL_STEP_ADDRESS", addresses.step.join(","))
        .env("STEPWELL_EVENT_ADDRESS", addresses.event.join(","))
        .log(world.suite.folder().join("executor.log"));
    for (name, value) in env {
        command = command.env(name, value);
    }
    world.suite.guard().spawn(command).await.unwrap()
}

/// Creates a task inside a span, as an application would.
async fn order(world: &World, context: &Value) -> v1::Task {
    world.create("traced", context).instrument(tracing::info_span!("order")).await
}

/// Handles all events until the task has ended.
async fn follow(world: &World) {
    let ended = std::sync::Arc::new(Notify::new());
    let over = std::sync::Arc::clone(&ended);
    let subscriber = Subscriber::new(&world.client)
        .on_name("*", move |event| {
            let ended = std::sync::Arc::clone(&ended);
            async move {
                if event.name == "task.completed" {
                    ended.notify_one();
                }
                Ok(())
            }
        })
        .unwrap()
        .from(Start::Earliest);
    subscriber.run(over.notified()).await.unwrap();
}

/// The spans of the one trace that has a span of this name, if they are one tree: one root, and
/// every other's parent is there.
fn tree(spans: &[Span], name: &str) -> Option<Vec<Span>> {
    let trace = &spans.iter().find(|span| span.name == name)?.trace;
    let of_trace: Vec<Span> = spans.iter().filter(|span| span.trace == *trace).cloned().collect();
    let ids: BTreeSet<&str> = of_trace.iter().map(|span| span.id.as_str()).collect();
    let (roots, others): (Vec<&Span>, Vec<&Span>) =
        of_trace.iter().partition(|span| span.parent.is_none());
    let whole = others.iter().all(|s| s.parent.as_deref().is_some_and(|id| ids.contains(id)));
    (roots.len() == 1 && whole).then_some(of_trace)
}

fn count(spans: &[Span], name: &str) -> usize {
    spans.iter().filter(|span| span.name == name).count()
}

/// The one span of this name about an attempt of a step.
fn attempt<'a>(spans: &'a [Span], name: &str, step: &str, attempt: &str) -> &'a Span {
    // Attributes of the services begin with their name; those of the client are log fields too.
    let is = |span: &Span, field: &str, value: &str| {
        span.attribute(field) == value || span.attribute(&format!("stepwell.{field}")) == value
    };
    let mut found =
        spans.iter().filter(|s| s.name == name && is(s, "step", step) && is(s, "attempt", attempt));
    let one = found.next().unwrap_or_else(|| panic!("{name} of {step}:\n{}", drawn(spans)));
    assert!(found.next().is_none(), "{name} of {step} twice:\n{}", drawn(spans));
    one
}

async fn recorded(world: &World) -> usize {
    let events: i64 = sqlx::query_scalar("select count(*) from stepwell.event")
        .fetch_one(&mut world.connection().await)
        .await
        .unwrap();
    usize::try_from(events).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spans_of_a_task_are_one_tree_across_five_processes() {
    let receiver = Receiver::start().await;
    let world = world(&receiver, &[]).await;
    let executor = executor(&world, &receiver.env()).await;
    let exports = Exports::new(&receiver.endpoint, "client");
    let told = json!({"fails": "a"});
    let story = async { tokio::join!(order(&world, &told), follow(&world)).0 };
    let task = story.with_subscriber(exports.dispatch.clone()).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");

    let events = recorded(&world).await;
    let spans = receiver
        .until(|spans| {
            let tree = tree(spans, "order")?;
            let whole = count(&tree, "event.handle") == events && count(&tree, "step.settle") == 3;
            whole.then_some(tree)
        })
        .await;
    let services: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    let all = ["client", "executor", "stepwell-event", "stepwell-step", "stepwell-task"];
    assert_eq!(services, BTreeSet::from(all), "{}", drawn(&spans));
    assert_eq!(count(&spans, "event.deliver"), events);
    let ids: HashMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let parent = |span: &Span| ids[span.parent.as_deref().unwrap()];

    // From the call to the task, from there to each attempt, and through its handler to its end.
    let create = spans.iter().find(|s| s.name == "stepwell.v1.TaskService/CreateTask").unwrap();
    assert_eq!((parent(create).name.as_str(), create.service.as_str()), ("order", "stepwell-task"));
    for (step, n) in [("a", "1"), ("a", "2"), ("b", "1")] {
        let dispatch = attempt(&spans, "step.dispatch", step, n);
        let handle = attempt(&spans, "step.handle", step, n);
        let settle = attempt(&spans, "step.settle", step, n);
        assert_eq!(parent(dispatch).id, create.id);
        assert_eq!(dispatch.attribute("stepwell.task"), task.task_id);
        assert_eq!(parent(handle).id, dispatch.id);
        assert_eq!(parent(settle).id, handle.id);
        assert_eq!(settle.attribute("stepwell.task"), task.task_id);
        assert_eq!(handle.is_error, (step, n) == ("a", "1"));
        // What the handler calls goes on from it.
        let called = |s: &Span| s.name == "stepwell.v1.TaskService/GetTask" && parent(s) == handle;
        assert_eq!(spans.iter().filter(|s| called(s)).count(), 1);
    }
    for handle in spans.iter().filter(|span| span.name == "event.handle") {
        let deliver = parent(handle);
        assert_eq!(
            (deliver.name.as_str(), parent(deliver).id.as_str()),
            ("event.deliver", create.id.as_str())
        );
        assert_eq!(deliver.attribute("stepwell.position"), handle.attribute("position"));
    }

    // A retry names the attempt before.
    let first = attempt(&spans, "step.handle", "a", "1");
    assert_eq!(attempt(&spans, "step.dispatch", "a", "2").links, std::slice::from_ref(&first.id));
    assert!(attempt(&spans, "step.dispatch", "a", "1").links.is_empty());

    // Calls of verbs serve many tasks: they are traces of their own, which link to those.
    receiver
        .until(|all| {
            let of = |batch: &str, verb: &str, served: &Span| {
                let batch = all.iter().find(|s| s.name == batch && s.links.contains(&served.id))?;
                let is_verb = |s: &&Span| s.name == verb && s.parent == Some(batch.id.clone());
                all.iter().find(is_verb).map(|verb| verb.attribute("stepwell.rows").to_owned())
            };
            let settle = attempt(&spans, "step.settle", "b", "1");
            let rows =
                (of("create", "db.create_tasks", create)?, of("settle", "db.settle", settle)?);
            all.iter()
                .any(|s| s.name == "db.claim")
                .then(|| assert_eq!(rows, ("1".into(), "1".into())))
        })
        .await;
    executor.kill(Signal::SIGTERM).await.unwrap();
    executor.wait().await;
    exports.flush().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_service_that_is_killed_while_a_step_runs_leaves_the_tree_whole() {
    let receiver = Receiver::start().await;
    let mut world = world(&receiver, &[]).await;
    // Its handler is not there: it ends when it is cancelled.
    world.define("{name: gate, steps: [{name: closed}]}").await;
    let gate = world.create("gate", &json!({})).await;
    let executor = executor(&world, &receiver.env()).await;
    let exports = Exports::new(&receiver.endpoint, "client");
    let told = json!({"waits": "a", "waits_for": gate.task_id});
    let task = order(&world, &told).with_subscriber(exports.dispatch.clone()).await;
    // The step was sent, said so, and is on its way: its handler's first call was answered.
    receiver
        .until(|spans| {
            let tree = tree(spans, "order").unwrap_or_default();
            let trace = spans.iter().find(|span| span.name == "order")?.trace.clone();
            let called = |s: &&Span| s.trace == trace && s.name.ends_with("/GetTask");
            (count(&tree, "step.dispatch") == 1 || count(spans, "step.dispatch") == 1)
                .then(|| spans.iter().find(called).map(|_| ()))?
        })
        .await;
    let process = world.suite.process(Kind::Step, 0).unwrap().clone();
    process.kill(Signal::SIGKILL).await.unwrap();
    world.suite.restart(Kind::Step, 0).await.unwrap();
    let cancel = v1::CancelTaskRequest { task_id: gate.task_id, ..Default::default() };
    world.client.cancel_task(cancel).await.unwrap();
    let ended = world.ended(&task.task_id).await;
    assert_eq!((ended.state().word(), ended.steps[0].attempt), ("complete", 1));
    let spans = receiver
        .until(|spans| tree(spans, "order").filter(|tree| count(tree, "step.settle") == 2))
        .await;
    for step in ["a", "b"] {
        let dispatch = attempt(&spans, "step.dispatch", step, "1");
        let handle = attempt(&spans, "step.handle", step, "1");
        let settle = attempt(&spans, "step.settle", step, "1");
        assert_eq!(handle.parent.as_ref(), Some(&dispatch.id));
        assert_eq!(settle.parent.as_ref(), Some(&handle.id));
    }
    executor.kill(Signal::SIGTERM).await.unwrap();
    executor.wait().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_attempt_after_one_that_took_too_long_links_to_its_end() {
    let receiver = Receiver::start().await;
    let world = world(&receiver, &[]).await;
    let slow = "{name: slow, steps: [{name: a, handler: told, timeout: 1s,
                 retry: {max_attempts: 2, initial_backoff: 10ms}}]}";
    for definition in [slow, "{name: gate, steps: [{name: closed}]}"] {
        world.define(definition).await;
    }
    let gate = world.create("gate", &json!({})).await;
    let executor = executor(&world, &receiver.env()).await;
    let exports = Exports::new(&receiver.endpoint, "client");
    let told = json!({"waits": "a", "waits_for": gate.task_id});
    let order =
        async { world.create("slow", &told).instrument(tracing::info_span!("order")).await };
    let task = order.with_subscriber(exports.dispatch.clone()).await;
    let ended = |spans: &[Span]| {
        let mut ends = spans.iter().filter(|span| span.name == "step.settle");
        ends.find(|span| span.attribute("stepwell.outcome") == "retry").cloned()
    };
    let ended = receiver.until(ended).await;
    let cancel = v1::CancelTaskRequest { task_id: gate.task_id, ..Default::default() };
    world.client.cancel_task(cancel).await.unwrap();
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    let spans = receiver
        .until(|spans| tree(spans, "order").filter(|tree| count(tree, "step.settle") == 2))
        .await;
    assert_eq!(attempt(&spans, "step.settle", "a", "1").id, ended.id);
    let second = attempt(&spans, "step.dispatch", "a", "2");
    assert_eq!(second.links, std::slice::from_ref(&ended.id));
    assert_eq!(second.parent, ended.parent, "both go on from the task");
    executor.kill(Signal::SIGTERM).await.unwrap();
    executor.wait().await;
    check(&mut world.connection().await).await;
}

/// Ends the services in peace: what they have to say, they say then.
pub(super) async fn stopped(world: &World) {
    for kind in [Kind::Task, Kind::Step, Kind::Event] {
        let process = world.suite.process(kind, 0).unwrap().clone();
        process.kill(Signal::SIGTERM).await.unwrap();
        let exit = process.wait().await;
        assert!(exit.code == Some(0), "{}-service: {exit:?}", kind.word());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_looks_after_the_services_makes_no_spans() {
    let receiver = Receiver::start().await;
    let world = world(&receiver, &[]).await;
    let addresses = world.suite.addresses();
    for address in [&addresses.task[0], &addresses.step[0], &addresses.event[0]] {
        let channel = tonic::transport::Endpoint::from_shared(address.clone()).unwrap();
        let mut health = HealthClient::new(channel.connect().await.unwrap());
        let host = address.strip_prefix("http://").unwrap();
        for _ in 0..3 {
            health.check(HealthCheckRequest::default()).await.unwrap();
            for path in ["livez", "readyz"] {
                let answer = get(host, path).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        }
    }
    stopped(&world).await;
    let names: BTreeSet<String> = receiver.spans().into_iter().map(|span| span.name).collect();
    let registered = "stepwell.v1.TaskService/RegisterDefinition".to_owned();
    assert_eq!(names, BTreeSet::from([registered]), "the only call there was");
}

async fn get(host: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_sample_of_nothing_only_the_callers_own_traces_are_recorded() {
    let receiver = Receiver::start().await;
    let world = world(&receiver, &[("STEPWELL_TRACE_SAMPLE", "0")]).await;
    let executor = executor(&world, &receiver.env()).await;
    let untraced = world.create("traced", &json!({"fails": "a"})).await;
    assert_eq!(world.ended(&untraced.task_id).await.state().word(), "complete");
    let traced: i64 = sqlx::query_scalar(
        "select (select count(*) from stepwell.task where trace is not null)
              + (select count(*) from stepwell.event where trace is not null)",
    )
    .fetch_one(&mut world.connection().await)
    .await
    .unwrap();
    assert_eq!(traced, 0, "nothing is kept of what nobody traces");

    let exports = Exports::new(&receiver.endpoint, "client");
    let task = order(&world, &json!({})).with_subscriber(exports.dispatch.clone()).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    executor.kill(Signal::SIGTERM).await.unwrap();
    executor.wait().await;
    stopped(&world).await;
    exports.flush().await;
    let spans = receiver.spans();
    let tree = tree(&spans, "order").unwrap();
    assert_eq!(count(&tree, "step.settle"), 2);
    let others = spans.iter().filter(|span| span.trace != tree[0].trace);
    // Its application has no other root than its handlers of untraced tasks.
    let of_services: Vec<&Span> = others.filter(|s| s.service.starts_with("stepwell-")).collect();
    let untraced_handlers: BTreeSet<&str> =
        spans.iter().filter(|s| s.parent.is_none()).map(|s| s.trace.as_str()).collect();
    for span in of_services {
        assert!(untraced_handlers.contains(span.trace.as_str()), "{}", drawn(&spans));
        assert!(span.parent.is_some(), "{span:?} began a trace");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_not_there_disturbs_nothing_and_is_mentioned_once() {
    // Nobody listens there any more.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let env =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
    let env: Vec<(String, String)> = env.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    let world = World::set_up(|options| options.env = env.clone()).await;
    world.define(DEFINITION).await;
    let executor = executor(&world, &env).await;
    for _ in 0..3 {
        let task = world.create("traced", &json!({"fails": "a"})).await;
        assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    }
    executor.kill(Signal::SIGTERM).await.unwrap();
    executor.wait().await;
    let before = tokio::time::Instant::now();
    stopped(&world).await;
    assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    for kind in [Kind::Task, Kind::Step] {
        let log = world.suite.log_of(kind, 0);
        assert_eq!(log.matches("spans cannot be exported").count(), 1, "{log}");
    }
    check(&mut world.connection().await).await;
}
