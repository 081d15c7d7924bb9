//! Random plans: directed graphs of steps without cycles.

use std::ops::Range;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// Which of what there is: taken modulo how many there are, so it stays good while a case shrinks.
pub type Pick = u16;

/// The most steps of a plan.
pub const STEPS_MAX: usize = 60;
/// Queues of a plan at one priority: its handlers, or its requirements.
pub const QUEUES: usize = 2;
/// Priorities there are.
pub const PRIORITIES: usize = 5;
/// The priority of plans without one.
const USUAL: u8 = 3;

/// The number of a queue of a plan, among those of so many plans: first come all of the usual priority.
pub fn queue_number(plans: usize, plan: usize, queue: usize, priority: u8) -> usize {
    let rank = usize::from(priority + PRIORITIES as u8 - USUAL) % PRIORITIES;
    (rank * plans + plan) * QUEUES + queue
}

/// How a plan is drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dag {
    /// The steps, parents first.
    pub steps: Vec<Drawn>,
    /// Numbers run against the edges: parents have higher ones than their children.
    pub backwards: bool,
    /// What rules its tasks.
    #[serde(default)]
    pub rules: Rules,
    /// The priority of its tasks that name none.
    #[serde(default)]
    pub priority: Option<u8>,
    /// What it is a version of.
    #[serde(default)]
    pub name: Name,
}

/// A definition: its namespace and its number there.
pub type Name = (u8, u8);

/// What rules the tasks of a plan; times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// Steps of a task that run at once; 0: any number.
    pub max_parallel: u8,
    /// How long its first step may wait for a slot; each later one has a little more.
    pub queue_timeout: Option<u16>,
    /// How long its first step may take with all attempts; each later one has a little more.
    pub total_timeout: Option<u16>,
    /// How long a task may take.
    pub deadline: Option<u16>,
    /// All its tasks have one concurrency key, and so many have it at once.
    pub room: Option<u8>,
}

/// One step as it is drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drawn {
    /// Parents among the steps before it.
    pub parents: Vec<Pick>,
    /// The queue.
    pub queue: u8,
    /// The attempts it has.
    pub max_attempts: u8,
}

/// A plan as the definition's tables have it; by number.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Planned>,
    /// What rules its tasks.
    pub rules: Rules,
    /// The priority of its tasks that name none.
    pub priority: u8,
    /// What it is a version of.
    pub name: Name,
}

impl Plan {
    /// True when its tasks are ruled without being paused.
    pub fn is_ruled(&self) -> bool {
        self.rules != Rules::default()
    }
}

/// One step of a plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Numbers of its parents, ascending.
    pub parents: Vec<usize>,
    /// Numbers of its children, ascending.
    pub children: Vec<usize>,
    /// The queue, within the plan.
    pub queue: usize,
    /// The attempts it has.
    pub max_attempts: i32,
    /// Milliseconds from ready to leased.
    pub queue_timeout: Option<i64>,
    /// Milliseconds from ready for the first time to its end.
    pub total_timeout: Option<i64>,
}

impl Dag {
    /// The plan that was drawn.
    pub fn plan(&self) -> Plan {
        let n = self.steps.len();
        let number = |at: usize| if self.backwards { n - 1 - at } else { at };
        let planned = |drawn: &Drawn| Planned {
            parents: Vec::new(),
            children: Vec::new(),
            queue: usize::from(drawn.queue) % QUEUES,
            max_attempts: i32::from(drawn.max_attempts),
            queue_timeout: self.rules.queue_timeout.map(i64::from),
            total_timeout: self.rules.total_timeout.map(i64::from),
        };
        let mut steps: Vec<Planned> = self.steps.iter().map(planned).collect();
        for (at, drawn) in self.steps.iter().enumerate() {
            steps[number(at)] = planned(drawn);
        }
        for (at, drawn) in self.steps.iter().enumerate().skip(1) {
            for parent in &drawn.parents {
                let parent = number(usize::from(*parent) % at);
                if !steps[number(at)].parents.contains(&parent) {
                    steps[number(at)].parents.push(parent);
                    steps[parent].children.push(number(at));
                }
            }
        }
        for (step, more) in steps.iter_mut().zip((0..).step_by(50)) {
            step.queue_timeout = step.queue_timeout.map(|ms| ms + more);
            step.total_timeout = step.total_timeout.map(|ms| ms + more);
            step.parents.sort_unstable();
            step.children.sort_unstable();
        }
        let priority = self.priority.unwrap_or(USUAL);
        Plan { steps, rules: self.rules, priority, name: self.name }
    }
}

/// Plans, most of them small.
pub fn dags() -> impl Strategy<Value = Dag> {
    let drawn = (prop::collection::vec(any::<Pick>(), 0..4), 0..2u8, 1..4u8)
        .prop_map(|(parents, queue, max_attempts)| Drawn { parents, queue, max_attempts });
    let steps = prop_oneof![
        12 => prop::collection::vec(drawn.clone(), 1..7),
        6 => prop::collection::vec(drawn.clone(), 7..15),
        1 => prop::collection::vec(drawn, 15..=STEPS_MAX),
    ];
    let priority = prop::option::weighted(0.3, priorities());
    let name = (0..2u8, 0..2u8);
    (steps, any::<bool>(), rules(), priority, name).prop_map(
        |(steps, backwards, rules, priority, name)| Dag { steps, backwards, rules, priority, name },
    )
}

/// Priorities: few, so that queues are shared.
pub fn priorities() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![1, 3, 5])
}

/// Rules, for half of the plans.
fn rules() -> impl Strategy<Value = Rules> {
    let max_parallel = prop_oneof![1 => Just(0), 1 => 1..4u8];
    let clock = |range: Range<u16>| prop_oneof![2 => Just(None), 1 => range.prop_map(Some)];
    let clocks = (clock(1..4_000), clock(1..8_000), clock(1..12_000));
    let room = prop_oneof![2 => Just(None), 1 => (1..3u8).prop_map(Some)];
    let ruled = (max_parallel, clocks, room).prop_map(|(max_parallel, clocks, room)| {
        let (queue_timeout, total_timeout, deadline) = clocks;
        Rules { max_parallel, queue_timeout, total_timeout, deadline, room }
    });
    prop_oneof![1 => Just(Rules::default()), 1 => ruled]
}
