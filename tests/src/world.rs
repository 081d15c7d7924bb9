//! A whole suite for one test: services as processes over a database of the test's own, a client,
//! and executors that run inside the test.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sqlx::{Connection, PgConnection};
use stepwell_client::{
    Addresses, Client, EventStream, Executor, HandlerError, Report, Start, StepContext,
    Subscription, v1,
};
use stepwell_suite::{Nodes, Suite, SuiteOptions, TestDatabase};
use tokio::{sync::Notify, task::JoinHandle};

/// No wait in a test is longer.
pub const SOON: Duration = Duration::from_secs(60);

/// Terms of seconds, so that what takes minutes in production takes seconds in a test.
pub fn short_terms() -> Vec<(String, String)> {
    [
        ("STEPWELL_NODE_LEASE", "2"),
        ("STEPWELL_SESSION_GRACE", "2"),
        ("STEPWELL_HEARTBEAT", "1"),
        ("STEPWELL_DATABASE_TIMEOUT", "3"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// A running suite.
pub struct World {
    /// Its processes.
    pub suite: Suite,
    /// A client of all its services.
    pub client: Client,
    database: TestDatabase,
    others: Vec<Suite>,
}

/// An executor that runs inside the test.
pub struct Running {
    stop: Arc<Notify>,
    ended: JoinHandle<Report>,
}

impl Running {
    /// Drains it; what it did.
    pub async fn stop(self) -> Report {
        self.stop.notify_one();
        self.ended.await.unwrap()
    }

    /// Waits until it ends by itself; what it did.
    pub async fn ended(self) -> Report {
        tokio::time::timeout(SOON, self.ended).await.unwrap().unwrap()
    }

    /// Drops it as if its process were gone.
    pub fn vanish(self) {
        self.ended.abort();
    }
}

/// A test that fails shows what its services had to say.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for suite in std::iter::once(&self.suite).chain(&self.others) {
                eprintln!("{}", suite.last_words());
            }
        }
    }
}

impl World {
    /// One of each service.
    pub async fn start() -> Self {
        Self::with(Nodes { task: 1, step: 1, event: 1 }, &[]).await
    }

    /// So many of each, with further arguments.
    pub async fn with(nodes: Nodes, args: &[&str]) -> Self {
        Self::set_up(|options| {
            options.nodes = nodes;
            options.args = args.iter().map(|&arg| arg.to_owned()).collect();
        })
        .await
    }

    /// So many of each, with terms of seconds where services have longer ones.
    pub async fn hasty(nodes: Nodes) -> Self {
        Self::set_up(|options| {
            options.nodes = nodes;
            options.env = short_terms();
        })
        .await
    }

    /// As the options say in the end. A database that is named there is the test's own, reached in
    /// another way.
    pub async fn set_up(change: impl FnOnce(&mut SuiteOptions)) -> Self {
        let database = stepwell_suite::test_database().await.unwrap();
        Self::over(database, change).await
    }

    /// The same over a database that is there.
    pub async fn over(database: TestDatabase, change: impl FnOnce(&mut SuiteOptions)) -> Self {
        let mut options = SuiteOptions::new(stepwell_suite::built_stepwell().unwrap());
        options.database_url = Some(database.url.clone());
        change(&mut options);
        let suite = Suite::start(options).await.unwrap();
        let stepwell_suite::Addresses { task, step, event } = suite.addresses();
        let client = Client::connect(Addresses { task, step, event }).unwrap();
        Self { suite, client, database, others: Vec::new() }
    }

    /// Starts one more step-service, which reaches the database directly; a client of the services
    /// with that one in place of the others.
    pub async fn another_step_service(&mut self) -> Client {
        let mut options = SuiteOptions::new(stepwell_suite::built_stepwell().unwrap());
        options.database_url = Some(self.database.url.clone());
        options.nodes = Nodes { task: 0, step: 1, event: 0 };
        options.env = short_terms();
        let other = Suite::start(options).await.unwrap();
        let stepwell_suite::Addresses { task, event, .. } = self.suite.addresses();
        let step = other.addresses().step;
        self.others.push(other);
        Client::connect(Addresses { task, step, event }).unwrap()
    }

    /// Registers a definition.
    pub async fn define(&self, yaml: &str) -> v1::Definition {
        self.client.register_yaml(yaml).await.unwrap().definition.unwrap()
    }

