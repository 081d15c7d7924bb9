//! Following tasks on the command line: `task run`, `task watch` and `--watch`.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use stepwell_client::{Executor, HandlerError, StepContext};
use stepwell_tests::{Proxy, Way, World};

use super::cli::{command, run, stepwell};

const DEFINITION: &str = "
name: order
steps:
  - {name: first, retry: {max_attempts: 2, initial_backoff: 1ms, jitter: 0}}
  - {name: second, depends_on: [first], retry: {max_attempts: 1}}
";

/// `first` fails once, `second` if the context says so.
fn executor(world: &World) -> Executor {
    Executor::new(&world.client, "e")
        .handler("first", async |step: StepContext| match step.attempt() {
            1 => Err(HandlerError::new("Busy", "no room")),
            _ => Ok(()),
        })
        .handler("second", async |step: StepContext| {
            match step.input::<Value>()?["fail"].as_bool() {
                Some(true) => Err(HandlerError::new("No", "not this one").permanent()),
                _ => Ok(()),
            }
        })
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_run_is_followed_to_its_end_event_by_event() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let running = world.run(executor(&world));
    let (code, out, err) = stepwell(&world, &["task", "run", "order"], "");
    assert!(code == 0 && out.contains("complete"), "{out}{err}");
    let seen: Vec<&str> = err
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|name| name.contains('.'))
        .collect();
    let wanted = [
        "task.initialize_requested",
        "task.start_requested",
        "step.execution_requested",
        "step.failed",
        "step.retry_requested",
        "step.execution_requested",
        "step.completed",
        "step.execution_requested",
        "step.completed",
        "task.completed",
    ];
    let mut seen_sorted = seen.clone();
    seen_sorted.sort_unstable();
    let mut wanted_sorted = wanted;
    wanted_sorted.sort_unstable();
    assert_eq!(seen_sorted, wanted_sorted, "{err}");
    assert_eq!(seen.last(), Some(&"task.completed"), "{err}");
    assert!(!err.contains('\u{1b}') && err.contains("Busy: no room"), "{err}");

    // As data: all events from the first, and nothing else.
    let raw = ["task", "run", "order", "-o", "jsonl", "--context", r#"{"fail": true}"#];
    let (code, out, _) = stepwell(&world, &raw, "");
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, events.last().unwrap()["name"].as_str()), (10, Some("task.failed")));
    let id = events[0]["taskId"].as_str().unwrap();
    let (_, listed, _) = stepwell(&world, &["event", "list", "--task", id, "-o", "jsonl"], "");
    let listed: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events, listed);

    // One that has ended is told at once, and the document is the task.
    let (code, out, _) = stepwell(&world, &["task", "watch", id, "-o", "json"], "");
    let task: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, task["state"].as_str()), (10, Some("STATE_ERROR")));
    running.stop().await;
    let (code, out, _) = stepwell(&world, &["task", "run", "order", "--detach"], "");
    assert_eq!((code, out.trim().len(), out.lines().count()), (0, 36, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_interrupts_is_told_how_to_come_back_and_the_task_goes_on() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let mut run = command(&world, &["task", "run", "d"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(run.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("task.initialize_requested") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended early");
    }
    signal(&run, Signal::SIGINT);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130), "{rest}");
    let id = rest.split_once("stepwell task watch ").unwrap().1.lines().next().unwrap();
    assert_eq!(world.task(id).await.state().word(), "pending");

    let executor = Executor::new(&world.client, "e");
    let running = world.run(executor.handler("a", async |_: StepContext| Ok(())));
    assert_eq!(stepwell(&world, &["task", "watch", id], "").0, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_events_is_told_to_stop_and_ends_with_what_came_and_where_to_go_on() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let id = world.create("d", &json!({})).await.task_id;
    for end in [Signal::SIGTERM, Signal::SIGINT] {
        let args = ["event", "subscribe", "--task", &id, "--from", "earliest", "-o", "name"];
        let mut subscribe =
            command(&world, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(subscribe.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        signal(&subscribe, end);
        let ended = subscribe.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(0), "{end}: {said}");
        let cursor = said.strip_prefix("cursor: ").unwrap_or_else(|| panic!("{said}")).trim();
        // What came is in order, and nothing that came is left to come.
        let mut seen = first;
        out.read_to_string(&mut seen).unwrap();
        let list = ["event", "list", "--task", &id, "-o", "name"];
        let rest = stepwell(&world, &[&list[..], &["--from", cursor]].concat(), "").1;
        assert_eq!(seen + &rest, stepwell(&world, &list, "").1, "{end}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_time_is_over_the_task_itself_says_how_it_stands() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let executor = Executor::new(&world.client, "e");
    let running = world.run(executor.handler("a", async |_: StepContext| Ok(())));
    let done = world.create("d", &json!({})).await.task_id;
    world.ended(&done).await;
    running.stop().await;
    let waits = world.create("d", &json!({})).await.task_id;
    let addresses = world.suite.addresses();

    // No event comes, so only the task can say it.
    let events = Proxy::of_service(&addresses.event[0]).await;
    events.blackhole(Way::Down);
    let watch = |id: &str, more: &[&str]| {
        let args = [&["task", "watch", id, "--wait", "1"], more].concat();
        run(command(&world, &args).env("STEPWELL_EVENT_ADDRESS", events.url()), "")
    };
    let (code, out, err) = watch(&done, &[]);
    assert!(code == 0 && out.contains("complete"), "{code} {out}{err}");
    assert_eq!(watch(&done, &["-o", "jsonl"]).0, 0);
    let (code, out, err) = watch(&waits, &[]);
    assert!(code == 12 && out.contains("pending"), "{code} {out}{err}");
    drop(events);

    // Who cannot say it is not waited for without end.
    let tasks = Proxy::of_service(&addresses.task[0]).await;
    let mut watch = command(&world, &["task", "watch", &waits, "--wait", "1"]);
    let mut watch = watch
        .env("STEPWELL_TASK_ADDRESS", tasks.url())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(watch.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("task.initialize_requested"), "{line}");
    tasks.blackhole(Way::Down);
    said.read_to_string(&mut line).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(5), "{line}");
    assert!(line.contains("error: no answer within 5s"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_terminal_each_step_has_a_line_that_moves() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let running = world.run(executor(&world));
    let size = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = nix::pty::openpty(Some(&size), None).unwrap();
    let mut run = command(&world, &["task", "run", "order"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdout(Stdio::piped())
        .stderr(terminal.slave)
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    // Ends with an error when the last writer is gone.
    let _ = std::fs::File::from(terminal.master).read_to_end(&mut seen);
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert_eq!(run.wait().unwrap().code(), Some(0), "{seen}");
    let mut out = String::new();
    run.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(out.contains("complete") && !out.contains('\u{1b}'), "{out}");
    for wanted in ["✔ first", "✔ second", "2/2", "2/2 steps"] {
        assert!(seen.contains(wanted), "{wanted}: {seen}");
    }
    assert!(seen.contains('\u{1b}') && !seen.contains("task.completed"), "{seen}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_watched_is_shown_again_when_something_has_happened() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    let first = world.create("d", &json!({})).await.task_id;
    let mut watch = command(&world, &["task", "list", "--watch", "-o", "name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some(first.as_str()));
    let second = world.create("d", &json!({})).await.task_id;
    assert_eq!(lines.next().as_deref(), Some(second.as_str()));
    assert_eq!(lines.next().as_deref(), Some(first.as_str()));
    signal(&watch, Signal::SIGTERM);
    assert_eq!(watch.wait().unwrap().code(), Some(0));

    let mut watch = command(&world, &["task", "describe", &first, "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("pending")));
    let executor = Executor::new(&world.client, "e");
    let running = world.run(executor.handler("a", async |_: StepContext| Ok(())));
    assert!(lines.any(|line| line.contains("complete")));
    signal(&watch, Signal::SIGTERM);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    running.stop().await;
}
