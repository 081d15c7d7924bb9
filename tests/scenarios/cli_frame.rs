//! What all commands have in common: how answers are printed, where the services are, what errors say and with
//! which code commands end.

use std::{path::Path, process::Stdio};

use axum::{Router, http::Uri, response::Redirect, routing::get};
use serde_json::{Value, json};
use stepwell_client::{Executor, StepContext};
use stepwell_tests::World;

use super::{
    cli::{command, run, stepwell},
    presence::listed,
};

const NOBODY: &str = "00000000-0000-7000-8000-000000000000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_comes_as_a_table_json_lines_of_it_yaml_and_names() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let first = world.create("d", &json!({"n": 1})).await.task_id;
    let second = world.create("d", &json!({"n": 2})).await.task_id;
    let out = |args: &[&str]| {
        let (code, out, err) = stepwell(&world, args, "");
        assert_eq!(code, 0, "{args:?}: {err}");
        assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "{args:?}: {out}{err}");
        out
    };
    let list = |format: &str| out(&["task", "list", "-o", format]);

    let table = list("table");
    assert!(table.starts_with("TASK ") && table.lines().count() == 3, "{table}");
    assert!(!table.contains("PRIORITY") && list("wide").contains("PRIORITY"));
    assert_eq!(out(&["task", "list", "--no-headers"]).lines().count(), 2);
    assert_eq!(list("name"), format!("{second}\n{first}\n"));
    let json: Vec<Value> = serde_json::from_str(&list("json")).unwrap();
    let lines = list("jsonl");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let yaml: Vec<Value> = serde_saphyr::from_str(&list("yaml")).unwrap();
    assert_eq!(json.len(), 2);
    assert_eq!(json[1]["taskId"], json!(first));
    assert_eq!(json, lines);
    assert_eq!(json, yaml);

    // One thing is one document, and has the name that other commands take.
    let described = |format: &str| out(&["task", "describe", &first, "-o", format]);
    let json: Value = serde_json::from_str(&described("json")).unwrap();
    let same = serde_json::from_str::<Value>(described("jsonl").trim()).unwrap();
    assert_eq!((json["taskId"].as_str(), &json), (Some(first.as_str()), &same));
    assert_eq!(serde_saphyr::from_str::<Value>(&described("yaml")).unwrap(), json);
    assert_eq!(described("name"), format!("{first}\n"));
    for (args, name) in [
        (&["definition", "describe", "d"][..], "d\n"),
        (&["event", "type", "step.failed"], "step.failed\n"),
        (&["task", "graph", &first], &format!("{first}\n")),
        (&["task", "summary", &first], &format!("{first}\n")),
        (&["step", "why", &format!("{first}.1")], &format!("{first}.1\n")),
        (&["handler", "list"], "a\nb\n"),
        (&["executor", "list"], ""),
        (&["subscription", "list"], ""),
        (&["definition", "pauses"], ""),
        (&["task", "bulk", "list"], ""),
    ] {
        assert_eq!(out(&[args, &["-o", "name"]].concat()), name);
        let text = out(&[args, &["-o", "json"]].concat());
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json.is_array(), args.contains(&"list") || args.contains(&"pauses"), "{text}");
        let text = out(&[args, &["-o", "yaml"]].concat());
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), json);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colours_are_there_when_asked_for_and_narrow_terminals_break_tables_not_commands() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a_step_with_quite_a_long_name}]}").await;
    let task = world.create("d", &json!({})).await.task_id;
    world.client.cancel_task(cancel(&task)).await.unwrap();
    let told = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = command(&world, args);
        command.env_remove("NO_COLOR").envs(variables.iter().copied());
        let (code, out, err) = run(&mut command, "");
        assert_eq!(code, 0, "{err}");
        out
    };
    let list = ["task", "list"];
    let always = ["--color", "always", "task", "list"];
    assert!(!told(&list, &[]).contains('\u{1b}'));
    let coloured = told(&always, &[]);
    assert!(coloured.contains('\u{1b}'), "{coloured:?}");
    assert!(told(&always, &[("NO_COLOR", "1")]).contains('\u{1b}'), "a flag goes first");
    assert!(!told(&["--color", "never", "task", "list"], &[]).contains('\u{1b}'));
    let json = ["--color", "always", "task", "list", "-o", "json"];
    assert!(!told(&json, &[]).contains('\u{1b}'), "data have no colours");

    for args in [
        &["task", "list", "-o", "wide"][..],
        &["task", "describe", &task, "--graph"],
        &["task", "graph", &task],
        &["event", "types"],
        &["event", "list"],
        &["definition", "describe", "d"],
    ] {
        for columns in ["40", "1", "0", "65535", "x"] {
            let out = told(args, &[("COLUMNS", columns)]);
            if columns == "40" && args[0] == "event" {
                let widest = out.lines().map(|line| line.chars().count()).max();
                assert!(widest <= Some(40), "{args:?}: {out}");
            }
        }
    }
}

