//! Facts that are kept with tasks: who may have how many, and what the log says of them.

use std::collections::BTreeMap;

use sqlx::{
    Row,
    types::chrono::{DateTime, Utc},
};
use stepwell_proto::v1::{
    AnnotateTaskRequest, State, State::Complete, TaskAnnotated, event::Detail,
};
use stepwell_store::{ANNOTATIONS_MAX, Annotated, Ending, Error, Filter, Once, Order};
use stepwell_tests::{Rows, check, new_task};
use uuid::Uuid;

use super::{
    bulk::{filter, walk},
    operate::{Run, note},
    races::{hold, hold_log, race, release},
    reads::{cost, statement},
};

fn facts<const N: usize>(facts: [(&str, &str); N]) -> BTreeMap<String, String> {
    facts.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}

async fn annotate(run: &Run, set: &BTreeMap<String, String>, remove: &[&str]) -> Annotated {
    let remove: Vec<String> = remove.iter().map(|&name| name.to_owned()).collect();
    run.rows.store.annotate_task(run.uid, set, &remove, &note(), None).await.unwrap()
}

async fn kept(run: &Run) -> BTreeMap<String, String> {
    run.rows.store.task(run.uid).await.unwrap().unwrap().annotations
}

/// Texts as long as they may be, which cannot be made shorter.
fn texts() -> impl FnMut() -> String {
    let mut state = 1_u64;
    move || {
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(33 + u8::try_from((state >> 33) % 94).unwrap())
        };
        std::iter::repeat_with(next).take(1024).collect()
    }
}

/// The tasks that fit, newest first.
async fn found(rows: &Rows, written: &str) -> Vec<Uuid> {
    let tasks = walk(rows, &filter(written), Order::CreateDesc, 10, async |_| {}).await;
    tasks.iter().map(|task| task.task_id.parse().unwrap()).collect()
}

async fn said(run: &Run) -> Vec<TaskAnnotated> {
    let rows = run.rows.store.read_after(0, 1000).await.unwrap();
    let events = rows.iter().map(|row| stepwell_store::event(row, &run.definition).unwrap());
    let details = events.filter_map(|event| match event.detail {
        Some(Detail::TaskAnnotated(said)) => Some(said),
        _ => None,
    });
    details.collect()
}

#[tokio::test]
async fn facts_are_kept_replaced_and_forgotten_in_every_state_and_move_nothing() {
    let mut run = Run::of("a").await;
    for (end, state) in [(false, State::Pending), (true, Complete)] {
        if end {
            run.run(&[(0, Ending::Complete)]).await;
        }
        let before = run.states().await;
        let done =
            annotate(&run, &facts([("order", "17"), ("note", "say \"hi\" \\ ü")]), &[]).await;
        assert_eq!(done, Annotated::Done(state));
        annotate(&run, &facts([("order", "18")]), &["note", "never"]).await;
        assert_eq!(kept(&run).await, facts([("order", "18")]));
        assert_eq!(run.states().await, before);
        annotate(&run, &facts([]), &["order"]).await;
        assert_eq!(kept(&run).await, facts([]));
    }
    let said = said(&run).await;
    assert_eq!(said.len(), 6);
    assert_eq!(said[0].set, facts([("order", "17"), ("note", "say \"hi\" \\ ü")]));
    assert_eq!(
        (&said[1].set, &said[1].removed),
        (&facts([("order", "18")]), &vec!["note".to_owned(), "never".to_owned()])
    );
    assert_eq!(
        (said[5].annotated_by.as_str(), said[5].reason.as_str()),
        (&*note().by, &*note().reason)
    );
    let (some, note) = (facts([("a", "b")]), note());
    let nobody = run.rows.store.annotate_task(Uuid::nil(), &some, &[], &note, None).await;
    assert_eq!(nobody.unwrap(), Annotated::Missing);
    run.check().await;
}

