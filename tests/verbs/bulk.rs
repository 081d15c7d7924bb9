//! Many tasks by a filter: which fit, page by page, and operations that move them chunk by chunk.

use std::{sync::Arc, time::Duration};

use sqlx::types::chrono::Utc;
use stepwell_proto::v1::{self, BulkState, State, bulk_action::Action};
use stepwell_store::{
    BULK_RUNNING_MAX, BulkKind, Chunk, Ending, Filter, NewBulk, Note, Order, Started,
    StoredDefinition,
};
use stepwell_tests::{Rows, check, complete, new_task, report};
use uuid::Uuid;

use super::races::{hold, hold_log, race, release};

const CANCEL: Action = Action::Cancel(v1::BulkCancel { r#override: false });
const RETRY: Action = Action::Retry(v1::BulkRetry { attempts: 0 });
const RESOLVE: Action = Action::Resolve(v1::BulkResolve {});
const FAILS: Ending = Ending::Fail { wait_ms: None };

/// What is written, as it is meant now; nothing: all.
pub(super) fn filter(written: &str) -> Filter {
    let expr = stepwell_filter::parse(written).unwrap_or_else(|fault| panic!("{written}: {fault}"));
    expr.map(|expr| Filter::new(written, &expr, Utc::now())).unwrap_or_default()
}

fn in_states(states: &[State]) -> Filter {
    let words: Vec<String> =
        states.iter().map(|state| format!("state = {}", state.word())).collect();
    filter(&words.join(" OR "))
}

fn tagged(tag: &str) -> Filter {
    filter(&format!("tags:{}", stepwell_filter::quoted(tag)))
}

fn bulk(action: Action, filter: Filter) -> NewBulk {
    let note = Note::new("ops@shop", "the gateway is gone");
    NewBulk { id: Uuid::now_v7(), action, filter, note }
}

async fn start(rows: &Rows, action: Action, filter: Filter) -> Uuid {
    let bulk = bulk(action, filter);
    assert_eq!(rows.store.start_bulk(&bulk).await.unwrap(), Started::New);
    bulk.id
}

/// Runs a chunk, which says of its operation what is so.
async fn run(rows: &Rows, id: Uuid, chunk: i32) -> Chunk {
    let chunk = rows.store.run_bulk(id, chunk).await.unwrap();
    let it = operation(rows, id).await;
    let action = it.action.unwrap().action.unwrap();
    assert_eq!(chunk.action, chunk.ran.then(|| BulkKind::of(&action)));
    assert_eq!(chunk.done, chunk.ran && it.state() == BulkState::Done);
    Chunk { action: None, done: false, ..chunk }
}

async fn operation(rows: &Rows, id: Uuid) -> v1::BulkOperation {
    rows.store.bulk(id).await.unwrap().unwrap()
}

/// State, and how many tasks fitted, were moved, and were left alone.
async fn progress(rows: &Rows, id: Uuid) -> (BulkState, i64, i64, i64) {
    let it = operation(rows, id).await;
    (it.state(), it.matched_tasks, it.moved_tasks, it.left_tasks)
}

fn ran(matched: i32, moved: i32) -> Chunk {
    Chunk { ran: true, matched, moved, ..IDLE }
}

const IDLE: Chunk = Chunk { ran: false, matched: 0, moved: 0, action: None, done: false };

/// Events of a type that name the operation.
async fn events(rows: &Rows, id: Uuid, of_type: i16) -> i64 {
    sqlx::query_scalar(
        "select count(*) from stepwell.event
          where type = $1 and no is null and text::json ->> 'operation_id' = $2",
    )
    .bind(of_type)
    .bind(id.to_string())
    .fetch_one(&mut rows.connection().await)
    .await
    .unwrap()
}

/// All pages of this size; what `between` does happens after each.
pub(super) async fn walk(
    rows: &Rows,
    filter: &Filter,
    order: Order,
    size: i32,
    between: impl AsyncFn(&[v1::Task]),
) -> Vec<v1::Task> {
    let (mut all, mut before) = (Vec::new(), None);
    loop {
        let (page, next) = rows.store.list_tasks(filter, order, before, size).await.unwrap();
        assert!(page.len() <= usize::try_from(size).unwrap());
        between(&page).await;
        all.extend(page);
        let Some(next) = next else { return all };
        before = Some(next);
    }
}

async fn list(rows: &Rows, filter: &Filter) -> Vec<v1::Task> {
    walk(rows, filter, Order::CreateDesc, 7, async |_| {}).await
}

fn ids(tasks: &[v1::Task]) -> Vec<String> {
    tasks.iter().map(|task| task.task_id.clone()).collect()
}

/// A task in each state that one step can bring it to.
async fn one_in_each_state(rows: &Rows, definition: &Arc<StoredDefinition>) {
    let mut writer = rows.writer().await;
    let tasks = rows.create_with(&mut writer, definition, 6).await;
    let leases = rows.claim(&mut writer, definition.queues[0], 5).await;
    let ended = [
        complete(&leases[0], "1"),
        report(&leases[1], FAILS, "{}"),
        report(&leases[2], FAILS, "{}"),
    ];
    rows.settle(&mut writer, &ended).await;
    let note = Note::new("who", "why");
    rows.store.resolve_tasks(&[tasks[2].uid], &note).await.unwrap();
    rows.store.cancel_tasks(&[tasks[3].uid], false, &note).await.unwrap();
}

#[tokio::test]
async fn pages_show_each_task_that_fits_all_the_time_exactly_once_while_others_come_and_go() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut writer = rows.writer().await;
    let tasks = rows.create_with(&mut writer, &definition, 40).await;
    // Every fourth is cancelled while the pages go by, and new ones come.
    let leaving: Vec<Uuid> = tasks.iter().step_by(4).map(|task| task.uid).collect();
    let pending = in_states(&[State::Pending]);
    let turn = std::cell::Cell::new(0);
    let seen = walk(&rows, &pending, Order::CreateDesc, 4, async |_| {
        let n = turn.replace(turn.get() + 1);
        if let Some(uid) = leaving.get(n) {
            rows.cancel(*uid).await;
            rows.create(&definition).await;
        }
    })
    .await;
    let seen = ids(&seen);
    let stayed: Vec<String> = tasks
        .iter()
        .rev()
        .filter(|task| !leaving.contains(&task.uid))
        .map(|task| task.uid.to_string())
        .collect();
    let of_stayed: Vec<String> = seen.iter().filter(|id| stayed.contains(id)).cloned().collect();
    assert_eq!(of_stayed, stayed, "newest first, none twice, none left out");
    let mut once = seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), seen.len());
}

