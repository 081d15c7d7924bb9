//! What a courier has of its partitions: which events may go, up to where they are done, and which one has
//! failed. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use stepwell_proto::v1::{Event, PartitionDelivery};

/// Events that wait to go; the stream is not read while there are so many.
const WAITING_MAX: usize = 256;

/// An event among those of a partition: position, name, ordinal.
type Key = (i64, String, i32);

/// An event that is to be delivered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parcel {
    pub(super) event: Arc<Event>,
    /// Which attempt this is, from 1.
    pub(super) attempt: i32,
    of: Of,
}

/// Where an event belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Of {
    partition: i32,
    epoch: i64,
    key: Key,
}

/// Why an event was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// When it shall come again; none: by its failures.
    pub(super) wait: Option<Duration>,
}

/// Events of a partition are done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) partition: i32,
    pub(super) epoch: i64,
    /// 0: none.
    pub(super) up_to: i64,
    /// Of those that came alone.
    pub(super) positions: Vec<i64>,
}

/// An event of a partition has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nack {
    pub(super) partition: i32,
    pub(super) epoch: i64,
    pub(super) position: i64,
    pub(super) attempt: i32,
    pub(super) failure: Failure,
}

#[derive(Debug)]
enum State {
    Waiting(Arc<Event>),
    Going,
    Done,
    Failed(Failure),
}

#[derive(Debug)]
struct Entry {
    key: Key,
    task: String,
    attempt: i32,
    retried: bool,
    state: State,
}

impl Entry {
    fn position(&self) -> i64 {
        self.key.0
    }
}

#[derive(Debug, Default)]
struct Partition {
    epoch: i64,
    entries: VecDeque<Entry>,
    /// What was taken and not acknowledged before a nack: it comes again under the epoch that the nack made.
    taken: HashSet<Key>,
    made: i64,
}

impl Partition {
    fn begin(&mut self, epoch: i64) {
        if self.epoch != epoch {
            if self.made != epoch {
                self.taken.clear();
            }
            self.epoch = epoch;
            self.entries.clear();
        }
    }
}

/// The events of a courier.
#[derive(Debug)]
pub(super) struct Queue {
    ordered: bool,
    partitions: BTreeMap<i32, Partition>,
    /// Tasks of which an event is going, and of how many.
    busy: HashMap<String, usize>,
    waiting: usize,
    /// The partition that was last asked.
    turn: i32,
}

impl Queue {
    pub(super) fn new(ordered: bool) -> Self {
        let (partitions, busy) = (BTreeMap::new(), HashMap::new());
        Self { ordered, partitions, busy, waiting: 0, turn: 0 }
    }

    /// Whether more may come.
    pub(super) fn has_room(&self) -> bool {
        self.waiting < WAITING_MAX
    }

    /// Only these partitions are read now.
    pub(super) fn holds(&mut self, held: &[i32]) {
        self.partitions.retain(|no, _| held.contains(no));
        self.count();
    }

    /// Events have come.
    pub(super) fn comes(&mut self, of: &PartitionDelivery, events: Vec<Event>) {
        let partition = self.partitions.entry(of.partition).or_default();
        // Epochs grow: this was on its way when its own was over.
        if of.epoch < partition.epoch {
            return;
        }
        partition.begin(of.epoch);
        let attempts = of.attempts.iter().copied().chain(std::iter::repeat(1));
        for (event, attempt) in events.into_iter().zip(attempts) {
            let key = (event.position, event.name.clone(), event.ordinal);
            let task = event.task_id.clone();
            let state = match partition.taken.contains(&key) {
                true => State::Done,
                false => State::Waiting(Arc::new(event)),
            };
            partition.entries.push_back(Entry { key, task, attempt, retried: of.retried, state });
        }
        self.count();
    }

    fn count(&mut self) {
        let waits = |entry: &&Entry| matches!(entry.state, State::Waiting(_));
        let entries = self.partitions.values().flat_map(|partition| &partition.entries);
        self.waiting = entries.filter(waits).count();
    }

    /// The next event that may go: of each task one at a time, and nothing of a partition that waits for one
    /// that failed. Partitions take turns.
    pub(super) fn next(&mut self) -> Option<Parcel> {
        let numbers: Vec<i32> = self.partitions.keys().copied().collect();
        let (before, after): (Vec<i32>, Vec<i32>) =
            numbers.into_iter().partition(|no| *no <= self.turn);
        after.into_iter().chain(before).find_map(|no| self.next_of(no))
    }

