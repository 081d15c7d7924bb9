//! What a call may hold in memory while it is on its way. A message that arrives, and an answer that
//! is whole and waits to be taken, count against one budget of all peers together, unless they are
//! small; both must be over within a time. Faults of a request that the library found are answered
//! as refusals.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use prost::Message;
use prost_types::FileDescriptorSet;
use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use tokio::{sync::oneshot, time::Sleep};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::{incoming::Line, layer::is_grpc, limits, room::NowAndThen};

/// The head of a message: a flag, and its length in four bytes.
pub(crate) const HEAD_BYTES: usize = 5;
/// Smaller messages do not count: a stream itself costs as much.
const SMALL_BYTES: usize = 4 << 10;

/// Methods whose callers send more than one message.
static STREAMS_OF_REQUESTS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let described = [
        stepwell_proto::CONTRACT,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = described
        .into_iter()
        .flat_map(|set| FileDescriptorSet::decode(set).map(|set| set.file).unwrap_or_default());
    let mut methods = HashSet::new();
    for file in files {
        for service in &file.service {
            let streams = service.method.iter().filter(|method| method.client_streaming());
            let path = |name: &str| format!("/{}.{}/{name}", file.package(), service.name());
            methods.extend(streams.map(|method| path(method.name())));
        }
    }
    methods
});

/// Adds `Bounded` around a service, with one budget for all.
#[derive(Clone, Debug, Default)]
pub(crate) struct BoundedLayer(pub(crate) Arc<Budget>);

impl<S> Layer<S> for BoundedLayer {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, budget: Arc::clone(&self.0) }
    }
}

/// A service whose calls hold no more than they may.
#[derive(Clone, Debug)]
pub(crate) struct Bounded<S> {
    inner: S,
    budget: Arc<Budget>,
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            return Box::pin(self.inner.call(request));
        }
        let budget = Arc::clone(&self.budget);
        let line = Line::of(request.extensions());
        let is_one = !STREAMS_OF_REQUESTS.contains(request.uri().path());
        let arriving = |body| Arriving::new(body, Arc::clone(&budget), is_one);
        let request = request.map(|body| Body::new(arriving(body)));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(refusal) = unreadable(answer.headers()) {
                return Ok(Status::from(refusal).into_http());
            }
            let (head, body) = answer.into_parts();
            let body = match Taken::look(body).await {
                Ok(whole) => whole.counted(&budget, line),
                Err(stream) => Ok(stream),
            };
            Ok(match body {
                Ok(body) => Response::from_parts(head, body),
                Err(crowded) => Status::from(crowded).into_http(),
            })
        })
    }
}

/// What the library says when it cannot read a request: it blames the service, and has no reason.
/// Our own refusals have one.
fn unreadable(said: &HeaderMap) -> Option<Refusal> {
    let status = said.get("grpc-status")?;
    let theirs = matches!(
        Code::from_bytes(status.as_bytes()),
        Code::Internal | Code::OutOfRange | Code::ResourceExhausted
    );
    if !theirs || said.contains_key("grpc-status-details-bin") {
        return None;
    }
    let what = Status::from_header_map(said)?;
    Some(Refusal::field("", format!("the request cannot be read: {}", what.message())))
}

/// Bytes that all calls together may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicUsize,
    told: Mutex<NowAndThen>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: AtomicUsize::new(limits::BYTES_UNDER_WAY_MAX), told: Mutex::default() }
    }
}

impl Budget {
    fn take(self: &Arc<Self>, bytes: usize) -> Result<Held, Refusal> {
        let less = |left: usize| left.checked_sub(bytes);
        if self.left.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less).is_err() {
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).is_due() {
                tracing::warn!(bytes, "too many large messages are under way; more are refused");
            }
            let what = "too many large messages are under way";
            return Err(
                Refusal::new(ErrorReason::Overloaded, what).retry_after(limits::CROWDED_AGAIN)
            );
        }
        Ok(Held { budget: Arc::clone(self), bytes })
    }

    /// An answer that is whole, counted until it is taken.
    pub(crate) fn counted(
        self: &Arc<Self>,
        data: Bytes,
        line: Option<Arc<Line>>,
    ) -> Result<Body, Refusal> {
        Taken { data: Some(data), trailers: None, rest: None }.counted(self, line)
    }
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    pub(crate) fn none(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Takes what is missing until it is so large; what is small takes nothing.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.bytes.max(SMALL_BYTES) {
            let mut more = self.budget.take(bytes - self.bytes)?;
            self.bytes += std::mem::take(&mut more.bytes);
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

/// The body of a request, each message of which is bounded in size, time and memory.
struct Arriving {
    body: Body,
    budget: Arc<Budget>,
    /// The call has one message. It is handed on only once the caller has said his last word: the
    /// library would decode it and then wait for that.
    is_one: bool,
    kept: Option<Frame<Bytes>>,
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Bytes that are missing of the message.
    missing: usize,
    held: Option<Held>,
    /// Until when the message that has begun must be there.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Arriving {
    fn new(body: Body, budget: Arc<Budget>, is_one: bool) -> Self {
        Self {
            body,
            budget,
            is_one,
            kept: None,
            head: [0; HEAD_BYTES],
            head_bytes: 0,
            missing: 0,
            held: None,
            deadline: None,
        }
    }

    /// Follows the messages through the bytes that came.
    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            if self.head_bytes < HEAD_BYTES {
                let n = bytes.len().min(HEAD_BYTES - self.head_bytes);
                self.head[self.head_bytes..self.head_bytes + n].copy_from_slice(&bytes[..n]);
                self.head_bytes += n;
                bytes = &bytes[n..];
                if self.head_bytes < HEAD_BYTES {
                    break;
                }
                self.missing = self.length()?;
                if self.missing > bytes.len() && self.missing > SMALL_BYTES {
                    self.held = Some(self.budget.take(self.missing)?);
                }
            }
            let n = bytes.len().min(self.missing);
            self.missing -= n;
            bytes = &bytes[n..];
            if self.missing == 0 {
                self.head_bytes = 0;
                if self.is_one {
                    return if bytes.is_empty() { Ok(()) } else { Err(one_too_many()) };
                }
                self.held = None;
            }
        }
        Ok(())
    }

    /// A message that has begun must be there in time, and the end of a call that has one message.
    fn time(&mut self) {
        if self.head_bytes == 0 && self.kept.is_none() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = Some(Box::pin(tokio::time::sleep(limits::MESSAGE_WITHIN)));
        }
    }

    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Refusal> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        let within = limits::MESSAGE_WITHIN;
        let late = |()| Refusal::field("", format!("the message was not there within {within:?}"));
        deadline.as_mut().poll(context).map(late)
    }

    fn length(&self) -> Result<usize, Refusal> {
        let [_, length @ ..] = self.head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > limits::MESSAGE_BYTES_MAX {
            let max = limits::MESSAGE_BYTES_MAX;
            let what = format!("the message has {length} bytes; at most {max} are allowed");
            return Err(Refusal::field("", what));
        }
        Ok(length)
    }
}

