//! event-service: the feed of everything that happened, in the order of commits, without gaps.
//!
//! An event's way: `tail` reads the log's end once per process → `ring` keeps the latest part for
//! all, encoded once → `deliver` takes each subscription through it, `filter` in hand → `service` answers the
//! stream. A durable `subscription` has its place in the database, and if it has a delivery its reader is a
//! `courier` of this process. `catalog` says which types of events there
//! are. Beside it, `survey` now and then looks at the whole, for `metrics`.

mod catalog;
pub mod cloud_event;
mod courier;
mod custom;
mod deliver;
mod filter;
mod list;
mod metrics;
mod place;
mod ring;
mod said;
mod service;
mod sse;
mod subscription;
mod survey;
mod tail;
mod trace;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Parser;
use stepwell_outbound::{AllowedHost, Hosts};
use stepwell_proto::{
    refusal::Refusal,
    v1::{
        ErrorReason, SubscriptionText, event_service_server::EventServiceServer,
        subscription_service_server::SubscriptionServiceServer,
    },
};
use stepwell_rule::Types;
use stepwell_serve::{MESSAGE_BYTES_MAX, Service};
use stepwell_store::{Keep, READER_LEASE, Store, Topic};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
};
use tonic::{codec::CompressionEncoding, service::Routes};
use uuid::Uuid;

use crate::{
    courier::{Couriers, Ways},
    metrics::{Metrics, Seats},
    ring::Ring,
    said::SaidOf,
    service::Feed,
    subscription::{Keeper, Subscriptions},
    survey::Surveying,
    tail::Tail,
};

/// Where it listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 7103;

/// event-service: delivers events to subscribers.
#[derive(Parser, Clone, Debug)]
#[command(version)]
#[group(id = "event-service")]
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
    /// The latest part of the log that is kept in memory for all subscriptions. MiB, 1 to 4,096.
    #[arg(long, env = "STEPWELL_RING_MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub ring_mib: u32,
    /// More subscriptions are refused. 1 to 100,000.
    #[arg(long, env = "STEPWELL_SUBSCRIPTIONS_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub subscriptions_max: u32,
    /// How often the whole is surveyed for `/metrics`: what is ready, what is late, what the log has
    /// had. Steps that nobody serves are told of after it. Seconds, 1 to 3,600, or 0: never; then they are
    /// some minutes later.
    #[arg(long, env = "STEPWELL_SURVEY_INTERVAL", default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub survey_interval: u64,
    /// How long events are kept. Those of one partition, 33,554,432 positions, are dropped together when the
    /// last of them is so old; the partition of the newest event stays. A subscriber that has not come so far is
    /// told `CURSOR_EXPIRED`. Hours, 1 to 876,000, or 0: for ever.
    #[arg(long, env = "STEPWELL_KEEP_EVENTS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=876_000))]
    pub keep_events: u64,
    /// How large the log may grow before its oldest partition is dropped, however young it is. One takes some 8 GiB.
    /// GiB, 1 to 1,048,576, or 0: no matter how large.
    #[arg(long, env = "STEPWELL_KEEP_EVENTS_GIB", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    pub keep_events_gib: u64,
    /// A host that webhooks may be sent to, whatever its address; may be repeated, with commas in the
    /// environment: `hooks.example.com`, `*.example.com` (all below it), `10.0.0.7:8080`, or `*` (any host, at
    /// public addresses). With any, they go nowhere else. Default: any host, at public addresses.
    #[arg(
        long = "webhook-host",
        env = "STEPWELL_WEBHOOK_HOST",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub webhook_hosts: Vec<AllowedHost>,
    /// Webhooks may be sent to private addresses, too. In the environment: true or false.
    #[arg(long, env = "STEPWELL_WEBHOOK_PRIVATE")]
    pub webhook_private: bool,
    /// A folder of subscriptions that are declared: those in its files `*.yaml` and `*.yml` are applied before it
    /// serves. It does not start with files that are wrong. Default: none.
    #[arg(long, env = "STEPWELL_SUBSCRIPTIONS", value_name = "FOLDER")]
    pub subscriptions: Option<PathBuf>,
    /// Deliveries on their way at once, beside one for each subscription. 0 to 10,000.
    #[arg(long, env = "STEPWELL_DELIVERIES_MAX", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub deliveries_max: u32,
}

