//! The real verbs, called at a simulated time, and the rows they leave, in the model's words.

use std::{collections::BTreeSet, time::Duration};

use sqlx::{
    Connection as _, PgConnection, Row as _,
    postgres::PgRow,
    types::chrono::{DateTime, Utc},
};
use stepwell_proto::{
    id::{number_of, step_key, task_of},
    v1::State,
};
use stepwell_store::{Options, Store, Writer};
use uuid::Uuid;

use super::{
    dag::{PRIORITIES, Plan, QUEUES, queue_number},
    model::{
        Asked, Changed, Doomed, Due, FACTS_MAX, Fate, Id, Leased, Made, Moved, Ms, New, OfStep,
        OfTask, Once, Retired, Settle, Settled, Sweep,
    },
};

/// Keys of tasks that a case has for itself.
const KEYS: i64 = 1_000;
/// More than a case has keys to look at: which of them are taken is then no question.
const GRANT_MAX: i32 = 1_000;
/// Verbs that are called, by their names in Postgres.
type Called = BTreeSet<&'static str>;
/// What a verb answers, unless its node is retired. Any other error is a fault.
pub type Answer<T> = Result<Result<T, Retired>, sqlx::Error>;

/// A database in which one case runs after another.
pub struct Database {
    writer: Writer,
    /// Verbs that were called.
    pub called: Called,
    base: DateTime<Utc>,
    /// Simulated, since the case began.
    now: Ms,
    first_task: i64,
    unused: i64,
    position: i64,
    uids: Vec<Uuid>,
    definitions: Vec<i32>,
    /// Of the concurrency keys of the definitions.
    rooms: Vec<Option<i32>>,
    /// By number; none: it was not made yet.
    queues: Vec<Option<i32>>,
    nodes: Vec<i32>,
    /// Of the rows that are ready, ascending: as the model's, in other numbers.
    places: Vec<i64>,
}

/// What the views make of tasks. `room` is left out where it is any number.
const VIEWS: &str = "
  select concat_ws(' ', array_position($1::uuid[], c.task) - 1, c.state, c.paused, c.held, c.room,
                   c.total_steps, c.pending_steps, c.in_progress_steps, c.complete_steps, c.resolved_steps,
                   c.error_steps, c.cancelled_steps, c.ready_steps, c.parked_steps, c.backing_off_steps,
                   c.waiting_steps, c.blocked_steps, c.retrying_steps, c.execution_status, c.health,
                   (c.completion_percentage * 100)::int,
                   (select string_agg(coalesce(s.standing, '-'), ' ' order by s.no)
                      from stepwell.step_readiness(array[c.task], $2) s))
    from stepwell.task_context($1, $2) c
   order by array_position($1, c.task)";

/// What the tables hold of a case, a line for each row, and of the log what is new.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub tasks: String,
    /// What leads to tasks.
    pub facts: String,
    /// Keys that requests are known by.
    pub identities: String,
    pub steps: String,
    pub ready: String,
    pub parked: String,
    pub timers: String,
    pub signals: String,
    /// Concurrency keys.
    pub keys: String,
    /// Those to look at.
    pub wake: String,
    /// What people have paused.
    pub pauses: String,
    /// Whether a pause covers them.
    pub plans: String,
    pub nodes: String,
    /// In the order of the log, and after the last look.
    pub events: String,
    /// How many of those have another batch, another time or another task's id than they must, or a
    /// position with a hole before it.
    pub strange: i64,
}

