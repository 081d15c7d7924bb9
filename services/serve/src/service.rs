//! One running service: its loops, its readiness, its end.

use std::{
    io::ErrorKind,
    ops::Range,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use futures::{FutureExt, future::BoxFuture};
use opentelemetry::metrics::Meter;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{
    Options, Shutdown, Ticker, limits::READY_WITHIN, metrics::Metrics, telemetry::Telemetry,
};

/// One thing that must work for the service to be ready.
#[derive(Clone)]
struct Check {
    name: &'static str,
    ask: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
    failing: Arc<AtomicBool>,
}

impl Check {
    /// True if it works. What is wrong stands in the log, once each time it begins: whoever asks
    /// for readiness is told no more than the name.
    async fn passes(&self) -> bool {
        let fault = match tokio::time::timeout(READY_WITHIN, (self.ask)()).await {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(fault),
            Err(_) => Some(format!("no answer within {READY_WITHIN:?}")),
        };
        let failed_before = self.failing.swap(fault.is_some(), Ordering::Relaxed);
        match &fault {
            Some(fault) if !failed_before => tracing::warn!(check = self.name, fault, "not ready"),
            None if failed_before => tracing::info!(check = self.name, "ready again"),
            _ => {}
        }
        fault.is_none()
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Service {
    name: &'static str,
    grace: Duration,
    options: Arc<Options>,
    shutdown: Shutdown,
    tracker: TaskTracker,
    checks: Arc<Mutex<Vec<Check>>>,
    metrics: Metrics,
    telemetry: Telemetry,
}

impl Service {
    /// Sets up the log, the meter and the export of spans, and says that the service starts.
    pub fn start(name: &'static str, options: &Options) -> anyhow::Result<Self> {
        let telemetry = Telemetry::set_up(name, options)?;
        tracing::info!(service = name, version = env!("CARGO_PKG_VERSION"), "starting");
        Ok(Self {
            name,
            grace: Duration::from_secs(options.grace),
            options: Arc::new(options.clone()),
            shutdown: Shutdown::default(),
            tracker: TaskTracker::new(),
            checks: Arc::default(),
            metrics: Metrics::start(name, options.collector())?,
            telemetry,
        })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it declares what it measures.
    pub fn meter(&self) -> Meter {
        self.metrics.meter()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How long a shutdown waits at most.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// What it was told.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Whether it goes down.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// The first SIGTERM or SIGINT begins the shutdown, the second ends the process at once.
    /// For binaries: several services in one process leave signals alone.
    pub fn handle_signals(&self) {
        let (mut term, mut int) =
            match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
                (Ok(term), Ok(int)) => (term, int),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!(service = self.name, %error, "signals are not heard");
                    return;
                }
            };
        let (shutdown, service) = (self.shutdown.clone(), self.name);
        tokio::spawn(async move {
            let mut told = async || {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
            };
            told().await;
            tracing::info!(service, "going down");
            shutdown.begin();
            told().await;
            std::process::exit(1);
        });
    }

    /// Runs a task that the shutdown waits for. If it panics the service goes down.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_watched(name, task, false);
    }

    /// The same for a loop that has no reason to end before the shutdown begins.
    pub fn spawn_loop(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_watched(name, task, true);
    }

    fn spawn_watched(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        endless: bool,
    ) {
        let shutdown = self.shutdown.clone();
        let watched = async move {
            let ended = std::panic::AssertUnwindSafe(task).catch_unwind().await;
            if ended.is_err() || endless && !shutdown.begun() {
                tracing::error!(task = name, "a task broke; going down");
                shutdown.fail();
            }
        };
        let span = tracing::info_span!("task", service = self.name, name);
        self.tracker.spawn(watched.instrument(span));
    }

    /// Runs a task that ends with the process: the shutdown does not wait for it.
    pub fn spawn_beside(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let shutdown = self.shutdown.clone();
        self.spawn(name, async move {
            tokio::select! {
                () = shutdown.wait() => {}
                () = task => {}
            }
        });
    }

    /// A rhythm for a loop: its bell, and by itself within the period.
    pub fn ticker(&self, bell: Arc<Notify>, period: Range<Duration>) -> Ticker {
        Ticker::new(bell, period, self.shutdown.clone())
    }

    /// Adds a check that `/readyz` asks. Its fault goes to the log, its name to whoever asks.
    pub fn ready(
        &self,
        name: &'static str,
        check: impl Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync + 'static,
    ) {
        let check = Check { name, ask: Arc::new(check), failing: Arc::default() };
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).push(check);
    }

    /// Asks all checks at once; the names of those that fail.
    pub(crate) async fn faults(&self) -> Vec<&'static str> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let asked =
            checks.iter().map(|check| async { (!check.passes().await).then_some(check.name) });
        let mut faults: Vec<_> =
            futures::future::join_all(asked).await.into_iter().flatten().collect();
        if self.shutdown.begun() {
            faults.push("going down");
        }
        faults
    }

    /// The spans on their way out.
    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Waits for the tasks. They have been told by the shutdown.
    pub(crate) async fn tasks_ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Takes the address, and tells the launcher.
    pub async fn bind(&self, options: &Options, default_port: u16) -> anyhow::Result<TcpListener> {
        let address = options.address(default_port)?;
        let listener = TcpListener::bind(address).await.map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => anyhow::anyhow!(
                "{address} is taken by another process: say --listen with another port, or port 0 \
                 for a free one"
            ),
            _ => anyhow::Error::new(error).context(format!("cannot listen on {address}")),
        })?;
        let address = listener.local_addr()?;
        if let Some(file) = &options.address_file {
            let written = file.with_extension("new");
            std::fs::write(&written, format!("http://{address}"))
                .and_then(|()| std::fs::rename(&written, file))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        tracing::info!(service = self.name, %address, "listening");
        Ok(listener)
    }
}

/// Runs a binary: its runtime, its errors as sentences, and an exit that waits for no stuck thread.
pub fn run<F>(options: &Options, main: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.worker_threads)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(main()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}
