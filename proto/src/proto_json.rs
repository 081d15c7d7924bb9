//! Messages as ProtoJSON, the one way in which they are written as JSON: by the command line, for
//! plain HTTP, and as the data of CloudEvents. And calls in plain HTTP: their methods, requests and errors.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use prost_types::Any;
use serde::{Serialize, Serializer, de::DeserializeSeed};
use serde_json::{Number, Value, json};
use tonic::{Code, Status};
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

/// A status as the Connect protocol writes one in plain HTTP: the name of its code, what is wrong, and its
/// details, each also as ProtoJSON under `debug`.
pub fn error(status: &Status) -> Value {
    let said = pb::Status::decode(status.details()).unwrap_or_default();
    let details: Vec<_> = said.details.iter().map(detail).collect();
    let mut error = json!({"code": word(status.code()), "message": status.message()});
    if !details.is_empty() {
        error["details"] = details.into();
    }
    error
}

fn detail(any: &Any) -> Value {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let mut detail = json!({"type": name, "value": STANDARD_NO_PAD.encode(&any.value)});
    if let Ok(debug) = read(name, &any.value) {
        detail["debug"] = serde_json::to_value(debug).unwrap_or_default();
    }
    detail
}

/// The name of a code in plain HTTP.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "canceled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// A method of the contract that has one request and one answer.
#[derive(Clone, Debug)]
pub struct Method {
    request: MessageDescriptor,
    response: MessageDescriptor,
}

/// The methods of the contract by their paths, `/stepwell.v1.TaskService/GetTask`; none for those that stream.
pub static METHODS: LazyLock<BTreeMap<String, Option<Method>>> = LazyLock::new(|| {
    let methods = POOL.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let listed = methods.map(|method| {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let streams = method.is_client_streaming() || method.is_server_streaming();
        let unary = Method { request: method.input(), response: method.output() };
        (path, (!streams).then_some(unary))
    });
    listed.collect()
});

impl Method {
    /// A request in JSON, in any form that ProtoJSON allows and with nothing that the contract does not know,
    /// as it is encoded. No text is the request without fields.
    ///
    /// # Errors
    /// Where the fault is, `requests[0].context` (empty: in the text itself), and what is wrong.
    pub fn request(&self, json: &[u8]) -> Result<Vec<u8>, (String, String)> {
        let json = if json.is_empty() { b"{}" } else { json };
        let mut value: Value = serde_json::from_slice(json)
            .map_err(|error| (String::new(), format!("is not JSON: {error}")))?;
        with_plain_numbers(&mut value);
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
        let message = self.request.clone().deserialize(tracked);
        message.map(|message| message.encode_to_vec()).map_err(|error| {
            let path = track.path().to_string();
            (if path == "." { String::new() } else { path }, error.to_string())
        })
    }

    /// An encoded answer as ProtoJSON.
    ///
    /// # Errors
    /// It is not encoded as the contract says.
    pub fn response(&self, bytes: &[u8]) -> Result<Vec<u8>, Unknown> {
        let unknown = |error: &dyn fmt::Display| Unknown(error.to_string());
        let message = DynamicMessage::decode(self.response.clone(), bytes);
        let message = message.map_err(|error| unknown(&error))?;
        serde_json::to_vec(&message).map_err(|error| unknown(&error))
    }
}

