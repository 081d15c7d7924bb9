//! The catalog and what is delivered: each type that it has is seen, and looks as it says.

use std::collections::BTreeSet;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};
use stepwell_client::{
    Start, Subscription,
    v1::{
        self, Event, Failure, HandBack, Lease, Outcome,
        outcome::Kind::{Fail, HandBack as Back},
    },
};
use stepwell_proto::{
    catalog::{EVENTS, event_type},
    v1::ErrorReason,
};
use stepwell_tests::{World, check, until};

use super::{
    cli::stepwell,
    unary::{Caller, hello},
};

const DEFINITIONS: [&str; 4] = [
    "name: trip
defaults: {retry: {max_attempts: 2, initial_backoff: 20ms, multiplier: 1}}
steps: [{name: a}, {name: b, depends_on: [a]}]",
    "{name: once, steps: [{name: a, retry: {max_attempts: 1}}]}",
    "{name: gift, steps: [{name: c, skippable: true}]}",
    "{name: lonely, steps: [{name: nobody}]}",
];

fn ended(lease: &Lease, kind: v1::outcome::Kind) -> Outcome {
    Outcome { lease_id: lease.lease_id.clone(), kind: Some(kind), ..Outcome::default() }
}

fn failed(lease: &Lease) -> Outcome {
    let failure = Failure {
        error_class: "Down".into(),
        message: "no gateway".into(),
        backtrace: vec!["charge.py:41".into()],
        context: json!({"gateway": 7}).to_string(),
        retryable: true,
        ..Failure::default()
    };
    ended(lease, Fail(failure))
}

/// An event's detail as ProtoJSON.
fn as_json(pool: &DescriptorPool, event: &Event) -> Value {
    let message = pool.get_message_by_name("stepwell.v1.Event").unwrap();
    let bytes = event.encode_to_vec();
    let event_json = DynamicMessage::decode(message, bytes.as_slice()).unwrap();
    let detail = event_json.get_field_by_name(&event.name.replace('.', "_")).unwrap();
    serde_json::to_value(detail.as_message().unwrap()).unwrap()
}

