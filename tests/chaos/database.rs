//! Postgres goes, comes back, hangs, is full, locked, cut off: services wait and repeat, and work
//! again by themselves.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use sqlx::{Connection, PgConnection};
use stepwell_client::{
    EventStream, Executor, HandlerError, Limits, Start, StepContext, v1::ErrorReason,
};
use stepwell_store::{Options, Store};
use stepwell_suite::{Guard, Kind, Nodes, Postgres, PostgresOptions, Signal, TestDatabase};
use stepwell_tests::{Gate, Proxy, Running, SOON, Target, Way, World, check, short_terms, until};
use tokio::time::{Instant, timeout};

use crate::stage::number;

const TWO_STEPS: &str = "
name: two
defaults: {retry: {max_attempts: 20, initial_backoff: 10ms, multiplier: 1}}
steps: [{name: a}, {name: b, depends_on: [a]}]
";

fn executor(world: &World) -> Running {
    let mut executor = Executor::new(&world.client, "e");
    for name in ["a", "b"] {
        executor =
            executor.handler(name, async |step: StepContext| Ok::<_, HandlerError>(step.attempt()));
    }
    world.run(executor)
}

async fn run_one(world: &World) {
    let task = world.create("two", &json!({})).await;
    assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
}

/// Waits until so many tasks were seen to complete.
async fn completions(feed: &mut EventStream, n: usize) {
    let seen = Cell::new(0);
    until(feed, |event| {
        seen.set(seen.get() + usize::from(event.name == "task.completed"));
        seen.get() == n
    })
    .await;
}

