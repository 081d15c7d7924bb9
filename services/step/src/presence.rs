//! Writes down who is connected to this node, for any node to tell: what changed since the last look, by one
//! statement, and nothing when nothing did. No step waits for it and none is told of.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use stepwell_serve::Ticker;
use stepwell_store::{Error, ExecutorState, NewExecutor, Store, Writer};
use tokio::time::Instant;

use crate::{
    node::Node,
    sessions::{Present, Sessions},
};

/// Executors of one statement; the others are written with the next.
const ROWS_MAX: usize = 2000;
/// Bytes of what new executors say of themselves in one statement; one may be larger.
const BYTES_MAX: usize = 4 << 20;

/// The loop.
pub(crate) struct Presence {
    store: Store,
    sessions: Arc<Sessions>,
    node: Arc<Node>,
    writer: Option<Writer>,
    written: Written,
}

/// What is in the database of each session; none: that is not known.
#[derive(Default)]
struct Written(HashMap<i64, Option<Row>>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    node: i32,
    slots: usize,
    used: usize,
    draining: bool,
    heard: Instant,
    at: Instant,
}

/// What one statement writes.
#[derive(Debug, Default)]
struct Batch {
    gone: Vec<i64>,
    changed: Vec<Present>,
    new: Vec<Present>,
}

impl Presence {
    pub(crate) fn new(store: Store, sessions: Arc<Sessions>, node: Arc<Node>) -> Self {
        Self { store, sessions, node, writer: None, written: Written::default() }
    }

