//! Steps that are ready in queues that nobody serves.

use crate::{Error, Store, Topic, span};

/// Queues with ready steps that one look takes in.
const QUEUES_MAX: i32 = 500;
/// Rows looked at for a step of a queue that is ready indeed: cancelled ones leave theirs.
const STALE_MAX: i64 = 100;
/// Rows of queues that one call looks at, and so the most it tells of.
const ROWS_MAX: i32 = 500;

/// A queue in which steps are ready, and who could run them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The queue.
    pub queue: i32,
    /// The definition's version: major, minor, patch.
    pub version: Vec<i32>,
    /// How long the first of its steps has been ready. Milliseconds; none: all are left-overs.
    pub age_ms: Option<i64>,
    /// The ranges of versions for which executors of living nodes offer its handler that have the labels it
    /// requires and are not draining; empty text: every version.
    pub ranges: Vec<String>,
}

/// A queue, and the row of it behind which a look goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The queue.
    pub queue: i32,
    /// Place of the row; 0: from the start.
    pub id: i64,
    /// Step of the row.
    pub step: i64,
}

/// What was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// How many steps.
    pub steps: usize,
    /// Where the look came to in each queue, and whether there is more behind.
    pub places: Vec<(Place, bool)>,
    /// In how many milliseconds the next one will have been ready for so long; none: none was seen.
    pub next_ms: Option<u64>,
}

impl Store {
    /// Queues above this one in which steps are ready, in their order, and whether there are more.
    pub async fn waiting_queues(&self, above: i32) -> Result<(Vec<Waiting>, bool), Error> {
        let rows = sqlx::query_as!(
            Waiting,
            r#"with recursive
               hop(queue, n) as (
                    (select queue, 1 from stepwell.ready_step where queue > $1 order by queue, id, key limit 1)
                    union all
                    select (select r.queue from stepwell.ready_step r where r.queue > hop.queue
                             order by r.queue, r.id, r.key limit 1), n + 1
                      from hop where hop.queue is not null and n < $2),
               wait as materialized (
                    select q.id queue, q.definition, q.namespace, q.handler, q.requires::jsonb requires, o.since
                      from hop join stepwell.queue q on q.id = hop.queue
                      left join lateral (
                           select stepwell.ready_since(r.id, s.not_before) since
                             from (select * from stepwell.ready_step r where r.queue = hop.queue
                                    order by r.queue, r.id, r.key limit $3) r,
                                  lateral (select state, attempt, not_before from stepwell.step
                                            where key = r.key offset 0) s
                            where s.state = 1 and s.attempt = r.attempt
                            order by r.id, r.key limit 1) o on true),
               offer as materialized (
                    select distinct e.namespace, h.name handler, coalesce(h.versions, '') versions, e.labels
                      from stepwell.executor e join stepwell.node n on n.id = e.node,
                           jsonb_to_recordset(e.handlers) h(name text, versions text)
                     where n.retired_at is null and n.lease_until > clock_timestamp() and not e.draining
                       and (e.namespace, h.name) in (select namespace, handler from wait))
               select w.queue as "queue!", d.version as "version!",
                      (extract(epoch from clock_timestamp() - w.since) * 1000)::bigint as age_ms,
                      coalesce(array_agg(distinct o.versions) filter (where o.versions is not null), '{}') as "ranges!"
                 from wait w join stepwell.definition d on d.id = w.definition
                 left join offer o on o.namespace = w.namespace and o.handler = w.handler and o.labels @> w.requires
                group by w.queue, d.version, w.since order by w.queue"#,
            above,
            QUEUES_MAX,
            STALE_MAX,
        )
        .fetch_all(self.reads())
        .await?;
        let more = i32::try_from(rows.len()).is_ok_and(|n| n >= QUEUES_MAX);
        Ok((rows, more))
    }

    /// Tells of steps of these queues, which nobody serves, that have been ready for so many milliseconds, each
    /// once for each attempt.
    pub async fn tell_unserved(&self, from: &[Place], after_ms: i64) -> Result<Told, Error> {
        let queues: Vec<i32> = from.iter().map(|place| place.queue).collect();
        let ids: Vec<i64> = from.iter().map(|place| place.id).collect();
        let steps: Vec<i64> = from.iter().map(|place| place.step).collect();
        let call = async {
            let call = sqlx::query!(
                r#"select told_n as "told!", q_id as "ids!", q_key as "steps!", q_more as "more!", next_ms
                     from stepwell.unserved_steps($1, $2, $3, $4, $5)"#,
                &queues,
                &ids,
                &steps,
                after_ms,
                ROWS_MAX,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let told = |n: i32| usize::try_from(n).unwrap_or(0);
        let row = span::verb("db.unserved_steps", queues.len(), |row| told(row.told), call).await?;
        if row.told > 0 {
            self.bell().ring(Topic::Event);
        }
        let places = queues.into_iter().zip(row.ids).zip(row.steps).zip(row.more);
        let places = places.map(|(((queue, id), step), more)| (Place { queue, id, step }, more));
        Ok(Told {
            steps: told(row.told),
            places: places.collect(),
            next_ms: row.next_ms.map(|ms| u64::try_from(ms).unwrap_or(0)),
        })
    }
}
