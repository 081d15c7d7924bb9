//! A service over real sockets: what it answers, what it refuses, and how it ends. The RPC under
//! test is mostly the health service that each has.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod attacks;
mod bounds;
mod calls;
mod ending;
mod floods;
mod raw;

use std::{process::ExitCode, time::Duration};

use stepwell_serve::{Options, Service};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{service::Routes, transport::Channel};
use tonic_health::pb::health_client::HealthClient;

/// Nothing that is waited for takes longer, unless it never comes.
const SOON: Duration = Duration::from_secs(20);

/// A service that listens on a free port.
struct Running {
    service: Service,
    address: String,
    served: JoinHandle<ExitCode>,
}

impl Running {
    async fn start() -> Self {
        Self::with(Options::default(), Routes::default()).await
    }

    async fn with(options: Options, routes: Routes) -> Self {
        let options = Options { listen: Some(([127, 0, 0, 1], 0).into()), ..options };
        let service = Service::start("test", &options).unwrap();
        let listener: TcpListener = service.bind(&options, 0).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = service.clone();
        let served = tokio::spawn(async move {
            serving.serve(listener, routes, &["stepwell.v1.TaskService"]).await
        });
        Self { service, address, served }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel().await)
    }

    /// How it ended.
    async fn ended(self) -> ExitCode {
        soon(self.served).await.unwrap()
    }

    async fn stop(self) -> ExitCode {
        self.service.shutdown().begin();
        self.ended().await
    }
}

/// What comes must come in time.
async fn soon<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, coming).await.expect("it comes soon")
}
