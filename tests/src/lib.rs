//! What the tests stand on: a database with definitions, and a line to make tasks and move their
//! steps by the verbs alone.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod check;
mod checker;
pub mod history;
mod proxy;
mod receiver;
mod scrape;
mod telemetry;
mod world;

use std::{sync::Arc, time::Duration};

use sqlx::{Connection, PgConnection};
use stepwell_proto::v1::{Definition, RetryPolicy, StepTemplate};
use stepwell_store::{
    Change, ChildSlots, Claimed, Ending, Judge, LeaseRow, NewTask, Note, Options, Report, Settled,
    Slots, Store, StoredDefinition, Writer,
};
use stepwell_suite::TestDatabase;
use tokio::sync::Mutex;
use uuid::Uuid;

pub use check::check;
pub use checker::{Verdict, violations};
pub use proxy::{Proxy, Target, Way};
pub use receiver::{Receiver, Span, drawn};
pub use scrape::{Sample, Scrape, metric_of};
pub use telemetry::Exports;
pub use world::{Gate, Running, SOON, World, short_terms, until};

/// A client of plain HTTP.
pub fn http() -> reqwest::Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// One database, migrated, of this test alone.
pub struct Rows {
    /// Lives as long as the test.
    pub database: TestDatabase,
    /// The store over it.
    pub store: Store,
    /// A node to lease in the name of.
    pub node: i32,
    /// Looks at rows and at who waits.
    watcher: Mutex<PgConnection>,
}

/// The session whose slots the tests fill.
pub const SESSION: i64 = 7;

impl Rows {
    /// A fresh database.
    pub async fn new() -> Self {
        let database = stepwell_suite::test_database().await.unwrap();
        let store = Store::connect(&Options::new(&database.url), "test").await.unwrap();
        let node = store.register_node(Duration::from_secs(300)).await.unwrap();
        let watcher = Mutex::new(PgConnection::connect(&database.url).await.unwrap());
        Self { database, store, node, watcher }
    }

    /// A connection beside the store, to look at rows and to hold locks.
    pub async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.database.url).await.unwrap()
    }

    /// A connection for verbs.
    pub async fn writer(&self) -> Writer {
        self.store.writer().await.unwrap()
    }

    /// Registers a definition given as `a; b: a; c: a; d: b c`: each step with its parents.
    pub async fn define(&self, steps: &str) -> Arc<StoredDefinition> {
        self.define_with(steps, |_| {}).await
    }

    /// The same, changed before it is registered.
    pub async fn define_with(
        &self,
        steps: &str,
        change: impl FnOnce(&mut Definition),
    ) -> Arc<StoredDefinition> {
        let steps = steps.split(';').map(|step| {
            let (name, parents) = step.split_once(':').unwrap_or((step, ""));
            StepTemplate {
                name: name.trim().to_owned(),
                handler: "h".to_owned(),
                depends_on: parents.split_whitespace().map(str::to_owned).collect(),
                retry: Some(RetryPolicy { max_attempts: 3, ..RetryPolicy::default() }),
                timeout: Some(prost_duration(30)),
                ..StepTemplate::default()
            }
        });
        let steps: Vec<StepTemplate> = steps.collect();
        let name = format!("d{}", Uuid::now_v7().simple());
        let mut definition = Definition {
            namespace: "default".into(),
            name,
            version: "1.0.0".into(),
            steps,
            content_hash: "00".repeat(32),
            ..Definition::default()
        };
        change(&mut definition);
        let judge: Judge = |_, _| Ok(Change::Insert);
        self.store.register_definition(&definition, judge).await.unwrap().0
    }

    /// Creates a task; answers its key.
    pub async fn create(&self, definition: &Arc<StoredDefinition>) -> i64 {
        self.create_many(definition, 1).await[0]
    }

    /// Creates tasks in one call; answers their keys.
    pub async fn create_many(&self, definition: &Arc<StoredDefinition>, n: usize) -> Vec<i64> {
        let mut writer = self.writer().await;
        let tasks = self.create_with(&mut writer, definition, n).await;
        let mut connection = self.connection().await;
        let uids: Vec<Uuid> = tasks.iter().map(|t| t.uid).collect();
        sqlx::query_scalar("select id from stepwell.task where uid = any($1) order by id")
            .bind(uids)
            .fetch_all(&mut connection)
            .await
            .unwrap()
    }

    /// Creates tasks on a given connection.
    pub async fn create_with(
        &self,
        writer: &mut Writer,
        definition: &Arc<StoredDefinition>,
        n: usize,
    ) -> Vec<NewTask> {
        let mut tasks: Vec<NewTask> = (0..n).map(|_| new_task(definition)).collect();
        writer.create_tasks(&self.store, &mut tasks).await.unwrap();
        tasks
    }

    /// Claims up to `n` ready steps of a queue.
    pub async fn claim(&self, writer: &mut Writer, queue: i32, n: usize) -> Vec<LeaseRow> {
        self.try_claim(writer, queue, n).await.unwrap().leases
    }

    /// The same, with its errors.
    pub async fn try_claim(
        &self,
        writer: &mut Writer,
        queue: i32,
        n: usize,
    ) -> Result<Claimed, stepwell_store::Error> {
        writer.claim(&slots(queue, n), &std::collections::HashMap::new(), self.node).await
    }

    /// Settles without slots for what becomes ready.
    pub async fn settle(&self, writer: &mut Writer, reports: &[Report]) -> Settled {
        writer.settle(reports, &ChildSlots::default(), self.node, None).await.unwrap()
    }

    /// Cancels a task; answers how many leases are void.
    pub async fn cancel(&self, uid: Uuid) -> i32 {
        let note = Note::new("who", "why");
        self.store.cancel_tasks(&[uid], false, &note).await.unwrap().told
    }

    /// One value of a query.
    pub async fn one<T>(&self, sql: &'static str, key: i64) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut connection = self.watcher.lock().await;
        sqlx::query_scalar(sql).bind(key).fetch_one(&mut *connection).await.unwrap()
    }

    /// Carries out a statement about one number; answers how many rows it touched.
    pub async fn execute(&self, sql: &'static str, key: i64) -> u64 {
        let mut connection = self.watcher.lock().await;
        sqlx::query(sql).bind(key).execute(&mut *connection).await.unwrap().rows_affected()
    }

    /// As if so much time had passed (an interval, as text): whatever is due later is due so much sooner.
    pub async fn pass(&self, interval: &str) {
        let mut connection = self.watcher.lock().await;
        for sql in [
            "update stepwell.timer set due = due - $1::text::interval",
            "update stepwell.step set due = due - $1::text::interval, not_before = not_before - $1::text::interval",
            "update stepwell.task set deadline = deadline - $1::text::interval",
        ] {
            sqlx::query(sql).bind(interval).execute(&mut *connection).await.unwrap();
        }
    }

    /// Waits until so many sessions of this database stand in line for a lock.
    pub async fn in_line(&self, n: i64) {
        let mut connection = self.watcher.lock().await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity \
                  where datname = current_database() and wait_event_type = 'Lock'",
            )
            .fetch_one(&mut *connection)
            .await
            .unwrap();
            if waiting == n {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{waiting} sessions wait, not {n}");
            tokio::task::yield_now().await;
        }
    }
}

