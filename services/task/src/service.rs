//! TaskService: each RPC is parsed, carried out and answered here.

use std::{collections::HashSet, sync::Arc, time::Duration};

use stepwell_proto::{
    catalog,
    refusal::Refusal,
    v1::{
        AnnotateTaskRequest, AnnotateTaskResponse, BatchCreateTasksRequest,
        BatchCreateTasksResponse, BatchCreateTasksResult, BatchGetTaskContextsRequest,
        BatchGetTaskContextsResponse, CancelBulkOperationRequest, CancelBulkOperationResponse,
        CancelTaskRequest, CancelTaskResponse, CreateTaskRequest, CreateTaskResponse, Entity,
        ErrorReason, ExportTasksRequest, ExportTasksResponse, GetBulkOperationRequest,
        GetBulkOperationResponse, GetDefinitionGraphRequest, GetDefinitionGraphResponse,
        GetDefinitionRequest, GetDefinitionResponse, GetOverviewRequest, GetOverviewResponse,
        GetPerformanceRequest, GetPerformanceResponse, GetTaskContextRequest,
        GetTaskContextResponse, GetTaskDiagramRequest, GetTaskDiagramResponse, GetTaskGraphRequest,
        GetTaskGraphResponse, GetTaskRequest, GetTaskResponse, GetTaskSummaryRequest,
        GetTaskSummaryResponse, GetTransitionStatisticsRequest, GetTransitionStatisticsResponse,
        ListBulkOperationsRequest, ListBulkOperationsResponse, ListDefinitionsRequest,
        ListDefinitionsResponse, ListNamespacesRequest, ListNamespacesResponse, ListPausesRequest,
        ListPausesResponse, ListStepReadinessRequest, ListStepReadinessResponse, ListTasksRequest,
        ListTasksResponse, ListTransitionsRequest, ListTransitionsResponse,
        PauseDefinitionsRequest, PauseDefinitionsResponse, PauseTaskRequest, PauseTaskResponse,
        RegisterDefinitionRequest, RegisterDefinitionResponse, RemoveTasksRequest,
        RemoveTasksResponse, ResolveTaskRequest, ResolveTaskResponse, ResumeDefinitionsRequest,
        ResumeDefinitionsResponse, ResumeTaskRequest, ResumeTaskResponse, RetryTaskRequest,
        RetryTaskResponse, StartBulkOperationRequest, StartBulkOperationResponse, State, Task,
        UpdateTaskRequest, UpdateTaskResponse, WaitTaskRequest, WaitTaskResponse,
        batch_create_tasks_result::Outcome, register_definition_request::Source,
        task_service_server,
    },
};
use stepwell_serve::Shutdown;
use stepwell_store::{Created, Note, Once, Store, StoredDefinition, Wanted, more_attempts};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    annotate, archive, bulk,
    create::{Answer, Creator},
    definition, definitions, diagram, history, metrics,
    overview::Overviews,
    pause, performance,
    plan::{Draft, not_found, uid, words},
    resolve::Resolver,
    rule,
    trace::Call,
    validators::Validators,
    view,
    wait::Waiters,
};

const BATCH_MAX: usize = 1_000;
const BATCH_BYTES_MAX: usize = 3 << 20;
/// Most bytes of the contexts of a batch with their defaults.
const FILLED_BYTES_MAX: usize = 16 << 20;
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The RPCs.
pub(crate) struct Tasks {
    pub(crate) store: Store,
    pub(crate) resolver: Resolver,
    pub(crate) validators: Validators,
    pub(crate) creator: Creator,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) shutdown: Shutdown,
    /// Room for previews.
    pub(crate) previews: Semaphore,
    pub(crate) overviews: Overviews,
    /// Room for what measures windows.
    pub(crate) measured: Semaphore,
    pub(crate) bulk: Arc<metrics::Bulk>,
    pub(crate) context_bytes_max: usize,
}

