//! Many tasks by a filter: listed, counted, and moved by bulk operations. The loop that runs these takes
//! chunk after chunk of each, beside the loops of other copies of the service.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::DateTime;
use stepwell_proto::{
    page::{self, place, timed_place, timed_token, token},
    refusal::Refusal,
    v1::{
        BulkOperation, BulkPreview, BulkRetry, BulkState, CancelBulkOperationRequest,
        CancelBulkOperationResponse, ErrorReason, ListBulkOperationsRequest,
        ListBulkOperationsResponse, ListTasksRequest, ListTasksResponse, StartBulkOperationRequest,
        StartBulkOperationResponse, bulk_action::Action, start_bulk_operation_response::Outcome,
    },
};
use stepwell_serve::{Shutdown, Ticker};
use stepwell_store::{
    BULK_CHUNK_MAX, BULK_RUNNING_MAX, BulkKind, Error, Filter, NewBulk, Note, Started, Store,
    TaskPlace, more_attempts,
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    filter,
    metrics::{Bulk as Metrics, BulkEnding},
    plan::uid,
    rule::{self, Fault},
};

const TASKS_PAGE_MAX: i32 = 1_000;
const OPERATIONS_PAGE_MAX: i32 = 100;
/// Most states that are asked for.
const STATES_MAX: usize = 100;
/// So many previews are counted at once: others need the connections too.
pub(crate) const PREVIEWS_MAX: usize = 2;
/// A preview counts so many tasks at most, and for so long.
const COUNTED_MAX: i32 = 100_000;
const COUNTED_FOR: Duration = Duration::from_secs(5);
/// How long operations that have ended are kept, and how often those beyond it are looked for.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// After each chunk the loop rests as long as the chunk took, up to this: others move tasks too.
const REST_MAX: Duration = Duration::from_millis(100);

/// A page of tasks.
pub(crate) async fn list_tasks(
    store: &Store,
    request: ListTasksRequest,
) -> Result<ListTasksResponse, Refusal> {
    let filter = filter::read(store, &request.filter).await?.unwrap_or_default();
    let (order, word) =
        filter::order(&request.order_by).map_err(|what| Refusal::field("order_by", what))?;
    let size = page_size(request.page_size, TASKS_PAGE_MAX)?;
    let list = page::list("tasks", format!("{word} {}", request.filter));
    let after = match timed_place(&request.page_token, list)? {
        None => None,
        Some((key, at)) => {
            let strange = || page::strange("not one that was received");
            let at = at.map(|at| {
                DateTime::from_timestamp_micros(at).filter(filter::is_known).ok_or_else(strange)
            });
            Some(TaskPlace { key, at: at.transpose()? })
        }
    };
    let (tasks, next) = store.list_tasks(&filter, order, after, size).await?;
    let next = next.map(|place| (place.key, place.at.map(|at| at.timestamp_micros())));
    Ok(ListTasksResponse { tasks, next_page_token: timed_token(list, next) })
}

/// Starts an operation, or says what it would go through.
pub(crate) async fn start(
    store: &Store,
    previews: &Semaphore,
    metrics: &Metrics,
    request: StartBulkOperationRequest,
) -> Result<StartBulkOperationResponse, Refusal> {
    let dry_run = request.dry_run;
    let filter = filter::read(store, &request.filter).await?;
    let bulk = read(request, filter)?;
    if dry_run {
        let _room = previews.try_acquire().map_err(|_| {
            Refusal::new(ErrorReason::Overloaded, "as many previews are counted as may")
                .retry_after(Duration::from_secs(1))
        })?;
        let counted = store.count_tasks(&bulk.filter, COUNTED_MAX, COUNTED_FOR).await?;
        let preview = BulkPreview {
            matching_tasks: counted.tasks,
            at_least: counted.at_least,
            first_task_ids: counted.first.iter().map(Uuid::to_string).collect(),
        };
        let outcome = Some(Outcome::Preview(preview));
        return Ok(StartBulkOperationResponse { outcome, already_existed: false });
    }
    let already_existed = match store.start_bulk(&bulk).await? {
        Started::New => {
            metrics.started(BulkKind::of(&bulk.action));
            false
        }
        Started::Existing => true,
        Started::Reused => {
            let what = format!("the id {} was used before for another operation", bulk.id);
            return Err(Refusal::new(ErrorReason::RequestIdReused, what)
                .with("operation_id", bulk.id.to_string()));
        }
        Started::Full => {
            let what = format!("{BULK_RUNNING_MAX} bulk operations are running");
            return Err(
                Refusal::new(ErrorReason::Overloaded, what).retry_after(Duration::from_secs(1))
            );
        }
    };
    let outcome = Some(Outcome::Operation(get(store, &bulk.id.to_string()).await?));
    Ok(StartBulkOperationResponse { outcome, already_existed })
}

