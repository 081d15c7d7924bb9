//! Custom events, checked before they are published: their types are looked up and kept, their data is held
//! against the schema.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use jsonschema::Validator;
use serde_json::Value;
use stepwell_proto::{
    json,
    refusal::{Refusal, describe},
    v1::{ErrorReason, Publication},
};
use stepwell_store::{Error, EventTypeRow, Store, custom_text};

use crate::{
    Fault,
    event_type::{DATA_BYTES_MAX, is_event_name, schema_of},
    quoted, schema, suggestion,
};

/// Most events that are published together.
const EVENTS_MAX: usize = 20;
/// So long what was looked up is taken for what is there.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Names that a misspelt one is compared with.
const COMPARED_MAX: usize = 1_000;
/// Most names whose types are kept.
const NAMES_MAX: usize = 1_000;

/// Why events are not published.
#[derive(Debug)]
pub enum Refused {
    /// They are wrong; asking again is of no use.
    Wrong(Refusal),
    /// Their types could not be looked up.
    Unknown(Error),
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Wrong(refusal) => refusal,
            Refused::Unknown(error) => error.into(),
        }
    }
}

/// The types of custom events that this process has looked up, up to a bound: past it some are forgotten
/// and looked up again. What it keeps may be old: nothing is refused that was not looked up anew.
#[derive(Default)]
pub struct Types(Mutex<HashMap<(String, String), Arc<Known>>>);

/// All versions of one name.
struct Known {
    versions: BTreeMap<i32, Arc<OfType>>,
    since: Instant,
}

struct OfType {
    schema: String,
    /// Compiled when it is first used; none: it does not compile.
    validator: OnceLock<Option<Validator>>,
}

impl OfType {
    fn violations(&self, data: &Value) -> Vec<Fault> {
        let compiled = || schema::compile(&schema_of(&self.schema)).ok();
        match self.validator.get_or_init(compiled) {
            Some(validator) => schema::violations(validator, data),
            // It was compiled when it was registered, by an earlier build perhaps.
            None => vec![(String::new(), "cannot be checked: the schema does not compile".into())],
        }
    }
}

/// What is wrong with an event.
enum Wrong {
    Type(Fault),
    Data(Vec<Fault>),
}

impl Types {
    /// Checks events of a task in this namespace; answers the texts of their rows, in their order.
    pub async fn check(
        &self,
        store: &Store,
        namespace: &str,
        events: &[Publication],
    ) -> Result<Vec<String>, Refused> {
        let data = read(events).map_err(Refused::Wrong)?;
        let mut known = self.kept(namespace, events);
        if let Ok(texts) = judge(&known, events, &data, false) {
            return Ok(texts);
        }
        // What is no name has no type, and Postgres may not even take it.
        let names = events.iter().map(|event| event.name.as_str());
        let names: Vec<&str> = names.filter(|name| is_event_name(name)).collect();
        let rows = store.event_types(namespace, &names).await.map_err(Refused::Unknown)?;
        known = self.keep(namespace, rows);
        match judge(&known, events, &data, true) {
            Ok(texts) => Ok(texts),
            Err(wrong) => Err(self.refusal(store, namespace, events, wrong).await),
        }
    }

