//! What a task lives through: what keeps it open, what ends it and in which state, and the traps that engines
//! of this kind fall into.
//!
//! A task ends when nothing of it is live, that is: no step runs, is ready, or waits for its retry. Then it is
//!
//! | if | in state | test |
//! |---|---|---|
//! | a step is in error | error | `a_task_ends_in_error_once_when_a_step_has_failed_and_nothing_else_can_go_on`, `a_task_whose_last_running_step_is_cancelled_by_hand_is_in_error_if_another_has_failed` |
//! | else a step is cancelled | cancelled | `a_task_all_of_whose_steps_are_cancelled_is_cancelled` |
//! | else | complete | `a_task_whose_steps_are_complete_or_resolved_is_complete` |
//!
//! Until then a failed step leaves it as it is, while another
//!
//! | is | test |
//! |---|---|
//! | ready | `a_failed_step_does_not_end_its_task_while_another_is_ready` |
//! | running | `a_failed_step_does_not_end_its_task_while_another_runs` |
//! | going to be ready | `a_failed_step_does_not_end_its_task_while_another_waits_for_one_that_runs` |
//! | waiting for its retry | `a_failed_step_does_not_end_its_task_while_another_waits_for_its_retry` |
//!
//! A task without steps cannot be: `each_kind_of_fault_says_where_and_what_was_probably_meant`. One in error is
//! open again, and ends by the same rule: `a_task_in_error_is_open_again_by_its_retried_steps_alone`,
//! `a_task_in_error_stays_so_until_the_last_of_its_failed_steps_is_resolved`.
//!
//! The traps:
//!
//! | trap | here | test |
//! |---|---|---|
//! | a step that may be tried once is never tried | the first attempt is always allowed | `a_step_that_may_be_tried_once_is_tried_once` |
//! | a failed step is called ready, and nobody moves it | it is pending again in the commit of its failure | `a_step_that_works_at_last_completes_its_task` |
//! | a permanent failure is tried again | it is final | `what_is_given_up_says_why_and_ends_the_task_in_error`, `what_cannot_succeed_is_not_tried_again` |
//! | one that may not be retried leaves its task waiting for ever | it ends it in error | `a_step_that_may_be_tried_once_is_tried_once` |
//! | children of a cancelled step wait for ever | they are cancelled with the task | `what_waits_behind_a_cancelled_step_is_cancelled_with_the_task_when_the_rest_is_done` |
//! | a cancelled task's steps run on, and their late results count | their leases are void | `cancelling_ends_the_task_its_steps_and_every_wait`, `a_cancelled_task_stops_its_handler_and_a_repeat_says_so` |
//! | resolved or cancelled steps never count as done | see above | `a_task_whose_steps_are_complete_or_resolved_is_complete`, `a_task_all_of_whose_steps_are_cancelled_is_cancelled` |
//! | a task fails while a branch could still be retried | it waits for it | `a_failed_step_does_not_end_its_task_while_another_waits_for_its_retry` |
//! | the step of a dead executor runs for ever | its lease expires, and counts | `the_step_of_a_vanished_executor_is_tried_again_elsewhere` |
//! | events come several times, or before what they tell of | one row of the log in the transaction that moves | `each_transition_is_one_row_of_the_log_and_says_where_it_came_from`, and `check` after every test |
//! | what was just made has no state | its first event is that of its creation | `each_transition_is_one_row_of_the_log_and_says_where_it_came_from` |
//! | two back-offs, and both must pass | one time | `a_back_off_is_one_time_and_one_timer` |
//! | steps to be skipped are ignored, or their tasks hang | they are resolved at once; others are refused | `steps_to_be_bypassed_are_resolved_with_the_task_s_creation_and_the_rest_runs`, `skippable_steps_are_skipped_by_request_and_others_are_refused` |
//! | a guard that fails lets pass | what is not provably ready is not leased | `stale_ready_rows_lease_nothing`, `the_log_takes_exactly_the_transitions_of_the_catalog` |
//! | of several back-offs the longest is waited for | the earliest | `of_several_back_offs_the_earliest_is_waited_for` |
//! | a task has ready steps and nobody looks at it | an offer stands until it is taken | `a_ready_step_stays_on_offer_until_somebody_has_it` |
//! | retries of the queue on top of those of the step | there is one count | `a_step_makes_as_many_attempts_as_it_may_and_no_more` |
//! | the log does not say where a transition came from | it does | `each_transition_is_one_row_of_the_log_and_says_where_it_came_from` |
//! | a delayed retry needs its task in a certain state | it takes it as it is | `a_back_off_that_ends_finds_its_task_as_it_is` |
//! | who loses the race for a step harms the winner's | he gets nothing | `who_comes_second_to_a_ready_step_gets_nothing_and_harms_nobody` |
//! | the log has no durations and no attempts | what ended says when it began, and which attempt it was | `each_transition_is_one_row_of_the_log_and_says_where_it_came_from` |

