//! Requests that are done once: what a repeat is answered, and that it changes nothing.

use std::sync::Arc;

use futures::FutureExt;
use sqlx::Row;
use stepwell_proto::v1::{
    ErrorReason, RetryTaskRequest,
    State::{Cancelled, Complete, Error, InProgress, Pending},
};
use stepwell_store::{
    Ending, Error as StoreError, Moved, Note, Once, Report, Retried, Topic, Update,
};
use stepwell_tests::{Rows, check};
use uuid::Uuid;

use super::{
    operate::{FAILS, Run, note},
    races::{hold, hold_log, race},
};

/// A request with this id, whose content is this text.
fn once(id: &str, content: &str) -> Once {
    let request = RetryTaskRequest { reason: content.into(), ..Default::default() };
    Once::of(id, &request).unwrap()
}

fn attempts(n: i32) -> Update {
    Update { max_attempts: Some(n), ..Update::default() }
}

async fn retry(run: &Run, once: &Once) -> Result<Retried, StoreError> {
    run.rows.store.retry_task_once(once, run.uid, None, &note()).await
}

async fn retry_step(run: &Run, once: &Once) -> Result<Option<Moved>, StoreError> {
    run.rows.store.retry_step_once(once, run.uid, 0, None, &note()).await
}

fn is_reused<T: std::fmt::Debug>(answer: Result<T, StoreError>, id: &str) -> bool {
    let Err(StoreError::Refused(refusal)) = answer else { return false };
    let names = refusal.metadata.iter().any(|(key, value)| key == "request_id" && value == id);
    refusal.reason == ErrorReason::RequestIdReused && names
}

async fn remembered(run: &Run) -> i64 {
    run.rows.one("select count(*) from stepwell.request where $1 > 0", run.key).await
}

#[tokio::test]
async fn a_repeated_retry_of_a_task_that_failed_again_is_answered_like_the_first_and_tries_nothing()
{
    let mut run = Run::of("a; b: a").await;
    run.run(&[(0, FAILS)]).await;
    let first = retry(&run, &once("r1", "x")).await.unwrap();
    assert_eq!(first, Retried { was: Some(Error), steps: 1 });
    for meanwhile in [Pending, InProgress, Error] {
        let before = run.log(0).await.len();
        assert_eq!(run.states().await.1[0], meanwhile);
        assert_eq!(retry(&run, &once("r1", "x")).await.unwrap(), first);
        assert_eq!((run.log(before).await.len(), run.states().await.1[0]), (0, meanwhile));
        match meanwhile {
            Pending => run.run(&[]).await,
            InProgress => {
                let token = "select token from stepwell.step where key = $1";
                let token = run.rows.one(token, run.step(0)).await;
                let failed = Report {
                    step: run.step(0),
                    token,
                    ending: FAILS,
                    text: "{}".into(),
                    events: Vec::new(),
                };
                run.rows.settle(&mut run.writer, &[failed]).await;
            }
            _ => {}
        }
    }
    assert_eq!(
        retry(&run, &once("r2", "x")).await.unwrap(),
        first,
        "another request tries it again"
    );
    assert_eq!(run.states().await, (Pending, vec![Pending, Pending]));
    run.check().await;
}

#[tokio::test]
async fn a_repeated_retry_of_a_step_that_failed_again_is_answered_like_the_first_and_tries_nothing()
{
    let mut run = Run::of("a; b: a").await;
    run.run(&[(0, FAILS)]).await;
    let first = retry_step(&run, &once("r1", "x")).await.unwrap().unwrap();
    assert_eq!(first, Moved { was: Error, task: Error, moved: true, blocked: false });
    run.run(&[(0, FAILS)]).await;
    let before = run.log(0).await.len();
    assert_eq!(retry_step(&run, &once("r1", "x")).await.unwrap(), Some(first));
    assert_eq!((run.log(before).await.len(), run.states().await.0), (0, Error));
    assert!(retry_step(&run, &once("r2", "x")).await.unwrap().unwrap().moved);
    // The same id at another method is another request.
    run.run(&[(0, FAILS)]).await;
    assert_eq!(retry(&run, &once("r1", "x")).await.unwrap().steps, 1);
    run.check().await;
}

#[tokio::test]
async fn a_retry_that_found_its_task_under_way_finds_so_again_when_it_is_repeated() {
    let mut run = Run::of("a").await;
    let found = retry(&run, &once("r1", "x")).await.unwrap();
    assert_eq!(found, Retried { was: Some(Pending), steps: 0 });
    let step = retry_step(&run, &once("r1", "x")).await.unwrap().unwrap();
    assert_eq!((step.was, step.moved), (Pending, false));
    run.run(&[(0, FAILS)]).await;
    assert_eq!(retry(&run, &once("r1", "x")).await.unwrap(), found);
    assert_eq!(retry_step(&run, &once("r1", "x")).await.unwrap(), Some(step));
    assert_eq!(run.states().await.0, Error);
    run.check().await;
}

