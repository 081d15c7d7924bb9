//! What each verb does when it meets nobody.

use stepwell_store::{ChildSlots, Created, Ending, Report, Sweep};
use stepwell_tests::{Rows, SESSION, check, child_slots, complete, new_task, report};

#[tokio::test]
async fn a_chain_is_handed_from_step_to_step_and_ends_complete() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a; c: b").await;
    let task = rows.create(&definition).await;
    let queue = definition.queues[0];
    let mut writer = rows.writer().await;
    let mut leases = rows.claim(&mut writer, queue, 5).await;
    for step in 0..3 {
        assert_eq!(leases.len(), 1);
        assert_eq!((leases[0].step & 16_383, leases[0].session), (step, SESSION));
        let done = [complete(&leases[0], "{}")];
        let settled = writer.settle(&done, &child_slots(&[1]), rows.node, None).await.unwrap();
        assert_eq!((settled.accepted, settled.ready), (vec![true], 0));
        leases = settled.leases;
    }
    assert!(leases.is_empty());
    assert_eq!(rows.one::<i16>("select state from stepwell.task where id = $1", task).await, 3);
    let per_step = "select count(*)::float8 / 3 from stepwell.event where task = $1";
    assert!(rows.one::<f64>(per_step, task).await <= 3.5);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn what_gets_no_slot_becomes_ready_and_is_claimed_oldest_first() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a; c: a").await;
    let queue = definition.queues[0];
    let tasks = rows.create_many(&definition, 3).await;
    let mut writer = rows.writer().await;
    let first = rows.claim(&mut writer, queue, 1).await;
    assert_eq!(first[0].step >> 14, tasks[0]);
    let done = [complete(&first[0], "{}")];
    let mut slots = ChildSlots::default();
    slots.push(&[Some(SESSION), None]);
    let settled = writer.settle(&done, &slots, rows.node, None).await.unwrap();
    assert_eq!((settled.leases.len(), settled.ready), (1, 1));
    let order: Vec<i64> =
        rows.claim(&mut writer, queue, 9).await.iter().map(|lease| lease.step).collect();
    assert_eq!(order, [tasks[1] << 14, tasks[2] << 14, (tasks[0] << 14) + 2]);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_failed_attempt_waits_for_its_time_and_the_last_one_ends_the_task() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let task = rows.create(&definition).await;
    let queue = definition.queues[0];
    let mut writer = rows.writer().await;
    let lease = rows.claim(&mut writer, queue, 1).await[0];
    let again = report(&lease, Ending::Fail { wait_ms: Some(60_000) }, "{}");
    rows.settle(&mut writer, &[again]).await;
    let due = writer.release_due(10).await.unwrap();
    assert!(due.taken == 0 && due.next_ms.is_some_and(|ms| ms > 50_000), "{due:?}");
    assert!(rows.claim(&mut writer, queue, 1).await.is_empty());
    // The time comes.
    let mut connection = rows.connection().await;
    for sql in [
        "update stepwell.timer set due = now()",
        "update stepwell.step set not_before = now() where not_before is not null",
    ] {
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }
    let due = writer.release_due(10).await.unwrap();
    assert_eq!((due.taken, due.next_ms, due.late), (1, None, 0));
    let lease = rows.claim(&mut writer, queue, 1).await[0];
    assert_eq!(lease.attempt, 2);
    rows.settle(&mut writer, &[report(&lease, Ending::Fail { wait_ms: None }, "{}")]).await;
    assert_eq!(rows.one::<i16>("select state from stepwell.task where id = $1", task).await, 4);
    check(&mut connection).await;
}

