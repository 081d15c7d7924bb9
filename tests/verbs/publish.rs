//! Custom events: with an outcome, during an attempt, and about whatever is there.

use sqlx::Row;
use stepwell_proto::v1::{ErrorReason, RetryTaskRequest};
use stepwell_store::{
    Ending, Error as StoreError, LeaseRow, Once, Published, PublishedAbout, Report, custom_text,
};
use stepwell_tests::{Rows, check, complete, report};
use uuid::Uuid;

use super::{
    operate::Run,
    races::{hold, race},
};

fn events(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| custom_text(name, 1, "{}")).collect()
}

fn with(report: Report, names: &[&str]) -> Report {
    Report { events: events(names), ..report }
}

fn published(lease: &LeaseRow, number: i32, names: &[&str]) -> Published {
    Published { lease: lease.id(), number, events: events(names) }
}

/// The rows of a task from its n-th on: step, type, states, attempt, and of custom ones the name.
async fn log(rows: &Rows, task: i64, from: usize) -> Vec<String> {
    let found = sqlx::query(
        "select format('%s %s %s>%s #%s %s', no, type, from_state, to_state, attempt,
                       case when type >= 100 then split_part(text, '@', 1) end) as line
           from stepwell.event where task = $1 order by position",
    )
    .bind(task)
    .fetch_all(&mut rows.connection().await)
    .await
    .unwrap();
    let lines = found.iter().map(|row| row.get::<String, _>("line").trim().to_owned());
    lines.skip(from).collect()
}

const FAILS: Ending = Ending::Fail { wait_ms: None };

#[tokio::test]
async fn events_of_an_outcome_stand_before_it_in_its_commit_and_only_if_it_counts() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b").await;
    let task = rows.create(&definition).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 2).await;
    let before = log(&rows, task, 0).await.len();
    let done = with(complete(&leases[0], "1"), &["a.one", "a.two"]);
    let failed = with(report(&leases[1], FAILS, "{}"), &["b.one"]);
    let lost = Report { token: 0, ..with(complete(&leases[0], "1"), &["a.lost"]) };
    let settled = rows.settle(&mut writer, &[done.clone(), failed, lost]).await;
    assert_eq!(settled.accepted, [true, true, false]);
    let written = [
        "0 100 2>2 #1 a.one",
        "0 100 2>2 #1 a.two",
        "1 100 2>2 #1 b.one",
        "0 41 2>3 #1",
        "1 42 2>4 #1",
        " 23 2>4 #",
    ];
    assert_eq!(log(&rows, task, before).await, written.map(str::trim));
    let batches = "select count(distinct batch) from stepwell.event where task = $1 and type in (41, 42, 100)";
    assert_eq!(rows.one::<i64>(batches, task).await, 1);
    // The same report again is accepted again, and publishes nothing.
    assert_eq!(rows.settle(&mut writer, &[done]).await.accepted, [true]);
    assert_eq!(log(&rows, task, before + written.len()).await, Vec::<String>::new());
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_refused_event_costs_its_own_outcome_alone() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let tasks = rows.create_many(&definition, 3).await;
    let mut writer = rows.writer().await;
    let leases = rows.claim(&mut writer, definition.queues[0], 3).await;
    let mut reports: Vec<Report> =
        leases.iter().map(|lease| with(complete(lease, "1"), &["a.one"])).collect();
    reports[1].events[0].push('\0');
    let (settled, poison) =
        writer.settle_each(&reports, &Default::default(), rows.node, None).await.unwrap();
    assert_eq!((settled.accepted, poison), (vec![true, false, true], vec![1]));
    let custom = "select count(*) from stepwell.event where type = 100 and task > $1";
    assert_eq!(rows.one::<i64>(custom, 0).await, 2);
    assert_eq!(tasks.len(), 3);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn what_an_attempt_publishes_is_there_once_however_often_it_is_said_while_its_lease_holds() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let task = rows.create(&definition).await;
    let mut writer = rows.writer().await;
    let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
    let before = log(&rows, task, 0).await.len();
    let (first, second) =
        (published(&lease, 1, &["a.one"]), published(&lease, 2, &["a.two", "a.three"]));
    // Twice in one call, again, and again beside the next.
    let said = [first.clone(), first.clone()];
    assert_eq!(writer.publish(&said).await.unwrap(), [true, true]);
    assert_eq!(writer.publish(&said[..1]).await.unwrap(), [true]);
    assert_eq!(writer.publish(&[first.clone(), second.clone()]).await.unwrap(), [true, true]);
    let is = ["0 100 2>2 #1 a.one", "0 100 2>2 #1 a.two", "0 100 2>2 #1 a.three"];
    assert_eq!(log(&rows, task, before).await, is);
    let foreign = Published {
        lease: stepwell_proto::id::LeaseId { token: lease.token + 1, ..lease.id() },
        ..published(&lease, 3, &["a.foreign"])
    };
    assert_eq!(writer.publish(&[foreign]).await.unwrap(), [false]);

    // After its end what was published is so still, and nothing else.
    rows.settle(&mut writer, &[report(&lease, Ending::Fail { wait_ms: Some(0) }, "{}")]).await;
    let late = published(&lease, 3, &["a.late"]);
    assert_eq!(writer.publish(&[second.clone(), late.clone()]).await.unwrap(), [true, false]);
    let next = rows.claim(&mut writer, definition.queues[0], 1).await[0];
    assert_eq!(writer.publish(&[late]).await.unwrap(), [false]);
    // Another attempt numbers its own.
    let again = published(&next, 1, &["a.again"]);
    assert_eq!(writer.publish(&[again.clone(), again]).await.unwrap(), [true, true]);
    assert_eq!(writer.publish(&[second]).await.unwrap(), [false], "its attempt is long over");
    let last = log(&rows, task, 0).await.pop().unwrap();
    assert_eq!(last, "0 100 2>2 #2 a.again");
    let custom = "select count(*) from stepwell.event where type = 100 and task = $1";
    assert_eq!(rows.one::<i64>(custom, task).await, 4);
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn of_an_end_and_a_publication_at_once_the_first_decides_about_the_other() {
    for publish_first in [true, false] {
        let rows = Rows::new().await;
        let definition = rows.define("a").await;
        let task = rows.create(&definition).await;
        let mut writer = rows.writer().await;
        let lease = rows.claim(&mut writer, definition.queues[0], 1).await[0];
        let before = log(&rows, task, 0).await.len();
        let latch = hold(&rows, task).await;
        let publish = async {
            let mut writer = rows.writer().await;
            writer.publish(&[published(&lease, 1, &["a.one"])]).await.unwrap()
        };
        let settle = async {
            let mut writer = rows.writer().await;
            rows.settle(&mut writer, &[complete(&lease, "1")]).await.accepted
        };
        let (durable, accepted) = if publish_first {
            race(&rows, latch, publish, settle).await
        } else {
            let (accepted, durable) = race(&rows, latch, settle, publish).await;
            (durable, accepted)
        };
        assert_eq!((durable, accepted), (vec![publish_first], vec![true]));
        let log = log(&rows, task, before).await;
        assert_eq!(log[0] == "0 100 2>2 #1 a.one", publish_first, "{log:?}");
        check(&mut rows.connection().await).await;
    }
}