#[tokio::test]
async fn a_listed_task_is_as_it_is_read_alone_but_for_its_context() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    one_in_each_state(&rows, &definition).await;
    let listed = list(&rows, &Filter::default()).await;
    assert_eq!(listed.len(), 6);
    for task in listed {
        let alone = rows.store.task(task.task_id.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(task, v1::Task { context: String::new(), ..alone });
    }
}

#[tokio::test]
async fn a_look_has_an_end_and_says_where_to_go_on_even_if_it_found_nothing() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 20).await;
    let sql =
        "select m_task, m_next from stepwell.match_tasks($1::json, 0, null, $2, 6, 3, 0, null)";
    for (filter, found) in [
        (r#"{"fits": "$.tags[*] == \"x\""}"#, vec![0, 0, 0, 0]),
        (r#"{"fits": "$.tags[*] == \"x\"", "states": [1]}"#, vec![0; 4]),
        ("{}", vec![3; 7]),
    ] {
        let (mut before, mut pages, mut seen) = (None::<i64>, Vec::new(), Vec::new());
        loop {
            let (tasks, next): (Vec<i64>, Option<i64>) = sqlx::query_as(sql)
                .bind(filter)
                .bind(before)
                .fetch_one(&mut rows.connection().await)
                .await
                .unwrap();
            pages.push(tasks.len());
            seen.extend(tasks);
            let Some(next) = next else { break };
            assert!(before.is_none_or(|before| next < before));
            before = Some(next);
        }
        if filter == "{}" {
            assert_eq!(seen, keys.iter().rev().copied().collect::<Vec<_>>());
            assert_eq!(pages, [3, 3, 3, 3, 3, 3, 2]);
        } else {
            assert_eq!(pages, found, "{filter}");
        }
    }
}

#[tokio::test]
async fn a_count_ends_at_its_most_or_when_its_time_is_up_and_says_so() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    rows.create_many(&definition, 12).await;
    let minute = Duration::from_secs(60);
    let count =
        async |most| rows.store.count_tasks(&Filter::default(), most, minute).await.unwrap();
    let (all, some) = (count(13).await, count(5).await);
    assert_eq!((all.tasks, all.at_least, all.first.len()), (12, false, 10));
    assert_eq!((some.tasks, some.at_least, some.first.len()), (5, true, 5));
    // More tasks than one statement looks at.
    sqlx::query(
        "insert into stepwell.task (id, uid, definition, state, live_n)
         select 100000 + i, gen_random_uuid(), $1, 1, 1 from generate_series(1, 20000) i",
    )
    .bind(definition.id)
    .execute(&mut rows.connection().await)
    .await
    .unwrap();
    let hasty = rows.store.count_tasks(&Filter::default(), 100_000, Duration::ZERO).await.unwrap();
    assert_eq!((hasty.tasks, hasty.at_least), (20_000, true));
    let patient = count(100_000).await;
    assert_eq!((patient.tasks, patient.at_least, patient.first.len()), (20_012, false, 10));
}

