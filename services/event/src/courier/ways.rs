//! What deliveries say: checked, and opened for a courier.

use std::{sync::Arc, time::Duration};

use stepwell_outbound::{Clients, Hosts};
use stepwell_proto::{
    time,
    v1::{AlertDelivery, Delivery, WebhookDelivery, delivery::Kind},
};
use stepwell_store::{Store, StoredSubscription};
use tokio::sync::Notify;
use url::Url;

use super::{
    alert::{self, Alerts},
    line,
    queue::{Failure, Parcel},
    tally,
    webhook::{Secret, Webhook},
};
use crate::{metrics::Metrics, subscription::Faults};

const URL_BYTES_MAX: usize = 2048;
const SECRET_PREFIX: &str = "STEPWELL_SECRET_";
const SECRET_BYTES_MAX: usize = 128;
/// Events of one courier that are on their way at once.
const GOING_MAX: usize = 16;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const TIMEOUT_LEAST: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Where deliveries may go.
pub(crate) struct Ways {
    hosts: Hosts,
    clients: Clients,
}

/// How the events of one subscription go.
pub(super) enum Way {
    Webhook(Box<Webhook>),
    Line { name: String, config: String },
    Tally { name: String, metrics: Arc<Metrics> },
    Alert(Arc<Alerts>),
}

impl Ways {
    /// To these hosts.
    ///
    /// Errors: no HTTP client can be set up.
    pub(crate) fn new(hosts: Hosts) -> anyhow::Result<Self> {
        let user_agent = concat!("stepwell/", env!("CARGO_PKG_VERSION"));
        Ok(Self { clients: Clients::new(hosts.clone(), user_agent, false)?, hosts })
    }

    /// Checks a delivery; with its defaults.
    pub(crate) fn check(&self, path: &str, sent: Delivery, faults: &mut Faults) -> Delivery {
        let kind = match sent.kind {
            None => {
                faults.push((
                    path.into(),
                    "must say how: `webhook`, `log`, `metrics` or `alert`".into(),
                ));
                None
            }
            Some(Kind::Webhook(webhook)) => {
                Some(Kind::Webhook(self.webhook(&format!("{path}.webhook"), webhook, faults)))
            }
            Some(Kind::Alert(alert)) => {
                if let Err(what) = alert::rule(&alert.rule) {
                    faults.push((format!("{path}.alert.rule"), what));
                }
                let path = format!("{path}.alert.webhook");
                let sent = alert.webhook.unwrap_or_default();
                let webhook = Some(self.webhook(&path, sent, faults));
                Some(Kind::Alert(AlertDelivery { webhook, ..alert }))
            }
            ours => ours,
        };
        Delivery { kind }
    }

    fn webhook(&self, path: &str, sent: WebhookDelivery, faults: &mut Faults) -> WebhookDelivery {
        let url = url(&sent.url).and_then(|url| {
            self.hosts.trust(&url).map_err(|refused| refused.to_string())?;
            Ok(url)
        });
        if let Err(what) = url {
            faults.push((format!("{path}.url"), what));
        }
        if let Err(what) = secret(&sent.secret_env) {
            faults.push((format!("{path}.secret_env"), what));
        }
        let timeout = sent.timeout.as_ref().map(time::duration);
        let allowed = TIMEOUT_LEAST..=TIMEOUT_MAX;
        if timeout.is_some_and(|given| given.is_none_or(|given| !allowed.contains(&given))) {
            faults.push((format!("{path}.timeout"), "must be from 100 ms to 60 s".into()));
        }
        let timeout = timeout.flatten().unwrap_or(TIMEOUT_DEFAULT);
        WebhookDelivery { timeout: prost_types::Duration::try_from(timeout).ok(), ..sent }
    }

    /// Opens what was checked before; or why it cannot be, here and now.
    pub(super) fn open(
        &self,
        subscription: &StoredSubscription,
        metrics: &Arc<Metrics>,
        store: &Store,
    ) -> Result<Way, String> {
        let (name, config) = (subscription.name.clone(), subscription.config.clone());
        let kind = subscription.delivery.clone().unwrap_or_default().kind;
        match kind.ok_or("its delivery is of a kind that this build does not know")? {
            Kind::Log(_) => Ok(Way::Line { name, config }),
            Kind::Metrics(_) => Ok(Way::Tally { name, metrics: Arc::clone(metrics) }),
            Kind::Webhook(of) => Ok(Way::Webhook(Box::new(self.opened(of, name, config)?))),
            Kind::Alert(AlertDelivery { rule: text, webhook }) => {
                let webhook = self.opened(webhook.unwrap_or_default(), name.clone(), config)?;
                Ok(Way::Alert(Arc::new(Alerts {
                    store: store.clone(),
                    subscription: subscription.id,
                    name,
                    rule: alert::rule(&text)?,
                    text,
                    webhook,
                    changed: Notify::new(),
                })))
            }
        }
    }

    fn opened(
        &self,
        WebhookDelivery { url: text, secret_env, timeout }: WebhookDelivery,
        name: String,
        config: String,
    ) -> Result<Webhook, String> {
        let timeout = timeout.as_ref().and_then(time::duration);
        Ok(Webhook {
            clients: self.clients.clone(),
            url: url(&text)?,
            secret: secret(&secret_env)?,
            timeout: timeout.unwrap_or(TIMEOUT_DEFAULT),
            name,
            config: (!config.is_empty()).then_some(config),
        })
    }
}