    /// Runs an executor.
    pub fn run(&self, executor: Executor) -> Running {
        let stop = Arc::new(Notify::new());
        let told = Arc::clone(&stop);
        let ended = tokio::spawn(async move {
            executor.run(async move { told.notified().await }).await.unwrap()
        });
        Running { stop, ended }
    }

    /// A connection to its database.
    pub async fn connection(&self) -> PgConnection {
        PgConnection::connect(self.suite.database_url()).await.unwrap()
    }

    /// A feed of everything recorded.
    pub async fn feed(&self, start: Start) -> EventStream {
        self.client.subscribe(Subscription::new().names(["*"]).from(start)).await.unwrap()
    }

    /// Creates a task with this context.
    pub async fn create(&self, definition: &str, context: &serde_json::Value) -> v1::Task {
        self.client.task(definition).context(context).create().await.unwrap()
    }

    /// Tasks of one step that have ended, five events each; their definition is `one`.
    pub async fn run_ones(&self, n: usize) -> Vec<String> {
        self.define("{name: one, steps: [{name: a}]}").await;
        let executor = Executor::new(&self.client, "e").slots(8);
        let running =
            self.run(executor.handler("a", async |_| Ok::<_, HandlerError>(serde_json::json!({}))));
        let mut tasks = Vec::new();
        for _ in 0..n {
            tasks.push(self.create("one", &serde_json::json!({})).await.task_id);
        }
        for task in &tasks {
            self.ended(task).await;
        }
        running.stop().await;
        tasks
    }

    /// Positions of all events, as the table has them.
    pub async fn positions(&self) -> BTreeSet<i64> {
        let all: Vec<i64> = sqlx::query_scalar("select position from stepwell.event")
            .fetch_all(&mut self.connection().await)
            .await
            .unwrap();
        all.into_iter().collect()
    }

    /// Waits for the end of a task; the task with its steps.
    pub async fn ended(&self, task_id: &str) -> v1::Task {
        let task = self.client.wait_task(task_id, SOON).await.unwrap();
        assert!(task.state().is_final(), "task {task_id} is {}", task.state().word());
        self.task(task_id).await
    }

    /// A task with its steps and their results.
    pub async fn task(&self, task_id: &str) -> v1::Task {
        let request = v1::GetTaskRequest {
            task_id: task_id.to_owned(),
            include_results: true,
            ..Default::default()
        };
        self.client.get_task(request).await.unwrap().task.unwrap()
    }

    /// Rows of all tables that a refused request must leave as they are.
    pub async fn rows(&self) -> i64 {
        sqlx::query_scalar(
            "select (select count(*) from stepwell.task) + (select count(*) from stepwell.step) \
                  + (select count(*) from stepwell.event) + (select count(*) from stepwell.definition) \
                  + (select count(*) from stepwell.ready_step) + (select count(*) from stepwell.task_detail) \
                  + (select count(*) from stepwell.bulk_operation) + (select count(*) from stepwell.request) \
                  + (select count(*) from stepwell.event_type)",
        )
        .fetch_one(&mut self.connection().await)
        .await
        .unwrap()
    }
}

/// Holds a handler: it says when it has started, and goes on when it is told.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    started: Arc<Notify>,
    finish: Arc<Notify>,
}

impl Gate {
    /// Runs the handler `a` behind this gate; it returns the number of its attempt.
    pub fn guard(&self, executor: Executor) -> Executor {
        let gate = self.clone();
        executor.handler("a", move |step: StepContext| {
            let gate = gate.clone();
            async move {
                gate.started.notify_one();
                gate.finish.notified().await;
                Ok::<_, HandlerError>(step.attempt())
            }
        })
    }

    /// Waits until a handler has started.
    pub async fn started(&self) {
        tokio::time::timeout(SOON, self.started.notified()).await.unwrap();
    }

    /// Lets one go on.
    pub fn open(&self) {
        self.finish.notify_one();
    }
}

/// Reads a feed until an event satisfies the condition; all events up to it.
pub async fn until(feed: &mut EventStream, found: impl Fn(&v1::Event) -> bool) -> Vec<v1::Event> {
    let mut events = Vec::new();
    let reading = async {
        loop {
            let delivery = feed.next().await.unwrap().unwrap();
            for event in delivery.events {
                let last = found(&event);
                events.push(event);
                if last {
                    return;
                }
            }
        }
    };
    assert!(tokio::time::timeout(SOON, reading).await.is_ok(), "{} events came", events.len());
    events
}
