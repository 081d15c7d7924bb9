//! Feeds: starting, being cut, falling silent, being refused.

use std::time::Duration;

use stepwell_client::{Client, Error, EventStream, Limits, Refusal, Start, Subscription, v1::*};
use tonic::Status;

use crate::fake::{Fake, Feed, patient, within};

pub fn event(position: i64, name: &str) -> Event {
    Event { position, name: name.into(), task_id: "task".into(), ..Default::default() }
}

async fn opened(fake: &Fake, client: Client) -> (EventStream, Feed) {
    let opening = tokio::spawn(async move { client.subscribe(Subscription::new()).await });
    let feed = fake.feed().await;
    feed.checkpoint("start").await;
    (within("the feed", opening).await.unwrap().unwrap(), feed)
}

async fn positions(stream: &mut EventStream) -> (Vec<i64>, Option<String>) {
    let delivery = within("a delivery", stream.next()).await.unwrap().unwrap();
    (delivery.events.iter().map(|e| e.position).collect(), delivery.cursor)
}

#[tokio::test]
async fn a_feed_asks_for_what_was_wanted_and_opens_with_its_first_checkpoint() {
    let fake = Fake::start().await;
    let client = fake.client();
    let wanted = Subscription::new()
        .names(["task.*", "step.failed"])
        .tasks(["t"])
        .definitions(["d"])
        .namespaces(["n"])
        .from(Start::Earliest);
    let opening = tokio::spawn(async move { client.subscribe(wanted).await });
    let feed = fake.feed().await;
    let filter = feed.request.filter.clone().unwrap();
    assert_eq!(filter.names, ["task.*", "step.failed"]);
    assert_eq!((filter.task_ids, filter.definition_names), (vec!["t".into()], vec!["d".into()]));
    assert_eq!(filter.namespaces, ["n"]);
    assert!(matches!(feed.request.start, Some(subscribe_request::Start::Earliest(_))));
    assert!(!opening.is_finished());
    feed.checkpoint("c1").await;
    let mut stream = within("the feed", opening).await.unwrap().unwrap();
    assert_eq!(stream.cursor(), "c1");
    feed.checkpoint("c2").await;
    assert_eq!(positions(&mut stream).await, (vec![], Some("c2".into())));
    feed.events("c3", &[event(1, "task.completed"), event(4, "task.failed")]).await;
    assert_eq!(positions(&mut stream).await, (vec![1, 4], Some("c3".into())));
    assert_eq!(stream.cursor(), "c3");
}

#[tokio::test]
async fn a_feed_cut_in_the_middle_of_a_commit_goes_on_without_a_repeat_or_a_gap() {
    let fake = Fake::start().await;
    let (mut stream, feed) = opened(&fake, fake.client()).await;
    let commit: Vec<Event> = (1..=6).map(|p| event(p, "step.completed")).collect();
    feed.events("", &commit[..2]).await;
    feed.events("", &commit[2..4]).await;
    assert_eq!(positions(&mut stream).await, (vec![1, 2], None));
    assert_eq!(positions(&mut stream).await, (vec![3, 4], None));
    feed.cut(Status::unavailable("bye")).await;

    let (feed, next) = tokio::join!(
        async {
            let feed = fake.feed().await;
            assert_eq!(feed.after(), Some("start"));
            feed.checkpoint("start").await;
            feed.events("", &commit[..3]).await;
            feed.events("", &commit[3..5]).await;
            feed.events("end", &commit[5..]).await;
            feed
        },
        positions(&mut stream)
    );
    assert_eq!(next, (vec![5], None));
    assert_eq!(positions(&mut stream).await, (vec![6], Some("end".into())));
    drop(feed);
    let (feed, next) = tokio::join!(
        async {
            let feed = fake.feed().await;
            assert_eq!(feed.after(), Some("end"));
            feed.checkpoint("end").await;
            feed.events("more", &[event(7, "task.completed")]).await;
            feed
        },
        positions(&mut stream)
    );
    assert_eq!(next, (vec![7], Some("more".into())));
    drop(feed);
}

#[tokio::test]
async fn a_silent_feed_is_opened_again() {
    let fake = Fake::start().await;
    let limits = Limits { stream_silence: Duration::from_millis(500), ..patient() };
    let (mut stream, _silent) = opened(&fake, fake.client().with_limits(limits)).await;
    let (_feed, next) = tokio::join!(
        async {
            let feed = fake.feed().await;
            assert_eq!(feed.after(), Some("start"));
            feed.checkpoint("start").await;
            feed.events("c1", &[event(1, "task.completed")]).await;
            feed
        },
        positions(&mut stream)
    );
    assert_eq!(next.0, [1]);
}

#[tokio::test]
async fn a_feed_that_does_not_begin_with_a_checkpoint_is_opened_again() {
    let fake = Fake::start().await;
    let client = fake.client();
    let opening = tokio::spawn(async move { client.subscribe(Subscription::new()).await });
    let strange = fake.feed().await;
    strange.events("c9", &[event(1, "task.completed")]).await;
    fake.feed().await.checkpoint("c1").await;
    assert_eq!(within("the feed", opening).await.unwrap().unwrap().cursor(), "c1");
}

#[tokio::test]
async fn a_refused_cursor_or_name_is_an_error_at_once() {
    let fake = Fake::start().await;
    for reason in [
        ErrorReason::CursorMalformed,
        ErrorReason::CursorAhead,
        ErrorReason::CursorExpired,
        ErrorReason::EventUnknown,
    ] {
        let client = fake.client();
        let wanted = Subscription::new().from(Start::After("strange".into()));
        let opening = tokio::spawn(async move { client.subscribe(wanted).await });
        let feed = fake.feed().await;
        assert_eq!(feed.after(), Some("strange"));
        feed.cut(Refusal::new(reason, "no")).await;
        let error = within("the error", opening).await.unwrap().err().unwrap();
        assert_eq!(error.reason(), Some(reason));
    }
    assert!(fake.is_idle().await);
}

#[tokio::test]
async fn a_feed_that_cannot_be_resumed_says_so_and_ends() {
    let fake = Fake::start().await;
    let (mut stream, feed) = opened(&fake, fake.client()).await;
    feed.cut(Status::unavailable("bye")).await;
    let (_, error) = tokio::join!(
        async {
            fake.feed().await.cut(Refusal::new(ErrorReason::CursorAhead, "another log")).await;
        },
        within("the error", stream.next())
    );
    assert_eq!(error.unwrap().unwrap_err().reason(), Some(ErrorReason::CursorAhead));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn subscribing_to_nobody_is_given_up() {
    let fake = Fake::start().await;
    let limits = Limits { call_timeout: Duration::from_millis(100), ..patient() };
    let client = fake.client().with_limits(limits);
    drop(fake);
    let error = within("the error", client.subscribe(Subscription::new())).await.err().unwrap();
    assert!(matches!(error, Error::Status(_)), "{error:?}");
}

#[tokio::test]
async fn subscribing_to_a_service_that_says_nothing_is_given_up() {
    let fake = Fake::start().await;
    let limits = Limits { call_timeout: Duration::from_millis(100), ..patient() };
    let client = fake.client().with_limits(limits);
    let error = within("the error", client.subscribe(Subscription::new())).await.err().unwrap();
    assert!(matches!(error, Error::NoAnswer(_)), "{error:?}");
}
