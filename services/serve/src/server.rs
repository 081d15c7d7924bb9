//! The one port of a service: gRPC with health and reflection, the same calls as gRPC-Web and in JSON, and
//! `/livez`, `/readyz`, `/metrics` and `/openapi.json` for plain HTTP.

use std::{process::ExitCode, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use http::{StatusCode, header::CONTENT_TYPE};
use tokio::net::TcpListener;
use tonic::{
    codec::CompressionEncoding::{Gzip, Zstd},
    service::Routes,
    transport::Server,
};
use tracing::Instrument;

use crate::{
    Options, Service,
    bounded::BoundedLayer,
    formats::{Callers, FormatsLayer},
    incoming::incoming,
    layer::SeenLayer,
    limits, openapi,
    quiet::tell_left_out,
};

impl Service {
    /// Serves until the service is told to stop and its tasks have ended, or its grace is over.
    pub async fn serve(
        &self,
        listener: TcpListener,
        routes: Routes,
        services: &[&'static str],
    ) -> ExitCode {
        let (mut reporter, health) = tonic_health::server::health_reporter();
        let health = health.accept_compressed(Gzip).accept_compressed(Zstd);
        for name in services.iter().copied().chain([""]) {
            reporter.set_service_status(name, tonic_health::ServingStatus::Serving).await;
        }
        let router = match self.router(routes.add_service(health), services) {
            Ok(router) => router,
            Err(error) => {
                tracing::error!(service = self.name(), %error, "the contract cannot be reflected");
                return ExitCode::FAILURE;
            }
        };
        let going_down = self.shutdown().clone();
        let names: Vec<&'static str> = services.iter().copied().chain([""]).collect();
        let told = async move {
            going_down.wait().await;
            for name in &names {
                reporter.set_service_status(name, tonic_health::ServingStatus::NotServing).await;
            }
            // Those who watch get this last word, then their streams end and hold nobody up.
            for name in &names {
                reporter.clear_service_status(name).await;
            }
        };
        self.spawn_beside("left out", tell_left_out());
        let options = self.options();
        let bounded = BoundedLayer::default();
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let callers = Arc::new(Callers { origins: options.allow_origins.clone(), is_local });
        let served = server(options)
            .layer(tower::util::option_layer(options.cors()))
            .layer(FormatsLayer { budget: Arc::clone(&bounded.0), callers })
            .layer(SeenLayer { service: self.name() })
            .layer(bounded)
            .add_routes(Routes::from(router))
            .serve_with_incoming_shutdown(incoming(listener, options), told);
        // Connections are not taken within a request.
        let span = tracing::info_span!("serve", service = self.name());
        let served = served.instrument(span);
        let served = async {
            if let Err(error) = served.await {
                tracing::error!(service = self.name(), %error, "the server broke; going down");
                self.shutdown().fail();
            }
            self.tasks_ended().await;
            self.metrics().end().await;
        };
        let grace = self.grace();
        let deadline = async {
            self.shutdown().wait().await;
            tokio::time::sleep(grace).await;
        };
        let late = tokio::select! {
            () = served => false,
            () = deadline => true,
        };
        self.telemetry().flush().await;
        if late {
            tracing::warn!(
                service = self.name(),
                ?grace,
                "the grace is over; somebody did not end"
            );
            return ExitCode::FAILURE;
        }
        tracing::info!(service = self.name(), "stopped");
        if self.shutdown().failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn router(
        &self,
        routes: Routes,
        services: &[&str],
    ) -> Result<Router, tonic_reflection::server::Error> {
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(stepwell_proto::CONTRACT)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = routes
            .add_service(described().build_v1()?.accept_compressed(Gzip).accept_compressed(Zstd))
            .add_service(
                described().build_v1alpha()?.accept_compressed(Gzip).accept_compressed(Zstd),
            );
        let service = self.clone();
        let ready = move || {
            let service = service.clone();
            async move {
                let faults = service.faults().await;
                if faults.is_empty() {
                    (StatusCode::OK, "ready\n".to_owned())
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, faults.join("\n") + "\n")
                }
            }
        };
        let metrics = self.metrics().clone();
        let measured = move || async move {
            let text = metrics.text().map_err(|error| {
                tracing::warn!(%error, "metrics cannot be told");
                StatusCode::INTERNAL_SERVER_ERROR
            })?;
            Ok::<_, StatusCode>(([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
        };
        let described = openapi::document(self.name(), services);
        let described = move || async move { ([(CONTENT_TYPE, "application/json")], described) };
        Ok(routes
            .into_axum_router()
            .route("/openapi.json", get(described))
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(measured)))
    }
}

fn server(options: &Options) -> Server {
    let keepalive = Duration::from_secs(options.keepalive);
    Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(limits::STREAMS_MAX)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(keepalive / 2))
        // It is told that it is old, and goes on with the streams it has. The library's own grace
        // would close it without having told it; ours is in `incoming`.
        .max_connection_age(Duration::from_secs(options.connection_age))
        .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(limits::RESETS_PENDING_MAX))
        .http2_max_local_error_reset_streams(Some(limits::RESETS_LOCAL_MAX))
}
