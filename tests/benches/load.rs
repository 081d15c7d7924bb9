//! A first figure: tasks of three steps, driven through a separate executor process over gRPC, with
//! everything on this machine. `cargo bench --package stepwell-tests -- [--in-flight N]
//! [--seconds N] [--warm-up N] [--slots N] [--executable PATH]`; the last one to measure another build.
//!
//! It prints steps per second, hand-over (one step's report to the next step's lease, as the executor
//! sees it), whole tasks, and statements and commits per step. It is a benchmark, not a test: it
//! fails only when what was executed is not what was asked for.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails says where")]

use std::{
    collections::HashMap,
    io::Write,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use sqlx::{Connection, PgConnection};
use stepwell_client::{
    Addresses, Client, Executor, HandlerError, Observation, Start, StepContext, Subscription, v1,
};
use stepwell_suite::{Suite, SuiteOptions};
use tokio::sync::Semaphore;

const DEFINITION: &str = "
namespace: bench
name: linear3
version: 1.0.0
steps:
  - {name: a, handler: work}
  - {name: b, handler: work, depends_on: [a]}
  - {name: c, handler: work, depends_on: [b]}
";
const STEPS: u64 = 3;
const RESULT: &str = r#"{"ok": true, "items": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "note": "about a hundred bytes of a result"}"#;
const CONTEXT: &str = r#"{"customer": 12345, "items": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "note": "about a hundred bytes"}"#;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap();
    match args.iter().position(|arg| arg == "--executor") {
        Some(at) => runtime.block_on(execute(&args[at + 1], args[at + 2].parse().unwrap())),
        None => runtime.block_on(load(&args)),
    }
}

fn option(args: &[String], name: &str, default: u64) -> u64 {
    let at = args.iter().position(|arg| arg == name);
    at.map_or(default, |at| args[at + 1].parse().unwrap())
}

/// The executor process: runs handlers that answer at once until its input ends, then says how long
/// hand-overs took and how many steps it ran.
async fn execute(step_address: &str, slots: usize) {
    let addresses = Addresses { step: vec![step_address.to_owned()], ..Addresses::default() };
    let client = Client::connect(addresses).unwrap();
    let ended: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let handed: Arc<Mutex<Histogram<u64>>> = Arc::new(Mutex::new(Histogram::new(3).unwrap()));
    let ran = Arc::new(AtomicU64::new(0));
    let (ends, hands, runs) = (Arc::clone(&ended), Arc::clone(&handed), Arc::clone(&ran));
    let observe = move |observation: Observation<'_>| {
        if let Observation::Leased(lease) = observation
            && let Some(at) = ends.lock().unwrap().remove(&lease.task_id)
        {
            hands.lock().unwrap().record(micros(at.elapsed())).unwrap();
        }
    };
    let executor = Executor::new(&client, "bench")
        .namespace("bench")
        .slots(slots)
        .observer(observe)
        .handler("work", move |step: StepContext| {
            let (ended, runs) = (Arc::clone(&ended), Arc::clone(&runs));
            async move {
                runs.fetch_add(1, Ordering::Relaxed);
                if step.step_name() != "c" {
                    ended.lock().unwrap().insert(step.task_id().to_owned(), Instant::now());
                }
                let result: Box<serde_json::value::RawValue> =
                    serde_json::value::RawValue::from_string(RESULT.into()).unwrap();
                Ok::<_, HandlerError>(result)
            }
        });
    let input_ended = async {
        let read = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()));
        drop(read.await);
    };
    executor.run(input_ended).await.unwrap();
    let handed = handed.lock().unwrap();
    println!(
        "{} {} {}",
        ran.load(Ordering::Relaxed),
        handed.value_at_quantile(0.5),
        handed.value_at_quantile(0.99)
    );
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}

