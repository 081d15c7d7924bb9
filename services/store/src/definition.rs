//! Definitions: written once, never changed, so what was read once is kept. A definition comes
//! here validated and with its defaults filled in; what makes one valid is decided elsewhere.

mod list;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use prost::Message;
use sqlx::{Connection, PgConnection, Postgres, Transaction, types::chrono};
use stepwell_proto::{refusal::Refusal, v1};

pub use list::DefinitionPlace;

use crate::{Error, Judge, Store, Topic, event_type::register_types, patient::silent};

/// A definition with what the database knows of it.
#[derive(Debug, Default)]
pub struct StoredDefinition {
    /// Its key.
    pub id: i32,
    /// Major, minor, patch.
    pub version: [i32; 3],
    /// The definition, defaults filled in, with its hash and the time of its registration.
    pub definition: v1::Definition,
    /// By step number: the queue the step waits in.
    pub queues: Vec<i32>,
    /// By step number: the numbers of the steps it depends on, in the order of the definition.
    pub parents: Vec<Vec<i32>>,
    /// By step number: the numbers of the steps that depend on it, ascending.
    pub children: Vec<Vec<i32>>,
    /// Clocks run for its tasks or their steps, beside those of attempts.
    pub is_timed: bool,
}

impl StoredDefinition {
    /// The step with this number.
    pub fn step(&self, number: i32) -> Option<&v1::StepTemplate> {
        self.definition.steps.get(usize::try_from(number).ok()?)
    }

    /// How urgent its tasks are that say nothing of it: 1 is first, 5 last.
    pub fn priority(&self) -> i16 {
        priority(&self.definition)
    }

    /// How many steps it has.
    pub fn total_steps(&self) -> i32 {
        i32::try_from(self.definition.steps.len()).expect("bounded when it was registered")
    }

    /// How long one attempt of this step may take; zero if there is no such step.
    pub fn timeout(&self, number: i32) -> Duration {
        let timeout = self.step(number).and_then(|step| step.timeout);
        timeout.and_then(|t| Duration::try_from(t).ok()).unwrap_or_default()
    }

    /// How long an attempt of this step may go without progress; none: for ever.
    pub fn heartbeat_timeout(&self, number: i32) -> Option<Duration> {
        let timeout = self.step(number).and_then(|step| step.heartbeat_timeout);
        timeout.and_then(|t| Duration::try_from(t).ok())
    }

    /// Names of steps, in the order of the numbers. Numbers that it does not have are left out.
    pub fn names<'a>(&'a self, numbers: &'a [i32]) -> impl Iterator<Item = &'a str> {
        numbers.iter().filter_map(|no| self.step(*no)).map(|step| step.name.as_str())
    }
}

/// Which definition is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wanted {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Major, minor, patch; none: the latest.
    pub version: Option<[i32; 3]>,
}

/// Definitions that were read, up to a bound; past it, some are forgotten and read again.
#[derive(Default)]
pub(crate) struct Cache(RwLock<Cached>);

#[derive(Default)]
struct Cached {
    by_id: HashMap<i32, Arc<StoredDefinition>>,
    by_name: HashMap<Wanted, i32>,
    bytes: usize,
}

/// Between 1, first, and 5, last.
pub const PRIORITY_DEFAULT: i16 = 3;
const CACHED_MAX: usize = 10_000;
const CACHED_BYTES_MAX: usize = 256 << 20;

impl Cache {
    fn get(&self, id: i32) -> Option<Arc<StoredDefinition>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&id).cloned()
    }

    fn find(&self, wanted: &Wanted) -> Option<Arc<StoredDefinition>> {
        let cached = self.0.read().unwrap_or_else(PoisonError::into_inner);
        cached.by_name.get(wanted).and_then(|id| cached.by_id.get(id)).cloned()
    }

    fn put(&self, stored: &Arc<StoredDefinition>) {
        let mut cached = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if cached.by_id.insert(stored.id, Arc::clone(stored)).is_some() {
            return;
        }
        cached.by_name.insert(name_of(stored), stored.id);
        cached.bytes += stored.definition.encoded_len();
        while cached.by_id.len() > CACHED_MAX || cached.bytes > CACHED_BYTES_MAX {
            let other = cached.by_id.keys().copied().find(|id| *id != stored.id);
            let Some(gone) = other.and_then(|id| cached.by_id.remove(&id)) else { return };
            cached.by_name.remove(&name_of(&gone));
            cached.bytes -= gone.definition.encoded_len();
        }
    }
}

