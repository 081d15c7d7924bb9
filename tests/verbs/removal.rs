//! Tasks that ended long ago are removed with all that is theirs, and what is left of them harms nobody.

use std::{sync::Arc, time::Duration};

use stepwell_proto::v1::Concurrency;
use stepwell_store::{Created, Ending, KeepTasks, Note, StoredDefinition};
use stepwell_tests::{Rows, check, complete, new_task, report};
use uuid::Uuid;

const HOUR: Option<Duration> = Some(Duration::from_secs(3600));
const ENDED: KeepTasks = KeepTasks { ended: HOUR, in_error: None };
const ANY: KeepTasks = KeepTasks { ended: HOUR, in_error: HOUR };

/// As if the ends of tasks up to this key were two hours ago.
async fn age(rows: &Rows, key: i64) {
    for sql in [
        "update stepwell.task set finished_at = finished_at - interval '2 hours' where id <= $1",
        "update stepwell.task_detail set created_at = created_at - interval '2 hours' where task <= $1",
    ] {
        rows.execute(sql, key).await;
    }
}

/// Rows of all tables that belong to one task.
async fn rows_of(rows: &Rows, task: i64) -> i64 {
    let sql = "select (select count(*) from stepwell.task where id = $1)
                    + (select count(*) from stepwell.task_detail where task = $1)
                    + (select count(*) from stepwell.step where key >> 14 = $1)
                    + (select count(*) from stepwell.parked_step where task = $1)
                    + (select count(*) from stepwell.task_annotation where task = $1)
                    + (select count(*) from stepwell.concurrency where task = $1)";
    rows.one(sql, task).await
}

/// Five tasks of one step: open, complete, in error, cancelled, resolved.
async fn five(rows: &Rows) -> (Arc<StoredDefinition>, Vec<Uuid>, Vec<i64>) {
    let definition = rows.define("a").await;
    let mut writer = rows.writer().await;
    let keys = rows.create_many(&definition, 5).await;
    let leases = rows.claim(&mut writer, definition.queues[0], 5).await;
    let of = |n: usize| leases.iter().find(|lease| lease.step >> 14 == keys[n]).unwrap();
    let fails = Ending::Fail { wait_ms: None };
    let ends = [complete(of(1), "1"), report(of(2), fails, "{}"), report(of(4), fails, "{}")];
    rows.settle(&mut writer, &ends).await;
    let mut uids = Vec::new();
    for key in &keys {
        uids.push(rows.one("select uid from stepwell.task where id = $1", *key).await);
    }
    rows.cancel(uids[3]).await;
    rows.store.resolve_tasks(&uids[4..], &Note::new("me", "")).await.unwrap();
    (definition, uids, keys)
}

async fn remove(rows: &Rows, keep: KeepTasks) -> u64 {
    let (removed, next) = rows.store.remove_tasks(0, keep, 500).await.unwrap();
    assert_eq!(next, None);
    removed
}

#[tokio::test]
async fn tasks_that_ended_long_ago_go_with_all_that_is_theirs_and_open_ones_stay() {
    let rows = Rows::new().await;
    let (definition, uids, keys) = five(&rows).await;
    let (fact, note) = ([("order".to_owned(), "17".to_owned())].into(), Note::new("me", ""));
    rows.store.annotate_task(uids[1], &fact, &[], &note, None).await.unwrap();
    assert_eq!(rows_of(&rows, keys[1]).await, 4);
    assert_eq!(remove(&rows, ANY).await, 0, "none ended long ago");
    age(&rows, keys[4]).await;
    assert_eq!(remove(&rows, KeepTasks::default()).await, 0);
    assert_eq!(remove(&rows, ENDED).await, 3);
    for (n, left) in [3, 0, 3, 0, 0].into_iter().enumerate() {
        assert_eq!(rows_of(&rows, keys[n]).await, left, "task {n}");
    }
    assert_eq!(remove(&rows, ENDED).await, 0, "in error it may go on");
    assert_eq!(remove(&rows, ANY).await, 1);
    assert_eq!(rows_of(&rows, keys[2]).await, 0);
    // They are not found any more, whatever is asked of them.
    assert!(rows.store.task_with_steps(uids[1], false).await.unwrap().is_none());
    let retried = rows.store.retry_tasks(&uids[2..3], None, &note).await.unwrap();
    assert!(retried[0].was.is_none());
    // Their events stay, and an id that is free again makes a task of its own.
    let events = "select count(*) from stepwell.event where task = $1";
    assert!(rows.one::<i64>(events, keys[1]).await >= 4);
    let mut again = [new_task(&definition)];
    again[0].uid = uids[1];
    let made = rows.writer().await.create_tasks(&rows.store, &mut again).await.unwrap();
    assert!(matches!(made[0], Created::New(_)));
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn they_go_in_chunks_oldest_first_and_a_walk_ends_where_tasks_are_too_young() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 7).await;
    for key in &keys {
        rows.cancel(rows.one("select uid from stepwell.task where id = $1", *key).await).await;
    }
    age(&rows, keys[4]).await;
    let mut place = 0;
    for (removed, next) in [(2, Some(keys[1])), (2, Some(keys[3])), (1, None)] {
        let is = rows.store.remove_tasks(place, ENDED, 2).await.unwrap();
        assert_eq!(is, (removed, next));
        place = next.unwrap_or(0);
    }
    let left = "select count(*) from stepwell.task where id > $1";
    assert_eq!(rows.one::<i64>(left, 0).await, 2);
    // Of one row that is looked at, too young: nothing behind it is looked at.
    let verb =
        "select m_next is null and removed_n = 0 from stepwell.remove_tasks($1, 3600, 0, 1, 500)";
    assert!(rows.one::<bool>(verb, 0).await);
}