#[tokio::test]
async fn an_operation_moves_each_task_once_in_chunks_and_ends() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a").await;
    rows.create_many(&definition, 25).await;
    let id = start(&rows, CANCEL, in_states(&[State::Pending])).await;
    assert_eq!(rows.store.running_bulk().await.unwrap(), [id]);
    assert_eq!(progress(&rows, id).await, (BulkState::Running, 0, 0, 0));
    assert_eq!(run(&rows, id, 10).await, ran(10, 10));
    assert_eq!(progress(&rows, id).await, (BulkState::Running, 10, 10, 0));
    check(&mut rows.connection().await).await;
    assert_eq!(run(&rows, id, 10).await, ran(10, 10));
    assert_eq!(run(&rows, id, 10).await, ran(5, 5));
    assert_eq!(progress(&rows, id).await, (BulkState::Done, 25, 25, 0));
    assert_eq!(run(&rows, id, 10).await, IDLE);
    assert!(rows.store.running_bulk().await.unwrap().is_empty());
    assert_eq!(events(&rows, id, 24).await, 25);
    assert!(operation(&rows, id).await.end_time.is_some());
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_fact_leads_an_operation_to_its_tasks_however_many_others_are_newer() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut tasks: Vec<_> = (0..2).map(|_| new_task(&definition)).collect();
    let fact = |name: &str| (name.to_owned(), "17".to_owned());
    tasks[0].annotations = [fact("order")].into();
    tasks[1].annotations = [fact("order"), fact("test")].into();
    rows.writer().await.create_tasks(&rows.store, &mut tasks).await.unwrap();
    // A chunk of one looks at a hundred.
    rows.create_many(&definition, 150).await;
    let meant = "annotations.order = 17 AND NOT annotations.test = 17";
    let id = start(&rows, CANCEL, filter(meant)).await;
    assert_eq!(run(&rows, id, 1).await, ran(1, 1));
    assert_eq!(
        ids(&list(&rows, &in_states(&[State::Cancelled])).await),
        [tasks[0].uid.to_string()]
    );
}

