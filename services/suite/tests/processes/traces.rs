//! What is left of a parent: its folders, which are all within one, and its processes, which have
//! that folder in their environment, their arguments, or under their feet.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A guard may need some seconds for a process that does not end in peace.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// A temporary folder for one parent. Everybody may use it, since Postgres may be somebody else.
pub(crate) struct Ground(PathBuf);

impl Ground {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("swt-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// This program as a parent that does what it is told.
    pub(crate) fn command(&self, what: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("__parent").args(what).env("TMPDIR", &self.0).env_remove("STEPWELL_PG_BIN");
        command
    }

    /// A parent that runs.
    pub(crate) fn parent(&self, what: &[&str]) -> Child {
        self.command(what).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Waits until neither a process nor a folder is left.
    pub(crate) fn is_left_clean(&self) {
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn left(&self) -> Vec<String> {
        let folders = std::fs::read_dir(&self.0).unwrap();
        let folders = folders.map(|folder| folder.unwrap().path().display().to_string());
        folders.chain(self.processes().into_iter().map(|(_, command)| command)).collect()
    }

    /// Processes, and what they run.
    pub(crate) fn processes(&self) -> Vec<(Pid, String)> {
        let name = self.0.file_name().unwrap().to_str().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let read = |file: &str| {
                let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let stands = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let (environment, command) = (read("environ"), read("cmdline"));
            // A zombie has none of the three.
            if [&environment, &command, &stands.display().to_string()]
                .iter()
                .any(|text| text.contains(name))
            {
                found.push((Pid::from_raw(pid), format!("{pid}: {command}")));
            }
        }
        found
    }

    /// Its guard.
    pub(crate) fn guard(&self) -> Pid {
        let processes = self.processes();
        let guard = processes.iter().find(|(_, command)| command.contains("__guard"));
        guard.unwrap_or_else(|| panic!("there is a guard among {processes:?}")).0
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // After a failure: nothing of ours stays.
        for (pid, _) in self.processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