impl Way {
    /// A word for it.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Line { .. } => "log",
            Self::Tally { .. } => "metrics",
            Self::Alert(_) => "alert",
        }
    }

    /// How many events may be on their way at once: alerts count in the order of the log.
    pub(super) fn going_max(&self) -> usize {
        if matches!(self, Self::Alert(_)) { 1 } else { GOING_MAX }
    }

    /// Delivers an event; when it is taken it is done with.
    pub(super) async fn deliver(&self, parcel: &Parcel) -> Result<(), Failure> {
        match self {
            Self::Webhook(webhook) => webhook.post(parcel).await,
            Self::Line { name, config } => {
                line::write(name, config, &parcel.event);
                Ok(())
            }
            Self::Alert(alerts) => alerts.count(&parcel.event).await,
            Self::Tally { name, metrics } => {
                tally::count(metrics, name, &parcel.event);
                Ok(())
            }
        }
    }
}

fn url(text: &str) -> Result<Url, String> {
    let wanted = || format!("must be an http or https url of at most {URL_BYTES_MAX} bytes");
    if text.len() > URL_BYTES_MAX {
        return Err(wanted());
    }
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(wanted)?;
    let is_plain =
        url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    if is_plain { Ok(url) } else { Err("may have no user, password or fragment".into()) }
}

/// The secret that a variable has; none: none is named.
fn secret(variable: &str) -> Result<Option<Secret>, String> {
    if variable.is_empty() {
        return Ok(None);
    }
    let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    let is_name = variable.len() <= SECRET_BYTES_MAX
        && variable.strip_prefix(SECRET_PREFIX).is_some_and(|rest| !rest.is_empty())
        && variable.bytes().all(plain);
    if !is_name {
        return Err(format!(
            "must begin with `{SECRET_PREFIX}` and go on with capital letters, digits and `_`, at \
             most {SECRET_BYTES_MAX} bytes"
        ));
    }
    let value = std::env::var(variable)
        .map_err(|_| format!("{variable} is not set where event-service runs"))?;
    Secret::read(&value).map(Some).map_err(|what| format!("{variable} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(hosts: &[&str], webhook: WebhookDelivery) -> Vec<String> {
        let hosts = Hosts::new(hosts.iter().map(|host| host.parse().unwrap()));
        let mut faults = Faults::new();
        let delivery = Delivery { kind: Some(Kind::Webhook(webhook)) };
        Ways::new(hosts).unwrap().check("d", delivery, &mut faults);
        faults.into_iter().map(|(path, what)| format!("{path}: {what}")).collect()
    }

    fn to(url: &str) -> WebhookDelivery {
        WebhookDelivery { url: url.into(), ..WebhookDelivery::default() }
    }

    #[test]
    fn a_webhook_goes_to_plain_urls_of_hosts_that_are_allowed() {
        for url in ["https://hooks.example/a?b=c", "http://1.1.1.1:81/"] {
            assert_eq!(faults(&[], to(url)), [""; 0], "{url}");
        }
        for (url, what) in [
            ("", "must be an http"),
            ("hooks.example", "must be an http"),
            ("ftp://hooks.example", "must be an http"),
            (&format!("https://a/{}", "x".repeat(2048)), "must be an http"),
            ("https://me@hooks.example", "may have no user"),
            ("https://:word@hooks.example", "may have no user"),
            ("https://hooks.example/#a", "may have no user"),
            ("http://127.0.0.1/", "no public address"),
            ("http://[::1]/", "no public address"),
            ("http://169.254.169.254/latest", "no public address"),
        ] {
            let found = faults(&[], to(url));
            assert_eq!(found.len(), 1, "{url}: {found:?}");
            assert!(
                found[0].starts_with("d.webhook.url: ") && found[0].contains(what),
                "{found:?}"
            );
        }
        assert_eq!(faults(&["127.0.0.1:80"], to("http://127.0.0.1/")), [""; 0]);
        assert_eq!(faults(&["127.0.0.1:80"], to("http://127.0.0.1:81/")).len(), 1);
    }

    #[test]
    fn secrets_are_named_and_never_said_and_waits_are_bounded() {
        let with = |secret_env: &str| WebhookDelivery {
            secret_env: secret_env.into(),
            ..to("https://hooks.example")
        };
        for wrong in ["PATH", "STEPWELL_SECRET_", "STEPWELL_SECRET_a", "STEPWELL_DATABASE_URL"] {
            let found = faults(&[], with(wrong));
            assert!(found[0].contains("must begin with `STEPWELL_SECRET_`"), "{found:?}");
        }
        let found = faults(&[], with("STEPWELL_SECRET_THAT_NOBODY_SET"));
        assert!(found[0].contains("is not set where event-service runs"), "{found:?}");
        for millis in [0, 99, 60_001] {
            let timeout = Duration::from_millis(millis).try_into().ok();
            let found = faults(&[], WebhookDelivery { timeout, ..to("https://hooks.example") });
            assert_eq!(found, ["d.webhook.timeout: must be from 100 ms to 60 s"]);
        }
    }

    #[test]
    fn a_delivery_says_how_and_gets_its_defaults() {
        let ways = Ways::new(Hosts::default()).unwrap();
        let mut faults = Faults::new();
        ways.check("d", Delivery::default(), &mut faults);
        assert_eq!(faults[0].0, "d");
        let sent = Delivery { kind: Some(Kind::Webhook(to("https://hooks.example"))) };
        let Some(Kind::Webhook(checked)) = ways.check("d", sent, &mut faults).kind else {
            panic!("it is a webhook")
        };
        assert_eq!((checked.timeout.unwrap().seconds, faults.len()), (10, 1));
    }
}
