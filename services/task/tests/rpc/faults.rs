//! Creating tasks while the database refuses, stalls or breaks connections.

use std::time::Duration;

use futures::future::join_all;
use sqlx::{Connection, PgConnection};
use stepwell_proto::v1::{CreateTaskRequest, ErrorReason};

use crate::{PAIR, World, request};

async fn connection(world: &World) -> PgConnection {
    PgConnection::connect(&world.database.url).await.unwrap()
}

/// Waits until a session of the service stands in line for a lock.
async fn in_line(connection: &mut PgConnection) {
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
              where datname = current_database() and application_name = 'stepwell-task'
                and wait_event_type = 'Lock'",
        )
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        if waiting > 0 {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn data_the_database_refuses_is_found_and_harms_nobody_else() {
    let world = World::new().await;
    world.register(PAIR).await;
    let mut connection = connection(&world).await;
    sqlx::query("alter table stepwell.task_detail add check (reason <> 'poison')")
        .execute(&mut connection)
        .await
        .unwrap();
    let calls = (0..100).map(|i| {
        let reason = if i == 57 { "poison" } else { "" };
        world.create(CreateTaskRequest { reason: reason.into(), ..request("{}") })
    });
    for (i, answer) in join_all(calls).await.into_iter().enumerate() {
        match answer {
            Ok((_, already_existed)) => assert!(i != 57 && !already_existed),
            Err(refusal) => {
                assert_eq!((i, refusal.reason), (57, ErrorReason::Internal));
                // What the database said stays in the log.
                assert!(!refusal.message.contains("check"), "{}", refusal.message);
            }
        }
    }
}

#[tokio::test]
async fn a_connection_cut_in_the_middle_of_a_call_loses_no_task_and_doubles_none() {
    let world = World::new().await;
    world.register(PAIR).await;
    let mut connection = connection(&world).await;
    sqlx::query("select pg_advisory_lock(42)").execute(&mut connection).await.unwrap();
    let calls = join_all((0..50).map(|_| world.create(request("{}"))));
    let (answers, ()) = tokio::join!(calls, async {
        // The call has written its rows and waits for the append's lock.
        in_line(&mut connection).await;
        let cut: i64 = sqlx::query_scalar(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where datname = current_database() and application_name = 'stepwell-task'",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert!(cut > 0);
        sqlx::query("select pg_advisory_unlock(42)").execute(&mut connection).await.unwrap();
    });
    for answer in answers {
        assert!(!answer.unwrap().1);
    }
    let made: i64 = sqlx::query_scalar("select count(*) from stepwell.task")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(made, 50);
}

#[tokio::test]
async fn a_database_that_stalls_is_told_of_within_a_bounded_time() {
    let world = World::new().await;
    world.register(PAIR).await;
    let mut connection = connection(&world).await;
    sqlx::query("select pg_advisory_lock(42)").execute(&mut connection).await.unwrap();
    let answers = join_all((0..4).map(|_| world.create(request("{}"))));
    let answers = tokio::time::timeout(Duration::from_secs(60), answers).await.unwrap();
    for answer in answers {
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::DatabaseUnavailable);
        assert!(refusal.retry_after.is_some());
    }
    sqlx::query("select pg_advisory_unlock(42)").execute(&mut connection).await.unwrap();
    world.create(request("{}")).await.unwrap();
}
