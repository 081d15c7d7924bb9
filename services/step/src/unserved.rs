//! Tells of steps that have been ready for long and that nobody could run: one event for each attempt. It
//! looks when event-service's survey has found that steps are ready, when what it saw has waited long
//! enough, and every few minutes; on a step's way there is nothing of it.
//!
//! A queue is unserved when no executor that could run its steps is connected to any living node, at each look
//! for so long. Who comes and goes between two looks is not seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use semver::Version;
use stepwell_serve::Ticker;
use stepwell_store::{Error, Place, Store, Waiting};
use tokio::time::Instant;

use crate::readiness::in_range;

/// Calls of one look; each tells of 500 steps at most.
const CALLS_MAX: usize = 10;
/// Places in the queues are forgotten this often: tasks that were paused have rows below them.
const PLACES_KEPT: Duration = Duration::from_secs(300);
/// Between two parts of a look that has more to do.
const PAUSE: Duration = Duration::from_secs(1);

/// The loop.
pub(crate) struct Unserved {
    store: Store,
    watch: Watch,
    /// Of queues with more steps than one look tells of: how far it came.
    places: HashMap<i32, Place>,
    places_since: Instant,
    /// Queues up to this one were looked at; 0: all were.
    looked: i32,
}

/// Which queues nobody serves, and since which look.
struct Watch {
    after: Duration,
    since: BTreeMap<i32, Instant>,
}

/// What is to be done about queues.
#[derive(Debug, Default, PartialEq)]
struct Verdict {
    /// Their steps may be told of.
    tell: Vec<i32>,
    /// When to look again at the latest; none: nothing waits.
    next: Option<Instant>,
}

impl Unserved {
    pub(crate) fn new(store: Store, after: Duration) -> Self {
        let watch = Watch { after, since: BTreeMap::new() };
        let places_since = Instant::now();
        Self { store, watch, places: HashMap::new(), places_since, looked: 0 }
    }

    /// Runs until shutdown begins.
    pub(crate) async fn run(mut self, mut ticker: Ticker) {
        while ticker.next().await {
            match self.look().await {
                Ok(next) => {
                    ticker.ok();
                    if let Some(next) = next {
                        ticker.at(next);
                    }
                }
                Err(error) => ticker.back_off(&error),
            }
        }
    }

    /// Answers when to look again at the latest.
    async fn look(&mut self) -> Result<Option<Instant>, Error> {
        if self.places_since.elapsed() > PLACES_KEPT {
            self.places.clear();
            self.places_since = Instant::now();
        }
        let above = self.looked;
        let (queues, more) = self.store.waiting_queues(above).await?;
        let now = Instant::now();
        let up_to = queues.last().filter(|_| more).map_or(i32::MAX, |last| last.queue);
        let Verdict { tell, next } = self.watch.judge(&queues, above, up_to, now);
        self.places.retain(|queue, _| *queue <= above || *queue > up_to || tell.contains(queue));
        self.looked = if more { up_to } else { 0 };
        let part = more.then(|| now + PAUSE);
        let told = self.tell(&tell).await?;
        Ok([next, part, told].into_iter().flatten().min())
    }

    /// Tells of steps of these queues. Answers when to look again at the latest.
    async fn tell(&mut self, queues: &[i32]) -> Result<Option<Instant>, Error> {
        let start = |queue| Place { queue, id: 0, step: 0 };
        let place = |queue: &i32| self.places.get(queue).copied().unwrap_or(start(*queue));
        let mut from: Vec<Place> = queues.iter().map(place).collect();
        let whole: BTreeSet<i32> = from.iter().filter(|p| p.id == 0).map(|p| p.queue).collect();
        let mut next = None;
        for _ in 0..CALLS_MAX {
            if from.is_empty() {
                break;
            }
            let after = i64::try_from(self.watch.after.as_millis()).unwrap_or(i64::MAX);
            let told = self.store.tell_unserved(&from, after).await?;
            let due = told.next_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
            next = [next, due].into_iter().flatten().min();
            from.clear();
            for (place, more) in told.places {
                if more {
                    from.push(place);
                } else if whole.contains(&place.queue) {
                    // It was looked through: so it is the next time.
                    self.places.remove(&place.queue);
                    continue;
                }
                self.places.insert(place.queue, place);
            }
        }
        let more = (!from.is_empty()).then(|| Instant::now() + PAUSE);
        Ok([next, more].into_iter().flatten().min())
    }
}

