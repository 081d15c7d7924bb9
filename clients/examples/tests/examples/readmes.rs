//! What each example's README says to try, as it is written.

use std::{
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use stepwell_tests::World;

/// Everything of it that still runs ends with the test.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

/// Runs the commands of an example's README; what they printed.
async fn try_out(name: &str) -> String {
    let world = World::start().await;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("README.md");
    let text = std::fs::read_to_string(file).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut blocks = blocks.filter(|block| block.contains("stepwell example"));
    let block = blocks.next().unwrap();

    let stepwell = stepwell_suite::built_stepwell().unwrap();
    let path =
        format!("{}:{}", stepwell.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let folder = world.suite.folder().join("tried");
    std::fs::create_dir(&folder).unwrap();
    let said = std::fs::File::create(folder.join("said")).unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses = world.suite.addresses();
    let mut ran = Command::new("sh")
        .args(["-euc", block])
        .current_dir(&folder)
        .env("PATH", path)
        .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
        .env("STEPWELL_STEP_ADDRESS", addresses.step.join(","))
        .env("STEPWELL_EVENT_ADDRESS", addresses.event.join(","))
        .env("STEPWELL_EXAMPLE_LISTEN", listen.to_string())
        .env("STEPWELL_EXAMPLE_SERVERS", format!("http://{listen}"))
        .env("CART_API", format!("http://{listen}"))
        .env("STEPWELL_CONFIG", "/dev/null")
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Group(Pid::from_raw(ran.id().try_into().unwrap()));
    let ended = tokio::task::spawn_blocking(move || ran.wait().unwrap()).await.unwrap();
    let said = std::fs::read_to_string(folder.join("said")).unwrap();
    assert!(ended.success(), "{name}: {said}");
    drop(group);
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_each_example_s_readme_says_to_try_works_as_it_is_written() {
    for example in stepwell_examples::EXAMPLES {
        let said = try_out(example.name).await;
        let all = example.inputs().unwrap().len();
        let line = format!("all {all} inputs ended as they must");
        assert!(said.contains(&line) && said.contains("registered"), "{line}: {said}");
    }
}
