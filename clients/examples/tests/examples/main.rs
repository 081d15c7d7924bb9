//! Each example over the real services: all its inputs become what they must.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod analytics;
mod cart;
mod readmes;
mod refund;
mod registration;

use stepwell_examples::example::Example;
use stepwell_tests::{Running, World, check};

/// The example's servers, inside the test; their address.
async fn serve(example: &Example) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = format!("http://{}", listener.local_addr().unwrap());
    let of = *example;
    tokio::spawn(async move { of.serve(listener).await });
    servers
}

/// Its executors.
fn start(world: &World, example: &Example, servers: &str) -> Vec<Running> {
    let executors = example.executors(&world.client, servers).unwrap();
    executors.into_iter().map(|executor| world.run(executor)).collect()
}

/// Registers an example's definitions, runs all its inputs, and leaves its executors running.
async fn all_inputs_become_what_they_must(world: &World, example: &Example) -> Vec<Running> {
    for (_, definition) in example.definitions {
        world.define(definition).await;
    }
    let running = start(world, example, &serve(example).await);
    let differences = example.check(&world.client).await.unwrap();
    assert!(differences.is_empty(), "{differences:#?}");
    check(&mut world.connection().await).await;
    running
}
