//! Steps that are HTTP calls: an executor that needs no code.
//!
//! A step says its call in its `config`: method, url, headers and body, with values from the task's
//! context and its parents' results. What the server answers is the step's result; what statuses
//! mean, how long to wait before the next attempt, and where calls may go is decided here.
//! `docs/http.md` has all of it.
//!
//! The binary `stepwell-http` is this library with options. An application that runs handlers of its
//! own may run this one beside them, as another executor:
//!
//! ```no_run
//! use stepwell_client::{Addresses, Client};
//! use stepwell_http::{Hosts, Secrets, Settings, executor};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(Addresses::from_env())?;
//! let settings = Settings {
//!     hosts: Hosts::new(["api.example.com".parse()?]),
//!     secrets: Secrets::from_env()?,
//!     ..Settings::default()
//! };
//! let calls = executor(&client, "calls", settings)?.slots(64);
//! calls.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
//! # Ok(())
//! # }
//! ```

mod answer;
mod call;
mod config;
mod failure;
mod problem;
mod redirect;
mod request;
mod secrets;
mod status;
mod step;
mod template;
mod values;

use std::sync::Arc;

use stepwell_client::{Client, Executor};
pub use stepwell_outbound::{AllowedHost, Hosts};

pub use crate::secrets::Secrets;
use crate::{call::Http, step::Steps};

/// How calls are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names of the handlers that are calls. Default `http`.
    pub handlers: Vec<String>,
    /// Where calls may go. Default: to any host at a public address.
    pub hosts: Hosts,
    /// What `${secret.NAME}` stands for. Default: nothing.
    pub secrets: Secrets,
    /// Calls go through the proxies that `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`
    /// name. A proxy looks names up itself: whether their addresses are public is for it to check.
    /// Default: false.
    pub proxy_from_env: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            handlers: vec!["http".into()],
            hosts: Hosts::default(),
            secrets: Secrets::default(),
            proxy_from_env: false,
        }
    }
}

/// Why calls cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A secret cannot be used.
    #[error("{variable} {what}")]
    Secret {
        /// The variable it is in.
        variable: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The HTTP client cannot be set up.
    #[error("no HTTP client can be set up")]
    Client(#[source] reqwest::Error),
}

/// An executor whose handlers are calls. The name is for people; namespace, slots and grace are the
/// executor's own to set.
///
/// Errors: the HTTP client cannot be set up.
pub fn executor(client: &Client, name: &str, settings: Settings) -> Result<Executor, Error> {
    let http = Http::new(&settings)?;
    let steps = Arc::new(Steps { http, secrets: settings.secrets });
    Ok(settings.handlers.into_iter().fold(Executor::new(client, name), |executor, handler| {
        let steps = Arc::clone(&steps);
        executor.handler(handler, move |step| {
            let steps = Arc::clone(&steps);
            async move { steps.run(step).await }
        })
    }))
}
