//! Custom events: their types, beside those of the catalog, and publishing about a task.

use stepwell_proto::{
    refusal::Refusal,
    v1::{
        ErrorReason, GetEventTypeRequest, GetEventTypeResponse, ListEventTypesRequest,
        ListEventTypesResponse, PublishEventsRequest, PublishEventsResponse,
        RegisterEventTypeRequest, RegisterEventTypeResponse,
    },
};
use stepwell_rule::{
    NAMESPACE_DEFAULT, Types, bounded, check_event_type, is_event_name, judge, name_fault, quoted,
    suggestion,
};
use stepwell_store::{
    Once, PublishedAbout, Store, StoredDefinition, TypesWanted, request_id_fault,
};
use uuid::Uuid;

use crate::{
    catalog::{self, registered, unknown_among},
    service::task_not_found,
};

/// A page of the types that fit.
pub(crate) async fn list(
    store: &Store,
    request: &ListEventTypesRequest,
) -> Result<ListEventTypesResponse, Refusal> {
    let page = catalog::Page::begin(request)?;
    let Some((after, max)) = page.custom() else { return Ok(page.end(Vec::new())) };
    let search = request.search.to_lowercase();
    let wanted = TypesWanted {
        namespace: &request.namespace,
        prefix: &request.prefix,
        search: &search,
        after,
    };
    Ok(page.end(store.list_event_types(wanted, max).await?))
}

/// One type.
pub(crate) async fn get(
    store: &Store,
    request: GetEventTypeRequest,
) -> Result<GetEventTypeResponse, Refusal> {
    let GetEventTypeRequest { name, namespace, version } = request;
    if let Some(found) = catalog::get(&name) {
        return Ok(found);
    }
    let namespace = or_default(namespace);
    if let Some(what) = name_fault(&namespace) {
        return Err(Refusal::field("namespace", what));
    }
    // What is no name has no type, and Postgres may not even take it.
    let names: Vec<&str> =
        Some(name.as_str()).filter(|name| is_event_name(name)).into_iter().collect();
    let rows = store.event_types(&namespace, &names).await?;
    let is_meant = |row: &stepwell_store::EventTypeRow| version == 0 || row.version == version;
    if let Some(row) = rows.into_iter().rev().find(is_meant) {
        return Ok(GetEventTypeResponse { event_type: Some(registered(row)) });
    }
    let mut known = store.event_type_names(std::slice::from_ref(&namespace)).await?;
    if known.contains(&name) {
        let what = format!("there is no version {version} of {name}");
        let refusal = Refusal::new(ErrorReason::EventUnknown, &what).with("name", name);
        return Err(refusal.with_violations(vec![("version".to_owned(), what)]));
    }
    known.retain(|known| *known != name);
    Err(unknown_among("name".into(), &name, &known))
}

/// Registers a type.
pub(crate) async fn register(
    store: &Store,
    request: RegisterEventTypeRequest,
) -> Result<RegisterEventTypeResponse, Refusal> {
    let namespace = or_default(request.namespace);
    let mut faults = Vec::new();
    faults.extend(name_fault(&namespace).map(|what| ("namespace".to_owned(), what)));
    let mut spec = request.event_type.unwrap_or_default();
    check_event_type("event_type", &mut spec, &mut faults);
    if !faults.is_empty() {
        return Err(Refusal::fields(bounded(faults)));
    }
    let (row, already_existed) =
        store.register_event_type(&namespace, &spec, judge).await.map_err(|error| {
            // What the judge says of the type is said of its field here.
            let mut refusal = Refusal::from(error);
            refusal
                .violations
                .iter_mut()
                .for_each(|(path, _)| *path = format!("event_type.{path}"));
            refusal
        })?;
    Ok(RegisterEventTypeResponse { event_type: Some(registered(row)), already_existed })
}

/// Publishes events about a task.
pub(crate) async fn publish(
    store: &Store,
    types: &Types,
    request: &PublishEventsRequest,
) -> Result<PublishEventsResponse, Refusal> {
    if let Some(fault) = request_id_fault(&request.request_id) {
        return Err(Refusal::fields(vec![fault]));
    }
    let uid = Uuid::try_parse(&request.task_id)
        .map_err(|_| Refusal::field("task_id", "must be a UUID"))?;
    let definition = store.definition_of_task(uid).await?.ok_or_else(|| task_not_found(uid))?;
    let number = number(&definition, &request.step_name)?;
    let events = types.check(store, &definition.definition.namespace, &request.events).await?;
    let once = Once::of(&request.request_id, request);
    match store.publish_about(uid, number, &events, once.as_ref()).await? {
        PublishedAbout::At { position, before } => {
            Ok(PublishEventsResponse { first_position: position, already_published: before })
        }
        // It was removed meanwhile.
        PublishedAbout::NoTask | PublishedAbout::NoStep => Err(task_not_found(uid)),
    }
}

/// The number of the step with this name; none: the task as a whole is meant.
fn number(stored: &StoredDefinition, name: &str) -> Result<Option<i32>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    let names = || stored.definition.steps.iter().map(|step| step.name.as_str());
    match names().zip(0..).find(|(step, _)| *step == name) {
        Some((_, number)) => Ok(Some(number)),
        None => {
            let hint = suggestion(name, names().take(1_000));
            let what = format!("the task has no step {}{hint}", quoted(name));
            Err(Refusal::field("step_name", what))
        }
    }
}

fn or_default(namespace: String) -> String {
    if namespace.is_empty() { NAMESPACE_DEFAULT.to_owned() } else { namespace }
}
