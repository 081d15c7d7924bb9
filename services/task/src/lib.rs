//! task-service: definitions are registered, tasks created, read, waited for and cancelled, one by one or many
//! by a filter.
//!
//! A task's way: `service` → `resolve` (which definition is meant) → `plan` (request and definition
//! become rows, pure) → `create` (one call of the verb for all that wait). What a definition must
//! be stands in `definition`, `rule`, `graph` and, for text, `written` and `yaml`; which there are, in
//! `definitions`; what is done to many tasks in `filter` and `bulk`, to whole definitions in `pause`; how tasks
//! stand in `view`, how they are drawn in `diagram`, what became of them in `history`. What people look at beside
//! that stands in `overview`, `performance` and, for tasks that ended long ago, `archive`.

mod annotate;
mod archive;
mod bulk;
mod canonical;
mod create;
mod definition;
mod definitions;
mod diagram;
mod filter;
mod graph;
mod history;
mod metrics;
mod overview;
mod pause;
mod performance;
mod plan;
mod remove;
mod resolve;
mod service;
mod trace;
mod validators;
mod view;
mod wait;
mod written;
mod yaml;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use stepwell_proto::v1::task_service_server::TaskServiceServer;
use stepwell_rule as rule;
use stepwell_serve::{MESSAGE_BYTES_MAX, Service};
use stepwell_store::{KeepTasks, Store, Topic};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
};
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{
    create::Creator, overview::Overviews, resolve::Resolver, service::Tasks,
    validators::Validators, wait::Waiters,
};

pub use crate::{
    definition::{Written, declared, written},
    written::{Choices, Declared},
};

/// Where it listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 7101;

/// task-service: registers definitions; creates, reads, waits for and cancels tasks.
#[derive(Parser, Clone, Debug)]
#[command(version)]
#[group(id = "task-service")]
pub struct Options {
    /// How it is served.
    #[command(flatten)]
    pub serve: stepwell_serve::Options,
    /// The database: `postgres://user@host/name`, a unix socket as `?host=/path`.
    #[arg(long, env = "STEPWELL_DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
    /// No statement runs or waits for a lock longer than this. Seconds, 1 to 300.
    #[arg(long, env = "STEPWELL_DATABASE_TIMEOUT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub database_timeout: u64,
    /// A larger context is refused. Bytes, 1,024 to 3,145,728.
    #[arg(long, env = "STEPWELL_PAYLOAD_BYTES_MAX", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1024..=3 << 20))]
    pub payload_bytes_max: u32,
    /// How long tasks are kept that are complete, cancelled or resolved. Then they are removed with their steps and
    /// results, and their ids are free again. Hours, 1 to 876,000, or 0: for ever.
    #[arg(long, env = "STEPWELL_KEEP_TASKS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=876_000))]
    pub keep_tasks: u64,
    /// The same of tasks in error, which a person may still go on with. Hours, 1 to 876,000, or 0: for ever.
    #[arg(long, env = "STEPWELL_KEEP_TASKS_IN_ERROR", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=876_000))]
    pub keep_tasks_in_error: u64,
}

impl Options {
    /// How long tasks are kept.
    fn keep(&self) -> KeepTasks {
        let age = |hours: u64| (hours > 0).then(|| Duration::from_secs(hours * 3600));
        KeepTasks { ended: age(self.keep_tasks), in_error: age(self.keep_tasks_in_error) }
    }
}

/// Runs the service until it is told to stop.
pub fn main(options: Options) -> ExitCode {
    let serve = options.serve.clone();
    stepwell_serve::run(&serve, move || async move {
        let service = Service::start("task", &options.serve)?;
        service.handle_signals();
        let store = stepwell_store::Options {
            timeout: Duration::from_secs(options.database_timeout),
            meter: service.meter(),
            ..stepwell_store::Options::new(&options.database_url)
        };
        let store = Store::connect(&store, "task").await.context("task-service cannot start")?;
        let listener = service.bind(&options.serve, DEFAULT_PORT).await?;
        run(service, store, listener, &options).await
    })
}

/// Serves on a listener with a store until the service is told to stop.
pub async fn run(
    service: Service,
    store: Store,
    listener: TcpListener,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let (resolver, resolving) = Resolver::new(store.clone());
    let (creator, creating) = Creator::new(store.clone(), &service.meter());
    let waiters = Arc::new(Waiters::default());
    metrics::watch_waiters(&service.meter(), &waiters);

    // These end when the last caller has its answer and the server is gone.
    service.spawn("resolve", resolving.run());
    service.spawn("create", creating.run());
    // Both growth of the log and a new waiter are a reason to look.
    let look = Arc::new(Notify::new());
    for source in [store.bell().listen(Topic::Event), Arc::clone(&waiters.begun)] {
        let look = Arc::clone(&look);
        service.spawn_beside("look", async move {
            loop {
                source.notified().await;
                look.notify_one();
            }
        });
    }
    let ticker = service.ticker(
        store.bell().listen(Topic::Bulk),
        Duration::from_millis(1500)..Duration::from_millis(2500),
    );
    let bulk = Arc::new(metrics::Bulk::new(&service.meter()));
    let runner = bulk::Runner::new(store.clone(), service.shutdown().clone(), Arc::clone(&bulk));
    service.spawn_loop("bulk", runner.run(ticker));
    let keep = options.keep();
    if !keep.is_everything() {
        let ticker =
            service.ticker(Arc::default(), Duration::from_secs(300)..Duration::from_secs(600));
        service.spawn_loop("remove", remove::run(store.clone(), keep, ticker));
    }
    let bells = store.clone();
    service.spawn_beside("bell", async move { bells.run_bell().await });
    let ticker = service.ticker(look, Duration::from_millis(800)..Duration::from_millis(1200));
    let (waited, reads) = (Arc::clone(&waiters), store.clone());
    service.spawn_loop("wait", async move { waited.run(&reads, ticker).await });

    let health = store.clone();
    service.ready("database", move || {
        let health = health.clone();
        Box::pin(async move { health.ping().await.map_err(|error| error.to_string()) })
    });
    let tasks = Tasks {
        store,
        resolver,
        validators: Validators::default(),
        creator,
        waiters,
        shutdown: service.shutdown().clone(),
        previews: Semaphore::new(bulk::PREVIEWS_MAX),
        overviews: Overviews::default(),
        measured: Semaphore::new(performance::MEASURED_MAX),
        bulk,
        context_bytes_max: usize::try_from(options.payload_bytes_max).unwrap_or(usize::MAX),
    };
    let server = TaskServiceServer::new(tasks)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Ok(service.serve(listener, Routes::new(server), &["stepwell.v1.TaskService"]).await)
}
