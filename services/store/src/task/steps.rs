//! A task with its steps, from one snapshot.

use prost::Message;
use sqlx::{
    PgExecutor,
    types::{
        Uuid,
        chrono::{DateTime, Utc},
    },
};
use stepwell_proto::{
    id::{number_of, step_id},
    v1::{self, Failure, State},
};

use super::{TaskRow, read_tasks, state};
use crate::{
    Error, Store, StoredDefinition, StoredFailure,
    definition::timestamp,
    event::read_head,
    patient::{Reads, silent},
    view::{TaskSteps, standing_rows},
};

/// No step has a higher number.
const LAST: i32 = 16_383;
/// A result up to this size travels with its step.
const RESULT_BYTES_MAX: i32 = 64 << 10;
/// All results of an answer together.
const RESULTS_BYTES_MAX: i64 = 2 << 20;
/// All failures of an answer together; those beyond it are given by their class only.
const FAILURES_BYTES_MAX: i64 = 512 << 10;

/// An answer that would be larger leaves out results, the last first, and then what failures say.
const ANSWER_BYTES_MAX: usize = (4 << 20) - (64 << 10);

/// A step, with the columns of its task that change.
pub(super) struct Row {
    pub(super) task_state: i16,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) finished_at: Option<DateTime<Utc>>,
    pub(super) key: i64,
    pub(super) state: i16,
    pub(super) waiting_on: i32,
    pub(super) attempt: i32,
    pub(super) max_attempts: i32,
    pub(super) not_before: Option<DateTime<Utc>>,
    pub(super) leased_at: Option<DateTime<Utc>>,
    pub(super) result: Option<String>,
    pub(super) has_result: bool,
    pub(super) last_error: Option<String>,
    pub(super) error_class: Option<String>,
    pub(super) config: Option<String>,
    pub(super) has_config: bool,
}

/// Which steps of a task are meant. An empty list takes any value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepFilter {
    /// In one of these states.
    pub states: Vec<State>,
    /// With one of these names.
    pub names: Vec<String>,
    /// That one of these handlers runs.
    pub handlers: Vec<String>,
}

impl StepFilter {
    /// The numbers of the steps that may be meant; none: any.
    fn numbers(&self, definition: &StoredDefinition) -> Option<Vec<i32>> {
        let any = self.names.is_empty() && self.handlers.is_empty();
        let is_in = |list: &[String], name: &String| list.is_empty() || list.contains(name);
        let steps = (0..).zip(&definition.definition.steps);
        let fits = steps.filter(|(_, step)| {
            is_in(&self.names, &step.name) && is_in(&self.handlers, &step.handler)
        });
        (!any).then(|| fits.map(|(number, _)| number).collect())
    }
}

/// What rows of steps are read.
#[derive(Clone, Copy)]
struct Asked<'a> {
    numbers: (i32, i32),
    states: &'a [State],
    /// Out of these; none: of all.
    only: Option<&'a [i32]>,
    most: i32,
    results: bool,
}

impl Asked<'_> {
    /// All of a task.
    fn all(results: bool) -> Self {
        Self { numbers: (0, LAST), states: &[], only: None, most: LAST + 1, results }
    }
}

impl Store {
    /// A task with its steps; none: there is no such task. Results come if they are asked for, up
    /// to 64 KiB each and 2 MiB in all.
    pub async fn task_with_steps(
        &self,
        uid: Uuid,
        include_results: bool,
    ) -> Result<Option<v1::Task>, Error> {
        let Some(row) = read_tasks(self.reads(), &[uid]).await?.pop() else { return Ok(None) };
        let rows = step_rows(self.reads(), row.id, Asked::all(include_results)).await?;
        self.with_steps(row, rows, include_results).await.map(Some)
    }

    /// A task with its steps, without their results, and the place in the log behind which it is exactly
    /// that: both are read at one moment. None: there is no such task.
    pub async fn snapshot(&self, uid: Uuid) -> Result<Option<(v1::Task, i64)>, Error> {
        let Reads { pool, patience, .. } = self.reads();
        let read = async {
            let begin = "begin isolation level repeatable read read only";
            let mut moment = pool.begin_with(begin).await?;
            let head = read_head(&mut *moment).await?;
            let Some(row) = read_tasks(&mut *moment, &[uid]).await?.pop() else { return Ok(None) };
            let rows = step_rows(&mut *moment, row.id, Asked::all(false)).await?;
            moment.commit().await?;
            Ok::<_, Error>(Some((row, rows, head)))
        };
        let read = tokio::time::timeout(patience, read).await;
        let read = read.unwrap_or_else(|_| Err(Error::Database(silent(patience))))?;
        let Some((row, rows, head)) = read else { return Ok(None) };
        Ok(Some((self.with_steps(row, rows, false).await?, head)))
    }

