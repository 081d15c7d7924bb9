//! Random plans: directed graphs of steps without cycles.

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// Which of what there is: taken modulo how many there are, so it stays good while a case shrinks.
pub type Pick = u16;

/// The most steps of a plan.
pub const STEPS_MAX: usize = 60;
/// Queues of a plan: its handlers.
pub const QUEUES: usize = 2;

/// How a plan is drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dag {
    /// The steps, parents first.
    pub steps: Vec<Drawn>,
    /// Numbers run against the edges: parents have higher ones than their children.
    pub backwards: bool,
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
        for step in &mut steps {
            step.parents.sort_unstable();
            step.children.sort_unstable();
        }
        Plan { steps }
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
    (steps, any::<bool>()).prop_map(|(steps, backwards)| Dag { steps, backwards })
}
