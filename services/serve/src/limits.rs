//! Bounds of the transport, in one place. The library's own defaults leave some of them open.

use std::time::Duration;

/// No message is larger, in either direction. Bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Handlers, or other things that users name, that may be labels of one metric; what is beyond counts
/// as `other`. Whoever stores metrics pays for each.
pub const LABELS_MAX: usize = 200;

/// Streams of one connection at once.
pub(crate) const STREAMS_MAX: u32 = 1024;
/// File descriptors that connections leave to everything else: the database, the log, the listener.
pub(crate) const FILES_LEFT: usize = 128;
/// Bytes of a request's headers.
pub(crate) const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Streams that a peer reset before they were accepted; one more closes the connection.
pub(crate) const RESETS_PENDING_MAX: usize = 20;
/// Streams that we had to reset because of a peer's faults; one more closes the connection.
pub(crate) const RESETS_LOCAL_MAX: usize = 256;
/// Bytes in flight towards us, per stream and per connection.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 2 << 20;
/// A call is answered within this time, whatever its caller asked for: longer than any answer is
/// waited for on purpose. Streams must begin within it.
pub(crate) const CALL_WITHIN: Duration = Duration::from_secs(75);
/// A message that has begun to arrive is there within this time.
pub(crate) const MESSAGE_WITHIN: Duration = Duration::from_secs(30);
/// An answer that is whole is taken within this time. Streams may wait for their readers.
pub(crate) const ANSWER_TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of messages that have begun to arrive and of answers that were not taken yet, of all
/// peers together; more is refused.
pub(crate) const BYTES_UNDER_WAY_MAX: usize = 256 << 20;
/// Whoever was refused for that reason tries again after this time.
pub(crate) const CROWDED_AGAIN: Duration = Duration::from_millis(200);
/// A connection that has grown old is closed after this time, if its streams do not end before.
pub(crate) const AGE_GRACE: Duration = Duration::from_secs(90);
/// So many bytes a peer must have sent in this time: the preface of HTTP/2, and less than any request
/// of HTTP/1.1 that is kept alive.
pub(crate) const OPENING_BYTES: usize = 24;
pub(crate) const OPENED_WITHIN: Duration = Duration::from_secs(10);
/// After a failure to accept a connection the next is tried after this time.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// A readiness check that takes longer has failed.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(2);
/// Lines of one kind in the log within a second; more are left out and counted.
pub(crate) const LINES_PER_SECOND_MAX: u32 = 100;
/// Left-out lines, and troubles that peers make, are told this often.
pub(crate) const TOLD_AGAIN: Duration = Duration::from_secs(10);
