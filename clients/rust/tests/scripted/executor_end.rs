//! Executors that are told to stop.

use std::time::Duration;

use stepwell_client::v1::outcome::Kind;
use tonic::Status;

use crate::{
    executor::{Running, gated},
    fake::{Fake, failure_of, ids},
};

#[tokio::test]
async fn a_draining_executor_hands_back_what_it_did_not_start_and_finishes_the_rest() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 1);
    let running = Running::new(executor.grace(Duration::MAX));
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["runs", "waits"]).await;
    gate.starts(1).await;
    running.stop();
    let mut outcomes = work.drained().await;
    work.lease("gated", &["runs", "late"]).await;
    outcomes.extend(work.outcomes(2 - outcomes.len()).await);
    assert_eq!(ids(&outcomes), ["late", "waits"]);
    assert!(outcomes.iter().all(|o| matches!(o.kind, Some(Kind::HandBack(_)))));
    gate.let_go(1);
    assert_eq!(ids(&work.outcomes(1).await), ["runs"]);
    work.ack(&["late", "waits"]).await;
    work.ack(&["runs"]).await;
    assert!(work.ended().await.is_empty());
    drop(work);
    let report = running.end().await.unwrap();
    assert_eq!((report.handed_back, report.completed, report.unacknowledged), (2, 1, 0));
}

#[tokio::test]
async fn what_is_not_done_within_the_grace_period_fails_to_be_tried_again() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 1);
    let running = Running::new(executor.grace(Duration::from_millis(50)));
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["a"]).await;
    gate.starts(1).await;
    running.stop();
    work.drained().await;
    let outcomes = work.outcomes(1).await;
    let failure = failure_of(&outcomes[0]);
    assert_eq!((failure.error_class.as_str(), failure.retryable), ("ExecutorShutdown", true));
    assert_eq!(gate.dropped.recv().await.unwrap(), "a");
    work.ack(&["a"]).await;
    drop(work);
    assert_eq!(running.end().await.unwrap().failed, 1);
}

#[tokio::test]
async fn a_draining_executor_whose_stream_breaks_comes_back_to_report() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 1);
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["a"]).await;
    gate.starts(1).await;
    running.stop();
    work.drained().await;
    work.cut(Status::unavailable("bye")).await;
    let mut work = fake.work().await;
    let hello = work.hello().await;
    assert_eq!((hello.slots, hello.held_leases), (0, vec!["a".to_owned()]));
    gate.let_go(1);
    work.welcome(&["a"], &[]).await;
    let mut outcomes = work.drained().await;
    outcomes.extend(work.outcomes(1 - outcomes.len()).await);
    work.ack(&["a"]).await;
    drop(work);
    assert_eq!(running.end().await.unwrap().completed, 1);
}

#[tokio::test]
async fn an_executor_that_holds_nothing_ends_at_once_even_without_a_service() {
    let fake = Fake::start().await;
    let (executor, _gate) = gated(&fake, 1);
    drop(fake);
    let running = Running::new(executor);
    running.stop();
    assert_eq!(running.end().await.unwrap().sessions, 0);
}

#[tokio::test]
async fn an_executor_that_the_service_stops_finishes_what_it_runs_however_long_and_comes_no_more() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 1);
    let running = Running::new(executor.grace(Duration::ZERO));
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["runs", "waits"]).await;
    gate.starts(1).await;
    work.stop().await;
    let mut outcomes = work.drained().await;
    outcomes.extend(work.outcomes(1 - outcomes.len()).await);
    assert_eq!(ids(&outcomes), ["waits"], "what was not started goes back");
    work.ack(&["waits"]).await;
    // Its grace period is for its own shutdown.
    gate.let_go(1);
    assert_eq!(ids(&work.outcomes(1).await), ["runs"]);
    work.ack(&["runs"]).await;
    assert!(work.ended().await.is_empty());
    drop(work);
    let report = running.end().await.unwrap();
    assert_eq!((report.sessions, report.completed, report.handed_back), (1, 1, 1));
    assert!(report.stopped && fake.is_idle().await);
}

#[tokio::test]
async fn an_executor_that_is_to_stop_moves_from_a_node_that_goes_down_and_stops_there() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 1);
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["a"]).await;
    gate.starts(1).await;
    work.stop().await;
    work.drained().await;
    work.drain().await;
    let mut next = fake.work().await;
    let hello = next.hello().await;
    assert_eq!((hello.slots, hello.held_leases), (0, vec!["a".to_owned()]));
    next.welcome(&["a"], &[]).await;
    next.drained().await;
    gate.let_go(1);
    assert_eq!(ids(&next.outcomes(1).await), ["a"]);
    next.ack(&["a"]).await;
    drop((work, next));
    let report = running.end().await.unwrap();
    assert_eq!((report.completed, report.stopped), (1, true));
}

#[tokio::test]
async fn the_grace_period_counts_for_one_that_is_to_stop_and_is_shut_down_too() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 1);
    let running = Running::new(executor.grace(Duration::from_millis(50)));
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["a"]).await;
    gate.starts(1).await;
    work.stop().await;
    work.drained().await;
    running.stop();
    assert_eq!(failure_of(&work.outcomes(1).await[0]).error_class, "ExecutorShutdown");
    work.ack(&["a"]).await;
    drop(work);
    assert_eq!(running.end().await.unwrap().failed, 1);
}
