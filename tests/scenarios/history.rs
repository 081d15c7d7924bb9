//! What became of a task, as people are told it over real processes: transition by transition, step by step.

use std::{
    cell::Cell,
    io::{BufRead, BufReader},
    process::Stdio,
};

use serde_json::{Value, json};
use stepwell_client::{
    Error, Executor, HandlerError, StepContext,
    v1::{self, Failure, HandBack, Lease, Outcome, outcome::Kind},
};
use stepwell_proto::{id::step_id, v1::ErrorReason};
use stepwell_tests::{Proxy, World, check};

use super::{
    cli::{command, stepwell},
    unary::{Caller, hello},
};

const DEFINITIONS: [&str; 4] = [
    "name: trip
defaults: {retry: {max_attempts: 2, initial_backoff: 20ms, multiplier: 1}}
steps: [{name: a}, {name: b, depends_on: [a]}]",
    "{name: once, steps: [{name: a, retry: {max_attempts: 1}}, {name: b, depends_on: [a]}]}",
    "{name: slow, steps: [{name: a, timeout: 1s, retry: {max_attempts: 1}}]}",
    "{name: gift, steps: [{name: c, skippable: true}, {name: d}]}",
];

fn ended(lease: &Lease, kind: Kind) -> Outcome {
    Outcome { lease_id: lease.lease_id.clone(), kind: Some(kind), ..Outcome::default() }
}

fn failed(lease: &Lease) -> Outcome {
    let failure = Failure {
        error_class: "Down".into(),
        message: "no gateway".into(),
        retryable: true,
        ..Failure::default()
    };
    ended(lease, Kind::Fail(failure))
}

async fn world() -> World {
    let world = World::start().await;
    for definition in DEFINITIONS {
        world.define(definition).await;
    }
    world
}

fn scope(task_id: &str, step_number: Option<i32>) -> Option<v1::TransitionScope> {
    Some(v1::TransitionScope { task_id: task_id.into(), step_number, only_task: false })
}

async fn history(world: &World, task_id: &str, step: Option<i32>) -> Vec<v1::Transition> {
    let scope = scope(task_id, step);
    let request = v1::ListTransitionsRequest { scope, ..Default::default() };
    let answer = world.client.list_transitions(request).await.unwrap();
    assert!(answer.complete && answer.kept_from.is_none() && answer.next_page_token.is_empty());
    answer.transitions
}