/// Cuts a log in which nothing is yet into so many partitions of so many positions.
pub async fn cut_log(connection: &mut PgConnection, size: i64, n: i64) {
    let made: Vec<String> = sqlx::query_scalar(
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'stepwell.event'::regclass",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    let mut statements: Vec<String> =
        made.iter().map(|table| format!("drop table {table};")).collect();
    for from in (0..n).map(|i| i * size) {
        let table = format!("stepwell.event_{from:019}");
        statements.push(format!(
            "create table {table} partition of stepwell.event for values from ({from}) to ({});
             alter table {table} add primary key (position);",
            from + size
        ));
    }
    let statements = sqlx::AssertSqlSafe(statements.concat());
    sqlx::raw_sql(statements).execute(connection).await.unwrap();
}

/// A task to create.
pub fn new_task(definition: &Arc<StoredDefinition>) -> NewTask {
    NewTask {
        uid: Uuid::now_v7(),
        definition: Arc::clone(definition),
        context: r#"{"n": 1}"#.into(),
        initiator: "test".into(),
        source_system: "test".into(),
        reason: "test".into(),
        tags: Vec::new(),
        skipped: Vec::new(),
        priority: None,
        concurrency: None,
        identity: None,
        correlation_id: "test".into(),
        annotations: Default::default(),
        trace: None,
        hash: [0; 32],
        key: None,
    }
}

/// Free slots of the test's session.
pub fn slots(queue: i32, n: usize) -> Slots {
    let mut slots = Slots::default();
    slots.push(queue, vec![SESSION; n]);
    slots
}

/// A free slot of the test's session for each of so many children of each report's step.
pub fn child_slots(children: &[usize]) -> ChildSlots {
    let mut slots = ChildSlots::default();
    children.iter().for_each(|n| slots.push(&vec![Some(SESSION); *n]));
    slots
}

/// A lease that completed.
pub fn complete(lease: &LeaseRow, result: &str) -> Report {
    report(lease, Ending::Complete, result)
}

/// A lease that ended in some way.
pub fn report(lease: &LeaseRow, ending: Ending, text: &str) -> Report {
    Report { step: lease.step, token: lease.token, ending, text: text.into(), events: Vec::new() }
}

/// So many seconds.
pub fn prost_duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}
