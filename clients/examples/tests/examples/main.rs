//! Each example over the real services: all its inputs become what they must.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod analytics;

use stepwell_examples::example::Example;
use stepwell_tests::{Running, World, check};

/// The example's servers and executors inside the test, its definitions registered.
async fn set_up(world: &World, example: &Example) -> Vec<Running> {
    for definition in example.definitions {
        world.define(definition).await;
    }
    start(world, example).await.0
}

/// Its servers and executors only; the servers' address.
async fn start(world: &World, example: &Example) -> (Vec<Running>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = format!("http://{}", listener.local_addr().unwrap());
    let of = *example;
    tokio::spawn(async move { of.serve(listener).await });
    let executors = example.executors(&world.client, &servers).unwrap();
    (executors.into_iter().map(|executor| world.run(executor)).collect(), servers)
}

/// Runs all inputs of an example, and leaves its executors running.
async fn all_inputs_become_what_they_must(world: &World, example: &Example) -> Vec<Running> {
    let running = set_up(world, example).await;
    let differences = example.check(&world.client).await.unwrap();
    assert!(differences.is_empty(), "{differences:#?}");
    check(&mut world.connection().await).await;
    running
}
