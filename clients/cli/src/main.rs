//! The `stepwell` command: the services, a suite for development, a demo, and a client.

mod annotation;
mod archive;
mod bench;
mod bulk;
mod completion;
mod config;
mod connect;
mod custom;
mod dag;
mod definition;
mod demo;
mod diagram;
mod doctor;
mod event;
mod example;
mod executor;
mod fault;
mod follow;
mod history;
mod init;
mod output;
mod overview;
mod performance;
mod progress;
mod server;
mod span;
mod step;
mod steps;
mod subscription;
mod task;
mod view;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::fault::Fault;

/// Services allocate and free much, in threads that hand it to each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Durable tasks made of steps, and the events of their lives.
#[derive(Parser)]
#[command(name = "stepwell", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    choice: config::Choice,
    #[command(flatten)]
    printing: output::Printing,
}

#[derive(Subcommand)]
enum Command {
    /// Write a small project that runs: a definition, an executor, and the commands to try.
    Init(init::Init),
    /// Check out a few hundred orders on a suite of its own, and judge what became of them.
    Demo(demo::Demo),
    /// Keep a suite running for development: Postgres and the three services.
    Dev(server::Dev),
    /// Register and read definitions.
    #[command(subcommand)]
    Definition(definition::Command),
    /// Create, read, list, wait for, cancel, retry and resolve tasks, one by one or in bulk.
    #[command(subcommand)]
    Task(task::Command),
    /// Read, retry, resolve, skip, cancel and change single steps.
    #[command(subcommand)]
    Step(step::Command),
    /// Show who is connected, and tell an executor to stop.
    #[command(subcommand)]
    Executor(executor::Command),
    /// Show the handlers that executors offer or definitions use.
    #[command(subcommand)]
    Handler(executor::HandlerCommand),
    /// Show the whole: how many tasks there are and how sound, what is ready, and who could take it.
    Overview(overview::Command),
    /// Show how it went lately: throughput, error rates, durations, the slowest.
    Performance(performance::Command),
    /// Follow what happens.
    #[command(subcommand)]
    Event(event::Command),
    /// Apply, read, pause, move and delete durable subscriptions, and replay what is parked of them.
    #[command(subcommand)]
    Subscription(subscription::Command),
    /// Run a service.
    #[command(subcommand)]
    Server(server::Command),
    /// As suites start services, those of older builds too.
    #[command(subcommand, hide = true)]
    Serve(server::Serve),
    /// Bring a database's schema up to date.
    Migrate(server::Migrate),
    /// Say whether everything is where it should be, and what to try if not. Exit codes: 0 nothing failed, 1
    /// something did.
    Doctor(doctor::Doctor),
    /// Print what lets a shell complete commands, ids of tasks and names of definitions.
    Completion(completion::Completion),
    /// Show and change where the services are, by profiles.
    #[command(subcommand)]
    Config(config::Command),
    /// Measure how much of what a suite does, and how fast.
    Bench(bench::Bench),
    /// The parts of the example, one by one.
    #[command(subcommand)]
    Example(example::Command),
    #[command(name = "__guard", hide = true)]
    Guard,
    #[command(name = "__bench-executor", hide = true)]
    BenchExecutor(bench::ExecutorProcess),
    #[command(name = "__bench-subscriber", hide = true)]
    BenchSubscriber(bench::SubscriberProcess),
}

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    completion::answer::<Cli>();
    let Cli { command, choice, printing } = Cli::parse();
    choice.apply();
    printing.apply();
    match command {
        Command::Server(server::Command::Start(serve)) | Command::Serve(serve) => serve.run(),
        Command::Config(command) => command.run().unwrap_or_else(Fault::tell),
        Command::Completion(completion) => completion.run().unwrap_or_else(Fault::tell),
        Command::Doctor(doctor) => run(doctor.run()),
        Command::Guard => stepwell_suite::guard_main(),
        Command::Init(init) => init.run().unwrap_or_else(Fault::tell),
        Command::Demo(demo) => run(demo.run()),
        Command::Dev(dev) => run(dev.run()),
        Command::Definition(command) => run(command.run()),
        Command::Task(command) => run(command.run()),
        Command::Step(command) => run(command.run()),
        Command::Executor(command) => run(command.run()),
        Command::Handler(command) => run(command.run()),
        Command::Overview(command) => run(command.run()),
        Command::Performance(command) => run(command.run()),
        Command::Event(command) => run(command.run()),
        Command::Subscription(command) => run(command.run()),
        Command::Migrate(migrate) => run(migrate.run()),
        Command::Bench(bench) => run(bench.run()),
        Command::BenchExecutor(executor) => run(executor.run()),
        Command::BenchSubscriber(subscriber) => run(subscriber.run()),
        Command::Example(command) => run(command.run()),
    }
}