fn name_of(stored: &StoredDefinition) -> Wanted {
    Wanted {
        namespace: stored.definition.namespace.clone(),
        name: stored.definition.name.clone(),
        version: Some(stored.version),
    }
}

impl Store {
    /// Registers a definition that was validated, with its defaults filled in and its hash set, and with
    /// it the types of events that its steps publish, each as the judge decides.
    /// True: this version was there before, with the same content. Other content is refused.
    pub async fn register_definition(
        &self,
        definition: &v1::Definition,
        judge: Judge,
    ) -> Result<(Arc<StoredDefinition>, bool), Error> {
        let version = version_of(&definition.version)?;
        let hash = bytes_of(&definition.content_hash)
            .ok_or_else(|| Error::Inconsistent("a definition without its hash".into()))?;
        // On a connection of its own: if it falls silent, what was begun on it goes with it.
        let mut writer = self.writer().await?;
        let patience = writer.connection.patience;
        let storing =
            insert_all(&mut writer.connection.connection, definition, version, &hash, judge);
        let stored = tokio::time::timeout(patience, storing).await;
        let Some(id) = stored.unwrap_or_else(|_| Err(silent(patience).into()))? else {
            return self.registered(definition, version, &hash).await;
        };
        self.bell().ring(Topic::Definition);
        Ok((self.definition(id).await?, false))
    }

    /// The version that is there already.
    async fn registered(
        &self,
        definition: &v1::Definition,
        version: [i32; 3],
        hash: &[u8],
    ) -> Result<(Arc<StoredDefinition>, bool), Error> {
        let v1::Definition { namespace, name, .. } = definition;
        let found = self.find_definition(namespace, name, Some(version)).await?;
        let stored = found.ok_or_else(|| {
            Error::Inconsistent(format!("definition {namespace}/{name} conflicts with nothing"))
        })?;
        if bytes_of(&stored.definition.content_hash).as_deref() == Some(hash) {
            return Ok((stored, true));
        }
        let text = &definition.version;
        let message = format!(
            "version {text} of {name} is registered with other content; \
             register the change under a higher version"
        );
        Err(Refusal::new(v1::ErrorReason::DefinitionChanged, message)
            .with("namespace", namespace)
            .with("definition", name)
            .with("version", text)
            .into())
    }

    /// One version of a definition; the latest if none is named. None: there is no such thing.
    pub async fn find_definition(
        &self,
        namespace: &str,
        name: &str,
        version: Option<[i32; 3]>,
    ) -> Result<Option<Arc<StoredDefinition>>, Error> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let found = self.find_definitions(&[Wanted { namespace, name, version }]).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// What was wanted, in that order, by at most two statements. Which version is the latest is
    /// asked anew each time.
    pub async fn find_definitions(
        &self,
        wanted: &[Wanted],
    ) -> Result<Vec<Option<Arc<StoredDefinition>>>, Error> {
        let mut found: Vec<_> = wanted.iter().map(|w| self.0.definitions.find(w)).collect();
        let missing: Vec<usize> = (0..wanted.len()).filter(|i| found[*i].is_none()).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        let ids = self.find_ids(missing.iter().map(|i| &wanted[*i])).await?;
        let stored = self.definitions(&ids.values().copied().collect::<Vec<_>>()).await?;
        for (no, i) in missing.into_iter().enumerate() {
            found[i] = ids.get(&no).and_then(|id| stored.get(id)).cloned();
        }
        Ok(found)
    }

    /// The keys of what was wanted, by place in the list.
    async fn find_ids(
        &self,
        wanted: impl Iterator<Item = &Wanted>,
    ) -> Result<HashMap<usize, i32>, Error> {
        let (mut namespaces, mut names, mut versions) = (Vec::new(), Vec::new(), Vec::new());
        for one in wanted {
            namespaces.push(one.namespace.clone());
            names.push(one.name.clone());
            versions.push(one.version.map(array_text));
        }
        let rows = sqlx::query!(
            r#"select i.no as "no!", d.id as "id!"
                 from unnest($1::text[], $2::text[], $3::text[]) with ordinality
                        i(namespace, name, version, no),
                      lateral (select id from stepwell.definition
                                where namespace = i.namespace and name = i.name
                                  and (i.version is null or version = i.version::int[])
                                order by version desc limit 1) d"#,
            &namespaces,
            &names,
            &versions as &[Option<String>],
        )
        .fetch_all(self.reads())
        .await?;
        let place = |no: i64| usize::try_from(no - 1).expect("ordinality starts at 1");
        Ok(rows.into_iter().map(|row| (place(row.no), row.id)).collect())
    }

