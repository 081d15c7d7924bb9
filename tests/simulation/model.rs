//! What the verbs are to do, said once more, as small as it can be: no counter is kept here, every one is
//! counted anew; and no move is known here, every one is an edge of the catalog.
//!
//! A verb is a method: it changes the model, collects the events, and answers what the verb is to answer.
//! What the database is free to choose (tokens, which of several slots) is told to the model after.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use stepwell_proto::{
    catalog::{self, EventMessage, EventType},
    v1::{Entity, State, StepUpdated, TaskAnnotated, TaskPaused, TaskResumed, TaskUpdated},
};

use super::{
    dag::{Name, Plan, QUEUES, queue_number},
    operation::Known,
};

/// Milliseconds since the case began.
pub type Ms = i64;
/// Most facts of a task, here: few, so that there is no room for one now and then.
pub const FACTS_MAX: usize = 2;

/// The node is retired: nothing is done (SW001).
#[derive(Debug, PartialEq, Eq)]
pub struct Retired;

/// A step: its task and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub task: usize,
    pub no: usize,
}

#[derive(Clone, Debug)]
pub struct Task {
    pub plan: usize,
    pub priority: u8,
    pub state: State,
    pub created_at: Ms,
    pub started_at: Option<Ms>,
    pub finished_at: Option<Ms>,
    pub paused: bool,
    /// It waits for its concurrency key.
    pub held: bool,
    pub deadline: Option<Ms>,
    /// What is kept with it: texts by name.
    pub facts: BTreeMap<u8, u8>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub state: State,
    pub attempt: i32,
    pub max_attempts: i32,
    /// Where it waits, or waited last.
    pub queue: usize,
    pub not_before: Option<Ms>,
    pub leased_at: Option<Ms>,
    pub lease: Option<Lease>,
    /// The last settled lease: its token and how it ended.
    pub last: Option<(i64, Kind)>,
    pub result: Option<String>,
    pub last_error: Option<String>,
    /// Its total time-out.
    pub due: Option<Ms>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub token: i64,
    pub node: usize,
    pub session: i64,
}

/// How a lease ended, as the step remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Complete = 1,
    Fail = 2,
    HandBack = 3,
    /// Without its executor: never equal to a report.
    Swept = 9,
}

/// A report, or one lease of a sweep.
#[derive(Clone, Debug)]
pub struct Settle {
    pub id: Id,
    pub token: i64,
    pub kind: Kind,
    pub wait: Option<Ms>,
    pub text: String,
    /// For each child the session of a slot for it; empty: there are none.
    pub slots: Vec<Option<i64>>,
}

/// Whose leases are ended, if it is not their executors that report.
#[derive(Clone, Debug)]
pub enum Sweep {
    Session(i64),
    Node(usize),
}

/// A step that waits for a slot. Places are numbered by the calls that made steps ready.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub queue: usize,
    pub place: usize,
    pub id: Id,
    pub attempt: i32,
}

/// A step with nothing to wait for that its task has no room for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parked {
    pub id: Id,
    pub attempt: i32,
}

/// A step that is to stand in a queue, at once or later.
#[derive(Clone, Debug)]
struct Waiter {
    id: Id,
    attempt: i32,
    due: Option<Ms>,
}

/// A clock that runs; one of a task has its first step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    pub due: Ms,
    pub id: Id,
    pub attempt: i32,
    pub clock: Clock,
}

/// What happens when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clock {
    /// The step is ready.
    Ready = 0,
    /// Nobody took the step.
    Queue = 1,
    /// The step took too long with all its attempts.
    Total = 2,
    /// The task took too long.
    Deadline = 3,
}

/// A task that has a concurrency key, or waits for it. A key is its plan's number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    pub key: usize,
    pub task: usize,
    pub granted: bool,
}

/// A node that is to be told that a lease is void.
#[derive(Clone, Debug)]
pub struct Signal {
    pub node: usize,
    pub session: i64,
    pub id: Id,
    pub token: i64,
    pub attempt: i32,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub lease_until: Ms,
    pub retired_at: Option<Ms>,
    pub taken_by: Option<usize>,
    /// Its leases are walked, its row is gone.
    pub gone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub task: usize,
    pub no: Option<usize>,
    pub kind: u32,
    pub from: Option<State>,
    pub to: State,
    pub attempt: Option<i32>,
    pub session: Option<i64>,
    pub mark: Option<Ms>,
    /// Steps it released; for a task in error those in error.
    pub names: Vec<usize>,
}

/// A lease, as the verbs answer it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leased {
    pub id: Id,
    /// The database's choice; 0 in what the model answers.
    pub token: i64,
    pub attempt: i32,
    pub max_attempts: i32,
    pub queue: usize,
    pub session: i64,
}

/// What settling answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub accepted: Vec<bool>,
    pub ready: usize,
    pub leases: Vec<Leased>,
}

/// What moving steps answers: for each the state it and its task were in, whether it was moved, whether
/// it waits behind a cancelled one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub steps: Vec<(Option<State>, Option<State>, bool, bool)>,
    pub ready: usize,
    pub told: usize,
}

/// What is asked under the id of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub task: usize,
    /// One step; none: the task.
    pub no: Option<usize>,
    pub more: Option<i32>,
}

/// What a request is answered that is done once: whether it was done before (none: now), what it was answered then
/// or now (none: another has its id), and how many steps became ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once<T> {
    pub same: Option<bool>,
    pub answer: Option<T>,
    pub ready: usize,
}

/// States of a task, and how many of its steps are tried again.
pub type OfTask = (Option<State>, usize);
/// The states of a step and its task, whether it was moved, and whether it waits behind a cancelled one.
pub type OfStep = (Option<State>, Option<State>, bool, bool);

/// Requests that are remembered, by their ids.
type Kept<T> = BTreeMap<u8, (Ms, Asked, T)>;

/// For so long.
const KEPT: Ms = 48 * 3600 * 1000;

/// What timers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub taken: usize,
    /// In how long the next one is due.
    pub next: Option<Ms>,
    /// Steps that ran out of time.
    pub late: usize,
    pub told: usize,
}

/// What changing a step answers: the state it and its task were in, the attempts it has made, and whether it
/// was changed.
pub type Changed = (Option<State>, Option<State>, Option<i32>, bool);

/// A task to create.
#[derive(Clone, Debug)]
pub struct New {
    pub task: usize,
    pub plan: usize,
    pub bypassed: Vec<usize>,
    pub priority: Option<u8>,
    pub known: Option<Known>,
    /// Its name and its text.
    pub fact: Option<(u8, u8)>,
}

/// What creating tasks answers: those that are new, how many queues are, and for each the one that is there in its
/// place, if another is.
pub type Made = (Vec<usize>, usize, Vec<Option<usize>>);

/// A task that is to be removed, and the state and the end that it was seen with.
pub type Doomed = (usize, Option<State>, Option<Ms>);

/// What became of a task that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Removed = 1,
    Missing = 2,
    Left = 3,
}

