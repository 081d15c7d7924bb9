//! Steps: leasing them, settling what became of the leases, and what a node needs around that.

mod moves;
mod previous;
mod readiness;
mod unserved;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use sqlx::{PgExecutor, types::Uuid};
use stepwell_proto::id::{LeaseId, task_of};
use stepwell_trace::TraceContext;

use crate::{Error, Store, StoredDefinition, Writer, publish::numbered, span};

pub use moves::{Move, Moved, Update, Updated};
pub use readiness::{Parent, Surroundings};
pub use unserved::{Place, Told, Waiting};

/// Concurrency keys that one call looks at.
const KEYS_PER_CALL: i32 = 500;

/// Free slots for the verbs to fill: disjoint, so that no two steps get one slot.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    queue: Vec<i32>,
    n: Vec<i32>,
    at: Vec<i32>,
    session: Vec<i64>,
}

impl Slots {
    /// The free slots of one queue, one session each, first come first filled.
    pub fn push(&mut self, queue: i32, sessions: impl IntoIterator<Item = i64>) {
        let at = self.session.len();
        self.session.extend(sessions);
        let n = self.session.len() - at;
        if n > 0 {
            self.queue.push(queue);
            self.n.push(i32::try_from(n).expect("bounded by the batch"));
            self.at.push(i32::try_from(at + 1).expect("bounded by the batch"));
        }
    }

    /// True when there is nothing to fill.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The session of each slot.
    pub fn sessions(&self) -> impl Iterator<Item = &i64> {
        self.session.iter()
    }
}

/// Free slots for the steps that reports release: one place for each child of each report's step, in
/// the order of the definition.
#[derive(Clone, Debug, Default)]
pub struct ChildSlots {
    at: Vec<Option<i32>>,
    session: Vec<Option<i64>>,
}

impl ChildSlots {
    /// What the children of the next report's step get, each the slot of a session or none. Exactly
    /// one for each child, or none at all.
    pub fn push(&mut self, children: &[Option<i64>]) {
        if children.iter().all(Option::is_none) {
            self.at.push(None);
            return;
        }
        self.at.push(Some(i32::try_from(self.session.len() + 1).expect("bounded by the batch")));
        self.session.extend(children);
    }

    /// True when there is nothing to fill.
    pub fn is_empty(&self) -> bool {
        self.session.is_empty()
    }

    /// The session of each slot.
    pub fn sessions(&self) -> impl Iterator<Item = &i64> {
        self.session.iter().flatten()
    }
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The handler returned.
    Complete,
    /// It failed; try again after so many milliseconds, or never.
    Fail {
        /// The back-off; none: the failure is final.
        wait_ms: Option<i64>,
    },
    /// It was not run; the attempt does not count.
    HandBack,
}

impl Ending {
    fn kind(self) -> i16 {
        match self {
            Self::Complete => 1,
            Self::Fail { .. } => 2,
            Self::HandBack => 3,
        }
    }

    fn wait_ms(self) -> Option<i64> {
        match self {
            Self::Fail { wait_ms } => wait_ms,
            Self::Complete | Self::HandBack => None,
        }
    }
}

/// One lease to settle.
#[derive(Clone, Debug)]
pub struct Report {
    /// The step's key.
    pub step: i64,
    /// The lease's token.
    pub token: i64,
    /// How it ended.
    pub ending: Ending,
    /// Result, stored failure, or reason, by the kind of ending.
    pub text: String,
    /// Custom events that are published with it, see `custom_text`.
    pub events: Vec<String>,
}

/// Whose leases a sweep may end: those it names, if they are still held by these.
#[derive(Clone, Debug)]
pub enum Sweep {
    /// The session of each report, in their order.
    Sessions(Vec<i64>),
    /// A retired node.
    Node(i32),
}

impl Sweep {
    /// The same for some of the reports.
    fn part(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Sessions(all) => Self::Sessions(all[range].to_vec()),
            Self::Node(node) => Self::Node(*node),
        }
    }
}

