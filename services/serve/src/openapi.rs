//! What a port answers in JSON, described by the contract: `GET /openapi.json`.

use bytes::Bytes;
use serde_json::{Map, Value, json};

/// The document of these services.
pub(crate) fn document(service: &str, services: &[&str]) -> Bytes {
    let all: Value = serde_json::from_str(stepwell_proto::OPENAPI).expect("it is the build's own");
    let (mut tags, mut paths, mut schemas) = (Vec::new(), Map::new(), Map::new());
    let parts = |of: &Value| of.as_object().cloned().unwrap_or_default();
    for name in services {
        let of = &all[name];
        tags.push(of["tag"].clone());
        paths.extend(parts(&of["paths"]));
        schemas.extend(parts(&of["schemas"]));
    }
    let description = "Each method is a POST of its request in JSON, by the unary half of the Connect protocol. \
        Fields that are not set are left out.";
    let document = json!({
        "openapi": "3.1.0",
        "info": {"title": format!("Stepwell {service}-service"), "description": description, "version": env!("CARGO_PKG_VERSION")},
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": schemas},
    });
    document.to_string().into()
}
