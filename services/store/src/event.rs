//! The log, read: pages of whole commits in the order of commits, and rows as events.

mod convert;
mod derive;

use std::{collections::HashMap, sync::Arc};

use sqlx::{
    PgExecutor,
    types::{
        Uuid,
        chrono::{DateTime, Utc},
    },
};

pub use convert::event;
pub use derive::derive;

use crate::{Error, Store, Writer};

/// What is said of a task and may be asked for by who reads its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What it belongs to in its creator's eyes.
    pub correlation_id: Arc<str>,
    /// Its labels.
    pub tags: Arc<[String]>,
}

impl Default for Said {
    fn default() -> Self {
        Self { correlation_id: "".into(), tags: Arc::new([]) }
    }
}

impl Said {
    /// About how many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.correlation_id.len() + self.tags.iter().map(|tag| 24 + tag.len()).sum::<usize>()
    }
}

/// One row of the log.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// Its place.
    pub position: i64,
    /// Place of the first row of its commit.
    pub batch: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// The task's key.
    pub task: i64,
    /// The task's id.
    pub uid: Uuid,
    /// The task's definition.
    pub definition: i32,
    /// The step's number; none: it is about the task.
    pub no: Option<i32>,
    /// The event type's number.
    pub r#type: i16,
    /// State before.
    pub from_state: Option<i16>,
    /// State after.
    pub to_state: i16,
    /// The step's attempt.
    pub attempt: Option<i32>,
    /// The executor's session.
    pub session: Option<i64>,
    /// A further time, by type.
    pub mark: Option<DateTime<Utc>>,
    /// Text, by type.
    pub text: Option<String>,
    /// Step numbers, by type.
    pub names: Option<Vec<i32>>,
    /// The trace context of its task.
    pub trace: Option<Vec<u8>>,
}

impl Writer {
    /// The same as of a store.
    pub async fn read_after(&mut self, position: i64, max: i64) -> Result<Vec<EventRow>, Error> {
        let mut rows = page(&mut self.connection, position, max).await?;
        let mut joined = false;
        while let Some(end) = cut(&rows, max)
            && join(&mut rows, page(&mut self.connection, end, max).await?)
        {
            joined = true;
        }
        if joined || !is_next(&rows, position) {
            check(position, earliest(&mut self.connection).await?)?;
        }
        Ok(rows)
    }
}