/// Counters of the database: statements, commits, WAL bytes.
async fn counters(database: &str) -> (i64, i64, i64) {
    let mut connection = PgConnection::connect(database).await.unwrap();
    sqlx::raw_sql("create extension if not exists pg_stat_statements")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::query_as(
        "select (select sum(calls)::bigint from pg_stat_statements where toplevel), \
                (select xact_commit from pg_stat_database where datname = current_database()), \
                (select wal_bytes::bigint from pg_stat_wal)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap()
}

#[derive(Default)]
struct Counts {
    finished: AtomicU64,
    created: AtomicU64,
}

async fn load(args: &[String]) {
    let in_flight = usize::try_from(option(args, "--in-flight", 256)).unwrap();
    let seconds = Duration::from_secs(option(args, "--seconds", 10));
    let warm_up = Duration::from_secs(option(args, "--warm-up", 3));
    let slots = option(args, "--slots", 256);
    let given = args.iter().position(|arg| arg == "--executable").map(|at| args[at + 1].clone());
    let executable = given.map(std::path::PathBuf::from);
    let executable = executable.unwrap_or_else(|| stepwell_suite::stepwell_for_use().unwrap());
    let mut options = SuiteOptions::new(executable);
    let set = [
        ("shared_preload_libraries", "pg_stat_statements"),
        ("pg_stat_statements.track", "top"),
        ("shared_buffers", "2GB"),
        ("max_wal_size", "12GB"),
        ("min_wal_size", "4GB"),
    ];
    options.postgres.settings = set.map(|(name, value)| (name.into(), value.into())).into();
    let suite = Suite::start(options).await.unwrap();
    let addresses = suite.addresses();
    let client = Client::connect(Addresses {
        task: addresses.task.clone(),
        step: addresses.step.clone(),
        event: addresses.event.clone(),
    })
    .unwrap();
    client.register_yaml(DEFINITION).await.unwrap();
    let mut executor = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--executor", &addresses.step[0], &slots.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();

    let names = Subscription::new().names(["task.completed"]).from(Start::Latest);
    let mut feed = client.subscribe(names).await.unwrap();
    let began: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let room = Arc::new(Semaphore::new(in_flight));
    let counts = Arc::new(Counts::default());
    let whole: Arc<Mutex<Histogram<u64>>> = Arc::new(Mutex::new(Histogram::new(3).unwrap()));
    let done = tokio_util::sync::CancellationToken::new();
    let creating = create(
        client.clone(),
        Arc::clone(&began),
        Arc::clone(&room),
        Arc::clone(&counts),
        done.clone(),
    );
    let creating = tokio::spawn(creating);
    let (of_feed, of_room, of_whole) = (Arc::clone(&counts), Arc::clone(&room), Arc::clone(&whole));
    let following = tokio::spawn(async move {
        while let Some(delivery) = feed.next().await {
            let events = delivery.unwrap().events;
            let n = events.len();
            {
                let (mut began, mut whole) = (began.lock().unwrap(), of_whole.lock().unwrap());
                for event in events {
                    let at = began.remove(&event.task_id).unwrap();
                    whole.record(micros(at.elapsed())).unwrap();
                }
            }
            of_feed.finished.fetch_add(n as u64, Ordering::Relaxed);
            of_room.add_permits(n);
        }
    });

    tokio::time::sleep(warm_up).await;
    whole.lock().unwrap().reset();
    let before = counters(suite.database_url()).await;
    let (finished, start) = (counts.finished.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(seconds).await;
    let finished = counts.finished.load(Ordering::Relaxed) - finished;
    let elapsed = start.elapsed().as_secs_f64();
    let (task_p50, task_p99) = {
        let whole = whole.lock().unwrap();
        (whole.value_at_quantile(0.5), whole.value_at_quantile(0.99))
    };
    let after = counters(suite.database_url()).await;

    done.cancel();
    creating.await.unwrap();
    // Everything that was created ends.
    drop(room.acquire_many(u32::try_from(in_flight).unwrap()).await.unwrap());
    following.abort();
    executor.stdin.take().unwrap().flush().unwrap();
    let said = executor.wait_with_output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let said: Vec<u64> = said.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let created = counts.created.load(Ordering::Relaxed);
    assert_eq!(said[0], created * STEPS, "steps executed and steps asked for");
    let steps = (finished * STEPS) as f64;
    println!(
        "in flight                {in_flight} tasks of {STEPS} steps, {slots} slots, one executor"
    );
    println!("steps/s                  {:.0}", steps / elapsed);
    println!("tasks/s                  {:.0}", finished as f64 / elapsed);
    println!("hand-over p50 / p99      {:.2} / {:.2} ms", ms(said[1]), ms(said[2]));
    println!("whole task p50 / p99     {:.2} / {:.2} ms", ms(task_p50), ms(task_p99));
    println!("statements per step      {:.3}", (after.0 - before.0) as f64 / steps);
    println!("commits per step         {:.3}", (after.1 - before.1) as f64 / steps);
    println!("WAL bytes per step       {:.0}", (after.2 - before.2) as f64 / steps);
    suite.stop().await.unwrap();
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Keeps so many tasks in flight: what has room is created in one call.
async fn create(
    client: Client,
    began: Arc<Mutex<HashMap<String, Instant>>>,
    room: Arc<Semaphore>,
    counts: Arc<Counts>,
    done: tokio_util::sync::CancellationToken,
) {
    loop {
        let first = tokio::select! {
            () = done.cancelled() => return,
            first = room.acquire() => first.unwrap(),
        };
        first.forget();
        let mut n = 1;
        while n < 200 && room.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok() {
            n += 1;
        }
        let requests: Vec<v1::CreateTaskRequest> = (0..n)
            .map(|_| v1::CreateTaskRequest {
                task_id: uuid::Uuid::now_v7().to_string(),
                namespace: "bench".into(),
                definition_name: "linear3".into(),
                context: CONTEXT.into(),
                ..v1::CreateTaskRequest::default()
            })
            .collect();
        let now = Instant::now();
        {
            let mut began = began.lock().unwrap();
            began.extend(requests.iter().map(|r| (r.task_id.clone(), now)));
        }
        counts.created.fetch_add(n, Ordering::Relaxed);
        client.batch_create_tasks(v1::BatchCreateTasksRequest { requests }).await.unwrap();
    }
}
