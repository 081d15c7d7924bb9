//! Contexts of tasks whose steps were leased lately: they never change, so they are kept, up to a
//! bound. Two generations: when the young one is full it becomes the old one, and what is used again
//! moves back.

use std::{collections::HashMap, sync::Arc};

use uuid::Uuid;

const GENERATION_BYTES_MAX: usize = 32 << 20;
const ENTRY_BYTES: usize = 128;

/// By task key: the task's id and context.
#[derive(Default)]
pub(crate) struct Contexts {
    young: HashMap<i64, (Uuid, Arc<str>)>,
    old: HashMap<i64, (Uuid, Arc<str>)>,
    bytes: usize,
}

impl Contexts {
    pub(crate) fn get(&mut self, task: i64) -> Option<(Uuid, Arc<str>)> {
        if let Some((uid, context)) = self.young.get(&task) {
            return Some((*uid, Arc::clone(context)));
        }
        let (uid, context) = self.old.remove(&task)?;
        self.keep(task, uid, Arc::clone(&context));
        Some((uid, context))
    }

    pub(crate) fn put(&mut self, task: i64, uid: Uuid, context: String) -> Arc<str> {
        let context: Arc<str> = context.into();
        self.keep(task, uid, Arc::clone(&context));
        context
    }

    fn keep(&mut self, task: i64, uid: Uuid, context: Arc<str>) {
        let bytes = ENTRY_BYTES + context.len();
        if self.bytes + bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        if self.young.insert(task, (uid, context)).is_none() {
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
        let large = "x".repeat(1 << 20);
        for task in 0..500 {
            contexts.put(task, Uuid::nil(), large.clone());
            assert!(contexts.get(0).is_some(), "the one in use is kept");
            assert!(contexts.young.len() + contexts.old.len() <= 64);
        }
        assert!(contexts.get(100).is_none());
    }
}
