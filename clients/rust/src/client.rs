//! The client: one method for each unary RPC that callers use.

use std::{sync::Arc, time::Duration};

use stepwell_proto::v1::{
    self, event_service_client::EventServiceClient, step_service_client::StepServiceClient,
    task_service_client::TaskServiceClient,
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status, transport::Channel};
use uuid::Uuid;

use crate::{
    addresses::Addresses,
    call::call,
    error::Error,
    limits::{Limits, after},
    pool::{MESSAGE_BYTES_MAX, Pool},
    subscriber::EventStream,
    task::TaskBuilder,
};

/// The longest wait that one WaitTask call asks for.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Talks to the services. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) pools: Arc<Pools>,
    pub(crate) limits: Limits,
}

/// The three services.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) task: Pool,
    pub(crate) step: Pool,
    pub(crate) event: Pool,
}

impl Client {
    /// A client for services at these addresses. Connects when first used; must be called inside a
    /// Tokio runtime.
    pub fn connect(addresses: Addresses) -> Result<Self, Error> {
        Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let pools = Pools {
            task: Pool::new(&addresses.task)?,
            step: Pool::new(&addresses.step)?,
            event: Pool::new(&addresses.event)?,
        };
        Ok(Self { pools: Arc::new(pools), limits: Limits::default() })
    }