impl Tasks {
    async fn register(
        &self,
        request: RegisterDefinitionRequest,
    ) -> Result<RegisterDefinitionResponse, Refusal> {
        let definition = match request.source {
            Some(Source::Definition(definition)) => definition::from_message(definition)?,
            Some(Source::Yaml(text)) => definition::from_yaml(&text)?,
            None => return Err(Refusal::field("source", "`definition` or `yaml` is wanted")),
        };
        let (stored, already_existed) = self
            .store
            .register_definition(&definition, rule::judge)
            .await
            .map_err(|error| definition::placed(&definition, error.into()))?;
        let definition = Some(stored.definition.clone());
        Ok(RegisterDefinitionResponse { definition, already_existed })
    }

    async fn definition(
        &self,
        request: GetDefinitionRequest,
    ) -> Result<GetDefinitionResponse, Refusal> {
        let wanted = definitions::wanted(&request.namespace, &request.name, &request.version)?;
        let found = self.stored(&wanted, &request.version).await?;
        Ok(GetDefinitionResponse { definition: Some(found.definition.clone()) })
    }

    async fn stored(
        &self,
        wanted: &Wanted,
        version: &str,
    ) -> Result<Arc<StoredDefinition>, Refusal> {
        let Wanted { namespace, name, version: number } = wanted;
        let found = self.store.find_definition(namespace, name, *number).await?;
        found.ok_or_else(|| not_found(wanted, version))
    }

    async fn create(
        &self,
        request: CreateTaskRequest,
        call: Call,
    ) -> Result<CreateTaskResponse, Refusal> {
        let draft = Draft::read(request, self.context_bytes_max, "").map_err(Refusal::fields)?;
        let draft = draft.continuing(&call);
        let mut answers = self.create_all(vec![(draft, String::new())]).await?;
        let answer = answers
            .pop()
            .ok_or_else(|| Refusal::new(ErrorReason::Internal, "the task was not answered"))?;
        let (task, already_existed) = created(answer)?;
        Ok(CreateTaskResponse { task: Some(task), already_existed })
    }

