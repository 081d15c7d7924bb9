//! What a stream knows of a partition that it reads: what was delivered and is not done with, and when
//! something is to be delivered again. Pure.

use std::collections::{BTreeMap, HashSet, VecDeque};

use std::time::Duration;

use stepwell_store::{Again, Standing};
use tokio::time::Instant;
use uuid::Uuid;

/// Events of a partition that may wait for their acknowledgement.
pub(crate) const WINDOW: usize = 1_000;
/// … of those that are delivered again alone.
pub(crate) const ALONE_MAX: usize = 100;

/// A partition that a stream holds.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) no: i32,
    pub(crate) epoch: i64,
    /// Everything up to here is done with.
    place: i64,
    /// Everything up to here was delivered or need not be.
    pub(crate) read: i64,
    /// Positions of what was delivered and is not done with.
    outstanding: VecDeque<i64>,
    /// When its reader last did something, or got something after having nothing.
    progress: Instant,
    /// It delivers nothing until then.
    pub(crate) rest_until: Instant,
    failing: i64,
    attempt: i32,
    /// Ids of tasks that have parked events; none: it is not known.
    pub(crate) parked: Option<HashSet<Uuid>>,
    /// What was delivered alone: since when, and how often it had failed.
    alone: BTreeMap<i64, (Instant, i32)>,
    /// Something is to be delivered alone then.
    pub(crate) again_at: Option<Instant>,
}

impl Partition {
    /// One that was taken now.
    pub(crate) fn new(standing: &Standing, now: Instant) -> Self {
        Self {
            no: standing.no,
            epoch: standing.epoch,
            place: standing.place,
            read: standing.place,
            outstanding: VecDeque::new(),
            progress: now,
            rest_until: now + standing.rest,
            failing: standing.failing,
            attempt: standing.attempt,
            parked: None,
            alone: BTreeMap::new(),
            again_at: Some(now),
        }
    }

    /// Where it stands now. Under another epoch everything that is not done with is delivered again.
    pub(crate) fn stands(&mut self, standing: &Standing, again: Option<Duration>, now: Instant) {
        if standing.epoch != self.epoch {
            *self = Self::new(standing, now);
        } else if standing.place > self.place {
            self.place = standing.place;
            self.read = self.read.max(self.place);
            while self.outstanding.front().is_some_and(|first| *first <= self.place) {
                self.outstanding.pop_front();
                self.progress = now;
            }
        }
        self.failing = standing.failing;
        self.attempt = standing.attempt;
        self.again_at = again.map(|wait| now + wait);
        if again.is_none() {
            self.alone.clear();
        }
    }

    /// Everything up to here is done with or need not be delivered.
    pub(crate) fn done(&self) -> i64 {
        self.outstanding.front().map_or(self.read, |first| first - 1).max(self.place)
    }

    /// How many more events may wait.
    pub(crate) fn room(&self) -> usize {
        WINDOW.saturating_sub(self.outstanding.len())
    }

    /// These are delivered now, and everything up to `read` that is not among them need not be.
    pub(crate) fn delivers(
        &mut self,
        positions: impl Iterator<Item = i64>,
        read: i64,
        now: Instant,
    ) {
        if self.outstanding.is_empty() {
            self.progress = now;
        }
        self.outstanding.extend(positions);
        self.read = self.read.max(read);
    }

    /// Which attempt the delivery of this event is.
    pub(crate) fn attempt(&self, position: i64) -> i32 {
        if self.failing == position { self.attempt + 1 } else { 1 }
    }

    /// What its reader did not acknowledge in time, with the number of its attempt.
    pub(crate) fn overdue(&self, deadline: Duration, now: Instant) -> Option<(i64, i32)> {
        let first = self.outstanding.front().filter(|_| now >= self.progress + deadline);
        let alone = self.alone.iter().find(|(_, (since, _))| now >= *since + deadline);
        first
            .map(|position| (*position, self.attempt(*position)))
            .or(alone.map(|(position, (_, failed))| (*position, failed + 1)))
    }

    /// When something will be.
    pub(crate) fn overdue_at(&self, deadline: Duration) -> Option<Instant> {
        let first = self.outstanding.front().map(|_| self.progress + deadline);
        let alone = self.alone.values().map(|(since, _)| *since + deadline).min();
        [first, alone].into_iter().flatten().min()
    }

    /// An overdue event was dealt with, or could not be: the others get their time.
    pub(crate) fn dealt_with(&mut self, position: i64, is_kept: bool, now: Instant) {
        self.progress = now;
        if is_kept {
            self.alone.remove(&position);
            self.outstanding.retain(|of| *of != position);
        } else if let Some((since, _)) = self.alone.get_mut(&position) {
            *since = now;
        }
    }

    /// What was to be delivered alone could not be read.
    pub(crate) fn not_sent(&mut self, positions: &[i64], now: Instant) {
        self.alone.retain(|position, _| !positions.contains(position));
        self.again_at = Some(now);
    }

