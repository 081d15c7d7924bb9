//! What the verbs are to do, said once more, as small as it can be: no counter is kept here, every one is
//! counted anew; and no move is known here, every one is an edge of the catalog.
//!
//! A verb is a method: it changes the model, collects the events, and answers what the verb is to answer.
//! What the database is free to choose (tokens, which of several slots) is told to the model after.

use std::{collections::BTreeSet, rc::Rc};

use stepwell_proto::{
    catalog::{self, EventType},
    v1::{Entity, State},
};

use super::dag::{Plan, QUEUES};

/// Milliseconds since the case began.
pub type Ms = i64;

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
    pub state: State,
    pub started_at: Option<Ms>,
    pub finished_at: Option<Ms>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub state: State,
    pub attempt: i32,
    pub max_attempts: i32,
    pub not_before: Option<Ms>,
    pub leased_at: Option<Ms>,
    pub lease: Option<Lease>,
    /// The last settled lease: its token and how it ended.
    pub last: Option<(i64, Kind)>,
    pub result: Option<String>,
    pub last_error: Option<String>,
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

/// A step that waits for its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    pub due: Ms,
    pub id: Id,
    pub attempt: i32,
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

#[derive(Clone)]
pub struct Model {
    pub plans: Rc<Vec<Plan>>,
    /// By the case's numbers; none: it is not created.
    pub tasks: Vec<Option<Task>>,
    pub ready: Vec<Row>,
    pub timers: Vec<Timer>,
    pub signals: Vec<Signal>,
    pub nodes: Vec<Node>,
    pub now: Ms,
    /// What the current call appends.
    pub events: Vec<Event>,
    /// What the current call makes ready, and when.
    waiting: Vec<(Id, Option<Ms>)>,
    places: usize,
}

