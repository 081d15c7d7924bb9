//! The `stepwell` command: the services, a suite for development, a demo, and a client.

mod archive;
mod bench;
mod bulk;
mod connect;
mod custom;
mod definition;
mod demo;
mod diagram;
mod event;
mod example;
mod executor;
mod fault;
mod output;
mod overview;
mod performance;
mod server;
mod span;
mod step;
mod subscription;
mod task;
mod view;

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
}

#[derive(Subcommand)]
enum Command {
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
    Serve(server::Serve),
    /// Bring a database's schema up to date.
    Migrate(server::Migrate),
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
    match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Guard => stepwell_suite::guard_main(),
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
