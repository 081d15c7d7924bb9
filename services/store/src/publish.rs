//! Custom events: the text of their rows, and publishing those that do not come with an outcome.

use std::sync::Arc;

use sqlx::types::Uuid;
use stepwell_proto::id::LeaseId;

use crate::{Error, Once, Store, StoredDefinition, Topic, Writer, span};

/// The text of a custom event's row.
pub fn custom_text(name: &str, version: i32, data: &str) -> String {
    format!("{name}@{version} {data}")
}

/// Name, version and data of a custom event's row.
pub(crate) fn custom_of_text(text: &str) -> Option<(&str, i32, &str)> {
    let (of_type, data) = text.split_once(' ')?;
    let (name, version) = of_type.split_once('@')?;
    Some((name, version.parse().ok()?, data))
}

/// What one attempt publishes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The attempt's lease.
    pub lease: LeaseId,
    /// Which publication of it this is, from 1.
    pub number: i32,
    /// Its events, see `custom_text`.
    pub events: Vec<String>,
}

/// What became of events of a task or a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishedAbout {
    /// They are in the log from this position on.
    At {
        /// Of the first.
        position: i64,
        /// They were there before.
        before: bool,
    },
    /// There is no such task.
    NoTask,
    /// The task has no such step.
    NoStep,
}

impl Writer {
    /// Publishes events of attempts; answers for each whether it is durable, now or from before: else its
    /// lease is lost.
    pub async fn publish(&mut self, published: &[Published]) -> Result<Vec<bool>, Error> {
        let keys: Vec<i64> = published.iter().map(|p| p.lease.step).collect();
        let tokens: Vec<i64> = published.iter().map(|p| p.lease.token).collect();
        let attempts: Vec<i32> = published.iter().map(|p| p.lease.attempt).collect();
        let numbers: Vec<i32> = published.iter().map(|p| p.number).collect();
        let (of, texts) = numbered(published.iter().map(|p| p.events.as_slice()));
        let call = sqlx::query_scalar!(
            r#"select a_status as "status!" from stepwell.publish_steps($1, $2, $3, $4, $5, $6) a_status"#,
            &keys,
            &tokens,
            &attempts,
            &numbers,
            &of,
            &texts as &[&str],
        );
        let call = async { Ok(call.fetch_one(&mut self.connection).await?) };
        let status = span::verb("db.publish_steps", published.len(), Vec::len, call).await?;
        Ok(status.into_iter().map(|status| status == 1).collect())
    }
}

impl Store {
    /// The definition of a task; none: there is no such task.
    pub async fn definition_of_task(
        &self,
        uid: Uuid,
    ) -> Result<Option<Arc<StoredDefinition>>, Error> {
        let id = sqlx::query_scalar!("select definition from stepwell.task where uid = $1", uid)
            .fetch_optional(self.reads())
            .await?;
        match id {
            Some(id) => Ok(Some(self.definition(id).await?)),
            None => Ok(None),
        }
    }

    /// Publishes events of a task, or of its step with this number; once, if it is to be.
    pub async fn publish_about(
        &self,
        uid: Uuid,
        number: Option<i32>,
        events: &[String],
        once: Option<&Once>,
    ) -> Result<PublishedAbout, Error> {
        let (id, hash) = once.map(|once| (once.id.as_str(), once.hash.as_slice())).unzip();
        let call = async {
            let call = sqlx::query!(
                r#"select r_same as same, t_was as was, r_first as first
                     from stepwell.publish_once($1, $2, $3, $4, $5)"#,
                id,
                hash,
                uid,
                number,
                events,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.publish_once", events.len(), |_| 1, call).await?;
        if let Some(once) = once {
            once.check(row.same)?;
        }
        let before = row.same == Some(true);
        Ok(match (row.was, row.first) {
            (None, _) => PublishedAbout::NoTask,
            (Some(_), None) => PublishedAbout::NoStep,
            (Some(_), Some(position)) => {
                if !before {
                    self.bell().ring(Topic::Event);
                }
                PublishedAbout::At { position, before }
            }
        })
    }
}

/// All events of lists, and of which list each is, from 1.
pub(crate) fn numbered<'e>(lists: impl Iterator<Item = &'e [String]>) -> (Vec<i32>, Vec<&'e str>) {
    (1..).zip(lists).flat_map(|(no, list)| list.iter().map(move |e| (no, e.as_str()))).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_row_says_is_read_as_it_was_written() {
        let text = custom_text("payment.captured", 12, r#"{"a @1 ": " x"}"#);
        assert_eq!(custom_of_text(&text), Some(("payment.captured", 12, r#"{"a @1 ": " x"}"#)));
        assert_eq!(custom_of_text("payment.captured"), None);
        assert_eq!(custom_of_text("payment.captured@x {}"), None);
    }

    #[test]
    fn events_know_their_list() {
        let lists = [vec!["a".to_owned(), "b".into()], vec![], vec!["c".into()]];
        let numbered = numbered(lists.iter().map(Vec::as_slice));
        assert_eq!(numbered, (vec![1, 1, 3], vec!["a", "b", "c"]));
    }
}