const ROWS: &str = "
  with base as materialized (select $1::timestamptz at, $2::bigint task, $3::int[] queue, $4::int[] node)
  select
    (select string_agg((id - b.task, state, live_n, failed_n, cancelled_n,
                        (extract(epoch from started_at - b.at) * 1000)::bigint,
                        (extract(epoch from finished_at - b.at) * 1000)::bigint,
                        ruled, paused, held, case when ruled then running_n end,
                        (extract(epoch from deadline - b.at) * 1000)::bigint,
                        (select priority from stepwell.task_detail where task = id),
                        (select string_agg(a.key || '=' || a.value, '+' order by a.key)
                           from stepwell.task_detail, jsonb_each_text(annotations) a where task = id))::text, e'\\n' order by id)
       from stepwell.task where id between $2 and $2 + 999),
    (select string_agg(((key >> 14) - b.task, key & 16383, state, waiting_on, attempt, max_attempts,
                        (extract(epoch from not_before - b.at) * 1000)::bigint,
                        (extract(epoch from leased_at - b.at) * 1000)::bigint,
                        token, array_position(b.node, node) - 1, session, last_token, last_kind,
                        result,
                        case when last_error like '{%}' then (last_error::json->>'error_class') || (last_error::json->>'max_attempts')
                             else last_error end,
                        (extract(epoch from due - b.at) * 1000)::bigint,
                        array_position(b.queue, queue) - 1)::text, e'\\n' order by key)
       from stepwell.step where key between $2 << 14 and ($2 + 999) << 14),
    (select string_agg((array_position(b.queue, queue) - 1, place, (key >> 14) - b.task, key & 16383, attempt)::text,
                       e'\\n' order by array_position(b.queue, queue), place, key)
       from (select *, dense_rank() over (order by id) place from stepwell.ready_step where queue = any($3)) r),
    (select string_agg(((extract(epoch from due - b.at) * 1000)::bigint, (key >> 14) - b.task, key & 16383, attempt, kind)::text,
                       e'\\n' order by due, key, attempt, kind)
       from stepwell.timer),
    (select string_agg((array_position(b.node, node) - 1, session, (key >> 14) - b.task, key & 16383, token, attempt)::text,
                       e'\\n' order by key, token)
       from stepwell.signal where node = any($4)),
    (select string_agg((array_position(b.node, id) - 1, (extract(epoch from lease_until - b.at) * 1000)::bigint,
                        (extract(epoch from retired_at - b.at) * 1000)::bigint,
                        array_position(b.node, taken_by) - 1)::text, e'\\n' order by id)
       from stepwell.node where id = any($4)),
    (select string_agg((task - b.task, no, type, from_state, to_state, attempt, session,
                        (extract(epoch from mark - b.at) * 1000)::bigint, array_to_string(names, '+'))::text,
                       e'\\n' order by position)
       from stepwell.event where position > $5),
    l.last, l.n - l.sound,
    (select array_agg(distinct id order by id) from stepwell.ready_step where queue = any($3)),
    (select string_agg((task - b.task, array_position(b.queue, queue) - 1, key & 16383, attempt)::text,
                       e'\\n' order by key, attempt)
       from stepwell.parked_step where task between $2 and $2 + 999),
    (select string_agg((id - b.task, task - b.task, room, granted)::text, e'\\n' order by id, task) from stepwell.concurrency),
    (select string_agg(distinct (id - b.task)::text, e'\\n') from stepwell.concurrency_wake),
    (select string_agg((right(namespace, 1), nullif(name, ''))::text, e'\\n' order by namespace, name) from stepwell.pause),
    (select string_agg((array_position($8, id) - 1, paused)::text, e'\\n' order by id)
       from stepwell.definition where id = any($8)),
    (select string_agg((task - b.task, name, text)::text, e'\\n' order by task, name, text) from stepwell.task_annotation),
    (select string_agg((right(key::text, 1), task - b.task)::text, e'\\n' order by key) from stepwell.identity)
    from base b,
         (select max(position) last, count(*) n,
                 count(*) filter (where batch = first and at = $6 and uid = ($7::uuid[])[task - $2 + 1]
                                    and position = first + i - 1) sound
            from (select *, min(position) over () first, row_number() over (order by position) i
                    from stepwell.event where position > $5) e) l";

impl Database {
    /// Over a database of its own, in which these statements are carried out first.
    pub async fn with(url: &str, statements: &str) -> Self {
        let mut connection = PgConnection::connect(url).await.unwrap();
        let statements = sqlx::AssertSqlSafe(statements.to_owned());
        sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
        let store = Store::connect(&Options::new(url), "simulation").await.unwrap();
        let mut writer = store.writer().await.unwrap();
        // What a crash loses is none of its business.
        sqlx::query("set synchronous_commit = off").execute(writer.connection()).await.unwrap();
        // Rows of one step with different attempts are told apart by where they lie: by age, unless places
        // are used again.
        for table in ["parked_step", "ready_step"] {
            let sql = format!("alter table stepwell.{table} set (autovacuum_enabled = off)");
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(writer.connection()).await.unwrap();
        }
        Self {
            writer,
            called: Called::new(),
            base: DateTime::from_timestamp(4_102_444_800, 0).unwrap(),
            now: 0,
            first_task: 0,
            unused: 0,
            position: 0,
            uids: Vec::new(),
            definitions: Vec::new(),
            rooms: Vec::new(),
            queues: Vec::new(),
            nodes: Vec::new(),
            places: Vec::new(),
        }
    }

    /// A new case: nothing of the one before is left but its definitions and its place in the log.
    pub async fn begin(&mut self, plans: &[Plan], tasks: usize) -> Result<(), sqlx::Error> {
        sqlx::query(
            "with a as (delete from stepwell.task), b as (delete from stepwell.task_detail),
                  c as (delete from stepwell.step), d as (delete from stepwell.ready_step),
                  e as (delete from stepwell.timer), f as (delete from stepwell.signal),
                  h as (delete from stepwell.parked_step), i as (delete from stepwell.concurrency),
                  j as (delete from stepwell.concurrency_wake), k as (delete from stepwell.pause),
                  m as (delete from stepwell.identity), n as (delete from stepwell.task_annotation),
                  l as (update stepwell.definition set paused = false where id = any($1) and paused),
                  g as (delete from stepwell.event)
             delete from stepwell.node",
        )
        .bind(std::mem::take(&mut self.definitions))
        .execute(self.writer.connection())
        .await?;
        self.now = 0;
        self.first_task += KEYS;
        self.unused = self.first_task + KEYS / 2;
        self.uids = (0..tasks).map(|_| Uuid::now_v7()).collect();
        self.nodes.clear();
        self.rooms.clear();
        self.queues = vec![None; plans.len() * QUEUES * PRIORITIES];
        for plan in plans {
            self.define(plan).await?;
        }
        self.know_queues().await
    }

    /// The namespaces of a case are its own.
    fn namespace(&self, namespace: u8) -> String {
        format!("{}/{namespace}", self.first_task)
    }

