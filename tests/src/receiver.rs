//! A receiver of spans: the official OTLP service, which keeps what comes.

use std::{collections::HashMap, fmt::Write, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::SOON;

/// A span that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Who sent it: `service.name`.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, 32 hex digits.
    pub trace: String,
    /// Its id, 16 hex digits.
    pub id: String,
    /// Its parent's id; none: it is a root.
    pub parent: Option<String>,
    /// The ids of the spans that it links to.
    pub links: Vec<String>,
    /// Its attributes, as text.
    pub attributes: HashMap<String, String>,
    /// True if its status is an error.
    pub is_error: bool,
}

impl Span {
    /// An attribute; empty if it is not there.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// Runs until it is dropped.
pub struct Receiver {
    /// `http://127.0.0.1:port`.
    pub endpoint: String,
    spans: watch::Sender<Vec<Span>>,
    server: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Receiver {
    /// Takes a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let spans = watch::Sender::new(Vec::new());
        let service = TraceServiceServer::new(Keeps(Arc::new(spans.clone())));
        let server = tonic::transport::Server::builder().add_service(service);
        let served = server.serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { served.await.unwrap() });
        Self { endpoint, spans, server }
    }

    /// The variables of a process that is to export here, without delay.
    pub fn env(&self) -> Vec<(String, String)> {
        [("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "20")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// Waits until what came satisfies the condition, and answers what it found.
    pub async fn until<T>(&self, found: impl Fn(&[Span]) -> Option<T>) -> T {
        let mut spans = self.spans.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = found(&spans.borrow_and_update()) {
                    return found;
                }
                spans.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(SOON, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("what came is not enough:\n{}", drawn(&self.spans())),
        }
    }
}

/// The traces as trees, for people.
pub fn drawn(spans: &[Span]) -> String {
    fn draw(to: &mut String, spans: &[Span], span: &Span, depth: usize) {
        let indent = "  ".repeat(depth);
        let Span { service, name, links, attributes, .. } = span;
        writeln!(to, "{indent}{service}: {name} links {links:?} {attributes:?}").unwrap();
        for child in
            spans.iter().filter(|s| s.trace == span.trace && s.parent == Some(span.id.clone()))
        {
            draw(to, spans, child, depth + 1);
        }
    }
    let mut text = String::new();
    for span in spans {
        let known = |id: &String| spans.iter().any(|s| s.trace == span.trace && s.id == *id);
        if !span.parent.as_ref().is_some_and(known) {
            writeln!(text, "trace {} parent {:?}", span.trace, span.parent).unwrap();
            draw(&mut text, spans, span, 1);
        }
    }
    text
}

struct Keeps(Arc<watch::Sender<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Keeps {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut came = Vec::new();
        for of_process in request.into_inner().resource_spans {
            let resource = attributes(of_process.resource.unwrap_or_default().attributes);
            let service = resource.get("service.name").cloned().unwrap_or_default();
            let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            came.extend(spans.map(|span| read(&service, span)));
        }
        self.0.send_modify(|spans| spans.extend(came));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn read(service: &str, span: v1::Span) -> Span {
    let failed = v1::status::StatusCode::Error as i32;
    Span {
        service: service.to_owned(),
        name: span.name,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: Some(hex(&span.parent_span_id)).filter(|id| !id.is_empty()),
        links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
        attributes: attributes(span.attributes),
        is_error: span.status.is_some_and(|status| status.code == failed),
    }
}

fn attributes(of: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = of.into_iter().filter_map(|a| Some((a.key, text(a.value?.value?))));
    pairs.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
