//! A configuration with its values: the request that is sent. Pure.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde_json::Value;
use url::Url;

use crate::{
    config::{Body, Config, Node},
    problem::Problem,
    template::{Piece, Place, Template},
    values::{Values, scalar},
};

/// A body has at most so many bytes: 1 MiB.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// A url has at most so many bytes: 8 KiB.
const URL_BYTES_MAX: usize = 8 << 10;
/// The values of all headers together: 64 KiB.
const HEADERS_BYTES_MAX: usize = 64 << 10;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What of a value is escaped in a url: all but letters, digits and `-._~`.
pub(crate) const VALUE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// Headers that only the first host may see.
    pub(crate) secret_headers: Vec<HeaderName>,
    pub(crate) body: Option<Bytes>,
    pub(crate) body_has_secret: bool,
}

impl Request {
    /// Puts the values in. `traceparent` is where the call is in a trace.
    pub(crate) fn build(
        config: &Config,
        values: &Values<'_>,
        traceparent: Option<&str>,
    ) -> Result<Self, Problem> {
        let body = config.body.as_ref().map(|body| render_body(body, values)).transpose()?;
        let mut request = Self {
            method: config.method.clone(),
            url: url(config, values)?,
            headers: HeaderMap::new(),
            secret_headers: Vec::new(),
            body: body.map(Bytes::from),
            body_has_secret: config.body.as_ref().is_some_and(Body::has_secret),
        };
        request.set_headers(config, values)?;
        request.set_unless_there(IDEMPOTENCY_KEY, &values.step_id);
        if let Some(traceparent) = traceparent {
            request.set_unless_there(TRACEPARENT, traceparent);
        }
        match config.body {
            Some(Body::Json(_)) => request.set_unless_there(CONTENT_TYPE, "application/json"),
            Some(Body::Text(_)) => {
                request.set_unless_there(CONTENT_TYPE, "text/plain; charset=utf-8");
            }
            None => {}
        }
        Ok(request)
    }

    fn set_headers(&mut self, config: &Config, values: &Values<'_>) -> Result<(), Problem> {
        let mut bytes = 0;
        for (name, template) in &config.headers {
            let key = format!("headers.{name}");
            let text = render(&key, template, values, HEADERS_BYTES_MAX)?;
            bytes += text.len();
            if bytes > HEADERS_BYTES_MAX {
                return Err(Problem::RequestTooLarge { bytes_max: HEADERS_BYTES_MAX });
            }
            let mut value = HeaderValue::from_bytes(text.as_bytes())
                .map_err(|_| Problem::value(key, "contains a control character"))?;
            if template.places().any(Place::is_secret) {
                value.set_sensitive(true);
                self.secret_headers.push(name.clone());
            }
            self.headers.insert(name.clone(), value);
        }
        Ok(())
    }

    fn set_unless_there(&mut self, name: HeaderName, value: &str) {
        // Ids and trace contexts are visible ASCII.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.entry(name).or_insert(value);
        }
    }
}

// ── url ─────────────────────────────────────────────────────────────────────────────────────────

fn url(config: &Config, values: &Values<'_>) -> Result<Url, Problem> {
    let wrong = |what: &str| Problem::value("url", what);
    let text = render_url(&config.url, values)?;
    // The parser would take these away, and go up for those.
    if text.contains(|c: char| c.is_ascii_control()) {
        return Err(wrong("contains a control character"));
    }
    let path = text.split(['?', '#']).next().unwrap_or_default();
    if path.split(['/', '\\']).any(is_dots) {
        return Err(wrong("has a path with `.` or `..`"));
    }
    let mut url = Url::parse(&text).map_err(|fault| wrong(&format!("cannot be read: {fault}")))?;
    check(&url).map_err(wrong)?;
    url.set_fragment(None);
    let parameters = parameters(config, values)?;
    if !parameters.is_empty() {
        url.query_pairs_mut().extend_pairs(parameters);
    }
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(wrong("has more than 8 KiB"));
    }
    Ok(url)
}

/// What no call may go to, wherever its url is from.
pub(crate) fn check(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        Err("is neither http nor https")
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("has a user or a password; set a header")
    } else {
        Ok(())
    }
}

