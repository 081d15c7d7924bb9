//! The span of an event on its way to one subscription: who handles the event goes on from there.

use stepwell_proto::EncodedEvent;
use stepwell_trace::{TARGET, TraceContext, child_of};

use crate::ring::{Piece, Recorded};

/// The event as it goes to one subscription, with a span between it and its handler if its task is
/// traced. The span is only made for an exporter.
pub(crate) fn deliver(recorded: &Recorded, piece: &Piece, bare: bool) -> EncodedEvent {
    let mut sent = piece.sent(bare);
    let Some(task) = recorded.trace else { return sent };
    let span = tracing::trace_span!(
        target: TARGET,
        parent: None,
        "event.deliver",
        otel.kind = "producer",
        stepwell.event = piece.name,
        stepwell.position = recorded.position,
        stepwell.task = tracing::field::Empty,
        stepwell.step = piece.step_name,
        stepwell.attempt = piece.attempt,
    );
    if span.is_disabled() {
        return sent;
    }
    span.record("stepwell.task", recorded.task.to_string());
    child_of(&span, task);
    if let Some(here) = TraceContext::of(&span) {
        sent.traceparent = here.to_string();
    }
    sent
}
