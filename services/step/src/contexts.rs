//! Contexts of tasks whose steps were leased lately: they never change, so they are kept, up to a
//! bound. Two generations: when the young one is full it becomes the old one, and what is used again
//! moves back.

use std::{collections::HashMap, sync::Arc};

use stepwell_trace::TraceContext;
use uuid::Uuid;

const GENERATION_BYTES_MAX: usize = 32 << 20;
const ENTRY_BYTES: usize = 160;

/// What never changes of a task.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Its id.
    pub(crate) uid: Uuid,
    /// Its context.
    pub(crate) context: Arc<str>,
    /// Where in a trace it goes on.
    pub(crate) trace: Option<TraceContext>,
}

/// By task key.
#[derive(Default)]
pub(crate) struct Contexts {
    young: HashMap<i64, Known>,
    old: HashMap<i64, Known>,
    bytes: usize,
}

impl Contexts {
    pub(crate) fn get(&mut self, task: i64) -> Option<Known> {
        if let Some(known) = self.young.get(&task) {
            return Some(known.clone());
        }
        let known = self.old.remove(&task)?;
        self.put(task, known.clone());
        Some(known)
    }

    pub(crate) fn put(&mut self, task: i64, known: Known) {
        let bytes = ENTRY_BYTES + known.context.len();
        if self.bytes + bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        if self.young.insert(task, known).is_none() {
            self.bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut contexts = Contexts::default();
        let large = Known { uid: Uuid::nil(), context: "x".repeat(1 << 20).into(), trace: None };
        for task in 0..500 {
            contexts.put(task, large.clone());
            assert!(contexts.get(0).is_some(), "the one in use is kept");
            assert!(contexts.young.len() + contexts.old.len() <= 64);
        }
        assert!(contexts.get(100).is_none());
    }
}