/// What must have been met in all cases together.
pub const SIGHTS: [&str; 19] = [
    A_KEY_THAT_A_TASK_HAS,
    A_KEY_OF_TWO_REQUESTS,
    A_KEY_OF_AN_OLD_TASK,
    A_KEY_OF_ONE_THAT_IS_THERE,
    A_ROW_OF_A_REMOVED_TASK,
    A_CLOCK_OF_A_REMOVED_TASK,
    A_REPORT_OF_A_REMOVED_TASK,
    A_PRIORITY_OF_ITS_OWN,
    A_READY_STEP_CHANGES_OVER,
    A_PARKED_STEP_CHANGES_OVER,
    A_BACK_OFF_CHANGES_OVER,
    A_RULED_BACK_OFF_CHANGES_OVER,
    AN_ERROR_CHANGES_OVER,
    A_ROW_IN_THE_WRONG_QUEUE,
    A_RULED_ROW_IN_THE_WRONG_QUEUE,
    A_ROW_OF_A_PAUSED_PLAN,
    A_ROW_OF_A_PAUSED_NAMESPACE,
    A_CHILD_OF_A_PAUSED_PLAN,
    A_PAUSE_WITHIN_ANOTHER,
];
const A_KEY_THAT_A_TASK_HAS: &str = "a request finds the task that has its key";
const A_KEY_OF_TWO_REQUESTS: &str = "two requests of one call have one key";
const A_KEY_OF_AN_OLD_TASK: &str = "a key goes over, since its task is older than the window";
const A_KEY_OF_ONE_THAT_IS_THERE: &str = "a request is repeated, and another task has its key";
const A_ROW_OF_A_REMOVED_TASK: &str = "a claim comes to a row of a task that was removed";
const A_CLOCK_OF_A_REMOVED_TASK: &str = "a timer of a task that was removed is due";
const A_REPORT_OF_A_REMOVED_TASK: &str = "an executor reports on a task that was removed";
const A_PRIORITY_OF_ITS_OWN: &str = "a task has another priority than its plan";
const A_READY_STEP_CHANGES_OVER: &str = "a step is offered in the queue of another priority";
const A_PARKED_STEP_CHANGES_OVER: &str = "a step is parked when its priority changes";
const A_BACK_OFF_CHANGES_OVER: &str = "a step backs off when its priority changes";
const A_RULED_BACK_OFF_CHANGES_OVER: &str =
    "a step of a ruled task backs off when its priority changes";
const AN_ERROR_CHANGES_OVER: &str = "a step is in error when its priority changes";
const A_ROW_IN_THE_WRONG_QUEUE: &str = "a row does not hold, only because it is in the wrong queue";
const A_RULED_ROW_IN_THE_WRONG_QUEUE: &str =
    "an offer of a ruled task does not hold, only for that";
const A_ROW_OF_A_PAUSED_PLAN: &str = "a claim passes over what is paused";
const A_ROW_OF_A_PAUSED_NAMESPACE: &str =
    "a claim passes over what its namespace's pause alone covers";
const A_CHILD_OF_A_PAUSED_PLAN: &str = "a child gets no slot, only because its plan is paused";
const A_PAUSE_WITHIN_ANOTHER: &str = "a pause ends and its plan is paused still";

/// As many as there are.
const ALL: usize = usize::MAX / 2;

#[derive(Clone)]
pub struct Model {
    pub plans: Rc<Vec<Plan>>,
    /// By the case's numbers; none: it is not created, or was removed.
    pub tasks: Vec<Option<Task>>,
    /// Those that were removed.
    pub removed: BTreeSet<usize>,
    /// The last task of each key that requests are known by.
    pub identities: BTreeMap<u8, usize>,
    pub ready: Vec<Row>,
    pub parked: Vec<Parked>,
    pub timers: Vec<Timer>,
    pub signals: Vec<Signal>,
    pub nodes: Vec<Node>,
    /// Of the concurrency keys, those who have them and those who wait.
    pub claimants: Vec<Claimant>,
    /// Keys to look at.
    pub wake: BTreeSet<usize>,
    /// Queues that were made.
    pub queues: BTreeSet<usize>,
    /// What is paused: a definition, or (with no number) all of a namespace.
    pub pauses: BTreeSet<(u8, Option<u8>)>,
    /// What was met, of `SIGHTS`.
    pub met: BTreeSet<&'static str>,
    pub now: Ms,
    asked_of_tasks: Kept<OfTask>,
    asked_of_steps: Kept<OfStep>,
    /// What the current call appends.
    pub events: Vec<Event>,
    /// What the current call makes ready, and when.
    waiting: Vec<Waiter>,
    places: usize,
}

impl Model {
    pub fn new(plans: Vec<Plan>, tasks: usize) -> Self {
        let queues = plans.iter().enumerate().flat_map(|(no, plan)| {
            let number = |queue| queue_number(plans.len(), no, queue, plan.priority);
            (0..QUEUES).map(number).collect::<Vec<_>>()
        });
        Self {
            queues: queues.collect(),
            pauses: BTreeSet::new(),
            met: BTreeSet::new(),
            plans: Rc::new(plans),
            tasks: vec![None; tasks],
            removed: BTreeSet::new(),
            identities: BTreeMap::new(),
            ready: Vec::new(),
            parked: Vec::new(),
            timers: Vec::new(),
            signals: Vec::new(),
            nodes: Vec::new(),
            claimants: Vec::new(),
            wake: BTreeSet::new(),
            now: 0,
            asked_of_tasks: BTreeMap::new(),
            asked_of_steps: BTreeMap::new(),
            events: Vec::new(),
            waiting: Vec::new(),
            places: 0,
        }
    }

    // ── what is there ───────────────────────────────────────────────────────────────────────────

    pub fn task(&self, task: usize) -> &Task {
        self.tasks[task].as_ref().expect("it is created")
    }

    fn task_mut(&mut self, task: usize) -> &mut Task {
        self.tasks[task].as_mut().expect("it is created")
    }

    pub fn step(&self, id: Id) -> &Step {
        &self.task(id.task).steps[id.no]
    }

    fn step_mut(&mut self, id: Id) -> &mut Step {
        &mut self.task_mut(id.task).steps[id.no]
    }

    /// All steps there are.
    pub fn steps(&self) -> Vec<Id> {
        let created = self.tasks.iter().enumerate().filter_map(|(i, t)| Some((i, t.as_ref()?)));
        created.flat_map(|(task, of)| (0..of.steps.len()).map(move |no| Id { task, no })).collect()
    }

    pub fn leases(&self) -> Vec<(Id, Lease)> {
        self.steps().into_iter().filter_map(|id| Some((id, self.step(id).lease?))).collect()
    }

    /// Tasks that are pending or in progress.
    pub fn open(&self) -> Vec<usize> {
        let created = (0..self.tasks.len()).filter(|task| self.tasks[*task].is_some());
        created.filter(|task| self.is_open(*task)).collect()
    }

    pub fn is_open(&self, task: usize) -> bool {
        let is_open = |of: &Task| matches!(of.state, State::Pending | State::InProgress);
        self.tasks[task].as_ref().is_some_and(is_open)
    }

    /// There is such a step.
    fn is_there(&self, id: Id) -> bool {
        self.tasks[id.task].as_ref().is_some_and(|task| id.no < task.steps.len())
    }

    fn plan(&self, id: Id) -> &super::dag::Planned {
        &self.plans[self.task(id.task).plan].steps[id.no]
    }

    /// Where a step waits, or waited last.
    pub fn queue(&self, id: Id) -> usize {
        self.step(id).queue
    }

    fn plan_of_queue(&self, queue: usize) -> usize {
        queue / QUEUES % self.plans.len()
    }

    /// True when a pause covers the plan.
    pub fn is_stopped(&self, plan: usize) -> bool {
        let (namespace, name) = self.plans[plan].name;
        [None, Some(name)].into_iter().any(|name| self.pauses.contains(&(namespace, name)))
    }

    fn is_done(&self, id: Id) -> bool {
        matches!(self.step(id).state, State::Complete | State::ResolvedManually)
    }

    /// Parents that are neither complete nor resolved.
    pub fn waiting_on(&self, id: Id) -> usize {
        let parents = &self.plan(id).parents;
        parents.iter().filter(|no| !self.is_done(Id { no: **no, ..id })).count()
    }

    fn count(&self, task: usize, of: impl Fn(Id) -> bool) -> usize {
        (0..self.task(task).steps.len()).filter(|no| of(Id { task, no: *no })).count()
    }

    fn is_ready(&self, id: Id) -> bool {
        self.step(id).state == State::Pending && self.waiting_on(id) == 0
    }

    /// Steps of a task that are in progress, or pending with nothing to wait for.
    pub fn live(&self, task: usize) -> usize {
        self.count(task, |id| self.step(id).state == State::InProgress || self.is_ready(id))
    }

    pub fn in_state(&self, task: usize, state: State) -> usize {
        self.count(task, |id| self.step(id).state == state)
    }

    fn rules(&self, task: usize) -> super::dag::Rules {
        self.plans[self.task(task).plan].rules
    }

    pub fn is_ruled(&self, task: usize) -> bool {
        self.task(task).paused || self.plans[self.task(task).plan].is_ruled()
    }

