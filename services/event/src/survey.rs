//! The survey: now and then one look at the whole, and a count of what the log has had since. One
//! statement of it and one of durable subscriptions when nothing happened, and none on a step's way; it is done here because reading the log
//! is what this service is for.

use std::{sync::Arc, time::Instant};

use stepwell_serve::{SECONDS, Shutdown, Ticker};
use stepwell_store::{Error, READY_COUNTED_MAX, Ready, Store, Topic};

use crate::metrics::Metrics;

/// The loop.
pub(crate) struct Surveying {
    store: Store,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// The log is counted up to here; none: nothing was looked at yet. Counting begins at the head.
    counted: Option<i64>,
    /// How many steps of each handler were ready at the last look.
    ready: Vec<(String, String, i64)>,
    failing: bool,
}

impl Surveying {
    pub(crate) fn new(store: Store, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        Self { store, metrics, shutdown, counted: None, ready: Vec::new(), failing: false }
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

    /// Rings for who tells of steps that nobody serves, when there may be new ones: nobody but who serves a
    /// queue takes rows from it. Those that are there wait on by the listener's own clock.
    fn ring(&mut self, ready: &[Ready]) {
        let of = |r: &Ready| (r.namespace.clone(), r.handler.clone(), r.steps);
        let mut counts: Vec<_> = ready.iter().map(of).collect();
        counts.sort_unstable();
        let uncounted = ready.iter().any(|r| r.steps >= READY_COUNTED_MAX);
        if !counts.is_empty() && (uncounted || counts != self.ready) {
            self.store.bell().ring(Topic::Unserved);
        }
        self.ready = counts;
    }

    async fn look(&mut self) -> Result<(), Error> {
        let began = Instant::now();
        let survey = self.store.survey().await?;
        let head = survey.head;
        self.ring(&survey.ready);
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
        self.metrics.subscriptions(self.store.progress().await?);
        self.metrics.survey_took(began.elapsed());
        Ok(())
    }
}
