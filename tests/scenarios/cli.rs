//! The command as its user types it: what it prints, and its exit codes.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use stepwell_client::{Executor, HandlerError, StepContext};
use stepwell_tests::World;

/// The command against a world, without a configuration of its own.
pub(super) fn command(world: &World, args: &[&str]) -> Command {
    let addresses = world.suite.addresses();
    let mut command = Command::new(stepwell_suite::built_stepwell().unwrap());
    command
        .args(args)
        .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
        .env("STEPWELL_STEP_ADDRESS", addresses.step.join(","))
        .env("STEPWELL_EVENT_ADDRESS", addresses.event.join(","))
        .env("STEPWELL_CONFIG", "/dev/null")
        .env_remove("STEPWELL_PROFILE")
        .env_remove("STEPWELL_NAMESPACE");
    command
}

/// Runs the command against a world; exit code, standard output, standard error.
pub(super) fn stepwell(world: &World, args: &[&str], input: &str) -> (i32, String, String) {
    run(&mut command(world, args), input)
}

/// Runs a command to its end; exit code, standard output, standard error.
pub(super) fn run(command: &mut Command, input: &str) -> (i32, String, String) {
    let mut command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    command.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = command.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ended.status.code().unwrap(), text(&ended.stdout), text(&ended.stderr))
}

const DEFINITION: &str = "
name: greet
context_schema: {type: object, required: [who]}
steps:
  - {name: hello, retry: {max_attempts: 1}, requires: {tongue: quick}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_goes_from_a_file_to_its_end_on_the_command_line() {
    let world = World::start().await;
    let executor = Executor::new(&world.client, "e").label("tongue", "quick");
    let executor = executor.handler("hello", async |step: StepContext| {
        let who: serde_json::Value = step.input()?;
        match who["who"].as_str() {
            Some("nobody") => Err(HandlerError::new("NobodyThere", "no answer").permanent()),
            who => Ok(format!("hello {}", who.unwrap_or_default())),
        }
    });
    let running = world.run(executor);

    let (code, out, _) = stepwell(&world, &["definition", "apply", "-"], DEFINITION);
    assert_eq!((code, out.trim()), (0, "default/greet 0.1.0 registered (1 steps)"));
    let (code, out, _) = stepwell(&world, &["definition", "apply", "-"], DEFINITION);
    assert!(code == 0 && out.contains("unchanged"));
    let (code, out, _) = stepwell(&world, &["definition", "describe", "greet"], "");
    assert!(code == 0 && out.contains("hello") && out.contains("tongue=quick"), "{out}");

    let create = ["task", "create", "greet", "--wait", "30", "--context"];
    let (code, out, _) = stepwell(&world, &[&create[..], &[r#"{"who": "you"}"#]].concat(), "");
    assert!(code == 0 && out.contains("complete"), "{out}");
    let id = out.split_whitespace().next().unwrap().to_owned();
    let (code, out, _) = stepwell(&world, &["task", "describe", &id, "--results"], "");
    assert!(code == 0 && out.contains("hello you"), "{out}");
    let (code, out, _) = stepwell(&world, &["task", "describe", &id, "-o", "json"], "");
    let task: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, task["state"].as_str()), (0, Some("STATE_COMPLETE")));

    let (code, out, _) = stepwell(&world, &[&create[..], &["-"]].concat(), r#"{"who": "nobody"}"#);
    assert!(code == 10 && out.contains("error"), "{code}: {out}");
    let subscribe =
        ["event", "subscribe", "task.*", "--from", "earliest", "--limit", "3", "--task", &id];
    let (code, out, err) = stepwell(&world, &subscribe, "");
    assert!(code == 0 && err.contains("cursor: "), "{err}");
    let names: Vec<&str> = out.lines().filter_map(|l| l.split_whitespace().nth(1)).collect();
    assert_eq!(names, ["task.initialize_requested", "task.start_requested", "task.completed"]);
    running.stop().await;

    // Nobody runs it now.
    let (_, out, _) = stepwell(&world, &["task", "create", "greet", "-c", r#"{"who": "x"}"#], "");
    let id = out.trim().to_owned();
    let (code, ..) = stepwell(&world, &["task", "wait", &id, "--timeout", "0"], "");
    assert_eq!(code, 12);
    let (code, out, _) = stepwell(&world, &["task", "cancel", &id, "--reason", "enough"], "");
    assert!(code == 0 && out.contains("cancelled"), "{out}");
    assert_eq!(stepwell(&world, &["task", "wait", &id], "").0, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_with_what_to_try_and_an_exit_code() {
    let world = World::start().await;
    let nobody = "00000000-0000-7000-8000-000000000000";
    let wrong = "name: d\nsteps:\n  - {name: a, depends_on: [bb]}\n  - {name: b}\n";
    for (args, input, code, said) in [
        (&["definition", "apply", "-"][..], wrong, 2, "steps[0].depends_on[0] at 3:"),
        (&["definition", "apply", "/no/such/file"], "", 2, "cannot read"),
        (&["task", "create", "no_such"], "", 3, "try: stepwell definition list"),
        (&["task", "get", nobody], "", 3, "TASK_NOT_FOUND"),
        (&["task", "get", "seven"], "", 2, "must be a UUID"),
        (&["event", "subscribe", "task.complete"], "", 2, "task.completed"),
        (&["event", "subscribe", "--from", "x"], "", 2, "CURSOR_MALFORMED"),
        (&["task", "create", "d", "--task-address", "nowhere"], "", 2, "address"),
        (&["no", "such"], "", 2, "unrecognized"),
    ] {
        let (is, _, err) = stepwell(&world, args, input);
        assert_eq!(is, code, "{args:?}: {err}");
        assert!(err.contains(said), "{args:?}: {err}");
    }
}
