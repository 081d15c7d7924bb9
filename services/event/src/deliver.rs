//! One subscription: its place in the log, and what goes out from there. It takes pages from the
//! ring, or from the table when it has fallen behind, and sends what its filter wants.

use std::{borrow::Cow, sync::Arc, time::Duration};

use stepwell_proto::{
    EncodedEvent,
    id::Cursor,
    refusal::Refusal,
    v1::{
        CaughtUp, Checkpoint, End, EndReason, EventBatch, FellBehind, SubscribeResponse, Task,
        subscribe_response::Kind,
    },
};
use stepwell_serve::{Age, Shutdown};
use stepwell_store::{Error, Store};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tonic::Status;

use crate::{
    filter::Filter,
    metrics::{Metrics, Seat},
    place::expired,
    ring::{Forms, Found, Page, Piece, Recorded, Ring, Visit},
    said::SaidOf,
    tail::read_page,
    trace,
};

pub(crate) const FRAME_EVENTS_MAX: usize = 256;
pub(crate) const FRAME_BYTES_MAX: usize = 256 << 10;
/// Rows of one read of a subscription that is behind.
pub(crate) const CATCH_UP_ROWS: i64 = 500;
/// Without an event for so long, a checkpoint tells how far the feed has come.
pub(crate) const CHECKPOINT_AFTER: Duration = Duration::from_secs(15);

/// How long a reader has at the end to make room for being told so.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);
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
    pub(crate) metadata_only: bool,
    /// What it begins with; none: a checkpoint.
    pub(crate) snapshot: Option<Task>,
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
    /// Delivers until the reader goes, what comes next is gone, the stream is old or shutdown begins.
    pub(crate) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        let old = tokio::time::sleep(self.age.of_a_stream());
        let reason = tokio::select! {
            ended = self.deliver() => {
                if let Some(refusal) = ended {
                    // A reader whose queue is full is waited for a little; it asks again in any case.
                    let told = self.out.send(Err(refusal.into()));
                    let _ = tokio::time::timeout(LAST_WORD, told).await;
                }
                return;
            }
            () = old => EndReason::Rotate,
            () = shutdown.wait() => EndReason::Drain,
        };
        // The place may lie inside of what was just sent: the reader resumes after its cursor, maybe
        // elsewhere. One whose queue is full is waited for a little; it resumes in any case.
        let _ = tokio::time::timeout(LAST_WORD, self.out.send(Ok(end(reason)))).await;
    }

    /// Why it ends; none: the reader has gone.
    async fn deliver(&mut self) -> Option<Refusal> {
        let forms = Forms { derived: self.filter.wants_derived(), bare: self.metadata_only };
        let mut visit = self.ring.visit(self.filter.tasks(), forms);
        self.begun.notify_one();
        let first = match self.snapshot.take() {
            Some(task) => Kind::Snapshot(task),
            None => Kind::Checkpoint(Checkpoint {}),
        };
        if self.say(first).await.is_err() {
            return None;
        }
        let mut is_behind = false;
        let mut said = Instant::now();
        let mut wait = CATCH_UP_AGAIN;
        let mut failing = false;
        loop {
            let found = visit.after(self.place);
            let behind = matches!(found, Found::Behind);
            if behind != std::mem::replace(&mut is_behind, behind) {
                self.seat.behind(behind);
                if self.say(notice(behind)).await.is_err() {
                    return None;
                }
            }
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
                    Err(Error::Expired { earliest }) => {
                        return Some(expired(self.epoch, earliest));
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
                Found::Level => self.wait(&mut visit, said + CHECKPOINT_AFTER).await,
            };
            let Ok(sent) = sent else { return None };
            if sent {
                said = Instant::now();
            } else if said.elapsed() >= CHECKPOINT_AFTER {
                if self.say(Kind::Checkpoint(Checkpoint {})).await.is_err() {
                    return None;
                }
                said = Instant::now();
            }
        }
    }

    /// Waits at the end of the log; then its place is behind all that it need not look at. False:
    /// nothing was sent.
    async fn wait(&mut self, visit: &mut Visit, until: Instant) -> Result<bool, Gone> {
        if visit.is_routed() {
            self.seat.level();
        }
        tokio::select! {
            () = visit.changed() => {}
            () = tokio::time::sleep_until(until) => {}
            () = self.out.closed() => return Err(Gone),
        }
        self.place = visit.skip(self.place);
        self.seat.at(self.place);
        Ok(false)
    }

    async fn catch_up(&self) -> Result<Option<Page>, Error> {
        read_page(&self.store, &self.said, self.place, CATCH_UP_ROWS).await
    }

    fn cursor(&self, position: i64) -> String {
        Cursor { epoch: self.epoch, position }.encode()
    }

    /// Says something that is no event, at its place.
    async fn say(&self, kind: Kind) -> Result<(), Gone> {
        let response = SubscribeResponse {
            cursor: self.cursor(self.place),
            kind: Some(kind),
            ..SubscribeResponse::default()
        };
        self.out.send(Ok(response)).await.map_err(|_| Gone)
    }

    /// Sends what is wanted of consecutive pages; the place moves behind them. True: something was
    /// sent.
    async fn send(&mut self, pages: &[Arc<Page>]) -> Result<bool, Gone> {
        let Some(last) = pages.last().map(|page| page.last) else { return Ok(false) };
        let mut any = false;
        let wanted = pages.iter().flat_map(|page| wanted(page, self.place, &self.filter));
        let events = wanted.flat_map(|wanted| {
            let batch = wanted.recorded.batch;
            let sent: Vec<_> = wanted.sent(self.metadata_only).map(|sent| (batch, sent)).collect();
            sent
        });
        for (encoded, end) in frames(events.collect(), last) {
            any = true;
            self.metrics.delivered(encoded.len());
            let cursor = end.map(|position| self.cursor(position)).unwrap_or_default();
            let kind = Some(Kind::Events(EventBatch { encoded, ..EventBatch::default() }));
            let response = SubscribeResponse { cursor, kind, ..SubscribeResponse::default() };
            self.out.send(Ok(response)).await.map_err(|_| Gone)?;
        }
        self.place = last;
        self.seat.at(last);
        Ok(any)
    }
}

