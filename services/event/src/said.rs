//! What is said of tasks and stands in no row of the log: their correlation ids and tags. Looked up
//! once per task and kept, up to a bound.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use stepwell_proto::v1::{Event, event::Detail};
use stepwell_serve::Recent;
use stepwell_store::{Error, EventRow, Said, Store};

/// About so many bytes of it are kept.
const BYTES_MAX: usize = 16 << 20;

/// What is known of the tasks whose events were read lately, by task key. Only the tail adds to it,
/// changes it when an event changes tags, and forgets it when it goes on elsewhere: so what is kept never lags
/// behind the log's end. Who reads older parts takes from it what it has.
pub(crate) struct SaidOf(Mutex<Recent<i64, Said>>);

impl Default for SaidOf {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(BYTES_MAX)))
    }
}

impl SaidOf {
    fn lock(&self) -> std::sync::MutexGuard<'_, Recent<i64, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tail goes on elsewhere: what was changed in between it has not seen.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    /// What is said of the tasks of these rows, by one statement for those that are not known. `keep`:
    /// it is known from now on; for the tail alone.
    pub(crate) async fn of(
        &self,
        store: &Store,
        rows: &[EventRow],
        keep: bool,
    ) -> Result<HashMap<i64, Said>, Error> {
        let tasks: HashSet<i64> = rows.iter().map(|row| row.task).collect();
        let mut found = HashMap::with_capacity(tasks.len());
        let mut missing = Vec::new();
        {
            let mut known = self.lock();
            for task in tasks {
                match known.get(task) {
                    Some(said) => drop(found.insert(task, said)),
                    None => missing.push(task),
                }
            }
        }
        if !missing.is_empty() {
            let read = store.said_of(&missing).await?;
            if keep {
                let mut known = self.lock();
                read.iter().for_each(|(task, said)| known.put(*task, said.clone(), said.bytes()));
            }
            found.extend(read);
        }
        Ok(found)
    }

    /// The tags are these from now on.
    fn tagged(&self, task: i64, tags: &[String]) {
        let mut known = self.lock();
        if let Some(said) = known.get(task) {
            let said = Said { tags: tags.into(), ..said };
            let bytes = said.bytes();
            known.put(task, said, bytes);
        }
    }

    /// Puts what is said of its task into an event. One that changes the tags has the new ones, and so
    /// has what comes after it on the page; with `keep` also what comes after the page.
    pub(crate) fn tell(
        &self,
        found: &mut HashMap<i64, Said>,
        task: i64,
        event: &mut Event,
        keep: bool,
    ) -> Said {
        let said = found.entry(task).or_default();
        if let Some(Detail::TaskUpdated(updated)) = &event.detail
            && updated.tags_changed
        {
            said.tags = updated.tags.as_slice().into();
            if keep {
                self.tagged(task, &updated.tags);
            }
        }
        event.correlation_id = said.correlation_id.to_string();
        said.clone()
    }
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::TaskUpdated;

    use super::*;

    fn said(tag: &str) -> Said {
        Said { correlation_id: "c".into(), tags: [tag.to_owned()].into() }
    }

    #[test]
    fn an_event_that_changes_tags_changes_those_of_what_comes_after_it() {
        let known = SaidOf::default();
        known.lock().put(7, said("old"), 0);
        let mut found = HashMap::from([(7, said("old"))]);
        let updated = |tags_changed| Event {
            detail: Some(
                TaskUpdated { tags_changed, tags: vec!["new".into()], ..TaskUpdated::default() }
                    .into(),
            ),
            ..Event::default()
        };
        for (event, keep, tag, kept) in [
            (updated(false), true, "old", "old"),
            (updated(true), false, "new", "old"),
            (updated(true), true, "new", "new"),
            (Event::default(), true, "new", "new"),
        ] {
            let mut event = event;
            let told = known.tell(&mut found, 7, &mut event, keep);
            assert_eq!((told, event.correlation_id.as_str()), (said(tag), "c"));
            assert_eq!(known.lock().get(7), Some(said(kept)));
        }
        assert_eq!(known.tell(&mut found, 8, &mut Event::default(), true), Said::default());
    }
}