#[tokio::test]
async fn events_about_a_task_or_a_step_come_once_for_a_request_and_stay_in_their_states() {
    let mut run = Run::of("a; b: a").await;
    let once = |id: &str, content: &str| {
        let request = RetryTaskRequest { reason: content.into(), ..Default::default() };
        Once::of(id, &request).unwrap()
    };
    let before = log(&run.rows, run.key, 0).await.len();
    let store = run.rows.store.clone();
    let (uid, some) = (run.uid, events(&["a.one", "a.two"]));
    let about = async |no, once: Option<&Once>| store.publish_about(uid, no, &some, once).await;
    let first = about(None, Some(&once("r1", "x"))).await.unwrap();
    let PublishedAbout::At { position, before: false } = first else { panic!("{first:?}") };
    let again = about(None, Some(&once("r1", "x"))).await.unwrap();
    assert_eq!(again, PublishedAbout::At { position, before: true });
    let Err(StoreError::Refused(refusal)) = about(None, Some(&once("r1", "y"))).await else {
        panic!("another content was taken")
    };
    assert_eq!(refusal.reason, ErrorReason::RequestIdReused);
    about(Some(1), None).await.unwrap();
    run.run(&[(0, Ending::Complete)]).await;
    about(Some(0), None).await.unwrap();
    assert_eq!(about(Some(7), Some(&once("r2", "x"))).await.unwrap(), PublishedAbout::NoStep);
    let nobody = store.publish_about(Uuid::now_v7(), None, &some, None).await.unwrap();
    assert_eq!(nobody, PublishedAbout::NoTask);
    let custom: Vec<String> = log(&run.rows, run.key, before)
        .await
        .into_iter()
        .filter(|line| line.contains(" 100 ") || line.starts_with("101"))
        .collect();
    let is = [
        "101 1>1 # a.one",
        "101 1>1 # a.two",
        "1 100 1>1 #0 a.one",
        "1 100 1>1 #0 a.two",
        "0 100 3>3 #1 a.one",
        "0 100 3>3 #1 a.two",
    ];
    assert_eq!(custom, is);
    let remembered = "select count(*) from stepwell.request where $1 > 0";
    assert_eq!(run.rows.one::<i64>(remembered, 1).await, 1);
    run.check().await;
}
