//! Types of custom events: registered, changed in place where that is allowed, never deleted. What makes
//! a type valid, and which change is allowed, is decided elsewhere; here it is decided about the rows as
//! they are under the lock.

use sqlx::{
    Connection, PgConnection,
    types::chrono::{DateTime, Utc},
};
use stepwell_proto::{refusal::Refusal, v1};

use crate::{Error, Store, patient::silent};

/// Most versions of types.
pub const EVENT_TYPES_MAX: i64 = 10_000;

/// A version of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTypeRow {
    /// Its key; in the order of registration.
    pub id: i32,
    /// Whose tasks may publish it.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its version, from 1.
    pub version: i32,
    /// JSON Schema; empty: any object.
    pub schema: String,
    /// For people.
    pub description: String,
    /// An example of its data; empty: none.
    pub example: String,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// What is to be done with a type that is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Insert,
    /// It is there with other content, and may be changed.
    Update,
    /// It is there as it is.
    Nothing,
}

/// Decides on a type, given all versions of its name that are there.
pub type Judge = fn(&[EventTypeRow], &v1::EventTypeSpec) -> Result<Change, Refusal>;

/// Which types are listed.
#[derive(Clone, Copy, Debug, Default)]
pub struct TypesWanted<'t> {
    /// Of this namespace; empty: of all.
    pub namespace: &'t str,
    /// With a name that begins so.
    pub prefix: &'t str,
    /// With this text, in lower case, in name or description.
    pub search: &'t str,
    /// After this key.
    pub after: i32,
}

impl Store {
    /// Registers a type that was validated; answers it as it is then, and whether it was there before
    /// with the same content.
    pub async fn register_event_type(
        &self,
        namespace: &str,
        spec: &v1::EventTypeSpec,
        judge: Judge,
    ) -> Result<(EventTypeRow, bool), Error> {
        // On a connection of its own: if it falls silent, what was begun on it goes with it.
        let mut writer = self.writer().await?;
        let patience = writer.connection.patience;
        let specs = std::slice::from_ref(spec);
        let registering = async {
            let mut transaction = writer.connection.connection.begin().await?;
            let changed = register_types(&mut transaction, namespace, specs, judge).await?;
            transaction.commit().await?;
            Ok::<_, Error>(changed)
        };
        let registered = tokio::time::timeout(patience, registering).await;
        let changed = registered.unwrap_or_else(|_| Err(silent(patience).into()))?;
        let rows = self.event_types(namespace, &[spec.name.as_str()]).await?;
        let row = rows.into_iter().find(|row| row.version == spec.version);
        let row = row.ok_or_else(|| {
            Error::Inconsistent(format!("event type {} was registered and is not there", spec.name))
        })?;
        Ok((row, changed == 0))
    }

    /// All versions of these names in a namespace, ascending.
    pub async fn event_types(
        &self,
        namespace: &str,
        names: &[&str],
    ) -> Result<Vec<EventTypeRow>, Error> {
        let rows = sqlx::query_as!(
            EventTypeRow,
            "select id, namespace, name, version, schema, description, example, created_at
               from stepwell.event_type where namespace = $1 and name = any($2)
              order by name, version",
            namespace,
            names as &[&str],
        )
        .fetch_all(self.reads())
        .await?;
        Ok(rows)
    }

    /// A page of types in the order of their keys, at most so many.
    pub async fn list_event_types(
        &self,
        wanted: TypesWanted<'_>,
        max: i64,
    ) -> Result<Vec<EventTypeRow>, Error> {
        let rows = sqlx::query_as!(
            EventTypeRow,
            "select id, namespace, name, version, schema, description, example, created_at
               from stepwell.event_type
              where id > $1 and $2 in ('', namespace) and starts_with(name, $3)
                and (strpos(name, $4) > 0 or strpos(lower(description), $4) > 0)
              order by id limit $5",
            wanted.after,
            wanted.namespace,
            wanted.prefix,
            wanted.search,
            max,
        )
        .fetch_all(self.reads())
        .await?;
        Ok(rows)
    }

