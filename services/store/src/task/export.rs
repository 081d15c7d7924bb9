//! Tasks that ended long ago, with all that is theirs: in parts that fit into answers, oldest tasks first. And the
//! removal of particular ones.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use sqlx::{
    postgres::types::PgInterval,
    types::{
        Uuid,
        chrono::{DateTime, Utc},
    },
};
use stepwell_proto::{
    id::number_of,
    v1::{self, State},
};

use super::{TaskRow, state, steps::Row};
use crate::{Error, EventRow, Store, StoredDefinition, event};

/// Most tasks of a page, and most that are looked at for it.
const TASKS_MAX: i64 = 100;
const LOOKED_AT_MAX: i64 = 10_000;
/// Bytes of a page, about; one item may be larger.
const BYTES_MAX: usize = 2 << 20;
const ROWS_BYTES_MAX: i64 = 2 << 20;
/// Steps read for a page.
const STEPS_MAX: i64 = 10_000;
/// Events read for a page, of its first task and of each other one.
const FIRST_EVENTS_MAX: i64 = 10_000;
const EVENTS_MAX: i64 = 1_000;

/// Which tasks are exported.
#[derive(Clone, Debug)]
pub struct Exported {
    /// They ended so long ago, or longer.
    pub age: Duration,
    /// They are in one of these states.
    pub states: Vec<State>,
    /// Of this namespace; empty: of all.
    pub namespace: String,
    /// With their events.
    pub events: bool,
}

/// Where an export goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportPlace {
    /// Tasks below this key, and this one if it is not begun, have had their turn.
    pub task: i64,
    /// It is begun: the number of its next step, and the place behind the events that were given.
    pub begun: Option<(i32, i64)>,
}

/// What became of a task to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovedTask {
    /// It was removed.
    Removed,
    /// There is none.
    Missing,
    /// It was left, in this state.
    Left(State),
}

/// A task to remove, and what it has to be; none: no matter.
#[derive(Clone, Copy, Debug)]
pub struct ToRemove {
    /// The task.
    pub uid: Uuid,
    /// Its state.
    pub state: Option<State>,
    /// When it ended.
    pub ended: Option<DateTime<Utc>>,
}

/// A task of a page.
struct Head {
    row: TaskRow,
    first_position: i64,
}

/// A page as it fills.
#[derive(Default)]
struct Filling {
    parts: Vec<v1::TaskPart>,
    bytes: usize,
}

impl Filling {
    /// True if there is room for an item of so many bytes; the first one always fits.
    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.bytes == 0 || self.bytes + bytes <= BYTES_MAX;
        if fits {
            self.bytes += bytes + 8;
        }
        fits
    }
}

/// The next events of a page's tasks, of those for which there was room.
#[derive(Default)]
struct Log {
    tasks: HashMap<i64, Read>,
    /// The place before the earliest event that is kept.
    earliest: i64,
}

/// The next events of a task.
#[derive(Default)]
struct Read {
    rows: Vec<EventRow>,
    /// It has no more.
    is_all: bool,
}

impl Store {
    /// The next parts of tasks that are to be exported, and where to go on; none: that was all.
    pub async fn export(
        &self,
        wanted: &Exported,
        place: ExportPlace,
    ) -> Result<(Vec<v1::TaskPart>, Option<ExportPlace>), Error> {
        let (heads, earliest, behind) = self.heads(wanted, place).await?;
        let begun = place.begun.filter(|_| heads.first().is_some_and(|h| h.row.id == place.task));
        let keys: Vec<i64> = heads.iter().map(|head| head.row.id).collect();
        let steps = self.steps_from(&keys, begun.map_or(0, |(number, _)| number)).await?;
        let mut steps = Steps(steps);
        let mut log = Log::default();
        if wanted.events {
            // Of tasks whose steps do not fit, no events are looked at.
            let fits = |head: &&Head| begun.is_some() || !steps.is_cut_at(head.row.id);
            let heads = heads.iter().take_while(fits);
            let mut places: Vec<(i64, i64)> =
                heads.map(|head| (head.row.id, (head.first_position - 1).max(earliest))).collect();
            if let (Some((_, position)), Some(place)) = (begun, places.first_mut()) {
                place.1 = place.1.max(position);
            }
            log = self.events_from(&places).await?;
        }
        let earliest = earliest.max(log.earliest);
        let ids: Vec<i32> = heads.iter().map(|head| head.row.definition).collect();
        let definitions = self.definitions(&ids).await?;
        let mut page = Filling::default();
        for (i, head) in heads.into_iter().enumerate() {
            let definition = definitions.get(&head.row.definition).ok_or_else(|| {
                Error::Inconsistent(format!("task {} has no definition", head.row.uid))
            })?;
            let begun = begun.filter(|_| i == 0);
            let key = head.row.id;
            let read = log.tasks.remove(&key);
            if i > 0 && (steps.is_cut_at(key) || wanted.events && read.is_none()) {
                return Ok((page.parts, Some(ExportPlace { task: key - 1, begun: None })));
            }
            let log = wanted.events.then(|| read.unwrap_or_default());
            match part(&mut page, head, definition, &mut steps, log, begun, earliest)? {
                Ended::Whole => {}
                Ended::Full => {
                    return Ok((page.parts, Some(ExportPlace { task: key - 1, begun: None })));
                }
                Ended::Begun(step, position) => {
                    let begun = Some((step, position));
                    return Ok((page.parts, Some(ExportPlace { task: key, begun })));
                }
            }
        }
        Ok((page.parts, behind.map(|task| ExportPlace { task, begun: None })))
    }

