//! Which events a subscription wants. Pure, but for `check`, which looks up the names of custom types.

use std::collections::HashSet;

use stepwell_proto::{
    catalog::{EVENTS, event_type},
    id::check_correlation_id,
    refusal::Refusal,
    v1::EventFilter,
};
use stepwell_rule::{is_event_name, is_event_prefix};
use stepwell_store::Store;
use uuid::Uuid;

use crate::{
    catalog::{unknown, unknown_among},
    ring::{Piece, Recorded},
};

const NAMES_MAX: usize = 100;
const TASKS_MAX: usize = 1_000;
const TEXT_BYTES_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 128;
const CORRELATION_IDS_MAX: usize = 1_000;

/// A checked filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Names of ours that match, recorded and derived.
    names: HashSet<&'static str>,
    custom: Custom,
    derived: bool,
    tasks: HashSet<Uuid>,
    uids: Vec<Uuid>,
    definitions: HashSet<String>,
    namespaces: HashSet<String>,
    steps: HashSet<String>,
    tags: HashSet<String>,
    correlation_ids: HashSet<String>,
    only_final_failures: bool,
}

/// Custom names that match.
#[derive(Clone, Debug, Default)]
struct Custom {
    all: bool,
    names: HashSet<String>,
    /// Each ends with a dot.
    prefixes: Vec<String>,
}

