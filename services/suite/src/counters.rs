//! What a database counts about itself: for benchmarks.

use std::collections::HashMap;

use sqlx::{Connection, PgConnection, Row};

use crate::Error;

/// A connection to ask by.
pub struct Counting {
    connection: PgConnection,
    /// True if the server counts statements.
    statements: bool,
}

/// Sums since the server began to count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Statements from clients; none if `pg_stat_statements` is not loaded.
    pub statements: Option<i64>,
    /// Transactions that were committed in this database.
    pub commits: i64,
    /// Bytes of write-ahead log.
    pub wal_bytes: i64,
    /// Rows of this database that wait for vacuum, as estimated.
    pub dead_tuples: i64,
}

/// What one statement came to.
#[derive(Clone, Debug, Default)]
pub struct StatementCount {
    /// Its text, without its constants.
    pub text: String,
    /// How often it ran.
    pub calls: i64,
    /// Rows it answered or changed.
    pub rows: i64,
    /// How long it ran in all.
    pub milliseconds: f64,
}

/// Which server it is.
#[derive(Clone, Debug, Default)]
pub struct ServerSetup {
    /// Such as `15.18`.
    pub version: String,
    /// Settings that are not the server's defaults, without those that name places and locales.
    pub settings: Vec<(String, String)>,
}

impl Counting {
    /// Connects; asks for statements if the server can count them.
    pub async fn connect(database_url: &str) -> Result<Self, Error> {
        let failed = |error| Error::Database("cannot read the database's counters".into(), error);
        let mut connection = PgConnection::connect(database_url).await.map_err(failed)?;
        let loaded =
            "select current_setting('shared_preload_libraries') like '%pg_stat_statements%'";
        let statements: bool =
            sqlx::query_scalar(loaded).fetch_one(&mut connection).await.map_err(failed)?;
        if statements {
            sqlx::raw_sql("create extension if not exists pg_stat_statements")
                .execute(&mut connection)
                .await
                .map_err(failed)?;
        }
        Ok(Self { connection, statements })
    }

    /// The counters as they are now; those of transactions and rows may be a second old.
    pub async fn counters(&mut self) -> Result<Counters, Error> {
        let failed = |error| Error::Database("cannot read the database's counters".into(), error);
        let counted = sqlx::query(
            "select (select xact_commit from pg_stat_database where datname = current_database()), \
                    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, \
                    (select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables)",
        )
        .fetch_one(&mut self.connection)
        .await
        .map_err(failed)?;
        let statements = if self.statements {
            let sum = "select sum(calls)::bigint from pg_stat_statements where toplevel";
            Some(sqlx::query_scalar(sum).fetch_one(&mut self.connection).await.map_err(failed)?)
        } else {
            None
        };
        let get = |n| counted.try_get::<i64, _>(n).map_err(failed);
        Ok(Counters { statements, commits: get(0)?, wal_bytes: get(1)?, dead_tuples: get(2)? })
    }

    /// Each statement that was counted, by its id and whether a client sent it.
    pub async fn statements(&mut self) -> Result<HashMap<(i64, bool), StatementCount>, Error> {
        if !self.statements {
            return Ok(HashMap::new());
        }
        let rows: Vec<(i64, bool, String, i64, i64, f64)> = sqlx::query_as(
            "select queryid, toplevel, min(query), sum(calls)::bigint, sum(rows)::bigint, \
                    sum(total_exec_time) \
               from pg_stat_statements where queryid is not null group by queryid, toplevel",
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(|error| Error::Database("cannot read statements".into(), error))?;
        let counts = rows.into_iter().map(|(id, toplevel, text, calls, rows, milliseconds)| {
            ((id, toplevel), StatementCount { text, calls, rows, milliseconds })
        });
        Ok(counts.collect())
    }

    /// What each session that runs a statement waits for at this moment; `CPU` for those that do
    /// not wait.
    pub async fn waits(&mut self) -> Result<Vec<String>, Error> {
        sqlx::query_scalar(
            "select coalesce(wait_event_type || ':' || wait_event, 'CPU') from pg_stat_activity \
              where datname = current_database() and state = 'active' and pid <> pg_backend_pid()",
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(|error| Error::Database("cannot read what sessions wait for".into(), error))
    }

    /// Which server it is.
    pub async fn setup(&mut self) -> Result<ServerSetup, Error> {
        let failed = |error| Error::Database("cannot read the server's settings".into(), error);
        let version =
            sqlx::query_scalar("select split_part(current_setting('server_version'), ' ', 1)")
                .fetch_one(&mut self.connection)
                .await
                .map_err(failed)?;
        let settings = sqlx::query_as(
            "select name, current_setting(name) from pg_settings \
              where source in ('configuration file', 'command line', 'database', 'user') \
                and context <> 'internal' and category not like 'Client Connection%Locale%' \
                and name !~ '(director|file|listen|^port$|locale|lc_|timezone|application_name)' \
              order by name",
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(failed)?;
        Ok(ServerSetup { version, settings })
    }

    /// Begins a transaction that writes and reads, and leaves it open as long as this is there: the
    /// database keeps whatever it might still see.
    pub async fn hold_transaction(&mut self) -> Result<(), Error> {
        let sql = "begin isolation level repeatable read; \
                   create temporary table held as select count(*) from pg_class";
        sqlx::raw_sql(sql)
            .execute(&mut self.connection)
            .await
            .map_err(|error| Error::Database("cannot hold a transaction".into(), error))?;
        Ok(())
    }
}