    /// The next tasks; the place before the earliest event that is kept; and the key behind which to go on.
    async fn heads(
        &self,
        wanted: &Exported,
        place: ExportPlace,
    ) -> Result<(Vec<Head>, i64, Option<i64>), Error> {
        let microseconds = i64::try_from(wanted.age.as_micros()).unwrap_or(i64::MAX);
        let age = PgInterval { months: 0, days: 0, microseconds };
        let states: Vec<i16> = wanted.states.iter().map(|state| *state as i16).collect();
        // A task that is begun is alone in its pages.
        let (after, looked_at_max, tasks_max) = match place.begun {
            Some(_) => (place.task - 1, 1, 1),
            None => (place.task, LOOKED_AT_MAX, TASKS_MAX),
        };
        let rows = sqlx::query!(
            r#"with seen as materialized (
                    select * from stepwell.task where id > $1 order by id limit $2),
                    bound as materialized (
                    select clock_timestamp() - $3::interval as at, stepwell.earliest() as earliest,
                           (select max(id) from seen) as last, (select count(*) from seen) as n),
                    fit as materialized (
                    select t.* from seen t
                     where t.state = any($4) and t.finished_at <= (select at from bound)
                       and ($5 = '' or exists (select from stepwell.definition d
                                                where d.id = t.definition and d.namespace = $5))
                     order by t.id limit $6)
               select b.earliest as "earliest!", b.last, b.n as "n!",
                      coalesce((select created_at > b.at from stepwell.task_detail where task = b.last), true)
                        as "is_young!",
                      (select count(*) from fit) as "fit_n!",
                      t.id as "id?", t.uid as "uid?", t.definition as "definition?", t.state as "state?",
                      t.started_at, t.finished_at, t.paused as "paused?", t.deadline, t.priority as "priority?",
                      t.context as "context?", t.initiator as "initiator?",
                      t.source_system as "source_system?", t.reason as "reason?", t.tags as "tags?",
                      t.created_at as "created_at?", t.correlation_id as "correlation_id?",
                      t.annotations, t.first_position as "first_position?"
                 from bound b
                 left join (select t.id, t.uid, t.definition, t.state, t.started_at, t.finished_at, t.paused,
                                   t.deadline, d.priority, d.context, d.initiator, d.source_system, d.reason,
                                   d.tags, d.created_at, d.correlation_id, d.first_position,
                                   case when d.annotations <> '{}' then d.annotations::text end annotations,
                                   sum(octet_length(d.context)) over (order by t.id) - octet_length(d.context) before
                              from fit t, lateral (select * from stepwell.task_detail
                                                    where task = t.id offset 0) d) t on t.before <= $7
                order by t.id"#,
            after,
            looked_at_max,
            age,
            &states,
            wanted.namespace,
            tasks_max,
            ROWS_BYTES_MAX,
        )
        .fetch_all(self.reads())
        .await?;
        let Some(first) = rows.first() else { return Ok((Vec::new(), 0, None)) };
        let (earliest, fit, seen, last) = (first.earliest, first.fit_n, first.n, first.last);
        let is_young = first.is_young;
        let heads: Vec<Head> = rows
            .into_iter()
            .filter_map(|row| {
                Some(Head {
                    row: TaskRow {
                        id: row.id?,
                        uid: row.uid?,
                        definition: row.definition?,
                        state: row.state?,
                        started_at: row.started_at,
                        finished_at: row.finished_at,
                        hash: Vec::new(),
                        context: row.context?,
                        initiator: row.initiator?,
                        source_system: row.source_system?,
                        reason: row.reason?,
                        tags: row.tags?,
                        created_at: row.created_at?,
                        paused: row.paused?,
                        deadline: row.deadline,
                        held: false,
                        priority: row.priority?,
                        correlation_id: row.correlation_id?,
                        annotations: row.annotations,
                    },
                    first_position: row.first_position?,
                })
            })
            .collect();
        let is_cut = i64::try_from(heads.len()).is_ok_and(|n| n < fit || n == tasks_max);
        let behind = if is_cut {
            heads.last().map(|head| head.row.id)
        } else {
            last.filter(|_| seen == looked_at_max && !is_young)
        };
        Ok((heads, earliest, behind))
    }

    /// The next steps of these tasks, of the first one from a number on.
    async fn steps_from(&self, tasks: &[i64], first: i32) -> Result<Vec<Row>, Error> {
        let rows = sqlx::query_as!(
            Row,
            r#"select 0::smallint as "task_state!", null::timestamptz as started_at,
                      null::timestamptz as finished_at, key as "key!", state as "state!",
                      waiting_on as "waiting_on!", attempt as "attempt!", max_attempts as "max_attempts!",
                      null::timestamptz as not_before, leased_at, result, result is not null as "has_result!",
                      last_error, null::text as error_class, config, config is not null as "has_config!"
                 from (select s.*, sum(size) over (order by key) - size before
                         from (select s.*, 200 + coalesce(octet_length(result), 0)
                                             + coalesce(octet_length(last_error), 0)
                                             + coalesce(octet_length(config), 0) size
                                 from unnest($1::bigint[]) t,
                                      lateral (select * from stepwell.step
                                                where key between (t << 14) + case t when $1[1] then $2::int else 0 end
                                                              and (t << 14) + 16383
                                                order by key offset 0) s
                                order by key limit $3) s) s
                where before <= $4
                order by key"#,
            tasks,
            first,
            STEPS_MAX + 1,
            ROWS_BYTES_MAX,
        )
        .fetch_all(self.reads())
        .await?;
        Ok(rows)
    }

    /// The next events of tasks, each behind its own place: by the index `event_task`, whose ranges and orders these
    /// are word for word.
    async fn events_from(&self, places: &[(i64, i64)]) -> Result<Log, Error> {
        let (tasks, after): (Vec<i64>, Vec<i64>) = places.iter().copied().unzip();
        let rows = sqlx::query!(
            r#"with e as materialized (
                    select e.*, t.n, count(*) over (partition by t.n) as found
                      from unnest($1::bigint[], $2::bigint[]) with ordinality t(id, after, n),
                           lateral (select * from stepwell.event
                                     where (task, position + 0) > (t.id, t.after)
                                       and (task, position + 0) < (t.id, 9223372036854775807)
                                     order by task, position + 0
                                     limit case t.n when 1 then $3::bigint else $4::bigint end) e)
               select (select stepwell.earliest()) as "earliest!", total as "total!", found as "found!", n as "n!",
                      position as "position!", batch as "batch!", at as "at!", task as "task!", uid as "uid!",
                      definition as "definition!", no, type as "type!", from_state, to_state as "to_state!",
                      attempt, session, mark, text, names, trace
                 from (select *, count(*) over () as total,
                              sum(200 + coalesce(octet_length(text), 0)) over (order by n, position)
                                - 200 - coalesce(octet_length(text), 0) before
                         from e) e
                where before <= $5
                order by n, position"#,
            &tasks,
            &after,
            FIRST_EVENTS_MAX,
            EVENTS_MAX,
            ROWS_BYTES_MAX,
        )
        .fetch_all(self.reads())
        .await?;
        let mut log = Log::default();
        // Where there was no room for all, what is behind the last task was not read.
        let total = rows.first().map_or(0, |row| row.total);
        let is_cut = i64::try_from(rows.len()).is_ok_and(|n| n < total);
        let last = rows.last().filter(|_| is_cut).map(|row| row.task);
        for task in tasks {
            log.tasks.insert(task, Read { rows: Vec::new(), is_all: true });
            if last == Some(task) {
                break;
            }
        }
        for row in rows {
            log.earliest = row.earliest;
            let Some(read) = log.tasks.get_mut(&row.task) else { continue };
            let n = i64::try_from(read.rows.len()).unwrap_or(i64::MAX) + 1;
            let limit = if row.n == 1 { FIRST_EVENTS_MAX } else { EVENTS_MAX };
            read.is_all = n == row.found && n < limit;
            read.rows.push(EventRow {
                position: row.position,
                batch: row.batch,
                at: row.at,
                task: row.task,
                uid: row.uid,
                definition: row.definition,
                no: row.no,
                r#type: row.r#type,
                from_state: row.from_state,
                to_state: row.to_state,
                attempt: row.attempt,
                session: row.session,
                mark: row.mark,
                text: row.text,
                names: row.names,
                trace: row.trace,
            });
        }
        Ok(log)
    }

    /// Removes tasks that have ended, those in error only if that is said. Answers what became of each.
    pub async fn remove_named(
        &self,
        tasks: &[ToRemove],
        in_error: bool,
    ) -> Result<Vec<RemovedTask>, Error> {
        let uids: Vec<Uuid> = tasks.iter().map(|task| task.uid).collect();
        let states: Vec<Option<i16>> =
            tasks.iter().map(|task| task.state.map(|state| state as i16)).collect();
        let ends: Vec<Option<DateTime<Utc>>> = tasks.iter().map(|task| task.ended).collect();
        let row = sqlx::query!(
            r#"select a_status as "status!", a_state as "state!: Vec<Option<i16>>"
                 from stepwell.remove_named($1, $2, $3, $4)"#,
            &uids,
            &states as &[Option<i16>],
            &ends as &[Option<DateTime<Utc>>],
            in_error,
        )
        .fetch_one(self.reads())
        .await?;
        let became = row.status.into_iter().zip(row.state).map(|(status, was)| {
            Ok(match (status, was) {
                (1, _) => RemovedTask::Removed,
                (2, _) => RemovedTask::Missing,
                (_, was) => RemovedTask::Left(state(was.unwrap_or(0))?),
            })
        });
        became.collect()
    }
}