#[tokio::test]
async fn tasks_that_come_later_are_not_touched_even_under_a_lower_key() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut writer = rows.writer().await;
    // As when another copy of the service drew its keys before.
    let low: i64 = rows.one("select nextval('stepwell.task_id') + $1", 0).await;
    let before = rows.create_with(&mut writer, &definition, 3).await;
    let id = start(&rows, CANCEL, in_states(&[State::Pending])).await;
    let mut late = [new_task(&definition), new_task(&definition)];
    late[0].key = Some(low);
    writer.create_tasks(&rows.store, &mut late).await.unwrap();
    assert!(before.iter().all(|task| task.key > Some(low)));
    assert_eq!(run(&rows, id, 100).await, ran(3, 3));
    assert_eq!(progress(&rows, id).await, (BulkState::Done, 3, 3, 0));
    for task in late {
        assert_eq!(rows.store.task(task.uid).await.unwrap().unwrap().state(), State::Pending);
    }
}

#[tokio::test]
async fn each_action_moves_the_tasks_whose_state_allows_it_and_leaves_the_others() {
    let all = [
        State::Pending,
        State::InProgress,
        State::Complete,
        State::Error,
        State::Cancelled,
        State::ResolvedManually,
    ];
    let overriding = Action::Cancel(v1::BulkCancel { r#override: true });
    for (action, moved, to, of_type) in [
        (CANCEL, 3, State::Cancelled, 24),
        (overriding, 5, State::Cancelled, 24),
        (RETRY, 1, State::Pending, 25),
        (RESOLVE, 1, State::ResolvedManually, 26),
    ] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        one_in_each_state(&rows, &definition).await;
        let mut found: Vec<i32> =
            list(&rows, &Filter::default()).await.iter().map(|t| t.state).collect();
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4, 5, 6], "one in each state");
        let before = list(&rows, &in_states(&[to])).await.len();
        let id = start(&rows, action, in_states(&all)).await;
        assert_eq!(run(&rows, id, 100).await, ran(6, moved), "{action:?}");
        let done = (BulkState::Done, 6, i64::from(moved), i64::from(6 - moved));
        assert_eq!(progress(&rows, id).await, done, "{action:?}");
        assert_eq!(events(&rows, id, of_type).await, i64::from(moved), "{action:?}");
        let after = list(&rows, &in_states(&[to])).await.len();
        assert_eq!(after - before, usize::try_from(moved).unwrap(), "{action:?}");
        assert_eq!(operation(&rows, id).await.action.unwrap().action, Some(action));
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn a_task_that_fails_again_behind_the_place_is_not_tried_a_second_time() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut writer = rows.writer().await;
    rows.create_with(&mut writer, &definition, 4).await;
    let fail = async |writer: &mut stepwell_store::Writer| {
        let leases = rows.claim(writer, definition.queues[0], 10).await;
        let failed: Vec<_> = leases.iter().map(|lease| report(lease, FAILS, "{}")).collect();
        rows.settle(writer, &failed).await;
    };
    fail(&mut writer).await;
    let attempts = Action::Retry(v1::BulkRetry { attempts: 1 });
    let id = start(&rows, attempts, in_states(&[State::Error])).await;
    assert_eq!(run(&rows, id, 2).await, ran(2, 2));
    fail(&mut writer).await;
    assert_eq!(list(&rows, &in_states(&[State::Error])).await.len(), 4);
    assert_eq!(run(&rows, id, 2).await, ran(2, 2));
    run(&rows, id, 2).await;
    assert_eq!(progress(&rows, id).await, (BulkState::Done, 4, 4, 0));
    assert_eq!(events(&rows, id, 25).await, 4);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_task_that_is_moved_by_hand_first_is_left_alone_or_fits_no_more() {
    for (filter, matched) in [(in_states(&[State::Pending]), 0), (tagged("t"), 1)] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        let mut task = [new_task(&definition)];
        task[0].tags = vec!["t".into()];
        rows.writer().await.create_tasks(&rows.store, &mut task).await.unwrap();
        let id = start(&rows, CANCEL, filter).await;
        let latch = hold(&rows, task[0].key.unwrap()).await;
        let (_, chunk) = race(&rows, latch, rows.cancel(task[0].uid), run(&rows, id, 10)).await;
        assert_eq!(chunk, ran(matched, 0));
        assert_eq!(events(&rows, id, 24).await, 0);
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn a_move_by_hand_that_comes_after_an_operation_finds_nothing_to_do() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let task = rows.create_with(&mut rows.writer().await, &definition, 1).await.remove(0);
    let id = start(&rows, CANCEL, in_states(&[State::Pending])).await;
    let latch = hold(&rows, task.key.unwrap()).await;
    let note = Note::new("who", "why");
    let by_hand = rows.store.cancel_tasks(std::slice::from_ref(&task.uid), false, &note);
    let (chunk, cancelled) = race(&rows, latch, run(&rows, id, 10), by_hand).await;
    assert_eq!((chunk, cancelled.unwrap().was), (ran(1, 1), vec![Some(State::Cancelled)]));
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn who_comes_second_to_an_operation_does_nothing_and_does_not_wait() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 3).await;
    let id = start(&rows, CANCEL, in_states(&[State::Pending])).await;
    let latch = hold(&rows, keys[0]).await;
    let second = async {
        rows.in_line(1).await;
        let second = run(&rows, id, 10).await;
        release(latch).await;
        second
    };
    let (first, second) = tokio::join!(run(&rows, id, 10), second);
    assert_eq!((first, second), (ran(3, 3), IDLE));
}

