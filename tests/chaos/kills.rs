//! Processes are killed at random while tasks run; everything must come out as if they had not.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use stepwell_suite::{Kind, Signal};
use tokio::time::Instant;

use crate::stage::{Stage, number, seed};

/// What is done in one move.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Executor,
    Subscriber,
    Service(Kind),
    Postgres(Signal),
    Backends,
}

const BLOWS: &[Blow] = &[
    Blow::Executor,
    Blow::Executor,
    Blow::Subscriber,
    Blow::Service(Kind::Step),
    Blow::Service(Kind::Step),
    Blow::Service(Kind::Task),
    Blow::Service(Kind::Event),
    Blow::Backends,
    // Fast, immediate, and none at all.
    Blow::Postgres(Signal::SIGINT),
    Blow::Postgres(Signal::SIGQUIT),
    Blow::Postgres(Signal::SIGKILL),
];

async fn run(seed: u64, tasks: u64, time: Duration) {
    // So that the work lasts as long as the blows do.
    let every = u64::try_from(time.as_micros()).unwrap() * 9 / 10 / tasks;
    let (mut stage, cast) = Stage::rush(seed, tasks, every).await;
    let mut dice = StdRng::seed_from_u64(seed);
    let mut deck = Vec::new();
    let start = Instant::now();
    let until = start + time;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(dice.random_range(300..2000))).await;
        if deck.is_empty() {
            // Each of them, in an order of chance, before any comes again.
            deck = BLOWS.to_vec();
            deck.shuffle(&mut dice);
        }
        let blow = deck.pop().unwrap();
        let index = dice.random_range(0..2);
        eprintln!("{:6.1} s: {blow:?} {index}", start.elapsed().as_secs_f64());
        match blow {
            Blow::Executor => stage.replace(cast.executors[index]).await,
            Blow::Subscriber => stage.replace(cast.subscribers[index]).await,
            Blow::Service(kind) => stage.replace_service(kind, index).await,
            Blow::Postgres(signal) => stage.restart_postgres(signal).await,
            Blow::Backends => {
                // Writers, listeners, readers: whoever is there.
                sqlx::query(
                    "select pg_terminate_backend(pid) from pg_stat_activity
                      where application_name like 'stepwell-%' and pid <> pg_backend_pid()",
                )
                .execute(&mut stage.connection().await)
                .await
                .unwrap();
            }
        }
    }
    eprintln!("{:6.1} s: no more blows", start.elapsed().as_secs_f64());
    stage.finish(&cast, Duration::from_secs(120) + time).await;
    eprintln!("{:6.1} s: judged", start.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_every_task_ends_right_and_every_subscriber_has_the_log() {
    let tasks = number("CHAOS_TASKS").unwrap_or(600);
    let time = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(25));
    for _ in 0..number("CHAOS_RUNS").unwrap_or(1) {
        run(seed(), tasks, time).await;
    }
}
