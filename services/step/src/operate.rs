//! What people do to single steps: each RPC is parsed, carried out and answered here.

use stepwell_proto::{
    id::parse_step_id,
    json,
    refusal::Refusal,
    v1::{
        CancelStepRequest, CancelStepResponse, ErrorReason, GetStepReadinessRequest,
        GetStepReadinessResponse, GetStepRequest, GetStepResponse, ListStepsRequest,
        ListStepsResponse, ResolveStepRequest, ResolveStepResponse, RetryStepRequest,
        RetryStepResponse, SkipStepRequest, SkipStepResponse, State, Step, UpdateStepRequest,
        UpdateStepResponse,
    },
};
use stepwell_store::{Move, Moved, Note, Offering, Once, Store, Update, more_attempts};
use uuid::Uuid;

use crate::{list, readiness::obstacles};

/// So many executors are looked at to say why a step does not run.
const EXECUTORS_MAX: i32 = 1000;

/// The RPCs about single steps.
#[derive(Clone)]
pub(crate) struct Operations {
    store: Store,
    result_bytes_max: usize,
}

impl Operations {
    pub(crate) fn new(store: Store, result_bytes_max: usize) -> Self {
        Self { store, result_bytes_max }
    }

    pub(crate) async fn get(&self, request: &GetStepRequest) -> Result<GetStepResponse, Refusal> {
        let id = Id::read(&request.step_id)?;
        Ok(GetStepResponse { step: Some(self.step(id).await?) })
    }

    pub(crate) async fn list(
        &self,
        request: ListStepsRequest,
    ) -> Result<ListStepsResponse, Refusal> {
        list::list(&self.store, request).await
    }

    pub(crate) async fn readiness(
        &self,
        request: &GetStepReadinessRequest,
    ) -> Result<GetStepReadinessResponse, Refusal> {
        let id = Id::read(&request.step_id)?;
        let of = self.store.surroundings(id.task, id.number).await?;
        let of = of.ok_or_else(|| id.not_found())?;
        let template = of.definition.step(id.number).ok_or_else(|| id.not_found())?;
        let wanted = Offering {
            namespace: of.definition.definition.namespace.clone(),
            handler: template.handler.clone(),
        };
        let executors = self.store.executors(&wanted, 0, EXECUTORS_MAX).await?.items;
        let obstacles = obstacles(&of, template, &executors);
        let ready = of.step == State::Pending && obstacles.is_empty();
        Ok(GetStepReadinessResponse { state: of.step.into(), ready, obstacles })
    }

