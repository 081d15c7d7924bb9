//! What is ready, what waits and what state a task is in, situation by situation.

use std::sync::Arc;

use stepwell_proto::v1::{
    Definition,
    ExecutionStatus::{
        self, AllComplete, BackingOff, BlockedByFailures, HasReadySteps, Processing,
    },
    Health::{self, Blocked, Healthy, Recovering},
    State::{self, Cancelled, Complete, Error, InProgress, Pending},
};
use stepwell_store::{Change, Ending, LeaseRow, Move, Note, StoredDefinition, Writer};
use stepwell_tests::{Rows, check, new_task, report};
use uuid::Uuid;

/// What happens to a step, named by its number. Waits that must not be over are long: time passes by itself, too.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// It is leased.
    Runs(usize),
    Completes(usize),
    /// For good.
    Fails(usize),
    /// To be tried again after so many seconds.
    BacksOff(usize, i64),
    IsCancelled(usize),
    IsResolved(usize),
    /// So many seconds pass.
    Passes(i64),
}

use Happens::*;

/// A situation, and what is true in it.
struct Truth {
    situation: &'static str,
    steps: &'static str,
    /// Attempts each step may make.
    attempts: i32,
    happens: &'static [Happens],
    task: State,
    /// Whom the next claim gets.
    ready: &'static [i64],
    /// Who waits for its retry.
    backs_off: &'static [usize],
    /// Who waits for others.
    waits: &'static [usize],
    /// Where that leaves the task, and whether it needs somebody.
    stands: (ExecutionStatus, Health),
}

const NOTHING: Truth = Truth {
    situation: "",
    steps: "a",
    attempts: 3,
    happens: &[],
    task: Pending,
    ready: &[],
    backs_off: &[],
    waits: &[],
    stands: (HasReadySteps, Healthy),
};

const TRUTHS: &[Truth] = &[
    Truth { situation: "never tried, and may be tried once", attempts: 1, ready: &[0], ..NOTHING },
    Truth { situation: "never tried", ready: &[0], ..NOTHING },
    Truth {
        situation: "one parent is cancelled, the other runs",
        steps: "a; b; c: a b",
        happens: &[IsCancelled(0), Runs(1)],
        task: InProgress,
        waits: &[2],
        stands: (Processing, Blocked),
        ..NOTHING
    },
    Truth {
        situation: "one parent is cancelled, the other complete: nothing can go on",
        steps: "a; b; c: a b",
        happens: &[IsCancelled(0), Completes(1)],
        task: Cancelled,
        stands: (ExecutionStatus::Cancelled, Healthy),
        ..NOTHING
    },
    Truth {
        situation: "all steps are cancelled",
        steps: "a; b; c: a",
        happens: &[IsCancelled(0), IsCancelled(1)],
        task: Cancelled,
        stands: (ExecutionStatus::Cancelled, Healthy),
        ..NOTHING
    },
    Truth {
        situation: "all steps are resolved",
        steps: "a; b: a",
        happens: &[IsResolved(0), IsResolved(1)],
        task: Complete,
        stands: (AllComplete, Healthy),
        ..NOTHING
    },
    Truth {
        situation: "the first of three attempts has just failed",
        happens: &[BacksOff(0, 600)],
        task: InProgress,
        backs_off: &[0],
        stands: (BackingOff, Recovering),
        ..NOTHING
    },
    Truth {
        situation: "the same, ten minutes later",
        happens: &[BacksOff(0, 600), Passes(600)],
        task: InProgress,
        ready: &[0],
        stands: (HasReadySteps, Recovering),
        ..NOTHING
    },
    Truth {
        situation: "failed, and not to be tried again",
        steps: "a; b: a",
        attempts: 1,
        happens: &[Fails(0)],
        task: Error,
        waits: &[1],
        stands: (BlockedByFailures, Blocked),
        ..NOTHING
    },
    Truth {
        situation: "the last attempt has failed",
        happens: &[BacksOff(0, 0), BacksOff(0, 0), Fails(0)],
        task: Error,
        stands: (BlockedByFailures, Blocked),
        ..NOTHING
    },
    Truth {
        situation: "one has failed for good, another is ready",
        steps: "a; b; c: b",
        happens: &[Fails(0), Completes(1)],
        task: InProgress,
        ready: &[2],
        stands: (HasReadySteps, Recovering),
        ..NOTHING
    },
    Truth {
        situation: "one has failed for good, another runs",
        steps: "a; b; c: a b",
        happens: &[Runs(1), Fails(0)],
        task: InProgress,
        waits: &[2],
        stands: (Processing, Blocked),
        ..NOTHING
    },
    Truth {
        situation: "a wait of an hour that the handler asked for is not over",
        happens: &[BacksOff(0, 3600), Passes(1800)],
        task: InProgress,
        backs_off: &[0],
        stands: (BackingOff, Recovering),
        ..NOTHING
    },
    Truth {
        situation: "a wait of a second that it asked for is over: no other one counts",
        happens: &[BacksOff(0, 1), Passes(1)],
        task: InProgress,
        ready: &[0],
        stands: (HasReadySteps, Recovering),
        ..NOTHING
    },
    Truth {
        situation: "all steps are complete",
        steps: "a; b: a",
        happens: &[Completes(0), Completes(1)],
        task: Complete,
        stands: (AllComplete, Healthy),
        ..NOTHING
    },
    Truth {
        situation: "one has failed for good, another waits for its retry",
        steps: "a; b",
        happens: &[Fails(0), BacksOff(1, 600)],
        task: InProgress,
        backs_off: &[1],
        stands: (BackingOff, Blocked),
        ..NOTHING
    },
    Truth {
        situation: "the same, when its time has come",
        steps: "a; b",
        happens: &[Fails(0), BacksOff(1, 600), Passes(600)],
        task: InProgress,
        ready: &[1],
        stands: (HasReadySteps, Recovering),
        ..NOTHING
    },
    Truth {
        situation: "one of two parents is complete",
        steps: "a; b; c: a b",
        happens: &[Completes(0), Runs(1)],
        task: InProgress,
        waits: &[2],
        stands: (Processing, Healthy),
        ..NOTHING
    },
];

