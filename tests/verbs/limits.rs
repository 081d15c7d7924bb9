//! What limits and time-outs do to ruled tasks, and pauses to any.

use std::sync::Arc;

use sqlx::Connection;
use stepwell_proto::v1::{Concurrency, Definition, State};
use stepwell_store::{ChildSlots, Ending, LeaseRow, Note, StoredDefinition, Writer};
use stepwell_tests::{Rows, check, child_slots, complete, new_task, prost_duration, report};
use uuid::Uuid;

/// One task of a definition, and a line.
struct Run {
    rows: Rows,
    definition: Arc<StoredDefinition>,
    writer: Writer,
    uid: Uuid,
}

const RETRIES: Ending = Ending::Fail { wait_ms: Some(0) };

impl Run {
    async fn of(steps: &str, change: impl FnOnce(&mut Definition)) -> Self {
        let rows = Rows::new().await;
        let definition = rows.define_with(steps, change).await;
        let mut writer = rows.writer().await;
        let uid = rows.create_with(&mut writer, &definition, 1).await[0].uid;
        Self { rows, definition, writer, uid }
    }

    /// Leases what is ready, at most `n` of each handler.
    async fn claim(&mut self, n: usize) -> Vec<LeaseRow> {
        let mut queues = self.definition.queues.clone();
        queues.sort_unstable();
        queues.dedup();
        let mut leases = Vec::new();
        for queue in queues {
            leases.extend(self.rows.claim(&mut self.writer, queue, n).await);
        }
        check(&mut self.rows.connection().await).await;
        leases
    }

    async fn end(&mut self, leases: &[LeaseRow], ending: Ending) {
        let reports: Vec<_> = leases.iter().map(|lease| report(lease, ending, "{}")).collect();
        self.rows.settle(&mut self.writer, &reports).await;
        check(&mut self.rows.connection().await).await;
    }

    async fn states(&self) -> (State, Vec<State>) {
        let task = self.rows.store.task_with_steps(self.uid, false).await.unwrap().unwrap();
        (task.state(), task.steps.iter().map(stepwell_proto::v1::Step::state).collect())
    }

    async fn pause(&self, paused: bool) -> bool {
        let note = Note::new("me", "");
        let was = self.rows.store.pause_tasks(&[self.uid], paused, &note).await.unwrap();
        check(&mut self.rows.connection().await).await;
        was[0].paused
    }

    /// As if so much time had passed: whatever is due later is due so much sooner.
    async fn pass(&mut self, interval: &str) -> stepwell_store::Due {
        let mut connection = sqlx::PgConnection::connect(&self.rows.database.url).await.unwrap();
        for sql in [
            "update stepwell.timer set due = due - $1::text::interval",
            "update stepwell.step set due = due - $1::text::interval, not_before = not_before - $1::text::interval",
            "update stepwell.task set deadline = deadline - $1::text::interval",
        ] {
            sqlx::query(sql).bind(interval).execute(&mut connection).await.unwrap();
        }
        let due = self.writer.release_due(100).await.unwrap();
        check(&mut connection).await;
        due
    }

    async fn error_class(&self, number: i32) -> String {
        let step = self.rows.store.step(self.uid, number).await.unwrap().unwrap();
        step.last_error.unwrap().error_class
    }
}

fn parallel(n: i32) -> impl FnOnce(&mut Definition) {
    move |definition| definition.max_parallel_steps = n
}

#[tokio::test]
async fn no_more_steps_of_a_limited_task_run_than_it_allows_and_all_of_them_run_at_last() {
    let mut run = Run::of("a; b; c; d; e; f; g; h; i; j", parallel(3)).await;
    let mut done = 0;
    let mut running: Vec<LeaseRow> = Vec::new();
    while done < 10 {
        running.extend(run.claim(100).await);
        assert!(running.len() <= 3);
        assert!(running.len() == 3 || done + running.len() == 10, "{} of {done}", running.len());
        let first = [running.remove(0)];
        run.end(&first, Ending::Complete).await;
        done += 1;
    }
    assert_eq!(run.states().await.0, State::Complete);
}

#[tokio::test]
async fn steps_run_one_after_the_other_when_only_one_may() {
    let mut run = Run::of("a; b: a; c: a; d: b c", parallel(1)).await;
    for _ in 0..4 {
        let leases = run.claim(9).await;
        assert_eq!(leases.len(), 1);
        let done = [complete(&leases[0], "1")];
        // Slots for its children are of no use to them: they are counted first.
        let slots = child_slots(&[run.definition.children
            [usize::try_from(leases[0].step & 16383).unwrap()]
        .len()]);
        let settled = run.writer.settle(&done, &slots, run.rows.node, None).await.unwrap();
        assert!(settled.leases.is_empty());
        check(&mut run.rows.connection().await).await;
    }
    assert_eq!(run.states().await.0, State::Complete);
}

