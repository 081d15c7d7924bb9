//! Who is connected, seen from any node, and told to stop through any node.

use serde_json::json;
use stepwell_client::{Addresses, Client, Error, Executor, StepContext, v1};
use stepwell_proto::v1::ErrorReason;
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{Gate, SOON, World, check};

use super::cli::stepwell;

/// A client of each step-service alone.
fn each_node(world: &World) -> Vec<Client> {
    let stepwell_suite::Addresses { task, step, event } = world.suite.addresses();
    let of = |step: &String| {
        let (task, event) = (task.clone(), event.clone());
        Client::connect(Addresses { task, step: vec![step.clone()], event }).unwrap()
    };
    step.iter().map(of).collect()
}

/// What a node tells, as soon as it is what is waited for.
pub(super) async fn listed(
    client: &Client,
    request: &v1::ListExecutorsRequest,
    wanted: impl Fn(&[v1::Executor]) -> bool,
) -> Vec<v1::Executor> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let executors = client.list_executors(request.clone()).await.unwrap().executors;
        if wanted(&executors) {
            return executors;
        }
        assert!(tokio::time::Instant::now() < deadline, "{executors:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn all() -> v1::ListExecutorsRequest {
    v1::ListExecutorsRequest::default()
}

fn reason(error: &Error) -> ErrorReason {
    error.reason().unwrap_or_else(|| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_who_is_connected_to_any_and_forgets_who_went() {
    let world = World::hasty(Nodes { task: 1, step: 2, event: 1 }).await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let nodes = each_node(&world);
    let gate = Gate::default();
    let first = Executor::new(&nodes[0], "first").label("region", "eu").slots(3);
    let first = world.run(gate.guard(first));
    let other = Executor::new(&nodes[1], "other").namespace("shop");
    let other = other.handler_for("b", ">=1, <2", async |step: StepContext| Ok(step.attempt()));
    let other = world.run(other);
    for node in &nodes {
        let executors = listed(node, &all(), |all| all.len() == 2).await;
        let [first, other] =
            ["first", "other"].map(|name| executors.iter().find(|e| e.name == name).unwrap());
        assert_ne!(first.node, other.node);
        assert_eq!((first.namespace.as_str(), other.namespace.as_str()), ("default", "shop"));
        assert_eq!((first.slots, first.labels["region"].as_str()), (3, "eu"));
        assert_eq!(other.handlers[0].definition_versions, ">=1, <2");
        assert!(first.sdk.starts_with("rust/") && !first.draining);
        let shop = v1::ListExecutorsRequest { namespace: "shop".into(), ..all() };
        assert_eq!(listed(node, &shop, |_| true).await.len(), 1);
        let a = v1::ListExecutorsRequest { handler: "a".into(), ..all() };
        assert_eq!(listed(node, &a, |_| true).await[0].name, "first");
        // Page by page.
        let mut page = v1::ListExecutorsRequest { page_size: 1, ..all() };
        let mut names = Vec::new();
        loop {
            let answer = node.list_executors(page.clone()).await.unwrap();
            assert_eq!(answer.executors.len(), 1);
            names.push(answer.executors[0].name.clone());
            page.page_token = answer.next_page_token;
            if page.page_token.is_empty() {
                break;
            }
        }
        names.sort_unstable();
        assert_eq!(names, ["first", "other"]);
    }
    let task = world.create("d", &json!({})).await;
    gate.started().await;
    listed(&nodes[1], &all(), |all| all.iter().any(|e| e.slots_used == 1)).await;
    gate.open();
    world.ended(&task.task_id).await;
    listed(&nodes[1], &all(), |all| all.iter().all(|e| e.slots_used == 0)).await;
    let handlers = nodes[1].list_handlers(v1::ListHandlersRequest::default()).await.unwrap();
    let told: Vec<_> =
        handlers.handlers.iter().map(|h| (h.name.as_str(), h.executors, h.used)).collect();
    assert_eq!(told, [("a", 1, true), ("b", 1, false)]);

    // What a crash of the database takes is written anew.
    sqlx::query("delete from stepwell.executor")
        .execute(&mut world.connection().await)
        .await
        .unwrap();
    listed(&nodes[1], &all(), |all| all.len() == 2).await;

    other.vanish();
    listed(&nodes[0], &all(), |all| all.len() == 1).await;
    let process = world.suite.process(Kind::Step, 0).unwrap().clone();
    process.kill(Signal::SIGKILL).await.unwrap();
    listed(&nodes[1], &all(), <[_]>::is_empty).await;
    first.vanish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_told_to_stop_through_another_node_finishes_its_step_and_goes() {
    let world = World::with(Nodes { task: 1, step: 2, event: 1 }, &[]).await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let nodes = each_node(&world);
    let gate = Gate::default();
    let running = world.run(gate.guard(Executor::new(&nodes[0], "e")));
    let held = world.create("d", &json!({})).await;
    gate.started().await;
    let executor = listed(&nodes[1], &all(), |all| all.len() == 1).await.remove(0);
    let drain = v1::DrainExecutorRequest {
        executor_id: executor.executor_id.clone(),
        reason: "new machine".into(),
        requested_by: "ops".into(),
    };
    let answer = nodes[1].drain_executor(drain.clone()).await.unwrap();
    assert!(!answer.already_in_state && answer.executor.unwrap().draining);
    let answer = nodes[0].drain_executor(drain.clone()).await.unwrap();
    assert!(answer.already_in_state && answer.executor.unwrap().draining);

    // What comes now is for others.
    let next = world.create("d", &json!({})).await;
    let fresh = world.run(
        Executor::new(&nodes[1], "fresh")
            .handler("a", async |step: StepContext| Ok(step.attempt())),
    );
    assert_eq!(world.ended(&next.task_id).await.state().word(), "complete");
    gate.open();
    assert_eq!(world.ended(&held.task_id).await.steps[0].attempt, 1);
    let report = running.ended().await;
    assert!(report.stopped);
    assert_eq!((report.sessions, report.leases, report.completed), (1, 1, 1));
    listed(&nodes[0], &all(), |all| all.len() == 1 && all[0].name == "fresh").await;
    let error = nodes[1].drain_executor(drain).await.unwrap_err();
    assert_eq!(reason(&error), ErrorReason::ExecutorNotFound);
    fresh.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executors_are_listed_and_stopped_on_the_command_line() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}, {name: lonely}]}").await;
    let executor = Executor::new(&world.client, "till-1").label("region", "eu");
    let running = world.run(executor.handler("a", async |step: StepContext| Ok(step.attempt())));
    let executor = listed(&world.client, &all(), |all| all.len() == 1).await.remove(0);
    let (code, out, _) = stepwell(&world, &["executor", "list"], "");
    assert!(code == 0 && out.contains("till-1") && out.contains("region=eu"), "{out}");
    let json = &["executor", "list", "--namespace", "default", "--handler", "a", "-o", "json"];
    let (code, out, _) = stepwell(&world, json, "");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, told[0]["executorId"].as_str()), (0, Some(executor.executor_id.as_str())));
    let (code, out, _) = stepwell(&world, &["handler", "list"], "");
    assert!(code == 0 && out.contains("lonely"), "{out}");
    let (code, out, _) =
        stepwell(&world, &["handler", "list", "--handler", "lonely", "-o", "json"], "");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told[0]["executors"], &told[0]["used"]), (0, &json!(null), &json!(true)));

    let drain = ["executor", "drain", &executor.executor_id, "--reason", "enough"];
    let (code, out, _) = stepwell(&world, &drain, "");
    assert!(code == 0 && out.contains("draining"), "{out}");
    assert!(running.ended().await.stopped);
    let (code, _, err) = stepwell(&world, &["executor", "drain", "7f-1"], "");
    assert!(code == 3 && err.contains("EXECUTOR_NOT_FOUND"), "{code}: {err}");
    let (code, _, err) = stepwell(&world, &["executor", "drain", "me"], "");
    assert!(code == 2 && err.contains("executor_id"), "{code}: {err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_question_about_executors_is_refused_with_its_fields() {
    let world = World::start().await;
    let request = v1::ListExecutorsRequest {
        namespace: "a b".into(),
        handler: "x".repeat(65),
        page_size: 1001,
        page_token: "next".into(),
    };
    let (namespace, handler) = (request.namespace.clone(), request.handler.clone());
    let of_handlers =
        v1::ListHandlersRequest { namespace, handler, page_size: -1, page_token: "a".into() };
    let drain = v1::DrainExecutorRequest {
        executor_id: "0-1".into(),
        reason: "x".repeat(1025),
        requested_by: "\0".into(),
    };
    let paths = |error: Error| match error {
        Error::Refused(refusal) if refusal.reason == ErrorReason::InvalidRequest => {
            refusal.violations.into_iter().map(|(path, _)| path).collect::<Vec<_>>()
        }
        other => panic!("{other}"),
    };
    let all = ["namespace", "handler", "page_size", "page_token"];
    assert_eq!(paths(world.client.list_executors(request).await.unwrap_err()), all);
    assert_eq!(paths(world.client.list_handlers(of_handlers).await.unwrap_err()), all);
    let wrong = world.client.drain_executor(drain).await.unwrap_err();
    assert_eq!(paths(wrong), ["reason", "requested_by"]);
    for id in ["", "1", "1-", "-1", "1-1-1", "1-000000001", "80000000-1", "01-1", "1-G", "1-A"] {
        let drain = v1::DrainExecutorRequest { executor_id: id.into(), ..Default::default() };
        let wrong = world.client.drain_executor(drain).await.unwrap_err();
        assert_eq!(paths(wrong), ["executor_id"], "{id:?}");
    }
}
