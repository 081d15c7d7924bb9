//! The one port of a service: gRPC with health and reflection, and `/livez` and `/readyz` for plain
//! HTTP.

use std::{process::ExitCode, sync::Arc};

use axum::{Router, routing::get};
use futures::StreamExt;
use http::StatusCode;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    service::Routes,
    transport::server::{Connected, Server, TcpConnectInfo},
};

use crate::{Service, layer::IdentifyLayer, limits};

impl Service {
    /// Serves until the service is told to stop and its tasks have ended, or its grace is over.
    pub async fn serve(
        &self,
        listener: TcpListener,
        routes: Routes,
        services: &[&'static str],
    ) -> ExitCode {
        let (reporter, health) = tonic_health::server::health_reporter();
        for name in services.iter().copied().chain([""]) {
            reporter.set_service_status(name, tonic_health::ServingStatus::Serving).await;
        }
        let router = match self.router(routes.add_service(health)) {
            Ok(router) => router,
            Err(error) => {
                tracing::error!(%error, "the contract cannot be reflected");
                return ExitCode::FAILURE;
            }
        };
        let going_down = self.shutdown().clone();
        let names: Vec<&'static str> = services.to_vec();
        let told = async move {
            going_down.wait().await;
            for name in names.into_iter().chain([""]) {
                reporter.set_service_status(name, tonic_health::ServingStatus::NotServing).await;
            }
        };
        let served = server()
            .layer(IdentifyLayer)
            .add_routes(Routes::from(router))
            .serve_with_incoming_shutdown(incoming(listener), told);
        let served = async {
            if let Err(error) = served.await {
                tracing::error!(%error, "the server broke; going down");
                self.shutdown().fail();
            }
            self.tasks_ended().await;
        };
        let grace = self.grace();
        let deadline = async {
            self.shutdown().wait().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            () = served => {}
            () = deadline => {
                tracing::warn!(?grace, "the grace is over; somebody did not end");
                return ExitCode::FAILURE;
            }
        }
        tracing::info!(service = self.name(), "stopped");
        if self.shutdown().failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn router(&self, routes: Routes) -> Result<Router, tonic_reflection::server::Error> {
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(stepwell_proto::CONTRACT)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = routes
            .add_service(described().build_v1()?)
            .add_service(described().build_v1alpha()?);
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
        Ok(routes
            .into_axum_router()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(ready)))
    }
}

fn server() -> Server {
    Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(limits::STREAMS_MAX)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(limits::RESETS_PENDING_MAX))
        .http2_max_local_error_reset_streams(Some(limits::RESETS_LOCAL_MAX))
}

/// Connections, no more than may be open at once.
fn incoming(
    listener: TcpListener,
) -> impl futures::Stream<Item = std::io::Result<Counted>> + Send + 'static {
    let room = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    TcpListenerStream::new(listener).then(move |accepted| {
        let room = Arc::clone(&room);
        async move {
            let stream = accepted?;
            stream.set_nodelay(true)?;
            let permit = room.acquire_owned().await.map_err(std::io::Error::other)?;
            Ok(Counted { stream, _permit: permit })
        }
    })
}

/// A connection that counts as long as it is open.
struct Counted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

mod io {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Counted;

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(context, buffer)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(context)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffers: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
        }

        fn is_write_vectored(&self) -> bool {
            self.stream.is_write_vectored()
        }
    }
}
