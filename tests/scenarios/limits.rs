//! What is limited, seen by those who keep to it and by those who do not.

use std::time::{Duration, Instant};

use serde_json::json;
use stepwell_client::{Executor, Start, StepContext, v1};
use stepwell_proto::{
    refusal::Refusal,
    v1::{
        Completion, ErrorReason, HandlerOffer, Hello, Outcome, WorkRequest,
        event_service_client::EventServiceClient, outcome, step_service_client::StepServiceClient,
        task_service_client::TaskServiceClient,
    },
};
use stepwell_suite::Nodes;
use stepwell_tests::{SOON, World, check, until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

fn refused(status: &Status) -> Refusal {
    Refusal::from_status(status).unwrap_or_else(|| panic!("no reason: {status:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_connections_and_streams_make_room_for_new_ones_and_nobody_notices() {
    let world = World::with(Nodes { task: 2, step: 2, event: 2 }, &["--connection-age", "1"]).await;
    world.define("{name: d, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let executor = Executor::new(&world.client, "e")
        .slots(10)
        .handler("a", async |step: StepContext| Ok(step.attempt()))
        .handler("b", async |step: StepContext| step.parent::<i32>("a").await);
    let running = world.run(executor);
    let mut feed = world.feed(Start::Latest).await;
    let begun = Instant::now();
    let mut tasks = 0;
    let mut last = String::new();
    // Several ages of connections.
    while begun.elapsed() < Duration::from_secs(6) {
        let task = world.create("d", &json!({"n": tasks})).await;
        let task = world.ended(&task.task_id).await;
        assert_eq!(task.state().word(), "complete");
        assert!(task.steps.iter().all(|step| step.attempt == 1), "no attempt was lost: {task:?}");
        (tasks, last) = (tasks + 1, task.task_id);
    }
    let completed = |event: &v1::Event| event.name == "task.completed";
    let events = until(&mut feed, |event| completed(event) && event.task_id == last).await;
    assert_eq!(events.iter().filter(|event| completed(event)).count(), tasks);
    assert!(events.is_sorted_by(|a, b| a.position < b.position), "each once and in order");
    let report = running.stop().await;
    assert!(report.sessions > 3, "{report:?}");
    assert_eq!((report.completed, report.refused), (2 * u64::try_from(tasks).unwrap(), 0));
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executors_and_subscribers_beyond_the_limit_are_refused_until_others_go() {
    let world = World::set_up(|options| {
        let limits = [("STEPWELL_SESSIONS_MAX", "2"), ("STEPWELL_SUBSCRIPTIONS_MAX", "2")];
        options.env = limits.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    })
    .await;
    let stepwell_suite::Addresses { step, event, .. } = world.suite.addresses();
    let subscribe = || async {
        let mut service = EventServiceClient::connect(event[0].clone()).await.unwrap();
        service.subscribe(v1::SubscribeRequest::default()).await
    };
    let work = || async {
        let mut service = StepServiceClient::connect(step[0].clone()).await.unwrap();
        let (send, requests) = tokio::sync::mpsc::channel(1);
        send.send(WorkRequest { hello: Some(hello()), ..WorkRequest::default() }).await.unwrap();
        let answers = service.work(ReceiverStream::new(requests)).await?;
        Ok((send, answers))
    };
    beyond_two(subscribe).await;
    beyond_two(work).await;
}

/// Opens two streams; a third one is refused until one of them is gone.
async fn beyond_two<T, F: Future<Output = Result<T, Status>>>(open: impl Fn() -> F) {
    let (first, second) = (open().await.unwrap(), open().await.unwrap());
    let refusal = refused(&open().await.err().unwrap());
    assert_eq!(refusal.reason, ErrorReason::Overloaded);
    assert!(refusal.retry_after.is_some());
    drop(first);
    let third = async {
        loop {
            match open().await {
                Ok(third) => return third,
                Err(status) => assert_eq!(refused(&status).reason, ErrorReason::Overloaded),
            }
        }
    };
    drop((tokio::time::timeout(SOON, third).await.unwrap(), second));
}

fn hello() -> Hello {
    Hello {
        handlers: vec![HandlerOffer { name: "a".into(), ..Default::default() }],
        slots: 1,
        ..Hello::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_that_says_what_it_may_not_is_told_why_its_stream_ends() {
    let world = World::start().await;
    let address = world.suite.addresses().step[0].clone();
    let outcome = |result: String| Outcome {
        lease_id: "none".into(),
        kind: Some(outcome::Kind::Complete(Completion { result })),
        ..Outcome::default()
    };
    let too_large = vec![outcome("x".repeat(5 << 20))];
    let too_many = vec![outcome(String::new()); 10_001];
    let hello_again = WorkRequest { hello: Some(hello()), ..WorkRequest::default() };
    for (wrong, what) in [
        (WorkRequest { outcomes: too_large, ..WorkRequest::default() }, "at most 4194304"),
        (WorkRequest { outcomes: too_many, ..WorkRequest::default() }, "outcomes"),
        (WorkRequest { slots: Some(-1), ..WorkRequest::default() }, "slots"),
        (hello_again, "hello"),
    ] {
        let mut service = StepServiceClient::connect(address.clone()).await.unwrap();
        let (send, requests) = tokio::sync::mpsc::channel(4);
        send.send(WorkRequest { hello: Some(hello()), ..WorkRequest::default() }).await.unwrap();
        let answers = service.work(ReceiverStream::new(requests)).await.unwrap();
        let mut answers = answers.into_inner();
        assert!(answers.message().await.unwrap().unwrap().welcome.is_some());
        send.send(wrong).await.unwrap();
        let refusal = loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason: {what}"),
                Err(status) => break refused(&status),
            }
        };
        assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
        assert!(refusal.message.contains(what), "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_out_of_range_are_refused_with_their_fields() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let task = world.create("d", &json!({})).await;
    let before = world.rows().await;
    let address = world.suite.addresses().task[0].clone();
    let mut service = TaskServiceClient::connect(address).await.unwrap();
    let time = |seconds, nanos| prost_types::Duration { seconds, nanos };
    for wrong in [
        time(-1, 0),
        time(0, -1),
        time(i64::MAX, 999_999_999),
        time(i64::MIN, -999_999_999),
        time(11 * 365 * 24 * 3600, 0),
        time(i64::MAX, i32::MAX),
    ] {
        let wait = v1::WaitTaskRequest { task_id: task.task_id.clone(), timeout: Some(wrong) };
        let refusal = refused(&service.wait_task(wait).await.unwrap_err());
        assert_eq!(refusal.violations[0].0, "timeout", "{wrong:?}");
        let retry = v1::RetryPolicy {
            max_attempts: 2,
            multiplier: 1.0,
            initial_backoff: Some(wrong),
            max_backoff: Some(wrong),
            ..Default::default()
        };
        let step = v1::StepTemplate {
            name: "a".into(),
            timeout: Some(wrong),
            retry: Some(retry),
            ..Default::default()
        };
        let definition = v1::Definition {
            name: "late".into(),
            version: "1.0.0".into(),
            steps: vec![step],
            ..Default::default()
        };
        let source = Some(v1::register_definition_request::Source::Definition(definition));
        let register = v1::RegisterDefinitionRequest { source };
        let refusal = refused(&service.register_definition(register).await.unwrap_err());
        let paths: Vec<_> = refusal.violations.iter().map(|(path, _)| path.as_str()).collect();
        for path in ["timeout", "retry.initial_backoff", "retry.max_backoff"] {
            assert!(paths.contains(&format!("steps[0].{path}").as_str()), "{wrong:?}: {paths:?}");
        }
    }
    assert_eq!(world.rows().await, before);
}
