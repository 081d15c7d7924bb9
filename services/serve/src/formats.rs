//! Calls in other clothes than gRPC's: gRPC-Web, for browsers, and unary calls of the Connect protocol, whose
//! messages are plain bodies in JSON or as they are encoded, so that `curl` is a client. Both become gRPC
//! before anything else looks at them, and their answers are translated back: ids, deadlines, bounds, spans
//! and refusals are those of every call.

use std::{
    io::Read,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::read::GzDecoder;
use futures::{FutureExt, stream};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method as Verb, Request, Response, StatusCode, Version,
    header::{
        ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, TE, TRANSFER_ENCODING,
    },
};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use stepwell_proto::{
    proto_json::{METHODS, Method},
    refusal::Refusal,
};
use tonic::{Code, Status, body::Body};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service};

use crate::{
    bounded::{Budget, HEAD_BYTES, Held},
    incoming::Line,
    limits, plain,
};

/// What methods of the contract begin with.
const OURS: &str = "/stepwell.v1.";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROTO: HeaderValue = HeaderValue::from_static("application/proto");
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const PROTOCOL: HeaderName = HeaderName::from_static("connect-protocol-version");
/// Reading JSON takes so many times the memory of its text, at worst.
const JSON_TIMES: usize = 16;

/// Adds `Formats` around a service.
#[derive(Clone, Debug)]
pub(crate) struct FormatsLayer(pub(crate) Arc<Budget>);

impl<S: Clone> Layer<S> for FormatsLayer {
    type Service = Formats<S>;

    fn layer(&self, inner: S) -> Formats<S> {
        Formats {
            web: GrpcWebLayer::new().layer(inner.clone()),
            inner,
            budget: Arc::clone(&self.0),
        }
    }
}

/// A service of gRPC whose calls may come in other formats.
#[derive(Clone, Debug)]
pub(crate) struct Formats<S> {
    inner: S,
    web: GrpcWebService<S>,
    budget: Arc<Budget>,
}

impl<S> Service<Request<Body>> for Formats<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready!(Service::<Request<Body>>::poll_ready(&mut self.web, context))?;
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let kind = kind.unwrap_or_default().to_ascii_lowercase();
        if kind.starts_with(b"application/grpc-web") {
            return Box::pin(self.web.call(request));
        }
        let path = request.uri().path();
        if kind.starts_with(b"application/grpc") || !path.starts_with(OURS) {
            return Box::pin(self.inner.call(request));
        }
        let Some(method) = METHODS.get(path) else {
            let what =
                format!("there is no method {path}; GET /openapi.json has those of this port");
            let mut answer = plain::failed(&Status::unimplemented(what));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return Box::pin(std::future::ready(Ok(answer)));
        };
        match Call::of(method.as_ref(), &kind, &request) {
            Err(answer) => Box::pin(std::future::ready(Ok(*answer))),
            Ok(call) => {
                let line = Line::of(request.extensions());
                let budget = Arc::clone(&self.budget);
                let answer = self.inner.call(call.request(request, Arc::clone(&budget)));
                Box::pin(async move { Ok(call.answer(answer.await?, &budget, line).await) })
            }
        }
    }
}

/// A call of the Connect protocol.
#[derive(Clone, Debug)]
struct Call {
    method: Method,
    is_json: bool,
    is_zipped: bool,
}

