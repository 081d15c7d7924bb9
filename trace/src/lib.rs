//! Trace contexts as W3C defines them: as the text that travels in messages and metadata, as the
//! bytes that are kept in rows, and in and out of spans. It exports nothing and knows no service.

mod context;
mod span;

pub use context::TraceContext;
pub use span::{TARGET, child_of, is_exported, link};
