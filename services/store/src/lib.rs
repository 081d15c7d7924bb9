//! The only crate that speaks SQL. Writing is done by verbs, one plpgsql function each, called as
//! one statement (`migrations/verbs`); reading by plain statements checked at compile time. It
//! starts no tasks, reads no configuration and knows no transport.
//!
//! A step's way through it: `task` (create) → `step` (claim, settle) → `event` (the log).

mod alert;
mod bell;
mod bulk;
mod definition;
mod error;
mod event;
mod event_type;
mod executor;
mod failure;
mod filter;
mod metrics;
mod migrate;
mod node;
mod note;
mod once;
mod overview;
mod patient;
mod pause;
mod performance;
mod publish;
mod retention;
mod span;
mod step;
mod subscription;
mod survey;
mod task;
mod transition;
mod view;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use opentelemetry::metrics::{Meter, MeterProvider, noop::NoopMeterProvider};
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use definition::Cache as Definitions;
use metrics::Metrics;
use patient::{Patient, Reads, within};
use task::Keys as TaskKeys;

pub use alert::*;
pub use bell::{Bell, Topic};
pub use bulk::*;
pub use definition::*;
pub use error::Error;
pub use event::*;
pub use event_type::*;
pub use executor::*;
pub use failure::StoredFailure;
pub use filter::Filter;
pub use migrate::{SchemaState, migrate};
pub use node::*;
pub use note::{Note, more_attempts, request_id_fault};
pub use once::Once;
pub use overview::*;
pub use pause::Covered;
pub use performance::*;
pub use publish::{Published, PublishedAbout, custom_text};
pub use retention::Keep;
pub use step::*;
pub use subscription::*;
pub use survey::*;
pub use task::*;
pub use transition::{TransitionPage, Transitions};
pub use view::*;

/// How much longer than the database may take for a statement we wait for its answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// A connection that was idle for longer is tried before it is used.
const IDLE_TRUSTED: Duration = Duration::from_secs(1);

/// Where the database is and how it is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// `postgres://user@host/database`; a unix socket as `?host=/path`.
    pub database_url: String,
    /// Connections for reads, at most. The loops' own connections come on top.
    pub pool_max: u32,
    /// No statement of ours runs or waits for a lock longer than this.
    pub timeout: Duration,
    /// Where the use of the database is measured.
    pub meter: Meter,
}

impl Options {
    /// The usual bounds: 8 connections, 5 s. Nothing is measured.
    pub fn new(database_url: impl Into<String>) -> Self {
        Self {
            database_url: database_url.into(),
            pool_max: 8,
            timeout: Duration::from_secs(5),
            meter: NoopMeterProvider::new().meter("stepwell"),
        }
    }
}

/// The database, as the services see it. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    connect: PgConnectOptions,
    patience: Duration,
    pool: PgPool,
    bell: Arc<Bell>,
    definitions: Definitions,
    keys: TaskKeys,
    metrics: Arc<Metrics>,
}

impl Store {
    /// Connects, and refuses a database whose schema is missing, older or newer than this build.
    pub async fn connect(options: &Options, name: &str) -> Result<Self, Error> {
        let timeout = options.timeout.as_millis().to_string();
        let connect: PgConnectOptions = options.database_url.parse().map_err(Error::Url)?;
        let connect = connect.application_name(&format!("stepwell-{name}")).options([
            ("lock_timeout", timeout.as_str()),
            ("statement_timeout", &timeout),
            ("idle_in_transaction_session_timeout", &timeout),
            ("jit", "off"),
            // Plans do not depend on how full the tables were when they were made.
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(options.pool_max)
            .acquire_timeout(options.timeout)
            .test_before_acquire(false)
            // One that was used just now works still; others may have been cut meanwhile.
            .before_acquire(|connection, known| {
                Box::pin(async move {
                    Ok(known.idle_for < IDLE_TRUSTED || connection.ping().await.is_ok())
                })
            })
            .connect_with(connect.clone())
            .await?;
        let metrics = Arc::new(Metrics::new(&options.meter, &pool, options.pool_max));
        let store = Self(Arc::new(Inner {
            connect,
            patience: options.timeout + PATIENCE,
            pool,
            bell: Arc::new(Bell::new()),
            definitions: Definitions::default(),
            keys: TaskKeys::default(),
            metrics,
        }));
        store.check_writable().await?;
        store.check_schema().await?;
        Ok(store)
    }

    /// Refuses a standby, where nothing can be written.
    async fn check_writable(&self) -> Result<(), Error> {
        let standby = sqlx::query_scalar!(r#"select pg_is_in_recovery() as "standby!""#)
            .fetch_one(self.reads())
            .await?;
        if standby { Err(Error::Standby) } else { Ok(()) }
    }

    /// Answers when the database does.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query_scalar!("select 1 as \"one!\"").fetch_one(self.reads()).await?;
        Ok(())
    }

    /// What time it is, by the clock of the database.
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#);
        Ok(now.fetch_one(self.reads()).await?)
    }

    /// The bells of this process.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.0.bell
    }

    /// Carries bells to other processes, and from them those that somebody here listens to by now, until
    /// the future is dropped.
    pub async fn run_bell(&self) {
        bell::run(self.0.connect.clone(), self.0.patience, Arc::clone(&self.0.bell)).await;
    }

    /// A connection of its own.
    pub async fn writer(&self) -> Result<Writer, Error> {
        let patience = self.0.patience;
        let connection = within(patience, PgConnection::connect_with(&self.0.connect)).await;
        let connection = connection.map_err(Error::Unreachable)?;
        let metrics = Arc::clone(&self.0.metrics);
        Ok(Writer { connection: Patient { connection, patience, metrics } })
    }

    /// The connection a loop has, or one that is made now.
    pub async fn connected<'a>(
        &self,
        writer: &'a mut Option<Writer>,
    ) -> Result<&'a mut Writer, Error> {
        Ok(match writer {
            Some(writer) => writer,
            none => none.insert(self.writer().await?),
        })
    }

    /// Keeps the log's partitions ahead of its head, and those of requests about today; to be called every
    /// few seconds.
    pub async fn extend_log(&self) -> Result<(), Error> {
        sqlx::query!("select stepwell.extend_event(), stepwell.extend_request()")
            .fetch_one(self.reads())
            .await?;
        Ok(())
    }

    /// A connection out of the pool, for one statement.
    pub(crate) fn reads(&self) -> Reads<'_> {
        Reads { pool: &self.0.pool, patience: self.0.patience, metrics: &self.0.metrics }
    }
}

/// A connection of a loop's own, for verbs and for reads that come again and again. After an error that
/// is not about data, drop it and make another.
pub struct Writer {
    pub(crate) connection: Patient,
}

impl Writer {
    /// The connection, for statements beside the verbs.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection.connection
    }
}
