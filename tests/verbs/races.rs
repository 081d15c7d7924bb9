//! Two verbs that want the same rows, in both orders.

use std::time::Duration;

use sqlx::PgConnection;
use stepwell_store::{Ending, Error, LeaseRow, Settled, Sweep};
use stepwell_tests::{Rows, check, child_slots, complete, report};

/// Holds the task's row until dropped into `release`.
pub(super) async fn hold(rows: &Rows, task: i64) -> PgConnection {
    let mut latch = rows.connection().await;
    sqlx::query("begin").execute(&mut latch).await.unwrap();
    sqlx::query("select from stepwell.task where id = $1 for update")
        .bind(task)
        .execute(&mut latch)
        .await
        .unwrap();
    latch
}

/// Holds the lock of the log.
pub(super) async fn hold_log(rows: &Rows) -> PgConnection {
    let mut latch = rows.connection().await;
    sqlx::query("begin").execute(&mut latch).await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut latch).await.unwrap();
    latch
}

pub(super) async fn release(mut latch: PgConnection) {
    sqlx::query("rollback").execute(&mut latch).await.unwrap();
}

/// Runs both once both stand in line, in this order.
pub(super) async fn race<A, B>(
    rows: &Rows,
    latch: PgConnection,
    first: impl Future<Output = A>,
    second: impl Future<Output = B>,
) -> (A, B) {
    let gate = tokio::sync::Notify::new();
    let lifted = async {
        rows.in_line(1).await;
        gate.notify_one();
        rows.in_line(2).await;
        release(latch).await;
    };
    let second = async {
        gate.notified().await;
        second.await
    };
    let (first, second, ()) = tokio::join!(first, second, lifted);
    (first, second)
}

pub(super) async fn settle(rows: &Rows, lease: LeaseRow, result: &str) -> Settled {
    let mut writer = rows.writer().await;
    let done = [complete(&lease, result)];
    writer.settle(&done, &child_slots(&[1]), rows.node, None).await.unwrap()
}

