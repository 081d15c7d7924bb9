//! Tasks that ended long ago, with all that is theirs: in parts that fit into answers, oldest tasks first. And the
//! removal of particular ones.

use std::time::Duration;

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
/// Steps and events read for a page.
const STEPS_MAX: i64 = 10_000;
const EVENTS_MAX: i64 = 10_000;
/// Positions of the log that a page looks at.
const POSITIONS_MAX: i64 = 100_000;
/// The event of a task's end is not later than this after it.
const END_LAG: &str = "1 minute";

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
    /// No event of its end is beyond it; none: the log's end.
    stop: Option<i64>,
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

/// The events of a page: those of its tasks up to a place.
struct Log {
    rows: Vec<EventRow>,
    /// All events of the page's tasks up to here were read.
    up_to: i64,
    /// That is the log's end.
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
        let log = match heads.first() {
            Some(first) if wanted.events => {
                let from = begun.map_or(0, |(_, position)| position);
                let from = from.max(first.first_position - 1).max(earliest);
                self.events_from(&keys, from).await?
            }
            _ => Log { rows: Vec::new(), up_to: 0, is_all: false },
        };
        let ids: Vec<i32> = heads.iter().map(|head| head.row.definition).collect();
        let definitions = self.definitions(&ids).await?;
        let mut steps = Steps(steps);
        let mut page = Filling::default();
        for (i, head) in heads.into_iter().enumerate() {
            let definition = definitions.get(&head.row.definition).ok_or_else(|| {
                Error::Inconsistent(format!("task {} has no definition", head.row.uid))
            })?;
            let begun = begun.filter(|_| i == 0);
            let reached = !wanted.events || log.up_to >= head.first_position;
            if begun.is_none() && i > 0 && (!reached || steps.is_cut_at(head.row.id)) {
                return Ok((page.parts, Some(ExportPlace { task: head.row.id - 1, begun: None })));
            }
            let key = head.row.id;
            let log = wanted.events.then_some(&log);
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
        let after = if place.begun.is_some() { place.task - 1 } else { place.task };
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
                      t.annotations, t.first_position as "first_position?",
                      case when t.state is not null and (t.state not in (5, 6) or t.first_position <= b.earliest)
                           then stepwell.place_at(t.finished_at + $8::text::interval) end as stop
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
            LOOKED_AT_MAX,
            age,
            &states,
            wanted.namespace,
            TASKS_MAX,
            ROWS_BYTES_MAX,
            END_LAG,
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
                    stop: row.stop,
                })
            })
            .collect();
        let is_cut = i64::try_from(heads.len()).is_ok_and(|n| n < fit || n == TASKS_MAX);
        let behind = if is_cut {
            heads.last().map(|head| head.row.id)
        } else {
            last.filter(|_| seen == LOOKED_AT_MAX && !is_young)
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

    async fn events_from(&self, tasks: &[i64], from: i64) -> Result<Log, Error> {
        let rows = sqlx::query!(
            r#"with bound as materialized (
                    select least($2::bigint + $3::bigint, coalesce((select position from stepwell.event
                                                      order by position desc limit 1), 0)) as up_to),
                    e as materialized (
                    select * from stepwell.event
                     where position > $2 and position <= (select up_to from bound) and task = any($1)
                     order by position limit $4)
               select b.up_to as "up_to!", (select count(*) from e) as "n!", (select max(position) from e) as last,
                      e.position as "position?", e.batch as "batch?", e.at as "at?", e.task as "task?",
                      e.uid as "uid?", e.definition as "definition?", e.no, e.type as "type?", e.from_state,
                      e.to_state as "to_state?", e.attempt, e.session, e.mark, e.text, e.names, e.trace
                 from bound b
                 left join (select *, sum(200 + coalesce(octet_length(text), 0)) over (order by position)
                                        - 200 - coalesce(octet_length(text), 0) before
                              from e) e on e.before <= $5
                order by e.position"#,
            tasks,
            from,
            POSITIONS_MAX,
            EVENTS_MAX,
            ROWS_BYTES_MAX,
        )
        .fetch_all(self.reads())
        .await?;
        let Some(first) = rows.first() else {
            return Ok(Log { rows: Vec::new(), up_to: from, is_all: true });
        };
        let (mut up_to, n, last) = (first.up_to.max(from), first.n, first.last);
        let mut is_all = up_to < from + POSITIONS_MAX;
        let rows: Vec<EventRow> = rows
            .into_iter()
            .filter_map(|row| {
                Some(EventRow {
                    position: row.position?,
                    batch: row.batch?,
                    at: row.at?,
                    task: row.task?,
                    uid: row.uid?,
                    definition: row.definition?,
                    no: row.no,
                    r#type: row.r#type?,
                    from_state: row.from_state,
                    to_state: row.to_state?,
                    attempt: row.attempt,
                    session: row.session,
                    mark: row.mark,
                    text: row.text,
                    names: row.names,
                    trace: row.trace,
                })
            })
            .collect();
        let read = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        if read < n || n == EVENTS_MAX {
            up_to = rows.last().map_or(from, |row| row.position).min(last.unwrap_or(up_to));
            is_all = false;
        }
        Ok(Log { rows, up_to, is_all })
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
    log: Option<&Log>,
    begun: Option<(i32, i64)>,
    earliest: i64,
) -> Result<Ended, Error> {
    let Head { row, first_position, stop } = head;
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
    let mut end = None;
    for row in log.rows.iter().filter(|row| row.task == key && row.position > given) {
        let mut event = event(row, definition)?;
        event.correlation_id.clone_from(&correlation_id);
        if !page.take(event.encoded_len()) {
            page.parts.push(part);
            return Ok(Ended::Begun(next, row.position - 1));
        }
        part.events.push(event);
        let is_end = row.no.is_none() && matches!(row.r#type, 22 | 23 | 24 | 26);
        if is_end && row.to_state == ended_as && finished_at.is_none_or(|at| row.at >= at) {
            end = Some(row.position);
            break;
        }
    }
    // Without its end, the log has to be looked at up to where that could be.
    let is_over = end.is_some() || log.is_all || stop.is_some_and(|stop| log.up_to >= stop);
    if !is_over {
        page.parts.push(part);
        return Ok(Ended::Begun(next, log.up_to.max(given)));
    }
    part.last = true;
    part.events_complete = end.is_some() && first_position > earliest;
    page.parts.push(part);
    Ok(Ended::Whole)
}