/// The stream ends on purpose.
pub(crate) fn end(reason: EndReason) -> SubscribeResponse {
    let kind = Some(Kind::End(End { reason: reason.into() }));
    SubscribeResponse { kind, ..SubscribeResponse::default() }
}

fn notice(is_behind: bool) -> Kind {
    if is_behind { Kind::FellBehind(FellBehind {}) } else { Kind::CaughtUp(CaughtUp {}) }
}

/// The page with those after it, as far as they fill a frame: a reader that is slow gets much at once,
/// however small the commits are.
fn gather(ring: &Ring, first: Arc<Page>) -> Vec<Arc<Page>> {
    let (mut events, mut bytes) = (first.events.len(), first.bytes);
    let mut pages = vec![first];
    while events < FRAME_EVENTS_MAX && bytes < FRAME_BYTES_MAX {
        let Some(last) = pages.last().map(|page| page.last) else { break };
        let Found::Page(next) = ring.after(last) else { break };
        events += next.events.len();
        bytes += next.bytes;
        pages.push(next);
    }
    pages
}

/// A recorded event, if it or something that is derived from it is wanted.
pub(crate) struct Wanted<'a> {
    pub(crate) recorded: &'a Recorded,
    filter: &'a Filter,
    itself: bool,
    derived: Cow<'a, [Piece]>,
}

impl<'a> Wanted<'a> {
    /// A recorded event that is about what the filter wants, if it or what is derived from it is wanted.
    fn of(recorded: &'a Recorded, filter: &'a Filter) -> Option<Self> {
        let itself = filter.wants_one(&recorded.piece);
        let derived =
            if filter.wants_derived() { recorded.derived() } else { Cow::Borrowed(&[][..]) };
        let any = itself || derived.iter().any(|piece| filter.wants_one(piece));
        any.then_some(Self { recorded, filter, itself, derived })
    }

    /// What of it is wanted, in order.
    pub(crate) fn pieces(&self) -> impl DoubleEndedIterator<Item = &Piece> {
        let derived = self.derived.iter().filter(|piece| self.filter.wants_one(piece));
        self.itself.then_some(&self.recorded.piece).into_iter().chain(derived)
    }

    /// The same as it goes to one subscription.
    pub(crate) fn sent(&self, bare: bool) -> impl Iterator<Item = EncodedEvent> {
        self.pieces().map(move |piece| trace::deliver(self.recorded, piece, bare))
    }
}

/// What of a page after a place the filter wants.
pub(crate) fn wanted<'a>(
    page: &'a Page,
    place: i64,
    filter: &'a Filter,
) -> impl DoubleEndedIterator<Item = Wanted<'a>> {
    let about = move |of: &&Recorded| of.position > place && filter.wants_about(of);
    page.events.iter().filter(about).filter_map(move |recorded| Wanted::of(recorded, filter))
}

/// Events with where a cursor may stand after them.
type Frame = (Vec<EncodedEvent>, Option<i64>);

/// The events in frames of bounded size. A frame that ends with a commit has the place after it;
/// the last one has the place after everything.
fn frames(wanted: Vec<(i64, EncodedEvent)>, last: i64) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut bytes = 0;
    let mut before = None;
    for (batch, event) in wanted {
        let size = event.encoded_len();
        let full = frames.last().is_none_or(|(events, _)| {
            events.len() >= FRAME_EVENTS_MAX || bytes + size > FRAME_BYTES_MAX
        });
        if full {
            if let (Some((_, end)), Some(of_batch)) = (frames.last_mut(), before)
                && of_batch != batch
            {
                // Everything before this commit was sent.
                *end = Some(batch - 1);
            }
            frames.push((Vec::new(), None));
            bytes = 0;
        }
        bytes += size;
        before = Some(batch);
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
    use stepwell_proto::v1::Event;
    use stepwell_store::{Said, StoredDefinition};
    use uuid::Uuid;

    use super::*;

    fn events(batches: &[(i64, usize)], bytes: usize) -> Vec<(i64, EncodedEvent)> {
        let mut events = Vec::new();
        for (batch, n) in batches {
            for i in 0..*n {
                let position = batch + i64::try_from(i).unwrap();
                let task_id = "x".repeat(bytes);
                let event = Event { position, task_id, ..Event::default() };
                events.push((*batch, EncodedEvent::new(event)));
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
                ..StoredDefinition::default()
            });
            let event = Event { position, ..Event::default() };
            let said = Said::default();
            let recorded =
                Recorded::new(event, position, Uuid::nil(), &definition, said, Forms::default());
            ring.push(Page::new(position - 1, position, vec![recorded]));
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

    fn position(event: &EncodedEvent) -> i64 {
        event.decode().unwrap().position
    }

    #[test]
    fn frames_are_bounded_in_bytes_and_lose_nothing() {
        let all = events(&[(1, 10), (20, 10)], 100_000);
        let sent = frames(all.clone(), 30);
        assert!(sent.iter().all(|(events, _)| events.len() <= 2));
        let positions: Vec<_> =
            sent.iter().flat_map(|(events, _)| events.iter().map(position)).collect();
        assert_eq!(positions, all.iter().map(|(_, e)| position(e)).collect::<Vec<_>>());
        assert_eq!(frames(Vec::new(), 30).len(), 0);
    }
}
