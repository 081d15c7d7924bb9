//! Calls over the real services, a real executor and real servers.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod outcomes;
mod process;
mod safety;
mod server;

use serde_json::{Value, json};
use stepwell_client::v1;
use stepwell_http::{Hosts, Settings};
use stepwell_tests::{Running, World};

/// Calls to these hosts and no others.
fn only(hosts: &[&str]) -> Settings {
    let hosts = Hosts::new(hosts.iter().map(|host| host.parse().unwrap()));
    Settings { hosts, ..Settings::default() }
}

/// An executor of calls inside the test.
fn executor(world: &World, settings: Settings) -> Running {
    world.run(stepwell_http::executor(&world.client, "calls", settings).unwrap())
}

/// Registers a definition with these steps, tried three times at once.
async fn define(world: &World, name: &str, steps: Value) {
    let retry = json!({"max_attempts": 3, "initial_backoff": "10ms", "multiplier": 1});
    let definition = json!({"name": name, "defaults": {"retry": retry}, "steps": steps});
    world.define(&definition.to_string()).await;
}

/// Runs a task of one step with this configuration; the step as it ended.
async fn run(world: &World, name: &str, config: Value, context: &Value) -> v1::Step {
    define(world, name, json!([{"name": "a", "handler": "http", "config": config}])).await;
    let task = world.create(name, context).await;
    world.ended(&task.task_id).await.steps.remove(0)
}

/// Its last failure: class, code and message.
fn failure(step: &v1::Step) -> (&str, &str, &str) {
    let error = step.last_error.as_ref().unwrap();
    (&error.error_class, &error.error_code, &error.message)
}
