//! One call: sends the request, follows redirects, and judges what comes back.

use std::time::{Duration, SystemTime};

use reqwest::{Response, StatusCode, header::RETRY_AFTER};
use serde_json::Value;
use stepwell_outbound::{Clients, reason, retry_after};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::{
    Error, Settings,
    answer::{self, Body},
    config::Config,
    failure::Failure,
    problem::Problem,
    redirect::{self, REDIRECTS_MAX},
    request::Request,
    secrets::Hider,
    status::Verdict,
};

/// A failed response whose body dawdles is quoted as far as it came.
const EXCERPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of a path in a message.
const PATH_BYTES_MAX: usize = 512;

/// Makes calls.
#[derive(Debug)]
pub(crate) struct Http(Clients);

impl Http {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let user_agent = concat!("stepwell-http/", env!("CARGO_PKG_VERSION"));
        let clients = Clients::new(settings.hosts.clone(), user_agent, settings.proxy_from_env);
        Ok(Self(clients.map_err(Error::Client)?))
    }

    /// Calls until the deadline; the step's result.
    pub(crate) async fn call(
        &self,
        mut request: Request,
        config: &Config,
        limit: Duration,
        hider: &Hider,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + limit;
        let late = |about: &str| Failure::passing("Timeout", format!("{about}: no answer in time"));
        for _ in 0..=REDIRECTS_MAX {
            let about = hider.text(about(&request));
            let client = self.0.of(&request.url);
            let client = client.map_err(|host| Problem::from(host).hidden(hider))?;
            let sent = timeout_at(deadline, client.execute(sendable(&request)));
            let response = sent.await.map_err(|_| late(&about))?;
            let response = response.map_err(|error| broken(&about, error, hider))?;
            let status = response.status();
            let listed = config.rules.listed(status.as_u16()).is_some();
            if !listed && let Some(place) = redirect::location(status, response.headers()) {
                request = redirect::follow(request, status, place)?;
                continue;
            }
            let judged = judge(response, config, &about, deadline, hider);
            return timeout_at(deadline, judged).await.map_err(|_| late(&about))?;
        }
        let what = format!("there are more than {REDIRECTS_MAX}");
        Err(Problem::Redirect { what }.into())
    }
}

fn sendable(request: &Request) -> reqwest::Request {
    let mut sent = reqwest::Request::new(request.method.clone(), request.url.clone());
    *sent.headers_mut() = request.headers.clone();
    *sent.body_mut() = request.body.clone().map(Into::into);
    sent
}

/// What a message says of a request: method, host and path.
fn about(request: &Request) -> String {
    let (host, path) = (host(&request.url), request.url.path());
    let path = &path[..path.floor_char_boundary(PATH_BYTES_MAX)];
    format!("{} {host}{path}", request.method)
}

/// Host, and the port if it is not the scheme's own.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

async fn judge(
    response: Response,
    config: &Config,
    about: &str,
    deadline: Instant,
    hider: &Hider,
) -> Result<Value, Failure> {
    let status = response.status();
    let heeded = match config.rules.verdict(status.as_u16()) {
        Verdict::Success => return result(response, config, about, hider).await,
        Verdict::Permanent => {
            return Err(failed(response, about, deadline, hider).await.permanent());
        }
        Verdict::Retry { heeded } => heeded,
    };
    let header = response.headers().get(RETRY_AFTER).filter(|_| heeded);
    let header = header.and_then(|header| header.to_str().ok());
    let wait = header.and_then(|header| retry_after(header, SystemTime::now()));
    let failure = failed(response, about, deadline, hider).await;
    Err(match wait {
        Some(wait) => failure.retry_after(wait),
        None => failure,
    })
}

async fn result(
    response: Response,
    config: &Config,
    about: &str,
    hider: &Hider,
) -> Result<Value, Failure> {
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes_max = config.response_bytes_max;
    let of_headers = if config.full { answer::bytes_of(&headers) } else { 0 };
    let read = match bytes_max.checked_sub(of_headers) {
        Some(left) => answer::read(response, left).await,
        None => Ok(Body::TooLarge),
    };
    let body = match read.map_err(|error| broken(about, error, hider))? {
        Body::Whole(body) => answer::value(&headers, &body),
        Body::TooLarge => {
            let message =
                format!("{about}: {status}: the response has more than {bytes_max} bytes");
            return Err(Failure::too_large(status, message));
        }
    };
    let result = if config.full { answer::full(status.as_u16(), &headers, body) } else { body };
    Ok(hider.value(result))
}

async fn failed(response: Response, about: &str, deadline: Instant, hider: &Hider) -> Failure {
    let (status, mut body) = (response.status(), Vec::new());
    let until = deadline.min(Instant::now() + EXCERPT_TIMEOUT);
    // What came until then is what is quoted.
    let _ = timeout_at(until, answer::read_excerpt(response, &mut body)).await;
    let excerpt = answer::excerpt(&body, |text| hider.text(text));
    Failure::status(status, said(about, status, &excerpt))
}

fn said(about: &str, status: StatusCode, excerpt: &str) -> String {
    if excerpt.is_empty() {
        format!("{about}: {status}")
    } else {
        format!("{about}: {status}: {excerpt}")
    }
}

/// There was no answer, or it ended before its end.
fn broken(about: &str, error: reqwest::Error, hider: &Hider) -> Failure {
    let class = if error.is_connect() { "ConnectError" } else { "TransportError" };
    match reason(error) {
        Ok(text) => Failure::passing(class, hider.text(format!("{about}: {text}"))),
        Err(not_allowed) => Problem::from(not_allowed).hidden(hider).into(),
    }
}
