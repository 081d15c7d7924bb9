//! What the survey finds, and what is counted of the log.

use std::collections::BTreeMap;

use sqlx::Connection;
use stepwell_store::{Count, Ending, Ready, Survey};
use stepwell_tests::{Rows, child_slots, complete, report};

use super::priority::pause;

#[tokio::test]
async fn an_empty_database_has_nothing_to_tell() {
    let rows = Rows::new().await;
    let survey = rows.store.survey().await.unwrap();
    // Others use the cluster too.
    let Survey { at, oldest_transaction, prepared_transactions, .. } = survey;
    let nothing = Survey { at, oldest_transaction, prepared_transactions, ..Survey::default() };
    assert_eq!(survey, nothing);
    assert_eq!(rows.store.count_after(0, survey.head, &[1.0]).await.unwrap(), (Vec::new(), 0));
}

#[tokio::test]
async fn ready_steps_are_counted_by_handler_and_as_old_as_what_made_them_ready() {
    let rows = Rows::new().await;
    let mut connection = rows.connection().await;
    let (one, other) = (rows.define("a; b").await, rows.define("a").await);
    let task = rows.create(&one).await;
    rows.create_many(&other, 3).await;
    let age = "update stepwell.event set at = at - interval '1 hour' where task = $1";
    sqlx::query(age).bind(task).execute(&mut connection).await.unwrap();
    let found = rows.store.survey().await.unwrap().ready;
    // Both definitions have the one handler `h` of the one namespace.
    let [Ready { namespace, handler, steps, oldest }] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((namespace.as_str(), handler.as_str(), *steps), ("default", "h", 5));
    assert!((3600.0..3660.0).contains(oldest), "{oldest}");
}

#[tokio::test]
async fn what_a_paused_definition_keeps_waiting_is_counted_and_has_no_age() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    rows.create_many(&definition, 2).await;
    let age = "update stepwell.event set at = at - interval '1 hour'";
    sqlx::query(age).execute(&mut rows.connection().await).await.unwrap();
    let name = definition.definition.name.as_str();
    pause(&rows, name, true).await;
    let ready = rows.store.survey().await.unwrap().ready;
    assert_eq!((ready[0].steps, ready[0].oldest), (2, 0.0), "nobody is to be alarmed");
    pause(&rows, name, false).await;
    let ready = rows.store.survey().await.unwrap().ready;
    assert!((3600.0..3660.0).contains(&ready[0].oldest), "{ready:?}");
}

#[tokio::test]
async fn what_a_timer_made_ready_is_as_old_as_its_due_time_and_a_left_over_has_no_age() {
    let rows = Rows::new().await;
    let mut connection = rows.connection().await;
    let definition = rows.define("a").await;
    let task = rows.create(&definition).await;
    let mut writer = rows.writer().await;
    let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
    rows.settle(&mut writer, &[report(&lease, Ending::Fail { wait_ms: Some(60_000) }, "{}")]).await;
    assert_eq!(rows.store.survey().await.unwrap().timer_overdue, 0.0);
    // Its time came an hour ago.
    for table in ["timer set due = due", "step set not_before = not_before"] {
        let sooner = format!("update stepwell.{table} - interval '61 minutes'");
        sqlx::query(sqlx::AssertSqlSafe(sooner)).execute(&mut connection).await.unwrap();
    }
    let overdue = rows.store.survey().await.unwrap().timer_overdue;
    assert!((3590.0..3660.0).contains(&overdue), "{overdue}");
    assert_eq!(writer.release_due(10).await.unwrap().taken, 1);
    let survey = rows.store.survey().await.unwrap();
    assert_eq!(survey.timer_overdue, 0.0);
    assert_eq!(survey.ready[0].steps, 1);
    assert!((3590.0..3660.0).contains(&survey.ready[0].oldest), "{survey:?}");

    let uid: uuid::Uuid = sqlx::query_scalar("select uid from stepwell.task where id = $1")
        .bind(task)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    rows.cancel(uid).await;
    let left = rows.store.survey().await.unwrap().ready;
    assert_eq!((left[0].steps, left[0].oldest), (1, 0.0), "nobody is to be alarmed");
}

#[tokio::test]
async fn who_holds_the_append_lock_and_who_waits_for_it_is_seen() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut holder = rows.connection().await;
    let mut transaction = holder.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut *transaction).await.unwrap();
    let mut writer = rows.writer().await;
    let creating = rows.create_with(&mut writer, &definition, 1);
    let looking = async {
        rows.in_line(1).await;
        let survey = rows.store.survey().await.unwrap();
        transaction.rollback().await.unwrap();
        survey
    };
    let (_, survey) = tokio::join!(creating, looking);
    assert_eq!(survey.append_waiters, 1);
    assert!(
        survey.append_wait > 0.0 && survey.oldest_transaction >= survey.append_wait,
        "{survey:?}"
    );
    assert_eq!(rows.store.survey().await.unwrap().append_waiters, 0);
}

#[tokio::test]
async fn the_log_is_counted_once_however_it_is_cut() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let mut writer = rows.writer().await;
    rows.create_many(&definition, 7).await;
    let queue = definition.queues[0];
    for (i, lease) in rows.claim(&mut writer, queue, 7).await.iter().enumerate() {
        let ended = match i % 3 {
            0 => complete(lease, "{}"),
            1 => report(lease, Ending::Fail { wait_ms: Some(1) }, "{}"),
            _ => report(lease, Ending::Fail { wait_ms: None }, "{}"),
        };
        writer.settle(&[ended], &child_slots(&[1]), rows.node, None).await.unwrap();
    }
    let head = rows.store.survey().await.unwrap().head;
    let of = |counts: Vec<Count>| {
        let mut sums: BTreeMap<_, (i64, f64)> = BTreeMap::new();
        for count in counts {
            let n = i32::try_from(count.n).unwrap();
            let sum = sums.entry((count.r#type, count.from_state, count.to_state)).or_default();
            sum.0 += count.n;
            sum.1 += count.seconds.unwrap_or(0.0) * f64::from(n);
        }
        sums
    };
    let bounds = [0.0001, 0.001, 0.01, 0.1, 1.0];
    let (whole, last) = rows.store.count_after(0, head, &bounds).await.unwrap();
    assert_eq!(last, head);
    let whole = of(whole);
    let mut parts = Vec::new();
    for position in 0..head {
        parts.extend(rows.store.count_after(position, position + 1, &bounds).await.unwrap().0);
    }
    let parts = of(parts);
    let n =
        |sums: &BTreeMap<_, (i64, f64)>| sums.iter().map(|(k, v)| (*k, v.0)).collect::<Vec<_>>();
    assert_eq!(n(&whole), n(&parts));
    let log: Vec<(i16, Option<i16>, i16, i64)> = sqlx::query_as(
        "select type, from_state, to_state, count(*) from stepwell.event group by 1, 2, 3 \
          order by 1, 2 nulls first, 3",
    )
    .fetch_all(&mut rows.connection().await)
    .await
    .unwrap();
    let counted: Vec<_> = n(&whole).into_iter().map(|((t, f, to), n)| (t, f, to, n)).collect();
    assert_eq!(counted, log);
    // Durations: of tasks that started, and of attempts that ended.
    for (key, (n, seconds)) in &whole {
        let measured = [21, 22, 23, 41, 42].contains(&key.0);
        assert_eq!(*seconds > 0.0, measured, "{key:?}: {n} took {seconds}");
        assert!((seconds - parts[key].1).abs() < 1e-6, "{key:?}");
    }
}
