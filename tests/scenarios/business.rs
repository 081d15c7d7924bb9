//! Business metrics are a handler of events like any other: they tell what the log says, and without them
//! everything else is the same.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{Arc, Mutex},
};

use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use serde_json::json;
use stepwell_client::{
    BusinessMetrics, CancellationToken, EventHandler, Executor, HandlerError, Start, StepContext,
    Subscriber, Subscribers, v1,
};
use stepwell_tests::{SOON, World, check};
use tokio::time::timeout;

const TASKS: usize = 12;

/// Waits for the ends of all tasks, and keeps what came before them: names of events, by task.
#[derive(Clone, Default)]
struct Ends {
    told: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    ended: Arc<Mutex<HashSet<String>>>,
    all: CancellationToken,
}

impl EventHandler for Ends {
    fn subscribe_to(&self) -> Vec<&str> {
        vec!["*"]
    }

    async fn handle(&self, event: &v1::Event) -> Result<(), HandlerError> {
        let mut told = self.told.lock().unwrap();
        told.entry(event.task_id.clone()).or_default().push(event.name.clone());
        if ["task.completed", "task.failed"].contains(&event.name.as_str()) {
            let mut ended = self.ended.lock().unwrap();
            ended.insert(event.task_id.clone());
            if ended.len() == TASKS {
                self.all.cancel();
            }
        }
        Ok(())
    }
}

/// What a run came to, for everybody but the metrics.
#[derive(Debug, PartialEq)]
struct Run {
    /// What another subscriber was told of each task, in order.
    told: Vec<Vec<String>>,
    /// How the tasks ended.
    states: Vec<String>,
    /// Moves of the log: names of events, with the state they led to, and how many.
    log: BTreeMap<(String, String), u64>,
}

