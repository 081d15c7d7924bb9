use std::process::{Command, Output, Stdio};

use serde_json::Value;
use stepwell_client::v1;
use stepwell_examples::cart::EXAMPLE;
use stepwell_tests::{World, check};

/// `stepwell definition` with these arguments about the example's definition.
fn definition(world: &World, args: &[&str]) -> Output {
    use std::io::Write;
    let addresses = world.suite.addresses();
    let mut command = Command::new(stepwell_suite::built_stepwell().unwrap())
        .arg("definition")
        .args(args)
        .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
        .env("STEPWELL_EVENT_ADDRESS", addresses.event.join(","))
        .env("STEPWELL_CONFIG", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    command.stdin.take().unwrap().write_all(EXAMPLE.definitions[0].1.as_bytes()).unwrap();
    command.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carts_become_orders_as_their_inputs_say_in_the_environment_for_tests() {
    let world = World::start().await;
    let validated = definition(&world, &["validate", "-"]);
    let said = String::from_utf8(validated.stdout).unwrap();
    assert!(validated.status.success(), "{}", String::from_utf8_lossy(&validated.stderr));
    for environment in ["", " [development]", " [test]", " [production]"] {
        let line = format!("api/cart_order 1.0.0{environment} is right (5 steps)");
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }

    let servers = super::serve(&EXAMPLE).await;
    let running = super::start(&world, &EXAMPLE, &servers);
    let api = format!("CART_API={servers}");
    let applied = definition(&world, &["apply", "-", "--env", "test", "--set", &api]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let differences = EXAMPLE.check(&world.client).await.unwrap();
    assert!(differences.is_empty(), "{differences:#?}");

    // What differs in this environment has come to the server.
    let task = world.client.task("cart_order").namespace("api").context_json(r#"{"cart_id": 1}"#);
    let task = world.ended(&task.create().await.unwrap().task_id).await;
    for step in &task.steps[..2] {
        let result: Value = serde_json::from_str(&step.result).unwrap();
        assert_eq!(result["test_mode"], true, "{}", step.name);
    }
    let request = v1::GetDefinitionGraphRequest {
        namespace: "api".into(),
        name: "cart_order".into(),
        version: String::new(),
    };
    let graph = world.client.get_definition_graph(request).await.unwrap().graph.unwrap();
    assert_eq!((graph.roots.len(), graph.leaves.len(), graph.levels.len()), (2, 1, 4));
    check(&mut world.connection().await).await;
    for executor in running {
        executor.stop().await;
    }
}