#[tokio::test]
async fn a_task_with_as_many_facts_as_it_may_have_takes_no_other_until_one_is_forgotten() {
    let run = Run::of("a").await;
    let full: BTreeMap<String, String> =
        (0..ANNOTATIONS_MAX).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    assert_eq!(annotate(&run, &full, &[]).await, Annotated::Done(State::Pending));
    let before = run.log(0).await.len();
    assert_eq!(annotate(&run, &facts([("more", "v")]), &["never"]).await, Annotated::Full);
    assert_eq!((kept(&run).await, run.log(before).await.len()), (full, 0));
    annotate(&run, &facts([("more", "v")]), &["k0"]).await;
    annotate(&run, &facts([("more", "w")]), &[]).await;
    let now = kept(&run).await;
    assert_eq!((now.len(), now["more"].as_str()), (ANNOTATIONS_MAX, "w"));
    run.check().await;
}

#[tokio::test]
async fn a_repeated_request_changes_nothing_whatever_was_changed_meanwhile() {
    let run = Run::of("a").await;
    let request =
        |name: &str| AnnotateTaskRequest { set: facts([(name, "1")]), ..Default::default() };
    let once = Once::of("r1", &request("a")).unwrap();
    let asked = async |once: &Once, set: &BTreeMap<String, String>| {
        run.rows.store.annotate_task(run.uid, set, &[], &note(), Some(once)).await
    };
    let first = asked(&once, &facts([("a", "1")])).await.unwrap();
    annotate(&run, &facts([]), &["a"]).await;
    assert_eq!(asked(&once, &facts([("a", "1")])).await.unwrap(), first);
    assert_eq!((kept(&run).await, said(&run).await.len()), (facts([]), 2));
    let other = Once::of("r1", &request("b")).unwrap();
    let reused = asked(&other, &facts([("b", "1")])).await.unwrap_err();
    assert!(matches!(reused, Error::Refused(_)), "{reused}");
    // One that was refused is not remembered.
    let many = (0..=ANNOTATIONS_MAX).map(|n| (format!("k{n}"), String::new())).collect();
    let later = Once::of("r2", &request("c")).unwrap();
    assert_eq!(asked(&later, &many).await.unwrap(), Annotated::Full);
    let done = asked(&later, &facts([("c", "1")])).await.unwrap();
    assert_eq!((done, kept(&run).await), (first, facts([("c", "1")])));
    run.check().await;
}

#[tokio::test]
async fn two_who_annotate_a_task_at_once_are_both_kept_and_only_one_is_if_there_is_room_for_one() {
    for room in [2, 1] {
        let run = Run::of("a").await;
        let before =
            (0..ANNOTATIONS_MAX - room).map(|n| (format!("k{n}"), String::new())).collect();
        annotate(&run, &before, &[]).await;
        let (one, two) = (facts([("one", "1")]), facts([("two", "2")]));
        let latch = hold(&run.rows, run.key).await;
        let (first, second) =
            race(&run.rows, latch, annotate(&run, &one, &[]), annotate(&run, &two, &[])).await;
        let done = Annotated::Done(State::Pending);
        assert_eq!((first, second), (done, if room == 2 { done } else { Annotated::Full }));
        assert_eq!(kept(&run).await.len(), ANNOTATIONS_MAX);
        run.check().await;
    }
}

#[tokio::test]
async fn texts_beyond_eight_kibibytes_are_left_out_of_the_event_and_kept_with_the_task() {
    let run = Run::of("a").await;
    let whole = |n: usize| (0..8).map(|i| (format!("k{i}"), "x".repeat(n))).collect();
    for (bytes, omitted) in [(1022, false), (1023, true)] {
        let set: BTreeMap<String, String> = whole(bytes);
        annotate(&run, &set, &[]).await;
        let said = said(&run).await.pop().unwrap();
        assert_eq!((said.texts_omitted, said.set.len()), (omitted, 8));
        assert_eq!(said.set.values().all(String::is_empty), omitted);
        assert_eq!(kept(&run).await, set);
    }
}