use std::collections::BTreeSet;

use sqlx::Row;
use stepwell_proto::v1::State::{
    self, Cancelled, Complete, Error, InProgress, Pending, ResolvedManually,
};
use stepwell_store::{Ending, LeaseRow, Move};
use stepwell_tests::{Rows, check, complete, report};

use super::{
    operate::{FAILS, RESOLVE, RETRY, Run, note},
    races::{hold, release},
};

const DONE: Ending = Ending::Complete;
const LATER: Ending = Ending::Fail { wait_ms: Some(60_000) };

// ── what ends a task ────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_task_whose_steps_are_complete_or_resolved_is_complete() {
    let mut run = Run::of("a; b; c: a b").await;
    run.run(&[(0, DONE), (1, FAILS)]).await;
    run.moves(1, RESOLVE).await;
    run.run(&[(2, DONE)]).await;
    assert_eq!(run.states().await, (Complete, vec![Complete, ResolvedManually, Complete]));
    run.check().await;
}

#[tokio::test]
async fn a_task_ends_in_error_once_when_a_step_has_failed_and_nothing_else_can_go_on() {
    let mut run = Run::of("a; b; c: a; d: c").await;
    run.run(&[(0, FAILS), (1, FAILS)]).await;
    assert_eq!(run.states().await, (Error, vec![Error, Error, Pending, Pending]));
    assert_eq!(run.log(0).await.iter().filter(|row| *row == "task.failed").count(), 1);
    let failed = "select names from stepwell.event where task = $1 and type = 23";
    assert_eq!(run.rows.one::<Vec<i32>>(failed, run.key).await, [0, 1]);
    run.check().await;
}

#[tokio::test]
async fn a_task_all_of_whose_steps_are_cancelled_is_cancelled() {
    let run = Run::of("a; b; c: a b").await;
    run.moves(2, Move::Cancel).await;
    run.moves(0, Move::Cancel).await;
    assert_eq!(run.states().await.0, Pending, "one is ready");
    run.moves(1, Move::Cancel).await;
    assert_eq!(run.states().await, (Cancelled, vec![Cancelled; 3]));
    assert_eq!(run.log(0).await.last().unwrap(), "task.cancelled");
    run.check().await;
}

#[tokio::test]
async fn a_task_whose_last_running_step_is_cancelled_by_hand_is_in_error_if_another_has_failed() {
    let mut run = Run::of("a; b; c: b").await;
    run.run(&[(0, FAILS)]).await;
    run.moves(1, Move::Cancel).await;
    assert_eq!(run.states().await, (Error, vec![Error, Cancelled, Pending]));
    run.check().await;
}

#[tokio::test]
async fn a_failed_step_does_not_end_its_task_while_another_is_ready() {
    let mut run = Run::of("a; b").await;
    let first = run.rows.claim(&mut run.writer, run.definition.queues[0], 1).await;
    run.rows.settle(&mut run.writer, &[report(&first[0], FAILS, "{}")]).await;
    assert_eq!(run.states().await, (InProgress, vec![Error, Pending]));
    run.run(&[(1, DONE)]).await;
    assert_eq!(run.states().await, (Error, vec![Error, Complete]));
    run.check().await;
}

#[tokio::test]
async fn a_failed_step_does_not_end_its_task_while_another_runs() {
    let mut run = Run::of("a; b").await;
    let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 2).await;
    run.rows.settle(&mut run.writer, &[report(&leases[0], FAILS, "{}")]).await;
    assert_eq!(run.states().await, (InProgress, vec![Error, InProgress]));
    run.rows.settle(&mut run.writer, &[complete(&leases[1], "1")]).await;
    assert_eq!(run.states().await, (Error, vec![Error, Complete]));
    run.check().await;
}

