//! Facts that are kept with tasks.

use std::collections::BTreeMap;

use sqlx::types::Uuid;
use stepwell_proto::v1::State;

use super::state;
use crate::{Error, Note, Once, Store, span};

/// Most facts of a task.
pub const ANNOTATIONS_MAX: usize = 64;

/// What became of facts that were to be kept with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Annotated {
    /// They are kept, with the task in this state.
    Done(State),
    /// There is no such task.
    Missing,
    /// It would have too many of them. Nothing was changed.
    Full,
}

impl Store {
    /// Keeps facts with a task in place of those of the same name, and forgets others; once, if it is to be.
    pub async fn annotate_task(
        &self,
        uid: Uuid,
        set: &BTreeMap<String, String>,
        remove: &[String],
        note: &Note,
        once: Option<&Once>,
    ) -> Result<Annotated, Error> {
        let (id, hash) = once.map(|once| (once.id.as_str(), once.hash.as_slice())).unzip();
        let note = note.clone().with_annotations(set, remove);
        let call = async {
            let call = sqlx::query!(
                r#"select r_same as same, t_was as was, t_done as "done!"
                     from stepwell.annotate_task_once($1, $2, $3, $4, $5, $6, $7)"#,
                id,
                hash,
                uid,
                serde_json::to_string(set).expect("strings have a JSON form"),
                remove,
                i32::try_from(ANNOTATIONS_MAX).expect("a small number"),
                note.to_text(),
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.annotate_task", 1, |_| 1, call).await?;
        if let Some(once) = once {
            once.check(row.same)?;
        }
        self.bell().ring_moves(row.same.is_none() && row.done, false, false);
        Ok(match row.was {
            None => Annotated::Missing,
            Some(was) if row.done => Annotated::Done(state(was)?),
            Some(_) => Annotated::Full,
        })
    }
}

/// Facts as they are stored; none: there are none.
pub(super) fn read(text: Option<&str>) -> Result<BTreeMap<String, String>, Error> {
    let Some(text) = text else { return Ok(BTreeMap::new()) };
    serde_json::from_str(text)
        .map_err(|error| Error::Inconsistent(format!("annotations cannot be read: {error}")))
}