/// The right to run one attempt, as the verbs answer it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseRow {
    /// The step's key.
    pub step: i64,
    /// The fence.
    pub token: i64,
    /// Which attempt.
    pub attempt: i32,
    /// Attempts the step may make in all.
    pub max_attempts: i32,
    /// The queue the step waits in.
    pub queue: i32,
    /// The session whose slot it takes.
    pub session: i64,
    /// Its step has a config of its own, which is to be read.
    pub own_config: bool,
}

impl LeaseRow {
    /// As it is known outside.
    pub fn id(&self) -> LeaseId {
        LeaseId { step: self.step, token: self.token, attempt: self.attempt }
    }
}

/// What settling did.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// For each report: true when it is durable, now or from before; false when the lease is lost.
    pub accepted: Vec<bool>,
    /// How many steps became ready and got no slot.
    pub ready: usize,
    /// Steps that got a slot at once.
    pub leases: Vec<LeaseRow>,
}

/// What claiming brought.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// The leases, oldest first.
    pub leases: Vec<LeaseRow>,
    /// For each queue that was asked for, the place of the last step taken from it.
    pub places: HashMap<i32, i64>,
    /// How many steps became ready, in exchange for rows that no longer held.
    pub ready: usize,
    /// Of the leases' tasks those whose contexts are short: key, id, context, where in a trace it goes on.
    pub tasks: Vec<(i64, Uuid, String, Option<TraceContext>)>,
}

/// What the timers brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// How many were taken.
    pub taken: usize,
    /// In how many milliseconds the next one is due; none: there is none.
    pub next_ms: Option<u64>,
    /// Steps that ran out of time.
    pub late: usize,
    /// Leases that are void with them.
    pub told: usize,
}

/// A lease that an executor kept over a lost stream.
#[derive(Clone, Copy, Debug)]
pub struct Adopted {
    /// The lease, now of the adopting session.
    pub lease: LeaseRow,
    /// How long ago it was given.
    pub age_ms: i64,
}

/// What a node must tell an executor: a lease is void, or it is to stop.
#[derive(Clone, Debug)]
pub struct SignalRow {
    /// Its id.
    pub id: i64,
    /// The session.
    pub session: i64,
    /// The step's key.
    pub step: i64,
    /// The lease's token.
    pub token: i64,
    /// The lease's attempt.
    pub attempt: i32,
    /// Why.
    pub reason: String,
    /// It is to stop; the lease means nothing.
    pub stop: bool,
}

/// What steps need to run: their tasks' ids and contexts, and their parents' results.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// By task key: the task's id, its context, and where in a trace it goes on.
    pub tasks: HashMap<i64, (Uuid, String, Option<TraceContext>)>,
    /// By step key and parent's key: the result; none when it is too large to travel.
    pub results: HashMap<(i64, i64), Option<String>>,
    /// By step key: the config it has of its own.
    pub configs: HashMap<i64, String>,
}

