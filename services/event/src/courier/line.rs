//! Events as lines of the log.

use stepwell_proto::v1::Event;

/// Writes one line.
pub(super) fn write(subscription: &str, config: &str, event: &Event) {
    let Event { name, task_id, step_id, step_name, position, attempt, .. } = event;
    let Event { namespace, definition_name, definition_version, correlation_id, .. } = event;
    tracing::info!(
        target: "stepwell_event::line",
        subscription,
        event = name,
        position,
        task_id,
        step_id,
        step_name,
        attempt,
        namespace,
        definition = definition_name,
        version = definition_version,
        correlation_id,
        at = event.at.as_ref().map(ToString::to_string).unwrap_or_default(),
        from = event.from_state().word(),
        to = event.to_state().word(),
        config,
        "event"
    );
}
