//! The node ids of this process. Leases are given in the name of the current one; a node that lost
//! the answer of a verb, or was declared dead, goes on under a new id, and what the old id holds
//! that no session knows of goes back.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicI32, Ordering},
};

use stepwell_store::{Error, Store};
use tokio::sync::mpsc;

/// Ids given up and not walked yet; more and the database is asked for no new one.
const IDS_LEFT_MAX: usize = 64;

/// Who this process is in the database.
pub(crate) struct Node {
    current: AtomicI32,
    all: Mutex<Vec<i32>>,
    renewing: tokio::sync::Mutex<()>,
    left: mpsc::Sender<i32>,
}

impl Node {
    /// Registers this process. Ids that are given up arrive at the receiver, to be walked.
    pub(crate) async fn register(store: &Store) -> Result<(Self, mpsc::Receiver<i32>), Error> {
        let id = store.register_node().await?;
        let (left, walk) = mpsc::channel(IDS_LEFT_MAX);
        let node = Self {
            current: AtomicI32::new(id),
            all: Mutex::new(vec![id]),
            renewing: tokio::sync::Mutex::new(()),
            left,
        };
        Ok((node, walk))
    }

    /// The id for new leases.
    pub(crate) fn current(&self) -> i32 {
        self.current.load(Ordering::Acquire)
    }

    /// Every id this process ever had.
    pub(crate) fn all(&self) -> Vec<i32> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives up `old`, if it is still the current id, and takes a new one.
    pub(crate) async fn renew(&self, store: &Store, old: i32) -> Result<(), Error> {
        let _one_at_a_time = self.renewing.lock().await;
        if self.current() != old {
            return Ok(());
        }
        let mut writer = store.writer().await?;
        writer.retire_node(old).await?;
        let id = store.register_node().await?;
        tracing::warn!(old, new = id, "the node goes on under a new id");
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.current.store(id, Ordering::Release);
        // The receiver lives as long as the process; if it is gone, so is the need.
        let _ = self.left.send(old).await;
        Ok(())
    }
}
