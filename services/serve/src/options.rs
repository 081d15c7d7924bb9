//! What every service can be told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, builder::RangedU64ValueParser};
use http::{HeaderName, HeaderValue, Method, Uri, header::RETRY_AFTER};
use tower_http::cors::{AllowHeaders, CorsLayer};

/// How lines of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// How old connections become.
#[derive(Clone, Copy, Debug)]
pub struct Age(pub(crate) Duration);

impl Age {
    /// When a stream that begins now is old: before its connection is, and not all at once.
    pub fn of_a_stream(self) -> Duration {
        self.0.mul_f64(rand::random_range(0.8..0.95))
    }
}

/// Options that all services share.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address and port to listen on; port 0 takes a free one. Default: 127.0.0.1 and the service's
    /// own port.
    #[arg(long, env = "STEPWELL_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Listen on an address that others can reach, although requests are not authenticated.
    /// Default: only loopback. In the environment: true or false.
    #[arg(long, env = "STEPWELL_INSECURE")]
    pub insecure: bool,
    /// How lines of the log look, on standard error. Default: human.
    #[arg(long, env = "STEPWELL_LOG", value_enum, default_value_t)]
    pub log: LogFormat,
    /// Which lines are logged: `error`, `warn`, `info`, `debug`, or a list such as
    /// `info,stepwell_step=debug`. Default: info.
    #[arg(long, env = "STEPWELL_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
    /// Where spans and metrics are sent: an OTLP receiver for gRPC, `http://host:4317` or `https://…`.
    /// Default, and empty: no spans are made and nothing is sent; `/metrics` is there in any case.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Of the calls that belong to no trace yet, this part begins one. 0 to 1; default 1. Those
    /// that belong to one are recorded if their caller's part is.
    #[arg(long, env = "STEPWELL_TRACE_SAMPLE", default_value_t = 1.0, value_parser = ratio)]
    pub trace_sample: f64,
    /// After this long a shutdown no longer waits for anybody. Seconds, 0 to 300; default 10.
    #[arg(long, env = "STEPWELL_GRACE", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub grace: u64,
    /// Threads that run the service. 1 to 64. Default: one for two processors, since Postgres needs
    /// the others.
    #[arg(long, env = "STEPWELL_WORKER_THREADS", default_value_t = threads_here(), value_parser = threads())]
    pub worker_threads: usize,
    /// Connections at once; more wait to be accepted. Fewer if the process may not open so many
    /// files. 1 to 100,000; default 4,096.
    #[arg(long, env = "STEPWELL_CONNECTIONS_MAX", default_value_t = CONNECTIONS_MAX, value_parser = connections())]
    pub connections_max: usize,
    /// Connections at once from one address (IPv6: one /64 network); more are closed. Raise it where
    /// all clients come through one proxy. 1 to 100,000; default 1,024.
    #[arg(long, env = "STEPWELL_CONNECTIONS_PER_ADDRESS_MAX", default_value_t = CONNECTIONS_PER_ADDRESS_MAX, value_parser = connections())]
    pub connections_per_address_max: usize,
    /// A silent peer is asked this often whether it is still there, and given up if it does not
    /// answer for half as long; also one that reads nothing for both together. Seconds, 1 to 3,600;
    /// default 20.
    #[arg(long, env = "STEPWELL_KEEPALIVE", default_value_t = KEEPALIVE, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub keepalive: u64,
    /// A connection that has become so old takes no new calls, and its streams are asked to go on
    /// elsewhere, so that clients spread over all copies. Seconds, 1 to 604,800; default 1,800.
    #[arg(long, env = "STEPWELL_CONNECTION_AGE", default_value_t = CONNECTION_AGE, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub connection_age: u64,
    /// Web pages of these origins, such as `https://console.example.com`, may call from a browser;
    /// several with commas. Default: none but those of this port itself, by its number or as
    /// `localhost`.
    #[arg(long, env = "STEPWELL_ALLOW_ORIGINS", value_delimiter = ',', value_parser = origin)]
    pub allow_origins: Vec<HeaderValue>,
    /// A file to write the address to, once it is known: for launchers.
    #[arg(long, hide = true)]
    pub address_file: Option<PathBuf>,
}

const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_PER_ADDRESS_MAX: usize = 1024;
const KEEPALIVE: u64 = 20;
const CONNECTION_AGE: u64 = 1800;

