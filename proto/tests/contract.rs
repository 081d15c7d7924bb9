//! The catalog against JSON, against itself, and against the checked-in page.

use std::{collections::BTreeSet, fs, path::Path};

use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message};
use stepwell_proto::{
    CONTRACT, EVENTS_MD,
    catalog::{
        ELSEWHERE, EVENTS, EventMessage, edges, elsewhere, event_type, event_type_by_number,
        origins,
    },
    v1::{Entity, ErrorReason, State, StepCompleted, StepFailed, event::Detail},
};

#[test]
fn every_example_survives_json_and_bytes() {
    let pool = DescriptorPool::decode(CONTRACT).unwrap();
    for event in EVENTS {
        let name = format!("stepwell.v1.{}", event.message);
        let message = pool.get_message_by_name(&name).unwrap();
        let mut json = serde_json::Deserializer::from_str(event.example);
        let parsed = DynamicMessage::deserialize(message.clone(), &mut json).unwrap();
        let bytes = parsed.encode_to_vec();
        let again = DynamicMessage::decode(message, bytes.as_slice()).unwrap();
        let json = serde_json::to_value(&again).unwrap();
        let example: serde_json::Value = serde_json::from_str(event.example).unwrap();
        assert_eq!(json, example, "{}", event.name);
    }
}

#[test]
fn every_type_has_a_method_and_an_example_that_is_its_own() {
    macro_rules! methods {
        ($($method:ident $message:ident $name:literal $doc:literal)*) => {
            [$((stringify!($method), stringify!($message), $name, $doc)),*]
        };
    }
    let methods = stepwell_proto::for_each_event!(methods);
    assert_eq!(methods.len(), EVENTS.len());
    for (event, (method, message, name, doc)) in EVENTS.iter().zip(methods) {
        assert_eq!((event.name, event.message, event.doc), (name, message, doc));
        assert_eq!(method, format!("handle_{}", name.replace('.', "_")));
        assert_eq!(stepwell_proto::catalog::example(name).unwrap().name(), name);
    }
    assert_eq!(stepwell_proto::catalog::example("step.complete"), None);
}

#[test]
fn names_numbers_and_messages_belong_together() {
    let detail: Detail = StepCompleted::default().into();
    assert_eq!(detail.name(), "step.completed");
    assert!(StepCompleted::of(&detail).is_some() && StepFailed::of(&detail).is_none());
    assert_eq!(event_type("step.completed").unwrap().number, StepCompleted::NUMBER);
    assert_eq!(event_type_by_number(StepFailed::NUMBER).unwrap().name, StepFailed::NAME);
    assert!(event_type("step.complete").is_none());
    let names: BTreeSet<_> = EVENTS.iter().map(|e| e.name).collect();
    let numbers: BTreeSet<_> = EVENTS.iter().map(|e| e.number).collect();
    assert_eq!((names.len(), numbers.len()), (EVENTS.len(), EVENTS.len()));
}

#[test]
fn what_is_derived_records_nothing_and_comes_from_what_does() {
    for event in EVENTS {
        assert_eq!(event.is_recorded(), event.edge.is_some(), "{}", event.name);
        for source in event.derived_from {
            assert!(event_type(source).unwrap().is_recorded(), "{}", event.name);
        }
    }
    let cancels: Vec<_> =
        edges(Entity::Task, Some(State::Error), State::Cancelled).map(|e| e.name).collect();
    assert_eq!(cancels, ["task.cancelled"]);
    assert_eq!(edges(Entity::Task, None, State::Pending).count(), 1);
    let origins = origins(Entity::Step, State::Cancelled);
    assert_eq!(origins, [State::Pending, State::InProgress, State::Error]);
}

#[test]
fn a_reason_has_the_code_and_metadata_of_its_option() {
    assert_eq!(ErrorReason::LeaseLost.code(), tonic::Code::FailedPrecondition);
    assert_eq!(ErrorReason::LeaseLost.metadata(), ["lease_id"]);
}

/// A changed number breaks every reader of the options, and no tool reports it.
#[test]
fn the_options_keep_their_number() {
    let pool = DescriptorPool::decode(CONTRACT).unwrap();
    for option in ["stepwell.v1.event", "stepwell.v1.refusal"] {
        assert_eq!(pool.get_extension_by_name(option).unwrap().number(), 281_640_101);
    }
}

/// The names of the model that this engine restates, by the groups it has them in.
const MODEL: [(&str, &str); 9] = [
    (
        "task.",
        "initialize_requested start_requested completed failed retry_requested cancelled \
         resolved_manually before_transition",
    ),
    (
        "step.",
        "initialize_requested execution_requested before_handle handle completed failed \
         retry_requested cancelled resolved_manually before_transition",
    ),
    (
        "workflow.",
        "task_started task_completed task_failed step_completed step_failed viable_steps_discovered \
         no_viable_steps orchestration_requested task_finalization_started \
         task_finalization_completed task_reenqueue_started task_reenqueue_requested \
         task_reenqueue_failed task_reenqueue_delayed task_state_unclear step_execution_failed \
         viable_steps_batch_ready steps_execution_started steps_execution_completed",
    ),
    (
        "observability.",
        "task.handle task.enqueue task.finalize step.handle step.find_viable step.backoff step.skip \
         step.max_retries_reached",
    ),
    ("", "test.event slow.event custom.event Test.Event"),
    (
        "",
        "handler.registered handler.unregistered handler.validation_failed plugin.registered \
         plugin.unregistered plugin.validation_failed subscriber.registered subscriber.unregistered \
         subscriber.validation_failed",
    ),
    (
        "registry.",
        "sync_requested health_check stats_collected cross_discovery coordination_complete",
    ),
    (
        "tasker.telemetry.",
        "cache_synced export_requested export_completed export_failed plugin_registered \
         plugin_unregistered",
    ),
    (
        "",
        "database.query_executed dependency.resolved batch.step_execution memory.spike_detected \
         performance.slow_operation",
    ),
];