fn one_too_many() -> Refusal {
    Refusal::field("", "one message is wanted")
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let arriving = &mut *self;
        loop {
            let frame = match Pin::new(&mut arriving.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                // A refusal of what came in another format.
                Poll::Ready(Some(Err(status))) if !status.details().is_empty() => {
                    return Poll::Ready(Some(Err(status)));
                }
                // The peer is gone, or took the call back: nobody hears what is said, and the log
                // is not for it.
                Poll::Ready(Some(Err(_))) => {
                    return Poll::Ready(Some(Err(Status::cancelled("the request was cut"))));
                }
                Poll::Ready(None) => return Poll::Ready(arriving.kept.take().map(Ok)),
                Poll::Pending => {
                    return arriving.poll_late(context).map(|late| Some(Err(late.into())));
                }
            };
            let Some(bytes) = frame.data_ref() else {
                // Trailers, of which gRPC has none in requests.
                let kept = arriving.kept.take();
                return Poll::Ready(Some(Ok(kept.unwrap_or(frame))));
            };
            if arriving.kept.is_some() && !bytes.is_empty() {
                return Poll::Ready(Some(Err(one_too_many().into())));
            }
            let begun = arriving.head_bytes > 0 || !bytes.is_empty();
            if let Err(refusal) = arriving.follow(bytes) {
                return Poll::Ready(Some(Err(refusal.into())));
            }
            let whole = begun && arriving.head_bytes == 0;
            if arriving.is_one && whole && !http_body::Body::is_end_stream(&arriving.body) {
                arriving.kept.get_or_insert(frame);
                arriving.time();
            } else {
                arriving.time();
                return Poll::Ready(Some(Ok(frame)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept.is_none() && self.body.is_end_stream()
    }
}

/// The body of an answer, of which some is there already.
struct Taken {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
    /// What is to come; none if the answer is whole.
    rest: Option<Body>,
}

impl Taken {
    /// Looks whether an answer is whole. If it is not, it is a stream, which is bounded by who
    /// makes it.
    async fn look(mut body: Body) -> Result<Self, Body> {
        if http_body::Body::is_end_stream(&body) {
            return Err(body);
        }
        let (mut data, mut trailers) = (None, None);
        loop {
            let next = std::future::poll_fn(|context| {
                Poll::Ready(http_body::Body::poll_frame(Pin::new(&mut body), context))
            });
            match next.await {
                Poll::Ready(None) => return Ok(Self { data, trailers, rest: None }),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(first) if data.is_none() => data = Some(first),
                    // A stream that has more than one message at once.
                    Ok(second) => {
                        let second = Self { data: Some(second), trailers: None, rest: Some(body) };
                        let rest = Some(Body::new(second));
                        return Err(Body::new(Self { data, trailers, rest }));
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                Poll::Ready(Some(Err(status))) => {
                    let rest = Some(Body::new(Failed(Some(status))));
                    return Err(Body::new(Self { data, trailers, rest }));
                }
                Poll::Pending if data.is_none() => return Err(body),
                Poll::Pending => return Err(Body::new(Self { data, trailers, rest: Some(body) })),
            }
        }
    }

    /// Counts a whole answer as long as its bytes are anywhere. Who does not take it in time is not
    /// worth a connection.
    fn counted(mut self, budget: &Arc<Budget>, line: Option<Arc<Line>>) -> Result<Body, Refusal> {
        let large = |data: &Bytes| data.len() > SMALL_BYTES;
        if let Some(data) = self.data.take_if(|data| large(data)) {
            let held = budget.take(data.len())?;
            let (taken, waiting) = oneshot::channel::<()>();
            let counted = Counted { data, _held: held, _taken: taken };
            self.data = Some(Bytes::from_owner(counted));
            if let Some(line) = line {
                tokio::spawn(async move {
                    if tokio::time::timeout(limits::ANSWER_TAKEN_WITHIN, waiting).await.is_err() {
                        tracing::debug!("an answer was not taken; the connection is closed");
                        line.cut();
                    }
                });
            }
        }
        Ok(Body::new(self))
    }
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(rest) = &mut self.rest {
            return Pin::new(rest).poll_frame(context);
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}

/// A body that ends with an error.
struct Failed(Option<Status>);

impl http_body::Body for Failed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

/// Bytes with their part of the budget.
struct Counted {
    data: Bytes,
    _held: Held,
    /// Dropped with them.
    _taken: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}
