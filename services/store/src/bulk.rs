//! Bulk operations: one action on all tasks that fit a filter, in chunks.

use std::time::Duration;

use sqlx::{
    postgres::types::PgInterval,
    types::{
        Uuid,
        chrono::{DateTime, Utc},
    },
};
use stepwell_proto::v1::{self, BulkState, bulk_action::Action};

use crate::{Error, Filter, Note, Store, Topic, definition::timestamp, span};

/// Most operations that run at once.
pub const BULK_RUNNING_MAX: i32 = 100;
/// Most tasks of one transaction.
pub const BULK_CHUNK_MAX: i32 = 100;

/// A bulk operation to start.
#[derive(Clone, Debug)]
pub struct NewBulk {
    /// Its id.
    pub id: Uuid,
    /// What is done to each task.
    pub action: Action,
    /// Which tasks.
    pub filter: Filter,
    /// Who asks and why.
    pub note: Note,
}

/// What became of an operation to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It was started.
    New,
    /// The same was started before.
    Existing,
    /// Another operation has this id.
    Reused,
    /// As many are running as may.
    Full,
}

/// What one chunk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// False: somebody else is at it, or it has ended.
    pub ran: bool,
    /// Tasks that fitted.
    pub matched: i32,
    /// Those of them that were moved.
    pub moved: i32,
    /// What is done to them; none: it did not run.
    pub action: Option<BulkKind>,
    /// It was the last one.
    pub done: bool,
}

/// What a bulk operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkKind {
    /// It cancels.
    Cancel,
    /// It retries.
    Retry,
    /// It resolves.
    Resolve,
}

impl BulkKind {
    /// Of an action.
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Cancel(_) => Self::Cancel,
            Action::Retry(_) => Self::Retry,
            Action::Resolve(_) => Self::Resolve,
        }
    }

    fn read(number: i16) -> Result<Self, Error> {
        match number {
            1 => Ok(Self::Cancel),
            2 => Ok(Self::Retry),
            3 => Ok(Self::Resolve),
            other => Err(Error::Inconsistent(format!("there is no action {other}"))),
        }
    }
}

/// What stopping an operation did.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopped {
    /// The operation.
    pub operation: v1::BulkOperation,
    /// It was running until now.
    pub was_running: bool,
}

struct Row {
    id: Uuid,
    seq: i64,
    action: i16,
    overriding: bool,
    attempts: Option<i32>,
    written: String,
    note: String,
    state: i16,
    matched: i64,
    moved: i64,
    created_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
}