    /// The queues that were made. Of odd plans they differ by what they require, of others by their handlers.
    async fn know_queues(&mut self) -> Result<(), sqlx::Error> {
        let rows = sqlx::query(
            "select array_position($1, definition) - 1, priority, id,
                    (row_number() over (partition by definition, priority order by handler, requires) - 1)::int
               from stepwell.queue where definition = any($1)",
        )
        .bind(self.definitions.clone())
        .fetch_all(self.writer.connection())
        .await?;
        for row in rows {
            let (plan, priority, no): (i32, i16, i32) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(3)?);
            let (plan, no) = (count(plan), count(no));
            let priority = u8::try_from(priority).expect("a handful");
            let number = queue_number(self.definitions.len(), plan, no, priority);
            self.queues[number] = Some(row.try_get(2)?);
        }
        Ok(())
    }

    async fn define(&mut self, plan: &Plan) -> Result<(), sqlx::Error> {
        let roots = plan.steps.iter().filter(|step| step.parents.is_empty()).count();
        let queues: Vec<i32> = plan.steps.iter().map(|step| int(step.queue)).collect();
        let waiting: Vec<i32> = plan.steps.iter().map(|step| int(step.parents.len())).collect();
        let attempts: Vec<i32> = plan.steps.iter().map(|step| step.max_attempts).collect();
        let children: Vec<String> = plan.steps.iter().map(|s| array(&s.children)).collect();
        let row = sqlx::query(
            "with d as (
               insert into stepwell.definition (namespace, name, version, hash, content, roots, max_parallel,
                                                deadline_ms, ruled, concurrency_room, priority)
               values ($14, $1, array[1, 0, $15], '', '', $2, $8, $9, $10, $11, $16) returning id),
             q as (
               insert into stepwell.queue (definition, namespace, handler, requires, priority)
               select d.id, $14, case $15 % 2 when 0 then n::text else '' end,
                      case $15 % 2 when 0 then '{}' else n::text end, $16
                 from d, generate_series(0, $3 - 1) n returning id, handler, requires),
             s as (
               insert into stepwell.step_template (definition, no, queue, waiting_on, max_attempts, children,
                                                   queue_timeout_ms, total_timeout_ms)
               select d.id, s.no - 1, q.id, waiting_on, max_attempts, children::int[], queue_ms, total_ms
                 from d, unnest($4::int[], $5::int[], $6::int[], $7::text[], $12::bigint[], $13::bigint[])
                           with ordinality s(queue, waiting_on, max_attempts, children, queue_ms, total_ms, no)
                 join q on s.queue::text in (q.handler, q.requires))
             select id from d",
        )
        .bind(plan.name.1.to_string())
        .bind(int(roots))
        .bind(int(QUEUES))
        .bind(queues)
        .bind(waiting)
        .bind(attempts)
        .bind(children)
        .bind(i32::from(plan.rules.max_parallel))
        .bind(plan.rules.deadline.map(i64::from))
        .bind(plan.is_ruled())
        .bind(plan.rules.room.map(i32::from))
        .bind(plan.steps.iter().map(|step| step.queue_timeout).collect::<Vec<_>>())
        .bind(plan.steps.iter().map(|step| step.total_timeout).collect::<Vec<_>>())
        .bind(self.namespace(plan.name.0))
        .bind(int(self.definitions.len()))
        .bind(i16::from(plan.priority))
        .fetch_one(self.writer.connection())
        .await?;
        self.definitions.push(row.try_get(0)?);
        self.rooms.push(plan.rules.room.map(i32::from));
        Ok(())
    }

    /// It is this time from now on.
    pub fn at(&mut self, now: Ms) {
        self.now = now;
    }

    fn time(&self) -> DateTime<Utc> {
        self.base + millis(self.now)
    }

    fn key(&self, id: Id) -> i64 {
        step_key(self.first_task + long(id.task), int(id.no))
    }

    fn id(&self, key: i64) -> Id {
        let task = usize::try_from(task_of(key) - self.first_task).expect("a task of this case");
        Id { task, no: usize::try_from(number_of(key)).expect("a number") }
    }

    /// The ids of tasks; one that is none of the case's has an id that nobody has.
    fn uid(&self, task: usize) -> Uuid {
        self.uids.get(task).copied().unwrap_or_default()
    }

    fn uids(&self, tasks: &[usize]) -> Vec<Uuid> {
        tasks.iter().map(|task| self.uid(*task)).collect()
    }

    /// Everything the tables hold of this case, and of the log what is new since the last look.
    pub async fn rows(&mut self) -> Result<Rows, sqlx::Error> {
        let row = sqlx::query(ROWS)
            .bind(self.base)
            .bind(self.first_task)
            .bind(self.queues.clone())
            .bind(self.nodes.clone())
            .bind(self.position)
            .bind(self.time())
            .bind(self.uids.clone())
            .bind(self.definitions.clone())
            .fetch_one(self.writer.connection())
            .await?;
        let text = |at: usize| row.try_get::<Option<String>, _>(at).map(Option::unwrap_or_default);
        if let Some(position) = row.try_get::<Option<i64>, _>(7)? {
            self.position = position;
        }
        self.places = row.try_get::<Option<Vec<i64>>, _>(9)?.unwrap_or_default();
        Ok(Rows {
            tasks: text(0)?,
            facts: text(15)?,
            identities: text(16)?,
            steps: text(1)?,
            ready: text(2)?,
            parked: text(10)?,
            timers: text(3)?,
            signals: text(4)?,
            keys: text(11)?,
            wake: text(12)?,
            pauses: text(13)?,
            plans: text(14)?,
            nodes: text(5)?,
            events: text(6)?,
            strange: row.try_get(8)?,
        })
    }

    /// What the views make of the case's tasks, a line each.
    pub async fn views(&mut self) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar(VIEWS)
            .bind(self.uids.clone())
            .bind(self.time())
            .fetch_all(self.writer.connection())
            .await
    }

    /// The invariants of the whole database.
    pub async fn check(&mut self) {
        stepwell_tests::check(self.writer.connection()).await;
    }

    // ── the verbs ───────────────────────────────────────────────────────────────────────────────

    pub async fn create(&mut self, tasks: &[New], exists: impl Fn(usize) -> bool) -> Answer<Made> {
        let is_known = tasks.iter().any(|new| new.known.is_some());
        self.called.insert(if is_known { "create_identified_tasks" } else { "create_tasks" });
        let mut keys = Vec::new();
        for New { task, .. } in tasks {
            self.unused += 1;
            keys.push(if exists(*task) { self.unused } else { self.first_task + long(*task) });
        }
        let n = tasks.len();
        let uids: Vec<Uuid> = tasks.iter().map(|new| self.uid(new.task)).collect();
        let definitions: Vec<i32> = tasks.iter().map(|new| self.definitions[new.plan]).collect();
        let skipped = tasks.iter().map(|new| &new.bypassed);
        let skipped: Vec<Option<String>> =
            skipped.map(|no| (!no.is_empty()).then(|| array(no))).collect();
        let rooms: Vec<Option<i32>> = tasks.iter().map(|new| self.rooms[new.plan]).collect();
        let shared = tasks.iter().zip(&rooms);
        let shared = shared.map(|(new, room)| room.map(|_| self.first_task + long(new.plan)));
        let shared: Vec<Option<i64>> = shared.collect();
        let fact = |(name, text): (u8, u8)| format!(r#"{{"{name}": "{text}"}}"#);
        let facts: Vec<Option<String>> = tasks.iter().map(|new| new.fact.map(fact)).collect();
        let identity = |new: &New| new.known.map(|of| Uuid::from_u128(of.key.into()));
        let identities: Vec<Option<Uuid>> = tasks.iter().map(identity).collect();
        let windows = tasks.iter().map(|new| new.known.and_then(|of| of.window).map(i64::from));
        let plain = "select n_key, queues_n from stepwell.create_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";
        let known = "select n_key, queues_n, t_there from stepwell.create_identified_tasks($18, $19, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";
        let mut query = sqlx::query(if is_known { known } else { plain })
            .bind(&keys)
            .bind(uids)
            .bind(definitions)
            .bind(vec![vec![0u8; 32]; n])
            .bind(vec!["{}"; n])
            .bind(vec!["who"; n])
            .bind(vec!["where"; n])
            .bind(vec!["why"; n])
            .bind(vec![None::<String>; n])
            .bind(vec![None::<Vec<u8>>; n])
            .bind(skipped)
            .bind(shared)
            .bind(rooms)
            .bind(tasks.iter().map(|new| new.priority.map(i16::from)).collect::<Vec<_>>())
            .bind(vec!["c1"; n])
            .bind(self.time())
            .bind(facts.iter().any(Option::is_some).then_some(facts));
        if is_known {
            query = query.bind(identities).bind(windows.collect::<Vec<_>>());
        }
        let row = query.fetch_one(self.writer.connection()).await;
        let answer = answer(row, |row| {
            let new: Option<Vec<i64>> = row.try_get(0)?;
            let mut new: Vec<usize> =
                new.unwrap_or_default().iter().map(|key| self.id(key << 14).task).collect();
            new.sort_unstable();
            let number_of = |uid: Uuid| self.uids.iter().position(|of| *of == uid);
            let places = if is_known { row.try_get("t_there")? } else { vec![None::<Uuid>; n] };
            let places = places.into_iter().map(|uid| uid.and_then(number_of)).collect();
            Ok((new, number(&row, "queues_n")?, places))
        });
        if matches!(&answer, Ok(Ok((_, 1.., _)))) {
            self.know_queues().await?;
        }
        answer
    }

    /// Answers how many tasks it removed, and behind which to go on.
    pub async fn remove(
        &mut self,
        after: Option<usize>,
        (age, error): (u8, u8),
        scan: usize,
        most: usize,
    ) -> Answer<(usize, Option<usize>)> {
        self.called.insert("remove_tasks");
        let row = sqlx::query("select * from stepwell.remove_tasks($1, $2, $3, $4, $5, $6)")
            .bind(after.map_or(0, |task| self.first_task + long(task)))
            .bind(i64::from(age))
            .bind(i64::from(error))
            .bind(int(scan))
            .bind(int(most))
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let next: Option<i64> = row.try_get("m_next")?;
            Ok((number(&row, "removed_n")?, next.map(|key| self.id(key << 14).task)))
        })
    }

    /// Answers what became of each task, and the states of those there were.
    pub async fn remove_named(
        &mut self,
        tasks: &[Doomed],
        in_error: bool,
    ) -> Answer<Vec<(Fate, Option<State>)>> {
        self.called.insert("remove_named");
        let uids: Vec<Uuid> = tasks.iter().map(|(task, ..)| self.uid(*task)).collect();
        let state = |state: State| i16::try_from(i32::from(state)).expect("a small number");
        let seen = tasks.iter().map(|(_, seen, _)| seen.map(state)).collect::<Vec<_>>();
        let ends = tasks.iter().map(|(.., end)| end.map(|end| self.base + millis(end)));
        let row = sqlx::query("select * from stepwell.remove_named($1, $2, $3, $4)")
            .bind(uids)
            .bind(seen)
            .bind(ends.collect::<Vec<_>>())
            .bind(in_error)
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let fates: Vec<i16> = row.try_get("a_status")?;
            let fates = fates.into_iter().map(|fate| match fate {
                1 => Fate::Removed,
                2 => Fate::Missing,
                3 => Fate::Left,
                other => panic!("a fate of {other}"),
            });
            Ok(fates.zip(states(&row, "a_state")?).collect())
        })
    }

    /// `slots`: of each queue from a place on. Places are counted among those of the last look.
    pub async fn claim(
        &mut self,
        node: usize,
        slots: &[(usize, usize, Vec<i64>)],
    ) -> Answer<(Vec<(usize, Leased)>, usize)> {
        self.called.insert("claim");
        let (mut at, mut sessions) = (Vec::new(), Vec::<i64>::new());
        for (.., of) in slots {
            at.push(int(sessions.len() + 1));
            sessions.extend(of);
        }
        let row = sqlx::query("select * from stepwell.claim($1, $2, $3, $4, $5, $6, $7)")
            .bind(
                slots
                    .iter()
                    .map(|(queue, ..)| self.queues[*queue].expect("it was made"))
                    .collect::<Vec<_>>(),
            )
            .bind(
                slots
                    .iter()
                    .map(|(_, from, _)| self.places.get(*from).copied().unwrap_or(0))
                    .collect::<Vec<_>>(),
            )
            .bind(slots.iter().map(|(.., of)| int(of.len())).collect::<Vec<_>>())
            .bind(at)
            .bind(sessions)
            .bind(self.nodes[node])
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let places: Option<Vec<i64>> = row.try_get("l_place")?;
            let leases = self.leases(&row)?;
            let of = leases.iter().map(|leased| self.uid(leased.id.task)).collect::<BTreeSet<_>>();
            let told: Option<Vec<Uuid>> = row.try_get("t_uid")?;
            assert_eq!(told.unwrap_or_default().into_iter().collect::<BTreeSet<_>>(), of);
            let places = places.unwrap_or_default().into_iter().map(|place| {
                self.places.iter().position(|known| *known == place).expect("a place it looked at")
            });
            Ok((places.zip(leases).collect(), number(&row, "ready_n")?))
        })
    }

    /// Reports with the slots of a node, or a sweep.
    pub async fn settle(
        &mut self,
        batch: &[Settle],
        node: Option<usize>,
        sweep: Option<&Sweep>,
    ) -> Answer<Settled> {
        self.called.insert("settle");
        let (mut at, mut sessions) = (Vec::new(), Vec::new());
        for item in batch {
            let some = item.slots.iter().any(Option::is_some);
            at.push(some.then_some(int(sessions.len() + 1)));
            sessions.extend(some.then_some(&item.slots).into_iter().flatten().copied());
        }
        let (of_node, of_session) = match sweep {
            None => (None, None),
            Some(Sweep::Node(node)) => (Some(self.nodes[*node]), None),
            Some(Sweep::Session(session)) => (None, Some(vec![*session; batch.len()])),
        };
        let row = sqlx::query(
            "select * from stepwell.settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(batch.iter().map(|item| self.key(item.id)).collect::<Vec<_>>())
        .bind(batch.iter().map(|item| item.token).collect::<Vec<_>>())
        .bind(batch.iter().map(|item| item.kind as i16).collect::<Vec<_>>())
        .bind(batch.iter().map(|item| item.wait).collect::<Vec<_>>())
        .bind(batch.iter().map(|item| item.text.as_str()).collect::<Vec<_>>())
        .bind(at)
        .bind(sessions)
        .bind(node.map(|node| self.nodes[node]))
        .bind(of_node)
        .bind(of_session)
        .bind(self.time())
        .fetch_one(self.writer.connection())
        .await;
        answer(row, |row| {
            let status: Vec<i16> = row.try_get("a_status")?;
            let accepted = status.iter().map(|status| *status == 1).collect();
            let mut leases = self.leases(&row)?;
            leases.sort();
            Ok(Settled { accepted, ready: number(&row, "ready_n")?, leases })
        })
    }

    fn leases(&self, row: &PgRow) -> Result<Vec<Leased>, sqlx::Error> {
        let longs = |name| row.try_get::<Option<Vec<i64>>, _>(name).map(Option::unwrap_or_default);
        let ints = |name| row.try_get::<Option<Vec<i32>>, _>(name).map(Option::unwrap_or_default);
        let (keys, tokens, sessions) = (longs("l_key")?, longs("l_token")?, longs("l_session")?);
        let (attempts, most) = (ints("l_attempt")?, ints("l_max_attempts")?);
        let queues = ints("l_queue")?;
        let queue = |of: &i32| {
            self.queues.iter().position(|known| *known == Some(*of)).expect("of the case")
        };
        let leases = (0..keys.len()).map(|i| Leased {
            id: self.id(keys[i]),
            token: tokens[i],
            attempt: attempts[i],
            max_attempts: most[i],
            queue: queue(&queues[i]),
            session: sessions[i],
        });
        Ok(leases.collect())
    }

    /// Answers the leases that are still held, and for how long, by step.
    pub async fn adopt(
        &mut self,
        node: usize,
        session: i64,
        held: &[(Id, i64)],
    ) -> Answer<Vec<(Leased, Ms)>> {
        self.called.insert("adopt_leases");
        let row = sqlx::query("select * from stepwell.adopt_leases($1, $2, $3, $4, $5)")
            .bind(held.iter().map(|(id, _)| self.key(*id)).collect::<Vec<_>>())
            .bind(held.iter().map(|(_, token)| *token).collect::<Vec<_>>())
            .bind(self.nodes[node])
            .bind(vec![session; held.len()])
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let ages: Option<Vec<i64>> = row.try_get("l_age_ms")?;
            let mut adopted: Vec<_> =
                self.leases(&row)?.into_iter().zip(ages.unwrap_or_default()).collect();
            adopted.sort();
            Ok(adopted)
        })
    }

    /// At most so many timers.
    pub async fn release(&mut self, max: usize) -> Answer<Due> {
        self.called.insert("release_due");
        let row = sqlx::query("select * from stepwell.release_due($1, $2)")
            .bind(int(max))
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            Ok(Due {
                taken: number(&row, "taken_n")?,
                next: row.try_get("next_ms")?,
                late: number(&row, "late_n")?,
                told: number(&row, "told_n")?,
            })
        })
    }

    /// Moves steps; the event is a number of the catalog.
    #[expect(clippy::too_many_arguments, reason = "they are the verb's")]
    pub async fn move_steps(
        &mut self,
        ids: &[Id],
        from: &[State],
        to: State,
        event: i16,
        more: Option<i32>,
        result: Option<&str>,
        note: &str,
    ) -> Answer<Moved> {
        self.called.insert("move_steps");
        let row = sqlx::query(
            "select * from stepwell.move_steps($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(ids.iter().map(|id| self.uid(id.task)).collect::<Vec<_>>())
        .bind(ids.iter().map(|id| int(id.no)).collect::<Vec<_>>())
        .bind(from.iter().copied().map(short).collect::<Vec<_>>())
        .bind(short(to))
        .bind(event)
        .bind(note)
        .bind("why")
        .bind(more)
        .bind(result)
        .bind(self.time())
        .fetch_one(self.writer.connection())
        .await;
        answer(row, |row| {
            let (was, task) = (states(&row, "s_was")?, states(&row, "s_task")?);
            let moved: Vec<bool> = row.try_get("s_moved")?;
            let blocked: Vec<bool> = row.try_get("s_blocked")?;
            let steps = was.into_iter().zip(task).zip(moved).zip(blocked);
            let steps = steps.map(|(((was, task), moved), blocked)| (was, task, moved, blocked));
            let steps = steps.collect();
            Ok(Moved { steps, ready: number(&row, "ready_n")?, told: number(&row, "told_n")? })
        })
    }

    /// Answers the state each was in, and how many nodes are told.
    pub async fn cancel(
        &mut self,
        tasks: &[usize],
        overriding: bool,
    ) -> Answer<(Vec<Option<State>>, usize)> {
        self.called.insert("cancel_tasks");
        let row = sqlx::query("select * from stepwell.cancel_tasks($1, $2, '{}', 'why', $3)")
            .bind(self.uids(tasks))
            .bind(overriding)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| Ok((states(&row, "t_was")?, number(&row, "told_n")?)))
    }

    /// Answers the state each was in, how many of its steps are tried again, and how many became ready.
    pub async fn retry(
        &mut self,
        tasks: &[usize],
        more: Option<i32>,
    ) -> Answer<(Vec<Option<State>>, Vec<usize>, usize)> {
        self.called.insert("retry_tasks");
        let row = sqlx::query("select * from stepwell.retry_tasks($1, '{}', $2, $3)")
            .bind(self.uids(tasks))
            .bind(more)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let steps: Vec<i32> = row.try_get("t_steps")?;
            let steps = steps.into_iter().map(|n| usize::try_from(n).expect("a count")).collect();
            Ok((states(&row, "t_was")?, steps, number(&row, "ready_n")?))
        })
    }

    /// The id of a request of this case, and the hash of its content.
    fn once(&self, request: u8, asked: Asked) -> (String, Vec<u8>) {
        (format!("{} {request}", self.first_task), format!("{asked:?}").into_bytes())
    }

    pub async fn retry_task_once(&mut self, request: u8, asked: Asked) -> Answer<Once<OfTask>> {
        self.called.insert("retry_task_once");
        let (id, hash) = self.once(request, asked);
        let row = sqlx::query("select * from stepwell.retry_task_once($1, $2, $3, '{}', $4, $5)")
            .bind(id)
            .bind(hash)
            .bind(self.uid(asked.task))
            .bind(asked.more)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let steps: Option<i32> = row.try_get("t_steps")?;
            let steps = usize::try_from(steps.unwrap_or(0)).expect("a count");
            once(&row, (state(&row, "t_was")?, steps))
        })
    }

    pub async fn retry_step_once(&mut self, request: u8, asked: Asked) -> Answer<Once<OfStep>> {
        self.called.insert("retry_step_once");
        let (id, hash) = self.once(request, asked);
        let row =
            sqlx::query("select * from stepwell.retry_step_once($1, $2, $3, $4, '{}', $5, $6)")
                .bind(id)
                .bind(hash)
                .bind(self.uid(asked.task))
                .bind(int(asked.no.expect("it is of a step")))
                .bind(asked.more)
                .bind(self.time())
                .fetch_one(self.writer.connection())
                .await;
        answer(row, |row| {
            let (was, task) = (state(&row, "s_was")?, state(&row, "s_task")?);
            once(&row, (was, task, row.try_get("s_moved")?, row.try_get("s_blocked")?))
        })
    }

    /// Answers the state each was in.
    pub async fn resolve(&mut self, tasks: &[usize]) -> Answer<Vec<Option<State>>> {
        self.called.insert("resolve_tasks");
        let row = sqlx::query("select * from stepwell.resolve_tasks($1, '{}', $2)")
            .bind(self.uids(tasks))
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| states(&row, "t_was"))
    }

    /// Answers the state each was in, whether it was paused, and how many steps became ready.
    pub async fn pause(
        &mut self,
        tasks: &[usize],
        paused: bool,
    ) -> Answer<(Vec<Option<State>>, Vec<Option<bool>>, usize)> {
        self.called.insert("pause_tasks");
        let row = sqlx::query("select * from stepwell.pause_tasks($1, $2, '{}', $3)")
            .bind(self.uids(tasks))
            .bind(paused)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            Ok((states(&row, "t_was")?, row.try_get("t_paused")?, number(&row, "ready_n")?))
        })
    }

    /// Answers the state it was in, how many queues are new, and how many steps wait in other queues now.
    pub async fn change(
        &mut self,
        task: usize,
        priority: Option<u8>,
    ) -> Answer<(Option<State>, usize, usize)> {
        self.called.insert("update_task");
        let row = sqlx::query(
            "select array[t_was] t_was, queues_n, ready_n
               from stepwell.update_task($1, 'why', null, $2, '{}', $3)",
        )
        .bind(self.uid(task))
        .bind(priority.map(i16::from))
        .bind(self.time())
        .fetch_one(self.writer.connection())
        .await;
        let answer = answer(row, |row| {
            let was = states(&row, "t_was")?[0];
            Ok((was, number(&row, "queues_n")?, number(&row, "ready_n")?))
        });
        if matches!(&answer, Ok(Ok((_, 1.., _)))) {
            self.know_queues().await?;
        }
        answer
    }

    /// Answers the state it was in, and whether there was room.
    pub async fn annotate(
        &mut self,
        task: usize,
        fact: u8,
        text: Option<u8>,
    ) -> Answer<(Option<State>, bool)> {
        self.called.insert("annotate_task");
        let row = sqlx::query(
            "select array[t_was] t_was, t_done
               from stepwell.annotate_task($1, case when $3 is null then '{}' else json_build_object($2, $3) end::text,
                                           case when $3 is null then array[$2] else '{}' end, $4, '{}', $5)",
        )
        .bind(self.uid(task))
        .bind(fact.to_string())
        .bind(text.map(|text| text.to_string()))
        .bind(int(FACTS_MAX))
        .bind(self.time())
        .fetch_one(self.writer.connection())
        .await;
        answer(row, |row| Ok((states(&row, "t_was")?[0], row.try_get("t_done")?)))
    }

    /// A step may make so many attempts.
    pub async fn change_step(&mut self, id: Id, most: i32) -> Answer<Changed> {
        self.called.insert("update_step");
        let row = sqlx::query(
            "select array[s_was, s_task] was, s_attempt, s_done
               from stepwell.update_step($1, $2, $3, null, '{}', $4)",
        )
        .bind(self.uid(id.task))
        .bind(int(id.no))
        .bind(most)
        .bind(self.time())
        .fetch_one(self.writer.connection())
        .await;
        answer(row, |row| {
            let was = states(&row, "was")?;
            Ok((was[0], was[1], row.try_get("s_attempt")?, row.try_get("s_done")?))
        })
    }

    /// Answers how many plans it covers, and whether it was paused.
    pub async fn pause_plans(
        &mut self,
        (namespace, name): (u8, Option<u8>),
        paused: bool,
    ) -> Answer<(usize, bool)> {
        self.called.insert("pause_definitions");
        let row = sqlx::query("select * from stepwell.pause_definitions($1, $2, $3, '{}', $4)")
            .bind(self.namespace(namespace))
            .bind(name.map_or_else(String::new, |name| name.to_string()))
            .bind(paused)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| Ok((number(&row, "covered_n")?, row.try_get("was_paused")?)))
    }

    /// Answers how many tasks go on, how many steps became ready, and whether there is more to look at.
    pub async fn grant(&mut self) -> Answer<(usize, usize, bool)> {
        self.called.insert("grant_keys");
        let row = sqlx::query("select * from stepwell.grant_keys($1, $2)")
            .bind(GRANT_MAX)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let (granted, ready) = (number(&row, "granted_n")?, number(&row, "ready_n")?);
            Ok((granted, ready, row.try_get("more")?))
        })
    }

    // ── nodes ───────────────────────────────────────────────────────────────────────────────────

    /// Registers a node. Nothing but a statement, as in the store, at our time.
    pub async fn start(&mut self, lease: Ms) -> Result<(), sqlx::Error> {
        let id = sqlx::query_scalar(
            "insert into stepwell.node (started_at, lease_until) values ($1, $2) returning id",
        )
        .bind(self.time())
        .bind(self.time() + millis(lease))
        .fetch_one(self.writer.connection())
        .await?;
        self.nodes.push(id);
        Ok(())
    }

    /// Extends a node's lease, as the store does, at our time. Answers whether it lives.
    pub async fn extend(&mut self, node: usize, lease: Ms) -> Answer<bool> {
        let done = sqlx::query(
            "update stepwell.node set lease_until = $2 where id = $1 and retired_at is null",
        )
        .bind(self.nodes[node])
        .bind(self.time() + millis(lease))
        .execute(self.writer.connection())
        .await?;
        Ok(Ok(done.rows_affected() == 1))
    }

    /// Answers whether it lived.
    pub async fn retire(&mut self, node: usize) -> Answer<bool> {
        self.called.insert("retire_node");
        let row = sqlx::query("select stepwell.retire_node($1, $2)")
            .bind(self.nodes[node])
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| row.try_get(0))
    }

    /// Its new id is the next node's.
    pub async fn renew(&mut self, node: usize, lease: Ms) -> Answer<()> {
        self.called.insert("renew_node");
        let row = sqlx::query("select stepwell.renew_node($1, $2, $3)")
            .bind(self.nodes[node])
            .bind(lease)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        self.nodes.push(row?.try_get(0)?);
        Ok(Ok(()))
    }

    /// Answers all that the node has taken over, and how long the grace of each lasts.
    pub async fn take_over(
        &mut self,
        by: usize,
        lease: Ms,
        grace: Ms,
        declare: bool,
    ) -> Answer<Vec<(usize, Ms)>> {
        self.called.insert("take_over");
        let row = sqlx::query("select * from stepwell.take_over($1, $2, $3, $4, $5)")
            .bind(self.nodes[by])
            .bind(lease)
            .bind(grace)
            .bind(declare)
            .bind(self.time())
            .fetch_one(self.writer.connection())
            .await;
        answer(row, |row| {
            let nodes: Option<Vec<i32>> = row.try_get("t_node")?;
            let waits: Option<Vec<i64>> = row.try_get("t_wait_ms")?;
            let node = |id| self.nodes.iter().position(|node| *node == id).expect("of the case");
            let nodes = nodes.unwrap_or_default().into_iter().map(node);
            let mut taken: Vec<_> = nodes.zip(waits.unwrap_or_default()).collect();
            taken.sort_unstable();
            Ok(taken)
        })
    }

    /// The steps whose leases a node gave, with their tokens, by step.
    pub async fn leases_of(&mut self, node: usize) -> Vec<(Id, i64)> {
        let (leases, _) = self.writer.leases_of(self.nodes[node], 0, 100).await.unwrap();
        let mut leases: Vec<_> = leases.iter().map(|l| (self.id(l.step), l.token)).collect();
        leases.sort_unstable();
        leases
    }

    /// The walk of a node is over.
    pub async fn forget(&mut self, node: usize, by: usize) {
        self.writer.forget_node(self.nodes[node], self.nodes[by]).await.unwrap();
    }
}

