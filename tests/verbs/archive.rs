//! Tasks that ended are exported in parts, whole whatever their size, and particular ones are removed.

use std::{collections::BTreeMap, time::Duration};

use stepwell_proto::v1::{State, Step, TaskPart};
use stepwell_store::{
    Ending, ExportPlace, Exported, Keep, Note, RemovedTask, StoredFailure, ToRemove,
};
use stepwell_tests::{Rows, check, complete, cut_log, report};
use uuid::Uuid;

fn exported() -> Exported {
    Exported {
        age: Duration::ZERO,
        states: vec![State::Complete, State::Error, State::Cancelled, State::ResolvedManually],
        namespace: String::new(),
        events: true,
    }
}

/// All parts, page by page, and how many pages they took.
async fn pages(rows: &Rows, wanted: &Exported) -> (Vec<TaskPart>, usize) {
    let (mut parts, mut place, mut n) = (Vec::new(), ExportPlace::default(), 0);
    loop {
        let (more, next) = rows.store.export(wanted, place).await.unwrap();
        parts.extend(more);
        n += 1;
        match next {
            Some(next) => place = next,
            None => return (parts, n),
        }
    }
}

/// Steps and the names of events of each task, in the order in which they came.
fn joined(parts: &[TaskPart]) -> Vec<(String, Vec<Step>, Vec<String>, bool)> {
    let mut tasks: Vec<(String, Vec<Step>, Vec<String>, bool)> = Vec::new();
    for part in parts {
        if let Some(task) = &part.task {
            assert_eq!(task.task_id, part.task_id);
            tasks.push((task.task_id.clone(), Vec::new(), Vec::new(), false));
        }
        let task = tasks.last_mut().unwrap();
        assert_eq!(task.0, part.task_id, "parts of one task follow each other");
        assert!(part.steps.is_empty() || task.2.is_empty(), "events are behind all steps");
        task.1.extend(part.steps.iter().cloned());
        task.2.extend(part.events.iter().map(|event| event.name.clone()));
        task.3 = part.last && part.events_complete;
    }
    tasks
}

async fn uid(rows: &Rows, key: i64) -> Uuid {
    rows.one("select uid from stepwell.task where id = $1", key).await
}

#[tokio::test]
async fn ended_tasks_come_once_oldest_first_with_their_steps_and_events() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    let keys = rows.create_many(&definition, 5).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 5).await;
    let of = |n: usize| leases.iter().find(|lease| lease.step >> 14 == keys[n]).unwrap();
    let failure = StoredFailure { error_class: "No".into(), ..StoredFailure::default() }.to_text();
    let fails = Ending::Fail { wait_ms: None };
    let ends = [
        complete(of(0), "\"first\""),
        report(of(1), fails, &failure),
        report(of(2), fails, &failure),
    ];
    rows.settle(&mut writer, &ends).await;
    let leases = rows.claim(&mut writer, definition.queues[1], 5).await;
    rows.settle(&mut writer, &[complete(&leases[0], "2")]).await;
    let mut uids = Vec::new();
    for key in &keys {
        uids.push(uid(&rows, *key).await);
    }
    rows.store.resolve_tasks(&uids[2..3], &Note::new("me", "")).await.unwrap();
    rows.cancel(uids[3]).await;

    let (parts, n) = pages(&rows, &exported()).await;
    let tasks = joined(&parts);
    let ids: Vec<&str> = tasks.iter().map(|task| task.0.as_str()).collect();
    let wanted: Vec<String> = uids[..4].iter().map(Uuid::to_string).collect();
    assert_eq!((ids, n), (wanted.iter().map(String::as_str).collect(), 1));
    let lasts: Vec<_> = tasks.iter().map(|task| task.2.last().unwrap().as_str()).collect();
    assert_eq!(
        lasts,
        ["task.completed", "task.failed", "task.resolved_manually", "task.cancelled"]
    );
    assert!(tasks.iter().all(|task| task.1.len() == 2 && task.3));
    assert_eq!((tasks[0].1[0].result.as_str(), tasks[0].1[1].result.as_str()), ("\"first\"", "2"));
    assert_eq!(tasks[1].1[0].last_error.as_ref().unwrap().error_class, "No");
    let begins = tasks.iter().all(|task| task.2[0] == "task.initialize_requested");
    assert!(begins, "{tasks:?}");

    // What is not asked for does not come.
    let some = |change: &dyn Fn(&mut Exported)| {
        let mut wanted = exported();
        change(&mut wanted);
        wanted
    };
    for (wanted, n) in [
        (some(&|of| of.states = vec![State::Error]), 1),
        (some(&|of| of.states = vec![State::Complete, State::Cancelled]), 2),
        (some(&|of| of.namespace = "elsewhere".into()), 0),
        (some(&|of| of.age = Duration::from_secs(60)), 0),
    ] {
        assert_eq!(joined(&pages(&rows, &wanted).await.0).len(), n);
    }
    let silent = pages(&rows, &some(&|of| of.events = false)).await.0;
    assert!(silent.iter().all(|part| part.events.is_empty() && !part.events_complete));
    assert_eq!(silent.iter().filter(|part| part.last).count(), 4);
}