/// What is to be started, or what is wrong with it.
fn read(request: StartBulkOperationRequest, filter: Option<Filter>) -> Result<NewBulk, Refusal> {
    let mut faults: Vec<Fault> = Vec::new();
    match &filter {
        Some(filter) if filter.is_derived() => {
            let what = "may not ask for execution_status and health; a state is what decides";
            faults.push(("filter".into(), what.into()));
        }
        Some(_) => {}
        None => {
            let what = "has to say which tasks; `create_time:*` for all of them";
            faults.push(("filter".into(), what.into()));
        }
    }
    let id = match request.operation_id.as_str() {
        "" if request.dry_run => Uuid::nil(),
        text => uid(text).unwrap_or_else(|what| {
            faults.push(("operation_id".to_owned(), what));
            Uuid::nil()
        }),
    };
    let action = request.action.and_then(|action| action.action);
    match &action {
        None => faults.push(("action".into(), "`cancel`, `retry` or `resolve` is wanted".into())),
        Some(Action::Retry(BulkRetry { attempts })) => {
            if let Err(refusal) = more_attempts(*attempts) {
                let found = refusal.violations.into_iter();
                faults.extend(found.map(|(path, what)| (format!("action.retry.{path}"), what)));
            }
        }
        Some(Action::Cancel(_) | Action::Resolve(_)) => {}
    }
    // An operation has an id of its own.
    let note = Note::read(request.reason, "requested_by", request.requested_by, String::new());
    let note = note.unwrap_or_else(|refusal| {
        faults.extend(refusal.violations);
        Note::default()
    });
    match (action, filter) {
        (Some(action), Some(filter)) if faults.is_empty() => {
            Ok(NewBulk { id, action, filter, note })
        }
        _ => Err(Refusal::fields(rule::bounded(faults))),
    }
}

/// One operation.
pub(crate) async fn get(store: &Store, id: &str) -> Result<BulkOperation, Refusal> {
    let id = operation_id(id)?;
    store.bulk(id).await?.ok_or_else(|| not_found(id))
}

/// A page of operations.
pub(crate) async fn list(
    store: &Store,
    request: ListBulkOperationsRequest,
) -> Result<ListBulkOperationsResponse, Refusal> {
    if request.states.len() > STATES_MAX {
        let what = format!("at most {STATES_MAX} are allowed");
        return Err(Refusal::field("states", what));
    }
    let mut states = Vec::new();
    for (i, state) in request.states.iter().enumerate() {
        match BulkState::try_from(*state) {
            Ok(BulkState::Unspecified) | Err(_) => {
                return Err(Refusal::field(format!("states[{i}]"), "must be a state"));
            }
            Ok(known) => states.push(known as i16),
        }
    }
    states.sort_unstable();
    states.dedup();
    let size = page_size(request.page_size, OPERATIONS_PAGE_MAX)?;
    let list = page::list("operations", format!("{states:?}"));
    let before = place(&request.page_token, list)?;
    let (operations, next) = store.list_bulk(&states, before, size.into()).await?;
    Ok(ListBulkOperationsResponse { operations, next_page_token: token(list, next) })
}

/// Stops an operation.
pub(crate) async fn cancel(
    store: &Store,
    metrics: &Metrics,
    request: CancelBulkOperationRequest,
) -> Result<CancelBulkOperationResponse, Refusal> {
    let id = operation_id(&request.operation_id)?;
    let stopped = store.stop_bulk(id).await?.ok_or_else(|| not_found(id))?;
    if stopped.operation.state() == BulkState::Done {
        let what = format!("the bulk operation {id} is done");
        return Err(
            Refusal::new(ErrorReason::BulkOperationDone, what).with("operation_id", id.to_string())
        );
    }
    let already_in_state = !stopped.was_running;
    let action = stopped.operation.action.and_then(|action| action.action);
    if let Some(action) = action.filter(|_| stopped.was_running) {
        metrics.ended(BulkKind::of(&action), BulkEnding::Cancelled);
    }
    Ok(CancelBulkOperationResponse { operation: Some(stopped.operation), already_in_state })
}

