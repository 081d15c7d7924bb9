//! What subscriptions with alerts have counted, and which changes are to be told of: the calls of
//! `migrations/verbs/89_subscription.sql`.

use std::time::Duration;

use sqlx::types::chrono::{DateTime, Utc};

use crate::{Error, Store, span};

/// Most changes of the alerts of a subscription that are still to be told of.
pub const ALERT_CHANGES_MAX: i32 = 1_000;

/// When the alerts of a subscription fire: when so many events of a definition are within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlertRule {
    /// How many.
    pub n: i32,
    /// How long.
    pub window: Duration,
}

impl AlertRule {
    fn seconds(self) -> i64 {
        i64::try_from(self.window.as_secs()).unwrap_or(i64::MAX)
    }
}

/// An event that counts.
#[derive(Clone, Debug)]
pub struct CountedEvent<'a> {
    /// The subscription's key.
    pub subscription: i32,
    /// Of the definition.
    pub namespace: &'a str,
    /// Name of the definition.
    pub definition: &'a str,
    /// Its position.
    pub position: i64,
    /// When it was.
    pub at: DateTime<Utc>,
}

/// A change of an alert that is to be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertChange {
    /// Of the definition.
    pub namespace: String,
    /// Name of the definition.
    pub definition: String,
    /// Which change of the alert, from 1: odd, it fires; even, it is resolved.
    pub no: i32,
    /// When, by the time of events.
    pub at: DateTime<Utc>,
    /// The event that made it fire; 0: it is resolved.
    pub position: i64,
}

impl Store {
    /// Counts an event; how many changes that made. None: too many are still to be told of.
    pub async fn count_alert(
        &self,
        of: &CountedEvent<'_>,
        rule: AlertRule,
    ) -> Result<Option<i32>, Error> {
        let call = async {
            let call = sqlx::query!(
                r#"select r_full as "full!", r_changes as "changes!"
                     from stepwell.count_alert($1, $2, $3, $4, $5, $6, $7, $8)"#,
                of.subscription,
                of.namespace,
                of.definition,
                of.position,
                of.at,
                rule.n,
                rule.seconds(),
                ALERT_CHANGES_MAX,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let row = span::verb("db.count_alert", 1, |_| 1, call).await?;
        Ok((!row.full).then_some(row.changes))
    }

    /// Resolves the alerts of a subscription that are over; in how long the next may be. None: when an
    /// alert has fired.
    pub async fn resolve_alerts(
        &self,
        subscription: i32,
        rule: AlertRule,
    ) -> Result<Option<Duration>, Error> {
        let call = async {
            let call = sqlx::query_scalar!(
                "select stepwell.resolve_alerts($1, $2, $3)",
                subscription,
                rule.n,
                rule.seconds(),
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        let wait = span::verb("db.resolve_alerts", 1, |_| 1, call).await?;
        Ok(wait.map(|millis| Duration::from_millis(millis.try_into().unwrap_or_default())))
    }

    /// Changes of the alerts of a subscription that are still to be told of, in order, at most so many.
    pub async fn alert_changes(
        &self,
        subscription: i32,
        most: i64,
    ) -> Result<Vec<AlertChange>, Error> {
        let rows = sqlx::query_as!(
            AlertChange,
            "select namespace, definition, no, at, position from stepwell.alert_change
              where subscription = $1 order by at, namespace, definition, no limit $2",
            subscription,
            most,
        );
        Ok(rows.fetch_all(self.reads()).await?)
    }

    /// A change was told of.
    pub async fn tell_alert(&self, subscription: i32, of: &AlertChange) -> Result<(), Error> {
        let call = async {
            let call = sqlx::query_scalar!(
                r#"select stepwell.tell_alert($1, $2, $3, $4) as "told!""#,
                subscription,
                of.namespace,
                of.definition,
                of.no,
            );
            Ok(call.fetch_one(self.reads()).await?)
        };
        span::verb("db.tell_alert", 1, |_| 1, call).await.map(drop)
    }
}
