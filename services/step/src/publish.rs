//! What handlers publish while they run, to rows. One loop with a connection of its own, made when it is first
//! needed: while one call is in flight the next batch collects. Answers go out after the commit.

use std::{sync::Arc, time::Duration};

use stepwell_proto::{
    refusal::Refusal,
    v1::{ErrorReason, PublishAck},
};
use stepwell_store::{Error, Published, Store, Topic, Writer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    outbox::Outbox,
    settle::{lost, next},
};

const ITEMS_MAX: usize = 500;
const BYTES_MAX: usize = 4 << 20;
/// Publications that wait for the loop; a full queue stops the readers of the streams.
const QUEUE_MAX: usize = 1_000;

/// A publication, and where its answer goes.
struct Item {
    published: Published,
    outbox: Arc<Outbox>,
}

impl Item {
    fn bytes(&self) -> usize {
        self.published.events.iter().map(String::len).sum()
    }

    fn answer(&self, refusal: impl FnOnce(&str) -> Option<Refusal>) {
        let lease_id = self.published.lease.encode();
        let refusal = refusal(&lease_id).map(Into::into);
        self.outbox.published([PublishAck { lease_id, number: self.published.number, refusal }]);
    }
}

/// Where publications go.
#[derive(Clone)]
pub(crate) struct Publisher(mpsc::Sender<Item>);

/// The far end of the queue.
pub(crate) struct Line(mpsc::Receiver<Item>);

impl Publisher {
    pub(crate) fn new() -> (Self, Line) {
        let (queue, line) = mpsc::channel(QUEUE_MAX);
        (Self(queue), Line(line))
    }

    /// Waits for room in the queue. If nobody takes it any more the executor, which has no answer, says it
    /// again elsewhere.
    pub(crate) async fn push(&self, published: Published, outbox: Arc<Outbox>) {
        let _ = self.0.send(Item { published, outbox }).await;
    }
}

/// The loop.
pub(crate) struct Publishing {
    pub(crate) store: Store,
    pub(crate) line: Line,
}

impl Publishing {
    /// Runs until it is told to stop and the queue is empty.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut writer = None;
        while let Some(first) = next(&mut self.line.0, &stop).await {
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            while batch.len() < ITEMS_MAX && bytes < BYTES_MAX {
                let Ok(item) = self.line.0.try_recv() else { break };
                bytes += item.bytes();
                batch.push(item);
            }
            self.publish(&mut writer, &batch).await;
            self.store.bell().ring(Topic::Event);
        }
    }

    /// Calls the verb until its answer is known: what is published already is not published again. What the
    /// database refuses is found by asking for each alone.
    async fn publish(&self, writer: &mut Option<Writer>, batch: &[Item]) {
        match self.carry_out(writer, batch).await {
            Ok(durable) => {
                for (item, durable) in batch.iter().zip(durable) {
                    item.answer(|lease_id| (!durable).then(|| lost(lease_id)));
                }
            }
            Err(_) if batch.len() > 1 => {
                for one in batch.chunks(1) {
                    Box::pin(self.publish(writer, one)).await;
                }
            }
            Err(error) => batch.iter().for_each(|item| {
                item.answer(|_| {
                    tracing::error!(error = &error as &dyn std::error::Error, "events refused");
                    Some(Refusal::new(ErrorReason::Internal, "the database refused the events"))
                });
            }),
        }
    }

    /// Which are durable; the error is about the data of some.
    async fn carry_out(
        &self,
        writer: &mut Option<Writer>,
        batch: &[Item],
    ) -> Result<Vec<bool>, Error> {
        let published: Vec<Published> = batch.iter().map(|item| item.published.clone()).collect();
        let mut wait = Duration::from_millis(10);
        let mut failing = false;
        loop {
            let error = match self.once(writer, &published).await {
                Err(error) if !error.is_data() => error,
                answer => return answer,
            };
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    publications = batch.len(),
                    "events cannot be published; trying again"
                );
            }
            if !error.is_undone() {
                *writer = None;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }

    async fn once(
        &self,
        writer: &mut Option<Writer>,
        published: &[Published],
    ) -> Result<Vec<bool>, Error> {
        self.store.connected(writer).await?.publish(published).await
    }
}
