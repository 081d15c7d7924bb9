//! step-service: executors open one stream each, get steps pushed to them, and report outcomes; those
//! that cannot hold a stream do the same by calls (`service/unary`).
//!
//! A step's way: `claim` or the release in `settle` leases it → `dispatch` fills the lease →
//! `outbox` sends it → the executor runs it → `service` reads the outcome → `verdict` decides on
//! failures → `settle` commits and answers. `sweep` has the loops beside that way, `walk` what
//! becomes of the leases of processes that are gone, and `operate` what people do to steps. `presence`
//! writes down who is connected, and `executors` tells it; `unserved` tells whose steps nobody is there for.

/// Where a test kills the process, as a crash of the machine would: nothing in ordinary builds.
macro_rules! fault_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        if fail::eval($name, |_| ()).is_some() {
            // Whatever was said before is heard: a promise that came too early would show.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            std::process::abort();
        }
    };
}

mod claim;
mod contexts;
mod dispatch;
mod executors;
mod list;
mod metrics;
mod node;
mod offer;
mod operate;
mod outbox;
mod presence;
mod priorities;
mod publish;
mod readiness;
mod service;
mod sessions;
mod settle;
mod sweep;
mod trace;
mod unserved;
mod verdict;
mod walk;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use stepwell_proto::v1::step_service_server::StepServiceServer;
use stepwell_serve::{MESSAGE_BYTES_MAX, Service};
use stepwell_store::{Store, Topic};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{
    claim::Claiming,
    dispatch::Dispatch,
    metrics::Metrics,
    node::Node,
    presence::Presence,
    publish::{Publisher, Publishing},
    service::{Bounds, Steps},
    sessions::Sessions,
    settle::{Settler, Settling, Turn},
    sweep::Sweeps,
    unserved::Unserved,
    walk::Walks,
};

/// Where it listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 7102;

/// step-service: leases steps to executors and settles their outcomes.
#[derive(Parser, Clone, Debug)]
#[command(version)]
#[group(id = "step-service")]
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
    /// How long leases are kept for an executor whose stream is gone. Seconds, 0 to 3,600.
    #[arg(long, env = "STEPWELL_SESSION_GRACE", default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub session_grace: u64,
    /// Without a word to the database for so long this process is taken for dead, and another one
    /// takes its leases over. Longer than the database time-out. Seconds, 1 to 300.
    #[arg(long, env = "STEPWELL_NODE_LEASE", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub node_lease: u64,
    /// Streams say something at least this often; one that is silent for three times as long is
    /// taken for dead. Seconds, 1 to 60.
    #[arg(long, env = "STEPWELL_HEARTBEAT", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub heartbeat: u64,
    /// A larger result is refused. Bytes, 1,024 to 3,145,728.
    #[arg(long, env = "STEPWELL_PAYLOAD_BYTES_MAX", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1024..=3 << 20))]
    pub payload_bytes_max: u32,
    /// More executors are refused. 1 to 100,000.
    #[arg(long, env = "STEPWELL_SESSIONS_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub sessions_max: u32,
    /// A step that has been ready for so long, while nobody was connected who could run it, is told of
    /// once (`step.unserved`). Seconds, 1 to 86,400.
    #[arg(long, env = "STEPWELL_UNSERVED_AFTER", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub unserved_after: u64,
}