#[tokio::test]
async fn a_large_task_comes_in_parts_and_whole() {
    let rows = Rows::new().await;
    let names: Vec<String> = (0..12).map(|n| format!("s{n}")).collect();
    let definition = rows.define(&names.join("; ")).await;
    let keys = rows.create_many(&definition, 2).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 24).await;
    let large = format!("\"{}\"", "x".repeat(700_000));
    for lease in &leases {
        rows.settle(&mut writer, &[complete(lease, &large)]).await;
    }
    let (parts, n) = pages(&rows, &exported()).await;
    assert!(n >= 8, "{n} pages");
    for part in &parts {
        let bytes = prost::Message::encoded_len(part);
        assert!(bytes < 3 << 20, "{bytes}");
    }
    let tasks = joined(&parts);
    assert_eq!(tasks.len(), 2);
    for (id, steps, events, complete) in &tasks {
        let numbers: Vec<i32> = steps.iter().map(|step| step.number).collect();
        assert_eq!(numbers, (0..12).collect::<Vec<_>>());
        assert!(steps.iter().all(|step| step.result == large), "{id}");
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        events.iter().for_each(|name| *counts.entry(name).or_default() += 1);
        assert_eq!((counts["step.completed"], counts["task.completed"], *complete), (12, 1, true));
    }
    check(&mut rows.connection().await).await;
    assert_eq!(keys.len(), 2);
}

#[tokio::test]
async fn of_tasks_that_were_created_together_each_has_all_its_events_wherever_a_page_is_cut() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b; c; d; e; f").await;
    let keys = rows.create_many(&definition, 3).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 18).await;
    // The first one fails at such length that its events take several pages, and the others end meanwhile.
    let failure = StoredFailure { message: "x".repeat(900_000), ..StoredFailure::default() };
    for lease in leases.iter().filter(|lease| lease.step >> 14 == keys[0]) {
        let fails = report(lease, Ending::Fail { wait_ms: None }, &failure.to_text());
        rows.settle(&mut writer, &[fails]).await;
        let other = leases.iter().find(|other| {
            other.step >> 14 == keys[1] && other.step & 16_383 == lease.step & 16_383
        });
        rows.settle(&mut writer, &[complete(other.unwrap(), "1")]).await;
    }
    rows.cancel(uid(&rows, keys[2]).await).await;

    let (parts, n) = pages(&rows, &exported()).await;
    assert!(n >= 4, "{n} pages");
    let log = rows.store.read_after(0, 1_000_000).await.unwrap();
    for key in keys {
        let uid = uid(&rows, key).await;
        let id = uid.to_string();
        let events = parts.iter().filter(|part| part.task_id == id).flat_map(|part| &part.events);
        let told: Vec<i64> = events.map(|event| event.position).collect();
        let wanted: Vec<i64> =
            log.iter().filter(|row| row.uid == uid).map(|row| row.position).collect();
        assert_eq!(told, wanted);
        assert!(parts.iter().any(|part| part.task_id == id && part.last && part.events_complete));
    }
}

#[tokio::test]
async fn of_events_that_are_no_longer_kept_the_export_says_that_they_are_missing() {
    let rows = Rows::new().await;
    cut_log(&mut rows.connection().await, 4, 6).await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 3).await;
    for key in &keys {
        rows.cancel(uid(&rows, *key).await).await;
    }
    rows.create_many(&definition, 2).await;
    let age = "update stepwell.event set at = at - interval '2 hours' where position <= $1";
    rows.execute(age, 7).await;
    let keep = Keep { age: Some(Duration::from_secs(3600)), bytes: None };
    assert_eq!(rows.store.drop_old_events(keep).await.unwrap(), 2);
    let tasks = joined(&pages(&rows, &exported()).await.0);
    assert_eq!(tasks.len(), 3);
    assert!(tasks.iter().all(|task| !task.3), "{tasks:?}");
    assert!(tasks.iter().all(|task| task.1.len() == 1));
}

