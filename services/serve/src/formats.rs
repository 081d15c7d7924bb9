//! Calls in other clothes than gRPC's: gRPC-Web, for browsers, and unary calls of the Connect protocol, whose
//! messages are plain bodies in JSON or as they are encoded, so that `curl` is a client. Both become gRPC
//! before anything else looks at them, and their answers are translated back: ids, deadlines, bounds, spans
//! and refusals are those of every call.

use std::{
    io::Read,
    net::IpAddr,
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
        ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, TE, TRANSFER_ENCODING,
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
/// Whether a service lives and is ready.
const PROBES: [&str; 2] = ["/livez", "/readyz"];
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROTO: HeaderValue = HeaderValue::from_static("application/proto");
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const PROTOCOL: HeaderName = HeaderName::from_static("connect-protocol-version");
/// Reading JSON takes at worst so many bytes of memory for each value, for each array or object, which begins with room
/// for four values, and for any other byte.
const JSON_COSTS: (usize, usize, usize) = (240, 640, 2);

/// Adds `Formats` around a service.
#[derive(Clone, Debug)]
pub(crate) struct FormatsLayer {
    pub(crate) budget: Arc<Budget>,
    pub(crate) callers: Arc<Callers>,
}

/// Which callers a browser may speak for.
#[derive(Debug)]
pub(crate) struct Callers {
    /// Origins of pages that may call.
    pub(crate) origins: Vec<HeaderValue>,
    /// Only this machine reaches the port.
    pub(crate) is_local: bool,
}

impl Callers {
    /// True for what a page sends that may not: one of another origin, or one whose name was made to mean this
    /// machine, which its browser then takes for the page's own.
    fn refuse<B>(&self, request: &Request<B>) -> bool {
        let headers = request.headers();
        let called = request.uri().authority().map(http::uri::Authority::as_str);
        let called = called.or_else(|| headers.get(HOST)?.to_str().ok()).unwrap_or_default();
        let is_ours = |origin: &HeaderValue| {
            let text = origin.to_str().unwrap_or_default();
            let authority = text.split_once("://").map_or(text, |(_, authority)| authority);
            self.origins.contains(origin) || authority == called && is_address(called)
        };
        let is_named = |origin: &HeaderValue| {
            let text = origin.to_str().unwrap_or_default();
            text.split_once("://").is_some_and(|(_, authority)| authority == called)
        };
        let is_known = called.is_empty() || is_address(called) || self.origins.iter().any(is_named);
        headers.get(ORIGIN).is_some_and(|origin| !is_ours(origin)) || self.is_local && !is_known
    }
}

/// True for numbers, and the name of this machine that nobody else can give himself.
fn is_address(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let number = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || number.parse::<IpAddr>().is_ok()
}

impl<S: Clone> Layer<S> for FormatsLayer {
    type Service = Formats<S>;

    fn layer(&self, inner: S) -> Formats<S> {
        let Self { budget, callers } = self.clone();
        Formats { web: GrpcWebLayer::new().layer(inner.clone()), inner, budget, callers }
    }
}

/// A service of gRPC whose calls may come in other formats.
#[derive(Clone, Debug)]
pub(crate) struct Formats<S> {
    inner: S,
    web: GrpcWebService<S>,
    budget: Arc<Budget>,
    callers: Arc<Callers>,
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
        let is_web = kind.starts_with(b"application/grpc-web");
        // No browser sends gRPC itself.
        let is_grpc = kind.starts_with(b"application/grpc") && !is_web;
        // Probes call by whichever name, and learn nothing that a page could use.
        let is_probe = PROBES.contains(&request.uri().path());
        if !is_grpc && !is_probe && self.callers.refuse(&request) {
            let what = "a page of this origin may not call; --allow-origins names those that may";
            let answer = plain::failed(&Status::permission_denied(what));
            return Box::pin(std::future::ready(Ok(answer)));
        }
        if is_web {
            return Box::pin(self.web.call(request));
        }
        let path = request.uri().path();
        if is_grpc || !path.starts_with(OURS) {
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
    /// Its deadline, as gRPC has it.
    timeout: Option<HeaderValue>,
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
        let timeout = headers.get(TIMEOUT).map(grpc_timeout).transpose();
        let timeout = timeout.map_err(|refusal| Box::new(plain::failed(&refusal.into())))?;
        Ok(Self { method: method.clone(), is_json, is_zipped, timeout })
    }

    /// The same call in gRPC. Its body is read when the service asks for it, and faults of it are the
    /// service's answer.
    fn request(&self, request: Request<Body>, budget: Arc<Budget>) -> Request<Body> {
        let (mut head, body) = request.into_parts();
        let zipped = self.is_zipped && !self.is_json;
        head.version = Version::HTTP_2;
        for name in [CONTENT_LENGTH, TRANSFER_ENCODING, CONTENT_ENCODING, PROTOCOL, TIMEOUT] {
            head.headers.remove(name);
        }
        head.headers.insert(CONTENT_TYPE, GRPC);
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
        if zipped {
            head.headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        }
        if let Some(timeout) = &self.timeout {
            head.headers.insert("grpc-timeout", timeout.clone());
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
        held.grow(cost(&text))?;
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

/// What reading a text as JSON takes at worst.
fn cost(text: &[u8]) -> usize {
    let (value, list, other) = JSON_COSTS;
    let of = |byte: &u8| match byte {
        b'[' | b'{' => list,
        b',' => value,
        _ => other,
    };
    text.iter().map(of).sum()
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

/// A time-out of Connect, at most ten digits, as gRPC has it: at most eight, and a unit.
fn grpc_timeout(millis: &HeaderValue) -> Result<HeaderValue, Refusal> {
    let wanted = || {
        let what = format!("the header `{TIMEOUT}` must be milliseconds, of 1 to 10 digits");
        Refusal::field("", what)
    };
    let digits = millis.to_str().map_err(|_| wanted())?;
    let is_number = digits.len() <= 10 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let millis: u64 = digits.parse().ok().filter(|_| is_number).ok_or_else(wanted)?;
    let told = match millis {
        0..100_000_000 => format!("{millis}m"),
        _ => format!("{}S", millis / 1000),
    };
    HeaderValue::from_str(&told).map_err(|_| wanted())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str, origin: &str, is_local: bool) -> bool {
        let origins = vec![HeaderValue::from_static("https://console.example")];
        let mut request = Request::post("/x").header("host", host);
        if !origin.is_empty() {
            request = request.header("origin", origin);
        }
        Callers { origins, is_local }.refuse(&request.body(()).unwrap())
    }

    #[test]
    fn a_page_whose_name_was_made_to_mean_this_machine_may_not_call() {
        for (host, origin, is_local, wanted) in [
            ("127.0.0.1:7101", "", true, false),
            ("[::1]:7101", "", true, false),
            ("localhost:7101", "http://localhost:7101", true, false),
            ("127.0.0.1:7101", "http://127.0.0.1:7101", true, false),
            ("127.0.0.1:7101", "https://console.example", true, false),
            ("console.example", "https://console.example", true, false),
            ("127.0.0.1:7101", "http://127.0.0.1:9999", true, true),
            ("127.0.0.1:7101", "http://evil.example", true, true),
            ("127.0.0.1:7101", "null", true, true),
            ("evil.example:7101", "http://evil.example:7101", true, true),
            ("evil.example:7101", "http://evil.example:7101", false, true),
            // A browser says no origin of what it reads from the page's own.
            ("evil.example:7101", "", true, true),
            ("127.0.0.1.evil.example:7101", "", true, true),
            // Between machines the services have names.
            ("task.internal:7101", "", false, false),
        ] {
            assert_eq!(refused(host, origin, is_local), wanted, "{host} {origin} {is_local}");
        }
    }

    #[test]
    fn a_timeout_has_one_to_ten_digits_and_nothing_else() {
        for (millis, told) in [
            ("0", "0m"),
            ("50", "50m"),
            ("0000000050", "50m"),
            ("99999999", "99999999m"),
            ("100000999", "100000S"),
            ("9999999999", "9999999S"),
        ] {
            assert_eq!(grpc_timeout(&HeaderValue::from_static(millis)).unwrap(), told);
        }
        for millis in ["", " 5", "+5", "-5", "5m", "1.5", "1e3", "00000000005", "\u{ff15}"] {
            let header = HeaderValue::from_bytes(millis.as_bytes()).unwrap();
            assert!(grpc_timeout(&header).is_err(), "{millis}");
        }
    }

    #[test]
    fn reading_small_lists_costs_more_than_reading_long_texts() {
        assert!(cost(b"[0],[0],[0]") > 100 * b"[0],[0],[0]".len());
        let text = format!("{{\"context\": \"{}\"}}", "x".repeat(1000));
        assert!(cost(text.as_bytes()) < 4 * text.len());
    }
}
