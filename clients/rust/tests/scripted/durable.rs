//! Readers of durable subscriptions: what is settled, what is dropped, and what is opened again.

use std::time::Duration;

use stepwell_client::{DurableEvent, DurableReader, DurableStream, Refusal, v1::*};
use tonic::Status;

use crate::{
    fake::{Fake, Feed, within},
    feed::event,
};

fn events(positions: impl IntoIterator<Item = i64>) -> Vec<Event> {
    positions.into_iter().map(|position| event(position, "step.completed")).collect()
}

/// A stream that reads partition 0 under epoch 7.
async fn opened(fake: &Fake, reader: DurableReader) -> (DurableStream, Feed) {
    let opening = tokio::spawn(reader.open());
    let feed = fake.feed().await;
    feed.held(&[(0, 7)]).await;
    (within("the stream", opening).await.unwrap().unwrap(), feed)
}

async fn next(stream: &mut DurableStream) -> DurableEvent {
    within("an event", stream.next()).await.unwrap().unwrap()
}

fn start(feed: &Feed) -> &SubscriptionStart {
    match &feed.request.start {
        Some(subscribe_request::Start::Subscription(start)) => start,
        other => panic!("{other:?}"),
    }
}

async fn acked(fake: &Fake) -> (i32, i64, i64) {
    let call = fake.ack().await;
    let AckEventsRequest { partition, epoch, up_to_position: position, .. } = call.request;
    call.answer(Ok(AckEventsResponse { position }));
    (partition, epoch, position)
}

#[tokio::test]
async fn what_is_done_is_told_in_the_background_one_ack_for_as_much_as_there_is() {
    let fake = Fake::start().await;
    let reader = fake.client().durable("s", "r").partitions([0, 3]).partitions_max(2);
    let (mut stream, feed) = opened(&fake, reader.metadata_only()).await;
    let asked = start(&feed);
    assert_eq!((asked.name.as_str(), asked.reader_id.as_str()), ("s", "r"));
    assert_eq!((asked.partitions.as_slice(), asked.partitions_max), (&[0, 3][..], 2));
    assert!(feed.request.metadata_only && feed.request.filter.is_none());
    assert_eq!(stream.partitions(), [0]);
    feed.deliver((0, 7), 1, &events(1..=4)).await;
    next(&mut stream).await.ack();
    let first = fake.ack().await;
    assert_eq!((first.request.name.as_str(), first.request.up_to_position), ("s", 1));
    let second = next(&mut stream).await;
    assert_eq!((second.event().position, second.attempt(), second.partition()), (2, 1, 0));
    // The third is done before the second, and both while the first ack is on its way.
    next(&mut stream).await.ack();
    second.ack();
    first.answer(Ok(AckEventsResponse { position: 1 }));
    assert_eq!(acked(&fake).await, (0, 7, 3));
    next(&mut stream).await.ack();
    let (_, told) = tokio::join!(stream.close(), acked(&fake));
    assert_eq!(told, (0, 7, 4));
    assert!(fake.nothing_is_settled().await);
}

#[tokio::test]
async fn a_nack_follows_what_was_done_and_the_partition_waits_for_what_comes_again() {
    let fake = Fake::start().await;
    let (mut stream, feed) = opened(&fake, fake.client().durable("s", "r")).await;
    feed.held(&[(0, 7), (1, 7)]).await;
    feed.deliver((0, 7), 3, &events([2, 4, 6])).await;
    let done = next(&mut stream).await;
    let fails = next(&mut stream).await;
    done.ack();
    fails.nack("x".repeat(2000), Duration::from_secs(2));
    assert_eq!(acked(&fake).await, (0, 7, 2));
    let nack = fake.nack().await;
    let NackEventsRequest { epoch, position, attempt, reason, retry_after, .. } = &nack.request;
    assert_eq!((*epoch, *position, *attempt, reason.len()), (7, 4, 3, 1024));
    assert_eq!(retry_after.as_ref().unwrap().seconds, 2);
    // Other partitions go on.
    feed.deliver((1, 7), 1, &events([5])).await;
    let other = next(&mut stream).await;
    assert_eq!((other.partition(), other.event().position), (1, 5));
    other.ack();
    assert_eq!(acked(&fake).await, (1, 7, 5), "their acks do not wait for its nack");
    nack.answer(Ok(NackEventsResponse { epoch: 8, failed_attempts: 3, ..Default::default() }));
    feed.deliver((0, 7), 1, &events([8])).await;
    feed.deliver((0, 8), 4, &events([4, 6])).await;
    let again = next(&mut stream).await;
    assert_eq!((again.event().position, again.attempt()), (4, 4), "nothing of the old epoch");
    again.ack();
    assert_eq!(acked(&fake).await, (0, 8, 4));
}

