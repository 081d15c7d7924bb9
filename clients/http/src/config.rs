//! What a step says of its call: its `config` → a [`Config`], or the key that is wrong. Pure.

use std::time::Duration;

use reqwest::{
    Method,
    header::{self, HeaderName},
};
use serde_json::{Map, Number, Value};

use crate::{
    problem::Problem,
    status::{Rules, Statuses},
    template::{Place, Template, head},
};

/// A response may have so many bytes, unless the step says otherwise: 256 KiB.
pub(crate) const RESPONSE_BYTES: usize = 256 << 10;
/// It may say at most this: 1 MiB, as no service keeps a larger result unless told to.
pub(crate) const RESPONSE_BYTES_MAX: usize = 1 << 20;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// No attempt is longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys of a configuration.
const KEYS: [&str; 12] = [
    "method",
    "url",
    "query",
    "headers",
    "body",
    "body_text",
    "timeout",
    "response_bytes_max",
    "success",
    "permanent",
    "retry",
    "result",
];

/// Headers that say how messages are framed, or where to: not a step's to set.
const HEADERS_OURS: [HeaderName; 11] = [
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A call, before its values are known.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) method: Method,
    pub(crate) url: Template,
    pub(crate) query: Vec<(String, Node)>,
    pub(crate) headers: Vec<(HeaderName, Template)>,
    pub(crate) body: Option<Body>,
    /// How long the call may take, if not as long as the attempt.
    pub(crate) timeout: Option<Duration>,
    pub(crate) response_bytes_max: usize,
    pub(crate) rules: Rules,
    /// The result has status and headers too.
    pub(crate) full: bool,
}

/// A body, before its values are known.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Json(Node),
    Text(Template),
}

/// JSON whose strings are templates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Number(Number),
    Text(Template),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Config {
    /// Reads a step's configuration; empty text is `{}`.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let text = if text.is_empty() { "{}" } else { text };
        let read = serde_json::from_str(text);
        let config: Map<String, Value> =
            read.map_err(|fault| Problem::config("", format!("is no JSON object: {fault}")))?;
        if let Some(key) = config.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let what = format!("is unknown; there are {}", KEYS.join(", "));
            return Err(Problem::config(head(key), what));
        }
        let url = config.get("url").ok_or_else(|| Problem::config("url", "is missing"))?;
        let statuses = |key: &str| {
            let read = config.get(key).map(Statuses::parse).transpose();
            read.map(Option::unwrap_or_default).map_err(|what| Problem::config(key, what))
        };
        Ok(Self {
            method: method(&config)?,
            url: template("url", text_of("url", url)?)?,
            query: query(&config)?,
            headers: headers(&config)?,
            body: body(&config)?,
            timeout: timeout(&config)?,
            response_bytes_max: response_bytes_max(&config)?,
            rules: Rules {
                success: statuses("success")?,
                permanent: statuses("permanent")?,
                retry: statuses("retry")?,
            },
            full: full(&config)?,
        })
    }

    /// The values it needs.
    pub(crate) fn places(&self) -> Vec<&Place> {
        let mut places: Vec<&Place> = self.url.places().collect();
        places.extend(self.headers.iter().flat_map(|(_, value)| value.places()));
        self.query.iter().for_each(|(_, node)| node.add_places(&mut places));
        match &self.body {
            Some(Body::Json(node)) => node.add_places(&mut places),
            Some(Body::Text(text)) => places.extend(text.places()),
            None => {}
        }
        places
    }
}

impl Body {
    /// True when a secret stands in it.
    pub(crate) fn has_secret(&self) -> bool {
        let mut places = Vec::new();
        match self {
            Self::Json(node) => node.add_places(&mut places),
            Self::Text(text) => places.extend(text.places()),
        }
        places.iter().any(|place| place.is_secret())
    }
}

impl Node {
    fn parse(key: &str, value: &Value) -> Result<Self, Problem> {
        Ok(match value {
            Value::Null => Self::Null,
            Value::Bool(bool) => Self::Bool(*bool),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::Text(template(key, text)?),
            Value::Array(list) => {
                let node = |(i, value)| Self::parse(&format!("{key}.{i}"), value);
                Self::List(list.iter().enumerate().map(node).collect::<Result<_, _>>()?)
            }
            Value::Object(object) => {
                let node = |(name, value): (&String, _)| {
                    let key = format!("{key}.{}", head(name));
                    Self::parse(&key, value).map(|node| (name.clone(), node))
                };
                Self::Object(object.iter().map(node).collect::<Result<_, _>>()?)
            }
        })
    }

