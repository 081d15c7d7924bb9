//! The contract of Stepwell: generated messages and services, the catalog of events, and the
//! few types that every side needs to speak it.

/// Package `stepwell`.
pub mod stepwell {
    /// Package `stepwell.v1`, generated from `proto/stepwell/v1`.
    #[expect(
        unused_qualifications,
        clippy::allow_attributes,
        clippy::large_enum_variant,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("stepwell.v1");
        pub use crate::batch::EventBatch;
    }
}

pub use batch::EncodedEvent;
pub use stepwell::v1;

mod batch;
pub mod catalog;
pub mod codec;
mod elsewhere;
pub mod id;
pub mod json;
pub mod page;
#[cfg(feature = "proto-json")]
pub mod proto_json;
pub mod refusal;
pub mod time;

/// The contract's descriptors, custom options included: for reflection and JSON.
pub static CONTRACT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/contract.bin"));
/// By the full name of each service: its `paths` and `schemas` as OpenAPI 3.1 has them, and its `tag`.
pub static OPENAPI: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));
/// `values` rows of every legal transition: event number, entity, from, to.
pub static EDGES: &str = include_str!(concat!(env!("OUT_DIR"), "/edges.sql"));
/// The reference page of events and errors.
pub static EVENTS_MD: &str = include_str!(concat!(env!("OUT_DIR"), "/events.md"));
