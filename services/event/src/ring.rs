//! The latest part of the log, in memory, shared by all subscriptions. Each has its own place; one
//! whose place has fallen out of the ring reads the table until it is in again. So memory does not
//! grow with slow readers, and they hold up nobody. An event is encoded here once, for all.
//!
//! A subscription that wants a few tasks has a *route* here: it is woken for their events only, and
//! told then how far it may skip.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

use stepwell_proto::{
    EncodedEvent,
    v1::{Event, Failure, event::Detail},
};
use stepwell_store::{Said, StoredDefinition, derive};
use stepwell_trace::TraceContext;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// What a piece costs in memory beside its bytes.
const PIECE_BYTES: usize = 128;
/// The same of a recorded event.
const RECORDED_BYTES: usize = 256;
/// Nothing came along a route.
const NOTHING: i64 = i64::MAX;
/// Somebody may have to look at the table.
const ANYTHING: i64 = i64::MIN;

/// One event as it is sent, and what of it filters and spans ask for.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) step_name: String,
    pub(crate) attempt: i32,
    pub(crate) encoded: EncodedEvent,
    /// The same without what may be large or private; none: nobody asked for that when it was read.
    bare: Option<EncodedEvent>,
}

impl Piece {
    fn new(event: Event, bare: bool) -> Self {
        Self {
            name: event.name.clone(),
            step_name: event.step_name.clone(),
            attempt: event.attempt,
            bare: bare.then(|| EncodedEvent::new(strip(event.clone()))),
            encoded: EncodedEvent::new(event),
        }
    }

    /// As it goes to a subscription: in full, or bare.
    pub(crate) fn sent(&self, bare: bool) -> EncodedEvent {
        match &self.bare {
            Some(encoded) if bare => encoded.clone(),
            // It was encoded here.
            None if bare => EncodedEvent::new(strip(self.encoded.decode().unwrap_or_default())),
            _ => self.encoded.clone(),
        }
    }

    fn bytes(&self) -> usize {
        let encoded = self.bare.iter().chain([&self.encoded]).map(EncodedEvent::encoded_len);
        PIECE_BYTES + self.name.len() + self.step_name.len() + encoded.sum::<usize>()
    }
}

/// Takes from an event what may be large or private. What can say so says that it was left out.
pub(crate) fn strip(mut event: Event) -> Event {
    let emptied = |text: &mut String| !std::mem::take(text).is_empty();
    match &mut event.detail {
        Some(Detail::TaskInitializeRequested(created)) => {
            created.context_omitted |= emptied(&mut created.context);
        }
        Some(Detail::StepCompleted(completed)) => {
            completed.result_omitted |= emptied(&mut completed.result);
        }
        Some(Detail::StepResolvedManually(resolved)) => {
            resolved.result_omitted |= emptied(&mut resolved.result);
        }
        Some(Detail::StepUpdated(updated)) => {
            updated.config_omitted |= updated.config.take().is_some();
        }
        Some(Detail::StepFailed(failed)) => strip_failure(failed.error.as_mut()),
        Some(Detail::CustomEvent(custom)) => custom.data_omitted |= emptied(&mut custom.data),
        Some(Detail::ObservabilityTaskEnqueue(enqueued)) => enqueued.task_context.clear(),
        _ => {}
    }
    event
}

/// Leaves of a failure what programs decide by.
pub(crate) fn strip_failure(failure: Option<&mut Failure>) {
    if let Some(failure) = failure {
        failure.message.clear();
        failure.backtrace.clear();
        failure.context.clear();
    }
}

/// In which forms events are encoded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forms {
    /// Also what is derived.
    pub(crate) derived: bool,
    /// Also bare.
    pub(crate) bare: bool,
}

/// A recorded event with its definition, for what is derived from it.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) position: i64,
    pub(crate) batch: i64,
    pub(crate) task: Uuid,
    pub(crate) definition: Arc<StoredDefinition>,
    /// What is said of its task.
    pub(crate) said: Said,
    /// It tells of a failure after which the step is tried again.
    pub(crate) is_tried_again: bool,
    /// Where in a trace its task is, if that is recorded.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) piece: Piece,
    /// What is derived from it; none: nobody asked for that when it was read.
    derived: Option<Vec<Piece>>,
}

