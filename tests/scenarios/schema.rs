//! A service runs on the schema it was built for, and says what to do about any other.

use std::process::Command;

use sqlx::{Connection, PgConnection};
use stepwell_tests::Rows;

/// What a service says that does not start.
fn refusal(url: &str) -> String {
    let service = Command::new(stepwell_suite::built_stepwell().unwrap())
        .args(["serve", "task", "--listen", "127.0.0.1:0", "--database-url", url])
        .output()
        .unwrap();
    assert!(!service.status.success());
    String::from_utf8_lossy(&service.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_or_newer_schema_is_refused_with_what_to_do() {
    let rows = Rows::new().await;
    let mut connection = rows.connection().await;
    let newer = "insert into public.stepwell_migration
                 values (9999, 'newer', now(), true, '', 0)";
    sqlx::raw_sql(newer).execute(&mut connection).await.unwrap();
    let said = refusal(&rows.database.url);
    assert!(said.contains("9999") && said.contains("newer build"), "{said}");

    sqlx::raw_sql("create database unmigrated").execute(&mut connection).await.unwrap();
    let (before, host) = rows.database.url.split_once('?').unwrap();
    let server = before.rsplit_once('/').unwrap().0;
    let empty = format!("{server}/unmigrated?{host}");
    let said = refusal(&empty);
    assert!(said.contains("run `stepwell migrate`"), "{said}");

    let migrated = Command::new(stepwell_suite::built_stepwell().unwrap())
        .args(["migrate", "--database-url", &empty])
        .output()
        .unwrap();
    assert!(migrated.status.success());
    let mut migrated = PgConnection::connect(&empty).await.unwrap();
    let partitions: i64 = sqlx::query_scalar(
        "select count(*) from pg_inherits where inhparent = 'stepwell.event'::regclass",
    )
    .fetch_one(&mut migrated)
    .await
    .unwrap();
    assert!(partitions >= 2, "the log has room ahead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrating_twice_at_once_is_harmless_and_the_log_grows_ahead_of_its_head() {
    let rows = Rows::new().await;
    let url = &rows.database.url;
    let (one, other) = tokio::join!(stepwell_store::migrate(url), stepwell_store::migrate(url));
    assert_eq!(one.unwrap(), other.unwrap());
    let mut connection = rows.connection().await;
    let count = "select count(*) from pg_inherits where inhparent = 'stepwell.event'::regclass";
    let before: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    sqlx::raw_sql("select setval('stepwell.position', 40000000)")
        .execute(&mut connection)
        .await
        .unwrap();
    rows.store.extend_log().await.unwrap();
    let after: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    assert!(after > before, "{before} then {after}");
    let definition = rows.define("a").await;
    rows.create(&definition).await;
    let position: i64 = sqlx::query_scalar("select max(position) from stepwell.event")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(position > 40_000_000);
}
