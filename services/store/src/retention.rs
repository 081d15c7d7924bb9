//! How long the log is kept: old partitions are dropped whole, oldest first, beside those who append and read.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::{Error, Store, Writer, patient::within};

/// Moves of one call: three drop a partition.
const MOVES_MAX: usize = 300;
/// No move waits longer for a lock, or for one transaction that still looks. It must outlast Postgres'
/// `deadlock_timeout` (1 s), after which a vacuum gives way.
const LOCK_TIMEOUT: &str = "set lock_timeout = '2s'";

/// What of the log is kept. A partition goes when either says so; none: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Events are kept for at least so long; whole seconds.
    pub age: Option<Duration>,
    /// The log with its indexes takes no more bytes, but for the partition of its head and those ahead.
    pub bytes: Option<u64>,
}

impl Keep {
    /// Everything, for ever.
    pub fn is_everything(self) -> bool {
        self == Self::default()
    }
}

/// A move of a partition that is old. Each is done again, or goes on, after a crash in the midst of it.
enum Move {
    /// Mark it and take it out of the log.
    Detach,
    /// Finish a detach that was cut off.
    Finish,
    /// Drop what was taken out.
    Drop,
}

impl Store {
    /// Drops old partitions; answers how many. It is for one process at a time: none are dropped while another
    /// is at it. A transaction that has looked into the log and is still open is waited for a little; then
    /// this fails, and the next call goes on there.
    pub async fn drop_old_events(&self, keep: Keep) -> Result<u64, Error> {
        if keep.is_everything() || self.old_event(keep).await?.is_none() {
            return Ok(0);
        }
        let mut writer = self.writer().await?;
        let mine = sqlx::query_scalar!(r#"select pg_try_advisory_lock(47) as "mine!""#)
            .fetch_one(&mut writer.connection)
            .await?;
        if !mine {
            return Ok(0);
        }
        let dropped = self.drop_with(&mut writer, keep).await;
        // The lock goes with the connection, and the next call does not find it held.
        let closing = sqlx::query_scalar!(r#"select pg_advisory_unlock(47) as "held!""#);
        let closed = closing.fetch_one(&mut writer.connection).await;
        let dropped = dropped?;
        closed?;
        Ok(dropped)
    }

    async fn drop_with(&self, writer: &mut Writer, keep: Keep) -> Result<u64, Error> {
        let patience = writer.connection.patience;
        let connection = writer.connection();
        within(patience, run(connection, LOCK_TIMEOUT.to_owned())).await?;
        let mut dropped = 0;
        for _ in 0..MOVES_MAX {
            let Some((table, next)) = self.old_event(keep).await? else { break };
            let statements = match next {
                Move::Detach => vec![
                    format!("comment on table {table} is 'old'"),
                    format!("alter table stepwell.event detach partition {table} concurrently"),
                ],
                Move::Finish => {
                    vec![format!("alter table stepwell.event detach partition {table} finalize")]
                }
                Move::Drop => {
                    dropped += 1;
                    vec![format!("drop table {table}")]
                }
            };
            for statement in statements {
                within(patience, run(connection, statement)).await?;
            }
        }
        Ok(dropped)
    }

    /// The next move, and the partition with its quotes.
    async fn old_event(&self, keep: Keep) -> Result<Option<(String, Move)>, Error> {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let row = sqlx::query!(
            r#"select r_table, r_move from stepwell.old_event($1, $2)"#,
            keep.age.map_or(0, |age| number(age.as_secs())),
            keep.bytes.map_or(0, number),
        )
        .fetch_one(self.reads())
        .await?;
        let (Some(table), Some(next)) = (row.r_table, row.r_move) else { return Ok(None) };
        Ok(Some((
            table,
            match next {
                1 => Move::Detach,
                2 => Move::Finish,
                _ => Move::Drop,
            },
        )))
    }
}

/// A statement that changes tables, alone: detaching may not be part of a transaction.
async fn run(connection: &mut PgConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(|_| ())
}
