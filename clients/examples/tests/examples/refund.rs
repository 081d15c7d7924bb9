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
    // The gateway gave money back once for each, and for the one that was asked for directly.
    let refunds = stepwell_tests::http().get(format!("{servers}/refunds")).send().await.unwrap();
    let refunds: Vec<Value> = refunds.json().await.unwrap();
    assert_eq!(refunds.len(), delegated.len() + 1, "{refunds:?}");

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_that_failed_is_mended_in_payments_and_found_again() {
    let world = World::start().await;
    for (_, definition) in EXAMPLE.definitions {
        world.define(definition).await;
    }
    let servers = super::serve(&EXAMPLE).await;
    let running = super::start(&world, &EXAMPLE, &servers);
    let task = world.client.task("process_refund").namespace("customer_success");
    let context = json!({
        "ticket_id": "T-1", "customer_id": "CUST-2", "payment_id": "pay_refused", "refund_amount": 100,
    });
    let task = task.context(&context).create().await.unwrap();
    let task = world.ended(&task.task_id).await;
    let failed = &task.steps[3];
    assert_eq!(failed.last_error.as_ref().unwrap().error_code, "REFUND_FAILED");
    let payments = tasks_of(&world, "payments").await;
    assert_eq!(payments.len(), 1);

    // Somebody pays by another way, and says so.
    let child = world.task(&payments[0].task_id).await;
    let resolve = v1::ResolveStepRequest {
        step_id: child.steps[1].step_id.clone(),
        result: r#"{"refund_id": "cheque_1", "amount": 100}"#.into(),
        ..v1::ResolveStepRequest::default()
    };
    world.client.resolve_step(resolve).await.unwrap();
    assert_eq!(world.ended(&child.task_id).await.state(), v1::State::Complete);
    let step_id = failed.step_id.clone();
    let retry = v1::RetryStepRequest { step_id, ..v1::RetryStepRequest::default() };
    world.client.retry_step(retry).await.unwrap();
    let task = world.ended(&task.task_id).await;
    assert_eq!(task.state(), v1::State::Complete);
    let done = result(&task, "execute_refund_workflow");
    assert_eq!(done["delegated_task_id"], child.task_id);
    assert_eq!(tasks_of(&world, "payments").await.len(), 1);
    check(&mut world.connection().await).await;
    for executor in running {
        executor.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_that_nobody_gives_in_time_fails_and_nothing_is_paid() {
    let world = World::start().await;
    let (_, ours) = EXAMPLE.definitions[0];
    let hasty = ours.replace("version: 1.3.0", "version: 1.3.1");
    let hasty = hasty.replace("queue_timeout: 168h", "queue_timeout: 1s");
    assert_eq!(world.define(&hasty).await.version, "1.3.1");
    world.define(EXAMPLE.definitions[1].1).await;
    let servers = super::serve(&EXAMPLE).await;
    let running = super::start(&world, &EXAMPLE, &servers);
    let inputs = EXAMPLE.inputs().unwrap();
    let task = world.client.task("process_refund").namespace("customer_success");
    let task = task.context(&inputs[0].context).create().await.unwrap();
    let task = world.ended(&task.task_id).await;
    let states: Vec<&str> = task.steps.iter().map(|step| step.state().word()).collect();
    assert_eq!(states, ["complete", "complete", "error", "pending", "pending"]);
    assert_eq!(task.steps[2].last_error.as_ref().unwrap().error_class, "QueueTimeout");
    assert_eq!(tasks_of(&world, "payments").await.len(), 0);
    check(&mut world.connection().await).await;
    for executor in running {
        executor.stop().await;
    }
}
