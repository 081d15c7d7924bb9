//! How it went in a window, out of the log: counts and durations, all of one snapshot and of a bounded part of the
//! log.

use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};

use crate::{
    Error, Named, Store,
    patient::{Reads, silent},
};

/// Most events that are read.
pub const EVENTS_READ_MAX: i64 = 200_000;
/// Most definitions and steps that are told, and classes of errors.
const DEFINITIONS_MAX: i64 = 200;
const STEPS_MAX: i64 = 1_000;
const CLASSES_MAX: i64 = 100;

/// Which part of the log is wanted.
#[derive(Clone, Debug)]
pub struct Window {
    /// It ends there; none: now.
    pub until: Option<DateTime<Utc>>,
    /// How long it is. Microseconds.
    pub length_us: i64,
    /// Of this namespace; empty: of all.
    pub namespace: String,
    /// Of definitions of this name; empty: of all.
    pub name: String,
    /// Of this version; none: of all.
    pub version: Option<[i32; 3]>,
    /// How many of the slowest.
    pub slowest: i64,
    /// Most events that are read.
    pub events_max: i64,
}

/// What a window came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Went {
    /// From here on
    pub since: DateTime<Utc>,
    /// and before here.
    pub until: DateTime<Utc>,
    /// It is the whole window.
    pub complete: bool,
    /// Events that were read, of whatever definition.
    pub events: i64,
    /// Tasks: all of them, where no definition is named, and by definition.
    pub tasks: Vec<TasksWent>,
    /// Steps.
    pub steps: Vec<StepsWent>,
    /// Classes of errors.
    pub errors: Vec<Failed>,
    /// Slow tasks.
    pub slow_tasks: Vec<Slow>,
    /// Slow executions, with their steps' numbers.
    pub slow_executions: Vec<Slow>,
}

/// Durations. Seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Durations {
    /// How many were measured.
    pub n: i64,
    /// Percentiles 50, 90, 99, and the longest; empty: none was measured.
    pub figures: Vec<f64>,
}

impl Durations {
    fn new(n: i64, percentiles: Option<Vec<f64>>, max: Option<f64>) -> Self {
        Self { n, figures: percentiles.into_iter().flatten().chain(max).collect() }
    }
}

/// How tasks went.
#[derive(Clone, Debug, PartialEq)]
pub struct TasksWent {
    /// Of this definition; none: all.
    pub of: Option<Named>,
    /// Created.
    pub created: i64,
    /// Completed.
    pub completed: i64,
    /// Failed.
    pub failed: i64,
    /// Cancelled.
    pub cancelled: i64,
    /// Resolved.
    pub resolved: i64,
    /// From creation to end.
    pub duration: Durations,
}

/// How the executions of a step went.
#[derive(Clone, Debug, PartialEq)]
pub struct StepsWent {
    /// Its definition.
    pub of: Named,
    /// Its name.
    pub step: String,
    /// Leased.
    pub started: i64,
    /// Completed.
    pub completed: i64,
    /// Failed.
    pub failed: i64,
    /// Tried again by themselves.
    pub retried: i64,
    /// Handed back.
    pub returned: i64,
    /// From lease to outcome.
    pub execution: Durations,
    /// From ready to lease.
    pub wait: Durations,
}

/// Executions that failed alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The class.
    pub class: String,
    /// How many.
    pub n: i64,
    /// Of these, for good.
    pub final_n: i64,
}

/// Something that took long.
#[derive(Clone, Debug, PartialEq)]
pub struct Slow {
    /// The task.
    pub uid: Uuid,
    /// Its definition.
    pub of: Named,
    /// The step's number and name, and the attempt; none: it is the task.
    pub step: Option<(i32, String, i32)>,
    /// How long. Seconds.
    pub seconds: f64,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// It failed.
    pub failed: bool,
}

/// What was asked for, or the time of the earliest event that is kept: the window begins before it.
pub type WentOrEarliest = Result<Went, DateTime<Utc>>;

