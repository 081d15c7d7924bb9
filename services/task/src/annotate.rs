//! Facts that people and programs keep with a task: checked, kept, forgotten.

use std::collections::{BTreeMap, BTreeSet};

use stepwell_proto::{
    refusal::Refusal,
    v1::{AnnotateTaskRequest, ErrorReason},
};
use stepwell_store::{ANNOTATIONS_MAX, Annotated, Note, Once, Store};
use uuid::Uuid;

use crate::{
    rule::{self, Fault},
    service::{task_id, task_not_found},
};

/// Of one fact.
const TEXT_BYTES_MAX: usize = 1024;

/// Keeps facts and forgets others; the task's id.
pub(crate) async fn annotate(store: &Store, request: AnnotateTaskRequest) -> Result<Uuid, Refusal> {
    let uid = task_id(&request.task_id)?;
    let once = Once::of(&request.request_id, &request);
    let AnnotateTaskRequest { set, remove, reason, annotated_by, request_id, .. } = request;
    let note = Note::read(reason, "annotated_by", annotated_by, request_id)?;
    let faults = faults(&set, &remove);
    if !faults.is_empty() {
        return Err(Refusal::fields(rule::bounded(faults)));
    }
    match store.annotate_task(uid, &set, &remove, &note, once.as_ref()).await? {
        Annotated::Done(_) => Ok(uid),
        Annotated::Missing => Err(task_not_found(uid)),
        Annotated::Full => {
            let what = format!("task {uid} would have more than {ANNOTATIONS_MAX} annotations");
            let refusal = Refusal::new(ErrorReason::AnnotationLimit, what);
            Err(refusal.with("task_id", uid.to_string()))
        }
    }
}

/// What is wrong with what is to be kept and forgotten.
fn faults(set: &BTreeMap<String, String>, remove: &[String]) -> Vec<Fault> {
    let mut faults = Vec::new();
    facts("set", set, &mut |path, what| faults.push((path, what)));
    if remove.len() > ANNOTATIONS_MAX {
        faults.push(("remove".into(), format!("at most {ANNOTATIONS_MAX} are allowed")));
    }
    let mut names = BTreeSet::new();
    for (i, name) in remove.iter().take(ANNOTATIONS_MAX).enumerate() {
        let what = match rule::name_fault(name) {
            None if set.contains_key(name) => "stands in `set` too".to_owned(),
            None if !names.insert(name) => "stands here twice".to_owned(),
            None => continue,
            Some(what) => what,
        };
        faults.push((format!("remove[{i}]"), what));
    }
    if faults.is_empty() && set.is_empty() && remove.is_empty() {
        faults.push(("set".into(), "this or `remove` is wanted".into()));
    }
    faults
}

/// What is wrong with facts that stand in the field `path`.
pub(crate) fn facts(
    path: &str,
    facts: &BTreeMap<String, String>,
    fault: &mut impl FnMut(String, String),
) {
    if facts.len() > ANNOTATIONS_MAX {
        fault(path.to_owned(), format!("at most {ANNOTATIONS_MAX} are allowed"));
    }
    for (name, text) in facts.iter().take(ANNOTATIONS_MAX) {
        let at = format!("{path}[{}]", rule::quoted(name));
        if let Some(what) = rule::name_fault(name) {
            fault(at.clone(), format!("its name {what}"));
        }
        if text.len() > TEXT_BYTES_MAX {
            fault(at, format!("has {} bytes; at most {TEXT_BYTES_MAX} are allowed", text.len()));
        } else if text.contains('\0') {
            fault(at, "may not contain NUL".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> BTreeMap<String, String> {
        facts.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
    }

    fn found(set: &BTreeMap<String, String>, remove: &[&str]) -> Vec<String> {
        let remove: Vec<String> = remove.iter().map(|&name| name.to_owned()).collect();
        faults(set, &remove).into_iter().map(|(path, what)| format!("{path} {what}")).collect()
    }

    #[test]
    fn facts_up_to_the_bounds_are_taken_and_each_beyond_is_named() {
        let longest = "n".repeat(64);
        let right = [(longest.as_str(), "x".repeat(1024)), ("a.b/c-d_e", String::new())];
        assert!(found(&map(right), &["gone"]).is_empty());
        let many = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert_eq!(found(&many, &[]), ["set at most 64 are allowed"]);
        let long = "n".repeat(65);
        let wrong = [
            ("", String::new()),
            ("a b", String::new()),
            ("nul", "\0".to_owned()),
            ("text", "x".repeat(1025)),
            (&*long, String::new()),
        ];
        let wrong = found(&map(wrong), &["text", "a b", "two", "two"]);
        assert_eq!(wrong.len(), 8, "{wrong:#?}");
        for what in [
            "is missing",
            "may not contain ' '",
            "may not contain NUL",
            "has 1025 bytes",
            "has 65 bytes",
            "remove[0] stands in `set` too",
            "remove[3] stands here twice",
        ] {
            assert!(wrong.iter().any(|fault| fault.contains(what)), "{what}: {wrong:#?}");
        }
        assert_eq!(found(&map([]), &[]), ["set this or `remove` is wanted"]);
        assert!(found(&map([]), &["gone"]).is_empty());
    }
}