#[test]
fn every_name_of_the_model_is_an_event_or_has_something_in_its_place() {
    let names = MODEL.iter().flat_map(|(prefix, rest)| {
        rest.split_whitespace().map(move |name| format!("{prefix}{name}"))
    });
    let model: BTreeSet<String> = names.collect();
    for name in &model {
        let (is_event, is_elsewhere) = (event_type(name).is_some(), elsewhere(name).is_some());
        assert!(is_event != is_elsewhere, "{name}: {is_event}, {is_elsewhere}");
    }
    let there: BTreeSet<_> = ELSEWHERE.iter().map(|e| e.name).collect();
    assert_eq!(there.len(), ELSEWHERE.len(), "each once");
    assert!(there.iter().all(|name| model.contains(*name)));
}

/// What stands for a name may name events: there are such events.
#[test]
fn what_stands_for_a_name_is_there() {
    for here in ELSEWHERE.iter().map(|e| e.here) {
        for named in here.split('`').skip(1).step_by(2) {
            let category = named.split('.').next().unwrap();
            let spans = ["step.handle", "step.settle"];
            if ["task", "step", "workflow", "observability"].contains(&category)
                && !spans.contains(&named)
            {
                assert!(event_type(named).is_some(), "{here}");
            }
        }
    }
}

/// A schema that refuses fields that the message does not have, so that none can be misnamed.
fn closed(schema: &serde_json::Value) -> serde_json::Value {
    let mut schema = schema.clone();
    let mut open = vec![&mut schema];
    while let Some(value) = open.pop() {
        match value {
            serde_json::Value::Object(fields) => {
                if fields.get("properties").is_some_and(serde_json::Value::is_object) {
                    fields.insert("additionalProperties".into(), false.into());
                }
                open.extend(fields.values_mut());
            }
            serde_json::Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    schema
}

fn validator(schema: &serde_json::Value) -> jsonschema::Validator {
    jsonschema::options()
        .offline()
        .should_validate_formats(true)
        .build(schema)
        .expect("it is a schema")
}

#[test]
fn every_schema_is_one_and_fits_its_example_and_refuses_what_is_of_another_type() {
    for event in EVENTS {
        let schema: serde_json::Value = serde_json::from_str(event.schema).unwrap();
        jsonschema::draft202012::meta::validate(&schema).unwrap();
        assert_eq!(schema["title"], event.name);
        let validator = validator(&closed(&schema));
        let example: serde_json::Value = serde_json::from_str(event.example).unwrap();
        assert!(validator.is_valid(&example), "{}: {example}", event.name);
        let fields = schema["properties"].as_object().unwrap();
        assert_eq!(fields.len(), event.fields.len(), "{}", event.name);
        for field in fields.keys() {
            let mut wrong = example.clone();
            wrong[field] = serde_json::json!([{"no": "such"}]);
            assert!(!validator.is_valid(&wrong), "{}: {field}", event.name);
        }
    }
}

#[test]
fn schemas_know_how_times_and_large_numbers_are_written() {
    let pool = DescriptorPool::decode(CONTRACT).unwrap();
    let failed: serde_json::Value =
        serde_json::from_str(event_type("step.failed").unwrap().schema).unwrap();
    let retried: serde_json::Value =
        serde_json::from_str(event_type("step.retry_requested").unwrap().schema).unwrap();
    let written = |message: &str, json: &str| {
        let message = pool.get_message_by_name(&format!("stepwell.v1.{message}")).unwrap();
        let mut json = serde_json::Deserializer::from_str(json);
        serde_json::to_value(DynamicMessage::deserialize(message, &mut json).unwrap()).unwrap()
    };
    for backoff in ["0s", "0.5s", "1.000000001s", "86400s"] {
        let json = format!(r#"{{"backoff": "{backoff}", "error": {{"retryAfter": "3s"}}}}"#);
        assert!(validator(&closed(&failed)).is_valid(&written("StepFailed", &json)), "{json}");
    }
    for time in ["2026-11-23T08:00:15Z", "2026-11-23T08:00:15.000001Z", "1969-12-31T23:59:59.999Z"]
    {
        let json = format!(r#"{{"notBefore": "{time}"}}"#);
        let value = written("StepRetryRequested", &json);
        assert!(validator(&closed(&retried)).is_valid(&value), "{value}");
    }
    for (schema, wrong) in [
        (&failed, serde_json::json!({"backoff": "4 s"})),
        (&failed, serde_json::json!({"backoff": 4})),
        (&failed, serde_json::json!({"backoffType": "SOON"})),
        (&failed, serde_json::json!({"error": {"retryAfter": "soon"}})),
        (&failed, serde_json::json!({"maxAttempts": "3"})),
        (&retried, serde_json::json!({"notBefore": "yesterday"})),
    ] {
        assert!(!validator(schema).is_valid(&wrong), "{wrong}");
    }
}

/// `UPDATE=1 cargo test -p stepwell-proto` rewrites it.
#[test]
fn the_events_page_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&page, EVENTS_MD).unwrap();
    }
    let is = fs::read_to_string(&page).unwrap_or_default();
    assert!(is == EVENTS_MD, "docs/events.md is stale: run UPDATE=1 cargo test -p stepwell-proto");
}
