//! Alerts: events are counted in the database, and each change of an alert is told of until it is taken.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use stepwell_proto::v1::Event;
use stepwell_store::{AlertChange, AlertRule, CountedEvent, Error, Store, timestamp};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    queue::Failure,
    webhook::{AlertEvent, Webhook},
};

const N_MAX: i32 = 1_000;
const RULE_BYTES_MAX: usize = 64;
/// Changes of one look.
const CHANGES_MAX: i64 = 100;
/// While nothing is known to be due.
const LOOK_AFTER: Duration = Duration::from_secs(60);
const WAIT_FIRST: Duration = Duration::from_millis(100);
const DATABASE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Between two attempts to tell of a change, at most.
const TELL_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long an event rests for which there was no room.
const REST_WHEN_FULL: Duration = Duration::from_secs(60);

/// The alerts of a subscription.
pub(super) struct Alerts {
    pub(super) store: Store,
    pub(super) subscription: i32,
    pub(super) name: String,
    pub(super) rule: AlertRule,
    /// As it is declared.
    pub(super) text: String,
    pub(super) webhook: Webhook,
    /// Rings when an alert has changed.
    pub(super) changed: Notify,
}

/// Reads a rule such as `3_failures_per_hour`. Or what it must be.
pub(super) fn rule(text: &str) -> Result<AlertRule, String> {
    let wanted = || {
        format!(
            "must be a number from 1 to {N_MAX}, a word, and `per_minute`, `per_hour` or `per_day`, such as \
             `3_failures_per_hour`, of at most {RULE_BYTES_MAX} bytes"
        )
    };
    let read = || {
        let (n, rest) = text.split_once('_').filter(|_| text.len() <= RULE_BYTES_MAX)?;
        let (what, unit) = rest.rsplit_once("_per_")?;
        let is_word = what.starts_with(|c: char| c.is_ascii_lowercase())
            && what.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let seconds = match unit {
            "minute" => 60,
            "hour" => 3600,
            "day" => 86_400,
            _ => return None,
        };
        let is_number = n.bytes().all(|b| b.is_ascii_digit()) && !n.starts_with('0');
        let n = n.parse().ok().filter(|n| is_number && is_word && (1..=N_MAX).contains(n))?;
        Some(AlertRule { n, window: Duration::from_secs(seconds) })
    };
    read().ok_or_else(wanted)
}

impl Alerts {
    /// Counts an event. While the database does not answer it waits.
    pub(super) async fn count(&self, event: &Event) -> Result<(), Failure> {
        let of = CountedEvent {
            subscription: self.subscription,
            namespace: &event.namespace,
            definition: &event.definition_name,
            position: event.position,
            at: time_of(event),
        };
        let (mut wait, mut failing) = (WAIT_FIRST, false);
        loop {
            match self.store.count_alert(&of, self.rule).await {
                Ok(Some(changes)) => {
                    if changes > 0 {
                        self.changed.notify_one();
                    }
                    return Ok(());
                }
                Ok(None) => {
                    let reason = "too many changes of alerts are still to be told of".into();
                    return Err(Failure { reason, wait: Some(REST_WHEN_FULL) });
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "an event is not counted; trying again");
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(DATABASE_WAIT_MAX);
                }
            }
        }
    }

    /// Tells of changes, for ever, while the partition is read here.
    pub(super) async fn tell(self: Arc<Self>, mut held: watch::Receiver<bool>) {
        let mut wait = WAIT_FIRST;
        loop {
            if held.wait_for(|held| *held).await.is_err() {
                return std::future::pending().await;
            }
            match self.look().await {
                Ok(Ok(next)) => {
                    wait = WAIT_FIRST;
                    let until = Instant::now() + next.unwrap_or(LOOK_AFTER).min(LOOK_AFTER);
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                        _ = held.changed() => {}
                    }
                }
                Ok(Err(failure)) => {
                    let reason = failure.reason;
                    if wait == WAIT_FIRST {
                        tracing::warn!(reason, "an alert was not taken; trying again");
                    }
                    tokio::time::sleep(failure.wait.unwrap_or(wait).max(wait)).await;
                    wait = (wait * 2).min(TELL_WAIT_MAX);
                }
                Err(error) => {
                    let error = error.to_string();
                    tracing::debug!(error, "alerts cannot be read; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(DATABASE_WAIT_MAX);
                }
            }
        }
    }

    /// Resolves what is over and tells of all changes; when the next look is due.
    async fn look(&self) -> Result<Result<Option<Duration>, Failure>, Error> {
        let next = self.store.resolve_alerts(self.subscription, self.rule).await?;
        loop {
            let changes = self.store.alert_changes(self.subscription, CHANGES_MAX).await?;
            if changes.is_empty() {
                return Ok(Ok(next));
            }
            for change in changes {
                if let Err(failure) = self.webhook.post_alert(&self.event(&change)).await {
                    return Ok(Err(failure));
                }
                self.store.tell_alert(self.subscription, &change).await?;
            }
        }
    }

    fn event(&self, change: &AlertChange) -> AlertEvent {
        let AlertChange { namespace, definition, no, at, position } = change;
        AlertEvent {
            id: format!("alerts/{}/{namespace}/{definition}/{no}", self.subscription),
            is_firing: *position > 0,
            namespace: namespace.clone(),
            definition: definition.clone(),
            time: timestamp(*at).to_string(),
            rule: self.text.clone(),
            n: self.rule.n,
            seconds: self.rule.window.as_secs(),
            position: *position,
            subscription: self.name.clone(),
        }
    }
}

fn time_of(event: &Event) -> DateTime<Utc> {
    let at = event.at.unwrap_or_default();
    let nanos = u32::try_from(at.nanos).unwrap_or_default();
    DateTime::from_timestamp(at.seconds, nanos).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_says_how_many_of_what_in_which_time() {
        for (text, n, seconds) in [
            ("3_failures_per_hour", 3, 3600),
            ("1_a_per_minute", 1, 60),
            ("1000_failed_orders_per_day", 1000, 86_400),
        ] {
            let window = Duration::from_secs(seconds);
            assert_eq!(rule(text), Ok(AlertRule { n, window }), "{text}");
        }
        for wrong in [
            "",
            "3_per_hour",
            "failures_per_hour",
            "0_failures_per_hour",
            "03_failures_per_hour",
            "+3_failures_per_hour",
            "1001_failures_per_hour",
            "3_failures_per_week",
            "3_Failures_per_hour",
            "3__per_hour",
            "3_failures_per_hour_",
            &format!("3_{}_per_hour", "x".repeat(64)),
        ] {
            assert!(rule(wrong).is_err(), "{wrong}");
        }
    }
}
