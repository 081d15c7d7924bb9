//! What the views cost, and that whoever asks about one step or about all of them is told the same.

use std::sync::Arc;

use sqlx::Connection;
use stepwell_proto::v1::{Definition, ObstacleKind, Standing, State, TaskContext};
use stepwell_store::{Ending, Move, Note, StoredDefinition, Writer};
use stepwell_tests::{Rows, check, complete, new_task, report};
use uuid::Uuid;

async fn made(rows: &Rows, writer: &mut Writer, definition: &Arc<StoredDefinition>) -> Uuid {
    let mut task = [new_task(definition)];
    writer.create_tasks(&rows.store, &mut task).await.unwrap();
    task[0].uid
}

async fn context(rows: &Rows, uid: Uuid) -> TaskContext {
    rows.store.task_contexts(&[uid]).await.unwrap().remove(&uid).unwrap()
}

/// Blocks that a statement about one task touches when it is carried out.
async fn touched(writer: &mut Writer, view: &'static str, uid: Uuid) -> i64 {
    let plan: Vec<String> =
        sqlx::query_scalar(view).bind(vec![uid]).fetch_all(writer.connection()).await.unwrap();
    let buffers = plan.iter().find_map(|line| line.trim().strip_prefix("Buffers: shared "));
    let counts = buffers.unwrap_or_else(|| panic!("{plan:#?}")).split_whitespace();
    let counts = counts.filter_map(|part| part.strip_prefix("hit=").or(part.strip_prefix("read=")));
    counts.map(|n| n.parse::<i64>().unwrap()).sum()
}

const CONTEXT: &str =
    "explain (analyze, buffers, costs off, timing off) select * from stepwell.task_context($1)";
const READINESS: &str =
    "explain (analyze, buffers, costs off, timing off) select * from stepwell.step_readiness($1)";

#[tokio::test]
async fn a_view_of_one_task_touches_as_few_blocks_among_twenty_thousand_as_among_few() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let definition = rows.define("a; b; c: b; d: c").await;
    let mut whole = Vec::new();
    for among in [0, 20_000] {
        for batch in [500_usize].repeat(among / 500) {
            rows.create_with(&mut writer, &definition, batch).await;
        }
        let (sound, broken) = (
            made(&rows, &mut writer, &definition).await,
            made(&rows, &mut writer, &definition).await,
        );
        let note = Note::new("who", "why");
        rows.store.move_step(broken, 1, &Move::Cancel, &note).await.unwrap().unwrap();
        for uid in [sound, broken] {
            for view in [CONTEXT, READINESS] {
                // Once for what a session reads first.
                touched(&mut writer, view, uid).await;
                whole.push(touched(&mut writer, view, uid).await);
            }
        }
        assert_eq!(context(&rows, broken).await.blocked_steps, 2);
    }
    assert!(whole.iter().all(|blocks| (1..=60).contains(blocks)), "{whole:?}");
    // The indexes are a level deeper.
    let (few, many) = whole.split_at(4);
    assert!(few.iter().zip(many).all(|(few, many)| *many <= 2 * few), "{whole:?}");
}

#[tokio::test]
async fn views_may_be_read_where_nothing_may_be_written() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let definition = rows.define("a; b: a").await;
    let uid = made(&rows, &mut writer, &definition).await;
    rows.store.move_step(uid, 0, &Move::Cancel, &Note::new("who", "why")).await.unwrap();
    let mut connection = rows.connection().await;
    let mut reading = connection.begin().await.unwrap();
    sqlx::raw_sql("set transaction read only").execute(&mut *reading).await.unwrap();
    for view in [CONTEXT, READINESS] {
        let asked = sqlx::query_scalar::<_, String>(view).bind(vec![uid]);
        asked.fetch_all(&mut *reading).await.unwrap();
    }
    let moving: i64 = sqlx::query_scalar(
        "select count(*) from pg_proc where pronamespace = 'stepwell'::regnamespace
            and proname in ('task_context', 'step_readiness', 'blocked_steps') and provolatile <> 's'",
    )
    .fetch_one(&mut *reading)
    .await
    .unwrap();
    assert_eq!(moving, 0);
}

#[tokio::test]
async fn of_many_tasks_each_that_exists_is_told_once_however_often_it_is_named() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let (small, large) = (rows.define("a").await, rows.define("a; b: a; c: a").await);
    let uids = [
        made(&rows, &mut writer, &small).await,
        made(&rows, &mut writer, &large).await,
        Uuid::nil(),
    ];
    let named = [uids[0], uids[1], uids[0], uids[2]];
    let found = rows.store.task_contexts(&named).await.unwrap();
    let totals: Vec<_> = uids.iter().map(|uid| found.get(uid).map(|of| of.total_steps)).collect();
    assert_eq!(totals, [Some(1), Some(3), None]);
    assert_eq!(rows.store.steps_of(&named).await.unwrap(), 4);
    assert!(rows.store.task_contexts(&[]).await.unwrap().is_empty());
    assert!(rows.store.task_steps(Uuid::nil()).await.unwrap().is_none());
    assert!(rows.store.task_summed(Uuid::nil()).await.unwrap().is_none());
}

