//! Tasks: creating and cancelling them by their verbs, and reading them.

mod annotate;
mod export;
mod list;
mod moves;
mod remove;
mod steps;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};
use stepwell_proto::v1::{self, State};
use stepwell_trace::TraceContext;

use crate::{Error, Store, StoredDefinition, Topic, Writer, definition::timestamp, span};

pub use annotate::{ANNOTATIONS_MAX, Annotated};
pub use export::{ExportPlace, Exported, RemovedTask, ToRemove};
pub use list::{Counted, Order, TaskPlace};
pub use moves::{Cancelled, Paused, Retried};
pub use remove::KeepTasks;
pub use steps::StepFilter;

/// A task to create: validated, with its defaults filled in.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its public id.
    pub uid: Uuid,
    /// Its definition.
    pub definition: Arc<StoredDefinition>,
    /// SHA-256 of the request: the same id with another hash is another request.
    pub hash: [u8; 32],
    /// A JSON object (text).
    pub context: String,
    /// Who asks.
    pub initiator: String,
    /// Which system asks.
    pub source_system: String,
    /// Why.
    pub reason: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Numbers of the steps that are not to run, ascending.
    pub skipped: Vec<i32>,
    /// How urgent it is; none: as its definition says.
    pub priority: Option<i16>,
    /// What it shares its concurrency key with; none: its definition has none.
    pub concurrency: Option<i64>,
    /// Which other requests are the same, beside those with its id; none: none are.
    pub identity: Option<Identity>,
    /// What it belongs to in its creator's eyes.
    pub correlation_id: String,
    /// Facts that are kept with it, by name.
    pub annotations: BTreeMap<String, String>,
    /// Where in a trace it goes on; none: nobody said.
    pub trace: Option<TraceContext>,
    /// Its key, once it was tried: the same task is tried again with the same key.
    pub key: Option<i64>,
}

/// What makes requests for tasks the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of SHA-256 of what is compared.
    pub key: Uuid,
    /// How long after the creation of a task requests are the same; none: as long as it is kept.
    pub window: Option<Duration>,
    /// The caller's own key: requests with it must be the same in all. None: what was compared is enough.
    pub caller_key: Option<String>,
}

impl NewTask {
    /// The task as it is right after its creation.
    pub fn into_task(self, create_time: prost_types::Timestamp) -> v1::Task {
        let definition = &self.definition.definition;
        // One that has nothing to do is done at once.
        let done = self.skipped.len() == definition.steps.len();
        v1::Task {
            task_id: self.uid.to_string(),
            namespace: definition.namespace.clone(),
            definition_name: definition.name.clone(),
            definition_version: definition.version.clone(),
            state: if done { State::Complete } else { State::Pending }.into(),
            context: self.context,
            initiator: self.initiator,
            source_system: self.source_system,
            reason: self.reason,
            tags: self.tags,
            priority: self.priority.unwrap_or_else(|| self.definition.priority()).into(),
            total_steps: self.definition.total_steps(),
            end_time: done.then_some(create_time),
            create_time: Some(create_time),
            correlation_id: self.correlation_id,
            annotations: self.annotations,
            ..v1::Task::default()
        }
    }
}

/// What became of a task to create.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// It was created, at this time.
    New(prost_types::Timestamp),
    /// The same request was carried out before; this is its task.
    Existing(Box<v1::Task>),
    /// Another request used the id before.
    Reused,
    /// Another request used the caller's key before.
    KeyReused,
}

/// Keys for tasks, drawn from the database in blocks.
#[derive(Default)]
pub(crate) struct Keys(Mutex<VecDeque<i64>>);

const KEYS_AT_ONCE: usize = 1_000;
/// A task that is there may be removed before it is read, once.
const TRIES_MAX: usize = 3;

impl Keys {
    /// So many keys, or as many as there are.
    fn take(&self, n: usize) -> Vec<i64> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = n.min(keys.len());
        keys.drain(..n).collect()
    }

    fn put(&self, more: Vec<i64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
    }
}

impl Writer {
    /// Creates tasks with all their steps in one transaction. An id that was used before leaves
    /// its task as it is. Answers for each task what became of it, in their order.
    pub async fn create_tasks(
        &mut self,
        store: &Store,
        tasks: &mut [NewTask],
    ) -> Result<Vec<Created>, Error> {
        for _ in 0..TRIES_MAX {
            if let Some(answers) = self.try_create(store, tasks).await? {
                return Ok(answers);
            }
        }
        Err(Error::Inconsistent("a task was neither made nor found".to_owned()))
    }