    /// True when not all of its steps may run, whatever slots there are.
    fn is_narrow(&self, task: usize) -> bool {
        let of = self.task(task);
        of.paused || of.held || self.rules(task).max_parallel > 0
    }

    /// How many more of its steps may run.
    fn room(&self, task: usize) -> usize {
        let (of, most) = (self.task(task), usize::from(self.rules(task).max_parallel));
        match most {
            _ if of.paused || of.held => 0,
            0 => ALL,
            _ => most.saturating_sub(self.in_state(task, State::InProgress)),
        }
    }

    /// The ruled ones of their tasks.
    fn ruled(&self, ids: impl Iterator<Item = Id>) -> BTreeSet<usize> {
        let ruled = |task: &usize| self.tasks[*task].is_some() && self.is_ruled(*task);
        ids.map(|id| id.task).filter(ruled).collect()
    }

    /// True when it can never run: what it waits for is cancelled, or can never run itself.
    fn is_behind_cancelled(&self, id: Id) -> bool {
        let mut behind = vec![id];
        for at in 0.. {
            let Some(last) = behind.get(at).copied() else { return false };
            for no in &self.plan(last).parents {
                let parent = Id { no: *no, ..id };
                if self.step(parent).state == State::Cancelled {
                    return true;
                }
                if !self.is_done(parent) && !behind.contains(&parent) {
                    behind.push(parent);
                }
            }
        }
        false
    }

    // ── the parts of every verb ─────────────────────────────────────────────────────────────────

    /// Moves a step along the one edge there is; its event may still be added to.
    fn step_to(&mut self, id: Id, to: State) -> &mut Event {
        let from = self.step(id).state;
        let event = edge(Entity::Step, Some(from), to);
        self.step_mut(id).state = to;
        let attempt = Some(self.step(id).attempt);
        self.push(id.task, Some(id.no), event.number, Some(from), to, attempt)
    }

    /// Moves a task on its shortest way through the catalog.
    fn task_to(&mut self, task: usize, to: State) {
        for (from, event, to) in way(self.task(task).state, to) {
            let (now, failed) = (self.now, self.failed(task));
            let of = self.task_mut(task);
            of.state = to;
            of.finished_at = to.is_final().then_some(of.finished_at.unwrap_or(now));
            let started_at = of.started_at;
            let event = self.push(task, None, event, Some(from), to, None);
            if matches!(to, State::Complete | State::Error) {
                event.mark = started_at;
            }
            if to == State::Error {
                event.names = failed;
            }
        }
    }

    fn failed(&self, task: usize) -> Vec<usize> {
        let steps = self.task(task).steps.iter().enumerate();
        steps.filter(|(_, step)| step.state == State::Error).map(|(no, _)| no).take(100).collect()
    }

    fn push(
        &mut self,
        task: usize,
        no: Option<usize>,
        kind: u32,
        from: Option<State>,
        to: State,
        attempt: Option<i32>,
    ) -> &mut Event {
        let (session, mark, names) = (None, None, Vec::new());
        self.events.push(Event { task, no, kind, from, to, attempt, session, mark, names });
        self.events.last_mut().expect("it was pushed")
    }

    /// Children of these steps that have nothing left to wait for, each with the parents of it that are
    /// among them. The last of those says so in its event.
    fn released(&mut self, done: &[Id]) -> Vec<(Id, Vec<Id>)> {
        let children = done.iter().flat_map(|id| {
            self.plan(*id).children.iter().map(|no| Id { no: *no, ..*id }).collect::<Vec<_>>()
        });
        let children: BTreeSet<Id> = children.filter(|id| self.is_ready(*id)).collect();
        let mut released = Vec::new();
        for child in children {
            let parents = &self.plan(child).parents;
            let parents: Vec<Id> = parents
                .iter()
                .map(|no| Id { no: *no, ..child })
                .filter(|p| done.contains(p))
                .collect();
            let last = parents.last().expect("it is a child of one").no;
            let of_last = |e: &&mut Event| {
                (e.task, e.no) == (child.task, Some(last))
                    && matches!(e.to, State::Complete | State::ResolvedManually)
            };
            self.events.iter_mut().find(of_last).expect("it is done").names.push(child.no);
            released.push((child, parents));
        }
        released
    }

    fn lease(&mut self, id: Id, node: usize, session: i64) -> Leased {
        let now = self.now;
        let step = self.step_mut(id);
        step.attempt += 1;
        step.leased_at = Some(now);
        step.lease = Some(Lease { token: 0, node, session });
        self.step_to(id, State::InProgress).session = Some(session);
        self.leased(id)
    }

    fn leased(&self, id: Id) -> Leased {
        let (step, queue) = (self.step(id), self.queue(id));
        let session = step.lease.map_or(0, |lease| lease.session);
        let (attempt, max_attempts) = (step.attempt, step.max_attempts);
        Leased { id, token: 0, attempt, max_attempts, queue, session }
    }

    /// Ends, keeps or re-opens every task by what its steps are.
    fn conclude(&mut self) {
        for task in 0..self.tasks.len() {
            let Some(Task { state, .. }) = self.tasks[task] else { continue };
            if !matches!(state, State::Pending | State::InProgress | State::Error) {
                continue;
            }
            let to = if self.live(task) > 0 {
                if state == State::Error { State::Pending } else { state }
            } else if self.in_state(task, State::Error) > 0 {
                State::Error
            } else if self.in_state(task, State::Cancelled) > 0 {
                for no in 0..self.task(task).steps.len() {
                    if self.step(Id { task, no }).state == State::Pending {
                        self.step_to(Id { task, no }, State::Cancelled);
                    }
                }
                State::Cancelled
            } else {
                State::Complete
            };
            self.task_to(task, to);
            if (state, to) == (State::Error, State::Pending) {
                self.open_again(task);
            }
        }
    }

    /// A task that is open again has its whole time again, and waits for its key again.
    fn open_again(&mut self, task: usize) {
        self.start_deadline(task);
        if self.rules(task).room.is_some() {
            self.stand_in_line(task);
        }
    }

    fn start_deadline(&mut self, task: usize) {
        let due = self.rules(task).deadline.map(|ms| self.now + i64::from(ms));
        self.task_mut(task).deadline = due;
        if let Some(due) = due {
            let (id, attempt, clock) = (Id { task, no: 0 }, 0, Clock::Deadline);
            self.timers.push(Timer { due, id, attempt, clock });
        }
    }

    fn stand_in_line(&mut self, task: usize) {
        let key = self.task(task).plan;
        self.task_mut(task).held = true;
        self.claimants.retain(|claimant| claimant.task != task);
        self.claimants.push(Claimant { key, task, granted: false });
        self.claimants.sort();
        self.wake.insert(key);
    }

    /// Tasks that ended give up their keys, and nothing of them stays parked.
    fn give_up(&mut self, tasks: &BTreeSet<usize>) {
        let ended = |task: &usize| self.task(*task).finished_at.is_some();
        let ended: BTreeSet<usize> = tasks.iter().copied().filter(ended).collect();
        self.parked.retain(|parked| !ended.contains(&parked.id.task));
        for task in tasks {
            if self.rules(*task).room.is_some() && self.task(*task).finished_at.is_some() {
                self.wake.insert(self.task(*task).plan);
            }
        }
    }

    fn waiter(&self, id: Id, due: Option<Ms>) -> Waiter {
        Waiter { id, attempt: self.step(id).attempt, due: due.filter(|due| *due > self.now) }
    }

    /// Starts the clocks of steps of these tasks that became ready or were leased.
    fn start_clocks(&mut self, tasks: &BTreeSet<usize>, wait: &[Waiter], leased: &[Id]) {
        let now = self.now;
        let of = |id: &Id| tasks.contains(&id.task);
        for waiter in wait.iter().filter(|waiter| of(&waiter.id) && waiter.due.is_none()) {
            if let Some(ms) = self.plan(waiter.id).queue_timeout {
                let Waiter { id, attempt, .. } = *waiter;
                self.timers.push(Timer { due: now + ms, id, attempt, clock: Clock::Queue });
            }
        }
        for id in wait.iter().map(|waiter| waiter.id).chain(leased.iter().copied()) {
            let Some(ms) = self.plan(id).total_timeout.filter(|_| of(&id)) else { continue };
            let step = self.step_mut(id);
            if step.due.is_none() {
                step.due = Some(now + ms);
                let attempt = step.attempt;
                self.timers.push(Timer { due: now + ms, id, attempt, clock: Clock::Total });
            }
        }
    }

