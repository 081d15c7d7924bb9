//! Refusals over plain HTTP: the status that stands for their code, and what is wrong as the Connect protocol
//! writes it.

use std::error::Error;

use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use stepwell_proto::{proto_json, refusal::Refusal};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt;

use crate::answer::log_code;

/// The answer to a request that is refused; it is logged as a call is.
pub fn refused(refusal: Refusal) -> Response<Body> {
    let status = Status::from(refusal);
    log_code(status.code(), status.source());
    failed(&status)
}

/// The same of a call, which is logged as such.
pub(crate) fn failed(status: &Status) -> Response<Body> {
    let body = Body::new(proto_json::error(status).to_string() + "\n");
    let mut answer = Response::new(body);
    *answer.status_mut() = status_of(status.code());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Whole seconds, and not too early.
    let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let wait = wait.map(|wait| wait.as_secs_f64().ceil().to_string());
    if let Some(wait) = wait.and_then(|wait| HeaderValue::from_str(&wait).ok()) {
        headers.insert(RETRY_AFTER, wait);
    }
    answer
}

/// As the Connect protocol maps them.
fn status_of(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Aborted | Code::AlreadyExists => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stepwell_proto::v1::ErrorReason;

    use super::*;

    #[test]
    fn every_reason_is_an_error_in_plain_http_too_and_says_when_to_come_again() {
        for number in 1..200 {
            let Ok(reason) = ErrorReason::try_from(number) else { continue };
            let refusal = Refusal::new(reason, "no");
            let answer = refused(refusal.retry_after(Duration::from_millis(200)));
            let status = answer.status();
            assert!(status.is_client_error() || status.is_server_error(), "{reason:?}: {status}");
            assert_eq!(answer.headers()[RETRY_AFTER], "1");
            assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
        }
        let answer = refused(Refusal::new(ErrorReason::TaskNotFound, "no"));
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        assert!(!answer.headers().contains_key(RETRY_AFTER));
    }
}
