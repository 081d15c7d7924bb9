//! One case: each operation is given its meaning, carried out by a verb and by the model, and what the two
//! answer and leave is compared. At the end honest executors finish what is open.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
};

use stepwell_proto::{
    catalog::{self, EventMessage},
    v1::{State, StepCancelled, StepFailed, StepResolvedManually, StepRetryRequested},
};

use super::{
    dag::{Name, Pick},
    database::{Answer, Database},
    look,
    model::{
        Asked, Clock, Id, Kind, Leased, Model, Ms, New, Retired, Settle, Settled, Sweep, Timer,
    },
    operation::{Aim, Case, Created, Ending, Held, Move, Operation, Report, Seen},
    view,
};

/// The lease of a node.
const LEASE: Ms = 5_000;
/// The grace of the executors of a dead one.
const GRACE: Ms = 5_000;
/// Sessions of a node.
const SESSIONS: usize = 3;
/// The name of a definition that there is not.
const NOBODY: Name = (9, 9);
/// Nobody needs more rounds to finish a case.
const ROUNDS_MAX: usize = 500;

/// What was seen in all cases.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub cases: usize,
    pub operations: usize,
    pub events: usize,
    /// Calls that failed because their node was retired.
    pub fenced: usize,
    /// Steps that ran out of time.
    pub late: usize,
    /// Concurrency keys that were given.
    pub given: usize,
    /// By type of event and states before and after.
    pub edges: BTreeMap<(u32, Option<State>, State), usize>,
    pub verbs: BTreeSet<&'static str>,
    /// Of `model::SIGHTS`, in how many cases each was met.
    pub met: BTreeMap<&'static str, usize>,
}

impl Coverage {
    pub fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.operations += other.operations;
        self.events += other.events;
        self.fenced += other.fenced;
        self.late += other.late;
        self.given += other.given;
        for (edge, n) in other.edges {
            *self.edges.entry(edge).or_default() += n;
        }
        self.verbs.extend(other.verbs);
        for (sight, n) in other.met {
            *self.met.entry(sight).or_default() += n;
        }
    }
}

/// A lease as it was given.
#[derive(Clone, Copy)]
struct Given {
    id: Id,
    token: i64,
    session: i64,
}

struct Run<'a> {
    model: Model,
    database: &'a mut Database,
    coverage: &'a mut Coverage,
    /// Plans of the tasks.
    plans: Vec<usize>,
    /// Every lease, in order.
    given: Vec<Given>,
    /// What was asked under the id of each request the last time.
    asked: HashMap<u8, Asked>,
    /// Makes texts differ.
    reports: usize,
    /// The views are looked at too.
    thorough: bool,
}

/// Runs one case; the error says what differs, and after what. `thorough`: the invariants of the rows and the
/// views are looked at too.
pub async fn run(
    case: &Case,
    database: &mut Database,
    coverage: &mut Coverage,
    thorough: bool,
) -> Result<(), String> {
    let plans: Vec<_> = case.dags.iter().map(super::dag::Dag::plan).collect();
    let of_tasks: Vec<usize> = case.tasks.iter().map(|pick| of(*pick, plans.len())).collect();
    database.begin(&plans, of_tasks.len()).await.map_err(|error| error.to_string())?;
    let mut run = Run {
        // One more, which is never created.
        model: Model::new(plans, of_tasks.len() + 1),
        database,
        coverage,
        plans: of_tasks,
        given: Vec::new(),
        asked: HashMap::new(),
        reports: 0,
        thorough,
    };
    run.perform(&Operation::Start).await?;
    run.perform(&Operation::Start).await?;
    for operations in [&case.operations, &case.after] {
        for (no, operation) in operations.iter().enumerate() {
            run.perform(operation).await.map_err(|found| {
                format!("operation {no}, {operation:?}, at {} ms: {found}", run.model.now)
            })?;
        }
        run.finish().await.map_err(|found| format!("at the end: {found}"))?;
    }
    if thorough {
        run.database.check().await;
    }
    for sight in run.model.met {
        *run.coverage.met.entry(sight).or_default() += 1;
    }
    run.coverage.cases += 1;
    Ok(())
}

