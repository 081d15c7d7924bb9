//! Waiting for tasks, cancelling them, and reading what their steps made.

use std::{collections::HashMap, time::Duration};

use stepwell_proto::v1::{
    CancelTaskRequest, CancelTaskResponse, ErrorReason, State, Task, WaitTaskRequest,
};
use stepwell_store::{ChildSlots, Ending, Report, Slots, Wanted, Writer};

use crate::{PAIR, World, answer, new_id, request};

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

async fn wait(
    world: &World,
    task_id: &str,
    timeout: Duration,
) -> Result<Task, stepwell_proto::refusal::Refusal> {
    let timeout = Some(timeout.try_into().unwrap());
    let request = WaitTaskRequest { task_id: task_id.into(), timeout };
    Ok(answer(world.client().wait_task(request).await)?.task.unwrap())
}

async fn cancel(
    world: &World,
    task_id: &str,
) -> Result<CancelTaskResponse, stepwell_proto::refusal::Refusal> {
    let request = CancelTaskRequest {
        task_id: task_id.into(),
        reason: "no longer wanted".into(),
        ..CancelTaskRequest::default()
    };
    answer(world.client().cancel_task(request).await)
}

/// Runs steps of `pair` by the verbs.
struct Runner {
    writer: Writer,
    node: i32,
    queues: Vec<i32>,
}

impl Runner {
    async fn new(world: &World) -> Self {
        let (namespace, name) = ("default".to_owned(), "pair".to_owned());
        let wanted = Wanted { namespace, name, version: None };
        let found = world.store.find_definitions(&[wanted]).await.unwrap().remove(0).unwrap();
        let (writer, node) = (
            world.store.writer().await.unwrap(),
            world.store.register_node(Duration::from_secs(300)).await.unwrap(),
        );
        Self { writer, node, queues: found.queues.clone() }
    }

    /// Leases the next step of that number and ends it.
    async fn end(&mut self, step: usize, ending: Ending, text: &str) {
        let mut slots = Slots::default();
        slots.push(self.queues[step], [1]);
        let claimed = self.writer.claim(&slots, &HashMap::new(), self.node).await.unwrap();
        let lease = claimed.leases[0];
        let report = Report {
            step: lease.step,
            token: lease.token,
            ending,
            text: text.into(),
            events: Vec::new(),
        };
        let settled =
            self.writer.settle(&[report], &ChildSlots::default(), self.node, None).await.unwrap();
        assert_eq!(settled.accepted, [true]);
    }
}