    fn add_places<'a>(&'a self, places: &mut Vec<&'a Place>) {
        match self {
            Self::Text(text) => places.extend(text.places()),
            Self::List(list) => list.iter().for_each(|node| node.add_places(places)),
            Self::Object(object) => object.iter().for_each(|(_, node)| node.add_places(places)),
            Self::Null | Self::Bool(_) | Self::Number(_) => {}
        }
    }

    /// Neither list nor object.
    fn is_scalar(&self) -> bool {
        !matches!(self, Self::List(_) | Self::Object(_))
    }
}

fn template(key: &str, text: &str) -> Result<Template, Problem> {
    Template::parse(text).map_err(|what| Problem::config(key, what))
}

fn text_of<'a>(key: &str, value: &'a Value) -> Result<&'a str, Problem> {
    value.as_str().ok_or_else(|| Problem::config(key, "must be a string"))
}

fn object<'a>(
    config: &'a Map<String, Value>,
    key: &str,
) -> Result<Vec<(&'a String, &'a Value)>, Problem> {
    match config.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Object(object)) => Ok(object.iter().collect()),
        Some(_) => Err(Problem::config(key, "must be an object")),
    }
}

fn method(config: &Map<String, Value>) -> Result<Method, Problem> {
    let Some(value) = config.get("method") else { return Ok(Method::GET) };
    Ok(match text_of("method", value)? {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        "DELETE" => Method::DELETE,
        "OPTIONS" => Method::OPTIONS,
        _ => {
            let what = "must be GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS";
            return Err(Problem::config("method", what));
        }
    })
}

fn query(config: &Map<String, Value>) -> Result<Vec<(String, Node)>, Problem> {
    let parameter = |(name, value): (&String, &Value)| {
        let key = format!("query.{}", head(name));
        let node = Node::parse(&key, value)?;
        let fits = match &node {
            Node::List(list) => list.iter().all(Node::is_scalar),
            node => node.is_scalar(),
        };
        if !fits {
            let what = "must be a string, a number, a boolean, null, or a list of these";
            return Err(Problem::config(key, what));
        }
        Ok((name.clone(), node))
    };
    object(config, "query")?.into_iter().map(parameter).collect()
}

fn headers(config: &Map<String, Value>) -> Result<Vec<(HeaderName, Template)>, Problem> {
    let headers = object(config, "headers")?;
    if headers.len() > HEADERS_MAX {
        let what = format!("has {} entries; at most {HEADERS_MAX} are allowed", headers.len());
        return Err(Problem::config("headers", what));
    }
    let mut read: Vec<(HeaderName, Template)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let key = format!("headers.{}", head(name));
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err(Problem::config(key, "is no name of a header"));
        };
        if HEADERS_OURS.contains(&name) || name.as_str() == "keep-alive" {
            return Err(Problem::config(key, "cannot be set"));
        }
        if read.iter().any(|(other, _)| *other == name) {
            return Err(Problem::config(key, "is there twice"));
        }
        let value = match value {
            Value::String(text) => template(&key, text)?,
            Value::Number(_) | Value::Bool(_) => Template::literal(value.to_string()),
            _ => return Err(Problem::config(key, "must be a string, a number or a boolean")),
        };
        read.push((name, value));
    }
    Ok(read)
}

fn body(config: &Map<String, Value>) -> Result<Option<Body>, Problem> {
    match (config.get("body"), config.get("body_text")) {
        (Some(_), Some(_)) => Err(Problem::config("body_text", "cannot stand beside body")),
        (Some(body), None) => Node::parse("body", body).map(|body| Some(Body::Json(body))),
        (None, Some(text)) => {
            let text = template("body_text", text_of("body_text", text)?)?;
            Ok(Some(Body::Text(text)))
        }
        (None, None) => Ok(None),
    }
}

fn timeout(config: &Map<String, Value>) -> Result<Option<Duration>, Problem> {
    let Some(value) = config.get("timeout") else { return Ok(None) };
    let read = value.as_str().and_then(stepwell_proto::time::written);
    let within = read.filter(|read| (Duration::from_millis(1)..=TIMEOUT_MAX).contains(read));
    let wrong = || {
        Problem::config("timeout", "must be a duration such as `5s` or `1m30s`, from 1ms to 24h")
    };
    within.map(Some).ok_or_else(wrong)
}

fn response_bytes_max(config: &Map<String, Value>) -> Result<usize, Problem> {
    let Some(value) = config.get("response_bytes_max") else { return Ok(RESPONSE_BYTES) };
    let read = value.as_u64().and_then(|bytes| usize::try_from(bytes).ok());
    read.filter(|bytes| (1..=RESPONSE_BYTES_MAX).contains(bytes)).ok_or_else(|| {
        let what = format!("must be a whole number of bytes from 1 to {RESPONSE_BYTES_MAX}");
        Problem::config("response_bytes_max", what)
    })
}

