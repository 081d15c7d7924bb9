//! `stepwell doctor`: whether everything is where it should be. Each check says what it found, and what to try
//! unless all is well.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde::Serialize;
use stepwell_client::{Addresses, Client, Error};
use stepwell_proto::v1::{Handler, ListExecutorsRequest, ListHandlersRequest};
use stepwell_store::{Options, Store};

use crate::{
    connect::Show,
    fault::{Fault, UNEXPECTED},
    output,
};

/// A service that has not answered by then is as good as away.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Clocks that differ by more than this are told. Dates of answers are in whole seconds.
const SKEW_MAX: Duration = Duration::from_secs(3);
/// Executors and handlers are looked at up to so many.
const PAGE: i32 = 1_000;
/// Names in a line, at most.
const NAMED_MAX: usize = 5;
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `stepwell doctor`
#[derive(Args)]
pub(crate) struct Doctor {
    /// Look at the database too: whether it answers, and whether its schema is what this version needs.
    #[arg(long, env = "STEPWELL_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    #[command(flatten)]
    show: Show,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warn,
    Fail,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    outcome: Outcome,
    found: String,
    #[serde(rename = "try", skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { check: check.into(), outcome: Outcome::Ok, found: found.into(), hint: None }
    }

    fn but(
        outcome: Outcome,
        check: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { outcome, hint: Some(hint.into()), ..Self::ok(check, found) }
    }
}

impl Doctor {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let addresses = self.show.connect.addresses()?;
        let client = Client::connect(addresses.clone())?;
        let mut findings = services(&addresses).await?;
        let reached = findings.iter().all(|finding| finding.outcome != Outcome::Fail);
        if let Some(url) = self.database_url.as_deref().filter(|url| !url.is_empty()) {
            findings.push(database(url).await);
        }
        // Who cannot be asked has been told of.
        if reached {
            let (executors, handlers) = (executors(&client), handlers(&client));
            findings.push(asked("executors", executors).await);
            findings.push(asked("handlers", handlers).await);
        }
        self.tell(&findings)?;
        let failed = findings.iter().any(|finding| finding.outcome == Outcome::Fail);
        Ok(if failed { ExitCode::from(UNEXPECTED) } else { ExitCode::SUCCESS })
    }

    fn tell(&self, findings: &[Finding]) -> Result<(), Fault> {
        let format = self.show.output;
        match format {
            output::Format::Jsonl => {
                findings.iter().try_for_each(|finding| format.document(finding))
            }
            output::Format::Name => {
                findings.iter().try_for_each(|finding| output::line(&finding.check))
            }
            _ => format.report(&findings, || {
                let mut table = output::table(&["CHECK", "OUTCOME", "FOUND", "TRY"]);
                for finding in findings {
                    let word = match finding.outcome {
                        Outcome::Ok => "ok",
                        Outcome::Warn => "warn",
                        Outcome::Fail => "fail",
                    };
                    table.add_row([
                        finding.check.as_str().into(),
                        output::state_cell(word),
                        finding.found.as_str().into(),
                        finding.hint.as_deref().unwrap_or_default().into(),
                    ]);
                }
                output::text(&table)
            }),
        }
    }
}

/// Every address: whether a service answers there, which, of which version, and by which clock.
async fn services(addresses: &Addresses) -> Result<Vec<Finding>, Fault> {
    // Another crate's wish for TLS holds for all, but services speak without it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder()
        .no_proxy()
        // Whoever leads elsewhere is not who was asked.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWERS_WITHIN)
        .build()
        .map_err(|error| Fault::new(error.to_string()))?;
    let all = [("task", &addresses.task), ("step", &addresses.step), ("event", &addresses.event)];
    let mut findings = Vec::new();
    for (kind, addresses) in all {
        for address in addresses {
            findings.extend(service(&http, kind, address).await);
        }
    }
    Ok(findings)
}

async fn service(http: &reqwest::Client, kind: &str, address: &str) -> Vec<Finding> {
    let check = format!("{kind}-service {address}");
    let fail =
        |found: String, hint: String| vec![Finding::but(Outcome::Fail, check.clone(), found, hint)];
    let get = async |path: &str| {
        let asked = SystemTime::now();
        let answer = http.get(format!("{}/{path}", address.trim_end_matches('/'))).send().await?;
        let skew = skew(&answer, asked);
        Ok::<_, reqwest::Error>((answer.status(), skew, answer.text().await?))
    };
    let (status, skew, text) = match get("readyz").await {
        Ok(answer) => answer,
        Err(error) => {
            let hint = format!("stepwell server start {kind}, or --{kind}-address ADDRESS");
            return fail(causes(&error), hint);
        }
    };
    if !status.is_success() {
        let said = text.lines().next().unwrap_or_default();
        let hint = "the service's log says what it waits for; mostly the database";
        return fail(format!("is not ready ({status}): {said}"), hint.to_owned());
    }
    let measured = match get("metrics").await {
        Ok((_, _, text)) => text,
        Err(error) => return fail(causes(&error), "stepwell doctor once more".to_owned()),
    };
    let Some((is, version)) = build(&measured) else {
        return fail("something else answers there".into(), format!("--{kind}-address ADDRESS"));
    };
    if is != kind {
        return fail(format!("{is}-service answers there"), format!("--{kind}-address ADDRESS"));
    }
    let mut findings = vec![if version == VERSION {
        Finding::ok(&check, format!("is ready, version {version}"))
    } else {
        let found = format!("is ready, version {version}; this command is {VERSION}");
        Finding::but(Outcome::Warn, &check, found, "the same version for both")
    }];
    if let Some(skew) = skew.filter(|skew| *skew > SKEW_MAX) {
        let found = format!("its clock and this one differ by {} s", skew.as_secs());
        let hint = "the same time server for both machines";
        findings.push(Finding::but(Outcome::Warn, &check, found, hint));
    }
    findings
}

