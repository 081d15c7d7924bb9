//! The RPCs of task-service over real sockets and a real Postgres. Each test has a database and a
//! service of its own.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod create;
mod define;
mod faults;
mod follow;
mod identity;

use std::time::Duration;

use clap::Parser;
use stepwell_proto::{
    refusal::Refusal,
    v1::{
        CreateTaskRequest, ErrorReason, GetTaskRequest, RegisterDefinitionRequest, Task,
        register_definition_request::Source, task_service_client::TaskServiceClient,
    },
};
use stepwell_serve::{Service, Shutdown};
use stepwell_store::Store;
use stepwell_suite::TestDatabase;
use tokio::net::TcpListener;
use tonic::{Response, Status, transport::Channel};
use uuid::Uuid;

/// A running task-service.
struct World {
    store: Store,
    client: TaskServiceClient<Channel>,
    shutdown: Shutdown,
    database: TestDatabase,
}

impl World {
    async fn new() -> Self {
        let database = stepwell_suite::test_database().await.unwrap();
        let args = ["task", "--log-filter", "off", "--database-url", &database.url];
        let options = stepwell_task::Options::try_parse_from(args).unwrap();
        let service = Service::start("task", &options.serve).unwrap();
        let store = stepwell_store::Options {
            timeout: Duration::from_secs(2),
            ..stepwell_store::Options::new(&database.url)
        };
        let store = Store::connect(&store, "task").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (shutdown, served) = (service.shutdown().clone(), store.clone());
        tokio::spawn(async move {
            stepwell_task::run(service, served, listener, &options).await.unwrap()
        });
        let client = TaskServiceClient::connect(address).await.unwrap();
        Self { store, client, shutdown, database }
    }

    fn client(&self) -> TaskServiceClient<Channel> {
        self.client.clone()
    }

    /// Registers a definition that has to be right.
    async fn register(&self, yaml: &str) {
        self.client().register_definition(yaml_request(yaml)).await.unwrap();
    }

    async fn create(&self, request: CreateTaskRequest) -> Result<(Task, bool), Refusal> {
        let created = answer(self.client().create_task(request).await)?;
        Ok((created.task.unwrap(), created.already_existed))
    }

    /// The task with its steps and their results.
    async fn get(&self, task_id: &str) -> Result<Task, Refusal> {
        let request =
            GetTaskRequest { task_id: task_id.into(), include_results: true, ..Default::default() };
        Ok(answer(self.client().get_task(request).await)?.task.unwrap())
    }

    async fn has(&self, task_id: &str) -> bool {
        match self.get(task_id).await {
            Ok(_) => true,
            Err(refusal) if refusal.reason == ErrorReason::TaskNotFound => false,
            Err(refusal) => panic!("{refusal}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}

fn yaml_request(yaml: &str) -> RegisterDefinitionRequest {
    RegisterDefinitionRequest { source: Some(Source::Yaml(yaml.into())) }
}

/// The answer, or the refusal that stands in the status.
fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, Refusal> {
    answer.map(Response::into_inner).map_err(|status| {
        let refusal = Refusal::from_status(&status);
        let refusal = refusal.unwrap_or_else(|| panic!("not one of ours: {status:?}"));
        assert_eq!(status.code(), refusal.reason.code());
        for key in refusal.reason.metadata() {
            assert!(refusal.metadata.contains_key(*key), "{key} is promised: {refusal:?}");
        }
        refusal
    })
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// A request for a task of `pair`.
fn request(context: &str) -> CreateTaskRequest {
    CreateTaskRequest {
        task_id: new_id(),
        definition_name: "pair".into(),
        context: context.into(),
        ..CreateTaskRequest::default()
    }
}

/// Two steps, one after the other; `n` of the context must be a number.
const PAIR: &str = "\
name: pair
version: 1.0.0
context_schema: {properties: {n: {type: integer}}}
steps:
  - name: first
  - name: second
    depends_on: [first]
";