/// A value at the beginning is an address and stands as it is; others are escaped.
fn render_url(template: &Template, values: &Values<'_>) -> Result<String, Problem> {
    let mut url = String::new();
    for (i, piece) in template.pieces().iter().enumerate() {
        match piece {
            Piece::Text(text) => url.push_str(text),
            Piece::Place(place) => {
                let value = values.text("url", place)?;
                if value.is_empty() {
                    return Err(Problem::value("url", format!("${{{place}}} is empty")));
                }
                if i == 0 {
                    url.push_str(&value);
                } else {
                    url.extend(utf8_percent_encode(&value, VALUE));
                }
            }
        }
        if url.len() > URL_BYTES_MAX {
            return Err(Problem::value("url", "has more than 8 KiB"));
        }
    }
    Ok(url)
}

/// A segment that means this folder or the one above, however it is written.
fn is_dots(segment: &str) -> bool {
    let plain = segment.to_ascii_lowercase().replace("%2e", ".");
    plain == "." || plain == ".."
}

fn parameters(config: &Config, values: &Values<'_>) -> Result<Vec<(String, String)>, Problem> {
    let (mut parameters, mut bytes) = (Vec::new(), 0);
    for (name, node) in &config.query {
        let key = format!("query.{name}");
        let nodes = match node {
            Node::List(list) => list.as_slice(),
            node => std::slice::from_ref(node),
        };
        for node in nodes {
            for text in parameter(&key, node, values)? {
                bytes += name.len() + text.len() + 2;
                if bytes > URL_BYTES_MAX {
                    return Err(Problem::value("url", "has more than 8 KiB"));
                }
                parameters.push((name.clone(), text));
            }
        }
    }
    Ok(parameters)
}

/// The texts of a parameter: none for null, several for a value that is a list.
fn parameter(key: &str, node: &Node, values: &Values<'_>) -> Result<Vec<String>, Problem> {
    let texts = |value: &Value| match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(scalar).collect(),
        value => scalar(value).map(|text| vec![text]),
    };
    match node {
        Node::Text(template) => match template.single() {
            Some(place) => texts(&*values.value(place)?).ok_or_else(|| {
                let what = format!("${{{place}}} is an object, or a list of more than scalars");
                Problem::value(key, what)
            }),
            None => Ok(vec![render(key, template, values, URL_BYTES_MAX)?]),
        },
        Node::Bool(bool) => Ok(vec![bool.to_string()]),
        Node::Number(number) => Ok(vec![number.to_string()]),
        Node::Null | Node::List(_) | Node::Object(_) => Ok(Vec::new()),
    }
}

/// A template of scalars as text.
fn render(
    key: &str,
    template: &Template,
    values: &Values<'_>,
    bytes_max: usize,
) -> Result<String, Problem> {
    let mut text = String::new();
    for piece in template.pieces() {
        match piece {
            Piece::Text(literal) => text.push_str(literal),
            Piece::Place(place) => text.push_str(&values.text(key, place)?),
        }
        bounded(&text, bytes_max)?;
    }
    Ok(text)
}

// ── body ────────────────────────────────────────────────────────────────────────────────────────

fn render_body(body: &Body, values: &Values<'_>) -> Result<String, Problem> {
    let mut text = String::new();
    match body {
        Body::Json(node) => write_json(&mut text, node, values)?,
        Body::Text(template) => text = inner_text(template, values)?,
    }
    bounded(&text, BODY_BYTES_MAX)?;
    Ok(text)
}

/// Writes JSON. A string that is a value and nothing else becomes what the value is.
fn write_json(out: &mut String, node: &Node, values: &Values<'_>) -> Result<(), Problem> {
    match node {
        Node::Null => out.push_str("null"),
        Node::Bool(bool) => out.push_str(&bool.to_string()),
        Node::Number(number) => out.push_str(&number.to_string()),
        Node::Text(template) => match template.single() {
            Some(place) => out.push_str(&values.value(place)?.to_string()),
            None => write_string(out, inner_text(template, values)?),
        },
        Node::List(list) => {
            out.push('[');
            for (i, node) in list.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                write_json(out, node, values)?;
            }
            out.push(']');
        }
        Node::Object(object) => {
            out.push('{');
            for (i, (name, node)) in object.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                write_string(out, name.clone());
                out.push(':');
                write_json(out, node, values)?;
            }
            out.push('}');
        }
    }
    bounded(out, BODY_BYTES_MAX)
}

fn write_string(out: &mut String, text: String) {
    out.push_str(&Value::String(text).to_string());
}

