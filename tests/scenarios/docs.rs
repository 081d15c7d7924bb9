//! What the documents say is proved, is.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::json;
use stepwell_proto::v1;
use stepwell_tests::World;

fn functions(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && name != "node_modules" && name != ".git" {
            functions(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *into += &std::fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut code = String::new();
    functions(root, &mut code);
    let mut named = 0;
    for document in [
        "docs/behaviour.md",
        "docs/custom-events.md",
        "docs/definitions.md",
        "docs/faults.md",
        "docs/feed.md",
        "docs/limits.md",
        "docs/reading.md",
        "docs/subscribers.md",
        "docs/subscriptions.md",
        "docs/webhooks.md",
        "ARCHITECTURE.md",
        "tests/verbs/life.rs",
    ] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        // Names of tests tell a story: four words and more.
        for name in text.split('`').skip(1).step_by(2) {
            let is_test = name.matches('_').count() >= 3
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if is_test {
                named += 1;
                assert!(code.contains(&format!("fn {name}(")), "{document} names {name}");
            }
        }
    }
    assert!(named > 120, "{named} names");
}

/// The numbers of advisory locks in a file.
fn locks(text: &str) -> impl Iterator<Item = u32> {
    let calls = ["pg_advisory_", "pg_try_advisory_"].map(|call| text.split(call).skip(1));
    let calls = calls.into_iter().flatten();
    calls.filter_map(|call| call.split_once('(')?.1.split_once(')')?.0.parse().ok())
}

#[test]
fn each_advisory_lock_is_for_what_the_architecture_says_and_for_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut taken = BTreeSet::new();
    for folder in ["migrations/verbs", "services/store/src"] {
        for file in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = file.unwrap().path();
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            taken.extend(locks(&text).map(|number| (number, name.clone())));
        }
    }
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let [_, number, _, files, _] = line.split('|').collect::<Vec<_>>().try_into().ok()?;
        Some((number.trim().parse::<u32>().ok()?, files.to_owned()))
    });
    let told: BTreeSet<(u32, String)> = rows
        .flat_map(|(number, files)| {
            let files = files.split(',').map(|file| file.trim().trim_matches('`').to_owned());
            files.map(move |file| (number, file)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(taken, told);
}

/// The blocks of a document that are for a shell and use the command.
fn commands(document: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join(document)).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.filter(|block| block.contains("stepwell ")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_guide_to_subscribers_does_what_it_says() {
    let world = World::start().await;
    world.define("{name: d, steps: [{name: a}]}").await;
    world.create("d", &json!({})).await;
    let stepwell = stepwell_suite::built_stepwell().unwrap();
    let path =
        format!("{}:{}", stepwell.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let blocks = commands("docs/subscribers.md");
    assert_eq!(blocks.len(), 1);
    let ran = Command::new("sh")
        .args(["-euc", &blocks[0]])
        .env("PATH", path)
        .env("STEPWELL_EVENT_ADDRESS", world.suite.addresses().event.join(","))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    for wanted in
        ["step.retry_requested", "step.completed", "\"final\"", "task.initialize_requested"]
    {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

/// Everything of it that still runs ends with the test.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_readme_says_to_try_works_as_it_is_written() {
    let world = World::start().await;
    let stepwell = stepwell_suite::built_stepwell().unwrap();
    let path =
        format!("{}:{}", stepwell.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let blocks = commands("README.md");
    let block = blocks.iter().find(|block| block.contains("stepwell task run")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses = world.suite.addresses();
    let said = folder.path().join("said");
    let file = std::fs::File::create(&said).unwrap();
    let mut ran = Command::new("sh")
        .args(["-euc", block])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
        .env("STEPWELL_STEP_ADDRESS", addresses.step.join(","))
        .env("STEPWELL_EVENT_ADDRESS", addresses.event.join(","))
        .env("STEPWELL_EXAMPLE_LISTEN", listen.to_string())
        .env("STEPWELL_EXAMPLE_SERVERS", format!("http://{listen}"))
        .env("STEPWELL_CONFIG", "/dev/null")
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Group(Pid::from_raw(ran.id().try_into().unwrap()));
    let ended = tokio::task::spawn_blocking(move || ran.wait().unwrap()).await.unwrap();
    let said = std::fs::read_to_string(said).unwrap();
    assert!(ended.success(), "{said}");
    for wanted in [
        "ecommerce/process_order",
        "registered",
        "[validate_cart ✔]",
        "task.completed",
        "is ready, version",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    drop(group);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_filter_that_the_documents_show_is_understood() {
    let world = World::start().await;
    world.define("{name: order, steps: [{name: a}]}").await;
    let task = world.create("order", &json!({})).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/reading.md")).unwrap();
    let block = text.split("```filter\n").nth(1).unwrap().split("```").next().unwrap();
    let filters: Vec<&str> = block.lines().collect();
    assert!(filters.len() > 15, "{filters:?}");
    let mut found = 0;
    for filter in filters {
        let request = v1::ListTasksRequest { filter: filter.into(), ..Default::default() };
        let tasks = world
            .client
            .list_tasks(request)
            .await
            .unwrap_or_else(|e| panic!("{filter}: {e}"))
            .tasks;
        assert!(tasks.iter().all(|it| it.task_id == task.task_id), "{filter}");
        found += tasks.len();
    }
    assert!(found > 0, "some fit a task that waits");
    // The flags ask what the filter asks.
    for line in text.lines().filter_map(|line| line.strip_prefix("$ stepwell task list ")) {
        let program = stepwell_suite::built_stepwell().unwrap();
        let ran = Command::new("sh")
            .args(["-euc", &format!("{} task list {line}", program.display())])
            .env("STEPWELL_TASK_ADDRESS", world.suite.addresses().task.join(","))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}
