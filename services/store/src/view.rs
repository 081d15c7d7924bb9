//! How tasks stand, for people: what `migrations/verbs/90_views.sql` says, each answer by one statement and so of
//! one moment.

use std::{collections::HashMap, sync::Arc};

use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};
use stepwell_proto::v1::{
    ExecutionStatus, Health, RecommendedAction, Standing, State, TaskContext,
};

use crate::{Error, Parent, Store, StoredDefinition, Surroundings, task::state};

/// A task as a whole and, by number, its steps.
#[derive(Clone, Debug)]
pub struct Summed {
    /// How it stands.
    pub context: TaskContext,
    /// How many steps it may start now; none: any number.
    pub room: Option<i32>,
    /// Its steps.
    pub steps: TaskSteps,
}

/// The steps of a task, from one snapshot.
#[derive(Clone, Debug)]
pub struct TaskSteps {
    /// The task.
    pub uid: Uuid,
    /// Its state.
    pub state: State,
    /// Its definition.
    pub definition: Arc<StoredDefinition>,
    /// It is paused.
    pub paused: bool,
    /// It waits for its concurrency key.
    pub held: bool,
    /// Its steps, by number.
    pub steps: Vec<StandingStep>,
    /// How many of them are in progress.
    pub running: i32,
}

/// A step as it stands. What was not asked for has its default.
#[derive(Clone, Debug)]
pub struct StandingStep {
    /// Its state.
    pub state: State,
    /// Why it has not been started, if it is pending.
    pub standing: Standing,
    /// Parents that are neither complete nor resolved.
    pub waiting_on: i32,
    /// Attempts made so far.
    pub attempt: i32,
    /// Attempts it may make in all.
    pub max_attempts: i32,
    /// It waits until then, for a retry.
    pub not_before: Option<DateTime<Utc>>,
}

/// The steps of a task, and what is worth showing of each.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Its steps.
    pub task: TaskSteps,
    /// By number, the last error of each step that is in error, if it was asked for.
    pub errors: Vec<Option<DrawnError>>,
}

/// The last error of a step, cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrawnError {
    /// Its class, at most 200 characters.
    pub class: String,
    /// What it says, at most 200 characters.
    pub message: String,
}

impl TaskSteps {
    fn new(
        uid: Uuid,
        of: i16,
        definition: Arc<StoredDefinition>,
        paused: bool,
        held: bool,
        steps: Vec<StandingStep>,
    ) -> Result<Self, Error> {
        if steps.len() != definition.parents.len() {
            return Err(Error::Inconsistent(format!("task {uid} has {} steps", steps.len())));
        }
        let running = steps.iter().filter(|step| step.state == State::InProgress).count();
        let running = i32::try_from(running).expect("bounded by its definition");
        Ok(Self { uid, state: state(of)?, definition, paused, held, steps, running })
    }

    /// What is around one of its steps; none: it has no such step.
    pub fn surroundings(&self, number: i32) -> Option<Surroundings> {
        let at = |number: i32| self.steps.get(usize::try_from(number).ok()?);
        let step = at(number)?;
        let mut parents: Vec<i32> =
            self.definition.parents.get(usize::try_from(number).ok()?)?.clone();
        parents.sort_unstable();
        let parents = parents.into_iter().filter_map(|number| {
            let parent = at(number)?;
            let waited_for = !matches!(parent.state, State::Complete | State::ResolvedManually);
            let blocked = parent.standing == Standing::Blocked;
            waited_for.then_some(Parent { number, state: parent.state, blocked })
        });
        Some(Surroundings {
            step: step.state,
            task: self.state,
            definition: Arc::clone(&self.definition),
            paused: self.paused,
            held: self.held,
            max_parallel: self.definition.definition.max_parallel_steps,
            running: self.running,
            not_before: step.not_before,
            parents: parents.collect(),
        })
    }
}

/// A row of `task_context`, and how the steps stand if that was asked for.
struct ContextRow {
    task: Uuid,
    definition: i32,
    state: i16,
    paused: bool,
    held: bool,
    room: Option<i32>,
    total_steps: i32,
    pending_steps: i32,
    in_progress_steps: i32,
    complete_steps: i32,
    resolved_steps: i32,
    error_steps: i32,
    cancelled_steps: i32,
    ready_steps: i32,
    parked_steps: i32,
    backing_off_steps: i32,
    waiting_steps: i32,
    blocked_steps: i32,
    retrying_steps: i32,
    execution_status: String,
    health: String,
    completion_percentage: f64,
    standings: Option<Vec<String>>,
}

