//! Following redirects: what the next request is, by RFC 9110 and the Fetch standard. Pure.

use reqwest::{
    Method, StatusCode,
    header::{
        AUTHORIZATION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION, CONTENT_TYPE, COOKIE,
        HeaderMap, LOCATION,
    },
};

use crate::{
    problem::Problem,
    request::{Request, check},
};

/// Most redirects of one call.
pub(crate) const REDIRECTS_MAX: usize = 5;

/// Where a response sends the call, if it does: its `Location`.
pub(crate) fn location(status: StatusCode, headers: &HeaderMap) -> Option<&str> {
    let redirects = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
    headers.get(LOCATION).filter(|_| redirects)?.to_str().ok()
}

/// The request that follows. At another origin (scheme, host and port) it has no credentials and no
/// header with a secret; a body with one is not sent there at all.
pub(crate) fn follow(
    mut request: Request,
    status: StatusCode,
    location: &str,
) -> Result<Request, Problem> {
    let refused = |what: &str| Problem::Redirect { what: what.to_owned() };
    let mut url = request.url.join(location).map_err(|_| refused("its url cannot be read"))?;
    check(&url).map_err(|what| refused(&format!("its url {what}")))?;
    url.set_fragment(None);
    let becomes_get = match status {
        StatusCode::SEE_OTHER => !matches!(request.method, Method::GET | Method::HEAD),
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => request.method == Method::POST,
        _ => false,
    };
    if becomes_get {
        request.method = Method::GET;
        request.body = None;
        request.body_has_secret = false;
        for name in [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION] {
            request.headers.remove(name);
        }
    }
    if url.origin() != request.url.origin() {
        if request.body_has_secret {
            return Err(refused("it leads to another host, and the body has a secret"));
        }
        for name in [AUTHORIZATION, COOKIE].iter().chain(&request.secret_headers) {
            request.headers.remove(name);
        }
    }
    request.url = url;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};
    use url::Url;

    use super::*;

    fn request(method: Method, body_has_secret: bool) -> Request {
        let x_key = HeaderName::from_static("x-key");
        let names =
            [AUTHORIZATION, COOKIE, x_key.clone(), CONTENT_TYPE, HeaderName::from_static("x-a")];
        Request {
            method,
            url: Url::parse("http://a:80/x/y?q=1").unwrap(),
            headers: names.into_iter().map(|n| (n, HeaderValue::from_static("v"))).collect(),
            secret_headers: vec![x_key],
            body: Some("b".into()),
            body_has_secret,
        }
    }

    #[test]
    fn methods_and_bodies_change_as_the_standards_say() {
        for (status, before, after) in [
            (301, Method::POST, Method::GET),
            (302, Method::POST, Method::GET),
            (303, Method::POST, Method::GET),
            (303, Method::DELETE, Method::GET),
            (303, Method::HEAD, Method::HEAD),
            (301, Method::PUT, Method::PUT),
            (302, Method::DELETE, Method::DELETE),
            (307, Method::POST, Method::POST),
            (308, Method::POST, Method::POST),
        ] {
            let code = StatusCode::from_u16(status).unwrap();
            let next = follow(request(before.clone(), false), code, "/z").unwrap();
            assert_eq!(next.method, after, "{status} {before}");
            assert_eq!(next.body.is_some(), before == after, "{status} {before}");
            assert_eq!(next.headers.contains_key(CONTENT_TYPE), before == after);
        }
    }

    #[test]
    fn places_are_relative_and_keep_what_is_secret_at_one_origin() {
        for (location, url, kept) in [
            ("z?r#f", "http://a/x/z?r", true),
            ("//a:80/", "http://a/", true),
            ("//b/", "http://b/", false),
            ("http://a:81/", "http://a:81/", false),
            ("https://a/", "https://a/", false),
        ] {
            let next = follow(request(Method::PUT, false), StatusCode::FOUND, location).unwrap();
            assert_eq!(next.url.as_str(), url);
            for name in ["authorization", "cookie", "x-key"] {
                assert_eq!(next.headers.contains_key(name), kept, "{location}: {name}");
            }
            assert!(next.headers.contains_key("x-a"));
        }
    }

    #[test]
    fn what_may_not_be_called_is_not_followed() {
        for location in ["file:///etc/passwd", "http://u:p@a/", "http://", "data:,x"] {
            let refused = follow(request(Method::GET, false), StatusCode::FOUND, location);
            assert_eq!(refused.unwrap_err().class(), "RedirectRefused", "{location}");
        }
        let temporary = StatusCode::TEMPORARY_REDIRECT;
        assert!(follow(request(Method::POST, true), temporary, "http://b/").is_err());
        assert!(follow(request(Method::POST, true), temporary, "/z").is_ok());
        assert!(follow(request(Method::POST, true), StatusCode::SEE_OTHER, "http://b/").is_ok());
    }

    #[test]
    fn only_redirects_with_a_place_are_redirects() {
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static("/z"))]);
        for (status, follows) in
            [(301, true), (308, true), (300, false), (304, false), (201, false)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(location(status, &headers).is_some(), follows, "{status}");
            assert_eq!(location(status, &HeaderMap::new()), None);
        }
    }
}
