//! The span of an RPC, for the exporter. Health, reflection and plain HTTP have none: who asks them
//! asks all day.

use http::{HeaderMap, Uri};
use stepwell_trace::{TARGET, TraceContext, child_of};
use tonic::Code;
use tracing::{Span, field::Empty};

const TRACED: &str = "/stepwell.";

/// Where the caller is in a trace, if it says so.
pub(crate) fn caller(headers: &HeaderMap) -> Option<TraceContext> {
    TraceContext::parse(headers.get("traceparent")?.to_str().ok()?)
}

/// The span of a request; one of nothing for what is not traced, or when there is no exporter.
pub(crate) fn span(
    uri: &Uri,
    service: &str,
    request_id: &str,
    caller: Option<TraceContext>,
) -> Span {
    let path = uri.path();
    if !path.starts_with(TRACED) {
        return Span::none();
    }
    let name = &path[1..];
    let (rpc_service, method) = name.split_once('/').unwrap_or((name, ""));
    let span = tracing::trace_span!(
        target: TARGET,
        parent: None,
        "rpc",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = rpc_service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        stepwell.service = service,
        stepwell.request_id = request_id,
    );
    if let Some(caller) = caller {
        child_of(&span, caller);
    }
    span
}

/// How the call ended.
pub(crate) fn ended(span: &Span, code: Code) {
    span.record("rpc.grpc.status_code", i32::from(code));
    // Faults of the service; the others are the caller's.
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.record("otel.status_code", "ERROR");
    }
}