impl ContextRow {
    fn into_context(self) -> Result<TaskContext, Error> {
        let status =
            named(&self.execution_status, "EXECUTION_STATUS", ExecutionStatus::from_str_name)?;
        Ok(TaskContext {
            task_id: self.task.to_string(),
            state: state(self.state)?.into(),
            paused: self.paused,
            held: self.held,
            total_steps: self.total_steps,
            pending_steps: self.pending_steps,
            in_progress_steps: self.in_progress_steps,
            complete_steps: self.complete_steps,
            resolved_steps: self.resolved_steps,
            error_steps: self.error_steps,
            cancelled_steps: self.cancelled_steps,
            ready_steps: self.ready_steps,
            parked_steps: self.parked_steps,
            backing_off_steps: self.backing_off_steps,
            waiting_steps: self.waiting_steps,
            blocked_steps: self.blocked_steps,
            retrying_steps: self.retrying_steps,
            execution_status: status.into(),
            recommended_action: action(status).into(),
            health: named(&self.health, "HEALTH", Health::from_str_name)?.into(),
            completion_percentage: self.completion_percentage,
        })
    }
}

/// A row of `step_readiness`.
pub(crate) struct StepRow {
    definition: i32,
    task_state: i16,
    paused: bool,
    held: bool,
    state: i16,
    standing: Option<String>,
    waiting_on: i32,
    attempt: i32,
    max_attempts: i32,
    not_before: Option<DateTime<Utc>>,
}

/// What would let a task go on that is there.
fn action(status: ExecutionStatus) -> RecommendedAction {
    use ExecutionStatus as Status;
    use RecommendedAction as Action;
    match status {
        Status::Unspecified => Action::Unspecified,
        Status::HasReadySteps => Action::ExecuteReadySteps,
        Status::Processing => Action::WaitForCompletion,
        Status::BlockedByFailures => Action::HandleFailures,
        Status::WaitingForDependencies => Action::WaitForDependencies,
        Status::BackingOff => Action::WaitForRetry,
        Status::Paused => Action::ResumeTask,
        Status::WaitingForKey => Action::WaitForKey,
        Status::AllComplete | Status::Cancelled | Status::ResolvedManually => Action::None,
    }
}

/// A word of the views as a value of the contract.
pub(crate) fn named<T>(word: &str, of: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    read(&format!("{of}_{}", word.to_uppercase()))
        .ok_or_else(|| Error::Inconsistent(format!("{of} has no {word}")))
}

fn standing(word: Option<&str>) -> Result<Standing, Error> {
    word.map_or(Ok(Standing::Unspecified), |word| named(word, "STANDING", Standing::from_str_name))
}

/// A step of which only is known how it stands: the word for that, or of one that is not pending the
/// number of its state.
fn standing_only(word: &str) -> Result<StandingStep, Error> {
    let number = word.parse().ok();
    Ok(StandingStep {
        state: number.map_or(Ok(State::Pending), state)?,
        standing: standing(Some(word).filter(|_| number.is_none()))?,
        waiting_on: 0,
        attempt: 0,
        max_attempts: 0,
        not_before: None,
    })
}

impl Store {
    /// How tasks stand, those that exist.
    pub async fn task_contexts(&self, uids: &[Uuid]) -> Result<HashMap<Uuid, TaskContext>, Error> {
        let rows = self.context_rows(uids, false).await?.into_iter();
        rows.map(|row| Ok((row.task, row.into_context()?))).collect()
    }

    /// How a task stands, and its steps; none: there is no such task.
    pub async fn task_summed(&self, uid: Uuid) -> Result<Option<Summed>, Error> {
        let Some(mut row) = self.context_rows(&[uid], true).await?.pop() else { return Ok(None) };
        let definition = self.definition(row.definition).await?;
        let steps = row.standings.take().unwrap_or_default();
        let steps = steps.iter().map(|word| standing_only(word)).collect::<Result<_, _>>()?;
        let steps = TaskSteps::new(uid, row.state, definition, row.paused, row.held, steps)?;
        Ok(Some(Summed { room: row.room, steps, context: row.into_context()? }))
    }

