//! One attempt: runs a handler, and turns how it ended into an outcome.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use stepwell_proto::v1::{Completion, Failure, HandBack, Lease, Outcome, outcome::Kind};
use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    context::{StepContext, excess},
    error::HandlerError,
    handlers::Handler,
};
use crate::trace;

/// How long a handler that was told to stop may go on before it is dropped.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(1);
/// No service accepts a result that is larger.
const RESULT_BYTES_MAX: usize = 3 << 20;
/// A lease without a time-out has this one.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A handler that ended.
pub(super) struct Ended {
    pub(super) lease_id: String,
    pub(super) outcome: Outcome,
}

/// When a lease that came at this moment is over.
pub(super) fn deadline(lease: &Lease, came: Instant) -> Instant {
    let timeout = lease.timeout.and_then(|timeout| Duration::try_from(timeout).ok());
    came + timeout.unwrap_or(TIMEOUT_MAX).min(TIMEOUT_MAX)
}

/// Runs the handler to its end, or until it was told to stop and did not. When the time-out is over
/// the handler is told so, but it is the service that decides what becomes of the attempt.
pub(super) async fn run(
    handler: Handler,
    step: StepContext,
    deadline: Instant,
    stop: CancellationToken,
) -> Ended {
    let lease_id = step.lease().lease_id.clone();
    let (of_lease, span) = (step.clone(), trace::handle_step(step.lease()));
    let race = race(handler, step, deadline, stop).instrument(span.clone());
    // Around all of it: dropping a handler that was stopped may panic too.
    let kind = AssertUnwindSafe(race).catch_unwind().await;
    let mut kind = kind.unwrap_or_else(|panic| Kind::Fail(panicked(&*panic)));
    let mut events = of_lease.take_at_end();
    if let Some(mut what) = excess(&events) {
        events.clear();
        if let Kind::Fail(Failure { error_class, message, .. }) = &kind {
            what = format!("{what}; the attempt had failed as {error_class}: {message}");
        }
        kind = Kind::Fail(HandlerError::new("InvalidEvent", what).permanent().into_failure());
    }
    let traceparent = trace::handled(&span, of_lease.lease(), &kind);
    Ended {
        outcome: Outcome { lease_id: lease_id.clone(), kind: Some(kind), traceparent, events },
        lease_id,
    }
}

async fn race(
    handler: Handler,
    step: StepContext,
    deadline: Instant,
    stop: CancellationToken,
) -> Kind {
    let cancelled = step.cancellation();
    let stopped = async {
        select! {
            () = sleep_until(deadline) => cancelled.cancel(),
            () = stop.cancelled() => {}
        }
        stop.cancelled().await;
        sleep(STOP_GRACE).await;
    };
    select! {
        biased;
        ended = handler(step) => match ended {
            Ok(result) => completion(result),
            Err(error) => Kind::Fail(error.into_failure()),
        },
        () = stopped => Kind::Fail(shut_down()),
    }
}

/// A lease goes back without having been started.
pub(super) fn hand_back(lease_id: String, reason: &str) -> Outcome {
    let kind = Kind::HandBack(HandBack { reason: reason.to_owned() });
    Outcome { lease_id, kind: Some(kind), ..Outcome::default() }
}

/// A lease that no handler fits.
pub(super) fn unknown_handler(lease: Lease) -> Outcome {
    let message = format!(
        "this executor has no handler {:?} for version {} of {:?}",
        lease.handler, lease.definition_version, lease.definition_name
    );
    let failure = HandlerError::new("UnknownHandler", message).into_failure();
    let (lease_id, traceparent) = (lease.lease_id, lease.traceparent);
    Outcome { lease_id, kind: Some(Kind::Fail(failure)), traceparent, ..Outcome::default() }
}

fn completion(result: String) -> Kind {
    if result.len() <= RESULT_BYTES_MAX {
        return Kind::Complete(Completion { result });
    }
    let message = format!("it has {} bytes; at most {RESULT_BYTES_MAX} can be sent", result.len());
    Kind::Fail(HandlerError::new("InvalidResult", message).permanent().into_failure())
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let mut failure = HandlerError::new("Panic", text.unwrap_or("without a text")).into_failure();
    failure.backtrace.clear();
    failure
}

fn shut_down() -> Failure {
    let message = "the executor stopped before its handler was done";
    HandlerError::new("ExecutorShutdown", message).into_failure()
}
