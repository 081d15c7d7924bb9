//! What may happen to the engine, as drawn by chance. An operation names things by picks; what they
//! stand for is decided against the model when its turn comes (`run.rs`).
//!
//! To add one: a variant here with its weight, its meaning in `run.rs`, what it is to do in `model.rs`,
//! the call of its verb in `database.rs`. The coverage asks for every verb there is.

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::dag::{Dag, Pick, dags, priorities};

/// One case: plans, the tasks that may be made of them, and what happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// The plans.
    pub dags: Vec<Dag>,
    /// The plan of each task.
    pub tasks: Vec<Pick>,
    /// What happens, in order.
    pub operations: Vec<Operation>,
    /// What people do once all tasks have ended.
    pub after: Vec<Operation>,
}

/// One thing that happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// Tasks are created by one call; those that are there are asked for again.
    Create(Vec<Created>),
    /// A node leases to so many free slots of queues that follow each other, perhaps from a place on that it
    /// remembers.
    Claim {
        node: Pick,
        slots: Vec<u8>,
        from: Option<Pick>,
        /// The first of the queues, out of all there are.
        #[serde(default)]
        first: Pick,
    },
    /// Executors report, in one batch, to a node that has slots for what becomes ready.
    Report { node: Pick, reports: Vec<Report> },
    /// A node ends what it thinks a session holds: the executor is gone, or out of time.
    Lose { session: Pick, endings: Vec<Ending> },
    /// Executors came back to a node, with what they hold.
    Adopt { node: Pick, session: u8, held: Vec<Held> },
    /// Time passes, in milliseconds.
    Advance(u16),
    /// Time passes until the next timer is due.
    AdvanceToTimer,
    /// Timers that are due make their steps ready, at most so many.
    Release(u8),
    /// A person moves steps by one call, or they have waited too long.
    Move { to: Move, steps: Vec<Aim>, more: Option<u8> },
    /// Tasks are cancelled.
    Cancel { tasks: Vec<Pick>, overriding: bool },
    /// Tasks are retried.
    Retry { tasks: Vec<Pick>, more: Option<u8> },
    /// A task, or one step, is retried under the id of a request; `again`: as it was asked under that id before.
    RetryOnce { request: u8, again: bool, task: Pick, step: Option<Aim>, more: Option<u8> },
    /// Tasks are resolved.
    Resolve { tasks: Vec<Pick> },
    /// Tasks are paused, or go on.
    Pause { tasks: Vec<Pick>, paused: bool },
    /// What is said of a task is changed, and perhaps its priority.
    Priority { task: Pick, priority: Option<u8> },
    /// A fact, one of few, is kept with a task in one of few texts, or forgotten.
    Annotate {
        task: Pick,
        fact: u8,
        kept: bool,
        #[serde(default)]
        text: u8,
    },
    /// Tasks behind one are removed that ended so many seconds ago, those in error likewise (0: never): at most so
    /// many, out of so many that are looked at.
    Remove { after: Option<Pick>, age: u8, error: u8, scan: u8, most: u8 },
    /// Particular tasks are removed, in error or not, unless they have moved since they were seen.
    RemoveNamed { tasks: Vec<(Pick, Seen)>, in_error: bool },
    /// A step may make so many attempts.
    Attempts { step: Aim, most: u8 },
    /// What a plan is a version of is paused, or goes on; or all of its namespace.
    PausePlan { plan: Pick, all: bool, paused: bool },
    /// Concurrency keys are given to who waits for them.
    Grant,
    /// A node starts.
    Start,
    /// A node says that it lives.
    Extend { node: Pick },
    /// A node gives up its id.
    Retire { node: Pick },
    /// A node goes on under a new id, and takes along what its sessions hold: one bit for each lease.
    Renew { node: Pick, held: u8 },
    /// A node declares others dead and takes over what nobody walks.
    TakeOver { node: Pick, declare: bool },
    /// A node walks the leases of a retired one; `forget`ting it after.
    Walk { node: Pick, ending: Ending, forget: bool },
}

/// A task that is created: which, the steps to bypass, its priority, what it is known by, a fact and its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created(
    pub Pick,
    pub Vec<Pick>,
    #[serde(default)] pub Option<u8>,
    #[serde(default)] pub Option<Known>,
    #[serde(default)] pub Option<(u8, u8)>,
);