    fn next_of(&mut self, no: i32) -> Option<Parcel> {
        let (ordered, busy) = (self.ordered, &mut self.busy);
        let partition = self.partitions.get_mut(&no)?;
        let failed = |entry: &Entry| !entry.retried && matches!(entry.state, State::Failed(_));
        if ordered && partition.entries.iter().any(failed) {
            return None;
        }
        let epoch = partition.epoch;
        // One that failed or waits holds up what follows of its task.
        let mut held_up: HashSet<&str> = HashSet::new();
        let mut found = None;
        for (i, entry) in partition.entries.iter().enumerate() {
            match entry.state {
                State::Waiting(_)
                    if !ordered
                        || !busy.contains_key(&entry.task) && !held_up.contains(&*entry.task) =>
                {
                    found = Some(i);
                    break;
                }
                State::Done => {}
                _ => {
                    held_up.insert(&entry.task);
                }
            }
        }
        let entry = partition.entries.get_mut(found?)?;
        let State::Waiting(event) = std::mem::replace(&mut entry.state, State::Going) else {
            return None;
        };
        *busy.entry(entry.task.clone()).or_default() += 1;
        self.waiting -= 1;
        self.turn = no;
        let of = Of { partition: no, epoch, key: entry.key.clone() };
        Some(Parcel { event, attempt: entry.attempt, of })
    }

    /// An event was taken, or not.
    pub(super) fn ended(&mut self, parcel: &Parcel, ended: Result<(), Failure>) {
        let task = &parcel.event.task_id;
        if let Some(n) = self.busy.get_mut(task) {
            *n -= 1;
            if *n == 0 {
                self.busy.remove(task);
            }
        }
        let Of { partition, epoch, key } = &parcel.of;
        let partition = self.partitions.get_mut(partition).filter(|of| of.epoch == *epoch);
        let Some(partition) = partition else { return };
        let entry = partition.entries.iter_mut().find(|entry| entry.key == *key);
        if let Some(entry) = entry {
            entry.state = match ended {
                Ok(()) => State::Done,
                Err(failure) => State::Failed(failure),
            };
        }
    }

    /// What may be acknowledged.
    pub(super) fn acks(&self) -> Vec<Ack> {
        let acks = self.partitions.iter().map(|(no, partition)| {
            let is_done = |entry: &&Entry| matches!(entry.state, State::Done);
            let (alone, row): (Vec<&Entry>, Vec<&Entry>) =
                partition.entries.iter().partition(|entry| entry.retried);
            let done = row.iter().copied().take_while(is_done).count();
            // Events of one position are acknowledged together.
            let open = row.get(done).map_or(i64::MAX, |entry| entry.position());
            let mut done = row[..done].iter().map(|entry| entry.position());
            let up_to = done.rfind(|position| *position < open).unwrap_or_default();
            let mut positions: Vec<i64> = alone.iter().map(|entry| entry.position()).collect();
            positions.dedup();
            let is_open = |entry: &&&Entry| !matches!(entry.state, State::Done);
            let open: HashSet<i64> =
                alone.iter().filter(is_open).map(|entry| entry.position()).collect();
            positions.retain(|position| !open.contains(position));
            Ack { partition: *no, epoch: partition.epoch, up_to, positions }
        });
        acks.filter(|ack| ack.up_to > 0 || !ack.positions.is_empty()).collect()
    }

    /// They are acknowledged.
    pub(super) fn acked(&mut self, ack: &Ack) {
        let partition = self.partitions.get_mut(&ack.partition);
        let Some(partition) = partition.filter(|of| of.epoch == ack.epoch) else { return };
        partition.entries.retain(|entry| {
            if entry.retried {
                !ack.positions.contains(&entry.position())
            } else {
                entry.position() > ack.up_to
            }
        });
        partition
            .taken
            .retain(|(position, ..)| *position > ack.up_to && !ack.positions.contains(position));
    }

    /// The first event that failed, of which nothing is going any more: if order matters, nothing of its
    /// partition.
    pub(super) fn nack(&self) -> Option<Nack> {
        self.partitions.iter().find_map(|(no, partition)| {
            let entries = &partition.entries;
            let is_going = |of: &dyn Fn(&Entry) -> bool| {
                entries.iter().any(|entry| matches!(entry.state, State::Going) && of(entry))
            };
            entries.iter().find_map(|entry| {
                let State::Failed(failure) = &entry.state else { return None };
                let whole = self.ordered && !entry.retried;
                let position = entry.position();
                let waits = match whole {
                    true => is_going(&|_| true),
                    false => is_going(&|other| other.position() == position),
                };
                let (epoch, attempt, failure) = (partition.epoch, entry.attempt, failure.clone());
                (!waits).then_some(Nack { partition: *no, epoch, position, attempt, failure })
            })
        })
    }