fn operation_id(text: &str) -> Result<Uuid, Refusal> {
    uid(text).map_err(|what| Refusal::field("operation_id", what))
}

fn not_found(id: Uuid) -> Refusal {
    Refusal::new(ErrorReason::BulkOperationNotFound, format!("there is no bulk operation {id}"))
        .with("operation_id", id.to_string())
}

/// How many items of a list are wanted.
pub(crate) fn page_size(asked: i32, most: i32) -> Result<i32, Refusal> {
    page::size(asked, most).map_err(|what| Refusal::field("page_size", what))
}

/// Runs the operations that are running, a chunk of each in turns.
pub(crate) struct Runner {
    store: Store,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
    sizes: Sizes,
    forgotten: Option<Instant>,
}

/// How large the next chunk of each operation is: half as large as one that was not done in time, twice as large
/// as one that was.
#[derive(Default)]
struct Sizes(HashMap<Uuid, i32>);

impl Sizes {
    fn of(&self, id: Uuid) -> i32 {
        self.0.get(&id).copied().unwrap_or(BULK_CHUNK_MAX)
    }

    fn done(&mut self, id: Uuid) {
        match self.of(id) * 2 {
            size if size < BULK_CHUNK_MAX => self.0.insert(id, size),
            _ => self.0.remove(&id),
        };
    }

    fn undone(&mut self, id: Uuid) {
        self.0.insert(id, (self.of(id) / 2).max(1));
    }

    fn keep(&mut self, running: &[Uuid]) {
        self.0.retain(|id, _| running.contains(id));
    }
}

impl Runner {
    pub(crate) fn new(store: Store, shutdown: Shutdown, metrics: Arc<Metrics>) -> Self {
        Self { store, shutdown, metrics, sizes: Sizes::default(), forgotten: None }
    }

    /// Runs until shutdown begins.
    pub(crate) async fn run(mut self, mut ticker: Ticker) {
        while ticker.next().await {
            match self.round().await {
                Ok(more) => {
                    ticker.ok();
                    if more {
                        ticker.again();
                    }
                }
                Err(error) => ticker.back_off(&error),
            }
        }
    }

    /// One chunk of each operation that nobody else is at. True: there was something to do. One that
    /// fails does not hold up the others.
    async fn round(&mut self) -> Result<bool, Error> {
        if self.forgotten.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
            self.store.forget_bulk(KEPT).await?;
            self.forgotten = Some(Instant::now());
        }
        let running = self.store.running_bulk().await?;
        self.sizes.keep(&running);
        let (mut ran, mut failed) = (false, None);
        for id in running {
            if self.shutdown.begun() {
                break;
            }
            let began = Instant::now();
            match self.store.run_bulk(id, self.sizes.of(id)).await {
                Ok(chunk) if chunk.ran => {
                    ran = true;
                    self.sizes.done(id);
                    if let Some(kind) = chunk.action {
                        self.metrics.moved(kind, chunk.moved);
                        if chunk.done {
                            self.metrics.ended(kind, BulkEnding::Done);
                        }
                    }
                    tokio::time::sleep(began.elapsed().min(REST_MAX)).await;
                }
                Ok(_) => {}
                Err(error) => {
                    if error.is_undone() {
                        self.sizes.undone(id);
                    }
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(ran), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_are_not_done_in_time_get_smaller_down_to_one_task_and_larger_again() {
        let (mut sizes, id, other) = (Sizes::default(), Uuid::now_v7(), Uuid::now_v7());
        let mut seen = Vec::new();
        for _ in 0..8 {
            sizes.undone(id);
            seen.push(sizes.of(id));
        }
        assert_eq!(seen, [50, 25, 12, 6, 3, 1, 1, 1]);
        let larger: Vec<i32> = std::iter::repeat_with(|| {
            sizes.done(id);
            sizes.of(id)
        })
        .take(8)
        .collect();
        assert_eq!(larger, [2, 4, 8, 16, 32, 64, 100, 100]);
        assert_eq!(sizes.of(other), 100);
        sizes.undone(id);
        sizes.keep(&[other]);
        assert_eq!(sizes.of(id), 100, "one that has ended is forgotten");
    }
}
