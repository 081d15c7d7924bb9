//! One subscription: its place in the log, and what goes out from there. It takes pages from the
//! ring, or from the table when it has fallen behind, and sends what its filter wants.

use std::{sync::Arc, time::Duration};

use prost::Message;
use stepwell_proto::{
    id::Cursor,
    refusal::Refusal,
    v1::{Checkpoint, ErrorReason, Event, EventBatch, SubscribeResponse, subscribe_response::Kind},
};
use stepwell_serve::{Age, Shutdown};
use stepwell_store::{Error, Store, derive};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tonic::Status;

use crate::{
    filter::Filter,
    metrics::{Metrics, Seat},
    ring::{Found, Page, Ring},
    said::SaidOf,
    tail::read_page,
    trace,
};

const FRAME_EVENTS_MAX: usize = 256;
const FRAME_BYTES_MAX: usize = 256 << 10;
/// Rows of one read of a subscription that is behind.
const CATCH_UP_ROWS: i64 = 500;
/// Without an event for so long, a checkpoint tells how far the feed has come.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(15);

/// How long a reader has at shutdown to make room for being told so.
const LAST_WORD: Duration = Duration::from_secs(1);
const CATCH_UP_AGAIN: Duration = Duration::from_millis(50);

/// A subscription.
pub(crate) struct Delivery {
    pub(crate) store: Store,
    pub(crate) ring: Arc<Ring>,
    pub(crate) said: Arc<SaidOf>,
    pub(crate) shutdown: Shutdown,
    /// Rung once it looks at the ring: a sleeping tail wakes.
    pub(crate) begun: Arc<Notify>,
    pub(crate) filter: Filter,
    pub(crate) epoch: i64,
    pub(crate) place: i64,
    /// When it is old.
    pub(crate) age: Age,
    pub(crate) out: mpsc::Sender<Result<SubscribeResponse, Status>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) seat: Seat,
}

/// The reader has gone.
struct Gone;

impl Delivery {
    /// Delivers until the reader goes, the stream is old or shutdown begins.
    pub(crate) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        let old = tokio::time::sleep(self.age.of_a_stream());
        let ended = tokio::select! {
            () = self.deliver() => None,
            // It resumes after its cursor, maybe elsewhere.
            () = old => None,
            () = shutdown.wait() => Some(
                Refusal::new(ErrorReason::ShuttingDown, "this node goes down")
                    .retry_after(Duration::from_millis(100)),
            ),
        };
        if let Some(refusal) = ended {
            // A reader whose queue is full is waited for a little; it resumes in any case.
            let _ = tokio::time::timeout(LAST_WORD, self.out.send(Err(refusal.into()))).await;
        }
    }

    async fn deliver(&mut self) {
        let mut changes = self.ring.changes();
        self.begun.notify_one();
        if self.checkpoint().await.is_err() {
            return;
        }
        let mut said = Instant::now();
        let mut wait = CATCH_UP_AGAIN;
        let mut failing = false;
        loop {
            changes.mark_unchanged();
            let found = self.ring.after(self.place);
            self.seat.behind(matches!(found, Found::Behind));
            let sent = match found {
                Found::Page(page) => {
                    let pages = gather(&self.ring, page);
                    self.send(&pages).await
                }
                Found::Behind => match self.catch_up().await {
                    Ok(Some(page)) => {
                        wait = CATCH_UP_AGAIN;
                        failing = false;
                        self.send(&[Arc::new(page)]).await
                    }
                    Ok(None) => {
                        tokio::time::sleep(CATCH_UP_AGAIN).await;
                        Ok(false)
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                place = self.place,
                                "the log cannot be read; trying again"
                            );
                        }
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(Duration::from_secs(2));
                        Ok(false)
                    }
                },
                Found::Level => {
                    tokio::select! {
                        _ = changes.changed() => {}
                        () = tokio::time::sleep_until(said + CHECKPOINT_AFTER) => {}
                        () = self.out.closed() => return,
                    }
                    Ok(false)
                }
            };
            let Ok(sent) = sent else { return };
            if sent {
                said = Instant::now();
            } else if said.elapsed() >= CHECKPOINT_AFTER {
                if self.checkpoint().await.is_err() {
                    return;
                }
                said = Instant::now();
            }
        }
    }

    async fn catch_up(&self) -> Result<Option<Page>, Error> {
        read_page(&self.store, &self.said, self.place, CATCH_UP_ROWS).await
    }

    fn cursor(&self, position: i64) -> String {
        Cursor { epoch: self.epoch, position }.encode()
    }

    async fn checkpoint(&self) -> Result<(), Gone> {
        let kind = Some(Kind::Checkpoint(Checkpoint {}));
        let response = SubscribeResponse { cursor: self.cursor(self.place), kind };
        self.out.send(Ok(response)).await.map_err(|_| Gone)
    }

    /// Sends what is wanted of consecutive pages; the place moves behind them. True: something was
    /// sent.
    async fn send(&mut self, pages: &[Arc<Page>]) -> Result<bool, Gone> {
        let Some(last) = pages.last().map(|page| page.last) else { return Ok(false) };
        let mut any = false;
        let wanted = pages.iter().flat_map(|page| wanted(page, self.place, &self.filter)).collect();
        for (mut events, end) in frames(wanted, last) {
            any = true;
            self.metrics.delivered(events.len());
            events.iter_mut().for_each(trace::deliver);
            let cursor = end.map(|position| self.cursor(position)).unwrap_or_default();
            let kind = Some(Kind::Events(EventBatch { events }));
            self.out.send(Ok(SubscribeResponse { cursor, kind })).await.map_err(|_| Gone)?;
        }
        self.place = last;
        self.seat.at(last);
        Ok(any)
    }
}