/// By what a request for a task is known besides its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// One of few keys.
    pub key: u8,
    /// For how many milliseconds after a task's creation another has no place beside it; none: for as long as it
    /// is there.
    pub window: Option<u16>,
}

/// As what a task was seen that is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// It was not looked at.
    Never,
    /// As it is.
    Now,
    /// In another state.
    InAnotherState,
    /// With another end.
    WithAnotherEnd,
}

/// One report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Of which lease.
    pub held: Held,
    /// How it ended.
    pub ending: Ending,
    /// Which of its children have slots, one bit each.
    pub slots: u8,
    /// It is in the batch once more, perhaps with another ending.
    pub again: Option<Ending>,
}

/// A lease that somebody has, or thinks to have.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Which.
    pub pick: Pick,
    /// Out of all that were ever given; else of those that hold.
    pub late: bool,
    /// With a token that was never given.
    pub foreign: bool,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The handler returned.
    Complete,
    /// It failed; milliseconds until it is tried again, or never.
    Fail(Option<u16>),
    /// It was not run.
    HandBack,
}

/// A step of a task.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Aim {
    /// Which.
    pub pick: Pick,
    /// Out of all there are and some there are not; else of those that may be moved so.
    pub blind: bool,
}

/// What is done to steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// They are tried again.
    Retry,
    /// They are declared done.
    Resolve,
    /// They are not to run.
    Skip,
    /// They are stopped.
    Cancel,
    /// They have waited too long.
    TimeOut,
}

/// Cases.
pub fn cases() -> impl Strategy<Value = Case> {
    let dags = prop::collection::vec(dags(), 1..3);
    let tasks = prop::collection::vec(any::<Pick>(), 1..4);
    let bypassed = prop_oneof![3 => Just(0..1usize), 1 => Just(1..4)]
        .prop_flat_map(|n| prop::collection::vec(any::<Pick>(), n));
    let first = prop::collection::vec(created(bypassed), 1..4);
    let operations = prop::collection::vec(operations(), 2..60);
    let after = prop::collection::vec(people(), 0..4);
    (dags, tasks, first, operations, after).prop_map(
        |(dags, tasks, first, mut operations, after)| {
            operations.insert(0, Operation::Create(first));
            Case { dags, tasks, operations, after }
        },
    )
}

fn created(bypassed: impl Strategy<Value = Vec<Pick>>) -> impl Strategy<Value = Created> {
    let priority = prop::option::weighted(0.3, priorities());
    let fact = prop::option::weighted(0.2, (0..4u8, 0..2u8));
    (any::<Pick>(), bypassed, priority, prop::option::weighted(0.4, known()), fact).prop_map(
        |(task, bypassed, priority, known, fact)| Created(task, bypassed, priority, known, fact),
    )
}

fn known() -> impl Strategy<Value = Known> {
    let key = prop_oneof![3 => Just(0), 1 => Just(1)];
    let window = prop::sample::select(vec![None, Some(0), Some(0), Some(500), Some(3000)]);
    (key, window).prop_map(|(key, window)| Known { key, window })
}

fn operations() -> impl Strategy<Value = Operation> {
    let pick = any::<Pick>;
    let created = created(prop::collection::vec(pick(), 0..3));
    let slots = prop::collection::vec(0..5u8, 1..7);
    let first = prop_oneof![1 => Just(0), 1 => pick()];
    prop_oneof![
        6 => prop::collection::vec(created, 1..3).prop_map(Operation::Create),
        20 => (pick(), slots, prop::option::weighted(0.2, pick()), first)
            .prop_map(|(node, slots, from, first)| Operation::Claim { node, slots, from, first }),
        30 => (pick(), prop::collection::vec(reports(), 1..7))
            .prop_map(|(node, reports)| Operation::Report { node, reports }),
        4 => (pick(), prop::collection::vec(endings(), 1..3))
            .prop_map(|(session, endings)| Operation::Lose { session, endings }),
        6 => (pick(), 0..3u8, prop::collection::vec(held(), 1..4))
            .prop_map(|(node, session, held)| Operation::Adopt { node, session, held }),
        5 => (0..4000u16).prop_map(Operation::Advance),
        6 => Just(Operation::AdvanceToTimer),
        10 => (1..20u8).prop_map(Operation::Release),
        46 => people(),
        6 => Just(Operation::Grant),
        2 => Just(Operation::Start),
        2 => pick().prop_map(|node| Operation::Extend { node }),
        2 => pick().prop_map(|node| Operation::Retire { node }),
        1 => (pick(), any::<u8>()).prop_map(|(node, held)| Operation::Renew { node, held }),
        2 => (pick(), prop::bool::weighted(0.3))
            .prop_map(|(node, declare)| Operation::TakeOver { node, declare }),
        4 => (pick(), endings(), any::<bool>())
            .prop_map(|(node, ending, forget)| Operation::Walk { node, ending, forget }),
    ]
}

