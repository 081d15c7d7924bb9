//! The addresses of one service: shared channels for unary calls, connections of their own for
//! streams.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::error::{Error, Lost};

/// No message that is larger is read.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// One service, at one or more addresses.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoints: Vec<Endpoint>,
    channels: Vec<Channel>,
    turn: AtomicUsize,
}

impl Pool {
    /// Connects when first used.
    pub(crate) fn new(addresses: &[String]) -> Result<Self, Error> {
        if addresses.is_empty() {
            let what = "is missing: at least one is wanted for each service".into();
            return Err(Error::Address { address: String::new(), what });
        }
        let endpoints: Vec<_> = addresses.iter().map(|a| endpoint(a)).collect::<Result<_, _>>()?;
        let channels = endpoints.iter().map(Endpoint::connect_lazy).collect();
        // Clients that start together do not all begin with the same address.
        let turn = AtomicUsize::new(rand::random_range(0..addresses.len()));
        Ok(Self { endpoints, channels, turn })
    }

    /// Whose turn it is.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The shared channel to the address whose turn it is.
    pub(crate) fn channel(&self, turn: usize) -> Channel {
        self.channels[turn % self.channels.len()].clone()
    }

    /// A new connection to the address whose turn it is. A stream has one of its own, so that a
    /// connection which is dead without knowing it is not used for the next stream.
    pub(crate) fn endpoint(&self, turn: usize) -> Endpoint {
        self.endpoints[turn % self.endpoints.len()].clone()
    }
}

/// Opens a stream on a new connection.
pub(crate) async fn open<T>(
    endpoint: Endpoint,
    begin: impl AsyncFnOnce(Channel) -> Result<T, Status>,
) -> Result<T, Lost> {
    let opening = async {
        let channel = endpoint.connect().await.map_err(|e| Status::from_error(e.into()))?;
        begin(channel).await
    };
    match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
        Ok(opened) => opened.map_err(Lost::from),
        Err(_) => Err(Lost::Silent(OPEN_TIMEOUT)),
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let wrong = |what: String| Error::Address { address: address.to_owned(), what };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|_| wrong("is no URL; http://host:port is wanted".into()))?;
    if endpoint.uri().scheme_str() != Some("http") {
        return Err(wrong("must begin with http://".into()));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_scheme_is_refused() {
        for address in ["localhost:7101", "https://localhost:7101", "http://", "not a url"] {
            let error = endpoint(address).expect_err(address);
            assert!(error.to_string().contains("http://"), "{error}");
        }
        assert!(endpoint("http://[::1]:7101").is_ok());
    }
}
