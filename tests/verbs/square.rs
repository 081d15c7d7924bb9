//! Every two moves that can meet at one step or its task, in both orders, behind a latch. What the two are
//! answered, and what is left, must be what a model says that does one after the other and knows no locks.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sqlx::PgConnection;
use stepwell_proto::v1::State::{
    self, Cancelled, Complete, Error, InProgress, Pending, ResolvedManually,
};
use stepwell_store::{
    ChildSlots, Ending, LeaseRow, Move, NewTask, Note, Report, StoredDefinition, Sweep, Writer,
};
use stepwell_tests::{Rows, SESSION, check, child_slots, new_task, prost_duration, report};
use uuid::Uuid;

use super::{
    priority::queue_at,
    races::{hold, race},
};

/// The priority of what hurries.
const FIRST: i16 = 1;

/// What can be done to the step `a` of `a; b: a`, or to its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Claim,
    // By who holds the lease.
    Completes,
    Fails,
    FailsForNow,
    HandsBack,
    // By the node.
    Expires,
    IsTakenOver,
    IsAdopted,
    // By hand.
    CancelStep,
    CancelTask,
    RetryStep,
    RetryTask,
    ResolveStep,
    ResolveTask,
    Skip,
    Pause,
    /// Its task goes first from now on.
    Hurry,
    // By the clock.
    BackOffEnds,
    QueueTimeout,
    TotalTimeout,
    Deadline,
}

use Act::*;

impl Act {
    /// The kind of timer it is, as `timer.kind`.
    fn clock(self) -> Option<i16> {
        match self {
            BackOffEnds => Some(0),
            QueueTimeout => Some(1),
            TotalTimeout => Some(2),
            Deadline => Some(3),
            _ => None,
        }
    }

    /// It ends the lease of a step that runs.
    fn ends_a_lease(self) -> bool {
        matches!(self, Completes | Fails | FailsForNow | HandsBack | Expires | IsTakenOver)
            || matches!(self, CancelStep | CancelTask | TotalTimeout | Deadline)
    }
}

/// Where `a` is when the two meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// It is ready.
    Ready,
    /// It runs.
    Running,
    /// Its first attempt has failed, and it waits for its second.
    BackingOff,
    /// Its first attempt has failed for good, and its task with it.
    Failed,
}

/// What somebody is told: the state of the step and of the task when it was his turn, and what he has moved:
/// leases he got or kept, reports accepted, steps or tasks moved, steps out of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    step: Option<State>,
    task: Option<State>,
    moved: usize,
}

fn moved(moved: usize) -> Answer {
    Answer { step: None, task: None, moved }
}

/// One task of two steps.
#[derive(Clone, Debug)]
struct Model {
    task: State,
    a: State,
    b: State,
    paused: bool,
    hurries: bool,
    backs_off: bool,
    /// It was adopted: neither its first session nor its first node hold it.
    is_adopted: bool,
    /// How the first lease of `a` ended, if a report or a sweep did it.
    ended: Option<&'static str>,
    /// How often a lease of `a` ended.
    ends: usize,
    /// Leases whose executors must be told that they are void.
    void: usize,
    /// A person gave it its whole time again.
    total_is_new: bool,
    deadline_is_new: bool,
}

impl Model {
    fn of(scene: Scene) -> Self {
        let (task, a) = match scene {
            Scene::Ready => (Pending, Pending),
            Scene::Running => (InProgress, InProgress),
            Scene::BackingOff => (InProgress, Pending),
            Scene::Failed => (Error, Error),
        };
        let has_failed = matches!(scene, Scene::BackingOff | Scene::Failed);
        Self {
            task,
            a,
            b: Pending,
            paused: false,
            hurries: false,
            backs_off: scene == Scene::BackingOff,
            is_adopted: false,
            ended: has_failed.then_some("fails"),
            ends: usize::from(has_failed),
            void: 0,
            total_is_new: false,
            deadline_is_new: false,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.task, Pending | InProgress)
    }

    fn b_is_free(&self) -> bool {
        self.b == Pending && matches!(self.a, Complete | ResolvedManually)
    }

    fn move_a(&mut self, to: State) {
        self.ends += usize::from(self.a == InProgress);
        self.a = to;
    }