impl Model {
    pub fn new(plans: Vec<Plan>, tasks: usize) -> Self {
        Self {
            plans: Rc::new(plans),
            tasks: vec![None; tasks],
            ready: Vec::new(),
            timers: Vec::new(),
            signals: Vec::new(),
            nodes: Vec::new(),
            now: 0,
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

    pub fn is_open(&self, task: usize) -> bool {
        matches!(self.task(task).state, State::Pending | State::InProgress)
    }

    fn plan(&self, id: Id) -> &super::dag::Planned {
        &self.plans[self.task(id.task).plan].steps[id.no]
    }

    /// Numbered over all plans.
    pub fn queue(&self, id: Id) -> usize {
        self.task(id.task).plan * QUEUES + self.plan(id).queue
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
        }
    }

    fn fence(&self, node: usize) -> Result<(), Retired> {
        let node = &self.nodes[node];
        if node.gone || node.retired_at.is_some() { Err(Retired) } else { Ok(()) }
    }

    /// What waits takes its place. Answers how many steps do.
    fn append(&mut self) -> usize {
        self.places += 1;
        let waiting = std::mem::take(&mut self.waiting);
        for (id, due) in &waiting {
            let attempt = self.step(*id).attempt;
            match due {
                Some(due) if *due > self.now => {
                    self.timers.push(Timer { due: *due, id: *id, attempt });
                }
                _ => {
                    let (queue, place) = (self.queue(*id), self.places);
                    self.ready.push(Row { queue, place, id: *id, attempt });
                }
            }
        }
        self.ready.sort();
        self.timers.sort();
        waiting.len()
    }

    fn holds(&self, id: Id, attempt: i32) -> bool {
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

    /// Answers the tasks that are new.
    pub fn create(&mut self, tasks: &[(usize, usize, Vec<usize>)]) -> Vec<usize> {
        let mut new = Vec::new();
        let mut bypassed = Vec::new();
        for (task, plan, skipped) in tasks {
            if self.tasks[*task].is_some() {
                continue;
            }
            let plans = Rc::clone(&self.plans);
            let steps = plans[*plan].steps.iter().map(|planned| Step {
                state: State::Pending,
                attempt: 0,
                max_attempts: planned.max_attempts,
                not_before: None,
                leased_at: None,
                lease: None,
                last: None,
                result: None,
                last_error: None,
            });
            let state = State::Pending;
            let (started_at, finished_at) = (None, None);
            let steps = steps.collect();
            self.tasks[*task] = Some(Task { plan: *plan, state, started_at, finished_at, steps });
            let event = edge(Entity::Task, None, state).number;
            self.push(*task, None, event, None, state, None);
            bypassed.extend(skipped.iter().map(|no| Id { task: *task, no: *no }));
            new.push(*task);
        }
        for id in &bypassed {
            self.resolve_step(*id, None);
        }
        self.released(&bypassed);
        let ready =
            self.steps().into_iter().filter(|id| new.contains(&id.task) && self.is_ready(*id));
        self.waiting = ready.map(|id| (id, None)).collect();
        self.conclude();
        self.append();
        new
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
    /// there are. Answers where each stood.
    pub fn claim(
        &mut self,
        node: usize,
        slots: &[(usize, usize, Vec<i64>)],
    ) -> Result<Vec<(usize, Leased)>, Retired> {
        let mut leases = Vec::new();
        let places = self.places();
        let nth = |place| places.partition_point(|before| *before < place);
        for (queue, from, sessions) in slots {
            let rows = self.ready.iter().filter(|r| r.queue == *queue && nth(r.place) >= *from);
            let rows: Vec<Row> = rows.take(sessions.len()).cloned().collect();
            self.ready.retain(|row| !rows.contains(row));
            let mut free = sessions.iter();
            for row in rows {
                // Two rows of one step are legitimate.
                let twice = leases.iter().any(|(_, id, _)| *id == row.id);
                if !twice && self.is_open(row.id.task) && self.holds(row.id, row.attempt) {
                    let session = *free.next().expect("as many as rows");
                    leases.push((nth(row.place), row.id, session));
                }
            }
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
            self.append();
        }
        Ok(leases)
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
        let mut done = Vec::new();
        let mut offers = Vec::new();
        let mut moved = false;
        for item in batch {
            let held = |lease: &Lease| {
                lease.token == item.token
                    && match sweep {
                        None => true,
                        Some(Sweep::Session(session)) => lease.session == *session,
                        Some(Sweep::Node(node)) => lease.node == *node,
                    }
            };
            let Some(_) = self.step(item.id).lease.filter(held) else { continue };
            moved = true;
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
                    offers.extend(
                        offered
                            .filter_map(|(no, session)| Some((Id { no, ..item.id }, (*session)?))),
                    );
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
                self.waiting.push((item.id, due));
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
                None => self.waiting.push((child, None)),
            }
        }
        self.conclude();
        if let Some(node) = node
            && moved
        {
            self.fence(node)?;
        }
        let accepted = batch
            .iter()
            .map(|item| self.step(item.id).last == Some((item.token, kind_of(item))))
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
        for (id, token) in held {
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

    /// Answers how many timers were taken, and in how long the next one is due.
    pub fn release(&mut self, max: usize) -> (usize, Option<Ms>) {
        let due = self.timers.iter().take(max).take_while(|timer| timer.due <= self.now).count();
        for timer in self.timers.drain(..due).collect::<Vec<_>>() {
            if self.holds(timer.id, timer.attempt) {
                self.waiting.push((timer.id, None));
            }
        }
        self.append();
        (due, self.timers.first().map(|timer| (timer.due - self.now).max(0)))
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
        let exists = |model: &Self, id: Id| {
            model.tasks[id.task].as_ref().is_some_and(|task| id.no < task.steps.len())
        };
        let able = |model: &Self, id: Id| {
            exists(model, id)
                && from.contains(&model.step(id).state)
                && !(to == State::Pending && model.is_behind_cancelled(id))
                && matches!(
                    model.task(id.task).state,
                    State::Pending | State::InProgress | State::Error
                )
        };
        let steps = ids.iter().map(|id| {
            let task = self.tasks[id.task].as_ref().map(|task| task.state);
            let was = exists(self, *id).then(|| self.step(*id).state);
            let blocked = to == State::Pending && was.is_some() && self.is_behind_cancelled(*id);
            (was, task, able(self, *id), blocked)
        });
        let steps = steps.collect();
        let chosen: BTreeSet<Id> = ids.iter().copied().filter(|id| able(self, *id)).collect();
        let chosen: Vec<Id> = chosen.into_iter().collect();
        let (ready, told) = self.moved(&chosen, to, more, result, note);
        Moved { steps, ready, told }
    }

    fn moved(
        &mut self,
        ids: &[Id],
        to: State,
        more: Option<i32>,
        result: Option<&str>,
        note: &str,
    ) -> (usize, usize) {
        let told = self.signals.len();
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
                step.not_before = None;
                step.max_attempts = step.max_attempts.max(step.attempt + more.unwrap_or(planned));
            }
            if to == State::Error {
                step.last_error = Some(note.to_owned());
            }
        }
        if to == State::ResolvedManually {
            let released = self.released(ids);
            self.waiting.extend(released.into_iter().map(|(id, _)| (id, None)));
        }
        if to == State::Pending {
            let ready = ids.iter().filter(|id| self.waiting_on(**id) == 0).map(|id| (*id, None));
            self.waiting = ready.collect();
        }
        self.conclude();
        (self.append(), self.signals.len() - told)
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
        let (ready, _) = self.moved(&again, State::Pending, more, None, "");
        let of = |task: &usize| again.iter().filter(|id| id.task == *task).count();
        (was, tasks.iter().map(of).collect(), ready)
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