    /// Parks what narrow tasks have no room for. Of each of their queues as many are let out as there is
    /// room for, but no more than `more` and as many as came: those with the lowest numbers.
    fn gate(
        &mut self,
        tasks: &BTreeSet<usize>,
        more: impl Fn(usize) -> usize,
        wait: Vec<Waiter>,
    ) -> Vec<Waiter> {
        let parks = |task: usize| self.parked.iter().any(|parked| parked.id.task == task);
        let gated = tasks.iter().copied().filter(|task| self.is_narrow(*task) || parks(*task));
        let gated: BTreeSet<usize> = gated.collect();
        let place = |model: &Self, id: Id| (id.task, model.queue(id));
        let came: Vec<_> = wait.iter().map(|waiter| place(self, waiter.id)).collect();
        let (stay, mut out): (Vec<_>, Vec<_>) = wait
            .into_iter()
            .partition(|waiter| gated.contains(&waiter.id.task) && waiter.due.is_none());
        self.parked
            .extend(stay.into_iter().map(|Waiter { id, attempt, .. }| Parked { id, attempt }));
        self.parked.sort();
        for task in gated {
            for queue in self.queues.clone() {
                let came = came.iter().filter(|of| **of == (task, queue)).count();
                let mut left = self.room(task).min(more(task) + came);
                let (mut stay, mut parked) = (Vec::new(), std::mem::take(&mut self.parked));
                for parked in parked.drain(..) {
                    if left > 0 && place(self, parked.id) == (task, queue) {
                        left -= 1;
                        let Parked { id, attempt } = parked;
                        out.push(Waiter { id, attempt, due: None });
                    } else {
                        stay.push(parked);
                    }
                }
                self.parked = stay;
            }
        }
        out
    }

    /// Steps of these ruled tasks ended or were leased: each that ended lets out one of each queue.
    fn count_running(
        &mut self,
        tasks: &BTreeSet<usize>,
        ended: &[Id],
        wait: Vec<Waiter>,
    ) -> Vec<Waiter> {
        self.give_up(tasks);
        let ended = |task| ended.iter().filter(|id| id.task == task).count();
        self.gate(tasks, ended, wait)
    }

    fn fence(&self, node: usize) -> Result<(), Retired> {
        let node = &self.nodes[node];
        if node.gone || node.retired_at.is_some() { Err(Retired) } else { Ok(()) }
    }

    /// What waits takes its place. Answers how many steps do.
    fn append(&mut self) -> usize {
        self.places += 1;
        let waiting = std::mem::take(&mut self.waiting);
        for Waiter { id, attempt, due } in &waiting {
            let (id, attempt) = (*id, *attempt);
            match due {
                Some(due) => {
                    self.timers.push(Timer { due: *due, id, attempt, clock: Clock::Ready });
                }
                None => {
                    let (queue, place) = (self.queue(id), self.places);
                    self.ready.push(Row { queue, place, id, attempt });
                }
            }
        }
        self.ready.sort();
        self.timers.sort();
        waiting.len()
    }

    fn holds(&self, id: Id, attempt: i32) -> bool {
        if !self.is_there(id) {
            return false;
        }
        let step = self.step(id);
        self.is_ready(id)
            && step.attempt == attempt
            && step.not_before.is_none_or(|due| due <= self.now)
    }

    /// The tokens that the database chose.
    pub fn learn(&mut self, leases: &[Leased]) {
        for leased in leases {
            if let Some(lease) = &mut self.step_mut(leased.id).lease {
                lease.token = leased.token;
            }
        }
    }

    // ── the verbs ───────────────────────────────────────────────────────────────────────────────

    /// The queues of a plan at a priority are there. Answers how many were not.
    fn add_queues(&mut self, plan: usize, priority: u8) -> usize {
        let queues = (0..QUEUES).map(|no| queue_number(self.plans.len(), plan, no, priority));
        queues.filter(|queue| self.queues.insert(*queue)).count()
    }

    /// Of those that are known by one key only the first is made, and none if a task has the key that was made within
    /// the window. Who repeats a request is known by its id.
    pub fn create_known(&mut self, tasks: &[New]) -> Made {
        let (mut places, mut made) = (Vec::new(), Vec::new());
        let is_known = tasks.iter().any(|new| new.known.is_some());
        let mut first = BTreeMap::new();
        for new in tasks {
            let mut place = None;
            if let Some(Known { key, window }) = new.known {
                let of_key = self.identities.get(&key).copied();
                let is_young = |task: &usize| {
                    window.is_none_or(|ms| self.task(*task).created_at > self.now - i64::from(ms))
                };
                let young = of_key.filter(is_young);
                if self.tasks[new.task].is_some() {
                    let other = of_key.is_some_and(|task| task != new.task);
                    self.met.extend(other.then_some(A_KEY_OF_ONE_THAT_IS_THERE));
                } else {
                    place = young.or(first.get(&key).copied());
                    self.met.extend(match (of_key, place) {
                        _ if young.is_some() => Some(A_KEY_THAT_A_TASK_HAS),
                        (_, Some(_)) => Some(A_KEY_OF_TWO_REQUESTS),
                        (Some(_), None) => Some(A_KEY_OF_AN_OLD_TASK),
                        (None, None) => None,
                    });
                    if place.is_none() {
                        first.insert(key, new.task);
                    }
                }
            }
            // Who repeats a request is not tried where keys are looked at.
            if place.is_none() && !(is_known && self.tasks[new.task].is_some()) {
                made.push(new.clone());
            }
            places.push(place);
        }
        let (new, queues) = self.create(&made);
        self.identities.extend(first);
        (new, queues, places)
    }

    /// Answers the tasks that are new, and how many queues.
    fn create(&mut self, tasks: &[New]) -> (Vec<usize>, usize) {
        let mut new = Vec::new();
        let mut queues = 0;
        let mut bypassed = Vec::new();
        for New { task, plan, bypassed: skipped, priority, fact, .. } in tasks {
            queues += priority.map_or(0, |priority| self.add_queues(*plan, priority));
            if self.tasks[*task].is_some() {
                continue;
            }
            let plans = Rc::clone(&self.plans);
            let usual = plans[*plan].priority;
            let priority = priority.unwrap_or(usual);
            if priority != usual {
                self.met.insert(A_PRIORITY_OF_ITS_OWN);
            }
            let steps = plans[*plan].steps.iter().map(|planned| Step {
                queue: queue_number(plans.len(), *plan, planned.queue, priority),
                state: State::Pending,
                attempt: 0,
                max_attempts: planned.max_attempts,
                not_before: None,
                leased_at: None,
                lease: None,
                last: None,
                result: None,
                last_error: None,
                due: None,
            });
            let state = State::Pending;
            let (started_at, finished_at, deadline) = (None, None, None);
            let (paused, held, steps) = (false, false, steps.collect());
            self.tasks[*task] = Some(Task {
                plan: *plan,
                priority,
                state,
                created_at: self.now,
                started_at,
                finished_at,
                paused,
                held,
                deadline,
                facts: fact.iter().copied().collect(),
                steps,
            });
            self.open_again(*task);
            let event = edge(Entity::Task, None, state).number;
            self.push(*task, None, event, None, state, None);
            bypassed.extend(skipped.iter().map(|no| Id { task: *task, no: *no }));
            new.push(*task);
        }
        for id in &bypassed {
            self.resolve_step(*id, None);
        }
        let released: Vec<Id> = self.released(&bypassed).into_iter().map(|(id, _)| id).collect();
        self.conclude();
        // First what was bypassed, as by hand; then what waits for nothing anyway.
        let ruled = self.ruled(bypassed.iter().copied());
        let wait = released.iter().map(|id| self.waiter(*id, None)).collect::<Vec<_>>();
        self.start_clocks(&ruled, &wait, &[]);
        let mut wait = self.count_running(&ruled, &[], wait);
        let roots = self.steps().into_iter().filter(|id| {
            new.contains(&id.task) && self.is_ready(*id) && self.plan(*id).parents.is_empty()
        });
        wait.extend(roots.map(|id| self.waiter(id, None)).collect::<Vec<_>>());
        let ruled = new.iter().copied().filter(|task| self.is_ruled(*task)).collect();
        self.start_clocks(&ruled, &wait, &[]);
        self.waiting = self.gate(&ruled, |_| 0, wait);
        self.append();
        (new, queues)
    }

