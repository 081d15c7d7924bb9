//! The spans of single steps: each goes on from its task's context, which came with the task's row,
//! or from its executor's. They are made only for steps that are sampled, and only for an exporter.

use stepwell_proto::v1::Lease;
use stepwell_store::Ending;
use stepwell_trace::{TARGET, TraceContext, child_of, link};
use tracing::{Span, field::Empty};
use uuid::Uuid;

use crate::settle::Ended;

/// A span of a batch links to at most so many of the steps it serves.
const LINKS_MAX: usize = 32;

/// A lease on its way to its executor. The handler goes on from here; a retry names the attempt
/// before.
pub(crate) fn dispatch(
    lease: &mut Lease,
    session: i64,
    task: Option<TraceContext>,
    previous: Option<TraceContext>,
) {
    let Some(task) = task else { return };
    let span = of_dispatch(lease, session, task);
    if let Some(previous) = previous {
        link(&span, previous);
    }
    lease.traceparent = TraceContext::of(&span).unwrap_or(task).to_string();
}

fn of_dispatch(lease: &Lease, session: i64, task: TraceContext) -> Span {
    if !task.is_sampled() {
        return Span::none();
    }
    let span = tracing::trace_span!(
        target: TARGET,
        parent: None,
        "step.dispatch",
        otel.kind = "producer",
        stepwell.task = lease.task_id,
        stepwell.step = lease.step_name,
        stepwell.attempt = lease.attempt,
        stepwell.handler = lease.handler,
        stepwell.session = session,
    );
    child_of(&span, task);
    span
}

/// Which step it is about, as far as it is known here.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// The task's id; none: its context is not in memory.
    pub(crate) task: Option<Uuid>,
    /// The step's name.
    pub(crate) step: String,
    /// Which attempt.
    pub(crate) attempt: i32,
    /// Whose lease it is.
    pub(crate) session: i64,
}

/// From the moment an outcome is known until it is durable and answered.
pub(crate) fn settle(
    ending: Ending,
    from: Option<TraceContext>,
    about: impl FnOnce() -> About,
) -> Span {
    let Some(from) = from.filter(|from| from.is_sampled() && stepwell_trace::is_exported()) else {
        return Span::none();
    };
    let About { task, step, attempt, session } = about();
    let outcome = match ending {
        Ending::Complete => "complete",
        Ending::Fail { wait_ms: Some(_) } => "retry",
        Ending::Fail { wait_ms: None } => "error",
        Ending::HandBack => "hand_back",
    };
    let span = tracing::trace_span!(
        target: TARGET,
        parent: None,
        "step.settle",
        otel.kind = "consumer",
        stepwell.task = task.map(tracing::field::display),
        stepwell.step = step,
        stepwell.attempt = attempt,
        stepwell.session = session,
        stepwell.outcome = outcome,
        stepwell.lease_lost = Empty,
    );
    child_of(&span, from);
    span
}

/// One call of a verb for many steps, which links to some of them.
pub(crate) fn batch(ended: &[Ended]) -> Span {
    let span = tracing::trace_span!(
        target: TARGET,
        parent: None,
        "settle",
        stepwell.steps = i64::try_from(ended.len()).unwrap_or(i64::MAX),
    );
    if !span.is_disabled() {
        let contexts = ended.iter().filter_map(|ended| TraceContext::of(&ended.span));
        contexts.take(LINKS_MAX).for_each(|context| link(&span, context));
    }
    span
}