/// Runs the service until it is told to stop.
pub fn main(options: Options) -> ExitCode {
    let serve = options.serve.clone();
    stepwell_serve::run(&serve, move || async move {
        let service = Service::start("step", &options.serve)?;
        service.handle_signals();
        let store = stepwell_store::Options {
            timeout: Duration::from_secs(options.database_timeout),
            meter: service.meter(),
            ..stepwell_store::Options::new(&options.database_url)
        };
        let store = Store::connect(&store, "step").await.context("step-service cannot start")?;
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
    let lease = Duration::from_secs(options.node_lease);
    let (node, left) = Node::register(&store, lease).await?;
    let node = Arc::new(node);
    let sessions = Arc::new(Sessions::default());
    let (settler, line) = Settler::new(Arc::clone(&sessions));
    let metrics = Arc::new(Metrics::new(&service.meter()));
    metrics::watch_sessions(&service.meter(), &sessions);
    let (dispatch, fills) = Dispatch::new(
        store.clone(),
        Arc::clone(&sessions),
        settler.clone(),
        Arc::clone(&node),
        metrics,
    );
    metrics::watch_lines(&service.meter(), settler.line(), dispatch.line());
    let sweeps = Sweeps {
        store: store.clone(),
        sessions: Arc::clone(&sessions),
        settler,
        dispatch: dispatch.clone(),
    };
    let writer = store.writer().await?;

    let stop = CancellationToken::new();
    service.spawn("fills", dispatch.clone().run_fills(fills, stop.clone()));
    for (name, turn, writer) in
        [("settle", Turn::Always, Some(writer)), ("settle beside", Turn::Beside, None)]
    {
        let (store, node) = (store.clone(), Arc::clone(&node));
        let (sessions, dispatch) = (Arc::clone(&sessions), dispatch.clone());
        let line = line.clone();
        let settling = Settling { store, node, sessions, dispatch, line, turn, writer };
        service.spawn(name, settling.run(stop.clone()));
    }
    let (publisher, publications) = Publisher::new();
    let publishing = Publishing { store: store.clone(), line: publications };
    service.spawn("publish", publishing.run(stop.clone()));
    spawn_loops(&service, &store, &sessions, &dispatch, &sweeps);
    let unserved = Unserved::new(store.clone(), Duration::from_secs(options.unserved_after));
    let few_minutes = Duration::from_secs(300)..Duration::from_secs(400);
    let ticker = service.ticker(store.bell().listen(Topic::Unserved), few_minutes);
    service.spawn_loop("unserved", unserved.run(ticker));
    let bells = store.clone();
    service.spawn_beside("bell", async move { bells.run_bell().await });
    let grace = Duration::from_secs(options.session_grace);
    let walks = Walks::new(sweeps.clone(), grace);
    service.spawn("lease", walks.clone().run_lease(stop.clone()));
    service.spawn_beside("walk", walks.clone().run_own(left));

    let health = store.clone();
    service.ready("database", move || {
        let health = health.clone();
        Box::pin(async move { health.ping().await.map_err(|error| error.to_string()) })
    });
    let bounds = Bounds {
        grace,
        heartbeat: Duration::from_secs(options.heartbeat),
        age: options.serve.age(),
        result_bytes_max: usize::try_from(options.payload_bytes_max).unwrap_or(usize::MAX),
        sessions_max: usize::try_from(options.sessions_max).unwrap_or(usize::MAX),
    };
    let steps = Steps::new(sweeps, walks, publisher, service.shutdown().clone(), bounds);
    let server = StepServiceServer::new(steps)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    service.spawn("drain", drain(service.clone(), sessions, dispatch, stop));
    Ok(service.serve(listener, Routes::new(server), &["stepwell.v1.StepService"]).await)
}

fn spawn_loops(
    service: &Service,
    store: &Store,
    sessions: &Arc<Sessions>,
    dispatch: &Dispatch,
    sweeps: &Sweeps,
) {
    let bell = |topic| store.bell().listen(topic);
    let every = |bell, from, to| {
        service.ticker(bell, Duration::from_millis(from)..Duration::from_millis(to))
    };
    // Both a bell from outside and a free slot are a reason to look at the backlog.
    let backlog = Arc::new(Notify::new());
    for source in [bell(Topic::Ready), Arc::clone(&sessions.freed)] {
        let backlog = Arc::clone(&backlog);
        service.spawn_beside("backlog", async move {
            loop {
                source.notified().await;
                backlog.notify_one();
            }
        });
    }
    let claiming = Claiming::new(store.clone(), Arc::clone(sessions), dispatch.clone());
    service.spawn_loop("claim", claiming.run(every(backlog, 2000, 3000)));
    let deadline = Arc::clone(&sessions.deadline);
    service.spawn_loop("deadlines", sweeps.clone().run_deadlines(every(deadline, 800, 1200)));
    let timers = Arc::clone(&dispatch.timers);
    service.spawn_loop("timers", sweeps.clone().run_timers(every(timers, 2000, 3000)));
    let keys = bell(Topic::Key);
    service.spawn_loop("keys", sweeps.clone().run_keys(every(keys, 12_000, 18_000)));
    let signals = bell(Topic::Signal);
    service.spawn_loop("signals", sweeps.clone().run_signals(every(signals, 2500, 3500)));
    let definitions = bell(Topic::Definition);
    service.spawn_loop("queues", sweeps.clone().run_queues(every(definitions, 6000, 8000)));
    let presence = Presence::new(store.clone(), Arc::clone(sessions), Arc::clone(dispatch.node()));
    service.spawn_loop("presence", presence.run(every(Arc::default(), 2000, 2500)));
    let log = store.clone();
    let mut ticker = every(Arc::default(), 8000, 12_000);
    service.spawn_loop("log", async move {
        while ticker.next().await {
            match log.extend_log().await {
                Ok(()) => ticker.ok(),
                Err(error) => ticker.back_off(&error),
            }
        }
    });
}

/// At shutdown: executors are told and go elsewhere; streams end when they hold nothing any more,
/// and all of them before the grace is over. What was not sent goes back, then the loops that
/// write end.
async fn drain(
    service: Service,
    sessions: Arc<Sessions>,
    dispatch: Dispatch,
    stop: CancellationToken,
) {
    service.shutdown().wait().await;
    let deadline = service.grace().mul_f64(0.6);
    sessions.drain_all(deadline);
    if tokio::time::timeout(deadline, emptied(&sessions, false)).await.is_err() {
        let rest = service.grace().mul_f64(0.2);
        if tokio::time::timeout(rest, emptied(&sessions, true)).await.is_err() {
            tracing::warn!("some streams did not end");
        }
    }
    dispatch.returns.close();
    dispatch.returns.wait().await;
    // What executors still hold is theirs to claim elsewhere, from now on.
    if let Err(error) = dispatch.node().retire(dispatch.store()).await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "the node id is left to lapse");
    }
    stop.cancel();
}

/// Closes streams that hold nothing, or all, until there are none.
async fn emptied(sessions: &Sessions, all: bool) {
    loop {
        let change = sessions.emptied.notified();
        sessions.close(all);
        if sessions.connected() == 0 {
            return;
        }
        change.await;
    }
}