    /// The names of all types of these namespaces, each once; of all namespaces if there are none.
    pub async fn event_type_names(&self, namespaces: &[String]) -> Result<Vec<String>, Error> {
        let names = sqlx::query_scalar!(
            "select distinct name from stepwell.event_type
              where cardinality($1::text[]) = 0 or namespace = any($1) order by name",
            namespaces,
        )
        .fetch_all(self.reads())
        .await?;
        Ok(names)
    }
}

/// Registers types in a transaction; answers how many are new or changed. Who registers types does so one
/// after the other.
pub(crate) async fn register_types(
    connection: &mut PgConnection,
    namespace: &str,
    specs: &[v1::EventTypeSpec],
    judge: Judge,
) -> Result<usize, Error> {
    if specs.is_empty() {
        return Ok(0);
    }
    sqlx::query!("select pg_advisory_xact_lock(52)").execute(&mut *connection).await?;
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let rows = sqlx::query_as!(
        EventTypeRow,
        "select id, namespace, name, version, schema, description, example, created_at
           from stepwell.event_type where namespace = $1 and name = any($2) order by name, version",
        namespace,
        &names as &[&str],
    )
    .fetch_all(&mut *connection)
    .await?;
    let changed = changed(namespace, rows, specs, judge)?;
    if changed.is_empty() {
        return Ok(0);
    }
    let of =
        |field: fn(&EventTypeRow) -> &str| -> Vec<&str> { changed.iter().map(field).collect() };
    let versions: Vec<i32> = changed.iter().map(|row| row.version).collect();
    sqlx::query!(
        "insert into stepwell.event_type (namespace, name, version, schema, description, example)
         select $1, * from unnest($2::text[], $3::int[], $4::text[], $5::text[], $6::text[])
         on conflict (namespace, name, version) do update
            set schema = excluded.schema, description = excluded.description, example = excluded.example",
        namespace,
        &of(|row| &row.name) as &[&str],
        &versions,
        &of(|row| &row.schema) as &[&str],
        &of(|row| &row.description) as &[&str],
        &of(|row| &row.example) as &[&str],
    )
    .execute(&mut *connection)
    .await?;
    let all = sqlx::query_scalar!(r#"select count(*) as "n!" from stepwell.event_type"#)
        .fetch_one(&mut *connection)
        .await?;
    if all > EVENT_TYPES_MAX {
        let message =
            format!("there are {EVENT_TYPES_MAX} types of custom events: no more are taken");
        let refusal = Refusal::new(v1::ErrorReason::EventTypeLimit, message);
        return Err(refusal.with("name", &specs[0].name).into());
    }
    Ok(changed.len())
}

/// The rows that are new or changed, if all types may be registered one after the other.
fn changed(
    namespace: &str,
    mut rows: Vec<EventTypeRow>,
    specs: &[v1::EventTypeSpec],
    judge: Judge,
) -> Result<Vec<EventTypeRow>, Refusal> {
    let mut changed: Vec<EventTypeRow> = Vec::new();
    let mut sorted: Vec<&v1::EventTypeSpec> = specs.iter().collect();
    sorted.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    for spec in sorted {
        let of_name: Vec<EventTypeRow> =
            rows.iter().filter(|row| row.name == spec.name).cloned().collect();
        if judge(&of_name, spec)? == Change::Nothing {
            continue;
        }
        let v1::EventTypeSpec { name, version, schema, description, example } = spec.clone();
        let (id, created_at) = (0, DateTime::default());
        let namespace = namespace.to_owned();
        let row =
            EventTypeRow { id, namespace, name, version, schema, description, example, created_at };
        rows.retain(|other| (&other.name, other.version) != (&row.name, row.version));
        rows.push(row.clone());
        changed.push(row);
    }
    Ok(changed)
}