    /// Ends, keeps or re-opens the task, by its steps alone.
    fn count(&mut self) {
        let live =
            matches!(self.a, Pending | InProgress) || self.b == InProgress || self.b_is_free();
        if live {
            if self.task == Error {
                (self.task, self.deadline_is_new) = (Pending, true);
            }
        } else if self.a == Error || self.b == Error {
            self.task = Error;
        } else if self.a == Cancelled || self.b == Cancelled {
            self.task = Cancelled;
            self.b = if self.b == Pending { Cancelled } else { self.b };
        } else {
            self.task = Complete;
        }
    }

    /// A report, or a sweep, of the first lease.
    fn end(&mut self, how: &'static str, holds: bool, to: State) -> Answer {
        if self.a == InProgress && holds {
            self.move_a(to);
            self.ended = Some(how);
            if to == Complete && !self.paused {
                self.b = InProgress;
            }
            self.count();
            return moved(1);
        }
        moved(usize::from(self.ended == Some(how)))
    }

    /// A move of `a` by hand.
    fn by_hand(&mut self, from: &[State], to: State) -> Answer {
        let answer = Answer { step: Some(self.a), task: Some(self.task), moved: 0 };
        if !from.contains(&self.a) || !(self.is_open() || self.task == Error) {
            return answer;
        }
        self.void += usize::from(self.a == InProgress);
        self.total_is_new |= to == Pending;
        self.backs_off &= to != Pending;
        self.move_a(to);
        self.count();
        Answer { moved: 1, ..answer }
    }

    fn is_late(&mut self, to_a: bool, to_b: bool) -> Answer {
        self.void += usize::from(to_a && self.a == InProgress);
        self.void += usize::from(to_b && self.b == InProgress);
        if to_a {
            self.move_a(Error);
        }
        if to_b {
            self.b = Error;
        }
        if to_a || to_b {
            self.count();
        }
        moved(usize::from(to_a) + usize::from(to_b))
    }

    fn act(&mut self, act: Act) -> Answer {
        let told =
            |task, did: bool| Answer { step: None, task: Some(task), moved: usize::from(did) };
        let was = self.task;
        let holds = !self.is_adopted;
        match act {
            Claim => {
                // It looks into the queue of the usual priority.
                let got = self.a == Pending && self.is_open() && !self.paused && !self.hurries;
                if got {
                    (self.a, self.task) = (InProgress, InProgress);
                }
                moved(usize::from(got))
            }
            Completes => self.end("completes", true, Complete),
            Fails => self.end("fails", true, Error),
            FailsForNow => self.end("fails", true, Pending),
            HandsBack => self.end("is handed back", true, Pending),
            Expires | IsTakenOver => self.end("is swept", holds, Error),
            IsAdopted => {
                let runs = self.a == InProgress;
                self.is_adopted |= runs;
                moved(usize::from(runs))
            }
            CancelStep => self.by_hand(&[Pending, InProgress, Error], Cancelled),
            RetryStep => self.by_hand(&[Error], Pending),
            ResolveStep => self.by_hand(&[Pending, Error], ResolvedManually),
            Skip => self.by_hand(&[Pending], ResolvedManually),
            CancelTask => {
                let did = self.is_open() || was == Error;
                if did {
                    self.void +=
                        usize::from(self.a == InProgress) + usize::from(self.b == InProgress);
                    for unfinished in [Pending, InProgress, Error] {
                        if self.a == unfinished {
                            self.move_a(Cancelled);
                        }
                        self.b = if self.b == unfinished { Cancelled } else { self.b };
                    }
                    self.task = Cancelled;
                }
                told(was, did)
            }
            RetryTask => {
                let did = was == Error && self.a == Error;
                if did {
                    (self.a, self.b, self.total_is_new) = (Pending, Pending, true);
                    self.count();
                }
                told(was, did)
            }
            ResolveTask => {
                self.task = if was == Error { ResolvedManually } else { was };
                told(was, was == Error)
            }
            Pause => {
                let did = (self.is_open() || was == Error) && !self.paused;
                self.paused |= did;
                told(was, did)
            }
            Hurry => {
                self.hurries = true;
                told(was, true)
            }
            BackOffEnds => {
                self.backs_off = false;
                moved(0)
            }
            QueueTimeout => self.is_late(self.a == Pending && self.is_open(), false),
            TotalTimeout => {
                let runs = matches!(self.a, Pending | InProgress) && self.is_open();
                self.is_late(runs && !self.total_is_new, false)
            }
            Deadline => {
                let late = self.is_open() && !self.deadline_is_new;
                let unfinished = |step| late && matches!(step, Pending | InProgress);
                self.is_late(unfinished(self.a), unfinished(self.b))
            }
        }
    }

