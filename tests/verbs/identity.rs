//! Requests for tasks that are known by more than their id: by a key of their caller, or by what they say.

use std::{sync::Arc, time::Duration};

use stepwell_store::{Created, Identity, KeepTasks, NewTask, StoredDefinition};
use stepwell_tests::{Rows, check, new_task};
use uuid::Uuid;

use super::races::{hold_log, race, release};

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// A request that is the same as all others with this number within the window.
fn same(definition: &Arc<StoredDefinition>, number: u128, window: Option<Duration>) -> NewTask {
    let identity = Identity { key: Uuid::from_u128(number), window, caller_key: None };
    NewTask { identity: Some(identity), ..new_task(definition) }
}

/// The same by a key of its caller, with this content.
fn with_key(definition: &Arc<StoredDefinition>, number: u128, content: u8) -> NewTask {
    let caller_key = Some(format!("k{number}"));
    let identity = Identity { key: Uuid::from_u128(number), window: None, caller_key };
    NewTask { identity: Some(identity), hash: [content; 32], ..new_task(definition) }
}

async fn create(rows: &Rows, tasks: &mut [NewTask]) -> Vec<Created> {
    rows.writer().await.create_tasks(&rows.store, tasks).await.unwrap()
}

/// The id of the task that is there.
fn there(created: &Created) -> String {
    match created {
        Created::Existing(task) => task.task_id.clone(),
        other => panic!("{other:?}"),
    }
}

async fn count(rows: &Rows, sql: &'static str) -> i64 {
    rows.one(sql, 0).await
}

async fn tasks(rows: &Rows) -> i64 {
    count(rows, "select count(*) from stepwell.task where $1 = 0").await
}

async fn keys(rows: &Rows) -> i64 {
    count(rows, "select count(*) from stepwell.identity where $1 = 0").await
}

/// As if all tasks were so many seconds older.
async fn age(rows: &Rows, seconds: i64) {
    let sql = "update stepwell.task_detail set created_at = created_at - $1 * interval '1 s'";
    rows.execute(sql, seconds).await;
}

#[tokio::test]
async fn of_requests_that_are_the_same_the_first_makes_the_task_also_within_one_call() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let mut batch = [
        new_task(&definition),
        same(&definition, 1, MINUTE),
        same(&definition, 2, MINUTE),
        same(&definition, 1, MINUTE),
        new_task(&definition),
        same(&definition, 1, MINUTE),
    ];
    let made = create(&rows, &mut batch).await;
    for i in [0, 1, 2, 4] {
        assert!(matches!(made[i], Created::New(_)), "{i}: {made:?}");
    }
    for i in [3, 5] {
        assert_eq!(there(&made[i]), batch[1].uid.to_string());
    }
    assert_eq!((tasks(&rows).await, keys(&rows).await), (4, 2));

    let mut later = [same(&definition, 2, MINUTE), same(&definition, 3, MINUTE)];
    let found = create(&rows, &mut later).await;
    assert_eq!(there(&found[0]), batch[2].uid.to_string());
    assert!(matches!(found[1], Created::New(_)));
    assert_eq!((tasks(&rows).await, keys(&rows).await), (5, 3));
    let events = "select count(*) from stepwell.event where $1 = 0";
    assert_eq!(count(&rows, events).await, 5, "what made no task is told nowhere");
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn requests_without_a_key_of_any_kind_do_not_touch_the_keys() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut latch = rows.connection().await;
    let lock = "begin; lock table stepwell.identity in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut latch).await.unwrap();
    assert_eq!(rows.create_many(&definition, 3).await.len(), 3, "it would have waited");
    release(latch).await;
}

#[tokio::test]
async fn the_window_slides_from_the_creation_of_the_task_that_is_there() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut first = [same(&definition, 1, MINUTE)];
    create(&rows, &mut first).await;
    age(&rows, 59).await;
    let found = create(&rows, &mut [same(&definition, 1, MINUTE)]).await;
    assert_eq!(there(&found[0]), first[0].uid.to_string(), "a repeat does not prolong it");
    age(&rows, 2).await;
    // Whoever asks says how far back.
    let found = create(&rows, &mut [same(&definition, 1, Some(Duration::from_secs(3600)))]).await;
    assert_eq!(there(&found[0]), first[0].uid.to_string());
    let mut second = [same(&definition, 1, MINUTE), same(&definition, 1, MINUTE)];
    let made = create(&rows, &mut second).await;
    assert!(matches!(made[0], Created::New(_)), "{made:?}");
    assert_eq!(there(&made[1]), second[0].uid.to_string());
    // The key is of the second now, at any age.
    age(&rows, 100_000_000).await;
    let found = create(&rows, &mut [same(&definition, 1, None)]).await;
    assert_eq!(there(&found[0]), second[0].uid.to_string());
    assert_eq!((tasks(&rows).await, keys(&rows).await), (2, 1));
}

