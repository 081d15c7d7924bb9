//! Events as metrics: counted, and timed where they say how long something ran.

use stepwell_proto::v1::{Event, event::Detail};

use crate::metrics::{Metrics, Told};

/// Counts one event.
pub(super) fn count(metrics: &Metrics, subscription: &str, event: &Event) {
    let (ran_for, is_final, steps) = match &event.detail {
        Some(Detail::TaskCompleted(of)) => (of.ran_for.as_ref(), None, Some(of.total_steps)),
        Some(Detail::TaskFailed(of)) => (of.ran_for.as_ref(), None, Some(of.total_steps)),
        Some(Detail::StepCompleted(of)) => (of.ran_for.as_ref(), None, None),
        Some(Detail::StepFailed(of)) => (of.ran_for.as_ref(), Some(of.r#final), None),
        _ => (None, None, None),
    };
    metrics.told(&Told {
        subscription,
        event: &event.name,
        namespace: &event.namespace,
        definition: &event.definition_name,
        step: &event.step_name,
        is_final,
        ran_for: ran_for.and_then(stepwell_proto::time::duration),
        steps: steps.and_then(|steps| u64::try_from(steps).ok()),
    });
}