    /// What is known of the events' types.
    fn kept(&self, namespace: &str, events: &[Publication]) -> HashMap<String, Arc<Known>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = events.iter().filter_map(|event| {
            let key = (namespace.to_owned(), event.name.clone());
            Some((event.name.clone(), Arc::clone(kept.get(&key)?)))
        });
        known.collect()
    }

    /// Keeps what was looked up, and answers it.
    fn keep(&self, namespace: &str, rows: Vec<EventTypeRow>) -> HashMap<String, Arc<Known>> {
        let since = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: HashMap<String, BTreeMap<i32, Arc<OfType>>> = HashMap::new();
        for row in rows {
            // What did not change is not compiled again.
            let known = kept.get(&(namespace.to_owned(), row.name.clone()));
            let same = known.and_then(|known| known.versions.get(&row.version));
            let of_type = match same.filter(|same| same.schema == row.schema) {
                Some(same) => Arc::clone(same),
                None => Arc::new(OfType { schema: row.schema, validator: OnceLock::new() }),
            };
            found.entry(row.name).or_default().insert(row.version, of_type);
        }
        let mut known = HashMap::new();
        for (name, versions) in found {
            let of_name = Arc::new(Known { versions, since });
            let key = (namespace.to_owned(), name.clone());
            while kept.len() >= NAMES_MAX
                && !kept.contains_key(&key)
                && let Some(other) = kept.keys().next().cloned()
            {
                kept.remove(&other);
            }
            kept.insert(key, Arc::clone(&of_name));
            known.insert(name, of_name);
        }
        known
    }

    /// Says what is wrong, and which name was meant.
    async fn refusal(
        &self,
        store: &Store,
        namespace: &str,
        events: &[Publication],
        wrong: Vec<(usize, Wrong)>,
    ) -> Refused {
        let is_type = |wrong: &Wrong| matches!(wrong, Wrong::Type(_));
        let of_type = wrong.iter().find(|(_, wrong)| is_type(wrong)).map(|(i, _)| *i);
        let names = match of_type {
            Some(_) => match store.event_type_names(&[namespace.to_owned()]).await {
                Ok(names) => names,
                Err(error) => return Refused::Unknown(error),
            },
            None => Vec::new(),
        };
        let first = of_type.unwrap_or_else(|| wrong.first().map_or(0, |(i, _)| *i));
        let name = events.get(first).map_or("", |event| event.name.as_str());
        let known = || names.iter().take(COMPARED_MAX).map(String::as_str);
        let faults = wrong.into_iter().flat_map(|(i, wrong)| match wrong {
            Wrong::Type((field, what)) => {
                let name = events.get(i).map_or("", |event| event.name.as_str());
                let hint = if field == "name" { suggestion(name, known()) } else { String::new() };
                vec![(format!("events[{i}].{field}"), format!("{what}{hint}"))]
            }
            Wrong::Data(faults) => faults
                .into_iter()
                .map(|(rest, what)| (format!("events[{i}].data{rest}"), what))
                .collect(),
        });
        let faults = crate::bounded(faults.collect());
        let reason = match of_type {
            Some(_) => ErrorReason::EventTypeUnknown,
            None => ErrorReason::EventInvalid,
        };
        let refusal = Refusal::new(reason, describe(&faults))
            .with("namespace", namespace)
            .with("name", quoted(name).trim_matches('"'))
            .with_violations(faults);
        Refused::Wrong(match crate::closest(name, known()) {
            Some(meant) if of_type.is_some() => refusal.with("suggestion", meant),
            _ => refusal,
        })
    }
}