#[tokio::test]
async fn a_stream_that_ends_is_opened_again_once_what_is_done_is_told() {
    let fake = Fake::start().await;
    let (mut stream, feed) = opened(&fake, fake.client().durable("s", "r")).await;
    feed.deliver((0, 7), 1, &events(1..=3)).await;
    let (first, second) = (next(&mut stream).await, next(&mut stream).await);
    let _left = next(&mut stream).await;
    first.ack();
    feed.end().await;
    let (feed, third) = tokio::join!(
        async {
            assert_eq!(acked(&fake).await, (0, 7, 1));
            let feed = fake.feed().await;
            assert_eq!(start(&feed).reader_id, "r");
            feed.held(&[(0, 9)]).await;
            feed.deliver((0, 9), 1, &events(2..=3)).await;
            feed
        },
        next(&mut stream)
    );
    assert_eq!(third.event().position, 2, "it was not acknowledged before");
    second.ack();
    third.ack();
    assert_eq!(acked(&fake).await, (0, 9, 2), "an ack of the old epoch would be refused");
    let cut = next(&mut stream).await;
    assert_eq!(cut.event().position, 3);
    feed.cut(Status::unavailable("bye")).await;
    let (_feed, again) = tokio::join!(
        async {
            let feed = fake.feed().await;
            feed.held(&[(0, 11)]).await;
            feed.deliver((0, 11), 1, &events([3])).await;
            feed
        },
        next(&mut stream)
    );
    assert_eq!(again.event().position, 3);
}

#[tokio::test]
async fn what_was_delivered_under_an_epoch_that_is_over_is_dropped() {
    let fake = Fake::start().await;
    let (mut stream, feed) = opened(&fake, fake.client().durable("s", "r")).await;
    feed.deliver((0, 7), 1, &events(1..=3)).await;
    next(&mut stream).await.ack();
    let call = fake.ack().await;
    let metadata = [("name", "s"), ("partition", "0"), ("epoch", "7")];
    let old = metadata.into_iter().fold(
        Refusal::new(ErrorReason::SubscriptionEpochOld, "another reader has it"),
        |refusal, (key, value)| refusal.with(key, value),
    );
    call.answer(Err(old.into()));
    feed.held(&[]).await;
    feed.held(&[(0, 8)]).await;
    feed.deliver((0, 8), 1, &events([9])).await;
    let positions = async {
        let mut positions = Vec::new();
        while positions.last() != Some(&9) {
            let event = next(&mut stream).await;
            positions.push(event.event().position);
        }
        positions
    };
    let positions = positions.await;
    // One of the old epoch may have been handed out before the refusal came.
    assert!(positions == [9] || positions == [2, 9] || positions == [2, 3, 9], "{positions:?}");
}

#[tokio::test]
async fn acks_are_repeated_until_the_service_answers() {
    let fake = Fake::start().await;
    let limits = stepwell_client::Limits { attempts: 1, ..crate::fake::patient() };
    let client = fake.client().with_limits(limits);
    let (mut stream, feed) = opened(&fake, client.durable("s", "r")).await;
    feed.deliver((0, 7), 1, &events(1..=2)).await;
    next(&mut stream).await.ack();
    fake.ack().await.answer(Err(Status::unavailable("busy")));
    next(&mut stream).await.nack("no", None);
    let mut last = (0, 0, 0);
    while last.2 != 1 {
        last = acked(&fake).await;
    }
    fake.nack().await.answer(Err(Status::unavailable("busy")));
    assert_eq!(acked(&fake).await, (0, 7, 1), "safe to repeat");
    fake.nack().await.answer(Ok(NackEventsResponse { epoch: 8, ..Default::default() }));
}

#[tokio::test]
async fn no_more_is_handed_out_than_may_be_in_flight() {
    let fake = Fake::start().await;
    let (mut stream, feed) = opened(&fake, fake.client().durable("s", "r").in_flight(2)).await;
    feed.deliver((0, 7), 1, &events(1..=2)).await;
    feed.deliver((0, 7), 1, &events(3..=4)).await;
    let (first, second) = (next(&mut stream).await, next(&mut stream).await);
    assert!(futures::poll!(Box::pin(stream.next())).is_pending(), "two are in hand");
    drop(first);
    second.ack();
    assert_eq!(next(&mut stream).await.event().position, 3);
    assert!(fake.nothing_is_settled().await, "the first one was never settled");
}

#[tokio::test]
async fn a_subscription_that_is_gone_or_a_reader_that_was_replaced_ends_the_stream() {
    let fake = Fake::start().await;
    let opening = tokio::spawn(fake.client().durable("s", "r").open());
    let gone = Refusal::new(ErrorReason::SubscriptionNotFound, "no").with("name", "s");
    fake.feed().await.cut(gone.clone()).await;
    let error = within("the error", opening).await.unwrap().err().unwrap();
    assert_eq!(error.reason(), Some(ErrorReason::SubscriptionNotFound));
    let replaced = Refusal::new(ErrorReason::SubscriptionReaderReplaced, "another");
    let replaced = replaced.with("name", "s").with("reader_id", "r");
    for refusal in [gone, replaced] {
        let (mut stream, feed) = opened(&fake, fake.client().durable("s", "r")).await;
        let reason = refusal.reason;
        feed.cut(refusal).await;
        let error = within("the error", stream.next()).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(reason));
        assert!(stream.next().await.is_none());
    }
    assert!(fake.is_idle().await);
}