#[tokio::test]
async fn a_chunk_whose_backend_is_killed_leaves_no_trace_and_is_run_again() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 5).await;
    let id = start(&rows, CANCEL, in_states(&[State::Pending])).await;
    assert_eq!(run(&rows, id, 2).await, ran(2, 2));
    let latch = hold(&rows, keys[1]).await;
    let kill = async {
        rows.in_line(1).await;
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where datname = current_database() and wait_event_type = 'Lock'",
        )
        .execute(&mut rows.connection().await)
        .await
        .unwrap();
    };
    let (killed, ()) = tokio::join!(rows.store.run_bulk(id, 10), kill);
    assert!(killed.unwrap_err().is_lost());
    release(latch).await;
    assert_eq!(progress(&rows, id).await, (BulkState::Running, 2, 2, 0));
    assert_eq!(run(&rows, id, 10).await, ran(3, 3));
    assert_eq!(progress(&rows, id).await, (BulkState::Done, 5, 5, 0));
    assert_eq!(events(&rows, id, 24).await, 5);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn an_operation_that_is_stopped_ends_after_its_chunk_and_one_that_is_done_stays_done() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 4).await;
    let id = start(&rows, CANCEL, in_states(&[State::Pending])).await;
    // Both wait: the chunk for its task, the stop for the chunk.
    let latch = hold(&rows, keys[3]).await;
    let (chunk, stopped) = race(&rows, latch, run(&rows, id, 2), rows.store.stop_bulk(id)).await;
    let stopped = stopped.unwrap().unwrap();
    assert_eq!((chunk, stopped.was_running), (ran(2, 2), true));
    assert_eq!(progress(&rows, id).await, (BulkState::Cancelled, 2, 2, 0));
    assert_eq!(run(&rows, id, 2).await, IDLE);
    assert!(!rows.store.stop_bulk(id).await.unwrap().unwrap().was_running);
    assert_eq!(rows.store.stop_bulk(Uuid::nil()).await.unwrap(), None);

    let id = start(&rows, CANCEL, in_states(&[State::Pending])).await;
    let latch = hold(&rows, keys[0]).await;
    let (chunk, stopped) = race(&rows, latch, run(&rows, id, 10), rows.store.stop_bulk(id)).await;
    let stopped = stopped.unwrap().unwrap();
    assert_eq!((chunk, stopped.was_running), (ran(2, 2), false), "it came to its end first");
    assert_eq!(stopped.operation.state(), BulkState::Done);
}

