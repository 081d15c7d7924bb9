//! Bells say "look again" and carry nothing: tables are the truth, and every loop also looks by
//! itself now and then, so a lost bell costs latency only.
//!
//! Inside the process a bell is a `Notify` per listener. Between processes it is an empty NOTIFY on
//! a connection of its own, one for all that rang since the last, at most one per 2 ms on average,
//! never inside a verb: a NOTIFY in a transaction takes a lock that all commits of the cluster share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{
    Connection, Executor, PgConnection,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{sync::Notify, time::Instant};

use crate::patient::{Patient, within};

/// What there is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Steps became ready without a slot.
    Ready,
    /// The log has grown.
    Event,
    /// A signal for some node was written.
    Signal,
    /// A definition was registered.
    Definition,
    /// Clocks were started that may be the next to be due.
    Timer,
    /// A task with a concurrency key came or ended.
    Key,
    /// A bulk operation was started.
    Bulk,
    /// Steps are ready that may wait for somebody who is not there.
    Unserved,
    /// A durable subscription was changed, or events of one were acked or are to be delivered again.
    Subscription,
}

impl Topic {
    fn channel(self) -> &'static str {
        match self {
            Self::Ready => "stepwell_ready",
            Self::Event => "stepwell_event",
            Self::Signal => "stepwell_signal",
            Self::Definition => "stepwell_definition",
            Self::Timer => "stepwell_timer",
            Self::Key => "stepwell_key",
            Self::Bulk => "stepwell_bulk",
            Self::Unserved => "stepwell_unserved",
            Self::Subscription => "stepwell_subscription",
        }
    }
}

/// The bells of one process.
#[derive(Debug, Default)]
pub struct Bell {
    listeners: Mutex<HashMap<Topic, Vec<Arc<Notify>>>>,
    outgoing: Mutex<Vec<Topic>>,
    some_outgoing: Notify,
}

const BETWEEN_NOTIFIES: Duration = Duration::from_millis(2);
/// So many may follow each other at once after a while without any: what a few tasks make.
const NOTIFIES_AT_ONCE: u32 = 8;
const BETWEEN_CONNECTS: Duration = Duration::from_millis(500);
const SILENCE: Duration = Duration::from_secs(10);

impl Bell {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Wakes the listeners of this process now and those of others soon. Cheap, never waits.
    pub fn ring(&self, topic: Topic) {
        self.wake(topic);
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        if !outgoing.contains(&topic) {
            outgoing.push(topic);
            self.some_outgoing.notify_one();
        }
    }

    /// Rings what may be listened for after moves beside a step's way: tasks or steps were moved (tasks may
    /// have ended, and given up their keys), steps became ready (with their clocks), leases are void.
    pub fn ring_moves(&self, moved: bool, ready: bool, voided: bool) {
        let rung = [
            (moved, &[Topic::Event, Topic::Key][..]),
            (ready, &[Topic::Ready, Topic::Timer]),
            (voided, &[Topic::Signal]),
        ];
        let topics = rung.into_iter().filter(|(is_so, _)| *is_so).flat_map(|(_, topics)| topics);
        topics.for_each(|topic| self.ring(*topic));
    }

    /// A bell of one's own: it keeps one ring for a listener that is busy. To be asked for before bells
    /// are carried: only what is listened to then is heard from other processes.
    pub fn listen(&self, topic: Topic) -> Arc<Notify> {
        let bell = Arc::new(Notify::new());
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.entry(topic).or_default().push(Arc::clone(&bell));
        bell
    }

    /// What somebody here listens to.
    fn topics(&self) -> Vec<Topic> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.keys().copied().collect()
    }

    fn wake(&self, topic: Topic) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bells) = listeners.get_mut(&topic) {
            bells.retain(|bell| Arc::strong_count(bell) > 1);
            bells.iter().for_each(|bell| bell.notify_one());
        }
    }

    async fn take_outgoing(&self) -> Vec<Topic> {
        loop {
            let rung = self.some_outgoing.notified();
            let taken =
                std::mem::take(&mut *self.outgoing.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            rung.await;
        }
    }
}