impl Options {
    /// What of the log is kept.
    fn keep(&self) -> Keep {
        let unless_zero = |n: u64| (n > 0).then_some(n);
        Keep {
            age: unless_zero(self.keep_events).map(|hours| Duration::from_secs(hours * 3600)),
            bytes: unless_zero(self.keep_events_gib).map(|gib| gib << 30),
        }
    }
}

/// Checks the subscriptions that a text declares, alone or inside a definition, without a service. What only a service
/// knows, such as the custom events that are registered beside those given, and its hosts, is taken for right.
///
/// Errors: INVALID_REQUEST, with all faults.
pub fn check_subscriptions(text: &SubscriptionText, published: Vec<String>) -> Result<(), Refusal> {
    let ways = Ways::new(Hosts::default().private(true));
    let ways = ways.map_err(|error| Refusal::new(ErrorReason::Internal, error.to_string()))?;
    subscription::check(&ways, text, published)
}

/// Runs the service until it is told to stop.
pub fn main(options: Options) -> ExitCode {
    let serve = options.serve.clone();
    stepwell_serve::run(&serve, move || async move {
        let service = Service::start("event", &options.serve)?;
        service.handle_signals();
        let store = stepwell_store::Options {
            timeout: Duration::from_secs(options.database_timeout),
            meter: service.meter(),
            ..stepwell_store::Options::new(&options.database_url)
        };
        let store = Store::connect(&store, "event").await.context("event-service cannot start")?;
        let listener = service.bind(&options.serve, DEFAULT_PORT).await?;
        run(service, store, listener, &options).await
    })
}

/// Applies the subscriptions that the files of a folder declare.
async fn apply_folder(store: &Store, ways: &Ways, folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{shown} cannot be read"))? {
        files.push(entry.with_context(|| format!("{shown} cannot be read"))?.path());
    }
    files.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml"));
    files.sort();
    let mut texts = Vec::new();
    for file in files {
        let yaml = std::fs::read_to_string(&file)
            .with_context(|| format!("{} cannot be read", file.display()))?;
        let source = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        texts.push(SubscriptionText { source, yaml });
    }
    if let Err(refusal) = subscription::apply(store, ways, &texts, false).await {
        let faults = refusal.violations.iter().map(|(at, what)| format!("\n  {at}: {what}"));
        let faults: String = faults.collect();
        bail!("the subscriptions of {shown} cannot be applied: {}{faults}", refusal.message);
    }
    Ok(())
}

