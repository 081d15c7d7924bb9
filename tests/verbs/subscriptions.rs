//! Durable subscriptions on the tables: takers, acks and nacks that meet.

use std::time::Duration;

use sqlx::{Connection, Executor, types::chrono::DateTime};
use stepwell_proto::v1::EventFilter;
use stepwell_store::{
    Acked, AlertRule, Applied, CountedEvent, Held, Holding, Made, Nack, Nacked, NewSubscription,
    Outcome, Standing, SubscriptionChange, Taker,
};
use stepwell_tests::Rows;
use uuid::Uuid;

fn new(partitions: i32, ordered: bool) -> NewSubscription {
    NewSubscription {
        name: "s".into(),
        filter: EventFilter::default(),
        ordered,
        max_attempts: 2,
        ack_deadline: Duration::from_secs(30),
        partitions,
        delivery: None,
        config: String::new(),
        namespace: String::new(),
        definition: String::new(),
        disabled: false,
        place: 0,
    }
}

/// A subscription, and a log of tasks that were created: one event each. Answers its key.
async fn made(rows: &Rows, new: &NewSubscription) -> i32 {
    let definition = rows.define("a").await;
    rows.create_many(&definition, 10).await;
    assert_eq!(rows.store.create_subscription(new).await.unwrap(), Made::Now);
    rows.store.subscription("s").await.unwrap().unwrap().id
}

fn taker(subscription: i32, reader: &str, holder: i64) -> Taker {
    Taker { subscription, reader: reader.into(), holder, wanted: Vec::new() }
}

async fn take(rows: &Rows, taker: &Taker, most: i32) -> Vec<Standing> {
    rows.store.take_partitions(taker, most, false).await.unwrap().unwrap()
}

fn nack(epoch: i64, position: i64, attempt: i32) -> Nack<'static> {
    Nack { name: "s", no: 0, epoch, position, attempt, reason: "no", wait: Some(Duration::ZERO) }
}

