//! What was used lately, up to a bound of memory. Two generations: when the young one is full it becomes
//! the old one, and what is used again moves back.

use std::{collections::HashMap, hash::Hash};

/// What an entry costs beside what it says it has.
const ENTRY_BYTES: usize = 160;

/// Values by key; they can be looked up again elsewhere.
#[derive(Debug)]
pub struct Recent<K, V> {
    /// With the bytes of each.
    young: HashMap<K, (V, usize)>,
    old: HashMap<K, (V, usize)>,
    bytes: usize,
    bytes_max: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// Nothing yet; about `bytes_max` at most.
    pub fn new(bytes_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), bytes: 0, bytes_max: bytes_max / 2 }
    }

    /// What is kept under a key.
    pub fn get(&mut self, key: K) -> Option<V> {
        if let Some((value, _)) = self.young.get(&key) {
            return Some(value.clone());
        }
        let (value, bytes) = self.old.remove(&key)?;
        self.keep(key, value.clone(), bytes);
        Some(value)
    }

    /// Keeps a value that has so many bytes of its own, in place of any before it.
    pub fn put(&mut self, key: K, value: V, bytes: usize) {
        self.keep(key, value, ENTRY_BYTES + bytes);
    }

    fn keep(&mut self, key: K, value: V, bytes: usize) {
        self.old.remove(&key);
        if let Some((_, before)) = self.young.remove(&key) {
            self.bytes -= before;
        }
        if self.bytes + bytes > self.bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.young.insert(key, (value, bytes));
        self.bytes += bytes;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut recent = Recent::new(64 << 20);
        for key in 0..500 {
            recent.put(key, key, 1 << 20);
            assert!(recent.get(0).is_some(), "the one in use is kept");
            assert!(recent.young.len() + recent.old.len() <= 64);
        }
        assert_eq!(recent.get(100), None);
    }

    #[test]
    fn what_is_put_again_replaces_what_was_there_and_counts_once() {
        let mut recent = Recent::new(64 << 20);
        recent.put(1, "old", 20 << 20);
        recent.put(2, "other", 20 << 20);
        assert_eq!(recent.get(1), Some("old"), "it moved to the young ones");
        recent.put(1, "new", 1 << 20);
        recent.put(1, "newer", 1 << 20);
        assert_eq!((recent.get(1), recent.get(2)), (Some("newer"), Some("other")));
        recent.clear();
        assert_eq!((recent.get(1), recent.get(2)), (None, None));
    }
}