    /// The steps that whoever comes next gets.
    fn ready(&self) -> BTreeSet<i64> {
        let mut ready = BTreeSet::new();
        if self.is_open() && !self.paused {
            ready.extend((self.a == Pending && !self.backs_off).then_some(0));
            ready.extend(self.b_is_free().then_some(1));
        }
        ready
    }
}

/// The real thing.
struct Stage<'a> {
    rows: &'a Rows,
    adopter: i32,
    definition: Arc<StoredDefinition>,
    uid: Uuid,
    key: i64,
    /// The first lease of `a`.
    lease: Option<LeaseRow>,
}

impl<'a> Stage<'a> {
    async fn set(
        rows: &'a Rows,
        adopter: i32,
        definition: &Arc<StoredDefinition>,
        scene: Scene,
        writer: &mut Writer,
    ) -> Self {
        let definition = Arc::clone(definition);
        let mut task = [new_task(&definition)];
        writer.create_tasks(&rows.store, &mut task).await.unwrap();
        let (uid, key) = (task[0].uid, task[0].key.unwrap());
        let mut stage = Self { rows, adopter, definition, uid, key, lease: None };
        if scene != Scene::Ready {
            let lease = rows.claim(writer, stage.definition.queues[0], 1).await[0];
            stage.lease = Some(lease);
            let wait_ms = match scene {
                Scene::BackingOff => Some(3_600_000),
                _ => None,
            };
            if scene != Scene::Running {
                rows.settle(writer, &[report(&lease, Ending::Fail { wait_ms }, "{}")]).await;
            }
        }
        stage
    }

    /// The clocks of these acts have run out, one after the other.
    async fn wind(&self, connection: &mut PgConnection, acts: [Act; 2]) {
        for (place, act) in acts.into_iter().enumerate() {
            let Some(kind) = act.clock() else { continue };
            for sql in [
                "update stepwell.timer set due = now() - interval '1 h' + $1 * interval '1 s'
                  where key >> 14 = $2 and kind = $3",
                "update stepwell.step set due = case $3 when 2 then now() - $1 * interval '1 s' else due end,
                        not_before = case $3 when 0 then now() - $1 * interval '1 s' else not_before end
                  where key = $2 << 14 and $3 in (0, 2)",
                "update stepwell.task set deadline = now() - $1 * interval '1 s' where id = $2 and $3 = 3",
            ] {
                let update = sqlx::query(sql).bind(place as f64).bind(self.key).bind(kind);
                update.execute(&mut *connection).await.unwrap();
            }
        }
    }

    async fn settle(&self, writer: &mut Writer, ending: Ending, sweep: Option<Sweep>) -> Answer {
        let lease = self.lease.expect("a scene with a lease");
        let slots = match ending {
            Ending::Complete => child_slots(&[1]),
            _ => ChildSlots::default(),
        };
        let reports: [Report; 1] = [report(&lease, ending, "{}")];
        let settled =
            writer.settle(&reports, &slots, self.rows.node, sweep.as_ref()).await.unwrap();
        moved(usize::from(settled.accepted[0]))
    }

