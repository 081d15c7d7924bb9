//! Waiting for the end of tasks: one statement asks about all that are waited for, when the log has
//! grown and now and then by itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use stepwell_serve::Ticker;
use stepwell_store::Store;
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) const WAITING_MAX: usize = 10_000;
/// Looks follow each other no closer than the last one took, up to this: many who wait must not
/// keep the database busy with nothing else.
const REST_MAX: Duration = Duration::from_millis(100);

/// Who waits for which task.
#[derive(Default)]
pub(crate) struct Waiters {
    waiting: Mutex<Waited>,
    /// Rings when somebody begins to wait.
    pub(crate) begun: Arc<Notify>,
}

#[derive(Default)]
struct Waited {
    /// By task: the bell of all who wait for it, and how many they are.
    tasks: HashMap<Uuid, (Arc<Notify>, usize)>,
    /// How many wait in all.
    n: usize,
}

/// One who waits; no longer when dropped.
pub(crate) struct Waiting<'a> {
    waiters: &'a Waiters,
    uid: Uuid,
    bell: Arc<Notify>,
}

impl Waiters {
    /// Begins to wait: from now on the end of the task is not missed.
    pub(crate) fn begin(&self, uid: Uuid) -> Result<Waiting<'_>, Refusal> {
        let mut waiting = self.lock();
        if waiting.n >= WAITING_MAX {
            return Err(Refusal::new(ErrorReason::Overloaded, "too many wait for tasks")
                .retry_after(Duration::from_secs(1)));
        }
        waiting.n += 1;
        let (bell, n) = waiting.tasks.entry(uid).or_default();
        *n += 1;
        let bell = Arc::clone(bell);
        drop(waiting);
        self.begun.notify_one();
        Ok(Waiting { waiters: self, uid, bell })
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().n
    }

    fn uids(&self) -> Vec<Uuid> {
        self.lock().tasks.keys().copied().collect()
    }

    /// Wakes those who wait for these tasks.
    pub(crate) fn ended(&self, uids: &[Uuid]) {
        let waiting = self.lock();
        for (bell, _) in uids.iter().filter_map(|uid| waiting.tasks.get(uid)) {
            bell.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waited> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until shutdown begins.
    pub(crate) async fn run(&self, store: &Store, mut ticker: Ticker) {
        while ticker.next().await {
            let uids = self.uids();
            if uids.is_empty() {
                continue;
            }
            let began = Instant::now();
            match store.ended(&uids).await {
                Ok(ended) => {
                    ticker.ok();
                    self.ended(&ended);
                    tokio::time::sleep(began.elapsed().min(REST_MAX)).await;
                }
                Err(error) => ticker.back_off(&error),
            }
        }
    }
}

impl Waiting<'_> {
    /// Rings when the task has ended. To be made before its state is read.
    pub(crate) fn rings(&self) -> tokio::sync::futures::Notified<'_> {
        self.bell.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        waiting.n -= 1;
        if let Some((_, n)) = waiting.tasks.get_mut(&self.uid) {
            *n -= 1;
            if *n == 0 {
                waiting.tasks.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_wait_for_a_task_are_woken_and_forgotten() {
        let waiters = Waiters::default();
        let uid = Uuid::now_v7();
        let (one, other) = (waiters.begin(uid).unwrap(), waiters.begin(uid).unwrap());
        {
            let bells = (one.rings(), other.rings());
            waiters.ended(&[Uuid::now_v7(), uid]);
            tokio::join!(bells.0, bells.1);
        }
        drop(one);
        assert_eq!(waiters.uids(), [uid]);
        drop(other);
        assert!(waiters.uids().is_empty());
    }

    #[test]
    fn waiters_are_bounded() {
        let waiters = Waiters::default();
        let uid = Uuid::now_v7();
        let held: Vec<_> = (0..WAITING_MAX)
            .map(|i| waiters.begin(if i % 2 == 0 { uid } else { Uuid::now_v7() }).unwrap())
            .collect();
        for uid in [uid, Uuid::now_v7()] {
            let refused = waiters.begin(uid).map(|_| ()).unwrap_err();
            assert_eq!(refused.reason, ErrorReason::Overloaded);
        }
        drop(held);
        assert!(waiters.begin(uid).is_ok());
    }
}
