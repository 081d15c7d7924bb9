//! A place in the log, as a caller says it.

use prost_types::Timestamp;
use stepwell_proto::{id::Cursor, refusal::Refusal, v1::ErrorReason};
use stepwell_store::{Error, Store};
use uuid::Uuid;

/// What a reader is told whose next events may be gone.
pub(crate) fn expired(epoch: i64, earliest: i64) -> Refusal {
    let cursor = Cursor { epoch, position: earliest }.encode();
    let what = "events after the cursor are no longer kept";
    Refusal::new(ErrorReason::CursorExpired, what).with("earliest", cursor)
}

/// The place that a cursor says, which must be of this log. `field` has it.
pub(crate) async fn after_cursor(
    store: &Store,
    epoch: i64,
    field: &str,
    text: &str,
) -> Result<i64, Refusal> {
    let cursor = Cursor::decode(text).ok_or_else(|| {
        let what = "not a cursor that was received";
        Refusal::new(ErrorReason::CursorMalformed, format!("{field}: {what}"))
            .with_violations(vec![(field.into(), what.into())])
    })?;
    if cursor.epoch != epoch || cursor.position > store.head().await? {
        return Err(Refusal::new(
            ErrorReason::CursorAhead,
            "the cursor belongs to another log; the database was restored or replaced",
        ));
    }
    let earliest = store.earliest().await?;
    if cursor.position < earliest {
        return Err(expired(epoch, earliest));
    }
    Ok(cursor.position)
}

/// The place before the oldest event that is kept; of these tasks, if there are any, before their first.
pub(crate) async fn earliest(store: &Store, tasks: &[Uuid]) -> Result<i64, Error> {
    if tasks.is_empty() {
        return store.earliest().await;
    }
    // Looked at before: what comes meanwhile is after it.
    let head = store.head().await?;
    let first = store.before_first(tasks).await?.unwrap_or(head);
    Ok(first.max(store.earliest().await?))
}

/// The place before the first commit at or after a time, of those that are kept. `field` has the time.
pub(crate) async fn at_time(store: &Store, field: &str, time: &Timestamp) -> Result<i64, Refusal> {
    let time = stepwell_store::time_of(time)
        .ok_or_else(|| Refusal::field(field, "must be a time of the years 1 to 9999"))?;
    // Looked at before: what comes meanwhile is after it.
    let head = store.head().await?;
    let before = store.before_time(time).await?.unwrap_or(head);
    Ok(before.max(store.earliest().await?))
}