#[tokio::test]
async fn facts_lead_to_tasks_from_their_creation_on_and_those_without_any_stand_nowhere() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut tasks: Vec<_> = (0..3).map(|_| new_task(&definition)).collect();
    tasks[1].annotations = facts([("order", "17"), ("kind", "")]);
    tasks[2].annotations = facts([("order", "17")]);
    rows.writer().await.create_tasks(&rows.store, &mut tasks).await.unwrap();
    for task in &tasks {
        let read = rows.store.task(task.uid).await.unwrap().unwrap();
        assert_eq!(read.annotations, task.annotations);
    }
    rows.create_many(&definition, 100).await;
    let kept = "select count(*) from stepwell.task_annotation where task > $1";
    assert_eq!(rows.one::<i64>(kept, 0).await, 3);
    let order = "annotations.order = 17";
    assert_eq!(found(&rows, order).await, [tasks[2].uid, tasks[1].uid]);
    assert_eq!(found(&rows, &format!("{order} AND annotations.kind = \"\"")).await, [tasks[1].uid]);
    assert_eq!(found(&rows, "annotations.order = 1").await, Vec::<Uuid>::new());

    let change = async |n: usize, set: &BTreeMap<String, String>, remove: &[String]| {
        rows.store.annotate_task(tasks[n].uid, set, remove, &note(), None).await.unwrap()
    };
    change(0, &facts([("order", "17"), ("kind", "x")]), &[]).await;
    change(1, &facts([("order", "18")]), &["kind".to_owned()]).await;
    assert_eq!(found(&rows, order).await, [tasks[2].uid, tasks[0].uid]);
    assert_eq!(found(&rows, "annotations.order = 18").await, [tasks[1].uid]);
    assert_eq!(found(&rows, "annotations.kind = \"\"").await, Vec::<Uuid>::new());
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_change_writes_rows_of_those_facts_only_that_it_changes() {
    let run = Run::of("a").await;
    let place = "select ctid::text from stepwell.task_annotation where task = $1 and name = 'kept'";
    annotate(&run, &facts([("kept", "x"), ("other", "y")]), &[]).await;
    let before: String = run.rows.one(place, run.key).await;
    annotate(&run, &facts([("kept", "x"), ("other", "z"), ("more", "")]), &["never"]).await;
    // Forgotten and kept by one call, it is kept.
    annotate(&run, &facts([("kept", "x")]), &["kept", "other"]).await;
    assert_eq!(run.rows.one::<String>(place, run.key).await, before);
    assert_eq!(kept(&run).await, facts([("kept", "x"), ("more", "")]));
    run.check().await;
}

#[tokio::test]
async fn the_longest_facts_that_there_may_be_lead_too() {
    let run = Run::of("a").await;
    let mut text = texts();
    let most: BTreeMap<String, String> =
        (0..ANNOTATIONS_MAX).map(|n| (format!("{n:0>64}"), text())).collect();
    assert_eq!(annotate(&run, &most, &[]).await, Annotated::Done(State::Pending));
    for (name, text) in most.iter().take(3) {
        let text = text.replace(['\\'], "\\\\").replace('"', "\\\"").replace('*', "\\*");
        let written = format!("annotations.\"{name}\" = \"{text}\"");
        assert_eq!(found(&run.rows, &written).await, [run.uid], "{written}");
    }
    run.check().await;
}

