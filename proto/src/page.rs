//! Pages of lists: how long one is, where it begins, and what is said of a token that fits none.

use sha2::{Digest, Sha256};

use crate::{id::PageToken, refusal::Refusal, v1::ErrorReason};

/// Items of a page unless the caller says otherwise.
const SIZE_DEFAULT: i32 = 100;

/// How many items are wanted; or what is wrong with the number.
pub fn size(asked: i32, most: i32) -> Result<i32, String> {
    match asked {
        0 => Ok(SIZE_DEFAULT),
        n if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("must be from 1 to {most}")),
    }
}

/// What a list is, as its page tokens name it: what is listed, and all that was asked of it but for the page.
pub fn list(what: &str, asked: impl AsRef<[u8]>) -> u64 {
    let hash = Sha256::new().chain_update(what).chain_update([0]).chain_update(asked).finalize();
    u64::from_be_bytes(hash[..8].try_into().expect("32 bytes"))
}

/// Where the page of a list begins; none: at the beginning.
pub fn place(text: &str, list: u64) -> Result<Option<i64>, Refusal> {
    Ok(read(text, list)?.map(|token| token.before))
}

/// The same of a list that may be in the order of times: the key, and its time in microseconds.
pub fn timed_place(text: &str, list: u64) -> Result<Option<(i64, Option<i64>)>, Refusal> {
    Ok(read(text, list)?.map(|token| (token.before, token.at)))
}

fn read(text: &str, list: u64) -> Result<Option<PageToken>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let token = PageToken::decode(text).ok_or_else(|| strange("not one that was received"))?;
    if token.list == list { Ok(Some(token)) } else { Err(strange("belongs to another list")) }
}

/// The token of the page that begins there; empty if there is none.
pub fn token(list: u64, next: Option<i64>) -> String {
    timed_token(list, next.map(|before| (before, None)))
}

/// The same of a list that may be in the order of times.
pub fn timed_token(list: u64, next: Option<(i64, Option<i64>)>) -> String {
    let token = next.map(|(before, at)| PageToken { list, before, at });
    token.map(PageToken::encode).unwrap_or_default()
}

/// A token is refused.
pub fn strange(what: &str) -> Refusal {
    Refusal::new(ErrorReason::PageTokenInvalid, format!("page_token: {what}"))
        .with_violations(vec![("page_token".into(), what.into())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_is_of_one_list() {
        let text = token(7, Some(42));
        assert_eq!(place(&text, 7), Ok(Some(42)));
        assert_eq!(place("", 7), Ok(None));
        let timed = timed_token(7, Some((42, Some(-3))));
        assert_eq!(timed_place(&timed, 7), Ok(Some((42, Some(-3)))));
        assert_eq!(timed_place(&text, 7), Ok(Some((42, None))));
        for (text, list) in [(text.as_str(), 8), ("x", 7)] {
            assert_eq!(place(text, list).unwrap_err().reason, ErrorReason::PageTokenInvalid);
        }
        assert_eq!(token(7, None), "");
    }

    #[test]
    fn a_list_is_told_by_what_is_listed_and_by_what_was_asked_of_it() {
        assert_eq!(list("tasks", "{}"), list("tasks", "{}"));
        assert_ne!(list("tasks", "{}"), list("operations", "{}"));
        assert_ne!(list("tasks", "{}"), list("tasks", "[]"));
    }

    #[test]
    fn a_page_has_a_hundred_items_unless_another_number_is_given_within_bounds() {
        assert_eq!((size(0, 10), size(1, 10), size(10, 10)), (Ok(100), Ok(1), Ok(10)));
        assert!(size(-1, 10).is_err() && size(11, 10).is_err());
    }
}
