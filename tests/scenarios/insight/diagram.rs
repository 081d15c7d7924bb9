//! Tasks as diagrams.

use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, Start, v1};
use stepwell_tests::{World, until};

use super::{super::cli::stepwell, reason};

fn asked(task_id: &str, format: v1::DiagramFormat) -> v1::GetTaskDiagramRequest {
    v1::GetTaskDiagramRequest {
        task_id: task_id.into(),
        format: format.into(),
        ..v1::GetTaskDiagramRequest::default()
    }
}

const ORDER: &str = "
name: order
steps:
  - {name: validate}
  - {name: charge, depends_on: [validate], retry: {max_attempts: 1}}
  - {name: ship, depends_on: [charge]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diagram_shows_the_states_of_the_moment_and_an_error_only_if_it_is_asked_for() {
    let world = World::start().await;
    world.define(ORDER).await;
    let task_id = world.create("order", &json!({})).await.task_id;
    let node = format!("task_{}", task_id.replace('-', "_"));
    let answer = world
        .client
        .get_task_diagram(asked(&task_id, v1::DiagramFormat::Unspecified))
        .await
        .unwrap();
    let fresh = format!(
        "graph TD
subgraph \"Task {task_id}: order\"
  {node}[\"Task: order<br/>ID: {task_id}<br/>Status: pending\"]
  step_0[\"Step: validate<br/>Status: pending #40;ready#41;<br/>Attempts: 0\"]
  style step_0 fill:lightblue;
  step_1[\"Step: charge<br/>Status: pending #40;waiting#41;<br/>Attempts: 0\"]
  style step_1 fill:lightblue;
  step_2[\"Step: ship<br/>Status: pending #40;waiting#41;<br/>Attempts: 0\"]
  style step_2 fill:lightblue;
  {node} --> step_0
  step_0 -->|\"provides\"| step_1
  step_1 -->|\"provides\"| step_2
end
"
    );
    assert_eq!(answer.diagram, fresh);
    assert_eq!(
        (answer.format(), answer.step_count, answer.edge_count),
        (v1::DiagramFormat::Mermaid, 3, 3)
    );

    let executor = Executor::new(&world.client, "e")
        .handler("validate", async |_| Ok::<_, HandlerError>(1))
        .handler("charge", async |_| {
            let says = "\"]; <script>alert('declined by the bank')</script>";
            Err::<(), _>(HandlerError::new("CardDeclined", says).permanent())
        });
    let mut feed = world.feed(Start::Latest).await;
    let running = world.run(executor);
    until(&mut feed, |event| event.name == "task.failed").await;
    running.stop().await;

    let request = v1::GetTaskDiagramRequest {
        with_errors: true,
        base_url: "https://ui.example/".into(),
        direction: v1::DiagramDirection::LeftRight.into(),
        ..asked(&task_id, v1::DiagramFormat::Mermaid)
    };
    let diagram = world.client.get_task_diagram(request.clone()).await.unwrap().diagram;
    for line in [
        "graph LR",
        "  style step_0 fill:green;",
        "  style step_1 fill:red;",
        "  step_2[\"Step: ship<br/>Status: pending #40;blocked#41;<br/>Attempts: 0\"]",
        &format!("  click {node} \"https://ui.example/tasks/{task_id}\""),
        &format!("  click step_1 \"https://ui.example/tasks/{task_id}/steps/{task_id}.1\""),
    ] {
        assert!(diagram.lines().any(|is| is == line), "{line} in {diagram}");
    }
    let cut = "Error: '#93;#59; #60;script#62;alert#40;'declined ...";
    assert!(diagram.contains(cut), "{diagram}");
    let request = v1::GetTaskDiagramRequest { format: v1::DiagramFormat::Json.into(), ..request };
    let json = world.client.get_task_diagram(request.clone()).await.unwrap().diagram;
    let json: Value = serde_json::from_str(&json).unwrap();
    let of = &json["nodes"][2]["attributes"];
    assert_eq!((of["state"].as_str(), of["attempt"].as_i64()), (Some("error"), Some(1)));
    assert_eq!(of["error_class"].as_str(), Some("CardDeclined"));
    let silent = v1::GetTaskDiagramRequest { with_errors: false, ..request };
    let json = world.client.get_task_diagram(silent).await.unwrap().diagram;
    assert!(json.contains("charge") && !json.contains("declined") && !json.contains("Card"));

    // And on the command line.
    let (code, out, err) = stepwell(&world, &["task", "diagram", &task_id, "--format", "dot"], "");
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("digraph task {\n") && out.contains("step_0 -> step_1"), "{out}");
    let args = ["task", "diagram", &task_id, "--base-url", "javascript:alert(1)"];
    let (code, out, err) = stepwell(&world, &args, "");
    assert!(code != 0 && out.is_empty() && err.contains("base_url"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_drawn_is_refused_with_its_reason() {
    use v1::ErrorReason::{DiagramTooLarge, InvalidRequest, TaskNotFound};
    let world = World::start().await;
    world.define(ORDER).await;
    let steps: String = (0..1_001).map(|n| format!("  - {{name: s{n}}}\n")).collect();
    world.define(&format!("name: wide\nsteps:\n{steps}")).await;
    let small = world.create("order", &json!({})).await.task_id;
    let wide = world.create("wide", &json!({})).await.task_id;
    let of = |task_id: &str| asked(task_id, v1::DiagramFormat::Dot);
    for (request, wanted, field) in [
        (of(&wide), DiagramTooLarge, ""),
        (of("00000000-0000-7000-8000-000000000000"), TaskNotFound, ""),
        (of("seven"), InvalidRequest, "task_id"),
        (v1::GetTaskDiagramRequest { format: 9, ..of(&small) }, InvalidRequest, "format"),
        (
            v1::GetTaskDiagramRequest { direction: 9, base_url: "x".into(), ..of(&small) },
            InvalidRequest,
            "direction,base_url",
        ),
    ] {
        let refused = world.client.get_task_diagram(request).await.unwrap_err();
        assert_eq!(reason(&refused), (wanted, field.to_owned()));
    }
}