    /// The same; none: a task that was there was removed before it could be read, so its id is free.
    async fn try_create(
        &mut self,
        store: &Store,
        tasks: &mut [NewTask],
    ) -> Result<Option<Vec<Created>>, Error> {
        let keys = self.draw_keys(store, tasks).await?;
        let call = self.call_create(tasks, &keys);
        let Made { keys: new, at, queues, there } =
            span::verb("db.create_tasks", tasks.len(), |made| made.keys.len(), call).await?;
        if queues > 0 {
            store.bell().ring(Topic::Definition);
        }
        if !new.is_empty() {
            store.bell().ring(Topic::Ready);
            store.bell().ring(Topic::Event);
            if tasks.iter().any(|task| task.definition.is_timed) {
                store.bell().ring(Topic::Timer);
            }
            if tasks.iter().any(|task| task.concurrency.is_some()) {
                store.bell().ring(Topic::Key);
            }
        }
        let place = |i: usize| there.get(i).copied().flatten().unwrap_or(tasks[i].uid);
        let existing = (0..tasks.len()).filter(|i| !new.contains(&keys[*i]));
        let existing: Vec<Uuid> = existing.map(place).collect();
        let rows: HashMap<Uuid, TaskRow> = if existing.is_empty() {
            HashMap::new()
        } else {
            let rows = read_tasks(&mut self.connection, &existing).await?;
            rows.into_iter().map(|row| (row.uid, row)).collect()
        };
        let mut answers = Vec::with_capacity(tasks.len());
        for (i, (task, key)) in tasks.iter().zip(&keys).enumerate() {
            answers.push(match (at.filter(|_| new.contains(key)), rows.get(&place(i))) {
                (Some(at), _) => Created::New(timestamp(at)),
                (None, Some(row)) => existing_task(store, task, *key, row).await?,
                (None, None) => return Ok(None),
            });
        }
        Ok(Some(answers))
    }

    /// The tasks' keys; those tried before have one already.
    async fn draw_keys(&mut self, store: &Store, tasks: &mut [NewTask]) -> Result<Vec<i64>, Error> {
        let wanted = tasks.iter().filter(|task| task.key.is_none()).count();
        let mut fresh = store.0.keys.take(wanted);
        if fresh.len() < wanted {
            let n = i64::try_from(KEYS_AT_ONCE.max(wanted)).expect("bounded by the batch");
            let mut more = sqlx::query_scalar!(
                r#"select nextval('stepwell.task_id') as "key!" from generate_series(1, $1::bigint)"#,
                n
            )
            .fetch_all(&mut self.connection)
            .await?;
            let rest = more.split_off(wanted - fresh.len());
            fresh.extend(more);
            store.0.keys.put(rest);
        }
        let mut fresh = fresh.into_iter();
        let key = |task: &mut NewTask| {
            *task.key.get_or_insert_with(|| fresh.next().expect("as many as are wanted"))
        };
        Ok(tasks.iter_mut().map(key).collect())
    }

