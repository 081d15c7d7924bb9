//! When a loop looks again: when its bell rings, when something is due, and now and then by itself,
//! so that a lost bell costs latency only. The one place where loops wait.

use std::{error::Error, ops::Range, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::{sync::Notify, time::Instant};

use crate::Shutdown;

const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);

/// The rhythm of one loop.
#[derive(Debug)]
pub struct Ticker {
    bell: Arc<Notify>,
    period: Range<Duration>,
    shutdown: Shutdown,
    again: bool,
    at: Option<Instant>,
    backing_off: Option<Duration>,
}

impl Ticker {
    pub(crate) fn new(bell: Arc<Notify>, period: Range<Duration>, shutdown: Shutdown) -> Self {
        // The first look comes at once.
        Self { bell, period, shutdown, again: true, at: None, backing_off: None }
    }

    /// Waits for the next look. False: the service goes down, and the loop ends. A bell that rang
    /// while the loop was at work is kept.
    pub async fn next(&mut self) -> bool {
        if self.shutdown.begun() {
            return false;
        }
        if let Some(wait) = self.backing_off {
            self.again = false;
            tokio::select! {
                biased;
                () = self.shutdown.wait() => return false,
                () = tokio::time::sleep(wait) => return true,
            }
        }
        if std::mem::take(&mut self.again) {
            return true;
        }
        let period = rand::rng().random_range(self.period.clone());
        let by_itself = Instant::now() + period;
        let until = self.at.take().map_or(by_itself, |at| at.min(by_itself));
        tokio::select! {
            biased;
            () = self.shutdown.wait() => false,
            () = self.bell.notified() => true,
            () = tokio::time::sleep_until(until) => true,
        }
    }

    /// There is more to do: the next look comes at once.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// The next look comes then at the latest.
    pub fn at(&mut self, when: Instant) {
        self.at = Some(self.at.map_or(when, |at| at.min(when)));
    }

    /// The look failed: the next ones come later and later. Logged once per row of failures.
    pub fn back_off(&mut self, error: &(dyn Error + 'static)) {
        let wait = match self.backing_off {
            None => {
                tracing::warn!(error, "failed; trying again");
                BACK_OFF_FIRST
            }
            Some(wait) => (wait * 2).min(BACK_OFF_MAX),
        };
        self.backing_off = Some(wait.mul_f64(rand::rng().random_range(0.8..1.0)));
    }

    /// The look succeeded.
    pub fn ok(&mut self) {
        if self.backing_off.take().is_some() {
            tracing::info!("works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn ticker(period: Duration) -> (Ticker, Arc<Notify>, Shutdown) {
        let (bell, shutdown) = (Arc::new(Notify::new()), Shutdown::default());
        let ticker = Ticker::new(Arc::clone(&bell), period..period * 2, shutdown.clone());
        (ticker, bell, shutdown)
    }

    #[tokio::test(start_paused = true)]
    async fn a_bell_that_rings_during_the_work_is_not_lost() {
        let (mut ticker, bell, _) = ticker(HOUR);
        let start = Instant::now();
        assert!(ticker.next().await);
        bell.notify_one();
        bell.notify_one();
        assert!(ticker.next().await);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(ticker.next().await);
        assert!(start.elapsed() >= HOUR, "two rings are one look");
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_when_something_is_due_and_ends_at_shutdown() {
        let (mut ticker, _, shutdown) = ticker(HOUR);
        let start = Instant::now();
        assert!(ticker.next().await);
        ticker.at(start + Duration::from_secs(5));
        assert!(ticker.next().await);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        ticker.again();
        assert!(ticker.next().await);
        shutdown.begin();
        assert!(!ticker.next().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bell_that_rings_together_with_the_shutdown_is_not_answered() {
        // Which of two comes first would be a matter of luck, so it is tried more than once.
        for _ in 0..64 {
            let (mut ticker, bell, shutdown) = ticker(HOUR);
            assert!(ticker.next().await);
            let waiting = tokio::spawn(async move { ticker.next().await });
            tokio::task::yield_now().await;
            bell.notify_one();
            shutdown.begin();
            assert!(!waiting.await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_spaced_out_and_bounded() {
        let (mut ticker, bell, _) = ticker(HOUR);
        assert!(ticker.next().await);
        let mut waits = Vec::new();
        for _ in 0..12 {
            ticker.back_off(&std::io::Error::other("away"));
            bell.notify_one();
            let before = Instant::now();
            assert!(ticker.next().await);
            waits.push(before.elapsed());
        }
        assert!(waits[0] <= BACK_OFF_FIRST && waits[11] > BACK_OFF_MAX / 2);
        // The clock of the tests steps by whole milliseconds.
        assert!(waits.iter().all(|w| *w <= BACK_OFF_MAX + Duration::from_millis(1)), "{waits:?}");
        ticker.ok();
        let before = Instant::now();
        assert!(ticker.next().await);
        assert_eq!(before.elapsed(), Duration::ZERO, "the bell that rang meanwhile was kept");
    }
}
