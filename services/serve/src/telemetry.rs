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
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt};

use crate::{LogFormat, Options};

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
    pub(crate) fn set_up(name: &str, options: &Options) -> anyhow::Result<Self> {
        let log = EnvFilter::try_new(&options.log_filter).context("--log-filter cannot be read")?;
        let Some(endpoint) = &options.otlp_endpoint else {
            let lines = tracing_subscriber::fmt()
                .with_env_filter(log)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr);
            // Set already: several services share this process.
            let _ = match options.log {
                LogFormat::Human => lines.with_target(false).compact().try_init(),
                LogFormat::Json => lines.json().flatten_event(true).try_init(),
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

fn provider(name: &str, sample: f64, exporter: impl SpanExporter + 'static) -> SdkTracerProvider {
    let exporter = Told { exporter, failing: AtomicBool::new(false) };
    let resource = Resource::builder()
        .with_service_name(format!("stepwell-{name}"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
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
    exporter: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !failed_before => {
                tracing::warn!(%error, spans, "spans cannot be exported; later ones are tried");
            }
            Ok(()) if failed_before => tracing::info!("spans are exported again"),
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