/// The page with those after it, as far as they fill a frame: a reader that is slow gets much at once,
/// however small the commits are.
fn gather(ring: &Ring, first: Arc<Page>) -> Vec<Arc<Page>> {
    let (mut events, mut bytes) = (first.events.len(), first.bytes());
    let mut pages = vec![first];
    while events < FRAME_EVENTS_MAX && bytes < FRAME_BYTES_MAX {
        let Some(last) = pages.last().map(|page| page.last) else { break };
        let Found::Page(next) = ring.after(last) else { break };
        events += next.events.len();
        bytes += next.bytes();
        pages.push(next);
    }
    pages
}

/// The events of a page after a place that the filter wants, each with its commit.
fn wanted(page: &Page, place: i64, filter: &Filter) -> Vec<(i64, Event)> {
    let mut wanted = Vec::new();
    for recorded in page.events.iter().filter(|r| r.event.position > place) {
        if !filter.wants_about(&recorded.event, &recorded.said.tags) {
            continue;
        }
        if filter.wants_one(&recorded.event) {
            wanted.push((recorded.batch, recorded.event.clone()));
        }
        if filter.wants_derived() {
            let derived = derive(&recorded.event, &recorded.definition).into_iter();
            let derived = derived.filter(|event| filter.wants_one(event));
            wanted.extend(derived.map(|event| (recorded.batch, event)));
        }
    }
    wanted
}

/// The events in frames of bounded size. A frame that ends with a commit has the place after it;
/// the last one has the place after everything.
fn frames(wanted: Vec<(i64, Event)>, last: i64) -> Vec<(Vec<Event>, Option<i64>)> {
    let mut frames: Vec<(Vec<Event>, Option<i64>)> = Vec::new();
    let mut bytes = 0;
    let mut before = None;
    for (batch, event) in wanted {
        let size = event.encoded_len();
        let full = frames.last().is_none_or(|(events, _)| {
            events.len() >= FRAME_EVENTS_MAX || bytes + size > FRAME_BYTES_MAX
        });
        if full {
            if let (Some((_, end)), Some((of_batch, _))) = (frames.last_mut(), before)
                && of_batch != batch
            {
                // Everything before this commit was sent.
                *end = Some(batch - 1);
            }
            frames.push((Vec::new(), None));
            bytes = 0;
        }
        bytes += size;
        before = Some((batch, event.position));
        if let Some((events, _)) = frames.last_mut() {
            events.push(event);
        }
    }
    if let Some((_, end)) = frames.last_mut() {
        *end = Some(last);
    }
    frames
}

#[cfg(test)]
mod tests {
    use stepwell_store::StoredDefinition;

    use super::*;
    use crate::ring::Recorded;

    fn events(batches: &[(i64, usize)], bytes: usize) -> Vec<(i64, Event)> {
        let mut events = Vec::new();
        for (batch, n) in batches {
            for i in 0..*n {
                let position = batch + i64::try_from(i).unwrap();
                let task_id = "x".repeat(bytes);
                events.push((*batch, Event { position, task_id, ..Event::default() }));
            }
        }
        events
    }

    #[test]
    fn a_slow_reader_gets_a_frame_full_of_commits_at_once() {
        let ring = Ring::new(1 << 20);
        ring.wake(0);
        for position in 1..=300 {
            let definition = Arc::new(StoredDefinition {
                id: 1,
                version: [1, 0, 0],
                definition: stepwell_proto::v1::Definition::default(),
                queues: Vec::new(),
                parents: Vec::new(),
                children: Vec::new(),
                is_timed: false,
            });
            let event = Event { position, ..Event::default() };
            let recorded = Recorded {
                event,
                batch: position,
                definition,
                said: stepwell_store::Said::default(),
                bytes: 100,
            };
            ring.push(Page { after: position - 1, last: position, events: vec![recorded] });
        }
        let Found::Page(first) = ring.after(0) else { panic!("it is there") };
        let pages = gather(&ring, first);
        assert_eq!(pages.len(), FRAME_EVENTS_MAX);
        assert_eq!(pages.last().unwrap().last, 256);
        let Found::Page(next) = ring.after(256) else { panic!("it is there") };
        assert_eq!(gather(&ring, next).len(), 44, "what there is, without a wait");
    }

    #[test]
    fn only_a_frame_that_ends_with_a_commit_has_a_cursor() {
        let sent = frames(events(&[(1, 256), (300, 600), (900, 3)], 1), 950);
        let ends: Vec<_> = sent.iter().map(|(events, end)| (events.len(), *end)).collect();
        assert_eq!(ends, [(256, Some(299)), (256, None), (256, None), (91, Some(950))]);
    }

    #[test]
    fn frames_are_bounded_in_bytes_and_lose_nothing() {
        let all = events(&[(1, 10), (20, 10)], 100_000);
        let sent = frames(all.clone(), 30);
        assert!(sent.iter().all(|(events, _)| events.len() <= 2));
        let positions: Vec<_> =
            sent.iter().flat_map(|(events, _)| events.iter().map(|e| e.position)).collect();
        assert_eq!(positions, all.iter().map(|(_, e)| e.position).collect::<Vec<_>>());
        assert_eq!(frames(Vec::new(), 30).len(), 0);
    }
}
