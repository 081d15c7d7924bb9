//! Bounds of the transport, in one place. The library's own defaults leave some of them open.

use std::time::Duration;

/// No message is larger, in either direction. Bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Handlers, or other things that users name, that may be labels of one metric; what is beyond counts
/// as `other`. Whoever stores metrics pays for each.
pub const LABELS_MAX: usize = 200;

/// Streams of one connection at once.
pub(crate) const STREAMS_MAX: u32 = 1024;
/// Connections at once; more wait to be accepted.
pub(crate) const CONNECTIONS_MAX: usize = 4096;
/// Bytes of a request's headers.
pub(crate) const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Streams that a peer reset before they were accepted; one more closes the connection.
pub(crate) const RESETS_PENDING_MAX: usize = 20;
/// Streams that we had to reset because of a peer's faults; one more closes the connection.
pub(crate) const RESETS_LOCAL_MAX: usize = 256;
/// Bytes in flight towards us, per stream and per connection.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 2 << 20;
/// A silent peer is asked this often, and given up if it does not answer this long.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// So many bytes a peer must have sent in this time: the preface of HTTP/2, and less than any request
/// of HTTP/1.1 that is kept alive.
pub(crate) const OPENING_BYTES: usize = 24;
pub(crate) const OPENED_WITHIN: Duration = Duration::from_secs(10);
/// After a failure to accept a connection the next is tried after this time.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// A readiness check that takes longer has failed.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(2);
