//! event-service: the feed of everything that happened, in the order of commits, without gaps.
//!
//! An event's way: `tail` reads the log's end once per process → `ring` keeps the latest part for
//! all, encoded once → `deliver` takes each subscription through it, `filter` in hand → `service` answers the
//! stream. A durable `subscription` has its place in the database. `catalog` says which types of events there
//! are. Beside it, `survey` now and then looks at the whole, for `metrics`.

mod catalog;
mod custom;
mod deliver;
mod filter;
mod metrics;
mod place;
mod ring;
mod said;
mod service;
mod subscription;
mod survey;
mod tail;
mod trace;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use stepwell_proto::v1::{
    event_service_server::EventServiceServer,
    subscription_service_server::SubscriptionServiceServer,
};
use stepwell_rule::Types;
use stepwell_serve::{MESSAGE_BYTES_MAX, Service};
use stepwell_store::{Keep, READER_LEASE, Store, Topic};
use tokio::{net::TcpListener, sync::Notify};
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{
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
    let subscriptions = SubscriptionServiceServer::new(Subscriptions {
        store: store.clone(),
        said: Arc::clone(&said),
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
        types: Types::default(),
    };
    let server = EventServiceServer::new(feed)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let routes = Routes::new(server).add_service(subscriptions);
    let names = ["stepwell.v1.EventService", "stepwell.v1.SubscriptionService"];
    Ok(service.serve(listener, routes, &names).await)
}
