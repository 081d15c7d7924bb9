//! Events as [CloudEvents](https://cloudevents.io) 1.0, in the structured JSON format: what goes to whoever
//! speaks HTTP and not gRPC. Pure.

use serde::Serialize;
use stepwell_proto::{
    proto_json::{self, ProtoJson, Unknown},
    v1::Event,
};

/// What such a text is, over HTTP.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Digits of the largest position.
const SEQUENCE_DIGITS: usize = 19;

/// An event in its envelope. Attributes that would be empty are left out.
#[derive(Clone, Debug, Serialize)]
pub struct CloudEvent {
    specversion: &'static str,
    id: String,
    source: String,
    r#type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subject: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    time: String,
    /// Sorts as positions do: extension `sequence`.
    sequence: String,
    /// What is to stay in order: extension `partitionkey`.
    #[serde(skip_serializing_if = "String::is_empty")]
    partitionkey: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    correlationid: String,
    /// Extension `traceparent`.
    #[serde(skip_serializing_if = "String::is_empty")]
    traceparent: String,
    datacontenttype: &'static str,
    data: ProtoJson,
}

impl CloudEvent {
    /// Puts an event into its envelope.
    pub fn new(event: &Event) -> Result<Self, Unknown> {
        let about = if event.step_id.is_empty() { &event.task_id } else { &event.step_id };
        Ok(Self {
            specversion: "1.0",
            id: id(event),
            source: source(event),
            r#type: event.name.clone(),
            subject: about.clone(),
            time: event.at.as_ref().map(ToString::to_string).unwrap_or_default(),
            sequence: format!("{:0SEQUENCE_DIGITS$}", event.position),
            partitionkey: event.task_id.clone(),
            correlationid: event.correlation_id.clone(),
            traceparent: event.traceparent.clone(),
            datacontenttype: "application/json",
            data: proto_json::value("Event", event)?,
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The same for everybody who gets the event. Positions begin anew where an old state of the database is
/// restored; a task's id does not come again.
fn id(event: &Event) -> String {
    let Event { task_id, position, name, ordinal, .. } = event;
    format!("{task_id}/{position}/{name}/{ordinal}")
}

/// The definition, if there is one. What names are made of may stand in a path as it is.
fn source(event: &Event) -> String {
    match (event.namespace.as_str(), event.definition_name.as_str()) {
        ("", _) => "/".to_owned(),
        (namespace, "") => format!("/namespaces/{namespace}"),
        (namespace, definition) => format!("/namespaces/{namespace}/definitions/{definition}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use prost::Message;
    use prost_reflect::{DescriptorPool, DynamicMessage};
    use serde_json::{Map, Value, json};
    use stepwell_proto::catalog::EVENTS;

    use super::*;

    /// An event of each type, with the catalog's example, and the name of its detail in JSON.
    fn examples() -> Vec<(Event, &'static str, String)> {
        let pool = DescriptorPool::decode(stepwell_proto::CONTRACT).unwrap();
        let descriptor = pool.get_message_by_name("stepwell.v1.Event").unwrap();
        let example = |(i, of_type): (usize, &'static stepwell_proto::catalog::EventType)| {
            let member = descriptor.get_field(of_type.number).unwrap().json_name().to_owned();
            let mut json = json!({
                "position": (100 + i).to_string(),
                "name": of_type.name,
                "taskId": "0193f0c8-1a2b-7c3d-8e4f-5a6b7c8d9e0f",
                "at": "2026-11-28T09:30:00.000123Z",
                "namespace": "shop/eu",
                "definitionName": "fulfil_order.v2",
                "correlationId": "order-17",
            });
            json[&member] = serde_json::from_str(of_type.example).unwrap();
            let message = DynamicMessage::deserialize(descriptor.clone(), json).unwrap();
            (Event::decode(message.encode_to_vec().as_slice()).unwrap(), of_type.schema, member)
        };
        EVENTS.iter().enumerate().map(example).collect()
    }

    fn written(event: &Event) -> Map<String, Value> {
        let text = serde_json::to_string(&CloudEvent::new(event).unwrap()).unwrap();
        assert!(!text.contains('\n'), "one line");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn every_event_keeps_the_rules_of_cloud_events() {
        for (event, ..) in examples() {
            let written = written(&event);
            for name in written.keys() {
                let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                assert!(plain && name.len() <= 20, "{name}");
            }
            for required in ["id", "source", "specversion", "type"] {
                assert!(written[required].as_str().is_some_and(|text| !text.is_empty()));
            }
            assert!(written.iter().all(|(name, value)| name == "data" || value.is_string()));
            assert_eq!(written["specversion"], "1.0");
            assert_eq!(written["type"], event.name);
            assert_eq!(written["time"], "2026-11-28T09:30:00.000123Z");
            assert_eq!(written["source"], "/namespaces/shop/eu/definitions/fulfil_order.v2");
            assert_eq!(written["datacontenttype"], "application/json");
            assert_eq!(written["correlationid"], "order-17");
        }
    }

    #[test]
    fn what_is_empty_is_left_out_and_a_step_is_a_subject_before_its_task() {
        let bare = written(&Event { position: 1, name: "n".into(), ..Event::default() });
        let names: Vec<&str> = bare.keys().map(String::as_str).collect();
        let least = ["specversion", "id", "source", "type", "sequence", "datacontenttype", "data"];
        assert_eq!(names, least);
        let task =
            Event { task_id: "t".into(), traceparent: "00-a-b-01".into(), ..Event::default() };
        assert_eq!(written(&task)["subject"], "t");
        assert_eq!(written(&task)["partitionkey"], "t");
        assert_eq!(written(&task)["traceparent"], "00-a-b-01");
        let step = Event { step_id: "t.3".into(), ..task };
        assert_eq!(
            (&written(&step)["subject"], &written(&step)["partitionkey"]),
            (&json!("t.3"), &json!("t"))
        );
    }

    #[test]
    fn the_data_is_the_event_and_its_detail_fits_the_schema_of_the_catalog() {
        for (event, schema, member) in examples() {
            let data = &written(&event)["data"];
            let schema: Value = serde_json::from_str(schema).unwrap();
            let validator = jsonschema::validator_for(&schema).unwrap();
            assert!(validator.is_valid(&data[&member]), "{}: {data}", event.name);
            // Nothing is lost: whoever has the contract reads the same event back.
            let pool = DescriptorPool::decode(stepwell_proto::CONTRACT).unwrap();
            let descriptor = pool.get_message_by_name("stepwell.v1.Event").unwrap();
            let read = DynamicMessage::deserialize(descriptor, data).unwrap();
            assert_eq!(Event::decode(read.encode_to_vec().as_slice()).unwrap(), event);
        }
    }

    #[test]
    fn no_two_events_have_the_same_id_and_sequences_sort_as_positions_do() {
        let of = |task: &str, position, name: &str, ordinal| {
            let (task_id, name) = (task.to_owned(), name.to_owned());
            written(&Event { task_id, position, name, ordinal, ..Event::default() })
        };
        let all = [
            of("t", 9, "a", 0),
            of("t", 9, "a", 1),
            of("t", 9, "b", 0),
            of("t", 10, "a", 0),
            // The same place after an old state was restored.
            of("u", 10, "a", 0),
        ];
        let ids: HashSet<String> = all.iter().map(|event| event["id"].to_string()).collect();
        assert_eq!(ids.len(), all.len());
        let sequence = |position| of("t", position, "a", 0)["sequence"].to_string();
        assert!(sequence(9) < sequence(10) && sequence(10) < sequence(i64::MAX));
    }
}
