//! Alerts: so many tasks of a definition failed within so long.

use std::{
    collections::{HashMap, VecDeque},
    io::Write,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use stepwell_client::{EventFacts, EventHandler, HandlerError, v1::*};

/// Definitions that are watched; failures of others beyond them are not counted.
const DEFINITIONS_MAX: usize = 1_000;

/// Says so on `out` when `failures` tasks of one definition failed within `window`, by the database's clock;
/// then it begins to count anew.
pub struct FailureAlerts<W> {
    failures: usize,
    window: Duration,
    watched: Mutex<HashMap<String, VecDeque<SystemTime>>>,
    out: Mutex<W>,
}

impl<W: Write + Send + 'static> FailureAlerts<W> {
    /// How many, within how long, and where to say so.
    pub fn new(failures: usize, window: Duration, out: W) -> Self {
        let failures = failures.max(1);
        Self { failures, window, watched: Mutex::default(), out: Mutex::new(out) }
    }

    /// One more failure; true: these are too many.
    fn is_too_many(&self, definition: String, at: SystemTime) -> bool {
        let Ok(mut watched) = self.watched.lock() else { return false };
        if watched.len() >= DEFINITIONS_MAX && !watched.contains_key(&definition) {
            return false;
        }
        let times = watched.entry(definition).or_default();
        times.push_back(at);
        while times.front().is_some_and(|first| *first + self.window < at) {
            times.pop_front();
        }
        let is_so = times.len() >= self.failures;
        if is_so {
            times.clear();
        }
        is_so
    }
}

impl<W: Write + Send + 'static> EventHandler for FailureAlerts<W> {
    fn subscribe_to(&self) -> Vec<&str> {
        vec!["task.failed"]
    }

    async fn handle_task_failed(
        &self,
        event: &Event,
        failed: &TaskFailed,
    ) -> Result<(), HandlerError> {
        let core = event.core();
        let definition = format!("{}/{}", core.namespace, core.definition);
        if self.is_too_many(definition.clone(), core.at) {
            let (n, window, steps) = (self.failures, self.window, failed.failed_steps.join(", "));
            let task = core.task_id;
            let mut out =
                self.out.lock().map_err(|_| HandlerError::new("Poisoned", "no more alerts"))?;
            writeln!(
                out,
                "ALERT {definition}: {n} failures within {window:?}, the last at {steps} (task {task})"
            )?;
            out.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use stepwell_client::testing;

    use super::*;

    #[tokio::test]
    async fn three_failures_of_a_definition_within_an_hour_are_an_alert_and_then_it_counts_anew() {
        let alerts = FailureAlerts::new(3, Duration::from_secs(3600), Vec::new());
        // By minutes; the second definition has one failure too few.
        for (definition, minute) in
            [("a", 0), ("a", 59), ("b", 59), ("a", 61), ("b", 62), ("a", 63), ("a", 64), ("a", 65)]
        {
            let mut event = testing::sample("task.failed").unwrap();
            event.definition_name = definition.into();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(minute * 60);
            event.at = Some(at.into());
            event.task_id = format!("{definition}{minute}");
            assert!(testing::handle(&alerts, &event).await.unwrap());
        }
        let said = String::from_utf8(alerts.out.into_inner().unwrap()).unwrap();
        assert_eq!(
            said,
            "ALERT default/a: 3 failures within 3600s, the last at charge (task a63)\n"
        );
    }
}
