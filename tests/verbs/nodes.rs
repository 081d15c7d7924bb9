//! Nodes that die, and those that take over from them.

use std::time::Duration;

use stepwell_store::{ChildSlots, Ending, LeaseRow, Report, Sweep};
use stepwell_tests::{Rows, SESSION, check, report, slots};

use super::races::{hold, hold_log, race, settle};

const LEASE: Duration = Duration::from_secs(10);

/// What `node` takes over at a moment, given as SQL.
async fn take_over(rows: &Rows, node: i32, at: &str) -> Vec<(i32, i64, i64)> {
    let sql = format!(
        "select unnest(t_node), unnest(t_walked), unnest(t_wait_ms) \
           from stepwell.take_over($1, 10000, 3000, true, {at})"
    );
    let taken = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(node);
    taken.fetch_all(&mut rows.connection().await).await.unwrap()
}

/// Fails leases as a take-over does.
async fn expire(rows: &Rows, dead: i32, leases: &[LeaseRow]) -> Vec<bool> {
    let expired: Vec<Report> =
        leases.iter().map(|l| report(l, Ending::Fail { wait_ms: Some(0) }, "{}")).collect();
    let mut writer = rows.writer().await;
    let none = ChildSlots::default();
    writer.settle(&expired, &none, rows.node, Some(&Sweep::Node(dead))).await.unwrap().accepted
}

const LATER: &str = "clock_timestamp() + interval '1 hour'";

#[tokio::test]
async fn a_node_that_does_not_extend_its_lease_is_declared_dead() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let node = rows.store.register_node(LEASE).await.unwrap();
    assert!(writer.extend_node(rows.node, Duration::from_secs(7200)).await.unwrap());
    assert!(writer.extend_node(node, LEASE).await.unwrap());
    let within = "(select lease_until from stepwell.node order by id desc limit 1)";
    assert_eq!(take_over(&rows, rows.node, within).await, [], "its lease is not over");
    assert!(writer.extend_node(node, Duration::from_secs(7200)).await.unwrap());
    assert_eq!(take_over(&rows, rows.node, LATER).await, [], "it was extended");
    assert!(writer.extend_node(node, LEASE).await.unwrap());
    assert_eq!(take_over(&rows, rows.node, LATER).await, [(node, 0, 3000)]);
    assert!(!writer.extend_node(node, LEASE).await.unwrap(), "the woken one is told");
    assert_eq!(
        take_over(&rows, rows.node, LATER).await[0].0,
        node,
        "asked again, it says so again"
    );
}

#[tokio::test]
async fn nobody_is_declared_dead_within_one_lease_of_the_database_s_start() {
    let rows = Rows::new().await;
    let dead = rows.store.register_node(Duration::ZERO).await.unwrap();
    let mut connection = rows.connection().await;
    sqlx::query("update stepwell.node set lease_until = pg_postmaster_start_time() where id = $1")
        .bind(dead)
        .execute(&mut connection)
        .await
        .unwrap();
    let soon = "pg_postmaster_start_time() + interval '9.9 s'";
    assert_eq!(take_over(&rows, rows.node, soon).await, []);
    let late = "pg_postmaster_start_time() + interval '10.1 s'";
    assert_eq!(take_over(&rows, rows.node, late).await, [(dead, 0, 3000)]);
}

#[tokio::test]
async fn one_node_takes_over_and_another_goes_on_where_it_died() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let (a, b) = (rows.node, rows.store.register_node(LEASE).await.unwrap());
    let dead = rows.store.register_node(LEASE).await.unwrap();
    writer.retire_node(dead).await.unwrap();
    let now = "clock_timestamp()";
    let (one, other) = tokio::join!(take_over(&rows, a, now), take_over(&rows, b, now));
    assert_eq!(one.len() + other.len(), 1, "exactly one of them");
    let (first, second) = if one.is_empty() { (b, a) } else { (a, b) };
    writer.walked(dead, first, 77).await.unwrap();
    writer.walked(dead, second, 99).await.unwrap();
    writer.forget_node(dead, second).await.unwrap();
    writer.retire_node(first).await.unwrap();
    let mut taken = take_over(&rows, second, now).await;
    taken.sort_unstable();
    let mut both: Vec<_> = taken.iter().map(|(node, walked, _)| (*node, *walked)).collect();
    both.sort_unstable_by_key(|(_, walked)| *walked);
    assert_eq!(both, [(first, 0), (dead, 77)]);
    writer.forget_node(dead, second).await.unwrap();
    assert_eq!(take_over(&rows, second, now).await.len(), 1);
}

#[tokio::test]
async fn a_node_that_goes_on_under_a_new_id_walks_the_old_one_itself() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let new = writer.renew_node(rows.node, LEASE).await.unwrap();
    let other = rows.store.register_node(LEASE).await.unwrap();
    assert_eq!(take_over(&rows, other, "clock_timestamp()").await, []);
    let own = writer.take_over(new, LEASE, LEASE, false).await.unwrap();
    assert_eq!(own.iter().map(|over| over.node).collect::<Vec<_>>(), [rows.node]);
}