    async fn create_batch(
        &self,
        request: BatchCreateTasksRequest,
        call: Call,
    ) -> Result<BatchCreateTasksResponse, Refusal> {
        if request.requests.len() > BATCH_MAX {
            return Err(Refusal::field("requests", format!("at most {BATCH_MAX} are allowed")));
        }
        let bytes: usize = request.requests.iter().map(|r| r.context.len()).sum();
        if bytes > BATCH_BYTES_MAX {
            let what =
                format!("the contexts have {bytes} bytes; at most {BATCH_BYTES_MAX} are allowed");
            return Err(Refusal::field("requests", what));
        }
        let mut faults = Vec::new();
        let mut drafts = Vec::with_capacity(request.requests.len());
        for (i, request) in request.requests.into_iter().enumerate() {
            let prefix = format!("requests[{i}].");
            match Draft::read(request, self.context_bytes_max, &prefix) {
                Ok(draft) => drafts.push((draft.continuing(&call), prefix)),
                Err(found) => faults.extend(found),
            }
        }
        let mut ids: Vec<Uuid> = drafts.iter().map(|(draft, _)| draft.uid).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            faults.push(("requests".into(), format!("the task_id {} stands twice", twice[0])));
        }
        if !faults.is_empty() {
            return Err(Refusal::fields(rule::bounded(faults)));
        }
        if drafts.is_empty() {
            return Ok(BatchCreateTasksResponse::default());
        }
        let answers = self.create_all(drafts).await?;
        let results = answers.into_iter().map(result_of).collect::<Result<_, _>>()?;
        Ok(BatchCreateTasksResponse { results })
    }

    /// Creates tasks. Drafts come with what the paths of their faults begin with. One that does not
    /// fit its definition refuses them all.
    async fn create_all(&self, drafts: Vec<(Draft, String)>) -> Result<Vec<Answer>, Refusal> {
        let wanted: HashSet<Wanted> =
            drafts.iter().map(|(draft, _)| draft.wanted.clone()).collect();
        let found = self.resolver.find(wanted.into_iter().collect()).await?;
        let (mut planned, mut bytes) = (Vec::with_capacity(drafts.len()), 0);
        for (draft, prefix) in drafts {
            let definition = found.get(&draft.wanted).cloned();
            let task = draft.plan(definition, &self.validators, &prefix)?;
            bytes += task.context.len();
            if bytes > FILLED_BYTES_MAX {
                let what = format!(
                    "the contexts have more than {FILLED_BYTES_MAX} bytes with their defaults; no \
                     more are allowed"
                );
                return Err(Refusal::field("requests", what));
            }
            planned.push(task);
        }
        self.creator.create(planned).await
    }

    async fn wait(&self, request: WaitTaskRequest) -> Result<WaitTaskResponse, Refusal> {
        let uid = task_id(&request.task_id)?;
        let timeout = match request.timeout {
            None => WAIT_DEFAULT,
            Some(timeout) => stepwell_proto::time::duration(&timeout)
                .filter(|timeout| *timeout <= WAIT_MAX)
                .ok_or_else(|| Refusal::field("timeout", "0 to 60 s"))?,
        };
        let waiting = self.waiters.begin(uid)?;
        let ended = waiting.rings();
        let task = self.task(uid).await?;
        if task.state().is_final() || timeout.is_zero() {
            return Ok(WaitTaskResponse { task: Some(task) });
        }
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(timeout) => {}
            () = self.shutdown.wait() => {
                return Err(Refusal::new(ErrorReason::ShuttingDown, "this node goes down")
                    .retry_after(Duration::from_millis(100)));
            }
        }
        Ok(WaitTaskResponse { task: Some(self.task(uid).await?) })
    }

    async fn cancel(&self, request: CancelTaskRequest) -> Result<CancelTaskResponse, Refusal> {
        let uid = task_id(&request.task_id)?;
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "cancelled_by", request.cancelled_by, request_id)?;
        let cancelled = self.store.cancel_tasks(&[uid], request.r#override, &note).await?;
        let was = cancelled.was.into_iter().next().flatten().ok_or_else(|| task_not_found(uid))?;
        let mut allowed = catalog::origins(Entity::Task, State::Cancelled);
        if !request.r#override {
            allowed.retain(|state| !matches!(state, State::Complete | State::ResolvedManually));
        }
        let already_in_state = was == State::Cancelled;
        if !already_in_state && !allowed.contains(&was) {
            return Err(illegal(uid, was, State::Cancelled, &allowed));
        }
        Ok(CancelTaskResponse { task: Some(self.task(uid).await?), already_in_state })
    }

    async fn retry(&self, request: RetryTaskRequest) -> Result<RetryTaskResponse, Refusal> {
        let uid = task_id(&request.task_id)?;
        let once = Once::of(&request.request_id, &request);
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "retried_by", request.retried_by, request_id)?;
        let attempts = more_attempts(request.attempts)?;
        let retried = match once {
            None => self.store.retry_tasks(&[uid], attempts, &note).await?.first().copied(),
            Some(once) => Some(self.store.retry_task_once(&once, uid, attempts, &note).await?),
        };
        let (was, retried_steps) = retried
            .and_then(|retried| Some((retried.was?, retried.steps)))
            .ok_or_else(|| task_not_found(uid))?;
        let already_in_state = matches!(was, State::Pending | State::InProgress);
        match was {
            State::Error if retried_steps == 0 => {
                let what = "every step in error waits for a cancelled one";
                return Err(Refusal::new(
                    ErrorReason::ParentCancelled,
                    format!("task {uid}: {what}"),
                ));
            }
            State::Error => {}
            _ if already_in_state => {}
            _ => return Err(illegal(uid, was, State::Pending, &[State::Error])),
        }
        let task = Some(self.task(uid).await?);
        Ok(RetryTaskResponse { task, already_in_state, retried_steps })
    }

    async fn resolve(&self, request: ResolveTaskRequest) -> Result<ResolveTaskResponse, Refusal> {
        let uid = task_id(&request.task_id)?;
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "resolved_by", request.resolved_by, request_id)?;
        let was = self.store.resolve_tasks(&[uid], &note).await?;
        let was = was.into_iter().next().flatten().ok_or_else(|| task_not_found(uid))?;
        let already_in_state = was == State::ResolvedManually;
        let allowed = catalog::origins(Entity::Task, State::ResolvedManually);
        if !already_in_state && !allowed.contains(&was) {
            return Err(illegal(uid, was, State::ResolvedManually, &allowed));
        }
        Ok(ResolveTaskResponse { task: Some(self.task(uid).await?), already_in_state })
    }

    async fn update(&self, request: UpdateTaskRequest) -> Result<UpdateTaskResponse, Refusal> {
        let uid = task_id(&request.task_id)?;
        let once = Once::of(&request.request_id, &request);
        let (reason, request_id) = (request.reason.clone(), request.request_id.clone());
        let mut note = Note::read(reason, "updated_by", request.updated_by.clone(), request_id)?;
        words(&mut note, request)?;
        self.store
            .update_task(uid, &note, once.as_ref())
            .await?
            .ok_or_else(|| task_not_found(uid))?;
        Ok(UpdateTaskResponse { task: Some(self.task(uid).await?) })
    }

    /// The task, and whether there was nothing to do.
    async fn pause(
        &self,
        uid: Uuid,
        paused: bool,
        note: &Note,
    ) -> Result<(Option<Task>, bool), Refusal> {
        let was = self.store.pause_tasks(&[uid], paused, note).await?;
        let (state, before) = was
            .first()
            .and_then(|was| Some((was.was?, was.paused)))
            .ok_or_else(|| task_not_found(uid))?;
        if !matches!(state, State::Pending | State::InProgress | State::Error) {
            return Err(Refusal::task_ended(&uid.to_string(), state));
        }
        Ok((Some(self.task(uid).await?), before == paused))
    }

    async fn task(&self, uid: Uuid) -> Result<Task, Refusal> {
        self.store.task(uid).await?.ok_or_else(|| task_not_found(uid))
    }
}

