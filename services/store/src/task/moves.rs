//! What people do to whole tasks.

use sqlx::types::Uuid;
use stepwell_proto::v1::State;

use super::state;
use crate::{Error, Note, Once, Store, Topic, span};

/// What cancelling tasks did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// The state each was in; none: there is no such task.
    pub was: Vec<Option<State>>,
    /// Leases that are void now, and whose executors are being told.
    pub told: i32,
}

/// What pausing a task, or letting it go on, did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// The state it was in; none: there is no such task.
    pub was: Option<State>,
    /// It was paused before.
    pub paused: bool,
}

/// What retrying a task did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retried {
    /// The state it was in; none: there is no such task.
    pub was: Option<State>,
    /// How many of its steps are tried again.
    pub steps: i32,
}

impl Store {
    /// Cancels tasks and their unfinished steps, those whose state allows it.
    pub async fn cancel_tasks(
        &self,
        uids: &[Uuid],
        overriding: bool,
        note: &Note,
    ) -> Result<Cancelled, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select t_was as "was!: Vec<Option<i16>>", told_n as "told!"
                     from stepwell.cancel_tasks($1, $2, $3, $4)"#,
                uids,
                overriding,
                note.to_text(),
                note.reason,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.cancel_tasks", uids.len(), |row| row.was.len(), call).await?;
        let was = states(row.was)?;
        let stays = |was: &State| {
            *was == State::Cancelled
                || !overriding && matches!(was, State::Complete | State::ResolvedManually)
        };
        let moved = !was.iter().flatten().all(stays);
        self.bell().ring_moves(moved, false, row.told > 0);
        Ok(Cancelled { was, told: row.told })
    }

    /// Tries the steps in error of tasks in error again, but those behind a cancelled step. Each may
    /// make so many more attempts; none: as many as its definition says.
    pub async fn retry_tasks(
        &self,
        uids: &[Uuid],
        attempts: Option<i32>,
        note: &Note,
    ) -> Result<Vec<Retried>, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select t_was as "was!: Vec<Option<i16>>", t_steps as "steps!", ready_n as "ready!"
                     from stepwell.retry_tasks($1, $2, $3)"#,
                uids,
                note.to_text(),
                attempts,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.retry_tasks", uids.len(), |row| row.was.len(), call).await?;
        let moved = row.steps.iter().any(|n| *n > 0);
        self.bell().ring_moves(moved, row.ready > 0, false);
        let was = states(row.was)?.into_iter();
        Ok(was.zip(row.steps).map(|(was, steps)| Retried { was, steps }).collect())
    }

    /// The same for one task, once.
    pub async fn retry_task_once(
        &self,
        once: &Once,
        uid: Uuid,
        attempts: Option<i32>,
        note: &Note,
    ) -> Result<Retried, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_same as same, t_was as was, t_steps as steps, ready_n as "ready!"
                     from stepwell.retry_task_once($1, $2, $3, $4, $5)"#,
                once.id,
                &once.hash,
                uid,
                note.to_text(),
                attempts,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.retry_task_once", 1, |_| 1, call).await?;
        once.check(row.same)?;
        let steps = row.steps.unwrap_or(0);
        self.bell().ring_moves(row.same.is_none() && steps > 0, row.ready > 0, false);
        Ok(Retried { was: row.was.map(state).transpose()?, steps })
    }

    /// Pauses tasks that are open or in error, or lets paused ones go on.
    pub async fn pause_tasks(
        &self,
        uids: &[Uuid],
        paused: bool,
        note: &Note,
    ) -> Result<Vec<Paused>, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select t_was as "was!: Vec<Option<i16>>", t_paused as "paused!: Vec<Option<bool>>",
                          ready_n as "ready!"
                     from stepwell.pause_tasks($1, $2, $3)"#,
                uids,
                paused,
                note.to_text(),
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.pause_tasks", uids.len(), |row| row.was.len(), call).await?;
        self.bell().ring_moves(true, row.ready > 0, false);
        if !paused {
            // What stood in the queues all the time may be told of now.
            self.bell().ring(Topic::Unserved);
        }
        let was = states(row.was)?.into_iter().zip(row.paused);
        Ok(was.map(|(was, paused)| Paused { was, paused: paused.unwrap_or_default() }).collect())
    }

    /// Changes what is said of a task: what of the note is new for it; once, if it is to be. Answers the state
    /// it is in; none: there is no such task.
    pub async fn update_task(
        &self,
        uid: Uuid,
        note: &Note,
        once: Option<&Once>,
    ) -> Result<Option<State>, Error> {
        let (id, hash) = once.map(|once| (once.id.as_str(), once.hash.as_slice())).unzip();
        let call = async {
            let call = sqlx::query!(
                r#"select r_same as same, t_was as was, queues_n as "queues!", ready_n as "ready!"
                     from stepwell.update_task_once($1, $2, $3, $4, $5, $6, $7)"#,
                id,
                hash,
                uid,
                note.task_reason,
                note.tags.as_deref(),
                note.priority,
                note.to_text(),
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.update_task", 1, |_| 1, call).await?;
        if let Some(once) = once {
            once.check(row.same)?;
        }
        if row.queues > 0 {
            self.bell().ring(Topic::Definition);
        }
        self.bell().ring_moves(row.same.is_none() && row.was.is_some(), row.ready > 0, false);
        row.was.map(state).transpose()
    }

    /// Declares tasks settled, those that are in error. Answers the state each was in; none: there is
    /// no such task.
    pub async fn resolve_tasks(
        &self,
        uids: &[Uuid],
        note: &Note,
    ) -> Result<Vec<Option<State>>, Error> {
        let call = async {
            let call = sqlx::query_scalar!(
                r#"select t_was as "was!: Vec<Option<i16>>" from stepwell.resolve_tasks($1, $2)"#,
                uids,
                note.to_text(),
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let was = states(span::verb("db.resolve_tasks", uids.len(), Vec::len, call).await?)?;
        self.bell().ring_moves(was.contains(&Some(State::Error)), false, false);
        Ok(was)
    }
}

fn states(numbers: Vec<Option<i16>>) -> Result<Vec<Option<State>>, Error> {
    numbers.into_iter().map(|number| number.map(state).transpose()).collect()
}