    /// A definition by its key.
    pub async fn definition(&self, id: i32) -> Result<Arc<StoredDefinition>, Error> {
        let found = self.definitions(&[id]).await?.remove(&id);
        found.ok_or_else(|| Error::Inconsistent(format!("definition {id} does not exist")))
    }

    /// A definition by its key, if it was read before.
    pub fn cached_definition(&self, id: i32) -> Option<Arc<StoredDefinition>> {
        self.0.definitions.get(id)
    }

    /// Definitions by their keys; those that were not read before by one statement. What does not
    /// exist is left out.
    pub async fn definitions(
        &self,
        ids: &[i32],
    ) -> Result<HashMap<i32, Arc<StoredDefinition>>, Error> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut missing = Vec::new();
        for id in ids {
            match self.cached_definition(*id) {
                Some(stored) => drop(found.insert(*id, stored)),
                None => missing.push(*id),
            }
        }
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(found);
        }
        let rows = sqlx::query_as!(
            Row,
            r#"select d.id, d.version, d.hash, d.content, d.created_at,
                      array(select queue from stepwell.step_template
                             where definition = d.id order by no) as "queues!"
                 from stepwell.definition d where d.id = any($1)"#,
            &missing,
        )
        .fetch_all(self.reads())
        .await?;
        for row in rows {
            let stored = Arc::new(row.read()?);
            self.0.definitions.put(&stored);
            found.insert(stored.id, stored);
        }
        Ok(found)
    }
}

struct Row {
    id: i32,
    version: Vec<i32>,
    hash: Vec<u8>,
    content: Vec<u8>,
    created_at: chrono::DateTime<chrono::Utc>,
    queues: Vec<i32>,
}

impl Row {
    fn read(self) -> Result<StoredDefinition, Error> {
        let wrong = |what: &str| Error::Inconsistent(format!("definition {}: {what}", self.id));
        let mut definition = v1::Definition::decode(self.content.as_slice())
            .map_err(|error| wrong(&error.to_string()))?;
        definition.content_hash = hex(&self.hash);
        definition.create_time = Some(timestamp(self.created_at));
        let version = self.version.as_slice().try_into().map_err(|_| wrong("its version"))?;
        let parents = parents(&definition).ok_or_else(|| wrong("a dependency is unknown"))?;
        if self.queues.len() != parents.len() {
            return Err(wrong("its plan has another number of steps"));
        }
        let (children, is_timed) = (children(&parents), is_timed(&definition));
        Ok(StoredDefinition {
            id: self.id,
            version,
            definition,
            queues: self.queues,
            parents,
            children,
            is_timed,
        })
    }
}

fn priority(definition: &v1::Definition) -> i16 {
    let named = i16::try_from(definition.priority).ok().filter(|priority| *priority > 0);
    named.unwrap_or(PRIORITY_DEFAULT)
}

/// Clocks run for its tasks or their steps, beside those of attempts.
fn is_timed(definition: &v1::Definition) -> bool {
    let waits =
        |step: &v1::StepTemplate| step.queue_timeout.is_some() || step.total_timeout.is_some();
    definition.deadline.is_some() || definition.steps.iter().any(waits)
}

/// By step: the numbers of the steps it depends on. None: one of them is unknown.
fn parents(definition: &v1::Definition) -> Option<Vec<Vec<i32>>> {
    let names = definition.steps.iter().map(|step| step.name.as_str());
    let numbers: HashMap<&str, i32> = names.zip(0..).collect();
    let of = |step: &v1::StepTemplate| {
        step.depends_on.iter().map(|name| numbers.get(name.as_str()).copied()).collect()
    };
    definition.steps.iter().map(of).collect()
}

/// The same edges the other way round.
fn children(parents: &[Vec<i32>]) -> Vec<Vec<i32>> {
    let mut children = vec![Vec::new(); parents.len()];
    for (parents, child) in parents.iter().zip(0..) {
        for parent in parents {
            children[usize::try_from(*parent).expect("a place in the list")].push(child);
        }
    }
    children
}

