//! The loop that keeps what the streams of this process read: one statement for all of them extends it, and
//! says what became of it. While nobody reads there is none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use stepwell_serve::Ticker;
use stepwell_store::{Error, Held, Holding, Store};
use tokio::{sync::Notify, time::Instant};

use super::partition::Partition;

/// Partitions that one statement extends.
const EXTENDED_MAX: usize = 1_000;
/// Between two looks: what was acknowledged meanwhile is seen by one of them.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// A stream of a durable subscription, as the keeper and the stream itself see it.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) subscription: i32,
    pub(crate) name: String,
    pub(crate) reader: String,
    pub(crate) holder: i64,
    partitions: Mutex<Vec<Partition>>,
    ended: Mutex<Option<Refusal>>,
    /// Rings after each look.
    pub(crate) looked: Notify,
}

impl Stream {
    /// The partitions it reads.
    pub(crate) fn partitions(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is over, if it is.
    pub(crate) fn ended(&self) -> Option<Refusal> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&self, refusal: Refusal) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }
}

/// The streams of this process.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    streams: Mutex<HashMap<i64, Arc<Stream>>>,
}

impl Keeper {
    fn streams(&self) -> MutexGuard<'_, HashMap<i64, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more stream, that reads nothing yet.
    pub(crate) fn join(
        self: &Arc<Self>,
        subscription: i32,
        name: String,
        reader: String,
    ) -> (Arc<Stream>, Seated) {
        // Drawn at random: no other process draws the same.
        let holder = uuid::Uuid::now_v7().as_u64_pair().1.cast_signed();
        let stream = Arc::new(Stream {
            subscription,
            name,
            reader,
            holder,
            partitions: Mutex::default(),
            ended: Mutex::default(),
            looked: Notify::new(),
        });
        self.streams().insert(holder, Arc::clone(&stream));
        (stream, Seated { keeper: Arc::clone(self), holder })
    }

    /// Looks until shutdown begins.
    pub(crate) async fn run(self: Arc<Self>, store: Store, mut ticker: Ticker) {
        while ticker.next().await {
            match self.look(&store).await {
                Ok(()) => ticker.ok(),
                Err(error) => ticker.back_off(&error),
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    async fn look(&self, store: &Store) -> Result<(), Error> {
        let streams: Vec<Arc<Stream>> = self.streams().values().cloned().collect();
        let mut held = Vec::new();
        for stream in &streams {
            held.extend(stream.partitions().iter().map(|partition| Holding {
                subscription: stream.subscription,
                no: partition.no,
                holder: stream.holder,
                reader: stream.reader.clone(),
                epoch: partition.epoch,
                done: partition.done(),
            }));
        }
        held.sort_by_key(|of| (of.subscription, of.no));
        for chunk in held.chunks_mut(EXTENDED_MAX) {
            let answers = store.extend_partitions(chunk).await?;
            let now = Instant::now();
            for (of, answer) in chunk.iter().zip(answers) {
                let Some(stream) = self.streams().get(&of.holder).cloned() else { continue };
                tell(&stream, of, answer, now);
            }
        }
        streams.iter().for_each(|stream| stream.looked.notify_one());
        Ok(())
    }
}

/// Tells a stream what became of one of its partitions.
fn tell(stream: &Stream, of: &Holding, answer: Held, now: Instant) {
    let mut partitions = stream.partitions();
    match answer {
        Held::Still(standing, again) => {
            let partition = partitions.iter_mut().find(|partition| partition.no == of.no);
            if let Some(partition) = partition {
                partition.stands(&standing, again, now);
            }
        }
        Held::Lost => partitions.retain(|partition| partition.no != of.no),
        Held::Replaced => {
            partitions.retain(|partition| partition.no != of.no);
            let what = format!("another stream of the reader {} has taken over", stream.reader);
            stream.end(
                Refusal::new(ErrorReason::SubscriptionReaderReplaced, what)
                    .with("name", &stream.name)
                    .with("reader_id", &stream.reader),
            );
        }
    }
}

/// The stream's entry with its keeper, as long as it lives.
#[derive(Debug)]
pub(crate) struct Seated {
    keeper: Arc<Keeper>,
    holder: i64,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.keeper.streams().remove(&self.holder);
    }
}