pub(crate) fn task_id(text: &str) -> Result<Uuid, Refusal> {
    uid(text).map_err(|what| Refusal::field("task_id", what))
}

pub(crate) fn task_not_found(uid: Uuid) -> Refusal {
    Refusal::new(ErrorReason::TaskNotFound, format!("there is no task {uid}"))
        .with("task_id", uid.to_string())
}

fn illegal(uid: Uuid, from: State, to: State, allowed: &[State]) -> Refusal {
    Refusal::illegal(&format!("task {uid}"), from, to, allowed)
}

/// The task and whether it was there before.
fn created(answer: Answer) -> Result<(Task, bool), Refusal> {
    let (new, created) = answer?;
    match created {
        Created::New(at) => Ok((new.into_task(at), false)),
        Created::Existing(task) => Ok((*task, true)),
        Created::Reused => Err(Refusal::new(
            ErrorReason::RequestIdReused,
            format!("the id {} was used before for another request", new.uid),
        )
        .with("task_id", new.uid.to_string())),
        Created::KeyReused => {
            let key = new.identity.and_then(|identity| identity.caller_key).unwrap_or_default();
            let quoted = rule::quoted(&key);
            let message = format!("the key {quoted} was used before for another request");
            Err(Refusal::new(ErrorReason::RequestIdReused, message).with("idempotency_key", key))
        }
    }
}