impl Custom {
    fn wants(&self, name: &str) -> bool {
        self.all && event_type(name).is_none()
            || self.names.contains(name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

impl Filter {
    /// Checks a filter, and that its custom names, and prefixes of such, are registered in one of the
    /// namespaces it wants.
    pub(crate) async fn check(store: &Store, filter: EventFilter) -> Result<Self, Refusal> {
        let read = Self::read(filter.clone())?;
        let Custom { names: exact, prefixes, .. } = &read.custom;
        if exact.is_empty() && prefixes.is_empty() {
            return Ok(read);
        }
        is_known(&filter.names, &store.event_type_names(&filter.namespaces).await?)?;
        Ok(read)
    }

    /// Checks a filter, and that its custom names, and prefixes of such, are among those.
    pub(crate) fn among(filter: EventFilter, known: &[String]) -> Result<Self, Refusal> {
        let names = filter.names.clone();
        let read = Self::read(filter)?;
        is_known(&names, known)?;
        Ok(read)
    }

    /// Checks a filter, but not that its custom names are registered.
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
        bounded("step_names", filter.step_names.len(), NAMES_MAX);
        bounded("tags", filter.tags.len(), NAMES_MAX);
        bounded("correlation_ids", filter.correlation_ids.len(), CORRELATION_IDS_MAX);
        let mut uids = Vec::new();
        for (i, id) in filter.task_ids.iter().enumerate().take(TASKS_MAX) {
            match Uuid::try_parse(id) {
                Ok(uid) => uids.push(uid),
                Err(_) => faults.push((format!("filter.task_ids[{i}]"), "must be a UUID".into())),
            }
        }
        for (path, texts, max) in [
            ("definition_names", &filter.definition_names, TEXT_BYTES_MAX),
            ("namespaces", &filter.namespaces, TEXT_BYTES_MAX),
            ("step_names", &filter.step_names, TEXT_BYTES_MAX),
            ("tags", &filter.tags, TAG_BYTES_MAX),
        ] {
            let is_strange = |text: &String| text.len() > max || text.contains('\0');
            let long = texts.iter().take(NAMES_MAX).enumerate().filter(|(_, t)| is_strange(t));
            let what = format!("at most {max} bytes, without NUL");
            let fault = |i| (format!("filter.{path}[{i}]"), what.clone());
            faults.extend(long.map(|(i, _)| fault(i)));
        }
        for (i, id) in filter.correlation_ids.iter().enumerate().take(CORRELATION_IDS_MAX) {
            if let Err(what) = check_correlation_id(id) {
                faults.push((format!("filter.correlation_ids[{i}]"), what));
            }
        }
        if !faults.is_empty() {
            return Err(Refusal::fields(faults));
        }
        let (names, custom) = names(&filter.names)?;
        let derived = names.iter().any(|n| event_type(n).is_some_and(|e| !e.is_recorded()));
        Ok(Self {
            names,
            custom,
            derived,
            tasks: uids.iter().copied().collect(),
            uids,
            definitions: filter.definition_names.into_iter().collect(),
            namespaces: filter.namespaces.into_iter().collect(),
            steps: filter.step_names.into_iter().collect(),
            tags: filter.tags.into_iter().collect(),
            correlation_ids: filter.correlation_ids.into_iter().collect(),
            only_final_failures: filter.only_final_failures,
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

    /// Whether a recorded event and what is derived from it are about what it wants, whatever their
    /// names and steps are.
    pub(crate) fn wants_about(&self, recorded: &Recorded) -> bool {
        let Recorded { task, definition, said, is_tried_again, .. } = recorded;
        let definition = &definition.definition;
        (self.tasks.is_empty() || self.tasks.contains(task))
            && (self.definitions.is_empty() || self.definitions.contains(&definition.name))
            && (self.namespaces.is_empty() || self.namespaces.contains(&definition.namespace))
            && (self.correlation_ids.is_empty()
                || self.correlation_ids.contains(&*said.correlation_id))
            && (self.tags.is_empty() || said.tags.iter().any(|tag| self.tags.contains(tag)))
            && !(self.only_final_failures && *is_tried_again)
    }

    /// Whether it wants this very event, recorded or derived, of those about what it wants.
    pub(crate) fn wants_one(&self, piece: &Piece) -> bool {
        (self.names.contains(piece.name.as_str()) || self.custom.wants(&piece.name))
            && (self.steps.is_empty() || self.steps.contains(&piece.step_name))
    }
}

/// The names in the catalog that the patterns mean, and the custom ones that they may mean.
fn names(patterns: &[String]) -> Result<(HashSet<&'static str>, Custom), Refusal> {
    let recorded = || EVENTS.iter().filter(|e| e.is_recorded()).map(|e| e.name);
    let mut custom = Custom::default();
    let mut names = HashSet::new();
    if patterns.is_empty() {
        custom.all = true;
        names.extend(recorded());
    }
    for (i, pattern) in patterns.iter().enumerate() {
        match ours(pattern) {
            _ if pattern == "*" => {
                custom.all = true;
                names.extend(recorded());
            }
            meant if !meant.is_empty() => names.extend(meant),
            _ if is_event_name(pattern) => drop(custom.names.insert(pattern.clone())),
            _ => match pattern.strip_suffix('*').filter(|prefix| is_event_prefix(prefix)) {
                Some(prefix) => custom.prefixes.push(prefix.to_owned()),
                None => return Err(unknown(format!("filter.names[{i}]"), pattern)),
            },
        }
    }
    Ok((names, custom))
}

/// The names in the catalog that a pattern means.
fn ours(pattern: &str) -> Vec<&'static str> {
    match pattern.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('.') => {
            EVENTS.iter().map(|e| e.name).filter(|name| name.starts_with(prefix)).collect()
        }
        _ => event_type(pattern).map(|e| e.name).into_iter().collect(),
    }
}

/// Refuses a pattern that means nothing, given the custom names that there are.
fn is_known(patterns: &[String], known: &[String]) -> Result<(), Refusal> {
    for (i, pattern) in patterns.iter().enumerate().filter(|(_, p)| *p != "*") {
        let means_custom = match pattern.strip_suffix('*') {
            Some(prefix) => known.iter().any(|name| name.starts_with(prefix)),
            None => known.contains(pattern),
        };
        if !means_custom && ours(pattern).is_empty() {
            return Err(unknown_among(format!("filter.names[{i}]"), pattern, known));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stepwell_proto::v1::{Definition, ErrorReason, Event, StepFailed};
    use stepwell_store::{Said, StoredDefinition};

    use super::*;
    use crate::ring::Forms;

    fn recorded(event: Event, task: Uuid, definition: &str, said: Said) -> Recorded {
        let definition = StoredDefinition {
            id: 1,
            version: [1, 0, 0],
            definition: Definition { name: definition.into(), ..Definition::default() },
            ..StoredDefinition::default()
        };
        Recorded::new(event, 1, task, &Arc::new(definition), said, Forms::default())
    }

    fn filter(names: &[&str]) -> Result<Filter, Refusal> {
        let names = names.iter().map(|&n| n.to_owned()).collect();
        Filter::read(EventFilter { names, ..EventFilter::default() })
    }

    fn wants(filter: &Filter, name: &str) -> bool {
        let event = Event { name: name.into(), ..Event::default() };
        filter.wants_one(&recorded(event, Uuid::nil(), "d", Said::default()).piece)
    }

    #[test]
    fn everything_means_what_is_recorded_and_the_rest_must_be_named() {
        for all in [filter(&[]).unwrap(), filter(&["*"]).unwrap()] {
            assert!(wants(&all, "step.completed") && !wants(&all, "workflow.step_completed"));
            assert!(!all.wants_derived());
        }
        let steps = filter(&["step.*", "task.failed"]).unwrap();
        assert!(wants(&steps, "step.initialize_requested") && steps.wants_derived());
        assert!(wants(&steps, "task.failed") && !wants(&steps, "task.completed"));
        assert!(filter(&["task.failed", "task.failed"]).is_ok());
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_one_that_was_meant() {
        for (name, meant) in [
            ("step.complete", Some("step.completed")),
            ("task.canceled", Some("task.cancelled")),
            ("step*", None),
            ("step.bogus.*", None),
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
    fn custom_names_are_wanted_by_name_by_prefix_and_with_everything() {
        let known = ["payment.captured".to_owned(), "shop.order.paid".into()];
        for (pattern, captured, paid) in [
            ("*", true, true),
            ("payment.captured", true, false),
            ("payment.*", true, false),
            ("shop.order.*", false, true),
        ] {
            let filter = filter(&[pattern]).unwrap();
            assert_eq!(wants(&filter, "payment.captured"), captured, "{pattern}");
            assert_eq!(wants(&filter, "shop.order.paid"), paid, "{pattern}");
            assert_eq!(wants(&filter, "shop.orders"), pattern == "*", "{pattern}");
            assert!(!wants(&filter, "workflow.step_completed") && !filter.wants_derived());
            assert!(is_known(&[pattern.to_owned()], &known).is_ok(), "{pattern}");
        }
        assert!(wants(&filter(&["payment.*"]).unwrap(), "payment.later"), "one registered later");
        assert!(!wants(&filter(&["payment.captured"]).unwrap(), "step.completed"));
        for (pattern, meant) in
            [("payment.capture", Some("payment.captured")), ("billing.*", None), ("steps.*", None)]
        {
            let patterns = ["task.*".to_owned(), pattern.to_owned()];
            assert!(filter(&["task.*", pattern]).is_ok(), "only the database knows");
            let refusal = is_known(&patterns, &known).unwrap_err();
            assert_eq!(refusal.reason, ErrorReason::EventUnknown);
            assert_eq!(refusal.violations[0].0, "filter.names[1]");
            if meant.is_some() {
                assert_eq!(refusal.metadata.get("suggestion").map(String::as_str), meant);
            }
        }
    }

    #[test]
    fn an_event_must_match_every_list() {
        let uid = Uuid::now_v7();
        let wanted = Filter::read(EventFilter {
            task_ids: vec![uid.to_string().to_uppercase()],
            definition_names: vec!["d".into()],
            correlation_ids: vec!["c".into(), "c2".into()],
            tags: vec!["eu".into(), "us".into()],
            step_names: vec!["s".into()],
            ..EventFilter::default()
        })
        .unwrap();
        let event = |step: &str| Event {
            name: "step.completed".into(),
            step_name: step.into(),
            ..Event::default()
        };
        let wants = |task, definition, correlation_id: &str, step, tags: &[&str]| {
            let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
            let said = Said { correlation_id: correlation_id.into(), tags };
            let recorded = recorded(event(step), task, definition, said);
            wanted.wants_about(&recorded) && wanted.wants_one(&recorded.piece)
        };
        assert!(wants(uid, "d", "c", "s", &["eu"]));
        assert!(wants(uid, "d", "c2", "s", &["asia", "us"]), "any of the tags");
        assert!(!wants(uid, "e", "c", "s", &["eu"]));
        assert!(!wants(Uuid::now_v7(), "d", "c", "s", &["eu"]));
        assert!(!wants(uid, "d", "", "s", &["eu"]));
        assert!(!wants(uid, "d", "c", "s", &["asia"]));
        assert!(!wants(uid, "d", "c", "s", &[]));
        assert!(!wants(uid, "d", "c", "other", &["eu"]));
        assert!(!wants(uid, "d", "c", "", &["eu"]), "it is about the task");
    }

    #[test]
    fn of_failures_only_those_without_a_further_attempt_may_be_wanted() {
        let wanted =
            Filter::read(EventFilter { only_final_failures: true, ..EventFilter::default() });
        let wanted = wanted.unwrap();
        let failed = |r#final| {
            let detail = Some(StepFailed { r#final, ..StepFailed::default() }.into());
            recorded(Event { detail, ..Event::default() }, Uuid::nil(), "d", Said::default())
        };
        assert!(wanted.wants_about(&failed(true)) && !wanted.wants_about(&failed(false)));
        let other = recorded(Event::default(), Uuid::nil(), "d", Said::default());
        assert!(wanted.wants_about(&other), "what is no failure is not touched");
        assert!(Filter::default().wants_about(&failed(false)));
    }

    #[test]
    fn every_fault_of_a_filter_is_named() {
        let refusal = Filter::read(EventFilter {
            names: vec!["*".into(); 101],
            task_ids: vec!["x".into()],
            namespaces: vec!["x".repeat(65)],
            step_names: vec!["x".repeat(64), "x".repeat(65)],
            tags: vec!["x".repeat(129); 2],
            correlation_ids: vec!["fine".into(), "_".into()],
            ..EventFilter::default()
        })
        .unwrap_err();
        let paths: Vec<_> = refusal.violations.into_iter().map(|v| v.0).collect();
        assert_eq!(
            paths,
            [
                "filter.names",
                "filter.task_ids[0]",
                "filter.namespaces[0]",
                "filter.step_names[1]",
                "filter.tags[0]",
                "filter.tags[1]",
                "filter.correlation_ids[1]",
            ]
        );
        let refusal = Filter::read(EventFilter {
            step_names: vec![String::new(); 101],
            tags: vec![String::new(); 101],
            correlation_ids: vec!["c".into(); 1_001],
            ..EventFilter::default()
        })
        .unwrap_err();
        let paths: Vec<_> = refusal.violations.into_iter().map(|v| v.0).collect();
        assert_eq!(paths, ["filter.step_names", "filter.tags", "filter.correlation_ids"]);
    }
}