    /// Runs until shutdown begins. What is left then goes with the node.
    pub(crate) async fn run(mut self, mut ticker: Ticker) {
        while ticker.next().await {
            match self.look().await {
                Ok(()) => ticker.ok(),
                Err(error) => {
                    self.writer = None;
                    ticker.back_off(&error);
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let node = self.node.act(&self.store).await?.id();
        let now = Instant::now();
        let stale = self.node.lease() / 3;
        let batch = self.written.batch(self.sessions.present(), node, now, stale);
        if batch.is_empty() {
            return Ok(());
        }
        let changed: Vec<ExecutorState> = batch.changed.iter().map(|p| state(p, now)).collect();
        let new: Vec<NewExecutor<'_>> = batch.new.iter().map(|p| new(p, now)).collect();
        let writer = self.store.connected(&mut self.writer).await?;
        // If there is no answer, any of it may have been written.
        self.written.doubt(&batch);
        let found = writer.write_executors(node, &batch.gone, &changed, &new).await?;
        self.written.wrote(batch, &found, node, now);
        Ok(())
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.changed.is_empty() && self.new.is_empty()
    }
}

impl Written {
    /// What is to be written: those that came or went first, then those that were written longest ago. Of
    /// one that only was heard of, no more often than `stale`.
    fn batch(&self, present: Vec<Present>, node: i32, now: Instant, stale: Duration) -> Batch {
        let here: HashSet<i64> = present.iter().map(|p| p.session).collect();
        let gone = self.0.keys().filter(|session| !here.contains(session)).copied();
        let mut batch = Batch { gone: gone.take(ROWS_MAX).collect(), ..Batch::default() };
        let mut changed = Vec::new();
        let mut bytes = 0;
        for one in present {
            match self.0.get(&one.session).copied().flatten() {
                None => {
                    let more = bytes + one.offer.bytes();
                    let fits = batch.gone.len() + batch.new.len() < ROWS_MAX;
                    if fits && (bytes == 0 || more <= BYTES_MAX) {
                        bytes = more;
                        batch.new.push(one);
                    }
                }
                Some(row) if row.differs(&one, node, stale) => changed.push((row.at, one)),
                Some(_) => {}
            }
        }
        changed.sort_by_key(|(at, _)| *at);
        changed.truncate(ROWS_MAX - batch.gone.len() - batch.new.len());
        debug_assert!(changed.iter().all(|(at, _)| *at <= now));
        batch.changed = changed.into_iter().map(|(_, one)| one).collect();
        batch
    }

    fn doubt(&mut self, batch: &Batch) {
        let there = batch.changed.iter().chain(&batch.new).map(|p| p.session);
        self.0.extend(there.map(|session| (session, None)));
    }

    /// It was written. Those that changed and had no row are new again.
    fn wrote(&mut self, batch: Batch, found: &[i64], node: i32, at: Instant) {
        for session in &batch.gone {
            self.0.remove(session);
        }
        let found: HashSet<i64> = found.iter().copied().collect();
        let changed = batch.changed.into_iter().filter(|p| found.contains(&p.session));
        for Present { session, slots, used, draining, heard, .. } in changed.chain(batch.new) {
            self.0.insert(session, Some(Row { node, slots, used, draining, heard, at }));
        }
    }
}

impl Row {
    fn differs(&self, now: &Present, node: i32, stale: Duration) -> bool {
        self.node != node
            || (self.slots, self.used, self.draining) != (now.slots, now.used, now.draining)
            || now.heard.duration_since(self.heard) >= stale
    }
}

fn state(present: &Present, now: Instant) -> ExecutorState {
    ExecutorState {
        session: present.session,
        slots: i32::try_from(present.slots).unwrap_or(i32::MAX),
        used: i32::try_from(present.used).unwrap_or(i32::MAX),
        draining: present.draining,
        heard_ms: ago(present.heard, now),
    }
}

fn new(present: &Present, now: Instant) -> NewExecutor<'_> {
    let offer = &present.offer;
    NewExecutor {
        state: state(present, now),
        name: &offer.name,
        namespace: &offer.namespace,
        sdk: &offer.sdk,
        handlers: offer.ranges().collect(),
        labels: &offer.labels,
        stop_asked: present.stopping,
        age_ms: ago(present.since, now),
    }
}

fn ago(then: Instant, now: Instant) -> i64 {
    i64::try_from(now.duration_since(then).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::Offer;

    const STALE: Duration = Duration::from_secs(5);

    fn present(session: i64, used: usize, heard: Instant) -> Present {
        Present {
            session,
            offer: Arc::new(Offer::default()),
            slots: 10,
            used,
            draining: false,
            stopping: false,
            since: heard,
            heard,
        }
    }

    fn sessions(of: &[Present]) -> Vec<i64> {
        of.iter().map(|p| p.session).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_changed_is_written_and_who_only_spoke_now_and_then() {
        let mut written = Written::default();
        let begun = Instant::now();
        let look =
            |written: &Written, all: &[Present], now| written.batch(all.into(), 1, now, STALE);
        let all = [present(1, 0, begun), present(2, 0, begun)];
        let batch = look(&written, &all, begun);
        assert_eq!(sessions(&batch.new).len(), 2);
        written.wrote(batch, &[], 1, begun);
        assert!(look(&written, &all, begun).is_empty());

        let spoke = |after| begun + Duration::from_secs(after);
        let all = [present(1, 3, spoke(1)), present(2, 0, spoke(4))];
        let batch = look(&written, &all, spoke(4));
        assert_eq!(sessions(&batch.changed), [1], "its slots; the other only spoke");
        written.wrote(batch, &[1], 1, spoke(4));
        let all = [present(1, 3, spoke(1)), present(2, 0, spoke(5))];
        assert_eq!(sessions(&look(&written, &all, spoke(5)).changed), [2]);
        let batch = written.batch(all[1..].into(), 2, spoke(5), STALE);
        assert_eq!((batch.gone.as_slice(), sessions(&batch.changed)), (&[1][..], vec![2]));
        written.wrote(batch, &[2], 2, spoke(5));
        assert!(written.batch(all[1..].into(), 2, spoke(5), STALE).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_or_may_not_have_been_written_is_written_anew_and_removed_at_last() {
        let mut written = Written::default();
        let now = Instant::now();
        let all = vec![present(1, 0, now)];
        let batch = written.batch(all.clone(), 1, now, STALE);
        written.doubt(&batch);
        let again = written.batch(all.clone(), 1, now, STALE);
        assert_eq!(sessions(&again.new), [1], "the answer was lost");
        assert_eq!(written.batch(Vec::new(), 1, now, STALE).gone, [1], "and then it went");
        written.wrote(again, &[], 1, now);
        // The database crashed meanwhile, and the table is empty.
        let all = vec![present(1, 1, now)];
        let batch = written.batch(all.clone(), 1, now, STALE);
        written.doubt(&batch);
        written.wrote(batch, &[], 1, now);
        assert_eq!(sessions(&written.batch(all, 1, now, STALE).new), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_statement_is_bounded_and_everybody_s_turn_comes() {
        let mut written = Written::default();
        let begun = Instant::now();
        let n = i64::try_from(ROWS_MAX + 500).unwrap();
        let all = |used| (0..n).map(|i| present(i, used, begun)).collect::<Vec<_>>();
        for round in 0..5 {
            let (used, now) = (round, begun + Duration::from_secs(u64::try_from(round).unwrap()));
            let batch = written.batch(all(used), 1, now, STALE);
            let rows = batch.gone.len() + batch.changed.len() + batch.new.len();
            assert!(rows <= ROWS_MAX, "{rows}");
            let found = sessions(&batch.changed);
            written.wrote(batch, &found, 1, now);
        }
        assert_eq!(written.0.len(), ROWS_MAX + 500);
        let oldest = written.0.values().filter_map(|row| row.map(|row| row.at)).min().unwrap();
        assert!(oldest >= begun + Duration::from_secs(2), "nobody is left behind");
    }
}