#[tokio::test]
async fn a_failed_step_does_not_end_its_task_while_another_waits_for_one_that_runs() {
    let mut run = Run::of("a; b; c: b; d: a c").await;
    let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 2).await;
    let ended = [report(&leases[0], FAILS, "{}"), complete(&leases[1], "1")];
    run.rows.settle(&mut run.writer, &ended[..1]).await;
    assert_eq!(run.states().await, (InProgress, vec![Error, InProgress, Pending, Pending]));
    run.rows.settle(&mut run.writer, &ended[1..]).await;
    assert_eq!(run.states().await.0, InProgress, "what it waited for has released it");
    run.run(&[(2, DONE)]).await;
    assert_eq!(run.states().await, (Error, vec![Error, Complete, Complete, Pending]));
    run.check().await;
}

#[tokio::test]
async fn a_failed_step_does_not_end_its_task_while_another_waits_for_its_retry() {
    for at_last in [DONE, FAILS] {
        let mut run = Run::of("a; b").await;
        run.run(&[(0, FAILS), (1, LATER)]).await;
        assert_eq!(run.states().await, (InProgress, vec![Error, Pending]));
        run.rows.pass("61 s").await;
        run.writer.release_due(10).await.unwrap();
        run.run(&[(1, at_last)]).await;
        assert_eq!(run.states().await.0, Error);
        let failed: Vec<i32> = if at_last == DONE { vec![0] } else { vec![0, 1] };
        let named = "select names from stepwell.event where task = $1 and type = 23";
        assert_eq!(run.rows.one::<Vec<i32>>(named, run.key).await, failed);
        run.check().await;
    }
}

#[tokio::test]
async fn a_task_in_error_is_open_again_by_its_retried_steps_alone() {
    let mut run = Run::of("a; b; c: a").await;
    run.run(&[(0, FAILS), (1, FAILS)]).await;
    run.moves(0, RETRY).await;
    assert_eq!(run.states().await, (Pending, vec![Pending, Error, Pending]));
    run.run(&[(0, DONE)]).await;
    run.run(&[(2, DONE)]).await;
    assert_eq!(
        run.states().await,
        (Error, vec![Complete, Error, Complete]),
        "the other one is left"
    );
    let failed = "select names from stepwell.event where task = $1 and type = 23
                   order by position desc limit 1";
    assert_eq!(run.rows.one::<Vec<i32>>(failed, run.key).await, [1]);
    run.check().await;
}

#[tokio::test]
async fn a_task_in_error_stays_so_until_the_last_of_its_failed_steps_is_resolved() {
    let mut run = Run::of("a; b; c").await;
    run.run(&[(0, FAILS), (1, FAILS), (2, DONE)]).await;
    let before = run.log(0).await.len();
    run.moves(1, RESOLVE).await;
    assert_eq!(run.states().await, (Error, vec![Error, ResolvedManually, Complete]));
    assert_eq!(run.log(before).await, ["1 step.resolved_manually"]);
    run.moves(0, RESOLVE).await;
    assert_eq!(run.states().await.0, Complete);
    let way = ["task.retry_requested", "task.start_requested", "task.completed"];
    assert_eq!(run.log(before + 2).await, way);
    run.check().await;
}

#[tokio::test]
async fn a_task_that_ends_before_any_step_ran_goes_all_the_way_to_complete() {
    let run = Run::of("a").await;
    run.moves(0, RESOLVE).await;
    assert_eq!(
        run.log(1).await,
        ["0 step.resolved_manually", "task.start_requested", "task.completed"]
    );
    run.check().await;
}

// ── the whole of what a task allows ─────────────────────────────────────────────────────────────

/// A task of one step in a state.
async fn in_state(state: State) -> Run {
    let mut run = Run::of("a").await;
    match state {
        InProgress => run.run(&[]).await,
        Complete => run.run(&[(0, DONE)]).await,
        Error | ResolvedManually => run.run(&[(0, FAILS)]).await,
        Cancelled => run.moves(0, Move::Cancel).await,
        _ => {}
    }
    if state == ResolvedManually {
        run.rows.store.resolve_tasks(&[run.uid], &note()).await.unwrap();
    }
    assert_eq!(run.states().await.0, state);
    run
}

