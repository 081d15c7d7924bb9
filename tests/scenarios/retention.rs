//! Old events go while others are read: a reader gets every event, or is told what is gone and where to go on.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use sqlx::{Connection, PgConnection};
use stepwell_client::{
    Client, Error, EventStream, Start, Subscription,
    v1::{self, ErrorReason},
};
use stepwell_store::{Keep, Options, Store};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, World, cut_log};

const EVENTS: i64 = 2500;

/// One event a task, of 8 KB: much more than what waits on the way to a reader who does not read.
async fn create(world: &World) {
    let context = json!({"fill": "x".repeat(8_000)}).to_string();
    for _ in 0..EVENTS / 100 {
        let requests = (0..100).map(|_| v1::CreateTaskRequest {
            definition_name: "one".into(),
            context: context.clone(),
            ..v1::CreateTaskRequest::default()
        });
        let request = v1::BatchCreateTasksRequest { requests: requests.collect() };
        world.client.batch_create_tasks(request).await.unwrap();
    }
    // A commit of its own, in the partition of the head.
    world.create("one", &json!({})).await;
}

async fn positions(connection: &mut PgConnection) -> Vec<i64> {
    let all = "select position from stepwell.event order by position";
    sqlx::query_scalar(all).fetch_all(connection).await.unwrap()
}

async fn age(connection: &mut PgConnection, before: i64) {
    sqlx::query("update stepwell.event set at = at - interval '2 hours' where position < $1")
        .bind(before)
        .execute(connection)
        .await
        .unwrap();
}

async fn subscribe(client: &Client, start: Start) -> Result<EventStream, Error> {
    client.subscribe(Subscription::new().names(["*"]).from(start)).await
}

/// What one reader saw: the events of each feed it had, one after the other.
#[derive(Default)]
struct Seen(Vec<Vec<i64>>);

impl Seen {
    /// Reads up to an event, from the earliest cursor on whenever it is told to. How often it was.
    async fn read_to(&mut self, client: &Client, mut feed: EventStream, last: i64) -> usize {
        let mut told = 0;
        self.0.push(Vec::new());
        loop {
            let mut next = tokio::time::timeout(SOON, feed.next()).await.unwrap().unwrap();
            while let Err(error) = next {
                assert_eq!(error.reason(), Some(ErrorReason::CursorExpired), "{error}");
                let Error::Refused(refusal) = error else { panic!("{error}") };
                told += 1;
                self.0.push(Vec::new());
                let earliest = refusal.metadata["earliest"].clone();
                next = match subscribe(client, Start::After(earliest)).await {
                    Ok(resumed) => {
                        feed = resumed;
                        tokio::time::timeout(SOON, feed.next()).await.unwrap().unwrap()
                    }
                    // It went as well meanwhile.
                    Err(error) => Err(error),
                };
            }
            let seen = self.0.last_mut().unwrap();
            seen.extend(next.unwrap().events.iter().map(|event| event.position));
            if seen.last() == Some(&last) {
                return told;
            }
        }
    }