/// Runs a command to its exit code; a fault is told as what, why and what to try.
fn run(command: impl Future<Output = Result<ExitCode, Fault>>) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(command);
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error.into()),
    };
    ended.unwrap_or_else(Fault::tell)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    /// The documents with their commands: those of blocks for a shell, and those in the text.
    fn documents() -> Vec<(String, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).unwrap();
        let mut files: Vec<_> =
            ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root.join(name)).into();
        files.push(root.join("clients/cli/src/init/README.md.in"));
        let of = |folder: &str| std::fs::read_dir(root.join(folder)).unwrap();
        files.extend(of("docs").map(|entry| entry.unwrap().path()));
        let examples = of("clients/examples").map(|entry| entry.unwrap().path().join("README.md"));
        files.extend(examples.filter(|file| file.exists()));
        files.retain(|file| file.extension().is_some_and(|end| end == "md" || end == "in"));
        files
            .into_iter()
            .map(|file| (file.display().to_string(), std::fs::read_to_string(&file).unwrap()))
            .collect()
    }

    /// The commands of a text for a shell, as words.
    fn commands(text: &str) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        for line in text.replace("\\\n", " ").replace("$(", " ; ").replace("<(", " ; ").lines() {
            let line = line.trim_start_matches("$ ");
            let words = shlex::split(line).unwrap_or_else(|| panic!("{line} is no command"));
            for command in words.split(|word| ["|", "&", "&&", ";", ">"].contains(&word.as_str())) {
                let closed =
                    command.iter().map(|word| word.trim_end_matches([';', ')']).to_owned());
                let command: Vec<String> = closed.filter(|word| !word.is_empty()).collect();
                if command.first().is_some_and(|word| word == "stepwell") {
                    all.push(command);
                }
            }
        }
        all
    }

    #[test]
    fn every_command_of_the_documents_is_understood() {
        let mut understood = 0;
        for (file, text) in documents() {
            for (i, part) in text.split("```").enumerate() {
                let is_block = i % 2 == 1;
                if is_block && part.starts_with("sh\n") {
                    for command in commands(part.trim_start_matches("sh\n")) {
                        if let Err(error) = Cli::try_parse_from(&command) {
                            panic!("{file}: {}: {error}", command.join(" "));
                        }
                        understood += 1;
                    }
                }
                let quoted = part.split('`').skip(1).step_by(2).filter(|_| !is_block);
                for text in quoted.filter(|text| text.starts_with("stepwell ")) {
                    // Some of it may be left out, but what is there must be.
                    let words = shlex::split(text).unwrap();
                    let left_out = |word: &String| word.contains('…') || word.contains('|');
                    let words = words.into_iter().take_while(|word| !left_out(word));
                    let words: Vec<String> = words.collect();
                    let kind = Cli::try_parse_from(&words).err().map(|error| error.kind());
                    let fine = matches!(
                        kind,
                        None | Some(
                            ErrorKind::MissingRequiredArgument
                                | ErrorKind::MissingSubcommand
                                | ErrorKind::DisplayHelp
                                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                        )
                    );
                    assert!(fine, "{file}: {text}: {kind:?}");
                    understood += 1;
                }
            }
        }
        assert!(understood > 80, "{understood}");
    }
}
