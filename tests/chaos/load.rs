//! Too much at once, and for too long: herds, backlogs, storms of cancels, steps that never work,
//! services told to go in the midst of it.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use stepwell_client::{
    Executor, HandlerError, Limits, Start, StepContext, Subscription,
    v1::{BatchCreateTasksRequest, CancelTaskRequest, CreateTaskRequest},
};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, World, check};
use tokio::{task::JoinSet, time::Instant};

use crate::stage::{Stage, number, seed};

const ONE: Nodes = Nodes { task: 1, step: 1, event: 1 };

/// Creates so many tasks of a definition; their ids in the order of their creation.
async fn create_many(world: &World, definition: &str, n: usize) -> Vec<String> {
    let mut ids = Vec::new();
    let all: Vec<usize> = (0..n).collect();
    for part in all.chunks(500) {
        let requests = part.iter().map(|i| CreateTaskRequest {
            task_id: uuid::Uuid::now_v7().to_string(),
            definition_name: definition.into(),
            context: json!({"i": i}).to_string(),
            ..Default::default()
        });
        let requests: Vec<_> = requests.collect();
        ids.extend(requests.iter().map(|request| request.task_id.clone()));
        let request = BatchCreateTasksRequest { requests };
        world.client.batch_create_tasks(request).await.unwrap();
    }
    ids
}

async fn query<T>(world: &World, sql: &'static str) -> Vec<T>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(sql).fetch_all(&mut world.connection().await).await.unwrap()
}