impl Recorded {
    /// Encodes an event.
    pub(crate) fn new(
        event: Event,
        batch: i64,
        task: Uuid,
        definition: &Arc<StoredDefinition>,
        said: Said,
        forms: Forms,
    ) -> Self {
        let trace = TraceContext::parse(&event.traceparent).filter(|task| task.is_sampled());
        let is_tried_again = matches!(
            &event.detail,
            Some(Detail::StepFailed(failed)) if !failed.r#final
        );
        let piece = |event| Piece::new(event, forms.bare);
        let derived =
            forms.derived.then(|| derive(&event, definition).into_iter().map(piece).collect());
        Self {
            position: event.position,
            batch,
            task,
            definition: Arc::clone(definition),
            said,
            is_tried_again,
            trace,
            piece: Piece::new(event, forms.bare),
            derived,
        }
    }

    /// What is derived from it, in a fixed order.
    pub(crate) fn derived(&self) -> Cow<'_, [Piece]> {
        match &self.derived {
            Some(derived) => Cow::Borrowed(derived),
            None => {
                // It was encoded here.
                let event = self.piece.encoded.decode().unwrap_or_default();
                let piece = |event| Piece::new(event, false);
                derive(&event, &self.definition).into_iter().map(piece).collect()
            }
        }
    }

    /// About how many bytes it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        let derived = self.derived.iter().flatten().map(Piece::bytes).sum::<usize>();
        RECORDED_BYTES + self.piece.bytes() + derived
    }
}

/// Whole commits, one after the other.
#[derive(Debug)]
pub(crate) struct Page {
    /// The place before the first of them.
    pub(crate) after: i64,
    /// The place after the last of them.
    pub(crate) last: i64,
    pub(crate) events: Vec<Recorded>,
    /// About how many bytes they hold in memory.
    pub(crate) bytes: usize,
}

impl Page {
    pub(crate) fn new(after: i64, last: i64, events: Vec<Recorded>) -> Self {
        let bytes = events.iter().map(Recorded::bytes).sum();
        Self { after, last, events, bytes }
    }
}

/// What a subscription finds at its place.
#[derive(Debug)]
pub(crate) enum Found {
    /// The page that goes on from there.
    Page(Arc<Page>),
    /// It has everything.
    Level,
    /// Its place is older than the ring: the table has what comes next.
    Behind,
}

/// The shared part.
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    head: watch::Sender<i64>,
    bytes_max: usize,
    /// How many subscriptions want derived events.
    derived: AtomicUsize,
    /// How many want events bare.
    bare: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    pages: Pages,
    /// Those who want a few tasks, by task.
    routes: HashMap<Uuid, Vec<Arc<Route>>>,
}

#[derive(Default)]
struct Pages {
    /// The place before the first page; none: the tail sleeps.
    start: Option<i64>,
    pages: VecDeque<Arc<Page>>,
    bytes: usize,
}

impl Pages {
    fn end(&self) -> Option<i64> {
        self.pages.back().map(|page| page.last).or(self.start)
    }
}

/// Where one subscription is told that something came for it.
#[derive(Debug)]
pub(crate) struct Route {
    rung: Notify,
    /// The place before the first page with something for it, since it asked last; see `NOTHING` and
    /// `ANYTHING`. Changed only under the ring's lock.
    from: AtomicI64,
}

impl Route {
    fn ring(&self, from: i64) {
        if self.from.fetch_min(from, Ordering::Relaxed) == NOTHING {
            self.rung.notify_one();
        }
    }
}

/// What one subscription needs of the ring, as long as it lives.
pub(crate) struct Visit {
    ring: Arc<Ring>,
    changes: watch::Receiver<i64>,
    /// None: it wants all tasks.
    route: Option<(Arc<Route>, Vec<Uuid>)>,
    forms: Forms,
}

impl Visit {
    /// What comes after a place. The page may begin before it.
    pub(crate) fn after(&mut self, place: i64) -> Found {
        self.begin();
        self.ring.after(place)
    }

    /// A look at several places begins: what changes from now on is told of.
    pub(crate) fn begin(&mut self) {
        self.changes.mark_unchanged();
    }

    /// Waits until there is something new that may be wanted, after it found nothing.
    pub(crate) async fn changed(&mut self) {
        match &self.route {
            Some((route, _)) => route.rung.notified().await,
            None => drop(self.changes.changed().await),
        }
    }

    /// True when it is not told of everything: its place may lie far behind though it has everything.
    pub(crate) fn is_routed(&self) -> bool {
        self.route.is_some()
    }

