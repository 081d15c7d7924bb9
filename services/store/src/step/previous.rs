//! Where the attempts before are in a trace: for a retry to link to.

use std::collections::HashMap;

use stepwell_trace::TraceContext;

use crate::{Error, Store, StoredFailure};

impl Store {
    /// Of these steps' last failed attempts, the contexts of those that are traced, by step key.
    /// Only asked for retries, and only when there is an exporter.
    pub async fn previous_traces(
        &self,
        steps: &[i64],
    ) -> Result<HashMap<i64, TraceContext>, Error> {
        let rows = sqlx::query!(
            r#"select i.key as "key!", s.last_error as "last_error!"
                 from unnest($1::bigint[]) i(key),
                      lateral (select last_error from stepwell.step where key = i.key offset 0) s
                where s.last_error is not null"#,
            steps,
        )
        .fetch_all(self.reads())
        .await?;
        let traced = rows.into_iter().filter_map(|row| {
            let failure = StoredFailure::from_text(&row.last_error);
            Some((row.key, TraceContext::parse(failure.traceparent.as_deref()?)?))
        });
        Ok(traced.collect())
    }
}
