//! Tasks that ended long ago: exported in parts, and removed one by one.

use std::{collections::HashSet, time::Duration};

use prost::Message;
use stepwell_proto::{
    id::ExportToken,
    page,
    refusal::Refusal,
    v1::{
        ErrorReason, ExportTasksRequest, ExportTasksResponse, RemoveTasksRequest,
        RemoveTasksResponse, RemoveTasksResult, State,
    },
};
use stepwell_store::{ExportPlace, Exported, RemovedTask, Store, ToRemove};

use crate::{filter, plan::uid, rule};

/// Most tasks that are removed by one call.
const REMOVED_MAX: usize = 500;
/// Most states that are named by one call.
const STATES_MAX: usize = 100;
/// States in which a task has ended.
const ENDED: [State; 4] =
    [State::Complete, State::Error, State::Cancelled, State::ResolvedManually];

/// A page of parts of tasks.
pub(crate) async fn export(
    store: &Store,
    request: ExportTasksRequest,
) -> Result<ExportTasksResponse, Refusal> {
    let list = list_of(&request);
    let wanted = read(&request)?;
    let place = match ExportToken::decode(&request.page_token) {
        Some(token) if token.list == list => {
            let begun = token.begun.then_some((token.step, token.position));
            ExportPlace { task: token.task, begun }
        }
        Some(_) => return Err(page::strange("belongs to another list")),
        None if request.page_token.is_empty() => ExportPlace::default(),
        None => return Err(page::strange("not one that was received")),
    };
    let (parts, next) = store.export(&wanted, place).await?;
    let token = |next: ExportPlace| {
        let (step, position) = next.begun.unwrap_or_default();
        let begun = next.begun.is_some();
        ExportToken { list, task: next.task, begun, step, position }.encode()
    };
    Ok(ExportTasksResponse { parts, next_page_token: next.map(token).unwrap_or_default() })
}

/// What the list is, as its page tokens name it.
fn list_of(request: &ExportTasksRequest) -> u64 {
    let whole = ExportTasksRequest { page_token: String::new(), ..request.clone() };
    page::list("export", whole.encode_to_vec())
}

fn read(request: &ExportTasksRequest) -> Result<Exported, Refusal> {
    let mut faults = Vec::new();
    if !request.namespace.is_empty() {
        faults.extend(rule::name_fault(&request.namespace).map(|what| ("namespace".into(), what)));
    }
    let mut states = Vec::new();
    for (i, state) in request.states.iter().enumerate().take(STATES_MAX) {
        match State::try_from(*state) {
            Ok(state) if ENDED.contains(&state) => states.push(state),
            _ => {
                let what = "must be complete, error, cancelled or resolved_manually";
                faults.push((format!("states[{i}]"), what.into()));
            }
        }
    }
    if request.states.len() > STATES_MAX {
        faults.push(("states".into(), format!("at most {STATES_MAX} are allowed")));
    }
    if request.states.is_empty() {
        states = vec![State::Complete, State::Cancelled, State::ResolvedManually];
    }
    let age = match &request.older_than {
        None => {
            faults.push(("older_than".into(), "is missing".into()));
            Duration::ZERO
        }
        Some(age) => stepwell_proto::time::duration(age).unwrap_or_else(|| {
            faults.push(("older_than".into(), "0 to ten years".into()));
            Duration::ZERO
        }),
    };
    if !faults.is_empty() {
        return Err(Refusal::fields(rule::bounded(faults)));
    }
    let events = !request.without_events;
    Ok(Exported { age, states, namespace: request.namespace.clone(), events })
}

/// Removes tasks.
pub(crate) async fn remove(
    store: &Store,
    request: RemoveTasksRequest,
) -> Result<RemoveTasksResponse, Refusal> {
    let tasks = read_removed(&request).map_err(|faults| Refusal::fields(rule::bounded(faults)))?;
    let became = store.remove_named(&tasks, request.in_error).await?;
    let removed = became.iter().filter(|of| **of == RemovedTask::Removed).count();
    let results = tasks.iter().zip(&became).map(|(task, became)| {
        let task_id = task.uid.to_string();
        let refusal = match became {
            RemovedTask::Removed | RemovedTask::Missing => None,
            RemovedTask::Left(state) => {
                let word = state.word();
                let what = format!("task {task_id} is {word}, or ended otherwise, and was left");
                let refusal = Refusal::new(ErrorReason::TaskNotRemovable, what)
                    .with("task_id", &*task_id)
                    .with("state", word);
                Some(refusal.into())
            }
        };
        RemoveTasksResult { task_id, removed: refusal.is_none(), refusal }
    });
    Ok(RemoveTasksResponse {
        results: results.collect(),
        removed_tasks: i32::try_from(removed).unwrap_or(i32::MAX),
    })
}