/// The data of the events, if all of it is within bounds.
fn read(events: &[Publication]) -> Result<Vec<Value>, Refusal> {
    if !(1..=EVENTS_MAX).contains(&events.len()) {
        return Err(Refusal::field("events", format!("must be 1 to {EVENTS_MAX}")));
    }
    let bytes: usize = events.iter().map(|event| event.data.len()).sum();
    if bytes > DATA_BYTES_MAX {
        let what = format!("have {bytes} bytes of data; at most {DATA_BYTES_MAX} are allowed");
        return Err(Refusal::field("events", what));
    }
    let mut faults = Vec::new();
    let mut values = Vec::with_capacity(events.len());
    for (i, event) in events.iter().enumerate() {
        let checked = match event.data.as_str() {
            "" => Ok("{}"),
            data => json::check_object(data, DATA_BYTES_MAX).map(|()| data),
        };
        match checked.map_err(|fault| fault.to_string()).and_then(|data| {
            serde_json::from_str(data).map_err(|error| format!("cannot be read: {error}"))
        }) {
            Ok(value) => values.push(value),
            Err(what) => faults.push((format!("events[{i}].data"), what)),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(Refusal::fields(faults)) }
}

/// The texts of the rows, or by event what is wrong. All of a name is refused that may be another by now, unless it
/// was looked up just now.
fn judge(
    known: &HashMap<String, Arc<Known>>,
    events: &[Publication],
    data: &[Value],
    fresh: bool,
) -> Result<Vec<String>, Vec<(usize, Wrong)>> {
    let mut texts = Vec::with_capacity(events.len());
    let mut wrong = Vec::new();
    for (i, (event, data)) in events.iter().zip(data).enumerate() {
        let none = || (i, Wrong::Type(("name".to_owned(), no_type(&event.name))));
        let Some(known) = known.get(&event.name) else {
            wrong.push(none());
            continue;
        };
        let is_fresh = fresh || known.since.elapsed() < FRESH_FOR;
        let found = match event.version {
            _ if !is_fresh => None,
            0 => known.versions.last_key_value(),
            version => known.versions.get_key_value(&version),
        };
        let Some((version, of_type)) = found else {
            let what = format!("there is no version {} of {}", event.version, event.name);
            wrong.push((i, Wrong::Type(("version".to_owned(), what))));
            continue;
        };
        let violations = of_type.violations(data);
        if violations.is_empty() {
            let data = if event.data.is_empty() { "{}" } else { &event.data };
            texts.push(custom_text(&event.name, *version, data));
            continue;
        }
        let dotted = |(pointer, what): Fault| (schema::dotted(&pointer), what);
        wrong.push((i, Wrong::Data(violations.into_iter().map(dotted).collect())));
    }
    if wrong.is_empty() { Ok(texts) } else { Err(wrong) }
}

fn no_type(name: &str) -> String {
    format!("no type of custom events is named {} here", quoted(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, version: i32, data: &str) -> Publication {
        Publication { name: name.into(), version, data: data.into() }
    }

    fn known(since: Instant) -> HashMap<String, Arc<Known>> {
        let of =
            |schema: &str| Arc::new(OfType { schema: schema.into(), validator: OnceLock::new() });
        let versions = BTreeMap::from([
            (1, of("")),
            (2, of(r#"{"required": ["total"], "properties": {"total": {"type": "integer"}}}"#)),
        ]);
        HashMap::from([("payment.captured".to_owned(), Arc::new(Known { versions, since }))])
    }

    fn judged(
        events: &[Publication],
        since: Instant,
        fresh: bool,
    ) -> Result<Vec<String>, Vec<usize>> {
        let data = read(events).unwrap();
        judge(&known(since), events, &data, fresh)
            .map_err(|wrong| wrong.into_iter().map(|(i, _)| i).collect())
    }

    #[test]
    fn the_latest_version_is_meant_when_none_is_named() {
        let now = Instant::now();
        let text = |events: &[Publication]| judged(events, now, false).unwrap();
        let events =
            [event("payment.captured", 0, r#"{"total": 5}"#), event("payment.captured", 1, "")];
        assert_eq!(text(&events), [r#"payment.captured@2 {"total": 5}"#, "payment.captured@1 {}"]);
        let wrong = [
            event("payment.captured", 0, "{}"),
            event("payment.captured", 3, "{}"),
            event("payment.refunded", 0, "{}"),
            event("payment.captured", 1, "{}"),
        ];
        assert_eq!(judged(&wrong, now, true), Err(vec![0, 1, 2]));
    }

    #[test]
    fn what_was_looked_up_a_while_ago_is_asked_for_again() {
        let Some(before) = Instant::now().checked_sub(FRESH_FOR) else { return };
        let latest = [event("payment.captured", 0, r#"{"total": 5}"#)];
        assert_eq!(judged(&latest, before, false), Err(vec![0]));
        assert!(judged(&latest, before, true).is_ok());
        let named = [event("payment.captured", 2, r#"{"total": 5}"#)];
        assert_eq!(judged(&named, before, false), Err(vec![0]), "its schema may be another");
        assert!(judged(&named, before, true).is_ok());
    }

    #[test]
    fn events_have_bounds_and_their_data_is_an_object() {
        let paths = |events: &[Publication]| -> Vec<String> {
            read(events).unwrap_err().violations.into_iter().map(|(path, _)| path).collect()
        };
        assert_eq!(paths(&[]), ["events"]);
        assert_eq!(paths(&vec![event("a.b", 0, ""); 21]), ["events"]);
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(40 << 10));
        assert_eq!(paths(&[event("a.b", 0, &long), event("a.b", 0, &long)]), ["events"]);
        let wrong =
            [event("a.b", 0, "[]"), event("a.b", 0, "{}"), event("a.b", 0, "{\"a\":\"\\u0000\"}")];
        assert_eq!(paths(&wrong), ["events[0].data", "events[2].data"]);
    }

    #[test]
    fn types_are_forgotten_rather_than_kept_without_end() {
        let types = Types::default();
        for i in 0..NAMES_MAX + 5 {
            let row = EventTypeRow {
                id: 1,
                namespace: "n".into(),
                name: format!("a.b{i}"),
                version: 1,
                schema: String::new(),
                description: String::new(),
                example: String::new(),
                created_at: std::time::SystemTime::UNIX_EPOCH.into(),
            };
            types.keep("n", vec![row]);
        }
        let last = event(&format!("a.b{}", NAMES_MAX + 4), 0, "");
        assert_eq!(types.0.lock().unwrap().len(), NAMES_MAX);
        assert_eq!(types.kept("n", std::slice::from_ref(&last)).len(), 1);
        assert_eq!(types.kept("other", &[last]).len(), 0);
    }

    #[test]
    fn a_schema_that_did_not_change_is_not_compiled_again() {
        let types = Types::default();
        let row = |schema: &str| EventTypeRow {
            id: 1,
            namespace: "n".into(),
            name: "a.b".into(),
            version: 1,
            schema: schema.into(),
            description: String::new(),
            example: String::new(),
            created_at: std::time::SystemTime::UNIX_EPOCH.into(),
        };
        let of = |schema| Arc::clone(&types.keep("n", vec![row(schema)])["a.b"].versions[&1]);
        let first = of("");
        assert!(Arc::ptr_eq(&first, &of("")));
        assert!(!Arc::ptr_eq(&first, &of(r#"{"type": "object"}"#)));
    }
}