    /// The same client with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Registers a version of a definition.
    pub async fn register_definition(
        &self,
        request: v1::RegisterDefinitionRequest,
    ) -> Result<v1::RegisterDefinitionResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.register_definition(request).await
        })
        .await
    }

    /// Registers the version of a definition that this YAML text describes.
    pub async fn register_yaml(
        &self,
        yaml: impl Into<String>,
    ) -> Result<v1::RegisterDefinitionResponse, Error> {
        let source = v1::register_definition_request::Source::Yaml(yaml.into());
        self.register_definition(v1::RegisterDefinitionRequest { source: Some(source) }).await
    }

    /// One version of a definition.
    pub async fn get_definition(
        &self,
        request: v1::GetDefinitionRequest,
    ) -> Result<v1::GetDefinitionResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_definition(request).await
        })
        .await
    }

    /// Definitions by namespace, name and version, a page of them.
    pub async fn list_definitions(
        &self,
        request: v1::ListDefinitionsRequest,
    ) -> Result<v1::ListDefinitionsResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.list_definitions(request).await
        })
        .await
    }

    /// Namespaces that have definitions, a page of them.
    pub async fn list_namespaces(
        &self,
        request: v1::ListNamespacesRequest,
    ) -> Result<v1::ListNamespacesResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.list_namespaces(request).await
        })
        .await
    }

    /// What of a definition depends on what.
    pub async fn get_definition_graph(
        &self,
        request: v1::GetDefinitionGraphRequest,
    ) -> Result<v1::GetDefinitionGraphResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_definition_graph(request).await
        })
        .await
    }

    /// A task of this definition, to be described further and then created.
    pub fn task(&self, definition_name: impl Into<String>) -> TaskBuilder {
        TaskBuilder::new(self.clone(), definition_name.into())
    }

    /// Creates a task. Without an id it gets one here, so that a repeat does not make another.
    pub async fn create_task(
        &self,
        mut request: v1::CreateTaskRequest,
    ) -> Result<v1::CreateTaskResponse, Error> {
        fill_id(&mut request.task_id);
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.create_task(request).await
        })
        .await
    }

    /// Creates up to 1,000 tasks. Those without an id get one here.
    pub async fn batch_create_tasks(
        &self,
        mut request: v1::BatchCreateTasksRequest,
    ) -> Result<v1::BatchCreateTasksResponse, Error> {
        request.requests.iter_mut().for_each(|r| fill_id(&mut r.task_id));
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.batch_create_tasks(request).await
        })
        .await
    }

    /// One task with its steps.
    pub async fn get_task(
        &self,
        request: v1::GetTaskRequest,
    ) -> Result<v1::GetTaskResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_task(request).await
        })
        .await
    }

    /// Answers as soon as the task has ended, or after the time-out with the task as it is then:
    /// its state says which. Without a time-out it waits until the end. While the service is away
    /// it keeps trying.
    pub async fn wait_task(
        &self,
        task_id: impl Into<String>,
        timeout: impl Into<Option<Duration>>,
    ) -> Result<v1::Task, Error> {
        let task_id = task_id.into();
        let end = after(timeout.into().unwrap_or(Duration::MAX));
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait = left.min(WAIT_MAX);
            let limits = Limits {
                attempts: u32::MAX,
                attempt_timeout: wait.saturating_add(self.limits.attempt_timeout),
                call_timeout: left.saturating_add(self.limits.attempt_timeout),
                ..self.limits.clone()
            };
            let timeout = prost_types::Duration::try_from(wait).ok();
            let request = v1::WaitTaskRequest { task_id: task_id.clone(), timeout };
            let answer = self.tasks(&limits, &request, |mut service, request| async move {
                service.wait_task(request).await
            });
            let task = answer.await?.task.ok_or(Error::Answer("it has no task"))?;
            if task.state().is_final() || wait == left {
                return Ok(task);
            }
        }
    }

    /// Cancels a task and its unfinished steps.
    pub async fn cancel_task(
        &self,
        request: v1::CancelTaskRequest,
    ) -> Result<v1::CancelTaskResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.cancel_task(request).await
        })
        .await
    }

    /// Tries the steps in error of a task in error again. Without a `request_id` it gets one here, so that
    /// a repeat does not try them once more.
    pub async fn retry_task(
        &self,
        mut request: v1::RetryTaskRequest,
    ) -> Result<v1::RetryTaskResponse, Error> {
        fill_id(&mut request.request_id);
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.retry_task(request).await
        })
        .await
    }

    /// Declares a task in error settled.
    pub async fn resolve_task(
        &self,
        request: v1::ResolveTaskRequest,
    ) -> Result<v1::ResolveTaskResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.resolve_task(request).await
        })
        .await
    }

    /// Starts no further step of a task until it is resumed.
    pub async fn pause_task(
        &self,
        request: v1::PauseTaskRequest,
    ) -> Result<v1::PauseTaskResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.pause_task(request).await
        })
        .await
    }

    /// Starts no further step of a definition, or of a namespace, until it is resumed.
    pub async fn pause_definitions(
        &self,
        request: v1::PauseDefinitionsRequest,
    ) -> Result<v1::PauseDefinitionsResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.pause_definitions(request).await
        })
        .await
    }

    /// Takes a pause of a definition or a namespace back.
    pub async fn resume_definitions(
        &self,
        request: v1::ResumeDefinitionsRequest,
    ) -> Result<v1::ResumeDefinitionsResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.resume_definitions(request).await
        })
        .await
    }

    /// Which definitions and namespaces are paused.
    pub async fn list_pauses(
        &self,
        request: v1::ListPausesRequest,
    ) -> Result<v1::ListPausesResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.list_pauses(request).await
        })
        .await
    }

    /// Lets a paused task go on.
    pub async fn resume_task(
        &self,
        request: v1::ResumeTaskRequest,
    ) -> Result<v1::ResumeTaskResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.resume_task(request).await
        })
        .await
    }

    /// Changes what is said of a task: why it is, and its labels. Without a `request_id` it gets one here.
    pub async fn update_task(
        &self,
        mut request: v1::UpdateTaskRequest,
    ) -> Result<v1::UpdateTaskResponse, Error> {
        fill_id(&mut request.request_id);
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.update_task(request).await
        })
        .await
    }

    /// Keeps facts with a task, by name, in place of those of the same name; with who asks and why, and to forget
    /// facts, see [`Client::annotate_task`].
    ///
    /// ```no_run
    /// # async fn f(client: stepwell_client::Client) -> Result<(), stepwell_client::Error> {
    /// client.annotate("0198c0de-4a11-7c52-9e0f-3b1de5a7f001", [("order", "17")]).await?;
    /// # Ok(()) }
    /// ```
    pub async fn annotate<N: Into<String>, T: Into<String>>(
        &self,
        task_id: impl Into<String>,
        facts: impl IntoIterator<Item = (N, T)>,
    ) -> Result<v1::Task, Error> {
        let facts = facts.into_iter().map(|(name, text)| (name.into(), text.into()));
        let request = v1::AnnotateTaskRequest {
            task_id: task_id.into(),
            set: facts.collect(),
            ..Default::default()
        };
        self.annotate_task(request).await?.task.ok_or(Error::Answer("it has no task"))
    }

    /// Keeps facts with a task, or forgets them. Without a `request_id` it gets one here.
    pub async fn annotate_task(
        &self,
        mut request: v1::AnnotateTaskRequest,
    ) -> Result<v1::AnnotateTaskResponse, Error> {
        fill_id(&mut request.request_id);
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.annotate_task(request).await
        })
        .await
    }

    /// A page of the tasks that fit a filter, newest first.
    pub async fn list_tasks(
        &self,
        request: v1::ListTasksRequest,
    ) -> Result<v1::ListTasksResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.list_tasks(request).await
        })
        .await
    }

    /// Changes how many attempts a step may make in all, or its config. Without a `request_id` it gets one here.
    pub async fn update_step(
        &self,
        mut request: v1::UpdateStepRequest,
    ) -> Result<v1::UpdateStepResponse, Error> {
        fill_id(&mut request.request_id);
        self.steps(
            &request,
            |mut service, request| async move { service.update_step(request).await },
        )
        .await
    }

    /// Starts to cancel, retry or resolve all tasks that fit a filter, or says which these are. Without
    /// an id it gets one here, so that a repeat does not start another.
    pub async fn start_bulk_operation(
        &self,
        mut request: v1::StartBulkOperationRequest,
    ) -> Result<v1::StartBulkOperationResponse, Error> {
        fill_id(&mut request.operation_id);
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.start_bulk_operation(request).await
        })
        .await
    }

    /// One bulk operation, with its progress.
    pub async fn get_bulk_operation(
        &self,
        request: v1::GetBulkOperationRequest,
    ) -> Result<v1::GetBulkOperationResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_bulk_operation(request).await
        })
        .await
    }

    /// A page of the bulk operations, those started last first.
    pub async fn list_bulk_operations(
        &self,
        request: v1::ListBulkOperationsRequest,
    ) -> Result<v1::ListBulkOperationsResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.list_bulk_operations(request).await
        })
        .await
    }

    /// Stops a bulk operation after the chunk it is at.
    pub async fn cancel_bulk_operation(
        &self,
        request: v1::CancelBulkOperationRequest,
    ) -> Result<v1::CancelBulkOperationResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.cancel_bulk_operation(request).await
        })
        .await
    }

    /// How a task stands: what of it is ready, runs, waits or cannot go on.
    pub async fn get_task_context(
        &self,
        request: v1::GetTaskContextRequest,
    ) -> Result<v1::GetTaskContextResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_task_context(request).await
        })
        .await
    }

    /// The same of up to 100 tasks.
    pub async fn batch_get_task_contexts(
        &self,
        request: v1::BatchGetTaskContextsRequest,
    ) -> Result<v1::BatchGetTaskContextsResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.batch_get_task_contexts(request).await
        })
        .await
    }

    /// How a task stands, with the steps that can go on and those that cannot, and why.
    pub async fn get_task_summary(
        &self,
        request: v1::GetTaskSummaryRequest,
    ) -> Result<v1::GetTaskSummaryResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_task_summary(request).await
        })
        .await
    }

    /// What of a task depends on what, with the states of its steps.
    pub async fn get_task_graph(
        &self,
        request: v1::GetTaskGraphRequest,
    ) -> Result<v1::GetTaskGraphResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_task_graph(request).await
        })
        .await
    }

    /// What became of a task and its steps, a page of it.
    pub async fn list_transitions(
        &self,
        request: v1::ListTransitionsRequest,
    ) -> Result<v1::ListTransitionsResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.list_transitions(request).await
        })
        .await
    }

    /// A task as a diagram, with the states of its steps.
    pub async fn get_task_diagram(
        &self,
        request: v1::GetTaskDiagramRequest,
    ) -> Result<v1::GetTaskDiagramResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_task_diagram(request).await
        })
        .await
    }

    /// What became of a task and its steps, in figures.
    pub async fn get_transition_statistics(
        &self,
        request: v1::GetTransitionStatisticsRequest,
    ) -> Result<v1::GetTransitionStatisticsResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_transition_statistics(request).await
        })
        .await
    }

    /// The whole at one moment: tasks, what is ready, and who could take it.
    pub async fn get_overview(
        &self,
        request: v1::GetOverviewRequest,
    ) -> Result<v1::GetOverviewResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_overview(request).await
        })
        .await
    }

    /// How it went lately.
    pub async fn get_performance(
        &self,
        request: v1::GetPerformanceRequest,
    ) -> Result<v1::GetPerformanceResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.get_performance(request).await
        })
        .await
    }

    /// A page of tasks that ended long ago, with all that is theirs.
    pub async fn export_tasks(
        &self,
        request: v1::ExportTasksRequest,
    ) -> Result<v1::ExportTasksResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.export_tasks(request).await
        })
        .await
    }

    /// Removes tasks that have ended, with their steps and results.
    pub async fn remove_tasks(
        &self,
        request: v1::RemoveTasksRequest,
    ) -> Result<v1::RemoveTasksResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.remove_tasks(request).await
        })
        .await
    }

    /// Of the steps of a task whether they may be started and what is in their way, a page of them.
    pub async fn list_step_readiness(
        &self,
        request: v1::ListStepReadinessRequest,
    ) -> Result<v1::ListStepReadinessResponse, Error> {
        self.tasks(&self.limits, &request, |mut service, request| async move {
            service.list_step_readiness(request).await
        })
        .await
    }

    /// One step with its result.
    pub async fn get_step(
        &self,
        request: v1::GetStepRequest,
    ) -> Result<v1::GetStepResponse, Error> {
        self.steps(&request, |mut service, request| async move { service.get_step(request).await })
            .await
    }

    /// Steps of a task, a page of them.
    pub async fn list_steps(
        &self,
        request: v1::ListStepsRequest,
    ) -> Result<v1::ListStepsResponse, Error> {
        self.steps(
            &request,
            |mut service, request| async move { service.list_steps(request).await },
        )
        .await
    }

    /// Why a step does not run.
    pub async fn get_step_readiness(
        &self,
        request: v1::GetStepReadinessRequest,
    ) -> Result<v1::GetStepReadinessResponse, Error> {
        self.steps(&request, |mut service, request| async move {
            service.get_step_readiness(request).await
        })
        .await
    }

    /// Tries a step in error again. Without a `request_id` it gets one here.
    pub async fn retry_step(
        &self,
        mut request: v1::RetryStepRequest,
    ) -> Result<v1::RetryStepResponse, Error> {
        fill_id(&mut request.request_id);
        self.steps(
            &request,
            |mut service, request| async move { service.retry_step(request).await },
        )
        .await
    }

    /// Declares a step done, with a result for its children.
    pub async fn resolve_step(
        &self,
        request: v1::ResolveStepRequest,
    ) -> Result<v1::ResolveStepResponse, Error> {
        self.steps(
            &request,
            |mut service, request| async move { service.resolve_step(request).await },
        )
        .await
    }

    /// Skips a pending step that may be skipped.
    pub async fn skip_step(
        &self,
        request: v1::SkipStepRequest,
    ) -> Result<v1::SkipStepResponse, Error> {
        self.steps(&request, |mut service, request| async move { service.skip_step(request).await })
            .await
    }

    /// Cancels one step.
    pub async fn cancel_step(
        &self,
        request: v1::CancelStepRequest,
    ) -> Result<v1::CancelStepResponse, Error> {
        self.steps(
            &request,
            |mut service, request| async move { service.cancel_step(request).await },
        )
        .await
    }

    /// A page of the executors that are connected.
    pub async fn list_executors(
        &self,
        request: v1::ListExecutorsRequest,
    ) -> Result<v1::ListExecutorsResponse, Error> {
        self.steps(
            &request,
            |mut service, request| async move { service.list_executors(request).await },
        )
        .await
    }

    /// A page of the handlers that executors offer or definitions use.
    pub async fn list_handlers(
        &self,
        request: v1::ListHandlersRequest,
    ) -> Result<v1::ListHandlersResponse, Error> {
        self.steps(
            &request,
            |mut service, request| async move { service.list_handlers(request).await },
        )
        .await
    }

    /// Tells an executor to stop: it finishes what it holds and goes.
    pub async fn drain_executor(
        &self,
        request: v1::DrainExecutorRequest,
    ) -> Result<v1::DrainExecutorResponse, Error> {
        self.steps(
            &request,
            |mut service, request| async move { service.drain_executor(request).await },
        )
        .await
    }

    /// A page of the events that are kept.
    pub async fn list_events(
        &self,
        request: v1::ListEventsRequest,
    ) -> Result<v1::ListEventsResponse, Error> {
        self.events(
            &request,
            |mut service, request| async move { service.list_events(request).await },
        )
        .await
    }

    /// Registers a type of custom events, or changes it as far as that is allowed.
    pub async fn register_event_type(
        &self,
        request: v1::RegisterEventTypeRequest,
    ) -> Result<v1::RegisterEventTypeResponse, Error> {
        self.events(&request, |mut service, request| async move {
            service.register_event_type(request).await
        })
        .await
    }

    /// Publishes custom events about a task or one of its steps. Without a request id it gets one here, so that
    /// a repeat does not publish them again.
    pub async fn publish_events(
        &self,
        mut request: v1::PublishEventsRequest,
    ) -> Result<v1::PublishEventsResponse, Error> {
        fill_id(&mut request.request_id);
        self.events(&request, |mut service, request| async move {
            service.publish_events(request).await
        })
        .await
    }

    /// A page of the types of events that there are.
    pub async fn list_event_types(
        &self,
        request: v1::ListEventTypesRequest,
    ) -> Result<v1::ListEventTypesResponse, Error> {
        self.events(&request, |mut service, request| async move {
            service.list_event_types(request).await
        })
        .await
    }

    /// One type of events, with its schema and an example.
    pub async fn get_event_type(
        &self,
        request: v1::GetEventTypeRequest,
    ) -> Result<v1::GetEventTypeResponse, Error> {
        self.events(&request, |mut service, request| async move {
            service.get_event_type(request).await
        })
        .await
    }

    /// Follows the feed of events. Answers once the stream is open and its place in the feed is
    /// known: with [`crate::Start::Latest`], whatever happens after the answer is delivered.
    pub async fn subscribe(
        &self,
        request: impl Into<v1::SubscribeRequest>,
    ) -> Result<EventStream, Error> {
        let mut fault = None;
        let opening = EventStream::open(self, request.into(), &mut fault);
        match timeout(self.limits.call_timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(fault.map_or(Error::NoAnswer(self.limits.call_timeout), Error::from)),
        }
    }

    /// Results of a leased step's parents.
    pub(crate) async fn list_step_results(
        &self,
        request: v1::ListStepResultsRequest,
    ) -> Result<v1::ListStepResultsResponse, Error> {
        self.steps(&request, |mut service, request| async move {
            service.list_step_results(request).await
        })
        .await
    }

    async fn tasks<Q: Clone, A, F>(
        &self,
        limits: &Limits,
        request: &Q,
        rpc: impl Fn(TaskServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        call(&self.pools.task, limits, request, |channel, request| {
            let service = TaskServiceClient::new(channel);
            rpc(service.max_decoding_message_size(MESSAGE_BYTES_MAX), request)
        })
        .await
    }

    async fn steps<Q: Clone, A, F>(
        &self,
        request: &Q,
        rpc: impl Fn(StepServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        call(&self.pools.step, &self.limits, request, |channel, request| {
            let service = StepServiceClient::new(channel);
            rpc(service.max_decoding_message_size(MESSAGE_BYTES_MAX), request)
        })
        .await
    }

    async fn events<Q: Clone, A, F>(
        &self,
        request: &Q,
        rpc: impl Fn(EventServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        call(&self.pools.event, &self.limits, request, |channel, request| {
            let service = EventServiceClient::new(channel);
            rpc(service.max_decoding_message_size(MESSAGE_BYTES_MAX), request)
        })
        .await
    }
}

fn fill_id(id: &mut String) {
    if id.is_empty() {
        *id = Uuid::now_v7().to_string();
    }
}
