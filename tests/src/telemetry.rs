//! What an application does that wants its spans exported.

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider},
};
use tracing::Dispatch;
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt};

/// Exports the spans of a process, or of what runs under the dispatcher.
pub struct Exports {
    /// Records the spans.
    pub dispatch: Dispatch,
    provider: SdkTracerProvider,
}

impl Exports {
    /// To this receiver, as this service. To be called inside a Tokio runtime.
    pub fn new(endpoint: &str, service: &'static str) -> Self {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .unwrap();
        let soon = BatchConfigBuilder::default().with_scheduled_delay(Duration::from_millis(20));
        let processor =
            BatchSpanProcessor::builder(exporter).with_batch_config(soon.build()).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(Resource::builder().with_service_name(service).build())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(service));
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(LevelFilter::INFO));
        Self { dispatch: Dispatch::new(subscriber), provider }
    }

    /// Sends what is left.
    pub async fn flush(self) {
        let provider = self.provider;
        tokio::task::spawn_blocking(move || provider.shutdown()).await.unwrap().ok();
    }
}
