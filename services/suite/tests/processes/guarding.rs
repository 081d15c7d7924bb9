//! Whatever is killed, and whenever: nothing is left.

use std::{
    io::{BufRead, BufReader},
    process::Child,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::RngExt;
use stepwell_suite::{Command, Guard};

use crate::{Test, block_on, parent::UP, traces::Ground};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_parent_that_is_killed_at_any_moment_leaves_nothing",
        a_parent_that_is_killed_at_any_moment_leaves_nothing,
    ),
    ("a_process_that_is_deaf_does_not_stay", a_process_that_is_deaf_does_not_stay),
    ("a_guard_that_is_killed_leaves_nothing", a_guard_that_is_killed_leaves_nothing),
    ("what_a_terminal_sends_does_not_reach_the_guard", what_a_terminal_sends),
    ("a_process_takes_with_it_what_it_started", a_process_takes_with_it_what_it_started),
    ("an_end_is_told_with_its_code_however_quick", an_end_is_told_with_its_code_however_quick),
    ("a_program_that_is_not_there_is_an_error", a_program_that_is_not_there_is_an_error),
];

const MOMENTS: u32 = 20;

/// Waits until a parent has started everything.
fn up(parent: &mut Child) {
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), UP);
}

fn a_parent_that_is_killed_at_any_moment_leaves_nothing() {
    let ground = Ground::new();
    let begun = Instant::now();
    let mut parent = ground.parent(&["stay"]);
    up(&mut parent);
    let whole = begun.elapsed();
    assert!(ground.processes().len() >= 5, "the guard, Postgres, the shell and its own");
    parent.kill().unwrap();
    parent.wait().unwrap();
    ground.is_left_clean();
    // One moment in each twentieth of the way, and a little beyond.
    let part = whole.mul_f64(1.1) / MOMENTS;
    for n in 0..MOMENTS {
        let moment = part * n + part.mul_f64(rand::rng().random::<f64>());
        let mut parent = ground.parent(&["stay"]);
        std::thread::sleep(moment);
        parent.kill().unwrap();
        parent.wait().unwrap();
        println!("  killed after {moment:?}");
        ground.is_left_clean();
    }
}

fn a_process_that_is_deaf_does_not_stay() {
    let ground = Ground::new();
    let mut parent = ground.parent(&["deaf"]);
    up(&mut parent);
    parent.kill().unwrap();
    parent.wait().unwrap();
    ground.is_left_clean();
}

fn a_guard_that_is_killed_leaves_nothing() {
    if !std::path::Path::new("/usr/bin/setpriv").exists() {
        println!("  not tested: this machine has no setpriv");
        return;
    }
    let ground = Ground::new();
    let mut parent = ground.parent(&["stay"]);
    up(&mut parent);
    kill(ground.guard(), Signal::SIGKILL).unwrap();
    // The parent lives, and is the only one that does.
    let deadline = Instant::now() + Duration::from_secs(30);
    let alone = || {
        let left = ground.processes();
        let folders = std::fs::read_dir(ground.path()).unwrap().count();
        left.iter().all(|(pid, _)| pid.as_raw() == i32::try_from(parent.id()).unwrap())
            && folders == 0
    };
    while !alone() {
        assert!(Instant::now() < deadline, "left behind: {:#?}", ground.processes());
        std::thread::sleep(Duration::from_millis(20));
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    ground.is_left_clean();
}

fn what_a_terminal_sends() {
    let ground = Ground::new();
    let mut parent = ground.parent(&["stay"]);
    up(&mut parent);
    let guard = ground.guard();
    let of_parent = Pid::from_raw(i32::try_from(parent.id()).unwrap());
    assert_ne!(nix::unistd::getsid(Some(guard)), nix::unistd::getsid(Some(of_parent)));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(guard, signal).unwrap();
    }
    // It still does its work, so it was not asleep when they came.
    parent.kill().unwrap();
    parent.wait().unwrap();
    ground.is_left_clean();
}

fn guard() -> Guard {
    Guard::start(&std::env::current_exe().unwrap()).unwrap()
}

fn shell(script: &str) -> Command {
    Command::new("/bin/sh").args(["-c", script])
}

fn a_process_takes_with_it_what_it_started() {
    block_on(async {
        let guard = guard();
        let folder = guard.folder(None, None).await.unwrap();
        let child = folder.join("child");
        let script = format!("sleep 1000 & echo $! > {}", child.display());
        let shell = guard.spawn(shell(&script)).await.unwrap();
        assert_eq!(shell.wait().await.code, Some(0));
        let child: i32 = std::fs::read_to_string(child).unwrap().trim().parse().unwrap();
        // It was killed before the end of the shell was told; whoever inherits it clears it away.
        let gone = || kill(Pid::from_raw(child), None).is_err() || is_zombie(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(Instant::now() < deadline, "{child} is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        guard.stop().await.unwrap();
        assert!(!folder.exists());
    });
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

fn an_end_is_told_with_its_code_however_quick() {
    block_on(async {
        let guard = guard();
        for code in 0..50 {
            let process = guard.spawn(shell(&format!("exit {code}"))).await.unwrap();
            let exit = process.wait().await;
            assert_eq!((exit.code, exit.signal), (Some(code), None));
            assert_eq!(process.ended(), Some(exit));
            process.kill(Signal::SIGTERM).await.expect_err("it has ended");
        }
        let process = guard.spawn(shell("sleep 1000")).await.unwrap();
        assert_eq!(process.ended(), None);
        process.kill(Signal::SIGTERM).await.unwrap();
        assert_eq!(process.wait().await.signal, Some(Signal::SIGTERM as i32));
        guard.stop().await.unwrap();
    });
}

fn a_program_that_is_not_there_is_an_error() {
    block_on(async {
        let Err(refused) = Guard::start("/nowhere/stepwell".as_ref()) else {
            panic!("there is no such program")
        };
        assert!(refused.to_string().contains("/nowhere/stepwell"), "{refused}");
        // A program that is no guard ends, and so does the wait for its answer.
        let guard = Guard::start("/bin/true".as_ref()).unwrap();
        let refused = guard.folder(None, None).await.unwrap_err().to_string();
        assert!(refused.contains("the guard is gone"), "{refused}");
    });
}
