//! What the programs have in common: where they read, and when they stop.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use clap::{Args, ValueEnum};
use stepwell_client::{
    Addresses, CancellationToken, Client, Error, EventHandler, HandlerError, Start, Subscriber,
    Tally,
    v1::{self, Event},
};

/// Options of every example. Where the services are is in `STEPWELL_EVENT_ADDRESS`.
#[derive(Args, Debug)]
pub struct Options {
    /// Read this durable subscription, which is made if it is not there, instead of the feed
    #[arg(long)]
    subscription: Option<String>,
    /// Name of this reader of the subscription
    #[arg(long, default_value = "example", requires = "subscription")]
    reader: String,
    /// Where to begin; a subscription that is there goes on where it was
    #[arg(long, value_enum, default_value = "latest")]
    from: From,
    /// Stop after so many tasks have ended; default: run until SIGINT or SIGTERM
    #[arg(long)]
    tasks: Option<usize>,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// With the oldest event that is kept.
    Earliest,
    /// With the first event after the start.
    Latest,
}

impl Options {
    /// A client of the services that the environment names.
    pub fn client() -> Result<Client, Error> {
        Client::connect(Addresses::from_env())
    }

    /// When to stop.
    pub fn ends(&self) -> Ends {
        Ends { tasks: self.tasks, ended: Arc::default(), stop: CancellationToken::new() }
    }
}

/// Counts tasks that end, and stops the program after so many.
#[derive(Clone, Debug)]
pub struct Ends {
    tasks: Option<usize>,
    /// Ids of those that have ended: an event may come again.
    ended: Arc<Mutex<HashSet<String>>>,
    stop: CancellationToken,
}

impl Ends {
    /// Waits for the last one, SIGINT or SIGTERM.
    async fn all(self) {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut term) = signal(SignalKind::terminate()) else { return };
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
}

impl EventHandler for Ends {
    fn subscribe_to(&self) -> Vec<&str> {
        vec!["task.completed", "task.failed", "task.cancelled"]
    }

    async fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        if let Some(tasks) = self.tasks
            && let Ok(mut ended) = self.ended.lock()
        {
            ended.insert(event.task_id.clone());
            if ended.len() >= tasks {
                self.stop.cancel();
            }
        }
        Ok(())
    }
}

/// Runs a handler as the options say; `only` are the definitions it is about, all if there are none.
pub async fn run(
    options: &Options,
    client: &Client,
    handler: impl EventHandler,
    only: &[&str],
) -> Result<Tally, Error> {
    let ends = options.ends();
    let names: Vec<String> = handler.subscribe_to().into_iter().map(str::to_owned).collect();
    let subscriber = Subscriber::new(client).handler(handler)?.handler(ends.clone())?;
    let subscriber = match &options.subscription {
        None => {
            let from = match options.from {
                From::Earliest => Start::Earliest,
                From::Latest => Start::Latest,
            };
            subscriber.definitions(only.iter().copied()).from(from)
        }
        Some(name) => {
            make(options, client, name, names, only).await?;
            subscriber.durable(client.durable(name, &options.reader))
        }
    };
    subscriber.run(ends.all()).await
}

/// Makes the durable subscription, if it is not there.
async fn make(
    options: &Options,
    client: &Client,
    name: &str,
    mut names: Vec<String>,
    only: &[&str],
) -> Result<(), Error> {
    use v1::create_subscription_request::Start;
    names.extend(["task.completed", "task.failed", "task.cancelled"].map(str::to_owned));
    names.sort_unstable();
    names.dedup();
    let definition_names = only.iter().map(|&name| name.to_owned()).collect();
    let filter = v1::EventFilter { names, definition_names, ..v1::EventFilter::default() };
    let subscription = v1::Subscription {
        name: name.to_owned(),
        filter: Some(filter),
        ..v1::Subscription::default()
    };
    let start = match options.from {
        From::Earliest => Start::Earliest(v1::Earliest {}),
        From::Latest => Start::Latest(v1::Latest {}),
    };
    let request =
        v1::CreateSubscriptionRequest { subscription: Some(subscription), start: Some(start) };
    client.create_subscription(request).await.map(|_| ())
}
