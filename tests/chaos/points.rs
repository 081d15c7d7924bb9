//! A step-service dies at each point where something is half done, and an event's reader between
//! its handling and its cursor.

use std::time::Duration;

use stepwell_suite::{Kind, Nodes};
use stepwell_tests::short_terms;

use crate::stage::{Stage, seed};

/// Dies at this point, after it was passed a few times, and comes back without it.
async fn dies_at(point: &str) {
    let nodes = Nodes { task: 1, step: 1, event: 1 };
    let mut env = short_terms();
    env.push(("FAILPOINTS".into(), format!("{point}=5*off->return")));
    let mut stage = Stage::with_env(seed(), nodes, env).await;
    let executor = stage.enter("executor-0", &["executor", "--slots", "10"]).await;
    let producer = stage.enter("producer", &["producer", "--tasks", "60"]).await;
    let process = stage.suite.process(Kind::Step, 0).unwrap().clone();
    let died = tokio::time::timeout(Duration::from_secs(30), process.wait()).await;
    assert_eq!(died.unwrap().signal, Some(6), "it dies by its own hand");
    stage.suite.set_env(short_terms());
    stage.suite.restart(Kind::Step, 0).await.unwrap();
    stage.ended(producer, Duration::from_secs(60)).await;
    stage.at_rest(Duration::from_secs(60)).await;
    assert!(stage.process(executor).ended().is_none());
    stage.close().await;
    stage.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_claim_before_sending() {
    dies_at("claim::unsent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sending_leases() {
    dies_at("lease::sent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_commit_of_outcomes() {
    dies_at("settle::uncommitted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_commit_of_outcomes() {
    dies_at("settle::committed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_the_commit_and_its_acknowledgement() {
    dies_at("settle::unacknowledged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_between_its_events_and_its_cursor() {
    let nodes = Nodes { task: 1, step: 1, event: 1 };
    let mut stage = Stage::with_env(seed(), nodes, short_terms()).await;
    stage.enter("executor-0", &["executor"]).await;
    let cursor = stage.histories().join("cursor-0");
    let args = ["subscriber", "--cursor", cursor.to_str().unwrap()];
    let fragile = [("ACTOR_DIES_AT_SAVE", "3")];
    let reader = stage.enter_with("subscriber-0", &args, &fragile).await;
    let producer = ["producer", "--tasks", "100", "--every-us", "50000"];
    let producer = stage.enter("producer", &producer).await;
    for life in 1..=4 {
        let process = stage.process(reader).clone();
        let died = tokio::time::timeout(Duration::from_secs(30), process.wait()).await;
        assert_eq!(died.unwrap().signal, Some(6), "life {life}");
        if life < 4 {
            stage.revive_with(reader, &fragile).await;
        }
    }
    stage.revive(reader).await;
    stage.ended(producer, Duration::from_secs(60)).await;
    stage.at_rest(Duration::from_secs(60)).await;
    stage.close().await;
    stage.judge().await;
}
