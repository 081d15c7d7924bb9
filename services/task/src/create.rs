//! Creating tasks: callers that wait at the same moment share one call of the verb. One loop with
//! one connection; no timer: while a call is in flight the next batch collects.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stepwell_proto::{refusal::Refusal, v1::ErrorReason};
use stepwell_store::{Created, Error, NewTask, Store, StoredDefinition, Wanted, Writer};
use tokio::sync::{mpsc, oneshot};

use crate::{plan::Draft, schema::Validators};

const ITEMS_MAX: usize = 200;
const BYTES_MAX: usize = 4 << 20;
const WAITING_MAX: usize = 1024;
const TRIED_FOR: Duration = Duration::from_secs(8);

/// What became of one task.
pub(crate) type Answer = Result<(NewTask, Created), Refusal>;

/// Requests of one caller.
struct Call {
    drafts: Vec<(Draft, String)>,
    answer: oneshot::Sender<Result<Vec<Answer>, Refusal>>,
}

impl Call {
    fn bytes(&self) -> usize {
        self.drafts.iter().map(|(draft, _)| draft.context.len()).sum()
    }
}

/// Where requests go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Creator(mpsc::Sender<Call>);

/// The loop.
pub(crate) struct Creating {
    store: Store,
    validators: Arc<Validators>,
    queue: mpsc::Receiver<Call>,
    writer: Option<Writer>,
}

impl Creator {
    pub(crate) fn new(store: Store, validators: Arc<Validators>) -> (Self, Creating) {
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        (Self(sender), Creating { store, validators, queue, writer: None })
    }

    /// Creates tasks; answers once they are durable. Drafts come with the path their faults get.
    /// A draft that does not fit its definition refuses them all.
    pub(crate) async fn create(&self, drafts: Vec<(Draft, String)>) -> Result<Vec<Answer>, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Call { drafts, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(ErrorReason::Overloaded, "too many tasks wait to be created")
                    .retry_after(Duration::from_millis(100))
            }
            mpsc::error::TrySendError::Closed(_) => going_down(),
        })?;
        answered.await.map_err(|_| going_down())?
    }
}

fn going_down() -> Refusal {
    Refusal::new(ErrorReason::ShuttingDown, "this node goes down")
        .retry_after(Duration::from_millis(100))
}

impl Creating {
    /// Runs until no one can ask any more.
    pub(crate) async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let (mut items, mut bytes) = (first.drafts.len(), first.bytes());
            let mut batch = vec![first];
            while items < ITEMS_MAX && bytes < BYTES_MAX {
                let Ok(next) = self.queue.try_recv() else { break };
                items += next.drafts.len();
                bytes += next.bytes();
                batch.push(next);
            }
            self.carry_out(batch).await;
        }
    }

    async fn carry_out(&mut self, batch: Vec<Call>) {
        let mut wanted: Vec<Wanted> =
            batch.iter().flat_map(|c| c.drafts.iter().map(|(d, _)| d.wanted.clone())).collect();
        wanted.sort_by(|a, b| (&a.namespace, &a.name, a.version).cmp(&(&b.namespace, &b.name, b.version)));
        wanted.dedup();
        let found = match self.store.find_definitions(&wanted).await {
            Ok(found) => found,
            Err(error) => return refuse(batch, &error.into()),
        };
        let find = |draft: &Draft| -> Option<Arc<StoredDefinition>> {
            let place = wanted.iter().position(|w| *w == draft.wanted)?;
            found[place].clone()
        };
        let mut tasks = Vec::new();
        let mut callers = Vec::new();
        for call in batch {
            let planned: Result<Vec<NewTask>, Refusal> = call
                .drafts
                .into_iter()
                .map(|(draft, prefix)| {
                    let definition = find(&draft);
                    draft.plan(definition, &self.validators, &prefix)
                })
                .collect();
            match planned {
                Ok(planned) => {
                    callers.push((planned.len(), call.answer));
                    tasks.extend(planned);
                }
                // A caller that has gone needs no answer.
                Err(refusal) => drop(call.answer.send(Err(refusal))),
            }
        }
        let mut answers = self.create_each(tasks).await.into_iter();
        for (n, caller) in callers {
            let of_caller: Vec<Answer> = answers.by_ref().take(n).collect();
            drop(caller.send(Ok(of_caller)));
        }
    }

    /// Creates them all; if the database refuses someone's data, that one is found by halving.
    async fn create_each(&mut self, tasks: Vec<NewTask>) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = tasks.iter().map(|_| None).collect();
        let mut parts = vec![(0, tasks)];
        while let Some((first, mut part)) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            match self.create(&mut part).await {
                Ok(created) => {
                    for (i, answer) in part.into_iter().zip(created).enumerate() {
                        answers[first + i] = Some(Ok(answer));
                    }
                }
                Err(error) if error.is_data() && part.len() > 1 => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push((first + part.len(), rest));
                    parts.push((first, part));
                }
                Err(error) => {
                    let refusal = Refusal::from(error);
                    for i in 0..part.len() {
                        answers[first + i] = Some(Err(refusal.clone()));
                    }
                }
            }
        }
        let unanswered = || Err(Refusal::new(ErrorReason::Internal, "a task was not answered"));
        answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    /// Calls the verb until its answer is known, for a bounded time. Repeating is safe: ids and
    /// keys stay the same.
    async fn create(&mut self, tasks: &mut [NewTask]) -> Result<Vec<Created>, Error> {
        let began = Instant::now();
        let mut wait = Duration::from_millis(10);
        loop {
            let error = match self.once(tasks).await {
                Ok(created) => return Ok(created),
                Err(error) => error,
            };
            if !error.is_undone() && !error.is_data() {
                self.writer = None;
            }
            if !error.is_transient() || began.elapsed() + wait > TRIED_FOR {
                return Err(error);
            }
            tracing::warn!(error = &error as &dyn std::error::Error, "creating again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
    }

    async fn once(&mut self, tasks: &mut [NewTask]) -> Result<Vec<Created>, Error> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(self.store.writer().await?),
        };
        writer.create_tasks(&self.store, tasks).await
    }
}

fn refuse(batch: Vec<Call>, refusal: &Refusal) {
    for call in batch {
        drop(call.answer.send(Err(refusal.clone())));
    }
}
