//! Pauses of definitions and of namespaces.

use stepwell_proto::{
    page,
    refusal::Refusal,
    v1::{ErrorReason, ListPausesRequest, ListPausesResponse},
};
use stepwell_store::{Note, Store};

use crate::{
    bulk::page_size,
    rule::{self, NAMESPACE_DEFAULT},
};

const PAGE_MAX: i32 = 1000;

/// Pauses definitions, or lets them go on. Answers how many the pause covers, and whether there was nothing
/// to do.
pub(crate) async fn set(
    store: &Store,
    namespace: String,
    name: String,
    paused: bool,
    note: &Note,
) -> Result<(i32, bool), Refusal> {
    let namespace = if namespace.is_empty() { NAMESPACE_DEFAULT.to_owned() } else { namespace };
    let fault = |path: &str, text: &str| Some((path.to_owned(), rule::name_fault(text)?));
    let mut faults: Vec<_> = fault("namespace", &namespace).into_iter().collect();
    if !name.is_empty() {
        faults.extend(fault("definition_name", &name));
    }
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    let answer = store.pause_definitions(&namespace, &name, paused, note).await?;
    if answer.covered == 0 && !answer.was_paused {
        let message = match name.as_str() {
            "" => format!("there is no definition in namespace {namespace}"),
            name => format!("there is no definition {name} in namespace {namespace}"),
        };
        return Err(Refusal::new(ErrorReason::DefinitionNotFound, message)
            .with("namespace", namespace)
            .with("definition", name));
    }
    let already_in_state = answer.was_paused == paused;
    if !already_in_state {
        tracing::info!(
            namespace,
            definition = name,
            covered = answer.covered,
            by = ?note.by,
            reason = ?note.reason,
            "{}",
            if paused { "definitions paused" } else { "definitions resumed" }
        );
    }
    Ok((answer.covered, already_in_state))
}

/// What is paused, page by page.
pub(crate) async fn list(
    store: &Store,
    request: &ListPausesRequest,
) -> Result<ListPausesResponse, Refusal> {
    let namespace = &request.namespace;
    if !namespace.is_empty()
        && let Some(what) = rule::name_fault(namespace)
    {
        return Err(Refusal::field("namespace", what));
    }
    let size = page_size(request.page_size, PAGE_MAX)?;
    // A token is where a page ended. Neither name has a colon.
    let is_name = |text: &str| rule::name_fault(text).is_none();
    let after = match request.page_token.split_once(':') {
        None if request.page_token.is_empty() => ("", ""),
        Some((namespace, name)) if is_name(namespace) && (name.is_empty() || is_name(name)) => {
            (namespace, name)
        }
        _ => return Err(page::strange("not one that was received")),
    };
    let (pauses, more) = store.pauses(namespace, after, size).await?;
    let last = pauses.last().filter(|_| more);
    let next_page_token =
        last.map(|last| format!("{}:{}", last.namespace, last.definition_name)).unwrap_or_default();
    Ok(ListPausesResponse { pauses, next_page_token })
}
