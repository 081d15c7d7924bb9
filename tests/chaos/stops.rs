//! Processes are stopped (SIGSTOP) for longer than anybody waits for them, and wake up believing
//! that nothing happened.

use std::time::Duration;

use serde_json::json;
use sqlx::Row;
use stepwell_client::Executor;
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{Gate, World, check, history};

use crate::stage::{Stage, number, seed};

/// Longer than every term of the stage: silence 3 s, grace 2 s, node lease 2 s.
fn nap() -> Duration {
    Duration::from_secs(number("CHAOS_NAP_SECONDS").unwrap_or(9))
}

async fn count(stage: &Stage, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&mut stage.connection().await).await.unwrap()
}

/// Work for about twice the nap.
async fn rush() -> (Stage, crate::stage::Cast) {
    let tasks = 20 * nap().as_secs();
    Stage::rush(seed(), tasks, 100_000).await
}

const UNDER_WAY: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_executor_s_steps_are_done_by_others_and_what_it_says_late_is_refused() {
    let (mut stage, cast) = rush().await;
    let zombie = cast.executors[1];
    stop_in_the_middle(&stage, zombie).await;
    // Whatever it held is given up as lost, and tried again by the other one; some steps must fail.
    let expired =
        "select exists (select from stepwell.event where type = 42 and text like '%LeaseExpired%')
        and not exists (select from stepwell.event e where type = 42 and text like '%LeaseExpired%'
          and not exists (select from stepwell.event later where later.task = e.task
            and later.no = e.no and later.attempt > e.attempt and later.type in (41, 42)))";
    stage.until("taken from the zombie", nap() + UNDER_WAY, expired).await;
    stage.process(zombie).kill(Signal::SIGCONT).await.unwrap();
    stage.finish(&cast, Duration::from_secs(120)).await;
    let seen = zombie_s_history(&stage);
    let leased = seen.iter().filter(|entry| entry["what"] == "leased").count();
    let accepted =
        seen.iter().filter(|entry| entry["what"] == "ack" && entry["refused"].is_null()).count();
    assert!(accepted < leased, "some of its {leased} leases were no longer its own");
}

fn zombie_s_history(stage: &Stage) -> Vec<serde_json::Value> {
    history::read(&stage.histories().join("executor-1.1.jsonl"))
}

