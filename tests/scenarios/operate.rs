//! What an operator does to tasks and steps, over the wire and on the command line.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use stepwell_client::{Addresses, Client, Error, Executor, HandlerError, Start, StepContext, v1};
use stepwell_proto::v1::ErrorReason;
use stepwell_suite::Nodes;
use stepwell_tests::{Proxy, Running, SOON, Way, World, check, until};
use tokio::sync::Notify;

use super::cli::stepwell;

const DEFINITION: &str = "
name: order
defaults: {retry: {max_attempts: 1}}
steps:
  - {name: charge}
  - {name: gift, skippable: true}
  - {name: ship, depends_on: [charge, gift]}
";

/// A world with an executor whose `charge` works once the gateway is up, and whose `ship` tells what
/// the charge gave.
async fn shop() -> (World, Running, Arc<AtomicBool>) {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let up = Arc::new(AtomicBool::new(false));
    let gateway = Arc::clone(&up);
    let executor = Executor::new(&world.client, "e")
        .handler("charge", move |_: StepContext| {
            let up = gateway.load(Ordering::Relaxed);
            async move { if up { Ok("c_1") } else { Err(HandlerError::new("Down", "no gateway")) } }
        })
        .handler("gift", async |_| Ok::<_, HandlerError>("wrapped"))
        .handler("ship", async |step: StepContext| step.parent::<Value>("charge").await);
    let running = world.run(executor);
    (world, running, up)
}

fn step_id(task: &v1::Task, number: i32) -> String {
    stepwell_proto::id::step_id(&task.task_id, number)
}

fn resolve(task: &v1::Task, number: i32, result: &str) -> v1::ResolveStepRequest {
    v1::ResolveStepRequest {
        step_id: step_id(task, number),
        reason: "paid by phone".into(),
        resolved_by: "ops@shop".into(),
        result: result.into(),
        request_id: String::new(),
    }
}