/// Runs the same tasks each time; with the metrics, or without.
async fn run(metrics: Option<BusinessMetrics>) -> Run {
    let world = World::start().await;
    let retry = "retry: {max_attempts: 2, initial_backoff: 1ms}";
    let steps = format!("[{{name: a, {retry}}}, {{name: b, depends_on: [a], {retry}}}]");
    world.define(&format!("{{name: d, steps: {steps}}}")).await;
    let handle = async |step: StepContext| {
        let input: serde_json::Value = step.input()?;
        let n = input["n"].as_u64().unwrap_or_default();
        match n % 3 {
            1 if step.attempt() == 1 => Err(HandlerError::new("GatewayTimeout", "later")),
            2 if step.step_name() == "b" => Err(HandlerError::new("Declined", "no").permanent()),
            _ => Ok(json!({"total": n, "tier": "gold"})),
        }
    };
    let executor = Executor::new(&world.client, "e").handler("a", handle).handler("b", handle);
    let running = world.run(executor);
    let subscriber = || Subscriber::new(&world.client).from(Start::Earliest);
    let log = Ends::default();
    let mut all = vec![log.all.clone()];
    let mut subscribers = Subscribers::new().add("log", subscriber().handler(log.clone()).unwrap());
    if let Some(metrics) = metrics {
        // Called after the metrics, so all is counted when it has seen the end.
        let ends = Ends::default();
        all.push(ends.all.clone());
        let counts = subscriber().handler(metrics).unwrap().handler(ends).unwrap();
        subscribers = subscribers.add("metrics", counts);
    }
    let stop = CancellationToken::new();
    let subscribing = tokio::spawn(subscribers.run(stop.clone().cancelled_owned()));
    let (mut tasks, mut states) = (Vec::new(), Vec::new());
    for n in 0..TASKS {
        tasks.push(world.create("d", &json!({"n": n})).await.task_id);
    }
    for task in &tasks {
        states.push(world.ended(task).await.state().word().to_owned());
    }
    for seen in all {
        timeout(SOON, seen.cancelled()).await.unwrap();
    }
    stop.cancel();
    let ended = subscribing.await.unwrap().unwrap();
    assert!(ended.iter().all(|(_, tally)| tally.as_ref().unwrap().failed == 0), "{ended:?}");
    running.stop().await;
    check(&mut world.connection().await).await;
    let told = log.told.lock().unwrap().clone();
    let mut moves = BTreeMap::new();
    let mut feed = world.feed(Start::Earliest).await;
    let events = stepwell_tests::until(&mut feed, {
        let left = Mutex::new(TASKS);
        move |event| {
            let is_end = ["task.completed", "task.failed"].contains(&event.name.as_str());
            let mut left = left.lock().unwrap();
            *left -= usize::from(is_end);
            *left == 0
        }
    })
    .await;
    for event in events {
        *moves.entry((event.name.clone(), event.to_state().word().to_owned())).or_default() += 1;
    }
    Run { told: tasks.iter().map(|task| told[task].clone()).collect(), states, log: moves }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn business_metrics_tell_what_the_log_says_and_without_them_all_else_is_the_same() {
    let registry = Registry::new();
    let reader = opentelemetry_prometheus::exporter().with_registry(registry.clone());
    let reader = reader.without_units().without_counter_suffixes().without_target_info();
    let reader = reader.scope_info_enabled(false).build().unwrap();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    let metrics = BusinessMetrics::new(&provider.meter("t")).amount("sales", "b", "total", None);
    let with = run(Some(metrics)).await;
    let without = run(None).await;
    assert_eq!(with, without);

    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    // By name and state: over all other labels.
    let mut counted: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once('{').unwrap();
        let state =
            rest.split_once("state=\"").map_or("", |(_, after)| after.split('"').next().unwrap());
        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        *counted.entry((name, state)).or_default() += value;
    }
    let log = |name: &str, state: &str| with.log[&(name.to_owned(), state.to_owned())] as f64;
    let of = |name: &str, state: &str| counted[&(format!("business_{name}_total").as_str(), state)];
    assert_eq!(of("tasks", "pending"), log("task.initialize_requested", "pending"));
    assert_eq!(of("tasks", "in_progress"), log("task.start_requested", "in_progress"));
    assert_eq!(of("tasks", "complete"), log("task.completed", "complete"));
    assert_eq!(of("tasks", "error"), log("task.failed", "error"));
    assert_eq!(of("steps", "complete"), log("step.completed", "complete"));
    assert_eq!(of("failures", ""), log("step.failed", "error"));
    assert_eq!(of("steps", "error"), log("task.failed", "error"), "one step of each");
    assert_eq!(of("sales", ""), (0..TASKS).filter(|n| n % 3 != 2).sum::<usize>() as f64);
}

#[test]
fn nothing_but_its_users_knows_of_business_metrics() {
    fn files(folder: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                files(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && std::fs::read_to_string(&path).unwrap().contains("BusinessMetrics")
            {
                into.push(path.display().to_string());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut mention = Vec::new();
    for folder in
        ["clients/rust/src", "clients/cli/src", "clients/http/src", "services", "proto/src"]
    {
        files(&root.join(folder), &mut mention);
    }
    let mut mention: Vec<&str> =
        mention.iter().filter_map(|file| file.rsplit('/').next()).collect();
    mention.sort_unstable();
    assert_eq!(mention, ["business.rs", "lib.rs"]);
    // And it knows of nothing that others do not: what it is made of, the crate exports.
    let source = std::fs::read_to_string(root.join("clients/rust/src/business.rs")).unwrap();
    let lib = std::fs::read_to_string(root.join("clients/rust/src/lib.rs")).unwrap();
    let uses = source.lines().find_map(|line| line.strip_prefix("use crate::{")).unwrap();
    for name in uses.trim_end_matches("};").split(',').map(str::trim) {
        let exported = name.split("::").next().unwrap();
        assert!(lib.split("pub use").skip(1).any(|of| of.contains(exported)), "{name}");
    }
    assert_eq!(source.matches("crate::").count(), 2, "the other one is its tests'");
}
