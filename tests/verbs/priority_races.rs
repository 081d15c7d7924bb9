//! What two sessions meet at when priorities change or definitions are paused, in both orders. That of a new
//! priority with every other move of a task is in `square.rs`.

use stepwell_proto::v1::Definition;
use stepwell_store::{Ending, StoredDefinition};
use stepwell_tests::{Rows, check, complete, report};

use super::{
    priority::{create, pause, queue_at, raise},
    races::{hold, hold_log, race, settle},
};

/// Nothing is left in the usual queue, and so many steps are in that of priority 1.
async fn all_hurry(rows: &Rows, definition: &StoredDefinition, n: usize, story: &str) {
    let mut writer = rows.writer().await;
    let usual = rows.claim(&mut writer, definition.queues[0], 9).await.len();
    let first = queue_at(rows, definition, 1).await.unwrap();
    let first = rows.claim(&mut writer, first, 9).await.len();
    assert_eq!((usual, first), (0, n), "{story}");
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn what_a_limited_task_lets_out_while_its_priority_changes_is_offered_in_its_new_queue() {
    for settle_first in [true, false] {
        let rows = Rows::new().await;
        let limit = |definition: &mut Definition| definition.max_parallel_steps = 1;
        let definition = rows.define_with("a; b; c; d: a", limit).await;
        let task = create(&rows, &definition, None).await;
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
        let latch = hold(&rows, task.key.unwrap()).await;
        let (settle, raise) = (settle(&rows, lease, "1"), raise(&rows, task.uid, 1));
        let settled = if settle_first {
            race(&rows, latch, settle, raise).await.0
        } else {
            race(&rows, latch, raise, settle).await.1
        };
        assert_eq!((settled.accepted, settled.leases.len()), (vec![true], 0));
        check(&mut rows.connection().await).await;
        for _ in 0..3 {
            all_but_one_wait(&rows, &definition, settle_first).await;
        }
        let state = "select state from stepwell.task where id = $1";
        assert_eq!(rows.one::<i16>(state, task.key.unwrap()).await, 3);
    }
}

/// One step is leased in the queue of priority 1, and completes.
async fn all_but_one_wait(rows: &Rows, definition: &StoredDefinition, settle_first: bool) {
    let mut writer = rows.writer().await;
    assert!(rows.claim(&mut writer, definition.queues[0], 9).await.is_empty());
    let first = queue_at(rows, definition, 1).await.unwrap();
    let leases = rows.claim(&mut writer, first, 9).await;
    assert_eq!(leases.len(), 1, "settle first: {settle_first}");
    check(&mut rows.connection().await).await;
    rows.settle(&mut writer, &[complete(&leases[0], "1")]).await;
}

#[tokio::test]
async fn a_queue_that_one_task_is_created_for_and_another_changes_over_to_is_made_once() {
    for create_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        let usual = create(&rows, &definition, None).await;
        let latch = hold_log(&rows).await;
        let (new, raise) = (create(&rows, &definition, Some(1)), raise(&rows, usual.uid, 1));
        if create_first {
            race(&rows, latch, new, raise).await;
        } else {
            race(&rows, latch, raise, new).await;
        }
        all_hurry(&rows, &definition, 2, &format!("create first: {create_first}")).await;
    }
}

#[tokio::test]
async fn a_step_whose_retry_falls_due_while_its_priority_changes_waits_in_its_new_queue() {
    for raise_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        let task = create(&rows, &definition, None).await;
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
        let backs_off = Ending::Fail { wait_ms: Some(3_600_000) };
        rows.settle(&mut writer, &[report(&lease, backs_off, "{}")]).await;
        rows.pass("2 h").await;
        let latch = hold_log(&rows).await;
        let raise = async {
            // Who comes first has read the clock while the back-off was not over yet.
            let before = if raise_first { "90 min" } else { "0" };
            let update = "select from stepwell.update_task($1, null, null, 1::smallint, null, now() - $2::text::interval)";
            let update = sqlx::query(update).bind(task.uid).bind(before);
            update.execute(&mut rows.connection().await).await.unwrap();
        };
        let release = async { writer.release_due(9).await.unwrap().taken };
        let taken = if raise_first {
            race(&rows, latch, raise, release).await.1
        } else {
            race(&rows, latch, release, raise).await.0
        };
        assert_eq!(taken, 1);
        writer.release_due(9).await.unwrap();
        all_hurry(&rows, &definition, 1, &format!("raise first: {raise_first}")).await;
    }
}

#[tokio::test]
async fn who_hands_over_before_a_pause_is_waited_for_and_who_comes_after_it_hands_nothing_over() {
    for settle_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a; b: a").await;
        let name = definition.definition.name.clone();
        let task = create(&rows, &definition, None).await;
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
        let (pause, settle) = (pause(&rows, &name, true), settle(&rows, lease, "1"));
        let (paused, settled) = if settle_first {
            let latch = hold(&rows, task.key.unwrap()).await;
            let (settled, paused) = race(&rows, latch, settle, pause).await;
            (paused, settled)
        } else {
            // Somebody else who leases.
            let mut latch = rows.connection().await;
            for sql in ["begin", "select pg_advisory_xact_lock_shared(45)"] {
                sqlx::query(sql).execute(&mut latch).await.unwrap();
            }
            race(&rows, latch, pause, settle).await
        };
        assert_eq!((paused.covered, settled.accepted), (1, vec![true]));
        let handed = (usize::from(settle_first), usize::from(!settle_first));
        assert_eq!((settled.leases.len(), settled.ready), handed);
        assert!(rows.claim(&mut writer, definition.queues[0], 9).await.is_empty());
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn a_version_that_is_registered_while_its_definition_is_paused_is_paused_too() {
    for register_first in [true, false] {
        let rows = Rows::new().await;
        let version = |version: &'static str| {
            move |definition: &mut Definition| {
                (definition.name, definition.version) = ("d".into(), version.into());
            }
        };
        rows.define_with("a", version("1.0.0")).await;
        let held = if register_first { "step_template" } else { "pause" };
        let mut latch = rows.connection().await;
        for sql in ["begin", &format!("lock table stepwell.{held} in share mode")] {
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut latch).await.unwrap();
        }
        let (register, pause) = (rows.define_with("a", version("2.0.0")), pause(&rows, "d", true));
        let later = if register_first {
            race(&rows, latch, register, pause).await.0
        } else {
            race(&rows, latch, pause, register).await.1
        };
        let paused = "select paused from stepwell.definition where id = $1";
        assert!(rows.one::<bool>(paused, i64::from(later.id)).await, "{register_first}");
        check(&mut rows.connection().await).await;
    }
}