fn reason(refused: &Error) -> ErrorReason {
    refused.reason().unwrap_or_else(|| panic!("{refused}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_task_is_retried_and_completes_and_the_log_says_who_asked_and_why() {
    let (world, running, up) = shop().await;
    let mut feed = world.feed(Start::Latest).await;
    let task = world.create("order", &json!({})).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "error");
    up.store(true, Ordering::Relaxed);
    let retry = v1::RetryTaskRequest {
        task_id: task.task_id.clone(),
        reason: "the gateway is back".into(),
        retried_by: "ops@shop".into(),
        request_id: "ticket-17".into(),
        attempts: 0,
    };
    let answer = world.client.retry_task(retry.clone()).await.unwrap();
    assert_eq!((answer.already_in_state, answer.retried_steps), (false, 1));
    let events = until(&mut feed, |event| event.name == "task.completed").await;
    let who = |name: &str| {
        let event = events.iter().rfind(|event| event.name == name).unwrap();
        match event.detail.clone().unwrap() {
            v1::event::Detail::TaskRetryRequested(it) => (it.retried_by, it.reason, it.request_id),
            v1::event::Detail::StepRetryRequested(it) => (it.retried_by, it.reason, it.request_id),
            other => panic!("{other:?}"),
        }
    };
    let said = ["ops@shop", "the gateway is back", "ticket-17"].map(str::to_owned).into();
    let said: (String, String, String) = said;
    assert_eq!((who("task.retry_requested"), who("step.retry_requested")), (said.clone(), said));
    let ended = world.ended(&task.task_id).await;
    assert_eq!((ended.state().word(), ended.steps[2].result.as_str()), ("complete", "\"c_1\""));
    let again = world.client.retry_task(retry.clone()).await.unwrap();
    assert_eq!((again.already_in_state, again.retried_steps), (false, 1), "a repeat");
    assert_eq!(again.task.unwrap().state().word(), "complete");
    let other = v1::RetryTaskRequest { attempts: 2, ..retry.clone() };
    let refused = world.client.retry_task(other).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::RequestIdReused);
    let retry = v1::RetryTaskRequest { request_id: String::new(), ..retry };
    let refused = world.client.retry_task(retry).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::IllegalTransition);
    assert!(refused.to_string().contains("can become pending from error"), "{refused}");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_is_resolved_gives_its_children_the_result_it_was_given() {
    let (world, running, _) = shop().await;
    let task = world.create("order", &json!({})).await;
    world.ended(&task.task_id).await;
    let faulty = world.client.resolve_step(resolve(&task, 0, "{")).await.unwrap_err();
    assert_eq!(reason(&faulty), ErrorReason::InvalidRequest);
    let charge = r#"{"charge":"by phone"}"#;
    let answer = world.client.resolve_step(resolve(&task, 0, charge)).await.unwrap();
    assert_eq!(answer.step.unwrap().state().word(), "resolved_manually");
    let ended = world.ended(&task.task_id).await;
    assert_eq!((ended.state().word(), ended.steps[2].result.as_str()), ("complete", charge));
    let again = world.client.resolve_step(resolve(&task, 0, charge)).await.unwrap();
    assert!(again.already_in_state, "a repeat finds nothing to do");
    let refused = world.client.resolve_step(resolve(&task, 2, "")).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::TaskEnded);
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skippable_steps_are_skipped_by_request_and_others_are_refused() {
    let (world, running, up) = shop().await;
    up.store(true, Ordering::Relaxed);
    let create =
        |names: &[&str]| world.client.task("order").bypass_steps(names.iter().copied()).create();
    let refused = create(&["charge", "gif"]).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::InvalidRequest);
    let text = refused.to_string();
    assert!(text.contains("bypass_steps[0]") && text.contains("did you mean `gift`"), "{text}");
    let mut feed = world.feed(Start::Latest).await;
    let task = create(&["gift"]).await.unwrap();
    let events = until(&mut feed, |event| event.name == "task.completed").await;
    let skipped = events.iter().find(|event| event.name == "step.resolved_manually").unwrap();
    assert!(matches!(
        &skipped.detail,
        Some(v1::event::Detail::StepResolvedManually(it)) if it.skipped && it.reason == "bypass_steps"
    ));
    let ended = world.ended(&task.task_id).await;
    assert_eq!(ended.steps[1].state().word(), "resolved_manually");
    running.stop().await;
    // Nobody runs them now.
    let task = world.create("order", &json!({})).await;
    let skip =
        |number| v1::SkipStepRequest { step_id: step_id(&task, number), ..Default::default() };
    let refused = world.client.skip_step(skip(0)).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::StepNotSkippable);
    let skipped = world.client.skip_step(skip(1)).await.unwrap().step.unwrap();
    assert_eq!((skipped.state().word(), skipped.result.as_str()), ("resolved_manually", "null"));
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_step_stops_its_handler_and_what_waits_for_it_ends_with_the_task() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let (started, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, stops) = (Arc::clone(&started), Arc::clone(&stopped));
    let executor = Executor::new(&world.client, "e").handler("a", move |step: StepContext| {
        let (started, stopped) = (Arc::clone(&starts), Arc::clone(&stops));
        async move {
            started.notify_one();
            step.cancellation().cancelled().await;
            stopped.notify_one();
            Ok::<_, HandlerError>(1)
        }
    });
    let running = world.run(executor);
    let task = world.create("d", &json!({})).await;
    started.notified().await;
    let cancel = v1::CancelStepRequest { step_id: step_id(&task, 0), ..Default::default() };
    let answer = world.client.cancel_step(cancel.clone()).await.unwrap();
    assert_eq!(answer.step.unwrap().state().word(), "cancelled");
    stopped.notified().await;
    let ended = world.ended(&task.task_id).await;
    assert_eq!(ended.state().word(), "cancelled");
    assert!(ended.steps.iter().all(|step| step.state().word() == "cancelled"));
    assert!(world.client.cancel_step(cancel).await.unwrap().already_in_state);
    let retry = v1::RetryStepRequest { step_id: step_id(&task, 0), ..Default::default() };
    let refused = world.client.retry_step(retry).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::TaskEnded);
    assert_eq!(running.stop().await.voided, 1);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_task_is_cancelled_only_when_told_to_override() {
    let (world, running, up) = shop().await;
    up.store(true, Ordering::Relaxed);
    let task = world.create("order", &json!({})).await;
    world.ended(&task.task_id).await;
    let cancel = |r#override| v1::CancelTaskRequest {
        task_id: task.task_id.clone(),
        r#override,
        ..Default::default()
    };
    let refused = world.client.cancel_task(cancel(false)).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::IllegalTransition);
    let cancelled = world.client.cancel_task(cancel(true)).await.unwrap().task.unwrap();
    assert_eq!(cancelled.state().word(), "cancelled");
    let steps = world.ended(&task.task_id).await.steps;
    assert!(steps.iter().all(|step| step.state().word() == "complete"), "what is done is done");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_moved_is_refused_with_a_reason_and_changes_nothing() {
    let (world, running, up) = shop().await;
    up.store(true, Ordering::Relaxed);
    let task = world.create("order", &json!({})).await;
    world.ended(&task.task_id).await;
    running.stop().await;
    let waiting = world.create("order", &json!({})).await;
    let before = world.rows().await;
    let client = &world.client;
    let nobody = "00000000-0000-7000-8000-000000000000";
    for id in [format!("{nobody}.0"), format!("{}.3", task.task_id)] {
        let get = v1::GetStepRequest { step_id: id.clone() };
        let refused = client.get_step(get).await.unwrap_err();
        assert_eq!(reason(&refused), ErrorReason::StepNotFound, "{id}");
        let skip = v1::SkipStepRequest { step_id: id.clone(), ..Default::default() };
        assert_eq!(reason(&client.skip_step(skip).await.unwrap_err()), ErrorReason::StepNotFound);
        let cancel = v1::CancelStepRequest { step_id: id, ..Default::default() };
        let refused = client.cancel_step(cancel).await.unwrap_err();
        assert_eq!(reason(&refused), ErrorReason::StepNotFound);
    }
    for id in [
        "",
        "0",
        nobody,
        &format!("{nobody}."),
        &format!("{nobody}.-1"),
        "x.1",
        &format!("{nobody}.99999"),
    ] {
        let retry = v1::RetryStepRequest { step_id: id.into(), ..Default::default() };
        assert_eq!(
            reason(&client.retry_step(retry).await.unwrap_err()),
            ErrorReason::InvalidRequest,
            "{id}"
        );
    }
    let retry = v1::RetryStepRequest {
        step_id: step_id(&waiting, 0),
        attempts: 1001,
        ..Default::default()
    };
    assert_eq!(reason(&client.retry_step(retry).await.unwrap_err()), ErrorReason::InvalidRequest);
    let long = v1::ResolveTaskRequest {
        task_id: waiting.task_id.clone(),
        reason: "x".repeat(1025),
        resolved_by: "x".repeat(257),
        request_id: "x".repeat(129),
    };
    let refused = client.resolve_task(long).await.unwrap_err().to_string();
    for field in ["reason", "resolved_by", "request_id"] {
        assert!(refused.contains(field), "{field}: {refused}");
    }
    for request_id in ["two words", "tab\t", "é", "\0"] {
        let task_id = waiting.task_id.clone();
        let cancel =
            v1::CancelTaskRequest { task_id, request_id: request_id.into(), ..Default::default() };
        let refused = client.cancel_task(cancel).await.unwrap_err();
        assert!(
            reason(&refused) == ErrorReason::InvalidRequest
                && refused.to_string().contains("request_id"),
            "{request_id:?}: {refused}"
        );
    }
    let resolve = v1::ResolveTaskRequest { task_id: waiting.task_id.clone(), ..Default::default() };
    let refused = client.resolve_task(resolve).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::IllegalTransition);
    let update = |max_attempts| v1::UpdateStepRequest {
        step_id: step_id(&task, 0),
        max_attempts,
        ..Default::default()
    };
    assert_eq!(
        reason(&client.update_step(update(0)).await.unwrap_err()),
        ErrorReason::InvalidRequest
    );
    assert_eq!(reason(&client.update_step(update(5)).await.unwrap_err()), ErrorReason::TaskEnded);
    let update = v1::UpdateTaskRequest { task_id: waiting.task_id.clone(), ..Default::default() };
    assert_eq!(reason(&client.update_task(update).await.unwrap_err()), ErrorReason::InvalidRequest);
    let retry = v1::RetryTaskRequest { task_id: nobody.into(), ..Default::default() };
    assert_eq!(reason(&client.retry_task(retry).await.unwrap_err()), ErrorReason::TaskNotFound);
    assert_eq!(world.rows().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_mends_a_task_on_the_command_line() {
    let (world, running, up) = shop().await;
    let task = world.create("order", &json!({})).await;
    world.ended(&task.task_id).await;
    let (id, charge) = (task.task_id.as_str(), step_id(&task, 0));
    let (code, out, _) = stepwell(&world, &["step", "get", &charge], "");
    assert!(code == 0 && out.contains("error") && out.contains("Down: no gateway"), "{out}");
    let (code, out, _) = stepwell(&world, &["step", "why", &step_id(&task, 2)], "");
    assert!(
        code == 0 && out.starts_with("pending\n- it waits for what failed for good: charge"),
        "{out}"
    );
    let (code, _, err) = stepwell(&world, &["step", "skip", &charge], "");
    assert!(code == 4 && err.contains("STEP_NOT_SKIPPABLE"), "{code} {err}");
    let (code, out, err) = stepwell(&world, &["task", "retry", id, "--by", "me"], "");
    assert!(code == 0 && err.contains("1 step is tried again"), "{out} {err}");
    assert_eq!(world.ended(id).await.state().word(), "error");
    let retry = ["step", "retry", &charge, "--request-id", "ticket-18"];
    for _ in 0..2 {
        let (code, out, err) = stepwell(&world, &retry, "");
        assert!(code == 0 && !err.contains("nothing was to be done"), "{out} {err}");
        let ended = world.ended(id).await;
        assert_eq!((ended.state().word(), ended.steps[0].attempt), ("error", 3), "tried once");
    }
    let resolve = ["step", "resolve", &charge, "--reason", "by phone", "--result", "-"];
    let (code, out, _) = stepwell(&world, &resolve, "17");
    assert!(code == 0 && out.contains("resolved_manually"), "{out}");
    let (code, out, _) = stepwell(&world, &["task", "wait", id], "");
    assert!(code == 0 && out.contains("complete"), "{out}");
    up.store(true, Ordering::Relaxed);
    let create = ["task", "create", "order", "--bypass", "gift", "--wait", "30"];
    let (code, out, _) = stepwell(&world, &create, "");
    assert!(code == 0 && out.contains("complete"), "{out}");
    let (code, _, err) = stepwell(&world, &["task", "resolve", id], "");
    assert!(code == 4 && err.contains("ILLEGAL_TRANSITION"), "{code} {err}");
    let (code, out, _) = stepwell(&world, &["task", "cancel", id, "--override"], "");
    assert!(code == 0 && out.contains("cancelled"), "{out}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_does_not_run_says_what_is_in_its_way() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let tasks = [world.create("d", &json!({})).await, world.create("d", &json!({})).await];
    let kinds = async |task: &v1::Task, number| {
        let request = v1::GetStepReadinessRequest { step_id: step_id(task, number) };
        let answer = world.client.get_step_readiness(request).await.unwrap();
        let kinds: Vec<_> = answer.obstacles.iter().map(v1::Obstacle::kind).collect();
        assert_eq!(answer.ready, answer.state() == v1::State::Pending && kinds.is_empty());
        (answer.state().word(), kinds)
    };
    // What is told of executors comes a little later.
    let become_ = async |task: &v1::Task, number, wanted: Vec<v1::ObstacleKind>| {
        let told = async {
            while kinds(task, number).await.1 != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, told).await.unwrap_or_else(|_| panic!("never {wanted:?}"));
    };
    use v1::ObstacleKind::{NoExecutor, Parents, Paused, SlotsBusy};
    assert_eq!(kinds(&tasks[0], 0).await, ("pending", vec![NoExecutor]));
    assert_eq!(kinds(&tasks[0], 1).await.1, [Parents, NoExecutor]);
    let go = Arc::new(Notify::new());
    let goes = Arc::clone(&go);
    let executor = Executor::new(&world.client, "e").slots(1).handler("a", move |_| {
        let go = Arc::clone(&goes);
        async move {
            go.notified().await;
            Ok::<_, HandlerError>(())
        }
    });
    let running = world.run(executor);
    become_(&tasks[1], 0, vec![SlotsBusy]).await;
    assert_eq!(kinds(&tasks[0], 0).await, ("in_progress", vec![]));
    let pause = v1::PauseTaskRequest { task_id: tasks[1].task_id.clone(), ..Default::default() };
    world.client.pause_task(pause).await.unwrap();
    assert_eq!(kinds(&tasks[1], 0).await.1, [Paused, SlotsBusy]);
    go.notify_one();
    become_(&tasks[1], 0, vec![Paused]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_a_task_and_how_often_a_step_is_tried_may_be_changed() {
    let (world, running, _) = shop().await;
    let mut feed = world.feed(Start::Latest).await;
    let task = world.create("order", &json!({})).await;
    world.ended(&task.task_id).await;
    let update = v1::UpdateTaskRequest {
        task_id: task.task_id.clone(),
        tags: Some(v1::Tags { values: vec!["vip".into()] }),
        reason: "mislabelled".into(),
        updated_by: "me".into(),
        ..Default::default()
    };
    let updated = world.client.update_task(update).await.unwrap().task.unwrap();
    assert_eq!((updated.tags, updated.reason), (vec!["vip".to_owned()], task.reason.clone()));
    let update = |max_attempts| v1::UpdateStepRequest {
        step_id: step_id(&task, 0),
        max_attempts,
        ..Default::default()
    };
    let step = world.client.update_step(update(3)).await.unwrap().step.unwrap();
    assert_eq!((step.state().word(), step.attempt, step.max_attempts), ("error", 1, 3));
    let events = until(&mut feed, |event| event.name == "step.updated").await;
    let said = events.iter().find_map(|event| match &event.detail {
        Some(v1::event::Detail::TaskUpdated(it)) => Some(it.clone()),
        _ => None,
    });
    let said = said.unwrap();
    assert_eq!(
        (said.updated_by.as_str(), said.tags_changed, said.task_reason.as_str()),
        ("me", true, "")
    );
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_whose_answer_is_lost_is_repeated_and_tries_once_though_the_task_failed_again() {
    let (world, running, _) = shop().await;
    let task = world.create("order", &json!({})).await;
    world.ended(&task.task_id).await;
    let of = world.suite.addresses();
    let (tasks, steps) =
        (Proxy::of_service(&of.task[0]).await, Proxy::of_service(&of.step[0]).await);
    let (task_urls, step_urls) = (vec![tasks.url()], vec![steps.url()]);
    let addresses = Addresses { task: task_urls, step: step_urls, event: of.event.clone() };
    let client = Client::connect(addresses).unwrap();
    // Connected already, so that what is held back is the answer.
    let get = v1::GetTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    client.get_task(get).await.unwrap();
    client.get_step(v1::GetStepRequest { step_id: step_id(&task, 0) }).await.unwrap();
    let mut head = 0;
    for (attempt, proxy) in [(2, &tasks), (3, &steps)] {
        let mut feed = world.feed(Start::Latest).await;
        proxy.blackhole(Way::Down);
        let (client, task) = (client.clone(), task.clone());
        let asked = tokio::spawn(async move {
            if attempt == 2 {
                let retry = v1::RetryTaskRequest { task_id: task.task_id, ..Default::default() };
                let answer = client.retry_task(retry).await.unwrap();
                (answer.already_in_state, answer.retried_steps == 1)
            } else {
                let retry =
                    v1::RetryStepRequest { step_id: step_id(&task, 0), ..Default::default() };
                let answer = client.retry_step(retry).await.unwrap();
                (answer.already_in_state, answer.step.unwrap().attempt == attempt)
            }
        });
        let events = until(&mut feed, |event| event.name == "task.failed").await;
        head = events.last().map_or(0, |event| event.position);
        // The answer is lost; the client comes again.
        let passed = proxy.passed();
        proxy.reset();
        let again = async {
            while proxy.passed() == passed {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, again).await.unwrap();
        proxy.heal();
        assert_eq!(asked.await.unwrap(), (false, true));
    }
    let ended = world.task(&task.task_id).await;
    assert_eq!((ended.state().word(), ended.steps[0].attempt), ("error", 3), "once for each");
    let mut feed = world.feed(Start::Earliest).await;
    let last = |event: &v1::Event| event.name == "task.failed" && event.position == head;
    let events = until(&mut feed, last).await;
    let ids: Vec<_> = events
        .into_iter()
        .filter_map(|event| match event.detail {
            Some(v1::event::Detail::TaskRetryRequested(it)) => Some(it.request_id),
            _ => None,
        })
        .collect();
    assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
    assert!(ids.iter().all(|id| uuid::Uuid::parse_str(id).is_ok()), "{ids:?}");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_who_ask_two_processes_for_the_same_at_once_one_does_it_and_the_others_are_told() {
    let world = World::with(Nodes { task: 2, step: 2, event: 1 }, &[]).await;
    world.define(DEFINITION).await;
    let task = world.create("order", &json!({})).await;
    let of = world.suite.addresses();
    let clients: Vec<Client> = (0..2)
        .map(|node| {
            let (task, step) = (vec![of.task[node].clone()], vec![of.step[node].clone()]);
            Client::connect(Addresses { task, step, event: of.event.clone() }).unwrap()
        })
        .collect();
    let gift = step_id(&task, 1);
    let skipped = futures::future::join_all((0..50).map(|n| {
        let skip = v1::SkipStepRequest { step_id: gift.clone(), ..Default::default() };
        let client = &clients[n % 2];
        async move { client.skip_step(skip).await.unwrap().already_in_state }
    }));
    assert_eq!(skipped.await.iter().filter(|already| !**already).count(), 1);
    let cancelled = futures::future::join_all((0..50).map(|n| {
        let task_id = task.task_id.clone();
        let cancel = v1::CancelTaskRequest { task_id, ..Default::default() };
        let client = &clients[n % 2];
        async move { client.cancel_task(cancel).await.unwrap().already_in_state }
    }));
    assert_eq!(cancelled.await.iter().filter(|already| !**already).count(), 1);
    let mut connection = world.connection().await;
    let rows = "select count(*) from stepwell.event where type in (24, 45, 46)";
    let rows: i64 = sqlx::query_scalar(rows).fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, 4, "the task and two of its steps cancelled, one skipped");
    check(&mut connection).await;
}