#[tokio::test]
async fn a_handler_without_executors_does_not_hold_up_the_others_of_a_limited_task() {
    let change = |definition: &mut Definition| {
        definition.max_parallel_steps = 1;
        for step in &mut definition.steps[..3] {
            step.handler = "nobody".into();
        }
    };
    let mut run = Run::of("a; b; c; d; e", change).await;
    let served = run.definition.queues[3];
    for _ in 0..2 {
        let lease = run.rows.claim(&mut run.writer, served, 5).await;
        assert_eq!(lease.len(), 1);
        run.end(&lease, Ending::Complete).await;
    }
    let states = run.states().await.1;
    assert_eq!((states[3], states[4]), (State::Complete, State::Complete));
}

#[tokio::test]
async fn a_step_of_a_limited_task_that_fails_makes_room_while_it_waits_for_its_retry() {
    let mut run = Run::of("a; b", parallel(1)).await;
    let first = run.claim(5).await;
    run.end(&first, Ending::Fail { wait_ms: Some(60_000) }).await;
    let second = run.claim(5).await;
    assert_eq!((second.len(), second[0].step & 16383), (1, 1));
    run.pass("60 s").await;
    assert!(run.claim(5).await.is_empty(), "the other one runs");
    run.end(&second, Ending::Complete).await;
    let again = run.claim(5).await;
    assert_eq!((again.len(), again[0].attempt), (1, 2));
    run.end(&again, Ending::Complete).await;
    assert_eq!(run.states().await.0, State::Complete);
}

#[tokio::test]
async fn a_limited_task_goes_on_when_its_running_step_is_cancelled_handed_back_or_fails() {
    for how in ["cancel", "hand back", "fail"] {
        let mut run = Run::of("a; b", parallel(1)).await;
        let first = run.claim(5).await;
        let note = Note::new("me", "");
        match how {
            "cancel" => {
                let cancel = stepwell_store::Move::Cancel;
                run.rows.store.move_step(run.uid, 0, &cancel, &note).await.unwrap();
            }
            "hand back" => run.end(&first, Ending::HandBack).await,
            _ => run.end(&first, Ending::Fail { wait_ms: None }).await,
        }
        let next = run.claim(5).await;
        assert_eq!(next.len(), 1, "{how}");
        run.end(&next, Ending::Complete).await;
    }
}

#[tokio::test]
async fn what_was_offered_and_is_resolved_by_hand_gives_its_place_to_another() {
    let mut run = Run::of("a; b; c", parallel(1)).await;
    let note = Note::new("me", "");
    let resolve = stepwell_store::Move::Resolve { result: None };
    run.rows.store.move_step(run.uid, 0, &resolve, &note).await.unwrap();
    let mut done = Vec::new();
    for _ in 0..2 {
        // The first look may only find what no longer holds.
        let mut leases = run.claim(5).await;
        if leases.is_empty() {
            leases = run.claim(5).await;
        }
        assert_eq!(leases.len(), 1);
        done.push(leases[0].step & 16383);
        run.end(&leases, Ending::Complete).await;
    }
    assert_eq!((done, run.states().await.0), (vec![1, 2], State::Complete));
}

#[tokio::test]
async fn a_paused_task_starts_nothing_until_it_is_resumed_and_what_runs_goes_on() {
    for limit in [0, 1] {
        let mut run = Run::of("a; b: a; c: a; d", parallel(limit)).await;
        let first = run.claim(1).await;
        assert!(!run.pause(true).await);
        assert!(run.pause(true).await, "a repeat says so");
        let none = ChildSlots::default();
        let mut settled = run
            .writer
            .settle(&[complete(&first[0], "1")], &none, run.rows.node, None)
            .await
            .unwrap();
        assert_eq!((settled.accepted.pop(), settled.ready), (Some(true), 0));
        assert!(run.claim(9).await.is_empty());
        let events = "select count(*) from stepwell.event where type in (28, 29) and task > $1";
        assert_eq!(run.rows.one::<i64>(events, 0).await, 1);
        assert!(run.pause(false).await);
        let mut done = 0;
        while done < 3 {
            let leases = run.claim(9).await;
            assert_eq!(leases.len(), if limit == 0 { 3 } else { 1 });
            run.end(&leases, Ending::Complete).await;
            done += leases.len();
        }
        assert_eq!(run.states().await.0, State::Complete);
    }
}

