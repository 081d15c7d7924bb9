//! Where in a trace a new task goes on, and what its creation shares with others.

use stepwell_store::NewTask;
use stepwell_trace::{TARGET, TraceContext, link};
use tonic::metadata::MetadataMap;
use tracing::Span;

/// A span of a batch links to at most so many of the tasks it serves.
const LINKS_MAX: usize = 32;

/// Where the call that creates tasks is in a trace, as it says and as we record it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Call {
    caller: Option<TraceContext>,
    here: Option<TraceContext>,
}

impl Call {
    /// Of the call that is being answered.
    pub(crate) fn of(metadata: &MetadataMap) -> Self {
        let said = metadata.get("traceparent").and_then(|value| value.to_str().ok());
        Self { caller: said.and_then(TraceContext::parse), here: TraceContext::current() }
    }

    /// For a task whose request names this context, or none. The span of the call comes between
    /// the caller's and the task's, if all are of one trace. A call that nobody traces leaves
    /// nothing in the rows.
    pub(crate) fn task(self, given: Option<TraceContext>) -> Option<TraceContext> {
        let caller = given.or(self.caller);
        let here = self.here.filter(|here| match caller {
            Some(caller) => here.is_of_trace(caller),
            None => here.is_sampled(),
        });
        here.or(caller)
    }
}

/// One call of the verb for many callers, which links to some of them.
pub(crate) fn batch(tasks: &[NewTask]) -> Span {
    let span = tracing::trace_span!(
        target: TARGET,
        parent: None,
        "create",
        stepwell.tasks = i64::try_from(tasks.len()).unwrap_or(i64::MAX),
    );
    if !span.is_disabled() {
        let sampled = tasks.iter().filter_map(|task| task.trace).filter(|t| t.is_sampled());
        sampled.take(LINKS_MAX).for_each(|context| link(&span, context));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(trace: char, span: char, flags: u8) -> TraceContext {
        let (trace, span) = (trace.to_string().repeat(32), span.to_string().repeat(16));
        TraceContext::parse(&format!("00-{trace}-{span}-{flags:02x}")).unwrap()
    }

    #[test]
    fn a_task_goes_on_from_the_call_unless_its_request_names_another_trace() {
        let (caller, here) = (Some(context('a', '1', 1)), Some(context('a', '2', 1)));
        let (same, other) = (Some(context('a', '3', 1)), Some(context('b', '4', 1)));
        let call = Call { caller, here };
        assert_eq!(call.task(None), here);
        assert_eq!(call.task(same), here);
        assert_eq!(call.task(other), other);
        assert_eq!(Call { caller, here: None }.task(None), caller, "without an exporter");
        assert_eq!(Call { caller: None, here }.task(None), here, "the trace begins here");
    }

    #[test]
    fn what_nobody_traces_is_not_kept_but_what_the_caller_said_is() {
        let unsampled = Some(context('a', '1', 0));
        assert_eq!(Call { caller: None, here: unsampled }.task(None), None);
        assert_eq!(Call { caller: unsampled, here: None }.task(None), unsampled);
    }
}
