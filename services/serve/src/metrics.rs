//! What is measured. Each service has one meter; what it measures is read at `/metrics`, in the text
//! format of Prometheus, and pushed to a collector if there is one (OTLP over gRPC). An instrument is
//! declared beside the code that records into it, under the very name it has outside.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context;
use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider},
};
use opentelemetry_otlp::{MetricExporter, RetryPolicy, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{
        Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream,
        Temporality, data::ResourceMetrics, exporter::PushMetricExporter,
    },
};
use prometheus::{Registry, TextEncoder};

/// Bounds of the buckets of everything measured in seconds: a tenth of a millisecond to a quarter of
/// an hour, so that one set fits a statement as well as a task.
pub const SECONDS: [f64; 22] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0,
];
/// Bounds of the buckets of everything counted: batches.
const ITEMS: [f64; 11] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0];
/// A push that takes longer has failed; the next one has newer figures.
const PUSHED_WITHIN: Duration = Duration::from_secs(3);
/// The last push, when the service goes down, may hold it up for so long.
const LAST_PUSH: Duration = Duration::from_secs(1);

/// The meter of one service, and who reads it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    provider: SdkMeterProvider,
    registry: Registry,
    pushes: bool,
}

impl Metrics {
    /// A service's own. Pushes to the endpoint if there is one; the interval between pushes is
    /// OpenTelemetry's (`OTEL_METRIC_EXPORT_INTERVAL`, milliseconds, default 60,000).
    pub(crate) fn start(service: &'static str, endpoint: Option<&str>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        // Names and units stand in the declarations: nothing is added to them on the way out.
        let scraped = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build()?;
        let resource = Resource::builder()
            .with_service_name(format!("stepwell-{service}"))
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", uuid::Uuid::now_v7().to_string()),
            ])
            .build();
        let provider = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(scraped)
            .with_view(buckets);
        let (provider, pushes) = match endpoint.filter(|endpoint| !endpoint.is_empty()) {
            None => (provider, false),
            Some(endpoint) => (provider.with_reader(pushed(endpoint)?), true),
        };
        let metrics = Self { provider: provider.build(), registry, pushes };
        metrics.tell_build(service);
        Ok(metrics)
    }

    /// Where the service declares what it measures.
    pub(crate) fn meter(&self) -> Meter {
        self.provider.meter("stepwell")
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Pushes the last figures, if they are pushed at all. A collector that does not answer holds
    /// nobody up.
    pub(crate) async fn end(&self) {
        if !self.pushes {
            return;
        }
        let provider = self.provider.clone();
        let last = tokio::task::spawn_blocking(move || provider.shutdown());
        if tokio::time::timeout(LAST_PUSH, last).await.is_err() {
            tracing::info!("the collector did not take the last metrics");
        }
    }

    fn tell_build(&self, service: &'static str) {
        let labels = [
            KeyValue::new("service", service),
            KeyValue::new("version", env!("CARGO_PKG_VERSION")),
        ];
        self.meter()
            .u64_gauge("stepwell_build_info")
            .with_description("Always 1: which service this is and its version")
            .build()
            .record(1, &labels);
    }
}

/// Which buckets a histogram has is a matter of its unit.
fn buckets(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let boundaries = if instrument.unit() == "s" { SECONDS.to_vec() } else { ITEMS.to_vec() };
    let aggregation = Aggregation::ExplicitBucketHistogram { boundaries, record_min_max: false };
    Stream::builder().with_aggregation(aggregation).build().ok()
}

fn pushed(endpoint: &str) -> anyhow::Result<PeriodicReader<Pusher>> {
    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(PUSHED_WITHIN)
        // What failed is not sent again: the next push has all of it.
        .with_retry_policy(RetryPolicy::default().with_max_retries(0))
        .build()
        .with_context(|| format!("--otlp-endpoint: {endpoint:?} cannot be used"))?;
    Ok(PeriodicReader::builder(Pusher { exporter, failing: AtomicBool::new(false) }).build())
}

/// The library's exporter, but a collector that is away is logged once and not with every push.
#[derive(Debug)]
struct Pusher {
    exporter: MetricExporter,
    failing: AtomicBool,
}

impl PushMetricExporter for Pusher {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let pushed = self.exporter.export(metrics).await;
        let failed_before = self.failing.swap(pushed.is_err(), Ordering::Relaxed);
        match pushed {
            Err(error) if !failed_before => tracing::warn!(%error, "metrics cannot be pushed"),
            Ok(()) if failed_before => tracing::info!("metrics are pushed again"),
            _ => {}
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_is_read_under_its_own_name_and_with_the_buckets_of_its_unit() {
        let metrics = Metrics::start("test", None).unwrap();
        let meter = metrics.meter();
        let label = [KeyValue::new("how", "so")];
        meter
            .u64_counter("stepwell_test_done_total")
            .with_description("Done")
            .build()
            .add(3, &label);
        let waited = meter.f64_histogram("stepwell_test_wait_seconds").with_unit("s").build();
        waited.record(0.0002, &[]);
        meter.u64_histogram("stepwell_test_batch_items").build().record(7, &[]);
        let text = metrics.text().unwrap();
        for line in [
            "# HELP stepwell_test_done_total Done",
            "# TYPE stepwell_test_done_total counter",
            "stepwell_test_done_total{how=\"so\"} 3",
            "stepwell_test_wait_seconds_bucket{le=\"0.0001\"} 0",
            "stepwell_test_wait_seconds_bucket{le=\"0.00025\"} 1",
            "stepwell_test_wait_seconds_bucket{le=\"1000\"} 1",
            "stepwell_test_batch_items_bucket{le=\"5\"} 0",
            "stepwell_test_batch_items_bucket{le=\"10\"} 1",
            "stepwell_build_info{service=\"test\",version=\"0.1.0\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_is_none_is_refused_and_named() {
        for endpoint in ["not a url", "http://"] {
            let refused = Metrics::start("test", Some(endpoint)).unwrap_err();
            assert!(format!("{refused:#}").contains("--otlp-endpoint"), "{refused:#}");
        }
        assert!(Metrics::start("test", Some("")).is_ok(), "no endpoint, said with a variable");
    }
}