#[tokio::test]
async fn a_task_in_error_that_is_paused_waits_with_what_is_retried() {
    let mut run = Run::of("a", |_| {}).await;
    let first = run.claim(1).await;
    run.end(&first, Ending::Fail { wait_ms: None }).await;
    run.pause(true).await;
    let note = Note::new("me", "");
    run.rows.store.retry_tasks(&[run.uid], None, &note).await.unwrap();
    assert!(run.claim(9).await.is_empty());
    run.pause(false).await;
    assert_eq!(run.claim(9).await.len(), 1);
}

fn timed(queue: i64, total: i64) -> impl FnOnce(&mut Definition) {
    move |definition| {
        for step in &mut definition.steps {
            step.queue_timeout = (queue > 0).then(|| prost_duration(queue));
            step.total_timeout = (total > 0).then(|| prost_duration(total));
        }
    }
}

#[tokio::test]
async fn a_step_that_nobody_takes_in_time_fails_and_its_task_with_it() {
    let mut run = Run::of("a; b: a", timed(10, 0)).await;
    assert_eq!(run.pass("9 s").await.late, 0);
    let due = run.pass("2 s").await;
    assert_eq!((due.late, due.told), (1, 0));
    assert_eq!(run.states().await, (State::Error, vec![State::Error, State::Pending]));
    assert_eq!(run.error_class(0).await, "QueueTimeout");
    let note = Note::new("me", "");
    run.rows.store.retry_tasks(&[run.uid], None, &note).await.unwrap();
    assert_eq!(run.pass("9 s").await.late, 0, "it has its whole time again");
    let lease = run.claim(1).await;
    assert_eq!(run.pass("60 s").await.late, 0, "it was taken in time");
    run.end(&lease, Ending::Complete).await;
    assert_eq!(run.pass("11 s").await.late, 1, "its child's clock began when it was ready");
}

#[tokio::test]
async fn a_step_that_is_retried_too_long_fails_whether_it_runs_or_waits() {
    for runs in [false, true] {
        let mut run = Run::of("a", timed(0, 100)).await;
        for _ in 0..2 {
            let lease = run.claim(1).await;
            run.end(&lease, RETRIES).await;
            assert_eq!(run.pass("40 s").await.late, 0);
        }
        if runs {
            assert_eq!(run.claim(1).await.len(), 1);
        }
        let due = run.pass("21 s").await;
        assert_eq!((due.late, due.told), (1, usize::from(runs)));
        assert_eq!(run.states().await, (State::Error, vec![State::Error]));
        assert_eq!(run.error_class(0).await, "TotalTimeout");
        assert!(run.claim(1).await.is_empty());
    }
}

#[tokio::test]
async fn a_task_past_its_deadline_fails_with_all_that_is_unfinished() {
    let deadline = |definition: &mut Definition| definition.deadline = Some(prost_duration(60));
    let mut run = Run::of("a; b; c; d: a", deadline).await;
    let leases = run.claim(2).await;
    run.end(&leases[..1], Ending::Complete).await;
    let due = run.pass("61 s").await;
    assert_eq!(
        (due.late, due.told),
        (3, 1),
        "one runs, one is ready, one is the child of what is done"
    );
    let (task, steps) = run.states().await;
    assert_eq!(task, State::Error);
    assert_eq!(steps, [State::Complete, State::Error, State::Error, State::Error]);
    assert_eq!(run.error_class(1).await, "DeadlineExceeded");
    let late = run.rows.settle(&mut run.writer, &[complete(&leases[1], "1")]).await;
    assert_eq!(late.accepted, [false]);
    let note = Note::new("me", "");
    run.rows.store.retry_tasks(&[run.uid], None, &note).await.unwrap();
    assert_eq!(run.pass("59 s").await.late, 0, "it has its whole time again");
    assert_eq!(run.pass("2 s").await.late, 3);
}

#[tokio::test]
async fn what_still_waits_in_a_task_in_error_is_left_alone_by_its_deadline() {
    let deadline = |definition: &mut Definition| definition.deadline = Some(prost_duration(60));
    let mut run = Run::of("a; b: a", deadline).await;
    let lease = run.claim(1).await;
    run.end(&lease, Ending::Fail { wait_ms: None }).await;
    assert_eq!(run.pass("61 s").await.late, 0);
    assert_eq!(run.states().await, (State::Error, vec![State::Error, State::Pending]));
}

