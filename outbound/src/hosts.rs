//! Where calls may go: hosts that are named, or addresses that are public.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// The hosts that calls may go to. None named: any, at public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    allowed: Vec<AllowedHost>,
    private: bool,
}

/// One entry: `api.example.com`, `*.example.com` (all below it), `10.0.0.7:8080`, `[::1]:8080`, or
/// `*` (any, at public addresses). Without a port all ports are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    names: Names,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    Any,
    /// Ends of names, with their dot.
    Below(String),
    Exactly(String),
}

/// To which addresses of a host a connection may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The host is named: to any.
    Named,
    /// To public ones.
    Public,
}

impl Hosts {
    /// These and no others, unless there are none.
    pub fn new(hosts: impl IntoIterator<Item = AllowedHost>) -> Self {
        Self { allowed: hosts.into_iter().collect(), private: false }
    }

    /// Whether hosts that fit may have any address, named or not. Default: false.
    #[must_use]
    pub fn private(self, private: bool) -> Self {
        Self { private, ..self }
    }

    /// Whether a call may go there, as far as the url tells: names are looked up later.
    ///
    /// Errors: it may not.
    pub fn trust(&self, url: &Url) -> Result<Trust, NotAllowed> {
        let host = url.host_str().unwrap_or_default();
        let name = host.strip_suffix('.').unwrap_or(host);
        let port = url.port_or_known_default();
        let mut fitting = self.allowed.iter().filter(|allowed| allowed.fits(name, port)).peekable();
        if fitting.peek().is_none() && !self.allowed.is_empty() {
            return Err(NotAllowed { host: host.into(), what: "is not among the allowed hosts" });
        }
        if self.private || fitting.any(|allowed| allowed.names != Names::Any) {
            return Ok(Trust::Named);
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        if address.is_some_and(|address| !is_public(address)) {
            return Err(NotAllowed::private(host));
        }
        Ok(Trust::Public)
    }
}

impl AllowedHost {
    fn fits(&self, name: &str, port: Option<u16>) -> bool {
        let named = match &self.names {
            Names::Any => true,
            Names::Below(end) => name.len() > end.len() && name.ends_with(end.as_str()),
            Names::Exactly(exactly) => name == exactly,
        };
        named && (self.port.is_none() || self.port == port)
    }
}

/// It is no entry of allowed hosts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no host: give a name, `*.name` or an address (IPv6 in brackets), with `:port` or \
     without, or `*`"
)]
pub struct NoHost(pub String);

impl FromStr for AllowedHost {
    type Err = NoHost;

    fn from_str(text: &str) -> Result<Self, NoHost> {
        let wrong = || NoHost(text.to_owned());
        let (host, port) = match text.rsplit_once(':') {
            // The colons of an address in brackets are its own.
            Some((host, port)) if !port.ends_with(']') => {
                (host, Some(port.parse().ok().filter(|&port| port > 0).ok_or_else(wrong)?))
            }
            _ => (text, None),
        };
        // As urls spell it: small letters, and one spelling of an address.
        let spelt = |host: &str| match Host::parse(host) {
            Ok(Host::Domain(name)) => Ok(name.strip_suffix('.').unwrap_or(&name).to_owned()),
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err(wrong()),
        };
        let names = match host.strip_prefix("*.") {
            _ if host == "*" => Names::Any,
            Some(end) if !end.contains('*') && matches!(Host::parse(end), Ok(Host::Domain(_))) => {
                Names::Below(format!(".{}", spelt(end)?))
            }
            Some(_) => return Err(wrong()),
            None if host.contains('*') => return Err(wrong()),
            None => Names::Exactly(spelt(host)?),
        };
        Ok(Self { names, port })
    }
}

// ── addresses ───────────────────────────────────────────────────────────────────────────────────

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), bits)
}

