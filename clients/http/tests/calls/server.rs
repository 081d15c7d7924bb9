//! A small HTTP server that answers as it is told and remembers what it was asked.

use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};
use tokio::{net::TcpListener, sync::Notify};

/// What it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
    /// Which request for this target it is, from 1.
    pub(crate) nth: usize,
}

/// What it does.
pub(crate) enum Does {
    Answer(Response),
    /// Answers once it is told.
    Later(Arc<Notify>, Response),
    /// Says nothing, ever.
    Nothing,
}

type Script = Box<dyn Fn(&Asked) -> Does + Send + Sync>;

/// A server on a port of its own, until the test ends.
#[derive(Clone)]
pub(crate) struct Server {
    /// `127.0.0.1:port`
    pub(crate) host: String,
    pub(crate) port: u16,
    inner: Arc<Inner>,
}

struct Inner {
    script: Script,
    asked: Mutex<Vec<Asked>>,
    /// A request is there that is not answered.
    waits: Notify,
    /// One of those was given up.
    given_up: Notify,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Asked) -> Does + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            script: Box::new(script),
            asked: Mutex::default(),
            waits: Notify::new(),
            given_up: Notify::new(),
        });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { host: address.to_string(), port: address.port(), inner }
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.host)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inner.asked.lock().unwrap().clone()
    }

    /// Those for a target.
    pub(crate) fn asked_for(&self, target: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.target == target).collect()
    }

    /// Until a request is there that is not answered.
    pub(crate) async fn waits(&self) {
        tokio::time::timeout(stepwell_tests::SOON, self.inner.waits.notified()).await.unwrap();
    }

    /// Until such a request is given up by its caller.
    pub(crate) async fn given_up(&self) {
        tokio::time::timeout(stepwell_tests::SOON, self.inner.given_up.notified()).await.unwrap();
    }
}

struct OnDrop(Arc<Inner>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.given_up.notify_one();
    }
}

async fn serve(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 4 << 20).await.unwrap();
    let target = parts.uri.path_and_query().unwrap().to_string();
    let headers = parts.headers.iter();
    let headers = headers.map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
    let asked = {
        let mut all = inner.asked.lock().unwrap();
        let nth = all.iter().filter(|asked| asked.target == target).count() + 1;
        let body = String::from_utf8(body.to_vec()).unwrap();
        all.push(Asked { method: parts.method.to_string(), target, headers, body, nth });
        all.last().unwrap().clone()
    };
    match (inner.script)(&asked) {
        Does::Answer(response) => response,
        Does::Later(told, response) => {
            inner.waits.notify_one();
            told.notified().await;
            response
        }
        Does::Nothing => {
            let _guard = OnDrop(Arc::clone(&inner));
            inner.waits.notify_one();
            pending().await
        }
    }
}

/// Answers with these headers.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Does {
    Does::Answer(response(status, headers, body))
}

pub(crate) fn response(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response {
    let builder = Response::builder().status(status);
    let builder =
        headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(Body::from(body.into())).unwrap()
}

pub(crate) fn json(status: u16, body: &str) -> Does {
    answer(status, &[("content-type", "application/json")], body.to_owned())
}