#[tokio::test]
async fn other_content_under_the_id_of_a_request_is_refused_and_changes_nothing() {
    let mut run = Run::of("a").await;
    run.run(&[(0, FAILS)]).await;
    retry(&run, &once("r1", "x")).await.unwrap();
    retry_step(&run, &once("r1", "x")).await.unwrap();
    run.run(&[(0, FAILS)]).await;
    let store = &run.rows.store;
    let words = Note { task_reason: Some("why".into()), ..note() };
    store.update_task(run.uid, &words, Some(&once("r1", "x"))).await.unwrap().unwrap();
    assert!(
        store
            .update_step(run.uid, 0, &attempts(9), &note(), Some(&once("r1", "x")))
            .await
            .unwrap()
            .unwrap()
            .done
    );
    let (before, states) = (run.log(0).await.len(), run.states().await);
    let other = once("r1", "y");
    assert!(is_reused(retry(&run, &other).await, "r1"));
    assert!(is_reused(retry_step(&run, &other).await, "r1"));
    assert!(is_reused(store.update_task(run.uid, &words, Some(&other)).await, "r1"));
    assert!(is_reused(
        store.update_step(run.uid, 0, &attempts(10), &note(), Some(&other)).await,
        "r1"
    ));
    assert_eq!((run.log(before).await.len(), run.states().await), (0, states));
    run.check().await;
}

#[tokio::test]
async fn a_request_that_was_refused_is_not_remembered() {
    let mut run = Run::of("a; b: a").await;
    run.run(&[(0, Ending::Complete)]).await;
    let request = once("r1", "x");
    let nobody = Uuid::now_v7();
    let store = run.rows.store.clone();
    assert_eq!(store.retry_task_once(&request, nobody, None, &note()).await.unwrap().was, None);
    assert_eq!(store.retry_step_once(&request, nobody, 0, None, &note()).await.unwrap(), None);
    assert_eq!(store.update_task(nobody, &note(), Some(&request)).await.unwrap(), None);
    assert_eq!(
        store.update_step(nobody, 0, &attempts(5), &note(), Some(&request)).await.unwrap(),
        None
    );
    let step = retry_step(&run, &request).await.unwrap().unwrap();
    assert_eq!((step.was, step.moved), (Complete, false));
    assert!(
        !store
            .update_step(run.uid, 0, &attempts(5), &note(), Some(&request))
            .await
            .unwrap()
            .unwrap()
            .done
    );
    assert_eq!(remembered(&run).await, 0);
    run.rows.cancel(run.uid).await;
    assert_eq!(retry(&run, &request).await.unwrap(), Retried { was: Some(Cancelled), steps: 0 });
    assert_eq!(remembered(&run).await, 0);
    run.check().await;
}

#[tokio::test]
async fn a_repeated_update_does_not_undo_what_another_changed_meanwhile() {
    let mut run = Run::of("a").await;
    run.run(&[(0, FAILS)]).await;
    let store = run.rows.store.clone();
    let words = |reason: &str| Note { task_reason: Some(reason.into()), ..note() };
    let first = store.update_task(run.uid, &words("one"), Some(&once("u1", "x"))).await.unwrap();
    let step = store
        .update_step(run.uid, 0, &attempts(5), &note(), Some(&once("u1", "x")))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((first, step.is, step.done), (Some(Error), Error, true));
    store.update_task(run.uid, &words("two"), None).await.unwrap();
    store.update_step(run.uid, 0, &attempts(7), &note(), None).await.unwrap();
    let before = run.log(0).await.len();
    let again = store.update_task(run.uid, &words("one"), Some(&once("u1", "x"))).await.unwrap();
    assert_eq!(again, first);
    let again =
        store.update_step(run.uid, 0, &attempts(5), &note(), Some(&once("u1", "x"))).await.unwrap();
    assert_eq!(again, Some(step));
    let task = store.task(run.uid).await.unwrap().unwrap();
    let step = store.step(run.uid, 0).await.unwrap().unwrap();
    assert_eq!((task.reason.as_str(), step.max_attempts), ("two", 7));
    assert!(run.log(before).await.is_empty());
}

#[tokio::test]
async fn of_a_request_and_its_repeat_at_once_one_is_done_and_both_are_answered_the_same() {
    for log in [false, true] {
        let mut run = Run::of("a").await;
        run.run(&[(0, FAILS)]).await;
        let latch = if log { hold_log(&run.rows).await } else { hold(&run.rows, run.key).await };
        let before = run.log(0).await.len();
        let request = once("r1", "x");
        let both = race(&run.rows, latch, retry(&run, &request), retry(&run, &request)).await;
        assert_eq!(both.0.unwrap(), Retried { was: Some(Error), steps: 1 });
        assert_eq!(both.1.unwrap(), Retried { was: Some(Error), steps: 1 });
        assert_eq!(run.log(before).await, ["0 step.retry_requested", "task.retry_requested"]);
        run.check().await;
    }
}

