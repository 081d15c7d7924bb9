//! How every service starts, is seen, and stops. It knows no domain and no database.
//!
//! A service is made of loops and one server: `Service::start` sets up the log and spans, `spawn` and
//! `spawn_loop` run the loops, `serve` answers requests until the service is told to stop and the
//! loops have ended, or the grace is over.

mod answer;
mod bounded;
mod formats;
mod incoming;
mod layer;
mod limits;
#[cfg(test)]
mod log;
mod metrics;
mod openapi;
mod options;
mod plain;
mod quiet;
mod recent;
mod room;
mod rpc;
mod server;
mod service;
mod shutdown;
mod telemetry;
mod ticker;

pub use incoming::Line;
pub use limits::{LABELS_MAX, MESSAGE_BYTES_MAX};
pub use metrics::SECONDS;
pub use options::{Age, LogFormat, Options};
pub use plain::refused;
pub use recent::Recent;
pub use service::{Service, run};
pub use shutdown::Shutdown;
pub use ticker::Ticker;
