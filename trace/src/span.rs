//! Contexts in and out of spans. Without an exporter there is nothing in a span, and all of this
//! does nothing.

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::TraceContext;

/// The target of spans that are made for the exporter alone, at level `TRACE`: unless one is set up
/// no filter of the log lets them through, and they cost nothing.
pub const TARGET: &str = "stepwell::trace";

/// True when spans of our own are recorded here.
pub fn is_exported() -> bool {
    tracing::span_enabled!(target: TARGET, Level::TRACE)
}

impl TraceContext {
    /// Where the code that runs is: the innermost span that is recorded, whoever opened it.
    pub fn current() -> Option<Self> {
        Context::map_current(|context| Self::read(context.span().span_context()))
    }

    /// Of a span; none when it is not recorded.
    pub fn of(span: &Span) -> Option<Self> {
        Self::read(span.context().span().span_context())
    }

    fn read(context: &SpanContext) -> Option<Self> {
        let (trace, span) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
        Self::new(trace, span, context.trace_flags().to_u8())
    }

    fn remote(self) -> SpanContext {
        let (trace, span, flags) = self.parts();
        SpanContext::new(
            TraceId::from_bytes(trace),
            SpanId::from_bytes(span),
            TraceFlags::new(flags),
            true,
            TraceState::NONE,
        )
    }
}

/// The span goes on where the context is. To be called before the span is entered.
pub fn child_of(span: &Span, parent: TraceContext) {
    // Nobody records it, then.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent.remote()));
}

/// The span has to do with the context, though it does not go on from there.
pub fn link(span: &Span, other: TraceContext) {
    span.add_link(other.remote());
}
