//! Who is connected, for people to see. Nodes write it now and then, several executors by one statement;
//! nothing that moves steps reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::types::chrono::{DateTime, Utc};
use stepwell_proto::{id::executor_id, v1};

use crate::{Error, Store, Topic, Writer, definition::timestamp};

/// Of the executors of one answer; one may be larger.
const PAGE_BYTES_MAX: i64 = 2 << 20;
/// Ranges of versions told of one handler.
const RANGES_MAX: i32 = 100;

/// What changes of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorState {
    /// Its session.
    pub session: i64,
    /// How many steps it runs at once.
    pub slots: i32,
    /// How many it runs now.
    pub used: i32,
    /// It gets no more leases.
    pub draining: bool,
    /// How long ago it was heard of. Milliseconds.
    pub heard_ms: i64,
}

/// An executor that was not written yet.
#[derive(Clone, Debug)]
pub struct NewExecutor<'a> {
    /// How it is now.
    pub state: ExecutorState,
    /// What it calls itself.
    pub name: &'a str,
    /// The namespace its handlers are of.
    pub namespace: &'a str,
    /// Client library and version.
    pub sdk: &'a str,
    /// Its handlers, each with a range of versions.
    pub handlers: Vec<(&'a str, String)>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// It was told to stop.
    pub stop_asked: bool,
    /// How long ago it connected. Milliseconds.
    pub age_ms: i64,
}

/// Which executors or handlers are wanted; empty text: all.
#[derive(Clone, Debug, Default)]
pub struct Offering {
    /// The namespace.
    pub namespace: String,
    /// The handler.
    pub handler: String,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// In order.
    pub items: Vec<T>,
    /// There are more after the last of them.
    pub more: bool,
}

#[derive(Serialize, Deserialize)]
struct Offered {
    name: String,
    versions: String,
}

