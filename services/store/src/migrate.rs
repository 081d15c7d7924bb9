//! The schema: brings it up to date, and says whether it is the one this build needs.

use std::borrow::Cow;

use sqlx::{AssertSqlSafe, Connection, PgConnection, migrate::Migrator};

use crate::{Error, Store};

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// Applied after the migrations, in this order; last the views, which only read.
const VERBS: &[(&str, &str)] = &[
    ("00_types", include_str!("../../../migrations/verbs/00_types.sql")),
    ("10_append", include_str!("../../../migrations/verbs/10_append.sql")),
    ("12_log", include_str!("../../../migrations/verbs/12_log.sql")),
    ("15_gate", include_str!("../../../migrations/verbs/15_gate.sql")),
    ("17_queue", include_str!("../../../migrations/verbs/17_queue.sql")),
    ("20_create_tasks", include_str!("../../../migrations/verbs/20_create_tasks.sql")),
    ("21_create_identified", include_str!("../../../migrations/verbs/21_create_identified.sql")),
    ("40_claim", include_str!("../../../migrations/verbs/40_claim.sql")),
    ("45_end", include_str!("../../../migrations/verbs/45_end.sql")),
    ("50_settle", include_str!("../../../migrations/verbs/50_settle.sql")),
    ("60_node", include_str!("../../../migrations/verbs/60_node.sql")),
    ("70_release_due", include_str!("../../../migrations/verbs/70_release_due.sql")),
    ("75_grant_keys", include_str!("../../../migrations/verbs/75_grant_keys.sql")),
    ("82_move_steps", include_str!("../../../migrations/verbs/82_move_steps.sql")),
    ("84_move_tasks", include_str!("../../../migrations/verbs/84_move_tasks.sql")),
    ("85_update", include_str!("../../../migrations/verbs/85_update.sql")),
    ("86_bulk", include_str!("../../../migrations/verbs/86_bulk.sql")),
    ("86_tag", include_str!("../../../migrations/verbs/86_tag.sql")),
    ("87_request", include_str!("../../../migrations/verbs/87_request.sql")),
    ("88_annotate", include_str!("../../../migrations/verbs/88_annotate.sql")),
    ("88_publish", include_str!("../../../migrations/verbs/88_publish.sql")),
    ("88_unserved", include_str!("../../../migrations/verbs/88_unserved.sql")),
    ("89_remove", include_str!("../../../migrations/verbs/89_remove.sql")),
    ("89_subscription", include_str!("../../../migrations/verbs/89_subscription.sql")),
    ("90_views", include_str!("../../../migrations/verbs/90_views.sql")),
    ("91_insight", include_str!("../../../migrations/verbs/91_insight.sql")),
];

/// Indexes of tables that are large and in use, each with what it is on. An update of a task that changes a column which
/// one of them names writes into all of them: so it is when a task ends or is opened again, and, for `failed_n`, when a
/// step of it comes into error or leaves it. All other updates are made in place.
const INDEXES: &[(&str, &str)] = &[
    ("task_correlation", "task_detail (correlation_id, task)"),
    ("task_created", "task_detail (created_at, task)"),
    ("task_definition", "task (definition, id)"),
    // Those in error, and those that were declared settled.
    ("task_failed", "task (id) where finished_at is not null and failed_n > 0"),
    ("task_ended", "task (finished_at, id) where finished_at is not null"),
];

/// Tasks whose rows in `task_tag` one transaction writes.
const TAGGED_AT_ONCE: i32 = 1_000;

/// A name of our own: the database may hold other programs' migrations.
const TABLE: &str = "public.stepwell_migration";

/// Where the schema of a database stands against this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// It is what this build needs.
    Current,
    /// Migrations are missing: run `stepwell migrate`.
    Behind {
        /// Highest version applied; 0 when none is.
        applied: i64,
        /// Version this build needs.
        needed: i64,
    },
    /// A newer build has migrated it: run that one.
    Ahead {
        /// Highest version applied.
        applied: i64,
        /// Version this build needs.
        needed: i64,
    },
}

fn migrator() -> Migrator {
    let mut migrator = Migrator { migrations: MIGRATOR.migrations.clone(), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name(Cow::Borrowed(TABLE));
    migrator
}

fn needed() -> i64 {
    MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0)
}

