//! The services as `OpenAPI` 3.1 documents: their methods with one request and one answer, as JSON over plain HTTP.

use std::collections::BTreeSet;

use prost_reflect::{
    DescriptorPool, FileDescriptor, Kind, MessageDescriptor, MethodDescriptor, ServiceDescriptor,
};
use serde_json::{Map, Value, json};

use crate::catalog::{comment, field_schema};

/// A document for each service of the contract, by its full name.
pub(crate) fn documents(pool: &DescriptorPool) -> Value {
    let ours = pool.services().filter(|service| service.package_name() == "stepwell.v1");
    let documents: Map<_, _> =
        ours.map(|service| (service.full_name().to_owned(), document(&service))).collect();
    documents.into()
}

fn document(service: &ServiceDescriptor) -> Value {
    let unary =
        |method: &MethodDescriptor| !method.is_client_streaming() && !method.is_server_streaming();
    let (methods, streams): (Vec<_>, Vec<_>) = service.methods().partition(unary);
    let file = service.parent_file();
    let paths: Map<_, _> = methods
        .iter()
        .map(|method| {
            let path = format!("/{}/{}", service.full_name(), method.name());
            (path, json!({"post": operation(service, &file, method)}))
        })
        .collect();
    let mut schemas = Map::new();
    schemas.insert("Error".into(), error());
    let mut left: Vec<_> = methods.iter().flat_map(|m| [m.input(), m.output()]).collect();
    let mut seen = BTreeSet::new();
    while let Some(message) = left.pop() {
        if seen.insert(message.name().to_owned()) {
            left.extend(parts(&message));
            schemas.insert(message.name().to_owned(), schema(&message));
        }
    }
    let mut description = comment(&file, service.path());
    if !streams.is_empty() {
        let names: Vec<_> = streams.iter().map(|m| format!("`{}`", m.name())).collect();
        description += &format!("\n\nOver gRPC and gRPC-Web only: {}.", names.join(", "));
    }
    json!({
        "tag": {"name": service.name(), "description": description},
        "paths": paths,
        "schemas": schemas,
    })
}

fn operation(
    service: &ServiceDescriptor,
    file: &FileDescriptor,
    method: &MethodDescriptor,
) -> Value {
    let description = comment(file, method.path());
    let body = |name: &str| json!({"application/json": {"schema": reference(name)}});
    json!({
        "operationId": format!("{}_{}", service.name(), method.name()),
        "summary": method.name(),
        "description": description,
        "tags": [service.name()],
        "requestBody": {"required": true, "content": body(method.input().name())},
        "responses": {
            "200": {"description": "It is done.", "content": body(method.output().name())},
            "default": {"description": "It was refused, or failed.", "content": body("Error")},
        },
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// The messages of ours that a message is made of.
fn parts(message: &MessageDescriptor) -> Vec<MessageDescriptor> {
    let kinds = message.fields().map(|field| match field.kind() {
        Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
        kind => kind,
    });
    let of = |kind| match kind {
        Kind::Message(part) if part.package_name() == "stepwell.v1" => Some(part),
        _ => None,
    };
    kinds.filter_map(of).collect()
}

/// Defaults are left out, so nothing is required; and what is not known is refused.
fn schema(message: &MessageDescriptor) -> Value {
    let file = message.parent_file();
    let properties: Map<_, _> = message
        .fields()
        .map(|field| {
            let mut schema = field_schema(&field, &|part| reference(part.name()));
            schema["description"] = comment(&file, field.path()).into();
            (field.json_name().to_owned(), schema)
        })
        .collect();
    let mut description = comment(&file, message.path());
    for choice in message.oneofs().filter(|choice| choice.fields().len() > 1) {
        let names: Vec<_> = choice.fields().map(|f| format!("`{}`", f.json_name())).collect();
        description += &format!("\n\nAt most one of {}.", names.join(", "));
    }
    json!({
        "type": "object",
        "description": description.trim(),
        "properties": properties,
        "additionalProperties": false,
    })
}

/// As the Connect protocol has it.
fn error() -> Value {
    let codes = [
        "canceled",
        "unknown",
        "invalid_argument",
        "deadline_exceeded",
        "not_found",
        "already_exists",
        "permission_denied",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal",
        "unavailable",
        "data_loss",
        "unauthenticated",
    ];
    json!({
        "type": "object",
        "description": "Why a call was refused or failed.",
        "required": ["code"],
        "properties": {
            "code": {"enum": codes, "description": "Which kind of fault it is."},
            "message": {"type": "string", "description": "What is wrong, for people."},
            "details": {
                "type": "array",
                "description": "The reason, fields at fault, and when to come again.",
                "items": {
                    "type": "object",
                    "required": ["type", "value"],
                    "properties": {
                        "type": {
                            "type": "string",
                            "description": "Name of the message, such as `google.rpc.ErrorInfo`.",
                        },
                        "value": {
                            "type": "string",
                            "contentEncoding": "base64",
                            "description": "The message as it is encoded, without padding.",
                        },
                        "debug": {"type": "object", "description": "The message as ProtoJSON."},
                    },
                },
            },
        },
    })
}
