//! What people do to steps and tasks, one by one: which state allows what, what follows, and what
//! the log says of it.

use std::sync::Arc;

use sqlx::Row;
use stepwell_proto::v1::State::{
    self, Cancelled, Complete, Error, InProgress, Pending, ResolvedManually,
};
use stepwell_store::{Ending, Move, Moved, Note, StoredDefinition, Writer};
use stepwell_tests::{Rows, check, complete, new_task, report};
use uuid::Uuid;

/// A task, and a line to run its steps by hand.
pub(super) struct Run {
    pub(super) rows: Rows,
    pub(super) definition: Arc<StoredDefinition>,
    pub(super) writer: Writer,
    pub(super) uid: Uuid,
    pub(super) key: i64,
}

impl Run {
    pub(super) async fn of(steps: &str) -> Self {
        let rows = Rows::new().await;
        let definition = rows.define(steps).await;
        Self::in_rows(rows, definition, Vec::new()).await
    }

    pub(super) async fn in_rows(
        rows: Rows,
        definition: Arc<StoredDefinition>,
        skipped: Vec<i32>,
    ) -> Self {
        let mut writer = rows.writer().await;
        let mut task = [new_task(&definition)];
        task[0].skipped = skipped;
        writer.create_tasks(&rows.store, &mut task).await.unwrap();
        let [task] = task;
        Self { rows, definition, writer, uid: task.uid, key: task.key.unwrap() }
    }

    /// Leases all that is ready, and ends these steps; the others stay in progress.
    pub(super) async fn run(&mut self, ends: &[(i32, Ending)]) {
        let leases = self.rows.claim(&mut self.writer, self.definition.queues[0], 100).await;
        let ended = ends.iter().map(|(number, ending)| {
            let lease = leases.iter().find(|lease| lease.step == self.step(*number));
            report(lease.unwrap_or_else(|| panic!("{number} is not ready")), *ending, "{}")
        });
        let ended: Vec<_> = ended.collect();
        self.rows.settle(&mut self.writer, &ended).await;
    }

    pub(super) fn step(&self, number: i32) -> i64 {
        stepwell_proto::id::step_key(self.key, number)
    }

    pub(super) async fn to(&self, number: i32, to: Move) -> Moved {
        self.rows.store.move_step(self.uid, number, &to, &note()).await.unwrap().unwrap()
    }

    pub(super) async fn moves(&self, number: i32, to: Move) {
        let moved = self.to(number, to.clone()).await;
        assert!(moved.moved, "{to:?}: {moved:?}");
    }

    /// The state of the task, and of each of its steps.
    pub(super) async fn states(&self) -> (State, Vec<State>) {
        let task = self.rows.store.task_with_steps(self.uid, false).await.unwrap().unwrap();
        (task.state(), task.steps.iter().map(stepwell_proto::v1::Step::state).collect())
    }

    /// The log of the task as `number type`, from its n-th row on; a task's own rows without a number.
    pub(super) async fn log(&self, from: usize) -> Vec<String> {
        let rows =
            sqlx::query("select no, type from stepwell.event where task = $1 order by position")
                .bind(self.key)
                .fetch_all(&mut self.rows.connection().await)
                .await
                .unwrap();
        let line = |row: &sqlx::postgres::PgRow| {
            let (no, of): (Option<i32>, i16) = (row.get(0), row.get(1));
            let name = stepwell_proto::catalog::event_type_by_number(u32::from(of.unsigned_abs()))
                .unwrap()
                .name;
            no.map_or(name.to_owned(), |no| format!("{no} {name}"))
        };
        rows.iter().skip(from).map(line).collect()
    }

    pub(super) async fn check(&self) {
        check(&mut self.rows.connection().await).await;
    }
}

pub(super) fn note() -> Note {
    Note::new("ops@shop", "because")
}

pub(super) const FAILS: Ending = Ending::Fail { wait_ms: None };
pub(super) const RETRY: Move = Move::Retry { attempts: None };
pub(super) const RESOLVE: Move = Move::Resolve { result: None };