    fn resolve_step(&mut self, id: Id, result: Option<&str>) {
        self.step_to(id, State::ResolvedManually);
        self.step_mut(id).result = Some(result.unwrap_or("null").to_owned());
    }

    /// The places of the rows that are ready, ascending.
    pub fn places(&self) -> Vec<usize> {
        let places: BTreeSet<usize> = self.ready.iter().map(|row| row.place).collect();
        places.into_iter().collect()
    }

    /// Of each queue the oldest rows, from a place on, to the sessions. Places are counted among those
    /// there are. Answers where each stood, and how many steps became ready in exchange for others.
    pub fn claim(
        &mut self,
        node: usize,
        slots: &[(usize, usize, Vec<i64>)],
    ) -> Result<(Vec<(usize, Leased)>, usize), Retired> {
        let places = self.places();
        let nth = |place| places.partition_point(|before| *before < place);
        let mut rows: Vec<Row> = Vec::new();
        for (queue, from, sessions) in slots {
            let plan = self.plan_of_queue(*queue);
            if self.is_stopped(plan) {
                if self.ready.iter().any(|row| row.queue == *queue) {
                    self.met.insert(A_ROW_OF_A_PAUSED_PLAN);
                    let (namespace, name) = self.plans[plan].name;
                    if !self.pauses.contains(&(namespace, Some(name))) {
                        self.met.insert(A_ROW_OF_A_PAUSED_NAMESPACE);
                    }
                }
                continue;
            }
            let mut left = sessions.len();
            self.ready.retain(|row| {
                let taken = left > 0 && row.queue == *queue && nth(row.place) >= *from;
                if taken {
                    left -= 1;
                    rows.push(row.clone());
                }
                !taken
            });
        }
        rows.sort_by_key(|row| (row.place, row.id));
        let ruled = self.ruled(rows.iter().map(|row| row.id));
        let mut able: Vec<Row> = Vec::new();
        let mut stale = BTreeSet::new();
        for row in rows {
            let holds = self.is_open(row.id.task) && self.holds(row.id, row.attempt);
            if !self.is_there(row.id) {
                self.met.insert(A_ROW_OF_A_REMOVED_TASK);
            }
            if !holds || self.queue(row.id) != row.queue {
                if holds {
                    self.met.insert(if ruled.contains(&row.id.task) {
                        A_RULED_ROW_IN_THE_WRONG_QUEUE
                    } else {
                        A_ROW_IN_THE_WRONG_QUEUE
                    });
                }
                stale.insert((row.queue, row.id, row.attempt));
            } else if able.iter().all(|other| other.id != row.id) {
                // Two rows of one step are legitimate.
                able.push(row);
            }
        }
        for task in &ruled {
            let mut room = self.room(*task);
            able.retain(|row| {
                let beyond = row.id.task == *task && room == 0;
                if beyond {
                    self.parked.push(Parked { id: row.id, attempt: row.attempt });
                } else if row.id.task == *task {
                    room -= 1;
                }
                !beyond
            });
        }
        self.parked.sort();
        let stale = |task| stale.iter().filter(|(_, id, _)| id.task == task).count();
        self.waiting = self.gate(&ruled, stale, Vec::new());
        let mut leases = Vec::new();
        for (queue, _, sessions) in slots {
            let rows = able.iter().filter(|row| row.queue == *queue).zip(sessions);
            leases.extend(rows.map(|(row, session)| (nth(row.place), row.id, *session)));
        }
        leases.sort();
        let tasks: BTreeSet<usize> = leases.iter().map(|(_, id, _)| id.task).collect();
        for task in tasks {
            let now = self.now;
            if self.task(task).state == State::Pending {
                self.task_mut(task).started_at.get_or_insert(now);
                self.task_to(task, State::InProgress);
            }
        }
        let leases: Vec<_> = leases
            .into_iter()
            .map(|(place, id, session)| (place, self.lease(id, node, session)))
            .collect();
        if !leases.is_empty() {
            self.fence(node)?;
        }
        Ok((leases, self.append()))
    }