fn full(config: &Map<String, Value>) -> Result<bool, Problem> {
    match config.get("result").map(Value::as_str) {
        None | Some(Some("body")) => Ok(false),
        Some(Some("full")) => Ok(true),
        Some(_) => Err(Problem::config("result", "must be `body` or `full`")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: &Value) -> Result<Config, Problem> {
        Config::parse(&config.to_string())
    }

    #[test]
    fn a_url_is_enough() {
        let config = parse(&json!({"url": "https://a/"})).unwrap();
        assert_eq!(config.method, Method::GET);
        assert_eq!(config.response_bytes_max, 262_144);
        assert!(config.body.is_none() && config.headers.is_empty() && config.query.is_empty());
        assert!(config.timeout.is_none() && !config.full);
        assert_eq!(config.rules, Rules::default());
    }

    #[test]
    fn everything_that_can_be_said_is_read() {
        let config = parse(&json!({
            "method": "POST",
            "url": "https://a/${context.id}",
            "query": {"page": 1, "tag": ["${step.id}", true], "none": null},
            "headers": {"Authorization": "Bearer ${secret.TOKEN}", "X-Version": 2},
            "body": {"total": 1, "items": ["${steps.cart.items}"]},
            "timeout": "1m30s",
            "response_bytes_max": 1_048_576,
            "success": [409], "permanent": ["400-499"], "retry": [500],
            "result": "full",
        }))
        .unwrap();
        assert_eq!(config.method, Method::POST);
        assert_eq!(config.timeout, Some(Duration::from_secs(90)));
        assert_eq!((config.response_bytes_max, config.full), (1 << 20, true));
        let places: Vec<String> = config.places().iter().map(ToString::to_string).collect();
        assert_eq!(places, ["context.id", "secret.TOKEN", "step.id", "steps.cart.items"]);
        assert!(!config.body.unwrap().has_secret());
    }

    #[test]
    fn what_cannot_be_is_refused_and_its_key_is_named() {
        let url = "https://a/";
        for (config, key) in [
            (json!({}), "config.url: is missing"),
            (json!({"url": 1}), "config.url: must be a string"),
            (json!({"url": "${foo}"}), "config.url: `${foo}` is unknown"),
            (json!({"url": url, "uri": 1}), "config.uri: is unknown"),
            (json!({"url": url, "method": "TRACE"}), "config.method"),
            (json!({"url": url, "method": "get"}), "config.method"),
            (json!({"url": url, "method": 1}), "config.method"),
            (json!({"url": url, "query": []}), "config.query"),
            (json!({"url": url, "query": {"a": {}}}), "config.query.a"),
            (json!({"url": url, "query": {"a": [[]]}}), "config.query.a"),
            (json!({"url": url, "query": {"a": "${"}}), "config.query.a"),
            (json!({"url": url, "headers": "a"}), "config.headers"),
            (json!({"url": url, "headers": {"a b": "c"}}), "config.headers.a b"),
            (json!({"url": url, "headers": {"a": null}}), "config.headers.a"),
            (json!({"url": url, "headers": {"Host": "b"}}), "config.headers.Host"),
            (json!({"url": url, "headers": {"transfer-encoding": "b"}}), "config.headers.transfer"),
            (json!({"url": url, "headers": {"a": "1", "A": "2"}}), "config.headers.A"),
            (json!({"url": url, "body": {"a": [1, {"b": "${x}"}]}}), "config.body.a.1.b"),
            (json!({"url": url, "body": 1, "body_text": "a"}), "config.body_text"),
            (json!({"url": url, "body_text": 1}), "config.body_text"),
            (json!({"url": url, "timeout": 5}), "config.timeout"),
            (json!({"url": url, "timeout": "5"}), "config.timeout"),
            (json!({"url": url, "timeout": "0s"}), "config.timeout"),
            (json!({"url": url, "timeout": "25h"}), "config.timeout"),
            (json!({"url": url, "response_bytes_max": 0}), "config.response_bytes_max"),
            (json!({"url": url, "response_bytes_max": 1_048_577}), "config.response_bytes_max"),
            (json!({"url": url, "response_bytes_max": "1"}), "config.response_bytes_max"),
            (json!({"url": url, "success": 409}), "config.success"),
            (json!({"url": url, "permanent": [1]}), "config.permanent"),
            (json!({"url": url, "retry": ["5xx"]}), "config.retry"),
            (json!({"url": url, "result": "headers"}), "config.result"),
        ] {
            let problem = parse(&config).unwrap_err();
            assert_eq!(problem.class(), "ConfigurationError");
            assert!(problem.to_string().starts_with(key), "{config}: {problem}");
        }
        assert!(Config::parse("[1]").is_err());
        let many: Map<String, Value> = (0..65).map(|i| (format!("h{i}"), json!("a"))).collect();
        assert!(parse(&json!({"url": url, "headers": many})).is_err());
    }
}