impl Row {
    fn into_operation(self) -> Result<v1::BulkOperation, Error> {
        let action = match BulkKind::read(self.action)? {
            BulkKind::Cancel => Action::Cancel(v1::BulkCancel { r#override: self.overriding }),
            BulkKind::Retry => {
                Action::Retry(v1::BulkRetry { attempts: self.attempts.unwrap_or(0) })
            }
            BulkKind::Resolve => Action::Resolve(v1::BulkResolve {}),
        };
        let state = BulkState::try_from(i32::from(self.state))
            .map_err(|_| Error::Inconsistent(format!("there is no bulk state {}", self.state)))?;
        let note = Note::from_text(Some(&self.note));
        Ok(v1::BulkOperation {
            operation_id: self.id.to_string(),
            action: Some(v1::BulkAction { action: Some(action) }),
            filter: self.written,
            reason: note.reason,
            requested_by: note.by,
            state: state.into(),
            matched_tasks: self.matched,
            moved_tasks: self.moved,
            left_tasks: self.matched - self.moved,
            create_time: Some(timestamp(self.created_at)),
            end_time: self.ended_at.map(timestamp),
        })
    }
}

impl Store {
    /// Starts an operation on the tasks there are now.
    pub async fn start_bulk(&self, bulk: &NewBulk) -> Result<Started, Error> {
        let (action, overriding, attempts): (i16, bool, Option<i32>) = match &bulk.action {
            Action::Cancel(cancel) => (1, cancel.r#override, None),
            Action::Retry(retry) => (2, false, Some(retry.attempts).filter(|n| *n > 0)),
            Action::Resolve(_) => (3, false, None),
        };
        let note = Note { operation_id: bulk.id.to_string(), ..bulk.note.clone() };
        let call = async {
            let call = sqlx::query_scalar!(
                r#"select stepwell.start_bulk($1, $2, $3, $4, $5, $6, $7, $8) as "outcome!""#,
                bulk.id,
                action,
                overriding,
                attempts,
                bulk.filter.to_text(),
                bulk.filter.written(),
                note.to_text(),
                BULK_RUNNING_MAX,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        Ok(match span::verb("db.start_bulk", 1, |_| 1, call).await? {
            1 => {
                self.bell().ring(Topic::Bulk);
                Started::New
            }
            2 => Started::Existing,
            3 => Started::Reused,
            _ => Started::Full,
        })
    }

    /// The operations that are running, in the order of their starts.
    pub async fn running_bulk(&self) -> Result<Vec<Uuid>, Error> {
        let ids = sqlx::query_scalar!(
            "select id from stepwell.bulk_operation where ended_at is null order by seq limit $1",
            i64::from(BULK_RUNNING_MAX)
        )
        .fetch_all(self.reads())
        .await?;
        Ok(ids)
    }

    /// Runs the next chunk of an operation: so many tasks at most, out of a hundred times as many
    /// that are looked at.
    pub async fn run_bulk(&self, id: Uuid, chunk: i32) -> Result<Chunk, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select b_ran as "ran!", b_matched as "matched!", b_moved as "moved!",
                          ready_n as "ready!", told_n as "told!", b_action as action,
                          b_done as "done!"
                     from stepwell.run_bulk($1, $2)"#,
                id,
                chunk,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let rows = |moved: i32| usize::try_from(moved).unwrap_or(0);
        let row = span::verb("db.run_bulk", rows(chunk), |row| rows(row.moved), call).await?;
        self.bell().ring_moves(row.moved > 0, row.ready > 0, row.told > 0);
        let action = row.action.map(BulkKind::read).transpose()?;
        Ok(Chunk { ran: row.ran, matched: row.matched, moved: row.moved, action, done: row.done })
    }

    /// An operation; none: there is no such operation.
    pub async fn bulk(&self, id: Uuid) -> Result<Option<v1::BulkOperation>, Error> {
        let row = sqlx::query_as!(
            Row,
            r#"select id, seq, action, override as overriding, attempts, written, note, state,
                      matched_n as matched, moved_n as moved, created_at, ended_at
                 from stepwell.bulk_operation where id = $1"#,
            id
        )
        .fetch_optional(self.reads())
        .await?;
        row.map(Row::into_operation).transpose()
    }

    /// Operations in any of these states (none: in any), those started last first, `limit` at most,
    /// of those started before a place. Answers also the place where the next page begins; none: this
    /// is the last one.
    pub async fn list_bulk(
        &self,
        states: &[i16],
        before: Option<i64>,
        limit: i64,
    ) -> Result<(Vec<v1::BulkOperation>, Option<i64>), Error> {
        let rows = sqlx::query_as!(
            Row,
            r#"select id, seq, action, override as overriding, attempts, written, note, state,
                      matched_n as matched, moved_n as moved, created_at, ended_at
                 from stepwell.bulk_operation
                where seq < $1 and ($2::smallint[] = '{}' or state = any($2))
                order by seq desc limit $3"#,
            before.unwrap_or(i64::MAX),
            states,
            limit,
        )
        .fetch_all(self.reads())
        .await?;
        let full = i64::try_from(rows.len()) == Ok(limit);
        let next = rows.last().filter(|_| full).map(|row| row.seq);
        let operations = rows.into_iter().map(Row::into_operation);
        Ok((operations.collect::<Result<_, _>>()?, next))
    }

    /// Stops an operation after the chunk it is at; none: there is no such operation.
    pub async fn stop_bulk(&self, id: Uuid) -> Result<Option<Stopped>, Error> {
        // Read apart: while the update waits for a chunk, the operation may come to its end.
        let stopped = sqlx::query!(
            "update stepwell.bulk_operation set state = 3, ended_at = clock_timestamp()
              where id = $1 and state = 1",
            id
        )
        .execute(self.reads())
        .await?;
        let operation = self.bulk(id).await?;
        let was_running = stopped.rows_affected() > 0;
        Ok(operation.map(|operation| Stopped { operation, was_running }))
    }

    /// Forgets operations that ended longer ago than this. Answers how many.
    pub async fn forget_bulk(&self, kept: Duration) -> Result<u64, Error> {
        let microseconds = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
        let gone = sqlx::query!(
            "delete from stepwell.bulk_operation where ended_at < clock_timestamp() - $1::interval",
            PgInterval { months: 0, days: 0, microseconds }
        )
        .execute(self.reads())
        .await?;
        Ok(gone.rows_affected())
    }
}