    /// `given`: the slots that the database chose, where one child was offered several.
    pub fn settle(
        &mut self,
        batch: &[Settle],
        node: Option<usize>,
        sweep: Option<&Sweep>,
        given: &[Leased],
    ) -> Result<Settled, Retired> {
        let kind_of = |item: &Settle| if sweep.is_some() { Kind::Swept } else { item.kind };
        let (mut done, mut offers, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let mut withheld = BTreeSet::new();
        let mut wait = Vec::new();
        let ruled = self.ruled(batch.iter().map(|item| item.id));
        for item in batch {
            let held = |lease: &Lease| {
                lease.token == item.token
                    && match sweep {
                        None => true,
                        Some(Sweep::Session(session)) => lease.session == *session,
                        Some(Sweep::Node(node)) => lease.node == *node,
                    }
            };
            if !self.is_there(item.id) {
                self.met.insert(A_REPORT_OF_A_REMOVED_TASK);
                continue;
            }
            let Some(_) = self.step(item.id).lease.filter(held) else { continue };
            ended.push(item.id);
            let (began, due) =
                (self.step(item.id).leased_at, item.wait.map(|wait| self.now + wait));
            let step = self.step_mut(item.id);
            step.lease = None;
            step.last = Some((item.token, kind_of(item)));
            let to = match item.kind {
                Kind::Complete => {
                    step.result = Some(item.text.clone());
                    done.push(item.id);
                    let children = self.plan(item.id).children.clone();
                    let offered = children.into_iter().zip(&item.slots);
                    let offered = offered
                        .filter_map(|(no, session)| Some((Id { no, ..item.id }, (*session)?)));
                    if self.is_narrow(item.id.task) {
                        // `claim` decides for them.
                    } else if self.is_stopped(self.task(item.id.task).plan) {
                        withheld.extend(offered.map(|(id, _)| id));
                    } else {
                        offers.extend(offered);
                    }
                    State::Complete
                }
                Kind::Fail => {
                    step.last_error = Some(item.text.clone());
                    step.not_before = due;
                    State::Error
                }
                Kind::HandBack | Kind::Swept => {
                    step.max_attempts += 1;
                    State::Pending
                }
            };
            self.step_to(item.id, to).mark = began;
            if item.kind == Kind::Fail && due.is_some() {
                self.step_to(item.id, State::Pending).mark = due;
            }
            if self.step(item.id).state == State::Pending {
                wait.push(self.waiter(item.id, due));
            }
        }
        let mut leases = Vec::new();
        for (child, _) in self.released(&done) {
            let offered: Vec<i64> =
                offers.iter().filter(|(id, _)| *id == child).map(|(_, session)| *session).collect();
            let chosen = given.iter().find(|leased| leased.id == child).map(|l| l.session);
            match chosen.filter(|session| offered.contains(session)).or(offered.first().copied()) {
                Some(session) => {
                    leases.push(self.lease(child, node.expect("slots are a node's"), session));
                }
                None => {
                    if withheld.contains(&child) {
                        self.met.insert(A_CHILD_OF_A_PAUSED_PLAN);
                    }
                    wait.push(self.waiter(child, None));
                }
            }
        }
        self.conclude();
        if !ended.is_empty() {
            let leased: Vec<Id> = leases.iter().map(|leased| leased.id).collect();
            self.start_clocks(&ruled, &wait, &leased);
            self.waiting = self.count_running(&ruled, &ended, wait);
        }
        if let Some(node) = node
            && !ended.is_empty()
        {
            self.fence(node)?;
        }
        let accepted = batch
            .iter()
            .map(|item| {
                self.is_there(item.id)
                    && self.step(item.id).last == Some((item.token, kind_of(item)))
            })
            .collect();
        Ok(Settled { accepted, ready: self.append(), leases })
    }

    /// Answers the leases that are still held, and for how long, by step.
    pub fn adopt(
        &mut self,
        node: usize,
        session: i64,
        held: &[(Id, i64)],
    ) -> Result<Vec<(Leased, Ms)>, Retired> {
        self.fence(node)?;
        let mut adopted = Vec::new();
        for (id, token) in
            held.iter().filter(|(id, _)| self.is_there(*id)).copied().collect::<Vec<_>>()
        {
            let (id, token) = (&id, &token);
            let leased_at = self.step(*id).leased_at;
            if let Some(lease) = &mut self.step_mut(*id).lease
                && lease.token == *token
            {
                (lease.node, lease.session) = (node, session);
                let age = self.now - leased_at.expect("it is leased");
                adopted.push((Leased { token: *token, ..self.leased(*id) }, age));
            }
        }
        adopted.sort();
        Ok(adopted)
    }

    /// At most so many timers.
    pub fn release(&mut self, max: usize) -> Due {
        let told = self.signals.len();
        let due = self.timers.iter().take(max).take_while(|timer| timer.due <= self.now).count();
        let timers: Vec<Timer> = self.timers.drain(..due).collect();
        if timers.iter().any(|timer| !self.is_there(timer.id)) {
            self.met.insert(A_CLOCK_OF_A_REMOVED_TASK);
        }
        let mut late = 0;
        for (clock, class) in [
            (Clock::Deadline, "DeadlineExceeded"),
            (Clock::Total, "TotalTimeout"),
            (Clock::Queue, "QueueTimeout"),
        ] {
            let mut out = BTreeSet::new();
            for timer in timers.iter().filter(|timer| timer.clock == clock) {
                out.extend(self.out_of_time(timer));
            }
            late += out.len();
            let out: Vec<Id> = out.into_iter().collect();
            self.moved(&out, State::Error, None, None, class);
            for id in out {
                let step = self.step_mut(id);
                step.last_error = Some(format!("{class}{}", step.max_attempts));
            }
        }
        let again = timers
            .iter()
            .filter(|timer| timer.clock == Clock::Ready && self.holds(timer.id, timer.attempt));
        let wait: Vec<Waiter> = again.map(|timer| self.waiter(timer.id, None)).collect();
        let ruled = self.ruled(timers.iter().map(|timer| timer.id));
        self.start_clocks(&ruled, &wait, &[]);
        let wait = self.gate(&ruled, |_| 0, wait);
        self.waiting.extend(wait);
        self.append();
        let next = self.timers.first().map(|timer| (timer.due - self.now).max(0));
        Due { taken: due, next, late, told: self.signals.len() - told }
    }

    /// The steps that a clock ends.
    fn out_of_time(&self, timer: &Timer) -> Vec<Id> {
        let task = timer.id.task;
        if !self.is_there(timer.id) {
            return Vec::new();
        }
        let unfinished = |id: &Id| {
            self.is_open(task) && matches!(self.step(*id).state, State::Pending | State::InProgress)
        };
        let is_over = |due: Option<Ms>| due.is_some_and(|due| due <= self.now);
        let late: Vec<Id> = match timer.clock {
            Clock::Deadline if is_over(self.task(task).deadline) => {
                (0..self.task(task).steps.len()).map(|no| Id { task, no }).collect()
            }
            Clock::Total if is_over(self.step(timer.id).due) => vec![timer.id],
            Clock::Queue if self.holds(timer.id, timer.attempt) => vec![timer.id],
            _ => Vec::new(),
        };
        late.into_iter().filter(unfinished).collect()
    }

    /// The least number that takes at least `max` timers, if so many are due, and tells none of those
    /// that are due at one time apart.
    pub fn whole(&self, max: usize) -> usize {
        let last = self.timers.get(max - 1).map(|timer| timer.due);
        self.timers.iter().filter(|timer| Some(timer.due) <= last).count().max(max)
    }

    /// Moves those of the steps that are in one of `from`; `ids` may name what does not exist.
    pub fn move_steps(
        &mut self,
        ids: &[Id],
        from: &[State],
        to: State,
        more: Option<i32>,
        result: Option<&str>,
        note: &str,
    ) -> Moved {
        let able = |model: &Self, id: Id| {
            model.is_there(id)
                && from.contains(&model.step(id).state)
                && !(to == State::Pending && model.is_behind_cancelled(id))
                && matches!(
                    model.task(id.task).state,
                    State::Pending | State::InProgress | State::Error
                )
        };
        let steps = ids.iter().map(|id| {
            let task = self.tasks[id.task].as_ref().map(|task| task.state);
            let was = self.is_there(*id).then(|| self.step(*id).state);
            let blocked = to == State::Pending && was.is_some() && self.is_behind_cancelled(*id);
            (was, task, able(self, *id), blocked)
        });
        let steps = steps.collect();
        let chosen: BTreeSet<Id> = ids.iter().copied().filter(|id| able(self, *id)).collect();
        let chosen: Vec<Id> = chosen.into_iter().collect();
        let told = self.moved(&chosen, to, more, result, note);
        Moved { steps, ready: self.append(), told }
    }

    /// Answers how many nodes are told.
    fn moved(
        &mut self,
        ids: &[Id],
        to: State,
        more: Option<i32>,
        result: Option<&str>,
        note: &str,
    ) -> usize {
        let told = self.signals.len();
        let is_running = |id: &Id| self.step(*id).state == State::InProgress;
        let ended: Vec<Id> = ids.iter().copied().filter(is_running).collect();
        for id in ids {
            self.void(*id);
            let planned = self.plan(*id).max_attempts;
            if to == State::ResolvedManually {
                self.resolve_step(*id, result);
                continue;
            }
            self.step_to(*id, to);
            let step = self.step_mut(*id);
            if to == State::Pending {
                (step.not_before, step.due) = (None, None);
                step.max_attempts = step.max_attempts.max(step.attempt + more.unwrap_or(planned));
            }
            if to == State::Error {
                step.last_error = Some(note.to_owned());
            }
        }
        let mut wait = Vec::new();
        if to == State::ResolvedManually {
            let released = self.released(ids);
            wait.extend(released.into_iter().map(|(id, _)| self.waiter(id, None)));
        }
        if to == State::Pending {
            let ready = ids.iter().filter(|id| self.waiting_on(**id) == 0);
            wait.extend(ready.map(|id| self.waiter(*id, None)));
        }
        self.conclude();
        let ruled = self.ruled(ids.iter().copied());
        self.start_clocks(&ruled, &wait, &[]);
        let wait = self.count_running(&ruled, &ended, wait);
        self.waiting.extend(wait);
        self.signals.len() - told
    }

    /// The lease of a step, if it has one, holds no longer; its node is told.
    fn void(&mut self, id: Id) {
        let attempt = self.step(id).attempt;
        if let Some(Lease { node, session, token }) = self.step_mut(id).lease.take() {
            self.signals.push(Signal { node, session, id, token, attempt });
        }
    }

    fn states(&self, tasks: &[usize]) -> Vec<Option<State>> {
        tasks.iter().map(|task| self.tasks[*task].as_ref().map(|task| task.state)).collect()
    }

    /// Answers the state each was in, and how many nodes are told.
    pub fn cancel(&mut self, tasks: &[usize], overriding: bool) -> (Vec<Option<State>>, usize) {
        let was = self.states(tasks);
        let told = self.signals.len();
        let stays = |state| matches!(state, State::Complete | State::ResolvedManually);
        for task in tasks.iter().copied().collect::<BTreeSet<_>>() {
            let Some(state) = self.tasks[task].as_ref().map(|task| task.state) else { continue };
            if state == State::Cancelled || stays(state) && !overriding {
                continue;
            }
            let unfinished = catalog::origins(Entity::Step, State::Cancelled);
            for no in 0..self.task(task).steps.len() {
                let id = Id { task, no };
                if unfinished.contains(&self.step(id).state) {
                    self.void(id);
                    self.step_to(id, State::Cancelled);
                }
            }
            self.task_to(task, State::Cancelled);
            self.give_up(&BTreeSet::from([task]));
        }
        self.append();
        (was, self.signals.len() - told)
    }

    /// Answers the state each was in, how many of its steps are tried again, and how many became ready.
    pub fn retry(
        &mut self,
        tasks: &[usize],
        more: Option<i32>,
    ) -> (Vec<Option<State>>, Vec<usize>, usize) {
        let was = self.states(tasks);
        let again = self.steps().into_iter().filter(|id| {
            tasks.contains(&id.task)
                && self.task(id.task).state == State::Error
                && self.step(*id).state == State::Error
                && !self.is_behind_cancelled(*id)
        });
        let again: Vec<Id> = again.collect();
        self.moved(&again, State::Pending, more, None, "");
        let ready = self.append();
        let of = |task: &usize| again.iter().filter(|id| id.task == *task).count();
        (was, tasks.iter().map(of).collect(), ready)
    }

    pub fn retry_task_once(&mut self, request: u8, asked: Asked) -> Once<OfTask> {
        if let Some(known) = known(&self.asked_of_tasks, request, asked, self.now) {
            return known;
        }
        let (was, steps, ready) = self.retry(&[asked.task], asked.more);
        let answer = (was[0], steps[0]);
        if steps[0] > 0 || matches!(was[0], Some(State::Pending | State::InProgress)) {
            self.asked_of_tasks.insert(request, (self.now, asked, answer));
        }
        Once { same: None, answer: Some(answer), ready }
    }

    pub fn retry_step_once(&mut self, request: u8, asked: Asked) -> Once<OfStep> {
        if let Some(known) = known(&self.asked_of_steps, request, asked, self.now) {
            return known;
        }
        let id = Id { task: asked.task, no: asked.no.expect("it is of a step") };
        let moved = self.move_steps(&[id], &[State::Error], State::Pending, asked.more, None, "");
        let answer = moved.steps[0];
        if answer.2 || matches!(answer.0, Some(State::Pending | State::InProgress)) {
            self.asked_of_steps.insert(request, (self.now, asked, answer));
        }
        Once { same: None, answer: Some(answer), ready: moved.ready }
    }

    /// Answers the state each was in.
    pub fn resolve(&mut self, tasks: &[usize]) -> Vec<Option<State>> {
        let was = self.states(tasks);
        for task in tasks {
            if self.tasks[*task].as_ref().is_some_and(|task| task.state == State::Error) {
                self.task_to(*task, State::ResolvedManually);
            }
        }
        was
    }

    /// Answers the state each was in, whether it was paused, and how many steps became ready.
    pub fn pause(
        &mut self,
        tasks: &[usize],
        paused: bool,
    ) -> (Vec<Option<State>>, Vec<Option<bool>>, usize) {
        let was = self.states(tasks);
        let were = tasks.iter().map(|task| self.tasks[*task].as_ref().map(|task| task.paused));
        let were = were.collect();
        let number = if paused { TaskPaused::NUMBER } else { TaskResumed::NUMBER };
        let edge = catalog::event_type_by_number(number).and_then(|event| event.edge.as_ref());
        let from = edge.expect("it is one of a task's").from;
        let mut changed = BTreeSet::new();
        for task in tasks.iter().copied().collect::<BTreeSet<_>>() {
            let Some(of) = &mut self.tasks[task] else { continue };
            if from.contains(&of.state) && of.paused != paused {
                of.paused = paused;
                let state = of.state;
                self.push(task, None, number, Some(state), state, None);
                changed.insert(task);
            }
        }
        if !paused {
            self.waiting = self.gate(&changed, |_| ALL, Vec::new());
        }
        (was, were, self.append())
    }

    /// Answers the state it was in, how many queues are new, and how many steps wait in other queues now: at
    /// once, or later.
    pub fn change(&mut self, task: usize, priority: Option<u8>) -> (Option<State>, usize, usize) {
        let Some(of) = &self.tasks[task] else { return (None, 0, 0) };
        let (plan, state, was, n) = (of.plan, of.state, of.priority, of.steps.len());
        let queues = priority.map_or(0, |priority| self.add_queues(plan, priority));
        if let Some(priority) = priority.filter(|priority| *priority != was) {
            self.task_mut(task).priority = priority;
            for no in 0..n {
                self.change_over(Id { task, no }, priority);
            }
        }
        self.push(task, None, TaskUpdated::NUMBER, Some(state), state, None);
        (Some(state), queues, self.append())
    }

    /// Answers the state it was in, and whether there was room. No text: the fact is forgotten.
    pub fn annotate(&mut self, task: usize, fact: u8, text: Option<u8>) -> (Option<State>, bool) {
        let Some(of) = &mut self.tasks[task] else { return (None, false) };
        let state = of.state;
        let mut facts = of.facts.clone();
        match text {
            Some(text) => facts.insert(fact, text),
            None => facts.remove(&fact),
        };
        let done = facts.len() <= FACTS_MAX;
        if done {
            of.facts = facts;
            self.push(task, None, TaskAnnotated::NUMBER, Some(state), state, None);
            self.append();
        }
        (Some(state), done)
    }

    /// Removes tasks behind one that ended so many seconds ago, or are in error since so many (0: never). Answers how
    /// many, and behind which to go on; none: there are no more, or those to come are too young.
    pub fn remove(
        &mut self,
        after: Option<usize>,
        (age, error): (u8, u8),
        scan: usize,
        most: usize,
    ) -> (usize, Option<usize>) {
        let since = |s: u8| (s > 0).then(|| self.now - i64::from(s) * 1000);
        let (age, error) = (since(age), since(error));
        let seen = (0..self.tasks.len()).filter(|task| self.tasks[*task].is_some());
        let seen = seen.filter(|task| after.is_none_or(|after| *task > after)).take(scan);
        let seen: Vec<usize> = seen.collect();
        let old = seen.iter().copied().filter(|task| {
            let of = self.task(*task);
            let since = match of.state {
                State::Complete | State::Cancelled | State::ResolvedManually => age,
                State::Error => error,
                _ => None,
            };
            since.is_some_and(|since| of.finished_at.is_some_and(|ended| ended <= since))
        });
        let old: Vec<usize> = old.take(most).collect();
        let next = if old.len() == most {
            old.last().copied()
        } else {
            let last = seen.last().copied().filter(|_| seen.len() == scan);
            last.filter(|task| Some(self.task(*task).created_at) <= age.max(error))
        };
        old.iter().for_each(|task| self.drop_task(*task));
        (old.len(), next)
    }

    /// Removes tasks that ended as they were seen. Answers what became of each, and the states of those there were.
    pub fn remove_named(&mut self, tasks: &[Doomed], in_error: bool) -> Vec<(Fate, Option<State>)> {
        let fate = |(task, state, ended): &Doomed| {
            let Some(of) = &self.tasks[*task] else { return (Fate::Missing, None) };
            let is_over = match of.state {
                State::Pending | State::InProgress => false,
                State::Error => in_error,
                _ => true,
            };
            let is_same = state.is_none_or(|state| state == of.state)
                && (ended.is_none() || *ended == of.finished_at);
            (if is_over && is_same { Fate::Removed } else { Fate::Left }, Some(of.state))
        };
        let fates: Vec<_> = tasks.iter().map(fate).collect();
        for ((task, ..), (fate, _)) in tasks.iter().zip(&fates) {
            if *fate == Fate::Removed {
                self.drop_task(*task);
            }
        }
        fates
    }

    /// Its rows in queues and its clocks stay, and hold for nothing.
    fn drop_task(&mut self, task: usize) {
        self.tasks[task] = None;
        self.removed.insert(task);
        self.parked.retain(|parked| parked.id.task != task);
        let (gone, stay) = self.claimants.drain(..).partition(|claimant| claimant.task == task);
        self.claimants = stay;
        let gone: Vec<Claimant> = gone;
        self.wake.extend(gone.into_iter().map(|claimant| claimant.key));
        self.identities.retain(|_, of| *of != task);
    }

    /// A step that is not done waits beside its queue, at another priority.
    fn change_over(&mut self, id: Id, priority: u8) {
        let Step { state, attempt, not_before, .. } = *self.step(id);
        if !matches!(state, State::Pending | State::InProgress | State::Error) {
            return;
        }
        let (plan, queue) = (self.task(id.task).plan, self.plan(id).queue);
        self.step_mut(id).queue = queue_number(self.plans.len(), plan, queue, priority);
        if state == State::Error {
            self.met.insert(AN_ERROR_CHANGES_OVER);
        }
        if !self.is_ready(id) {
            return;
        }
        let waiter = self.waiter(id, not_before);
        let (sight, waits) = match waiter.due {
            _ if self.parked.contains(&Parked { id, attempt }) => {
                (A_PARKED_STEP_CHANGES_OVER, false)
            }
            None => (A_READY_STEP_CHANGES_OVER, true),
            Some(_) if self.is_ruled(id.task) => (A_RULED_BACK_OFF_CHANGES_OVER, false),
            Some(_) => (A_BACK_OFF_CHANGES_OVER, true),
        };
        self.met.insert(sight);
        self.waiting.extend(waits.then_some(waiter));
    }

    /// A step may make so many attempts.
    pub fn change_step(&mut self, id: Id, most: i32) -> Changed {
        let Some(of) = &self.tasks[id.task] else { return (None, None, None, false) };
        let task = of.state;
        let Some(step) = of.steps.get(id.no) else { return (None, Some(task), None, false) };
        let (state, attempt) = (step.state, step.attempt);
        let done = matches!(state, State::Pending | State::Error)
            && matches!(task, State::Pending | State::InProgress | State::Error)
            && attempt <= most;
        if done {
            self.step_mut(id).max_attempts = most;
            let (no, number) = (Some(id.no), StepUpdated::NUMBER);
            self.push(id.task, no, number, Some(state), state, Some(attempt));
            self.append();
        }
        (Some(state), Some(task), Some(attempt), done)
    }

    /// Pauses a definition, or all of a namespace, or takes that back. Answers how many plans it covers, and
    /// whether it was paused.
    pub fn pause_plans(
        &mut self,
        (namespace, name): (u8, Option<u8>),
        paused: bool,
    ) -> (usize, bool) {
        let is_covered = |of: &Name| of.0 == namespace && name.is_none_or(|name| of.1 == name);
        let covered: Vec<usize> =
            (0..self.plans.len()).filter(|plan| is_covered(&self.plans[*plan].name)).collect();
        let was = self.pauses.contains(&(namespace, name));
        if paused && !covered.is_empty() {
            self.pauses.insert((namespace, name));
        }
        if !paused && self.pauses.remove(&(namespace, name)) {
            let still = covered.iter().any(|plan| self.is_stopped(*plan));
            self.met.extend(still.then_some(A_PAUSE_WITHIN_ANOTHER));
        }
        (covered.len(), was)
    }

    /// Gives the keys that are to be looked at to the oldest that wait. Answers how many tasks go on, how
    /// many steps became ready, and whether there is more to look at.
    pub fn grant(&mut self) -> (usize, usize, bool) {
        let mut granted = BTreeSet::new();
        for key in std::mem::take(&mut self.wake) {
            let room = self.plans[key].rules.room.map_or(0, usize::from);
            let of_key: Vec<_> =
                self.claimants.iter().filter(|of| of.key == key).cloned().collect();
            let waiting = of_key.iter().filter(|of| !of.granted).take(room);
            let looked: Vec<_> = of_key.iter().filter(|of| of.granted).chain(waiting).collect();
            let (ended, open): (Vec<_>, Vec<_>) =
                looked.into_iter().partition(|of| self.task(of.task).finished_at.is_some());
            if ended.iter().any(|of| !of.granted) {
                self.wake.insert(key);
            }
            let left = room.saturating_sub(open.iter().filter(|of| of.granted).count());
            granted.extend(open.iter().filter(|of| !of.granted).take(left).map(|of| of.task));
            self.claimants.retain(|claimant| !ended.contains(&claimant));
        }
        for claimant in &mut self.claimants {
            claimant.granted |= granted.contains(&claimant.task);
        }
        for task in &granted {
            self.task_mut(*task).held = false;
        }
        self.waiting = self.gate(&granted, |_| ALL, Vec::new());
        (granted.len(), self.append(), !self.wake.is_empty())
    }

    // ── nodes ───────────────────────────────────────────────────────────────────────────────────

    pub fn start(&mut self, lease: Ms) -> usize {
        let (lease_until, retired_at, taken_by) = (self.now + lease, None, None);
        self.nodes.push(Node { lease_until, retired_at, taken_by, gone: false });
        self.nodes.len() - 1
    }

    /// Answers whether it lives.
    pub fn extend(&mut self, node: usize, lease: Ms) -> bool {
        let lives = self.fence(node).is_ok();
        if lives {
            self.nodes[node].lease_until = self.now + lease;
        }
        lives
    }

    /// Answers whether it lived.
    pub fn retire(&mut self, node: usize) -> bool {
        let lived = self.fence(node).is_ok();
        if lived {
            self.nodes[node].retired_at = Some(self.now);
        }
        lived
    }

    pub fn renew(&mut self, node: usize, lease: Ms) -> usize {
        self.retire(node);
        let new = self.start(lease);
        self.nodes[node].taken_by.get_or_insert(new);
        new
    }

    /// Answers all that the node has taken over, and how long the grace of each lasts.
    pub fn take_over(&mut self, by: usize, grace: Ms, declare: bool) -> Vec<(usize, Ms)> {
        let now = self.now;
        for node in self.nodes.iter_mut().filter(|node| !node.gone) {
            if declare && node.retired_at.is_none() && node.lease_until < now {
                node.retired_at = Some(now);
            }
        }
        for node in 0..self.nodes.len() {
            let Node { retired_at, taken_by, gone, .. } = self.nodes[node];
            let walked = taken_by.is_some_and(|by| self.fence(by).is_ok());
            if retired_at.is_some() && !gone && !walked {
                self.nodes[node].taken_by = Some(by);
            }
        }
        let taken =
            self.nodes.iter().enumerate().filter(|(_, n)| !n.gone && n.taken_by == Some(by));
        taken
            .map(|(node, n)| (node, (n.retired_at.expect("only such") + grace - now).max(0)))
            .collect()
    }

    /// The walk of a node is over.
    pub fn forget(&mut self, node: usize, by: usize) {
        let Node { taken_by, gone, .. } = &mut self.nodes[node];
        if *taken_by == Some(by) && !*gone {
            *gone = true;
            self.signals.retain(|signal| signal.node != node);
        }
    }
}

/// The one event that records this move.
fn edge(entity: Entity, from: Option<State>, to: State) -> &'static EventType {
    let mut found = catalog::edges(entity, from, to);
    let event = found.next().unwrap_or_else(|| panic!("no edge of {entity:?}: {from:?} > {to:?}"));
    assert!(found.next().is_none(), "two edges of {entity:?}: {from:?} > {to:?}");
    event
}