/// Asks about each step alone and about all together; what is in the way of each.
async fn asked(rows: &Rows, uid: Uuid) -> Vec<Vec<ObstacleKind>> {
    let all = rows.store.task_steps(uid).await.unwrap().unwrap();
    let summed = rows.store.task_summed(uid).await.unwrap().unwrap();
    let mut kinds = Vec::new();
    for (number, step) in (0..).zip(&all.steps) {
        let alone = rows.store.surroundings(uid, number).await.unwrap().unwrap().obstacles();
        let together = all.surroundings(number).unwrap();
        assert_eq!(together.obstacles(), alone, "step {number}");
        let ready = step.state == State::Pending && alone.is_empty();
        assert_eq!(step.standing == Standing::Ready, ready, "step {number}: {alone:?}");
        let of = &summed.steps.steps[usize::try_from(number).unwrap()];
        assert_eq!((of.state, of.standing), (step.state, step.standing), "step {number}");
        kinds.push(alone.iter().map(stepwell_proto::v1::Obstacle::kind).collect());
    }
    kinds
}

#[tokio::test]
async fn what_is_in_the_way_of_a_step_is_the_same_asked_for_one_or_for_all() {
    use ObstacleKind::{
        BackOff, ParentBlocked, ParentCancelled, ParentFailed, Parents, Paused, StepEnded,
        StepFailed, TaskEnded, TaskFull,
    };
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let steps = "fails; after: fails; last: after; gone; behind: gone last; later; next: later";
    let limited = |definition: &mut Definition| {
        definition.max_parallel_steps = 1;
        for step in &mut definition.steps {
            step.handler = step.name.clone();
        }
    };
    let definition = rows.define_with(steps, limited).await;
    let uid = made(&rows, &mut writer, &definition).await;
    let note = Note::new("who", "why");
    assert_eq!(
        asked(&rows, uid).await,
        [vec![], vec![Parents], vec![Parents], vec![], vec![Parents], vec![], vec![Parents]]
    );

    let leases = rows.claim(&mut writer, definition.queues[0], 1).await;
    let full = asked(&rows, uid).await;
    assert_eq!((&full[0], &full[3], &full[5]), (&vec![], &vec![TaskFull], &vec![TaskFull]));
    assert_eq!(context(&rows, uid).await.parked_steps, 2);
    rows.settle(&mut writer, &[report(&leases[0], Ending::Fail { wait_ms: None }, "{}")]).await;
    rows.store.move_step(uid, 3, &Move::Cancel, &note).await.unwrap().unwrap();
    let leases = rows.claim(&mut writer, definition.queues[5], 1).await;
    let later = Ending::Fail { wait_ms: Some(3_600_000) };
    rows.settle(&mut writer, &[report(&leases[0], later, "{}")]).await;
    assert_eq!(
        asked(&rows, uid).await,
        [
            vec![StepFailed],
            vec![ParentFailed],
            vec![ParentBlocked],
            vec![StepEnded],
            vec![ParentCancelled, ParentBlocked],
            vec![BackOff],
            vec![Parents]
        ]
    );

    rows.store.pause_tasks(&[uid], true, &note).await.unwrap();
    assert_eq!(asked(&rows, uid).await[5], [Paused, BackOff]);
    rows.pass("1 hour").await;
    assert_eq!(asked(&rows, uid).await[5], [Paused]);
    rows.store.pause_tasks(&[uid], false, &note).await.unwrap();
    writer.release_due(9).await.unwrap();
    let leases = rows.claim(&mut writer, definition.queues[5], 1).await;
    rows.settle(&mut writer, &[complete(&leases[0], "1")]).await;
    let leases = rows.claim(&mut writer, definition.queues[6], 1).await;
    rows.settle(&mut writer, &[complete(&leases[0], "1")]).await;
    assert_eq!(context(&rows, uid).await.state(), State::Error);
    assert_eq!(asked(&rows, uid).await[4], [ParentCancelled, ParentBlocked]);
    rows.store.resolve_tasks(&[uid], &note).await.unwrap();
    assert_eq!(asked(&rows, uid).await[2], [TaskEnded]);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_context_read_while_steps_move_is_of_one_moment() {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let names: Vec<String> = (0..60).map(|n| format!("a{n}; b{n}: a{n}")).collect();
    let definition = rows.define(&names.join(";")).await;
    let uid = made(&rows, &mut writer, &definition).await;
    let moving = async {
        loop {
            let leases = rows.claim(&mut writer, definition.queues[0], 1).await;
            let Some(lease) = leases.first() else { break };
            rows.settle(&mut writer, &[complete(lease, "1")]).await;
        }
    };
    let looking = async {
        let mut before = 0;
        loop {
            let now = context(&rows, uid).await;
            let pending = now.ready_steps + now.waiting_steps;
            assert_eq!(now.pending_steps, pending, "{now:?}");
            assert_eq!(pending + now.in_progress_steps + now.complete_steps, 120, "{now:?}");
            assert!(now.waiting_steps + now.complete_steps >= 60, "{now:?}");
            assert_eq!(now.state() == State::Complete, now.complete_steps == 120, "{now:?}");
            assert!(now.complete_steps >= before, "{before}, then {now:?}");
            before = now.complete_steps;
            if before == 120 {
                break;
            }
        }
    };
    tokio::join!(moving, looking);
}
