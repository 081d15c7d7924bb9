//! Steps that are ready and that nobody could run: which are told of, when, and once.

use std::collections::BTreeMap;

use stepwell_proto::v1::{Concurrency, Definition, Event, StepUnserved, event::Detail};
use stepwell_store::{Ending, ExecutorState, Move, NewExecutor, Place, Told};
use stepwell_tests::{Rows, child_slots, complete, new_task};

use super::{
    operate::{FAILS, RETRY, Run, note},
    priority::{pause, queue_at, raise},
    races::{hold, race},
};

const AFTER_MS: i64 = 30_000;

fn start(queue: i32) -> Place {
    Place { queue, id: 0, step: 0 }
}

async fn tell_from(rows: &Rows, from: &[Place]) -> Told {
    rows.store.tell_unserved(from, AFTER_MS).await.unwrap()
}

/// How many steps of the queue were told of.
async fn tell(run: &Run) -> usize {
    let told = tell_from(&run.rows, &[start(run.definition.queues[0])]).await.steps;
    run.check().await;
    told
}

/// As if all events were so much older.
async fn age(rows: &Rows, interval: &str) {
    let older = "update stepwell.event set at = at - $1::text::interval";
    sqlx::query(older).bind(interval).execute(&mut rows.connection().await).await.unwrap();
}

/// What was told: number and attempt of the step, and what more.
async fn said(run: &Run) -> Vec<(String, i32, StepUnserved)> {
    let rows = run.rows.store.read_after(0, 10_000).await.unwrap();
    let events = rows.iter().map(|row| stepwell_store::event(row, &run.definition).unwrap());
    let said = events.filter_map(|event: Event| match event.detail {
        Some(Detail::StepUnserved(said)) => Some((event.step_name, event.attempt, said)),
        _ => None,
    });
    said.collect()
}

#[tokio::test]
async fn a_step_that_waits_for_long_is_told_of_once_for_each_attempt() {
    let mut run = Run::of("a; b: a").await;
    let queue = run.definition.queues[0];
    let told = tell_from(&run.rows, &[start(queue)]).await;
    assert_eq!(told.steps, 0);
    assert!((20_000..=30_000).contains(&told.next_ms.unwrap()), "{told:?}");
    age(&run.rows, "31 s").await;
    assert_eq!((tell(&run).await, tell(&run).await), (1, 0));
    let said_first = said(&run).await;
    let [(name, 0, about)] = said_first.as_slice() else { panic!("{said_first:?}") };
    assert_eq!((name.as_str(), about.handler.as_str()), ("a", "h"));
    let created =
        "select extract(epoch from at)::bigint from stepwell.event where task = $1 and type = 20";
    let created: i64 = run.rows.one(created, run.key).await;
    assert!((about.ready_time.unwrap().seconds - created).abs() <= 1, "{about:?}");

    run.run(&[(0, Ending::Fail { wait_ms: Some(0) })]).await;
    assert_eq!(tell(&run).await, 0, "it has not waited again yet");
    run.rows.pass("31 s").await;
    age(&run.rows, "31 s").await;
    assert_eq!((tell(&run).await, tell(&run).await), (1, 0));
    assert_eq!(said(&run).await[1].1, 1, "the attempt that failed");
    // Ready again in the same attempt.
    run.moves(0, Move::Cancel).await;
    assert_eq!(tell(&run).await, 0);
    assert_eq!(said(&run).await.len(), 2);
}

#[tokio::test]
async fn a_step_that_is_not_ready_or_that_its_task_does_not_let_run_is_not_told_of() {
    // One waits for its parent, one runs, one is cancelled, one in error.
    let mut run = Run::of("a; b; c; d: a").await;
    run.run(&[(1, FAILS)]).await;
    run.moves(2, Move::Cancel).await;
    age(&run.rows, "1 h").await;
    assert_eq!(tell(&run).await, 0);
    // One waits for its retry.
    let mut run = Run::of("a").await;
    run.run(&[(0, Ending::Fail { wait_ms: Some(3_600_000) })]).await;
    age(&run.rows, "1 h").await;
    assert_eq!(tell(&run).await, 0);
}

#[tokio::test]
async fn a_paused_task_s_steps_are_told_of_when_it_goes_on() {
    let run = Run::of("a").await;
    age(&run.rows, "1 h").await;
    run.rows.store.pause_tasks(&[run.uid], true, &note()).await.unwrap();
    assert_eq!(tell(&run).await, 0);
    run.rows.store.pause_tasks(&[run.uid], false, &note()).await.unwrap();
    assert_eq!((tell(&run).await, tell(&run).await), (1, 0));
}

#[tokio::test]
async fn a_paused_definition_s_steps_are_told_of_when_it_goes_on() {
    let run = Run::of("a").await;
    age(&run.rows, "1 h").await;
    let name = run.definition.definition.name.as_str();
    pause(&run.rows, name, true).await;
    assert_eq!(tell(&run).await, 0);
    pause(&run.rows, name, false).await;
    assert_eq!((tell(&run).await, tell(&run).await), (1, 0));
}

