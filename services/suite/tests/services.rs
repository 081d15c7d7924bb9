//! A whole suite: the real program, its services as processes.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
};

use nix::sys::signal::Signal;
use stepwell_suite::{Error, Kind, Nodes, PostgresOptions, Suite, SuiteOptions, built_stepwell};

fn options() -> SuiteOptions {
    let postgres = PostgresOptions { fsync: false, ..PostgresOptions::default() };
    SuiteOptions { postgres, ..SuiteOptions::new(built_stepwell().unwrap()) }
}

/// What a service says about itself.
fn ready(address: &str) -> String {
    let host = address.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn a_suite_serves_and_goes() {
    let nodes = Nodes { task: 1, step: 2, event: 1 };
    let mut suite = Suite::start(SuiteOptions { nodes, ..options() }).await.unwrap();
    let addresses = suite.addresses();
    assert_eq!((addresses.task.len(), addresses.step.len(), addresses.event.len()), (1, 2, 1));
    let mut all =
        [addresses.task.clone(), addresses.step.clone(), addresses.event.clone()].concat();
    for address in &all {
        assert!(ready(address).starts_with("HTTP/1.1 200"), "{address}");
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4, "each has an address of its own");

    let step = suite.process(Kind::Step, 1).unwrap().clone();
    let broke = suite.any_ended();
    step.kill(Signal::SIGKILL).await.unwrap();
    assert_eq!(step.wait().await.signal, Some(Signal::SIGKILL as i32));
    assert_eq!(broke.await, "step-service");
    suite.restart(Kind::Step, 1).await.unwrap();
    assert_eq!(suite.addresses(), addresses, "it is where it was");
    assert!(ready(&addresses.step[1]).starts_with("HTTP/1.1 200"));

    // Another one over the same database, as on another machine.
    let second = SuiteOptions { database_url: Some(suite.database_url().to_owned()), ..options() };
    let second = Suite::start(second).await.unwrap();
    assert!(second.postgres().is_none());
    assert!(ready(&second.addresses().task[0]).starts_with("HTTP/1.1 200"));
    second.stop().await.unwrap();

    let task = suite.process(Kind::Task, 0).unwrap().clone();
    let folder = suite.folder().to_owned();
    suite.stop().await.unwrap();
    assert_eq!(task.ended().unwrap().code, Some(0), "it was stopped in peace");
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_service_that_does_not_start_shows_its_log() {
    let args = vec!["--worker-threads".to_owned(), "0".to_owned()];
    let Err(Error::Failed(said)) = Suite::start(SuiteOptions { args, ..options() }).await else {
        panic!("nothing runs on no threads")
    };
    assert!(said.starts_with("task-service did not start"), "{said}");
    assert!(said.contains("--worker-threads"), "{said}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_an_error() {
    let nowhere = "postgres://stepwell@localhost/db?host=%2Fnowhere".to_owned();
    let options = SuiteOptions { database_url: Some(nowhere), ..options() };
    assert!(Suite::start(options).await.is_err());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error() {
    let executable = PathBuf::from("/nowhere/stepwell");
    let Err(refused) = Suite::start(SuiteOptions { executable, ..options() }).await else {
        panic!("there is no such program")
    };
    assert!(refused.to_string().contains("/nowhere/stepwell"), "{refused}");
}