/// Stores a definition with its plan; none: its version is there already.
async fn insert_all(
    connection: &mut PgConnection,
    definition: &v1::Definition,
    version: [i32; 3],
    hash: &[u8],
    judge: Judge,
) -> Result<Option<i32>, Error> {
    let mut transaction = connection.begin().await?;
    // Nobody pauses it unseen meanwhile: see pause_definitions.
    sqlx::query!("select pg_advisory_xact_lock_shared(45)").execute(&mut *transaction).await?;
    let Some(id) = insert(&mut transaction, definition, version, hash).await? else {
        transaction.rollback().await?;
        return Ok(None);
    };
    insert_plan(&mut transaction, id, definition).await?;
    let types = published(definition);
    register_types(&mut transaction, &definition.namespace, &types, judge).await?;
    transaction.commit().await?;
    Ok(Some(id))
}

/// The definition's row; none: the version is taken.
async fn insert(
    transaction: &mut Transaction<'_, Postgres>,
    definition: &v1::Definition,
    version: [i32; 3],
    hash: &[u8],
) -> Result<Option<i32>, Error> {
    let content =
        v1::Definition { content_hash: String::new(), create_time: None, ..definition.clone() };
    let roots = definition.steps.iter().filter(|step| step.depends_on.is_empty()).count();
    let deadline = definition.deadline.as_ref().and_then(millis);
    let room = definition.concurrency.as_ref().map(|concurrency| concurrency.limit);
    let ruled = definition.max_parallel_steps > 0 || room.is_some() || is_timed(definition);
    let id = sqlx::query_scalar!(
        "insert into stepwell.definition (namespace, name, version, hash, content, roots,
                                          max_parallel, deadline_ms, ruled, concurrency_room, priority,
                                          paused)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,
                 exists (select from stepwell.pause where namespace = $1 and name in ('', $2)))
         on conflict (namespace, name, version) do nothing
         returning id",
        definition.namespace,
        definition.name,
        &version,
        hash,
        content.encode_to_vec(),
        i32::try_from(roots).unwrap_or(i32::MAX),
        definition.max_parallel_steps,
        deadline,
        ruled,
        room,
        priority(definition),
    )
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(id)
}

/// One queue per handler and set of requirements, and the plan of the steps.
async fn insert_plan(
    transaction: &mut Transaction<'_, Postgres>,
    id: i32,
    definition: &v1::Definition,
) -> Result<(), Error> {
    let parents =
        parents(definition).ok_or_else(|| Error::Inconsistent("a dependency is unknown".into()))?;
    let waiting_on: Vec<i32> =
        parents.iter().map(|p| i32::try_from(p.len()).unwrap_or(i32::MAX)).collect();
    let children: Vec<String> = children(&parents).into_iter().map(array_text).collect();
    let handlers: Vec<String> = definition.steps.iter().map(|s| s.handler.clone()).collect();
    let max_attempts: Vec<i32> = definition
        .steps
        .iter()
        .map(|step| step.retry.as_ref().map_or(1, |retry| retry.max_attempts))
        .collect();
    let steps = definition.steps.iter();
    let queue_timeouts: Vec<Option<i64>> =
        steps.clone().map(|step| step.queue_timeout.as_ref().and_then(millis)).collect();
    let total_timeouts: Vec<Option<i64>> =
        steps.map(|step| step.total_timeout.as_ref().and_then(millis)).collect();
    let requires: Vec<String> =
        definition.steps.iter().map(|step| requires_text(&step.requires)).collect();
    sqlx::query!(
        "insert into stepwell.queue (definition, namespace, handler, requires, priority)
         select distinct $1::int, $2, handler, requires, $5::smallint
           from unnest($3::text[], $4::text[]) s(handler, requires) order by handler, requires",
        id,
        definition.namespace,
        &handlers,
        &requires,
        priority(definition),
    )
    .execute(&mut **transaction)
    .await?;
    sqlx::query!(
        "insert into stepwell.step_template (definition, no, queue, waiting_on, max_attempts, children,
                                             queue_timeout_ms, total_timeout_ms)
         select $1, s.no - 1, q.id, s.waiting_on, s.max_attempts, s.children::int[], s.queue_timeout,
                s.total_timeout
           from unnest($2::text[], $3::int[], $4::int[], $5::text[], $6::bigint[], $7::bigint[], $8::text[])
                  with ordinality
                  s(handler, waiting_on, max_attempts, children, queue_timeout, total_timeout, requires, no)
           join stepwell.queue q
             on q.definition = $1 and q.handler = s.handler and q.requires = s.requires",
        id,
        &handlers,
        &waiting_on,
        &max_attempts,
        &children,
        &queue_timeouts as &[Option<i64>],
        &total_timeouts as &[Option<i64>],
        &requires,
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// The types of events that its steps publish, each once: those of a name and version are the same.
fn published(definition: &v1::Definition) -> Vec<v1::EventTypeSpec> {
    let all = definition.steps.iter().flat_map(|step| &step.publishes);
    let each: BTreeMap<_, _> = all.map(|spec| ((&spec.name, spec.version), spec)).collect();
    each.into_values().cloned().collect()
}

fn millis(duration: &prost_types::Duration) -> Option<i64> {
    let duration = stepwell_proto::time::duration(duration)?;
    i64::try_from(duration.as_millis()).ok()
}

fn version_of(text: &str) -> Result<[i32; 3], Error> {
    let numbers: Option<Vec<i32>> = text.split('.').map(|n| n.parse().ok()).collect();
    numbers
        .and_then(|n| n.try_into().ok())
        .ok_or_else(|| Error::Inconsistent(format!("the version {text:?} was not validated")))
}

/// Required labels as text: one text for equal ones, so that they can be a part of a key.
fn requires_text(requires: &BTreeMap<String, String>) -> String {
    serde_json::to_string(requires).expect("text has a JSON form")
}

/// An array as Postgres writes it: lists of different lengths have no array type of their own.
fn array_text(numbers: impl IntoIterator<Item = i32>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|n| n.to_string()).collect();
    format!("{{{}}}", numbers.join(","))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        hex.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> = digits?.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (hex.len() == 64 && bytes.len() == 32).then_some(bytes)
}