    async fn with_steps(
        &self,
        row: TaskRow,
        rows: Vec<Row>,
        include_results: bool,
    ) -> Result<v1::Task, Error> {
        let definition = self.definition(row.definition).await?;
        let mut task = row.into_task(&definition)?;
        if let Some(first) = rows.first() {
            task.state = state(first.task_state)?.into();
            task.start_time = first.started_at.map(timestamp);
            task.end_time = first.finished_at.map(timestamp);
        }
        let id = task.task_id.clone();
        let steps = rows.into_iter().map(|row| row.into_step(&id, &definition, include_results));
        task.steps = steps.collect::<Result<_, _>>()?;
        fit(&mut task, ANSWER_BYTES_MAX);
        Ok(task)
    }

    /// Steps of a task that fit, above a number, `limit` at most. Answers also the number above which the next page
    /// begins; none: this is the last one. None in all: there is no such task.
    pub async fn steps(
        &self,
        uid: Uuid,
        filter: &StepFilter,
        after: Option<i32>,
        limit: i32,
        include_results: bool,
    ) -> Result<Option<(Vec<v1::Step>, Option<i32>)>, Error> {
        let Some(task) = read_tasks(self.reads(), &[uid]).await?.pop() else { return Ok(None) };
        let definition = self.definition(task.definition).await?;
        let only = filter.numbers(&definition);
        let asked = Asked {
            numbers: (after.map_or(0, |after| after.saturating_add(1)), LAST),
            states: &filter.states,
            only: only.as_deref(),
            most: limit + 1,
            results: include_results,
        };
        let mut rows = step_rows(self.reads(), task.id, asked).await?;
        let limit = usize::try_from(limit).unwrap_or_default();
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|last| number_of(last.key));
        let id = uid.to_string();
        let steps = rows.into_iter().map(|row| row.into_step(&id, &definition, include_results));
        let steps = steps.collect::<Result<_, _>>()?;
        let mut page = v1::Task { steps, ..v1::Task::default() };
        fit(&mut page, ANSWER_BYTES_MAX);
        Ok(Some((page.steps, next)))
    }

    /// A task with its steps, and how these stand, both of one moment; none: there is no such task.
    pub async fn task_with_standings(
        &self,
        uid: Uuid,
        include_results: bool,
    ) -> Result<Option<(v1::Task, TaskSteps)>, Error> {
        let Reads { pool, patience, .. } = self.reads();
        let read = async {
            let begin = "begin isolation level repeatable read read only";
            let mut moment = pool.begin_with(begin).await?;
            let Some(row) = read_tasks(&mut *moment, &[uid]).await?.pop() else { return Ok(None) };
            let rows = step_rows(&mut *moment, row.id, Asked::all(include_results)).await?;
            let standings = standing_rows(&mut *moment, uid).await?;
            moment.commit().await?;
            Ok::<_, Error>(Some((row, rows, standings)))
        };
        let read = tokio::time::timeout(patience, read).await;
        let read = read.unwrap_or_else(|_| Err(Error::Database(silent(patience))))?;
        let Some((row, rows, standings)) = read else { return Ok(None) };
        let Some(steps) = self.standing(uid, standings).await? else { return Ok(None) };
        Ok(Some((self.with_steps(row, rows, include_results).await?, steps)))
    }

    /// One step with its result, if that is not too large; none: there is no such step.
    pub async fn step(&self, uid: Uuid, number: i32) -> Result<Option<v1::Step>, Error> {
        let Some(task) = read_tasks(self.reads(), &[uid]).await?.pop() else { return Ok(None) };
        let definition = self.definition(task.definition).await?;
        let row = step_rows(
            self.reads(),
            task.id,
            Asked { numbers: (number, number), ..Asked::all(true) },
        )
        .await?
        .pop();
        row.map(|row| row.into_step(&uid.to_string(), &definition, true)).transpose()
    }

    /// What its definition says of a step; none: there is no such step.
    pub async fn step_template(
        &self,
        uid: Uuid,
        number: i32,
    ) -> Result<Option<v1::StepTemplate>, Error> {
        let Some(task) = read_tasks(self.reads(), &[uid]).await?.pop() else { return Ok(None) };
        Ok(self.definition(task.definition).await?.step(number).cloned())
    }
}