    pub(crate) async fn retry(
        &self,
        request: RetryStepRequest,
    ) -> Result<RetryStepResponse, Refusal> {
        let id = Id::read(&request.step_id)?;
        let once = Once::of(&request.request_id, &request);
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "retried_by", request.retried_by, request_id)?;
        let attempts = more_attempts(request.attempts)?;
        let to = Move::Retry { attempts };
        let (step, already_in_state) = match once {
            None => self.move_step(id, &to, &note).await?,
            Some(once) => {
                let (task, number) = (id.task, id.number);
                let moved = self.store.retry_step_once(&once, task, number, attempts, &note);
                self.moved(id, &to, moved.await?).await?
            }
        };
        Ok(RetryStepResponse { step: Some(step), already_in_state })
    }

    pub(crate) async fn resolve(
        &self,
        request: ResolveStepRequest,
    ) -> Result<ResolveStepResponse, Refusal> {
        let id = Id::read(&request.step_id)?;
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "resolved_by", request.resolved_by, request_id)?;
        let result = Some(request.result).filter(|result| !result.is_empty());
        if let Some(result) = &result {
            json::check(result, self.result_bytes_max)
                .map_err(|fault| Refusal::field("result", fault.to_string()))?;
        }
        let (step, already_in_state) = self.move_step(id, &Move::Resolve { result }, &note).await?;
        Ok(ResolveStepResponse { step: Some(step), already_in_state })
    }

    pub(crate) async fn skip(&self, request: SkipStepRequest) -> Result<SkipStepResponse, Refusal> {
        let id = Id::read(&request.step_id)?;
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "skipped_by", request.skipped_by, request_id)?;
        let template = self.store.step_template(id.task, id.number).await?;
        let template = template.ok_or_else(|| id.not_found())?;
        if !template.skippable {
            let message = format!("the definition does not let {} be skipped", template.name);
            return Err(
                Refusal::new(ErrorReason::StepNotSkippable, message).with("step", &template.name)
            );
        }
        let (step, already_in_state) = self.move_step(id, &Move::Skip, &note).await?;
        Ok(SkipStepResponse { step: Some(step), already_in_state })
    }

    pub(crate) async fn update(
        &self,
        request: UpdateStepRequest,
    ) -> Result<UpdateStepResponse, Refusal> {
        let id = Id::read(&request.step_id)?;
        let once = Once::of(&request.request_id, &request);
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "updated_by", request.updated_by, request_id)?;
        let wrong = |what: &str| Refusal::field("max_attempts", what);
        let max_attempts = more_attempts(request.max_attempts);
        let max_attempts = max_attempts.map_err(|_| wrong("must be from 1 to 1000"))?;
        let config = request.config;
        if let Some(config) = config.as_deref().filter(|config| !config.is_empty()) {
            json::check_object(config, json::CONFIG_BYTES_MAX)
                .map_err(|fault| Refusal::field("config", fault.to_string()))?;
        }
        if max_attempts.is_none() && config.is_none() {
            return Err(wrong("must be from 1 to 1000, unless config is given"));
        }
        let update = Update { max_attempts, config };
        let store = &self.store;
        let updated = store.update_step(id.task, id.number, &update, &note, once.as_ref()).await?;
        let updated = updated.ok_or_else(|| id.not_found())?;
        if !updated.done {
            if !matches!(updated.task, State::Pending | State::InProgress | State::Error) {
                return Err(Refusal::task_ended(&id.task.to_string(), updated.task));
            }
            if matches!(updated.is, State::Pending | State::Error) {
                return Err(wrong(&format!("it has made {} attempts", updated.attempt)));
            }
            let (subject, allowed) = (format!("step {id}"), [State::Pending, State::Error]);
            return Err(Refusal::illegal(&subject, updated.is, updated.is, &allowed));
        }
        Ok(UpdateStepResponse { step: Some(self.step(id).await?) })
    }

    pub(crate) async fn cancel(
        &self,
        request: CancelStepRequest,
    ) -> Result<CancelStepResponse, Refusal> {
        let id = Id::read(&request.step_id)?;
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "cancelled_by", request.cancelled_by, request_id)?;
        let (step, already_in_state) = self.move_step(id, &Move::Cancel, &note).await?;
        Ok(CancelStepResponse { step: Some(step), already_in_state })
    }

    /// The step as it is then, and whether there was nothing to do.
    async fn move_step(&self, id: Id, to: &Move, note: &Note) -> Result<(Step, bool), Refusal> {
        let moved = self.store.move_step(id.task, id.number, to, note).await?;
        self.moved(id, to, moved).await
    }

    /// The same of a step that was moved so.
    async fn moved(
        &self,
        id: Id,
        to: &Move,
        moved: Option<Moved>,
    ) -> Result<(Step, bool), Refusal> {
        let moved = moved.ok_or_else(|| id.not_found())?;
        // Under way already counts as tried again.
        let already = moved.was == to.to()
            || matches!(to, Move::Retry { .. }) && moved.was == State::InProgress;
        if !moved.moved && !already {
            let subject = format!("step {id}");
            if !matches!(moved.task, State::Pending | State::InProgress | State::Error) {
                return Err(Refusal::task_ended(&id.task.to_string(), moved.task));
            }
            if moved.blocked && moved.was == State::Error {
                let message = format!("{subject} waits for a cancelled step, so it can never run");
                return Err(Refusal::new(ErrorReason::ParentCancelled, message));
            }
            return Err(Refusal::illegal(&subject, moved.was, to.to(), to.from()));
        }
        Ok((self.step(id).await?, !moved.moved))
    }

    async fn step(&self, id: Id) -> Result<Step, Refusal> {
        self.store.step(id.task, id.number).await?.ok_or_else(|| id.not_found())
    }
}

/// The public id of a step, read.
#[derive(Clone, Copy)]
struct Id {
    task: Uuid,
    number: i32,
}

impl Id {
    fn read(text: &str) -> Result<Self, Refusal> {
        parse_step_id(text)
            .filter(|(task, _)| task.len() == 36)
            .and_then(|(task, number)| Some(Self { task: Uuid::try_parse(task).ok()?, number }))
            .ok_or_else(|| Refusal::field("step_id", "must be `<task_id>.<number>`"))
    }

    fn not_found(self) -> Refusal {
        Refusal::new(ErrorReason::StepNotFound, format!("there is no step {self}"))
            .with("step_id", self.to_string())
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.task, self.number)
    }
}