    /// Each feed is an unbroken piece of the log, and later ones come after earlier ones.
    fn check(&self, log: &[i64]) {
        let mut from = 0;
        for seen in self.0.iter().filter(|seen| !seen.is_empty()) {
            let at = log.binary_search(&seen[0]).unwrap();
            assert!(at >= from, "{} comes again", seen[0]);
            from = at + seen.len();
            assert_eq!(log.get(at..from), Some(seen.as_slice()), "left out without a word");
        }
        assert_eq!(from, log.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_while_events_are_dropped_has_each_or_is_told_where_to_go_on() {
    let database = stepwell_suite::test_database().await.unwrap();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    cut_log(&mut connection, 100, 60).await;
    let store = Store::connect(&Options::new(&database.url), "test").await.unwrap();
    let world = World::over(database, |options| {
        options.nodes = Nodes { task: 1, step: 1, event: 2 };
        options.env = [("STEPWELL_KEEP_EVENTS", "1"), ("STEPWELL_RING_MIB", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    })
    .await;
    world.define("{name: one, steps: [{name: a}]}").await;
    create(&world).await;
    let log = positions(&mut connection).await;
    let last = *log.last().unwrap();

    // One has read a little when the service drops all it can.
    let mut slow = subscribe(&world.client, Start::Earliest).await.unwrap();
    let first = slow.cursor().to_owned();
    let mut seen = Seen::default();
    let begun = slow.next().await.unwrap().unwrap().events;
    seen.0.push(begun.iter().map(|event| event.position).collect());
    age(&mut connection, last + 1).await;
    let deadline = tokio::time::Instant::now() + SOON;
    while store.earliest().await.unwrap() < last / 100 * 100 - 1 {
        assert!(tokio::time::Instant::now() < deadline, "nothing was dropped");
        tokio::task::yield_now().await;
    }
    assert_eq!(store.head().await.unwrap(), last);
    let told = seen.read_to(&world.client, slow, last).await;
    assert_eq!(told, 1);
    let pieces: Vec<i64> = seen.0.concat();
    let earliest = store.earliest().await.unwrap();
    let kept: BTreeSet<i64> = log.iter().copied().filter(|p| *p > earliest).collect();
    assert!(kept.is_subset(&pieces.iter().copied().collect()), "all that is kept comes");
    // The first two were one feed.
    let begun = seen.0.remove(0);
    seen.0[0].splice(0..0, begun);
    seen.check(&log);
    let refused = subscribe(&world.client, Start::After(first)).await.err().unwrap();
    assert_eq!(refused.reason(), Some(ErrorReason::CursorExpired));

    // Others begin while one partition after the other goes.
    create(&world).await;
    let log = positions(&mut connection).await;
    let last = *log.last().unwrap();
    let keep = Keep { age: Some(Duration::from_secs(3600)), bytes: None };
    let dropping = async {
        for end in (last / 100 - EVENTS / 100..=last / 100).map(|n| n * 100) {
            age(&mut connection, end).await;
            // The service does the same; a reader that is in the midst of a page is waited for.
            while store.drop_old_events(keep).await.is_err() {}
        }
    };
    let reading = (0..4).map(|_| {
        let (client, log) = (world.client.clone(), log.clone());
        async move {
            let mut seen = Seen::default();
            let feed = subscribe(&client, Start::Earliest).await.unwrap();
            seen.read_to(&client, feed, last).await;
            seen.check(&log);
        }
    });
    tokio::join!(dropping, futures::future::join_all(reading));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_ended_long_ago_is_not_found_its_id_is_free_and_its_events_are_still_told() {
    let mut world = World::set_up(|options| {
        options.env = vec![("STEPWELL_KEEP_TASKS".into(), "1".into())];
    })
    .await;
    world.define("{name: one, steps: [{name: a}]}").await;
    let create = v1::CreateTaskRequest {
        task_id: "0198c0de-4a11-7c52-9e0f-3b1de5a7f001".into(),
        definition_name: "one".into(),
        context: "{}".into(),
        ..v1::CreateTaskRequest::default()
    };
    let old = world.client.create_task(create.clone()).await.unwrap().task.unwrap().task_id;
    let young = world.create("one", &json!({})).await.task_id;
    for task_id in [&old, &young] {
        let request =
            v1::CancelTaskRequest { task_id: task_id.clone(), ..v1::CancelTaskRequest::default() };
        world.client.cancel_task(request).await.unwrap();
    }
    sqlx::query(
        "update stepwell.task set finished_at = finished_at - interval '2 hours'
          where uid = $1::text::uuid",
    )
    .bind(&old)
    .execute(&mut world.connection().await)
    .await
    .unwrap();
    // It looks when it starts, and every ten minutes.
    world.suite.process(Kind::Task, 0).unwrap().kill(Signal::SIGTERM).await.unwrap();
    world.suite.restart(Kind::Task, 0).await.unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    let get =
        v1::GetTaskRequest { task_id: old.clone(), include_results: true, ..Default::default() };
    let refused = loop {
        match world.client.get_task(get.clone()).await {
            Err(error) if error.reason() == Some(ErrorReason::TaskNotFound) => break error,
            _ => assert!(tokio::time::Instant::now() < deadline, "it is still there"),
        }
    };
    let Error::Refused(refused) = refused else { panic!("{refused}") };
    assert_eq!(refused.metadata["task_id"], old);
    assert_eq!(world.task(&young).await.state(), v1::State::Cancelled);

    let again = world.client.create_task(create).await.unwrap().task.unwrap();
    assert_eq!((again.task_id.as_str(), again.state()), (old.as_str(), v1::State::Pending));
    let mut feed = world.feed(Start::Earliest).await;
    let mut created = 0;
    while created < 2 {
        let events = feed.next().await.unwrap().unwrap().events;
        let begins = |event: &&v1::Event| event.name == "task.initialize_requested";
        created += events.iter().filter(begins).filter(|event| event.task_id == old).count();
    }
}