impl Call {
    /// The call, or what is answered at once.
    fn of(
        method: Option<&Method>,
        kind: &[u8],
        request: &Request<Body>,
    ) -> Result<Self, Box<Response<Body>>> {
        let headers = request.headers();
        let refused = |code, what: &str| Box::new(plain::failed(&Status::new(code, what)));
        if request.method() != Verb::POST {
            let mut answer = refused(Code::Unimplemented, "methods are called by POST");
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return Err(answer);
        }
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let is_json = match kind {
            b"application/json" => true,
            b"application/proto" => false,
            // What `curl -d` says of anything. A browser sends it for any page without asking, and then says
            // which page it was.
            b"application/x-www-form-urlencoded" | b"" if !headers.contains_key(ORIGIN) => true,
            _ => {
                let what = "a request is `application/json`, `application/proto`, gRPC or gRPC-Web";
                let mut answer = refused(Code::InvalidArgument, what);
                *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                return Err(answer);
            }
        };
        let Some(method) = method else {
            let what = "a method that streams is called by gRPC or gRPC-Web";
            return Err(refused(Code::Unimplemented, what));
        };
        if headers.get(PROTOCOL).is_some_and(|version| version != "1") {
            let what = "only version 1 of the Connect protocol is known";
            return Err(refused(Code::InvalidArgument, what));
        }
        let is_zipped = match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity" | b"") => false,
            Some(b"gzip") => true,
            _ => return Err(refused(Code::Unimplemented, "a request may be zipped by gzip only")),
        };
        Ok(Self { method: method.clone(), is_json, is_zipped })
    }

    /// The same call in gRPC. Its body is read when the service asks for it, and faults of it are the
    /// service's answer.
    fn request(&self, request: Request<Body>, budget: Arc<Budget>) -> Request<Body> {
        let (mut head, body) = request.into_parts();
        let zipped = self.is_zipped && !self.is_json;
        head.version = Version::HTTP_2;
        for name in [CONTENT_LENGTH, TRANSFER_ENCODING, CONTENT_ENCODING, PROTOCOL] {
            head.headers.remove(name);
        }
        head.headers.insert(CONTENT_TYPE, GRPC);
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
        if zipped {
            head.headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        }
        if let Some(timeout) = head.headers.remove(TIMEOUT).as_ref().and_then(grpc_timeout) {
            head.headers.insert("grpc-timeout", timeout);
        }
        let call = self.clone();
        let message = async move {
            let message = call.message(body, budget).await?;
            let mut framed = BytesMut::with_capacity(HEAD_BYTES + message.len());
            framed.put_u8(zipped.into());
            framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
            framed.put(message);
            Ok::<_, Status>(Frame::data(framed.freeze()))
        };
        Request::from_parts(head, Body::new(StreamBody::new(stream::once(message.boxed()))))
    }

    /// The message of a body, encoded; zipped still if it came so.
    async fn message(&self, body: Body, budget: Arc<Budget>) -> Result<Bytes, Status> {
        let within = limits::MESSAGE_WITHIN;
        let late = || Refusal::field("", format!("the message was not there within {within:?}"));
        let read = tokio::time::timeout(within, read(body, &budget)).await;
        let (mut text, mut held) = read.map_err(|_| late())??;
        if !self.is_json {
            return Ok(text);
        }
        if self.is_zipped {
            text = unzipped(&text)?;
        }
        held.grow(text.len() * JSON_TIMES)?;
        let encoded = self.method.request(&text);
        Ok(encoded.map_err(|(path, what)| Refusal::field(path, what))?.into())
    }

    /// The answer of gRPC in this format.
    async fn answer(
        &self,
        answer: Response<Body>,
        budget: &Arc<Budget>,
        line: Option<Arc<Line>>,
    ) -> Response<Body> {
        let (mut head, body) = answer.into_parts();
        let collected = match body.collect().await {
            Ok(collected) => collected,
            Err(status) => return with(plain::failed(&status), head.headers),
        };
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let said = if trailers.contains_key("grpc-status") { &trailers } else { &head.headers };
        let status = Status::from_header_map(said)
            .unwrap_or_else(|| Status::internal("the answer has no status"));
        let message = collected.to_bytes();
        if status.code() != Code::Ok {
            return with(plain::failed(&status), head.headers);
        }
        let Some(message) = (message.len() >= HEAD_BYTES).then(|| message.slice(HEAD_BYTES..))
        else {
            let status = Status::internal("the answer has no message");
            return with(plain::failed(&status), head.headers);
        };
        let body = if self.is_json {
            self.method.response(&message).map(Bytes::from)
        } else {
            Ok(message)
        };
        let body = match body {
            Ok(body) => budget.counted(body, line).map_err(Status::from),
            Err(unknown) => Err(Status::internal(unknown.to_string())),
        };
        match body {
            Err(status) => with(plain::failed(&status), head.headers),
            Ok(body) => {
                let kind = if self.is_json { JSON } else { PROTO };
                head.headers.remove("grpc-status");
                head.headers.remove(CONTENT_LENGTH);
                head.headers.insert(CONTENT_TYPE, kind);
                for (name, value) in &trailers {
                    let name = format!("trailer-{name}").parse::<HeaderName>();
                    if let Ok(name) = name
                        && !name.as_str().starts_with("trailer-grpc-")
                    {
                        head.headers.append(name, value.clone());
                    }
                }
                Response::from_parts(head, body)
            }
        }
    }
}

/// An answer with what else the service said: ids.
fn with(mut answer: Response<Body>, said: HeaderMap) -> Response<Body> {
    let grpc = |name: &HeaderName| {
        name.as_str().starts_with("grpc-") || [CONTENT_TYPE, CONTENT_LENGTH].contains(name)
    };
    let mut last = None;
    for (name, value) in said {
        // Further values of a header come without its name.
        last = name.or(last);
        if let Some(name) = last.clone().filter(|name| !grpc(name)) {
            answer.headers_mut().append(name, value);
        }
    }
    answer
}

/// All bytes of a body, and their part of the budget.
async fn read(mut body: Body, budget: &Arc<Budget>) -> Result<(Bytes, Held), Status> {
    let mut held = Held::none(budget);
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Status::cancelled("the request was cut"))?.into_data()
        else {
            continue;
        };
        if bytes.len() + data.len() > limits::MESSAGE_BYTES_MAX {
            return Err(too_large().into());
        }
        bytes.put(data);
        held.grow(bytes.len())?;
    }
    Ok((bytes.freeze(), held))
}

fn unzipped(zipped: &[u8]) -> Result<Bytes, Refusal> {
    let mut text = Vec::new();
    let max = limits::MESSAGE_BYTES_MAX as u64;
    let read = GzDecoder::new(zipped).take(max + 1).read_to_end(&mut text);
    read.map_err(|error| Refusal::field("", format!("is not what gzip makes: {error}")))?;
    if text.len() as u64 > max { Err(too_large()) } else { Ok(text.into()) }
}

fn too_large() -> Refusal {
    let max = limits::MESSAGE_BYTES_MAX;
    Refusal::field("", format!("the message is too large; at most {max} bytes are allowed"))
}

/// As gRPC has it: at most eight digits, and a unit.
fn grpc_timeout(millis: &HeaderValue) -> Option<HeaderValue> {
    let millis: u64 = millis.to_str().ok()?.parse().ok()?;
    let told = if millis < 100_000_000 {
        format!("{millis}m")
    } else {
        format!("{}S", (millis / 1000).min(99_999_999))
    };
    HeaderValue::from_str(&told).ok()
}
