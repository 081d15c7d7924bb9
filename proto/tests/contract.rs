//! The catalog against JSON, against itself, and against the checked-in page.

use std::{collections::BTreeSet, fs, path::Path};

use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message};
use stepwell_proto::{
    CONTRACT, EVENTS_MD,
    catalog::{EVENTS, EventMessage, edges, event_type, event_type_by_number, origins},
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