    async fn context_rows(&self, uids: &[Uuid], steps: bool) -> Result<Vec<ContextRow>, Error> {
        let rows = sqlx::query_as!(
            ContextRow,
            r#"select c.task as "task!", c.definition as "definition!", c.state as "state!",
                      c.paused as "paused!", c.held as "held!", c.room,
                      c.total_steps as "total_steps!", c.pending_steps as "pending_steps!",
                      c.in_progress_steps as "in_progress_steps!",
                      c.complete_steps as "complete_steps!", c.resolved_steps as "resolved_steps!",
                      c.error_steps as "error_steps!", c.cancelled_steps as "cancelled_steps!",
                      c.ready_steps as "ready_steps!", c.parked_steps as "parked_steps!",
                      c.backing_off_steps as "backing_off_steps!",
                      c.waiting_steps as "waiting_steps!", c.blocked_steps as "blocked_steps!",
                      c.retrying_steps as "retrying_steps!",
                      c.execution_status as "execution_status!", c.health as "health!",
                      c.completion_percentage as "completion_percentage!",
                      case when $2 then array(
                        select coalesce(s.standing, s.state::text)
                          from stepwell.step_readiness(array[c.task]) s order by s.no) end as standings
                 from stepwell.task_context($1) c"#,
            uids,
            steps,
        )
        .fetch_all(self.reads())
        .await?;
        Ok(rows)
    }

    /// The steps of a task; none: there is no such task.
    pub async fn task_steps(&self, uid: Uuid) -> Result<Option<TaskSteps>, Error> {
        let rows = standing_rows(self.reads(), uid).await?;
        self.standing(uid, rows).await
    }

    pub(crate) async fn standing(
        &self,
        uid: Uuid,
        rows: Vec<StepRow>,
    ) -> Result<Option<TaskSteps>, Error> {
        let Some(first) = rows.first() else { return Ok(None) };
        let (task_state, paused, held) = (first.task_state, first.paused, first.held);
        let definition = self.definition(first.definition).await?;
        let step = |row: StepRow| {
            Ok(StandingStep {
                state: state(row.state)?,
                standing: standing(row.standing.as_deref())?,
                waiting_on: row.waiting_on,
                attempt: row.attempt,
                max_attempts: row.max_attempts,
                not_before: row.not_before,
            })
        };
        let steps = rows.into_iter().map(step).collect::<Result<_, Error>>()?;
        TaskSteps::new(uid, task_state, definition, paused, held, steps).map(Some)
    }

    /// The steps of a task, and the last errors of those in error if they are asked for; none: there is no
    /// such task.
    pub async fn task_drawn(&self, uid: Uuid, with_errors: bool) -> Result<Option<Drawn>, Error> {
        let Some(task) = self.task_steps(uid).await? else { return Ok(None) };
        let mut errors = vec![None; task.steps.len()];
        if with_errors {
            let rows = sqlx::query!(
                r#"select (key & 16383)::int as "no!", left(error ->> 'error_class', 200) as class,
                          left(error ->> 'message', 200) as message
                     from (select key, last_error::json as error from stepwell.step
                            where key between ((select id from stepwell.task where uid = $1) << 14)
                                          and ((select id from stepwell.task where uid = $1) << 14) + 16383
                              and state = 4 and last_error is not null offset 0) e"#,
                uid,
            )
            .fetch_all(self.reads())
            .await?;
            for row in rows {
                let Ok(i) = usize::try_from(row.no) else { continue };
                // What moved between the two reads is drawn as it was.
                if task.steps.get(i).is_some_and(|step| step.state == State::Error) {
                    errors[i] =
                        (row.class.is_some() || row.message.is_some()).then(|| DrawnError {
                            class: row.class.unwrap_or_default(),
                            message: row.message.unwrap_or_default(),
                        });
                }
            }
        }
        Ok(Some(Drawn { task, errors }))
    }

    /// How many steps tasks have together, those that exist.
    pub async fn steps_of(&self, uids: &[Uuid]) -> Result<i64, Error> {
        let steps = sqlx::query_scalar!(
            r#"select coalesce(sum((select no + 1 from stepwell.step_template
                                     where definition = t.definition order by no desc limit 1)), 0)::bigint as "steps!"
                 from (select distinct unnest($1::uuid[]) as uid) i,
                      lateral (select definition from stepwell.task where uid = i.uid offset 0) t"#,
            uids,
        )
        .fetch_one(self.reads())
        .await?;
        Ok(steps)
    }
}

/// The steps of a task as they stand, by their numbers.
pub(crate) async fn standing_rows(
    connection: impl sqlx::PgExecutor<'_>,
    uid: Uuid,
) -> Result<Vec<StepRow>, Error> {
    let rows = sqlx::query_as!(
        StepRow,
        r#"select s.definition as "definition!", s.task_state as "task_state!", s.paused as "paused!",
                  s.held as "held!", s.state as "state!", s.standing, s.waiting_on as "waiting_on!",
                  s.attempt as "attempt!", s.max_attempts as "max_attempts!", s.not_before
             from stepwell.step_readiness(array[$1::uuid]) s order by s.no"#,
        uid,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