impl Writer {
    /// Settles leases and leases what became ready to the slots, in one transaction.
    pub async fn settle(
        &mut self,
        reports: &[Report],
        slots: &ChildSlots,
        node: i32,
        sweep: Option<&Sweep>,
    ) -> Result<Settled, Error> {
        let steps: Vec<i64> = reports.iter().map(|r| r.step).collect();
        let tokens: Vec<i64> = reports.iter().map(|r| r.token).collect();
        let kinds: Vec<i16> = reports.iter().map(|r| r.ending.kind()).collect();
        let waits: Vec<Option<i64>> = reports.iter().map(|r| r.ending.wait_ms()).collect();
        let texts: Vec<&str> = reports.iter().map(|r| r.text.as_str()).collect();
        let (of_node, of_sessions) = match sweep {
            None => (None, None),
            Some(Sweep::Sessions(sessions)) => (None, Some(sessions.as_slice())),
            Some(Sweep::Node(node)) => (Some(*node), None),
        };
        let (event_of, events) = numbered(reports.iter().map(|r| r.events.as_slice()));
        let some = !events.is_empty();
        let call = sqlx::query!(
            r#"select a_status as "status!", ready_n as "ready!", l_key as step, l_token as token,
                      l_attempt as attempt, l_max_attempts as max_attempts, l_queue as queue,
                      l_session as session, l_own as own
                 from stepwell.settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                                      p_event_of => $11, p_event => $12)"#,
            &steps,
            &tokens,
            &kinds,
            &waits as &[Option<i64>],
            &texts as &[&str],
            &slots.at as &[Option<i32>],
            &slots.session as &[Option<i64>],
            (!slots.is_empty()).then_some(node),
            of_node,
            of_sessions,
            some.then_some(event_of.as_slice()),
            some.then_some(events.as_slice()) as Option<&[&str]>,
        );
        let call = async { Ok(call.fetch_one(&mut self.connection).await?) };
        let row = span::verb(
            "db.settle",
            reports.len(),
            |row| row.step.as_ref().map_or(0, Vec::len),
            call,
        )
        .await?;
        Ok(Settled {
            accepted: row.status.iter().map(|status| *status == 1).collect(),
            ready: usize::try_from(row.ready).unwrap_or(0),
            leases: with_config(
                leases(row.step, row.token, row.attempt, row.max_attempts, row.queue, row.session),
                row.own,
            ),
        })
    }

    /// Settles; when some report's data is refused by the database, finds it by halving, so that
    /// all others are settled and it alone is answered as poison. Halves are given no slots: what
    /// they free becomes ready.
    pub async fn settle_each(
        &mut self,
        reports: &[Report],
        slots: &ChildSlots,
        node: i32,
        sweep: Option<&Sweep>,
    ) -> Result<(Settled, Vec<usize>), Error> {
        match self.settle(reports, slots, node, sweep).await {
            Err(error) if error.is_data() => {}
            answer => return answer.map(|settled| (settled, Vec::new())),
        }
        let mut whole = Settled { accepted: vec![false; reports.len()], ..Settled::default() };
        let mut poison = Vec::new();
        let mut ranges = Vec::from([std::ops::Range { start: 0, end: reports.len() }]);
        while let Some(range) = ranges.pop() {
            let of_range = sweep.map(|s| s.part(range.clone()));
            let part = &reports[range.clone()];
            match self.settle(part, &ChildSlots::default(), node, of_range.as_ref()).await {
                Ok(settled) => {
                    whole.accepted[range].copy_from_slice(&settled.accepted);
                    whole.ready += settled.ready;
                }
                Err(error) if error.is_data() && range.len() == 1 => poison.push(range.start),
                Err(error) if error.is_data() => {
                    let middle = range.start + range.len() / 2;
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((whole, poison))
    }

    /// What is ready in these queues from the places in `from` on, at most `max` steps of each:
    /// queue, place, step key; oldest first. Nothing is locked or taken. Of what is paused: nothing.
    pub async fn ready(
        &mut self,
        queues: &[i32],
        from: &HashMap<i32, i64>,
        max: i64,
    ) -> Result<Vec<(i32, i64, i64)>, Error> {
        let from: Vec<i64> = queues.iter().map(|q| from.get(q).copied().unwrap_or(0)).collect();
        let rows = sqlx::query!(
            r#"select q.queue as "queue!", r.id as "place!", r.key as "step!"
                 from unnest($1::int[], $2::bigint[]) q(queue, place),
                      lateral (select id, key from stepwell.ready_step r
                                where r.queue = q.queue and r.id >= q.place
                                order by r.queue, r.id, r.key limit $3) r
                where case when exists (select from stepwell.pause) then
                           not (select paused from stepwell.definition
                                 where id = (select definition from stepwell.queue where id = q.queue))
                      else true end
                order by r.id, r.key"#,
            queues,
            &from,
            max,
        )
        .fetch_all(&mut self.connection)
        .await?;
        Ok(rows.into_iter().map(|row| (row.queue, row.place, row.step)).collect())
    }

    /// Leases ready steps to the slots; of each queue the oldest from the place in `from` on.
    pub async fn claim(
        &mut self,
        slots: &Slots,
        from: &HashMap<i32, i64>,
        node: i32,
    ) -> Result<Claimed, Error> {
        let from: Vec<i64> =
            slots.queue.iter().map(|q| from.get(q).copied().unwrap_or(0)).collect();
        let call = sqlx::query!(
            r#"select l_key as step, l_token as token, l_attempt as attempt,
                      l_max_attempts as max_attempts, l_queue as queue, l_session as session,
                      l_place as place, l_own as own, ready_n as "ready!", t_id as task, t_uid as uid, t_context as context,
                      t_trace as "trace: Vec<Option<Vec<u8>>>"
                 from stepwell.claim($1, $2, $3, $4, $5, $6)"#,
            &slots.queue,
            &from,
            &slots.n,
            &slots.at,
            &slots.session,
            node,
        );
        let call = async { Ok(call.fetch_one(&mut self.connection).await?) };
        let row = span::verb(
            "db.claim",
            slots.session.len(),
            |row| row.step.as_ref().map_or(0, Vec::len),
            call,
        )
        .await?;
        let ids = row.task.unwrap_or_default().into_iter().zip(row.uid.unwrap_or_default());
        let contexts =
            row.context.unwrap_or_default().into_iter().zip(row.trace.unwrap_or_default());
        let tasks = ids.zip(contexts).map(|((task, uid), (context, trace))| {
            (task, uid, context, trace.as_deref().and_then(TraceContext::from_bytes))
        });
        let tasks = tasks.collect();
        let places = row.place.unwrap_or_default();
        let leases =
            leases(row.step, row.token, row.attempt, row.max_attempts, row.queue, row.session);
        let leases = with_config(leases, row.own);
        let places = leases.iter().zip(places).map(|(lease, place)| (lease.queue, place)).collect();
        let ready = usize::try_from(row.ready).unwrap_or(0);
        Ok(Claimed { leases, places, ready, tasks })
    }

    /// The same as of a store.
    pub async fn inputs(
        &mut self,
        tasks: &[i64],
        pairs: &[(i64, i64)],
        configured: &[i64],
        most: (i32, i32),
    ) -> Result<Inputs, Error> {
        read_inputs(&mut self.connection, tasks, pairs, configured, most).await
    }

    /// Moves leases that executors still hold to other sessions, wherever they were: step, token and
    /// new session of each.
    pub async fn adopt(
        &mut self,
        held: &[(i64, i64, i64)],
        node: i32,
    ) -> Result<Vec<Adopted>, Error> {
        let steps: Vec<i64> = held.iter().map(|h| h.0).collect();
        let tokens: Vec<i64> = held.iter().map(|h| h.1).collect();
        let sessions: Vec<i64> = held.iter().map(|h| h.2).collect();
        let call = sqlx::query!(
            r#"select l_key as step, l_token as token, l_attempt as attempt,
                      l_max_attempts as max_attempts, l_queue as queue, l_session as session,
                      l_age_ms as age
                 from stepwell.adopt_leases($1, $2, $3, $4)"#,
            &steps,
            &tokens,
            node,
            &sessions,
        );
        let call = async { Ok(call.fetch_one(&mut self.connection).await?) };
        let row = span::verb(
            "db.adopt_leases",
            held.len(),
            |row| row.step.as_ref().map_or(0, Vec::len),
            call,
        )
        .await?;
        let leases =
            leases(row.step, row.token, row.attempt, row.max_attempts, row.queue, row.session);
        let ages = row.age.unwrap_or_default();
        Ok(leases.into_iter().zip(ages).map(|(lease, age_ms)| Adopted { lease, age_ms }).collect())
    }

    /// Gives concurrency keys to tasks that wait for them. Answers how many steps became ready, and
    /// whether there is more to look at.
    pub async fn grant_keys(&mut self) -> Result<(usize, bool), Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select ready_n as "ready!", more as "more!" from stepwell.grant_keys($1)"#,
                KEYS_PER_CALL
            );
            let row = call.fetch_one(&mut self.connection).await?;
            Ok((usize::try_from(row.ready).unwrap_or(0), row.more))
        };
        let most = usize::try_from(KEYS_PER_CALL).unwrap_or(0);
        span::verb("db.grant_keys", most, |row| row.0, call).await
    }

    /// Takes timers that are due, at most `max`: steps become ready, or are out of time.
    pub async fn release_due(&mut self, max: i32) -> Result<Due, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select taken_n as "taken!", next_ms, late_n as "late!", told_n as "told!"
                     from stepwell.release_due($1)"#,
                max
            );
            let row = call.fetch_one(&mut self.connection).await?;
            let count = |n: i32| usize::try_from(n).unwrap_or(0);
            Ok(Due {
                taken: count(row.taken),
                next_ms: row.next_ms.map(|ms| u64::try_from(ms).unwrap_or(0)),
                late: count(row.late),
                told: count(row.told),
            })
        };
        span::verb("db.release_due", usize::try_from(max).unwrap_or(0), |due| due.taken, call).await
    }
}

