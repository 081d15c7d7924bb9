//! A TCP proxy that misbehaves on request: it delays, swallows, cuts and half-closes what goes
//! through it, in either direction. It stands between any two processes, Postgres included.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// Where it leads to.
#[derive(Clone, Debug)]
pub enum Target {
    /// `host:port`.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// Which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected to the target.
    Up,
    /// Back.
    Down,
}

/// What is done to what goes through, per direction.
#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    delay: [Duration; 2],
    /// What is sent is held, as in a partition; it goes on when that is over.
    holds: [bool; 2],
    /// The direction is ended as if its sender had ended it.
    ends: [bool; 2],
    /// Whoever connects is reset at once.
    refuses: bool,
    /// Connections of an older generation are reset.
    generation: u64,
}

/// The proxy. Its connections end with it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: Mutex<Target>,
    rules: watch::Sender<Rules>,
    /// Bytes that went through, both ways, all connections.
    passed: AtomicU64,
    /// After so many bytes everything is reset, once.
    cut_at: AtomicU64,
}

impl Proxy {
    /// One that hides nothing and breaks nothing yet.
    pub async fn start(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            rules: watch::Sender::new(Rules::default()),
            passed: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting }
    }

    /// One in front of a service's address, `http://host:port`.
    pub async fn of_service(address: &str) -> Self {
        Self::start(Target::Tcp(address.trim_start_matches("http://").to_owned())).await
    }

    /// Its own address, as a service's: `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of a database of a Postgres that is reached by a socket in the file system, through
    /// this proxy; with the proxy.
    pub async fn of_database(url: &str) -> (Self, String) {
        let name = url.split('?').next().unwrap().rsplit('/').next().unwrap();
        let host = url.split("host=").nth(1).unwrap().split('&').next().unwrap();
        let folder = PathBuf::from(host.replace("%2F", "/").replace("%2D", "-"));
        let proxy = Self::start(Target::Unix(folder.join(".s.PGSQL.5432"))).await;
        let url = format!("postgres://stepwell@{}/{name}?sslmode=disable", proxy.address);
        (proxy, url)
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.shared.rules.send_modify(change);
    }

    /// What goes this way comes so much later.
    pub fn delay(&self, way: Way, delay: Duration) {
        self.change(|rules| rules.delay[way as usize] = delay);
    }

    /// From now on nothing goes this way, and nobody is told.
    pub fn blackhole(&self, way: Way) {
        self.change(|rules| rules.holds[way as usize] = true);
    }

    /// Ends this direction of all connections; the other goes on.
    pub fn half_close(&self, way: Way) {
        self.change(|rules| rules.ends[way as usize] = true);
    }

    /// From now on whoever connects is reset at once.
    pub fn refuse(&self) {
        self.change(|rules| rules.refuses = true);
    }

    /// Ends delays, partitions and refusals; what was held goes on.
    pub fn heal(&self) {
        self.change(|rules| {
            *rules = Rules { generation: rules.generation, ..Rules::default() };
        });
    }

    /// Leads to another target from now on; connections to the former one are reset.
    pub fn lead_to(&self, target: Target) {
        *self.shared.target.lock().unwrap() = target;
        self.reset();
    }

    /// Resets all connections.
    pub fn reset(&self) {
        self.change(|rules| rules.generation += 1);
    }

    /// How many bytes went through so far, both ways, all connections together.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Acquire)
    }

    /// Resets all connections once so many bytes have gone through in all, in the midst of whatever
    /// is under way then.
    pub fn cut_at(&self, passed: u64) {
        self.shared.cut_at.store(passed, Ordering::Release);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.reset();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        client.set_nodelay(true).ok();
        if shared.rules.borrow().refuses {
            client.set_zero_linger().ok();
            continue;
        }
        let target = shared.target.lock().unwrap().clone();
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // Whoever cannot be reached is told so by a reset.
            match target {
                Target::Tcp(target) => match TcpStream::connect(target).await {
                    Ok(server) => {
                        server.set_nodelay(true).ok();
                        if carry(&shared, &client, server.into_split()).await {
                            client.set_zero_linger().ok();
                        }
                    }
                    Err(_) => client.set_zero_linger().unwrap_or_default(),
                },
                Target::Unix(target) => match UnixStream::connect(target).await {
                    Ok(server) => {
                        if carry(&shared, &client, server.into_split()).await {
                            client.set_zero_linger().ok();
                        }
                    }
                    Err(_) => client.set_zero_linger().unwrap_or_default(),
                },
            }
        });
    }
}

/// Carries both directions to their end. True: it was cut.
async fn carry(
    shared: &Shared,
    client: &TcpStream,
    (from_server, to_server): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
) -> bool {
    let (from_client, to_client) = (Borrowed(client), Borrowed(client));
    let generation = shared.rules.borrow().generation;
    let mut rules = shared.rules.subscribe();
    let cut = async {
        while rules.borrow_and_update().generation == generation {
            if rules.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = cut => true,
        (up, down) = async {
            tokio::join!(
                copy(shared, Way::Up, from_client, to_server),
                copy(shared, Way::Down, from_server, to_client),
            )
        } => up.is_err() || down.is_err(),
    }
}

async fn copy(
    shared: &Shared,
    way: Way,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut rules = shared.rules.subscribe();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let ended = async {
            while !rules.borrow_and_update().ends[way as usize] {
                if rules.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let n = tokio::select! {
            () = ended => 0,
            n = from.read(&mut buffer) => n?,
        };
        if n == 0 {
            return to.shutdown().await;
        }
        let delay = rules.borrow().delay[way as usize];
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        while rules.borrow_and_update().holds[way as usize] {
            if rules.changed().await.is_err() {
                return Ok(());
            }
        }
        let before = shared.passed.fetch_add(n as u64, Ordering::AcqRel);
        let cut_at = shared.cut_at.load(Ordering::Acquire);
        if before + n as u64 >= cut_at && before <= cut_at {
            let whole = usize::try_from(cut_at - before).unwrap_or(n).min(n);
            to.write_all(&buffer[..whole]).await?;
            to.flush().await?;
            shared.cut_at.store(u64::MAX, Ordering::Release);
            shared.rules.send_modify(|rules| rules.generation += 1);
            std::future::pending::<()>().await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}

/// One half of a connection that is owned elsewhere, so that it can be reset in the end.
struct Borrowed<'a>(&'a TcpStream);

impl AsyncRead for Borrowed<'_> {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        loop {
            std::task::ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(n) => {
                    buffer.advance(n);
                    return std::task::Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return std::task::Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Borrowed<'_> {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        loop {
            std::task::ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                answer => return std::task::Poll::Ready(answer),
            }
        }
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let socket = socket2::SockRef::from(self.0);
        std::task::Poll::Ready(socket.shutdown(std::net::Shutdown::Write))
    }
}