/// Text of a body: lists, objects and null stand in it as JSON.
fn inner_text(template: &Template, values: &Values<'_>) -> Result<String, Problem> {
    let mut text = String::new();
    for piece in template.pieces() {
        match piece {
            Piece::Text(literal) => text.push_str(literal),
            Piece::Place(place) => {
                let value = values.value(place)?;
                text.push_str(&scalar(&value).unwrap_or_else(|| value.to_string()));
            }
        }
        bounded(&text, BODY_BYTES_MAX)?;
    }
    Ok(text)
}

fn bounded(text: &str, bytes_max: usize) -> Result<(), Problem> {
    if text.len() > bytes_max { Err(Problem::RequestTooLarge { bytes_max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        secrets::{Secrets, tests::secrets},
        values::tests::values,
    };

    fn build(config: &Value, context: &str) -> Result<Request, Problem> {
        let secrets = secrets(&[("KEY", "s3cr3t"), ("PATH", "a/b\nc")]);
        let config = Config::parse(&config.to_string())?;
        Request::build(&config, &values(context, &secrets), None)
    }

    fn body(config: &Value, context: &str) -> String {
        let request = build(config, context).unwrap();
        String::from_utf8(request.body.unwrap().to_vec()).unwrap()
    }

    #[test]
    fn values_in_a_url_are_escaped_unless_they_begin_it() {
        let context = r#"{"id": "a/b?c#d e.é", "n": 1.50, "base": "http://b:81/x", "q": "a&b=c"}"#;
        for (template, url) in [
            ("http://a/${context.id}/x", "http://a/a%2Fb%3Fc%23d%20e.%C3%A9/x"),
            ("http://a/${context.n}?q=${context.q}#f", "http://a/1.50?q=a%26b%3Dc"),
            ("${context.base}/${context.n}", "http://b:81/x/1.50"),
            ("http://a/$${context.n}", "http://a/$%7Bcontext.n%7D"),
            ("http://${step.attempt}.a/", "http://2.a/"),
        ] {
            let request = build(&json!({"url": template}), context).unwrap();
            assert_eq!(request.url.as_str(), url);
        }
    }

    #[test]
    fn a_url_goes_where_its_author_meant() {
        let context = r#"{"up": "..", "dot": ".", "up2": "%2E.", "empty": "", "null": null,
            "list": [1], "file": "file:///x", "user": "http://u:p@a/", "tab": "http://a/.\t./x",
            "long": "LONG", "rel": "/a"}"#;
        let context = context.replace("LONG", &"x".repeat(9000));
        for (template, class) in [
            ("http://a/x/${context.up}/y", "InvalidValue"),
            ("http://a/x/${context.dot}${context.dot}", "InvalidValue"),
            ("http://a/x/../y", "InvalidValue"),
            ("http://a/x/%2e%2E/y", "InvalidValue"),
            ("http://a/x\\..\\y", "InvalidValue"),
            ("http://a/x/${context.empty}", "InvalidValue"),
            ("http://a/x/${context.list}", "InvalidValue"),
            ("http://a/x/${context.null}", "MissingValue"),
            ("http://a/x/${context.none}", "MissingValue"),
            ("${context.file}", "InvalidValue"),
            ("${context.user}", "InvalidValue"),
            ("${context.tab}", "InvalidValue"),
            ("${context.rel}", "InvalidValue"),
            ("http://a/${context.long}", "InvalidValue"),
            ("http://a${context.user}", "InvalidValue"),
            ("gopher://a/", "InvalidValue"),
        ] {
            let problem = build(&json!({"url": template}), &context).unwrap_err();
            assert_eq!(problem.class(), class, "{template}: {problem}");
        }
        // Escaped once more it is a name like any other.
        let request = build(&json!({"url": "http://a/${context.up2}"}), &context).unwrap();
        assert_eq!(request.url.as_str(), "http://a/%252E.");
    }

    #[test]
    fn parameters_are_repeated_for_lists_and_left_out_for_null() {
        let config = json!({
            "url": "http://a/?z=1",
            "query": {
                "a b": "${context.s}!", "n": 1, "list": [true, "${step.id}"],
                "tags": "${context.tags}", "none": "${context.none}", "null": null,
            },
        });
        let context = r#"{"s": "x&y", "tags": ["p", 2], "none": null}"#;
        let request = build(&config, context).unwrap();
        let url = "http://a/?z=1&a+b=x%26y%21&n=1&list=true&list=t.3&tags=p&tags=2";
        assert_eq!(request.url.as_str(), url);
        let config = json!({"url": "http://a/", "query": {"o": "${context}"}});
        assert_eq!(build(&config, "{}").unwrap_err().class(), "InvalidValue");
    }

    #[test]
    fn a_string_that_is_one_value_keeps_its_type_and_digits() {
        let config = json!({
            "url": "http://a/", "method": "POST",
            "body": {
                "one": "${context.n}", "text": "n=${context.n}", "list": ["${steps.cart.items}"],
                "object": "${context.o}", "in text": "${context.o} and ${context.null}",
                "null": "${context.null}", "literal": "$${context.n}", "own": [1, null, false],
                "quo\"te": "${context.q}-",
            },
        });
        let context = r#"{"n": 1.10, "o": {"a": 1e2}, "null": null, "q": "\"\n"}"#;
        let expected = concat!(
            r#"{"one":1.10,"text":"n=1.10","list":[[{"id":7}]],"object":{"a":1e2},"#,
            r#""in text":"{\"a\":1e2} and null","null":null,"literal":"${context.n}","#,
            r#""own":[1,null,false],"quo\"te":"\"\n-"}"#
        );
        // Numbers are written as they came, but for the sign that exponents get.
        let digits = |text: &str| text.replace("1e+2", "1e2");
        assert_eq!(digits(&body(&config, context)), expected);
        let config = json!({"url": "http://a/", "body_text": "a=${context.n}&b=${context.o}"});
        assert_eq!(digits(&body(&config, context)), r#"a=1.10&b={"a":1e2}"#);
    }

    #[test]
    fn a_key_a_trace_and_a_type_are_sent_unless_the_step_says_otherwise() {
        let secrets = Secrets::default();
        let values = values("{}", &secrets);
        let build = |config: Value| {
            let config = Config::parse(&config.to_string()).unwrap();
            Request::build(&config, &values, Some("00-trace")).unwrap().headers
        };
        let headers = build(json!({"url": "http://a/", "body": 1}));
        assert_eq!(headers["idempotency-key"], "t.3");
        assert_eq!(headers["traceparent"], "00-trace");
        assert_eq!(headers["content-type"], "application/json");
        let headers = build(json!({
            "url": "http://a/", "body_text": "a=b",
            "headers": {
                "Idempotency-Key": "${task.id}-once", "TraceParent": "mine",
                "Content-Type": "application/x-www-form-urlencoded", "X-Count": 3,
            },
        }));
        assert_eq!(headers["idempotency-key"], "t-once");
        assert_eq!(headers["traceparent"], "mine");
        assert_eq!(headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!((headers["x-count"].to_str().unwrap(), headers.len()), ("3", 4));
        assert!(!build(json!({"url": "http://a/"})).contains_key("content-type"));
    }

    #[test]
    fn headers_carry_secrets_but_no_control_characters() {
        let config = |value: &str| json!({"url": "http://a/", "headers": {"X-A": value}});
        let request = build(&config("Bearer ${secret.KEY}"), "{}").unwrap();
        assert_eq!(request.headers["x-a"], "Bearer s3cr3t");
        assert!(
            request.headers["x-a"].is_sensitive() && !format!("{request:?}").contains("s3cr3t")
        );
        assert_eq!(request.secret_headers, ["x-a"]);
        for (value, context) in [
            ("${context.v}", r#"{"v": "a\r\nX-B: c"}"#),
            ("${context.v}", r#"{"v": "a\u0000"}"#),
            ("a\nb", "{}"),
            ("${secret.PATH}", "{}"),
            ("${context.v}", r#"{"v": [1]}"#),
        ] {
            let problem = build(&config(value), context).unwrap_err();
            assert_eq!(problem.class(), "InvalidValue");
            assert!(problem.to_string().starts_with("headers.x-a"), "{problem}");
        }
    }

    #[test]
    fn a_request_is_bounded_however_often_a_value_is_repeated() {
        let context = format!(r#"{{"v": "{}"}}"#, "x".repeat(300_000));
        for key in ["body", "body_text"] {
            let config = json!({"url": "http://a/", key: "${context.v}".repeat(1000)});
            assert_eq!(build(&config, &context).unwrap_err().class(), "RequestTooLarge");
        }
        let list = vec!["${context.v}"; 1000];
        let config = json!({"url": "http://a/", "body": list});
        assert_eq!(build(&config, &context).unwrap_err().class(), "RequestTooLarge");
        let config = json!({"url": "http://a/", "headers": {"A": "${context.v}"}});
        assert_eq!(build(&config, &context).unwrap_err().class(), "RequestTooLarge");
        let config = json!({"url": "http://a/", "query": {"A": list}});
        assert_eq!(build(&config, &context).unwrap_err().class(), "InvalidValue");
    }
}