fn leases(
    step: Option<Vec<i64>>,
    token: Option<Vec<i64>>,
    attempt: Option<Vec<i32>>,
    max_attempts: Option<Vec<i32>>,
    queue: Option<Vec<i32>>,
    session: Option<Vec<i64>>,
) -> Vec<LeaseRow> {
    let (Some(step), Some(token), Some(attempt), Some(max_attempts), Some(queue), Some(session)) =
        (step, token, attempt, max_attempts, queue, session)
    else {
        return Vec::new();
    };
    (0..step.len())
        .map(|i| LeaseRow {
            step: step[i],
            token: token[i],
            attempt: attempt[i],
            max_attempts: max_attempts[i],
            queue: queue[i],
            session: session[i],
            own_config: false,
        })
        .collect()
}

/// Marks those whose steps have configs of their own.
fn with_config(mut leases: Vec<LeaseRow>, own: Option<Vec<i64>>) -> Vec<LeaseRow> {
    if let Some(own) = own {
        let own: HashSet<i64> = own.into_iter().collect();
        leases.iter_mut().for_each(|lease| lease.own_config = own.contains(&lease.step));
    }
    leases
}

impl Store {
    /// For each lease that is no longer running: was it settled by this very report before?
    pub async fn settled_before(&self, reports: &[(i64, i64, Ending)]) -> Result<Vec<bool>, Error> {
        let steps: Vec<i64> = reports.iter().map(|r| r.0).collect();
        let tokens: Vec<i64> = reports.iter().map(|r| r.1).collect();
        let kinds: Vec<i16> = reports.iter().map(|r| r.2.kind()).collect();
        let rows = sqlx::query_scalar!(
            r#"select coalesce(s.last_token = i.token and s.last_kind = i.kind, false) as "same!"
                 from unnest($1::bigint[], $2::bigint[], $3::smallint[])
                        with ordinality i(key, token, kind, no)
                 left join lateral (select last_token, last_kind from stepwell.step
                                     where key = i.key offset 0) s on true
                order by i.no"#,
            &steps,
            &tokens,
            &kinds,
        )
        .fetch_all(self.reads())
        .await?;
        Ok(rows)
    }

