//! `stepwell completion`, and what a shell is offered while one types: commands and flags, and of the services
//! the ids of tasks and the names of definitions.

use std::{ffi::OsStr, future::Future, io::Write, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{
    CompletionCandidate,
    env::{Bash, Elvish, EnvCompleter, Fish, Powershell, Zsh},
};
use stepwell_client::Client;
use stepwell_proto::v1::{ListTasksRequest, Task};

use crate::{config::Profile, fault::Fault, output};

/// Nobody waits longer for what might follow.
const PATIENCE: Duration = Duration::from_secs(1);
/// The youngest tasks are offered, or looked at for names.
const TASKS: i32 = 50;
const LOOKED_AT: i32 = 1_000;

/// `stepwell completion`
#[derive(Args)]
pub(crate) struct Completion {
    /// The shell that is to complete.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    /// `source <(stepwell completion bash)`
    Bash,
    /// `source <(stepwell completion zsh)`
    Zsh,
    /// `stepwell completion fish | source`
    Fish,
    /// `eval (stepwell completion elvish | slurp)`
    Elvish,
    /// `stepwell completion powershell | Out-String | Invoke-Expression`
    Powershell,
}

impl Completion {
    /// Prints what the shell is to run when it starts. It asks the command itself for what may follow.
    pub(crate) fn run(self) -> Result<ExitCode, Fault> {
        let shell: &dyn EnvCompleter = match self.shell {
            Shell::Bash => &Bash,
            Shell::Zsh => &Zsh,
            Shell::Fish => &Fish,
            Shell::Elvish => &Elvish,
            Shell::Powershell => &Powershell,
        };
        let mut text = Vec::new();
        shell.write_registration("COMPLETE", "stepwell", "stepwell", "stepwell", &mut text)?;
        std::io::stdout().lock().write_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Answers a shell that asks what may follow, and ends then.
pub(crate) fn answer<C: CommandFactory>() {
    clap_complete::CompleteEnv::with_factory(C::command).complete();
}

/// Ids of the youngest tasks that begin so.
pub(crate) fn task_ids(begun: &OsStr) -> Vec<CompletionCandidate> {
    let Some(begun) = begun.to_str() else { return Vec::new() };
    let tasks = tasks(TASKS).into_iter().filter(|task| task.task_id.starts_with(begun));
    tasks
        .map(|task| {
            let about = format!("{} {}", task.definition_name, task.state().word());
            let id = output::plain(&task.task_id);
            CompletionCandidate::new(id).help(Some(output::plain(&about).into()))
        })
        .collect()
}

/// Names that begin so of definitions that the youngest tasks have.
pub(crate) fn definition_names(begun: &OsStr) -> Vec<CompletionCandidate> {
    let Some(begun) = begun.to_str() else { return Vec::new() };
    let mut names: Vec<String> =
        tasks(LOOKED_AT).into_iter().map(|task| task.definition_name).collect();
    names.retain(|name| name.starts_with(begun));
    names.sort();
    names.dedup();
    names.iter().map(|name| CompletionCandidate::new(output::plain(name))).collect()
}

/// The youngest tasks; none if the services do not answer at once. Flags are not heard here, the environment and
/// the profile are.
fn tasks(page_size: i32) -> Vec<Task> {
    let asked = async {
        let addresses = Profile::chosen().ok()?.told();
        let client = Client::connect(addresses).ok()?;
        let request = ListTasksRequest { page_size, ..ListTasksRequest::default() };
        Some(client.list_tasks(request).await.ok()?.tasks)
    };
    in_time(asked).unwrap_or_default()
}

fn in_time<T>(asked: impl Future<Output = Option<T>>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
    runtime.shutdown_background();
    answer.ok()?
}
