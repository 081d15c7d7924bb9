//! A step: from its lease to its result.

use serde_json::Value;
use stepwell_client::{HandlerError, StepContext, TraceContext};
use tokio::{select, time::Instant};

use crate::{
    call::{Http, host},
    config::Config,
    failure::Failure,
    request::Request,
    secrets::Secrets,
    values::Values,
};

/// Runs steps that are calls.
#[derive(Debug)]
pub(crate) struct Steps {
    pub(crate) http: Http,
    pub(crate) secrets: Secrets,
}

/// What the log says of a call.
#[derive(Default)]
struct Line {
    method: Option<String>,
    host: Option<String>,
}

impl Steps {
    /// Runs one. When its lease is void or its time is up the call is dropped at once.
    pub(crate) async fn run(&self, step: StepContext) -> Result<Value, HandlerError> {
        let (began, mut line) = (Instant::now(), Line::default());
        let ended = select! {
            biased;
            ended = self.answer(&step, &mut line) => ended,
            () = step.cancelled() => Err(stopped(&step)),
        };
        let Line { method, host } = line;
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match ended {
            Ok(result) => {
                tracing::debug!(method, host, elapsed_ms, "call answered");
                Ok(result)
            }
            Err(Failure { class, status, error }) => {
                tracing::info!(
                    method,
                    host,
                    status,
                    error_class = class,
                    elapsed_ms,
                    "call failed"
                );
                Err(error)
            }
        }
    }

    async fn answer(&self, step: &StepContext, line: &mut Line) -> Result<Value, Failure> {
        let config = Config::parse(&step.lease().config)?;
        let places = config.places();
        let values = Values::gather(step, &places, &self.secrets).await?;
        let traceparent = TraceContext::current().map(|here| here.to_string());
        let traceparent = traceparent.unwrap_or_else(|| step.lease().traceparent.clone());
        let traceparent = Some(traceparent.as_str()).filter(|it| !it.is_empty());
        let request = Request::build(&config, &values, traceparent)?;
        let hider = self.secrets.hider(&places);
        line.method = Some(request.method.to_string());
        line.host = Some(hider.text(host(&request.url)));
        let limit = config.timeout.unwrap_or(step.remaining()).min(step.remaining());
        self.http.call(request, &config, limit, &hider).await
    }
}

/// Reported only if the lease still holds.
fn stopped(step: &StepContext) -> Failure {
    if step.remaining().is_zero() {
        Failure::passing("Timeout", "the attempt's time is up".to_owned())
    } else {
        let message = "the executor stopped before the call was answered";
        Failure::passing("ExecutorShutdown", message.to_owned())
    }
}