#[tokio::test]
async fn a_caller_s_key_is_of_one_content_and_what_was_compared_is_enough_without_one() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut first = [with_key(&definition, 1, 7)];
    create(&rows, &mut first).await;
    let again =
        create(&rows, &mut [with_key(&definition, 1, 7), with_key(&definition, 1, 8)]).await;
    assert_eq!(there(&again[0]), first[0].uid.to_string());
    assert_eq!(again[1], Created::KeyReused);
    // Tags, say, are no part of what is compared, but they are of the hash.
    create(&rows, &mut [same(&definition, 2, MINUTE)]).await;
    let other = NewTask { hash: [9; 32], ..same(&definition, 2, MINUTE) };
    assert!(matches!(create(&rows, &mut [other]).await[0], Created::Existing(_)));
    assert_eq!(tasks(&rows).await, 2);
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_tried_again_and_makes_nothing_more() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut batch =
        [same(&definition, 1, MINUTE), same(&definition, 1, MINUTE), same(&definition, 2, MINUTE)];
    let first = create(&rows, &mut batch).await;
    // The same requests with the keys their tasks had.
    let again = create(&rows, &mut batch).await;
    assert_eq!(again, first);
    assert_eq!(there(&again[1]), batch[0].uid.to_string());
    assert_eq!((tasks(&rows).await, keys(&rows).await), (2, 2));
    // Nor does its caller, who repeats it with its id: it is answered by that.
    let mut repeat = [NewTask { key: None, ..batch[2].clone() }];
    age(&rows, 120).await;
    assert_eq!(there(&create(&rows, &mut repeat).await[0]), batch[2].uid.to_string());
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_key_of_a_request_whose_id_is_taken_is_nobody_s() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut first = [new_task(&definition)];
    create(&rows, &mut first).await;
    let mut taken = [NewTask { uid: first[0].uid, ..same(&definition, 1, MINUTE) }];
    assert_eq!(there(&create(&rows, &mut taken).await[0]), first[0].uid.to_string());
    let mut other = [NewTask { uid: first[0].uid, hash: [1; 32], ..with_key(&definition, 2, 1) }];
    assert_eq!(create(&rows, &mut other).await[0], Created::Reused);
    assert_eq!((tasks(&rows).await, keys(&rows).await), (1, 0));
}

