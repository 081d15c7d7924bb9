//! What a feed and a durable subscription promise, judged from everything that their readers received while
//! whatever they and the services rely on was cut, killed, doubled or dropped.

mod durable;
mod plain;

use std::{sync::Arc, time::Duration};

use serde_json::json;
use sqlx::PgConnection;
use stepwell_client::{Executor, HandlerError, Limits, StepContext, v1};
use stepwell_store::{Keep, Options, Store};
use stepwell_suite::{Kind, Nodes, PostgresOptions, Signal};
use stepwell_tests::{Proxy, SOON, World, cut_log, short_terms};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::stage::number;

const CHAIN: &str = "
name: chain
defaults: {retry: {max_attempts: 100, initial_backoff: 10ms, multiplier: 1}}
steps: [{name: a}, {name: b, depends_on: [a]}, {name: c, depends_on: [b]}]
";

/// Positions of one partition of the log.
const PARTITION: i64 = 500;
/// Between two faults.
const APART: Duration = Duration::from_millis(700);
/// Between two cuts of a stream.
const CUT_EVERY: Duration = Duration::from_millis(100);

/// An event as the table has it.
#[derive(Clone, Debug, sqlx::FromRow)]
struct Row {
    position: i64,
    /// Of its commit: the position of the first event.
    batch: i64,
    task: String,
}

/// True if a commit's events lie on both sides of a place.
fn is_inside(log: &[Row], place: i64) -> bool {
    let at = log.partition_point(|row| row.position <= place);
    at > 0 && at < log.len() && log[at].batch == log[at - 1].batch
}

/// The log, and what was dropped of it.
const ALL: &str = "select position, batch, uid::text task from stepwell.event
                   union select * from public.witness order by position";

