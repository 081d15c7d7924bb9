//! The log in pages: what of it fits a filter, without a subscription. A list ends where the log ended when
//! its first page was asked for, so it is finite however fast the log grows.

use prost::Message;
use stepwell_proto::{
    id::{Cursor, EventsToken},
    page,
    refusal::Refusal,
    v1::{Event, ListEventsRequest, ListEventsResponse, list_events_request::Start},
};
use stepwell_store::{Error, Store};

use crate::{
    deliver::{Wanted, wanted},
    filter::Filter,
    place,
    ring::Page,
    said::SaidOf,
    tail::{read_page, read_page_before},
};

const SIZE_MAX: i32 = 1_000;
/// Bytes of the events of a page, about.
const BYTES_MAX: usize = 2 << 20;
/// Recorded events that one page looks at, about.
const LOOKED_AT_MAX: usize = 10_000;
/// Rows of one read.
const ROWS: i64 = 500;

/// A page.
pub(crate) async fn list(
    store: &Store,
    said: &SaidOf,
    request: ListEventsRequest,
) -> Result<ListEventsResponse, Refusal> {
    let size = page::size(request.page_size, SIZE_MAX)
        .map_err(|what| Refusal::field("page_size", what))?;
    let size = usize::try_from(size).unwrap_or_default();
    let epoch = store.log_epoch().await?;
    let filter = Filter::check(store, request.filter.clone().unwrap_or_default()).await?;
    let list = list_of(&request, epoch);
    let left = match EventsToken::decode(&request.page_token) {
        Some(token) if token.list == list => token,
        Some(_) => return Err(page::strange("belongs to another list")),
        None if request.page_token.is_empty() => {
            let end = store.head().await?;
            let after = after(store, epoch, request.start, &filter).await?.min(end);
            EventsToken { list, after, until: end, skip: 0, end }
        }
        None => return Err(page::strange("not one that was received")),
    };
    let (newest_first, bare) = (request.newest_first, request.metadata_only);
    let events = Vec::with_capacity(size);
    let mut walk = Walk { left, newest_first, bare, size, events, bytes: 0, is_full: false };
    let mut looked_at = 0;
    while !walk.is_full && !walk.is_at_end() && looked_at < LOOKED_AT_MAX {
        let EventsToken { after, until, .. } = walk.left;
        let page = match newest_first {
            false => read_page(store, said, after, ROWS).await,
            true => read_page_before(store, said, until.saturating_add(1), ROWS).await,
        };
        match page {
            Ok(Some(page)) => {
                looked_at += page.events.len();
                walk.take(&page, &filter);
            }
            Ok(None) => walk.end(),
            Err(Error::Expired { earliest }) => return Err(place::expired(epoch, earliest)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ListEventsResponse {
        next_page_token: if walk.is_at_end() { String::new() } else { walk.left.encode() },
        cursor: Cursor { epoch, position: walk.left.end }.encode(),
        events: walk.events,
    })
}

/// What the list is, as its page tokens name it.
fn list_of(request: &ListEventsRequest, epoch: i64) -> u64 {
    let (page_size, page_token) = (0, String::new());
    let whole = ListEventsRequest { page_size, page_token, ..request.clone() };
    page::list("events", [&epoch.to_be_bytes()[..], &whole.encode_to_vec()].concat())
}

/// The place before the oldest event of the list.
async fn after(
    store: &Store,
    epoch: i64,
    start: Option<Start>,
    filter: &Filter,
) -> Result<i64, Refusal> {
    let asked = match start {
        None | Some(Start::Earliest(_)) => 0,
        Some(Start::AtTime(time)) => place::at_time(store, "at_time", &time).await?,
        Some(Start::AfterCursor(text)) => {
            place::after_cursor(store, epoch, "after_cursor", &text).await?
        }
    };
    Ok(place::earliest(store, filter.tasks()).await?.max(asked))
}

/// A page as it fills.
struct Walk {
    /// What of the list comes after it.
    left: EventsToken,
    newest_first: bool,
    bare: bool,
    size: usize,
    events: Vec<Event>,
    bytes: usize,
    is_full: bool,
}

impl Walk {
    fn is_at_end(&self) -> bool {
        self.left.after >= self.left.until
    }

    fn end(&mut self) {
        self.left.after = self.left.until;
    }

    /// This position and all that the list has before it were looked at.
    fn pass(&mut self, position: i64) {
        if self.newest_first {
            self.left.until = (position - 1).max(self.left.after);
        } else {
            self.left.after = position.min(self.left.until);
        }
        self.left.skip = 0;
    }

    /// Takes from what was read what is wanted and fits.
    fn take(&mut self, page: &Page, filter: &Filter) {
        let EventsToken { after, until, .. } = self.left;
        let is_left = |wanted: &Wanted<'_>| wanted.recorded.position <= until;
        let mut found: Vec<_> = wanted(page, after, filter).filter(is_left).collect();
        if self.newest_first {
            found.reverse();
        }
        for wanted in found {
            let position = wanted.recorded.position;
            let (next, before) = match self.newest_first {
                true => (self.left.until, position + 1),
                false => (self.left.after + 1, position - 1),
            };
            if next != position {
                // What lies between is not wanted.
                self.pass(before);
            }
            let mut pieces: Vec<_> = wanted.pieces().collect();
            if self.newest_first {
                pieces.reverse();
            }
            for piece in pieces.into_iter().skip(usize::try_from(self.left.skip).unwrap_or(0)) {
                let sent = piece.sent(self.bare);
                let fits = self.bytes + sent.encoded_len() <= BYTES_MAX || self.events.is_empty();
                if self.events.len() == self.size || !fits {
                    self.is_full = true;
                    return;
                }
                self.bytes += sent.encoded_len();
                // It was encoded here.
                self.events.push(sent.decode().unwrap_or_default());
                self.left.skip += 1;
            }
            self.pass(position);
            if self.events.len() == self.size {
                self.is_full = true;
                return;
            }
        }
        self.pass(if self.newest_first { page.after + 1 } else { page.last });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use stepwell_proto::v1::{Definition, EventFilter, StepTemplate, TaskInitializeRequested};
    use stepwell_store::{Said, StoredDefinition};
    use uuid::Uuid;

    use super::*;
    use crate::ring::{Forms, Recorded};

    /// A page of the log: tasks of so many steps were created, each in a commit of its own.
    fn page(steps: &[usize]) -> Page {
        let recorded = |(i, n): (usize, &usize)| {
            let position = i64::try_from(i).unwrap() * 2 + 1;
            let definition =
                Definition { steps: vec![StepTemplate::default(); *n], ..Definition::default() };
            let (id, version) = (1, [1, 0, 0]);
            let stored = StoredDefinition { id, version, definition, ..Default::default() };
            let definition = Arc::new(stored);
            let event = Event {
                position,
                name: "task.initialize_requested".into(),
                detail: Some(TaskInitializeRequested::default().into()),
                ..Event::default()
            };
            let (said, forms) = (Said::default(), Forms::default());
            Recorded::new(event, position, Uuid::nil(), &definition, said, forms)
        };
        let events: Vec<_> = steps.iter().enumerate().map(recorded).collect();
        Page::new(0, events.last().map_or(0, |last| last.position), events)
    }

    fn filter(names: &[&str]) -> Filter {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Filter::read(EventFilter { names, ..EventFilter::default() }).unwrap()
    }

    /// All pages of a list of the positions above `after`, up to `until`.
    fn pages(
        log: &Page,
        filter: &Filter,
        (after, until): (i64, i64),
        newest_first: bool,
        size: usize,
    ) -> Vec<Vec<Event>> {
        let mut left = EventsToken { list: 0, after, until, skip: 0, end: until };
        let mut pages = Vec::new();
        loop {
            let events = Vec::new();
            let mut walk =
                Walk { left, newest_first, bare: false, size, events, bytes: 0, is_full: false };
            walk.take(log, filter);
            if !walk.is_full {
                // There is no more.
                walk.end();
            }
            pages.push(walk.events.clone());
            if walk.is_at_end() {
                return pages;
            }
            left = EventsToken::decode(&walk.left.encode()).unwrap();
        }
    }

    proptest! {
        /// However pages are cut, also between an event and what is derived from it.
        #[test]
        fn each_event_is_on_one_page_in_order_and_newest_first_is_the_same_backwards(
            steps in proptest::collection::vec(0..4usize, 0..12),
            size in 1..5usize,
            after in 0..12i64,
            until in 0..24i64,
            only_derived: bool,
        ) {
            let log = page(&steps);
            let names = ["task.*", "step.initialize_requested"];
            let wanted = filter(&names[usize::from(only_derived)..]);
            let range = (after.min(until), until);
            let whole: Vec<Event> = pages(&log, &wanted, range, false, 1000).concat();
            let expected = steps.iter().enumerate().filter(|(i, _)| {
                let position = i64::try_from(*i).unwrap() * 2 + 1;
                range.0 < position && position <= until
            });
            let expected: usize =
                expected.map(|(_, steps)| steps + usize::from(!only_derived)).sum();
            prop_assert_eq!(whole.len(), expected);
            let cut = pages(&log, &wanted, range, false, size);
            prop_assert!(cut.iter().all(|page| page.len() <= size));
            prop_assert_eq!(cut.concat(), whole.clone());
            let mut backwards: Vec<Event> = pages(&log, &wanted, range, true, size).concat();
            backwards.reverse();
            prop_assert_eq!(backwards, whole);
        }
    }

    #[test]
    fn a_page_is_bounded_in_bytes_and_has_one_event_in_any_case() {
        let large = |position| {
            let context = "x".repeat(BYTES_MAX / 2);
            let event = Event {
                position,
                name: "task.initialize_requested".into(),
                detail: Some(TaskInitializeRequested { context, ..Default::default() }.into()),
                ..Event::default()
            };
            let definition = StoredDefinition { id: 1, version: [1, 0, 0], ..Default::default() };
            let (said, forms) = (Said::default(), Forms::default());
            Recorded::new(event, position, Uuid::nil(), &Arc::new(definition), said, forms)
        };
        let log = Page::new(0, 3, (1..=3).map(large).collect());
        for newest_first in [false, true] {
            let pages = pages(&log, &filter(&["*"]), (0, 3), newest_first, 10);
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        }
    }

    #[test]
    fn a_token_is_of_one_list_whatever_the_size_of_its_pages_is() {
        let request = ListEventsRequest { page_size: 5, ..ListEventsRequest::default() };
        let list = list_of(&request, 1);
        assert_eq!(list, list_of(&ListEventsRequest { page_size: 9, ..request.clone() }, 1));
        assert_ne!(list, list_of(&request, 2), "of another log");
        let filter = Some(EventFilter { only_final_failures: true, ..EventFilter::default() });
        for other in [
            ListEventsRequest { newest_first: true, ..request.clone() },
            ListEventsRequest { metadata_only: true, ..request.clone() },
            ListEventsRequest { filter, ..request.clone() },
            ListEventsRequest { start: Some(Start::AfterCursor("x".into())), ..request.clone() },
        ] {
            assert_ne!(list, list_of(&other, 1));
        }
    }
}