    async fn act(&self, writer: &mut Writer, act: Act) -> Answer {
        let note = Note::new("ops@shop", "because");
        let store = &self.rows.store;
        let told = |task: Option<State>, did| Answer { step: None, task, moved: usize::from(did) };
        let step = |to: Move| async move {
            let note = Note::new("ops@shop", "because");
            let answer = store.move_step(self.uid, 0, &to, &note).await.unwrap().unwrap();
            let (was, task) = (Some(answer.was), Some(answer.task));
            Answer { step: was, task, moved: usize::from(answer.moved) }
        };
        let fails = Ending::Fail { wait_ms: None };
        match act {
            Claim => moved(self.rows.claim(writer, self.definition.queues[0], 1).await.len()),
            Completes => self.settle(writer, Ending::Complete, None).await,
            Fails => self.settle(writer, fails, None).await,
            FailsForNow => self.settle(writer, Ending::Fail { wait_ms: Some(0) }, None).await,
            HandsBack => self.settle(writer, Ending::HandBack, None).await,
            Expires => self.settle(writer, fails, Some(Sweep::Sessions(vec![SESSION]))).await,
            IsTakenOver => self.settle(writer, fails, Some(Sweep::Node(self.rows.node))).await,
            IsAdopted => {
                let lease = self.lease.expect("a scene with a lease");
                let held = [(lease.step, lease.token, SESSION + 1)];
                moved(writer.adopt(&held, self.adopter).await.unwrap().len())
            }
            CancelStep => step(Move::Cancel).await,
            RetryStep => step(Move::Retry { attempts: None }).await,
            ResolveStep => step(Move::Resolve { result: None }).await,
            Skip => step(Move::Skip).await,
            CancelTask => {
                let was = store.cancel_tasks(&[self.uid], false, &note).await.unwrap().was[0];
                told(was, matches!(was, Some(Pending | InProgress | Error)))
            }
            RetryTask => {
                let retried = store.retry_tasks(&[self.uid], None, &note).await.unwrap()[0];
                told(retried.was, retried.steps > 0)
            }
            ResolveTask => {
                let was = store.resolve_tasks(&[self.uid], &note).await.unwrap()[0];
                told(was, was == Some(Error))
            }
            Pause => {
                let paused = store.pause_tasks(&[self.uid], true, &note).await.unwrap()[0];
                let able = matches!(paused.was, Some(Pending | InProgress | Error));
                told(paused.was, able && !paused.paused)
            }
            Hurry => {
                let note = Note { priority: Some(FIRST), ..note };
                told(store.update_task(self.uid, &note, None).await.unwrap(), true)
            }
            // One timer each: the earlier one first.
            BackOffEnds | QueueTimeout | TotalTimeout | Deadline => {
                let due = writer.release_due(1).await.unwrap();
                assert_eq!(due.taken, 1);
                moved(due.late)
            }
        }
    }
}

/// Whether two acts stand in line for one row: of two who take the same timer, or the same place in a queue,
/// the second passes over it instead.
fn meet(first: Act, second: Act) -> bool {
    first != second || (first.clock().is_none() && first != Claim)
}

/// The queue of what hurries, empty.
async fn first_queue(rows: &Rows, definition: &Arc<StoredDefinition>, writer: &mut Writer) -> i32 {
    let task = NewTask { priority: Some(FIRST), ..new_task(definition) };
    let uid = task.uid;
    writer.create_tasks(&rows.store, &mut [task]).await.unwrap();
    rows.cancel(uid).await;
    let queue = queue_at(rows, definition, FIRST).await.unwrap();
    assert!(rows.claim(writer, queue, 9).await.is_empty());
    queue
}