/// Stops an executor while it runs some handler: what it says of that step will be too late.
async fn stop_in_the_middle(stage: &Stage, zombie: usize) {
    let deadline = tokio::time::Instant::now() + UNDER_WAY;
    loop {
        let process = stage.process(zombie);
        process.kill(Signal::SIGSTOP).await.unwrap();
        let stat = format!("/proc/{}/stat", process.pid);
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            tokio::task::yield_now().await;
        }
        let seen = zombie_s_history(stage);
        let of = |what| -> std::collections::HashSet<_> {
            let entries = seen.iter().filter(|entry| entry["what"] == what);
            entries.filter_map(|entry| entry["lease"].as_str()).collect()
        };
        if of("leased").difference(&of("outcome")).next().is_some() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "it never holds a lease");
        process.kill(Signal::SIGCONT).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_finish_the_work_of_a_stopped_step_service_and_the_woken_one_takes_a_new_id() {
    let (mut stage, cast) = rush().await;
    let running = "select exists (select from stepwell.event where type = 41)";
    stage.until("under way", UNDER_WAY, running).await;
    let nodes = count(&stage, "select count(*) from stepwell.node").await;
    assert_eq!(nodes, 2);
    stage.kill_service(Kind::Step, 0, Signal::SIGSTOP).await;
    let dead = "select exists (select from stepwell.node where retired_at is not null)";
    stage.until("declared dead", nap() + UNDER_WAY, dead).await;
    let before = count(&stage, "select count(*) from stepwell.event where type = 41").await;
    // No lock is held by who does not run, and the others go on.
    let further = format!(
        "select (select count(*) from stepwell.event where type = 41) > {before} + 20
            and not exists (select from pg_stat_activity a join pg_locks l on l.pid = a.pid
                             where a.application_name = 'stepwell-step' and l.granted
                               and a.state <> 'active' and l.locktype <> 'virtualxid')"
    );
    stage.until("going on", UNDER_WAY, &further).await;
    let walked = "select count(*) = 1 from stepwell.node";
    stage.until("taken over", UNDER_WAY, walked).await;
    stage.kill_service(Kind::Step, 0, Signal::SIGCONT).await;
    let renewed = "select count(*) = 2 from stepwell.node where retired_at is null";
    stage.until("back under a new id", UNDER_WAY, renewed).await;
    let log = stage.suite.log_of(Kind::Step, 0);
    assert!(log.contains("goes on under a new id"), "{log}");
    stage.finish(&cast, Duration::from_secs(120)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_wakes_within_the_grace_keeps_the_steps_of_its_executors() {
    let world = World::set_up(|options| {
        options.nodes = Nodes { task: 1, step: 2, event: 1 };
        let terms = [("NODE_LEASE", "1"), ("SESSION_GRACE", "10"), ("HEARTBEAT", "20")];
        let terms = terms.map(|(name, value)| (format!("STEPWELL_{name}"), value.to_owned()));
        options.env = terms.into();
    })
    .await;
    world.define("{name: long, steps: [{name: a}]}").await;
    let gate = Gate::default();
    let running = world.run(gate.guard(Executor::new(&world.client, "e")));
    let task = world.create("long", &json!({})).await;
    gate.started().await;
    let holder = (0..2).find(|i| world.suite.log_of(Kind::Step, *i).contains("executor connected"));
    let process = world.suite.process(Kind::Step, holder.unwrap()).unwrap().clone();
    process.kill(Signal::SIGSTOP).await.unwrap();
    let mut connection = world.connection().await;
    let mut until = async |what: &str, sql: &'static str| {
        let deadline = tokio::time::Instant::now() + UNDER_WAY;
        while !sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut connection).await.unwrap() {
            assert!(tokio::time::Instant::now() < deadline, "not {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let dead = "select exists (select from stepwell.node where retired_at is not null)";
    until("declared dead", dead).await;
    process.kill(Signal::SIGCONT).await.unwrap();
    // Both have walked what was left: the woken one, and the one that had taken over.
    let walked = "select count(*) = 2 and not exists (select from stepwell.node where retired_at is not null)
        from stepwell.node";
    until("walked", walked).await;
    let moved = "select exists (select from stepwell.step s join stepwell.node n on n.id = s.node
        where s.state = 2 and n.retired_at is null)";
    until("moved to the new id", moved).await;
    gate.open();
    let task = world.ended(&task.task_id).await;
    assert_eq!((task.state().word(), task.steps[0].result.as_str()), ("complete", "1"));
    let report = running.stop().await;
    assert_eq!((report.sessions, report.completed), (1, 1), "its stream was never cut");
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_event_service_delays_its_readers_only_until_they_go_to_another() {
    let (mut stage, cast) = rush().await;
    let running = "select exists (select from stepwell.event where type = 41)";
    stage.until("under way", UNDER_WAY, running).await;
    for index in 0..2 {
        stage.kill_service(Kind::Event, index, Signal::SIGSTOP).await;
        tokio::time::sleep(nap() / 2).await;
        stage.kill_service(Kind::Event, index, Signal::SIGCONT).await;
    }
    stage.finish(&cast, Duration::from_secs(120)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_reader_holds_nobody_up_and_misses_nothing() {
    let (mut stage, cast) = rush().await;
    let running = "select exists (select from stepwell.event where type = 41)";
    stage.until("under way", UNDER_WAY, running).await;
    stage.process(cast.subscribers[1]).kill(Signal::SIGSTOP).await.unwrap();
    tokio::time::sleep(nap()).await;
    let row = sqlx::query("select max(position) from stepwell.event")
        .fetch_one(&mut stage.connection().await)
        .await
        .unwrap();
    let head: i64 = row.get(0);
    stage.seen(cast.subscribers[0], head).await;
    stage.process(cast.subscribers[1]).kill(Signal::SIGCONT).await.unwrap();
    stage.finish(&cast, Duration::from_secs(120)).await;
}