    /// How far it may go without a look, if it had everything when it looked last.
    pub(crate) fn skip(&self, place: i64) -> i64 {
        let Some((route, _)) = &self.route else { return place };
        let inner = self.ring.lock();
        let from = match route.from.swap(NOTHING, Ordering::Relaxed) {
            NOTHING => inner.pages.end().unwrap_or(place),
            from => from,
        };
        place.max(from)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.ring.derived.fetch_sub(self.forms.derived.into(), Ordering::Relaxed);
        self.ring.bare.fetch_sub(self.forms.bare.into(), Ordering::Relaxed);
        let Some((route, tasks)) = &self.route else { return };
        let mut inner = self.ring.lock();
        for task in tasks {
            if let Some(routes) = inner.routes.get_mut(task) {
                routes.retain(|other| !Arc::ptr_eq(other, route));
                if routes.is_empty() {
                    inner.routes.remove(task);
                }
            }
        }
    }
}

impl Ring {
    /// An empty one, that keeps at most so many bytes and at least the last page.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let (inner, head) = (Mutex::default(), watch::Sender::new(0));
        let (derived, bare) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { inner, head, bytes_max, derived, bare }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to look at it, for these tasks or, if there are none, for all, in these forms.
    pub(crate) fn visit(self: &Arc<Self>, tasks: &[Uuid], forms: Forms) -> Visit {
        self.derived.fetch_add(forms.derived.into(), Ordering::Relaxed);
        self.bare.fetch_add(forms.bare.into(), Ordering::Relaxed);
        let changes = self.head.subscribe();
        let route = (!tasks.is_empty()).then(|| {
            let route = Arc::new(Route { rung: Notify::new(), from: NOTHING.into() });
            let mut inner = self.lock();
            for task in tasks {
                inner.routes.entry(*task).or_default().push(Arc::clone(&route));
            }
            (route, tasks.to_vec())
        });
        Visit { ring: Arc::clone(self), changes, route, forms }
    }

    /// How many look at it.
    pub(crate) fn readers(&self) -> usize {
        self.head.receiver_count()
    }

    /// The forms that somebody wants.
    pub(crate) fn forms(&self) -> Forms {
        let some = |n: &AtomicUsize| n.load(Ordering::Relaxed) > 0;
        Forms { derived: some(&self.derived), bare: some(&self.bare) }
    }