/// A task's shortest way from state to state, edge by edge.
fn way(from: State, to: State) -> Vec<(State, u32, State)> {
    let states = [
        State::Pending,
        State::InProgress,
        State::Complete,
        State::Error,
        State::Cancelled,
        State::ResolvedManually,
    ];
    let mut ways = vec![(from, Vec::new())];
    for at in 0.. {
        let (last, way) =
            ways.get(at).unwrap_or_else(|| panic!("no way {from:?} > {to:?}")).clone();
        if last == to {
            return way;
        }
        for next in states {
            let event = catalog::edges(Entity::Task, Some(last), next).next();
            if let Some(event) = event
                && ways.iter().all(|(seen, _)| *seen != next)
            {
                let mut way = way.clone();
                way.push((last, event.number, next));
                ways.push((next, way));
            }
        }
    }
    unreachable!("it panics where there is no way")
}

/// What a request is answered that was done before, or whose id another has.
fn known<T: Copy>(kept: &Kept<T>, request: u8, asked: Asked, now: Ms) -> Option<Once<T>> {
    let (_, before, answer) = kept.get(&request).filter(|(at, ..)| *at > now - KEPT)?;
    let same = *before == asked;
    Some(Once { same: Some(same), answer: same.then_some(*answer), ready: 0 })
}
