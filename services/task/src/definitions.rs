//! Which definitions there are, and how their steps hang together.

use stepwell_proto::{
    page,
    refusal::Refusal,
    v1::{
        DefinitionGraph, DefinitionGraphStep, ListDefinitionsRequest, ListDefinitionsResponse,
        ListNamespacesRequest, ListNamespacesResponse,
    },
};
use stepwell_store::{DefinitionPlace, Store, StoredDefinition, Wanted};

use crate::{
    bulk::page_size,
    graph::{drawn, number},
    rule::{self, NAMESPACE_DEFAULT},
};

const PAGE_MAX: i32 = 1000;

/// The definition that a request names.
pub(crate) fn wanted(namespace: &str, name: &str, version: &str) -> Result<Wanted, Refusal> {
    let namespace = if namespace.is_empty() { NAMESPACE_DEFAULT } else { namespace };
    let mut faults = Vec::new();
    for (path, name) in [("namespace", namespace), ("name", name)] {
        faults.extend(rule::name_fault(name).map(|what| (path.to_owned(), what)));
    }
    let number = match version {
        "" => None,
        text => rule::version(text).map_err(|what| faults.push(("version".to_owned(), what))).ok(),
    };
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    Ok(Wanted { namespace: namespace.to_owned(), name: name.to_owned(), version: number })
}

/// Definitions, page by page.
pub(crate) async fn list(
    store: &Store,
    request: &ListDefinitionsRequest,
) -> Result<ListDefinitionsResponse, Refusal> {
    let mut faults = Vec::new();
    for (path, name) in [("namespace", &request.namespace), ("name", &request.name)] {
        let fault = (!name.is_empty()).then(|| rule::name_fault(name)).flatten();
        faults.extend(fault.map(|what| (path.to_owned(), what)));
    }
    if !faults.is_empty() {
        return Err(Refusal::fields(faults));
    }
    let size = page_size(request.page_size, PAGE_MAX)?;
    let after = place(&request.page_token)?;
    let (definitions, more) = store
        .list_definitions(&request.namespace, &request.name, request.all_versions, &after, size)
        .await?;
    let last = definitions.last().filter(|_| more);
    let next_page_token = last
        .map(|last| [&*last.namespace, &last.name, &last.version].join(":"))
        .unwrap_or_default();
    Ok(ListDefinitionsResponse { definitions, next_page_token })
}

/// A token is where a page ended. No name has a colon.
fn place(token: &str) -> Result<DefinitionPlace, Refusal> {
    if token.is_empty() {
        return Ok(DefinitionPlace::default());
    }
    let mut parts = token.split(':');
    let mut name = || parts.next().filter(|name| rule::name_fault(name).is_none());
    if let (Some(namespace), Some(name)) = (name(), name())
        && let Some(Ok(version)) = parts.next().map(rule::version)
        && parts.next().is_none()
    {
        return Ok(DefinitionPlace { namespace: namespace.into(), name: name.into(), version });
    }
    Err(page::strange("not one that was received"))
}

/// Namespaces, page by page.
pub(crate) async fn namespaces(
    store: &Store,
    request: &ListNamespacesRequest,
) -> Result<ListNamespacesResponse, Refusal> {
    let size = page_size(request.page_size, PAGE_MAX)?;
    let after = &request.page_token;
    if !after.is_empty() && rule::name_fault(after).is_some() {
        return Err(page::strange("not one that was received"));
    }
    let (namespaces, more) = store.list_namespaces(after, size).await?;
    let last = namespaces.last().filter(|_| more);
    let next_page_token = last.map(|last| last.namespace.clone()).unwrap_or_default();
    Ok(ListNamespacesResponse { namespaces, next_page_token })
}

/// What of a definition depends on what.
pub(crate) fn graph(stored: &StoredDefinition) -> DefinitionGraph {
    let (depths, drawing) = drawn(stored);
    let definition = &stored.definition;
    let steps = definition.steps.iter().zip(&drawing.parents).zip(&stored.children).enumerate();
    let steps: Vec<DefinitionGraphStep> = steps
        .map(|(i, ((step, parents), children))| DefinitionGraphStep {
            number: number(i),
            name: step.name.clone(),
            handler: step.handler.clone(),
            level: number(depths.levels[i]),
            distance: number(depths.distances[i]),
            parents: parents.clone(),
            children: children.clone(),
        })
        .collect();
    let with_none = |of: fn(&DefinitionGraphStep) -> &Vec<i32>| {
        steps.iter().filter(|step| of(step).is_empty()).map(|step| step.number).collect()
    };
    DefinitionGraph {
        namespace: definition.namespace.clone(),
        name: definition.name.clone(),
        version: definition.version.clone(),
        roots: with_none(|step| &step.parents),
        leaves: with_none(|step| &step.children),
        edges: drawing.edges,
        levels: drawing.levels,
        longest_path: drawing.longest_path,
        steps,
    }
}