#[tokio::test]
async fn a_step_that_changed_its_queue_is_told_of_where_it_waits_now() {
    let run = Run::of("a").await;
    raise(&run.rows, run.uid, 1).await;
    let urgent = start(queue_at(&run.rows, &run.definition, 1).await.unwrap());
    age(&run.rows, "1 h").await;
    assert_eq!(tell(&run).await, 0, "its row in the usual queue is a left-over");
    assert_eq!(tell_from(&run.rows, &[urgent]).await.steps, 1);
    run.check().await;
}

#[tokio::test]
async fn a_full_task_s_steps_are_told_of_when_it_has_room() {
    let rows = Rows::new().await;
    let limited = |definition: &mut Definition| {
        definition.max_parallel_steps = 1;
        definition.steps[1].handler = "nobody".into();
    };
    let definition = rows.define_with("a; b", limited).await;
    let mut run = Run::in_rows(rows, definition, Vec::new()).await;
    age(&run.rows, "1 h").await;
    let lease = run.rows.claim(&mut run.writer, run.definition.queues[0], 1).await[0];
    let nobody = [start(run.definition.queues[1])];
    assert_eq!(tell_from(&run.rows, &nobody).await.steps, 0);
    let done = [complete(&lease, "1")];
    run.writer.settle(&done, &child_slots(&[0]), run.rows.node, None).await.unwrap();
    age(&run.rows, "1 h").await;
    assert_eq!(tell_from(&run.rows, &nobody).await.steps, 1);
    run.check().await;
}

#[tokio::test]
async fn a_task_that_waits_for_its_key_is_not_told_of_before_it_has_it() {
    let rows = Rows::new().await;
    let keyed = |definition: &mut Definition| {
        definition.concurrency = Some(Concurrency { key: "n".into(), limit: 1 });
    };
    let definition = rows.define_with("a", keyed).await;
    let mut writer = rows.writer().await;
    let mut tasks = [new_task(&definition), new_task(&definition)];
    tasks.iter_mut().for_each(|task| task.concurrency = Some(7));
    writer.create_tasks(&rows.store, &mut tasks).await.unwrap();
    let queue = [start(definition.queues[0])];
    age(&rows, "1 h").await;
    assert_eq!(tell_from(&rows, &queue).await.steps, 0);
    // What it lets out has no event of its own: it was ready after the event before.
    assert_eq!(writer.grant_keys().await.unwrap().0, 1);
    age(&rows, "1 h").await;
    assert_eq!(tell_from(&rows, &queue).await.steps, 1);
    assert_eq!(tell_from(&rows, &queue).await.steps, 0, "the other is held");
}

#[tokio::test]
async fn what_a_timer_made_ready_waits_from_then_on() {
    let mut run = Run::of("a").await;
    run.run(&[(0, Ending::Fail { wait_ms: Some(3_600_000) })]).await;
    age(&run.rows, "1 h").await;
    run.rows.pass("3590 s").await;
    assert_eq!(run.writer.release_due(10).await.unwrap().taken, 0);
    run.rows.pass("15 s").await;
    assert_eq!(run.writer.release_due(10).await.unwrap().taken, 1);
    let told = tell_from(&run.rows, &[start(run.definition.queues[0])]).await;
    assert_eq!(told.steps, 0);
    assert!((20_000..=25_000).contains(&told.next_ms.unwrap()), "{told:?}");
    run.rows.pass("26 s").await;
    assert_eq!((tell(&run).await, tell(&run).await), (1, 0));
}

#[tokio::test]
async fn a_look_tells_of_five_hundred_at_most_the_oldest_first_and_goes_on_where_it_was() {
    let rows = Rows::new().await;
    let (many, few) = (rows.define("a").await, rows.define("a").await);
    let first = rows.create_many(&many, 300).await;
    rows.create_many(&many, 900).await;
    rows.create_many(&few, 2).await;
    age(&rows, "1 h").await;
    rows.create_many(&many, 3).await;
    let told = tell_from(&rows, &[start(many.queues[0])]).await;
    let (place, more) = told.places[0];
    assert_eq!((told.steps, more, told.next_ms), (500, true, None));
    let oldest = "select count(*) from stepwell.event where type = 48 and task = any($1)";
    let oldest: i64 = sqlx::query_scalar(oldest)
        .bind(&first)
        .fetch_one(&mut rows.connection().await)
        .await
        .unwrap();
    assert_eq!(oldest, 300);
    // Two share a look.
    let told = tell_from(&rows, &[place, start(few.queues[0])]).await;
    assert_eq!(told.steps, 250 + 2);
    assert_eq!(told.places.iter().map(|(_, more)| *more).collect::<Vec<_>>(), [true, false]);
    let told = tell_from(&rows, &[told.places[0].0]).await;
    assert_eq!((told.steps, told.places[0].1), (450, false), "the last three are too young");
    assert!(told.next_ms.unwrap() > 20_000);
    let again = tell_from(&rows, &[told.places[0].0]).await;
    assert_eq!((again.steps, again.places[0].0), (0, told.places[0].0));
    assert_eq!(tell_from(&rows, &[start(many.queues[0])]).await.steps, 0);
}

