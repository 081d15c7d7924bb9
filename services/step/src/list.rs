//! The steps of a task, page by page.

use prost::Message;
use stepwell_proto::{
    page::{self, place, token},
    refusal::Refusal,
    v1::{ErrorReason, ListStepsRequest, ListStepsResponse, State},
};
use stepwell_store::{StepFilter, Store};
use uuid::Uuid;

use crate::offer::{NAME_RULE, is_name};

const PAGE_MAX: i32 = 1_000;
/// Values of a list of the request.
const VALUES_MAX: usize = 100;

/// A page of steps.
pub(crate) async fn list(
    store: &Store,
    request: ListStepsRequest,
) -> Result<ListStepsResponse, Refusal> {
    let (uid, size, filter) = read(&request).map_err(Refusal::fields)?;
    let list = list_of(&request);
    let after = place(&request.page_token, list)?.and_then(|after| i32::try_from(after).ok());
    let page = store.steps(uid, &filter, after, size, request.include_results).await?;
    let (steps, next) = page.ok_or_else(|| {
        let id = uid.to_string();
        Refusal::new(ErrorReason::TaskNotFound, format!("there is no task {id}"))
            .with("task_id", id)
    })?;
    Ok(ListStepsResponse { steps, next_page_token: token(list, next.map(i64::from)) })
}

/// What the list is, as its page tokens name it.
fn list_of(request: &ListStepsRequest) -> u64 {
    let (page_size, page_token) = (0, String::new());
    let whole = ListStepsRequest { page_size, page_token, ..request.clone() };
    page::list("steps", whole.encode_to_vec())
}

type Fault = (String, String);

fn read(request: &ListStepsRequest) -> Result<(Uuid, i32, StepFilter), Vec<Fault>> {
    let mut faults = Vec::new();
    let uid = Uuid::try_parse(&request.task_id).ok().filter(|_| request.task_id.len() == 36);
    if uid.is_none() {
        faults.push(("task_id".into(), "must be a UUID".into()));
    }
    let size = page::size(request.page_size, PAGE_MAX);
    if let Err(what) = &size {
        faults.push(("page_size".into(), what.clone()));
    }
    let mut states = Vec::new();
    for (i, number) in request.states.iter().take(VALUES_MAX).enumerate() {
        match State::try_from(*number) {
            Ok(State::Unspecified) | Err(_) => {
                faults.push((format!("states[{i}]"), "must be a state".into()));
            }
            Ok(state) => states.push(state),
        }
    }
    for (path, names) in [("names", &request.names), ("handlers", &request.handlers)] {
        let wrong = names.iter().take(VALUES_MAX).enumerate().filter(|(_, name)| !is_name(name));
        faults.extend(wrong.map(|(i, _)| (format!("{path}[{i}]"), NAME_RULE.to_owned())));
    }
    for (path, n) in [
        ("states", request.states.len()),
        ("names", request.names.len()),
        ("handlers", request.handlers.len()),
    ] {
        if n > VALUES_MAX {
            faults.push((path.into(), format!("at most {VALUES_MAX} are allowed")));
        }
    }
    match (uid, size) {
        (Some(uid), Ok(size)) if faults.is_empty() => {
            let (names, handlers) = (request.names.clone(), request.handlers.clone());
            Ok((uid, size, StepFilter { states, names, handlers }))
        }
        _ => Err(faults),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_list_of_steps_is_named() {
        let right = || ListStepsRequest {
            task_id: "0198c0de-4a11-7c52-9e0f-3b1de5a7f001".into(),
            ..ListStepsRequest::default()
        };
        let many = || vec!["x".to_owned(); 101];
        for (request, path) in [
            (ListStepsRequest { task_id: "x".into(), ..right() }, "task_id"),
            (ListStepsRequest { page_size: 1_001, ..right() }, "page_size"),
            (ListStepsRequest { states: vec![1, 0], ..right() }, "states[1]"),
            (ListStepsRequest { states: vec![1; 101], ..right() }, "states"),
            (ListStepsRequest { names: vec!["a b".into()], ..right() }, "names[0]"),
            (ListStepsRequest { names: many(), ..right() }, "names"),
            (ListStepsRequest { handlers: vec![String::new()], ..right() }, "handlers[0]"),
            (ListStepsRequest { handlers: many(), ..right() }, "handlers"),
        ] {
            let faults = read(&request).unwrap_err();
            let paths: Vec<&str> = faults.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(paths, [path], "{request:?}");
        }
        let (_, size, filter) = read(&right()).unwrap();
        assert_eq!((size, filter), (100, StepFilter::default()));
        assert_ne!(list_of(&right()), list_of(&ListStepsRequest { states: vec![1], ..right() }));
        assert_eq!(list_of(&right()), list_of(&ListStepsRequest { page_size: 7, ..right() }));
    }
}
