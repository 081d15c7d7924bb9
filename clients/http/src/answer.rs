//! What comes back: reads a response up to a bound, and makes it a result.

use reqwest::{
    Response,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde_json::{Map, Value, json};

/// How much of a failed response is read, to quote of it.
const EXCERPT_READ_MAX: usize = 16 << 10;
/// How much of it is quoted: 1 KiB.
const EXCERPT_BYTES_MAX: usize = 1 << 10;

/// A body that was read.
#[derive(Debug)]
pub(crate) enum Body {
    Whole(Vec<u8>),
    /// It has more bytes than were wanted. It was not read any further.
    TooLarge,
}

/// Reads a body of at most so many bytes; of a compressed one they count as they are unpacked.
pub(crate) async fn read(mut response: Response, bytes_max: usize) -> reqwest::Result<Body> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(Body::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Body::Whole(body))
}

/// Reads the beginning of a failed response's body. What breaks is left out: the status is known.
pub(crate) async fn read_excerpt(mut response: Response, into: &mut Vec<u8>) {
    while let Ok(Some(chunk)) = response.chunk().await {
        into.extend_from_slice(&chunk);
        if into.len() >= EXCERPT_READ_MAX {
            into.truncate(EXCERPT_READ_MAX);
            return;
        }
    }
}

/// The beginning of a body as one text of at most 1 KiB; `hide` takes out what nobody may see.
pub(crate) fn excerpt(body: &[u8], hide: impl Fn(String) -> String) -> String {
    let mut text = hide(String::from_utf8_lossy(body).trim().to_owned());
    text.truncate(text.floor_char_boundary(EXCERPT_BYTES_MAX));
    text
}

/// A body as a value: JSON if its type says so and it is; else a string; nothing is null.
pub(crate) fn value(headers: &HeaderMap, body: &[u8]) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    let read = says_json(headers).then(|| serde_json::from_slice(body).ok()).flatten();
    read.unwrap_or_else(|| Value::String(text(body)))
}

/// The result of a step that wants to see all of it. A header that is repeated has its values in
/// one string, with commas.
pub(crate) fn full(status: u16, headers: &HeaderMap, body: Value) -> Value {
    let mut shown: Map<String, Value> = Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter().map(|value| text(value.as_bytes()));
        shown.insert(name.to_string(), values.collect::<Vec<_>>().join(", ").into());
    }
    json!({"status": status, "headers": shown, "body": body})
}

/// How many bytes the headers have.
pub(crate) fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// UTF-8; what is none, and NUL, which no result can have, becomes U+FFFD.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}")
}

/// `application/json`, `text/json` or anything `+json`.
fn says_json(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(content_type: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, content_type.parse().unwrap())])
    }

    #[test]
    fn a_body_is_json_if_it_says_so_and_is() {
        for (content_type, body, value) in [
            ("application/json", r#"{"a": 1.10}"#, r#"{"a":1.10}"#),
            ("Application/Problem+JSON; charset=utf-8", "[1]", "[1]"),
            ("text/json", "null", "null"),
            ("application/json", "", "null"),
            ("text/plain", "", "null"),
            ("text/plain", "[1]", r#""[1]""#),
            ("application/json", "{oops", r#""{oops""#),
            ("application/jsonlines", "1", r#""1""#),
            ("text/plain", "a\0b", r#""a�b""#),
        ] {
            let read = super::value(&headers(content_type), body.as_bytes()).to_string();
            assert_eq!(read, value, "{content_type}: {body}");
        }
        assert_eq!(value(&HeaderMap::new(), b"\xff1"), "\u{fffd}1");
    }

    #[test]
    fn all_of_a_response_has_status_headers_and_body() {
        let mut headers = headers("text/plain");
        headers.append("link", "<a>".parse().unwrap());
        headers.append("link", "<b>".parse().unwrap());
        let full = full(201, &headers, json!("x"));
        let expected = json!({
            "status": 201, "headers": {"content-type": "text/plain", "link": "<a>, <b>"}, "body": "x"
        });
        assert_eq!(full, expected);
        assert_eq!(bytes_of(&headers), 12 + 10 + 2 * 7);
    }

    #[test]
    fn an_excerpt_is_short_and_hides_before_it_cuts() {
        let body = format!(" {}secret", "é".repeat(510));
        let excerpt = excerpt(body.as_bytes(), |text| text.replace("secret", "***"));
        assert_eq!(excerpt, format!("{}***", "é".repeat(510)));
        let long = super::excerpt("é".repeat(600).as_bytes(), |text| text);
        assert_eq!(long.len(), 1024);
    }
}