    async fn call_create(&mut self, tasks: &[NewTask], keys: &[i64]) -> Result<Made, Error> {
        let uids: Vec<Uuid> = tasks.iter().map(|t| t.uid).collect();
        let definitions: Vec<i32> = tasks.iter().map(|t| t.definition.id).collect();
        let hashes: Vec<&[u8]> = tasks.iter().map(|t| t.hash.as_slice()).collect();
        let contexts: Vec<&str> = tasks.iter().map(|t| t.context.as_str()).collect();
        let initiators: Vec<&str> = tasks.iter().map(|t| t.initiator.as_str()).collect();
        let systems: Vec<&str> = tasks.iter().map(|t| t.source_system.as_str()).collect();
        let reasons: Vec<&str> = tasks.iter().map(|t| t.reason.as_str()).collect();
        let tags: Vec<Option<String>> = tasks.iter().map(tags_text).collect();
        let traces: Vec<_> = tasks.iter().map(|t| t.trace.map(TraceContext::to_bytes)).collect();
        let traces: Vec<Option<&[u8]>> =
            traces.iter().map(|trace| trace.as_ref().map(<[u8; _]>::as_slice)).collect();
        let skipped: Vec<Option<String>> = tasks.iter().map(skipped_text).collect();
        let keys_shared: Vec<Option<i64>> = tasks.iter().map(|t| t.concurrency).collect();
        let rooms: Vec<Option<i32>> = tasks
            .iter()
            .map(|t| t.definition.definition.concurrency.as_ref().map(|c| c.limit))
            .collect();
        let priorities: Vec<Option<i16>> = tasks.iter().map(|t| t.priority).collect();
        let correlations: Vec<&str> = tasks.iter().map(|t| t.correlation_id.as_str()).collect();
        let some = tasks.iter().any(|t| !t.annotations.is_empty());
        let annotations: Option<Vec<_>> =
            some.then(|| tasks.iter().map(annotations_text).collect());
        if tasks.iter().any(|task| task.identity.is_some()) {
            let row = sqlx::query!(
                r#"select n_key as keys, n_at as at, queues_n as "queues!", t_there as "there!: Vec<Option<Uuid>>"
                     from stepwell.create_identified_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
                                                           $14, $15, $16, $17, t_annotations => $18)"#,
                &identities(tasks) as &[Option<Uuid>],
                &windows(tasks) as &[Option<i64>],
                keys,
                &uids,
                &definitions,
                &hashes as &[&[u8]],
                &contexts as &[&str],
                &initiators as &[&str],
                &systems as &[&str],
                &reasons as &[&str],
                &tags as &[Option<String>],
                &traces as &[Option<&[u8]>],
                &skipped as &[Option<String>],
                &keys_shared as &[Option<i64>],
                &rooms as &[Option<i32>],
                &priorities as &[Option<i16>],
                &correlations as &[&str],
                annotations.as_deref() as Option<&[Option<String>]>,
            )
            .fetch_one(&mut self.connection)
            .await?;
            let keys = row.keys.unwrap_or_default().into_iter().collect();
            return Ok(Made { keys, at: row.at, queues: row.queues, there: row.there });
        }
        let row = sqlx::query!(
            r#"select n_key as keys, n_at as at, queues_n as "queues!"
                 from stepwell.create_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
                                            t_annotations => $16)"#,
            keys,
            &uids,
            &definitions,
            &hashes as &[&[u8]],
            &contexts as &[&str],
            &initiators as &[&str],
            &systems as &[&str],
            &reasons as &[&str],
            &tags as &[Option<String>],
            &traces as &[Option<&[u8]>],
            &skipped as &[Option<String>],
            &keys_shared as &[Option<i64>],
            &rooms as &[Option<i32>],
            &priorities as &[Option<i16>],
            &correlations as &[&str],
            annotations.as_deref() as Option<&[Option<String>]>,
        )
        .fetch_one(&mut self.connection)
        .await?;
        let keys = row.keys.unwrap_or_default().into_iter().collect();
        Ok(Made { keys, at: row.at, queues: row.queues, there: Vec::new() })
    }
}

/// What the verb did.
struct Made {
    /// The keys of the tasks that were made.
    keys: HashSet<i64>,
    /// When.
    at: Option<DateTime<Utc>>,
    /// How many queues were made for them.
    queues: i32,
    /// By task: the id of the one that is there in its place, not by its id. Empty: there is none.
    there: Vec<Option<Uuid>>,
}

fn identities(tasks: &[NewTask]) -> Vec<Option<Uuid>> {
    tasks.iter().map(|task| task.identity.as_ref().map(|identity| identity.key)).collect()
}

fn windows(tasks: &[NewTask]) -> Vec<Option<i64>> {
    let window = |task: &NewTask| task.identity.as_ref()?.window;
    let millis = |window: Duration| i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    tasks.iter().map(|task| window(task).map(millis)).collect()
}

/// What a task that is there means for the request.
async fn existing_task(
    store: &Store,
    task: &NewTask,
    key: i64,
    row: &TaskRow,
) -> Result<Created, Error> {
    if row.id == key {
        // An earlier try of this very request was carried out, only its answer was lost.
        return Ok(Created::New(timestamp(row.created_at)));
    }
    let is_by_id = row.uid == task.uid;
    let asks_for_all = task.identity.as_ref().is_none_or(|of| of.caller_key.is_some());
    if row.hash != task.hash && (is_by_id || asks_for_all) {
        return Ok(if is_by_id { Created::Reused } else { Created::KeyReused });
    }
    let definition = store.definition(row.definition).await?;
    Ok(Created::Existing(Box::new(row.clone().into_task(&definition)?)))
}

fn tags_text(task: &NewTask) -> Option<String> {
    let some = !task.tags.is_empty();
    some.then(|| serde_json::to_string(&task.tags).expect("strings have a JSON form"))
}

fn annotations_text(task: &NewTask) -> Option<String> {
    let some = !task.annotations.is_empty();
    some.then(|| serde_json::to_string(&task.annotations).expect("strings have a JSON form"))
}

