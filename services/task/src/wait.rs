//! Waiting for the end of tasks: one statement asks about all that are waited for, when the log has
//! grown and now and then by itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use stepwell_serve::Ticker;
use stepwell_store::Store;
use tokio::sync::Notify;
use uuid::Uuid;

const WAITING_MAX: usize = 10_000;

/// Who waits for which task.
#[derive(Default)]
pub(crate) struct Waiters {
    /// By task: the bell of all who wait for it, and how many they are.
    waiting: Mutex<HashMap<Uuid, (Arc<Notify>, usize)>>,
    /// Rings when somebody begins to wait.
    pub(crate) begun: Arc<Notify>,
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
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING_MAX && !waiting.contains_key(&uid) {
            return Err(Refusal::new(ErrorReason::Overloaded, "too many tasks are waited for")
                .retry_after(Duration::from_secs(1)));
        }
        let (bell, n) = waiting.entry(uid).or_default();
        *n += 1;
        let bell = Arc::clone(bell);
        drop(waiting);
        self.begun.notify_one();
        Ok(Waiting { waiters: self, uid, bell })
    }

    fn uids(&self) -> Vec<Uuid> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.keys().copied().collect()
    }

    /// Wakes those who wait for these tasks.
    pub(crate) fn ended(&self, uids: &[Uuid]) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (bell, _) in uids.iter().filter_map(|uid| waiting.get(uid)) {
            bell.notify_waiters();
        }
    }

    /// Runs until shutdown begins.
    pub(crate) async fn run(&self, store: &Store, mut ticker: Ticker) {
        while ticker.next().await {
            let uids = self.uids();
            if uids.is_empty() {
                continue;
            }
            match store.ended(&uids).await {
                Ok(ended) => {
                    ticker.ok();
                    self.ended(&ended);
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
        let mut waiting = self.waiters.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, n)) = waiting.get_mut(&self.uid) {
            *n -= 1;
            if *n == 0 {
                waiting.remove(&self.uid);
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
        let bells = (one.rings(), other.rings());
        waiters.ended(&[Uuid::now_v7(), uid]);
        tokio::join!(bells.0, bells.1);
        drop(one);
        assert_eq!(waiters.uids(), [uid]);
        drop(other);
        assert!(waiters.uids().is_empty());
    }

    #[test]
    fn waiters_are_bounded() {
        let waiters = Waiters::default();
        let held: Vec<_> = (0..WAITING_MAX).map(|_| waiters.begin(Uuid::now_v7()).unwrap()).collect();
        let refused = waiters.begin(Uuid::now_v7()).map(|_| ()).unwrap_err();
        assert_eq!(refused.reason, ErrorReason::Overloaded);
        drop(held);
        assert!(waiters.begin(Uuid::now_v7()).is_ok());
    }
}