/// A time of the database as it goes over the wire.
pub fn timestamp(at: chrono::DateTime<chrono::Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.timestamp(),
        nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(999_999_999),
    }
}

/// A time as it goes over the wire; none: it is no time.
pub fn time_of(at: &prost_types::Timestamp) -> Option<chrono::DateTime<chrono::Utc>> {
    chrono::DateTime::from_timestamp(at.seconds, u32::try_from(at.nanos).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, depends_on: &[&str]) -> v1::StepTemplate {
        let depends_on = depends_on.iter().map(|&s| s.to_owned()).collect();
        v1::StepTemplate { name: name.into(), depends_on, ..v1::StepTemplate::default() }
    }

    #[test]
    fn edges_are_the_same_both_ways() {
        let steps =
            vec![step("d", &["c", "b"]), step("a", &[]), step("b", &["a"]), step("c", &["a"])];
        let definition = v1::Definition { steps, ..v1::Definition::default() };
        let parents = parents(&definition).unwrap();
        assert_eq!(parents, [vec![3, 2], vec![], vec![1], vec![1]]);
        assert_eq!(children(&parents), [vec![], vec![2, 3], vec![0], vec![0]]);
    }

    #[test]
    fn a_hash_survives_its_text_form() {
        let hash: Vec<u8> = (0..32).map(|i| i * 8).collect();
        assert_eq!(bytes_of(&hex(&hash)), Some(hash));
        assert_eq!(bytes_of("00"), None);
        assert_eq!(bytes_of(&"+1".repeat(32)), None);
    }

    #[test]
    fn the_cache_forgets_rather_than_grows() {
        let cache = Cache::default();
        let stored = |id: i32| {
            Arc::new(StoredDefinition {
                id,
                version: [id, 0, 0],
                definition: v1::Definition {
                    description: "x".repeat(100 << 20),
                    ..v1::Definition::default()
                },
                ..StoredDefinition::default()
            })
        };
        (0..4).for_each(|id| cache.put(&stored(id)));
        let kept = (0..4).filter(|id| cache.get(*id).is_some()).count();
        assert_eq!(kept, 2);
        assert!(cache.get(3).is_some());
        let named =
            Wanted { namespace: String::new(), name: String::new(), version: Some([3, 0, 0]) };
        assert_eq!(cache.find(&named).map(|s| s.id), Some(3));
    }
}