#[tokio::test]
async fn of_two_requests_with_one_id_at_once_the_first_is_done_and_the_other_refused() {
    for by_step in [false, true] {
        for [first, second] in [["x", "y"], ["y", "x"]] {
            let mut run = Run::of("a").await;
            run.run(&[(0, FAILS)]).await;
            let latch = hold(&run.rows, run.key).await;
            let (first, second) = (once("r1", first), once("r1", second));
            let (done, refused) = if by_step {
                let both =
                    race(&run.rows, latch, retry_step(&run, &first), retry_step(&run, &second));
                let (done, refused) = both.await;
                (done.unwrap().unwrap().moved, is_reused(refused, "r1"))
            } else {
                let both = race(&run.rows, latch, retry(&run, &first), retry(&run, &second)).await;
                (both.0.unwrap().steps == 1, is_reused(both.1, "r1"))
            };
            assert!(done && refused);
            assert_eq!(run.states().await.0, Pending);
            run.check().await;
        }
    }
}

/// Retries at a time; answers whether it was done before.
async fn retry_at(run: &Run, id: &str, at: &str) -> Option<bool> {
    let sql = "select r_same, t_was from stepwell.retry_task_once($1, '\\x00', $2, '{}', null, \
               date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' + $3::text::interval)";
    let mut connection = run.rows.connection().await;
    let row = sqlx::query(sql).bind(id).bind(run.uid).bind(at).fetch_one(&mut connection).await;
    let row = row.unwrap();
    assert!(row.get::<Option<i16>, _>(1).is_some());
    row.get(0)
}

/// The days that there are, counted from today.
async fn days(rows: &Rows) -> Vec<i32> {
    let sql = "select to_date(right(relname, 8), 'YYYYMMDD') - (now() at time zone 'UTC')::date from pg_class
                where oid in (select inhrelid from pg_inherits where inhparent = 'stepwell.request'::regclass)
                order by 1";
    sqlx::query_scalar(sql).fetch_all(&mut rows.connection().await).await.unwrap()
}

#[tokio::test]
async fn a_request_is_remembered_for_48_hours_and_its_day_is_dropped_whole_after() {
    let run = Run::of("a").await;
    let keep = async |at: &str| {
        let sql = "select stepwell.extend_request(now() + $1::text::interval)";
        let mut connection = run.rows.connection().await;
        sqlx::query_scalar::<_, i32>(sql).bind(at).fetch_one(&mut connection).await.unwrap()
    };
    assert_eq!(days(&run.rows).await, [0, 1], "migrated");
    for at in ["0", "23 h"] {
        assert_eq!(retry_at(&run, at, at).await, None);
        assert_eq!(retry_at(&run, at, at).await, Some(true));
    }
    assert_eq!(retry_at(&run, "0", "47 h 59 min").await, Some(true));
    assert_eq!(retry_at(&run, "0", "48 h 1 min").await, None, "it is a request of its own now");
    assert_eq!(retry_at(&run, "23 h", "70 h").await, Some(true));
    assert_eq!(days(&run.rows).await, [0, 1, 2, 3], "of today and two days before, and one ahead");
    assert_eq!(keep("3 days").await, 2, "one is made, one is dropped");
    assert_eq!((days(&run.rows).await, keep("3 days").await), (vec![1, 2, 3, 4], 0));
    // Nobody was there to make the days of a request that comes much later.
    assert_eq!(retry_at(&run, "0", "20 days").await, None);
    assert_eq!((days(&run.rows).await, remembered(&run).await), (vec![20, 21], 1));
    check(&mut run.rows.connection().await).await;
}

#[tokio::test]
async fn those_who_make_the_day_of_a_request_at_once_make_it_once() {
    let run = Arc::new(Run::of("a").await);
    let mut latch = run.rows.connection().await;
    sqlx::query("begin").execute(&mut latch).await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(46)").execute(&mut latch).await.unwrap();
    let both = race(&run.rows, latch, retry_at(&run, "a", "9 d"), retry_at(&run, "b", "9 d")).await;
    assert_eq!(both, (None, None));
    assert_eq!((days(&run.rows).await, remembered(&run).await), (vec![9, 10], 2));
}

#[tokio::test]
async fn an_update_of_a_task_that_is_not_there_and_a_repeat_ring_no_bell() {
    let run = Run::of("a").await;
    let bell = run.rows.store.bell().listen(Topic::Event);
    let rang = || bell.notified().now_or_never().is_some();
    let store = &run.rows.store;
    let nobody = Uuid::now_v7();
    assert_eq!(store.update_task(nobody, &note(), None).await.unwrap(), None);
    assert_eq!(store.update_task(nobody, &note(), Some(&once("u1", "x"))).await.unwrap(), None);
    assert!(!rang(), "nothing was written");
    assert_eq!(store.update_task(run.uid, &note(), None).await.unwrap(), Some(Pending));
    assert!(rang());
    store.update_task(run.uid, &note(), Some(&once("u1", "x"))).await.unwrap();
    assert!(rang());
    store.update_task(run.uid, &note(), Some(&once("u1", "x"))).await.unwrap();
    assert!(!rang(), "a repeat changes nothing");
}