/// All pairs of acts in a scene.
async fn square(scene: Scene, acts: &[Act]) {
    let rows = Rows::new().await;
    let adopter = rows.store.register_node(Duration::from_secs(300)).await.unwrap();
    let (mut one, mut other) = (rows.writer().await, rows.writer().await);
    let mut connection = rows.connection().await;
    for ruled in [false, true] {
        let hour = || ruled.then(|| prost_duration(3600));
        let change = |definition: &mut stepwell_proto::v1::Definition| {
            definition.deadline = hour();
            definition.steps[0].queue_timeout = hour();
            definition.steps[0].total_timeout = hour();
        };
        let definition = rows.define_with("a; b: a", change).await;
        let first_queue = first_queue(&rows, &definition, &mut one).await;
        // Only tasks that are ruled have clocks, and only they and those that are paused are counted apart.
        let concerns = |act: Act| if ruled { act.clock().is_some() || act == Pause } else { true };
        let pairs = acts.iter().flat_map(|&first| acts.iter().map(move |&second| (first, second)));
        let pairs = pairs.filter(|&(first, second)| {
            let can = ruled || first.clock().is_none() && second.clock().is_none();
            can && meet(first, second) && (concerns(first) || concerns(second))
        });
        for (first, second) in pairs {
            let story = format!("{scene:?}, ruled: {ruled}: {first:?}, then {second:?}");
            let stage = Stage::set(&rows, adopter, &definition, scene, &mut one).await;
            stage.wind(&mut connection, [first, second]).await;
            let latch = hold(&rows, stage.key).await;
            let answers =
                race(&rows, latch, stage.act(&mut one, first), stage.act(&mut other, second)).await;
            let mut model = Model::of(scene);
            assert_eq!(answers, (model.act(first), model.act(second)), "{story}");

            let task = rows.store.task_with_steps(stage.uid, false).await.unwrap().unwrap();
            let states = (task.state(), task.steps[0].state(), task.steps[1].state(), task.paused);
            assert_eq!(states, (model.task, model.a, model.b, model.paused), "{story}");
            let ends = "select count(*) from stepwell.event
                         where task = $1 and no = 0 and from_state = 2";
            let ends: i64 = rows.one(ends, stage.key).await;
            assert_eq!(ends, i64::try_from(model.ends).unwrap(), "{story}");
            if scene == Scene::Running && first.ends_a_lease() && second.ends_a_lease() {
                assert_eq!(ends, 1, "{story}: exactly one of them ends the lease");
            }
            let void = "select count(*) from stepwell.signal where key >> 14 = $1";
            let void: i64 = rows.one(void, stage.key).await;
            assert_eq!(void, i64::try_from(model.void).unwrap(), "{story}");
            // It leaves nothing in the queues to the next pair.
            let usual = rows.claim(&mut one, stage.definition.queues[0], 9).await;
            let first = rows.claim(&mut one, first_queue, 9).await;
            let (next, none) = if model.hurries { (first, usual) } else { (usual, first) };
            let next: BTreeSet<i64> = next.iter().map(|lease| lease.step & 16383).collect();
            assert_eq!((next, none.len()), (model.ready(), 0), "{story}");
        }
        check(&mut connection).await;
    }
}

#[tokio::test]
async fn of_any_two_that_meet_at_a_running_step_one_ends_its_lease_and_both_are_told_the_truth() {
    let acts = [
        Completes,
        Fails,
        FailsForNow,
        HandsBack,
        Expires,
        IsTakenOver,
        IsAdopted,
        CancelStep,
        CancelTask,
        RetryStep,
        RetryTask,
        ResolveStep,
        ResolveTask,
        Skip,
        Pause,
        Hurry,
        TotalTimeout,
        Deadline,
    ];
    square(Scene::Running, &acts).await;
}

#[tokio::test]
async fn of_any_two_that_meet_at_a_ready_step_the_second_finds_what_the_first_left() {
    let acts = [
        Claim,
        CancelStep,
        CancelTask,
        RetryStep,
        RetryTask,
        ResolveStep,
        ResolveTask,
        Skip,
        Pause,
        Hurry,
        QueueTimeout,
        TotalTimeout,
        Deadline,
    ];
    square(Scene::Ready, &acts).await;
}

#[tokio::test]
async fn of_any_two_that_meet_at_a_step_in_back_off_the_second_finds_what_the_first_left() {
    let acts = [
        BackOffEnds,
        FailsForNow,
        Completes,
        IsAdopted,
        CancelStep,
        CancelTask,
        RetryStep,
        ResolveStep,
        Skip,
        Pause,
        Hurry,
        TotalTimeout,
        Deadline,
    ];
    square(Scene::BackingOff, &acts).await;
}

#[tokio::test]
async fn of_any_two_that_meet_at_a_step_in_error_the_second_finds_what_the_first_left() {
    let acts = [
        Completes,
        Fails,
        Expires,
        IsAdopted,
        CancelStep,
        CancelTask,
        RetryStep,
        RetryTask,
        ResolveStep,
        ResolveTask,
        Skip,
        Pause,
        Hurry,
        TotalTimeout,
        Deadline,
    ];
    square(Scene::Failed, &acts).await;
}
