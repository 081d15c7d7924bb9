//! Customer analytics: three extracts at once, two transforms that each read two of them, insights from both,
//! a dashboard and a notification. The warehouse, the dashboards and the channels are HTTP servers; steps tell
//! how they get on by custom events.

mod dates;
mod figures;
mod handlers;
mod servers;

use crate::example::Example;

/// The example.
pub const EXAMPLE: Example = Example {
    name: "analytics",
    about: "fan-out and fan-in over a warehouse, custom events",
    definitions: &[(NAMESPACE, include_str!("../../analytics/definition.yaml"))],
    of: (NAMESPACE, "customer_analytics"),
    inputs: include_str!("../../analytics/inputs.json"),
    servers: servers::routes,
    executors: handlers::executors,
};

const NAMESPACE: &str = "analytics";
