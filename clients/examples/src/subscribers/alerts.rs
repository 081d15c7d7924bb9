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
    /// When, and at which positions: an event may come twice.
    watched: Mutex<HashMap<String, VecDeque<(SystemTime, i64)>>>,
    out: Mutex<W>,
}

impl<W: Write + Send + 'static> FailureAlerts<W> {
    /// How many, within how long, and where to say so.
    pub fn new(failures: usize, window: Duration, out: W) -> Self {
        let failures = failures.max(1);
        Self { failures, window, watched: Mutex::default(), out: Mutex::new(out) }
    }

    /// One more failure; true: these are too many.
    fn is_too_many(&self, definition: &str, at: SystemTime, position: i64) -> bool {
        let Ok(mut watched) = self.watched.lock() else { return false };
        for times in watched.values_mut() {
            times.retain(|(time, _)| *time + self.window >= at);
        }
        watched.retain(|_, times| !times.is_empty());
        if watched.len() >= DEFINITIONS_MAX && !watched.contains_key(definition) {
            return false;
        }
        let times = watched.entry(definition.to_owned()).or_default();
        if times.iter().all(|(_, there)| *there != position) {
            times.push_back((at, position));
        }
        times.len() >= self.failures
    }

    /// It was said: now it counts anew.
    fn begin_anew(&self, definition: &str) {
        if let Ok(mut watched) = self.watched.lock() {
            watched.remove(definition);
        }
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
        if self.is_too_many(&definition, core.at, event.position) {
            let (n, window, steps) = (self.failures, self.window, failed.failed_steps.join(", "));
            let task = core.task_id;
            let mut out =
                self.out.lock().map_err(|_| HandlerError::new("Poisoned", "no more alerts"))?;
            writeln!(
                out,
                "ALERT {definition}: {n} failures within {window:?}, the last at {steps} (task {task})"
            )?;
            out.flush()?;
            // One that could not be said comes again, and is said then.
            self.begin_anew(&definition);
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
            event.position = i64::try_from(minute).unwrap() * 2 + i64::from(definition == "b");
            assert!(testing::handle(&alerts, &event).await.unwrap());
            // The same once more is the same failure.
            if minute < 63 {
                assert!(testing::handle(&alerts, &event).await.unwrap());
            }
        }
        let said = String::from_utf8(alerts.out.into_inner().unwrap()).unwrap();
        assert_eq!(
            said,
            "ALERT default/a: 3 failures within 3600s, the last at charge (task a63)\n"
        );
    }
}