#[tokio::test]
async fn a_page_of_tasks_with_many_facts_is_shorter_and_each_task_stands_on_one_page() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let most: BTreeMap<String, String> =
        (0..ANNOTATIONS_MAX).map(|n| (format!("k{n}"), "x".repeat(1024))).collect();
    let mut tasks: Vec<_> = (0..40).map(|_| new_task(&definition)).collect();
    tasks.iter_mut().step_by(2).for_each(|task| task.annotations = most.clone());
    rows.writer().await.create_tasks(&rows.store, &mut tasks).await.unwrap();
    let made: Vec<String> = tasks.iter().map(|task| task.uid.to_string()).collect();
    let backwards: Vec<String> = made.iter().rev().cloned().collect();
    let mut listed = Vec::new();
    for (order, wanted) in [(Order::CreateDesc, backwards), (Order::Create, made)] {
        let (mut after, mut pages) = (None, 0);
        listed.clear();
        loop {
            let (store, all) = (&rows.store, Filter::default());
            let (page, next) = store.list_tasks(&all, order, after, 1_000).await.unwrap();
            let bytes: usize = page.iter().map(prost::Message::encoded_len).sum();
            assert!(!page.is_empty() && bytes < 2 << 20, "{} tasks, {bytes} bytes", page.len());
            listed.extend(page);
            (after, pages) = (next, pages + 1);
            if next.is_none() {
                break;
            }
        }
        let ids: Vec<String> = listed.iter().map(|task| task.task_id.clone()).collect();
        assert_eq!((ids, pages), (wanted, 2), "{order:?}");
    }
    let full = listed.iter().filter(|task| task.annotations == most).count();
    assert_eq!(full, 20);

    // What is beyond the page is not fetched.
    let pages = statement(&["stepwell.match_tasks(", "with ordinality"]);
    for (bound, fetched) in [(1 << 20, 15), (150_000, 2), (10, 1)] {
        let rows = sqlx::query(sqlx::AssertSqlSafe(pages.clone()))
            .bind("{}")
            .bind(2)
            .bind(None::<DateTime<Utc>>)
            .bind(None::<i64>)
            .bind(10_000)
            .bind(1_000)
            .bind(100_000)
            .bind(bound)
            .fetch_all(&mut rows.connection().await)
            .await
            .unwrap();
        let texts = rows.iter().filter_map(|row| row.get::<Option<String>, _>("annotations?"));
        assert_eq!((rows.len(), texts.count()), (40, fetched), "{bound}");
    }
}

#[tokio::test]
async fn a_filter_that_does_not_ask_for_facts_does_not_read_them() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut tasks: Vec<_> = (0..40).map(|_| new_task(&definition)).collect();
    let mut text = texts();
    for task in &mut tasks {
        task.annotations = (0..ANNOTATIONS_MAX).map(|n| (format!("k{n}"), text())).collect();
    }
    rows.writer().await.create_tasks(&rows.store, &mut tasks).await.unwrap();
    let keys: Vec<String> = tasks.iter().map(|task| task.key.unwrap().to_string()).collect();
    let mut connection = rows.connection().await;
    let mut blocks = async |written: &str| {
        let fits = "select stepwell.fit_tasks($1::text::json, null, $2::bigint[], null)";
        let arguments = [&*filter(written).to_text(), &format!("{{{}}}", keys.join(","))];
        cost(&mut connection, fits, &arguments).await.0
    };
    let few = blocks("reason = \"*x*\" OR initiator = \"*x*\"").await;
    let many = blocks("annotations.k1 = \"*x*\"").await;
    assert!(3 * few < many, "{few} blocks, and with facts {many}");
}

#[tokio::test]
async fn tags_and_facts_of_new_tasks_are_written_before_they_wait_for_the_log() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut tasks = [new_task(&definition)];
    tasks[0].annotations = facts([("order", "17")]);
    tasks[0].tags = vec!["a".into()];
    let mut writer = rows.writer().await;
    let latch = hold_log(&rows).await;
    let (made, ()) = tokio::join!(writer.create_tasks(&rows.store, &mut tasks), async {
        rows.in_line(1).await;
        let written = "select string_agg(distinct relname::text, ' ' order by relname::text)
                         from pg_locks l join pg_stat_activity a using (pid) join pg_class c on c.oid = l.relation
                        where a.wait_event_type = 'Lock' and a.datname = current_database() and mode = 'RowExclusiveLock'
                          and relation in ('stepwell.task_tag'::regclass, 'stepwell.task_annotation'::regclass) and $1 = 0";
        let written: String = rows.one(written, 0).await;
        assert_eq!(written, "task_annotation task_tag");
        release(latch).await;
    });
    made.unwrap();
    check(&mut rows.connection().await).await;
}
