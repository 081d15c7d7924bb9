//! What is told of steps that nobody is there for.

use std::time::Duration;

use serde_json::json;
use stepwell_client::{Executor, HandlerError, Start, StepContext, v1};
use stepwell_suite::Nodes;
use stepwell_tests::{Gate, SOON, World, check, until};

const DEFINITIONS: [&str; 3] = [
    "{name: served, steps: [{name: a}]}",
    "{name: alone, version: 2.1.0, steps: [{name: nobody}]}",
    "{name: picky, steps: [{name: p, handler: a, requires: {region: eu}}]}",
];

/// Waits until so many executors are written down.
async fn connected(world: &World, n: usize) {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let request = v1::ListExecutorsRequest::default();
        let executors = world.client.list_executors(request).await.unwrap().executors;
        if executors.len() == n {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{executors:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_without_an_executor_is_told_of_once_by_two_nodes_and_one_with_a_busy_one_is_not() {
    let world = World::set_up(|options| {
        options.nodes = Nodes { task: 1, step: 2, event: 2 };
        let terms = [("STEPWELL_UNSERVED_AFTER", "1"), ("STEPWELL_SURVEY_INTERVAL", "1")];
        options.env = terms.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    })
    .await;
    for definition in DEFINITIONS {
        world.define(definition).await;
    }
    let gate = Gate::default();
    let busy = world.run(gate.guard(Executor::new(&world.client, "busy").slots(1)));
    connected(&world, 1).await;
    let mut feed = world.feed(Start::Latest).await;
    let running = world.create("served", &json!({})).await;
    gate.started().await;
    let waiting = world.create("served", &json!({})).await;
    let mut told = Vec::new();
    // Each is told of after looks at those before it.
    for name in ["alone", "picky", "alone"] {
        let task = world.create(name, &json!({})).await;
        let events = until(&mut feed, |event| {
            event.name == "step.unserved" && event.task_id == task.task_id
        });
        told.extend(events.await.into_iter().filter(|event| event.name == "step.unserved"));
    }
    let said: Vec<_> =
        told.iter().map(|event| (&*event.definition_name, &*event.step_name)).collect();
    assert_eq!(said, [("alone", "nobody"), ("picky", "p"), ("alone", "nobody")]);
    let first = &told[0];
    assert_eq!((&*first.namespace, &*first.definition_version), ("default", "2.1.0"));
    assert_eq!((first.from_state, first.to_state), (1, 1));
    let Some(v1::event::Detail::StepUnserved(about)) = &first.detail else { panic!("{first:?}") };
    assert_eq!(about.handler, "nobody");
    let waited = first.at.unwrap().seconds - about.ready_time.unwrap().seconds;
    assert!((1..30).contains(&waited), "{waited} s");

    // It waits on, and runs when somebody comes.
    let helper = Executor::new(&world.client, "helper")
        .handler("nobody", async |step: StepContext| Ok::<_, HandlerError>(step.attempt()));
    let helper = world.run(helper);
    for task in [&told[0].task_id, &told[2].task_id] {
        assert_eq!(world.ended(task).await.state().word(), "complete");
    }
    gate.open();
    gate.started().await;
    gate.open();
    for task in [&running, &waiting] {
        world.ended(&task.task_id).await;
    }
    let events = "select count(*) from stepwell.event where type = 48";
    let events: i64 =
        sqlx::query_scalar(events).fetch_one(&mut world.connection().await).await.unwrap();
    assert_eq!(events, 3);
    busy.stop().await;
    helper.stop().await;
    check(&mut world.connection().await).await;
}
