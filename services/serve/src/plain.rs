//! Refusals over plain HTTP: the status that stands for their code, and `google.rpc.Status` as JSON.

use std::error::Error;

use axum::response::{IntoResponse, Response};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use stepwell_proto::{proto_json, refusal::Refusal};
use tonic::{Code, Status};

use crate::answer::log_code;

/// The answer to a request that is refused; it is logged as a call is.
pub fn refused(refusal: Refusal) -> Response {
    // Whole seconds, and not too early.
    let wait = refusal.retry_after.map(|wait| wait.as_secs_f64().ceil());
    let status = Status::from(refusal);
    log_code(status.code(), status.source());
    let json = proto_json::status(&status).ok().and_then(|json| serde_json::to_string(&json).ok());
    let kind = HeaderValue::from_static("application/json");
    let body = ([(CONTENT_TYPE, kind)], json.unwrap_or_default() + "\n");
    let mut answer = (status_of(status.code()), body).into_response();
    if let Some(wait) = wait.and_then(|wait| HeaderValue::from_str(&wait.to_string()).ok()) {
        answer.headers_mut().insert(RETRY_AFTER, wait);
    }
    answer
}

/// As `google/rpc/code.proto` maps them.
fn status_of(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
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
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
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