fn result_of(answer: Answer) -> Result<BatchCreateTasksResult, Refusal> {
    match created(answer) {
        Ok((task, already_existed)) => {
            // A batch's contexts would not fit into one answer.
            let task = Task { context: String::new(), ..task };
            Ok(BatchCreateTasksResult { outcome: Some(Outcome::Task(task)), already_existed })
        }
        Err(refusal) if refusal.reason == ErrorReason::RequestIdReused => {
            let outcome = Some(Outcome::Refusal(refusal.into()));
            Ok(BatchCreateTasksResult { outcome, already_existed: false })
        }
        Err(refusal) => Err(refusal),
    }
}

#[tonic::async_trait]
impl task_service_server::TaskService for Tasks {
    async fn register_definition(
        &self,
        request: Request<RegisterDefinitionRequest>,
    ) -> Result<Response<RegisterDefinitionResponse>, Status> {
        Ok(Response::new(self.register(request.into_inner()).await?))
    }

    async fn get_definition(
        &self,
        request: Request<GetDefinitionRequest>,
    ) -> Result<Response<GetDefinitionResponse>, Status> {
        Ok(Response::new(self.definition(request.into_inner()).await?))
    }

    async fn list_definitions(
        &self,
        request: Request<ListDefinitionsRequest>,
    ) -> Result<Response<ListDefinitionsResponse>, Status> {
        Ok(Response::new(definitions::list(&self.store, request.get_ref()).await?))
    }

    async fn list_namespaces(
        &self,
        request: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        Ok(Response::new(definitions::namespaces(&self.store, request.get_ref()).await?))
    }

    async fn get_definition_graph(
        &self,
        request: Request<GetDefinitionGraphRequest>,
    ) -> Result<Response<GetDefinitionGraphResponse>, Status> {
        let request = request.into_inner();
        let wanted = definitions::wanted(&request.namespace, &request.name, &request.version)?;
        let found = self.stored(&wanted, &request.version).await?;
        Ok(Response::new(GetDefinitionGraphResponse { graph: Some(definitions::graph(&found)) }))
    }

    async fn create_task(
        &self,
        request: Request<CreateTaskRequest>,
    ) -> Result<Response<CreateTaskResponse>, Status> {
        let call = Call::of(request.metadata());
        Ok(Response::new(self.create(request.into_inner(), call).await?))
    }

    async fn batch_create_tasks(
        &self,
        request: Request<BatchCreateTasksRequest>,
    ) -> Result<Response<BatchCreateTasksResponse>, Status> {
        let call = Call::of(request.metadata());
        Ok(Response::new(self.create_batch(request.into_inner(), call).await?))
    }

    async fn get_task(
        &self,
        request: Request<GetTaskRequest>,
    ) -> Result<Response<GetTaskResponse>, Status> {
        let request = request.into_inner();
        let uid = task_id(&request.task_id)?;
        if request.include_graph {
            let answer = view::with_graph(&self.store, uid, request.include_results).await?;
            return Ok(Response::new(answer));
        }
        let task = self.store.task_with_steps(uid, request.include_results).await?;
        let task = Some(task.ok_or_else(|| task_not_found(uid))?);
        Ok(Response::new(GetTaskResponse { task, ..GetTaskResponse::default() }))
    }

    async fn wait_task(
        &self,
        request: Request<WaitTaskRequest>,
    ) -> Result<Response<WaitTaskResponse>, Status> {
        Ok(Response::new(self.wait(request.into_inner()).await?))
    }

    async fn cancel_task(
        &self,
        request: Request<CancelTaskRequest>,
    ) -> Result<Response<CancelTaskResponse>, Status> {
        Ok(Response::new(self.cancel(request.into_inner()).await?))
    }

    async fn retry_task(
        &self,
        request: Request<RetryTaskRequest>,
    ) -> Result<Response<RetryTaskResponse>, Status> {
        Ok(Response::new(self.retry(request.into_inner()).await?))
    }