impl Store {
    /// How it went in a window.
    pub async fn went(&self, window: &Window) -> Result<WentOrEarliest, Error> {
        let Reads { pool, patience, .. } = self.reads();
        let version = window.version.map(Vec::from);
        let read = async {
            let begin = "begin isolation level repeatable read read only";
            let mut moment = pool.begin_with(begin).await?;
            let place = sqlx::query!(
                r#"with asked as (
                        select least(coalesce($1, now()), now()) as until,
                               least(coalesce($1, now()), now()) - $2::bigint * interval '1 us' as since),
                   place as (
                        select a.*, stepwell.place_at(since) as begins, stepwell.earliest() as kept,
                               case when until < now() then stepwell.place_at(until)
                                    else coalesce((select position from stepwell.event
                                                    order by position desc limit 1), 0) end as ends
                          from asked a),
                   cut as (
                        -- Where events are left out, the first whole commit.
                        select p.*, case when ends - begins > $3 then (
                               select position - 1 from stepwell.event
                                where position > ends - $3 and batch = position order by position limit 1)
                               end as later
                          from place p)
                   select until as "until!", since as "since!", greatest(begins, coalesce(later, ends)) as "after_cut!",
                          begins as "begins!", ends as "ends!", later is not null or ends - begins > $3 as "is_cut!",
                          case when kept > 0 then
                               (select at from stepwell.event where position > kept order by position limit 1)
                               end as first_kept,
                          (select at from stepwell.event where position > coalesce(later, ends)
                            order by position limit 1) as first_read,
                          array(select id from stepwell.definition d
                                 where ($4 = '' or d.namespace = $4) and ($5 = '' or d.name = $5)
                                   and ($6::int[] is null or d.version = $6)) as "definitions!"
                     from cut"#,
                window.until,
                window.length_us,
                window.events_max,
                window.namespace,
                window.name,
                version.as_deref(),
            )
            .fetch_one(&mut *moment)
            .await?;
            if let Some(earliest) = place.first_kept.filter(|earliest| place.since < *earliest) {
                return Ok(Err(earliest));
            }
            let from = if place.is_cut { place.after_cut } else { place.begins };
            let (to, of) = (place.ends, &place.definitions);
            let tasks = sqlx::query!(
                r#"with e as (
                        select e.definition, e.type,
                               case when type in (22, 23) then extract(epoch from e.at -
                                    (select created_at from stepwell.task_detail where task = e.task))::float8
                                    end as seconds
                          from stepwell.event e
                         where position > $1 and position <= $2 and no is null
                           and type in (20, 22, 23, 24, 26) and definition = any($3))
                   select d.namespace as "namespace?", d.name as "name?", array_to_string(d.version, '.') as version,
                          e.created as "created!", e.completed as "completed!", e.failed as "failed!",
                          e.cancelled as "cancelled!", e.resolved as "resolved!", e.n as "n!",
                          e.percentiles as "percentiles?", e.longest as "longest?"
                     from (select definition, count(*) filter (where type = 20) created,
                                  count(*) filter (where type = 22) completed,
                                  count(*) filter (where type = 23) failed,
                                  count(*) filter (where type = 24) cancelled,
                                  count(*) filter (where type = 26) resolved, count(seconds) n,
                                  percentile_cont('{0.5, 0.9, 0.99}'::float8[]) within group (order by seconds) percentiles,
                                  max(seconds) longest, count(*) rows
                             from e group by grouping sets ((definition), ())) e
                     left join stepwell.definition d on d.id = e.definition
                    order by e.definition is not null, e.rows desc, e.definition limit $4"#,
                from,
                to,
                of,
                DEFINITIONS_MAX + 1,
            )
            .fetch_all(&mut *moment)
            .await?;
            // Two parts of the window are joined: by a hash, however few events the planner believes there are.
            sqlx::query!("select set_config('enable_nestloop', 'off', true)")
                .fetch_one(&mut *moment)
                .await?;
            let steps = sqlx::query!(
                r#"with e as materialized (
                        select position, at, task, definition, no, type, mark, names,
                               max(at) filter (where type = 20) over (partition by task) as created
                          from stepwell.event
                         where position > $1 and position <= $2 and type in (20, 40, 41, 42, 43, 44, 46)
                           and definition = any($3)),
                   l as (
                        select distinct task, no from e where type = 40),
                   -- Since when steps that were started could be; of one that waits for nothing, since its task is there.
                   c as (
                        select u.position, task, u.definition, no, u.at as ready, null::timestamptz as leased,
                               null::timestamptz as created
                          from (select position, task, definition, unnest(names) as no, at
                                  from e where type in (41, 46)) u join l using (task, no)
                        union all
                        select position, task, definition, no, case when type = 43 then coalesce(mark, at) else at end,
                               null, null
                          from e where type in (43, 44)
                        union all
                        select position, task, definition, no, null, at, created from e where type = 40),
                   w as (
                        select definition, no, leased,
                               coalesce(max(ready) over (partition by task, no order by position),
                                        case when created is not null
                                              and (select waiting_on from stepwell.step_template p
                                                    where p.definition = c.definition and p.no = c.no) = 0
                                             then created end) as ready
                          from c),
                   waits as (
                        select definition, no, count(wait) n, max(wait) longest,
                               percentile_cont('{0.5, 0.9, 0.99}'::float8[]) within group (order by wait) percentiles
                          from (select definition, no,
                                       greatest(0, extract(epoch from leased - ready))::float8 as wait
                                  from w where leased is not null and ready is not null) x
                         group by definition, no),
                   runs as (
                        select definition, no, count(*) filter (where type = 40) started,
                               count(*) filter (where type = 41) completed,
                               count(*) filter (where type = 42) failed,
                               count(*) filter (where type = 43 and mark is not null) retried,
                               count(*) filter (where type = 44) returned, count(seconds) n, max(seconds) longest,
                               percentile_cont('{0.5, 0.9, 0.99}'::float8[]) within group (order by seconds) percentiles
                          from (select *, case when type in (41, 42) then extract(epoch from at - mark)::float8 end as seconds
                                  from e where type between 40 and 44) x
                         group by definition, no)
                   select definition as "definition!", no as "no!", r.started as "started!", r.completed as "completed!",
                          r.failed as "failed!", r.retried as "retried!", r.returned as "returned!", r.n as "n!",
                          r.longest, r.percentiles, coalesce(w.n, 0) as "wait_n!", w.longest as "wait_longest?",
                          w.percentiles as "wait_percentiles?"
                     from runs r left join waits w using (definition, no)
                    order by r.started + r.completed + r.failed + r.returned desc, definition, no limit $4"#,
                from,
                to,
                of,
                STEPS_MAX,
            )
            .fetch_all(&mut *moment)
            .await?;
            let errors = sqlx::query_as!(
                Failed,
                r#"select left(coalesce(f ->> 'error_class', ''), 256) as "class!", count(*) as "n!",
                          count(*) filter (where (f ->> 'final')::bool) as "final_n!"
                     from (select text::json f from stepwell.event
                            where position > $1 and position <= $2 and type = 42 and no is not null
                              and definition = any($3)) e
                    group by 1 order by 2 desc, 1 limit $4"#,
                from,
                to,
                of,
                CLASSES_MAX,
            )
            .fetch_all(&mut *moment)
            .await?;
            let slow_tasks = sqlx::query!(
                r#"select uid, definition, at, type, seconds as "seconds!"
                     from (select e.*, extract(epoch from e.at -
                                  (select created_at from stepwell.task_detail where task = e.task))::float8 as seconds
                             from stepwell.event e
                            where position > $1 and position <= $2 and no is null and type in (22, 23)
                              and definition = any($3)) e
                    where seconds is not null order by seconds desc, position limit $4"#,
                from,
                to,
                of,
                window.slowest,
            )
            .fetch_all(&mut *moment)
            .await?;
            let slow_executions = sqlx::query!(
                r#"select uid, definition, no as "no!", coalesce(attempt, 0) as "attempt!", at, type,
                          extract(epoch from at - mark)::float8 as "seconds!"
                     from stepwell.event
                    where position > $1 and position <= $2 and no is not null and type in (41, 42)
                      and mark is not null and definition = any($3)
                    order by at - mark desc, position limit $4"#,
                from,
                to,
                of,
                window.slowest,
            )
            .fetch_all(&mut *moment)
            .await?;
            let events = sqlx::query_scalar!(
                r#"select count(*) as "n!" from stepwell.event where position > $1 and position <= $2"#,
                from,
                to,
            )
            .fetch_one(&mut *moment)
            .await?;
            moment.commit().await?;
            Ok::<_, Error>(Ok((place, tasks, steps, errors, slow_tasks, slow_executions, events)))
        };
        let read = tokio::time::timeout(patience, read).await;
        let read = read.unwrap_or_else(|_| Err(Error::Database(silent(patience))))?;
        let (place, tasks, steps, errors, slow_tasks, slow_executions, events) = match read {
            Ok(read) => read,
            Err(earliest) => return Ok(Err(earliest)),
        };
        let ids = steps.iter().map(|row| row.definition);
        let ids = ids.chain(slow_tasks.iter().map(|row| row.definition));
        let ids: Vec<i32> = ids.chain(slow_executions.iter().map(|row| row.definition)).collect();
        let known = self.definitions(&ids).await?;
        let of = |id: i32| {
            let known =
                known.get(&id).ok_or_else(|| Error::Inconsistent(format!("no definition {id}")))?;
            let definition = &known.definition;
            Ok::<_, Error>(Named {
                namespace: definition.namespace.clone(),
                name: definition.name.clone(),
                version: definition.version.clone(),
            })
        };
        let step = |id: i32, no: i32| {
            known.get(&id).and_then(|known| Some(known.step(no)?.name.clone())).unwrap_or_default()
        };
        let since =
            if place.is_cut { place.first_read.unwrap_or(place.until) } else { place.since };
        let tasks = tasks.into_iter().map(|row| TasksWent {
            of: row
                .namespace
                .zip(row.name)
                .zip(row.version)
                .map(|((namespace, name), version)| Named { namespace, name, version }),
            created: row.created,
            completed: row.completed,
            failed: row.failed,
            cancelled: row.cancelled,
            resolved: row.resolved,
            duration: Durations::new(row.n, row.percentiles, row.longest),
        });
        let steps = steps.into_iter().map(|row| {
            Ok(StepsWent {
                of: of(row.definition)?,
                step: step(row.definition, row.no),
                started: row.started,
                completed: row.completed,
                failed: row.failed,
                retried: row.retried,
                returned: row.returned,
                execution: Durations::new(row.n, row.percentiles, row.longest),
                wait: Durations::new(row.wait_n, row.wait_percentiles, row.wait_longest),
            })
        });
        let slow_tasks = slow_tasks.into_iter().map(|row| {
            Ok(Slow {
                uid: row.uid,
                of: of(row.definition)?,
                step: None,
                seconds: row.seconds,
                at: row.at,
                failed: row.r#type == 23,
            })
        });
        let slow_executions = slow_executions.into_iter().map(|row| {
            Ok(Slow {
                uid: row.uid,
                of: of(row.definition)?,
                step: Some((row.no, step(row.definition, row.no), row.attempt)),
                seconds: row.seconds,
                at: row.at,
                failed: row.r#type == 42,
            })
        });
        Ok(Ok(Went {
            since,
            until: place.until,
            complete: !place.is_cut,
            events,
            tasks: tasks.collect(),
            steps: steps.collect::<Result<_, Error>>()?,
            errors,
            slow_tasks: slow_tasks.collect::<Result<_, Error>>()?,
            slow_executions: slow_executions.collect::<Result<_, Error>>()?,
        }))
    }
}
