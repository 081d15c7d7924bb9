//! Executors whose streams break, fall silent, or end because a node goes down.

use std::time::Duration;

use stepwell_client::{
    Error, Executor, Refusal,
    v1::{outcome::Kind, *},
};
use tonic::Status;

use crate::{
    executor::{Running, gated, gated_at},
    fake::{Fake, client, ids, result_of, within},
};

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

#[tokio::test]
async fn an_executor_comes_back_with_what_it_holds_and_reports_until_it_is_acknowledged() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 2);
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("quick", &["done", "acked"]).await;
    assert_eq!(ids(&work.outcomes(2).await), ["acked", "done"]);
    work.lease("gated", &["run", "run2", "waits"]).await;
    gate.starts(2).await;
    work.ack(&["acked"]).await;
    work.cut(Status::unavailable("bye")).await;

    let mut work = fake.work().await;
    assert_eq!(sorted(work.hello().await.held_leases), ["done", "run", "run2", "waits"]);
    work.welcome(&["done", "run", "run2", "waits"], &[]).await;
    assert_eq!(ids(&work.outcomes(1).await), ["done"]);
    gate.let_go(1);
    work.outcomes(1).await;
    // Not acknowledged, so both are told again on the next stream, and once only.
    work.cut(Status::unavailable("bye")).await;

    let mut work = fake.work().await;
    assert_eq!(work.hello().await.held_leases.len(), 4);
    work.welcome(&["done", "run", "run2", "waits"], &[]).await;
    assert_eq!(work.outcomes(2).await.len(), 2);
    gate.let_go(2);
    assert_eq!(work.outcomes(2).await.len(), 2);
    work.ack(&["done", "run", "run2", "waits"]).await;
    running.stop();
    assert!(work.drained().await.is_empty());
    drop(work);
    let report = running.end().await.unwrap();
    assert_eq!((report.sessions, report.completed, report.unacknowledged), (3, 5, 0));
}

#[tokio::test]
async fn a_lost_lease_is_stopped_and_forgotten_but_its_outcome_is_asked_about() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 2);
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("quick", &["done"]).await;
    work.outcomes(1).await;
    work.lease("gated", &["lost", "kept", "waits"]).await;
    gate.starts(2).await;
    work.cut(Status::unavailable("bye")).await;

    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&["kept"], &["lost", "done", "waits"]).await;
    // It may have been taken on the stream before: the answer to a repeat says so.
    assert_eq!(ids(&work.outcomes(1).await), ["done"]);
    work.ack(&["done"]).await;
    assert_eq!(within("the drop", gate.dropped.recv()).await.unwrap(), "lost");
    gate.let_go(1);
    let outcomes = work.outcomes(1).await;
    assert_eq!((ids(&outcomes), result_of(&outcomes[0])), (vec!["kept"], r#""kept""#));
    work.ack(&["kept"]).await;
    running.stop();
    assert!(work.drained().await.is_empty());
    drop(work);
    let report = running.end().await.unwrap();
    assert_eq!((report.voided, report.completed), (2, 2));
}

#[tokio::test]
async fn a_refused_outcome_is_dropped_and_one_that_may_pass_is_sent_again() {
    let fake = Fake::start().await;
    let (executor, _gate) = gated(&fake, 2);
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome_every(Duration::from_millis(500), &[], &[]).await;
    work.lease("quick", &["late", "early"]).await;
    work.outcomes(2).await;
    work.refuse("late", ErrorReason::LeaseLost).await;
    work.refuse("early", ErrorReason::DatabaseUnavailable).await;
    assert_eq!(ids(&work.outcomes(1).await), ["early"]);
    work.ack(&["early"]).await;
    running.stop();
    assert!(work.drained().await.is_empty());
    drop(work);
    let report = running.end().await.unwrap();
    assert_eq!((report.refused, report.completed, report.unacknowledged), (1, 1, 0));
}

#[tokio::test]
async fn a_silent_stream_is_left_after_signs_of_life() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 2);
    let _running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome_every(Duration::from_millis(250), &[], &[]).await;
    work.lease("gated", &["a"]).await;
    gate.starts(1).await;
    assert_eq!(work.request().await, Some(WorkRequest::default()));
    let mut next = fake.work().await;
    assert_eq!(next.hello().await.held_leases, ["a"]);
    assert!(work.ended().await.is_empty());
}

#[tokio::test]
async fn a_stream_that_is_not_welcomed_is_left() {
    let fake = Fake::start().await;
    let (executor, _gate) = gated(&fake, 2);
    let _running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.lease("quick", &["a"]).await;
    let mut next = fake.work().await;
    assert!(next.hello().await.held_leases.is_empty());
    next.welcome(&[], &[]).await;
    next.lease("quick", &["b"]).await;
    assert_eq!(ids(&next.outcomes(1).await), ["b"]);
}

#[tokio::test]
async fn an_executor_leaves_a_node_that_goes_down_without_losing_what_it_holds() {
    let (first, second) = (Fake::start().await, Fake::start().await);
    let (executor, mut gate) = gated_at(&client(&[&first.address, &second.address]), 3);
    let _running = Running::new(executor);
    // Whichever it begins with.
    let (old_node, mut old, new_node) = tokio::select! {
        work = first.work() => (&first, work, &second),
        work = second.work() => (&second, work, &first),
    };
    old.hello().await;
    old.welcome(&[], &[]).await;
    old.lease("gated", &["a", "b", "c"]).await;
    gate.starts(3).await;
    old.drain().await;
    let mut new = new_node.work().await;
    assert_eq!(sorted(new.hello().await.held_leases), ["a", "b", "c"]);
    // Until it is welcomed the old stream is good for outcomes, acks and cancels.
    gate.let_go(1);
    let outcomes = old.outcomes(1).await;
    let done = ids(&outcomes)[0];
    old.ack(&[done]).await;
    gate.let_go(1);
    let outcomes = old.outcomes(1).await;
    let unanswered = ids(&outcomes)[0];
    new.welcome(&["a", "b", "c"].map(|l| if l == done { "x" } else { l }), &[done]).await;
    // What the new node adopted and ended meanwhile goes back, or it would use a slot there.
    let outcomes = new.outcomes(2).await;
    let (reports, returned): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|o| !matches!(o.kind, Some(Kind::HandBack(_))));
    assert_eq!((ids(&reports), ids(&returned)), (vec![unanswered], vec!["x"]));
    gate.let_go(1);
    assert_eq!(new.outcomes(1).await.len(), 1);
    assert!(old.ended().await.is_empty());
    assert!(old_node.is_idle().await);
}

#[tokio::test]
async fn a_hello_that_is_refused_ends_the_executor() {
    let fake = Fake::start().await;
    let (executor, _gate) = gated(&fake, 2);
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.cut(Refusal::field("hello.handlers[0].name", "is malformed")).await;
    let error = running.end().await.unwrap_err();
    let Error::Refused(refusal) = error else { panic!("{error:?}") };
    assert_eq!(refusal.violations[0].0, "hello.handlers[0].name");
}

#[tokio::test]
async fn a_node_that_refuses_for_now_is_asked_again_no_sooner_than_it_says() {
    let fake = Fake::start().await;
    let executor = Executor::new(&fake.client(), "test").handler("a", |_| async { Ok(()) });
    let _running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    let wait = Duration::from_millis(300);
    let start = std::time::Instant::now();
    work.cut(Refusal::new(ErrorReason::Overloaded, "full").retry_after(wait)).await;
    fake.work().await.hello().await;
    assert!(start.elapsed() >= wait, "came back after {:?}", start.elapsed());
}
