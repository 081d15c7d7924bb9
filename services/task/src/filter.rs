//! Filters over tasks as callers send them: checked, and as the store reads them. Pure.

use chrono::{DateTime, Datelike, Utc};
use sha2::{Digest, Sha256};
use stepwell_proto::v1::{State, TaskFilter};
use stepwell_store::Filter;

use crate::rule::{self, Fault};

/// Most values of a list.
pub(crate) const VALUES_MAX: usize = 100;
const TAG_BYTES_MAX: usize = 128;
const TEXT_BYTES_MAX: usize = 256;

/// The filter, or what is wrong with it.
pub(crate) fn read(sent: TaskFilter) -> Result<Filter, Vec<Fault>> {
    let mut faults = Vec::new();
    for (path, list) in
        [("namespaces", &sent.namespaces), ("definition_names", &sent.definition_names)]
    {
        each(&mut faults, path, list, |name| rule::name_fault(name));
    }
    each(&mut faults, "definition_versions", &sent.definition_versions, |text| {
        rule::version(text).err()
    });
    each(&mut faults, "states", &sent.states, |state| match State::try_from(*state) {
        Ok(State::Unspecified) | Err(_) => Some("must be a state".to_owned()),
        Ok(_) => None,
    });
    for (path, list, max) in [
        ("tags", &sent.tags, TAG_BYTES_MAX),
        ("initiators", &sent.initiators, TEXT_BYTES_MAX),
        ("source_systems", &sent.source_systems, TEXT_BYTES_MAX),
    ] {
        each(&mut faults, path, list, |text| text_fault(text, max));
    }
    let created_after = time(&mut faults, "created_after", sent.created_after);
    let created_before = time(&mut faults, "created_before", sent.created_before);
    if created_after.zip(created_before).is_some_and(|(after, before)| after >= before) {
        faults.push(("filter.created_before".into(), "must be later than created_after".into()));
    }
    if !faults.is_empty() {
        return Err(rule::bounded(faults));
    }
    Ok(Filter {
        namespaces: sent.namespaces,
        definition_names: sent.definition_names,
        definition_versions: sent.definition_versions,
        states: sent.states,
        tags: sent.tags,
        created_after,
        created_before,
        initiators: sent.initiators,
        source_systems: sent.source_systems,
    })
}

/// What a list is, as its page tokens name it.
pub(crate) fn list_of(what: &str, filter: &str) -> u64 {
    let hash = Sha256::new().chain_update(what).chain_update([0]).chain_update(filter).finalize();
    u64::from_be_bytes(hash[..8].try_into().expect("32 bytes"))
}

fn each<T>(faults: &mut Vec<Fault>, path: &str, list: &[T], fault: impl Fn(&T) -> Option<String>) {
    if list.len() > VALUES_MAX {
        faults.push((format!("filter.{path}"), format!("at most {VALUES_MAX} are allowed")));
    }
    let found = list.iter().take(VALUES_MAX).enumerate();
    faults.extend(
        found.filter_map(|(i, value)| Some((format!("filter.{path}[{i}]"), fault(value)?))),
    );
}

fn text_fault(text: &str, max: usize) -> Option<String> {
    (text.is_empty() || text.len() > max || text.contains('\0'))
        .then(|| format!("1 to {max} bytes, without NUL"))
}

fn time(
    faults: &mut Vec<Fault>,
    path: &str,
    sent: Option<prost_types::Timestamp>,
) -> Option<DateTime<Utc>> {
    let time = time_of(sent?);
    if time.is_none() {
        faults.push((format!("filter.{path}"), "must be a time from 1970 to 9999".into()));
    }
    time
}

/// A time to the microsecond; none: it is not from 1970 to 9999.
pub(crate) fn time_of(sent: prost_types::Timestamp) -> Option<DateTime<Utc>> {
    let nanos = u32::try_from(sent.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    DateTime::from_timestamp(sent.seconds, nanos / 1000 * 1000)
        .filter(|time| (1970..=9999).contains(&time.year()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos })
    }

    #[test]
    fn every_fault_of_a_filter_over_tasks_is_named() {
        let many = || vec!["x".to_owned(); 101];
        let filter = TaskFilter::default;
        for (sent, path) in [
            (TaskFilter { namespaces: vec!["a b".into()], ..filter() }, "filter.namespaces[0]"),
            (TaskFilter { namespaces: many(), ..filter() }, "filter.namespaces"),
            (TaskFilter { definition_names: many(), ..filter() }, "filter.definition_names"),
            (
                TaskFilter { definition_names: vec!["a".into(), String::new()], ..filter() },
                "filter.definition_names[1]",
            ),
            (
                TaskFilter { definition_versions: vec!["1.0".into()], ..filter() },
                "filter.definition_versions[0]",
            ),
            (TaskFilter { states: vec![0], ..filter() }, "filter.states[0]"),
            (TaskFilter { states: vec![1, 7], ..filter() }, "filter.states[1]"),
            (TaskFilter { states: vec![1; 101], ..filter() }, "filter.states"),
            (TaskFilter { tags: vec!["x".repeat(129)], ..filter() }, "filter.tags[0]"),
            (TaskFilter { tags: many(), ..filter() }, "filter.tags"),
            (TaskFilter { initiators: vec!["\0".into()], ..filter() }, "filter.initiators[0]"),
            (
                TaskFilter { source_systems: vec!["x".repeat(257)], ..filter() },
                "filter.source_systems[0]",
            ),
            (TaskFilter { created_after: at(-1, 0), ..filter() }, "filter.created_after"),
            (TaskFilter { created_before: at(0, -1), ..filter() }, "filter.created_before"),
            (TaskFilter { created_before: at(i64::MAX, 0), ..filter() }, "filter.created_before"),
            (
                TaskFilter { created_after: at(5, 0), created_before: at(5, 999), ..filter() },
                "filter.created_before",
            ),
        ] {
            let faults = read(sent.clone()).unwrap_err();
            let paths: Vec<&str> = faults.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(paths, [path], "{sent:?}");
        }
        let flood = TaskFilter { tags: vec![String::new(); 100], states: vec![9; 100], ..filter() };
        assert_eq!(read(flood).unwrap_err().len(), rule::FAULTS_MAX + 1);
        assert_eq!(read(filter()), Ok(Filter::default()));
    }

    #[test]
    fn a_list_is_told_by_what_is_listed_and_by_its_filter() {
        assert_eq!(list_of("tasks", "{}"), list_of("tasks", "{}"));
        assert_ne!(list_of("tasks", "{}"), list_of("operations", "{}"));
        assert_ne!(list_of("tasks", "{}"), list_of("tasks", "[]"));
    }
}