/// Numbers with fractions or exponents in a form that readers take who know nothing of their digits: here they
/// are kept as they were written.
fn with_plain_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.as_i64().is_none() && number.as_u64().is_none() => {
            if let Some(plain) = number.as_f64().and_then(Number::from_f64) {
                *number = plain;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(with_plain_numbers),
        Value::Object(fields) => fields.values_mut().for_each(with_plain_numbers),
        _ => {}
    }
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

    fn written(json: &ProtoJson) -> Value {
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
        let mut said = error(&refusal.into());
        assert_eq!(said["code"], "invalid_argument");
        assert_eq!(said["message"], "names[0]: is wrong");
        let details = said["details"].as_array_mut().unwrap();
        for detail in &mut *details {
            let value = STANDARD_NO_PAD.decode(detail["value"].as_str().unwrap()).unwrap();
            let known = read(detail["type"].as_str().unwrap(), &value).unwrap();
            assert_eq!(written(&known), detail["debug"], "what programs read is what people do");
        }
        let shown: Vec<_> = details.iter().map(|of| (&of["type"], &of["debug"])).collect();
        let wanted = [
            (&json!("google.rpc.RetryInfo"), &json!({"retryDelay": "1.500s"})),
            (
                &json!("google.rpc.ErrorInfo"),
                &json!({
                    "reason": "INVALID_REQUEST",
                    "domain": "stepwell.v1",
                    "metadata": {"name": "x"},
                }),
            ),
            (
                &json!("google.rpc.BadRequest"),
                &json!({"fieldViolations": [{"field": "names[0]", "description": "is wrong"}]}),
            ),
        ];
        assert_eq!(shown, wanted);
        let foreign = error(&Status::not_found("no"));
        assert_eq!(foreign, json!({"code": "not_found", "message": "no"}));
    }

    fn request(method: &str, json: &str) -> Result<Vec<u8>, (String, String)> {
        let path = format!("/stepwell.v1.TaskService/{method}");
        METHODS[&path].as_ref().unwrap().request(json.as_bytes())
    }

    #[test]
    fn a_request_in_json_is_read_in_every_form_of_protojson() {
        use crate::v1::{
            CreateTaskRequest, RegisterDefinitionRequest, register_definition_request,
        };
        for json in [
            r#"{"definitionName": "a", "priority": 2}"#,
            r#"{"definition_name": "a", "priority": "2", "tags": null}"#,
            r#"{"definition_name": "a", "priority": 2.0}"#,
        ] {
            let bytes = request("CreateTask", json).unwrap();
            let wanted = CreateTaskRequest {
                definition_name: "a".into(),
                priority: 2,
                ..CreateTaskRequest::default()
            };
            assert_eq!(CreateTaskRequest::decode(&*bytes).unwrap(), wanted, "{json}");
        }
        let json = r#"{"definition": {"name": "a", "steps": [
            {"name": "b", "timeout": "1.5s", "retry": {"multiplier": 2.50, "jitter": 1e-1}}]}}"#;
        let read =
            RegisterDefinitionRequest::decode(&*request("RegisterDefinition", json).unwrap());
        let source = read.unwrap().source.unwrap();
        let register_definition_request::Source::Definition(read) = source else { panic!() };
        let retry = read.steps[0].retry.as_ref().unwrap();
        assert_eq!((retry.multiplier, retry.jitter), (2.5, Some(0.1)));
        let timeout = prost_types::Duration { seconds: 1, nanos: 500_000_000 };
        assert_eq!(read.steps[0].timeout, Some(timeout));
        assert_eq!(request("GetTask", "").unwrap(), b"", "no text is no field");
    }

    #[test]
    fn what_is_wrong_with_a_request_in_json_is_told_with_its_place() {
        for (json, path, part) in [
            ("{", "", "line 1 column 1"),
            ("{} {}", "", "trailing"),
            ("[1]", "", "invalid type"),
            (r#"{"requests": [{}, {"contxt": "{}"}]}"#, "requests[1]", "contxt"),
            (r#"{"requests": [{"priority": "x"}]}"#, "requests[0].priority", "invalid digit"),
            (r#"{"requests": [{"priority": 1.5}]}"#, "requests[0].priority", "integer"),
            (r#"{"requests": [{"priority": 99999999999}]}"#, "requests[0].priority", "range"),
            (r#"{"requests": {}}"#, "requests", "invalid type"),
        ] {
            let (at, what) = request("BatchCreateTasks", json).unwrap_err();
            assert_eq!(at, path, "{json}: {what}");
            assert!(what.contains(part), "{json}: {what}");
        }
        let deep = "[".repeat(200_000);
        assert!(request("BatchCreateTasks", &deep).unwrap_err().1.contains("recursion"));
    }

    #[test]
    fn methods_that_stream_are_known_and_have_no_json() {
        assert!(METHODS["/stepwell.v1.StepService/Work"].is_none());
        assert!(METHODS["/stepwell.v1.EventService/Subscribe"].is_none());
        assert!(METHODS["/stepwell.v1.EventService/ListEvents"].is_some());
        assert!(!METHODS.contains_key("/stepwell.v1.EventService/Nothing"));
    }
}
