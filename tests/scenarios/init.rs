//! `stepwell init` as its user runs it, up to a task that its project has run.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::cli::run;

/// A process that ends with the test.
struct Guarded(Child);

impl Guarded {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Tells it to stop; what it printed that was not read yet.
    fn stop(&mut self, signal: Signal) -> String {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        said
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stepwell() -> Command {
    let mut command = Command::new(stepwell_suite::built_stepwell().unwrap());
    command.env("STEPWELL_CONFIG", "/dev/null").env_remove("STEPWELL_DATABASE_URL");
    command
}

/// `stepwell init` with these arguments; exit code, standard output, standard error.
fn init(dir: &Path, args: &[&str]) -> (i32, String, String) {
    run(stepwell().arg("init").arg(dir).args(args), "")
}

const FILES: [&str; 5] =
    [".gitignore", "Cargo.toml", "README.md", "definition.yaml", "src/main.rs"];

#[test]
fn a_folder_that_is_not_empty_is_left_alone_and_by_force_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("shop");
    let (code, _, err) = init(&dir, &["--client-path", "/no/such"]);
    assert!(code == 2 && err.contains("is not the folder of the Rust client"), "{err}");
    assert!(!dir.exists(), "nothing is written");

    std::fs::create_dir(&dir).unwrap();
    let ours = dir.join("definition.yaml");
    std::fs::write(&ours, "ours").unwrap();
    let (code, _, err) = init(&dir, &[]);
    assert!(code == 2 && err.contains("is not empty"), "{err}");
    assert!(err.contains("there are definition.yaml") && err.contains("init --force"), "{err}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);

    let (code, out, err) = init(&dir, &["--force"]);
    assert_eq!(code, 0, "{err}");
    for file in FILES {
        let kept = file == "definition.yaml";
        let line = format!("{} {file}", if kept { "kept " } else { "wrote" });
        assert!(out.lines().any(|said| said == line), "{line}: {out}");
        assert!(dir.join(file).exists(), "{file}");
    }
    assert_eq!(std::fs::read_to_string(ours).unwrap(), "ours");
}

/// Builds a project as its user would, with the versions and the folder of the workspace: what is there is
/// not built again. The program.
fn build(dir: &Path) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::copy(root.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    let stepwell = stepwell_suite::built_stepwell().unwrap();
    let target = stepwell.parent().and_then(Path::parent).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut build = Command::new(cargo);
    build.args(["build", "--offline", "--quiet"]).current_dir(dir);
    build.env("CARGO_TARGET_DIR", target).env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    build.env("CARGO_PROFILE_DEV_BUILD_OVERRIDE_OPT_LEVEL", "0");
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| told.starts_with(p)) {
            build.env_remove(name);
        }
    }
    let (code, out, err) = run(&mut build, "");
    assert_eq!(code, 0, "{out}{err}");
    target.join("debug").join(dir.file_name().unwrap())
}

#[test]
fn a_project_that_was_written_is_built_and_runs_a_task_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join(format!("hello-{}", std::process::id()));
    let (code, _, err) = init(&dir, &[]);
    assert_eq!(code, 0, "{err}");
    let program = build(&dir);

    let mut dev = Guarded::start(stepwell().args(["dev", "--ephemeral", "--random-ports"]));
    let mut said = BufReader::new(dev.0.stdout.take().unwrap());
    let mut addresses = Vec::new();
    while addresses.len() < 3 {
        let mut line = String::new();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended: {addresses:?}");
        let address = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
        if line.contains("-service ") {
            addresses.push(address);
        }
    }
    dev.0.stdout = Some(said.into_inner());
    let at = |mut command: Command| {
        for (name, address) in ["TASK", "STEP", "EVENT"].iter().zip(&addresses) {
            command.env(format!("STEPWELL_{name}_ADDRESS"), address);
        }
        command.current_dir(&dir);
        command
    };
    let (code, out, err) = run(at(stepwell()).args(["definition", "apply", "definition.yaml"]), "");
    assert!(code == 0 && out.contains("default/hello 0.1.0 registered"), "{out}{err}");
    let mut executor = Guarded::start(&mut at(Command::new(&program)));
    let task = ["task", "run", "hello", "--context", r#"{"name": "Ada"}"#];
    let (code, out, err) = run(at(stepwell()).args(task), "");
    assert_eq!(code, 0, "{out}{err}");
    let nobody = ["task", "run", "hello", "--context", r#"{"name": " "}"#];
    let (code, out, err) = run(at(stepwell()).args(nobody), "");
    assert_eq!(code, 10, "{out}{err}");
    let said = executor.stop(Signal::SIGINT);
    assert!(said.contains("Hello, Ada!") && said.contains("2 completed, 1 failed"), "{said}");
    dev.stop(Signal::SIGTERM);
    std::fs::remove_file(program).unwrap();
}