#[tokio::test]
async fn of_two_that_are_the_same_and_meet_one_makes_the_task_in_either_order() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    // Two keys each, in either order: neither waits for the other twice.
    let mut one = [same(&definition, 1, MINUTE), same(&definition, 2, MINUTE)];
    let mut other = [same(&definition, 2, MINUTE), same(&definition, 1, MINUTE)];
    let (mut first, mut second) = (rows.writer().await, rows.writer().await);
    let latch = hold_log(&rows).await;
    let (made, found) = race(
        &rows,
        latch,
        first.create_tasks(&rows.store, &mut one),
        second.create_tasks(&rows.store, &mut other),
    )
    .await;
    let (made, found) = (made.unwrap(), found.unwrap());
    assert!(made.iter().all(|made| matches!(made, Created::New(_))), "{made:?}");
    assert_eq!(
        [there(&found[1]), there(&found[0])],
        [one[0].uid, one[1].uid].map(|id| id.to_string())
    );
    assert_eq!((tasks(&rows).await, keys(&rows).await), (2, 2));
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn two_hundred_that_are_the_same_and_come_at_once_make_one_task() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let creators = (0..20).map(|_| async {
        let mut batch: Vec<NewTask> = (0..10).map(|_| same(&definition, 1, MINUTE)).collect();
        create(&rows, &mut batch).await
    });
    let all = futures::future::join_all(creators).await.concat();
    let made = all.iter().filter(|created| matches!(created, Created::New(_))).count();
    assert_eq!((all.len(), made, tasks(&rows).await), (200, 1, 1));
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_task_that_is_removed_takes_its_key_with_it_and_one_whose_key_is_asked_for_stays() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut first = [same(&definition, 1, None), same(&definition, 2, None)];
    create(&rows, &mut first).await;
    for task in &first {
        rows.cancel(task.uid).await;
    }
    let sql =
        "update stepwell.task set finished_at = finished_at - interval '2 hours' where $1 = 0";
    rows.execute(sql, 0).await;
    age(&rows, 7200).await;
    let keep = KeepTasks { ended: Some(Duration::from_secs(3600)), in_error: None };

    // Somebody asks for the first: who removes passes it, and waits for nobody.
    let latch = hold_log(&rows).await;
    let mut writer = rows.writer().await;
    let mut asking = [same(&definition, 1, None), new_task(&definition)];
    let asks = writer.create_tasks(&rows.store, &mut asking);
    let removes = async {
        rows.in_line(1).await;
        let removed = rows.store.remove_tasks(0, keep, 10).await.unwrap().0;
        release(latch).await;
        removed
    };
    let (asked, removed) = tokio::join!(asks, removes);
    assert_eq!(there(&asked.unwrap()[0]), first[0].uid.to_string());
    assert_eq!((removed, tasks(&rows).await, keys(&rows).await), (1, 2, 1));

    assert_eq!(rows.store.remove_tasks(0, keep, 10).await.unwrap().0, 1);
    assert_eq!(keys(&rows).await, 0);
    let again = create(&rows, &mut [same(&definition, 1, None)]).await;
    assert!(matches!(again[0], Created::New(_)), "the key is free: {again:?}");
}

#[tokio::test]
async fn who_repeats_a_request_while_its_task_is_removed_is_told_of_the_task_that_has_its_key_now()
{
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut first = [same(&definition, 1, MINUTE)];
    create(&rows, &mut first).await;
    rows.cancel(first[0].uid).await;
    age(&rows, 120).await;
    let mut second = [same(&definition, 1, MINUTE)];
    create(&rows, &mut second).await;

    // The first is still to be seen, and is gone when it is read.
    let latch = hold_log(&rows).await;
    let mut remover = rows.connection().await;
    sqlx::query("begin").execute(&mut remover).await.unwrap();
    let remove = "select from stepwell.remove_named(array[$1], array[null]::smallint[], array[null]::timestamptz[], true)";
    sqlx::query(remove).bind(first[0].uid).execute(&mut remover).await.unwrap();
    let mut writer = rows.writer().await;
    let mut batch = [NewTask { key: None, ..first[0].clone() }, new_task(&definition)];
    let asks = writer.create_tasks(&rows.store, &mut batch);
    let goes = async {
        rows.in_line(1).await;
        sqlx::query("commit").execute(&mut remover).await.unwrap();
        release(latch).await;
    };
    let (asked, ()) = tokio::join!(asks, goes);
    let asked = asked.unwrap();
    assert_eq!(there(&asked[0]), second[0].uid.to_string());
    assert!(matches!(asked[1], Created::New(_)), "{asked:?}");
    assert_eq!((tasks(&rows).await, keys(&rows).await), (2, 1));
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn those_with_the_key_of_one_that_is_not_made_are_not_given_the_task_that_has_its_id() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut stranger = [NewTask { hash: [9; 32], ..new_task(&definition) }];
    let mut batch = [
        NewTask { uid: stranger[0].uid, ..same(&definition, 1, MINUTE) },
        same(&definition, 1, MINUTE),
        same(&definition, 1, MINUTE),
    ];
    let (mut one, mut other) = (rows.writer().await, rows.writer().await);
    let latch = hold_log(&rows).await;
    let (made, asked) = race(
        &rows,
        latch,
        one.create_tasks(&rows.store, &mut stranger),
        other.create_tasks(&rows.store, &mut batch),
    )
    .await;
    let (made, asked) = (made.unwrap(), asked.unwrap());
    assert!(matches!(made[0], Created::New(_)), "{made:?}");
    assert_eq!(asked[0], Created::Reused);
    assert!(matches!(asked[1], Created::New(_)), "{asked:?}");
    assert_eq!(there(&asked[2]), batch[1].uid.to_string());
    assert_eq!((tasks(&rows).await, keys(&rows).await), (2, 1));
    check(&mut rows.connection().await).await;
}
