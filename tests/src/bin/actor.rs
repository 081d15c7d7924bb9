//! The clients of a chaos run, each a process that may be killed at any moment: it writes what it
//! sees into its history. Addresses come from the environment, as for any client.
#![expect(clippy::unwrap_used, reason = "an actor that cannot go on says where")]

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use stepwell_client::{
    Addresses, Client, CursorStore, Executor, FileCursor, HandlerError, Limits, Observation, Start,
    StepContext, Subscription, v1,
};
use stepwell_tests::{
    Exports,
    history::{History, SHAPES},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};
use uuid::Uuid;

#[derive(Parser)]
struct Actor {
    /// Where its history goes.
    #[arg(long)]
    history: PathBuf,
    /// Makes what it does the same every time.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Runs steps until SIGTERM.
    Executor {
        #[arg(long, default_value_t = 20)]
        slots: usize,
        /// A step takes up to so long.
        #[arg(long, default_value_t = 10)]
        work_ms: u64,
    },
    /// Creates tasks and waits for their ends.
    Producer {
        #[arg(long)]
        tasks: u64,
        #[arg(long, default_value_t = 100)]
        in_flight: usize,
        /// Pause between two tasks; 0: none.
        #[arg(long, default_value_t = 0)]
        every_us: u64,
    },
    /// Follows the whole feed until SIGTERM, keeping its cursor in a file.
    Subscriber {
        #[arg(long)]
        cursor: PathBuf,
        /// After each delivery it rests for so long.
        #[arg(long, default_value_t = 0)]
        rest_ms: u64,
    },
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let actor = Actor::parse();
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
    let exports = endpoint.map(|endpoint| Exports::new(&endpoint, "executor"));
    if let Some(exports) = &exports {
        tracing::dispatcher::set_global_default(exports.dispatch.clone()).unwrap();
    } else if std::env::var("STEPWELL_LOG").is_ok_and(|format| format == "json") {
        let lines = tracing_subscriber::fmt().json().flatten_event(true);
        lines.with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    }
    let history = Arc::new(History::create(&actor.history));
    let limits = Limits { stream_silence: Duration::from_secs(5), ..Limits::default() };
    let client = Client::connect(Addresses::from_env()).unwrap().with_limits(limits);
    match actor.role {
        Role::Executor { slots, work_ms } => {
            execute(&client, history, actor.seed, slots, work_ms).await;
        }
        Role::Producer { tasks, in_flight, every_us } => {
            let every = Duration::from_micros(every_us);
            produce(client, history, actor.seed, tasks, in_flight, every).await;
        }
        Role::Subscriber { cursor, rest_ms } => {
            follow(client, history, cursor, Duration::from_millis(rest_ms)).await;
        }
    }
    if let Some(exports) = exports {
        exports.flush().await;
    }
}

async fn terminated() {
    signal(SignalKind::terminate()).unwrap().recv().await;
}

fn dice(seed: u64, what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, what).hash(&mut hasher);
    hasher.finish()
}

// ── executor ────────────────────────────────────────────────────────────────────────────────────

async fn execute(client: &Client, history: Arc<History>, seed: u64, slots: usize, work_ms: u64) {
    let observer = Arc::clone(&history);
    let executor = Executor::new(client, format!("actor-{}", std::process::id()))
        .slots(slots)
        .grace(Duration::from_secs(5))
        .observer(move |seen| observer.record(entry(&seen)))
        .handler("work", move |step| work(step, seed, work_ms))
        .handler("told", {
            let client = client.clone();
            move |step| told(step, client.clone())
        });
    let report = executor.run(terminated()).await.unwrap();
    history.record(json!({"what": "ended", "unacknowledged": report.unacknowledged}));
}

fn entry(seen: &Observation<'_>) -> Value {
    match seen {
        Observation::Leased(lease) => json!({
            "what": "leased", "lease": lease.lease_id, "step": lease.step_id,
            "attempt": lease.attempt, "parents": lease.parents.len(),
        }),
        Observation::Ended(outcome) => {
            let (kind, result) = match &outcome.kind {
                Some(v1::outcome::Kind::Complete(completion)) => {
                    ("complete", completion.result.as_str())
                }
                Some(v1::outcome::Kind::Fail(failure)) => ("fail", failure.error_class.as_str()),
                _ => ("hand_back", ""),
            };
            json!({"what": "outcome", "lease": outcome.lease_id, "kind": kind, "result": result})
        }
        Observation::Acknowledged(ack) => json!({
            "what": "ack", "lease": ack.lease_id,
            "refused": ack.refusal.as_ref().map(|r| format!("{:?}", r.reason())),
        }),
        other => json!({"what": format!("{other:?}")}),
    }
}

#[derive(serde::Deserialize)]
struct Config {
    #[serde(default)]
    fail_percent: u64,
    #[serde(default)]
    doomed: bool,
}

/// Adds one to the sum of the parents; says under which lease it did.
async fn work(step: StepContext, seed: u64, work_ms: u64) -> Result<Value, HandlerError> {
    let config: Config = step.config()?;
    let roll = dice(seed, (step.step_id(), step.attempt()));
    if work_ms > 0 {
        tokio::time::sleep(Duration::from_millis(roll % (work_ms + 1))).await;
    }
    if config.doomed {
        return Err(HandlerError::new("Doomed", "as it must").permanent());
    }
    if (roll >> 32) % 100 < config.fail_percent {
        return Err(HandlerError::new("Flaky", "this time"));
    }
    let mut n = 1;
    for parent in step.parents().map(str::to_owned).collect::<Vec<_>>() {
        let result: Value = step.parent(&parent).await?;
        n += result["n"].as_i64().unwrap();
    }
    Ok(json!({"n": n, "lease": step.lease().lease_id}))
}