fn of(pick: Pick, n: usize) -> usize {
    usize::from(pick) % n
}

fn pick<T: Copy>(pick: Pick, from: &[T]) -> Option<T> {
    (!from.is_empty()).then(|| from[of(pick, from.len())])
}

impl Run<'_> {
    async fn perform(&mut self, operation: &Operation) -> Result<(), String> {
        match operation {
            Operation::Create(tasks) => self.create(tasks).await,
            Operation::Claim { node, slots, from, first } => {
                let queues: Vec<usize> = self.model.queues.iter().copied().collect();
                let queues =
                    queues.iter().cycle().skip(of(*first, queues.len())).take(queues.len());
                let slots = queues.copied().zip(slots.iter().map(|n| usize::from(*n)));
                let slots: Vec<_> = slots.filter(|(_, n)| *n > 0).collect();
                self.claim(self.node(*node), &slots, *from).await
            }
            Operation::Report { node, reports } => self.report(self.node(*node), reports).await,
            Operation::Lose { session, endings } => self.lose(*session, endings).await,
            Operation::Adopt { node, session, held } => {
                self.adopt(self.node(*node), usize::from(*session), held).await
            }
            Operation::Advance(ms) => {
                self.advance(self.model.now + i64::from(*ms));
                Ok(())
            }
            Operation::AdvanceToTimer => {
                let next = self.model.timers.first().map_or(self.model.now, |timer| timer.due);
                self.advance(next.max(self.model.now));
                Ok(())
            }
            Operation::Release(max) => self.release(usize::from(*max)).await,
            Operation::Move { to, steps, more } => self.move_steps(*to, steps, *more).await,
            Operation::Cancel { tasks, overriding } => {
                let tasks = self.tasks(tasks);
                let answer = self.database.cancel(&tasks, *overriding).await;
                self.agree(answer, |model| Ok(model.cancel(&tasks, *overriding)))?;
                self.look().await
            }
            Operation::Retry { tasks, more } => {
                let (tasks, more) = (self.tasks(tasks), more.map(i32::from));
                let answer = self.database.retry(&tasks, more).await;
                self.agree(answer, |model| Ok(model.retry(&tasks, more)))?;
                self.look().await
            }
            Operation::RetryOnce { request, again, task, step, more } => {
                self.retry_once(*request, *again, *task, *step, more.map(i32::from)).await
            }
            Operation::Resolve { tasks } => {
                let tasks = self.tasks(tasks);
                let answer = self.database.resolve(&tasks).await;
                self.agree(answer, |model| Ok(model.resolve(&tasks)))?;
                self.look().await
            }
            Operation::Pause { tasks, paused } => self.pause(&self.tasks(tasks), *paused).await,
            Operation::Priority { task, priority } => {
                let task = of(*task, self.model.tasks.len());
                let answer = self.database.change(task, *priority).await;
                self.agree(answer, |model| Ok(model.change(task, *priority)))?;
                self.look().await
            }
            Operation::Annotate { task, fact, kept, text } => {
                let task = of(*task, self.model.tasks.len());
                let text = kept.then_some(*text);
                let answer = self.database.annotate(task, *fact, text).await;
                self.agree(answer, |model| Ok(model.annotate(task, *fact, text)))?;
                self.look().await
            }
            Operation::Remove { after, age, error, scan, most } => {
                let after = after.map(|task| of(task, self.model.tasks.len()));
                let (scan, most) = (usize::from(*scan), usize::from(*most));
                let answer = self.database.remove(after, (*age, *error), scan, most).await;
                self.agree(answer, |model| Ok(model.remove(after, (*age, *error), scan, most)))?;
                self.look().await
            }
            Operation::RemoveNamed { tasks, in_error } => self.remove_named(tasks, *in_error).await,
            Operation::Attempts { step, most } => {
                let Some(id) =
                    self.aimed(*step, &[State::Pending, State::InProgress, State::Error])
                else {
                    return Ok(());
                };
                let answer = self.database.change_step(id, i32::from(*most)).await;
                self.agree(answer, |model| Ok(model.change_step(id, i32::from(*most))))?;
                self.look().await
            }
            Operation::PausePlan { plan, all, paused } => {
                let plan = self.model.plans.get(of(*plan, self.model.plans.len() + 1));
                let (namespace, name) = plan.map_or(NOBODY, |plan| plan.name);
                self.pause_plans((namespace, (!all).then_some(name)), *paused).await
            }
            Operation::Grant => self.grant().await,
            Operation::Start => {
                self.database.start(LEASE).await.map_err(|error| error.to_string())?;
                self.model.start(LEASE);
                self.look().await
            }
            Operation::Extend { node } => {
                let node = self.node(*node);
                let answer = self.database.extend(node, LEASE).await;
                self.agree(answer, |model| Ok(model.extend(node, LEASE)))?;
                self.look().await
            }
            Operation::Retire { node } => {
                let node = self.node(*node);
                let answer = self.database.retire(node).await;
                self.agree(answer, |model| Ok(model.retire(node)))?;
                self.look().await
            }
            Operation::Renew { node, held } => self.renew(self.node(*node), *held).await,
            Operation::TakeOver { node, declare } => {
                let node = self.node(*node);
                let answer = self.database.take_over(node, LEASE, GRACE, *declare).await;
                self.agree(answer, |model| Ok(model.take_over(node, GRACE, *declare)))?;
                self.look().await
            }
            Operation::Walk { node, ending, forget } => self.walk(*node, *ending, *forget).await,
        }
    }

    // ── who and what is meant ───────────────────────────────────────────────────────────────────

    fn node(&self, pick: Pick) -> usize {
        of(pick, self.model.nodes.len())
    }

    /// Tasks, and perhaps one that does not exist.
    fn tasks(&self, picks: &[Pick]) -> Vec<usize> {
        picks.iter().map(|pick| of(*pick, self.model.tasks.len())).collect()
    }

    /// A step in one of these states, or, blindly, any.
    fn aimed(&self, aim: Aim, from: &[State]) -> Option<Id> {
        if !aim.blind {
            let steps = self.model.steps().into_iter();
            let able = steps.filter(|id| from.contains(&self.model.step(*id).state));
            return pick(aim.pick, &able.collect::<Vec<_>>());
        }
        let task = of(aim.pick, self.model.tasks.len());
        let steps = self.model.tasks[task].as_ref().map_or(0, |task| task.steps.len());
        Some(Id { task, no: of(aim.pick / 7, steps + 1) })
    }

    fn held(&self, held: Held) -> Option<(Id, i64)> {
        let (id, token) = if held.late {
            let given: Vec<_> = self.given.iter().map(|given| (given.id, given.token)).collect();
            pick(held.pick, &given)
        } else {
            let leases = self.model.leases();
            let leases: Vec<_> = leases.iter().map(|(id, lease)| (*id, lease.token)).collect();
            pick(held.pick, &leases)
        }?;
        Some((id, if held.foreign { token + 1 } else { token }))
    }

    fn item(&mut self, id: Id, token: i64, ending: Ending) -> Settle {
        self.reports += 1;
        let (kind, wait) = match ending {
            Ending::Complete => (Kind::Complete, None),
            Ending::Fail(wait) => (Kind::Fail, wait.map(i64::from)),
            Ending::HandBack => (Kind::HandBack, None),
        };
        Settle { id, token, kind, wait, text: format!("r{}", self.reports), slots: Vec::new() }
    }

    // ── each operation ──────────────────────────────────────────────────────────────────────────

    async fn create(&mut self, tasks: &[Created]) -> Result<(), String> {
        let mut batch: Vec<New> = Vec::new();
        for Created(task, bypassed, priority, known, fact) in tasks {
            let task = of(*task, self.plans.len());
            // Keys are never used again, and here they are the tasks' own numbers.
            if batch.iter().any(|new| new.task == task) || self.model.removed.contains(&task) {
                continue;
            }
            let plan = self.plans[task];
            let steps = self.model.plans[plan].steps.len();
            let bypassed: BTreeSet<usize> = bypassed.iter().map(|no| of(*no, steps)).collect();
            let bypassed = bypassed.into_iter().collect();
            let (priority, known, fact) = (*priority, *known, *fact);
            batch.push(New { task, plan, bypassed, priority, known, fact });
        }
        if batch.is_empty() {
            return Ok(());
        }
        let exists: Vec<bool> = self.model.tasks.iter().map(Option::is_some).collect();
        let answer = self.database.create(&batch, |task| exists[task]).await;
        self.agree(answer, |model| {
            let (mut new, queues, places) = model.create_known(&batch);
            new.sort_unstable();
            Ok((new, queues, places))
        })?;
        self.look().await
    }

    async fn remove_named(&mut self, tasks: &[(Pick, Seen)], in_error: bool) -> Result<(), String> {
        let doomed = tasks.iter().map(|(task, seen)| {
            let task = of(*task, self.model.tasks.len());
            let Some(is) = &self.model.tasks[task] else { return (task, None, None) };
            match seen {
                Seen::Never => (task, None, None),
                Seen::Now => (task, Some(is.state), is.finished_at),
                Seen::InAnotherState => {
                    let other = if is.state == State::Complete {
                        State::Cancelled
                    } else {
                        State::Complete
                    };
                    (task, Some(other), is.finished_at)
                }
                Seen::WithAnotherEnd => (task, Some(is.state), is.finished_at.map(|end| end + 1)),
            }
        });
        let doomed: Vec<_> = doomed.collect();
        let answer = self.database.remove_named(&doomed, in_error).await;
        self.agree(answer, |model| Ok(model.remove_named(&doomed, in_error)))?;
        self.look().await
    }

    /// `from`: the place to look from, out of all there are.
    async fn claim(
        &mut self,
        node: usize,
        slots: &[(usize, usize)],
        from: Option<Pick>,
    ) -> Result<(), String> {
        let places = self.model.places();
        let from = from.filter(|_| !places.is_empty()).map_or(0, |pick| of(pick, places.len()));
        let slots = slots.iter().map(|(queue, n)| {
            (*queue, from, (0..*n).map(|slot| session(node, slot)).collect::<Vec<i64>>())
        });
        let slots: Vec<_> = slots.collect();
        if slots.is_empty() {
            return Ok(());
        }
        let answer = self.database.claim(node, &slots).await.map_err(|error| error.to_string())?;
        let mut tokens = Vec::new();
        let answer = answer.map(|(leases, ready)| {
            tokens.extend(leases.iter().map(|(_, leased)| leased.clone()));
            let unnamed = |leased| Leased { token: 0, ..leased };
            let leases = leases.into_iter().map(|(place, leased)| (place, unnamed(leased)));
            (leases.collect::<Vec<_>>(), ready)
        });
        self.agree(Ok(answer), |model| model.claim(node, &slots))?;
        self.learn(&tokens)?;
        self.look().await
    }

    async fn report(&mut self, node: usize, reports: &[Report]) -> Result<(), String> {
        let mut batch = Vec::new();
        for report in reports {
            let Some((id, token)) = self.held(report.held) else { continue };
            // The plan of a task outlives it.
            let plan = &self.model.plans[self.plans[id.task]].steps[id.no];
            let children = 0..plan.children.len();
            let slots =
                children.map(|no| (report.slots >> (no % 8) & 1 == 1).then(|| session(node, no)));
            let slots: Vec<_> = slots.collect();
            batch.push(Settle { slots, ..self.item(id, token, report.ending) });
            if let Some(ending) = report.again {
                batch.push(self.item(id, token, ending));
            }
        }
        self.settle(node, batch, None).await
    }

    async fn lose(&mut self, session: Pick, endings: &[Ending]) -> Result<(), String> {
        let mut sessions: Vec<i64> = self.given.iter().map(|given| given.session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        let Some(session) = pick(session, &sessions) else { return Ok(()) };
        let known = self.given.iter().rev().filter(|given| given.session == session);
        let known: Vec<Given> = known.take(6).copied().collect();
        let endings = endings.iter().cycle();
        let batch = known.into_iter().zip(endings);
        let batch = batch.map(|(given, ending)| self.item(given.id, given.token, *ending));
        let batch = batch.collect();
        self.settle(0, batch, Some(Sweep::Session(session))).await
    }

    async fn settle(
        &mut self,
        node: usize,
        batch: Vec<Settle>,
        sweep: Option<Sweep>,
    ) -> Result<(), String> {
        if batch.is_empty() {
            return Ok(());
        }
        let slots = batch.iter().any(|item| item.slots.iter().any(Option::is_some));
        let node = slots.then_some(node);
        let answer = self.database.settle(&batch, node, sweep.as_ref()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let tokens = answer.as_ref().map_or_else(|_| Vec::new(), |settled| settled.leases.clone());
        let answer = answer.map(|settled| {
            let leases = settled.leases.into_iter().map(|leased| Leased { token: 0, ..leased });
            Settled { leases: leases.collect(), ..settled }
        });
        self.agree(Ok(answer), |model| model.settle(&batch, node, sweep.as_ref(), &tokens))?;
        self.learn(&tokens)?;
        self.look().await
    }

    async fn adopt(&mut self, node: usize, slot: usize, held: &[Held]) -> Result<(), String> {
        let mut leases: Vec<(Id, i64)> = Vec::new();
        for held in held {
            let Some(lease) = self.held(*held) else { continue };
            if leases.iter().all(|(id, _)| *id != lease.0) {
                leases.push(lease);
            }
        }
        self.take(node, slot, &leases).await
    }

    async fn take(&mut self, node: usize, slot: usize, leases: &[(Id, i64)]) -> Result<(), String> {
        if leases.is_empty() {
            return Ok(());
        }
        let session = session(node, slot);
        let answer = self.database.adopt(node, session, leases).await;
        if let Some(adopted) = self.agree(answer, |model| model.adopt(node, session, leases))? {
            let adopted = adopted.into_iter().map(|(leased, _)| leased);
            self.given.extend(adopted.map(|l| Given { id: l.id, token: l.token, session }));
        }
        self.look().await
    }

    fn advance(&mut self, now: Ms) {
        self.model.now = now;
        self.database.at(now);
        self.coverage.operations += 1;
    }

    async fn release(&mut self, max: usize) -> Result<(), String> {
        let max = self.model.whole(max);
        let answer = self.database.release(max).await;
        let due = self.agree(answer, |model| Ok(model.release(max)))?;
        self.coverage.late += due.map_or(0, |due| due.late);
        self.look().await
    }

    async fn pause(&mut self, tasks: &[usize], paused: bool) -> Result<(), String> {
        let answer = self.database.pause(tasks, paused).await;
        self.agree(answer, |model| Ok(model.pause(tasks, paused)))?;
        self.look().await
    }

    async fn pause_plans(&mut self, which: (u8, Option<u8>), paused: bool) -> Result<(), String> {
        let answer = self.database.pause_plans(which, paused).await;
        self.agree(answer, |model| Ok(model.pause_plans(which, paused)))?;
        self.look().await
    }

    async fn grant(&mut self) -> Result<(), String> {
        let answer = self.database.grant().await;
        let given = self.agree(answer, |model| Ok(model.grant()))?;
        self.coverage.given += given.map_or(0, |(tasks, ..)| tasks);
        self.look().await
    }

    async fn move_steps(&mut self, to: Move, aims: &[Aim], more: Option<u8>) -> Result<(), String> {
        let event = match to {
            Move::Retry => StepRetryRequested::NUMBER,
            Move::Resolve | Move::Skip => StepResolvedManually::NUMBER,
            Move::Cancel => StepCancelled::NUMBER,
            Move::TimeOut => StepFailed::NUMBER,
        };
        let edge = catalog::event_type_by_number(event).and_then(|event| event.edge.as_ref());
        let edge = edge.expect("it records a move");
        let from = match to {
            Move::Skip | Move::TimeOut => vec![State::Pending],
            _ => edge.from.to_vec(),
        };
        let ids: Vec<Id> = aims.iter().filter_map(|aim| self.aimed(*aim, &from)).collect();
        if ids.is_empty() {
            return Ok(());
        }
        self.reports += 1;
        let note = format!("n{}", self.reports);
        let result = (to == Move::Resolve).then(|| note.clone());
        let to = edge.to.expect("a move leads somewhere");
        let (more, result) = (more.map(i32::from), result.as_deref());
        let event = i16::try_from(event).expect("a small number");
        let answer = self.database.move_steps(&ids, &from, to, event, more, result, &note).await;
        self.agree(answer, |model| Ok(model.move_steps(&ids, &from, to, more, result, &note)))?;
        self.look().await
    }

    async fn retry_once(
        &mut self,
        request: u8,
        again: bool,
        task: Pick,
        step: Option<Aim>,
        more: Option<i32>,
    ) -> Result<(), String> {
        let fresh = || {
            let task = of(task, self.model.tasks.len());
            let no = step.map(|aim| {
                let steps = self.model.tasks[task].as_ref().map_or(0, |task| task.steps.len());
                of(aim.pick, steps + 1)
            });
            Asked { task, no, more }
        };
        let before = self.asked.get(&request).filter(|_| again).copied();
        let asked = before.unwrap_or_else(fresh);
        self.asked.insert(request, asked);
        if asked.no.is_some() {
            let answer = self.database.retry_step_once(request, asked).await;
            self.agree(answer, |model| Ok(model.retry_step_once(request, asked)))?;
        } else {
            let answer = self.database.retry_task_once(request, asked).await;
            self.agree(answer, |model| Ok(model.retry_task_once(request, asked)))?;
        }
        self.look().await
    }

    async fn renew(&mut self, node: usize, held: u8) -> Result<(), String> {
        let answer = self.database.renew(node, LEASE).await;
        self.agree(answer, |model| {
            model.renew(node, LEASE);
            Ok(())
        })?;
        self.look().await?;
        let leases = self.model.leases().into_iter().filter(|(_, lease)| lease.node == node);
        let taken = leases.enumerate().filter(|(no, _)| held >> (no % 8) & 1 == 1);
        let taken: Vec<_> = taken.map(|(_, (id, lease))| (id, lease.token)).collect();
        self.take(self.model.nodes.len() - 1, 0, &taken).await
    }

    async fn walk(&mut self, by: Pick, ending: Ending, forget: bool) -> Result<(), String> {
        let left = (0..self.model.nodes.len()).filter(|node| {
            let node = &self.model.nodes[*node];
            node.retired_at.is_some() && !node.gone
        });
        let Some(node) = pick(by, &left.collect::<Vec<_>>()) else { return Ok(()) };
        let held = self.database.leases_of(node).await;
        let expected = self.model.leases().into_iter().filter(|(_, lease)| lease.node == node);
        let expected: Vec<(Id, i64)> = expected.map(|(id, lease)| (id, lease.token)).collect();
        if held != expected {
            return Err(format!("node {node} left {held:?}, not {expected:?}"));
        }
        // And what it once gave and others may hold by now, as one knows who read too early.
        let given = self.given.iter().rev().filter(|given| of_session(given.session) == node);
        let given: Vec<_> = given.take(4).map(|given| (given.id, given.token)).collect();
        let batch = held.into_iter().chain(given);
        let batch = batch.map(|(id, token)| self.item(id, token, ending)).collect();
        self.settle(0, batch, Some(Sweep::Node(node))).await?;
        if forget {
            let by = self.model.nodes[node].taken_by.unwrap_or_else(|| self.node(by));
            self.database.forget(node, by).await;
            self.model.forget(node, by);
        }
        self.model.events.clear();
        self.look().await
    }

    /// Honest executors run what is open. Nothing may be left behind.
    async fn finish(&mut self) -> Result<(), String> {
        for _ in 0..ROUNDS_MAX {
            let open = self.model.open();
            if open.is_empty() {
                return Ok(());
            }
            for which in self.model.pauses.clone() {
                self.pause_plans(which, false).await?;
            }
            let paused = open.into_iter().filter(|task| self.model.task(*task).paused);
            let paused: Vec<usize> = paused.collect();
            if !paused.is_empty() {
                self.pause(&paused, false).await?;
            }
            if !self.model.wake.is_empty() {
                self.grant().await?;
            }
            let living = self.model.nodes.iter().position(|node| node.retired_at.is_none());
            let Some(node) = living else {
                self.perform(&Operation::Start).await?;
                continue;
            };
            // Nobody waits longer than for the next attempts.
            let retry = |timer: &&Timer| timer.clock == Clock::Ready;
            if let Some(timer) = self.model.timers.iter().rev().find(retry) {
                self.advance(timer.due.max(self.model.now));
                self.release(self.model.timers.len()).await?;
            }
            if !self.model.ready.is_empty() {
                let rows = self.model.ready.len();
                let slots = self.model.queues.iter().map(|queue| (*queue, rows));
                self.claim(node, &slots.collect::<Vec<_>>(), None).await?;
            }
            let leases = self.model.leases();
            if leases.is_empty() {
                // What was offered held no longer, or clocks ended the rest.
                let more = !self.model.ready.is_empty() || !self.model.wake.is_empty();
                if more || self.model.open().is_empty() {
                    continue;
                }
                return Err("a task is open, and nothing of it waits or runs".into());
            }
            let mut batch = Vec::new();
            for (id, lease) in leases {
                let plan = &self.model.plans[self.model.task(id.task).plan].steps[id.no];
                let slots = (0..plan.children.len()).map(|no| Some(session(node, no))).collect();
                batch.push(Settle { slots, ..self.item(id, lease.token, Ending::Complete) });
            }
            self.settle(node, batch, None).await?;
        }
        Err(format!("tasks are open after {ROUNDS_MAX} rounds"))
    }

    // ── the comparison ──────────────────────────────────────────────────────────────────────────

    /// What the verb answers is what the model answers. A node that is retired leaves both as they were.
    fn agree<T: PartialEq + Debug>(
        &mut self,
        answer: Answer<T>,
        expected: impl FnOnce(&mut Model) -> Result<T, Retired>,
    ) -> Result<Option<T>, String> {
        self.coverage.operations += 1;
        let answer = answer.map_err(|error| error.to_string())?;
        self.model.events.clear();
        let mut model = self.model.clone();
        let expected = expected(&mut model);
        if answer != expected {
            return Err(format!(
                "\n  model answers    {expected:?}\n  database answers {answer:?}"
            ));
        }
        match expected {
            Ok(expected) => {
                self.model = model;
                Ok(Some(expected))
            }
            Err(Retired) => {
                self.coverage.fenced += 1;
                Ok(None)
            }
        }
    }

    /// Leases that the database gave: their tokens are new.
    fn learn(&mut self, leases: &[Leased]) -> Result<(), String> {
        for leased in leases {
            if self.given.iter().any(|given| given.token == leased.token) {
                return Err(format!("the token of {leased:?} was given before"));
            }
            let Leased { id, token, session, .. } = *leased;
            self.given.push(Given { id, token, session });
        }
        self.model.learn(leases);
        Ok(())
    }

    /// The rows are what the model says.
    async fn look(&mut self) -> Result<(), String> {
        let found = self.database.rows().await.map_err(|error| error.to_string())?;
        look::differences(&self.model, found)?;
        if self.thorough {
            let seen = self.database.views().await.map_err(|error| error.to_string())?;
            view::differences(&self.model, &seen)?;
        }
        self.coverage.events += self.model.events.len();
        for event in self.model.events.drain(..) {
            *self.coverage.edges.entry((event.kind, event.from, event.to)).or_default() += 1;
        }
        Ok(())
    }
}

/// The session of one of a node's slots.
fn session(node: usize, slot: usize) -> i64 {
    i64::try_from(node * SESSIONS + slot % SESSIONS + 1).expect("a handful")
}

/// The node whose slot it is.
fn of_session(session: i64) -> usize {
    usize::try_from(session - 1).expect("from 1 on") / SESSIONS
}
