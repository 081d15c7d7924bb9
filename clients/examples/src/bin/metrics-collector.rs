//! Business metrics of the checkout, for Prometheus: `metrics-collector --listen 127.0.0.1:9464`. Prints them at
//! the end too.

use std::{error::Error, net::SocketAddr, time::Duration};

use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use clap::Parser;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use stepwell_client::BusinessMetrics;
use stepwell_examples::subscribers::{Options, run};

/// Serves business metrics at /metrics, and prints them at the end.
#[derive(Parser)]
struct Program {
    /// Address and port of /metrics
    #[arg(long, default_value = "127.0.0.1:9464")]
    listen: SocketAddr,
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Program { listen, options } = Program::parse();
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .without_units()
        .without_counter_suffixes()
        .without_target_info()
        .scope_info_enabled(false)
        .build()?;
    let provider = SdkMeterProvider::builder().with_reader(exporter).build();
    let metrics = BusinessMetrics::new(&provider.meter("shop"))
        .amount("revenue", "create_order", "total_amount", Some("customer_tier"))
        .step_within("process_payment", Duration::from_secs(5))
        .task_within("process_order", Duration::from_secs(45));

    let listener = tokio::net::TcpListener::bind(listen).await?;
    eprintln!("metrics at http://{}/metrics", listener.local_addr()?);
    let told = registry.clone();
    let page = async move || {
        let text = TextEncoder::new().encode_to_string(&told.gather()).unwrap_or_default();
        ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
    };
    let server = tokio::spawn(
        axum::serve(listener, Router::new().route("/metrics", get(page))).into_future(),
    );

    let tally = run(&options, &Options::client()?, metrics, &[]).await?;
    server.abort();
    print!("{}", TextEncoder::new().encode_to_string(&registry.gather())?);
    eprintln!("{} events, {} failed", tally.handled, tally.failed);
    Ok(())
}
