//! The one reader of the log's end in this process. It reads whole commits in the order of commits
//! and puts them into the ring; while nobody subscribes it does not read at all.

use std::sync::Arc;

use stepwell_serve::Ticker;
use stepwell_store::{Error, EventRow, Store, Writer, event};

use crate::{
    metrics::Metrics,
    ring::{Forms, Page, Recorded, Ring},
    said::SaidOf,
};

/// Rows of one read, about.
const ROWS_MAX: i64 = 2000;

/// What a look came to.
enum Looked {
    /// There may be more to read at once.
    More,
    All,
    OtherLog,
}

/// The loop.
pub(crate) struct Tail {
    pub(crate) store: Store,
    pub(crate) ring: Arc<Ring>,
    pub(crate) said: Arc<SaidOf>,
    /// Which log this process reads.
    pub(crate) epoch: i64,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) reader: Option<Writer>,
}

impl Tail {
    /// Runs until shutdown begins, or until the log is another one: a standby took over. Places in
    /// the former log mean nothing there, so the process begins anew.
    pub(crate) async fn run(mut self, mut ticker: Ticker) {
        let mut in_doubt = false;
        while ticker.next().await {
            match self.look(in_doubt).await {
                Ok(Looked::OtherLog) => {
                    tracing::error!("the database has another log now");
                    return;
                }
                Ok(Looked::More) => {
                    ticker.ok();
                    ticker.again();
                }
                Ok(Looked::All) => ticker.ok(),
                Err(error) => {
                    ticker.back_off(&error);
                    self.reader = None;
                    in_doubt = true;
                    continue;
                }
            }
            in_doubt = false;
        }
    }

    async fn look(&mut self, in_doubt: bool) -> Result<Looked, Error> {
        if in_doubt && self.store.log_epoch().await? != self.epoch {
            return Ok(Looked::OtherLog);
        }
        Ok(if self.tick().await? { Looked::More } else { Looked::All })
    }

    async fn page(&self, end: i64, rows: &[EventRow]) -> Result<Option<Page>, Error> {
        page(&self.store, &self.said, end, rows, true, self.ring.forms()).await
    }

    /// Goes on at this place, wherever it was before.
    fn begin(&self, place: i64) {
        self.said.forget();
        self.ring.wake(place);
    }

    /// True when there may be more to read at once.
    async fn tick(&mut self) -> Result<bool, Error> {
        if self.ring.readers() == 0 {
            self.ring.sleep();
            // What changes from now on it does not see, and lists are read meanwhile.
            self.said.forget();
            return Ok(false);
        }
        let Some(end) = self.ring.end() else {
            self.begin(self.store.head().await?);
            return Ok(true);
        };
        let reader = self.store.connected(&mut self.reader).await?;
        let rows = match reader.read_after(end, ROWS_MAX).await {
            // It stood still for so long that what comes next was dropped: those who have come no
            // further are told.
            Err(Error::Expired { earliest }) => {
                self.begin(earliest);
                return Ok(true);
            }
            rows => rows?,
        };
        let Some(page) = self.page(end, &rows).await? else { return Ok(false) };
        let full = i64::try_from(page.events.len()).is_ok_and(|n| n >= ROWS_MAX);
        self.metrics
            .tailed(page.events.len(), rows.first().map(|first| first.at.timestamp_micros()));
        self.ring.push(page);
        Ok(full)
    }
}

/// The commits after a place, as far as one read goes; none: there are none yet.
pub(crate) async fn read_page(
    store: &Store,
    said: &SaidOf,
    after: i64,
    rows_max: i64,
) -> Result<Option<Page>, Error> {
    let rows = store.read_after(after, rows_max).await?;
    page(store, said, after, &rows, false, Forms::default()).await
}

/// The last events before a position, as far as one read goes; none: there are none.
pub(crate) async fn read_page_before(
    store: &Store,
    said: &SaidOf,
    before: i64,
    rows_max: i64,
) -> Result<Option<Page>, Error> {
    let rows = store.read_before(before, rows_max).await?;
    let after = rows.first().map_or(0, |first| first.position - 1);
    page(store, said, after, &rows, false, Forms::default()).await
}

/// The events at these positions that are kept, in order.
pub(crate) async fn read_some(
    store: &Store,
    said: &SaidOf,
    positions: &[i64],
) -> Result<Vec<Recorded>, Error> {
    let rows = store.rows_at(positions).await?;
    let page = page(store, said, 0, &rows, false, Forms::default()).await?;
    Ok(page.map(|page| page.events).unwrap_or_default())
}

/// Rows of whole commits as a page; none: there are none. `keep`: see `SaidOf::of`; `forms`: in which its
/// events are encoded.
async fn page(
    store: &Store,
    said: &SaidOf,
    after: i64,
    rows: &[EventRow],
    keep: bool,
    forms: Forms,
) -> Result<Option<Page>, Error> {
    let Some(last) = rows.last().map(|row| row.position) else { return Ok(None) };
    let mut ids: Vec<i32> = rows.iter().map(|row| row.definition).collect();
    ids.sort_unstable();
    ids.dedup();
    let definitions = store.definitions(&ids).await?;
    let mut found = said.of(store, rows, keep).await?;
    let recorded = |row: &EventRow| -> Result<Recorded, Error> {
        let definition = definitions.get(&row.definition).ok_or_else(|| {
            Error::Inconsistent(format!("event {} has no definition", row.position))
        })?;
        let mut event = event(row, definition)?;
        let said = said.tell(&mut found, row.task, &mut event, keep);
        Ok(Recorded::new(event, row.batch, row.uid, definition, said, forms))
    };
    let events = rows.iter().map(recorded).collect::<Result<_, _>>()?;
    Ok(Some(Page::new(after, last, events)))
}