/// Applies the migrations that are missing, then the verbs, then makes room in the log and for requests; last it makes,
/// beside those who run, what would hold them up. Safe to repeat, and for several processes at once. Answers the
/// version it is at.
pub async fn migrate(database_url: &str) -> Result<i64, Error> {
    let mut connection =
        PgConnection::connect(database_url).await.map_err(|error| match error {
            sqlx::Error::Configuration(_) => Error::Url(error),
            error => Error::Database(error),
        })?;
    migrator().run(&mut connection).await.map_err(|error| Error::Schema(error.to_string()))?;
    let mut verbs = connection.begin().await?;
    sqlx::query_scalar!("select pg_advisory_xact_lock(44)").fetch_one(&mut *verbs).await?;
    for (name, text) in VERBS {
        tracing::debug!(name, "applying verb");
        sqlx::raw_sql(*text).execute(&mut *verbs).await?;
    }
    verbs.commit().await?;
    sqlx::query!("select stepwell.extend_event(), stepwell.extend_request()")
        .fetch_one(&mut connection)
        .await?;
    let mine = sqlx::query_scalar!(r#"select pg_try_advisory_lock(58) as "mine!""#)
        .fetch_one(&mut connection)
        .await?;
    // One process at a time, which others leave it to: until it is done, what it is for takes longer to read.
    if mine {
        index_tasks(&mut connection).await?;
        // An index that is made beside others waits for all who began before it: nobody runs a verb of an earlier
        // release any more.
        while sqlx::query_scalar!(r#"select stepwell.fill_tags($1) as "more!""#, TAGGED_AT_ONCE)
            .fetch_one(&mut connection)
            .await?
        {}
        index_log(&mut connection).await?;
    }
    Ok(needed())
}

/// Makes the indexes that are not there, one after the other, beside those who read and write. One that was cut off is
/// made anew.
async fn index_tasks(connection: &mut PgConnection) -> Result<(), Error> {
    for (index, on) in INDEXES {
        let there = sqlx::query_scalar!(
            r#"select exists (select from pg_index
                               where indexrelid = to_regclass('stepwell.' || $1) and indisvalid) as "there!""#,
            index,
        )
        .fetch_one(&mut *connection)
        .await?;
        if there {
            continue;
        }
        tracing::info!(index, "indexing tasks");
        for statement in [
            format!("drop index concurrently if exists stepwell.{index}"),
            format!("create index concurrently {index} on stepwell.{on}"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// The same for what partitions of the log lack of its index.
async fn index_log(connection: &mut PgConnection) -> Result<(), Error> {
    while let Some((table, index)) = unindexed(connection).await? {
        tracing::info!(table, "indexing a partition of the log");
        for statement in [
            format!("drop index concurrently if exists stepwell.{index}"),
            format!("create index concurrently {index} on {table} (task, (position + 0))"),
            format!("alter index stepwell.event_task attach partition stepwell.{index}"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// The next partition, and what its part of the index is to be called.
async fn unindexed(connection: &mut PgConnection) -> Result<Option<(String, String)>, Error> {
    let row = sqlx::query!("select r_table, r_index from stepwell.unindexed_event()")
        .fetch_one(connection)
        .await?;
    Ok(row.r_table.zip(row.r_index))
}

impl Store {
    /// Where the schema stands.
    pub async fn schema_state(&self) -> Result<SchemaState, Error> {
        let known = sqlx::query_scalar!(
            "select to_regclass('public.stepwell_migration') is not null as \"known!\""
        )
        .fetch_one(self.reads())
        .await?;
        let applied = if known { self.applied().await? } else { 0 };
        let needed = needed();
        Ok(match applied.cmp(&needed) {
            std::cmp::Ordering::Less => SchemaState::Behind { applied, needed },
            std::cmp::Ordering::Equal => SchemaState::Current,
            std::cmp::Ordering::Greater => SchemaState::Ahead { applied, needed },
        })
    }

    async fn applied(&self) -> Result<i64, Error> {
        let version = sqlx::query_scalar!(
            "select coalesce(max(version), 0) as \"version!\" from public.stepwell_migration where success"
        )
        .fetch_one(self.reads())
        .await?;
        Ok(version)
    }

    pub(crate) async fn check_schema(&self) -> Result<(), Error> {
        match self.schema_state().await? {
            SchemaState::Current => Ok(()),
            SchemaState::Behind { applied, needed } => Err(Error::Schema(format!(
                "the database is at schema version {applied} and this build needs {needed}: run `stepwell migrate`"
            ))),
            SchemaState::Ahead { applied, needed } => Err(Error::Schema(format!(
                "the database is at schema version {applied}, newer than {needed} which this build knows: run the newer build"
            ))),
        }
    }
}