    /// It is nacked; this is the epoch now. If it is another one, all that was not acknowledged comes again.
    pub(super) fn nacked(&mut self, nack: &Nack, epoch: i64) {
        let partition = self.partitions.get_mut(&nack.partition);
        let Some(partition) = partition.filter(|of| of.epoch == nack.epoch) else { return };
        if epoch == nack.epoch {
            partition.entries.retain(|entry| entry.position() != nack.position);
        } else {
            let done = partition.entries.drain(..).filter(|e| matches!(e.state, State::Done));
            partition.taken.extend(done.map(|entry| entry.key));
            partition.made = epoch;
            partition.begin(epoch);
        }
        self.count();
    }

    /// An event that failed is not there any more: it counts as taken.
    pub(super) fn gone(&mut self, nack: &Nack) {
        let Some(partition) = self.partitions.get_mut(&nack.partition) else { return };
        let entries = partition.entries.iter_mut();
        let of_it = entries.filter(|entry| entry.key.0 == nack.position);
        of_it.for_each(|entry| entry.state = State::Done);
    }

    /// The epoch of a partition is over, or it is not there: nothing of it counts.
    pub(super) fn lost(&mut self, partition: i32, epoch: i64) {
        let partition = self.partitions.get_mut(&partition);
        if let Some(partition) = partition.filter(|of| of.epoch == epoch) {
            partition.begin(epoch + 1);
        }
        self.count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: i64, task: &str) -> Event {
        Event { position, task_id: task.into(), name: "e".into(), ..Event::default() }
    }

    fn of(epoch: i64, retried: bool) -> PartitionDelivery {
        PartitionDelivery { partition: 0, epoch, attempts: Vec::new(), retried }
    }

    fn filled(ordered: bool, events: &[(i64, &str)]) -> Queue {
        let mut queue = Queue::new(ordered);
        queue.comes(&of(1, false), events.iter().map(|(at, task)| event(*at, task)).collect());
        queue
    }

    fn going(queue: &mut Queue) -> Vec<Parcel> {
        std::iter::from_fn(|| queue.next()).collect()
    }

    fn positions(parcels: &[Parcel]) -> Vec<i64> {
        parcels.iter().map(|parcel| parcel.event.position).collect()
    }

    fn up_to(queue: &Queue) -> Option<i64> {
        queue.acks().first().map(|ack| ack.up_to)
    }

    fn failure() -> Failure {
        Failure { reason: "no".into(), wait: None }
    }

    #[test]
    fn of_each_task_one_event_goes_at_a_time_and_what_is_done_in_a_row_is_acknowledged() {
        let mut queue = filled(true, &[(1, "a"), (2, "a"), (3, "b")]);
        let first = going(&mut queue);
        assert_eq!(positions(&first), [1, 3]);
        queue.ended(&first[1], Ok(()));
        assert_eq!(queue.acks(), [], "the first is going");
        queue.ended(&first[0], Ok(()));
        assert_eq!(up_to(&queue), Some(1), "the second has not gone");
        let second = going(&mut queue);
        assert_eq!(positions(&second), [2]);
        queue.ended(&second[0], Ok(()));
        let acks = queue.acks();
        assert_eq!(acks, [Ack { partition: 0, epoch: 1, up_to: 3, positions: Vec::new() }]);
        queue.acked(&acks[0]);
        assert_eq!((queue.acks(), queue.waiting), (Vec::new(), 0));
    }

    #[test]
    fn a_failure_holds_up_its_partition_and_what_was_taken_is_not_sent_again() {
        let mut queue = filled(true, &[(1, "a"), (2, "b"), (3, "c"), (4, "b")]);
        let sent = going(&mut queue);
        assert_eq!(positions(&sent), [1, 2, 3]);
        queue.ended(&sent[0], Err(failure()));
        assert_eq!(queue.next(), None, "the partition waits");
        queue.ended(&sent[1], Ok(()));
        assert_eq!(queue.nack(), None, "something is going");
        queue.ended(&sent[2], Ok(()));
        let nack = queue.nack().unwrap();
        assert_eq!((nack.position, nack.epoch, nack.attempt), (1, 1, 1));
        queue.nacked(&nack, 7);
        assert_eq!(queue.next(), None);
        // All comes again under the epoch of the nack.
        let again = [(1, "a"), (2, "b"), (3, "c"), (4, "b")];
        queue.comes(&of(7, false), again.iter().map(|(at, task)| event(*at, task)).collect());
        assert_eq!(positions(&going(&mut queue)), [1, 4]);
        // Under any other it may have been moved: all of it goes.
        queue.comes(&of(9, false), vec![event(2, "x"), event(3, "y")]);
        assert_eq!(positions(&going(&mut queue)), [2, 3]);
    }

