//! What is urgent comes first, what is not comes too; and whole definitions are paused.

use std::sync::{Arc, Mutex};

use serde_json::json;
use stepwell_client::{Error, Executor, HandlerError, Start, StepContext, v1};
use stepwell_proto::v1::{ErrorReason, ObstacleKind};
use stepwell_tests::{Running, World, check, until};

use super::cli::stepwell;

const DEFINITION: &str =
    "{name: d, steps: [{name: a}, {name: b, depends_on: [a]}, {name: c, depends_on: [b]}]}";

/// Tasks of `d` with this priority and context, by one request.
async fn create(world: &World, n: usize, priority: i32) -> Vec<String> {
    let request = v1::CreateTaskRequest {
        definition_name: "d".into(),
        context: json!({ "priority": priority }).to_string(),
        priority,
        ..Default::default()
    };
    let request = v1::BatchCreateTasksRequest { requests: vec![request; n] };
    let answer = world.client.batch_create_tasks(request).await.unwrap();
    let task = |result: v1::BatchCreateTasksResult| match result.outcome {
        Some(v1::batch_create_tasks_result::Outcome::Task(task)) => {
            assert_eq!(task.priority, if priority == 0 { 3 } else { priority });
            task.task_id
        }
        other => panic!("{other:?}"),
    };
    answer.results.into_iter().map(task).collect()
}

/// One slot for everything; and in which order it ran what, by what is said in contexts.
fn one_slot(world: &World) -> (Running, Arc<Mutex<Vec<i64>>>) {
    let ran = Arc::new(Mutex::new(Vec::new()));
    let mut executor = Executor::new(&world.client, "e").slots(1);
    for name in ["a", "b", "c"] {
        let ran = Arc::clone(&ran);
        executor = executor.handler(name, move |step: StepContext| {
            let context: serde_json::Value = step.input().unwrap();
            ran.lock().unwrap().push(context["priority"].as_i64().unwrap());
            async { Ok::<_, HandlerError>(()) }
        });
    }
    (world.run(executor), ran)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_two_priorities_share_a_slot_by_weight_however_long_their_chains_are() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    // The least urgent are there first.
    create(&world, 40, 5).await;
    create(&world, 40, 2).await;
    let urgent = create(&world, 40, 1).await;
    let (running, ran) = one_slot(&world);
    for task in &urgent {
        world.ended(task).await;
    }
    let ran = ran.lock().unwrap().clone();
    let of = |priority| ran[..100].iter().filter(|p| **p == priority).count();
    // 16 : 8 : 1, give or take who was there when it began.
    assert!((61..=67).contains(&of(1)), "{} of 100", of(1));
    assert!((29..=35).contains(&of(2)), "{} of 100", of(2));
    assert!((3..=6).contains(&of(5)), "{} of 100", of(5));
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_becomes_urgent_goes_past_those_before_it() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    create(&world, 60, 4).await;
    let late = create(&world, 1, 4).await.remove(0);
    let (code, out, err) =
        stepwell(&world, &["task", "update", &late, "--priority", "1", "--by", "me"], "");
    assert!(code == 0 && out.contains("priority 1"), "{out}{err}");
    let mut feed = world.feed(Start::Earliest).await;
    let (running, _) = one_slot(&world);
    let events = until(&mut feed, |e| e.name == "task.completed" && e.task_id == late).await;
    let started = events.iter().filter(|e| e.name == "task.start_requested").count();
    // Some go first while its outcomes are on their way, more on a busy machine; the sixty would have.
    assert!(started <= 30, "{started} tasks were started by then");
    let updated = events.iter().find_map(|event| match &event.detail {
        Some(v1::event::Detail::TaskUpdated(updated)) => Some(updated.priority),
        _ => None,
    });
    assert_eq!(updated, Some(1));
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_definition_starts_nothing_while_others_go_on_and_says_why() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    world.define("{name: other, steps: [{name: a}]}").await;
    let (code, out, err) = stepwell(
        &world,
        &["definition", "pause", "d", "--by", "me", "--reason", "bad release"],
        "",
    );
    assert_eq!((code, out.as_str()), (0, "default/d is paused (1 version)\n"), "{err}");
    let (_, out, _) = stepwell(&world, &["definition", "pause", "d"], "");
    assert_eq!(out, "default/d was paused before (1 version)\n");
    let (_, out, _) = stepwell(&world, &["definition", "pauses"], "");
    assert!(out.contains("default") && out.contains("bad release") && out.contains("me"), "{out}");
    let waiting = create(&world, 1, 2).await.remove(0);
    let (running, ran) = one_slot(&world);
    let other = world.create("other", &json!({ "priority": 9 })).await;
    assert_eq!(world.ended(&other.task_id).await.state().word(), "complete");
    assert_eq!(*ran.lock().unwrap(), [9], "the other's step, and nothing else");
    let why = v1::GetStepReadinessRequest { step_id: format!("{waiting}.0") };
    let obstacles = world.client.get_step_readiness(why).await.unwrap().obstacles;
    let kinds: Vec<_> = obstacles.iter().map(v1::Obstacle::kind).collect();
    assert_eq!(kinds[0], ObstacleKind::Paused, "{obstacles:?}");
    let (code, out, _) = stepwell(&world, &["definition", "resume", "d"], "");
    assert_eq!((code, out.as_str()), (0, "default/d goes on (1 version)\n"));
    assert_eq!(world.ended(&waiting).await.state().word(), "complete");
    let (_, out, _) = stepwell(&world, &["definition", "resume", "d"], "");
    assert_eq!(out, "default/d was not paused (1 version)\n");
    running.stop().await;
    check(&mut world.connection().await).await;
}

