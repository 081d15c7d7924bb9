//! The whole at one moment, for people: tasks, what is ready, who could take it. All of it is read in one
//! transaction, by four statements.

use std::time::Duration;

use sqlx::{
    postgres::types::PgInterval,
    types::{
        Uuid,
        chrono::{DateTime, Utc},
    },
};
use stepwell_proto::v1::{ExecutionStatus, Health, State};

use crate::{
    Error, Store,
    patient::{Reads, silent},
    survey::{READY_COUNTED_MAX, STALE_MAX},
    task::state,
    view::named,
};

/// Up to where is counted. Beyond it the answer says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeBounds {
    /// Open tasks, and tasks that ended.
    pub tasks: i32,
    /// Steps of open tasks whose health is looked at.
    pub steps: i64,
    /// Of these, tasks with failed or cancelled steps.
    pub broken: i32,
    /// Queues with ready steps.
    pub queues: i32,
}

impl Default for WholeBounds {
    fn default() -> Self {
        Self { tasks: 100_000, steps: 500_000, broken: 10_000, queues: 500 }
    }
}

/// The whole at one moment.
#[derive(Clone, Debug)]
pub struct Whole {
    /// When, by the clock of the database.
    pub at: DateTime<Utc>,
    /// Tasks that ended then or later are counted.
    pub since: DateTime<Utc>,
    /// Open tasks.
    pub open: Vec<OpenTasks>,
    /// All open tasks are counted.
    pub open_complete: bool,
    /// Tasks that ended.
    pub ended: Vec<EndedTasks>,
    /// All that ended are counted.
    pub ended_complete: bool,
    /// Steps that are ready, those that wait longest first.
    pub ready: Vec<ReadyQueue>,
    /// All queues were looked at.
    pub ready_complete: bool,
    /// What executors offer, by namespace and handler.
    pub offers: Vec<Offer>,
}

/// A version of a definition, by its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    /// The namespace.
    pub namespace: String,
    /// The definition.
    pub name: String,
    /// The version.
    pub version: String,
}

/// Open tasks that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTasks {
    /// Their definition.
    pub of: Named,
    /// Their state.
    pub state: State,
    /// Where they are and how sound; none: it was not looked at.
    pub stands: Option<(ExecutionStatus, Health)>,
    /// How many.
    pub n: i64,
}

/// Tasks that ended and are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedTasks {
    /// Their definition.
    pub of: Named,
    /// Their state.
    pub state: State,
    /// How many.
    pub n: i64,
}

/// Ready steps of one handler of one definition.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyQueue {
    /// The definition.
    pub of: Named,
    /// The handler.
    pub handler: String,
    /// How many rows stand for them, left-overs included.
    pub steps: i64,
    /// The oldest that is ready indeed, with its task, its number and since when; none: all are left over.
    pub oldest: Option<(Uuid, i32, DateTime<Utc>)>,
    /// The definition is paused.
    pub paused: bool,
}

/// What executors of living nodes offer for one handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The namespace.
    pub namespace: String,
    /// The handler.
    pub handler: String,
    /// How many executors.
    pub executors: i64,
    /// Their slots.
    pub slots: i64,
    /// Their slots in use.
    pub used: i64,
}