#[tokio::test]
async fn a_step_in_error_is_tried_again_and_its_task_goes_on_to_its_end() {
    let mut run = Run::of("a; b: a").await;
    run.run(&[(0, FAILS)]).await;
    assert_eq!(run.states().await.0, Error);
    let before = run.log(0).await.len();
    run.moves(0, RETRY).await;
    assert_eq!(run.states().await, (Pending, vec![Pending, Pending]));
    assert_eq!(run.log(before).await, ["0 step.retry_requested", "task.retry_requested"]);
    run.check().await;
    let step = run.rows.store.step(run.uid, 0).await.unwrap().unwrap();
    assert_eq!((step.attempt, step.max_attempts), (1, 4), "as many more as the plan says");
    run.run(&[(0, Ending::Complete)]).await;
    run.run(&[(1, Ending::Complete)]).await;
    assert_eq!(run.states().await.0, Complete);
    run.check().await;
}

#[tokio::test]
async fn a_retry_may_say_how_many_attempts_it_gives() {
    let mut run = Run::of("a").await;
    run.run(&[(0, FAILS)]).await;
    run.moves(0, Move::Retry { attempts: Some(7) }).await;
    let step = run.rows.store.step(run.uid, 0).await.unwrap().unwrap();
    assert_eq!(step.max_attempts, 8);
}

#[tokio::test]
async fn children_of_a_resolved_step_read_the_result_it_was_given() {
    let mut run = Run::of("a; b: a").await;
    run.run(&[(0, FAILS)]).await;
    let result = Some(r#"{"charge": "c_17"}"#.to_owned());
    run.moves(0, Move::Resolve { result: result.clone() }).await;
    assert_eq!(run.states().await, (Pending, vec![ResolvedManually, Pending]));
    let parent = (run.step(1), run.step(0));
    let inputs = run.rows.store.inputs(&[], &[parent], &[], (1000, 1000)).await.unwrap();
    assert_eq!(inputs.results[&parent], result);
    let released = "select names from stepwell.event where task = $1 and type = 46";
    assert_eq!(run.rows.one::<Vec<i32>>(released, run.key).await, [1]);
    run.run(&[(1, Ending::Complete)]).await;
    assert_eq!(run.states().await.0, Complete);
    run.check().await;
}

#[tokio::test]
async fn when_the_last_failed_step_is_resolved_its_task_completes_edge_by_edge() {
    let mut run = Run::of("a; b").await;
    run.run(&[(0, FAILS), (1, Ending::Complete)]).await;
    assert_eq!(run.states().await.0, Error);
    let before = run.log(0).await.len();
    run.moves(0, RESOLVE).await;
    assert_eq!(run.states().await, (Complete, vec![ResolvedManually, Complete]));
    assert_eq!(
        run.log(before).await,
        [
            "0 step.resolved_manually",
            "task.retry_requested",
            "task.start_requested",
            "task.completed"
        ]
    );
    run.check().await;
}

#[tokio::test]
async fn a_task_whose_steps_are_all_resolved_before_they_ran_is_complete() {
    let run = Run::of("a; b: a").await;
    run.moves(1, RESOLVE).await;
    assert_eq!(run.states().await.0, Pending);
    run.moves(0, RESOLVE).await;
    assert_eq!(run.states().await, (Complete, vec![ResolvedManually; 2]));
    run.check().await;
}

#[tokio::test]
async fn what_waits_behind_a_cancelled_step_is_cancelled_with_the_task_when_the_rest_is_done() {
    let mut run = Run::of("a; b; c: a; d: c; e: b").await;
    run.moves(0, Move::Cancel).await;
    assert_eq!(run.states().await, (Pending, vec![Cancelled, Pending, Pending, Pending, Pending]));
    run.run(&[(1, Ending::Complete)]).await;
    let before = run.log(0).await.len();
    run.run(&[(4, Ending::Complete)]).await;
    assert_eq!(
        run.states().await,
        (Cancelled, vec![Cancelled, Complete, Cancelled, Cancelled, Complete])
    );
    assert_eq!(
        run.log(before).await[1..],
        ["4 step.completed", "2 step.cancelled", "3 step.cancelled", "task.cancelled"]
    );
    run.check().await;
}

#[tokio::test]
async fn a_task_with_steps_in_error_and_steps_cancelled_is_in_error() {
    let mut run = Run::of("a; b; c: a").await;
    run.moves(0, Move::Cancel).await;
    run.run(&[(1, FAILS)]).await;
    assert_eq!(run.states().await, (Error, vec![Cancelled, Error, Pending]));
    run.check().await;
    // Nothing is in error any more, and nothing can go on.
    run.moves(1, Move::Cancel).await;
    assert_eq!(run.states().await, (Cancelled, vec![Cancelled, Cancelled, Cancelled]));
    run.check().await;
}

#[tokio::test]
async fn a_running_step_that_is_cancelled_loses_its_lease_and_its_node_is_told() {
    let mut run = Run::of("a; b").await;
    let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 2).await;
    run.moves(0, Move::Cancel).await;
    let signals = run.writer.signals(&[run.rows.node]).await.unwrap();
    assert_eq!(
        (signals.len(), signals[0].step, signals[0].reason.as_str()),
        (1, run.step(0), "because")
    );
    let done = [complete(&leases[0], "1"), complete(&leases[1], "1")];
    assert_eq!(run.rows.settle(&mut run.writer, &done).await.accepted, [false, true]);
    assert_eq!(run.states().await, (Cancelled, vec![Cancelled, Complete]));
    run.check().await;
}

