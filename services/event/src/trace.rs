//! The span of an event on its way to one subscription: who handles the event goes on from there.

use stepwell_proto::v1::Event;
use stepwell_trace::{TARGET, TraceContext, child_of};

/// Puts the span between the event and its handler, if its task is traced. Only made for an exporter.
pub(crate) fn deliver(event: &mut Event) {
    if event.traceparent.is_empty() {
        return;
    }
    let task = TraceContext::parse(&event.traceparent).filter(|task| task.is_sampled());
    let Some(task) = task else { return };
    let span = tracing::trace_span!(
        target: TARGET,
        parent: None,
        "event.deliver",
        otel.kind = "producer",
        stepwell.event = event.name,
        stepwell.position = event.position,
        stepwell.task = event.task_id,
        stepwell.step = event.step_name,
        stepwell.attempt = event.attempt,
    );
    child_of(&span, task);
    if let Some(here) = TraceContext::of(&span) {
        event.traceparent = here.to_string();
    }
}