/// Serves on a listener with a store until the service is told to stop.
pub async fn run(
    service: Service,
    store: Store,
    listener: TcpListener,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let ring = Arc::new(Ring::new(size(options.ring_mib) << 20));
    let said = Arc::new(SaidOf::default());
    let begun = Arc::new(Notify::new());
    let metrics = Arc::new(Metrics::new(&service.meter()));
    let seats = Arc::new(Seats::default());
    metrics::watch_feed(&service.meter(), &seats, &ring);

    // Both growth of the log and a new subscription are a reason to look.
    let look = Arc::new(Notify::new());
    for source in [store.bell().listen(Topic::Event), Arc::clone(&begun)] {
        let look = Arc::clone(&look);
        service.spawn_beside("look", async move {
            loop {
                source.notified().await;
                look.notify_one();
            }
        });
    }
    let acked = store.bell().listen(Topic::Subscription);
    let free = store.bell().listen(Topic::Subscription);
    let bells = store.clone();
    service.spawn_beside("bell", async move { bells.run_bell().await });
    let every = |bell, from, to| {
        service.ticker(bell, Duration::from_millis(from)..Duration::from_millis(to))
    };
    let epoch = store.log_epoch().await?;
    let tail = Tail {
        store: store.clone(),
        ring: Arc::clone(&ring),
        said: Arc::clone(&said),
        epoch,
        metrics: Arc::clone(&metrics),
        reader: None,
    };
    service.spawn_loop("tail", tail.run(every(look, 800, 1200)));
    let keeper = Arc::new(Keeper::default());
    let third = u64::try_from(READER_LEASE.as_millis()).unwrap_or(u64::MAX) / 3;
    service.spawn_loop(
        "keeper",
        Arc::clone(&keeper).run(store.clone(), every(acked, third - 300, third)),
    );
    if options.survey_interval > 0 {
        let surveying =
            Surveying::new(store.clone(), Arc::clone(&metrics), service.shutdown().clone());
        let interval = options.survey_interval * 1000;
        service.spawn_loop(
            "survey",
            surveying.run(every(Arc::default(), interval, interval + interval / 10 + 1)),
        );
    }
    let log = store.clone();
    let mut ticker = every(Arc::default(), 8000, 12_000);
    service.spawn_loop("log", async move {
        while ticker.next().await {
            match log.extend_log().await {
                // While nobody subscribes the tail does not look.
                Ok(()) if log.log_epoch().await.is_ok_and(|now| now != epoch) => {
                    tracing::error!("the database has another log now");
                    return;
                }
                Ok(()) => ticker.ok(),
                Err(error) => ticker.back_off(&error),
            }
        }
    });

    let keep = options.keep();
    if !keep.is_everything() {
        let log = store.clone();
        let mut ticker = every(Arc::default(), 8000, 12_000);
        service.spawn_loop("old", async move {
            while ticker.next().await {
                match log.drop_old_events(keep).await {
                    Ok(0) => ticker.ok(),
                    Ok(partitions) => {
                        tracing::info!(partitions, "old events dropped");
                        ticker.ok();
                    }
                    Err(error) => ticker.back_off(&error),
                }
            }
        });
    }

    let health = store.clone();
    service.ready("database", move || {
        let health = health.clone();
        Box::pin(async move { health.ping().await.map_err(|error| error.to_string()) })
    });
    let hosts = Hosts::new(options.webhook_hosts.iter().cloned()).private(options.webhook_private);
    let ways = Arc::new(Ways::new(hosts).context("event-service cannot start")?);
    if let Some(folder) = &options.subscriptions {
        apply_folder(&store, &ways, folder).await?;
    }
    let subscriptions = SubscriptionServiceServer::new(Subscriptions {
        store: store.clone(),
        said: Arc::clone(&said),
        ways: Arc::clone(&ways),
    })
    .accept_compressed(CompressionEncoding::Gzip)
    .accept_compressed(CompressionEncoding::Zstd)
    .max_decoding_message_size(MESSAGE_BYTES_MAX)
    .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let feed = Feed {
        store,
        ring,
        said,
        begun,
        shutdown: service.shutdown().clone(),
        subscriptions_max: size(options.subscriptions_max),
        age: options.serve.age(),
        open: Arc::default(),
        metrics,
        seats,
        keeper,
        courier: format!("event-service/{:08x}", Uuid::now_v7().as_u64_pair().1 & 0xffff_ffff),
        types: Types::default(),
    };
    let feed = Arc::new(feed);
    let couriers = Couriers {
        feed: Arc::clone(&feed),
        ways,
        room: Arc::new(Semaphore::new(size(options.deliveries_max))),
        look: Arc::clone(&free),
    };
    service
        .spawn_loop("couriers", couriers.run(every(free, third - 300, third), service.grace() / 2));
    let server = EventServiceServer::from_arc(Arc::clone(&feed))
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let routes = Routes::new(server).add_service(subscriptions).into_axum_router();
    let routes = Routes::from(routes.merge(sse::routes(feed)));
    let names = ["stepwell.v1.EventService", "stepwell.v1.SubscriptionService"];
    Ok(service.serve(listener, routes, &names).await)
}