    /// What is to be delivered alone, of what the table has: those that are due and were not yet.
    pub(crate) fn alone(&mut self, table: &[Again], now: Instant) -> Vec<Again> {
        let due = |of: &&Again| of.due.is_zero();
        let positions: HashSet<i64> = table.iter().map(|of| of.position).collect();
        self.outstanding.retain(|position| !positions.contains(position));
        // One that has failed meanwhile, and is due already, is not the one that was delivered.
        let failed: BTreeMap<i64, i32> =
            table.iter().filter(due).map(|of| (of.position, of.attempt)).collect();
        self.alone.retain(|position, (_, attempt)| failed.get(position) == Some(attempt));
        self.again_at = table.iter().filter(|of| !of.due.is_zero()).map(|of| now + of.due).min();
        let room = ALONE_MAX.saturating_sub(self.alone.len());
        let new = table.iter().filter(due).filter(|of| !self.alone.contains_key(&of.position));
        let new: Vec<Again> = new.take(room).copied().collect();
        self.alone.extend(new.iter().map(|of| (of.position, (now, of.attempt))));
        new
    }
}

/// The partition of a task's events, the same for ever.
pub(crate) fn partition_of(task: Uuid, partitions: i32) -> i32 {
    // FNV-1a: ids of tasks may be chosen by callers, so not every byte of them varies.
    let mixed = task.into_bytes().into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let partitions = u64::try_from(partitions).unwrap_or(1).max(1);
    i32::try_from((mixed ^ (mixed >> 32)) % partitions).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing(epoch: i64, place: i64) -> Standing {
        Standing { no: 0, epoch, place, failing: 0, attempt: 0, rest: Duration::ZERO }
    }

    fn again(position: i64, due: u64) -> Again {
        Again { position, attempt: 1, due: Duration::from_secs(due) }
    }

    #[test]
    fn a_place_moves_over_what_is_acknowledged_and_what_need_not_be() {
        let now = Instant::now();
        let mut partition = Partition::new(&standing(1, 10), now);
        partition.delivers([12, 15].into_iter(), 20, now);
        assert_eq!(partition.done(), 11);
        partition.stands(&standing(1, 12), None, now);
        assert_eq!(partition.done(), 14);
        partition.stands(&standing(1, 15), None, now);
        assert_eq!(partition.done(), 20, "nothing of it is waited for");
        partition.delivers([].into_iter(), 30, now);
        assert_eq!((partition.done(), partition.room()), (30, WINDOW));
    }

    #[test]
    fn under_another_epoch_all_that_is_not_acknowledged_comes_again() {
        let now = Instant::now();
        let mut partition = Partition::new(&standing(1, 10), now);
        partition.delivers([11, 12, 13].into_iter(), 13, now);
        let failed = Standing { failing: 12, attempt: 2, ..standing(5, 11) };
        partition.stands(&failed, None, now);
        assert_eq!((partition.epoch, partition.read, partition.done()), (5, 11, 11));
        assert_eq!((partition.attempt(12), partition.attempt(13)), (3, 1));
    }

    #[test]
    fn only_a_reader_that_does_nothing_is_overdue_however_much_it_was_given() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut partition = Partition::new(&standing(1, 0), start);
        let deadline = second * 10;
        assert_eq!(partition.overdue(deadline, start + second * 100), None);
        partition.delivers(1..=5, 5, start + second * 100);
        assert_eq!(partition.overdue(deadline, start + second * 109), None);
        partition.stands(&standing(1, 1), None, start + second * 109);
        assert_eq!(partition.overdue(deadline, start + second * 118), None);
        assert_eq!(partition.overdue(deadline, start + second * 119), Some((2, 1)));
        assert_eq!(partition.overdue_at(deadline), Some(start + second * 119));
        partition.dealt_with(2, true, start + second * 119);
        assert_eq!(partition.overdue(deadline, start + second * 120), None);
        assert_eq!(partition.done(), 2);
    }

    #[test]
    fn what_comes_alone_comes_once_until_it_fails_again_and_is_not_waited_for_twice() {
        let now = Instant::now();
        let mut partition = Partition::new(&standing(1, 0), now);
        partition.delivers(1..=3, 3, now);
        assert_eq!(partition.alone(&[again(1, 0), again(2, 7)], now), [again(1, 0)]);
        assert_eq!(partition.again_at, Some(now + Duration::from_secs(7)));
        assert_eq!(partition.done(), 2, "they are kept in the table");
        assert_eq!(partition.alone(&[again(1, 0), again(2, 5)], now), []);
        assert_eq!(partition.alone(&[again(1, 2), again(2, 5)], now), [], "it failed");
        assert_eq!(partition.alone(&[again(1, 0)], now), [again(1, 0)]);
        partition.not_sent(&[1], now);
        assert_eq!(partition.again_at, Some(now));
        assert_eq!(partition.alone(&[again(1, 0)], now), [again(1, 0)], "it was not read");
        let failed = Again { attempt: 2, ..again(1, 0) };
        assert_eq!(partition.alone(&[failed], now), [failed], "it failed and is due already");
        let many: Vec<Again> = (10..500).map(|position| again(position, 0)).collect();
        assert_eq!(partition.alone(&many, now).len(), ALONE_MAX);
    }

    proptest! {
        #[test]
        fn a_task_has_one_partition_and_tasks_are_spread(n in 1..=64i32, seed: u128) {
            let task = |i: u128| Uuid::from_u128(seed.wrapping_add(i << 80));
            let mut counts = vec![0; usize::try_from(n).unwrap()];
            for i in 0..2_000 {
                let of = partition_of(task(i), n);
                prop_assert_eq!(of, partition_of(task(i), n));
                counts[usize::try_from(of).unwrap()] += 1;
            }
            let most = counts.iter().max().unwrap();
            prop_assert!(*most <= 2_000 / n * 3, "{:?}", counts);
        }
    }
}
