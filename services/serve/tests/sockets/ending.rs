//! How it ends.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use stepwell_serve::Options;
use tonic::service::Routes;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{
    Running,
    raw::{Peer, SETTINGS},
    soon,
};

/// Exit codes cannot be compared, only shown.
fn assert_code(code: ExitCode, expected: ExitCode) {
    assert_eq!(format!("{code:?}"), format!("{expected:?}"));
}

#[tokio::test]
async fn those_who_watch_are_told_first_and_hold_nobody_up() {
    let running = Running::start().await;
    let mut watches = Vec::new();
    for name in ["", "stepwell.v1.TaskService"] {
        let request = HealthCheckRequest { service: name.to_owned() };
        let mut watch = running.health().await.watch(request).await.unwrap().into_inner();
        let first = watch.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    running.service.shutdown().begin();
    for watch in &mut watches {
        let last = soon(watch.message()).await.unwrap().unwrap();
        assert_eq!(last.status(), ServingStatus::NotServing);
        assert!(soon(watch.message()).await.unwrap().is_none(), "the stream ends in peace");
    }
    assert_code(running.ended().await, ExitCode::SUCCESS);
}

#[tokio::test]
async fn a_peer_that_says_nothing_cannot_hold_it_up_for_longer_than_the_grace() {
    let options = Options { grace: 1, ..Options::default() };
    let running = Running::with(options, Routes::default()).await;
    let mut peer = Peer::connect(&running.address).await;
    assert!(peer.next(SETTINGS).await.is_some(), "it is being served");
    let begun = Instant::now();
    // Whether the peer counts as somebody who did not end depends on the library underneath.
    running.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn it_waits_for_its_tasks() {
    let running = Running::start().await;
    let (shutdown, done) = (running.service.shutdown().clone(), Arc::new(AtomicBool::new(false)));
    let last = Arc::clone(&done);
    running.service.spawn_loop("writes", async move {
        shutdown.wait().await;
        // What remains to be done takes a few turns.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        last.store(true, Ordering::Relaxed);
    });
    assert_code(running.stop().await, ExitCode::SUCCESS);
    assert!(done.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_end_is_left_behind_and_that_is_a_failure() {
    let running = Running::start().await;
    running.service.spawn("stuck", std::future::pending());
    running.service.shutdown().begin();
    // Longer than the default grace, on a clock that jumps.
    let code = tokio::time::timeout(Duration::from_secs(60), running.served).await;
    assert_code(code.unwrap().unwrap(), ExitCode::FAILURE);
}

#[tokio::test]
async fn a_task_that_panics_takes_the_service_down() {
    let running = Running::start().await;
    running.service.spawn("broken", async { panic!("a bug, on purpose") });
    assert_code(running.ended().await, ExitCode::FAILURE);
}

#[tokio::test]
async fn a_loop_that_ends_too_early_takes_the_service_down() {
    let running = Running::start().await;
    running.service.spawn("short", async {});
    let mut health = running.health().await;
    health.check(HealthCheckRequest::default()).await.unwrap();
    running.service.spawn_loop("endless", async {});
    assert_code(running.ended().await, ExitCode::FAILURE);
}

#[tokio::test]
async fn the_first_signal_begins_the_shutdown() {
    let running = Running::start().await;
    running.service.handle_signals();
    let this = nix::unistd::Pid::this();
    nix::sys::signal::kill(this, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_code(running.ended().await, ExitCode::SUCCESS);
}

#[tokio::test]
async fn a_launcher_finds_the_address_in_a_file() {
    let folder = std::env::temp_dir().join(format!("stepwell-serve-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("address");
    let options = Options { address_file: Some(file.clone()), ..Options::default() };
    let running = Running::with(options, Routes::default()).await;
    let address = std::fs::read_to_string(&file).unwrap();
    assert_eq!(address, format!("http://{}", running.address));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_code(running.stop().await, ExitCode::SUCCESS);
}

#[test]
fn a_thread_that_is_stuck_does_not_hold_up_the_exit() {
    let begun = Instant::now();
    let (free, stuck) = std::sync::mpsc::channel::<()>();
    let code = stepwell_serve::run(&Options::default(), || async move {
        let (started, running) = tokio::sync::oneshot::channel();
        tokio::task::spawn_blocking(move || {
            started.send(()).unwrap();
            // Until the test is over.
            stuck.recv().unwrap_err();
        });
        running.await?;
        Ok(ExitCode::SUCCESS)
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_code(code, ExitCode::SUCCESS);
    drop(free);
}

#[test]
fn a_main_that_fails_is_a_failure() {
    let code = stepwell_serve::run(&Options::default(), || async {
        Err(anyhow::anyhow!("no such host").context("the database does not answer"))
    });
    assert_code(code, ExitCode::FAILURE);
}