/// What the context of a task tells its handlers.
#[derive(serde::Deserialize)]
struct Told {
    /// This step's first attempt fails.
    #[serde(default)]
    fails: String,
    /// This step fails for good.
    #[serde(default)]
    dies: String,
    /// This step waits for the end of another task.
    #[serde(default)]
    waits: String,
    #[serde(default)]
    waits_for: String,
    /// What to fail with, and to return.
    #[serde(default)]
    says: String,
}

/// Does as it is told by the context. It makes a call first, by which a test sees that it began.
async fn told(step: StepContext, client: Client) -> Result<Value, HandlerError> {
    let told: Told = step.input()?;
    let task_id = step.task_id().to_owned();
    client.get_task(v1::GetTaskRequest { task_id, ..Default::default() }).await?;
    tracing::info!("told");
    if step.step_name() == told.dies {
        return Err(HandlerError::new("Doomed", told.says).permanent());
    }
    if step.step_name() == told.fails && step.attempt() == 1 {
        return Err(HandlerError::new("Flaky", told.says));
    }
    if step.step_name() == told.waits {
        client.wait_task(told.waits_for, None).await?;
    }
    Ok(json!({"says": told.says}))
}

// ── producer ────────────────────────────────────────────────────────────────────────────────────

async fn produce(
    client: Client,
    history: Arc<History>,
    seed: u64,
    tasks: u64,
    in_flight: usize,
    every: Duration,
) {
    let client = client.with_limits(Limits {
        call_timeout: Duration::from_secs(3600),
        attempts: u32::MAX,
        ..Limits::default()
    });
    for shape in SHAPES {
        client.register_yaml(shape.yaml()).await.unwrap();
    }
    let room = Arc::new(Semaphore::new(in_flight));
    let mut running = JoinSet::new();
    for i in 0..tasks {
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        let (client, history) = (client.clone(), Arc::clone(&history));
        let total: u32 = SHAPES.iter().map(|shape| shape.weight).sum();
        let mut roll = u32::try_from(dice(seed, i) % u64::from(total)).unwrap();
        let shape = SHAPES.iter().find(|shape| {
            let here = roll < shape.weight;
            roll = roll.saturating_sub(shape.weight);
            here
        });
        let name = shape.unwrap().name;
        running.spawn(async move {
            let _permit = permit;
            run_task(&client, &history, name, i).await;
        });
        while running.try_join_next().is_some_and(|ended| ended.map(|()| true).unwrap()) {}
        if !every.is_zero() {
            tokio::time::sleep(every).await;
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    history.record(json!({"what": "ended"}));
}

async fn run_task(client: &Client, history: &History, shape: &str, i: u64) {
    let task_id = Uuid::now_v7().to_string();
    let request = v1::CreateTaskRequest {
        task_id: task_id.clone(),
        definition_name: shape.to_owned(),
        context: json!({"i": i}).to_string(),
        ..Default::default()
    };
    history.record(json!({"what": "create", "task": task_id, "shape": shape}));
    let created = client.create_task(request).await.unwrap();
    history.record(json!({
        "what": "created", "task": task_id, "already": created.already_existed,
    }));
    let task = client.wait_task(&task_id, None).await.unwrap();
    history.record(json!({"what": "end", "task": task_id, "state": task.state().word()}));
}

// ── subscriber ──────────────────────────────────────────────────────────────────────────────────

/// Saves the cursor, unless it dies before: a test says at which time.
struct Fragile {
    file: FileCursor,
    dies_at: Option<u64>,
    saves: AtomicU64,
}

impl CursorStore for Fragile {
    async fn load(&self) -> std::io::Result<Option<String>> {
        self.file.load().await
    }

    async fn save(&self, cursor: &str) -> std::io::Result<()> {
        // After the events, before the cursor.
        if Some(self.saves.fetch_add(1, Ordering::Relaxed) + 1) == self.dies_at {
            std::process::abort();
        }
        self.file.save(cursor).await
    }
}

async fn follow(client: Client, history: Arc<History>, cursor: PathBuf, rest: Duration) {
    let dies_at = std::env::var("ACTOR_DIES_AT_SAVE").ok().map(|n| n.parse().unwrap());
    let saves = AtomicU64::new(0);
    let store = Fragile { file: FileCursor::new(cursor), dies_at, saves };
    let following = async {
        let saved = store.load().await.unwrap();
        history.record(json!({"what": "resumed", "cursor": saved}));
        let start = saved.map_or(Start::Earliest, Start::After);
        let client = client.with_limits(Limits {
            call_timeout: Duration::from_secs(3600),
            stream_silence: Duration::from_secs(5),
            ..Limits::default()
        });
        let wanted = Subscription::new().names(["*"]).from(start);
        let mut feed = client.subscribe(wanted).await.unwrap();
        while let Some(delivery) = feed.next().await {
            let delivery = delivery.unwrap();
            let events: Vec<Value> =
                delivery.events.iter().map(|e| json!([e.position, e.name])).collect();
            let cursor = delivery.cursor;
            history.record(json!({"what": "delivered", "events": events, "cursor": cursor}));
            if let Some(cursor) = cursor {
                store.save(&cursor).await.unwrap();
            }
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = terminated() => {}
    }
    history.record(json!({"what": "ended"}));
}
