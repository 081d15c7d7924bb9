//! Unary calls: what is repeated, where, when, and when no more.

use std::time::{Duration, Instant};

use stepwell_client::{Addresses, Client, Error, Limits, Refusal, v1::*};
use tokio::net::TcpListener;
use tonic::Status;

use crate::fake::{Fake, client, patient, within};

fn created(request: &CreateTaskRequest) -> CreateTaskResponse {
    let task = Task { task_id: request.task_id.clone(), ..Default::default() };
    CreateTaskResponse { task: Some(task), already_existed: false }
}

#[test]
fn a_client_needs_a_runtime() {
    assert!(matches!(Client::connect(Addresses::default()), Err(Error::NoRuntime)));
}

#[tokio::test]
async fn a_repeated_create_has_the_same_id_so_that_it_makes_one_task() {
    let fake = Fake::start().await;
    let client = fake.client();
    let creating = tokio::spawn(async move {
        client.task("order").namespace("shop").context(&[("a", 1)]).tags(["x"]).create().await
    });
    let first = fake.create().await;
    let (id, timeout) =
        (first.request.task_id.clone(), first.metadata.get("grpc-timeout").cloned());
    assert!(id.len() == 36 && id.as_bytes()[14] == b'7', "{id} is no UUID of version 7");
    assert!(timeout.is_some(), "a call has a deadline");
    first.answer(Err(Status::unavailable("starting")));
    let second = fake.create().await;
    assert_eq!(second.request.task_id, id);
    assert_eq!(second.request.context, r#"[["a",1]]"#);
    let answer = created(&second.request);
    second.answer(Ok(answer));
    assert_eq!(creating.await.unwrap().unwrap().task_id, id);
}

#[tokio::test]
async fn a_call_goes_on_at_the_next_address() {
    let fake = Fake::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let client = client(&[&gone, &fake.address]);
    for _ in 0..4 {
        let creating = tokio::spawn(client.task("order").create());
        let call = fake.create().await;
        let answer = created(&call.request);
        call.answer(Ok(answer));
        creating.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_call_is_repeated_no_sooner_than_the_service_asks() {
    let fake = Fake::start().await;
    let wait = Duration::from_millis(400);
    let creating = tokio::spawn(fake.client().task("order").create());
    let refusal = Refusal::new(ErrorReason::Overloaded, "full").retry_after(wait);
    let first = fake.create().await;
    let start = Instant::now();
    first.answer(Err(refusal.into()));
    let second = fake.create().await;
    assert!(start.elapsed() >= wait, "repeated after {:?}", start.elapsed());
    let answer = created(&second.request);
    second.answer(Ok(answer));
    creating.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_is_not_repeated_and_says_which_field_is_wrong() {
    let fake = Fake::start().await;
    let creating = tokio::spawn(fake.client().task("").create());
    fake.create().await.answer(Err(Refusal::field("definition_name", "is empty").into()));
    let error = creating.await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::InvalidRequest));
    let Error::Refused(refusal) = error else { panic!("{error:?}") };
    assert_eq!(refusal.violations, [("definition_name".into(), "is empty".into())]);
    assert!(fake.is_idle().await);
}

#[tokio::test]
async fn what_the_service_does_not_ask_to_repeat_is_not_repeated() {
    let fake = Fake::start().await;
    for status in [Status::internal("broken"), Status::resource_exhausted("full")] {
        let code = status.code();
        let creating = tokio::spawn(fake.client().task("order").create());
        fake.create().await.answer(Err(status));
        let error = creating.await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::Status(s) if s.code() == code), "{error:?}");
    }
    assert!(fake.is_idle().await);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let fake = Fake::start().await;
    let limits = Limits { attempts: 3, call_timeout: Duration::MAX, ..patient() };
    let creating = tokio::spawn(fake.client().with_limits(limits).task("order").create());
    for _ in 0..3 {
        fake.create().await.answer(Err(Status::unavailable("no")));
    }
    assert!(creating.await.unwrap().is_err());
    assert!(fake.is_idle().await);
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_given_up() {
    let fake = Fake::start().await;
    let limits = Limits { attempts: 2, attempt_timeout: Duration::from_millis(500), ..patient() };
    let creating = tokio::spawn(fake.client().with_limits(limits).task("order").create());
    let _held = (fake.create().await, fake.create().await);
    let error = within("the error", creating).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::NoAnswer(_)), "{error:?}");
}

#[tokio::test]
async fn the_time_for_a_whole_call_is_bounded() {
    let fake = Fake::start().await;
    let limits = Limits { call_timeout: Duration::from_secs(30), ..patient() };
    let creating = tokio::spawn(fake.client().with_limits(limits).task("order").create());
    let refusal = Refusal::new(ErrorReason::Overloaded, "full");
    fake.create().await.answer(Err(refusal.retry_after(Duration::from_secs(60)).into()));
    let error = within("the error", creating).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::Overloaded));
}

#[tokio::test]
async fn waiting_goes_on_until_the_task_has_ended() {
    let fake = Fake::start().await;
    let client = fake.client();
    let waiting =
        tokio::spawn(async move { client.wait_task("task", Duration::from_secs(100)).await });
    let task = |state: State| {
        let task = Task { state: state.into(), ..Default::default() };
        Ok(WaitTaskResponse { task: Some(task) })
    };
    let first = fake.wait().await;
    assert_eq!(first.request.timeout.unwrap().seconds, 30);
    first.answer(task(State::InProgress));
    fake.wait().await.answer(Err(Status::unavailable("restarting")));
    fake.wait().await.answer(task(State::Error));
    assert_eq!(waiting.await.unwrap().unwrap().state(), State::Error);
}

#[tokio::test]
async fn waiting_without_a_time_waits_until_the_end() {
    let fake = Fake::start().await;
    let client = fake.client();
    let waiting = tokio::spawn(async move { client.wait_task("task", None).await });
    for state in [State::Pending, State::InProgress, State::Complete] {
        let call = fake.wait().await;
        assert_eq!(call.request.timeout.unwrap().seconds, 30);
        let task = Task { state: state.into(), ..Default::default() };
        call.answer(Ok(WaitTaskResponse { task: Some(task) }));
    }
    assert_eq!(waiting.await.unwrap().unwrap().state(), State::Complete);
}

#[tokio::test]
async fn waiting_ends_with_its_time() {
    let fake = Fake::start().await;
    let client = fake.client();
    let waiting = tokio::spawn(async move { client.wait_task("task", Duration::ZERO).await });
    let task = Task { state: State::Pending.into(), ..Default::default() };
    fake.wait().await.answer(Ok(WaitTaskResponse { task: Some(task) }));
    assert_eq!(waiting.await.unwrap().unwrap().state(), State::Pending);
}

#[tokio::test]
async fn what_is_no_json_is_not_sent() {
    let fake = Fake::start().await;
    let keys = std::collections::HashMap::from([(vec![1], 1)]);
    let error = fake.client().task("order").context(&keys).create().await.unwrap_err();
    assert!(matches!(error, Error::Json(_)), "{error:?}");
    assert!(fake.is_idle().await);
}
