//! Tasks that fit a filter: page by page, and counted.

use std::time::{Duration, Instant};

use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};
use stepwell_proto::v1;

use super::TaskRow;
use crate::{Error, Filter, Store};

/// Most tasks that one page looks at.
const LOOKED_AT_MAX: i32 = 10_000;
/// Most steps of tasks of which one page looks at how they stand.
const STEPS_MAX: i32 = 100_000;
/// Facts of the tasks of a page, about: a page that would have more is shorter, but has one task in any case.
const ANNOTATIONS_BYTES_MAX: i64 = 1 << 20;
/// Most tasks that one statement of a count looks at.
const COUNTED_AT_ONCE: i32 = 20_000;
/// A count begins with these.
const FIRST: usize = 10;

/// How many tasks fit a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// So many were found.
    pub tasks: i64,
    /// There may be more.
    pub at_least: bool,
    /// The newest of them, at most 10.
    pub first: Vec<Uuid>,
}

/// In which order tasks are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Newest first.
    #[default]
    CreateDesc,
    /// Oldest first.
    Create,
    /// Those that have ended, the last one first.
    EndDesc,
    /// Those that have ended, the first one first.
    End,
}

impl Order {
    fn number(self) -> i32 {
        match self {
            Self::CreateDesc => 1,
            Self::Create => 2,
            Self::EndDesc => 3,
            Self::End => 4,
        }
    }
}

/// After which task of a list a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskPlace {
    /// Its key.
    pub key: i64,
    /// Its time, if the list is in the order of times.
    pub at: Option<DateTime<Utc>>,
}

impl Store {
    /// The first tasks that fit, `limit` at most, of those after a place, without steps and contexts.
    /// Answers also the place where the next page begins; none: this is the last one. A page looks
    /// at 10,000 tasks at most, so a short one need not be the last.
    pub async fn list_tasks(
        &self,
        filter: &Filter,
        order: Order,
        after: Option<TaskPlace>,
        limit: i32,
    ) -> Result<(Vec<v1::Task>, Option<TaskPlace>), Error> {
        let rows = sqlx::query!(
            r#"select m.m_next as next, m.m_at as at, t.id as "id?", t.uid as "uid?", t.definition as "definition?",
                      t.state as "state?", t.started_at as "started_at?", t.finished_at as "finished_at?",
                      t.paused as "paused?", t.deadline as "deadline?",
                      t.held and t.finished_at is null as "held?", d.initiator as "initiator?",
                      d.source_system as "source_system?", d.reason as "reason?", d.tags as "tags?",
                      d.created_at as "created_at?", d.priority as "priority?",
                      d.correlation_id as "correlation_id?", a.annotations as "annotations?", i.beyond as "over?"
                 from stepwell.match_tasks($1::text::json, $2, $3, $4, $5, $6, $7, null) m
                 left join lateral (
                   select u.id, u.place, s.bytes, sum(s.bytes) over (order by u.place) > $8 beyond
                     from unnest(m.m_task) with ordinality u(id, place)
                     left join lateral (
                       select octet_length(annotations::text) bytes
                         from stepwell.task_detail where task = u.id and annotations <> '{}' offset 0) s on true) i on true
                 left join lateral (select * from stepwell.task where id = i.id offset 0) t on true
                 left join lateral (
                   select initiator, source_system, reason, tags, created_at, priority, correlation_id
                     from stepwell.task_detail where task = i.id offset 0) d on true
                 left join lateral (
                   select annotations::text from stepwell.task_detail
                    where task = i.id and i.bytes > 0 and (i.place = 1 or not i.beyond) offset 0) a on true
                order by i.place"#,
            filter.to_text(),
            order.number(),
            after.and_then(|place| place.at),
            after.map(|place| place.key),
            LOOKED_AT_MAX,
            limit,
            STEPS_MAX,
            ANNOTATIONS_BYTES_MAX,
        )
        .fetch_all(self.reads())
        .await?;
        let whole = rows.first().and_then(|row| Some(TaskPlace { key: row.next?, at: row.at }));
        let fits = rows.iter().take_while(|row| row.over != Some(true)).count().max(1);
        let last = rows.get(fits - 1).filter(|_| fits < rows.len()).and_then(|row| {
            let ended = matches!(order, Order::End | Order::EndDesc);
            Some(TaskPlace {
                key: row.id?,
                at: if ended { row.finished_at } else { row.created_at },
            })
        });
        let next = last.or(whole);
        let rows = rows.into_iter().take(fits).filter_map(|row| {
            Some(TaskRow {
                id: row.id?,
                uid: row.uid?,
                definition: row.definition?,
                state: row.state?,
                started_at: row.started_at,
                finished_at: row.finished_at,
                hash: Vec::new(),
                context: String::new(),
                initiator: row.initiator?,
                source_system: row.source_system?,
                reason: row.reason?,
                tags: row.tags?,
                created_at: row.created_at?,
                paused: row.paused?,
                deadline: row.deadline,
                held: row.held?,
                priority: row.priority?,
                correlation_id: row.correlation_id?,
                annotations: row.annotations,
            })
        });
        let rows: Vec<TaskRow> = rows.collect();
        let ids: Vec<i32> = rows.iter().map(|row| row.definition).collect();
        let definitions = self.definitions(&ids).await?;
        let task = |row: TaskRow| {
            let missing = || Error::Inconsistent(format!("task {} has no definition", row.uid));
            let definition = definitions.get(&row.definition).ok_or_else(missing)?;
            row.into_task(definition)
        };
        Ok((rows.into_iter().map(task).collect::<Result<_, Error>>()?, next))
    }

    /// Counts the tasks that fit, as they are meanwhile, up to `most` or for so long.
    pub async fn count_tasks(
        &self,
        filter: &Filter,
        most: i32,
        time: Duration,
    ) -> Result<Counted, Error> {
        let (began, filter) = (Instant::now(), filter.to_text());
        let (mut count, mut before) = (Counted::default(), i64::MAX);
        loop {
            let found = i32::try_from(count.tasks).unwrap_or(most);
            let row = sqlx::query!(
                r#"select m.m_next as next, cardinality(m.m_task) as "n!",
                          array(select t.uid from unnest(m.m_task[:$5]) i,
                                       lateral (select uid from stepwell.task where id = i offset 0) t
                                 order by i desc) as "first!"
                     from stepwell.match_tasks($1::text::json, 0, null, $2, $3, $4, 0, null) m"#,
                filter,
                before,
                COUNTED_AT_ONCE,
                most - found,
                i32::try_from(FIRST - count.first.len()).expect("ten"),
            )
            .fetch_one(self.reads())
            .await?;
            count.tasks += i64::from(row.n);
            count.first.extend(row.first);
            let Some(next) = row.next else { return Ok(count) };
            before = next;
            if count.tasks >= i64::from(most) || began.elapsed() >= time {
                count.at_least = true;
                return Ok(count);
            }
        }
    }
}
