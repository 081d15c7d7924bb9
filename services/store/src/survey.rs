//! What the database alone knows of the whole: how much is ready and since when, what is late, and
//! what holds others up. Read now and then by one process, for all; nothing here is on a step's way.

use sqlx::types::chrono::{DateTime, Utc};

use crate::{Error, Store};

/// Queues looked at, of those with ready steps.
const QUEUES_MAX: i32 = 500;
/// Ready steps of one queue are counted up to here.
pub const READY_COUNTED_MAX: i64 = 10_000;
/// Rows looked at for the oldest step of a queue that is ready indeed: cancelled ones leave theirs.
pub(crate) const STALE_MAX: i64 = 100;
/// Rows of the log counted by one statement.
const ROWS_MAX: i64 = 50_000;

/// The whole at one moment, by the clock of the database.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// When.
    pub at: DateTime<Utc>,
    /// Position of the last event; 0: there is none.
    pub head: i64,
    /// Ready steps, by namespace and handler, those first that wait longest. Handlers without any
    /// are left out.
    pub ready: Vec<Ready>,
    /// How long ago the most overdue retry was due. Seconds; 0: none is overdue.
    pub timer_overdue: f64,
    /// Retired nodes whose leases are still to be walked.
    pub nodes_retired: i64,
    /// Transactions that wait for the append lock.
    pub append_waiters: i64,
    /// How long the first of them has waited. Seconds; 0: nobody waits.
    pub append_wait: f64,
    /// Age of the oldest transaction in the cluster, prepared ones included. Seconds; 0: there is none
    /// that this role may see.
    pub oldest_transaction: f64,
    /// Transactions that were prepared and neither committed nor rolled back.
    pub prepared_transactions: i64,
}

/// Steps of one handler, in any version of any definition, that are ready and have no slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// The namespace.
    pub namespace: String,
    /// The handler.
    pub handler: String,
    /// How many; of each definition at most `READY_COUNTED_MAX` are counted.
    pub steps: i64,
    /// How long the oldest has been ready. Seconds; 0: all are left-overs of cancelled tasks, or of
    /// definitions that are paused.
    pub oldest: f64,
}

/// How often something happened between two places in the log, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// The event type's number.
    pub r#type: i16,
    /// State before; none: it was created.
    pub from_state: Option<i16>,
    /// A person asked for it; only of retries.
    pub by_hand: bool,
    /// State after.
    pub to_state: i16,
    /// How often.
    pub n: i64,
    /// On average, for those that fell between the same bounds: of a task that started or ended, since
    /// its creation; of an attempt that ended, since its lease. Seconds; none: nothing was measured.
    pub seconds: Option<f64>,
}