async fn of<T>(connection: &mut PgConnection, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// Drops of the log what no durable reader has to read any more, and keeps it as a witness.
async fn drop_what_is_done(world: &World, store: &Store) {
    let mut connection = world.connection().await;
    let done: i64 =
        of(&mut connection, "select min(place) from stepwell.subscription_partition").await;
    for statement in [
        "insert into public.witness
         select position, batch, uid::text from stepwell.event where position <= $1
         on conflict do nothing",
        "update stepwell.event set at = at - interval '2 hours'
          where position <= $1 and at > clock_timestamp() - interval '1 hour'",
    ] {
        sqlx::query(statement).bind(done).execute(&mut connection).await.unwrap();
    }
    // A reader that is in the midst of a page is waited for by the next one.
    let keep = Keep { age: Some(Duration::from_secs(3600)), bytes: None };
    let _ = store.drop_old_events(keep).await;
}

/// One fault after the other; the services and Postgres are there again at the end.
async fn disturb(world: &mut World, until: Instant) {
    let store = Store::connect(&Options::new(world.suite.database_url()), "test").await.unwrap();
    // Each fault once at least, however slow the machine is.
    for n in 0.. {
        if n >= 6 && Instant::now() >= until {
            break;
        }
        match n % 6 {
            0 | 3 => {
                let index = usize::from(n % 6 == 3);
                let process = world.suite.process(Kind::Event, index).unwrap();
                process.kill(Signal::SIGKILL).await.unwrap();
                world.suite.restart(Kind::Event, index).await.unwrap();
            }
            1 => {
                let killed: i64 = of(
                    &mut world.connection().await,
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity
                      where application_name like 'stepwell-%' and query ilike 'listen%'",
                )
                .await;
                assert!(killed > 0, "nobody listens");
            }
            2 | 5 => drop_what_is_done(world, &store).await,
            _ => {
                let postgres = world.suite.postgres().unwrap().process();
                postgres.kill(Signal::SIGKILL).await.unwrap();
                world.suite.restart_postgres().await.unwrap();
            }
        }
        sleep(APART).await;
    }
}

/// Tasks of three steps, some all the time.
async fn produce(client: &stepwell_client::Client, until: Instant) {
    let client = client.clone().with_limits(Limits {
        call_timeout: SOON,
        attempts: u32::MAX,
        ..Limits::default()
    });
    while Instant::now() < until {
        let request = || v1::CreateTaskRequest {
            definition_name: "chain".into(),
            context: json!({}).to_string(),
            ..v1::CreateTaskRequest::default()
        };
        let requests = std::iter::repeat_with(request).take(5).collect();
        let request = v1::BatchCreateTasksRequest { requests };
        client.batch_create_tasks(request).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
}

async fn cut(proxies: &[Proxy]) {
    loop {
        sleep(CUT_EVERY).await;
        proxies.iter().for_each(Proxy::reset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_cut_killed_or_dropped_every_reader_has_what_its_feed_promises() {
    let mut world = World::set_up(|options| {
        options.database_url = None;
        options.env = short_terms();
        // Little of the log is in memory: who is slow reads the table.
        options.env.push(("STEPWELL_RING_MIB".into(), "1".into()));
        options.nodes = Nodes { task: 1, step: 1, event: 2 };
        options.postgres = PostgresOptions { fsync: false, ..PostgresOptions::default() };
    })
    .await;
    cut_log(&mut world.connection().await, PARTITION, 400).await;
    sqlx::query(
        "create table public.witness (position bigint primary key, batch bigint, task text)",
    )
    .execute(&mut world.connection().await)
    .await
    .unwrap();
    world.define(CHAIN).await;
    let addresses = world.suite.addresses().event;
    let mut proxies = Vec::new();
    for address in &addresses {
        proxies.push(Proxy::of_service(address).await);
    }
    let behind: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let mut executor = Executor::new(&world.client, "e").slots(16);
    for name in ["a", "b", "c"] {
        executor =
            executor.handler(name, async |step: StepContext| Ok::<_, HandlerError>(step.attempt()));
    }
    let running = world.run(executor);
    durable::create(&addresses[0]).await;

    // Where the log ends, once that is known.
    let (told, last) = watch::channel(None);
    let fast = [behind.clone(), addresses.clone()].map(|urls| {
        tokio::spawn(plain::follow(urls, plain::Wants::Everything, Duration::ZERO, last.clone()))
    });
    let slow = tokio::spawn(plain::follow(
        addresses.clone(),
        plain::Wants::Everything,
        Duration::from_secs(1),
        last.clone(),
    ));
    let idle = tokio::spawn(plain::follow(
        addresses.clone(),
        plain::Wants::Nothing,
        Duration::ZERO,
        last.clone(),
    ));
    let record = Arc::new(durable::Record::default());
    let readers: Vec<_> = (0..3)
        .map(|n| {
            tokio::spawn(durable::read(addresses.clone(), n, Arc::clone(&record), last.clone()))
        })
        .collect();

    let end = Instant::now() + Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(12));
    let client = world.client.clone();
    tokio::select! {
        () = cut(&proxies) => unreachable!(),
        ((), ()) = async { tokio::join!(disturb(&mut world, end), produce(&client, end)) } => {}
    }
    let mut connection = world.connection().await;
    let at_rest = async {
        while of::<i64>(&mut connection, "select count(*) from stepwell.task where state in (1, 2)")
            .await
            > 0
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, at_rest).await.expect("every task ends");
    let head: i64 =
        of(&mut connection, "select position from stepwell.event order by position desc limit 1")
            .await;
    told.send_replace(Some(head));
    let log: Vec<Row> = sqlx::query_as(ALL).fetch_all(&mut connection).await.unwrap();
    let kept: i64 = of(&mut connection, "select count(*) from stepwell.event").await;
    eprintln!("{} events, of which {kept} are kept", log.len());
    assert!(log.len() > 1_000);
    assert!(log.windows(2).all(|two| two[0].position < two[1].position));

    let [cut, whole] = fast;
    for (name, reader) in [("cut", cut), ("fast", whole), ("slow", slow), ("idle", idle)] {
        let lives = timeout(SOON, reader).await.expect("it comes to the end").unwrap();
        plain::judge(name, &lives, &log, head);
        let told = lives.iter().filter(|life| life.was_told()).count();
        eprintln!("{name}: {} streams, {told} told of what is gone", lives.len());
    }
    for reader in readers {
        timeout(SOON, reader).await.expect("it comes to the end").unwrap();
    }
    durable::judge(&record, &log);
    running.stop().await;
}
