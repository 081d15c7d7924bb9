//! What became of a task and its steps: transitions page by page, and in figures.

use chrono::{DateTime, Utc};
use prost::Message;
use stepwell_proto::{
    id::step_id,
    page::{self, place, token},
    refusal::Refusal,
    v1::{
        ErrorReason, GetTransitionStatisticsRequest, GetTransitionStatisticsResponse,
        ListTransitionsRequest, ListTransitionsResponse, State, TransitionScope,
    },
};
use stepwell_store::{Store, Transitions};
use uuid::Uuid;

use crate::{bulk::page_size, filter::time_of, plan::uid, rule::Fault, service::task_not_found};

const PAGE_MAX: i32 = 1_000;
/// States there are.
const STATES_MAX: usize = 6;

/// A page of transitions.
pub(crate) async fn list(
    store: &Store,
    request: ListTransitionsRequest,
) -> Result<ListTransitionsResponse, Refusal> {
    let (uid, which) = read(&request)?;
    let size = page_size(request.page_size, PAGE_MAX)?;
    let (page_size, page_token) = (0, String::new());
    let whole = ListTransitionsRequest { page_size, page_token, ..request.clone() };
    let list = page::list("transitions", whole.encode_to_vec());
    let beyond = place(&request.page_token, list)?;
    let page = store.transitions(uid, &which, beyond, size).await?;
    let page = page.ok_or_else(|| not_found(uid, which.step))?;
    Ok(ListTransitionsResponse {
        transitions: page.transitions,
        next_page_token: token(list, page.next),
        complete: page.complete,
        kept_from: page.kept_from.filter(|_| !page.complete).map(stepwell_store::timestamp),
    })
}

/// All of them in figures.
pub(crate) async fn statistics(
    store: &Store,
    request: GetTransitionStatisticsRequest,
) -> Result<GetTransitionStatisticsResponse, Refusal> {
    let TransitionScope { task_id: id, step_number, only_task } = request.scope.unwrap_or_default();
    let mut faults = Vec::new();
    let uid = scope(&mut faults, &id, step_number, only_task);
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    let statistics = store.transition_statistics(uid, step_number, only_task).await?;
    statistics.ok_or_else(|| not_found(uid, step_number))
}

fn not_found(task: Uuid, step: Option<i32>) -> Refusal {
    let Some(number) = step else { return task_not_found(task) };
    let id = step_id(&task.to_string(), number);
    Refusal::new(ErrorReason::StepNotFound, format!("there is no step {id}")).with("step_id", id)
}

/// What is asked for, or what is wrong with it.
fn read(request: &ListTransitionsRequest) -> Result<(Uuid, Transitions), Refusal> {
    let mut faults = Vec::new();
    let TransitionScope { task_id: id, step_number, only_task } =
        request.scope.clone().unwrap_or_default();
    let uid = scope(&mut faults, &id, step_number, only_task);
    if request.to_states.len() > STATES_MAX {
        faults.push(("to_states".into(), format!("at most {STATES_MAX} are allowed")));
    }
    let mut to_states = Vec::new();
    for (i, number) in request.to_states.iter().take(STATES_MAX).enumerate() {
        match State::try_from(*number) {
            Ok(State::Unspecified) | Err(_) => {
                faults.push((format!("to_states[{i}]"), "must be a state".into()));
            }
            Ok(state) => to_states.push(state),
        }
    }
    if request.attempt < 0 {
        faults.push(("attempt".into(), "may not be negative".into()));
    }
    let from = time(&mut faults, "from_time", request.from_time);
    let until = time(&mut faults, "until_time", request.until_time);
    if from.zip(until).is_some_and(|(from, until)| from >= until) {
        faults.push(("until_time".into(), "must be later than from_time".into()));
    }
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    let which = Transitions {
        step: step_number,
        only_task,
        to_states,
        attempt: (request.attempt > 0).then_some(request.attempt),
        from,
        until,
        changes: request.include_changes,
        newest_first: request.newest_first,
    };
    Ok((uid, which))
}

fn scope(faults: &mut Vec<Fault>, id: &str, step: Option<i32>, only_task: bool) -> Uuid {
    if step.is_some_and(|number| number < 0) {
        faults.push(("scope.step_number".into(), "may not be negative".into()));
    }
    if step.is_some() && only_task {
        faults.push(("scope.only_task".into(), "may not stand beside `step_number`".into()));
    }
    uid(id).unwrap_or_else(|what| {
        faults.push(("scope.task_id".into(), what));
        Uuid::nil()
    })
}

fn time(
    faults: &mut Vec<Fault>,
    path: &str,
    sent: Option<prost_types::Timestamp>,
) -> Option<DateTime<Utc>> {
    let time = time_of(sent?);
    if time.is_none() {
        faults.push((path.to_owned(), "must be a time from 1970 to 9999".into()));
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c0de-4a11-7c52-9e0f-3b1de5a7f001";

    fn of(id: &str, step_number: Option<i32>, only_task: bool) -> ListTransitionsRequest {
        let scope = Some(TransitionScope { task_id: id.into(), step_number, only_task });
        ListTransitionsRequest { scope, ..ListTransitionsRequest::default() }
    }

    #[test]
    fn every_fault_of_a_question_about_transitions_is_named() {
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let right = || of(ID, None, false);
        for (request, path) in [
            (ListTransitionsRequest::default(), "scope.task_id"),
            (of("x", None, false), "scope.task_id"),
            (of(ID, Some(-1), false), "scope.step_number"),
            (of(ID, Some(1), true), "scope.only_task"),
            (ListTransitionsRequest { to_states: vec![4, 0], ..right() }, "to_states[1]"),
            (ListTransitionsRequest { to_states: vec![7], ..right() }, "to_states[0]"),
            (ListTransitionsRequest { to_states: vec![1; 7], ..right() }, "to_states"),
            (ListTransitionsRequest { attempt: -1, ..right() }, "attempt"),
            (ListTransitionsRequest { from_time: at(-1, 0), ..right() }, "from_time"),
            (ListTransitionsRequest { until_time: at(0, -1), ..right() }, "until_time"),
            (
                ListTransitionsRequest { from_time: at(5, 0), until_time: at(5, 0), ..right() },
                "until_time",
            ),
        ] {
            let refusal = read(&request).unwrap_err();
            let paths: Vec<&str> = refusal.violations.iter().map(|(path, _)| &**path).collect();
            assert_eq!(paths, [path], "{request:?}");
        }
        let (uid, which) = read(&ListTransitionsRequest { attempt: 2, ..right() }).unwrap();
        let wanted = Transitions { attempt: Some(2), ..Transitions::default() };
        assert_eq!((uid.to_string().as_str(), which), (ID, wanted));
    }
}