#[tokio::test]
async fn waiting_ends_with_the_task_or_with_the_time() {
    let world = World::new().await;
    world.register(PAIR).await;
    let (task, _) = world.create(request("{}")).await.unwrap();
    assert_eq!(wait(&world, &task.task_id, NO_WAIT).await.unwrap().state(), State::Pending);
    let short = Duration::from_millis(20);
    assert_eq!(wait(&world, &task.task_id, short).await.unwrap().state(), State::Pending);

    let mut runner = Runner::new(&world).await;
    let (waited, ()) = tokio::join!(wait(&world, &task.task_id, LONG), async {
        runner.end(0, Ending::Complete, r#"{"a": 1}"#).await;
        runner.end(1, Ending::Complete, "null").await;
    });
    let waited = waited.unwrap();
    assert_eq!(waited.state(), State::Complete);
    assert!(waited.end_time.is_some() && waited.steps.is_empty());
    assert_eq!(wait(&world, &task.task_id, LONG).await.unwrap(), waited);
}

#[tokio::test]
async fn a_wait_that_cannot_be_is_refused() {
    let world = World::new().await;
    let unknown = wait(&world, &new_id(), LONG).await.unwrap_err();
    assert_eq!(unknown.reason, ErrorReason::TaskNotFound);
    let too_long = wait(&world, &new_id(), Duration::from_secs(61)).await.unwrap_err();
    assert_eq!(too_long.violations[0].0, "timeout");
    assert_eq!(wait(&world, "7", LONG).await.unwrap_err().violations[0].0, "task_id");
}

#[tokio::test]
async fn a_wait_ends_when_the_service_goes_down() {
    let world = World::new().await;
    world.register(PAIR).await;
    let (task, _) = world.create(request("{}")).await.unwrap();
    let (waited, ()) = tokio::join!(wait(&world, &task.task_id, LONG), async {
        // The first wait of the same task has come back, so the other one is under way.
        wait(&world, &task.task_id, Duration::from_millis(50)).await.unwrap();
        world.shutdown.begin();
    });
    assert_eq!(waited.unwrap_err().reason, ErrorReason::ShuttingDown);
}

#[tokio::test]
async fn cancelling_ends_the_task_its_steps_and_every_wait() {
    let world = World::new().await;
    world.register(PAIR).await;
    let (task, _) = world.create(request("{}")).await.unwrap();
    let waits = (0..20).map(|_| wait(&world, &task.task_id, LONG));
    let (waited, cancelled) =
        tokio::join!(futures::future::join_all(waits), cancel(&world, &task.task_id));
    let cancelled = cancelled.unwrap();
    assert!(!cancelled.already_in_state);
    assert_eq!(cancelled.task.as_ref().unwrap().state(), State::Cancelled);
    for waited in waited {
        assert_eq!(waited.unwrap().state(), State::Cancelled);
    }
    let read = world.get(&task.task_id).await.unwrap();
    assert!(read.steps.iter().all(|step| step.state() == State::Cancelled));

    let again = cancel(&world, &task.task_id).await.unwrap();
    assert!(again.already_in_state);
    assert_eq!(again.task, cancelled.task);
    let unknown = cancel(&world, &new_id()).await.unwrap_err();
    assert_eq!(unknown.reason, ErrorReason::TaskNotFound);
}

#[tokio::test]
async fn a_task_in_error_can_be_cancelled_and_a_complete_one_cannot() {
    let world = World::new().await;
    world.register(PAIR).await;
    let mut runner = Runner::new(&world).await;
    let (failed, _) = world.create(request("{}")).await.unwrap();
    let failure = stepwell_store::StoredFailure {
        error_class: "Declined".into(),
        message: "no".into(),
        ..Default::default()
    };
    runner.end(0, Ending::Fail { wait_ms: None }, &failure.to_text()).await;
    let read = world.get(&failed.task_id).await.unwrap();
    assert_eq!((read.state(), read.steps[0].state()), (State::Error, State::Error));
    assert_eq!(read.steps[0].last_error.as_ref().unwrap().error_class, "Declined");
    assert!(!cancel(&world, &failed.task_id).await.unwrap().already_in_state);

    let (done, _) = world.create(request("{}")).await.unwrap();
    runner.end(0, Ending::Complete, "1").await;
    runner.end(1, Ending::Complete, "2").await;
    let refusal = cancel(&world, &done.task_id).await.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::IllegalTransition);
    assert_eq!(refusal.metadata["from_state"], "complete");
    assert_eq!(refusal.metadata["allowed_from"], "pending, in_progress, error");
    assert!(refusal.precondition.is_some());
    assert_eq!(world.get(&done.task_id).await.unwrap().state(), State::Complete);
}

#[tokio::test]
async fn results_come_with_their_steps_unless_they_are_large() {
    let world = World::new().await;
    world.register(PAIR).await;
    let mut runner = Runner::new(&world).await;
    let (task, _) = world.create(request("{}")).await.unwrap();
    let large = format!("\"{}\"", "x".repeat(65 << 10));
    runner.end(0, Ending::Complete, r#"{"total": 12345678901234567890.10}"#).await;
    runner.end(1, Ending::Complete, &large).await;
    let read = world.get(&task.task_id).await.unwrap();
    let [first, second] = read.steps.as_slice() else { panic!("two steps") };
    assert_eq!(first.result, r#"{"total": 12345678901234567890.10}"#);
    assert_eq!((second.result.as_str(), second.result_omitted), ("", true));
    assert_eq!((first.attempt, second.waiting_on), (1, 0));
    assert!(first.start_time.is_some());

    let plain =
        stepwell_proto::v1::GetTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
    let plain = answer(world.client().get_task(plain).await).unwrap().task.unwrap();
    assert!(plain.steps.iter().all(|step| step.result.is_empty() && !step.result_omitted));
}