/// Reads an answer; a node that is retired is one.
fn answer<T>(
    row: Result<PgRow, sqlx::Error>,
    read: impl FnOnce(PgRow) -> Result<T, sqlx::Error>,
) -> Answer<T> {
    match row {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("SW001") => {
            Ok(Err(Retired))
        }
        row => read(row?).map(Ok),
    }
}

fn number(row: &PgRow, name: &str) -> Result<usize, sqlx::Error> {
    Ok(count(row.try_get(name)?))
}

fn count(number: i32) -> usize {
    usize::try_from(number).expect("a count")
}

fn states(row: &PgRow, name: &str) -> Result<Vec<Option<State>>, sqlx::Error> {
    let numbers: Vec<Option<i16>> = row.try_get(name)?;
    Ok(numbers.into_iter().map(|number| number.map(state_of)).collect())
}

fn state(row: &PgRow, name: &str) -> Result<Option<State>, sqlx::Error> {
    Ok(row.try_get::<Option<i16>, _>(name)?.map(state_of))
}

fn state_of(number: i16) -> State {
    State::try_from(i32::from(number)).expect("a state")
}

/// What a request was answered that is done once.
fn once<T>(row: &PgRow, said: T) -> Result<Once<T>, sqlx::Error> {
    let same: Option<bool> = row.try_get("r_same")?;
    let answer = (same != Some(false)).then_some(said);
    Ok(Once { same, answer, ready: number(row, "ready_n")? })
}

fn short(state: State) -> i16 {
    i16::try_from(i32::from(state)).expect("a handful")
}

fn int(number: usize) -> i32 {
    i32::try_from(number).expect("a handful")
}

fn millis(ms: Ms) -> Duration {
    Duration::from_millis(u64::try_from(ms).expect("time only grows"))
}

fn long(number: usize) -> i64 {
    i64::try_from(number).expect("a handful")
}

/// An array as Postgres writes it.
fn array(numbers: &[usize]) -> String {
    format!("{numbers:?}").replace('[', "{").replace(']', "}")
}
