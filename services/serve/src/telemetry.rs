//! What a service says of itself while it runs: lines of its log on standard error, and spans to an
//! OTLP receiver if one is named. Without one nothing is recorded, and a span costs a comparison.

use std::{
    io::IsTerminal,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context;
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
    },
};
use stepwell_trace::TARGET;
use tonic::transport::ClientTlsConfig;
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};
use uuid::Uuid;

use crate::{LogFormat, Options, quiet::Quiet};

/// How long a shutdown waits for the last spans to leave.
const FLUSHED_WITHIN: Duration = Duration::from_secs(2);
/// A receiver that does not answer for so long did not get the batch.
const EXPORTED_WITHIN: Duration = Duration::from_secs(5);

/// The spans on their way out; none without a receiver. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Telemetry {
    spans: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sets up the log, and the spans if a receiver is named. To be called inside a Tokio runtime.
    /// Where several services share a process the first one's holds for all.
    pub(crate) fn set_up(name: &'static str, options: &Options) -> anyhow::Result<Self> {
        // What that library has to say is said by us, once; a filter that names it hears it all the
        // same.
        let log = format!("opentelemetry=off,{}", options.log_filter);
        let log = EnvFilter::try_new(log).context("--log-filter cannot be read")?;
        let Some(endpoint) = options.collector() else {
            let lines = tracing_subscriber::fmt()
                .with_env_filter(log)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            // Set already: several services share this process.
            let _ = match options.log {
                LogFormat::Human => {
                    lines.with_target(false).compact().finish().with(Quiet::default()).try_init()
                }
                LogFormat::Json => {
                    lines.json().flatten_event(true).finish().with(Quiet::default()).try_init()
                }
            };
            return Ok(Self::default());
        };
        let spans = exporter(endpoint)
            .map(|exporter| provider(name, options.trace_sample, exporter))
            .with_context(|| format!("--otlp-endpoint {endpoint:?} cannot be used"))?;
        let recorded = tracing_opentelemetry::layer()
            .with_tracer(spans.tracer("stepwell"))
            .with_location(false)
            .with_threads(false)
            .with_level(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // Lines of the log stay there: what they quote is not ours to send elsewhere.
            .with_filter(filter_fn(|of| of.is_span() && of.target() == TARGET));
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        let lines = match options.log {
            LogFormat::Human => lines.with_target(false).compact().boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let all = tracing_subscriber::registry().with(recorded).with(lines.with_filter(log));
        let all = all.with(Quiet::default());
        if tracing::subscriber::set_global_default(all).is_err() {
            return Ok(Self::default());
        }
        Ok(Self { spans: Some(spans) })
    }

    /// Sends what is still here, for a bounded time.
    pub(crate) async fn flush(&self) {
        let Some(spans) = self.spans.clone() else { return };
        // It waits by blocking its thread.
        let flushed = tokio::task::spawn_blocking(move || {
            let _ = spans.shutdown_with_timeout(FLUSHED_WITHIN);
        });
        let _ = tokio::time::timeout(FLUSHED_WITHIN, flushed).await;
    }
}

fn exporter(endpoint: &str) -> anyhow::Result<opentelemetry_otlp::SpanExporter> {
    let uri: http::Uri = endpoint.parse()?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
    anyhow::ensure!(scheme.is_some(), "http://host:port or https://host:port is wanted");
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORTED_WITHIN);
    let exporter = if endpoint.starts_with("https://") {
        exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots())
    } else {
        exporter
    };
    Ok(exporter.build()?)
}

fn provider(
    name: &'static str,
    sample: f64,
    exporter: impl SpanExporter + 'static,
) -> SdkTracerProvider {
    let exporter = Told { service: name, exporter, failing: AtomicBool::new(false) };
    let resource = Resource::builder()
        .with_service_name(format!("stepwell-{name}"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", Uuid::now_v7().to_string()))
        .build();
    SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample))))
        .with_span_processor(WithoutIdle(BatchSpanProcessor::builder(exporter).build()))
        .build()
}

/// An exporter that says once that it cannot export, and once that it can again.
#[derive(Debug)]
struct Told<E> {
    service: &'static str,
    exporter: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (service, spans) = (self.service, batch.len());
        let exported = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !failed_before => {
                tracing::warn!(service, %error, spans, "spans cannot be exported; later ones are tried");
            }
            Ok(()) if failed_before => tracing::info!(service, "spans are exported again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Leaves out the looks of loops that found nothing: a quiet service sends no spans.
#[derive(Debug)]
struct WithoutIdle<P>(P);

impl<P: SpanProcessor> SpanProcessor for WithoutIdle<P> {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let found_nothing = |a: &KeyValue| {
            a.key.as_str() == "stepwell.rows_answered" && a.value == opentelemetry::Value::I64(0)
        };
        let is_root = span.parent_span_id == opentelemetry::trace::SpanId::INVALID;
        if is_root && span.attributes.iter().any(found_nothing) {
            return;
        }
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;
    use crate::log::Log;

    #[tokio::test]
    async fn an_endpoint_is_a_url_with_or_without_tls() {
        assert!(exporter("http://127.0.0.1:4317").is_ok());
        assert!(exporter("https://traces.example:4317").is_ok());
        for bad in ["", "no url", "http://", "localhost:4317", "grpc://localhost:4317"] {
            assert!(exporter(bad).is_err(), "{bad:?}");
        }
    }

    /// Works as long as it is told to.
    #[derive(Debug)]
    struct Moody(Mutex<Vec<bool>>);

    impl SpanExporter for Moody {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            match self.0.lock().unwrap().pop() {
                Some(true) => Ok(()),
                _ => Err(OTelSdkError::InternalFailure("nobody is there".into())),
            }
        }
    }

    #[tokio::test]
    async fn a_receiver_that_goes_and_comes_is_mentioned_twice() {
        let log = Log::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let _logged = tracing::subscriber::set_default(lines.finish());
        let moods = vec![true, true, false, false, false, true];
        let exporter = Moody(Mutex::new(moods));
        let told = Told { service: "test", exporter, failing: AtomicBool::new(false) };
        for _ in 0..6 {
            let _ = told.export(Vec::new()).await;
        }
        let log = log.text();
        assert_eq!(log.lines().count(), 2, "{log}");
        assert!(log.contains("nobody is there") && log.contains("exported again"), "{log}");
    }
}