async fn positions(rows: &Rows) -> Vec<(i64, Uuid)> {
    sqlx::query_as("select position, uid from stepwell.event order by position")
        .fetch_all(&mut rows.connection().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn of_two_streams_that_take_at_once_each_gets_partitions_of_its_own() {
    let rows = Rows::new().await;
    let id = made(&rows, &new(8, true)).await;
    let (a, b) = (taker(id, "a", 1), taker(id, "b", 2));
    let (of_a, of_b) = tokio::join!(take(&rows, &a, 5), take(&rows, &b, 5));
    let mut all: Vec<i32> = of_a.iter().chain(&of_b).map(|of| of.no).collect();
    all.extend(take(&rows, &a, 8).await.iter().map(|of| of.no));
    all.sort_unstable();
    assert_eq!(all, (0..8).collect::<Vec<_>>(), "each once");
    assert_eq!(take(&rows, &b, 8).await, [], "nothing is free");
    let paused = SubscriptionChange { paused: Some(true), ..SubscriptionChange::default() };
    rows.store.update_subscription("s", &paused).await.unwrap();
    assert_eq!(take(&rows, &b, 8).await, [], "nobody reads what is paused");
}

#[tokio::test]
async fn an_ack_that_waits_for_one_who_takes_over_is_refused() {
    let rows = Rows::new().await;
    let id = made(&rows, &new(1, true)).await;
    let first = take(&rows, &taker(id, "a", 1), 1).await[0];
    let mut connection = rows.connection().await;
    let mut other = connection.begin().await.unwrap();
    // The lease is over, and another stream takes over.
    let over =
        "update stepwell.subscription_partition set lease_until = lease_until - interval '1 h'";
    other.execute(over).await.unwrap();
    let taken = "select stepwell.take_partitions(id, 'b', 2, '{}', 1, false, 10000) from stepwell.subscription";
    other.execute(taken).await.unwrap();
    let store = rows.store.clone();
    let ack =
        tokio::spawn(async move { store.ack_events("s", 0, first.epoch, 3, &[]).await.unwrap() });
    rows.in_line(1).await;
    other.commit().await.unwrap();
    let Acked::Fenced(now) = ack.await.unwrap() else { panic!("it was acked") };
    assert!(now > first.epoch);
    assert_eq!(rows.store.partitions(id).await.unwrap()[0].place, 0);
    let mut held = [Holding {
        subscription: id,
        no: 0,
        holder: 1,
        reader: "a".into(),
        epoch: first.epoch,
        done: 9,
    }];
    assert_eq!(rows.store.extend_partitions(&mut held).await.unwrap(), [Held::Lost]);
    held[0] = Holding { holder: 2, reader: "b".into(), epoch: now, done: 4, ..held[0].clone() };
    let answer = rows.store.extend_partitions(&mut held).await.unwrap();
    let Held::Still(standing, None) = answer[0] else { panic!("{answer:?}") };
    assert_eq!((standing.epoch, standing.place), (now, 4));
}

#[tokio::test]
async fn one_who_takes_over_while_an_ack_is_made_begins_after_it() {
    let rows = Rows::new().await;
    let id = made(&rows, &new(1, true)).await;
    let first = take(&rows, &taker(id, "a", 1), 1).await[0];
    let mut connection = rows.connection().await;
    let mut other = connection.begin().await.unwrap();
    sqlx::query("select stepwell.ack_events('s', 0, $1, 3, '{}')")
        .bind(first.epoch)
        .execute(&mut *other)
        .await
        .unwrap();
    // It does not wait for the ack: what it cannot have now it takes later.
    let again = taker(id, "a", 2);
    let skipped = rows.store.take_partitions(&again, 1, true).await.unwrap().unwrap();
    assert_eq!(skipped, []);
    other.commit().await.unwrap();
    let taken = rows.store.take_partitions(&again, 1, true).await.unwrap().unwrap();
    assert_eq!((taken[0].place, taken[0].epoch > first.epoch), (3, true));
    assert_eq!(
        rows.store.ack_events("s", 0, first.epoch, 5, &[]).await.unwrap(),
        Acked::Fenced(taken[0].epoch)
    );
}

#[tokio::test]
async fn what_follows_a_parked_event_of_its_task_is_kept_with_it_and_nothing_else() {
    let rows = Rows::new().await;
    let id = made(&rows, &new(1, true)).await;
    let log = positions(&rows).await;
    let first = take(&rows, &taker(id, "a", 1), 1).await[0];
    let (position, uid) = log[4];
    let Nacked::Done { epoch, attempt: 1, parked: false, .. } =
        rows.store.nack_event(&nack(first.epoch, position, 1)).await.unwrap()
    else {
        panic!("it comes again")
    };
    let stale = rows.store.nack_event(&nack(first.epoch, position, 1)).await.unwrap();
    assert_eq!(stale, Nacked::Fenced(epoch));
    let Nacked::Done { epoch, attempt: 2, parked: true, .. } =
        rows.store.nack_event(&nack(epoch, position, 2)).await.unwrap()
    else {
        panic!("it is parked")
    };
    assert_eq!(rows.store.parked_tasks(id, 0).await.unwrap(), [uid]);
    // As if the task had events before and after.
    let events = [(log[3].0, uid), (position, uid), (log[5].0, log[5].1), (log[6].0, uid)];
    let passed = rows.store.follow_parked(id, 0, epoch, &events).await.unwrap();
    assert_eq!(passed, Some(vec![log[3].0, log[5].0]));
    let again = rows.store.follow_parked(id, 0, epoch, &events).await.unwrap();
    assert_eq!(again, passed, "a repeat changes nothing");
    assert_eq!(rows.store.follow_parked(id, 0, first.epoch, &events).await.unwrap(), None);
    let kept: Vec<_> =
        rows.store.parked(id, 0, 10).await.unwrap().iter().map(|of| of.position).collect();
    assert_eq!(kept, [position, log[6].0]);
    assert_eq!(rows.store.replay_parked("s", &[log[6].0], false).await.unwrap(), Some(2));
    let again = rows.store.again(id, 0, true, 10).await.unwrap();
    assert_eq!(again.iter().map(|of| of.position).collect::<Vec<_>>(), [position]);
    rows.store.ack_events("s", 0, epoch, 0, &[position]).await.unwrap();
    let again = rows.store.again(id, 0, true, 10).await.unwrap();
    assert_eq!(again.iter().map(|of| of.position).collect::<Vec<_>>(), [log[6].0]);
}

#[tokio::test]
async fn no_more_events_are_kept_than_may_and_the_partition_waits() {
    let rows = Rows::new().await;
    let id = made(&rows, &new(1, true)).await;
    let log = positions(&rows).await;
    let first = take(&rows, &taker(id, "a", 1), 1).await[0];
    sqlx::query(
        "insert into stepwell.parked_event \
         select $1, 0, 1000000 + i, gen_random_uuid(), 1, 2, now(), '', now() from generate_series(1, 10000) i",
    )
    .bind(id)
    .execute(&mut rows.connection().await)
    .await
    .unwrap();
    let mut epoch = first.epoch;
    for attempt in 1..=3 {
        let nacked = rows.store.nack_event(&nack(epoch, log[0].0, attempt)).await.unwrap();
        let Nacked::Done { epoch: now, attempt: counted, parked: false, .. } = nacked else {
            panic!("{nacked:?}")
        };
        assert_eq!(counted, attempt);
        epoch = now;
    }
    let events = [(
        2_000_000,
        sqlx::query_scalar("select uid from stepwell.parked_event limit 1")
            .fetch_one(&mut rows.connection().await)
            .await
            .unwrap(),
    )];
    assert_eq!(rows.store.follow_parked(id, 0, epoch, &events).await.unwrap(), None);
    assert_eq!(rows.store.replay_parked("s", &[], true).await.unwrap(), Some(10_000));
    let nacked = rows.store.nack_event(&nack(epoch, log[0].0, 4)).await.unwrap();
    assert!(matches!(nacked, Nacked::Done { parked: true, .. }), "{nacked:?}");
}

#[tokio::test]
async fn of_two_who_apply_at_once_one_makes_a_subscription_and_the_other_finds_it() {
    let rows = Rows::new().await;
    let all = [new(2, true)];
    let (first, second) = tokio::join!(
        rows.store.apply_subscriptions(&all, false),
        rows.store.apply_subscriptions(&all, true)
    );
    let mut outcomes = Vec::new();
    for applied in [first.unwrap(), second.unwrap()] {
        let Applied::Done(of, pruned) = applied else { panic!("{applied:?}") };
        assert_eq!(pruned, [""; 0]);
        outcomes.extend(of);
    }
    outcomes.sort_unstable_by_key(|outcome| *outcome != Outcome::Created);
    assert_eq!(outcomes, [Outcome::Created, Outcome::Unchanged]);
}

#[tokio::test]
async fn a_declared_subscription_that_changes_keeps_its_places_and_loses_its_reader() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    rows.create_many(&definition, 10).await;
    let apply = async |new: NewSubscription| rows.store.apply_subscriptions(&[new], false).await;
    let changed = |applied| assert_eq!(applied, Applied::Done(vec![Outcome::Changed], Vec::new()));
    apply(new(1, true)).await.unwrap();
    let stored = rows.store.subscription("s").await.unwrap().unwrap();
    let first = take(&rows, &taker(stored.id, "a", 1), 1).await[0];
    rows.store.ack_events("s", 0, first.epoch, 3, &[]).await.unwrap();
    let filter = EventFilter { names: vec!["task.*".into()], ..EventFilter::default() };
    changed(apply(NewSubscription { filter: filter.clone(), ..new(1, true) }).await.unwrap());
    let acked = rows.store.ack_events("s", 0, first.epoch, 5, &[]).await.unwrap();
    assert!(matches!(acked, Acked::Fenced(_)), "{acked:?}");
    let again = take(&rows, &taker(stored.id, "b", 2), 1).await[0];
    assert_eq!(again.place, 3);
    let now = rows.store.subscription("s").await.unwrap().unwrap();
    assert_eq!((now.filter, now.revision), (filter, stored.revision + 1));
    // More partitions: all go on where the one was, unless something is parked.
    changed(apply(new(3, true)).await.unwrap());
    let places = async || {
        let of = rows.store.partitions(stored.id).await.unwrap().into_iter();
        of.map(|of| (of.no, of.place)).collect::<Vec<_>>()
    };
    assert_eq!(places().await, [(0, 3), (1, 3), (2, 3)]);
    let taken = take(&rows, &taker(stored.id, "c", 3), 3).await;
    rows.store.ack_events("s", 2, taken[2].epoch, 7, &[]).await.unwrap();
    changed(apply(new(2, true)).await.unwrap());
    assert_eq!(places().await, [(0, 3), (1, 3)], "the one furthest behind counts");
    let taken = take(&rows, &taker(stored.id, "d", 4), 2).await;
    let position = positions(&rows).await[4].0;
    for attempt in [1, 2] {
        let epoch = if attempt == 1 {
            taken[0].epoch
        } else {
            rows.store.partitions(stored.id).await.unwrap()[0].epoch
        };
        rows.store.nack_event(&nack(epoch, position, attempt)).await.unwrap();
    }
    assert_eq!(apply(new(1, true)).await.unwrap(), Applied::Parked(0));
    assert_eq!(places().await.len(), 2, "nothing was changed");
}

#[tokio::test]
async fn declared_subscriptions_are_applied_all_or_none_and_what_others_made_is_not_theirs() {
    let rows = Rows::new().await;
    made(&rows, &new(1, true)).await;
    let named = |name: &str| NewSubscription { name: name.into(), ..new(1, true) };
    let applied = rows.store.apply_subscriptions(&[named("a"), named("s")], true).await.unwrap();
    assert_eq!(applied, Applied::Other(1));
    assert!(rows.store.subscription("a").await.unwrap().is_none());
    let of_one = NewSubscription { namespace: "n".into(), definition: "d".into(), ..named("a") };
    rows.store.apply_subscriptions(&[of_one, named("b")], false).await.unwrap();
    let applied = rows.store.apply_subscriptions(&[named("b"), named("a")], false).await.unwrap();
    assert_eq!(applied, Applied::Other(1), "it is of a definition");
    let applied = rows.store.apply_subscriptions(&[], true).await.unwrap();
    let pruned = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(applied, Applied::Done(Vec::new(), pruned), "what was made otherwise stays");
    assert!(rows.store.subscription("s").await.unwrap().is_some());
}

fn rule(n: i32) -> AlertRule {
    AlertRule { n, window: Duration::from_secs(60) }
}

/// Counts an event of this second; how many changes that made.
async fn count(rows: &Rows, subscription: i32, position: i64, second: i64) -> Option<i32> {
    let at = DateTime::from_timestamp(1_000_000 + second, 0).unwrap();
    let of = CountedEvent { subscription, namespace: "n", definition: "d", position, at };
    rows.store.count_alert(&of, rule(3)).await.unwrap()
}

/// What is to be told of: seconds, and whether it fires.
async fn changes(rows: &Rows, subscription: i32) -> Vec<(i64, bool)> {
    let of = rows.store.alert_changes(subscription, 1_000).await.unwrap().into_iter();
    of.map(|change| (change.at.timestamp() - 1_000_000, change.position > 0)).collect()
}

#[tokio::test]
async fn an_alert_slides_over_the_time_of_events_and_counts_each_once() {
    let rows = Rows::new().await;
    for (position, second, made) in [
        (1, 0, 0),
        (2, 40, 0),
        // The first is not within the last minute any more.
        (3, 60, 0),
        (4, 99, 1),
        (4, 99, 0),
        (2, 99, 0),
        // Two were left from 100 on; with this one there are three again.
        (5, 119, 2),
        (6, 170, 1),
        (7, 178, 1),
        (8, 237, 1),
        (9, 400, 0),
    ] {
        assert_eq!(count(&rows, 1, position, second).await, Some(made), "{position}");
    }
    let all = [(99, true), (100, false), (119, true), (120, false), (178, true), (179, false)];
    assert_eq!(changes(&rows, 1).await, all);
    assert_eq!(changes(&rows, 2).await, []);
    for change in rows.store.alert_changes(1, 1_000).await.unwrap() {
        rows.store.tell_alert(1, &change).await.unwrap();
    }
    assert_eq!(changes(&rows, 1).await, []);
    // While too much is to be told of nothing is counted.
    let full = "insert into stepwell.alert_change select 1, 'n', 'x', i, now(), 0 from generate_series(1, 1000) i";
    rows.connection().await.execute(full).await.unwrap();
    assert_eq!(count(&rows, 1, 10, 401).await, None);
    rows.connection().await.execute("delete from stepwell.alert_change").await.unwrap();
    assert_eq!(count(&rows, 1, 10, 401).await, Some(0));
}

#[tokio::test]
async fn an_alert_is_resolved_only_when_all_events_up_to_then_are_counted() {
    let rows = Rows::new().await;
    let id = made(&rows, &new(1, true)).await;
    for position in 1..=3 {
        count(&rows, id, position, position).await;
    }
    assert_eq!(changes(&rows, id).await, [(3, true)]);
    // The events of the log are later, but one of them is given the time before it is over.
    let first = positions(&rows).await[0].0;
    sqlx::query("update stepwell.event set at = to_timestamp(1000060) where position = $1")
        .bind(first)
        .execute(&mut rows.connection().await)
        .await
        .unwrap();
    let wait = rows.store.resolve_alerts(id, rule(3)).await.unwrap();
    assert_eq!(wait, Some(Duration::from_secs(1)), "it is due, and not all is counted");
    sqlx::query("update stepwell.subscription_partition set place = $1")
        .bind(first)
        .execute(&mut rows.connection().await)
        .await
        .unwrap();
    assert_eq!(rows.store.resolve_alerts(id, rule(3)).await.unwrap(), None);
    assert_eq!(changes(&rows, id).await, [(3, true), (61, false)]);
    assert_eq!(rows.store.resolve_alerts(id, rule(3)).await.unwrap(), None);
    assert_eq!(changes(&rows, id).await.len(), 2);
    rows.store.delete_subscription("s").await.unwrap();
    assert_eq!(changes(&rows, id).await, []);
}
