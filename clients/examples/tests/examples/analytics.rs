use std::collections::BTreeMap;

use serde_json::{Value, json};
use stepwell_client::{Start, Subscription, v1};
use stepwell_examples::analytics;
use stepwell_tests::{World, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn analytics_end_as_their_inputs_say_and_tell_how_they_got_on() {
    let world = World::start().await;
    let running = super::all_inputs_become_what_they_must(&world, &analytics::EXAMPLE).await;

    // What the first one, where nothing went wrong, and the third, whose warehouse was slow, have published.
    let inputs = analytics::EXAMPLE.inputs().unwrap();
    for (input, attempts) in [(&inputs[0], 1), (&inputs[2], 2)] {
        let task = world.client.task("customer_analytics").namespace("analytics");
        let task = task.context(&input.context).create().await.unwrap();
        world.ended(&task.task_id).await;
        let all = ["data_extraction.*", "pipeline.milestone_reached", "task.completed"];
        let feed = Subscription::new().names(all).tasks([&task.task_id]).from(Start::Earliest);
        let mut feed = world.client.subscribe(feed).await.unwrap();
        let events = until(&mut feed, |event| event.name == "task.completed").await;
        let mut published: BTreeMap<(&str, &str), Vec<Value>> = BTreeMap::new();
        for event in &events {
            if let Some(v1::event::Detail::CustomEvent(custom)) = &event.detail {
                let data = serde_json::from_str(&custom.data).unwrap();
                published.entry((&event.name, &event.step_name)).or_default().push(data);
            }
        }
        let mut expected = BTreeMap::new();
        for (source, records) in [("orders", 6), ("users", 5), ("products", 5)] {
            let step = format!("extract_{source}");
            let started = (1..=attempts).map(|n| json!({"source": source, "attempt": n}));
            expected.insert(("data_extraction.started", step.clone()), started.collect());
            let completed = vec![json!({"source": source, "records": records})];
            expected.insert(("data_extraction.completed", step), completed);
        }
        for (step, data) in [
            (
                "generate_insights",
                r#"{"milestone": "insights_generated", "total_revenue": 829.46}"#,
            ),
            ("update_dashboard", r#"{"milestone": "dashboard_updated"}"#),
        ] {
            let data = vec![serde_json::from_str(data).unwrap()];
            expected.insert(("pipeline.milestone_reached", step.to_owned()), data);
        }
        let published: BTreeMap<_, _> = published
            .into_iter()
            .map(|((name, step), all)| ((name, step.to_owned()), all))
            .collect();
        assert_eq!(published, expected);
    }
    for executor in running {
        executor.stop().await;
    }
}
