//! What the program can be told.

use std::time::Duration;

use clap::{Parser, ValueEnum, builder::RangedU64ValueParser};
use stepwell_client::{Addresses, Client, Executor};
use stepwell_http::{AllowedHost, Hosts, Secrets, Settings};

/// Runs steps that are HTTP calls. A step says its call in its config; `${secret.NAME}` stands for
/// the variable STEPWELL_HTTP_SECRET_NAME of this process.
#[derive(Parser, Debug)]
#[command(name = "stepwell-http", version)]
pub(crate) struct Options {
    /// Its name, for people. At most 256 bytes; default `http`.
    #[arg(long, env = "STEPWELL_HTTP_NAME", default_value = "http", hide_default_value = true)]
    pub(crate) name: String,
    /// A handler that it runs; may be repeated, with commas in the environment. 1 to 1,000; default
    /// `http`.
    #[arg(
        long = "handler",
        env = "STEPWELL_HTTP_HANDLER",
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "http",
        hide_default_value = true
    )]
    pub(crate) handlers: Vec<String>,
    /// Namespace of the definitions whose steps it runs. Default `default`.
    #[arg(
        long,
        env = "STEPWELL_HTTP_NAMESPACE",
        default_value = "default",
        hide_default_value = true
    )]
    pub(crate) namespace: String,
    /// Calls at once. 1 to 10,000; default 16. Each may take some MiB of memory: values, request and
    /// response.
    #[arg(long, env = "STEPWELL_HTTP_SLOTS", default_value_t = 16, hide_default_value = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) slots: usize,
    /// A host that calls may go to, whatever its address; may be repeated, with commas in the
    /// environment: `api.example.com`, `*.example.com` (all below it), `10.0.0.7:8080`, or `*` (any
    /// host, at public addresses). With any, calls go nowhere else. Default: any host, at public
    /// addresses.
    #[arg(
        long = "allow-host",
        env = "STEPWELL_HTTP_ALLOW_HOST",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub(crate) allow_hosts: Vec<AllowedHost>,
    /// Use the proxies that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name; they look names up
    /// themselves, unchecked. Default: no proxy. In the environment: true or false.
    #[arg(long, env = "STEPWELL_HTTP_PROXY_FROM_ENV")]
    pub(crate) proxy_from_env: bool,
    /// How long running calls may go on once it is told to stop. Seconds, 0 to 300; default 30.
    #[arg(long, env = "STEPWELL_HTTP_GRACE", default_value_t = 30, hide_default_value = true, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub(crate) grace: u64,
    /// How lines of the log look, on standard error. Default: human.
    #[arg(long, env = "STEPWELL_HTTP_LOG", value_enum, default_value_t, hide_default_value = true)]
    pub(crate) log: LogFormat,
    /// Which lines are logged: `error`, `warn`, `info`, `debug`, or a list such as
    /// `info,stepwell_http=debug`. Default: info.
    #[arg(
        long,
        env = "STEPWELL_HTTP_LOG_FILTER",
        default_value = "info",
        hide_default_value = true
    )]
    pub(crate) log_filter: String,
    /// Address of the task-service; several with commas. Default `http://127.0.0.1:7101`.
    #[arg(
        long,
        env = "STEPWELL_TASK_ADDRESS",
        default_value = "http://127.0.0.1:7101",
        hide_default_value = true,
        value_delimiter = ','
    )]
    pub(crate) task_address: Vec<String>,
    /// Address of the step-service; several with commas. Default `http://127.0.0.1:7102`.
    #[arg(
        long,
        env = "STEPWELL_STEP_ADDRESS",
        default_value = "http://127.0.0.1:7102",
        hide_default_value = true,
        value_delimiter = ','
    )]
    pub(crate) step_address: Vec<String>,
    /// Address of the event-service; several with commas. Default `http://127.0.0.1:7103`.
    #[arg(
        long,
        env = "STEPWELL_EVENT_ADDRESS",
        default_value = "http://127.0.0.1:7103",
        hide_default_value = true,
        value_delimiter = ','
    )]
    pub(crate) event_address: Vec<String>,
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl Options {
    /// The executor they describe.
    pub(crate) fn executor(&self) -> anyhow::Result<Executor> {
        let client = Client::connect(Addresses {
            task: self.task_address.clone(),
            step: self.step_address.clone(),
            event: self.event_address.clone(),
        })?;
        let settings = Settings {
            handlers: self.handlers.clone(),
            hosts: Hosts::new(self.allow_hosts.iter().cloned()),
            secrets: Secrets::from_env()?,
            proxy_from_env: self.proxy_from_env,
        };
        let executor = stepwell_http::executor(&client, &self.name, settings)?;
        let grace = Duration::from_secs(self.grace);
        Ok(executor.namespace(&self.namespace).slots(self.slots).grace(grace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(words: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["stepwell-http"], words].concat())
    }

    #[test]
    fn everything_has_a_default_and_lists_may_be_repeated() {
        let options = told(&[]).unwrap();
        assert_eq!((options.handlers.as_slice(), options.slots), (&["http".to_owned()][..], 16));
        assert!(options.allow_hosts.is_empty() && !options.proxy_from_env);
        let options =
            told(&["--handler", "get", "--handler", "a,b", "--allow-host", "a:1"]).unwrap();
        assert_eq!(options.handlers, ["get", "a", "b"]);
        assert_eq!(options.allow_hosts, ["a:1".parse().unwrap()]);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_and_named() {
        for (option, value) in [
            ("--slots", "0"),
            ("--slots", "10001"),
            ("--grace", "301"),
            ("--log", "xml"),
            ("--allow-host", "http://a"),
        ] {
            let refused = told(&[option, value]).unwrap_err().to_string();
            assert!(refused.contains(option) && refused.contains(value), "{refused}");
        }
    }
}