/// What is not the public internet's, by IANA's registry of special purposes, and one address that
/// looks public and is a cloud's own.
const NOT_PUBLIC_V4: [Ipv4Net; 17] = [
    v4(0, 0, 0, 0, 8),          // unspecified, this network
    v4(10, 0, 0, 0, 8),         // private
    v4(100, 64, 0, 0, 10),      // carrier-grade NAT; also 100.100.100.200, metadata of a cloud
    v4(127, 0, 0, 0, 8),        // loopback
    v4(168, 63, 129, 16, 32),   // metadata of a cloud
    v4(169, 254, 0, 0, 16),     // link-local; also 169.254.169.254, metadata of most clouds
    v4(172, 16, 0, 0, 12),      // private
    v4(192, 0, 0, 0, 24),       // protocols; also 192.0.0.192, metadata of a cloud
    v4(192, 0, 2, 0, 24),       // documentation
    v4(192, 88, 99, 0, 24),     // relays of 6to4
    v4(192, 168, 0, 0, 16),     // private
    v4(198, 18, 0, 0, 15),      // benchmarks
    v4(198, 51, 100, 0, 24),    // documentation
    v4(203, 0, 113, 0, 24),     // documentation
    v4(224, 0, 0, 0, 4),        // multicast
    v4(240, 0, 0, 0, 4),        // reserved
    v4(255, 255, 255, 255, 32), // broadcast
];

/// Where addresses of the public internet are: all others are loopback, unique-local, link-local,
/// multicast or nobody's.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);
const NOT_PUBLIC_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 23),     // protocols, Teredo
    v6(0x2001, 0xdb8, 32), // documentation
    v6(0x2002, 0, 16),     // 6to4: an IPv4 address inside
    v6(0x3fff, 0, 20),     // documentation
];
/// Gateways to IPv4, whose addresses are its last four bytes.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 96);

/// True for an address of the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !NOT_PUBLIC_V4.iter().any(|net| net.contains(&v4)),
        IpAddr::V6(v6) => match inner_v4(v6) {
            Some(v4) => is_public(IpAddr::V4(v4)),
            None => GLOBAL_V6.contains(&v6) && !NOT_PUBLIC_V6.iter().any(|net| net.contains(&v6)),
        },
    }
}

/// The IPv4 address that an IPv6 address leads to.
fn inner_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = v6.octets();
    v6.to_ipv4_mapped().or_else(|| NAT64.contains(&v6).then(|| Ipv4Addr::new(a, b, c, d)))
}

/// A call may not go to this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} {what}")]
pub struct NotAllowed {
    /// The host.
    pub host: String,
    /// Why not.
    pub what: &'static str,
}

impl NotAllowed {
    fn private(host: &str) -> Self {
        let what = "has no public address, and is not among the allowed hosts";
        Self { host: host.to_owned(), what }
    }
}

/// Looks names up and answers public addresses only: what is checked is what is connected to. The
/// names of proxies may have any.
#[derive(Debug)]
pub(crate) struct PublicOnly {
    pub(crate) proxies: Arc<[String]>,
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            if is_proxy {
                let all: Vec<SocketAddr> = found.collect();
                return Ok(Box::new(all.into_iter()) as Addrs);
            }
            Ok(Box::new(public(name.as_str(), found)?.into_iter()) as Addrs)
        })
    }
}