async fn page(
    connection: impl PgExecutor<'_>,
    position: i64,
    max: i64,
) -> Result<Vec<EventRow>, Error> {
    let rows = sqlx::query_as!(
        EventRow,
        r#"select position, batch, at, task, uid, definition, no, type, from_state, to_state,
                  attempt, session, mark, text, names, trace
             from stepwell.event where position > $1 order by position limit $2"#,
        position,
        max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Position of the last event; 0 when there is none.
pub(crate) async fn read_head(connection: impl PgExecutor<'_>) -> Result<i64, Error> {
    let head =
        sqlx::query_scalar!("select position from stepwell.event order by position desc limit 1")
            .fetch_optional(connection)
            .await?;
    Ok(head.unwrap_or(0))
}

/// Where a full page ends: maybe inside a commit.
fn cut(rows: &[EventRow], max: i64) -> Option<i64> {
    let full = i64::try_from(rows.len()).is_ok_and(|n| n >= max);
    rows.last().filter(|_| full).map(|last| last.position)
}

/// Adds what the next page has of the last row's commit. False: nothing.
fn join(rows: &mut Vec<EventRow>, next: Vec<EventRow>) -> bool {
    let (before, batch) = (rows.len(), rows.last().map(|last| last.batch));
    rows.extend(next.into_iter().take_while(|row| Some(row.batch) == batch));
    rows.len() > before
}

/// True if the first row follows the place: there is nothing between them that may have been dropped.
fn is_next(rows: &[EventRow], position: i64) -> bool {
    rows.first().is_none_or(|first| first.position == position + 1)
}

/// Refuses a place that is earlier than all that is kept. Asked after the read: what was dropped before the
/// read is known then.
fn check(position: i64, earliest: i64) -> Result<(), Error> {
    if position < earliest { Err(Error::Expired { earliest }) } else { Ok(()) }
}

async fn earliest(connection: impl PgExecutor<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"select stepwell.earliest() as "earliest!""#).fetch_one(connection).await
}

impl Store {
    /// The place before the first event that is kept: who goes on after an earlier one may have missed some.
    pub async fn earliest(&self) -> Result<i64, Error> {
        Ok(earliest(self.reads()).await?)
    }

    /// Rows after a position, in order, as long as commits are whole: at least `max` if there are as
    /// many, more if a commit goes on beyond. Positions are drawn under a lock that is held to the
    /// commit, so a row that is read was never preceded by one that comes later. `Error::Expired`: the rows
    /// that come next may be gone.
    pub async fn read_after(&self, position: i64, max: i64) -> Result<Vec<EventRow>, Error> {
        let mut rows = page(self.reads(), position, max).await?;
        let mut joined = false;
        while let Some(end) = cut(&rows, max)
            && join(&mut rows, page(self.reads(), end, max).await?)
        {
            joined = true;
        }
        if joined || !is_next(&rows, position) {
            check(position, self.earliest().await?)?;
        }
        Ok(rows)
    }

    /// The last rows before a position, in the order of positions. The first and the last commit may be cut.
    pub async fn read_before(&self, position: i64, max: i64) -> Result<Vec<EventRow>, Error> {
        let mut rows = sqlx::query_as!(
            EventRow,
            r#"select position, batch, at, task, uid, definition, no, type, from_state, to_state,
                      attempt, session, mark, text, names, trace
                 from stepwell.event where position < $1 order by position desc limit $2"#,
            position,
            max,
        )
        .fetch_all(self.reads())
        .await?;
        rows.reverse();
        Ok(rows)
    }

    /// What is said of these tasks, by key; those that are no more are left out.
    pub async fn said_of(&self, tasks: &[i64]) -> Result<HashMap<i64, Said>, Error> {
        let rows = sqlx::query!(
            r#"select i.key as "key!", d.correlation_id as "correlation_id!", d.tags as "tags!"
                 from unnest($1::bigint[]) i(key),
                      lateral (select correlation_id, tags from stepwell.task_detail
                                where task = i.key offset 0) d"#,
            tasks
        )
        .fetch_all(self.reads())
        .await?;
        let said = |correlation_id: String, tags: Vec<String>| Said {
            correlation_id: correlation_id.into(),
            tags: tags.into(),
        };
        Ok(rows.into_iter().map(|row| (row.key, said(row.correlation_id, row.tags))).collect())
    }

    /// The place before the first commit at or after a time; none: there is no such commit yet. Positions
    /// are in the order of times but where the database's clock was set back: so it is found by halving,
    /// one row each time.
    pub async fn before_time(&self, time: DateTime<Utc>) -> Result<Option<i64>, Error> {
        let (mut low, mut high) = (0, self.head().await?);
        let mut found = None;
        // The first row after `low` is too early, or nothing is known of it; that after `high` is not.
        while low < high {
            let middle = i64::midpoint(low, high);
            let row = sqlx::query!(
                "select position, batch, at from stepwell.event
                  where position > $1 order by position limit 1",
                middle
            )
            .fetch_optional(self.reads())
            .await?;
            match row {
                Some(row) if row.at < time => low = row.position,
                Some(row) => (found, high) = (Some(row.batch - 1), middle.min(row.batch - 1)),
                None => high = middle,
            }
        }
        Ok(found)
    }

    /// Position of the last event, which is always kept; 0 when there is none.
    pub async fn head(&self) -> Result<i64, Error> {
        read_head(self.reads()).await
    }

    /// Which log this is: a database that was restored or replaced, or a standby that took over, has
    /// another.
    pub async fn log_epoch(&self) -> Result<i64, Error> {
        // Not from pg_control_checkpoint(): after a promotion it tells the former timeline for a
        // while.
        let epoch = sqlx::query_scalar!(
            r#"select hashtextextended(s.system_identifier::text
                        || ' ' || ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int::text
                        || ' ' || current_database(), 0) as "epoch!"
                 from pg_control_system() s"#
        )
        .fetch_one(self.reads())
        .await?;
        Ok(epoch)
    }

    /// A position before the first event of these tasks; none: none of them exists.
    pub async fn before_first(&self, tasks: &[Uuid]) -> Result<Option<i64>, Error> {
        let first = sqlx::query_scalar!(
            r#"select min(d.first_position)
                 from unnest($1::uuid[]) i(uid),
                      lateral (select id from stepwell.task where uid = i.uid offset 0) t,
                      lateral (select first_position from stepwell.task_detail
                                where task = t.id offset 0) d"#,
            tasks
        )
        .fetch_one(self.reads())
        .await?;
        Ok(first.map(|position| position - 1))
    }
}