#[tokio::test]
async fn what_removed_tasks_left_in_queues_clocks_and_keys_is_dropped_in_its_turn() {
    let rows = Rows::new().await;
    let definition = rows
        .define_with("a; b", |d| {
            d.deadline = Some(stepwell_tests::prost_duration(3600));
            d.max_parallel_steps = 1;
            d.concurrency = Some(Concurrency { key: "k".into(), limit: 1 });
        })
        .await;
    let mut tasks = [new_task(&definition), new_task(&definition)];
    tasks.iter_mut().for_each(|task| task.concurrency = Some(77));
    let mut writer = rows.writer().await;
    writer.create_tasks(&rows.store, &mut tasks).await.unwrap();
    while writer.grant_keys().await.unwrap().1 {}
    let keys = tasks.each_ref().map(|task| task.key.unwrap());
    // It ends with a row in the queue, one that is parked, a clock, and the key.
    rows.cancel(tasks[0].uid).await;
    age(&rows, keys[0]).await;
    assert_eq!(remove(&rows, ENDED).await, 1);
    assert_eq!(rows_of(&rows, keys[0]).await, 0);
    // The key goes to the one that waits, whose step is leased; the stale row is dropped on the way.
    while writer.grant_keys().await.unwrap().1 {}
    let lease = rows.claim(&mut writer, definition.queues[0], 9).await;
    assert_eq!(lease.iter().map(|l| l.step >> 14).collect::<Vec<_>>(), [keys[1]]);
    rows.store.survey().await.unwrap();
    rows.pass("2 hours").await;
    while writer.release_due(10).await.unwrap().taken > 0 {}
    assert_eq!(rows.one::<i64>("select count(*) from stepwell.timer where key > $1", 0).await, 0);
    check(&mut rows.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_removal_and_a_move_by_hand_the_first_wins_and_the_other_does_not_harm() {
    let rows = Rows::new().await;
    let (_, uids, keys) = five(&rows).await;
    age(&rows, keys[4]).await;
    let mut holder = rows.connection().await;
    // A retry that has not committed: the removal passes its task, and takes the others.
    let retry = "begin; select stepwell.retry_tasks(array[uid], '{}', null)
                   from stepwell.task where state = 4";
    sqlx::raw_sql(retry).execute(&mut holder).await.unwrap();
    assert_eq!(remove(&rows, ANY).await, 3);
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    assert_eq!(remove(&rows, ANY).await, 0, "it is open now");
    assert_eq!(rows_of(&rows, keys[2]).await, 3);

    // A removal that has not committed: a cancel waits for it, and finds nothing.
    rows.cancel(uids[2]).await;
    age(&rows, keys[2]).await;
    let remove = "begin; select stepwell.remove_tasks(0, 3600, 3600, 100, 100)";
    sqlx::raw_sql(remove).execute(&mut holder).await.unwrap();
    let store = rows.store.clone();
    let cancelling = tokio::spawn(async move {
        store.cancel_tasks(&[uids[2]], true, &Note::new("me", "")).await.unwrap()
    });
    rows.in_line(1).await;
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    assert_eq!(cancelling.await.unwrap().was, [None]);
    assert_eq!(rows_of(&rows, keys[2]).await, 0);
    assert_eq!(rows_of(&rows, keys[0]).await, 3, "the open one stays");
    check(&mut rows.connection().await).await;
}