/// A task whose steps have a queue each.
struct Run<'a> {
    rows: &'a Rows,
    writer: &'a mut Writer,
    definition: Arc<StoredDefinition>,
    uid: Uuid,
}

impl Run<'_> {
    async fn lease(&mut self, step: usize) -> LeaseRow {
        let leases = self.rows.claim(self.writer, self.definition.queues[step], 1).await;
        *leases.first().unwrap_or_else(|| panic!("{step} is not ready"))
    }

    async fn end(&mut self, step: usize, ending: Ending) {
        let lease = self.lease(step).await;
        self.rows.settle(self.writer, &[report(&lease, ending, "{}")]).await;
    }

    async fn by_hand(&self, step: usize, to: Move) {
        let (number, note) = (i32::try_from(step).unwrap(), Note::new("ops@shop", "because"));
        let moved = self.rows.store.move_step(self.uid, number, &to, &note).await.unwrap().unwrap();
        assert!(moved.moved, "{to:?}: {moved:?}");
    }

    async fn happens(&mut self, what: Happens) {
        match what {
            Runs(step) => {
                self.lease(step).await;
            }
            Completes(step) => self.end(step, Ending::Complete).await,
            Fails(step) => self.end(step, Ending::Fail { wait_ms: None }).await,
            BacksOff(step, seconds) => {
                self.end(step, Ending::Fail { wait_ms: Some(seconds * 1000) }).await;
            }
            IsCancelled(step) => self.by_hand(step, Move::Cancel).await,
            IsResolved(step) => self.by_hand(step, Move::Resolve { result: None }).await,
            Passes(seconds) => {
                self.rows.pass(&format!("{seconds} s")).await;
                self.writer.release_due(9).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_is_ready_and_what_state_a_task_is_in_situation_by_situation() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    for truth in TRUTHS {
        let change = |definition: &mut Definition| {
            for step in &mut definition.steps {
                step.handler = step.name.clone();
                step.retry.as_mut().unwrap().max_attempts = truth.attempts;
            }
        };
        let definition = rows.define_with(truth.steps, change).await;
        let mut task = [new_task(&definition)];
        writer.create_tasks(&rows.store, &mut task).await.unwrap();
        let mut run = Run { rows: &rows, writer: &mut writer, definition, uid: task[0].uid };
        for what in truth.happens {
            run.happens(*what).await;
        }
        let uid = run.uid;
        let task = rows.store.task_with_steps(uid, false).await.unwrap().unwrap();
        let which = |is: &dyn Fn(&stepwell_proto::v1::Step) -> bool| {
            let numbers = (0..task.steps.len()).filter(|n| is(&task.steps[*n]));
            numbers.collect::<Vec<usize>>()
        };
        let pending = |step: &stepwell_proto::v1::Step| step.state() == Pending;
        let waits_for = which(&|step| pending(step) && step.waiting_on > 0);
        let now: i64 = rows.one("select extract(epoch from now())::bigint + $1", 0).await;
        let backs_off = which(&|step| {
            pending(step) && step.not_before.as_ref().is_some_and(|until| until.seconds > now)
        });
        let context = rows.store.task_contexts(&[uid]).await.unwrap().remove(&uid).unwrap();
        let counted = [context.ready_steps, context.backing_off_steps, context.parked_steps];
        let told = [truth.ready.len(), truth.backs_off.len(), 0];
        assert_eq!(counted.map(|n| usize::try_from(n).unwrap()), told, "{}", truth.situation);
        let waits = context.waiting_steps + context.blocked_steps;
        assert_eq!(usize::try_from(waits), Ok(truth.waits.len()), "{}", truth.situation);
        let stands = (context.execution_status(), context.health());
        assert_eq!(stands, truth.stands, "{}", truth.situation);
        let mut ready = Vec::new();
        for queue in run.definition.queues.clone() {
            let leases = rows.claim(run.writer, queue, 9).await;
            ready.extend(leases.iter().map(|lease| lease.step & 16383));
        }
        let found = (task.state(), ready.as_slice(), backs_off.as_slice(), waits_for.as_slice());
        let told = (truth.task, truth.ready, truth.backs_off, truth.waits);
        assert_eq!(found, told, "{}", truth.situation);
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn a_definition_without_steps_and_an_attempt_that_is_no_number_cannot_be_stored() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut empty = Definition::clone(&definition.definition);
    (empty.version, empty.steps) = ("2.0.0".to_owned(), Vec::new());
    assert!(rows.store.register_definition(&empty, |_, _| Ok(Change::Insert)).await.is_err());
    let task = rows.create(&definition).await;
    let nothing = "update stepwell.step set attempt = null where key = $1";
    let refused = sqlx::query(nothing).bind(task << 14);
    assert!(refused.execute(&mut rows.connection().await).await.is_err());
    check(&mut rows.connection().await).await;
}
