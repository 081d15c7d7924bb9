//! Where in a trace a new task goes on, and what its creation shares with others.

use stepwell_proto::id::{check_correlation_id, correlation_id};
use stepwell_store::NewTask;
use stepwell_trace::{TARGET, TraceContext, link};
use tonic::metadata::MetadataMap;
use tracing::Span;
use uuid::Uuid;

/// A span of a batch links to at most so many of the tasks it serves.
const LINKS_MAX: usize = 32;

/// Where the call that creates tasks is in a trace, as it says and as we record it, and what it says
/// they belong to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    correlation_id: Option<String>,
    caller: Option<TraceContext>,
    here: Option<TraceContext>,
}

impl Call {
    /// Of the call that is being answered.
    pub(crate) fn of(metadata: &MetadataMap) -> Self {
        let said = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let correlation_id = said("x-correlation-id").filter(|id| check_correlation_id(id).is_ok());
        Self {
            correlation_id: correlation_id.map(str::to_owned),
            caller: said("traceparent").and_then(TraceContext::parse),
            here: TraceContext::current(),
        }
    }

    /// What a task belongs to whose request says this, or nothing.
    pub(crate) fn correlation_id(&self, given: String) -> String {
        if !given.is_empty() {
            return given;
        }
        self.correlation_id.clone().unwrap_or_else(|| {
            // It has the time and chance in it.
            let (high, low) = Uuid::now_v7().as_u64_pair();
            correlation_id(high >> 16, low)
        })
    }

    /// For a task whose request names this context, or none. The span of the call comes between
    /// the caller's and the task's, if all are of one trace. A call that nobody traces leaves
    /// nothing in the rows.
    pub(crate) fn task(&self, given: Option<TraceContext>) -> Option<TraceContext> {
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
        let call = Call { caller, here, ..Call::default() };
        assert_eq!(call.task(None), here);
        assert_eq!(call.task(same), here);
        assert_eq!(call.task(other), other);
        assert_eq!(Call { caller, ..Call::default() }.task(None), caller, "without an exporter");
        assert_eq!(Call { here, ..Call::default() }.task(None), here, "the trace begins here");
    }

    #[test]
    fn what_nobody_traces_is_not_kept_but_what_the_caller_said_is() {
        let unsampled = Some(context('a', '1', 0));
        assert_eq!(Call { here: unsampled, ..Call::default() }.task(None), None);
        assert_eq!(Call { caller: unsampled, ..Call::default() }.task(None), unsampled);
    }

    #[test]
    fn a_task_belongs_to_what_its_request_says_then_its_call_and_else_to_itself() {
        let mut metadata = MetadataMap::new();
        metadata.insert("x-correlation-id", "order-17".parse().unwrap());
        let call = Call::of(&metadata);
        assert_eq!(call.correlation_id("own".into()), "own");
        assert_eq!(call.correlation_id(String::new()), "order-17");
        metadata.insert("x-correlation-id", "order 17".parse().unwrap());
        let call = Call::of(&metadata);
        let (one, other) = (call.correlation_id(String::new()), call.correlation_id(String::new()));
        assert!(one.starts_with("tsk_") && one != other, "{one} {other}");
        check_correlation_id(&one).unwrap();
        let parts: Vec<&str> = one.split('_').collect();
        let ms = u64::from_str_radix(parts[1], 36).unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
        assert!(u128::from(ms).abs_diff(now) < 60_000 && parts[2].len() == 6, "{one}");
    }
}