#[tokio::test]
async fn a_child_of_two_parents_settled_at_once_is_released_once_and_sees_both_results() {
    for log in [false, true] {
        let rows = Rows::new().await;
        let definition = rows.define("a; b; c: a b").await;
        let task = rows.create(&definition).await;
        let mut writer = rows.writer().await;
        let leases = rows.claim(&mut writer, definition.queues[0], 2).await;
        let latch = if log { hold_log(&rows).await } else { hold(&rows, task).await };
        let (a, b) =
            race(&rows, latch, settle(&rows, leases[0], "1"), settle(&rows, leases[1], "2")).await;
        assert_eq!((a.leases.len(), b.leases.len()), (0, 1));
        let child = b.leases[0].step;
        let pairs = [(child, task << 14), (child, (task << 14) + 1)];
        let inputs = rows.store.inputs(&[task], &pairs, &[], (100, 100)).await.unwrap();
        assert_eq!(inputs.results[&pairs[0]].as_deref(), Some("1"));
        assert_eq!(inputs.results[&pairs[1]].as_deref(), Some("2"));
        settle(&rows, b.leases[0], "3").await;
        assert_eq!(rows.one::<i16>("select state from stepwell.task where id = $1", task).await, 3);
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn of_settle_and_cancel_whoever_comes_first_wins_and_the_other_is_told() {
    for settle_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a; b: a").await;
        let task = rows.create(&definition).await;
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
        let uid = rows.one("select uid from stepwell.task where id = $1", task).await;
        let latch = hold(&rows, task).await;
        let settle = settle(&rows, lease, "1");
        let cancel = rows.cancel(uid);
        let (settled, cancelled) = if settle_first {
            race(&rows, latch, settle, cancel).await
        } else {
            let (cancelled, settled) = race(&rows, latch, cancel, settle).await;
            (settled, cancelled)
        };
        assert_eq!(cancelled, 1, "the child or the step itself was running");
        assert_eq!(settled.accepted, [settle_first]);
        assert_eq!(settled.leases.len(), usize::from(settle_first));
        assert_eq!(rows.one::<i16>("select state from stepwell.task where id = $1", task).await, 5);
        let signals = writer.signals(&[rows.node]).await.unwrap();
        let void = settled.leases.first().unwrap_or(&lease);
        assert_eq!((signals.len(), signals[0].step, signals[0].token), (1, void.step, void.token));
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn a_cancelled_task_is_not_claimed_and_a_claimed_step_is_cancelled() {
    for claim_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a; b: a").await;
        let task = rows.create(&definition).await;
        let uid = rows.one("select uid from stepwell.task where id = $1", task).await;
        let latch = hold(&rows, task).await;
        let mut writer = rows.writer().await;
        let claim = rows.claim(&mut writer, definition.queues[0], 1);
        let cancel = rows.cancel(uid);
        let (claimed, cancelled) = if claim_first {
            race(&rows, latch, claim, cancel).await
        } else {
            let (cancelled, claimed) = race(&rows, latch, cancel, claim).await;
            (claimed, cancelled)
        };
        assert_eq!(claimed.len(), usize::from(claim_first));
        assert_eq!(cancelled, i32::from(claim_first));
        let mut connection = rows.connection().await;
        check(&mut connection).await;
        let left = "select count(*) from stepwell.ready_step where key >> 14 = $1";
        assert_eq!(rows.one::<i64>(left, task).await, 0, "the stale row is dropped");
    }
}

#[tokio::test]
async fn stale_ready_rows_lease_nothing() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let task = rows.create(&definition).await;
    let queue = definition.queues[0];
    let mut connection = rows.connection().await;
    let stale = "insert into stepwell.ready_step
        values ($1, 0, $2, 0), ($1, 0, $2, 0), ($1, 0, $2, 7), ($1, 0, $2 + 1, 0)";
    let insert = sqlx::query(stale).bind(queue).bind(task << 14);
    insert.execute(&mut connection).await.unwrap();
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, queue, 9).await;
    assert_eq!(leases.len(), 1, "one step, however many rows say so");
    rows.settle(&mut writer, &[report(&leases[0], Ending::Fail { wait_ms: Some(60_000) }, "{}")])
        .await;
    let back_off = "insert into stepwell.ready_step values ($1, 0, $2, 1)";
    let insert = sqlx::query(back_off).bind(queue).bind(task << 14);
    insert.execute(&mut connection).await.unwrap();
    assert!(rows.claim(&mut writer, queue, 9).await.is_empty(), "a back-off is not cut short");
    check(&mut connection).await;
}