fn connections() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=100_000)
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "0 to 1 is wanted".to_owned())
}

fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=64)
}

fn threads_here() -> usize {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).clamp(1, 64))
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: None,
            insecure: false,
            log: LogFormat::Human,
            log_filter: "info".into(),
            otlp_endpoint: None,
            trace_sample: 1.0,
            grace: 10,
            worker_threads: threads_here(),
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: CONNECTIONS_PER_ADDRESS_MAX,
            keepalive: KEEPALIVE,
            connection_age: CONNECTION_AGE,
            allow_origins: Vec::new(),
            address_file: None,
        }
    }
}

impl Options {
    /// The receiver of spans and metrics, if one is named.
    pub(crate) fn collector(&self) -> Option<&str> {
        self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }

    /// What browsers are told about pages of other origins; nothing if there are none.
    pub(crate) fn cors(&self) -> Option<CorsLayer> {
        if self.allow_origins.is_empty() {
            return None;
        }
        let told = ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"];
        let cors = CorsLayer::new()
            .allow_origin(self.allow_origins.clone())
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(
                told.map(HeaderName::from_static)
                    .into_iter()
                    .chain([RETRY_AFTER])
                    .collect::<Vec<_>>(),
            )
            .max_age(Duration::from_secs(3600));
        Some(cors)
    }

    /// How old connections become.
    pub fn age(&self) -> Age {
        Age(Duration::from_secs(self.connection_age))
    }

    /// The address to listen on: loopback and the service's own port unless told otherwise.
    pub fn listen_or(&self, default_port: u16) -> SocketAddr {
        self.listen.unwrap_or_else(|| ([127, 0, 0, 1], default_port).into())
    }

    /// The same, refused when others could reach it and nobody said so.
    pub(crate) fn address(&self, default_port: u16) -> anyhow::Result<SocketAddr> {
        let address = self.listen_or(default_port);
        if !address.ip().is_loopback() && !self.insecure {
            anyhow::bail!(
                "{address} can be reached by others, and requests are not authenticated: \
                 listen on 127.0.0.1, or say --insecure if the network is trusted"
            );
        }
        Ok(address)
    }
}

/// A scheme, a host, and a port if it is not the scheme's own.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong = || "an origin looks like https://console.example.com".to_owned();
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let parts = uri.scheme_str().zip(uri.authority()).ok_or_else(wrong)?;
    let whole = format!("{}://{}", parts.0, parts.1);
    if !matches!(parts.0, "http" | "https") || whole != text || text.contains('@') {
        return Err(wrong());
    }
    HeaderValue::from_str(text).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Told {
        #[command(flatten)]
        options: Options,
    }

    fn told(words: &[&str]) -> Result<Options, clap::Error> {
        let words = [&["service"], words].concat();
        clap::Parser::try_parse_from(words).map(|told: Told| told.options)
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_and_named() {
        let within = told(&["--worker-threads", "64", "--grace", "0", "--log", "json"]).unwrap();
        assert_eq!((within.worker_threads, within.grace, within.log), (64, 0, LogFormat::Json));
        for (option, value) in [
            ("--worker-threads", "0"),
            ("--worker-threads", "65"),
            ("--connections-max", "0"),
            ("--connections-per-address-max", "100001"),
            ("--keepalive", "0"),
            ("--connection-age", "604801"),
            ("--grace", "301"),
            ("--trace-sample", "1.1"),
            ("--trace-sample", "NaN"),
            ("--log", "xml"),
            ("--listen", "localhost"),
            ("--allow-origins", "*"),
            ("--allow-origins", "console.example.com"),
            ("--allow-origins", "https://console.example.com/page"),
        ] {
            let refused = told(&[option, value]).unwrap_err().to_string();
            assert!(refused.contains(option) && refused.contains(value), "{refused}");
        }
    }

    #[test]
    fn an_address_that_others_can_reach_needs_a_word() {
        let mut options = Options { listen: Some(([0, 0, 0, 0], 1).into()), ..Options::default() };
        let refused = options.address(7).unwrap_err().to_string();
        assert!(refused.contains("0.0.0.0:1") && refused.contains("--insecure"), "{refused}");
        options.insecure = true;
        assert!(options.address(7).is_ok());
        options.listen = None;
        assert_eq!(options.address(7).unwrap(), ([127, 0, 0, 1], 7).into());
    }
}
