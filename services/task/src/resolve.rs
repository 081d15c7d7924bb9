//! Which definition a request means. Callers that ask at the same moment share one statement; what
//! the latest version is, is asked anew each time.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use stepwell_proto::refusal::Refusal;
use stepwell_store::{Store, StoredDefinition, Wanted};
use tokio::sync::{mpsc, oneshot};

use crate::create::{TRIED_FOR, going_down, overloaded};

/// What was found, by what was wanted; what does not exist is not in it.
pub(crate) type Found = HashMap<Wanted, Arc<StoredDefinition>>;

const CALLS_MAX: usize = 1024;
const CALLS_AT_ONCE: usize = 200;

struct Call {
    wanted: Vec<Wanted>,
    answer: oneshot::Sender<Result<Found, Refusal>>,
}

/// Where to ask. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver(mpsc::Sender<Call>);

/// The loop behind it.
pub(crate) struct Resolving {
    store: Store,
    queue: mpsc::Receiver<Call>,
}

impl Resolver {
    pub(crate) fn new(store: Store) -> (Self, Resolving) {
        let (sender, queue) = mpsc::channel(CALLS_MAX);
        (Self(sender), Resolving { store, queue })
    }

    /// Finds definitions.
    pub(crate) async fn find(&self, wanted: Vec<Wanted>) -> Result<Found, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Call { wanted, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => overloaded(),
            mpsc::error::TrySendError::Closed(_) => going_down(),
        })?;
        answered.await.map_err(|_| going_down())?
    }
}

impl Resolving {
    /// Runs until no one can ask any more.
    pub(crate) async fn run(mut self) {
        let mut calls = Vec::with_capacity(CALLS_AT_ONCE);
        while self.queue.recv_many(&mut calls, CALLS_AT_ONCE).await > 0 {
            let mut wanted: Vec<Wanted> = calls.iter().flat_map(|c| &c.wanted).cloned().collect();
            wanted.sort_unstable();
            wanted.dedup();
            let found = self.find(&wanted).await;
            for call in calls.drain(..) {
                // A caller that has gone needs no answer.
                drop(
                    call.answer
                        .send(found.as_ref().map(|f| part(f, &call.wanted)).map_err(Clone::clone)),
                );
            }
        }
    }

    async fn find(&self, wanted: &[Wanted]) -> Result<Found, Refusal> {
        let began = Instant::now();
        let mut wait = Duration::from_millis(10);
        let mut failing = false;
        loop {
            match self.store.find_definitions(wanted).await {
                Ok(found) => {
                    let pairs = wanted.iter().cloned().zip(found);
                    return Ok(pairs.filter_map(|(wanted, f)| Some((wanted, f?))).collect());
                }
                Err(error) if error.is_transient() && began.elapsed() + wait < TRIED_FOR => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "definitions cannot be read; asking again"
                        );
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn part(found: &Found, wanted: &[Wanted]) -> Found {
    wanted.iter().filter_map(|w| Some((w.clone(), Arc::clone(found.get(w)?)))).collect()
}
