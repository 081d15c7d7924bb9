//! The events that have no row of their own: each is made from one that has. Pure.

use stepwell_proto::{
    catalog::EventMessage,
    id::step_id,
    v1::{
        Event, ObservabilityStepBackoff, ObservabilityStepMaxRetriesReached, ObservabilityStepSkip,
        ObservabilityTaskEnqueue, ProcessingMode, State, StepInitializeRequested,
        WorkflowStepCompleted, WorkflowStepFailed, WorkflowTaskCompleted, WorkflowTaskFailed,
        WorkflowTaskFinalizationCompleted, WorkflowTaskStarted, WorkflowViableStepsDiscovered,
        event::Detail,
    },
};

use crate::StoredDefinition;

/// Every derived event of a recorded one, in a fixed order, at its position.
pub fn derive(recorded: &Event, stored: &StoredDefinition) -> Vec<Event> {
    let Some(detail) = &recorded.detail else { return Vec::new() };
    let one = |detail: Detail| vec![about(recorded, detail)];
    match detail {
        Detail::TaskInitializeRequested(created) => {
            let mut events = steps_initialized(recorded, stored);
            events.push(viable(recorded, stored, &roots(stored)));
            let task_context = created.context.clone();
            events.push(about(recorded, ObservabilityTaskEnqueue { task_context }.into()));
            events
        }
        Detail::TaskStartRequested(_) => one(WorkflowTaskStarted {}.into()),
        Detail::TaskCompleted(_) => vec![
            about(recorded, WorkflowTaskCompleted {}.into()),
            finalized(recorded, stored, State::Complete),
        ],
        Detail::TaskFailed(_) => vec![
            about(recorded, WorkflowTaskFailed {}.into()),
            finalized(recorded, stored, State::Error),
        ],
        Detail::TaskCancelled(_) => vec![finalized(recorded, stored, State::Cancelled)],
        Detail::TaskResolvedManually(_) => {
            vec![finalized(recorded, stored, State::ResolvedManually)]
        }
        Detail::StepCompleted(completed) => {
            let mut events = one(WorkflowStepCompleted {}.into());
            events.extend(released(recorded, stored, &completed.released));
            events
        }
        Detail::StepResolvedManually(resolved) => {
            let skip = ObservabilityStepSkip { reason: resolved.reason.clone() };
            let mut events = Vec::new();
            if resolved.skipped {
                events.extend(one(skip.into()));
            }
            events.extend(released(recorded, stored, &resolved.released));
            events
        }
        Detail::StepFailed(failed) => {
            let mut events = one(WorkflowStepFailed { r#final: failed.r#final }.into());
            if let Some(backoff) = failed.backoff {
                let (backoff, backoff_type) = (Some(backoff), failed.backoff_type);
                events.push(about(
                    recorded,
                    ObservabilityStepBackoff { backoff, backoff_type }.into(),
                ));
            }
            let retryable = failed.error.as_ref().is_some_and(|error| error.retryable);
            if failed.r#final && retryable && recorded.attempt >= failed.max_attempts {
                let (attempts, retry_limit) = (recorded.attempt, failed.max_attempts);
                events.push(about(
                    recorded,
                    ObservabilityStepMaxRetriesReached { attempts, retry_limit }.into(),
                ));
            }
            events
        }
        _ => Vec::new(),
    }
}

/// A derived event about what the recorded one is about. It records no transition itself.
fn about(recorded: &Event, detail: Detail) -> Event {
    Event {
        name: detail.name().to_owned(),
        from_state: State::Unspecified.into(),
        to_state: State::Unspecified.into(),
        detail: Some(detail),
        ..recorded.clone()
    }
}

fn steps_initialized(recorded: &Event, stored: &StoredDefinition) -> Vec<Event> {
    let steps = stored.definition.steps.iter().zip(0..);
    let events = steps.map(|(step, number)| Event {
        name: StepInitializeRequested::NAME.to_owned(),
        step_id: step_id(&recorded.task_id, number),
        step_name: step.name.clone(),
        ordinal: number,
        from_state: State::Unspecified.into(),
        to_state: State::Unspecified.into(),
        detail: Some(
            StepInitializeRequested {
                handler: step.handler.clone(),
                depends_on: step.depends_on.clone(),
            }
            .into(),
        ),
        ..recorded.clone()
    });
    events.collect()
}

fn viable(recorded: &Event, stored: &StoredDefinition, numbers: &[i32]) -> Event {
    let found = WorkflowViableStepsDiscovered {
        step_ids: numbers.iter().map(|no| step_id(&recorded.task_id, *no)).collect(),
        step_names: stored.names(numbers).map(str::to_owned).collect(),
        step_count: i32::try_from(numbers.len()).unwrap_or(i32::MAX),
        processing_mode: ProcessingMode::Concurrent.into(),
    };
    let about_task =
        Event { step_id: String::new(), step_name: String::new(), attempt: 0, ..recorded.clone() };
    about(&about_task, found.into())
}

/// What a step that ended well released.
fn released(recorded: &Event, stored: &StoredDefinition, names: &[String]) -> Option<Event> {
    (!names.is_empty()).then(|| viable(recorded, stored, &numbers(stored, names)))
}

fn finalized(recorded: &Event, stored: &StoredDefinition, state: State) -> Event {
    let (final_status, total_steps) = (state.into(), stored.total_steps());
    about(recorded, WorkflowTaskFinalizationCompleted { final_status, total_steps }.into())
}

fn roots(stored: &StoredDefinition) -> Vec<i32> {
    let steps = stored.parents.iter().zip(0..);
    steps.filter(|(parents, _)| parents.is_empty()).map(|(_, number)| number).collect()
}

fn numbers(stored: &StoredDefinition, names: &[String]) -> Vec<i32> {
    let steps = stored.definition.steps.iter().zip(0..);
    steps.filter(|(step, _)| names.contains(&step.name)).map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use stepwell_proto::{
        catalog::{EVENTS, event_type},
        v1::{
            Definition, Failure, StepCompleted, StepFailed, StepResolvedManually, StepTemplate,
            TaskCancelled, TaskCompleted, TaskFailed, TaskInitializeRequested,
            TaskResolvedManually, TaskStartRequested,
        },
    };

    use super::*;

    fn stored() -> StoredDefinition {
        let step = |name: &str, parents: &[&str]| StepTemplate {
            name: name.into(),
            handler: "h".into(),
            depends_on: parents.iter().map(|&p| p.to_owned()).collect(),
            ..StepTemplate::default()
        };
        StoredDefinition {
            id: 1,
            version: [1, 0, 0],
            definition: Definition {
                steps: vec![step("a", &[]), step("b", &["a"])],
                ..Definition::default()
            },
            queues: vec![1, 1],
            parents: vec![vec![], vec![0]],
            children: vec![vec![1], vec![]],
            is_timed: false,
        }
    }

    fn recorded() -> Vec<Event> {
        let failed = |r#final, backoff: Option<prost_types::Duration>| StepFailed {
            error: Some(Failure { retryable: true, ..Failure::default() }),
            r#final,
            max_attempts: 3,
            backoff,
            ..StepFailed::default()
        };
        let details: Vec<Detail> = vec![
            TaskInitializeRequested::default().into(),
            TaskStartRequested {}.into(),
            TaskCompleted::default().into(),
            TaskFailed::default().into(),
            TaskCancelled::default().into(),
            TaskResolvedManually::default().into(),
            StepCompleted { released: vec!["b".into()], ..StepCompleted::default() }.into(),
            StepResolvedManually {
                released: vec!["b".into()],
                skipped: true,
                ..StepResolvedManually::default()
            }
            .into(),
            failed(true, None).into(),
            failed(false, Some(prost_types::Duration::default())).into(),
        ];
        let event = |detail: Detail| Event {
            position: 7,
            name: detail.name().to_owned(),
            task_id: "t".into(),
            attempt: 3,
            detail: Some(detail),
            ..Event::default()
        };
        details.into_iter().map(event).collect()
    }

    #[test]
    fn every_derived_type_comes_from_each_of_its_sources_and_from_nothing_else() {
        let stored = stored();
        let mut seen = BTreeSet::new();
        for source in recorded() {
            for event in derive(&source, &stored) {
                assert_eq!((event.position, &event.task_id), (7, &source.task_id));
                assert_eq!(event.to_state, 0);
                seen.insert((event.name, source.name.clone()));
            }
        }
        let declared: BTreeSet<_> = EVENTS
            .iter()
            .flat_map(|e| e.derived_from.iter().map(|s| (e.name.to_owned(), (*s).to_owned())))
            .collect();
        assert_eq!(seen, declared);
        assert!(seen.iter().all(|(name, _)| !event_type(name).unwrap().is_recorded()));
    }

    #[test]
    fn a_task_s_steps_are_told_apart_by_ordinal() {
        let events = derive(&recorded()[0], &stored());
        let ids: BTreeSet<_> = events.iter().map(|e| (&e.name, e.ordinal)).collect();
        assert_eq!(ids.len(), events.len());
        let steps: Vec<_> =
            events.iter().filter(|e| e.name == StepInitializeRequested::NAME).collect();
        assert_eq!((steps.len(), steps[1].step_id.as_str()), (2, "t.1"));
    }
}
