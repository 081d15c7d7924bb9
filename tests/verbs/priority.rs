//! In which queues steps wait by the priority of their tasks, and what pauses of definitions keep there.

use std::sync::Arc;

use stepwell_proto::v1::{Definition, State};
use stepwell_store::{Covered, Ending, NewTask, Note, StoredDefinition, Writer};
use stepwell_tests::{Rows, check, child_slots, complete, new_task, report};
use uuid::Uuid;

use super::races::{hold_log, release};

fn note() -> Note {
    Note::new("me", "why")
}

pub(super) async fn create(
    rows: &Rows,
    definition: &Arc<StoredDefinition>,
    priority: Option<i16>,
) -> NewTask {
    let mut task = [NewTask { priority, ..new_task(definition) }];
    rows.writer().await.create_tasks(&rows.store, &mut task).await.unwrap();
    let [task] = task;
    task
}

/// The queue beside the first step's of a definition, at a priority.
pub(super) async fn queue_at(
    rows: &Rows,
    definition: &StoredDefinition,
    priority: i16,
) -> Option<i32> {
    let queues = rows.store.queues("default").await.unwrap();
    let found = queues
        .iter()
        .filter(|q| q.definition == definition.id && q.handler == "h" && q.priority == priority);
    let found: Vec<i32> = found.map(|q| q.id).collect();
    assert!(found.len() < 2, "a queue is made once");
    found.first().copied()
}

pub(super) async fn raise(rows: &Rows, uid: Uuid, priority: i16) -> Option<State> {
    let note = Note { priority: Some(priority), ..note() };
    rows.store.update_task(uid, &note, None).await.unwrap()
}

async fn leases(rows: &Rows, writer: &mut Writer, queue: i32) -> usize {
    rows.claim(writer, queue, 99).await.len()
}