#[tokio::test]
async fn a_failed_branch_does_not_stop_its_sibling() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b; c: a b").await;
    let task = rows.create(&definition).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 9).await;
    rows.settle(&mut writer, &[report(&leases[0], Ending::Fail { wait_ms: None }, "{}")]).await;
    let state = "select state from stepwell.task where id = $1";
    assert_eq!(rows.one::<i16>(state, task).await, 2);
    rows.settle(&mut writer, &[complete(&leases[1], "{}")]).await;
    assert_eq!(rows.one::<i16>(state, task).await, 4);
    let failed = "select names from stepwell.event where task = $1 and type = 23";
    assert_eq!(rows.one::<Vec<i32>>(failed, task).await, [0]);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_hand_back_does_not_count_as_an_attempt() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    rows.create(&definition).await;
    let queue = definition.queues[0];
    let mut writer = rows.writer().await;
    for attempt in 1..6 {
        let lease = rows.claim(&mut writer, queue, 1).await[0];
        assert_eq!((lease.attempt, lease.max_attempts), (attempt, 2 + attempt));
        let settled = rows.settle(&mut writer, &[report(&lease, Ending::HandBack, "no")]).await;
        assert_eq!(settled.ready, 1);
    }
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn the_same_report_again_is_accepted_and_any_other_is_lost() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    rows.create(&definition).await;
    let queue = definition.queues[0];
    let mut writer = rows.writer().await;
    let first = rows.claim(&mut writer, queue, 1).await[0];
    let again = report(&first, Ending::Fail { wait_ms: Some(0) }, "{}");
    let accepted = async |writer: &mut _, report: &Report| {
        rows.settle(writer, std::slice::from_ref(report)).await.accepted[0]
    };
    assert!(accepted(&mut writer, &again).await);
    assert!(accepted(&mut writer, &again).await, "the same again");
    assert!(!accepted(&mut writer, &complete(&first, "1")).await, "another kind");
    let second = rows.claim(&mut writer, queue, 1).await[0];
    assert!(accepted(&mut writer, &again).await, "the same, during the next attempt");
    assert!(!accepted(&mut writer, &complete(&first, "1")).await, "a late token");
    assert!(accepted(&mut writer, &complete(&second, "2")).await);
    assert!(!accepted(&mut writer, &again).await, "older than the last one");
    let twice = [complete(&second, "2"), complete(&second, "2")];
    assert_eq!(rows.settle(&mut writer, &twice).await.accepted, [true, true]);
    let result = "select result from stepwell.step where key = $1";
    assert_eq!(rows.one::<String>(result, second.step).await, "2");
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_poison_row_in_a_batch_of_500_harms_nobody_else() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let queue = definition.queues[0];
    rows.create_many(&definition, 500).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, queue, 500).await;
    let mut reports: Vec<Report> = leases.iter().map(|lease| complete(lease, "1")).collect();
    reports[317].text = "\0".into();
    let (settled, poison) =
        writer.settle_each(&reports, &child_slots(&[1; 500]), rows.node, None).await.unwrap();
    assert_eq!(poison, [317]);
    assert_eq!(settled.accepted.iter().filter(|a| **a).count(), 499);
    assert_eq!(settled.ready, 499);
    assert!(!settled.accepted[317]);
    let state = "select state from stepwell.step where key = $1";
    assert_eq!(rows.one::<i16>(state, leases[317].step).await, 2);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_sweep_ends_only_what_is_still_its_session_s() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b").await;
    rows.create(&definition).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 2).await;
    let held = [(leases[0].step, leases[0].token, 8)];
    let adopted = writer.adopt(&held, rows.node).await.unwrap();
    assert_eq!((adopted.len(), adopted[0].lease.session), (1, 8));
    let expired = leases.iter().map(|l| report(l, Ending::Fail { wait_ms: Some(0) }, "{}"));
    let sweep = Sweep::Sessions(vec![SESSION; 2]);
    let expired: Vec<_> = expired.collect();
    let none = ChildSlots::default();
    let settled = writer.settle(&expired, &none, rows.node, Some(&sweep)).await.unwrap();
    assert_eq!(settled.accepted, [false, true]);
    let late = rows.settle(&mut writer, &[expired[1].clone()]).await;
    assert_eq!(late.accepted, [false], "a report of an expired lease is late");
    let kept = rows.settle(&mut writer, &[complete(&leases[0], "1")]).await;
    assert_eq!(kept.accepted, [true]);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn nothing_is_leased_in_the_name_of_a_retired_node() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    rows.create_many(&definition, 2).await;
    let queue = definition.queues[0];
    let mut writer = rows.writer().await;
    let lease = rows.claim(&mut writer, queue, 1).await[0];
    writer.retire_node(rows.node).await.unwrap();
    assert!(rows.try_claim(&mut writer, queue, 1).await.unwrap_err().is_retired());
    let done = [complete(&lease, "1")];
    let refused = writer.settle(&done, &child_slots(&[1]), rows.node, None).await.unwrap_err();
    assert!(refused.is_retired());
    let held = [(lease.step, lease.token, 8)];
    assert!(writer.adopt(&held, rows.node).await.unwrap_err().is_retired());
    // Without leasing anything, the outcome is taken: it was earned.
    assert_eq!(rows.settle(&mut writer, &done).await.accepted, [true]);
    let (held, _) = writer.leases_of(rows.node, 0, 100).await.unwrap();
    assert!(held.is_empty());
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn two_requests_with_one_id_make_one_task() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut tasks: Vec<_> = (0..40).map(|_| new_task(&definition)).collect();
    let (mut one, mut other) = (rows.writer().await, rows.writer().await);
    let mut backwards: Vec<_> = tasks.iter().rev().cloned().collect();
    let (a, b) = tokio::join!(
        one.create_tasks(&rows.store, &mut tasks),
        other.create_tasks(&rows.store, &mut backwards)
    );
    let new =
        |created: Vec<Created>| created.iter().filter(|c| matches!(c, Created::New(_))).count();
    assert_eq!(new(a.unwrap()) + new(b.unwrap()), 40);
    assert_eq!(rows.one::<i64>("select count(*) from stepwell.task where id > $1", 0).await, 40);
    assert_eq!(rows.one::<i64>("select count(*) from stepwell.event where task > $1", 0).await, 40);
    tasks.truncate(1);
    // As another process would ask: it knows of no key.
    tasks[0].key = None;
    let repeated = one.create_tasks(&rows.store, &mut tasks).await.unwrap();
    assert!(matches!(repeated[..], [Created::Existing(_)]));
    (tasks[0].hash, tasks[0].key) = ([1; 32], None);
    assert_eq!(one.create_tasks(&rows.store, &mut tasks).await.unwrap(), [Created::Reused]);
    assert_eq!(rows.one::<i64>("select count(*) from stepwell.task where id > $1", 0).await, 40);
    check(&mut rows.connection().await).await;
}
