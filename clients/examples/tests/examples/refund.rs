use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use stepwell_client::{Observation, v1};
use stepwell_examples::{example::Example, refund::EXAMPLE};
use stepwell_tests::{World, check};

/// Namespace, definition and version of each lease that an executor got.
type Leases = Arc<Mutex<Vec<(String, String)>>>;

async fn tasks_of(world: &World, namespace: &str) -> Vec<v1::Task> {
    let filter = format!("namespace = \"{namespace}\"");
    let request = v1::ListTasksRequest { filter, ..v1::ListTasksRequest::default() };
    world.client.list_tasks(request).await.unwrap().tasks
}

fn result(task: &v1::Task, step: &str) -> Value {
    let step = task.steps.iter().find(|of| of.name == step).unwrap();
    serde_json::from_str(&step.result).unwrap()
}

/// The executors, each with what it was leased, by their order in the example.
fn observed(world: &World, example: &Example, servers: &str) -> (Vec<Leases>, Vec<super::Running>) {
    let executors = example.executors(&world.client, servers).unwrap();
    let observed = executors.into_iter().map(|executor| {
        let leases = Leases::default();
        let seen = Arc::clone(&leases);
        let executor = executor.observer(move |observation| {
            if let Observation::Leased(lease) = observation {
                let of = (lease.namespace.clone(), lease.definition_version.clone());
                seen.lock().unwrap().push(of);
            }
        });
        (leases, world.run(executor))
    });
    observed.unzip()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refunds_end_as_their_inputs_say_and_each_starts_one_task_of_payments() {
    let world = World::start().await;
    for (_, definition) in EXAMPLE.definitions {
        world.define(definition).await;
    }
    let servers = super::serve(&EXAMPLE).await;
    let (leases, running) = observed(&world, &EXAMPLE, &servers);
    let inputs = EXAMPLE.inputs().unwrap();
    let direct = inputs.iter().filter(|input| input.of.is_some()).count();
    let differences = EXAMPLE.check(&world.client).await.unwrap();
    assert!(differences.is_empty(), "{differences:#?}");

    // One task of payments for each that came so far, however often its step looked.
    let ours = tasks_of(&world, "customer_success").await;
    let mut delegated = Vec::new();
    for task in &ours {
        let task = world.task(&task.task_id).await;
        let step = task.steps.iter().find(|step| step.name == "execute_refund_workflow").unwrap();
        if step.state() == v1::State::Complete {
            let done = result(&task, "execute_refund_workflow");
            let id = done["delegated_task_id"].as_str().unwrap().to_owned();
            let child = world.task(&id).await;
            assert_eq!(
                (child.namespace.as_str(), child.initiator.as_str()),
                ("payments", "customer_success")
            );
            let context: Value = serde_json::from_str(&child.context).unwrap();
            assert_eq!(context["approval_id"], done["approval_id"]);
            if context["payment_id"] == "pay_downonce" {
                assert!(step.attempt > 1, "it looked once");
            }
            delegated.push(id);
        }
    }
    let refused = 1;
    delegated.sort();
    delegated.dedup();
    assert_eq!(delegated.len(), 5);
    let theirs = tasks_of(&world, "payments").await.len();
    assert_eq!(theirs, delegated.len() + refused + direct);

    // Of a version that nobody runs nothing is started, while others of the name go on.
    let (_, payments) = EXAMPLE.definitions[1];
    world.define(&payments.replace("version: 2.1.0", "version: 2.2.0")).await;
    let of = |version: &str| {
        let task = world.client.task("process_refund").namespace("payments").version(version);
        task.context(&json!({"payment_id": "pay_1", "refund_amount": 1})).create()
    };
    let later = of("2.2.0").await.unwrap();
    let ours = world.ended(&of("2.1.0").await.unwrap().task_id).await;
    assert_eq!(ours.state(), v1::State::Complete);
    let later = world.task(&later.task_id).await;
    assert_eq!((later.state(), later.steps[0].attempt), (v1::State::Pending, 0));
    let refusal = of("2.0.0").await.unwrap_err();
    assert_eq!(refusal.reason(), Some(v1::ErrorReason::DefinitionNotFound));

    for (leases, of) in leases.iter().zip([("customer_success", "1.3.0"), ("payments", "2.1.0")]) {
        let leases = leases.lock().unwrap();
        let others =
            leases.iter().find(|(namespace, version)| (namespace.as_str(), version.as_str()) != of);
        assert!(!leases.is_empty() && others.is_none(), "{of:?}: {others:?}");
    }
    check(&mut world.connection().await).await;
    for executor in running {
        executor.stop().await;
    }
}
