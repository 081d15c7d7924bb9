//! Pauses of definitions and of namespaces: what they cover is not leased.

use sqlx::types::chrono::{DateTime, Utc};
use stepwell_proto::v1::DefinitionPause;

use crate::{Error, Note, Store, Topic, definition::timestamp, span};

/// What a pause, or its end, met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Versions of definitions it covers.
    pub covered: i32,
    /// It was paused before.
    pub was_paused: bool,
}

impl Store {
    /// Pauses a definition, or all of a namespace (an empty name), or takes that pause back. Without a
    /// definition to cover, nothing is paused.
    pub async fn pause_definitions(
        &self,
        namespace: &str,
        name: &str,
        paused: bool,
        note: &Note,
    ) -> Result<Covered, Error> {
        let call = async {
            let call = sqlx::query_as!(
                Covered,
                r#"select covered_n as "covered!", was_paused as "was_paused!"
                     from stepwell.pause_definitions($1, $2, $3, $4)"#,
                namespace,
                name,
                paused,
                note.to_text(),
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let covered = span::verb("db.pause_definitions", 1, |_| 1, call).await?;
        if covered.was_paused && !paused {
            self.bell().ring(Topic::Ready);
        }
        Ok(covered)
    }

    /// The pauses after that of a namespace and name, at most so many, and whether there are more; of one
    /// namespace, or of all if it is empty.
    pub async fn pauses(
        &self,
        namespace: &str,
        after: (&str, &str),
        most: i32,
    ) -> Result<(Vec<DefinitionPause>, bool), Error> {
        let rows = sqlx::query!(
            "select namespace, name, note, at from stepwell.pause
              where (namespace, name) > ($2, $3) and $1 in ('', namespace)
              order by namespace, name limit $4",
            namespace,
            after.0,
            after.1,
            i64::from(most) + 1,
        )
        .fetch_all(self.reads())
        .await?;
        let read = |namespace, definition_name, note: &str, at: DateTime<Utc>| {
            let Note { by: paused_by, reason, .. } = Note::from_text(Some(note));
            let pause_time = Some(timestamp(at));
            DefinitionPause { namespace, definition_name, reason, paused_by, pause_time }
        };
        let mut pauses: Vec<DefinitionPause> =
            rows.into_iter().map(|row| read(row.namespace, row.name, &row.note, row.at)).collect();
        let most = usize::try_from(most).unwrap_or_default();
        let more = pauses.len() > most;
        pauses.truncate(most);
        Ok((pauses, more))
    }
}