#[tokio::test]
async fn of_two_that_tell_at_once_one_does() {
    let run = Run::of("a; b").await;
    age(&run.rows, "1 h").await;
    let from = [start(run.definition.queues[0])];
    let latch = hold(&run.rows, run.key).await;
    let tellers = (tell_from(&run.rows, &from), tell_from(&run.rows, &from));
    let (one, other) = race(&run.rows, latch, tellers.0, tellers.1).await;
    assert_eq!((one.steps, other.steps), (2, 0));
    assert_eq!(said(&run).await.len(), 2);
    run.check().await;
}

#[tokio::test]
async fn a_step_that_is_leased_meanwhile_is_not_told_of() {
    for claim_first in [true, false] {
        let mut run = Run::of("a").await;
        age(&run.rows, "1 h").await;
        let queue = run.definition.queues[0];
        let from = [start(queue)];
        let latch = hold(&run.rows, run.key).await;
        let telling = tell_from(&run.rows, &from);
        let claiming = run.rows.claim(&mut run.writer, queue, 1);
        let (told, leases) = if claim_first {
            let (leases, told) = race(&run.rows, latch, claiming, telling).await;
            (told, leases)
        } else {
            race(&run.rows, latch, telling, claiming).await
        };
        assert_eq!((told.steps, leases.len()), (usize::from(!claim_first), 1));
        run.check().await;
    }
}

#[tokio::test]
async fn a_step_retried_by_hand_in_the_same_attempt_is_not_told_of_again() {
    let run = Run::of("a; b").await;
    age(&run.rows, "1 h").await;
    assert_eq!(tell(&run).await, 2);
    // It fails without having run.
    let mut connection = run.rows.connection().await;
    let late = "select s_moved from stepwell.move_steps(array[$1], '{0}', '{1}', 4::smallint, 42::smallint, '{}', '')";
    let moved: Vec<bool> =
        sqlx::query_scalar(late).bind(run.uid).fetch_one(&mut connection).await.unwrap();
    assert_eq!(moved, [true]);
    run.moves(0, RETRY).await;
    age(&run.rows, "1 h").await;
    assert_eq!(tell(&run).await, 0);
}

#[tokio::test]
async fn a_queue_with_ready_steps_knows_who_could_run_them() {
    let rows = Rows::new().await;
    let labelled = |definition: &mut Definition| {
        definition.version = "2.1.0".into();
        definition.steps[0].requires = [("region".to_owned(), "eu".to_owned())].into();
    };
    let (plain, picky) = (rows.define("a").await, rows.define_with("a", labelled).await);
    rows.define("idle").await;
    rows.create(&plain).await;
    let task = rows.create_many(&picky, 2).await[0];
    age(&rows, "1 h").await;
    let dead = rows.store.register_node(std::time::Duration::from_secs(300)).await.unwrap();
    let write = async |node, session, namespace, range: &str, region: &str, draining| {
        let labels = BTreeMap::from([("region".to_owned(), region.to_owned())]);
        let state = ExecutorState { session, slots: 5, used: 5, draining, heard_ms: 0 };
        let new = NewExecutor {
            state,
            name: "e",
            namespace,
            sdk: "rust/1",
            handlers: vec![("h", range.to_owned()), ("other", "^9".to_owned())],
            labels: &labels,
            stop_asked: false,
            age_ms: 0,
        };
        rows.writer().await.write_executors(node, &[], &[], &[new]).await.unwrap();
    };
    write(rows.node, 1, "default", "^1", "us", false).await;
    write(rows.node, 2, "default", "^1", "us", false).await;
    write(rows.node, 3, "default", "^2", "eu", false).await;
    write(rows.node, 4, "default", "", "eu", true).await;
    write(rows.node, 5, "shop", "", "eu", false).await;
    write(dead, 6, "default", "", "eu", false).await;
    let retire = "select stepwell.retire_node($1)";
    sqlx::query(retire).bind(dead).execute(&mut rows.connection().await).await.unwrap();
    let (queues, more) = rows.store.waiting_queues(0).await.unwrap();
    let found: Vec<_> =
        queues.iter().map(|q| (q.queue, q.version.clone(), &q.ranges[..])).collect();
    let text = |range: &str| range.to_owned();
    assert_eq!(
        found,
        [
            (plain.queues[0], vec![1, 0, 0], &[text("^1"), text("^2")][..]),
            (picky.queues[0], vec![2, 1, 0], &[text("^2")][..]),
        ]
    );
    assert!(!more && queues.iter().all(|q| (3_600_000..3_700_000).contains(&q.age_ms.unwrap())));
    let above = rows.store.waiting_queues(plain.queues[0]).await.unwrap().0;
    assert_eq!(above.iter().map(|q| q.queue).collect::<Vec<_>>(), [picky.queues[0]]);
    // Left-overs of cancelled tasks are nobody's.
    let cancel = "update stepwell.step set state = 5 where key >> 14 in ($1, $1 + 1)";
    sqlx::query(cancel).bind(task).execute(&mut rows.connection().await).await.unwrap();
    assert_eq!(rows.store.waiting_queues(0).await.unwrap().0[1].age_ms, None);
}