#[tokio::test]
async fn a_task_that_ends_in_time_is_left_alone_by_its_clocks() {
    let change = |definition: &mut Definition| {
        timed(10, 20)(definition);
        definition.deadline = Some(prost_duration(30));
    };
    let mut run = Run::of("a; b: a", change).await;
    for _ in 0..2 {
        let leases = run.claim(1).await;
        run.end(&leases, Ending::Complete).await;
    }
    let due = run.pass("1 day").await;
    assert_eq!((due.late, due.next_ms), (0, None));
    assert_eq!(run.states().await.0, State::Complete);
}

/// Tasks with one concurrency key, of which so many may run at once.
async fn keyed(rows: &Rows, limit: i32, n: usize) -> (Arc<StoredDefinition>, Vec<Uuid>) {
    let definition = rows
        .define_with("a; b: a", |definition| {
            definition.concurrency = Some(Concurrency { key: "k".into(), limit });
        })
        .await;
    let mut tasks: Vec<_> = (0..n).map(|_| new_task(&definition)).collect();
    tasks.iter_mut().for_each(|task| task.concurrency = Some(77));
    rows.writer().await.create_tasks(&rows.store, &mut tasks).await.unwrap();
    (definition, tasks.iter().map(|task| task.uid).collect())
}

/// Gives the keys until there is nothing more to look at.
async fn grant(rows: &Rows, writer: &mut Writer) {
    while writer.grant_keys().await.unwrap().1 {}
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn tasks_with_one_key_run_one_after_the_other_in_their_order() {
    let rows = Rows::new().await;
    let (definition, _) = keyed(&rows, 1, 3).await;
    let queue = definition.queues[0];
    let mut writer = rows.writer().await;
    assert!(rows.claim(&mut writer, queue, 9).await.is_empty(), "the key is not given yet");
    let mut order = Vec::new();
    for _ in 0..3 {
        grant(&rows, &mut writer).await;
        for _ in 0..2 {
            let lease = rows.claim(&mut writer, queue, 9).await;
            assert_eq!(lease.len(), 1);
            order.push(lease[0].step);
            rows.settle(&mut writer, &[complete(&lease[0], "1")]).await;
        }
        assert!(rows.claim(&mut writer, queue, 9).await.is_empty(), "the key is not given on yet");
    }
    assert!(order.is_sorted());
    grant(&rows, &mut writer).await;
    let left = "select count(*) + (select count(*) from stepwell.concurrency_wake) \
                  from stepwell.concurrency where id > $1";
    assert_eq!(rows.one::<i64>(left, 0).await, 0);
}

#[tokio::test]
async fn as_many_tasks_with_one_key_run_as_the_limit_says_whatever_ends_them() {
    let rows = Rows::new().await;
    let (definition, uids) = keyed(&rows, 2, 6).await;
    let queue = definition.queues[0];
    let mut writer = rows.writer().await;
    grant(&rows, &mut writer).await;
    let running = rows.claim(&mut writer, queue, 9).await;
    assert_eq!(running.len(), 2);
    // One fails for good, one that runs and one that waits are cancelled.
    rows.settle(&mut writer, &[report(&running[0], Ending::Fail { wait_ms: None }, "{}")]).await;
    rows.cancel(uids[1]).await;
    rows.cancel(uids[2]).await;
    grant(&rows, &mut writer).await;
    let next = rows.claim(&mut writer, queue, 9).await;
    let tasks: Vec<i64> = next.iter().map(|lease| lease.step >> 14).collect();
    let first = running[0].step >> 14;
    assert_eq!(tasks, [first + 3, first + 4]);
    // The one that failed is tried again: it stands in line once more, as the oldest.
    let note = Note::new("me", "");
    rows.store.retry_tasks(&uids[..1], None, &note).await.unwrap();
    grant(&rows, &mut writer).await;
    assert!(rows.claim(&mut writer, queue, 9).await.is_empty());
    rows.cancel(uids[3]).await;
    grant(&rows, &mut writer).await;
    let again = rows.claim(&mut writer, queue, 9).await;
    assert_eq!((again.len(), again[0].step, again[0].attempt), (1, running[0].step, 2));
}

#[tokio::test]
async fn two_that_give_keys_at_once_give_none_twice() {
    let rows = Rows::new().await;
    let (definition, _) = keyed(&rows, 1, 2).await;
    let (mut one, mut other) = (rows.writer().await, rows.writer().await);
    let (a, b) = tokio::join!(one.grant_keys(), other.grant_keys());
    assert_eq!(a.unwrap().0 + b.unwrap().0, 1);
    assert_eq!(rows.claim(&mut one, definition.queues[0], 9).await.len(), 1);
    check(&mut rows.connection().await).await;
}
