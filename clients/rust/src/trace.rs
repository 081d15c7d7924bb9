//! Where calls, handlers and events are in a trace. The spans are there for logs too, so handlers'
//! lines say which step they are about; they are recorded if the application exports its spans with
//! `tracing-opentelemetry`.

use opentelemetry::trace::Status;
use stepwell_proto::v1::{Event, Lease, outcome::Kind};
use stepwell_trace::{TraceContext, child_of};
use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The call goes on from where its caller is.
pub(crate) fn inject(metadata: &mut MetadataMap) {
    if let Some(here) = TraceContext::current()
        && let Ok(value) = here.to_string().parse()
    {
        metadata.insert("traceparent", value);
    }
}

/// The span of a handler: it goes on from the lease.
pub(crate) fn handle_step(lease: &Lease) -> Span {
    let trace = TraceContext::parse(&lease.traceparent);
    let span = tracing::info_span!(
        parent: None,
        "step.handle",
        namespace = lease.namespace,
        task = lease.task_id,
        step = lease.step_name,
        attempt = lease.attempt,
        trace_id = trace.map(TraceContext::trace_id),
    );
    if let Some(trace) = trace {
        child_of(&span, trace);
    }
    span
}

/// How a handler ended, and where settling it goes on.
pub(crate) fn handled(span: &Span, lease: &Lease, kind: &Kind) -> String {
    if let Kind::Fail(failure) = kind {
        span.set_attribute("error.type", failure.error_class.clone());
        span.set_status(Status::error(failure.error_class.clone()));
    }
    let here = TraceContext::of(span).map(|here| here.to_string());
    here.unwrap_or_else(|| lease.traceparent.clone())
}

/// The span of a handler of events: it goes on from the event.
pub(crate) fn handle_event(event: &Event) -> Span {
    let trace = TraceContext::parse(&event.traceparent);
    let step = Some(event.step_name.as_str()).filter(|step| !step.is_empty());
    let span = tracing::info_span!(
        parent: None,
        "event.handle",
        event = event.name,
        position = event.position,
        task = event.task_id,
        step,
        trace_id = trace.map(TraceContext::trace_id),
    );
    if let Some(trace) = trace {
        child_of(&span, trace);
    }
    span
}

/// How a handler of events ended.
pub(crate) fn event_failed(span: &Span, class: &str) {
    span.set_attribute("error.type", class.to_owned());
    span.set_status(Status::error(class.to_owned()));
}
