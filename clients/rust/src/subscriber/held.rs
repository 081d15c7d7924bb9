//! What a reader has of a durable subscription: events that wait to be handed out, how far each partition is
//! done with, and what is to be told of it. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use stepwell_proto::v1::{Event, HeldPartition, PartitionDelivery};

/// As many positions as one ack may name.
const POSITIONS_MAX: usize = 1_000;

/// An event on its way to whoever handles it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) event: Arc<Event>,
    pub(super) of: Of,
}

/// What an event was delivered under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) partition: i32,
    pub(super) epoch: i64,
    /// It came alone: it is acknowledged by its position.
    pub(super) retried: bool,
    pub(super) position: i64,
    /// Which attempt it is: one that comes again alone has the same epoch.
    pub(super) attempt: i32,
}

/// An event that failed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failed {
    pub(super) of: Of,
    pub(super) reason: String,
    pub(super) retry_after: Option<Duration>,
}

/// What is to be told of a partition: the ack, and after it the nack.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Job {
    pub(super) partition: i32,
    pub(super) epoch: i64,
    /// 0: nothing new.
    pub(super) up_to: i64,
    pub(super) retried: Vec<i64>,
    pub(super) failed: Option<Failed>,
}

impl Job {
    /// Something is to be acknowledged.
    pub(super) fn acks(&self) -> bool {
        self.up_to > 0 || !self.retried.is_empty()
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Holding {
    partitions: BTreeMap<i32, Part>,
    /// Partitions that the stream reads.
    held: Vec<i32>,
    /// Whose event was handed out last.
    turn: i32,
    waiting: usize,
}

#[derive(Debug)]
struct Part {
    epoch: i64,
    /// Nothing of the epoch can be acknowledged any more.
    is_over: bool,
    queue: VecDeque<Waiting>,
    /// Positions that were delivered and are not done with, and how many events of each are not.
    open: VecDeque<(i64, usize)>,
    /// The same of those that came alone, by position and attempt.
    alone: BTreeMap<(i64, i32), usize>,
    /// All up to here is done with.
    done: i64,
    told: i64,
    alone_done: Vec<i64>,
    failed: VecDeque<Failed>,
    /// It is being told of.
    is_busy: bool,
    /// One that failed is being told of.
    is_failing: bool,
}

impl Part {
    fn new(epoch: i64) -> Self {
        Self {
            epoch,
            is_over: false,
            queue: VecDeque::new(),
            open: VecDeque::new(),
            alone: BTreeMap::new(),
            done: 0,
            told: 0,
            alone_done: Vec::new(),
            failed: VecDeque::new(),
            is_busy: false,
            is_failing: false,
        }
    }

    /// Its next event may be handed out.
    fn is_ready(&self) -> bool {
        !self.queue.is_empty() && self.failed.is_empty() && !self.is_failing
    }

    fn is_to_tell(&self) -> bool {
        let has = self.done > self.told || !self.alone_done.is_empty() || !self.failed.is_empty();
        has && !self.is_over
    }

    /// What waits of it is given up; answers how much it was.
    fn forget(&mut self) -> usize {
        mem::take(&mut self.queue).len()
    }

    fn settle_front(&mut self) {
        while let Some((position, 0)) = self.open.front() {
            self.done = self.done.max(*position);
            self.open.pop_front();
        }
    }
}

impl Holding {
    /// Events came. Those of an old epoch are dropped, and with a new epoch what was of the old one.
    pub(super) fn take(&mut self, delivery: &PartitionDelivery, events: Vec<Event>) {
        let (no, epoch) = (delivery.partition, delivery.epoch);
        let part = self.partitions.entry(no).or_insert_with(|| Part::new(epoch));
        if epoch < part.epoch || epoch == part.epoch && part.is_over {
            return;
        }
        if epoch > part.epoch {
            self.waiting -= part.forget();
            *part = Part::new(epoch);
        }
        self.waiting += events.len();
        for (i, event) in events.into_iter().enumerate() {
            let position = event.position;
            let attempt = delivery.attempts.get(i).copied().unwrap_or(1);
            let of = Of { partition: no, epoch, retried: delivery.retried, position, attempt };
            if of.retried {
                *part.alone.entry((position, attempt)).or_default() += 1;
            } else if let Some((last, unfinished)) = part.open.back_mut()
                && *last == position
            {
                *unfinished += 1;
            } else {
                part.open.push_back((position, 1));
            }
            part.queue.push_back(Waiting { event: Arc::new(event), of });
        }
    }

    /// These partitions are read now. What waits of others goes to other readers, or comes again; what was
    /// handed out of them may still be acknowledged.
    pub(super) fn hold(&mut self, held: &[HeldPartition]) {
        self.held = held.iter().map(|of| of.partition).collect();
        for (no, part) in &mut self.partitions {
            // What is said of an older epoch was said before its events came.
            let is_held = |of: &HeldPartition| of.partition == *no && of.epoch <= part.epoch;
            if !held.iter().any(is_held) {
                self.waiting -= part.forget();
            }
        }
    }

    /// The stream has ended: whatever waits comes again.
    pub(super) fn cut(&mut self) {
        self.hold(&[]);
    }

    /// Partitions that the stream reads.
    pub(super) fn held(&self) -> &[i32] {
        &self.held
    }

    /// How many events wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The next event: partitions take turns, and one that waits for a nack has none.
    pub(super) fn next(&mut self) -> Option<Waiting> {
        let ready = |(no, part): (&i32, &Part)| part.is_ready().then_some(*no);
        let after = self.partitions.range(self.turn + 1..).find_map(ready);
        let no = after.or_else(|| self.partitions.iter().find_map(ready))?;
        self.turn = no;
        self.waiting -= 1;
        self.partitions.get_mut(&no)?.queue.pop_front()
    }

    /// Where its event can still be settled.
    fn part(&mut self, of: &Of) -> Option<&mut Part> {
        let part = self.partitions.get_mut(&of.partition)?;
        (part.epoch == of.epoch && !part.is_over).then_some(part)
    }

    /// An event is done with.
    pub(super) fn finish(&mut self, of: &Of) {
        let Some(part) = self.part(of) else { return };
        if of.retried {
            let key = (of.position, of.attempt);
            let Some(unfinished) = part.alone.get_mut(&key) else { return };
            *unfinished -= 1;
            if *unfinished == 0 {
                part.alone.remove(&key);
                part.alone_done.push(of.position);
            }
        } else if let Ok(i) =
            part.open.binary_search_by_key(&of.position, |(position, _)| *position)
        {
            part.open[i].1 = part.open[i].1.saturating_sub(1);
            part.settle_front();
        }
    }

    /// An event failed: its partition waits until that is told.
    pub(super) fn fail(&mut self, failed: Failed) {
        if let Some(part) = self.part(&failed.of) {
            part.failed.push_back(failed);
        }
    }

    /// What is to be told now, one job for each partition. Each is to be brought back.
    pub(super) fn jobs(&mut self) -> Vec<Job> {
        let parts = self.partitions.iter_mut();
        parts
            .filter(|(_, part)| part.is_to_tell() && !part.is_busy)
            .map(|(no, part)| {
                part.is_busy = true;
                part.is_failing = !part.failed.is_empty();
                let rest = part.alone_done.len().min(POSITIONS_MAX);
                Job {
                    partition: *no,
                    epoch: part.epoch,
                    up_to: if part.done > part.told { part.done } else { 0 },
                    retried: part.alone_done.drain(..rest).collect(),
                    failed: part.failed.pop_front(),
                }
            })
            .collect()
    }

    /// The job's ack is made, and its nack if it has one: the partition has this epoch now.
    pub(super) fn told(&mut self, job: &Job, epoch: i64) {
        let Some(part) = self.partitions.get_mut(&job.partition).filter(|p| p.epoch == job.epoch)
        else {
            return;
        };
        (part.is_busy, part.is_failing) = (false, false);
        part.told = part.told.max(job.up_to);
        if epoch != part.epoch {
            self.refused(job);
            return;
        }
        let Some(Failed { of, .. }) = &job.failed else { return };
        // The event is kept, and comes again alone: the others go on, and it counts as done with.
        let before = part.queue.len();
        part.queue.retain(|waiting| waiting.of != *of);
        self.waiting -= before - part.queue.len();
        if of.retried {
            part.alone.remove(&(of.position, of.attempt));
        } else if let Ok(i) =
            part.open.binary_search_by_key(&of.position, |(position, _)| *position)
        {
            part.open[i].1 = 0;
            part.settle_front();
        }
    }

    /// The job's epoch is over: whatever is of it comes again.
    pub(super) fn refused(&mut self, job: &Job) {
        let part = self.partitions.get_mut(&job.partition);
        if let Some(part) = part.filter(|part| part.epoch == job.epoch) {
            self.waiting -= part.forget();
            *part = Part { is_over: true, ..Part::new(job.epoch) };
        }
    }

    /// The job could not be done: it is to be tried again.
    pub(super) fn put_back(&mut self, job: Job) {
        let part = self.partitions.get_mut(&job.partition);
        if let Some(part) = part.filter(|part| part.epoch == job.epoch) {
            (part.is_busy, part.is_failing) = (false, false);
            part.alone_done.extend(job.retried);
            if let Some(failed) = job.failed {
                part.failed.push_front(failed);
            }
        }
    }

    /// Nothing is to be told, and nothing is being told.
    pub(super) fn is_settled(&self) -> bool {
        !self.partitions.values().any(|part| part.is_busy || part.is_to_tell())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn event(position: i64) -> Event {
        Event { position, ..Event::default() }
    }

    fn delivery(partition: i32, epoch: i64) -> PartitionDelivery {
        PartitionDelivery { partition, epoch, ..PartitionDelivery::default() }
    }

    fn holding(delivery: &PartitionDelivery, positions: &[i64]) -> Holding {
        let mut holding = Holding::default();
        holding.take(delivery, positions.iter().copied().map(event).collect());
        holding
    }

    fn drain(holding: &mut Holding) -> Vec<Waiting> {
        std::iter::from_fn(|| holding.next()).collect()
    }

    fn failed(waiting: &Waiting) -> Failed {
        Failed { of: waiting.of, reason: "no".into(), retry_after: None }
    }

    #[test]
    fn an_ack_stands_for_all_before_it_and_waits_for_those() {
        let mut holding = holding(&delivery(0, 7), &[3, 5, 5, 8]);
        let events = drain(&mut holding);
        holding.finish(&events[1].of);
        holding.finish(&events[3].of);
        assert_eq!(holding.jobs(), [], "3 is not done with");
        holding.finish(&events[0].of);
        let jobs = holding.jobs();
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].up_to, 3, "one of the two at 5 is not");
        assert_eq!(holding.jobs(), [], "it is being told");
        holding.finish(&events[2].of);
        assert!(!holding.is_settled());
        holding.told(&jobs[0], 7);
        assert_eq!(holding.jobs()[0].up_to, 8);
    }

    #[test]
    fn what_is_of_an_old_epoch_is_dropped_wherever_it_is() {
        let mut holding = holding(&delivery(0, 7), &[3, 5]);
        let first = holding.next().unwrap();
        holding.take(&delivery(0, 9), vec![event(3), event(5), event(6)]);
        holding.take(&delivery(0, 8), vec![event(4)]);
        holding.finish(&first.of);
        assert!(holding.is_settled(), "the ack would be refused");
        assert_eq!(holding.waiting(), 3);
        let again = drain(&mut holding);
        assert_eq!(again.iter().map(|of| of.of.position).collect::<Vec<_>>(), [3, 5, 6]);
        holding.finish(&again[0].of);
        let job = holding.jobs().remove(0);
        holding.refused(&job);
        holding.take(&delivery(0, 9), vec![event(7)]);
        assert_eq!((holding.waiting(), holding.next()), (0, None), "that epoch is over");
        holding.take(&delivery(0, 10), vec![event(3)]);
        assert_eq!(holding.next().unwrap().of.epoch, 10);
    }

    #[test]
    fn partitions_take_turns_however_many_events_one_has() {
        let mut holding = holding(&delivery(0, 1), &[1, 2, 3, 4]);
        holding.take(&delivery(3, 1), vec![event(5), event(6)]);
        holding.take(&delivery(1, 1), vec![event(7)]);
        let order: Vec<i64> = drain(&mut holding).iter().map(|of| of.of.position).collect();
        assert_eq!(order, [7, 5, 1, 6, 2, 3, 4]);
    }

    #[test]
    fn a_partition_waits_for_its_nack_and_what_was_done_is_told_before() {
        let mut holding = holding(&delivery(0, 7), &[3, 5, 8]);
        let (first, second) = (holding.next().unwrap(), holding.next().unwrap());
        holding.finish(&first.of);
        holding.fail(failed(&second));
        assert_eq!(holding.next(), None);
        let job = holding.jobs().remove(0);
        assert_eq!((job.up_to, job.failed.as_ref().unwrap().of.position), (3, 5));
        assert_eq!(holding.next(), None, "it is being told");
        holding.put_back(job);
        assert_eq!(holding.next(), None, "it was not told");
        let job = holding.jobs().remove(0);
        assert_eq!((job.up_to, job.failed.as_ref().unwrap().of.position), (3, 5));
        holding.told(&job, 8);
        assert_eq!((holding.next(), holding.waiting()), (None, 0), "all of it comes again");
        assert!(holding.is_settled());
    }

    #[test]
    fn where_order_does_not_matter_the_others_go_on_and_acks_pass_what_failed() {
        let mut holding = holding(&delivery(0, 7), &[3, 3, 5]);
        let first = holding.next().unwrap();
        holding.fail(failed(&first));
        let job = holding.jobs().remove(0);
        assert!(!job.acks());
        holding.told(&job, 7);
        let next = holding.next().unwrap();
        assert_eq!(next.of.position, 5, "the other one at 3 comes again too");
        holding.finish(&next.of);
        assert_eq!(holding.jobs()[0].up_to, 5);
        let alone = PartitionDelivery { retried: true, attempts: vec![2, 2], ..delivery(0, 7) };
        holding.take(&alone, vec![event(3), event(3)]);
        let again = drain(&mut holding);
        assert_eq!((again.len(), again[0].of.attempt), (2, 2));
        holding.finish(&again[0].of);
        holding.finish(&again[1].of);
        holding.partitions.get_mut(&0).unwrap().is_busy = false;
        assert_eq!(holding.jobs()[0].retried, [3]);
    }

    #[test]
    fn what_waits_of_a_partition_that_is_lost_goes_and_what_was_handed_out_may_be_acknowledged() {
        let mut holding = holding(&delivery(0, 7), &[3, 5]);
        let first = holding.next().unwrap();
        holding.hold(&[HeldPartition { partition: 1, epoch: 4 }]);
        assert_eq!((holding.next(), holding.waiting(), holding.held()), (None, 0, &[1][..]));
        holding.finish(&first.of);
        assert_eq!(holding.jobs()[0].up_to, 3);
        holding.take(&delivery(1, 5), vec![event(9)]);
        holding.hold(&[HeldPartition { partition: 1, epoch: 4 }]);
        assert_eq!(holding.waiting(), 1, "that was said before");
        holding.hold(&[HeldPartition { partition: 1, epoch: 6 }]);
        assert_eq!(holding.waiting(), 0);
    }

    #[test]
    fn what_is_left_of_an_attempt_that_failed_settles_nothing_of_the_next() {
        let of = |attempt| PartitionDelivery {
            retried: true,
            attempts: vec![attempt; 2],
            ..delivery(0, 7)
        };
        // Two events of one position, the recorded one and one that is derived from it.
        let mut holding = holding(&of(2), &[5, 5]);
        let first = drain(&mut holding);
        holding.fail(failed(&first[0]));
        let job = holding.jobs().remove(0);
        holding.told(&job, 7);
        holding.take(&of(3), vec![event(5), event(5)]);
        let again = drain(&mut holding);
        holding.finish(&first[1].of);
        holding.finish(&again[1].of);
        assert_eq!(holding.jobs(), [], "the first of them is not done with");
        holding.finish(&again[0].of);
        assert_eq!(holding.jobs()[0].retried, [5]);
    }

    proptest! {
        /// A service that delivers one partition, an epoch after the other, to somebody who does anything in any
        /// order, over calls that are lost and streams that are cut.
        #[test]
        fn an_ack_never_passes_what_is_not_done_with_and_what_waits_is_counted(
            moves in vec((0..8_u8, 0..8_usize), 1..300)
        ) {
            let mut holding = Holding::default();
            let (mut epoch, mut last, mut place) = (1, 0, 0);
            let (mut delivered, mut done) = (BTreeSet::new(), BTreeSet::new());
            let mut nacked = BTreeSet::new();
            let (mut in_hand, mut jobs): (Vec<Waiting>, Vec<Job>) = (Vec::new(), Vec::new());
            for (what, n) in moves {
                match what {
                    0 | 1 => {
                        let positions: Vec<i64> = (0..=n).map(|i| last + 1 + i as i64 / 2).collect();
                        last = positions[n];
                        delivered.extend(positions.iter().map(|position| (epoch, *position)));
                        holding.take(&delivery(0, epoch), positions.into_iter().map(event).collect());
                    }
                    2 => in_hand.extend(holding.next()),
                    3 | 4 if !in_hand.is_empty() => {
                        let of = in_hand.swap_remove(n % in_hand.len());
                        if what == 3 {
                            holding.finish(&of.of);
                            // Done with if all events at the position are.
                            let of = of.of;
                            let queues = holding.partitions.values().flat_map(|part| &part.queue);
                            let rest = in_hand.iter().chain(queues).any(|other| other.of == of);
                            let key = (of.epoch, of.position);
                            if !rest && !nacked.contains(&key) {
                                done.insert(key);
                            }
                        } else {
                            nacked.insert((of.of.epoch, of.of.position));
                            holding.fail(failed(&of));
                        }
                    }
                    5 => {
                        for job in holding.jobs() {
                            prop_assert!(job.acks() || job.failed.is_some());
                            let open = delivered.iter().find(|(of, position)| {
                                *of == job.epoch
                                    && *position <= job.up_to
                                    && !done.contains(&(*of, *position))
                            });
                            prop_assert_eq!(open, None, "{:?}", &job);
                            jobs.push(job);
                        }
                    }
                    6 => {
                        let Some(job) = jobs.pop() else { continue };
                        let is_old = job.epoch != epoch;
                        match (&job.failed, n % 3) {
                            (_, 0) => holding.put_back(job),
                            _ if is_old => holding.refused(&job),
                            (Some(_), 1) => {
                                place = place.max(job.up_to);
                                (epoch, last) = (epoch + 1, place);
                                holding.told(&job, epoch);
                            }
                            (kept, _) => {
                                place = place.max(job.up_to);
                                done.extend(kept.iter().map(|of| (epoch, of.of.position)));
                                holding.told(&job, epoch);
                            }
                        }
                    }
                    _ => {
                        holding.cut();
                        (epoch, last) = (epoch + 1, place);
                    }
                }
                let waiting: usize = holding.partitions.values().map(|part| part.queue.len()).sum();
                prop_assert_eq!(holding.waiting(), waiting);
            }
        }
    }
}
