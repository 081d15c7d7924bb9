//! Which step comes next while steps of several priorities wait for the same slots: each priority has
//! turns by its weight. Plain memory.

use std::collections::{HashMap, VecDeque};

use stepwell_store::{PRIORITY_DEFAULT, QueueRow};

/// A ready step: queue, place in it, key.
pub(crate) type ReadyStep = (i32, i64, i64);

/// One turn of each priority, first to last, in parts of a turn of the last: 16 : 8 : 4 : 2 : 1 turns.
const TURNS: [u64; PRIORITIES] = [1, 2, 4, 8, 16];
const PRIORITIES: usize = 5;
const PRIORITY_FIRST: i16 = 1;

/// What is known of the queues' priorities, and whose turn it is.
#[derive(Default)]
pub(crate) struct Priorities {
    /// By queue, what is not of the usual priority.
    of: HashMap<i32, i16>,
    /// Queues of which only the priority differs, by what is the same.
    beside: HashMap<i32, [Option<i32>; PRIORITIES]>,
    /// How far each has come: who has come least is next.
    passed: [u64; PRIORITIES],
    /// How far the last had come whose turn it was: who had nothing to run meanwhile goes on from here.
    now: u64,
}

/// Ready steps by priority, of each the oldest first.
pub(crate) type Lines<'s> = [VecDeque<&'s ReadyStep>; PRIORITIES];

impl Priorities {
    /// The queues of a namespace.
    pub(crate) fn know(&mut self, queues: &[QueueRow]) {
        let mut rows: HashMap<_, [Option<i32>; PRIORITIES]> = HashMap::new();
        for queue in queues {
            let same = (queue.definition, &queue.handler, &queue.requires);
            rows.entry(same).or_default()[place(queue.priority)] = Some(queue.id);
            if queue.priority != PRIORITY_DEFAULT {
                self.of.insert(queue.id, queue.priority);
            }
        }
        // Most stand alone.
        for row in rows.values().filter(|row| row.iter().flatten().count() > 1) {
            self.beside.extend(row.iter().flatten().map(|queue| (*queue, *row)));
        }
    }

    /// There are queues of more than the usual one.
    pub(crate) fn are_several(&self) -> bool {
        !self.of.is_empty()
    }

    /// Of a queue: 1 is first.
    pub(crate) fn of(&self, queue: i32) -> i16 {
        self.of.get(&queue).copied().unwrap_or(PRIORITY_DEFAULT)
    }

    /// The queue beside this one, at the priority of another; itself, if none is known.
    pub(crate) fn beside(&self, queue: i32, like: i32) -> i32 {
        let place = place(self.of(like));
        self.beside.get(&queue).and_then(|row| row[place]).unwrap_or(queue)
    }

    /// The steps in the lines of their priorities.
    pub(crate) fn lines<'s>(&mut self, ready: &'s [ReadyStep]) -> Lines<'s> {
        let mut lines = Lines::default();
        for step in ready {
            lines[place(self.of(step.0))].push_back(step);
        }
        for (line, passed) in lines.iter().zip(&mut self.passed) {
            if !line.is_empty() {
                *passed = (*passed).max(self.now);
            }
        }
        lines
    }

    /// Takes the step whose turn it is, with its priority.
    pub(crate) fn next<'s>(&mut self, lines: &mut Lines<'s>) -> Option<(i16, &'s ReadyStep)> {
        let waiting = (0..PRIORITIES).filter(|place| !lines[*place].is_empty());
        let place = waiting.min_by_key(|place| self.passed[*place])?;
        Some((PRIORITY_FIRST + i16::try_from(place).ok()?, lines[place].pop_front()?))
    }

    /// A step of that priority got a slot: that was its turn.
    pub(crate) fn served(&mut self, priority: i16) {
        let place = place(priority);
        self.now = self.now.max(self.passed[place]);
        self.passed[place] = self.now.max(self.passed[place]) + TURNS[place];
    }

    /// It comes before all that wait.
    pub(crate) fn is_turn(&self, priority: i16, waiting: &[i16]) -> bool {
        let passed = |priority| (self.passed[place(priority)].max(self.now), priority);
        waiting.iter().all(|other| passed(priority) <= passed(*other))
    }
}

fn place(priority: i16) -> usize {
    usize::try_from(priority - PRIORITY_FIRST).unwrap_or_default().min(PRIORITIES - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn queue(id: i32, handler: &str, priority: i16) -> QueueRow {
        let (handler, version) = (handler.into(), vec![1, 0, 0]);
        QueueRow { id, definition: 1, handler, requires: BTreeMap::new(), priority, version }
    }

    fn five() -> Priorities {
        let mut priorities = Priorities::default();
        let queues: Vec<QueueRow> =
            (1..=5).map(|n| queue(n, "h", i16::try_from(n).unwrap())).collect();
        priorities.know(&queues);
        priorities
    }

    /// Gives one slot at a time to what waits in these queues; how many each got.
    fn shares(priorities: &mut Priorities, queues: &[i32], slots: usize) -> HashMap<i32, usize> {
        let ready: Vec<ReadyStep> = queues.iter().map(|queue| (*queue, 1, 1)).collect();
        let mut shares = HashMap::new();
        for _ in 0..slots {
            let mut lines = priorities.lines(&ready);
            let (priority, (queue, ..)) = priorities.next(&mut lines).unwrap();
            priorities.served(priority);
            *shares.entry(*queue).or_default() += 1;
        }
        shares
    }

    #[test]
    fn slots_that_free_one_by_one_are_shared_by_weight() {
        let mut priorities = five();
        let all = shares(&mut priorities, &[1, 2, 3, 4, 5], 310);
        assert_eq!(all, HashMap::from([(1, 160), (2, 80), (3, 40), (4, 20), (5, 10)]));
        let two = shares(&mut priorities, &[2, 5], 90);
        assert!((79..=81).contains(&two[&2]), "8 : 1, but {two:?}");
    }

    #[test]
    fn who_had_nothing_to_run_has_saved_no_turns() {
        let mut priorities = five();
        shares(&mut priorities, &[5], 1000);
        let both = shares(&mut priorities, &[1, 5], 34);
        assert!((1..=3).contains(&both[&5]), "{both:?}");
        shares(&mut priorities, &[1], 1000);
        let both = shares(&mut priorities, &[1, 5], 170);
        assert!((9..=11).contains(&both[&5]), "{both:?}");
    }

    #[test]
    fn within_a_priority_the_oldest_comes_first_and_who_finds_no_slot_loses_no_turn() {
        let mut priorities = five();
        let ready = [(1, 1, 1), (2, 2, 2), (1, 3, 3), (2, 4, 4)];
        let mut lines = priorities.lines(&ready);
        let mut order = Vec::new();
        while let Some((priority, (queue, _, step))) = priorities.next(&mut lines) {
            order.push(*step);
            if *queue == 2 {
                priorities.served(priority);
            }
        }
        assert_eq!(order, [1, 3, 2, 4], "the slots are not for queue 1");
    }

    #[test]
    fn a_child_waits_beside_its_parent_s_priority() {
        let mut priorities = Priorities::default();
        priorities.know(&[queue(1, "a", 3), queue(2, "b", 3), queue(3, "a", 1), queue(4, "b", 1)]);
        assert_eq!(priorities.beside(2, 3), 4);
        assert_eq!(priorities.beside(2, 1), 2);
        assert_eq!(priorities.beside(9, 3), 9, "nothing is known of it");
    }
}