/// The first field that is refused.
fn field(error: &Error) -> &str {
    match error {
        Error::Refused(refusal) => &refusal.violations[0].0,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_priority_out_of_bounds_and_a_pause_of_nothing_are_refused_and_change_nothing() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let task = create(&world, 1, 0).await.remove(0);
    let before = world.rows().await;
    let client = &world.client;
    for priority in [-1, 6, 70_000] {
        let create =
            v1::CreateTaskRequest { definition_name: "d".into(), priority, ..Default::default() };
        let error = client.create_task(create).await.unwrap_err();
        assert_eq!(field(&error), "priority");
        let update =
            v1::UpdateTaskRequest { task_id: task.clone(), priority, ..Default::default() };
        let error = client.update_task(update).await.unwrap_err();
        assert_eq!(field(&error), "priority");
    }
    let error =
        client.register_yaml("{name: e, priority: 6, steps: [{name: a}]}").await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::InvalidDefinition));
    assert!(error.to_string().contains("priority at 1:"), "{error}");
    for (namespace, name) in [("default", "no"), ("no", "")] {
        let (namespace, definition_name) = (namespace.into(), name.into());
        let pause =
            v1::PauseDefinitionsRequest { namespace, definition_name, ..Default::default() };
        let error = client.pause_definitions(pause).await.unwrap_err();
        assert_eq!(error.reason(), Some(ErrorReason::DefinitionNotFound));
    }
    let bad = v1::PauseDefinitionsRequest { definition_name: "a b".into(), ..Default::default() };
    let error = client.pause_definitions(bad).await.unwrap_err();
    assert_eq!(field(&error), "definition_name");
    for token in ["x", "a b:c", "a\0:b", "a:b:c"] {
        let list = v1::ListPausesRequest { page_token: token.into(), ..Default::default() };
        let error = client.list_pauses(list).await.unwrap_err();
        assert_eq!(error.reason(), Some(ErrorReason::PageTokenInvalid), "{token:?}");
    }
    for (path, request) in [
        ("namespace", v1::ListPausesRequest { namespace: "a\0".into(), ..Default::default() }),
        ("page_size", v1::ListPausesRequest { page_size: 1001, ..Default::default() }),
    ] {
        let error = client.list_pauses(request).await.unwrap_err();
        assert_eq!(field(&error), path);
    }
    assert_eq!(world.rows().await, before);
}
