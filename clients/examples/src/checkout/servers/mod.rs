//! The payment gateway, the inventory and the mail: small, but real HTTP servers. They do what is
//! asked once per idempotency key, and fail when the order's card or address says so.

pub(super) mod gateway;
mod inventory;
pub(super) mod mail;

use axum::{Router, serve::ListenerExt};
use tokio::net::TcpListener;

/// Serves all three on one address until the process ends.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let router = Router::new()
        .nest("/gateway", gateway::routes())
        .nest("/inventory", inventory::routes())
        .nest("/mail", mail::routes());
    let listener = listener.tap_io(|stream| {
        // Without it answers may wait for an acknowledgement, but they come all the same.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await
}
