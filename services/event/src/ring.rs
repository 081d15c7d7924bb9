//! The latest part of the log, in memory, shared by all subscriptions. Each has its own place; one
//! whose place has fallen out of the ring reads the table until it is in again. So memory does not
//! grow with slow readers, and they hold up nobody.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use stepwell_proto::v1::Event;
use stepwell_store::{Said, StoredDefinition};
use tokio::sync::watch;

/// A recorded event with its definition, for what is derived from it.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) event: Event,
    pub(crate) batch: i64,
    pub(crate) definition: Arc<StoredDefinition>,
    /// What is said of its task.
    pub(crate) said: Said,
    /// About how many bytes it holds in memory.
    pub(crate) bytes: usize,
}

/// Whole commits, one after the other.
#[derive(Debug)]
pub(crate) struct Page {
    /// The place before the first of them.
    pub(crate) after: i64,
    /// The place after the last of them.
    pub(crate) last: i64,
    pub(crate) events: Vec<Recorded>,
}

impl Page {
    pub(crate) fn bytes(&self) -> usize {
        self.events.iter().map(|e| e.bytes).sum()
    }
}

/// What a subscription finds at its place.
#[derive(Debug)]
pub(crate) enum Found {
    /// The page that goes on from there.
    Page(Arc<Page>),
    /// It has everything.
    Level,
    /// Its place is older than the ring: the table has what comes next.
    Behind,
}

/// The shared part.
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    head: watch::Sender<i64>,
    bytes_max: usize,
}

#[derive(Default)]
struct Inner {
    /// The place before the first page; none: the tail sleeps.
    start: Option<i64>,
    pages: VecDeque<Arc<Page>>,
    bytes: usize,
}

impl Ring {
    /// An empty one, that keeps at most so many bytes and at least the last page.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), head: watch::Sender::new(0), bytes_max }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever there is something new.
    pub(crate) fn changes(&self) -> watch::Receiver<i64> {
        self.head.subscribe()
    }

    /// How many look at it.
    pub(crate) fn readers(&self) -> usize {
        self.head.receiver_count()
    }

    /// About how many bytes its pages hold.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// The place after the last page; none: the tail sleeps.
    pub(crate) fn end(&self) -> Option<i64> {
        let inner = self.lock();
        inner.pages.back().map(|page| page.last).or(inner.start)
    }

    /// The tail wakes at this place.
    pub(crate) fn wake(&self, at: i64) {
        *self.lock() = Inner { start: Some(at), ..Inner::default() };
        self.head.send_replace(at);
    }

    /// The tail sleeps: nobody looks.
    pub(crate) fn sleep(&self) {
        *self.lock() = Inner::default();
    }

    /// Adds a page; it begins where the last one ended.
    pub(crate) fn push(&self, page: Page) {
        let last = page.last;
        let mut inner = self.lock();
        debug_assert_eq!(
            inner.pages.back().map_or(inner.start, |p| Some(p.last)),
            Some(page.after)
        );
        inner.bytes += page.bytes();
        inner.pages.push_back(Arc::new(page));
        while inner.bytes > self.bytes_max && inner.pages.len() > 1 {
            let Some(gone) = inner.pages.pop_front() else { break };
            inner.bytes -= gone.bytes();
            inner.start = Some(gone.last);
        }
        drop(inner);
        self.head.send_replace(last);
    }

    /// What comes after a place. The page may begin before it.
    pub(crate) fn after(&self, place: i64) -> Found {
        let inner = self.lock();
        let Some(start) = inner.start else { return Found::Level };
        if place < start {
            return Found::Behind;
        }
        let next = inner.pages.partition_point(|page| page.last <= place);
        inner.pages.get(next).map_or(Found::Level, |page| Found::Page(Arc::clone(page)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn definition() -> Arc<StoredDefinition> {
        Arc::new(StoredDefinition {
            id: 1,
            version: [1, 0, 0],
            definition: stepwell_proto::v1::Definition::default(),
            queues: Vec::new(),
            parents: Vec::new(),
            children: Vec::new(),
            is_timed: false,
        })
    }

    fn page(after: i64, last: i64) -> Page {
        let event = |position| Recorded {
            event: Event { position, ..Event::default() },
            batch: position,
            definition: definition(),
            said: Said::default(),
            bytes: 100,
        };
        Page { after, last, events: (after + 1..=last).map(event).collect() }
    }

    proptest! {
        /// Readers of any speed see the whole log, in order, once; memory stays bounded.
        #[test]
        fn nobody_skips_or_repeats(
            pages in proptest::collection::vec(1..5i64, 1..60),
            turns in proptest::collection::vec((0..3usize, 1..6usize), 0..100),
        ) {
            let ring = Ring::new(1000);
            ring.wake(0);
            let mut readers = [0i64; 3];
            let mut head = 0;
            let mut turns = turns.into_iter();
            for n in pages {
                ring.push(page(head, head + n));
                head += n;
                prop_assert!(ring.lock().bytes <= 1000 + 400);
                if let Some((reader, steps)) = turns.next() {
                    for _ in 0..steps {
                        read(&ring, &mut readers[reader], head)?;
                    }
                }
            }
            for place in &mut readers {
                while *place < head {
                    read(&ring, place, head)?;
                }
                prop_assert!(matches!(ring.after(*place), Found::Level));
            }
        }
    }

    /// One step of a reader; the table has everything up to the head.
    fn read(ring: &Ring, place: &mut i64, head: i64) -> Result<(), TestCaseError> {
        match ring.after(*place) {
            Found::Level => prop_assert_eq!(*place, head),
            Found::Behind => *place = (*place + 2).min(head),
            Found::Page(page) => {
                prop_assert!(page.after <= *place && page.last > *place);
                let next = page.events.iter().map(|e| e.event.position).find(|p| *p > *place);
                prop_assert_eq!(next, Some(*place + 1));
                *place = page.last;
            }
        }
        Ok(())
    }

    #[test]
    fn a_sleeping_tail_has_nothing_and_a_woken_one_sends_old_places_to_the_table() {
        let ring = Ring::new(1000);
        assert!(matches!(ring.after(5), Found::Level) && ring.end().is_none());
        ring.wake(9);
        assert!(matches!(ring.after(5), Found::Behind) && matches!(ring.after(9), Found::Level));
        ring.push(page(9, 12));
        assert!(matches!(ring.after(10), Found::Page(_)) && ring.end() == Some(12));
        ring.sleep();
        assert!(matches!(ring.after(5), Found::Level));
    }
}
