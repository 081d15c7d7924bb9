//! One unary call with its deadline and its repeats. Repeating is safe for every call: what writes
//! is idempotent by id, state or content.

use std::{error::Error as _, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_types::StatusExt;

use crate::{
    backoff::Backoff,
    error::Error,
    limits::{Limits, after},
    pool::Pool,
    trace,
};

/// Makes the call, again and at the next address as long as that can help and the limits allow.
pub(crate) async fn call<Q: Clone, A, F>(
    pool: &Pool,
    limits: &Limits,
    request: &Q,
    rpc: impl Fn(Channel, Request<Q>) -> F,
) -> Result<A, Error>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let give_up = after(limits.call_timeout);
    let mut backoff = Backoff::of_calls();
    let mut turn = pool.turn();
    let mut attempts = limits.attempts.max(1);
    loop {
        let allowed = limits.attempt_timeout.min(give_up - Instant::now());
        let mut message = Request::new(request.clone());
        message.set_timeout(allowed);
        trace::inject(message.metadata_mut());
        let answer = timeout(allowed, rpc(pool.channel(turn), message)).await;
        let (error, wait) = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) if is_expired(&status) => (Error::NoAnswer(allowed), backoff.next()),
            Ok(Err(status)) => {
                let status = unavailable_if_broken(status);
                match wait_after(&status, &mut backoff) {
                    Some(wait) => (status.into(), wait),
                    None => return Err(status.into()),
                }
            }
            Err(_) => (Error::NoAnswer(allowed), backoff.next()),
        };
        attempts -= 1;
        if attempts == 0 || Instant::now() + wait >= give_up {
            return Err(error);
        }
        tracing::debug!(%error, ?wait, "call is repeated");
        sleep(wait).await;
        turn += 1;
    }
}

/// The transport has other words for a connection that broke; the service never said them.
fn unavailable_if_broken(status: Status) -> Status {
    let is_broken = matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled)
        && status.source().is_some();
    if !is_broken {
        return status;
    }
    let mut unavailable = Status::unavailable(status.message());
    unavailable.set_source(Arc::new(status));
    unavailable
}

/// How long to wait before the call is repeated; none: repeating it cannot help.
fn wait_after(status: &Status, backoff: &mut Backoff) -> Option<Duration> {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    match (status.code(), asked) {
        // A little later than asked for, so that those who were told the same do not come at once.
        (Code::Unavailable | Code::ResourceExhausted, Some(wait)) => {
            Some(wait + backoff.next().min(wait / 10))
        }
        (Code::Unavailable, None) => Some(backoff.next()),
        _ => None,
    }
}

/// The transport reports an expired deadline as cancelled.
fn is_expired(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    status.code() == Code::DeadlineExceeded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_broke_is_unavailable_whatever_the_transport_calls_it() {
        let broke = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        for code in [Code::Unknown, Code::Internal, Code::Cancelled] {
            let said = Status::new(code, "no");
            assert_eq!(unavailable_if_broken(said.clone()).code(), code, "the service said so");
            let mut broken = said;
            broken.set_source(Arc::new(broke()));
            let told = unavailable_if_broken(broken);
            assert_eq!((told.code(), told.message()), (Code::Unavailable, "no"));
            let cause = told.source().unwrap().source().unwrap();
            assert_eq!(cause.to_string(), broke().to_string());
        }
    }
}