    #[test]
    fn an_event_of_an_epoch_that_is_over_counts_for_nothing_and_holds_its_task_until_it_ends() {
        let mut queue = filled(true, &[(1, "a")]);
        let old = going(&mut queue);
        queue.comes(&of(2, false), vec![event(1, "a")]);
        assert_eq!(queue.next(), None, "the task is busy");
        queue.ended(&old[0], Ok(()));
        assert_eq!(queue.acks(), []);
        assert_eq!(positions(&going(&mut queue)), [1]);
        queue.holds(&[1]);
        assert_eq!((queue.acks(), queue.nack()), (Vec::new(), None));
    }

    #[test]
    fn what_was_on_its_way_when_its_epoch_was_over_is_dropped() {
        let mut queue = filled(true, &[(1, "a")]);
        let sent = going(&mut queue);
        queue.ended(&sent[0], Err(failure()));
        queue.nacked(&queue.nack().unwrap(), 7);
        queue.comes(&of(1, false), vec![event(2, "a")]);
        assert_eq!(queue.next(), None, "the first has not been taken");
        queue.comes(&of(7, false), vec![event(1, "a"), event(2, "a")]);
        assert_eq!(positions(&going(&mut queue)), [1]);
        queue.lost(0, 7);
        queue.comes(&of(7, false), vec![event(3, "b")]);
        assert_eq!(queue.next(), None);
        queue.comes(&of(9, false), vec![event(3, "b")]);
        assert_eq!(positions(&going(&mut queue)), [3]);
    }

    #[test]
    fn where_order_does_not_matter_one_that_fails_is_passed() {
        let mut queue = filled(false, &[(1, "a"), (2, "a"), (3, "a")]);
        let sent = going(&mut queue);
        assert_eq!(positions(&sent), [1, 2, 3]);
        queue.ended(&sent[1], Err(failure()));
        queue.ended(&sent[2], Ok(()));
        let nack = queue.nack().unwrap();
        assert_eq!(nack.position, 2);
        queue.nacked(&nack, 1);
        queue.ended(&sent[0], Ok(()));
        assert_eq!(up_to(&queue), Some(3));
    }

    #[test]
    fn what_comes_alone_is_acknowledged_alone_and_its_failure_holds_up_nobody_else() {
        let mut queue = filled(true, &[(8, "b")]);
        queue.comes(&of(1, true), vec![event(2, "a"), event(3, "c")]);
        let sent = going(&mut queue);
        assert_eq!(positions(&sent), [8, 2, 3]);
        queue.ended(&sent[1], Ok(()));
        queue.ended(&sent[2], Err(failure()));
        let alone = Ack { partition: 0, epoch: 1, up_to: 0, positions: vec![2] };
        assert_eq!(queue.acks(), std::slice::from_ref(&alone));
        queue.acked(&alone);
        let nack = queue.nack().unwrap();
        assert_eq!(nack.position, 3);
        queue.nacked(&nack, 1);
        queue.ended(&sent[0], Ok(()));
        assert_eq!(up_to(&queue), Some(8));
    }

    #[test]
    fn events_of_one_position_are_acknowledged_together() {
        let mut queue = Queue::new(true);
        let second = Event { ordinal: 1, ..event(5, "a") };
        queue.comes(&of(1, false), vec![event(4, "a"), event(5, "a"), second]);
        for expected in [None, Some(4), Some(4)] {
            assert_eq!(up_to(&queue), expected);
            let sent = going(&mut queue);
            queue.ended(&sent[0], Ok(()));
        }
        assert_eq!(up_to(&queue), Some(5));
    }

    #[test]
    fn the_stream_is_not_read_while_much_waits() {
        let mut queue = Queue::new(true);
        let most = i64::try_from(WAITING_MAX).unwrap();
        queue.comes(&of(1, false), (1..=most).map(|at| event(at, "a")).collect());
        assert!(!queue.has_room());
        queue.next().unwrap();
        assert!(queue.has_room());
    }
}