#[tokio::test]
async fn an_end_that_the_log_does_not_have_ends_the_look_for_it() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 2).await;
    for key in &keys {
        rows.cancel(uid(&rows, *key).await).await;
    }
    // As if the clock had been set back before the event was appended.
    let later = "update stepwell.event set at = at - interval '1 hour' where task = $1";
    rows.execute(later, keys[0]).await;
    let tasks = joined(&pages(&rows, &exported()).await.0);
    assert_eq!(tasks.iter().map(|task| task.3).collect::<Vec<_>>(), [false, true]);
    assert!(tasks.iter().all(|task| task.2.last().unwrap() == "task.cancelled"));
}

#[tokio::test]
async fn only_what_ended_as_it_was_exported_is_removed() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 5).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 3).await;
    let fails = Ending::Fail { wait_ms: None };
    let reports: Vec<_> = leases.iter().map(|lease| report(lease, fails, "{}")).collect();
    rows.settle(&mut writer, &reports).await;
    let mut tasks = Vec::new();
    for key in &keys {
        tasks.push(ToRemove { uid: uid(&rows, *key).await, state: None, ended: None });
    }
    rows.cancel(tasks[3].uid).await;
    let end = async |key: i64| -> Option<chrono::DateTime<chrono::Utc>> {
        rows.one("select finished_at from stepwell.task where id = $1", key).await
    };
    tasks.push(ToRemove { uid: Uuid::nil(), state: None, ended: None });
    use RemovedTask::{Left, Missing, Removed};
    let (error, cancelled) = (State::Error, State::Cancelled);
    // Not in error unless that is said; not what is open; not what ended otherwise.
    let remove = async |tasks: &[ToRemove], in_error| {
        rows.store.remove_named(tasks, in_error).await.unwrap()
    };
    let other = ToRemove { state: Some(State::Complete), ..tasks[3] };
    let before = ToRemove { ended: end(keys[0]).await, ..tasks[3] };
    assert_eq!(remove(&[other], true).await, [Left(cancelled)]);
    assert_eq!(remove(&[before], true).await, [Left(cancelled)]);
    assert_eq!(
        remove(&tasks, false).await,
        [Left(error), Left(error), Left(error), Removed, Left(State::Pending), Missing]
    );
    let exact = ToRemove { state: Some(error), ended: end(keys[0]).await, ..tasks[0] };
    rows.store.retry_tasks(&[tasks[1].uid], None, &Note::new("me", "")).await.unwrap();
    let tasks = [exact, tasks[1], tasks[3], tasks[2]];
    assert_eq!(remove(&tasks, true).await, [Removed, Left(State::Pending), Missing, Removed]);
    let left = "select count(*) from stepwell.task where id > $1";
    assert_eq!(rows.one::<i64>(left, 0).await, 2);
    let steps = "select count(*) from stepwell.step where key > $1";
    assert_eq!(rows.one::<i64>(steps, 0).await, 2);
    check(&mut rows.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_waits_for_a_retry_and_leaves_the_task_and_a_retry_that_waits_finds_none() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 2).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 2).await;
    let fails = Ending::Fail { wait_ms: None };
    let reports: Vec<_> = leases.iter().map(|lease| report(lease, fails, "{}")).collect();
    rows.settle(&mut writer, &reports).await;
    let task = async |key| ToRemove { uid: uid(&rows, key).await, state: None, ended: None };
    let (retried, removed) = (task(keys[0]).await, task(keys[1]).await);
    let mut holder = rows.connection().await;
    let begin = async |holder: &mut sqlx::PgConnection, sql: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(holder).await.unwrap();
    };
    let retry = format!("begin; select stepwell.retry_tasks('{{{}}}', '{{}}', null)", retried.uid);
    begin(&mut holder, retry).await;
    let store = rows.store.clone();
    let removing = tokio::spawn(async move { store.remove_named(&[retried], true).await.unwrap() });
    rows.in_line(1).await;
    begin(&mut holder, "commit".into()).await;
    assert_eq!(removing.await.unwrap(), [RemovedTask::Left(State::Pending)]);

    let uid = removed.uid;
    let remove =
        format!("begin; select stepwell.remove_named('{{{uid}}}', '{{null}}', '{{null}}', true)");
    begin(&mut holder, remove).await;
    let store = rows.store.clone();
    let retrying = tokio::spawn(async move {
        store.retry_tasks(&[uid], None, &Note::new("me", "")).await.unwrap()
    });
    rows.in_line(1).await;
    begin(&mut holder, "commit".into()).await;
    assert!(retrying.await.unwrap()[0].was.is_none());
    check(&mut rows.connection().await).await;
}