#[tokio::test]
async fn a_task_moves_exactly_along_the_edges_and_a_refused_move_leaves_no_trace() {
    let open = [Pending, InProgress];
    for from in [Pending, InProgress, Complete, Error, Cancelled, ResolvedManually] {
        for (how, to, allowed) in [
            ("retry", Some(Pending), from == Error),
            ("resolve", Some(ResolvedManually), from == Error),
            ("cancel", Some(Cancelled), open.contains(&from) || from == Error),
            ("override", Some(Cancelled), from != Cancelled),
            ("pause", None, open.contains(&from) || from == Error),
            ("resume", None, false),
        ] {
            let run = in_state(from).await;
            let (store, uids) = (&run.rows.store, [run.uid]);
            let before = run.log(0).await.len();
            for repeated in [false, true] {
                let was = match how {
                    "retry" => store.retry_tasks(&uids, None, &note()).await.unwrap()[0].was,
                    "resolve" => store.resolve_tasks(&uids, &note()).await.unwrap()[0],
                    "cancel" => store.cancel_tasks(&uids, false, &note()).await.unwrap().was[0],
                    "override" => store.cancel_tasks(&uids, true, &note()).await.unwrap().was[0],
                    how => store.pause_tasks(&uids, how == "pause", &note()).await.unwrap()[0].was,
                };
                let now = if allowed { to.unwrap_or(from) } else { from };
                assert_eq!(was, Some(if repeated { now } else { from }), "{how} from {from:?}");
                assert_eq!(run.states().await.0, now, "{how} from {from:?}");
                let rows = run.log(before).await;
                let of_the_task = rows.iter().filter(|row| row.starts_with("task.")).count();
                assert_eq!(of_the_task, usize::from(allowed), "{how} from {from:?}: {rows:?}");
                assert_eq!(rows.is_empty(), !allowed, "{how} from {from:?}: {rows:?}");
            }
            run.check().await;
        }
    }
}

/// The shapes that graphs are made of.
const GRAPHS: [(&str, &str); 9] = [
    ("a single step", "a"),
    ("linear", "a; b: a; c: b; d: c"),
    ("a diamond", "a; b: a; c: a; d: b c"),
    ("a tree", "a; b: a; c: a; d: b; e: b; f: c; g: c"),
    ("a merge", "a; b; c; d: a b c"),
    ("a fan-out", "a; b: a; c: a; d: a; e: a; f: a"),
    ("mixed", "a; b; c: a; d: a b; e: d; f: c d; g"),
    ("two diamonds", "a; b: a; c: a; d: b c; e: d; f: d; g: e f"),
    ("a shortcut", "a; b: a; c: a b; d: a c; e: d b"),
];

#[tokio::test]
async fn what_is_ready_after_each_step_is_what_the_graph_says() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    for (name, graph) in GRAPHS {
        let definition = rows.define(graph).await;
        let parents: Vec<Vec<&str>> = graph
            .split(';')
            .map(|step| step.split_once(':').map_or("", |(_, parents)| parents))
            .map(|parents| parents.split_whitespace().collect())
            .collect();
        let names: Vec<&str> =
            graph.split(';').map(|step| step.split(':').next().unwrap().trim()).collect();
        for newest_first in [false, true] {
            let task = rows.create(&definition).await;
            let mut held: Vec<LeaseRow> = Vec::new();
            let mut done: BTreeSet<&str> = BTreeSet::new();
            while done.len() < names.len() {
                held.extend(rows.claim(&mut writer, definition.queues[0], 100).await);
                let number = |lease: &LeaseRow| usize::try_from(lease.step & 16383).unwrap();
                let held_now: BTreeSet<&str> = held.iter().map(|l| names[number(l)]).collect();
                let able = (0..names.len()).filter(|step| {
                    !done.contains(names[*step]) && parents[*step].iter().all(|p| done.contains(p))
                });
                let able: BTreeSet<&str> = able.map(|step| names[step]).collect();
                assert_eq!(held_now, able, "{name} after {done:?}");
                let lease = if newest_first { held.pop().unwrap() } else { held.remove(0) };
                rows.settle(&mut writer, &[complete(&lease, "1")]).await;
                done.insert(names[number(&lease)]);
            }
            assert_eq!(
                rows.one::<i16>("select state from stepwell.task where id = $1", task).await,
                3,
                "{name}"
            );
        }
    }
    check(&mut rows.connection().await).await;
}