async fn step_rows(
    connection: impl PgExecutor<'_>,
    task: i64,
    asked: Asked<'_>,
) -> Result<Vec<Row>, Error> {
    let states: Vec<i16> = asked.states.iter().map(|state| *state as i16).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"select t.state as "task_state!", t.started_at, t.finished_at, s.key as "key!",
                  s.state as "state!", s.waiting_on as "waiting_on!", s.attempt as "attempt!",
                  s.max_attempts as "max_attempts!",
                  case when s.state = 1 and s.not_before > clock_timestamp()
                       then s.not_before end as not_before,
                  s.leased_at,
                  case when $2 and s.size <= $3 and s.results <= $4 then s.result end as result,
                  s.result is not null as "has_result!",
                  case when s.failures <= $5 then s.last_error end as last_error,
                  case when s.failures > $5
                       then s.last_error::json ->> 'error_class' end as error_class,
                  case when $6 = $7 then s.config end as config,
                  s.config is not null as "has_config!"
             from stepwell.task t
             join (select *, octet_length(result) as size,
                          sum(case when octet_length(result) <= $3 then octet_length(result) end)
                            over (order by key) as results,
                          sum(octet_length(last_error)) over (order by key) as failures
                     from (select * from stepwell.step
                            where key between ($1::bigint << 14) + $6::int and ($1 << 14) + $7::int
                              and ($8::smallint[] = '{}' or state = any($8))
                              and ($9::int[] is null or (key & 16383)::int = any($9))
                            order by key limit $10) x) s on true
            where t.id = $1
            order by s.key"#,
        task,
        asked.results,
        RESULT_BYTES_MAX,
        RESULTS_BYTES_MAX,
        FAILURES_BYTES_MAX,
        asked.numbers.0,
        asked.numbers.1,
        &states,
        asked.only,
        i64::from(asked.most),
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Makes a task fit into one answer.
fn fit(task: &mut v1::Task, bytes_max: usize) {
    let mut over = task.encoded_len().saturating_sub(bytes_max);
    for step in task.steps.iter_mut().rev().filter(|step| !step.result.is_empty()) {
        if over == 0 {
            return;
        }
        over = over.saturating_sub(step.result.len());
        step.result = String::new();
        step.result_omitted = true;
    }
    for failure in task.steps.iter_mut().rev().filter_map(|step| step.last_error.as_mut()) {
        if over == 0 {
            return;
        }
        let before = failure.encoded_len();
        let error_class = std::mem::take(&mut failure.error_class);
        *failure = Failure { error_class, ..Failure::default() };
        over = over.saturating_sub(before - failure.encoded_len());
    }
}

impl Row {
    pub(super) fn into_step(
        self,
        task_id: &str,
        definition: &StoredDefinition,
        include_results: bool,
    ) -> Result<v1::Step, Error> {
        let number = number_of(self.key);
        let template = definition
            .step(number)
            .ok_or_else(|| Error::Inconsistent(format!("step {task_id}.{number} has no plan")))?;
        let state = state(self.state)?;
        let ended_well = matches!(state, State::Complete | State::ResolvedManually);
        let wanted = include_results && ended_well;
        let last_error = match (self.last_error, self.error_class) {
            (Some(text), _) => Some(StoredFailure::from_text(&text).to_proto()),
            (None, Some(error_class)) => Some(Failure { error_class, ..Failure::default() }),
            (None, None) => None,
        };
        Ok(v1::Step {
            step_id: step_id(task_id, number),
            number,
            name: template.name.clone(),
            handler: template.handler.clone(),
            state: state.into(),
            depends_on: template.depends_on.clone(),
            waiting_on: self.waiting_on,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            not_before: self.not_before.map(timestamp),
            start_time: self.leased_at.map(timestamp),
            result_omitted: wanted && self.has_result && self.result.is_none(),
            result: self.result.filter(|_| wanted).unwrap_or_default(),
            last_error,
            config_omitted: self.has_config && self.config.is_none(),
            config: self.config,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_too_large_for_an_answer_leaves_out_the_last_results_and_then_what_failures_say() {
        let step = |number| v1::Step {
            number,
            result: "r".repeat(1000),
            last_error: Some(Failure {
                error_class: "Timeout".into(),
                message: "m".repeat(1000),
                ..Failure::default()
            }),
            ..v1::Step::default()
        };
        let whole = v1::Task { steps: (0..4).map(step).collect(), ..v1::Task::default() };
        let fitted = |bytes_max| {
            let mut task = whole.clone();
            fit(&mut task, bytes_max);
            assert!(task.encoded_len() <= bytes_max);
            let omitted: Vec<bool> = task.steps.iter().map(|step| step.result_omitted).collect();
            let error = |step: &v1::Step| step.last_error.clone().unwrap();
            assert!(task.steps.iter().all(|step| error(step).error_class == "Timeout"));
            let silent = task.steps.iter().filter(|step| error(step).message.is_empty()).count();
            (omitted, silent)
        };
        assert_eq!(fitted(9_000), (vec![false; 4], 0));
        assert_eq!(fitted(6_500), (vec![false, false, true, true], 0));
        assert_eq!(fitted(3_500), (vec![true; 4], 1));
    }
}