impl Watch {
    /// Judges the queues with ready steps that are above one and up to another: those that nobody serves for
    /// long enough. Others are remembered or forgotten.
    fn judge(&mut self, queues: &[Waiting], above: i32, up_to: i32, now: Instant) -> Verdict {
        let mut verdict = Verdict::default();
        let mut before = self.since.split_off(&above.saturating_add(1));
        if up_to < i32::MAX {
            self.since.append(&mut before.split_off(&(up_to + 1)));
        }
        for waiting in queues {
            // What is left over of cancelled tasks waits for nobody.
            let Some(age) = waiting.age_ms else { continue };
            let mut look_at =
                |at| verdict.next = Some(verdict.next.map_or(at, |next| at.min(next)));
            if is_served(waiting) {
                // Its executors may go.
                look_at(now + self.after);
                continue;
            }
            let since = before.get(&waiting.queue).copied().unwrap_or(now);
            self.since.insert(waiting.queue, since);
            let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
            let wait = self.after.saturating_sub(age.min(now.duration_since(since)));
            if wait.is_zero() {
                verdict.tell.push(waiting.queue);
            } else {
                look_at(now + wait);
            }
        }
        verdict
    }
}

/// Some executor that is connected could run its steps.
fn is_served(waiting: &Waiting) -> bool {
    let &[major, minor, patch] = waiting.version.as_slice() else { return false };
    let part = |n: i32| u64::try_from(n).unwrap_or(0);
    let version = Version::new(part(major), part(minor), part(patch));
    waiting.ranges.iter().any(|range| in_range(range, &version))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(30);

    fn waiting(queue: i32, age_s: i64, ranges: &[&str]) -> Waiting {
        let ranges = ranges.iter().map(|range| (*range).to_owned()).collect();
        Waiting { queue, version: vec![1, 2, 0], age_ms: Some(age_s * 1000), ranges }
    }

    fn watch() -> Watch {
        Watch { after: AFTER, since: BTreeMap::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_told_of_when_its_steps_and_nobody_were_there_for_long_enough() {
        let (mut watch, begun) = (watch(), Instant::now());
        let mut at = |seconds, age| {
            let now = begun + Duration::from_secs(seconds);
            let verdict = watch.judge(&[waiting(1, age, &[">=2", "~1.1"])], 0, i32::MAX, now);
            let next = verdict.next.map(|next| next.duration_since(begun).as_secs());
            (!verdict.tell.is_empty(), next)
        };
        assert_eq!(at(0, 600), (false, Some(30)), "steps waited, but whether for somebody?");
        assert_eq!(at(29, 629), (false, Some(30)));
        assert_eq!(at(30, 630), (true, None));
        assert_eq!(at(31, 10), (false, Some(51)), "these are other steps");
        assert_eq!(at(51, 30), (true, None));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_could_run_its_steps_is_waited_for_anew_when_he_is_gone() {
        let (mut watch, begun) = (watch(), Instant::now());
        let mut at = |seconds, ranges: &[&str]| {
            let now = begun + Duration::from_secs(seconds);
            let verdict = watch.judge(&[waiting(1, 600, ranges)], 0, i32::MAX, now);
            let next = verdict.next.map(|next| next.duration_since(begun).as_secs());
            (!verdict.tell.is_empty(), next)
        };
        assert_eq!(at(0, &[]), (false, Some(30)));
        assert_eq!(at(29, &[">=2", "^1.2"]), (false, Some(59)), "he may be busy");
        assert_eq!(at(59, &[">=2"]), (false, Some(89)));
        assert_eq!(at(89, &[]), (true, None));
        assert_eq!(at(90, &[""]), (false, Some(120)), "every version");
    }

    #[tokio::test(start_paused = true)]
    async fn queues_are_looked_at_part_by_part_and_forgotten_when_nothing_is_ready() {
        let (mut watch, now) = (watch(), Instant::now());
        let known = |watch: &Watch| watch.since.keys().copied().collect::<Vec<_>>();
        let old = |queue| waiting(queue, 600, &[]);
        watch.judge(&[old(1), old(5)], 0, 5, now);
        watch.judge(&[old(6), old(9)], 5, i32::MAX, now);
        assert_eq!(known(&watch), [1, 5, 6, 9]);
        let later = now + AFTER;
        assert_eq!(watch.judge(&[old(5), old(4)], 0, 5, later).tell, [5]);
        assert_eq!(known(&watch), [4, 5, 6, 9]);
        let left_over = Waiting { age_ms: None, ..old(9) };
        let verdict = watch.judge(&[left_over], 5, i32::MAX, later);
        assert_eq!((verdict, known(&watch)), (Verdict::default(), vec![4, 5]));
    }
}
