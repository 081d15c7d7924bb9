//! One call: sends the request, follows redirects, and judges what comes back.

use std::{
    error::Error as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use reqwest::{Client, Response, StatusCode, header::RETRY_AFTER};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::{
    Error, Settings,
    answer::{self, Body},
    config::Config,
    failure::Failure,
    hosts::{Hosts, NotPublic, PublicOnly, Trust},
    problem::Problem,
    redirect::{self, REDIRECTS_MAX},
    request::Request,
    secrets::Hider,
    status::{Verdict, retry_after},
};

/// A connection that takes longer goes to the host's next address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent HTTP/2 connection is asked this often whether its peer is there, and given up if it does
/// not answer for half as long: calls share it, and would all be late.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// A failed response whose body dawdles is quoted as far as it came.
const EXCERPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Most connections that are kept for one host.
const IDLE_PER_HOST_MAX: usize = 32;
/// Most bytes of a path in a message.
const PATH_BYTES_MAX: usize = 512;

/// Makes calls.
#[derive(Debug)]
pub(crate) struct Http {
    hosts: Hosts,
    /// For hosts that are named.
    named: Client,
    /// For all others: connects to public addresses only.
    public: Client,
    /// Names of the proxies in use.
    proxies: Arc<[String]>,
}

impl Http {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        // Another part of the process may have chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let proxies = if settings.proxy_from_env { proxies() } else { Vec::new() };
        let proxies: Arc<[String]> = proxies.into();
        let resolver = PublicOnly { proxies: Arc::clone(&proxies) };
        let resolver = Arc::new(resolver);
        Ok(Self {
            hosts: settings.hosts.clone(),
            named: client(settings, |builder| builder)?,
            public: client(settings, |builder| builder.dns_resolver(Arc::clone(&resolver)))?,
            proxies,
        })
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
            let client = self.client(&request.url).map_err(|problem| problem.hidden(hider))?;
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

    /// The client that may connect to where the url leads.
    fn client(&self, url: &Url) -> Result<&Client, Problem> {
        match self.hosts.trust(url)? {
            Trust::Named => Ok(&self.named),
            Trust::Public => {
                let host = url.host_str().unwrap_or_default();
                if self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host)) {
                    return Err(Problem::Host { host: host.into(), what: "is a proxy" });
                }
                Ok(&self.public)
            }
        }
    }
}

/// A client that follows nothing by itself and trusts the roots of the machine; where there are
/// none, those that browsers trust.
fn client(
    settings: &Settings,
    set: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<Client, Error> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("stepwell-http/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .http2_keep_alive_timeout(KEEPALIVE / 2);
        set(if settings.proxy_from_env { builder } else { builder.no_proxy() })
    };
    builder()
        .build()
        .or_else(|_| {
            let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
            let roots: Result<Vec<_>, _> =
                roots.map(|root| reqwest::Certificate::from_der(root)).collect();
            builder().tls_certs_only(roots?).build()
        })
        .map_err(Error::Client)
}

/// Names of the proxies that the environment names.
fn proxies() -> Vec<String> {
    let names = ["http_proxy", "https_proxy", "all_proxy"];
    let values = names.iter().flat_map(|name| [(*name).to_owned(), name.to_uppercase()]);
    let values = values.filter_map(|name| std::env::var(name).ok());
    values.filter_map(|value| proxy_host(&value)).collect()
}

fn proxy_host(value: &str) -> Option<String> {
    let url = Url::parse(value).ok().filter(Url::has_host);
    // `proxy:3128` alone is one too.
    let url = url.or_else(|| Url::parse(&format!("http://{value}")).ok())?;
    url.host_str().map(str::to_owned)
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
    // The url has the query, too.
    let error = error.without_url();
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(inner) = cause {
        if let Some(not_public) = inner.downcast_ref::<NotPublic>() {
            return not_public.problem().hidden(hider).into();
        }
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    Failure::passing(class, hider.text(format!("{about}: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_found_however_it_is_written() {
        for (value, host) in [
            ("http://proxy.internal:3128", Some("proxy.internal")),
            ("socks5://user:word@proxy:1080", Some("proxy")),
            ("proxy:3128", Some("proxy")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("", None),
        ] {
            assert_eq!(proxy_host(value).as_deref(), host, "{value}");
        }
    }

    #[tokio::test]
    async fn the_name_of_a_proxy_is_no_way_around_the_check() {
        let http = Http {
            proxies: vec!["Proxy".to_owned()].into(),
            ..Http::new(&Settings::default()).unwrap()
        };
        let refused = http.client(&Url::parse("http://proxy:8080/").unwrap()).unwrap_err();
        assert_eq!(refused.class(), "HostNotAllowed");
    }
}