impl Writer {
    /// Writes what became of the executors of a node: those that went, those that changed, those that
    /// came. Answers which of those that changed were there; the others are to be written anew.
    pub async fn write_executors(
        &mut self,
        node: i32,
        gone: &[i64],
        changed: &[ExecutorState],
        new: &[NewExecutor<'_>],
    ) -> Result<Vec<i64>, Error> {
        let columns = |of: &mut dyn Iterator<Item = ExecutorState>| {
            let (mut sessions, mut slots, mut used) = (Vec::new(), Vec::new(), Vec::new());
            let (mut draining, mut heard) = (Vec::new(), Vec::new());
            for state in of {
                sessions.push(state.session);
                slots.push(state.slots);
                used.push(state.used);
                draining.push(state.draining);
                heard.push(state.heard_ms);
            }
            (sessions, slots, used, draining, heard)
        };
        let kept = columns(&mut changed.iter().copied());
        let came = columns(&mut new.iter().map(|new| new.state));
        let text = |of: fn(&NewExecutor<'_>) -> String| new.iter().map(of).collect::<Vec<_>>();
        let found = sqlx::query_scalar!(
            r#"with gone as (
                    delete from stepwell.executor where session = any($2)),
                    new as (
                    insert into stepwell.executor (session, node, slots, used, draining, seen_at, namespace,
                           name, sdk, handlers, labels, stop_asked, connected_at)
                    select session, $1, slots, used, draining,
                           clock_timestamp() - heard * interval '1 ms', namespace, name, sdk,
                           handlers::jsonb, labels::jsonb, asked, clock_timestamp() - age * interval '1 ms'
                      from unnest($8::bigint[], $9::int[], $10::int[], $11::bool[], $12::bigint[],
                                  $13::text[], $14::text[], $15::text[], $16::text[], $17::text[],
                                  $18::bool[], $19::bigint[])
                             i(session, slots, used, draining, heard, namespace, name, sdk, handlers, labels,
                               asked, age)
                        on conflict (session) do update
                       set node = excluded.node, slots = excluded.slots, used = excluded.used,
                           draining = excluded.draining or executor.stop_asked,
                           seen_at = excluded.seen_at)
               update stepwell.executor e
                  set node = $1, slots = i.slots, used = i.used, draining = i.draining or e.stop_asked,
                      seen_at = clock_timestamp() - i.heard * interval '1 ms'
                 from unnest($3::bigint[], $4::int[], $5::int[], $6::bool[], $7::bigint[])
                        i(session, slots, used, draining, heard)
                where e.session = i.session
               returning e.session"#,
            node,
            gone,
            &kept.0,
            &kept.1,
            &kept.2,
            &kept.3,
            &kept.4,
            &came.0,
            &came.1,
            &came.2,
            &came.3,
            &came.4,
            &text(|new| new.namespace.to_owned()),
            &text(|new| new.name.to_owned()),
            &text(|new| new.sdk.to_owned()),
            &text(|new| handlers_text(&new.handlers)),
            &text(|new| serde_json::to_string(new.labels).expect("text has a JSON form")),
            &new.iter().map(|new| new.stop_asked).collect::<Vec<_>>(),
            &new.iter().map(|new| new.age_ms).collect::<Vec<_>>(),
        )
        .fetch_all(&mut self.connection)
        .await?;
        Ok(found)
    }
}

fn handlers_text(handlers: &[(&str, String)]) -> String {
    let handlers = handlers
        .iter()
        .map(|(name, versions)| Offered { name: (*name).to_owned(), versions: versions.clone() });
    serde_json::to_string(&handlers.collect::<Vec<_>>()).expect("text has a JSON form")
}

struct Row {
    session: i64,
    node: i32,
    namespace: String,
    name: String,
    sdk: String,
    handlers: String,
    labels: String,
    slots: i32,
    used: i32,
    draining: bool,
    connected_at: DateTime<Utc>,
    seen_at: DateTime<Utc>,
    more: bool,
}

impl Row {
    fn read(self) -> Result<v1::Executor, Error> {
        let wrong = |error: serde_json::Error| {
            Error::Inconsistent(format!("executor {}: {error}", self.session))
        };
        let handlers: Vec<Offered> = serde_json::from_str(&self.handlers).map_err(wrong)?;
        let handlers = handlers.into_iter().map(|offered| v1::HandlerOffer {
            name: offered.name,
            definition_versions: offered.versions,
        });
        Ok(v1::Executor {
            executor_id: executor_id(self.session),
            name: self.name,
            namespace: self.namespace,
            handlers: handlers.collect(),
            labels: serde_json::from_str(&self.labels).map_err(wrong)?,
            slots: self.slots,
            slots_used: self.used,
            draining: self.draining,
            sdk: self.sdk,
            node: self.node,
            connect_time: Some(timestamp(self.connected_at)),
            last_seen_time: Some(timestamp(self.seen_at)),
        })
    }
}

impl Store {
    /// Executors of living nodes after this session, at most `max`, in the order of their sessions.
    pub async fn executors(
        &self,
        wanted: &Offering,
        after: i64,
        max: i32,
    ) -> Result<Page<v1::Executor>, Error> {
        let mut rows = sqlx::query_as!(
            Row,
            r#"select session as "session!", node as "node!", namespace as "namespace!", name as "name!",
                      sdk as "sdk!", handlers as "handlers!", labels as "labels!", slots as "slots!",
                      used as "used!", draining as "draining!", connected_at as "connected_at!",
                      seen_at as "seen_at!", no < n as "more!"
                 from (select *, row_number() over w no, count(*) over () n,
                              sum(octet_length(handlers)) over w - octet_length(handlers) before
                         from (select e.session, e.node, e.namespace, e.name, e.sdk,
                                      e.handlers::text handlers, e.labels::text labels, e.slots, e.used,
                                      e.draining, e.connected_at, e.seen_at
                                 from stepwell.executor e join stepwell.node n on n.id = e.node
                                where n.retired_at is null and n.lease_until > clock_timestamp()
                                  and e.session > $1 and ($2 = '' or e.namespace = $2)
                                  and ($3 = '' or e.handlers @> jsonb_build_array(
                                                                  jsonb_build_object('name', $3::text)))
                                order by e.session limit $4::int + 1) e
                       window w as (order by session)) e
                where no <= $4::int and before <= $5
                order by session"#,
            after,
            wanted.namespace,
            wanted.handler,
            max,
            PAGE_BYTES_MAX,
        )
        .fetch_all(self.reads())
        .await?;
        let more = rows.last().is_some_and(|row| row.more);
        let items = rows.drain(..).map(Row::read).collect::<Result<_, _>>()?;
        Ok(Page { items, more })
    }

