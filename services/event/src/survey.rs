//! The survey: now and then one look at the whole, and a count of what the log has had since. One
//! statement when nothing happened, and none on a step's way; it is done here because reading the log
//! is what this service is for.

use std::{sync::Arc, time::Instant};

use stepwell_serve::{SECONDS, Shutdown, Ticker};
use stepwell_store::{Error, Ready, Store, Topic};

use crate::metrics::Metrics;

/// The loop.
pub(crate) struct Surveying {
    store: Store,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// The log is counted up to here; none: nothing was looked at yet. Counting begins at the head.
    counted: Option<i64>,
    /// What was ready when the bell was rung, and how far the log had come; none: nothing was.
    rung: Option<Seen>,
    failing: bool,
}

/// The head of the log, and how many steps of each handler are ready.
type Seen = (i64, Vec<(String, String, i64)>);

impl Surveying {
    pub(crate) fn new(store: Store, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        Self { store, metrics, shutdown, counted: None, rung: None, failing: false }
    }

    /// Runs until shutdown begins. A survey that failed is not hurried after.
    pub(crate) async fn run(mut self, mut ticker: Ticker) {
        while ticker.next().await {
            let failed = match self.look().await {
                Ok(()) => false,
                Err(error) => {
                    if !self.failing {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "the survey failed");
                    }
                    true
                }
            };
            self.failing = failed;
        }
    }

    /// Rings for who tells of steps that nobody serves, as long as anything changes: what is ready waits on
    /// by the listener's own clock.
    fn ring(&mut self, head: i64, ready: &[Ready]) {
        let of = |r: &Ready| (r.namespace.clone(), r.handler.clone(), r.steps);
        let mut ready: Vec<_> = ready.iter().map(of).collect();
        ready.sort_unstable();
        let seen = (!ready.is_empty()).then_some((head, ready));
        if seen.is_some() && seen != self.rung {
            self.store.bell().ring(Topic::Unserved);
        }
        self.rung = seen;
    }

    async fn look(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        let survey = self.store.survey().await?;
        let head = survey.head;
        self.ring(head, &survey.ready);
        self.metrics.surveyed(survey, began, Instant::now());
        let mut place = self.counted.map_or(head, |counted| counted.min(head));
        while place < head && !self.shutdown.begun() {
            let (counts, last) = self.store.count_after(place, head, &SECONDS).await?;
            self.metrics.counted(&counts);
            place = last;
            self.counted = Some(place);
            tokio::task::yield_now().await;
        }
        self.counted = Some(place);
        self.metrics.survey_took(began.elapsed());
        Ok(())
    }
}
