//! What people do to single steps.

use sqlx::types::Uuid;
use stepwell_proto::v1::State;

use crate::{Error, Note, Once, Store, Topic, span, task::state};

/// What is to be done to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Try it again.
    Retry {
        /// So many more attempts; none: as many as its definition says.
        attempts: Option<i32>,
    },
    /// It is done, with this result.
    Resolve {
        /// JSON text; none: it has none.
        result: Option<String>,
    },
    /// It is not to run.
    Skip,
    /// It is stopped.
    Cancel,
}

impl Move {
    /// The state the step is in afterwards.
    pub fn to(&self) -> State {
        match self {
            Self::Retry { .. } => State::Pending,
            Self::Resolve { .. } | Self::Skip => State::ResolvedManually,
            Self::Cancel => State::Cancelled,
        }
    }

    /// The states it may be in before.
    pub fn from(&self) -> &'static [State] {
        match self {
            Self::Retry { .. } => &[State::Error],
            Self::Resolve { .. } => &[State::Pending, State::Error],
            Self::Skip => &[State::Pending],
            Self::Cancel => &[State::Pending, State::InProgress, State::Error],
        }
    }

    /// The type of its event.
    fn event(&self) -> i16 {
        match self {
            Self::Retry { .. } => 43,
            Self::Resolve { .. } | Self::Skip => 46,
            Self::Cancel => 45,
        }
    }
}

/// What became of a step that was to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The state it was in.
    pub was: State,
    /// The state its task was in.
    pub task: State,
    /// It was moved.
    pub moved: bool,
    /// It was to be tried again, and waits behind a cancelled step.
    pub blocked: bool,
}

impl Store {
    /// Moves one step, if its state and its task's allow it. None: there is no such step.
    pub async fn move_step(
        &self,
        uid: Uuid,
        number: i32,
        to: &Move,
        note: &Note,
    ) -> Result<Option<Moved>, Error> {
        let from: Vec<i16> = to.from().iter().map(|state| number_of(*state)).collect();
        let (attempts, result) = match to {
            Move::Retry { attempts } => (*attempts, None),
            Move::Resolve { result } => (None, result.as_deref()),
            Move::Skip | Move::Cancel => (None, None),
        };
        let text =
            Note { skipped: *to == Move::Skip, ..note.clone() }.with_result(result).to_text();
        let call = async {
            let call = sqlx::query!(
                r#"select s_was as "was!: Vec<Option<i16>>", s_task as "task!: Vec<Option<i16>>",
                          s_moved as "moved!", s_blocked as "blocked!", ready_n as "ready!",
                          told_n as "told!"
                     from stepwell.move_steps($1, $2, $3, $4, $5, $6, $7, $8, $9)"#,
                &[uid],
                &[number],
                &from,
                number_of(to.to()),
                to.event(),
                text,
                note.reason,
                attempts,
                result,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.move_steps", 1, |_| 1, call).await?;
        let (&[was], &[task], &[moved], &[blocked]) =
            (&row.was[..], &row.task[..], &row.moved[..], &row.blocked[..])
        else {
            return Err(Error::Inconsistent("move_steps answered other than it was asked".into()));
        };
        self.bell().ring_moves(moved, row.ready > 0, row.told > 0);
        let (Some(was), Some(task)) = (was, task) else { return Ok(None) };
        Ok(Some(Moved { was: state(was)?, task: state(task)?, moved, blocked }))
    }

    /// Tries one step again, once.
    pub async fn retry_step_once(
        &self,
        once: &Once,
        uid: Uuid,
        number: i32,
        attempts: Option<i32>,
        note: &Note,
    ) -> Result<Option<Moved>, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_same as same, s_was as was, s_task as task, s_moved as "moved!",
                          s_blocked as "blocked!", ready_n as "ready!"
                     from stepwell.retry_step_once($1, $2, $3, $4, $5, $6)"#,
                once.id,
                &once.hash,
                uid,
                number,
                note.to_text(),
                attempts,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.retry_step_once", 1, |_| 1, call).await?;
        once.check(row.same)?;
        self.bell().ring_moves(row.same.is_none() && row.moved, row.ready > 0, false);
        let (Some(was), Some(task)) = (row.was, row.task) else { return Ok(None) };
        let (moved, blocked) = (row.moved, row.blocked);
        Ok(Some(Moved { was: state(was)?, task: state(task)?, moved, blocked }))
    }
}

/// What is to be changed of a step; none: that stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Attempts it may make in all.
    pub max_attempts: Option<i32>,
    /// What its handler gets in place of its definition's config, JSON text; empty: that again.
    pub config: Option<String>,
}

/// What became of a step that was to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Updated {
    /// The state it is in.
    pub is: State,
    /// The state its task is in.
    pub task: State,
    /// Attempts it has made.
    pub attempt: i32,
    /// It was changed.
    pub done: bool,
}

impl Store {
    /// Changes a step, if it is pending or in error and has not made more attempts than it may make then;
    /// once, if it is to be. None: there is no such step.
    pub async fn update_step(
        &self,
        uid: Uuid,
        number: i32,
        update: &Update,
        note: &Note,
        once: Option<&Once>,
    ) -> Result<Option<Updated>, Error> {
        let config = update.config.as_deref();
        let note = Note { max_attempts: update.max_attempts, ..note.clone() };
        let text = note.with_config(config).to_text();
        let (id, hash) = once.map(|once| (once.id.as_str(), once.hash.as_slice())).unzip();
        let call = async {
            let call = sqlx::query!(
                r#"select r_same as same, s_was as was, s_task as task, s_attempt as attempt,
                          s_done as "done!"
                     from stepwell.update_step_once($1, $2, $3, $4, $5, $6, $7)"#,
                id,
                hash,
                uid,
                number,
                update.max_attempts,
                config,
                text,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.update_step", 1, |_| 1, call).await?;
        if let Some(once) = once {
            once.check(row.same)?;
        }
        if row.same.is_none() && row.done {
            self.bell().ring(Topic::Event);
        }
        let (Some(is), Some(task), Some(attempt)) = (row.was, row.task, row.attempt) else {
            return Ok(None);
        };
        Ok(Some(Updated { is: state(is)?, task: state(task)?, attempt, done: row.done }))
    }
}

/// A state as the tables have it.
fn number_of(state: State) -> i16 {
    i16::try_from(i32::from(state)).expect("a handful")
}
