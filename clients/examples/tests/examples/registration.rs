use serde_json::json;
use stepwell_client::{Start, Subscription, v1};
use stepwell_examples::registration;
use stepwell_tests::{World, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_end_as_their_inputs_say_whatever_the_services_answer() {
    let world = World::start().await;
    let running = super::all_inputs_become_what_they_must(&world, &registration::EXAMPLE).await;

    // Who does not say how long to wait is given a minute, the welcome half of one.
    for (email, step, seconds) in [
        ("users-busy-once@example.com", "create_user_account", 60),
        ("welcome-busy-once@example.com", "send_welcome_sequence", 30),
    ] {
        let context = json!({"user_info": {"email": email, "name": "Jane Smith", "plan": "pro"}});
        let task = world.client.task("user_registration").namespace("accounts");
        let task_id = task.context(&context).create().await.unwrap().task_id;
        let failures = Subscription::new().names(["step.failed"]).tasks([&task_id]);
        let mut feed = world.client.subscribe(failures.from(Start::Earliest)).await.unwrap();
        let events = until(&mut feed, |event| event.name == "step.failed").await;
        let Some(v1::event::Detail::StepFailed(failed)) = &events[0].detail else {
            panic!("{events:?}")
        };
        assert_eq!((events.len(), events[0].step_name.as_str()), (1, step));
        assert_eq!(failed.error.as_ref().unwrap().error_code, "RATE_LIMITED");
        assert_eq!(failed.backoff_type(), v1::BackoffType::ServerRequested);
        assert_eq!(failed.backoff.unwrap().seconds, seconds);
        let cancel = v1::CancelTaskRequest { task_id, ..v1::CancelTaskRequest::default() };
        world.client.cancel_task(cancel).await.unwrap();
    }
    for executor in running {
        executor.stop().await;
    }
}
