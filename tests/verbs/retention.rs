//! How long the log is kept: what is old goes by whole partitions, and nobody who reads is left in the dark.

use std::time::Duration;

use stepwell_store::{Error, Keep, Ready};
use stepwell_tests::{Rows, cut_log};

const HOUR: Keep = Keep { age: Some(Duration::from_secs(3600)), bytes: None };
const MARK: &str = "stepwell.event_0000000000000000000 is 'old'";

/// A database whose log has 7 commits of 60 events in partitions of 100 positions.
async fn logged() -> Rows {
    let rows = Rows::new().await;
    cut_log(&mut rows.connection().await, 100, 10).await;
    let definition = rows.define("a").await;
    for _ in 0..7 {
        rows.create_many(&definition, 60).await;
    }
    rows
}

/// As if the events before this position were two hours older.
async fn age(rows: &Rows, before: i64) {
    rows.execute(
        "update stepwell.event set at = at - interval '2 hours' where position < $1",
        before,
    )
    .await;
}

/// From which position on there are partitions, in the log or beside it.
async fn partitions(rows: &Rows) -> i64 {
    rows.one::<i64>(
        "select min(substring(relname from 7)::bigint) from pg_class
          where relname ~ '^event_\\d{19}$' and $1 = 0",
        0,
    )
    .await
}

/// The place after which everything is kept, told to who has not come so far.
async fn refused(rows: &Rows, place: i64) -> i64 {
    let store = rows.store.read_after(place, 10).await.unwrap_err();
    let writer = rows.writer().await.read_after(place, 10).await.unwrap_err();
    let (Error::Expired { earliest }, Error::Expired { earliest: same }) = (store, writer) else {
        panic!("{place} was not refused")
    };
    assert_eq!(earliest, same);
    earliest
}

async fn first_after(rows: &Rows, place: i64) -> i64 {
    rows.store.read_after(place, 10).await.unwrap()[0].position
}

#[tokio::test]
async fn old_events_go_by_whole_partitions_and_who_has_not_come_so_far_is_told() {
    let rows = logged().await;
    let head = rows.store.head().await.unwrap();
    assert_eq!((head, rows.store.earliest().await.unwrap()), (420, 0));
    assert_eq!(rows.store.drop_old_events(Keep::default()).await.unwrap(), 0);
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 0, "nothing is old");

    // All of the first partition, and but one event of the second.
    age(&rows, 199).await;
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 1);
    assert_eq!(partitions(&rows).await, 100);
    // Of the commit 61 to 120 a part is gone: it counts as gone.
    assert_eq!(rows.store.earliest().await.unwrap(), 120);
    for place in [0, 60, 99, 100, 119] {
        assert_eq!(refused(&rows, place).await, 120);
    }
    assert_eq!(first_after(&rows, 120).await, 121);
    assert_eq!(first_after(&rows, 180).await, 181);

    // However old everything is, the partition of the head stays, and what is ahead of it.
    age(&rows, 10_000).await;
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 3);
    assert_eq!((partitions(&rows).await, rows.store.head().await.unwrap()), (400, head));
    assert_eq!(refused(&rows, 360).await, 420, "the last commit has lost its first part");
    assert!(rows.store.read_after(420, 10).await.unwrap().is_empty());
    let definition = rows.define("a").await;
    rows.create(&definition).await;
    assert_eq!(first_after(&rows, 420).await, 421);
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 0);
}

#[tokio::test]
async fn places_between_commits_are_whole_and_those_that_were_never_written_are_not_missed() {
    let rows = Rows::new().await;
    cut_log(&mut rows.connection().await, 100, 10).await;
    let definition = rows.define("a").await;
    rows.create(&definition).await;
    // Positions that nothing was written at, on both sides of a bound.
    rows.one::<i64>("select setval('stepwell.position', 110 + $1)", 0).await;
    rows.create(&definition).await;
    assert_eq!(first_after(&rows, 1).await, 111, "a gap alone is no reason");
    rows.one::<i64>("select setval('stepwell.position', 250 + $1)", 0).await;
    rows.create(&definition).await;
    age(&rows, 100).await;
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 1);
    assert_eq!(rows.store.earliest().await.unwrap(), 99);
    assert_eq!(first_after(&rows, 99).await, 111);
    assert_eq!(refused(&rows, 98).await, 99);
}

