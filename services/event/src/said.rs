//! What is said of tasks and stands in no row of the log: their correlation ids and tags. Looked up
//! once per task and kept, up to a bound. Two generations, as for the contexts in step-service: when
//! the young one is full it becomes the old one, and what is used again moves back.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use stepwell_proto::v1::{Event, event::Detail};
use stepwell_store::{Error, EventRow, Said, Store};

const GENERATION_BYTES_MAX: usize = 8 << 20;
const ENTRY_BYTES: usize = 160;

/// What is known of the tasks whose events were read lately, by task key. Only the tail adds to it, and
/// changes it when an event changes tags: so what is kept never lags behind the log's end. Who reads
/// older parts takes from it what it has.
#[derive(Default)]
pub(crate) struct SaidOf(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<i64, Said>,
    old: HashMap<i64, Said>,
    bytes: usize,
}

impl Generations {
    fn get(&mut self, task: i64) -> Option<Said> {
        if let Some(said) = self.young.get(&task) {
            return Some(said.clone());
        }
        let said = self.old.remove(&task)?;
        self.put(task, said.clone());
        Some(said)
    }

    fn put(&mut self, task: i64, said: Said) {
        let bytes = ENTRY_BYTES + said.bytes();
        if self.bytes + bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.young.insert(task, said);
        // One that is put again counts twice: the bound is met sooner.
        self.bytes += bytes;
    }
}

impl SaidOf {
    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
                read.iter().for_each(|(task, said)| known.put(*task, said.clone()));
            }
            found.extend(read);
        }
        Ok(found)
    }

    /// The tags are these from now on.
    fn tagged(&self, task: i64, tags: &[String]) {
        let mut known = self.lock();
        if let Some(said) = known.get(task) {
            known.put(task, Said { tags: tags.into(), ..said });
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
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut known = Generations::default();
        let large = "x".repeat(1 << 20);
        for task in 0..100 {
            known.put(task, said(&large));
            assert!(known.get(0).is_some(), "the one in use is kept");
            assert!(known.young.len() + known.old.len() <= 16);
        }
        assert!(known.get(50).is_none());
    }

    #[test]
    fn an_event_that_changes_tags_changes_those_of_what_comes_after_it() {
        let known = SaidOf::default();
        known.lock().put(7, said("old"));
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
