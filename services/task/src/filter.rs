//! Filters and orders of tasks as callers write them. Pure, but for filters that count from now: what time it is
//! the database says.

use chrono::{DateTime, Datelike, Utc};
use stepwell_filter::Expr;
use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use stepwell_store::{Filter, Order, Store};

/// What a filter means now; none: it says nothing, and any task fits.
pub(crate) async fn read(store: &Store, written: &str) -> Result<Option<Filter>, Refusal> {
    let Some(expr) = parse(written)? else { return Ok(None) };
    // Any other means the same at any time.
    let now = if expr.counts_from_now() { store.now().await? } else { DateTime::UNIX_EPOCH };
    Ok(Some(Filter::new(written, &expr, now)))
}

fn parse(written: &str) -> Result<Option<Expr>, Refusal> {
    stepwell_filter::parse(written).map_err(|fault| {
        Refusal::new(ErrorReason::FilterInvalid, format!("filter: {fault}"))
            .with("offset", fault.offset.to_string())
            .with_violations(vec![("filter".to_owned(), fault.to_string())])
    })
}

/// The order and its own name, or what is wanted.
pub(crate) fn order(text: &str) -> Result<(Order, &'static str), String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [] | ["create_time", "desc"] => Ok((Order::CreateDesc, "create_time desc")),
        ["create_time"] | ["create_time", "asc"] => Ok((Order::Create, "create_time")),
        ["end_time", "desc"] => Ok((Order::EndDesc, "end_time desc")),
        ["end_time"] | ["end_time", "asc"] => Ok((Order::End, "end_time")),
        _ => Err("must be `create_time` or `end_time`, with or without `desc`".to_owned()),
    }
}

/// The database and callers both have such times.
pub(crate) fn is_known(time: &DateTime<Utc>) -> bool {
    (1970..=9999).contains(&time.year())
}

/// A time to the microsecond; none: it is not from 1970 to 9999.
pub(crate) fn time_of(sent: prost_types::Timestamp) -> Option<DateTime<Utc>> {
    let nanos = u32::try_from(sent.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    DateTime::from_timestamp(sent.seconds, nanos / 1000 * 1000).filter(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_refused_with_its_offset() {
        let refusal = parse("paused = true AND stat = error").unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::FilterInvalid);
        assert_eq!(refusal.metadata["offset"], "18");
        assert!(refusal.message.ends_with("did you mean `state`?"), "{refusal}");
        assert_eq!(parse(" ").unwrap(), None);
    }

    #[test]
    fn tasks_are_listed_in_the_order_of_what_has_an_index_and_in_no_other() {
        for (text, order_of) in [
            ("", Order::CreateDesc),
            (" create_time  desc ", Order::CreateDesc),
            ("create_time", Order::Create),
            ("create_time asc", Order::Create),
            ("end_time desc", Order::EndDesc),
            ("end_time", Order::End),
        ] {
            assert_eq!(order(text).map(|(order, _)| order), Ok(order_of), "{text}");
        }
        for text in
            ["desc", "priority", "create_time DESC", "create_time desc, end_time", "end_time;"]
        {
            assert!(order(text).is_err(), "{text}");
        }
    }
}
