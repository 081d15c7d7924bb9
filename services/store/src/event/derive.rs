//! The events that have no row of their own: each is made from one that has. Pure.

use prost_types::{Duration, Timestamp};
use stepwell_proto::{
    catalog::EventMessage,
    id::step_id,
    v1::{
        Event, NoViableStepsReason, ObservabilityStepBackoff, ObservabilityStepMaxRetriesReached,
        ObservabilityStepSkip, ObservabilityTaskEnqueue, ProcessingMode, State,
        StepInitializeRequested, WorkflowNoViableSteps, WorkflowStepCompleted, WorkflowStepFailed,
        WorkflowTaskCompleted, WorkflowTaskFailed, WorkflowTaskFinalizationCompleted,
        WorkflowTaskFinalizationStarted, WorkflowTaskReenqueueDelayed,
        WorkflowTaskReenqueueRequested, WorkflowTaskStarted, WorkflowViableStepsDiscovered,
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
        Detail::TaskCompleted(_) => {
            let ended = WorkflowTaskCompleted {}.into();
            finalized(recorded, stored, State::Complete, Some(ended))
        }
        Detail::TaskFailed(_) => {
            finalized(recorded, stored, State::Error, Some(WorkflowTaskFailed {}.into()))
        }
        Detail::TaskCancelled(_) => finalized(recorded, stored, State::Cancelled, None),
        Detail::TaskResolvedManually(_) => {
            finalized(recorded, stored, State::ResolvedManually, None)
        }
        Detail::TaskRetryRequested(retried) => {
            one(WorkflowTaskReenqueueRequested { reason: retried.reason.clone() }.into())
        }
        Detail::StepCompleted(completed) => {
            let mut events = one(WorkflowStepCompleted {}.into());
            events.push(released(recorded, stored, &completed.released));
            events
        }
        Detail::StepResolvedManually(resolved) => {
            let skip = ObservabilityStepSkip { reason: resolved.reason.clone() };
            let mut events = Vec::new();
            if resolved.skipped {
                events.extend(one(skip.into()));
            }
            events.push(released(recorded, stored, &resolved.released));
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
            if failed.r#final {
                events.push(none_viable(recorded, stored, Some(NoViableStepsReason::StepFailed)));
            }
            events
        }
        Detail::StepRetryRequested(retried) => {
            let delayed = retried.not_before.map(|until| WorkflowTaskReenqueueDelayed {
                delay: recorded.at.map(|at| between(at, until)),
                scheduled_for: Some(until),
            });
            delayed.map(|delayed| about(recorded, delayed.into())).into_iter().collect()
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
    about(&of_task(recorded), found.into())
}

/// The same about the task.
fn of_task(recorded: &Event) -> Event {
    Event { step_id: String::new(), step_name: String::new(), attempt: 0, ..recorded.clone() }
}

/// What a step that ended well released.
fn released(recorded: &Event, stored: &StoredDefinition, names: &[String]) -> Event {
    if names.is_empty() {
        none_viable(recorded, stored, None)
    } else {
        viable(recorded, stored, &numbers(stored, names))
    }
}

/// Nothing became ready by a step that ended: for this reason, or because of those that wait for it.
fn none_viable(
    recorded: &Event,
    stored: &StoredDefinition,
    reason: Option<NoViableStepsReason>,
) -> Event {
    let mut steps = stored.definition.steps.iter();
    let number = steps.position(|step| step.name == recorded.step_name);
    let checked = number.and_then(|number| stored.children.get(number)).map_or(0, Vec::len);
    let by_those = match checked {
        0 => NoViableStepsReason::NoneWaiting,
        _ => NoViableStepsReason::OthersAwaited,
    };
    let total_steps_checked = i32::try_from(checked).unwrap_or(i32::MAX);
    let reason = reason.unwrap_or(by_those).into();
    about(&of_task(recorded), WorkflowNoViableSteps { reason, total_steps_checked }.into())
}

/// That a task ended: before, what is special to how it did.
fn finalized(
    recorded: &Event,
    stored: &StoredDefinition,
    state: State,
    ended: Option<Detail>,
) -> Vec<Event> {
    let (final_status, total_steps) = (state.into(), stored.total_steps());
    let started = WorkflowTaskFinalizationStarted { total_steps }.into();
    let completed = WorkflowTaskFinalizationCompleted { final_status, total_steps }.into();
    let details = [Some(started), ended, Some(completed)];
    details.into_iter().flatten().map(|detail| about(recorded, detail)).collect()
}

/// From one time to a later one; nothing if it is not later.
fn between(from: Timestamp, until: Timestamp) -> Duration {
    let nanos = |at: Timestamp| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let passed = (nanos(until) - nanos(from)).max(0);
    Duration {
        seconds: i64::try_from(passed / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(passed % 1_000_000_000).expect("below a thousand million"),
    }
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
            Definition, Failure, StepCompleted, StepFailed, StepResolvedManually,
            StepRetryRequested, StepTemplate, TaskCancelled, TaskCompleted, TaskFailed,
            TaskInitializeRequested, TaskResolvedManually, TaskRetryRequested, TaskStartRequested,
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
            ..StoredDefinition::default()
        }
    }

    fn recorded() -> Vec<Event> {
        let failed = |r#final, backoff: Option<Duration>| StepFailed {
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
            failed(false, Some(Duration::default())).into(),
            TaskRetryRequested::default().into(),
            StepRetryRequested {
                not_before: Some(Timestamp { seconds: 12, nanos: 0 }),
                ..StepRetryRequested::default()
            }
            .into(),
            StepCompleted::default().into(),
            StepResolvedManually::default().into(),
        ];
        let event = |detail: Detail| Event {
            position: 7,
            name: detail.name().to_owned(),
            task_id: "t".into(),
            attempt: 3,
            at: Some(Timestamp { seconds: 9, nanos: 500_000_000 }),
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
    #[test]
    fn why_no_step_became_ready_is_said_with_those_that_wait() {
        let why = |step: &str, detail: Detail| {
            let ended = Event {
                step_name: step.into(),
                step_id: "t.0".into(),
                detail: Some(detail),
                ..Event::default()
            };
            let mut events = derive(&ended, &stored()).into_iter();
            let event = events.find(|e| e.name == WorkflowNoViableSteps::NAME).unwrap();
            assert_eq!((event.step_id, event.step_name), (String::new(), String::new()));
            let Some(Detail::WorkflowNoViableSteps(it)) = event.detail else { panic!() };
            (it.reason(), it.total_steps_checked)
        };
        let completed = || Detail::from(StepCompleted::default());
        assert_eq!(why("a", completed()), (NoViableStepsReason::OthersAwaited, 1));
        assert_eq!(why("b", completed()), (NoViableStepsReason::NoneWaiting, 0));
        let failed = StepFailed { r#final: true, ..StepFailed::default() };
        assert_eq!(why("a", failed.into()), (NoViableStepsReason::StepFailed, 1));
    }

    #[test]
    fn what_waits_says_how_long_and_until_when_and_what_does_not_wait_says_nothing() {
        let retried = |seconds| {
            let not_before = Some(Timestamp { seconds, nanos: 0 });
            let detail = StepRetryRequested { not_before, ..StepRetryRequested::default() };
            let at = Some(Timestamp { seconds: 9, nanos: 500_000_000 });
            let event = Event { at, detail: Some(detail.into()), ..Event::default() };
            let mut events = derive(&event, &stored());
            let Some(Detail::WorkflowTaskReenqueueDelayed(it)) = events.remove(0).detail else {
                panic!()
            };
            assert_eq!(it.scheduled_for, not_before);
            it.delay.unwrap()
        };
        assert_eq!(retried(12), Duration { seconds: 2, nanos: 500_000_000 });
        assert_eq!(retried(9), Duration::default(), "it is due");
        let at_once =
            Event { detail: Some(StepRetryRequested::default().into()), ..Event::default() };
        assert_eq!(derive(&at_once, &stored()), []);
    }
}