/// What people do.
fn people() -> impl Strategy<Value = Operation> {
    let picks = || prop::collection::vec(any::<Pick>(), 1..3);
    let more = || prop::option::weighted(0.3, 1..4u8);
    prop_oneof![
        12 => (moves(), prop::collection::vec(aims(), 1..4), more())
            .prop_map(|(to, steps, more)| Operation::Move { to, steps, more }),
        2 => (picks(), prop::bool::weighted(0.5))
            .prop_map(|(tasks, overriding)| Operation::Cancel { tasks, overriding }),
        4 => (picks(), more()).prop_map(|(tasks, more)| Operation::Retry { tasks, more }),
        5 => (0..3u8, prop::bool::weighted(0.6), any::<Pick>(), prop::option::of(aims()), more())
            .prop_map(|(request, again, task, step, more)| {
                Operation::RetryOnce { request, again, task, step, more }
            }),
        2 => picks().prop_map(|tasks| Operation::Resolve { tasks }),
        5 => (picks(), any::<bool>()).prop_map(|(tasks, paused)| Operation::Pause { tasks, paused }),
        4 => (any::<Pick>(), prop::option::weighted(0.9, priorities()))
            .prop_map(|(task, priority)| Operation::Priority { task, priority }),
        3 => (any::<Pick>(), 0..4u8, prop::bool::weighted(0.7), 0..2u8)
            .prop_map(|(task, fact, kept, text)| Operation::Annotate { task, fact, kept, text }),
        2 => (prop::option::weighted(0.3, any::<Pick>()), 0..4u8, 0..4u8, 1..5u8, 1..4u8).prop_map(
            |(after, age, error, scan, most)| Operation::Remove { after, age, error, scan, most }),
        1 => (prop::collection::vec((any::<Pick>(), seen()), 1..3), any::<bool>())
            .prop_map(|(tasks, in_error)| Operation::RemoveNamed { tasks, in_error }),
        2 => (aims(), 0..6u8).prop_map(|(step, most)| Operation::Attempts { step, most }),
        3 => (any::<Pick>(), prop::bool::weighted(0.3), prop::bool::weighted(0.45))
            .prop_map(|(plan, all, paused)| Operation::PausePlan { plan, all, paused }),
    ]
}

fn seen() -> impl Strategy<Value = Seen> {
    prop::sample::select(vec![Seen::Never, Seen::Now, Seen::InAnotherState, Seen::WithAnotherEnd])
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => Just(Move::Retry),
        2 => Just(Move::Resolve),
        1 => Just(Move::Skip),
        2 => Just(Move::Cancel),
        2 => Just(Move::TimeOut),
    ]
}

fn endings() -> impl Strategy<Value = Ending> {
    prop_oneof![
        10 => Just(Ending::Complete),
        3 => Just(Ending::Fail(None)),
        3 => prop_oneof![1 => Just(0), 2 => 1..6000u16].prop_map(|ms| Ending::Fail(Some(ms))),
        2 => Just(Ending::HandBack),
    ]
}

fn reports() -> impl Strategy<Value = Report> {
    let slots = prop_oneof![1 => Just(0), 2 => any::<u8>()];
    let again = prop::option::weighted(0.15, endings());
    (held(), endings(), slots, again).prop_map(|(held, ending, slots, again)| Report {
        held,
        ending,
        slots,
        again,
    })
}

fn held() -> impl Strategy<Value = Held> {
    (any::<Pick>(), prop::bool::weighted(0.15), prop::bool::weighted(0.06))
        .prop_map(|(pick, late, foreign)| Held { pick, late, foreign })
}

fn aims() -> impl Strategy<Value = Aim> {
    (any::<Pick>(), prop::bool::weighted(0.2)).prop_map(|(pick, blind)| Aim { pick, blind })
}
