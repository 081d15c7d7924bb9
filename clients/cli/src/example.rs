//! `stepwell example`: the parts of the examples, as processes of their own.

mod parts;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use stepwell_client::Observation;
use stepwell_examples::{analytics, cart, checkout, refund, registration};
use tokio::net::TcpListener;

use self::parts::Part;
pub(crate) use self::parts::others;
use crate::{connect::Connect, fault::Fault, output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The checkout of a shop.
    #[command(subcommand)]
    Checkout(Checkout),
    /// Customer analytics: fan-out and fan-in over a warehouse, custom events.
    #[command(subcommand)]
    Analytics(Part),
    /// User registration: a diamond of HTTP calls, and what their statuses mean.
    #[command(subcommand)]
    Registration(Part),
    /// The cart of an API: calls without code, environments.
    #[command(subcommand)]
    Cart(Part),
    /// A refund: two namespaces, a person's approval, a task that starts another.
    #[command(subcommand)]
    Refund(Part),
}

#[derive(Subcommand)]
pub(crate) enum Checkout {
    /// Print the definition, to be registered by `stepwell definition apply -`.
    Definition,
    /// Print one order: the context of a task.
    Order,
    /// Print the shipped orders: each with what must become of it.
    #[command(visible_alias = "inputs")]
    Orders,
    /// Run the payment gateway, the inventory and the mail.
    Servers(Servers),
    /// Run an executor of the checkout's handlers.
    Executor(Executor),
}

#[derive(Args)]
pub(crate) struct Servers {
    /// Address and port to listen on.
    #[arg(long, env = "STEPWELL_EXAMPLE_LISTEN", default_value = "127.0.0.1:7110")]
    listen: SocketAddr,
    /// A file to write the address to.
    #[arg(long, hide = true)]
    address_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Executor {
    /// Its name.
    #[arg(long, default_value = "checkout")]
    name: String,
    /// Address of the example's servers.
    #[arg(long, env = "STEPWELL_EXAMPLE_SERVERS", default_value = "http://127.0.0.1:7110")]
    servers: String,
    /// Steps it runs at once.
    #[arg(long, default_value_t = 32)]
    slots: usize,
    /// A file to write the hand-overs to at the end: from the report of a step to the lease of the
    /// task's next one, in microseconds, one a line.
    #[arg(long)]
    hand_overs: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

impl Command {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let (part, example) = match self {
            Self::Checkout(checkout) => return checkout.run().await,
            Self::Analytics(part) => (part, &analytics::EXAMPLE),
            Self::Registration(part) => (part, &registration::EXAMPLE),
            Self::Cart(part) => (part, &cart::EXAMPLE),
            Self::Refund(part) => (part, &refund::EXAMPLE),
        };
        part.run(example).await?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Checkout {
    async fn run(self) -> Result<ExitCode, Fault> {
        match self {
            Self::Definition => output::line(checkout::DEFINITION.trim_end())?,
            Self::Order => {
                let first = checkout::ORDERS.lines().next().unwrap_or_default();
                let lines = checkout::read(first).map_err(Fault::new)?;
                let order = serde_json::to_string(&lines.first().map(|line| &line.order));
                output::line(order.map_err(|error| Fault::new(error.to_string()))?)?;
            }
            Self::Orders => output::line(checkout::ORDERS.trim_end())?,
            Self::Servers(servers) => servers.run().await?,
            Self::Executor(executor) => executor.run().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Servers {
    /// Listens, and tells where.
    async fn listen(&self) -> Result<(TcpListener, String), Fault> {
        let listener = TcpListener::bind(self.listen).await?;
        let address = format!("http://{}", listener.local_addr()?);
        if let Some(file) = &self.address_file {
            let written = file.with_extension("new");
            std::fs::write(&written, &address)?;
            std::fs::rename(&written, file)?;
        }
        Ok((listener, address))
    }

    async fn run(self) -> Result<(), Fault> {
        let (listener, address) = self.listen().await?;
        output::note(format!("gateway, inventory and mail listen on {address}"));
        checkout::serve(listener).await?;
        Ok(())
    }
}

impl Executor {
    async fn run(self) -> Result<(), Fault> {
        let client = self.connect.client()?;
        let executor = checkout::executor(&client, &self.name, &self.servers, self.slots);
        output::note(format!("{} runs up to {} steps at once", self.name, self.slots));
        let watched = HandOvers::default();
        let watching = watched.clone();
        let executor = executor.observer(move |observation| watching.observe(&observation));
        let report = executor.run(told_to_stop()).await?;
        if let Some(file) = &self.hand_overs {
            std::fs::write(file, watched.lines())?;
        }
        output::note(format!(
            "{}: {} completed, {} failed",
            self.name, report.completed, report.failed
        ));
        Ok(())
    }
}

/// How long it takes from the report of a step to the lease of the next one of its task, as an
/// executor sees it.
#[derive(Clone, Default)]
struct HandOvers(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    /// By lease: its task.
    leased: HashMap<String, String>,
    /// By task: when the report of its last step went out.
    reported: HashMap<String, Instant>,
    taken: Vec<Duration>,
}

impl HandOvers {
    fn observe(&self, observation: &Observation<'_>) {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match observation {
            Observation::Leased(lease) => {
                if let Some(at) = watched.reported.remove(&lease.task_id)
                    && lease.attempt == 1
                {
                    watched.taken.push(at.elapsed());
                }
                watched.leased.insert(lease.lease_id.clone(), lease.task_id.clone());
            }
            Observation::Ended(outcome) => {
                if let Some(task) = watched.leased.remove(&outcome.lease_id) {
                    watched.reported.insert(task, Instant::now());
                }
            }
            _ => {}
        }
    }

    fn lines(&self) -> String {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched.taken.iter().map(|taken| format!("{}\n", taken.as_micros())).collect()
    }
}

/// Until SIGINT or SIGTERM. They are heard from the call on, not only from when it is waited for.
pub(crate) fn told_to_stop() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (term, int) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        let (Ok(mut term), Ok(mut int)) = (term, int) else { return };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}