impl Store {
    /// The whole, of one namespace (empty: of all), with the tasks that ended within a while.
    pub async fn whole(
        &self,
        namespace: &str,
        window: Duration,
        bounds: WholeBounds,
    ) -> Result<Whole, Error> {
        let Reads { pool, patience, .. } = self.reads();
        let microseconds = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        let window = PgInterval { months: 0, days: 0, microseconds };
        let read = async {
            let begin = "begin isolation level repeatable read read only";
            let mut moment = pool.begin_with(begin).await?;
            let open = sqlx::query!(
                r#"select now() as "at!", now() - $4::interval as "since!", d.namespace as "namespace?",
                          d.name as "name?", array_to_string(d.version, '.') as version, o.state as "state?",
                          o.execution_status as "status?", o.health as "health?", o.n as "n?"
                     from (values (1)) one
                     left join stepwell.open_tasks($1, $2, $3) o on true
                     left join stepwell.definition d on d.id = o.definition"#,
                bounds.tasks.saturating_add(1),
                bounds.steps,
                bounds.broken,
                &window,
            )
            .fetch_all(&mut *moment)
            .await?;
            let ended = sqlx::query!(
                r#"select d.namespace, d.name, array_to_string(d.version, '.') as "version!",
                          t.state as "state!", t.n as "n!"
                     from (select definition, state, count(*) n
                             from (select definition, state from stepwell.task
                                    where finished_at >= now() - $1::interval
                                    order by finished_at desc limit $2) t
                            group by definition, state) t
                     join stepwell.definition d on d.id = t.definition"#,
                &window,
                i64::from(bounds.tasks) + 1,
            )
            .fetch_all(&mut *moment)
            .await?;
            let ready = sqlx::query!(
                r#"with recursive
                   hop(queue, n) as (
                        (select queue, 1 from stepwell.ready_step order by queue, id, key limit 1)
                        union all
                        select (select r.queue from stepwell.ready_step r where r.queue > hop.queue
                                 order by r.queue, r.id, r.key limit 1), n + 1
                          from hop where hop.queue is not null and n <= $1),
                   depth as (
                        select hop.queue, c.n, o.key, o.since
                          from hop,
                               lateral (select count(*) n
                                          from (select from stepwell.ready_step r
                                                 where r.queue = hop.queue limit $2) r) c
                          left join lateral (
                               -- As the survey: what a timer released has its time on the step; of an event that is
                               -- no longer kept, the first one that is tells the least.
                               select r.key,
                                      coalesce((select e.at from stepwell.event e where e.position = r.id),
                                               s.not_before,
                                               (select e.at from stepwell.event e where e.position > r.id
                                                 order by e.position limit 1)) since
                                 from (select * from stepwell.ready_step r where r.queue = hop.queue
                                        order by r.queue, r.id, r.key limit $3) r,
                                      lateral (select * from stepwell.step where key = r.key offset 0) s
                                where s.state = 1 and s.attempt = r.attempt
                                order by r.id, r.key limit 1) o on true
                         where hop.queue is not null and hop.n <= $1)
                   select d.namespace, d.name, array_to_string(d.version, '.') as "version!", d.paused,
                          g.handler as "handler!", g.n as "n!", g.more as "more!", g.since,
                          (g.key & 16383)::int as no,
                          (select uid from stepwell.task where id = g.key >> 14) as uid
                     from (select q.definition, q.handler, sum(n)::bigint n, min(since) since,
                                  (array_agg(key order by since, key) filter (where key is not null))[1] as key,
                                  (select count(*) > $1 from hop where queue is not null) more
                             from depth,
                                  lateral (select definition, handler from stepwell.queue
                                            where id = depth.queue offset 0) q
                            group by q.definition, q.handler) g
                     join stepwell.definition d on d.id = g.definition
                    order by g.since nulls last, d.namespace, d.name, d.version, g.handler"#,
                bounds.queues,
                READY_COUNTED_MAX,
                STALE_MAX,
            )
            .fetch_all(&mut *moment)
            .await?;
            let offers = sqlx::query_as!(
                Offer,
                r#"select namespace as "namespace!", handler as "handler!", count(*) as "executors!",
                          sum(slots)::bigint as "slots!", sum(used)::bigint as "used!"
                     from (select distinct e.namespace, h.name handler, e.session, e.slots, e.used
                             from stepwell.executor e join stepwell.node n on n.id = e.node,
                                  jsonb_to_recordset(e.handlers) h(name text)
                            where n.retired_at is null and n.lease_until > clock_timestamp()
                              and not e.draining and ($1 = '' or e.namespace = $1)) o
                    group by namespace, handler
                    order by namespace collate "C", handler collate "C""#,
                namespace,
            )
            .fetch_all(&mut *moment)
            .await?;
            moment.commit().await?;
            Ok::<_, Error>((open, ended, ready, offers))
        };
        let read = tokio::time::timeout(patience, read).await;
        let read = read.unwrap_or_else(|_| Err(Error::Database(silent(patience))))?;
        let (open, ended, ready, offers) = read;
        let wanted = |of: &str| namespace.is_empty() || of == namespace;
        let first = open.first().ok_or_else(|| Error::Inconsistent("no moment".to_owned()))?;
        let (at, since) = (first.at, first.since);
        let mut whole = Whole {
            at,
            since,
            open: Vec::new(),
            open_complete: true,
            ended: Vec::new(),
            ended_complete: true,
            ready: Vec::new(),
            ready_complete: !ready.iter().any(|row| row.more),
            offers,
        };
        let (mut counted, most) = (0, i64::from(bounds.tasks));
        for row in open {
            let (Some(namespace), Some(name), Some(version), Some(number), Some(n)) =
                (row.namespace, row.name, row.version, row.state, row.n)
            else {
                continue;
            };
            let stands = match (row.status, row.health) {
                (Some(status), Some(health)) => Some((
                    named(&status, "EXECUTION_STATUS", ExecutionStatus::from_str_name)?,
                    named(&health, "HEALTH", Health::from_str_name)?,
                )),
                _ => None,
            };
            counted += n;
            whole.open_complete &= stands.is_some() && counted <= most;
            if wanted(&namespace) {
                let of = Named { namespace, name, version };
                whole.open.push(OpenTasks { of, state: state(number)?, stands, n });
            }
        }
        let mut counted = 0;
        for row in ended {
            counted += row.n;
            if wanted(&row.namespace) {
                let of = Named { namespace: row.namespace, name: row.name, version: row.version };
                whole.ended.push(EndedTasks { of, state: state(row.state)?, n: row.n });
            }
        }
        whole.ended_complete = counted <= most;
        for row in ready.into_iter().filter(|row| wanted(&row.namespace)) {
            whole.ready.push(ReadyQueue {
                of: Named { namespace: row.namespace, name: row.name, version: row.version },
                handler: row.handler,
                steps: row.n,
                oldest: row.uid.zip(row.no).zip(row.since).map(|((uid, no), at)| (uid, no, at)),
                paused: row.paused,
            });
        }
        Ok(whole)
    }
}
