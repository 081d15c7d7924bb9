//! Rows of the log as events.

use sqlx::types::chrono::{DateTime, Utc};
use stepwell_proto::{
    catalog::event_type_by_number,
    id::step_id,
    v1::{
        CustomEvent, Event, State, StepCancelled, StepCompleted, StepExecutionRequested,
        StepFailed, StepLeaseReturned, StepResolvedManually, StepRetryRequested, StepUnserved,
        StepUpdated, TaskAnnotated, TaskCancelled, TaskCompleted, TaskFailed,
        TaskInitializeRequested, TaskPaused, TaskResolvedManually, TaskResumed, TaskRetryRequested,
        TaskStartRequested, TaskUpdated, event::Detail,
    },
};
use stepwell_trace::TraceContext;

use super::EventRow;
use crate::{
    Error, Note, StoredDefinition, StoredFailure, definition::timestamp, publish::custom_of_text,
};

/// Of a step, and of a task.
const CUSTOM: [u32; 2] = [100, 101];

/// The event of a row, but for its correlation id.
pub fn event(row: &EventRow, stored: &StoredDefinition) -> Result<Event, Error> {
    let number = u32::try_from(row.r#type).unwrap_or(0);
    let wrong = || Error::Inconsistent(format!("event {} has type {number}", row.position));
    let (name, detail) = if CUSTOM.contains(&number) {
        custom(row).ok_or_else(wrong)?
    } else {
        let of_type = event_type_by_number(number).ok_or_else(wrong)?;
        (of_type.name.to_owned(), detail(row, number, stored)?)
    };
    let task_id = row.uid.to_string();
    let step = row.no.and_then(|no| stored.step(no));
    let definition = &stored.definition;
    Ok(Event {
        position: row.position,
        name,
        step_id: row.no.map(|no| step_id(&task_id, no)).unwrap_or_default(),
        task_id,
        at: Some(timestamp(row.at)),
        from_state: row.from_state.map_or(State::Unspecified, state).into(),
        to_state: state(row.to_state).into(),
        namespace: definition.namespace.clone(),
        definition_name: definition.name.clone(),
        definition_version: definition.version.clone(),
        step_name: step.map(|step| step.name.clone()).unwrap_or_default(),
        attempt: row.attempt.unwrap_or(0),
        ordinal: 0,
        traceparent: row.trace.as_deref().map(traceparent).unwrap_or_default(),
        correlation_id: String::new(),
        detail: Some(detail),
    })
}

/// Name and detail of a custom event.
fn custom(row: &EventRow) -> Option<(String, Detail)> {
    let (name, version, data) = custom_of_text(row.text.as_deref()?)?;
    let data = data.to_owned();
    let custom = CustomEvent { version, data, data_omitted: false };
    Some((name.to_owned(), Detail::CustomEvent(custom)))
}

fn state(number: i16) -> State {
    State::try_from(i32::from(number)).unwrap_or(State::Unspecified)
}

fn detail(row: &EventRow, number: u32, stored: &StoredDefinition) -> Result<Detail, Error> {
    let text = || row.text.clone().unwrap_or_default();
    let note = || Note::from_text(row.text.as_deref());
    let ran_for = || row.mark.map(|since| duration(row.at, since));
    let names = || {
        let numbers = row.names.as_deref().unwrap_or_default();
        stored.names(numbers).map(str::to_owned).collect()
    };
    let total_steps = stored.total_steps();
    Ok(match number {
        20 => Detail::TaskInitializeRequested(TaskInitializeRequested {
            total_steps,
            step_names: stored.definition.steps.iter().map(|s| s.name.clone()).collect(),
            context: text(),
            context_omitted: row.text.is_none(),
        }),
        21 => Detail::TaskStartRequested(TaskStartRequested {}),
        22 => Detail::TaskCompleted(TaskCompleted { total_steps, ran_for: ran_for() }),
        23 => Detail::TaskFailed(TaskFailed {
            total_steps,
            error_message: "steps_in_error_state".into(),
            failed_steps: names(),
            ran_for: ran_for(),
        }),
        24 => {
            let Note { by: cancelled_by, reason, operation_id, request_id, .. } = note();
            Detail::TaskCancelled(TaskCancelled { reason, cancelled_by, operation_id, request_id })
        }
        25 => {
            let Note { by: retried_by, reason, operation_id, request_id, .. } = note();
            Detail::TaskRetryRequested(TaskRetryRequested {
                reason,
                retried_by,
                operation_id,
                request_id,
            })
        }
        26 => {
            let Note { by: resolved_by, reason, operation_id, request_id, .. } = note();
            Detail::TaskResolvedManually(TaskResolvedManually {
                reason,
                resolved_by,
                operation_id,
                request_id,
            })
        }
        27 => {
            let note = note();
            Detail::TaskUpdated(TaskUpdated {
                reason: note.reason,
                updated_by: note.by,
                task_reason: note.task_reason.unwrap_or_default(),
                tags_changed: note.tags.is_some(),
                tags: note.tags.unwrap_or_default(),
                priority: note.priority.unwrap_or_default().into(),
                request_id: note.request_id,
            })
        }
        28 => {
            let Note { by: paused_by, reason, request_id, .. } = note();
            Detail::TaskPaused(TaskPaused { reason, paused_by, request_id })
        }
        29 => {
            let Note { by: resumed_by, reason, request_id, .. } = note();
            Detail::TaskResumed(TaskResumed { reason, resumed_by, request_id })
        }
        30 => {
            let note = note();
            Detail::TaskAnnotated(TaskAnnotated {
                reason: note.reason,
                annotated_by: note.by,
                set: note.annotations,
                texts_omitted: note.annotations_omitted,
                removed: note.removed,
                request_id: note.request_id,
            })
        }
        40 => Detail::StepExecutionRequested(StepExecutionRequested {
            executor_id: row.session.map(executor_id).unwrap_or_default(),
            step_dependencies: row
                .no
                .and_then(|no| stored.parents.get(usize::try_from(no).ok()?))
                .map(|parents| stored.names(parents).map(str::to_owned).collect())
                .unwrap_or_default(),
        }),
        41 => Detail::StepCompleted(StepCompleted {
            result: text(),
            result_omitted: row.text.is_none(),
            ran_for: ran_for(),
            released: names(),
        }),
        42 => {
            let failure = StoredFailure::from_text(&text());
            Detail::StepFailed(StepFailed {
                error: Some(failure.to_proto()),
                r#final: failure.is_final,
                max_attempts: failure.max_attempts,
                ran_for: ran_for(),
                backoff: failure.backoff(),
                backoff_type: failure.backoff_type().into(),
            })
        }
        43 => {
            let Note { by: retried_by, reason, operation_id, request_id, .. } = note();
            Detail::StepRetryRequested(StepRetryRequested {
                previous_attempts: row.attempt.unwrap_or(0),
                not_before: row.mark.map(timestamp),
                reason,
                retried_by,
                operation_id,
                request_id,
            })
        }
        44 => Detail::StepLeaseReturned(StepLeaseReturned { reason: text() }),
        45 => {
            let Note { by: cancelled_by, reason, operation_id, request_id, .. } = note();
            Detail::StepCancelled(StepCancelled { reason, cancelled_by, operation_id, request_id })
        }
        46 => {
            let note = note();
            Detail::StepResolvedManually(StepResolvedManually {
                reason: note.reason,
                resolved_by: note.by,
                result: note.result.unwrap_or_default(),
                result_omitted: note.result_omitted,
                released: names(),
                skipped: note.skipped,
                request_id: note.request_id,
            })
        }
        47 => {
            let note = note();
            Detail::StepUpdated(StepUpdated {
                reason: note.reason,
                updated_by: note.by,
                max_attempts: note.max_attempts.unwrap_or_default(),
                request_id: note.request_id,
                config: note.config,
                config_omitted: note.config_omitted,
            })
        }
        48 => Detail::StepUnserved(StepUnserved {
            handler: row
                .no
                .and_then(|no| stored.step(no))
                .map(|s| s.handler.clone())
                .unwrap_or_default(),
            ready_time: row.mark.map(timestamp),
        }),
        _ => return Err(Error::Inconsistent(format!("event type {number} has no row"))),
    })
}

fn traceparent(trace: &[u8]) -> String {
    TraceContext::from_bytes(trace).map(|trace| trace.to_string()).unwrap_or_default()
}

/// The public form of a session.
pub(crate) fn executor_id(session: i64) -> String {
    stepwell_proto::id::executor_id(session)
}

fn duration(until: DateTime<Utc>, since: DateTime<Utc>) -> prost_types::Duration {
    let passed = (until - since).to_std().unwrap_or_default();
    prost_types::Duration::try_from(passed).unwrap_or_default()
}