    /// About how many bytes its pages hold.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().pages.bytes
    }

    /// The place after the last page; none: the tail sleeps.
    pub(crate) fn end(&self) -> Option<i64> {
        self.lock().pages.end()
    }

    /// The tail wakes at this place.
    pub(crate) fn wake(&self, at: i64) {
        let mut inner = self.lock();
        inner.pages = Pages { start: Some(at), ..Pages::default() };
        // Who found nothing while the tail slept may have to look at the table.
        inner.routes.values().flatten().for_each(|route| route.ring(ANYTHING));
        drop(inner);
        self.head.send_replace(at);
    }

    /// The tail sleeps: nobody looks.
    pub(crate) fn sleep(&self) {
        self.lock().pages = Pages::default();
    }

    /// Adds a page; it begins where the last one ended.
    pub(crate) fn push(&self, page: Page) {
        let last = page.last;
        let mut inner = self.lock();
        let Inner { pages, routes } = &mut *inner;
        debug_assert_eq!(pages.end(), Some(page.after));
        if !routes.is_empty() {
            let wanted = page.events.iter().filter_map(|event| routes.get(&event.task));
            wanted.flatten().for_each(|route| route.ring(page.after));
        }
        pages.bytes += page.bytes;
        pages.pages.push_back(Arc::new(page));
        while pages.bytes > self.bytes_max && pages.pages.len() > 1 {
            let Some(gone) = pages.pages.pop_front() else { break };
            pages.bytes -= gone.bytes;
            pages.start = Some(gone.last);
        }
        drop(inner);
        self.head.send_replace(last);
    }

    /// What comes after a place. The page may begin before it.
    pub(crate) fn after(&self, place: i64) -> Found {
        let inner = self.lock();
        let Pages { start, pages, .. } = &inner.pages;
        let Some(start) = start else { return Found::Level };
        if place < *start {
            return Found::Behind;
        }
        let next = pages.partition_point(|page| page.last <= place);
        pages.get(next).map_or(Found::Level, |page| Found::Page(Arc::clone(page)))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;
    use stepwell_proto::v1::{
        CustomEvent, StepCompleted, StepFailed, StepResolvedManually, StepUpdated,
        TaskInitializeRequested,
    };

    use super::*;

    fn definition() -> Arc<StoredDefinition> {
        Arc::new(StoredDefinition { id: 1, version: [1, 0, 0], ..StoredDefinition::default() })
    }

    fn page(after: i64, last: i64) -> Page {
        page_of(after, last, Uuid::nil())
    }

    fn page_of(after: i64, last: i64, task: Uuid) -> Page {
        let event = |position| {
            let event = Event { position, ..Event::default() };
            Recorded::new(event, position, task, &definition(), Said::default(), Forms::default())
        };
        let events = (after + 1..=last).map(event).collect();
        Page {
            bytes: 100 * usize::try_from(last - after).unwrap(),
            ..Page::new(after, last, events)
        }
    }

    proptest! {
        /// Readers of any speed see the whole log, in order, once; memory stays bounded.
        #[test]
        fn nobody_skips_or_repeats(
            pages in proptest::collection::vec(1..5i64, 1..60),
            turns in proptest::collection::vec((0..3usize, 1..6usize), 0..100),
        ) {
            let ring = Ring::new(1000);
            ring.wake(0);
            let mut readers = [0i64; 3];
            let mut head = 0;
            let mut turns = turns.into_iter();
            for n in pages {
                ring.push(page(head, head + n));
                head += n;
                prop_assert!(ring.bytes() <= 1000 + 400);
                if let Some((reader, steps)) = turns.next() {
                    for _ in 0..steps {
                        read(&ring, &mut readers[reader], head)?;
                    }
                }
            }
            for place in &mut readers {
                while *place < head {
                    read(&ring, place, head)?;
                }
                prop_assert!(matches!(ring.after(*place), Found::Level));
            }
        }
    }

    /// One step of a reader; the table has everything up to the head.
    fn read(ring: &Ring, place: &mut i64, head: i64) -> Result<(), TestCaseError> {
        match ring.after(*place) {
            Found::Level => prop_assert_eq!(*place, head),
            Found::Behind => *place = (*place + 2).min(head),
            Found::Page(page) => {
                prop_assert!(page.after <= *place && page.last > *place);
                let next = page.events.iter().map(|e| e.position).find(|p| *p > *place);
                prop_assert_eq!(next, Some(*place + 1));
                *place = page.last;
            }
        }
        Ok(())
    }

    #[test]
    fn a_sleeping_tail_has_nothing_and_a_woken_one_sends_old_places_to_the_table() {
        let ring = Ring::new(1000);
        assert!(matches!(ring.after(5), Found::Level) && ring.end().is_none());
        ring.wake(9);
        assert!(matches!(ring.after(5), Found::Behind) && matches!(ring.after(9), Found::Level));
        ring.push(page(9, 12));
        assert!(matches!(ring.after(10), Found::Page(_)) && ring.end() == Some(12));
        ring.sleep();
        assert!(matches!(ring.after(5), Found::Level));
    }

    #[test]
    fn who_wants_one_task_is_woken_for_it_alone_and_may_skip_the_rest() {
        let ring = Arc::new(Ring::new(1 << 20));
        ring.wake(0);
        let (mine, other) = (Uuid::now_v7(), Uuid::now_v7());
        let mut visit = ring.visit(&[mine], Forms::default());
        let rung = |visit: &mut Visit| visit.changed().now_or_never().is_some();
        for position in 0..10 {
            ring.push(page_of(position, position + 1, other));
        }
        assert!(!rung(&mut visit));
        assert_eq!(visit.skip(0), 10, "nothing of it came so far");
        ring.push(page_of(10, 12, other));
        ring.push(page_of(12, 14, mine));
        ring.push(page_of(14, 16, other));
        ring.push(page_of(16, 18, mine));
        assert!(rung(&mut visit) && !rung(&mut visit), "once");
        assert_eq!(visit.skip(10), 12, "to the first page that has something for it");
        assert!(matches!(visit.after(12), Found::Page(page) if page.last == 14));
        assert_eq!(visit.skip(18), 18, "what it looked at meanwhile is not looked at again");
        ring.push(page_of(18, 20, mine));
        assert!(rung(&mut visit));
        assert_eq!(visit.skip(18), 18);
        drop(visit);
        assert!(ring.lock().routes.is_empty() && ring.readers() == 0);
    }

    #[test]
    fn who_came_while_the_tail_slept_looks_at_the_table_once_it_wakes() {
        let ring = Arc::new(Ring::new(1000));
        let mut visit = ring.visit(&[Uuid::now_v7()], Forms::default());
        assert!(matches!(visit.after(5), Found::Level));
        assert_eq!(visit.skip(5), 5);
        ring.wake(9);
        assert!(visit.changed().now_or_never().is_some());
        assert_eq!(visit.skip(5), 5);
        assert!(matches!(visit.after(5), Found::Behind));
        assert_eq!(visit.skip(9), 9);
    }

    #[test]
    fn what_is_derived_is_encoded_when_somebody_wants_it_and_made_otherwise() {
        let ring = Arc::new(Ring::new(1000));
        let wanted = || (ring.forms().derived, ring.forms().bare);
        assert_eq!(wanted(), (false, false));
        let visit = ring.visit(&[], Forms { derived: true, bare: false });
        let other = ring.visit(&[], Forms { derived: true, bare: true });
        assert_eq!(wanted(), (true, true));
        drop(other);
        assert_eq!(wanted(), (true, false));
        drop(visit);
        assert_eq!(wanted(), (false, false));
        let created = Event {
            position: 3,
            name: "task.initialize_requested".into(),
            task_id: Uuid::nil().to_string(),
            correlation_id: "c".into(),
            detail: Some(
                TaskInitializeRequested { context: "{}".into(), ..Default::default() }.into(),
            ),
            ..Event::default()
        };
        let recorded = |derived, bare| {
            let (said, forms) = (Said::default(), Forms { derived, bare });
            Recorded::new(created.clone(), 3, Uuid::nil(), &definition(), said, forms)
        };
        let (without, with) = (recorded(false, false), recorded(true, false));
        let events = |recorded: &Recorded| -> Vec<Event> {
            recorded.derived().iter().map(|piece| piece.encoded.decode().unwrap()).collect()
        };
        assert_eq!(events(&without), events(&with));
        assert_eq!(events(&with), derive(&created, &definition()));
        assert!(events(&with).iter().all(|event| event.correlation_id == "c"));
        assert!(with.bytes() > without.bytes());
        let bare = recorded(true, true);
        assert!(bare.bytes() > with.bytes());
        for recorded in [&without, &bare] {
            let sent = recorded.piece.sent(true).decode().unwrap();
            assert_eq!(sent, strip(created.clone()));
            assert_eq!(recorded.piece.sent(false).decode().unwrap(), created);
            let context = |event: Event| match event.detail {
                Some(Detail::ObservabilityTaskEnqueue(enqueued)) => Some(enqueued.task_context),
                _ => None,
            };
            let contexts = |bare| -> Vec<String> {
                let derived = recorded.derived();
                let sent = derived.iter().map(|piece| piece.sent(bare).decode().unwrap());
                sent.filter_map(context).collect()
            };
            assert_eq!((contexts(false), contexts(true)), (vec!["{}".into()], vec![String::new()]));
        }
    }

    #[test]
    fn what_may_be_large_or_private_is_left_out_and_marked() {
        let stripped = |detail: Detail| {
            strip(Event { name: "n".into(), detail: Some(detail), ..Event::default() }).detail
        };
        let full = || "text".to_owned();
        let created = TaskInitializeRequested { context: full(), ..Default::default() };
        let bare = TaskInitializeRequested { context_omitted: true, ..Default::default() };
        assert_eq!(stripped(created.into()), Some(bare.into()));
        let completed = StepCompleted { result: full(), ..Default::default() };
        let bare = StepCompleted { result_omitted: true, ..Default::default() };
        assert_eq!(stripped(completed.into()), Some(bare.into()));
        let resolved =
            StepResolvedManually { result: full(), reason: full(), ..Default::default() };
        let bare =
            StepResolvedManually { result_omitted: true, reason: full(), ..Default::default() };
        assert_eq!(stripped(resolved.into()), Some(bare.into()));
        let updated = StepUpdated { config: Some(full()), ..Default::default() };
        let bare = StepUpdated { config_omitted: true, ..Default::default() };
        assert_eq!(stripped(updated.into()), Some(bare.into()));
        let custom = CustomEvent { version: 2, data: full(), data_omitted: false };
        let bare = CustomEvent { version: 2, data: String::new(), data_omitted: true };
        assert_eq!(stripped(Detail::CustomEvent(custom)), Some(Detail::CustomEvent(bare)));
        let untouched = StepUpdated::default();
        assert_eq!(stripped(untouched.clone().into()), Some(untouched.into()));
        let error = Failure {
            error_class: full(),
            message: full(),
            error_code: full(),
            backtrace: vec![full()],
            retryable: true,
            context: full(),
            ..Default::default()
        };
        let failed = StepFailed { error: Some(error), r#final: true, ..Default::default() };
        let error = Failure {
            error_class: full(),
            error_code: full(),
            retryable: true,
            ..Default::default()
        };
        let bare = StepFailed { error: Some(error), r#final: true, ..Default::default() };
        assert_eq!(stripped(failed.into()), Some(bare.into()));
    }
}