/// The public ones of what was found.
fn public(
    name: &str,
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, NotAllowed> {
    let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
    if public.is_empty() { Err(NotAllowed::private(name)) } else { Ok(public) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(entries: &[&str]) -> Hosts {
        Hosts::new(entries.iter().map(|entry| entry.parse().unwrap()))
    }

    fn trust(hosts: &Hosts, url: &str) -> Option<Trust> {
        hosts.trust(&Url::parse(url).unwrap()).ok()
    }

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "168.63.129.15",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:200::1",
            "2a00::1",
            "2003::",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn without_names_any_host_is_allowed_unless_its_address_is_not_public() {
        let any = hosts(&[]);
        for url in
            ["https://example.com", "http://1.1.1.1:81/", "http://localhost/", "http://[2a00::1]/"]
        {
            assert_eq!(trust(&any, url), Some(Trust::Public), "{url}");
        }
        for url in [
            "http://127.0.0.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://127.1./",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://169.254.169.254/",
        ] {
            assert_eq!(trust(&any, url), None, "{url}");
        }
    }

    #[test]
    fn with_names_only_those_are_allowed() {
        let some = hosts(&["API.example.com", "*.internal", "10.0.0.7:8080", "[::1]", "ü.example"]);
        for url in [
            "https://api.example.com/",
            "http://api.example.com.:81/",
            "http://a.internal/",
            "http://a.b.INTERNAL/",
            "http://10.0.0.7:8080/",
            "http://[0::1]:7/",
            "http://ü.example/",
        ] {
            assert_eq!(trust(&some, url), Some(Trust::Named), "{url}");
        }
        for url in [
            "https://example.com/",
            "https://xapi.example.com/",
            "https://api.example.com.evil/",
            "http://internal/",
            "http://xinternal/",
            "http://10.0.0.7/",
            "http://10.0.0.8:8080/",
            "http://1.1.1.1/",
        ] {
            assert_eq!(trust(&some, url), None, "{url}");
        }
    }

    #[test]
    fn a_star_stands_for_public_addresses_beside_those_that_are_named() {
        let both = hosts(&["*", "localhost:8080"]);
        assert_eq!(trust(&both, "http://localhost:8080/"), Some(Trust::Named));
        assert_eq!(trust(&both, "http://localhost:8081/"), Some(Trust::Public));
        assert_eq!(trust(&both, "http://example.com/"), Some(Trust::Public));
        assert_eq!(trust(&both, "http://127.0.0.1:8080/"), None);
        let tls = hosts(&["*:443"]);
        assert_eq!(trust(&tls, "https://example.com/"), Some(Trust::Public));
        assert_eq!(trust(&tls, "http://example.com/"), None);
    }

    #[test]
    fn where_private_addresses_are_allowed_the_names_still_count() {
        let any = hosts(&[]).private(true);
        assert_eq!(trust(&any, "http://127.0.0.1/"), Some(Trust::Named));
        let some = hosts(&["*:8080"]).private(true);
        assert_eq!(trust(&some, "http://10.0.0.1:8080/"), Some(Trust::Named));
        assert_eq!(trust(&some, "http://10.0.0.1/"), None);
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for wrong in [
            "",
            "*.",
            "*x",
            "a.*",
            "*.*",
            "http://a",
            "a/b",
            "a:0",
            "a:65536",
            "a:x",
            ":80",
            "::1",
            "*.10.0.0.1",
            "a b",
            "[::1",
            "a@b",
        ] {
            assert!(wrong.parse::<AllowedHost>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn of_what_a_name_means_only_the_public_addresses_are_left() {
        let found = |list: &[&str]| {
            let list: Vec<SocketAddr> = list.iter().map(|a| a.parse().unwrap()).collect();
            public("a", list.into_iter())
        };
        let both = found(&["10.0.0.1:0", "1.1.1.1:0", "[::1]:0"]).unwrap();
        assert_eq!(both, ["1.1.1.1:0".parse().unwrap()]);
        assert!(found(&["10.0.0.1:0"]).is_err());
        assert!(found(&[]).is_err());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_refused_when_it_leads_inside() {
        let resolver = |proxies: &[&str]| PublicOnly {
            proxies: proxies.iter().map(|&name| name.to_owned()).collect(),
        };
        let refused = resolver(&[]).resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(refused.downcast_ref::<NotAllowed>().is_some(), "{refused}");
        let mut proxy =
            resolver(&["LocalHost"]).resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(proxy.next().unwrap().ip().is_loopback());
    }
}