// ── the traps ───────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_step_that_may_be_tried_once_is_tried_once() {
    let rows = Rows::new().await;
    let once = |definition: &mut stepwell_proto::v1::Definition| {
        definition.steps[0].retry.as_mut().unwrap().max_attempts = 1;
    };
    let definition = rows.define_with("a; b: a", once).await;
    let mut run = Run::in_rows(rows, definition, Vec::new()).await;
    let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 9).await;
    assert_eq!((leases.len(), leases[0].attempt, leases[0].max_attempts), (1, 1, 1));
    run.rows.settle(&mut run.writer, &[report(&leases[0], FAILS, "{}")]).await;
    assert_eq!(run.states().await, (Error, vec![Error, Pending]));
    assert!(run.rows.claim(&mut run.writer, run.definition.queues[0], 9).await.is_empty());
    run.check().await;
}

#[tokio::test]
async fn each_transition_is_one_row_of_the_log_and_says_where_it_came_from() {
    let mut run = Run::of("a").await;
    run.run(&[(0, Ending::Fail { wait_ms: Some(0) })]).await;
    run.run(&[(0, DONE)]).await;
    let rows = sqlx::query(
        "select e.no, e.from_state, e.to_state, e.attempt, e.type,
                e.mark is not null and e.mark <= e.at as began, e.session,
                e.batch <> lag(e.batch, 1, 0) over (order by e.position) as commit
           from stepwell.event e where task = $1 order by position",
    )
    .bind(run.key)
    .fetch_all(&mut run.rows.connection().await)
    .await
    .unwrap();
    let line = |row: &sqlx::postgres::PgRow| {
        let kind: i16 = row.get("type");
        let kind = u32::from(kind.unsigned_abs());
        let name = stepwell_proto::catalog::event_type_by_number(kind).unwrap().name;
        let state = |column| row.get::<Option<i16>, _>(column).map_or(0, i32::from);
        let state = |column| State::try_from(state(column)).unwrap().word();
        let mut line = format!("{name} {} > {}", state("from_state"), state("to_state"));
        if let Some(attempt) = row.get::<Option<i32>, _>("attempt") {
            line += &format!(", attempt {attempt}");
        }
        if row.get("began") {
            line += ", since";
        }
        if row.get::<Option<i64>, _>("session").is_some() {
            line += ", to a session";
        }
        if row.get("commit") { format!("- {line}") } else { format!("  {line}") }
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "- task.initialize_requested none > pending",
            "- task.start_requested pending > in_progress",
            "  step.execution_requested pending > in_progress, attempt 1, to a session",
            "- step.failed in_progress > error, attempt 1, since",
            "  step.retry_requested error > pending, attempt 1, since",
            "- step.execution_requested pending > in_progress, attempt 2, to a session",
            "- step.completed in_progress > complete, attempt 2, since",
            "  task.completed in_progress > complete, since",
        ]
    );
    run.check().await;
}

#[tokio::test]
async fn a_back_off_is_one_time_and_one_timer() {
    let mut run = Run::of("a").await;
    run.run(&[(0, LATER)]).await;
    let same =
        "select array[count(*), count(*) filter (where t.due = s.not_before and t.due = e.mark
                             and t.due - e.at between interval '55 s' and interval '60 s')]
                  from stepwell.timer t join stepwell.step s using (key)
                  join stepwell.event e on e.task = s.key >> 14 and e.type = 43 where t.key = $1";
    assert_eq!(run.rows.one::<Vec<i64>>(same, run.step(0)).await, [1, 1]);
    run.rows.pass("30 s").await;
    assert_eq!(run.writer.release_due(9).await.unwrap().taken, 0);
    run.rows.pass("30 s").await;
    assert_eq!(run.writer.release_due(9).await.unwrap().taken, 1);
    run.run(&[(0, DONE)]).await;
    assert_eq!(run.states().await.0, Complete);
    run.check().await;
}

#[tokio::test]
async fn of_several_back_offs_the_earliest_is_waited_for() {
    let mut run = Run::of("a; b; c").await;
    let wait = |seconds: i64| Ending::Fail { wait_ms: Some(seconds * 1000) };
    run.run(&[(0, wait(3000)), (1, wait(200)), (2, wait(1000))]).await;
    for (waits, number) in [(200, 1), (800, 2), (2000, 0)] {
        let due = run.writer.release_due(9).await.unwrap();
        let next = due.next_ms.unwrap() / 1000;
        assert!(due.taken == 0 && (waits / 2..=waits).contains(&next), "{number}: {due:?}");
        run.rows.pass(&format!("{waits} s")).await;
        assert_eq!(run.writer.release_due(9).await.unwrap().taken, 1);
        run.run(&[(number, DONE)]).await;
    }
    assert_eq!(run.states().await.0, Complete);
    run.check().await;
}