#[tokio::test]
async fn the_log_is_cut_to_its_size_but_for_the_partition_of_its_head() {
    let rows = logged().await;
    let bytes = rows
        .one::<i64>(
            "select sum(pg_total_relation_size(inhrelid))::bigint from pg_inherits
              where inhparent = 'stepwell.event'::regclass and $1 = 0",
            0,
        )
        .await;
    let keep = |bytes: i64| Keep { age: None, bytes: Some(u64::try_from(bytes).unwrap()) };
    assert_eq!(rows.store.drop_old_events(keep(bytes)).await.unwrap(), 0);
    assert_eq!(rows.store.drop_old_events(keep(bytes - 1)).await.unwrap(), 1);
    assert_eq!(partitions(&rows).await, 100);
    assert_eq!(rows.store.drop_old_events(keep(1)).await.unwrap(), 3);
    assert_eq!(rows.store.head().await.unwrap(), 420);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detach_that_is_killed_or_held_up_disturbs_nobody_and_goes_on_later() {
    let rows = logged().await;
    age(&rows, 200).await;
    let mut reader = rows.connection().await;
    let looked = "begin; select from stepwell.event where position = 1";
    sqlx::raw_sql(looked).execute(&mut reader).await.unwrap();
    let store = rows.store.clone();
    let dropping = tokio::spawn(async move { store.drop_old_events(HOUR).await });
    rows.in_line(1).await;
    // Who comes meanwhile is not held up, nor does he see what is to go.
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 0, "one at a time");
    assert_eq!(refused(&rows, 60).await, 120);
    let definition = rows.define("a").await;
    rows.create(&definition).await;
    rows.one::<i32>("select stepwell.extend_event(1000 + $1)", 0).await;
    let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock' and $1 = 0";
    assert_eq!(rows.one::<i64>(kill, 0).await, 1);
    dropping.await.unwrap().unwrap_err();

    // The reader is still there: the next one waits for it a little, and fails.
    let error = rows.store.drop_old_events(HOUR).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(partitions(&rows).await, 0, "nothing was dropped under the reader");
    rows.create(&definition).await;
    sqlx::raw_sql("rollback").execute(&mut reader).await.unwrap();
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 2);
    assert_eq!(partitions(&rows).await, 200);
}

#[tokio::test]
async fn what_was_detached_and_not_dropped_is_dropped_unless_somebody_else_detached_it() {
    let rows = logged().await;
    let mut connection = rows.connection().await;
    let detach = "alter table stepwell.event detach partition stepwell.event_0000000000000000000";
    sqlx::raw_sql(detach).execute(&mut connection).await.unwrap();
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 0);
    assert_eq!(partitions(&rows).await, 0, "it is his who detached it");
    assert_eq!(refused(&rows, 0).await, 120);
    let mark = sqlx::AssertSqlSafe(format!("comment on table {MARK}"));
    sqlx::raw_sql(mark).execute(&mut connection).await.unwrap();
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 1);
    assert_eq!(partitions(&rows).await, 100);
}

#[tokio::test]
async fn of_two_that_drop_at_once_each_partition_is_dropped_by_one() {
    let rows = logged().await;
    age(&rows, 400).await;
    let (one, other) =
        tokio::join!(rows.store.drop_old_events(HOUR), rows.store.drop_old_events(HOUR));
    let rest = rows.store.drop_old_events(HOUR).await.unwrap();
    assert_eq!(one.unwrap() + other.unwrap() + rest, 4);
    assert_eq!(partitions(&rows).await, 400);
}

#[tokio::test]
async fn a_step_whose_event_is_gone_is_as_old_as_the_first_that_is_kept_and_goes_on() {
    let rows = Rows::new().await;
    cut_log(&mut rows.connection().await, 100, 10).await;
    let definition = rows.define("a").await;
    let task = rows.create(&definition).await;
    let done = rows.define_with("b", |d| d.steps[0].handler = "other".into()).await;
    for _ in 0..3 {
        rows.create_many(&done, 60).await;
    }
    age(&rows, 10_000).await;
    assert_eq!(rows.store.drop_old_events(HOUR).await.unwrap(), 1);
    let survey = rows.store.survey().await.unwrap();
    let of = |ready: &[Ready]| ready.iter().find(|r| r.handler == "h").cloned().unwrap();
    let found = of(&survey.ready);
    assert!(found.steps == 1 && (7200.0..7260.0).contains(&found.oldest), "{found:?}");
    // What is gone is not counted, and the rest is.
    let (counts, last) = rows.store.count_after(0, survey.head, &[1.0]).await.unwrap();
    assert_eq!((counts.iter().map(|c| c.n).sum::<i64>(), last), (82, survey.head));
    let uid = rows.one::<uuid::Uuid>("select uid from stepwell.task where id = $1", task).await;
    assert_eq!(rows.store.before_first(&[uid]).await.unwrap(), Some(0));
    let mut writer = rows.writer().await;
    let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
    rows.settle(&mut writer, &[stepwell_tests::complete(&lease, "{}")]).await;
    assert_eq!(rows.one::<i16>("select state from stepwell.task where id = $1", task).await, 3);
}