fn cancel(task_id: &str) -> stepwell_client::v1::CancelTaskRequest {
    stepwell_client::v1::CancelTaskRequest { task_id: task_id.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_ends_the_command_without_a_word() {
    let world = World::start().await;
    for args in [&["event", "types"][..], &["event", "types", "-o", "jsonl"], &["config", "list"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(&world, args);
        let ended = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!((ended.status.code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
    // Nor does it matter that nobody reads what is said beside the answer.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(&world, &["task", "describe", NOBODY]);
    let ended = command.stdout(Stdio::piped()).stderr(writer).output().unwrap();
    assert_eq!(ended.status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flag_goes_before_the_environment_that_before_the_profile_and_that_before_the_default() {
    let world = World::start().await;
    world.define("{namespace: shop, name: d, steps: [{name: a}]}").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stepwell/config.toml");
    let addresses = world.suite.addresses();
    let told = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = command(&world, args);
        for name in ["STEPWELL_TASK_ADDRESS", "STEPWELL_STEP_ADDRESS", "STEPWELL_CONFIG"] {
            command.env_remove(name);
        }
        command.env("XDG_CONFIG_HOME", folder.path()).envs(variables.iter().copied());
        run(&mut command, "")
    };
    let get = |key: &str, variables: &[(&str, &str)]| {
        let (code, out, err) = told(&["config", "get", key], variables);
        assert_eq!(code, 0, "{err}");
        out.trim().to_owned()
    };

    assert_eq!(told(&["config", "path"], &[]).1.trim(), file.display().to_string());
    assert_eq!(get("task_address", &[]), "http://127.0.0.1:7101");
    assert_eq!(get("namespace", &[]), "default");
    let set = |args: &[&str]| {
        let (code, _, err) = told(&[&["config", "set"], args].concat(), &[]);
        assert_eq!(code, 0, "{err}");
    };
    set(&["task_address", &addresses.task.join(","), "--profile", "here"]);
    set(&["namespace", "shop", "--profile", "here"]);
    set(&["namespace", "elsewhere", "--profile", "there"]);
    assert_eq!(get("namespace", &[]), "default");
    set(&["profile", "here"]);
    assert_eq!(get("namespace", &[]), "shop");
    assert_eq!(get("namespace", &[("STEPWELL_PROFILE", "there")]), "elsewhere");
    assert_eq!(get("namespace", &[("STEPWELL_NAMESPACE", "mine")]), "mine");
    let (_, out, _) = told(&["config", "list", "-o", "json"], &[("STEPWELL_NAMESPACE", "mine")]);
    let all: Value = serde_json::from_str(&out).unwrap();
    let from = |key: &str| {
        let all = all.as_array().unwrap();
        all.iter().find(|one| one["key"] == key).unwrap()["from"].clone()
    };
    let from = ["task_address", "step_address", "namespace"].map(from);
    assert_eq!(from, ["profile here", "default", "STEPWELL_NAMESPACE"].map(Value::from));

    // And commands go there: the profile's address and namespace, or what goes before them.
    let create = ["task", "create", "d"];
    let (code, _, err) = told(&create, &[]);
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = told(&create, &[("STEPWELL_NAMESPACE", "other")]);
    assert!(code == 3 && err.contains("other/d"), "{err}");
    let by_flag = [&create[..], &["--namespace", "shop"]].concat();
    let (code, _, err) = told(&by_flag, &[("STEPWELL_NAMESPACE", "other")]);
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = told(&create, &[("STEPWELL_TASK_ADDRESS", "http://127.0.0.1:1")]);
    assert_eq!(code, 5, "{err}");

    // What is not known is refused, with what was meant.
    for (args, said) in [
        (&["--profile", "hera", "task", "list"][..], "did you mean `here`?"),
        (&["config", "get", "task_adress"], "did you mean `task_address`?"),
        (&["config", "set", "namspace", "x"], "did you mean `namespace`?"),
        (&["config", "set", "profile", "nowhere"], "there is no profile \"nowhere\""),
        (&["config", "set", "profile", ""], "a profile has a name"),
        (&["config", "set", "profile", "here "], "begins or ends with a blank"),
        (&["config", "set", "namespace", " shop"], "begins or ends with a blank"),
    ] {
        let (code, _, err) = told(args, &[]);
        assert!(code == 2 && err.contains(said), "{args:?}: {err}");
    }
    std::fs::write(&file, "[profiles.here]\nnamspace = 'x'\n").unwrap();
    let (code, _, err) = told(&["task", "list"], &[]);
    assert!(code == 2 && err.contains("did you mean `namespace`?"), "{err}");
    std::fs::write(&file, "profile = ").unwrap();
    let (code, _, err) = told(&["task", "list"], &[]);
    assert!(code == 2 && err.contains("line 1, column"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_exit_code_is_reached_and_every_error_says_what_and_what_to_try() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a, retry: {max_attempts: 1}}]}").await;
    let executor = Executor::new(&world.client, "e").handler("a", async |step: StepContext| {
        match step.input::<Value>()?["fail"].as_bool() {
            Some(true) => Err(stepwell_client::HandlerError::new("No", "no").permanent()),
            _ => Ok(()),
        }
    });
    let running = world.run(executor);
    let (_, out, _) = stepwell(&world, &["task", "create", "d"], "");
    let done = out.trim();
    assert_eq!(stepwell(&world, &["task", "wait", done], "").0, 0);
    let fail = ["task", "create", "d", "--context", r#"{"fail": true}"#, "--wait", "60"];
    assert_eq!(stepwell(&world, &fail, "").0, 10);
    running.stop().await;
    let (_, out, _) = stepwell(&world, &["task", "create", "d"], "");
    let waits = out.trim();
    assert_eq!(stepwell(&world, &["task", "wait", waits, "--timeout", "0"], "").0, 12);
    assert_eq!(stepwell(&world, &["task", "watch", waits, "--wait", "0"], "").0, 12);
    assert_eq!(stepwell(&world, &["task", "cancel", waits], "").0, 0);
    assert_eq!(stepwell(&world, &["task", "watch", waits], "").0, 11);

    for (args, code) in [
        (&["task", "describe", NOBODY][..], 3),
        (&["task", "watch", NOBODY], 3),
        (&["step", "why", &format!("{NOBODY}.0")], 3),
        (&["executor", "drain", "7-1"], 3),
        (&["task", "cancel", done], 4),
        (&["task", "retry", done], 4),
        (&["task", "run", "d", "--id", "x"], 2),
        (&["task", "list", "--page-token", "x"], 2),
        (&["task", "list", "--task-address", "http://127.0.0.1:1"], 5),
    ] {
        let (is, out, err) = stepwell(&world, args, "");
        assert_eq!(is, code, "{args:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains("\n  try: "), "{args:?}: {err}");
        assert_eq!(out, "", "{args:?}");
    }
    let mut unwritable = command(&world, &["config", "set", "namespace", "x"]);
    let (code, _, err) = run(unwritable.env("STEPWELL_CONFIG", "/dev/null/x"), "");
    assert_eq!(code, 2, "{err}");
    let mut unwritable = command(&world, &["config", "set", "namespace", "x"]);
    let (code, _, err) = run(unwritable.env("STEPWELL_CONFIG", "/proc/nowhere/x"), "");
    assert!(code == 1 && err.contains("cannot write"), "{code}: {err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_finds_what_is_away_what_is_mixed_up_and_what_nobody_runs() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: lonely}]}").await;
    let url = world.suite.database_url();
    let (code, out, err) = stepwell(&world, &["doctor", "--database-url", url, "-o", "json"], "");
    let findings: Value = serde_json::from_str(&out).unwrap();
    let outcomes: Vec<(&str, &str)> = findings
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let check = finding["check"].as_str().unwrap().split(' ').next().unwrap();
            (check, finding["outcome"].as_str().unwrap())
        })
        .collect();
    let wanted = [
        ("task-service", "ok"),
        ("step-service", "ok"),
        ("event-service", "ok"),
        ("database", "ok"),
        ("executors", "warn"),
        ("handlers", "warn"),
    ];
    assert_eq!((code, outcomes), (0, wanted.to_vec()), "{out}{err}");
    assert!(out.contains("default/lonely"), "{out}");

    let executor = Executor::new(&world.client, "e");
    let running = world.run(executor.handler("lonely", async |_: StepContext| Ok(())));
    listed(&world.client, &Default::default(), |all| all.len() == 1).await;
    let (_, out, _) = stepwell(&world, &["doctor"], "");
    assert!(!out.contains("warn") && out.contains("1 connected"), "{out}");
    running.stop().await;

    let mixed = world.suite.addresses().event.join(",");
    let args = ["doctor", "--task-address", &mixed, "--step-address", "http://127.0.0.1:1"];
    let (code, out, _) = stepwell(&world, &args, "");
    assert!(code == 1 && out.contains("event-service answers there"), "{out}");
    assert!(out.contains("does not answer") && out.contains("stepwell server start step"), "{out}");
    let (code, out, _) =
        stepwell(&world, &["doctor", "--database-url", "postgres:///?host=/no"], "");
    assert!(code == 1 && out.contains("is Postgres running"), "{out}");
}

/// A service as the doctor sees it that answers no call: it is ready, and its metrics say which it is.
async fn deaf(kind: &'static str) -> String {
    let measured = format!(
        "stepwell_build_info{{service=\"{kind}\",version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    );
    let service = Router::new()
        .route("/readyz", get(|| async { "ready\n" }))
        .route("/metrics", get(|| async { measured }));
    serve(service).await
}

/// Where it listens.
async fn serve(service: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, service).await.unwrap() });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_tells_what_it_found_when_a_call_fails_and_goes_nowhere_else() {
    let world = World::start().await;
    let step = deaf("step").await;
    let args = ["doctor", "-o", "json", "--step-address", &step];
    let (code, out, err) = stepwell(&world, &args, "");
    let findings: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    let outcomes: Vec<&str> = findings
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["outcome"].as_str().unwrap())
        .collect();
    assert_eq!((code, outcomes), (1, vec!["ok", "ok", "ok", "fail", "fail"]), "{out}");
    for (i, check) in [(3, "executors"), (4, "handlers")] {
        assert_eq!(findings[i]["check"], check);
        let told = |key: &str| !findings[i][key].as_str().unwrap().is_empty();
        assert!(told("found") && told("try"), "{out}");
    }

    // One that leads to a service is none itself.
    let real = world.suite.addresses().event[0].clone();
    let leads = move |uri: Uri| async move { Redirect::temporary(&format!("{real}{uri}")) };
    let event = serve(Router::new().fallback(leads)).await;
    let (code, out, _) = stepwell(&world, &["doctor", "--event-address", &event], "");
    assert!(code == 1 && out.contains("is not ready (307"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_completes_commands_formats_ids_of_tasks_and_names_of_definitions() {
    let world = World::start().await;
    world.define("{name: fulfil_order, steps: [{name: a}]}").await;
    let task = world.create("fulfil_order", &json!({})).await.task_id;
    let offered = |words: &[&str]| {
        let mut command = command(&world, &[&["--", "stepwell"], words].concat());
        let index = words.len().to_string();
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", index);
        command.env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_COMP_TYPE", "9");
        command.env("_CLAP_COMPLETE_SPACE", "true");
        let (code, out, err) = run(&mut command, "");
        assert_eq!(code, 0, "{err}");
        out.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    assert!(offered(&["tas"]).contains(&"task".to_owned()));
    assert_eq!(offered(&["task", "list", "-o", "jso"]), ["json", "jsonl"]);
    assert_eq!(offered(&["task", "describe", &task[..8]]), std::slice::from_ref(&task));
    assert_eq!(offered(&["task", "run", "ful"]), ["fulfil_order"]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, _) = stepwell(&world, &["completion", shell], "");
        assert!(code == 0 && out.contains("COMPLETE"), "{shell}: {out}");
    }
    if Path::new("/bin/bash").exists() {
        let mut checked = std::process::Command::new("/bin/bash");
        let script = stepwell(&world, &["completion", "bash"], "").1;
        assert_eq!(run(checked.arg("-n"), &script), (0, String::new(), String::new()));
    }
}