#[tokio::test]
async fn a_step_behind_a_cancelled_one_is_not_tried_again_but_may_be_resolved() {
    let mut run = Run::of("a; b: a; c").await;
    // As when it has waited too long.
    sqlx::query(
        "select stepwell.move_steps(array[$1], '{1}', '{1}', 4::smallint, 42::smallint, '{}', '')",
    )
    .bind(run.uid)
    .execute(&mut run.rows.connection().await)
    .await
    .unwrap();
    run.moves(0, Move::Cancel).await;
    run.run(&[(2, Ending::Complete)]).await;
    assert_eq!(run.states().await, (Error, vec![Cancelled, Error, Complete]));
    let refused = run.to(1, RETRY).await;
    assert_eq!((refused.moved, refused.blocked), (false, true));
    let retried = run.rows.store.retry_tasks(&[run.uid], None, &note()).await.unwrap();
    assert_eq!((retried[0].was, retried[0].steps), (Some(Error), 0));
    run.moves(1, RESOLVE).await;
    assert_eq!(run.states().await, (Cancelled, vec![Cancelled, ResolvedManually, Complete]));
    run.check().await;
}

#[tokio::test]
async fn a_step_that_still_waits_is_retried_without_being_ready() {
    let run = Run::of("a; b: a").await;
    sqlx::query(
        "select stepwell.move_steps(array[$1], '{1}', '{1}', 4::smallint, 42::smallint, '{}', '')",
    )
    .bind(run.uid)
    .execute(&mut run.rows.connection().await)
    .await
    .unwrap();
    run.check().await;
    run.moves(1, RETRY).await;
    assert_eq!(run.states().await, (Pending, vec![Pending, Pending]));
    let ready = "select count(*) from stepwell.ready_step where key = $1";
    assert_eq!(run.rows.one::<i64>(ready, run.step(1)).await, 0);
    run.check().await;
}

#[tokio::test]
async fn parent_and_child_are_resolved_by_one_call() {
    let run = Run::of("a; b: a; c: b").await;
    sqlx::query("select stepwell.move_steps(array[$1, $1], '{1, 0}', '{1}', 6::smallint, 46::smallint, '{}', '')")
        .bind(run.uid)
        .execute(&mut run.rows.connection().await)
        .await
        .unwrap();
    assert_eq!(run.states().await, (Pending, vec![ResolvedManually, ResolvedManually, Pending]));
    run.check().await;
}

#[tokio::test]
async fn steps_to_be_bypassed_are_resolved_with_the_task_s_creation_and_the_rest_runs() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a; c: b").await;
    let mut run = Run::in_rows(rows, definition, vec![0]).await;
    assert_eq!(run.states().await, (Pending, vec![ResolvedManually, Pending, Pending]));
    assert_eq!(run.log(0).await, ["task.initialize_requested", "0 step.resolved_manually"]);
    run.check().await;
    run.run(&[(1, Ending::Complete)]).await;
    run.run(&[(2, Ending::Complete)]).await;
    assert_eq!(run.states().await.0, Complete);
    run.check().await;
}

#[tokio::test]
async fn a_task_all_of_whose_steps_are_bypassed_is_complete_at_once() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let run = Run::in_rows(rows, definition, vec![0, 1]).await;
    assert_eq!(run.states().await, (Complete, vec![ResolvedManually; 2]));
    run.check().await;
}

