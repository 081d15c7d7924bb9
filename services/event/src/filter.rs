//! Which events a subscription wants. Pure.

use std::collections::HashSet;

use stepwell_proto::{
    catalog::{EVENTS, event_type},
    refusal::Refusal,
    v1::{Event, EventFilter},
};
use uuid::Uuid;

use crate::catalog::unknown;

const NAMES_MAX: usize = 100;
const TASKS_MAX: usize = 1_000;
const TEXT_BYTES_MAX: usize = 64;

/// A checked filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Names that match, recorded and derived.
    names: HashSet<&'static str>,
    derived: bool,
    tasks: HashSet<String>,
    uids: Vec<Uuid>,
    definitions: HashSet<String>,
    namespaces: HashSet<String>,
}

impl Filter {
    /// Checks a filter.
    pub(crate) fn read(filter: EventFilter) -> Result<Self, Refusal> {
        let mut faults = Vec::new();
        let mut bounded = |path: &str, n: usize, max: usize| {
            if n > max {
                faults.push((format!("filter.{path}"), format!("at most {max} are allowed")));
            }
        };
        bounded("names", filter.names.len(), NAMES_MAX);
        bounded("task_ids", filter.task_ids.len(), TASKS_MAX);
        bounded("definition_names", filter.definition_names.len(), NAMES_MAX);
        bounded("namespaces", filter.namespaces.len(), NAMES_MAX);
        let mut uids = Vec::new();
        for (i, id) in filter.task_ids.iter().enumerate().take(TASKS_MAX) {
            match Uuid::try_parse(id) {
                Ok(uid) => uids.push(uid),
                Err(_) => faults.push((format!("filter.task_ids[{i}]"), "must be a UUID".into())),
            }
        }
        for (path, names) in
            [("definition_names", &filter.definition_names), ("namespaces", &filter.namespaces)]
        {
            for (i, _) in names.iter().enumerate().filter(|(_, name)| name.len() > TEXT_BYTES_MAX) {
                let what = format!("at most {TEXT_BYTES_MAX} bytes");
                faults.push((format!("filter.{path}[{i}]"), what));
            }
        }
        if !faults.is_empty() {
            return Err(Refusal::fields(faults));
        }
        let names = names(&filter.names)?;
        let derived = names.iter().any(|n| event_type(n).is_some_and(|e| !e.is_recorded()));
        Ok(Self {
            names,
            derived,
            tasks: uids.iter().map(Uuid::to_string).collect(),
            uids,
            definitions: filter.definition_names.into_iter().collect(),
            namespaces: filter.namespaces.into_iter().collect(),
        })
    }

    /// The only tasks it wants; empty: all.
    pub(crate) fn tasks(&self) -> &[Uuid] {
        &self.uids
    }

    /// True when it wants events that have no row.
    pub(crate) fn wants_derived(&self) -> bool {
        self.derived
    }

    /// Whether the event is about what it wants, whatever the event's name is.
    pub(crate) fn wants_about(&self, event: &Event) -> bool {
        (self.tasks.is_empty() || self.tasks.contains(&event.task_id))
            && (self.definitions.is_empty() || self.definitions.contains(&event.definition_name))
            && (self.namespaces.is_empty() || self.namespaces.contains(&event.namespace))
    }

    /// Whether it wants events of this name.
    pub(crate) fn wants_name(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

/// The names in the catalog that the patterns mean.
fn names(patterns: &[String]) -> Result<HashSet<&'static str>, Refusal> {
    if patterns.is_empty() {
        return Ok(EVENTS.iter().filter(|e| e.is_recorded()).map(|e| e.name).collect());
    }
    let mut names = HashSet::new();
    for (i, pattern) in patterns.iter().enumerate() {
        let meant: Vec<&'static str> = match pattern.strip_suffix('*') {
            Some("") => EVENTS.iter().filter(|e| e.is_recorded()).map(|e| e.name).collect(),
            Some(prefix) if prefix.ends_with('.') => {
                EVENTS.iter().map(|e| e.name).filter(|name| name.starts_with(prefix)).collect()
            }
            _ => event_type(pattern).map(|e| e.name).into_iter().collect(),
        };
        if meant.is_empty() {
            return Err(unknown(format!("filter.names[{i}]"), pattern));
        }
        names.extend(meant);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::ErrorReason;

    use super::*;

    fn filter(names: &[&str]) -> Result<Filter, Refusal> {
        let names = names.iter().map(|&n| n.to_owned()).collect();
        Filter::read(EventFilter { names, ..EventFilter::default() })
    }

    #[test]
    fn everything_means_what_is_recorded_and_the_rest_must_be_named() {
        for all in [filter(&[]).unwrap(), filter(&["*"]).unwrap()] {
            assert!(all.wants_name("step.completed") && !all.wants_name("workflow.step_completed"));
            assert!(!all.wants_derived());
        }
        let steps = filter(&["step.*", "task.failed"]).unwrap();
        assert!(steps.wants_name("step.initialize_requested") && steps.wants_derived());
        assert!(steps.wants_name("task.failed") && !steps.wants_name("task.completed"));
        assert!(filter(&["task.failed", "task.failed"]).is_ok());
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_one_that_was_meant() {
        for (name, meant) in [
            ("step.complete", Some("step.completed")),
            ("task.canceled", Some("task.cancelled")),
            ("step*", None),
            ("steps.*", None),
            ("", None),
            ("zzz", None),
        ] {
            let refusal = filter(&["task.*", name]).unwrap_err();
            assert_eq!(refusal.reason, ErrorReason::EventUnknown);
            assert_eq!(refusal.violations[0].0, "filter.names[1]");
            if meant.is_some() {
                assert_eq!(refusal.metadata.get("suggestion").map(String::as_str), meant, "{name}");
            }
        }
    }

    #[test]
    fn an_event_must_match_every_list() {
        let uid = Uuid::now_v7();
        let wanted = Filter::read(EventFilter {
            task_ids: vec![uid.to_string().to_uppercase()],
            definition_names: vec!["d".into()],
            ..EventFilter::default()
        })
        .unwrap();
        let event = |task: Uuid, definition: &str| Event {
            task_id: task.to_string(),
            definition_name: definition.into(),
            ..Event::default()
        };
        assert!(wanted.wants_about(&event(uid, "d")));
        assert!(!wanted.wants_about(&event(uid, "e")));
        assert!(!wanted.wants_about(&event(Uuid::now_v7(), "d")));
    }

    #[test]
    fn every_fault_of_a_filter_is_named() {
        let refusal = Filter::read(EventFilter {
            names: vec!["*".into(); 101],
            task_ids: vec!["x".into()],
            namespaces: vec!["x".repeat(65)],
            ..EventFilter::default()
        })
        .unwrap_err();
        let paths: Vec<_> = refusal.violations.into_iter().map(|v| v.0).collect();
        assert_eq!(paths, ["filter.names", "filter.task_ids[0]", "filter.namespaces[0]"]);
    }
}
