//! Executors that cannot hold a stream: the same promises, by calls.

use std::{collections::HashSet, time::Duration};

use serde_json::json;
use stepwell_client::{
    Executor, Start, StepContext,
    v1::{
        AcquireStepsRequest, AcquireStepsResponse, BatchCreateTasksRequest, CancelTaskRequest,
        Completion, CreateTaskRequest, DrainExecutorRequest, ExtendLeasesRequest, Failure,
        HandlerOffer, Hello, Lease, Outcome, ReportOutcomesRequest, Welcome, acquire_steps_request,
        outcome,
    },
};
use stepwell_proto::{
    refusal::Refusal,
    v1::{Ack, ErrorReason, step_service_client::StepServiceClient},
};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, World, check, until};
use tonic::{Status, transport::Channel};

/// An executor of these tests, at one node.
pub(super) struct Caller {
    service: StepServiceClient<Channel>,
    id: String,
    /// Of the last response.
    answer: i64,
}

pub(super) fn hello(slots: i32, held: &[&str]) -> Hello {
    let handlers = ["a", "b", "c", "d"]
        .map(|name| HandlerOffer { name: name.into(), ..HandlerOffer::default() });
    Hello {
        name: "caller".into(),
        handlers: handlers.into(),
        slots,
        sdk: "curl/8".into(),
        held_leases: held.iter().map(|&lease| lease.into()).collect(),
        ..Hello::default()
    }
}

fn refused(status: &Status) -> (ErrorReason, Vec<String>) {
    let refusal = Refusal::from_status(status).unwrap_or_else(|| panic!("no reason: {status:?}"));
    (refusal.reason, refusal.violations.into_iter().map(|(path, _)| path).collect())
}

impl Caller {
    /// Says hello to a node.
    pub(super) async fn hello(world: &World, node: usize, hello: Hello) -> (Self, Welcome) {
        let address = world.suite.addresses().step[node].clone();
        let mut service = StepServiceClient::connect(address).await.unwrap();
        let executor = Some(acquire_steps_request::Executor::Hello(hello));
        let request = AcquireStepsRequest { executor, ..AcquireStepsRequest::default() };
        let answer = service.acquire_steps(request).await.unwrap().into_inner();
        let welcome = answer.welcome.unwrap();
        assert!(answer.leases.is_empty() && answer.answer == 0);
        (Self { service, id: welcome.executor_id.clone(), answer: 0 }, welcome)
    }

    fn request(&self, max: i32, wait: u64) -> AcquireStepsRequest {
        AcquireStepsRequest {
            executor: Some(acquire_steps_request::Executor::ExecutorId(self.id.clone())),
            max,
            wait: Duration::from_secs(wait).try_into().ok(),
            answer: self.answer,
        }
    }

    async fn acquire(&mut self, max: i32, wait: u64) -> Result<AcquireStepsResponse, Status> {
        let request = self.request(max, wait);
        let answer = self.service.acquire_steps(request).await?.into_inner();
        self.answer = answer.answer;
        Ok(answer)
    }

    /// At least one lease.
    pub(super) async fn leases(&mut self, max: i32) -> Vec<Lease> {
        let answer = self.acquire(max, 60).await.unwrap();
        assert!(!answer.leases.is_empty(), "{answer:?}");
        answer.leases
    }

    pub(super) async fn report(&mut self, outcomes: Vec<Outcome>) -> Result<Vec<Ack>, Status> {
        let request = ReportOutcomesRequest { executor_id: self.id.clone(), outcomes };
        Ok(self.service.report_outcomes(request).await?.into_inner().acks)
    }

    /// Reports that these completed; all of it is durable.
    pub(super) async fn complete(&mut self, leases: &[Lease]) {
        let acks =
            self.report(leases.iter().map(|l| complete(&l.lease_id)).collect()).await.unwrap();
        assert_eq!(acks.len(), leases.len());
        for (ack, lease) in acks.iter().zip(leases) {
            assert_eq!((&ack.lease_id, &ack.refusal), (&lease.lease_id, &None));
        }
    }

    async fn extend(&mut self, leases: &[&str]) -> Result<Vec<String>, Status> {
        let lease_ids = leases.iter().map(|&lease| lease.into()).collect();
        let request = ExtendLeasesRequest { executor_id: self.id.clone(), lease_ids };
        Ok(self.service.extend_leases(request).await?.into_inner().lost_leases)
    }
}