/// Over a Postgres of its own, with further settings.
async fn own_postgres(settings: &[(&str, &str)]) -> World {
    World::set_up(|options| {
        options.database_url = None;
        options.env = short_terms();
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        options.postgres = PostgresOptions {
            fsync: false,
            settings: settings.collect(),
            ..PostgresOptions::default()
        };
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_work_within_five_seconds_of_postgres_however_it_went_down() {
    let mut world = own_postgres(&[]).await;
    world.define(TWO_STEPS).await;
    let mut feed = world.feed(Start::Latest).await;
    let running = executor(&world);
    run_one(&world).await;
    // Smart is for those who wait; fast, immediate, and none at all.
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL] {
        world.suite.postgres().unwrap().process().kill(signal).await.unwrap();
        world.suite.restart_postgres().await.unwrap();
        let up = Instant::now();
        timeout(Duration::from_secs(5), run_one(&world)).await.unwrap();
        let delivered = until(&mut feed, |event| event.name == "task.completed");
        timeout(Duration::from_secs(5), delivered).await.unwrap();
        eprintln!("{signal}: a task ran and was seen {:?} after Postgres was up", up.elapsed());
    }
    // What was seen before is still to come from the first task and each later one.
    let report = running.stop().await;
    assert_eq!(report.refused + report.unacknowledged, 0, "{report:?}");
    check(&mut world.connection().await).await;
}

/// Ends all or some backends of this database.
async fn kill_backends(connection: &mut PgConnection, like: &str) -> usize {
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and pid <> pg_backend_pid()
            and application_name like 'stepwell-%' and query ilike $1",
    )
    .bind(like)
    .fetch_all(connection)
    .await
    .unwrap()
    .len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_that_kills_every_connection_five_times_a_second_loses_nothing() {
    let world = World::hasty(Nodes { task: 1, step: 2, event: 1 }).await;
    world.define(TWO_STEPS).await;
    let mut feed = world.feed(Start::Latest).await;
    let running = executor(&world);
    let client = world.client.clone().with_limits(Limits {
        call_timeout: SOON,
        attempts: u32::MAX,
        ..Limits::default()
    });
    let mut killer = world.connection().await;
    let mut killed = 0;
    let mut tasks = Vec::new();
    for _ in 0..number("CHAOS_SECONDS").unwrap_or(5) * 5 {
        killed += kill_backends(&mut killer, "%").await;
        for _ in 0..5 {
            let created = client.task("two").context(&json!({})).create().await.unwrap();
            tasks.push(created.task_id);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(killed > 50, "{killed}");
    for task in &tasks {
        assert_eq!(world.ended(task).await.state().word(), "complete");
    }
    completions(&mut feed, tasks.len()).await;
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_bells_everything_goes_on_by_itself_and_bells_come_back() {
    let world = World::hasty(Nodes { task: 1, step: 1, event: 1 }).await;
    world.define(TWO_STEPS).await;
    let running = executor(&world);
    let mut killer = world.connection().await;
    let silencing = async {
        loop {
            kill_backends(&mut killer, "%listen%").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let working = async {
        for _ in 0..5 {
            // Two waits of at most 1.2 s each, and some time to work.
            timeout(Duration::from_secs(10), run_one(&world)).await.unwrap();
        }
    };
    tokio::select! {
        () = silencing => unreachable!(),
        () = working => {}
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let listening: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
              where datname = current_database() and query ilike '%listen%'
                and pid <> pg_backend_pid()",
        )
        .fetch_one(&mut world.connection().await)
        .await
        .unwrap();
        if listening >= 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{listening} services listen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_postgres_takes_no_more_connections_callers_are_told_and_running_steps_are_kept() {
    let world = own_postgres(&[("max_connections", "50")]).await;
    world.define(TWO_STEPS).await;
    let gate = Gate::default();
    let executor = gate.guard(Executor::new(&world.client, "e"));
    let running = world.run(
        executor.handler("b", async |step: StepContext| Ok::<_, HandlerError>(step.attempt())),
    );
    let task = world.create("two", &json!({})).await;
    gate.started().await;
    // Every connection there is, taken again as soon as a service lets go of one.
    let url = world.suite.database_url().to_owned();
    let mut hog = world.connection().await;
    let mut taken = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        while let Ok(connection) = PgConnection::connect(&url).await {
            taken.push(connection);
        }
        if kill_backends(&mut hog, "%").await == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "services hold on to connections");
    }
    let impatient = world.client.clone().with_limits(Limits { attempts: 1, ..Limits::default() });
    let refused = impatient.task("two").context(&json!({})).create().await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::DatabaseUnavailable), "{refused}");
    taken.clear();
    gate.open();
    let ended = world.ended(&task.task_id).await;
    assert_eq!((ended.state().word(), ended.steps[0].result.as_str()), ("complete", "1"));
    gate.open();
    timeout(Duration::from_secs(10), run_one(&world)).await.unwrap();
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_locked_for_longer_than_our_time_outs_delays_and_loses_nothing() {
    let world = World::hasty(Nodes { task: 1, step: 2, event: 1 }).await;
    world.define(TWO_STEPS).await;
    let running = executor(&world);
    let client = world.client.clone().with_limits(Limits {
        call_timeout: SOON,
        attempts: u32::MAX,
        ..Limits::default()
    });
    for table in ["task", "step", "event", "ready_step", "node"] {
        let mut tasks = Vec::new();
        for _ in 0..20 {
            tasks.push(client.task("two").context(&json!({})).create().await.unwrap().task_id);
        }
        let mut locker = world.connection().await;
        let lock = format!("begin; lock table stepwell.{table}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut locker).await.unwrap();
        // Database time-out: 3 s.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        sqlx::raw_sql("rollback").execute(&mut locker).await.unwrap();
        for task in tasks {
            let task = world.ended(&task).await;
            assert_eq!(task.state().word(), "complete", "{table}");
        }
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_with_a_stranger_is_tried_again_and_settles_once() {
    let world = own_postgres(&[("deadlock_timeout", "200ms")]).await;
    world.define(TWO_STEPS).await;
    let ready = Arc::new(tokio::sync::Barrier::new(3));
    let gate = Arc::clone(&ready);
    let running = world.run(
        Executor::new(&world.client, "e")
            .handler("a", move |step: StepContext| {
                let gate = Arc::clone(&gate);
                async move {
                    // Once to say that it runs, once to be let go.
                    gate.wait().await;
                    gate.wait().await;
                    Ok::<_, HandlerError>(step.attempt())
                }
            })
            .handler("b", async |step: StepContext| Ok::<_, HandlerError>(step.attempt())),
    );
    let first = world.create("two", &json!({"n": 1})).await.task_id;
    let second = world.create("two", &json!({"n": 2})).await.task_id;
    ready.wait().await;
    let mut stranger = world.connection().await;
    let lock = "select from stepwell.task where uid = $1::uuid for update";
    // It never gives way itself.
    sqlx::raw_sql("set deadlock_timeout = '1h'; begin").execute(&mut stranger).await.unwrap();
    sqlx::query(lock).bind(&second).execute(&mut stranger).await.unwrap();
    ready.wait().await;
    // Both outcomes are settled together or one after the other; the later task is held. When the
    // first is locked by whoever waits for the second, the stranger closes the circle.
    let mut eye = world.connection().await;
    let deadline = Instant::now() + SOON;
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where datname = current_database()
                and wait_event_type = 'Lock' and application_name = 'stepwell-step'",
        )
        .fetch_one(&mut eye)
        .await
        .unwrap();
        if waiting > 0 {
            break;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sqlx::query(lock).bind(&first).execute(&mut stranger).await.unwrap();
    sqlx::raw_sql("rollback").execute(&mut stranger).await.unwrap();
    for task in [first, second] {
        let task = world.ended(&task).await;
        assert_eq!((task.state().word(), task.steps[0].attempt), ("complete", 1));
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_are_cut_off_from_postgres_without_a_word_come_back_when_it_is() {
    let database = stepwell_suite::test_database().await.unwrap();
    let mut proxies = Vec::new();
    let mut detours = Vec::new();
    for kind in [Kind::Task, Kind::Step, Kind::Event] {
        let (proxy, url) = Proxy::of_database(&database.url).await;
        proxies.push(proxy);
        detours.push((kind, url));
    }
    let world = World::over(database, |options| {
        options.env = short_terms();
        options.detours = detours;
    })
    .await;
    world.define(TWO_STEPS).await;
    let mut feed = world.feed(Start::Latest).await;
    let running = executor(&world);
    run_one(&world).await;
    for (proxy, way) in proxies.iter().zip([Way::Up, Way::Down, Way::Up]) {
        let task = world.create("two", &json!({})).await;
        proxy.blackhole(way);
        // Longer than a statement is waited for: 3 s and one more.
        tokio::time::sleep(Duration::from_secs(5)).await;
        // What was on its way is gone with the connections, as after a firewall's reboot.
        proxy.reset();
        proxy.heal();
        assert_eq!(world.ended(&task.task_id).await.state().word(), "complete");
        timeout(Duration::from_secs(10), run_one(&world)).await.unwrap();
    }
    completions(&mut feed, 7).await;
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_service_that_is_cut_off_from_postgres_is_declared_dead_and_its_steps_go_on() {
    let database = stepwell_suite::test_database().await.unwrap();
    let (proxy, url) = Proxy::of_database(&database.url).await;
    let mut world = World::over(database, |options| {
        options.env = short_terms();
        options.detours = vec![(Kind::Step, url)];
    })
    .await;
    // One more, which is not cut off, on the same database.
    let direct = world.another_step_service().await;
    world.define(TWO_STEPS).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let stuck = Executor::new(&world.client, "behind the one that is cut off").handler("a", {
        move |step: StepContext| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                step.cancelled().await;
                Ok::<_, HandlerError>(step.attempt())
            }
        }
    });
    let stuck = world.run(stuck);
    let task = world.create("two", &json!({})).await;
    while runs.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.blackhole(Way::Up);
    proxy.blackhole(Way::Down);
    let mut other = Executor::new(&direct, "with the other");
    for name in ["a", "b"] {
        other =
            other.handler(name, async |step: StepContext| Ok::<_, HandlerError>(step.attempt()));
    }
    let other = world.run(other);
    let ended = world.ended(&task.task_id).await;
    assert_eq!((ended.state().word(), ended.steps[0].result.as_str()), ("complete", "2"));
    proxy.reset();
    proxy.heal();
    // The one that was cut off goes on under a new id; its executor hears that its lease is lost.
    let report = timeout(SOON, stuck.stop()).await.unwrap();
    assert_eq!(report.completed, 0, "{report:?}");
    other.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused_until_it_takes_over_and_then_everything_goes_on() {
    let stepwell = stepwell_suite::built_stepwell().unwrap();
    let guard = Guard::start(&stepwell).unwrap();
    let options = PostgresOptions { fsync: false, ..PostgresOptions::default() };
    let primary = Postgres::start(&guard, &options).await.unwrap();
    primary.create_database("stepwell", None).await.unwrap();
    stepwell_store::migrate(&primary.url("stepwell")).await.unwrap();
    let standby = primary.standby(&guard).await.unwrap();
    let refused = Store::connect(&Options::new(standby.url("stepwell")), "test").await.err();
    assert!(refused.unwrap().to_string().contains("standby"), "named by mistake");
    // From now on what is acknowledged is on both.
    let mut connection = PgConnection::connect(&primary.url("stepwell")).await.unwrap();
    for sql in ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"] {
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    }
    drop(connection);
    let (proxy, url) = Proxy::of_database(&primary.url("stepwell")).await;
    let database = TestDatabase { url };
    let mut world = World::over(database, |options| options.env = short_terms()).await;
    world.define(TWO_STEPS).await;
    let mut feed = world.feed(Start::Earliest).await;
    let running = executor(&world);
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(world.create("two", &json!({})).await.task_id);
    }
    completions(&mut feed, 1).await;
    primary.process().kill(Signal::SIGKILL).await.unwrap();
    let mut connection = PgConnection::connect(&standby.url("stepwell")).await.unwrap();
    sqlx::raw_sql("select pg_promote()").execute(&mut connection).await.unwrap();
    proxy.lead_to(Target::Unix(standby.socket()));
    for task in &tasks {
        assert_eq!(world.ended(task).await.state().word(), "complete");
    }
    for _ in 0..3 {
        run_one(&world).await;
    }
    // Another timeline is another log: who reads on is told, and decides for himself.
    let event = world.suite.process(Kind::Event, 0).unwrap().clone();
    let ended = timeout(SOON, event.wait()).await.unwrap();
    assert_eq!(ended.code, Some(1), "it does not go on with places of another log");
    world.suite.restart(Kind::Event, 0).await.unwrap();
    let refused = loop {
        match feed.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(refused.reason(), Some(ErrorReason::CursorAhead), "{refused}");
    let mut again = world.feed(Start::Earliest).await;
    completions(&mut again, tasks.len() + 3).await;
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_s_open_transaction_holds_up_neither_steps_nor_events() {
    let world = World::hasty(Nodes { task: 1, step: 1, event: 1 }).await;
    world.define(TWO_STEPS).await;
    let mut feed = world.feed(Start::Latest).await;
    let running = executor(&world);
    let mut idler = world.connection().await;
    sqlx::raw_sql("begin; select pg_current_xact_id(); create table idle_one (n int)")
        .execute(&mut idler)
        .await
        .unwrap();
    for _ in 0..10 {
        timeout(Duration::from_secs(10), run_one(&world)).await.unwrap();
        let seen = until(&mut feed, |event| event.name == "task.completed");
        timeout(Duration::from_secs(5), seen).await.unwrap();
    }
    sqlx::raw_sql("rollback").execute(&mut idler).await.unwrap();
    running.stop().await;
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_near_their_end_are_still_numbers() {
    let world = World::hasty(Nodes { task: 1, step: 1, event: 1 }).await;
    // A step's key is its task's times 16,384.
    sqlx::raw_sql(
        "select setval('stepwell.task_id', (1::bigint << 49) - 1000);
         select setval('stepwell.position', 1::bigint << 62);
         create table stepwell.event_4611686018527387904 partition of stepwell.event
           for values from (4611686018427387904) to (maxvalue)",
    )
    .execute(&mut world.connection().await)
    .await
    .unwrap();
    world.define(TWO_STEPS).await;
    let mut feed = world.feed(Start::Latest).await;
    let running = executor(&world);
    for _ in 0..3 {
        run_one(&world).await;
        until(&mut feed, |event| event.name == "task.completed").await;
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}