/// As Postgres writes an array.
fn skipped_text(task: &NewTask) -> Option<String> {
    let numbers: Vec<String> = task.skipped.iter().map(i32::to_string).collect();
    (!numbers.is_empty()).then(|| format!("{{{}}}", numbers.join(",")))
}

/// A task as it is stored, without its steps.
#[derive(Clone)]
pub(crate) struct TaskRow {
    pub(crate) id: i64,
    pub(crate) uid: Uuid,
    pub(crate) definition: i32,
    pub(crate) state: i16,
    pub(crate) started_at: Option<DateTime<Utc>>,
    pub(crate) finished_at: Option<DateTime<Utc>>,
    pub(crate) hash: Vec<u8>,
    pub(crate) context: String,
    pub(crate) initiator: String,
    pub(crate) source_system: String,
    pub(crate) reason: String,
    pub(crate) tags: Vec<String>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) paused: bool,
    pub(crate) deadline: Option<DateTime<Utc>>,
    pub(crate) held: bool,
    pub(crate) priority: i16,
    pub(crate) correlation_id: String,
    /// A JSON object; none: it has none.
    pub(crate) annotations: Option<String>,
}

impl TaskRow {
    pub(crate) fn into_task(self, stored: &StoredDefinition) -> Result<v1::Task, Error> {
        Ok(v1::Task {
            task_id: self.uid.to_string(),
            namespace: stored.definition.namespace.clone(),
            definition_name: stored.definition.name.clone(),
            definition_version: stored.definition.version.clone(),
            state: state(self.state)?.into(),
            context: self.context,
            initiator: self.initiator,
            source_system: self.source_system,
            reason: self.reason,
            tags: self.tags,
            total_steps: stored.total_steps(),
            create_time: Some(timestamp(self.created_at)),
            start_time: self.started_at.map(timestamp),
            end_time: self.finished_at.map(timestamp),
            steps: Vec::new(),
            paused: self.paused,
            deadline: self.deadline.map(timestamp),
            held: self.held,
            priority: self.priority.into(),
            correlation_id: self.correlation_id,
            annotations: annotate::read(self.annotations.as_deref())?,
        })
    }
}

/// A state as the tables have it.
pub(crate) fn state(number: i16) -> Result<State, Error> {
    State::try_from(i32::from(number))
        .map_err(|_| Error::Inconsistent(format!("there is no state {number}")))
}

/// The tasks with these ids, those that exist, by one statement.
pub(crate) async fn read_tasks(
    connection: impl sqlx::PgExecutor<'_>,
    uids: &[Uuid],
) -> Result<Vec<TaskRow>, Error> {
    let rows = sqlx::query_as!(
        TaskRow,
        r#"select t.id as "id!", t.uid as "uid!", t.definition as "definition!",
                  t.state as "state!", t.started_at as "started_at?",
                  t.finished_at as "finished_at?", d.hash as "hash!", d.context as "context!",
                  d.initiator as "initiator!", d.source_system as "source_system!",
                  d.reason as "reason!", d.tags as "tags!", d.created_at as "created_at!",
                  t.paused as "paused!", t.deadline as "deadline?",
                  t.held and t.finished_at is null as "held!", d.priority as "priority!",
                  d.correlation_id as "correlation_id!",
                  case when d.annotations <> '{}' then d.annotations::text end as annotations
             from unnest($1::uuid[]) i(uid),
                  lateral (select * from stepwell.task where uid = i.uid offset 0) t,
                  lateral (select * from stepwell.task_detail where task = t.id offset 0) d"#,
        uids
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

impl Store {
    /// A task without its steps; none: there is no such task.
    pub async fn task(&self, uid: Uuid) -> Result<Option<v1::Task>, Error> {
        let Some(row) = read_tasks(self.reads(), &[uid]).await?.pop() else { return Ok(None) };
        let definition = self.definition(row.definition).await?;
        row.into_task(&definition).map(Some)
    }

    /// Of these tasks, those that have ended.
    pub async fn ended(&self, uids: &[Uuid]) -> Result<Vec<Uuid>, Error> {
        let ended = sqlx::query_scalar!(
            r#"select t.uid as "uid!"
                 from unnest($1::uuid[]) i(uid),
                      lateral (select uid, finished_at from stepwell.task
                                where uid = i.uid offset 0) t
                where t.finished_at is not null"#,
            uids
        )
        .fetch_all(self.reads())
        .await?;
        Ok(ended)
    }
}
