//! Connections as they come in: no more than may be open at once, none that says nothing, and none
//! for ever.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream, task::AtomicWaker};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep},
};
use tonic::transport::server::Connected;

use crate::{
    Options, limits,
    room::{NowAndThen, Room, Seat},
};

/// Accepts connections as long as there is room for them. A failure to accept, such as too few
/// file descriptors, is waited out.
pub(crate) fn incoming(
    listener: TcpListener,
    options: &Options,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let door = Door {
        listener,
        room: Room::new(options),
        age_max: Duration::from_secs(options.connection_age) + limits::AGE_GRACE,
        patience: Duration::from_secs(options.keepalive).mul_f64(1.5),
        failing: NowAndThen::default(),
        full: NowAndThen::default(),
        crowding: NowAndThen::default(),
    };
    stream::unfold(door, |mut door| async move {
        let connection = door.next().await?;
        Some((Ok(connection), door))
    })
}

/// Where they come in.
struct Door {
    listener: TcpListener,
    room: Arc<Room>,
    age_max: Duration,
    patience: Duration,
    failing: NowAndThen,
    full: NowAndThen,
    crowding: NowAndThen,
}

impl Door {
    async fn next(&mut self) -> Option<Connection> {
        let mut place = self.room.place();
        if place.is_none() {
            if self.full.is_due() {
                tracing::warn!("as many connections as there may be; others wait");
            }
            place = Some(self.room.next_place().await?);
        }
        loop {
            let (stream, peer) = self.accept().await;
            match self.room.enter(peer.ip(), &mut place) {
                Some(seat) => {
                    return Some(Connection::new(stream, seat, self.age_max, self.patience));
                }
                None if self.crowding.is_due() => {
                    tracing::warn!(address = %peer.ip(), "too many connections; more are closed");
                }
                None => {}
            }
        }
    }

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // It fails only on a connection that is gone already, which shows when it is
                    // read.
                    let _ = stream.set_nodelay(true);
                    return (stream, peer);
                }
                Err(error) => {
                    if self.failing.is_due() {
                        tracing::warn!(%error, "cannot accept connections; trying again");
                    }
                    tokio::time::sleep(limits::ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// How a call reaches the connection that it came on.
#[derive(Debug, Default)]
pub struct Line {
    is_cut: AtomicBool,
    reader: AtomicWaker,
}

impl Line {
    /// The line of a call; none if it did not come on a connection of ours.
    pub fn of(extensions: &http::Extensions) -> Option<Arc<Self>> {
        extensions.get::<Arc<Self>>().cloned()
    }

    /// Closes the connection, with all calls on it: for peers that do not read what they asked for.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.reader.wake();
    }

    fn poll_cut(&self, context: &mut Context<'_>) -> bool {
        self.reader.register(context.waker());
        self.is_cut.load(Ordering::Acquire)
    }
}

/// A connection that counts as long as it is open.
pub(crate) struct Connection {
    stream: TcpStream,
    line: Arc<Line>,
    /// Bytes that are missing for what makes up the start of either protocol. Until then nobody else
    /// limits a peer's time.
    missing: usize,
    /// When it is closed: at first if it does not begin, then because it is too old.
    deadline: Pin<Box<Sleep>>,
    closed_at: Instant,
    /// How long a peer may take no byte of what is written to it, and until when it may now.
    patience: Duration,
    unwritten: Option<Pin<Box<Sleep>>>,
    _seat: Seat,
}

impl Connection {
    fn new(stream: TcpStream, seat: Seat, age_max: Duration, patience: Duration) -> Self {
        Self {
            stream,
            line: Arc::default(),
            missing: limits::OPENING_BYTES,
            deadline: Box::pin(tokio::time::sleep(limits::OPENED_WITHIN)),
            closed_at: Instant::now() + age_max,
            patience,
            unwritten: None,
            _seat: seat,
        }
    }
}

impl Connection {
    /// A peer that takes no byte for so long is given up. The library would try to tell it so, and
    /// wait for ever for it to take that.
    fn within_patience(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.unwritten = None;
            return written;
        }
        let patience = self.patience;
        let unwritten =
            self.unwritten.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        unwritten.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Line>;

    fn connect_info(&self) -> Arc<Line> {
        Arc::clone(&self.line)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                let closed_at = self.closed_at;
                self.deadline.as_mut().reset(closed_at);
            }
        }
        // One who never stops sending does not get around it: the timer runs out by itself.
        let closed = self.deadline.is_elapsed()
            || read.is_pending()
                && (self.deadline.as_mut().poll(context).is_ready() || self.line.poll_cut(context));
        if closed {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.within_patience(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.within_patience(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
