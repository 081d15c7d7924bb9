//! The clients that calls go out by: they connect only where calls may go, and follow nothing.

use std::{error::Error, sync::Arc, time::Duration};

use reqwest::{Client, ClientBuilder};
use url::Url;

use crate::hosts::{Hosts, NotAllowed, PublicOnly, Trust};

/// A connection that takes longer goes to the host's next address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent HTTP/2 connection is asked this often whether its peer is there, and given up if it does
/// not answer for half as long: calls share it, and would all be late.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Most connections that are kept for one host.
const IDLE_PER_HOST_MAX: usize = 32;

/// Clients of HTTP that do not follow redirects. The address that was checked is the one that is
/// connected to.
#[derive(Clone, Debug)]
pub struct Clients {
    hosts: Hosts,
    /// For hosts that are named.
    named: Client,
    /// For all others: connects to public addresses only.
    public: Client,
    /// Names of the proxies in use.
    proxies: Arc<[String]>,
}

impl Clients {
    /// Clients for these hosts, that say who they are. With `proxy_from_env` calls go through the
    /// proxies that the environment names, which look names up themselves.
    ///
    /// Errors: TLS cannot be set up.
    pub fn new(
        hosts: Hosts,
        user_agent: &'static str,
        proxy_from_env: bool,
    ) -> Result<Self, reqwest::Error> {
        // Another part of the process may have chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let proxies = if proxy_from_env { proxies() } else { Vec::new() };
        let proxies: Arc<[String]> = proxies.into();
        let resolver = Arc::new(PublicOnly { proxies: Arc::clone(&proxies) });
        let client =
            |set: &dyn Fn(ClientBuilder) -> ClientBuilder| client(user_agent, proxy_from_env, set);
        Ok(Self {
            hosts,
            named: client(&|builder| builder)?,
            public: client(&|builder| builder.dns_resolver(Arc::clone(&resolver)))?,
            proxies,
        })
    }

    /// The client that may connect to where the url leads.
    ///
    /// Errors: none may.
    pub fn of(&self, url: &Url) -> Result<&Client, NotAllowed> {
        match self.hosts.trust(url)? {
            Trust::Named => Ok(&self.named),
            Trust::Public => {
                let host = url.host_str().unwrap_or_default();
                if self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host)) {
                    return Err(NotAllowed { host: host.into(), what: "is a proxy" });
                }
                Ok(&self.public)
            }
        }
    }
}

/// Why a call got no answer, without its url; that it may not go there, if it may not.
pub fn reason(error: reqwest::Error) -> Result<String, NotAllowed> {
    // The url has the query, too.
    let error = error.without_url();
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(inner) = cause {
        if let Some(not_allowed) = inner.downcast_ref::<NotAllowed>() {
            return Err(not_allowed.clone());
        }
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    Ok(text)
}

/// A client that follows nothing by itself and trusts the roots of the machine; where there are
/// none, those that browsers trust.
fn client(
    user_agent: &'static str,
    proxy_from_env: bool,
    set: &dyn Fn(ClientBuilder) -> ClientBuilder,
) -> Result<Client, reqwest::Error> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .http2_keep_alive_timeout(KEEPALIVE / 2);
        set(if proxy_from_env { builder } else { builder.no_proxy() })
    };
    builder().build().or_else(|_| {
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
        let roots: Result<Vec<_>, _> =
            roots.map(|root| reqwest::Certificate::from_der(root)).collect();
        builder().tls_certs_only(roots?).build()
    })
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

    #[test]
    fn the_name_of_a_proxy_is_no_way_around_the_check() {
        let clients = Clients {
            proxies: vec!["Proxy".to_owned()].into(),
            ..Clients::new(Hosts::default(), "test", false).unwrap()
        };
        let refused = clients.of(&Url::parse("http://proxy:8080/").unwrap()).unwrap_err();
        assert_eq!(refused.to_string(), "proxy is a proxy");
    }
}