    async fn resolve_task(
        &self,
        request: Request<ResolveTaskRequest>,
    ) -> Result<Response<ResolveTaskResponse>, Status> {
        Ok(Response::new(self.resolve(request.into_inner()).await?))
    }

    async fn pause_task(
        &self,
        request: Request<PauseTaskRequest>,
    ) -> Result<Response<PauseTaskResponse>, Status> {
        let request = request.into_inner();
        let uid = task_id(&request.task_id)?;
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "paused_by", request.paused_by, request_id)?;
        let (task, already_in_state) = self.pause(uid, true, &note).await?;
        Ok(Response::new(PauseTaskResponse { task, already_in_state }))
    }

    async fn resume_task(
        &self,
        request: Request<ResumeTaskRequest>,
    ) -> Result<Response<ResumeTaskResponse>, Status> {
        let request = request.into_inner();
        let uid = task_id(&request.task_id)?;
        let (reason, request_id) = (request.reason, request.request_id);
        let note = Note::read(reason, "resumed_by", request.resumed_by, request_id)?;
        let (task, already_in_state) = self.pause(uid, false, &note).await?;
        Ok(Response::new(ResumeTaskResponse { task, already_in_state }))
    }

    async fn update_task(
        &self,
        request: Request<UpdateTaskRequest>,
    ) -> Result<Response<UpdateTaskResponse>, Status> {
        Ok(Response::new(self.update(request.into_inner()).await?))
    }

    async fn annotate_task(
        &self,
        request: Request<AnnotateTaskRequest>,
    ) -> Result<Response<AnnotateTaskResponse>, Status> {
        let uid = annotate::annotate(&self.store, request.into_inner()).await?;
        Ok(Response::new(AnnotateTaskResponse { task: Some(self.task(uid).await?) }))
    }

    async fn pause_definitions(
        &self,
        request: Request<PauseDefinitionsRequest>,
    ) -> Result<Response<PauseDefinitionsResponse>, Status> {
        let request = request.into_inner();
        let note = Note::read(request.reason, "paused_by", request.paused_by, String::new())?;
        let (covered_definitions, already_in_state) =
            pause::set(&self.store, request.namespace, request.definition_name, true, &note)
                .await?;
        Ok(Response::new(PauseDefinitionsResponse { covered_definitions, already_in_state }))
    }

    async fn resume_definitions(
        &self,
        request: Request<ResumeDefinitionsRequest>,
    ) -> Result<Response<ResumeDefinitionsResponse>, Status> {
        let request = request.into_inner();
        let note = Note::read(request.reason, "resumed_by", request.resumed_by, String::new())?;
        let (covered_definitions, already_in_state) =
            pause::set(&self.store, request.namespace, request.definition_name, false, &note)
                .await?;
        Ok(Response::new(ResumeDefinitionsResponse { covered_definitions, already_in_state }))
    }

    async fn list_pauses(
        &self,
        request: Request<ListPausesRequest>,
    ) -> Result<Response<ListPausesResponse>, Status> {
        Ok(Response::new(pause::list(&self.store, &request.into_inner()).await?))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        Ok(Response::new(bulk::list_tasks(&self.store, request.into_inner()).await?))
    }

    async fn get_task_context(
        &self,
        request: Request<GetTaskContextRequest>,
    ) -> Result<Response<GetTaskContextResponse>, Status> {
        let uid = task_id(&request.get_ref().task_id)?;
        let context = Some(view::context(&self.store, uid).await?);
        Ok(Response::new(GetTaskContextResponse { context }))
    }

    async fn batch_get_task_contexts(
        &self,
        request: Request<BatchGetTaskContextsRequest>,
    ) -> Result<Response<BatchGetTaskContextsResponse>, Status> {
        Ok(Response::new(view::contexts(&self.store, request.into_inner()).await?))
    }

    async fn get_task_summary(
        &self,
        request: Request<GetTaskSummaryRequest>,
    ) -> Result<Response<GetTaskSummaryResponse>, Status> {
        let uid = task_id(&request.get_ref().task_id)?;
        let summary = Some(view::summary(&self.store, uid).await?);
        Ok(Response::new(GetTaskSummaryResponse { summary }))
    }

    async fn get_task_graph(
        &self,
        request: Request<GetTaskGraphRequest>,
    ) -> Result<Response<GetTaskGraphResponse>, Status> {
        let uid = task_id(&request.get_ref().task_id)?;
        let graph = Some(view::graph(&self.store, uid).await?);
        Ok(Response::new(GetTaskGraphResponse { graph }))
    }

    async fn get_task_diagram(
        &self,
        request: Request<GetTaskDiagramRequest>,
    ) -> Result<Response<GetTaskDiagramResponse>, Status> {
        Ok(Response::new(diagram::get(&self.store, request.into_inner()).await?))
    }

    async fn get_overview(
        &self,
        request: Request<GetOverviewRequest>,
    ) -> Result<Response<GetOverviewResponse>, Status> {
        let overview = Some(self.overviews.get(&self.store, request.into_inner()).await?);
        Ok(Response::new(GetOverviewResponse { overview }))
    }

    async fn get_performance(
        &self,
        request: Request<GetPerformanceRequest>,
    ) -> Result<Response<GetPerformanceResponse>, Status> {
        let request = request.into_inner();
        let performance = Some(performance::get(&self.store, &self.measured, request).await?);
        Ok(Response::new(GetPerformanceResponse { performance }))
    }

    async fn export_tasks(
        &self,
        request: Request<ExportTasksRequest>,
    ) -> Result<Response<ExportTasksResponse>, Status> {
        Ok(Response::new(archive::export(&self.store, request.into_inner()).await?))
    }

    async fn remove_tasks(
        &self,
        request: Request<RemoveTasksRequest>,
    ) -> Result<Response<RemoveTasksResponse>, Status> {
        Ok(Response::new(archive::remove(&self.store, request.into_inner()).await?))
    }

    async fn list_step_readiness(
        &self,
        request: Request<ListStepReadinessRequest>,
    ) -> Result<Response<ListStepReadinessResponse>, Status> {
        Ok(Response::new(view::readiness(&self.store, request.into_inner()).await?))
    }

    async fn list_transitions(
        &self,
        request: Request<ListTransitionsRequest>,
    ) -> Result<Response<ListTransitionsResponse>, Status> {
        Ok(Response::new(history::list(&self.store, request.into_inner()).await?))
    }

    async fn get_transition_statistics(
        &self,
        request: Request<GetTransitionStatisticsRequest>,
    ) -> Result<Response<GetTransitionStatisticsResponse>, Status> {
        Ok(Response::new(history::statistics(&self.store, request.into_inner()).await?))
    }

    async fn start_bulk_operation(
        &self,
        request: Request<StartBulkOperationRequest>,
    ) -> Result<Response<StartBulkOperationResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(bulk::start(&self.store, &self.previews, &self.bulk, request).await?))
    }

    async fn get_bulk_operation(
        &self,
        request: Request<GetBulkOperationRequest>,
    ) -> Result<Response<GetBulkOperationResponse>, Status> {
        let operation = bulk::get(&self.store, &request.into_inner().operation_id).await?;
        Ok(Response::new(GetBulkOperationResponse { operation: Some(operation) }))
    }

    async fn list_bulk_operations(
        &self,
        request: Request<ListBulkOperationsRequest>,
    ) -> Result<Response<ListBulkOperationsResponse>, Status> {
        Ok(Response::new(bulk::list(&self.store, request.into_inner()).await?))
    }

    async fn cancel_bulk_operation(
        &self,
        request: Request<CancelBulkOperationRequest>,
    ) -> Result<Response<CancelBulkOperationResponse>, Status> {
        Ok(Response::new(bulk::cancel(&self.store, &self.bulk, request.into_inner()).await?))
    }
}