impl Store {
    /// Looks at the whole.
    pub async fn survey(&self) -> Result<Survey, Error> {
        let row = sqlx::query!(
            r#"with recursive
               hop(queue, n) as (
                    (select queue, 1 from stepwell.ready_step order by queue, id, key limit 1)
                    union all
                    select (select r.queue from stepwell.ready_step r where r.queue > hop.queue
                             order by r.queue, r.id, r.key limit 1), n + 1
                      from hop where hop.queue is not null and n < $1),
               depth as (
                    select hop.queue, c.n, o.since
                      from hop,
                           lateral (select count(*) n
                                      from (select from stepwell.ready_step r
                                             where r.queue = hop.queue limit $2) r) c
                      left join lateral (
                           -- What a timer released has its time on the step and no event. Of an event
                           -- that is no longer kept, the first one that is tells the least.
                           select coalesce((select e.at from stepwell.event e where e.position = r.id),
                                           s.not_before,
                                           (select e.at from stepwell.event e where e.position > r.id
                                             order by e.position limit 1)) since
                             from (select * from stepwell.ready_step r where r.queue = hop.queue
                                    order by r.queue, r.id, r.key limit $3) r,
                                  lateral (select * from stepwell.step where key = r.key offset 0) s
                            where s.state = 1 and s.attempt = r.attempt
                            order by r.id, r.key limit 1) o on true
                     where hop.queue is not null),
               handler as (
                    select q.namespace, q.handler, sum(d.n)::bigint n,
                           coalesce(extract(epoch from clock_timestamp() - min(d.since) filter (where not f.paused)), 0)
                             ::float8 oldest
                      from depth d,
                           lateral (select definition, namespace, handler from stepwell.queue
                                     where id = d.queue offset 0) q,
                           lateral (select paused from stepwell.definition
                                     where id = q.definition offset 0) f
                     group by q.namespace, q.handler)
               select clock_timestamp() as "at!",
                      coalesce((select position from stepwell.event order by position desc limit 1), 0)
                        as "head!",
                      array(select namespace from handler order by oldest desc, namespace, handler)
                        as "namespaces!",
                      array(select handler from handler order by oldest desc, namespace, handler)
                        as "handlers!",
                      array(select n from handler order by oldest desc, namespace, handler) as "steps!",
                      array(select oldest from handler order by oldest desc, namespace, handler)
                        as "oldest!",
                      coalesce((select greatest(0, extract(epoch from clock_timestamp() - due))
                                  from stepwell.timer order by due limit 1), 0)::float8 as "overdue!",
                      (select count(*) from stepwell.node where retired_at is not null) as "retired!",
                      a.n as "append_n!", a.seconds as "append_seconds!",
                      greatest(t.seconds, p.seconds) as "transaction!", p.n as "prepared!"
                 from (select count(*) n,
                              coalesce(extract(epoch from clock_timestamp() - min(waitstart)), 0)::float8
                                seconds
                         from pg_locks
                        where locktype = 'advisory' and not granted and objid = 42 and classid = 0
                          and objsubid = 1
                          and database = (select oid from pg_database where datname = current_database())) a,
                      (select coalesce(extract(epoch from clock_timestamp() - min(xact_start)), 0)::float8
                                seconds
                         from pg_stat_activity
                        where pid <> pg_backend_pid() and backend_type <> 'autovacuum worker') t,
                      (select count(*) n,
                              coalesce(extract(epoch from clock_timestamp() - min(prepared)), 0)::float8
                                seconds
                         from pg_prepared_xacts) p"#,
            QUEUES_MAX,
            READY_COUNTED_MAX,
            STALE_MAX,
        )
        .fetch_one(self.reads())
        .await?;
        let names = row.namespaces.into_iter().zip(row.handlers);
        let figures = row.steps.into_iter().zip(row.oldest);
        let ready = names.zip(figures).map(|((namespace, handler), (steps, oldest))| Ready {
            namespace,
            handler,
            steps,
            oldest,
        });
        Ok(Survey {
            at: row.at,
            head: row.head,
            ready: ready.collect(),
            timer_overdue: row.overdue,
            nodes_retired: row.retired,
            append_waiters: row.append_n,
            append_wait: row.append_seconds,
            oldest_transaction: row.transaction,
            prepared_transactions: row.prepared,
        })
    }

    /// Counts what the log has after one position up to another, as far as one statement goes; answers
    /// the position it came to. Durations are grouped between these bounds, ascending.
    pub async fn count_after(
        &self,
        position: i64,
        up_to: i64,
        bounds: &[f64],
    ) -> Result<(Vec<Count>, i64), Error> {
        let last = up_to.min(position + ROWS_MAX);
        let rows = sqlx::query_as!(
            Count,
            // One number as the key of the groups, and few enough rows for them to be sorted in memory.
            r#"select (k >> 16)::smallint as "type!", nullif(k >> 12 & 7, 0)::smallint as from_state,
                      k >> 15 & 1 = 1 as "by_hand!",
                      (k >> 8 & 15)::smallint as "to_state!", count(*) as "n!", avg(seconds) as seconds
                 from (select type * 65536 + by_hand * 32768 + coalesce(from_state, 0) * 4096 + to_state * 256
                                + coalesce(width_bucket(seconds, $3::float8[]), 0) as k, seconds
                         from (select type, from_state, to_state, (type = 43 and mark is null)::int by_hand,
                                      date_part('epoch', at -
                                        case when type in (41, 42) then mark
                                             when type in (21, 22, 23) or type = 24 and from_state <> 4
                                             then (select created_at from stepwell.task_detail
                                                    where task = e.task) end) as seconds
                                 from stepwell.event e
                                where position > $1 and position <= $2 offset 0) e) e
                group by k"#,
            position,
            last,
            bounds,
        )
        .fetch_all(self.reads())
        .await?;
        Ok((rows, last))
    }
}