/// Waits until a query that counts answers zero.
async fn none(world: &World, sql: &'static str, within: Duration) {
    let deadline = Instant::now() + within;
    while query::<i64>(world, sql).await != [0] {
        assert!(Instant::now() < deadline, "{sql}: {:?}", query::<i64>(world, sql).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const OPEN: &str = "select count(*) from stepwell.task where finished_at is null";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_always_panics_ends_its_task_in_error_and_no_other() {
    let world = World::hasty(ONE).await;
    world
        .define(
            "{name: d, defaults: {retry: {max_attempts: 3, initial_backoff: 10ms, multiplier: 1}},
              steps: [{name: a}, {name: b}, {name: c, depends_on: [b]}]}",
        )
        .await;
    let running = world.run(
        Executor::new(&world.client, "e")
            .handler("a", async |step: StepContext| -> Result<(), HandlerError> {
                panic!("poison in {}", step.step_id())
            })
            .handler("b", async |_| Ok(1))
            .handler("c", async |step: StepContext| step.parent::<i64>("b").await),
    );
    let task = world.create("d", &json!({})).await;
    let ended = world.ended(&task.task_id).await;
    assert_eq!(ended.state().word(), "error");
    let step = |i: usize| (ended.steps[i].state().word(), ended.steps[i].attempt);
    assert_eq!([step(0), step(1), step(2)], [("error", 3), ("complete", 1), ("complete", 1)]);
    assert_eq!(ended.steps[0].last_error.clone().unwrap().error_class, "Panic");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_that_loses_its_services_comes_back_and_all_that_falls_due_at_once_runs_once() {
    let herd = usize::try_from(number("CHAOS_HERD").unwrap_or(100)).unwrap();
    let due = usize::try_from(number("CHAOS_DUE").unwrap_or(2000)).unwrap();
    let mut world = World::set_up(|options| {
        options.env = stepwell_tests::short_terms();
        // A debug build on two cores has its hands full with a herd; it is not silent for that.
        options.env.push(("STEPWELL_HEARTBEAT".into(), "5".into()));
        options.env.push(("STEPWELL_SESSION_GRACE".into(), "10".into()));
    })
    .await;
    // The first attempts of all fail at about one time, and all wait for the same while.
    // Long enough for all to have failed before the first falls due.
    let wait = 5.max(due / 400);
    world
        .define(&format!(
            "{{name: d, defaults: {{retry: {{max_attempts: 2, initial_backoff: {wait}s, jitter: 0}}}},
               steps: [{{name: a}}]}}"
        ))
        .await;
    let runs = Arc::new(AtomicUsize::new(0));
    let mut executors = Vec::new();
    let mut subscribers = JoinSet::new();
    for n in 0..herd {
        let runs = Arc::clone(&runs);
        let executor = Executor::new(&world.client, format!("e{n}")).slots(20).handler(
            "a",
            move |step: StepContext| {
                runs.fetch_add(1, Ordering::Relaxed);
                async move {
                    if step.attempt() == 1 {
                        return Err(HandlerError::new("First", "the first one fails"));
                    }
                    Ok(1)
                }
            },
        );
        executors.push(world.run(executor));
        let client = world.client.clone().with_limits(Limits {
            call_timeout: SOON,
            stream_silence: Duration::from_secs(20),
            ..Limits::default()
        });
        subscribers.spawn(async move {
            let wanted = Subscription::new().names(["task.completed"]).from(Start::Earliest);
            let mut feed = client.subscribe(wanted).await.unwrap();
            let mut seen = 0;
            while seen < due {
                seen += feed.next().await.unwrap().unwrap().events.len();
            }
            seen
        });
    }
    create_many(&world, "d", due).await;
    none(
        &world,
        "select count(*) from stepwell.step where attempt = 0 or attempt = 1 and state <> 1",
        SOON * 5,
    )
    .await;
    // All wait for their time. Meanwhile the herd loses its services.
    for kind in [Kind::Step, Kind::Event] {
        world.suite.process(kind, 0).unwrap().kill(Signal::SIGKILL).await.unwrap();
        world.suite.restart(kind, 0).await.unwrap();
    }
    let (most, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let watching = async {
        while !done.load(Ordering::Acquire) {
            let backends = query::<i64>(
                &world,
                "select count(*) from pg_stat_activity
                  where datname = current_database() and application_name like 'stepwell-%'",
            )
            .await;
            most.fetch_max(usize::try_from(backends[0]).unwrap(), Ordering::AcqRel);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let finishing = async {
        none(&world, OPEN, SOON * 10).await;
        while let Some(seen) = subscribers.join_next().await {
            assert_eq!(seen.unwrap(), due);
        }
        done.store(true, Ordering::Release);
    };
    tokio::join!(watching, finishing);
    // Three services, each with its pool of 8, its loops' and its bells' connections.
    let most = most.into_inner();
    assert!(most <= 50, "{most} connections");
    let ran = runs.load(Ordering::Relaxed);
    assert!(ran <= due * 2 * 12 / 10, "{ran} runs for {} attempts", due * 2);
    for executor in executors {
        executor.stop().await;
    }
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_worked_off_oldest_first_beside_what_comes_new() {
    let world = World::hasty(ONE).await;
    world.define("{name: d, steps: [{name: a}]}").await;
    create_many(&world, "d", 500).await;
    let running = world.run(
        Executor::new(&world.client, "e")
            .slots(20)
            .handler("a", async |_| Ok::<_, HandlerError>(1)),
    );
    create_many(&world, "d", 500).await;
    none(&world, OPEN, SOON).await;
    let order: Vec<i64> =
        query(&world, "select task from stepwell.event where type = 40 order by position").await;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    // A step runs when its turn comes: nobody is passed by more than was under way.
    let late = order.iter().zip(&sorted).map(|(is, must)| (is - must).abs()).max();
    assert!(late <= Some(40), "somebody was {late:?} places off");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_cancels_stops_what_runs_and_nothing_starts_after_it() {
    let world = World::hasty(Nodes { task: 2, step: 2, event: 1 }).await;
    world.define("{name: d, steps: [{name: a}, {name: b}, {name: c, depends_on: [a, b]}]}").await;
    let told = Arc::new(AtomicUsize::new(0));
    let mut executors = Vec::new();
    for n in 0..2 {
        let mut executor = Executor::new(&world.client, format!("e{n}")).slots(100);
        for name in ["a", "b", "c"] {
            let told = Arc::clone(&told);
            executor = executor.handler(name, move |step: StepContext| {
                let told = Arc::clone(&told);
                async move {
                    if step.step_id().ends_with(".1") {
                        step.cancelled().await;
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, HandlerError>(1)
                }
            });
        }
        executors.push(world.run(executor));
    }
    let ids = create_many(&world, "d", 150).await;
    // Every second step runs and waits to be cancelled; the other has completed.
    none(&world, "select 300 - count(*) from stepwell.step where state in (2, 3)", SOON).await;
    let mut cancels = JoinSet::new();
    for task_id in ids.clone() {
        let client = world.client.clone();
        cancels.spawn(async move {
            let request = CancelTaskRequest { task_id, ..Default::default() };
            client.cancel_task(request).await.unwrap();
        });
    }
    while let Some(cancelled) = cancels.join_next().await {
        cancelled.unwrap();
    }
    let deadline = Instant::now() + SOON;
    while told.load(Ordering::Relaxed) < 150 {
        assert!(Instant::now() < deadline, "{} of 150 were told", told.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after: Vec<i64> = query(
        &world,
        "select count(*) from stepwell.event e join stepwell.event c on c.task = e.task
          where c.type = 24 and e.type = 40 and e.position > c.position",
    )
    .await;
    assert_eq!(after, [0], "steps that started after their task was cancelled");
    none(&world, "select count(*) from stepwell.signal", SOON).await;
    for executor in executors {
        executor.stop().await;
    }
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wide_step_and_a_deep_ladder_end_right() {
    let world = World::hasty(ONE).await;
    let width = number("CHAOS_WIDTH").unwrap_or(2000);
    let mut wide = String::from("name: wide\nsteps:\n  - {name: root, handler: h}\n");
    for n in 0..width {
        wide += &format!("  - {{name: w{n}, handler: h, depends_on: [root]}}\n");
    }
    let all: Vec<String> = (0..width).map(|n| format!("w{n}")).collect();
    wide += &format!("  - {{name: join, handler: count, depends_on: [{}]}}\n", all.join(", "));
    world.define(&wide).await;
    let mut ladder = String::from("name: ladder\nsteps:\n  - {name: s0, handler: h}\n");
    for n in 0..100 {
        for side in ["l", "r"] {
            ladder += &format!("  - {{name: {side}{n}, handler: h, depends_on: [s{n}]}}\n");
        }
        ladder += &format!("  - {{name: s{}, handler: h, depends_on: [l{n}, r{n}]}}\n", n + 1);
    }
    world.define(&ladder).await;
    let running = world.run(
        Executor::new(&world.client, "e")
            .slots(100)
            .handler("h", async |_| Ok::<_, HandlerError>(1))
            .handler("count", async |step: StepContext| {
                let names: Vec<String> = step.parents().map(str::to_owned).collect();
                let mut sum = 0;
                for name in names {
                    sum += step.parent::<u64>(&name).await?;
                }
                Ok(sum)
            }),
    );
    let (wide, ladder) =
        (world.create("wide", &json!({})).await, world.create("ladder", &json!({})).await);
    let ended = world.ended(&wide.task_id).await;
    assert_eq!(ended.state().word(), "complete");
    assert_eq!(ended.steps.last().unwrap().result, width.to_string());
    assert_eq!(world.ended(&ladder.task_id).await.state().word(), "complete");
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_told_to_go_under_load_end_in_time_and_lose_nothing() {
    let (mut stage, cast) = Stage::rush(seed(), 300, 50_000).await;
    let running = "select exists (select from stepwell.event where type = 41)";
    stage.until("under way", SOON, running).await;
    for round in 0..2 {
        for kind in [Kind::Step, Kind::Task, Kind::Event] {
            let process = stage.suite.process(kind, round).unwrap().clone();
            process.kill(Signal::SIGTERM).await.unwrap();
            // Thirty seconds are the default grace.
            let ended = tokio::time::timeout(Duration::from_secs(31), process.wait()).await;
            assert_eq!(ended.unwrap().code, Some(0), "{}", stage.logs());
            stage.suite.restart(kind, round).await.unwrap();
        }
    }
    stage.finish(&cast, Duration::from_secs(120)).await;
    // Who goes in peace is not waited for: its id is retired by itself.
    for index in 0..2 {
        let log = stage.suite.log_of(Kind::Step, index);
        assert!(!log.contains("left to lapse"), "{log}");
    }
}

// ── for long ────────────────────────────────────────────────────────────────────────────────────

/// What must not grow.
#[derive(Clone, Debug)]
struct Footprint {
    /// Resident memory of all services together.
    megabytes: u64,
    connections: i64,
}

async fn footprint(stage: &Stage) -> Footprint {
    let mut megabytes = 0;
    for kind in [Kind::Task, Kind::Step, Kind::Event] {
        for index in 0..2 {
            let pid = stage.suite.process(kind, index).unwrap().pid;
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let resident = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            megabytes += resident.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024;
        }
    }
    let mut connection = stage.connection().await;
    let counted = "select count(*) from pg_stat_activity where application_name like 'stepwell-%'";
    let connections = sqlx::query_scalar(counted).fetch_one(&mut connection).await.unwrap();
    Footprint { megabytes, connections }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_long_time_of_load_and_kills_everything_is_as_small_as_at_first() {
    let seconds = number("CHAOS_SOAK_SECONDS").unwrap_or(20);
    let every = number("CHAOS_KILL_EVERY_MS").unwrap_or(2000);
    let rate = number("CHAOS_RATE").unwrap_or(20);
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    let (mut stage, cast) = Stage::rush(seed, 200, 10_000).await;
    stage.ended(cast.producer, SOON * 2).await;
    stage.at_rest(SOON).await;
    let before = footprint(&stage).await;
    let tasks = (rate * seconds).to_string();
    let pause = (1_000_000 / rate).to_string();
    let args = ["producer", "--tasks", &tasks, "--in-flight", "1000", "--every-us", &pause];
    let producer = stage.enter("producer-long", &args).await;
    let start = Instant::now();
    let mut most = before.clone();
    let mut killed: HashSet<&str> = HashSet::new();
    while start.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_millis(every)).await;
        let index = dice.random_range(0..2);
        killed.insert(match dice.random_range(0..6) {
            0 => {
                stage.replace(cast.executors[index]).await;
                "executor"
            }
            1 => {
                stage.replace(cast.subscribers[index]).await;
                "subscriber"
            }
            2 => {
                stage.replace_service(Kind::Step, index).await;
                "step"
            }
            3 => {
                stage.replace_service(Kind::Task, index).await;
                "task"
            }
            4 => {
                stage.replace_service(Kind::Event, index).await;
                "event"
            }
            _ => {
                stage.restart_postgres(Signal::SIGQUIT).await;
                "postgres"
            }
        });
        most.megabytes = most.megabytes.max(footprint(&stage).await.megabytes);
    }
    eprintln!("killed: {killed:?}");
    stage.ended(producer, Duration::from_secs(120 + seconds)).await;
    stage.at_rest(SOON).await;
    stage.close_feeds().await;
    // The row of one that was killed last goes when its lease is over and its steps are walked.
    let living = "select count(*) = 2 from stepwell.node";
    stage.until("one row for each living step-service", SOON, living).await;
    let after = footprint(&stage).await;
    eprintln!("before {before:?}, most {most:?}, after {after:?}");
    assert!(after.megabytes <= before.megabytes * 3 / 2 + 60, "{before:?} {after:?}");
    assert!(after.connections <= before.connections + 10, "{before:?} {after:?}");
    stage.close().await;
    stage.judge().await;
}