/// How far the clock of who answered is from ours, as far as whole seconds tell.
fn skew(answer: &reqwest::Response, asked: SystemTime) -> Option<Duration> {
    let date = answer.headers().get("date")?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let ahead = theirs.duration_since(SystemTime::now()).unwrap_or_default();
    let behind = asked.duration_since(theirs).unwrap_or_default();
    Some(ahead.max(behind))
}

/// Which service this is and its version, as its metrics have it.
fn build(metrics: &str) -> Option<(&str, &str)> {
    let line = metrics.lines().find(|line| line.starts_with("stepwell_build_info{"))?;
    let label = |name: &str| line.split_once(&format!("{name}=\""))?.1.split_once('"');
    Some((label("service")?.0, label("version")?.0))
}

/// An error with all that is behind it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = "does not answer".to_owned();
    let mut cause = error.source();
    let mut last = String::new();
    while let Some(inner) = cause {
        last = inner.to_string();
        cause = inner.source();
    }
    if !last.is_empty() {
        text += &format!(": {last}");
    }
    text
}

async fn database(url: &str) -> Finding {
    match Store::connect(&Options::new(url), "doctor").await {
        Ok(_) => Finding::ok("database", "answers, and has the schema of this version"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            let hint = match &error {
                stepwell_store::Error::Schema(_) => "stepwell migrate",
                stepwell_store::Error::Url(_) => "postgres://user@host/database",
                _ => "is Postgres running, and may this user connect?",
            };
            let found = format!("{error}{}", cause.unwrap_or_default());
            Finding::but(Outcome::Fail, "database", found, hint)
        }
    }
}

/// What was found by calls, or that they failed: what others found is told all the same.
async fn asked(check: &str, finding: impl Future<Output = Result<Finding, Error>>) -> Finding {
    let found = tokio::time::timeout(ANSWERS_WITHIN, finding).await;
    let found = found.unwrap_or(Err(Error::NoAnswer(ANSWERS_WITHIN)));
    found.unwrap_or_else(|error| {
        let (found, hint) = Fault::from(error).in_short();
        Finding { hint, ..Finding::but(Outcome::Fail, check, found, "") }
    })
}

async fn executors(client: &Client) -> Result<Finding, Error> {
    let request = ListExecutorsRequest { page_size: PAGE, ..Default::default() };
    let page = client.list_executors(request).await?;
    let more = if page.next_page_token.is_empty() { "" } else { "at least " };
    let draining = page.executors.iter().filter(|executor| executor.draining).count();
    let (all, slots) = (page.executors.len(), page.executors.iter().map(|e| i64::from(e.slots)));
    Ok(match all - draining {
        0 => {
            let found = format!("{all} connected, {draining} of them draining");
            let hint = "start an executor: no step runs without one";
            Finding::but(Outcome::Warn, "executors", found, hint)
        }
        _ => {
            let slots: i64 = slots.sum();
            Finding::ok("executors", format!("{more}{all} connected, {slots} slots"))
        }
    })
}

async fn handlers(client: &Client) -> Result<Finding, Error> {
    let mut request = ListHandlersRequest { page_size: PAGE, ..Default::default() };
    let mut lonely = Vec::new();
    loop {
        let page = client.list_handlers(request.clone()).await?;
        let nobody = |handler: &Handler| handler.used && handler.executors == 0;
        let names = page.handlers.into_iter().filter(nobody);
        lonely.extend(names.map(|handler| format!("{}/{}", handler.namespace, handler.name)));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if lonely.is_empty() {
        return Ok(Finding::ok("handlers", "every handler that a definition uses is offered"));
    }
    let shown = lonely[..lonely.len().min(NAMED_MAX)].join(", ");
    let more = match lonely.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let found = format!("nobody offers {shown}{more}");
    Ok(Finding::but(Outcome::Warn, "handlers", found, "stepwell handler list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_read_from_the_metrics() {
        let text = "# HELP x\nstepwell_build_info{service=\"task\",version=\"0.1.0\"} 1\n";
        assert_eq!(build(text), Some(("task", "0.1.0")));
        assert_eq!(build("up 1"), None);
    }
}
