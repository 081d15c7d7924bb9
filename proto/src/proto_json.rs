//! Messages as ProtoJSON, the one way in which they are written as JSON: by the command line, for
//! plain HTTP, and as the data of CloudEvents.

use std::{fmt, sync::LazyLock};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde::{Serialize, Serializer};
use tonic::Status;
use tonic_types::pb;

use crate::CONTRACT;

/// The contract, and what refusals are made of.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::global();
    for set in [CONTRACT, pb::FILE_DESCRIPTOR_SET] {
        pool.decode_file_descriptor_set(set).expect("it is the build's own");
    }
    pool
});

/// A message that is written as ProtoJSON wherever it is serialised.
#[derive(Clone, Debug)]
pub struct ProtoJson(DynamicMessage);

impl Serialize for ProtoJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A message that the contract does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unknown {}

/// A message of the contract, by its name there: `Event`.
pub fn value(name: &str, message: &impl Message) -> Result<ProtoJson, Unknown> {
    read(&format!("stepwell.v1.{name}"), &message.encode_to_vec())
}

/// A status as `google.rpc.Status`, with the details that it has.
pub fn status(status: &Status) -> Result<ProtoJson, Unknown> {
    if !status.details().is_empty() {
        return read("google.rpc.Status", status.details());
    }
    let (code, message) = (status.code().into(), status.message().to_owned());
    let plain = pb::Status { code, message, details: Vec::new() };
    read("google.rpc.Status", &plain.encode_to_vec())
}

fn read(name: &str, bytes: &[u8]) -> Result<ProtoJson, Unknown> {
    let descriptor = POOL
        .get_message_by_name(name)
        .ok_or_else(|| Unknown(format!("the contract has no message {name}")))?;
    DynamicMessage::decode(descriptor, bytes).map(ProtoJson).map_err(|e| Unknown(e.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        refusal::Refusal,
        v1::{Event, State, StepCompleted},
    };

    fn written(json: &ProtoJson) -> serde_json::Value {
        serde_json::from_str(&serde_json::to_string(json).unwrap()).unwrap()
    }

    #[test]
    fn a_message_is_written_with_names_of_states_and_large_numbers_as_text() {
        let event = Event {
            position: i64::MAX,
            to_state: State::Complete.into(),
            at: Some(prost_types::Timestamp { seconds: 0, nanos: 1_000_000 }),
            detail: Some(StepCompleted { result: "{}".into(), ..StepCompleted::default() }.into()),
            ..Event::default()
        };
        let wanted = json!({
            "position": "9223372036854775807",
            "at": "1970-01-01T00:00:00.001Z",
            "toState": "STATE_COMPLETE",
            "stepCompleted": {"result": "{}"},
        });
        assert_eq!(written(&value("Event", &event).unwrap()), wanted);
        assert!(value("Nothing", &event).unwrap_err().to_string().contains("Nothing"));
    }

    #[test]
    fn a_refusal_is_written_with_its_reason_and_its_fields_and_a_foreign_status_without() {
        let refusal = Refusal::field("names[0]", "is wrong")
            .with("name", "x")
            .retry_after(std::time::Duration::from_millis(1500));
        let wanted = json!({
            "code": 3,
            "message": "names[0]: is wrong",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retryDelay": "1.500s",
                },
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "INVALID_REQUEST",
                    "domain": "stepwell.v1",
                    "metadata": {"name": "x"},
                },
                {
                    "@type": "type.googleapis.com/google.rpc.BadRequest",
                    "fieldViolations": [{"field": "names[0]", "description": "is wrong"}],
                },
            ],
        });
        assert_eq!(written(&status(&refusal.into()).unwrap()), wanted);
        let foreign = written(&status(&Status::not_found("no")).unwrap());
        assert_eq!(foreign, json!({"code": 5, "message": "no"}));
    }
}