    /// One executor of a living node.
    pub async fn executor(&self, session: i64) -> Result<Option<v1::Executor>, Error> {
        let found = self.executors(&Offering::default(), session - 1, 1).await?.items.pop();
        Ok(found.filter(|found| found.executor_id == executor_id(session)))
    }

    /// Handlers that executors of living nodes offer or definitions use, after this namespace and name, at
    /// most `max`, in that order.
    pub async fn handlers(
        &self,
        wanted: &Offering,
        after: (&str, &str),
        max: i32,
    ) -> Result<Page<v1::Handler>, Error> {
        let rows = sqlx::query!(
            r#"with offer as materialized (
                    select e.namespace, h.name handler, h.versions, e.session, e.slots, e.used, e.draining
                      from stepwell.executor e join stepwell.node n on n.id = e.node,
                           jsonb_to_recordset(e.handlers) h(name text, versions text)
                     where n.retired_at is null and n.lease_until > clock_timestamp()
                       and ($1 = '' or e.namespace = $1) and ($2 = '' or h.name = $2)),
                    executor as (
                    select namespace, handler, count(*) n, sum(slots) slots, sum(used) used
                      from (select distinct namespace, handler, session, slots, used from offer
                             where not draining) o
                     group by namespace, handler),
                    range as (
                    select namespace, handler,
                           (array_agg(distinct versions order by versions))[1:$3] versions
                      from offer group by namespace, handler),
                    used as (
                    select distinct namespace, handler from stepwell.queue
                     where ($1 = '' or namespace = $1) and ($2 = '' or handler = $2))
               select namespace as "namespace!", handler as "handler!",
                      coalesce(r.versions, '{}') as "versions!", coalesce(e.n, 0) as "n!",
                      coalesce(e.slots, 0) as "slots!", coalesce(e.used, 0) as "used!",
                      u.is_used is not null as "is_used!"
                 from range r
                 full join (select *, true is_used from used) u using (namespace, handler)
                 left join executor e using (namespace, handler)
                where (namespace collate "C", handler collate "C") > ($4::text, $5::text)
                order by namespace collate "C", handler collate "C" limit $6::int + 1"#,
            wanted.namespace,
            wanted.handler,
            RANGES_MAX,
            after.0,
            after.1,
            max,
        )
        .fetch_all(self.reads())
        .await?;
        let max = usize::try_from(max).unwrap_or(0);
        let more = rows.len() > max;
        let items = rows.into_iter().take(max).map(|row| v1::Handler {
            namespace: row.namespace,
            name: row.handler,
            definition_versions: row.versions,
            executors: i32::try_from(row.n).unwrap_or(i32::MAX),
            slots: row.slots,
            slots_used: row.used,
            used: row.is_used,
        });
        Ok(Page { items: items.collect(), more })
    }

    /// Tells an executor to stop, through its node. Answers whether it had been told before; none: no
    /// living node has it.
    pub async fn stop_executor(&self, session: i64, reason: &str) -> Result<Option<bool>, Error> {
        let row = sqlx::query!(
            r#"with known as (
                    select e.session from stepwell.executor e join stepwell.node n on n.id = e.node
                     where e.session = $1 and n.retired_at is null and n.lease_until > clock_timestamp()),
                    told as (
                    update stepwell.executor set stop_asked = true, draining = true
                     where session in (select session from known) and not stop_asked
                    returning session, node),
                    signal as (
                    insert into stepwell.signal (node, session, key, token, attempt, reason, stop)
                    select node, session, 0, 0, 0, $2, true from told)
               select exists(select from known) as "known!", exists(select from told) as "told!""#,
            session,
            reason,
        )
        .fetch_one(self.reads())
        .await?;
        if row.told {
            self.bell().ring(Topic::Signal);
        }
        Ok(row.known.then_some(!row.told))
    }
}