fn complete(lease: &str) -> Outcome {
    let kind = Some(outcome::Kind::Complete(Completion { result: "1".into() }));
    Outcome { lease_id: lease.into(), kind, ..Outcome::default() }
}

const DIAMOND: &str = "
name: diamond
steps:
  - name: a
  - {name: b, depends_on: [a]}
  - {name: c, depends_on: [a]}
  - {name: d, depends_on: [b, c]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_without_a_stream_runs_tasks_beside_one_that_has_one() {
    let world = World::start().await;
    world.define(DIAMOND).await;
    let (mut caller, welcome) = Caller::hello(&world, 0, hello(5, &[])).await;
    assert!(welcome.unmatched_handlers.is_empty() && welcome.grace.is_some());
    let mut tasks = Vec::new();
    for i in 0..10 {
        tasks.push(world.create("diamond", &json!({"i": i})).await.task_id);
    }
    let mut ran = HashSet::new();
    while ran.len() < 20 {
        let leases = caller.leases(3).await;
        assert!(leases.len() <= 3, "it asked for three");
        assert!(leases.iter().all(|lease| ran.insert((lease.step_id.clone(), lease.attempt))));
        caller.complete(&leases).await;
    }
    let mut executor = Executor::new(&world.client, "stream").slots(5);
    for name in ["a", "b", "c", "d"] {
        executor = executor.handler(name, async |step: StepContext| Ok(step.attempt()));
    }
    let running = world.run(executor);
    let mut feed = world.feed(Start::Earliest).await;
    let mut done = 0;
    let all = async {
        loop {
            let leases = caller.acquire(5, 1).await.unwrap().leases;
            if leases.is_empty() && done == tasks.len() {
                return;
            }
            if !leases.is_empty() {
                caller.complete(&leases).await;
            }
            done = 0;
            for task in &tasks {
                done += usize::from(world.task(task).await.state().is_final());
            }
        }
    };
    tokio::time::timeout(SOON, all).await.unwrap();
    for task in &tasks {
        let task = world.ended(task).await;
        assert_eq!(task.state().word(), "complete");
        assert!(task.steps.iter().all(|step| step.attempt == 1), "each once: {task:?}");
    }
    until(&mut feed, |event| event.name == "task.completed").await;
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gets_never_more_than_it_asks_for_or_has_slots_for_and_wrong_calls_are_refused() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    for i in 0..9 {
        world.create("d", &json!({"i": i})).await;
    }
    let (mut caller, _) = Caller::hello(&world, 0, hello(2, &[])).await;
    let mut held = caller.leases(10_000).await;
    while held.len() < 2 {
        held.extend(caller.leases(0).await);
    }
    let none = caller.acquire(5, 0).await.unwrap();
    assert_eq!((held.len(), none.leases.len()), (2, 0), "two slots");
    assert_eq!(none.answer, caller.answer, "nothing has no number");

    let invalid = |error: Status| match refused(&error) {
        (ErrorReason::InvalidRequest, paths) => paths,
        other => panic!("{other:?}"),
    };
    let mut wrong = caller.request(10_001, 61);
    assert_eq!(
        invalid(caller.service.acquire_steps(wrong.clone()).await.unwrap_err()),
        ["max", "wait"]
    );
    wrong = AcquireStepsRequest { max: -1, ..caller.request(0, 0) };
    wrong.wait = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    assert_eq!(invalid(caller.service.acquire_steps(wrong).await.unwrap_err()), ["max", "wait"]);
    for answer in [-1, caller.answer + 1, i64::MAX] {
        let wrong = AcquireStepsRequest { answer, ..caller.request(0, 0) };
        assert_eq!(invalid(caller.service.acquire_steps(wrong).await.unwrap_err()), ["answer"]);
    }
    let nobody = AcquireStepsRequest::default();
    assert_eq!(invalid(caller.service.acquire_steps(nobody).await.unwrap_err()), ["executor_id"]);
    let executor = Some(acquire_steps_request::Executor::Hello(hello(-1, &[])));
    let wrong = AcquireStepsRequest { executor, ..AcquireStepsRequest::default() };
    assert_eq!(invalid(caller.service.acquire_steps(wrong).await.unwrap_err()), ["hello.slots"]);
    for outcomes in [Vec::new(), vec![complete("x"); 1001]] {
        assert_eq!(invalid(caller.report(outcomes).await.unwrap_err()), ["outcomes"]);
    }
    assert_eq!(invalid(caller.extend(&["x"; 10_001]).await.unwrap_err()), ["lease_ids"]);

    // Neither malformed leases nor such without a kind harm the others of a report.
    let void = Outcome { kind: None, ..complete(&held[0].lease_id) };
    let acks = caller.report(vec![complete("x"), void, complete(&held[0].lease_id)]).await.unwrap();
    let reasons: Vec<_> =
        acks.iter().map(|a| a.refusal.as_ref().map(stepwell_client::v1::Refusal::reason)).collect();
    let invalid_request = Some(ErrorReason::InvalidRequest);
    assert_eq!(reasons, [invalid_request, invalid_request, None]);
    assert_eq!(caller.leases(5).await.len(), 1, "one slot is free again");

    let id = std::mem::take(&mut caller.id);
    let wrong_ids = [("7f-1", ErrorReason::ExecutorNotFound), ("me", ErrorReason::InvalidRequest)];
    for (wrong, reason) in wrong_ids {
        wrong.clone_into(&mut caller.id);
        assert_eq!(refused(&caller.acquire(0, 0).await.unwrap_err()).0, reason);
        assert_eq!(refused(&caller.extend(&[]).await.unwrap_err()).0, reason);
        let report = caller.report(vec![complete(&held[1].lease_id)]).await;
        assert_eq!(refused(&report.unwrap_err()).0, reason);
    }
    caller.id = id;
    assert!(caller.extend(&[&held[1].lease_id]).await.unwrap().is_empty(), "it holds it still");
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_lost_comes_again_and_a_call_ends_the_wait_of_the_one_before() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let (mut caller, _) = Caller::hello(&world, 0, hello(4, &[])).await;
    // The first waits; the second makes it give up, and gets what comes.
    let (mut other, request) = (caller.service.clone(), caller.request(0, 60));
    let waiting = tokio::spawn(async move { other.acquire_steps(request).await.unwrap() });
    let mut handles = Vec::new();
    while !waiting.is_finished() {
        let (mut other, request) = (caller.service.clone(), caller.request(0, 60));
        handles.push(tokio::spawn(async move { other.acquire_steps(request).await.unwrap() }));
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let given_up = waiting.await.unwrap().into_inner();
    assert_eq!(given_up, AcquireStepsResponse::default());
    world.create("d", &json!({})).await;
    // Whichever of the others arrived last.
    let answers = futures::future::join_all(handles).await;
    let answers = answers.into_iter().map(|answer| answer.unwrap().into_inner());
    let (mut full, empty): (Vec<_>, Vec<_>) = answers.partition(|answer| !answer.leases.is_empty());
    assert!(empty.iter().all(|answer| *answer == AcquireStepsResponse::default()));
    let last = full.pop().unwrap();
    assert_eq!((full.len(), last.leases.len(), last.answer), (0, 1, 1));
    // It never had that answer.
    assert_eq!(caller.answer, 0);
    let again = caller.acquire(0, 60).await.unwrap();
    assert_eq!(again, last);
    caller.complete(&again.leases).await;
    // Nor this one, and meanwhile its task was cancelled.
    let task = world.create("d", &json!({})).await;
    let lost = caller.acquire(0, 60).await.unwrap();
    caller.answer = lost.answer - 1;
    let cancel = CancelTaskRequest { task_id: task.task_id, ..CancelTaskRequest::default() };
    world.client.cancel_task(cancel).await.unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while caller.extend(&[&lost.leases[0].lease_id]).await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = caller.acquire(0, 60).await.unwrap();
    assert_eq!((again.leases.len(), again.answer), (0, lost.answer));
    let cancels = caller.acquire(0, 60).await.unwrap().cancels;
    assert_eq!(cancels[0].lease_id, lost.leases[0].lease_id, "it is told too");
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reported_twice_is_durable_once_and_anything_else_is_lost() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let task = world.create("d", &json!({})).await;
    let (mut caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let lease = caller.leases(1).await.remove(0);
    let outcome = complete(&lease.lease_id);
    // Twice in one report, in two at once, and later.
    let mut other = Caller { service: caller.service.clone(), id: caller.id.clone(), answer: 0 };
    let (twice, beside) = tokio::join!(
        caller.report(vec![outcome.clone(), outcome.clone()]),
        other.report(vec![outcome.clone()])
    );
    let later = caller.report(vec![outcome]).await;
    for acks in [twice, beside, later] {
        assert!(acks.unwrap().iter().all(|ack| ack.refusal.is_none()));
    }
    let fail = outcome::Kind::Fail(Failure { error_class: "E".into(), ..Failure::default() });
    let failed =
        Outcome { lease_id: lease.lease_id.clone(), kind: Some(fail), ..Outcome::default() };
    let acks = caller.report(vec![failed]).await.unwrap();
    assert_eq!(acks[0].refusal.as_ref().unwrap().reason(), ErrorReason::LeaseLost);
    let next = caller.leases(1).await;
    assert_eq!((next.len(), next[0].step_name.as_str()), (1, "b"));
    assert_eq!(next[0].parents[0].result, "1");
    caller.complete(&next).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_loses_its_node_keeps_its_step_on_another_and_the_take_over_spares_it() {
    let world = World::hasty(Nodes { task: 1, step: 2, event: 1 }).await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let task = world.create("d", &json!({})).await;
    let (mut caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let lease = caller.leases(1).await.remove(0);
    let process = world.suite.process(Kind::Step, 0).unwrap().clone();
    process.kill(Signal::SIGKILL).await.unwrap();
    assert!(caller.extend(&[&lease.lease_id]).await.is_err(), "it is gone");
    let held = [lease.lease_id.as_str(), "none"];
    let (mut caller, welcome) = Caller::hello(&world, 1, hello(1, &held)).await;
    assert_eq!(welcome.adopted_leases, [lease.lease_id.as_str()]);
    assert_eq!(welcome.lost_leases, ["none"]);
    // Until the dead node was walked; it says so now and then that it lives.
    let mut connection = world.connection().await;
    let walked = async {
        loop {
            assert!(caller.extend(&[&lease.lease_id]).await.unwrap().is_empty());
            let nodes: i64 = sqlx::query_scalar("select count(*) from stepwell.node")
                .fetch_one(&mut connection)
                .await
                .unwrap();
            if nodes == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, walked).await.unwrap();
    caller.complete(&[lease]).await;
    let task = world.ended(&task.task_id).await;
    assert_eq!((task.state().word(), task.steps[0].attempt), ("complete", 1));
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_step_of_one_that_goes_silent_is_tried_again_elsewhere() {
    let world = World::hasty(Nodes { task: 1, step: 1, event: 1 }).await;
    world
        .define("{name: d, defaults: {retry: {initial_backoff: 10ms}}, steps: [{name: a, timeout: 10m}]}")
        .await;
    let mut feed = world.feed(Start::Latest).await;
    let task = world.create("d", &json!({})).await;
    let (mut caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let lease = caller.leases(1).await.remove(0);
    let other = Executor::new(&world.client, "other");
    let other = world.run(other.handler("a", async |step: StepContext| Ok(step.attempt())));
    let events = until(&mut feed, |event| event.name == "task.completed").await;
    assert!(events.iter().any(|event| event.name == "step.failed"));
    assert_eq!(world.ended(&task.task_id).await.steps[0].attempt, 2);
    // It comes back too late: its session is gone, and so is its lease.
    let gone = caller.report(vec![complete(&lease.lease_id)]).await.unwrap_err();
    assert_eq!(refused(&gone).0, ErrorReason::ExecutorNotFound);
    let (mut caller, welcome) = Caller::hello(&world, 0, hello(1, &[&lease.lease_id])).await;
    assert_eq!(welcome.lost_leases, [lease.lease_id.as_str()]);
    let acks = caller.report(vec![complete(&lease.lease_id)]).await.unwrap();
    assert_eq!(acks[0].refusal.as_ref().unwrap().reason(), ErrorReason::LeaseLost);
    other.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_says_it_lives_keeps_a_step_that_takes_longer_than_its_silence_may() {
    let world = World::hasty(Nodes { task: 1, step: 1, event: 1 }).await;
    world.define("{name: d, steps: [{name: a, timeout: 10m}]}").await;
    let task = world.create("d", &json!({})).await;
    let (mut caller, welcome) = Caller::hello(&world, 0, hello(1, &[])).await;
    let lease = caller.leases(1).await.remove(0);
    // Silence and grace, twice.
    let heartbeat = Duration::try_from(welcome.heartbeat_interval.unwrap()).unwrap();
    let grace = Duration::try_from(welcome.grace.unwrap()).unwrap();
    let end = tokio::time::Instant::now() + 2 * (3 * heartbeat + grace);
    let mut beat = tokio::time::interval(heartbeat);
    while tokio::time::Instant::now() < end {
        beat.tick().await;
        assert!(caller.extend(&[&lease.lease_id]).await.unwrap().is_empty());
    }
    caller.complete(&[lease]).await;
    assert_eq!(world.ended(&task.task_id).await.steps[0].attempt, 1);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_seen_and_told_to_stop_and_sent_on_by_a_node_that_goes_down() {
    let world = World::with(Nodes { task: 1, step: 2, event: 1 }, &[]).await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let task = world.create("d", &json!({})).await;
    let (mut caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let lease = caller.leases(1).await.remove(0);
    let drain = DrainExecutorRequest {
        executor_id: caller.id.clone(),
        reason: "enough".into(),
        ..DrainExecutorRequest::default()
    };
    let deadline = tokio::time::Instant::now() + SOON;
    // It is written down within a few seconds.
    while let Err(error) = world.client.drain_executor(drain.clone()).await {
        assert_eq!(error.reason(), Some(ErrorReason::ExecutorNotFound));
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = caller.acquire(0, 60).await.unwrap();
    let told = told.drain.unwrap();
    assert!(told.stop && told.reason == "enough" && told.deadline.is_none());
    caller.complete(&[lease]).await;
    assert_eq!(world.ended(&task.task_id).await.steps[0].attempt, 1);

    let task = world.create("d", &json!({})).await;
    assert!(caller.acquire(0, 0).await.unwrap().leases.is_empty(), "no more for it");
    let (mut caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let lease = caller.leases(1).await.remove(0);
    let (mut waiting, request) = (caller.service.clone(), caller.request(0, 60));
    let waiting = tokio::spawn(async move { waiting.acquire_steps(request).await });
    let process = world.suite.process(Kind::Step, 0).unwrap().clone();
    process.kill(Signal::SIGTERM).await.unwrap();
    // It may have been asked before it heard, or not at all.
    let told = waiting.await.unwrap();
    match told {
        Ok(answer) => assert!(answer.into_inner().drain.is_some_and(|drain| !drain.stop)),
        Err(status) => assert_eq!(refused(&status).0, ErrorReason::ShuttingDown),
    }
    let (mut caller, welcome) = Caller::hello(&world, 1, hello(1, &[&lease.lease_id])).await;
    assert_eq!(welcome.adopted_leases, [lease.lease_id.as_str()]);
    caller.complete(&[lease]).await;
    assert_eq!(world.ended(&task.task_id).await.steps[0].attempt, 1);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_nobody_fetches_go_back_and_are_not_counted() {
    let world = World::hasty(Nodes { task: 1, step: 1, event: 1 }).await;
    world.define("{name: d, steps: [{name: a, timeout: 10m, retry: {max_attempts: 1}}]}").await;
    let mut feed = world.feed(Start::Latest).await;
    let (mut caller, _) = Caller::hello(&world, 0, hello(100, &[])).await;
    // Larger than one frame all together: the first answer leaves some behind.
    let large = "x".repeat(100_000);
    let requests = (0..20).map(|i| CreateTaskRequest {
        definition_name: "d".into(),
        context: json!({"i": i, "x": large}).to_string(),
        ..CreateTaskRequest::default()
    });
    let batch = BatchCreateTasksRequest { requests: requests.collect() };
    world.client.batch_create_tasks(batch).await.unwrap();
    let mut held = caller.leases(0).await;
    assert!(held.len() < 20);
    let returned = async {
        loop {
            let ids: Vec<&str> = held.iter().map(|lease| lease.lease_id.as_str()).collect();
            assert!(
                caller.extend(&ids).await.unwrap().is_empty(),
                "it lives and keeps what it has"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = returned => {}
        _ = until(&mut feed, |event| event.name == "step.lease_returned") => {}
    }
    caller.complete(&held).await;
    let mut done = held.len();
    while done < 20 {
        held = caller.leases(0).await;
        assert!(held.iter().all(|lease| lease.max_attempts >= lease.attempt));
        caller.complete(&held).await;
        done += held.len();
    }
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executors_with_and_without_streams_share_one_limit() {
    let world = World::set_up(|options| {
        options.env = vec![("STEPWELL_SESSIONS_MAX".to_owned(), "1".to_owned())];
    })
    .await;
    let (caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let mut service = caller.service.clone();
    let executor = Some(acquire_steps_request::Executor::Hello(hello(1, &[])));
    let request = AcquireStepsRequest { executor, ..AcquireStepsRequest::default() };
    let error = service.acquire_steps(request).await.unwrap_err();
    assert_eq!(refused(&error).0, ErrorReason::Overloaded);
}