    /// The queue of the step of this lease, if it is running.
    pub async fn leased_queue(&self, step: i64, token: i64) -> Result<Option<i32>, Error> {
        let queue = sqlx::query_scalar!(
            "select queue from stepwell.step where key = $1 and state = 2 and token = $2",
            step,
            token
        )
        .fetch_optional(self.reads())
        .await?;
        Ok(queue)
    }

    /// The definitions of these queues.
    pub async fn definitions_of_queues(
        &self,
        queues: &[i32],
    ) -> Result<HashMap<i32, Arc<StoredDefinition>>, Error> {
        let rows =
            sqlx::query!("select id, definition from stepwell.queue where id = any($1)", queues)
                .fetch_all(self.reads())
                .await?;
        let mut ids: Vec<i32> = rows.iter().map(|row| row.definition).collect();
        ids.sort_unstable();
        ids.dedup();
        let definitions = self.definitions(&ids).await?;
        let known = rows
            .into_iter()
            .filter_map(|row| Some((row.id, Arc::clone(definitions.get(&row.definition)?))));
        Ok(known.collect())
    }

    /// The definition a queue is of.
    pub async fn definition_of_queue(&self, queue: i32) -> Result<Arc<StoredDefinition>, Error> {
        let definition =
            sqlx::query_scalar!("select definition from stepwell.queue where id = $1", queue)
                .fetch_optional(self.reads())
                .await?;
        let missing = || Error::Inconsistent(format!("queue {queue} does not exist"));
        self.definition(definition.ok_or_else(missing)?).await
    }