#[tokio::test]
async fn a_ready_step_stays_on_offer_until_somebody_has_it() {
    let mut run = Run::of("a; b").await;
    let queue = run.definition.queues[0];
    let retired = run.rows.node;
    let first = run.rows.claim(&mut run.writer, queue, 1).await;
    run.writer.retire_node(retired).await.unwrap();
    assert!(run.rows.try_claim(&mut run.writer, queue, 1).await.unwrap_err().is_retired());
    run.rows.settle(&mut run.writer, &[report(&first[0], Ending::HandBack, "")]).await;
    run.rows.node =
        run.rows.store.register_node(std::time::Duration::from_secs(300)).await.unwrap();
    let mut other = run.rows.writer().await;
    let leases = run.rows.claim(&mut other, queue, 9).await;
    assert_eq!(leases.len(), 2, "what was asked for in vain, and what was handed back");
    run.rows.settle(&mut other, &leases.iter().map(|l| complete(l, "1")).collect::<Vec<_>>()).await;
    assert_eq!(run.states().await.0, Complete);
    run.check().await;
}

#[tokio::test]
async fn a_step_makes_as_many_attempts_as_it_may_and_no_more() {
    let mut run = Run::of("a").await;
    for attempt in 1..=3 {
        let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 9).await;
        let lease = leases[0];
        assert_eq!((leases.len(), lease.attempt, lease.max_attempts), (1, attempt, 3));
        let wait_ms = (attempt < 3).then_some(0);
        run.rows.settle(&mut run.writer, &[report(&lease, Ending::Fail { wait_ms }, "{}")]).await;
    }
    assert!(run.rows.claim(&mut run.writer, run.definition.queues[0], 9).await.is_empty());
    assert_eq!(run.states().await, (Error, vec![Error]));
    let leased = "select count(*) from stepwell.event where task = $1 and type = 40";
    assert_eq!(run.rows.one::<i64>(leased, run.key).await, 3);
    run.check().await;
}

#[tokio::test]
async fn a_back_off_that_ends_finds_its_task_as_it_is() {
    for (meanwhile, gets) in
        [("nothing", 1), ("it is paused", 0), ("it is cancelled", 0), ("resolved", 0)]
    {
        let mut run = Run::of("a; b").await;
        run.run(&[(0, LATER)]).await;
        match meanwhile {
            "it is paused" => {
                run.rows.store.pause_tasks(&[run.uid], true, &note()).await.unwrap();
            }
            "it is cancelled" => {
                run.rows.store.cancel_tasks(&[run.uid], false, &note()).await.unwrap();
            }
            "resolved" => run.moves(0, RESOLVE).await,
            _ => {}
        }
        run.rows.pass("61 s").await;
        assert_eq!(run.writer.release_due(9).await.unwrap().taken, 1, "{meanwhile}");
        let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 9).await;
        assert_eq!(leases.len(), gets, "{meanwhile}");
        run.check().await;
        if meanwhile == "it is paused" {
            run.rows.store.pause_tasks(&[run.uid], false, &note()).await.unwrap();
            let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 9).await;
            assert_eq!((leases.len(), leases[0].attempt), (1, 2));
        }
    }
}

#[tokio::test]
async fn who_comes_second_to_a_ready_step_gets_nothing_and_harms_nobody() {
    let run = Run::of("a").await;
    let queue = run.definition.queues[0];
    let latch = hold(&run.rows, run.key).await;
    let (mut one, mut other) = (run.rows.writer().await, run.rows.writer().await);
    let second = async {
        run.rows.in_line(1).await;
        let nothing = run.rows.claim(&mut other, queue, 1).await;
        release(latch).await;
        nothing
    };
    let (first, second) = tokio::join!(run.rows.claim(&mut one, queue, 1), second);
    assert_eq!((first.len(), second.len()), (1, 0), "it does not even wait");
    assert_eq!(first[0].attempt, 1);
    let done = run.rows.settle(&mut one, &[complete(&first[0], "1")]).await;
    assert_eq!(done.accepted, [true]);
    assert_eq!(run.log(1).await.len(), 4, "started, leased, completed, completed");
    run.check().await;
}