#[tokio::test]
async fn the_same_report_on_two_connections_is_accepted_twice_and_handed_off_once() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let task = rows.create(&definition).await;
    let mut writer = rows.writer().await;
    let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
    let latch = hold(&rows, task).await;
    let (a, b) = race(&rows, latch, settle(&rows, lease, "1"), settle(&rows, lease, "1")).await;
    assert_eq!((a.accepted, b.accepted), (vec![true], vec![true]));
    assert_eq!((a.leases.len(), b.leases.len()), (1, 0));
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_settle_whose_backend_is_killed_is_undone_and_can_be_repeated() {
    for log in [false, true] {
        let rows = Rows::new().await;
        let definition = rows.define("a; b: a").await;
        let task = rows.create(&definition).await;
        let queue = definition.queues[0];
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, queue, 1).await[0];
        let latch = if log { hold_log(&rows).await } else { hold(&rows, task).await };
        let done = [complete(&lease, "1")];
        let slot = child_slots(&[1]);
        let kill = async {
            rows.in_line(1).await;
            sqlx::query(
                "select pg_terminate_backend(pid) from pg_stat_activity \
                  where datname = current_database() and wait_event_type = 'Lock'",
            )
            .execute(&mut rows.connection().await)
            .await
            .unwrap();
        };
        let (killed, ()) = tokio::join!(writer.settle(&done, &slot, rows.node, None), kill);
        assert!(killed.unwrap_err().is_lost());
        release(latch).await;
        let state = "select state from stepwell.step where key = $1";
        assert_eq!(rows.one::<i16>(state, lease.step).await, 2);
        let again = settle(&rows, lease, "1").await;
        assert_eq!((again.accepted, again.leases.len()), (vec![true], 1));
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn an_append_that_hangs_delays_others_no_longer_than_the_time_out() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut options = stepwell_store::Options::new(&rows.database.url);
    options.timeout = Duration::from_millis(200);
    let store = stepwell_store::Store::connect(&options, "short").await.unwrap();
    rows.create(&definition).await;
    let latch = hold_log(&rows).await;
    let mut writer = store.writer().await.unwrap();
    let late: Error = rows.try_claim(&mut writer, definition.queues[0], 1).await.unwrap_err();
    assert!(late.is_undone(), "{late:?}");
    release(latch).await;
    assert_eq!(rows.claim(&mut writer, definition.queues[0], 1).await.len(), 1);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn adopted_or_expired_but_never_both() {
    for adopt_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        let task = rows.create(&definition).await;
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
        let latch = hold(&rows, task).await;
        let mut adopter = rows.writer().await;
        let keys = [(lease.step, lease.token, 8)];
        let adopt = async { adopter.adopt(&keys, rows.node).await.unwrap().len() };
        let expire = async {
            let expired = [report(&lease, Ending::Fail { wait_ms: None }, "{}")];
            let sweep = Sweep::Sessions(vec![stepwell_tests::SESSION]);
            let none = stepwell_store::ChildSlots::default();
            writer.settle(&expired, &none, rows.node, Some(&sweep)).await.unwrap().accepted[0]
        };
        let (adopted, expired) = if adopt_first {
            race(&rows, latch, adopt, expire).await
        } else {
            let (expired, adopted) = race(&rows, latch, expire, adopt).await;
            (adopted, expired)
        };
        assert_eq!((adopted, expired), (usize::from(adopt_first), !adopt_first));
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn cancel_and_whatever_ends_or_frees_a_step_come_in_either_order_to_the_same_end() {
    for cancel_first in [true, false] {
        for rival in ["expiry", "hand-back", "take-over", "retry", "timer", "cancel"] {
            let rows = Rows::new().await;
            let definition = rows.define("a; b: a").await;
            let task = rows.create(&definition).await;
            let mut writer = rows.writer().await;
            let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
            if rival == "timer" {
                let back_off = report(&lease, Ending::Fail { wait_ms: Some(100) }, "{}");
                rows.settle(&mut writer, &[back_off]).await;
                let due = "select 1 from stepwell.timer, pg_sleep_until(due) where key > $1";
                assert_eq!(rows.one::<i32>(due, 0).await, 1, "its time has come");
            }
            let uid = rows.one("select uid from stepwell.task where id = $1", task).await;
            // A timer asks for no task's lock, only for the log's.
            let latch =
                if rival == "timer" { hold_log(&rows).await } else { hold(&rows, task).await };
            let move_it = async {
                let sessions = Sweep::Sessions(vec![stepwell_tests::SESSION]);
                let (ending, sweep) = match rival {
                    "expiry" => (Ending::Fail { wait_ms: None }, Some(sessions)),
                    "hand-back" => (Ending::HandBack, Some(sessions)),
                    "take-over" => (Ending::Fail { wait_ms: None }, Some(Sweep::Node(rows.node))),
                    "retry" => (Ending::Fail { wait_ms: Some(0) }, None),
                    "timer" => {
                        writer.release_due(10).await.unwrap();
                        return true;
                    }
                    _ => {
                        rows.cancel(uid).await;
                        return true;
                    }
                };
                let none = stepwell_store::ChildSlots::default();
                let ended = [report(&lease, ending, "{}")];
                let settled = writer.settle(&ended, &none, rows.node, sweep.as_ref()).await;
                settled.unwrap().accepted[0]
            };
            let cancel = async { rows.cancel(uid).await };
            let moved = if cancel_first {
                race(&rows, latch, cancel, move_it).await.1
            } else {
                race(&rows, latch, move_it, cancel).await.0
            };
            let counts = matches!(rival, "expiry" | "hand-back" | "take-over" | "retry");
            assert_eq!(moved, !(counts && cancel_first), "{rival}");
            let state = "select state from stepwell.task where id = $1";
            assert_eq!(
                rows.one::<i16>(state, task).await,
                5,
                "{rival}, cancel first: {cancel_first}"
            );
            assert!(rows.claim(&mut writer, definition.queues[0], 9).await.is_empty(), "{rival}");
            let ends = "select count(*) from stepwell.event where task = $1 and type = 24";
            assert_eq!(rows.one::<i64>(ends, task).await, 1, "{rival}");
            check(&mut rows.connection().await).await;
        }
    }
}
