//! The URL that links of a diagram begin with.

use url::Url;

/// Longest URL.
const BYTES_MAX: usize = 2_048;

/// What links begin with: printable ASCII without quotes and without a slash at its end. None: there are no
/// links. Or what it must be.
pub(super) fn read(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let bounded = |bytes: usize| match bytes {
        0..=BYTES_MAX => Ok(()),
        _ => Err(format!("has {bytes} bytes; at most {BYTES_MAX} are allowed")),
    };
    bounded(text.len())?;
    let url = Url::parse(text).map_err(|error| format!("must be a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("may have no user and no password".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("may have no query and no fragment".into());
    }
    // What a URL may have and a language of diagrams may take for its own.
    let mut base = String::new();
    for byte in url.as_str().trim_end_matches('/').bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:[]%+,@".contains(&byte) {
            base.push(char::from(byte));
        } else {
            base.push_str(&format!("%{byte:02X}"));
        }
    }
    bounded(base.len())?;
    Ok(Some(base))
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn links_begin_with_plain_urls_in_which_nothing_can_end_a_text() {
        assert_eq!(read(""), Ok(None));
        for (text, base) in [
            ("https://ui.example", "https://ui.example"),
            ("http://LOCALHOST:3000/", "http://localhost:3000"),
            ("http://[::1]:80/a//", "http://[::1]/a"),
            ("https://x.example/a b/\"><script>", "https://x.example/a%20b/%22%3E%3Cscript%3E"),
            ("https://x.example/%%{init}%%", "https://x.example/%%%7Binit%7D%%"),
            ("https://x.example/'|;&`\\", "https://x.example/%27%7C%3B%26%60"),
        ] {
            assert_eq!(read(text), Ok(Some(base.to_owned())), "{text}");
        }
        for text in [
            "ui.example",
            "/tasks",
            "javascript:alert(1)",
            "data:text/html,x",
            "ftp://x.example",
            "https://u:p@x.example",
            "https://u@x.example",
            "https://x.example/?a",
            "https://x.example/#a",
            "https://",
            &format!("https://x.example/{}", "a".repeat(2_048)),
            &format!("https://x.example/{}", "'".repeat(700)),
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