/// Carries bells between processes for ever; a lost connection is made again.
pub(crate) async fn run(options: PgConnectOptions, patience: Duration, bell: Arc<Bell>) {
    tokio::join!(
        run_outgoing(options.clone(), patience, &bell),
        run_incoming(options, patience, &bell)
    );
}

async fn run_outgoing(options: PgConnectOptions, patience: Duration, bell: &Bell) {
    let options = options.options([("synchronous_commit", "off")]);
    let mut failing = false;
    loop {
        if let Err(error) = send(&options, patience, bell, &mut failing).await
            && !std::mem::replace(&mut failing, true)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "bells cannot be sent");
        }
        tokio::time::sleep(BETWEEN_CONNECTS).await;
    }
}

async fn send(
    options: &PgConnectOptions,
    patience: Duration,
    bell: &Bell,
    failing: &mut bool,
) -> Result<(), sqlx::Error> {
    let connection = within(patience, PgConnection::connect_with(options)).await?;
    // Bells are no work: they are not measured with the statements that are.
    let mut connection = Patient { connection, patience, metrics: Arc::default() };
    // When the next one would be due if all kept their distance.
    let mut due = Instant::now();
    loop {
        let channels: Vec<String> =
            bell.take_outgoing().await.iter().map(|t| t.channel().to_owned()).collect();
        sqlx::query!("select pg_notify(channel, '') from unnest($1::text[]) channel", &channels)
            .fetch_all(&mut connection)
            .await?;
        if std::mem::take(failing) {
            tracing::info!("bells are sent again");
        }
        let now = Instant::now();
        let earliest = now.checked_sub(BETWEEN_NOTIFIES * NOTIFIES_AT_ONCE).unwrap_or(now);
        due = due.max(earliest) + BETWEEN_NOTIFIES;
        tokio::time::sleep_until(due).await;
    }
}

async fn run_incoming(options: PgConnectOptions, patience: Duration, bell: &Bell) {
    let options = options.options([("statement_timeout", "0")]);
    let mut failing = false;
    loop {
        if let Err(error) = receive(&options, patience, bell, &mut failing).await
            && !std::mem::replace(&mut failing, true)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "bells cannot be heard");
        }
        tokio::time::sleep(BETWEEN_CONNECTS).await;
    }
}

async fn receive(
    options: &PgConnectOptions,
    patience: Duration,
    bell: &Bell,
    failing: &mut bool,
) -> Result<(), sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    let mut listener = within(patience, PgListener::connect_with(&pool)).await?;
    let topics = bell.topics();
    listener.listen_all(topics.iter().map(|topic| topic.channel())).await?;
    if std::mem::take(failing) {
        tracing::info!("bells are heard again");
    }
    // What rang while nobody heard is unknown: look at everything once.
    topics.iter().for_each(|topic| bell.wake(*topic));
    loop {
        // Silence is what a connection that was cut off sounds like.
        let Ok(heard) = tokio::time::timeout(SILENCE, listener.try_recv()).await else {
            within(patience, listener.execute("select")).await?;
            continue;
        };
        let Some(notification) = heard? else { return Ok(()) };
        if let Some(topic) = topics.iter().find(|t| t.channel() == notification.channel()) {
            bell.wake(*topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn moves_ring_for_what_they_did_and_for_nothing_else() {
        let topics = [
            Topic::Event,
            Topic::Key,
            Topic::Ready,
            Topic::Timer,
            Topic::Signal,
            Topic::Definition,
        ];
        for (moved, ready, voided, rung) in [
            (true, false, false, &[Topic::Event, Topic::Key][..]),
            (false, true, false, &[Topic::Ready, Topic::Timer]),
            (false, false, true, &[Topic::Signal]),
            (false, false, false, &[]),
        ] {
            let bell = Bell::new();
            let heard = topics.map(|topic| (topic, bell.listen(topic)));
            bell.ring_moves(moved, ready, voided);
            let heard =
                heard.into_iter().filter(|(_, bell)| bell.notified().now_or_never().is_some());
            assert_eq!(heard.map(|(topic, _)| topic).collect::<Vec<_>>(), rung);
        }
    }
}