#[tokio::test]
async fn a_task_is_retried_resolved_and_cancelled_as_its_state_allows() {
    let mut run = Run::of("a; b: a; c").await;
    run.run(&[(0, FAILS), (2, FAILS)]).await;
    let retried = run.rows.store.retry_tasks(&[run.uid], None, &note()).await.unwrap();
    assert_eq!((retried[0].was, retried[0].steps), (Some(Error), 2));
    assert_eq!(run.states().await.0, Pending);
    let again = run.rows.store.retry_tasks(&[run.uid], None, &note()).await.unwrap();
    assert_eq!((again[0].was, again[0].steps), (Some(Pending), 0));
    run.check().await;
    run.run(&[(0, FAILS), (2, Ending::Complete)]).await;
    let resolved = run.rows.store.resolve_tasks(&[run.uid], &note()).await.unwrap();
    assert_eq!(resolved, [Some(Error)]);
    assert_eq!(run.states().await, (ResolvedManually, vec![Error, Pending, Complete]));
    run.check().await;
    for to in [RETRY, RESOLVE, Move::Cancel] {
        let refused = run.to(0, to).await;
        assert_eq!((refused.moved, refused.task), (false, ResolvedManually));
    }
    let again = run.rows.store.resolve_tasks(&[run.uid], &note()).await.unwrap();
    assert_eq!(again, [Some(ResolvedManually)]);
    let left = run.rows.store.cancel_tasks(&[run.uid], false, &note()).await.unwrap();
    assert_eq!((left.was, run.states().await.0), (vec![Some(ResolvedManually)], ResolvedManually));
    run.rows.store.cancel_tasks(&[run.uid], true, &note()).await.unwrap();
    assert_eq!(run.states().await, (Cancelled, vec![Cancelled, Cancelled, Complete]));
    run.check().await;
    let none = run.rows.store.cancel_tasks(&[Uuid::nil()], true, &note()).await.unwrap();
    assert_eq!(none.was, [None]);
}

#[tokio::test]
async fn many_tasks_are_moved_by_one_call_each_as_its_state_allows() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut writer = rows.writer().await;
    let uids: Vec<Uuid> =
        rows.create_with(&mut writer, &definition, 3).await.iter().map(|task| task.uid).collect();
    let leases = rows.claim(&mut writer, definition.queues[0], 2).await;
    let ended = [report(&leases[0], FAILS, "{}"), complete(&leases[1], "1")];
    rows.settle(&mut writer, &ended).await;
    let asked = [uids[2], uids[0], Uuid::nil(), uids[1], uids[0]];
    let cancelled = rows.store.cancel_tasks(&asked, false, &note()).await.unwrap();
    let was = [Some(Pending), Some(Error), None, Some(Complete), Some(Error)];
    assert_eq!(cancelled.was, was);
    check(&mut rows.connection().await).await;
    let cancelled = "select count(*) from stepwell.event where type = 24 and task > $1";
    assert_eq!(rows.one::<i64>(cancelled, 0).await, 2, "named twice, cancelled once");
}

/// Brings step 0 of `a; b` into a state, its task still open.
async fn in_state(state: State) -> Run {
    let mut run = Run::of("a; b").await;
    match state {
        InProgress => run.run(&[]).await,
        Complete => run.run(&[(0, Ending::Complete)]).await,
        Error => run.run(&[(0, FAILS)]).await,
        Cancelled => run.moves(0, Move::Cancel).await,
        ResolvedManually => run.moves(0, RESOLVE).await,
        _ => {}
    }
    assert_eq!(run.states().await.1[0], state);
    run
}

#[tokio::test]
async fn a_step_moves_exactly_along_the_edges_and_a_refused_move_leaves_no_trace() {
    let states = [Pending, InProgress, Complete, Error, Cancelled, ResolvedManually];
    for from in states {
        for to in [RETRY, RESOLVE, Move::Skip, Move::Cancel] {
            let run = in_state(from).await;
            let before = run.log(0).await.len();
            let allowed = match to {
                Move::Retry { .. } => from == Error,
                Move::Resolve { .. } => matches!(from, Pending | Error),
                Move::Skip => from == Pending,
                Move::Cancel => matches!(from, Pending | InProgress | Error),
            };
            let moved = run.to(0, to.clone()).await;
            assert_eq!((moved.was, moved.moved), (from, allowed), "{from:?} {to:?}");
            let now = run.states().await.1[0];
            assert_eq!(now, if allowed { to.to() } else { from }, "{from:?} {to:?}");
            assert_eq!(run.log(before).await.is_empty(), !allowed, "{from:?} {to:?}");
            // A repeat finds nothing to do.
            let before = run.log(0).await.len();
            assert!(!run.to(0, to.clone()).await.moved, "{from:?} {to:?}");
            assert_eq!(run.log(0).await.len(), before);
            run.check().await;
        }
    }
}