fn read_removed(request: &RemoveTasksRequest) -> Result<Vec<ToRemove>, Vec<rule::Fault>> {
    if !(1..=REMOVED_MAX).contains(&request.tasks.len()) {
        return Err(vec![("tasks".into(), format!("1 to {REMOVED_MAX} are wanted"))]);
    }
    let (mut faults, mut tasks, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for (i, task) in request.tasks.iter().enumerate() {
        let mut fault =
            |path: &str, what: String| faults.push((format!("tasks[{i}].{path}"), what));
        let state = match State::try_from(task.state) {
            Ok(State::Unspecified) => None,
            Ok(state) if ENDED.contains(&state) => Some(state),
            _ => {
                fault("state", "must be complete, error, cancelled or resolved_manually".into());
                None
            }
        };
        let ended = task.end_time.and_then(|time| {
            let read = filter::time_of(time);
            if read.is_none() {
                fault("end_time", "must be a time from 1970 to 9999".into());
            }
            read
        });
        match uid(&task.task_id) {
            Ok(uid) if seen.insert(uid) => tasks.push(ToRemove { uid, state, ended }),
            Ok(_) => fault("task_id", "stands twice".into()),
            Err(what) => fault("task_id", what),
        }
    }
    if faults.is_empty() { Ok(tasks) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::TaskToRemove;

    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn a_wrong_question_about_what_ended_long_ago_is_refused_with_its_field() {
        let request = || ExportTasksRequest { older_than: seconds(0), ..Default::default() };
        let whole = read(&request()).unwrap();
        assert_eq!(whole.states, [State::Complete, State::Cancelled, State::ResolvedManually]);
        for (request, field) in [
            (ExportTasksRequest::default(), "older_than"),
            (ExportTasksRequest { older_than: seconds(-1), ..request() }, "older_than"),
            (ExportTasksRequest { states: vec![1], ..request() }, "states[0]"),
            (ExportTasksRequest { states: vec![3, 9], ..request() }, "states[1]"),
            (ExportTasksRequest { states: vec![3; 101], ..request() }, "states"),
            (ExportTasksRequest { namespace: "a b".into(), ..request() }, "namespace"),
        ] {
            assert_eq!(read(&request).unwrap_err().violations[0].0, field);
        }
        let token = ExportTasksRequest { page_token: "x".into(), ..request() };
        assert_eq!(list_of(&request()), list_of(&token), "whatever page it is");
        let other = ExportTasksRequest { without_events: true, ..request() };
        assert_ne!(list_of(&request()), list_of(&other));
    }

    #[test]
    fn what_is_to_be_removed_is_named_once_and_checked() {
        let id = "0198c0de-4a11-7c52-9e0f-3b1de5a7f001";
        let task = |id: &str| TaskToRemove { task_id: id.into(), ..TaskToRemove::default() };
        let request = |tasks: Vec<TaskToRemove>| RemoveTasksRequest { tasks, in_error: false };
        assert_eq!(read_removed(&request(vec![task(id)])).unwrap().len(), 1);
        let end_time = Some(prost_types::Timestamp { seconds: -1, nanos: 0 });
        for (tasks, field) in [
            (vec![], "tasks"),
            (vec![task(id); 501], "tasks"),
            (vec![task("seven")], "tasks[0].task_id"),
            (vec![task(id), task(id)], "tasks[1].task_id"),
            (vec![TaskToRemove { state: 1, ..task(id) }], "tasks[0].state"),
            (vec![TaskToRemove { end_time, ..task(id) }], "tasks[0].end_time"),
        ] {
            assert_eq!(read_removed(&request(tasks)).unwrap_err()[0].0, field);
        }
    }
}