    /// What steps need to run, in one statement: contexts of tasks, and results of parents, given
    /// as pairs of step and parent. Of each step's parents, in the order given, those results
    /// travel that have at most `each_max` bytes and keep the sum within `all_max`. And the
    /// configs that the steps `configured` have of their own.
    pub async fn inputs(
        &self,
        tasks: &[i64],
        pairs: &[(i64, i64)],
        configured: &[i64],
        most: (i32, i32),
    ) -> Result<Inputs, Error> {
        read_inputs(self.reads(), tasks, pairs, configured, most).await
    }

    /// The queues that executors of a namespace may serve.
    pub async fn queues(&self, namespace: &str) -> Result<Vec<QueueRow>, Error> {
        let rows = sqlx::query!(
            r#"select q.id, q.definition, q.handler, q.requires, q.priority, d.version
                 from stepwell.queue q join stepwell.definition d on d.id = q.definition
                where q.namespace = $1 order by q.id"#,
            namespace
        )
        .fetch_all(self.reads())
        .await?;
        let read = |requires: &str, id| {
            serde_json::from_str(requires)
                .map_err(|error| Error::Inconsistent(format!("queue {id}: {error}")))
        };
        let rows = rows.into_iter().map(|row| {
            let requires = read(&row.requires, row.id)?;
            Ok(QueueRow {
                id: row.id,
                definition: row.definition,
                handler: row.handler,
                requires,
                priority: row.priority,
                version: row.version,
            })
        });
        rows.collect()
    }
}

async fn read_inputs(
    connection: impl PgExecutor<'_>,
    tasks: &[i64],
    pairs: &[(i64, i64)],
    configured: &[i64],
    (each_max, all_max): (i32, i32),
) -> Result<Inputs, Error> {
    let (steps, parents): (Vec<i64>, Vec<i64>) = pairs.iter().copied().unzip();
    let rows = sqlx::query!(
        r#"select i.key as "key!", null::bigint as parent, t.uid as "uid?", d.context as text,
                  t.trace as trace
             from unnest($1::bigint[]) i(key),
                  lateral (select uid, trace from stepwell.task where id = i.key offset 0) t,
                  lateral (select context from stepwell.task_detail where task = i.key offset 0) d
           union all
           select step, parent, null,
                  case when n <= $4 and sum(case when n <= $4 then n else 0 end)
                                          over (partition by step order by no) <= $5 then result end,
                  null
             from (select i.step, i.parent, i.no, s.result, octet_length(s.result) n
                     from unnest($2::bigint[], $3::bigint[]) with ordinality i(step, parent, no),
                          lateral (select result from stepwell.step where key = i.parent offset 0) s) r
           union all
           select i.key, null, null, s.config, null
             from unnest($6::bigint[]) i(key),
                  lateral (select config from stepwell.step where key = i.key offset 0) s
            where s.config is not null"#,
        tasks,
        &steps,
        &parents,
        each_max,
        i64::from(all_max),
        configured,
    )
    .fetch_all(connection)
    .await?;
    let mut inputs = Inputs::default();
    for row in rows {
        match (row.parent, row.uid) {
            (Some(parent), _) => {
                inputs.results.insert((row.key, parent), row.text);
            }
            (None, Some(uid)) => {
                let trace = row.trace.as_deref().and_then(TraceContext::from_bytes);
                inputs.tasks.insert(row.key, (uid, row.text.unwrap_or_default(), trace));
            }
            (None, None) => {
                inputs.configs.insert(row.key, row.text.unwrap_or_default());
            }
        }
    }
    Ok(inputs)
}

/// One handler of one definition with one set of requirements, at one priority.
#[derive(Clone, Debug)]
pub struct QueueRow {
    /// Its id.
    pub id: i32,
    /// The definition.
    pub definition: i32,
    /// The handler.
    pub handler: String,
    /// Labels that an executor must have, with these values.
    pub requires: BTreeMap<String, String>,
    /// 1 is first, 5 last.
    pub priority: i16,
    /// The definition's version: major, minor, patch.
    pub version: Vec<i32>,
}

/// The keys of the tasks of these steps, each once.
pub fn tasks_of(steps: impl IntoIterator<Item = i64>) -> Vec<i64> {
    let mut tasks: Vec<i64> = steps.into_iter().map(task_of).collect();
    tasks.sort_unstable();
    tasks.dedup();
    tasks
}