/// It looks as the catalog says.
fn fits(pool: &DescriptorPool, event: &Event) {
    let of_type = event_type(&event.name).unwrap();
    assert_eq!(event.detail.as_ref().unwrap().name(), event.name);
    let mut schema: Value = serde_json::from_str(of_type.schema).unwrap();
    schema["additionalProperties"] = false.into();
    let schema =
        jsonschema::options().offline().should_validate_formats(true).build(&schema).unwrap();
    let detail = as_json(pool, event);
    let faults: Vec<_> = schema.iter_errors(&detail).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{}: {detail}: {faults:?}", event.name);
    let known = |state: i32| v1::State::try_from(state).unwrap();
    match &of_type.edge {
        None => assert_eq!((event.from_state, event.to_state), (0, 0), "{}", event.name),
        Some(edge) => {
            let from = edge.from.contains(&known(event.from_state));
            assert!(from || (edge.from.is_empty() && event.from_state == 0), "{event:?}");
            let to = known(event.to_state);
            assert_eq!(to, edge.to.unwrap_or_else(|| known(event.from_state)), "{event:?}");
            let about_step = edge.entity == v1::Entity::Step;
            assert_eq!(about_step, !event.step_id.is_empty(), "{event:?}");
        }
    }
    assert!(event.position > 0 && event.at.is_some() && !event.definition_name.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_of_the_catalog_is_seen_and_fits_its_schema() {
    let world = World::set_up(|options| {
        let terms = [("STEPWELL_UNSERVED_AFTER", "1"), ("STEPWELL_SURVEY_INTERVAL", "1")];
        options.env = terms.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    })
    .await;
    for definition in DEFINITIONS {
        world.define(definition).await;
    }
    let all = ["task.*", "step.*", "workflow.*", "observability.*"];
    let wanted = Subscription::new().names(all).from(Start::Latest);
    let mut feed = world.client.subscribe(wanted).await.unwrap();
    let (mut caller, _) = Caller::hello(&world, 0, hello(1, &[])).await;
    let (client, by, reason) = (&world.client, "ops@shop", "because");

    // A step goes back, fails, and works with the third lease; its child with the first.
    world.create("trip", &json!({"order": 17})).await;
    let held = caller.leases(1).await;
    let back = HandBack { reason: "busy".into() };
    caller.report(vec![ended(&held[0], Back(back))]).await.unwrap();
    let held = caller.leases(1).await;
    caller.report(vec![failed(&held[0])]).await.unwrap();
    for _ in 0..2 {
        let held = caller.leases(1).await;
        caller.complete(&held).await;
    }

    // One is paused, changed, annotated, resumed, fails for good, is tried again, and settled by a person.
    let task_id = world.create("once", &json!({})).await.task_id;
    let step_id = stepwell_proto::id::step_id(&task_id, 0);
    let pause = v1::PauseTaskRequest {
        task_id: task_id.clone(),
        reason: reason.into(),
        paused_by: by.into(),
        ..v1::PauseTaskRequest::default()
    };
    client.pause_task(pause).await.unwrap();
    let update = v1::UpdateTaskRequest {
        task_id: task_id.clone(),
        tags: Some(v1::Tags { values: vec!["vip".into()] }),
        updated_by: by.into(),
        ..v1::UpdateTaskRequest::default()
    };
    client.update_task(update).await.unwrap();
    let annotate = v1::AnnotateTaskRequest {
        task_id: task_id.clone(),
        set: [("ticket".to_owned(), "S-17".to_owned())].into(),
        remove: vec!["suspect".into()],
        annotated_by: by.into(),
        ..v1::AnnotateTaskRequest::default()
    };
    client.annotate_task(annotate).await.unwrap();
    let update = v1::UpdateStepRequest {
        step_id,
        config: Some(r#"{"gateway": "backup"}"#.into()),
        updated_by: by.into(),
        ..v1::UpdateStepRequest::default()
    };
    client.update_step(update).await.unwrap();
    let resume = v1::ResumeTaskRequest {
        task_id: task_id.clone(),
        resumed_by: by.into(),
        ..v1::ResumeTaskRequest::default()
    };
    client.resume_task(resume).await.unwrap();
    let held = caller.leases(1).await;
    caller.report(vec![failed(&held[0])]).await.unwrap();
    let retry = v1::RetryTaskRequest {
        task_id: task_id.clone(),
        reason: reason.into(),
        retried_by: by.into(),
        ..v1::RetryTaskRequest::default()
    };
    client.retry_task(retry).await.unwrap();
    let held = caller.leases(1).await;
    caller.report(vec![failed(&held[0])]).await.unwrap();
    let resolve = v1::ResolveTaskRequest {
        task_id,
        reason: reason.into(),
        resolved_by: by.into(),
        ..v1::ResolveTaskRequest::default()
    };
    client.resolve_task(resolve).await.unwrap();

    // One has its only step skipped.
    let task_id = world.create("gift", &json!({})).await.task_id;
    let skip = v1::SkipStepRequest {
        step_id: stepwell_proto::id::step_id(&task_id, 0),
        reason: reason.into(),
        skipped_by: by.into(),
        ..v1::SkipStepRequest::default()
    };
    client.skip_step(skip).await.unwrap();

    // And one has nobody to run it, and is cancelled.
    let task_id = world.create("lonely", &json!({})).await.task_id;
    let mut events = until(&mut feed, |event| event.name == "step.unserved").await;
    let cancel = v1::CancelTaskRequest {
        task_id: task_id.clone(),
        reason: reason.into(),
        cancelled_by: by.into(),
        ..v1::CancelTaskRequest::default()
    };
    client.cancel_task(cancel).await.unwrap();
    let last = "workflow.task_finalization_completed";
    events.extend(until(&mut feed, |event| event.task_id == task_id && event.name == last).await);

    let pool = DescriptorPool::decode(stepwell_proto::CONTRACT).unwrap();
    events.iter().for_each(|event| fits(&pool, event));
    let seen: BTreeSet<_> = events.iter().map(|event| event.name.as_str()).collect();
    let catalog: BTreeSet<_> = EVENTS.iter().map(|of_type| of_type.name).collect();
    assert_eq!(seen, catalog);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalog_can_be_read_and_searched_over_the_wire_and_on_the_command_line() {
    let world = World::start().await;
    let mut request =
        v1::ListEventTypesRequest { page_size: 7, ..v1::ListEventTypesRequest::default() };
    let mut listed = Vec::new();
    loop {
        let page = world.client.list_event_types(request.clone()).await.unwrap();
        listed.extend(page.event_types);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let names: Vec<&str> = listed.iter().map(|of_type| of_type.name.as_str()).collect();
    let catalog: Vec<&str> = EVENTS.iter().map(|of_type| of_type.name).collect();
    assert_eq!(names, catalog);
    for of_type in &listed {
        let request = v1::GetEventTypeRequest { name: of_type.name.clone(), ..Default::default() };
        let got = world.client.get_event_type(request).await.unwrap();
        assert_eq!(got.event_type.as_ref(), Some(of_type));
        let schema = serde_json::from_str(&of_type.schema).unwrap();
        let example = serde_json::from_str(&of_type.example).unwrap();
        assert!(jsonschema::draft202012::is_valid(&schema, &example), "{}", of_type.name);
        assert_eq!(of_type.derived_from.is_empty(), of_type.entity != 0, "{}", of_type.name);
        assert!(!of_type.emitters.is_empty() && of_type.since == "0.1.0");
    }

    let wrong = v1::ListEventTypesRequest { page_size: 1001, ..request.clone() };
    let refused = world.client.list_event_types(wrong).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::InvalidRequest));
    let wrong = v1::ListEventTypesRequest { page_token: "x".into(), ..request };
    let refused = world.client.list_event_types(wrong).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::PageTokenInvalid));

    let (code, out, _) = stepwell(&world, &["event", "types", "--search", "BACKOFF"], "");
    assert!(code == 0 && out.contains("observability.step.backoff"), "{out}");
    assert!(!out.contains("task.completed"), "{out}");
    let types = ["event", "types", "--category", "workflow", "--prefix", "workflow.task_r"];
    let (code, out, _) = stepwell(&world, &[&types[..], &["-o", "jsonl"]].concat(), "");
    let shown = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let names: Vec<Value> = shown.map(|of_type| of_type["name"].clone()).collect();
    let wanted = ["workflow.task_reenqueue_requested", "workflow.task_reenqueue_delayed"];
    assert_eq!((code, names), (0, wanted.map(Value::from).to_vec()));
    let (code, out, _) = stepwell(&world, &["event", "type", "step.failed"], "");
    assert!(code == 0 && out.contains("step pending, in_progress → error"), "{out}");
    assert!(out.contains("\"backoff\": {") && out.contains("\"errorClass\": \"Timeout\""), "{out}");
    let (code, _, err) = stepwell(&world, &["event", "type", "step.complete"], "");
    assert!(code == 2 && err.contains("step.completed"), "{code}: {err}");
    let (code, _, err) = stepwell(&world, &["event", "subscribe", "step.before_handle"], "");
    assert!(code == 2 && err.contains("step.before_handle"), "{code}: {err}");
}
