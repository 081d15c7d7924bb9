//! The whole, and how it went, as services and the command tell it.

use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, v1};
use stepwell_tests::World;

use super::{super::cli::stepwell, reason};

const TWO: &str = "
name: two
steps:
  - {name: first, retry: {max_attempts: 1}}
  - {name: second, depends_on: [first]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_and_how_it_went_are_told_by_the_services_and_fit_into_a_hundred_columns() {
    let world = World::start().await;
    world.define(TWO).await;
    world.define("{name: idle, steps: [{name: nobody}]}").await;
    let executor = Executor::new(&world.client, "e")
        .handler("first", async |step: stepwell_client::StepContext| {
            let context: Value = step.input()?;
            match context["fail"].as_bool() {
                Some(true) => Err(HandlerError::new("Refused", "by the test").permanent()),
                _ => Ok(1),
            }
        })
        .handler("second", async |_| Ok::<_, HandlerError>(2));
    let running = world.run(executor);
    let mut tasks = Vec::new();
    for n in 0..6 {
        tasks.push(world.create("two", &json!({"fail": n < 2})).await.task_id);
    }
    for task_id in &tasks {
        world.client.wait_task(task_id, stepwell_tests::SOON).await.unwrap();
    }
    let waiting = world.create("idle", &json!({})).await.task_id;
    let request = v1::GetOverviewRequest::default();
    let of = world.client.get_overview(request).await.unwrap().overview.unwrap();
    let all = of.all.as_ref().unwrap();
    assert_eq!((all.pending_tasks, all.complete_tasks, all.error_tasks), (1, 4, 2));
    assert_eq!((all.healthy_tasks, of.open_complete, of.ended_complete), (1, true, true));
    let named: Vec<&str> = of.definitions.iter().map(|of| of.definition_name.as_str()).collect();
    assert_eq!(named, ["idle", "two"], "those with open tasks first");
    assert_eq!(of.ready.len(), 1);
    assert_eq!(of.ready[0].oldest_step_id, format!("{waiting}.0"));
    assert_eq!((of.ready[0].handler.as_str(), of.ready[0].steps), ("nobody", 1));

    let request = v1::GetPerformanceRequest::default();
    let went = world.client.get_performance(request.clone()).await.unwrap().performance.unwrap();
    let all = went.all.as_ref().unwrap();
    assert_eq!((all.created, all.completed, all.failed), (7, 4, 2));
    assert!((all.error_rate.unwrap() - 2.0 / 6.0).abs() < 1e-9);
    assert_eq!(all.duration.as_ref().unwrap().measured, 6);
    let step = went.steps.iter().find(|step| step.step_name == "first").unwrap();
    assert_eq!((step.started, step.completed, step.failed, step.retried), (6, 4, 2, 0));
    assert_eq!(step.queue_wait.as_ref().unwrap().measured, 6);
    let wanted = v1::ErrorClassCount { error_class: "Refused".into(), count: 2, final_count: 2 };
    assert_eq!(went.errors, [wanted]);
    assert_eq!((went.slowest_tasks.len(), went.slowest_executions.len()), (6, 10));

    // Narrow enough for a terminal, and for programs as they are.
    for args in [&["overview"][..], &["performance", "--window", "10m"]] {
        let (code, out, err) = stepwell(&world, args, "");
        assert_eq!(code, 0, "{err}");
        for line in out.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        assert!(out.contains("default/two 0.1.0"), "{out}");
        let (_, out, _) = stepwell(&world, &[args, &["-o", "json"]].concat(), "");
        serde_json::from_str::<Value>(&out).unwrap();
    }
    let (_, out, _) = stepwell(&world, &["overview"], "");
    assert!(out.contains("no executor"), "{out}");
    running.stop().await;

    // Wrong questions.
    let until = Some(prost_types::Timestamp { seconds: -1, nanos: 0 });
    let refused =
        world.client.get_performance(v1::GetPerformanceRequest { until, ..request }).await;
    let wanted = (v1::ErrorReason::InvalidRequest, "until".to_owned());
    assert_eq!(reason(&refused.unwrap_err()), wanted);
    let namespace = "a b".to_owned();
    let refused =
        world.client.get_overview(v1::GetOverviewRequest { namespace, window: None }).await;
    let wanted = (v1::ErrorReason::InvalidRequest, "namespace".to_owned());
    assert_eq!(reason(&refused.unwrap_err()), wanted);
}
