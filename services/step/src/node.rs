//! The node ids of this process. Leases are given in the name of the current one. It lives as long
//! as it is extended in the database; a node that was declared dead, or lost the answer of a verb,
//! goes on under a new id, and walks what the old one left.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use stepwell_store::{Error, Store};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, mpsc};

/// Ids given up and not walked yet; more and the database is asked for no new one.
const IDS_LEFT_MAX: usize = 64;

/// Who this process is in the database.
pub(crate) struct Node {
    current: Arc<RwLock<i32>>,
    /// The current one, and those whose walk is not over.
    ids: Mutex<Vec<i32>>,
    /// An id that must not be used again.
    doubted: AtomicI32,
    renewing: tokio::sync::Mutex<()>,
    left: mpsc::Sender<i32>,
    lease: Duration,
    /// Rings when the current id must not be used again.
    pub(crate) doubt: Arc<Notify>,
}

/// The current id, which stays it as long as this is held: for a verb, until what it leased is held
/// by its sessions.
pub(crate) struct Acting(OwnedRwLockReadGuard<i32>);

impl Acting {
    pub(crate) fn id(&self) -> i32 {
        *self.0
    }
}

impl Node {
    /// Registers this process. Ids that are given up arrive at the receiver, to be walked.
    pub(crate) async fn register(
        store: &Store,
        lease: Duration,
    ) -> Result<(Self, mpsc::Receiver<i32>), Error> {
        let id = store.register_node(lease).await?;
        let (left, walk) = mpsc::channel(IDS_LEFT_MAX);
        let node = Self {
            current: Arc::new(RwLock::new(id)),
            ids: Mutex::new(vec![id]),
            doubted: AtomicI32::new(0),
            renewing: tokio::sync::Mutex::new(()),
            left,
            lease,
            doubt: Arc::default(),
        };
        Ok((node, walk))
    }

    /// The id to act under; a new one if the last must not be used again.
    pub(crate) async fn act(&self, store: &Store) -> Result<Acting, Error> {
        loop {
            let acting = Acting(Arc::clone(&self.current).read_owned().await);
            if self.doubted.load(Ordering::Acquire) != acting.id() {
                return Ok(acting);
            }
            let old = acting.id();
            drop(acting);
            self.renew(store, old).await?;
        }
    }

    /// After this error of a verb, is its node id of use? If it is retired, no. If the answer was
    /// lost, no: leases may have been given that nobody knows of, and only the walk over a retired
    /// id is sure to find them all.
    pub(crate) fn judge(&self, acting: i32, error: &Error) {
        if error.is_lost() || error.is_retired() {
            self.give_up(acting);
        }
    }

    /// This id must not be used again.
    pub(crate) fn give_up(&self, id: i32) {
        self.doubted.store(id, Ordering::Release);
        self.doubt.notify_one();
    }

    /// How long it lives without being extended.
    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// The current id, and those whose walk is not over.
    pub(crate) fn ids(&self) -> Vec<i32> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The walk of an id that was given up is over.
    pub(crate) fn walked(&self, id: i32) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| *known != id);
    }

    /// Gives up `old`, if it is still the current id, and takes a new one. Waits until nobody acts
    /// under the old one any more: when it arrives to be walked, whatever was leased in its name and
    /// answered is held by its session.
    async fn renew(&self, store: &Store, old: i32) -> Result<(), Error> {
        let _one_at_a_time = self.renewing.lock().await;
        if *self.current.read().await != old {
            return Ok(());
        }
        let id = store.writer().await?.renew_node(old, self.lease).await?;
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        *self.current.write().await = id;
        tracing::warn!(old, new = id, "the node goes on under a new id");
        // The receiver lives as long as the process; if it is gone, so is the need.
        let _ = self.left.send(old).await;
        Ok(())
    }

    /// The process ends: others need not wait for its lease to be over.
    pub(crate) async fn retire(&self, store: &Store) -> Result<(), Error> {
        let acting = self.act(store).await?;
        store.writer().await?.retire_node(acting.id()).await
    }
}