/// The words of transitions, without how long things took.
fn words(of: &[v1::Transition]) -> Vec<&str> {
    of.iter().map(|of| of.description.split(" in 0.").next().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_goes_back_fails_and_works_at_last_tells_of_each_attempt_and_of_who_had_it() {
    let world = world().await;
    let (mut caller, welcome) = Caller::hello(&world, 0, hello(1, &[])).await;
    let task = world.client.task("trip").initiator("web").create().await.unwrap();
    let held = caller.leases(1).await;
    let back = HandBack { reason: "busy".into() };
    caller.report(vec![ended(&held[0], Kind::HandBack(back))]).await.unwrap();
    let held = caller.leases(1).await;
    caller.report(vec![failed(&held[0])]).await.unwrap();
    for _ in 0..2 {
        let held = caller.leases(1).await;
        caller.complete(&held).await;
    }
    world.ended(&task.task_id).await;
    let of_a = history(&world, &task.task_id, Some(0)).await;
    assert_eq!(
        words(&of_a),
        [
            "Step initialized and ready for execution",
            "Step execution started (attempt #1)",
            "Step handed back: busy",
            "Step execution started (attempt #2)",
            "Step failed: no gateway (retry scheduled)",
            "Step retry attempt #3",
            "Step execution started (attempt #3)",
            "Step completed successfully",
        ]
    );
    assert_eq!((of_a[0].actor_kind(), of_a[0].actor.as_str()), (v1::ActorKind::Caller, "web"));
    for of in [&of_a[1], &of_a[2], &of_a[3], &of_a[4], &of_a[6], &of_a[7]] {
        let actor = (of.actor_kind(), of.actor.as_str());
        assert_eq!(actor, (v1::ActorKind::Executor, welcome.executor_id.as_str()), "{of:?}");
    }
    assert_eq!((of_a[5].actor_kind(), of_a[5].actor.as_str()), (v1::ActorKind::Engine, ""));
    let failed = &of_a[4];
    assert_eq!(
        (failed.error_class.as_str(), failed.error_message.as_str()),
        ("Down", "no gateway")
    );
    let nanos = |of: Option<prost_types::Duration>| of.map(|of| (of.seconds, of.nanos)).unwrap();
    assert!(!failed.r#final && nanos(failed.ran_for) >= nanos(failed.since_previous));
    assert!(failed.retry_time.is_some() && of_a[5].retry_time.is_some(), "both say when");
    assert!(of_a[1..].iter().all(|of| of.since_previous.is_some() && of.time.is_some()));
    let whole = history(&world, &task.task_id, None).await;
    let own: Vec<_> = whole.iter().filter(|of| of.step_id.is_empty()).cloned().collect();
    assert_eq!(words(&own), ["Task initialized", "Task started", "Task completed"]);
    assert!(own[0].since_previous.is_none() && own[2].ran_for.is_some());
    assert_eq!(whole.len(), own.len() + of_a.len() - 1 + 2, "and two of b");
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_and_clocks_did_says_who_why_and_by_which_request() {
    let world = world().await;
    let (client, by) = (&world.client, "ops@shop");
    let (mut caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let once = world.create("once", &json!({})).await.task_id;
    let held = caller.leases(1).await;
    caller.report(vec![failed(&held[0])]).await.unwrap();
    world.ended(&once).await;
    let retry = v1::RetryTaskRequest {
        task_id: once.clone(),
        reason: "it is back".into(),
        retried_by: by.into(),
        request_id: "r-1".into(),
        ..Default::default()
    };
    client.retry_task(retry).await.unwrap();
    let held = caller.leases(1).await;
    caller.report(vec![failed(&held[0])]).await.unwrap();
    world.ended(&once).await;
    let resolve = v1::ResolveStepRequest {
        step_id: step_id(&once, 0),
        resolved_by: by.into(),
        ..Default::default()
    };
    client.resolve_step(resolve).await.unwrap();
    let cancel = v1::CancelTaskRequest {
        task_id: once.clone(),
        reason: "gone".into(),
        cancelled_by: by.into(),
        ..Default::default()
    };
    client.cancel_task(cancel).await.unwrap();
    let whole = history(&world, &once, None).await;
    let own: Vec<_> = whole.iter().filter(|of| of.step_id.is_empty()).cloned().collect();
    let error = "Task encountered an error: steps_in_error_state (a)";
    assert_eq!(words(&own)[..3], ["Task initialized", "Task started", error]);
    assert_eq!(own[3].description, "Task retry requested by ops@shop");
    let asked = (own[3].reason.as_str(), own[3].request_id.as_str(), own[3].actor_kind());
    assert_eq!(asked, ("it is back", "r-1", v1::ActorKind::Caller));
    assert_eq!(own[own.len() - 1].description, "Task cancelled due to gone");
    let of_a = history(&world, &once, Some(0)).await;
    assert_eq!(
        words(&of_a)[2..],
        [
            "Step failed: no gateway",
            "Step retry attempt #2",
            "Step execution started (attempt #2)",
            "Step failed: no gateway",
            "Step manually resolved by ops@shop",
        ]
    );
    assert!(of_a[2].r#final && of_a[2].retry_time.is_none());

    // A step runs out of time, and one is skipped.
    let slow = world.create("slow", &json!({})).await.task_id;
    caller.leases(1).await;
    world.ended(&slow).await;
    let of_a = history(&world, &slow, Some(0)).await;
    let last = &of_a[2];
    assert_eq!((last.event.as_str(), last.error_class.as_str()), ("step.failed", "Timeout"));
    assert!(last.description.starts_with("Step failed: the attempt took longer"), "{last:?}");
    let gift = client.task("gift").bypass_steps(["c"]).create().await.unwrap().task_id;
    let of_c = history(&world, &gift, Some(0)).await;
    assert_eq!(words(&of_c)[1], "Step manually resolved by bypass_steps");
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_a_long_log_come_page_by_page() {
    let world = World::start().await;
    let steps = (0..1_100).map(|i| format!("{{name: s{i}}}")).collect::<Vec<_>>().join(", ");
    world.define(&format!("{{name: long, steps: [{steps}]}}")).await;
    let id = world.create("long", &json!({})).await.task_id;
    let cancel = v1::CancelTaskRequest { task_id: id.clone(), ..Default::default() };
    world.client.cancel_task(cancel).await.unwrap();
    let tasks = Proxy::of_service(&world.suite.addresses().task[0]).await;
    let args = ["task", "history", &id, "--limit", "5000", "-o", "jsonl"];
    let mut history = command(&world, &args)
        .env("STEPWELL_TASK_ADDRESS", tasks.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(history.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.next().unwrap();
    // A page is longer than what a pipe holds: its first line is here, and the next page was not asked for.
    tasks.refuse();
    tasks.reset();
    assert_eq!(1 + lines.count(), 1_000);
    let ended = history.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(5), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_task_is_read_on_the_command_line_whole_by_step_backwards_and_in_figures() {
    let world = world().await;
    let executor = Executor::new(&world.client, "e")
        .handler("a", async |_: StepContext| Err::<(), _>(HandlerError::new("Down", "no gateway")));
    let running = world.run(executor);
    let id = world.create("once", &json!({})).await.task_id;
    world.ended(&id).await;
    running.stop().await;
    let (code, out, err) = stepwell(&world, &["task", "history", &id], "");
    assert_eq!(code, 0, "{err}");
    let whole = history(&world, &id, None).await;
    assert_eq!(out.lines().count(), whole.len() + 1, "{out}");
    assert!(whole.iter().all(|of| out.contains(&of.description)), "{out}");
    let (_, out, _) = stepwell(&world, &["task", "history", &id, "--step", "0", "-o", "jsonl"], "");
    let shown: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = shown.iter().map(|of| of["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["step.initialize_requested", "step.execution_requested", "step.failed"]);
    let backwards =
        ["task", "history", &id, "--to-state", "error", "--newest-first", "--limit", "1"];
    let (code, out, err) = stepwell(&world, &backwards, "");
    assert!(code == 0 && out.contains("Task encountered an error"), "{out}");
    let token = err.rsplit_once("--page-token ").unwrap().1.trim().to_owned();
    let (_, out, _) = stepwell(&world, &[&backwards[..], &["--page-token", &token]].concat(), "");
    assert!(out.contains("Step failed: no gateway") && !out.contains("Task"), "{out}");
    let (code, out, _) = stepwell(&world, &["task", "history", &id, "--statistics"], "");
    assert!(code == 0 && out.contains("5 transitions: 1 pending, 2 in_progress, 2 error"), "{out}");
    let (code, _, err) = stepwell(&world, &["task", "history", &id, "--step", "7"], "");
    assert!(code != 0 && err.contains("no step"), "{err}");
    let (code, _, err) = stepwell(&world, &["task", "history", &id, "--to-state", "failed"], "");
    assert!(code == 2 && err.contains("must be one of"), "{err}");

    let (code, out, _) = stepwell(&world, &["step", "list", &id, "--state", "error"], "");
    assert!(code == 0 && out.contains("Down: no gateway"), "{out}");
    assert_eq!(out.lines().count(), 2, "{out}");
    let list = ["step", "list", &id, "--limit", "1", "-o", "jsonl"];
    let (_, out, err) = stepwell(&world, &list, "");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["name"], "a");
    let token = err.rsplit_once("--page-token ").unwrap().1.trim().to_owned();
    let (_, out, err) = stepwell(&world, &[&list[..], &["--page-token", &token]].concat(), "");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["name"], "b");
    assert!(!err.contains("--page-token"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_a_task_are_listed_by_state_name_and_handler_page_by_page_with_their_results() {
    let world = World::start().await;
    let steps: String =
        (0..7).map(|n| format!("  - {{name: s{n}, handler: h{}}}\n", n % 2)).collect();
    world.define(&format!("name: wide\nsteps:\n{steps}")).await;
    let task = world.create("wide", &json!({})).await;
    let executor = Executor::new(&world.client, "e");
    let running = world
        .run(executor.handler("h0", async |of: StepContext| Ok::<_, HandlerError>(of.attempt())));
    let list = async |request: v1::ListStepsRequest| {
        let (mut request, mut all) = (request, Vec::new());
        loop {
            let page = world.client.list_steps(request.clone()).await.unwrap();
            all.extend(page.steps);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return all;
            }
        }
    };
    let all = || v1::ListStepsRequest {
        task_id: task.task_id.clone(),
        page_size: 2,
        ..Default::default()
    };
    let done = || v1::ListStepsRequest { states: vec![v1::State::Complete.into()], ..all() };
    let mut feed = world.feed(stepwell_client::Start::Earliest).await;
    let left = Cell::new(4);
    let is_last = |event: &v1::Event| {
        left.set(left.get() - i32::from(event.name == "step.completed"));
        left.get() == 0
    };
    stepwell_tests::until(&mut feed, is_last).await;
    running.stop().await;
    let numbers = |steps: &[v1::Step]| steps.iter().map(|step| step.number).collect::<Vec<_>>();
    assert_eq!(numbers(&list(all()).await), [0, 1, 2, 3, 4, 5, 6]);
    let complete = list(done()).await;
    assert_eq!(numbers(&complete), [0, 2, 4, 6]);
    assert!(complete.iter().all(|step| step.result.is_empty() && !step.result_omitted));
    let with_results = list(v1::ListStepsRequest { include_results: true, ..done() }).await;
    assert!(with_results.iter().all(|step| step.result == "1"), "{with_results:?}");
    let handlers = vec!["h1".into()];
    let other = v1::ListStepsRequest { handlers: handlers.clone(), ..all() };
    assert_eq!(numbers(&list(other).await), [1, 3, 5]);
    let names = ["s1", "s2", "s9"].map(str::to_owned).to_vec();
    let both = v1::ListStepsRequest { names, handlers, ..all() };
    assert_eq!(numbers(&list(both).await), [1]);
    let read = world.task(&task.task_id).await;
    let listed = list(v1::ListStepsRequest { include_results: true, ..all() }).await;
    assert_eq!(listed, read.steps, "the same as GetTask");

    let page = world.client.list_steps(all()).await.unwrap();
    let reason = |error: Error| error.reason().unwrap();
    let strange = v1::ListStepsRequest { page_token: page.next_page_token, ..done() };
    let refused = world.client.list_steps(strange).await.unwrap_err();
    assert_eq!(reason(refused), ErrorReason::PageTokenInvalid);
    let nobody = "00000000-0000-7000-8000-000000000000";
    let missing = v1::ListStepsRequest { task_id: nobody.into(), ..all() };
    assert_eq!(
        reason(world.client.list_steps(missing).await.unwrap_err()),
        ErrorReason::TaskNotFound
    );
    let wrong = v1::ListStepsRequest { states: vec![9], ..all() };
    assert_eq!(
        reason(world.client.list_steps(wrong).await.unwrap_err()),
        ErrorReason::InvalidRequest
    );
    let request = v1::ListTransitionsRequest { scope: scope(nobody, None), ..Default::default() };
    let missing = world.client.list_transitions(request).await.unwrap_err();
    assert_eq!(reason(missing), ErrorReason::TaskNotFound);
    let request = v1::GetTransitionStatisticsRequest { scope: scope(&task.task_id, Some(7)) };
    let missing = world.client.get_transition_statistics(request).await.unwrap_err();
    assert_eq!(reason(missing), ErrorReason::StepNotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_comes_with_its_graph_of_the_same_moment_if_that_is_asked_for() {
    let world = world().await;
    let id = world.create("trip", &json!({})).await.task_id;
    let get = v1::GetTaskRequest { task_id: id.clone(), ..Default::default() };
    let plain = world.client.get_task(get.clone()).await.unwrap();
    assert!(plain.graph.is_none() && !plain.graph_omitted);
    let with = v1::GetTaskRequest { include_graph: true, ..get };
    let with = world.client.get_task(with).await.unwrap();
    assert_eq!(with.task, plain.task);
    let request = v1::GetTaskGraphRequest { task_id: id };
    assert_eq!(with.graph, world.client.get_task_graph(request).await.unwrap().graph);
    assert_eq!(with.graph.unwrap().steps[1].parents, [0]);
}
