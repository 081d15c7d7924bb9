//! Going down: one word that everybody hears, and the fault that made it necessary, if one did.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;

/// Whether the service goes down. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    failed: Arc<AtomicBool>,
}

impl Shutdown {
    /// Begins it. Repeating is harmless.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Begins it because something broke: the exit code will say so.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.begin();
    }

    /// True once it has begun.
    pub fn begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until it begins.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}