#[tokio::test]
async fn the_same_start_again_starts_nothing_and_any_other_under_the_id_is_told_apart() {
    let rows = Rows::new().await;
    let first = bulk(CANCEL, in_states(&[State::Pending]));
    let start = async |bulk: &NewBulk| rows.store.start_bulk(bulk).await.unwrap();
    assert_eq!(start(&first).await, Started::New);
    assert_eq!(start(&first).await, Started::Existing);
    run(&rows, first.id, 10).await;
    assert_eq!(start(&first).await, Started::Existing, "also once it is done");
    let overriding = Action::Cancel(v1::BulkCancel { r#override: true });
    for other in [
        NewBulk { action: RETRY, ..first.clone() },
        NewBulk { action: overriding, ..first.clone() },
        NewBulk { filter: in_states(&[State::Error]), ..first.clone() },
        NewBulk { note: Note::new("ops@shop", "another"), ..first.clone() },
        NewBulk { note: Note::new("me", "the gateway is gone"), ..first.clone() },
    ] {
        assert_eq!(start(&other).await, Started::Reused, "{other:?}");
    }
    let attempts = |attempts| bulk(Action::Retry(v1::BulkRetry { attempts }), tagged("x"));
    let retry = attempts(3);
    assert_eq!(start(&retry).await, Started::New);
    assert_eq!(start(&NewBulk { id: retry.id, ..attempts(4) }).await, Started::Reused);
    assert_eq!(rows.store.list_bulk(&[], None, 10).await.unwrap().0.len(), 2);
}

#[tokio::test]
async fn no_more_operations_run_at_once_than_may_and_those_started_at_once_are_counted() {
    let rows = Rows::new().await;
    let starts = (0..BULK_RUNNING_MAX + 20).map(|_| {
        let store = rows.store.clone();
        async move { store.start_bulk(&bulk(CANCEL, tagged("x"))).await.unwrap() }
    });
    let started = futures::future::join_all(starts).await;
    let n = |outcome| started.iter().filter(|started| **started == outcome).count();
    assert_eq!((n(Started::New), n(Started::Full)), (100, 20));
    let one = rows.store.running_bulk().await.unwrap()[0];
    run(&rows, one, 10).await;
    assert_eq!(rows.store.start_bulk(&bulk(CANCEL, tagged("x"))).await.unwrap(), Started::New);
}

#[tokio::test]
async fn operations_are_listed_by_state_and_page_and_forgotten_when_they_are_old() {
    let rows = Rows::new().await;
    let mut started = Vec::new();
    for _ in 0..5 {
        started.push(start(&rows, CANCEL, tagged("x")).await);
    }
    run(&rows, started[0], 10).await;
    rows.store.stop_bulk(started[1]).await.unwrap();
    let list = async |states: &[i16]| {
        let (mut all, mut before) = (Vec::new(), None);
        loop {
            let (page, next) = rows.store.list_bulk(states, before, 2).await.unwrap();
            all.extend(page.into_iter().map(|it| it.operation_id.parse::<Uuid>().unwrap()));
            let Some(next) = next else { return all };
            before = Some(next);
        }
    };
    let newest: Vec<Uuid> = started.iter().rev().copied().collect();
    assert_eq!(list(&[]).await, newest);
    assert_eq!(list(&[1]).await, newest[..3]);
    assert_eq!(list(&[2, 3]).await, newest[3..]);
    sqlx::query(
        "update stepwell.bulk_operation set ended_at = ended_at - interval '31 days' where id = $1",
    )
    .bind(started[0])
    .execute(&mut rows.connection().await)
    .await
    .unwrap();
    let days = Duration::from_secs(30 * 24 * 3600);
    assert_eq!(rows.store.forget_bulk(days).await.unwrap(), 1);
    assert_eq!(list(&[]).await, newest[..4]);
}

#[tokio::test]
async fn an_operation_is_started_while_others_lease_and_waits_for_none_of_them() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    rows.create(&definition).await;
    let latch = hold_log(&rows).await;
    let mut writer = rows.writer().await;
    let started = async {
        rows.in_line(1).await;
        start(&rows, CANCEL, tagged("x")).await;
        release(latch).await;
    };
    let (leases, ()) = tokio::join!(rows.claim(&mut writer, definition.queues[0], 1), started);
    assert_eq!(leases.len(), 1);
}