#[tokio::test]
async fn a_claim_that_comes_after_the_retirement_leases_nothing_and_one_before_is_found() {
    for claim_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        rows.create(&definition).await;
        let latch = hold_log(&rows).await;
        let (mut claimer, mut retirer) = (rows.writer().await, rows.writer().await);
        let claim = rows.try_claim(&mut claimer, definition.queues[0], 1);
        let retire = retirer.retire_node(rows.node);
        let (claimed, ()) = if claim_first {
            let (claimed, retired) = race(&rows, latch, claim, retire).await;
            (claimed, retired.unwrap())
        } else {
            let (retired, claimed) = race(&rows, latch, retire, claim).await;
            (claimed, retired.unwrap())
        };
        let (left, _) = rows.writer().await.leases_of(rows.node, 0, 100).await.unwrap();
        assert_eq!(left.len(), usize::from(claim_first));
        assert_eq!(claimed.is_err_and(|error| error.is_retired()), !claim_first);
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn adopted_late_or_expired_by_the_take_over_but_never_both() {
    for (adopt_first, log) in [(true, true), (true, false), (false, true), (false, false)] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        let task = rows.create(&definition).await;
        let mut writer = rows.writer().await;
        let dead = rows.store.register_node(LEASE).await.unwrap();
        let free = slots(definition.queues[0], 1);
        let lease = writer.claim(&free, &Default::default(), dead).await.unwrap().leases[0];
        writer.retire_node(dead).await.unwrap();
        let latch = if log { hold_log(&rows).await } else { hold(&rows, task).await };
        let mut adopter = rows.writer().await;
        let held = [(lease.step, lease.token, 8)];
        let adopt = async { adopter.adopt(&held, rows.node).await.unwrap().len() };
        let left = [lease];
        let walk = expire(&rows, dead, &left);
        let (adopted, expired) = if adopt_first {
            race(&rows, latch, adopt, walk).await
        } else {
            let (expired, adopted) = race(&rows, latch, walk, adopt).await;
            (adopted, expired)
        };
        assert_eq!((adopted, expired[0]), (usize::from(adopt_first), !adopt_first));
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn settled_by_its_executor_or_expired_by_the_take_over_but_never_both() {
    for (settle_first, log) in [(true, true), (true, false), (false, true), (false, false)] {
        let rows = Rows::new().await;
        let definition = rows.define("a; b: a").await;
        let task = rows.create(&definition).await;
        let mut writer = rows.writer().await;
        let dead = rows.store.register_node(LEASE).await.unwrap();
        let free = slots(definition.queues[0], 1);
        let lease = writer.claim(&free, &Default::default(), dead).await.unwrap().leases[0];
        writer.retire_node(dead).await.unwrap();
        let latch = if log { hold_log(&rows).await } else { hold(&rows, task).await };
        let done = settle(&rows, lease, "1");
        let left = [lease];
        let walk = expire(&rows, dead, &left);
        let (settled, expired) = if settle_first {
            race(&rows, latch, done, walk).await
        } else {
            let (expired, settled) = race(&rows, latch, walk, done).await;
            (settled, expired)
        };
        assert_eq!((settled.accepted[0], expired[0]), (settle_first, !settle_first));
        assert_eq!(settled.leases.len(), usize::from(settle_first), "the child, at once");
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn a_cancelled_task_s_leases_are_neither_adopted_nor_expired() {
    for cancel_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        let task = rows.create(&definition).await;
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
        let uid = rows.one("select uid from stepwell.task where id = $1", task).await;
        let latch = hold(&rows, task).await;
        let mut adopter = rows.writer().await;
        let held = [(lease.step, lease.token, 8)];
        let adopt = async { adopter.adopt(&held, rows.node).await.unwrap().len() };
        let cancel = rows.cancel(uid);
        let (adopted, cancelled) = if cancel_first {
            let (cancelled, adopted) = race(&rows, latch, cancel, adopt).await;
            (adopted, cancelled)
        } else {
            race(&rows, latch, adopt, cancel).await
        };
        assert_eq!((adopted, cancelled), (usize::from(!cancel_first), 1));
        let told = writer.signals(&[rows.node]).await.unwrap();
        let holder = if cancel_first { SESSION } else { 8 };
        assert_eq!((told.len(), told[0].session), (1, holder), "whoever holds it is told");
        assert_eq!(writer.signals(&[rows.node]).await.unwrap().len(), 1, "until it was passed on");
        writer.drop_signals(&[told[0].id]).await.unwrap();
        assert!(writer.signals(&[rows.node]).await.unwrap().is_empty());
        assert_eq!(expire(&rows, rows.node, &[lease]).await, [false]);
        check(&mut rows.connection().await).await;
    }
}