#[tokio::test]
async fn a_task_waits_in_the_queue_of_its_own_priority_and_without_one_in_its_definition_s() {
    let rows = Rows::new().await;
    let urgent = |definition: &mut Definition| definition.priority = 2;
    let definition = rows.define_with("a; b: a", urgent).await;
    assert_eq!(queue_at(&rows, &definition, 2).await, Some(definition.queues[0]));
    assert_eq!(queue_at(&rows, &definition, 3).await, None);
    let usual = create(&rows, &definition, None).await;
    let last = create(&rows, &definition, Some(5)).await;
    let same = create(&rows, &definition, Some(2)).await;
    let beside = queue_at(&rows, &definition, 5).await.unwrap();
    for (task, priority) in [(&usual, 2), (&last, 5), (&same, 2)] {
        let stored = rows.store.task(task.uid).await.unwrap().unwrap();
        assert_eq!(stored.priority, priority);
    }
    let mut writer = rows.writer().await;
    assert_eq!(leases(&rows, &mut writer, definition.queues[0]).await, 2);
    let of_last = rows.claim(&mut writer, beside, 99).await;
    assert_eq!(of_last.len(), 1);
    rows.settle(&mut writer, &[complete(&of_last[0], "1")]).await;
    assert_eq!(
        rows.claim(&mut writer, beside, 99).await.len(),
        1,
        "children wait beside their parents"
    );
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn tasks_that_are_the_first_of_a_priority_at_the_same_time_share_its_queue() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let other = rows.define("a").await;
    let latch = hold_log(&rows).await;
    let of = |one: Arc<StoredDefinition>, two: Arc<StoredDefinition>| {
        let rows = &rows;
        async move {
            let new = |definition| NewTask { priority: Some(1), ..new_task(definition) };
            let mut tasks = [new(&one), new(&two)];
            rows.writer().await.create_tasks(&rows.store, &mut tasks).await.unwrap();
        }
    };
    let lifted = async {
        rows.in_line(2).await;
        release(latch).await;
    };
    let one = of(Arc::clone(&definition), Arc::clone(&other));
    tokio::join!(one, of(Arc::clone(&other), Arc::clone(&definition)), lifted);
    let mut writer = rows.writer().await;
    for definition in [definition, other] {
        let queue = queue_at(&rows, &definition, 1).await.unwrap();
        assert_eq!(leases(&rows, &mut writer, queue).await, 2);
    }
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn steps_change_over_with_their_task_and_what_stood_in_the_old_queue_leases_nothing() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b; c; d: a; e: c").await;
    let usual = definition.queues[0];
    let task = create(&rows, &definition, None).await;
    let mut writer = rows.writer().await;
    let running = rows.claim(&mut writer, usual, 2).await;
    assert_eq!(raise(&rows, task.uid, 1).await, Some(State::InProgress));
    check(&mut rows.connection().await).await;
    let first = queue_at(&rows, &definition, 1).await.unwrap();
    assert_eq!(leases(&rows, &mut writer, usual).await, 0, "`c` waits elsewhere");
    rows.settle(
        &mut writer,
        &[complete(&running[0], "1"), report(&running[1], Ending::Fail { wait_ms: Some(0) }, "{}")],
    )
    .await;
    let waiting = rows.claim(&mut writer, first, 99).await;
    let numbers =
        waiting.iter().map(|lease| lease.step & 16383).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(numbers, [1, 2, 3].into(), "the retry, what waited, and a child");
    assert_eq!(raise(&rows, task.uid, 1).await, Some(State::InProgress), "once more does no harm");
    let done: Vec<_> = waiting.iter().map(|lease| complete(lease, "1")).collect();
    rows.settle(&mut writer, &done).await;
    raise(&rows, task.uid, 4).await;
    check(&mut rows.connection().await).await;
    assert_eq!(leases(&rows, &mut writer, first).await, 0);
    let last = queue_at(&rows, &definition, 4).await.unwrap();
    let leases = rows.claim(&mut writer, last, 99).await;
    rows.settle(&mut writer, &[complete(&leases[0], "1")]).await;
    assert_eq!(raise(&rows, task.uid, 2).await, Some(State::Complete));
    let stored = rows.store.task(task.uid).await.unwrap().unwrap();
    assert_eq!((stored.state(), stored.priority), (State::Complete, 2));
    assert_eq!(raise(&rows, Uuid::now_v7(), 2).await, None);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn what_a_task_has_no_room_for_stays_parked_when_its_priority_changes() {
    let rows = Rows::new().await;
    let change = |definition: &mut Definition| definition.max_parallel_steps = 1;
    let definition = rows.define_with("a; b; c", change).await;
    let task = create(&rows, &definition, None).await;
    raise(&rows, task.uid, 1).await;
    check(&mut rows.connection().await).await;
    let first = queue_at(&rows, &definition, 1).await.unwrap();
    let mut writer = rows.writer().await;
    assert_eq!(leases(&rows, &mut writer, definition.queues[0]).await, 0);
    for _ in 0..3 {
        let running = rows.claim(&mut writer, first, 9).await;
        assert_eq!(running.len(), 1);
        rows.settle(&mut writer, &[complete(&running[0], "1")]).await;
        check(&mut rows.connection().await).await;
    }
    let stored = rows.store.task(task.uid).await.unwrap().unwrap();
    assert_eq!(stored.state(), State::Complete);
}

pub(super) async fn pause(rows: &Rows, name: &str, paused: bool) -> Covered {
    rows.store.pause_definitions("default", name, paused, &note()).await.unwrap()
}

#[tokio::test]
async fn of_a_paused_definition_nothing_is_claimed_or_handed_off_until_it_is_resumed() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a; c: b").await;
    let (queue, name) = (definition.queues[0], definition.definition.name.as_str());
    let other = rows.define("a; b: a").await;
    rows.create_many(&definition, 2).await;
    let mut writer = rows.writer().await;
    let running = rows.claim(&mut writer, queue, 1).await;
    assert_eq!(pause(&rows, name, true).await, Covered { covered: 1, was_paused: false });
    assert_eq!(pause(&rows, name, true).await, Covered { covered: 1, was_paused: true });
    rows.create(&other).await;
    let ready = writer.ready(&[queue, other.queues[0]], &Default::default(), 9).await.unwrap();
    assert_eq!(ready.iter().map(|row| row.0).collect::<Vec<_>>(), [other.queues[0]]);
    assert_eq!(leases(&rows, &mut writer, queue).await, 0);
    let of_other = rows.claim(&mut writer, other.queues[0], 9).await;
    let done = [complete(&running[0], "1"), complete(&of_other[0], "1")];
    let settled = writer.settle(&done, &child_slots(&[1, 1]), rows.node, None).await.unwrap();
    let handed: Vec<i32> = settled.leases.iter().map(|lease| lease.queue).collect();
    assert_eq!((handed, settled.ready), (vec![other.queues[0]], 1));
    check(&mut rows.connection().await).await;
    assert_eq!(pause(&rows, name, false).await, Covered { covered: 1, was_paused: true });
    assert_eq!(leases(&rows, &mut writer, queue).await, 2, "one of each task");
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_pause_covers_versions_that_come_later_and_ends_when_no_other_covers_them() {
    let rows = Rows::new().await;
    assert_eq!(pause(&rows, "", true).await.covered, 0, "there is nothing to pause");
    let first = rows.define_with("a", |definition| definition.name = "d".into()).await;
    let paused = |definition: &StoredDefinition| {
        let id = i64::from(definition.id);
        rows.one::<bool>("select paused from stepwell.definition where id = $1", id)
    };
    assert!(!paused(&first).await);
    pause(&rows, "d", true).await;
    let later = |definition: &mut Definition| {
        (definition.name, definition.version) = ("d".into(), "2.0.0".into());
    };
    let later = rows.define_with("a", later).await;
    assert!(paused(&first).await && paused(&later).await);
    assert_eq!(pause(&rows, "", true).await, Covered { covered: 2, was_paused: false });
    pause(&rows, "d", false).await;
    assert!(paused(&first).await, "its namespace is");
    let (pauses, more) = rows.store.pauses("", ("", ""), 9).await.unwrap();
    assert!(!more && pauses[0].definition_name.is_empty() && pauses[0].paused_by == "me");
    assert_eq!(pause(&rows, "", false).await.covered, 2);
    assert!(!paused(&first).await && !paused(&later).await);
    assert_eq!(pause(&rows, "no", false).await, Covered { covered: 0, was_paused: false });
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn who_leases_before_a_pause_is_waited_for_and_who_comes_after_it_leases_nothing() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    rows.create_many(&definition, 2).await;
    let (queue, name) = (definition.queues[0], definition.definition.name.clone());
    let latch = hold_log(&rows).await;
    let (mut one, mut two) = (rows.writer().await, rows.writer().await);
    let (first, second) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
    let pausing = async {
        first.notified().await;
        pause(&rows, &name, true).await
    };
    let late = async {
        second.notified().await;
        rows.claim(&mut two, queue, 1).await
    };
    let lifted = async {
        rows.in_line(1).await;
        first.notify_one();
        rows.in_line(2).await;
        second.notify_one();
        rows.in_line(3).await;
        release(latch).await;
    };
    let (early, paused, late, ()) =
        tokio::join!(rows.claim(&mut one, queue, 1), pausing, late, lifted);
    assert_eq!((early.len(), paused.covered, late.len()), (1, 1, 0));
    check(&mut rows.connection().await).await;
}
