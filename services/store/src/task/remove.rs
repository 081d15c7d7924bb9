//! How long tasks are kept that have ended.

use std::time::Duration;

use crate::{Error, Store};

/// Most tasks that one call looks at.
const LOOKED_AT_MAX: i32 = 10_000;

/// How long tasks are kept after their end; none: for ever. Whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepTasks {
    /// Complete, cancelled and resolved ones.
    pub ended: Option<Duration>,
    /// Those in error: a person may still go on with them.
    pub in_error: Option<Duration>,
}

impl KeepTasks {
    /// Everything, for ever.
    pub fn is_everything(self) -> bool {
        self == Self::default()
    }
}

impl Store {
    /// Removes the oldest tasks above a key that are kept no longer, `most` at most, with their steps and
    /// results; those that somebody moves just now have their turn another time. Answers how many, and the
    /// key above which to go on; none: that was all.
    pub async fn remove_tasks(
        &self,
        after: i64,
        keep: KeepTasks,
        most: i32,
    ) -> Result<(u64, Option<i64>), Error> {
        let seconds = |age: Option<Duration>| {
            age.map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
        };
        let row = sqlx::query!(
            r#"select removed_n as "removed!", m_next as next from stepwell.remove_tasks($1, $2, $3, $4, $5)"#,
            after,
            seconds(keep.ended),
            seconds(keep.in_error),
            LOOKED_AT_MAX,
            most,
        )
        .fetch_one(self.reads())
        .await?;
        Ok((u64::try_from(row.removed).unwrap_or(0), row.next))
    }
}