/// The steps of a page's tasks, in the order of their keys.
struct Steps(Vec<Row>);

impl Steps {
    /// Nothing of this task was read; each has a step.
    fn is_cut_at(&self, task: i64) -> bool {
        !self.0.iter().any(|row| row.key >> 14 == task)
    }

    /// The rows of this task, which is the first that is left.
    fn of(&mut self, task: i64) -> Vec<Row> {
        let n = self.0.iter().take_while(|row| row.key >> 14 == task).count();
        self.0.drain(..n).collect()
    }
}

/// How a task's turn in a page ended.
enum Ended {
    /// All of it was given.
    Whole,
    /// Nothing of it fitted.
    Full,
    /// Something is left: from this step on, and behind this place in the log.
    Begun(i32, i64),
}

/// Gives what fits of a task.
fn part(
    page: &mut Filling,
    head: Head,
    definition: &StoredDefinition,
    steps: &mut Steps,
    log: Option<Read>,
    begun: Option<(i32, i64)>,
    earliest: i64,
) -> Result<Ended, Error> {
    let Head { row, first_position } = head;
    let (key, ended_as, finished_at) = (row.id, row.state, row.finished_at);
    let task = row.into_task(definition)?;
    let (task_id, correlation_id) = (task.task_id.clone(), task.correlation_id.clone());
    let mut part = v1::TaskPart { task_id: task_id.clone(), ..v1::TaskPart::default() };
    let (mut next, given) = begun.unwrap_or((0, 0));
    if begun.is_none() {
        if !page.take(task.encoded_len()) {
            return Ok(Ended::Full);
        }
        part.task = Some(task);
    }
    for row in steps.of(key) {
        let number = number_of(row.key);
        let step = row.into_step(&task_id, definition, true)?;
        if !page.take(step.encoded_len()) {
            page.parts.push(part);
            return Ok(Ended::Begun(number, given));
        }
        part.steps.push(step);
        next = number + 1;
    }
    if usize::try_from(next).is_ok_and(|next| next < definition.parents.len()) {
        page.parts.push(part);
        return Ok(Ended::Begun(next, given));
    }
    let Some(log) = log else {
        part.last = true;
        page.parts.push(part);
        return Ok(Ended::Whole);
    };
    let (mut has_end, mut given) = (false, given);
    for row in log.rows {
        let mut event = event(&row, definition)?;
        event.correlation_id.clone_from(&correlation_id);
        if !page.take(event.encoded_len()) {
            page.parts.push(part);
            return Ok(Ended::Begun(next, given));
        }
        part.events.push(event);
        given = row.position;
        let is_end = row.no.is_none() && matches!(row.r#type, 22 | 23 | 24 | 26);
        has_end = is_end && row.to_state == ended_as && finished_at.is_none_or(|at| row.at >= at);
        if has_end {
            break;
        }
    }
    if !has_end && !log.is_all {
        page.parts.push(part);
        return Ok(Ended::Begun(next, given));
    }
    part.last = true;
    part.events_complete = has_end && first_position > earliest;
    page.parts.push(part);
    Ok(Ended::Whole)
}
