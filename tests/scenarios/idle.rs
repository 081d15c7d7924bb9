//! What services ask of a database when nothing happens, though tasks are there that cannot go on.

use std::{collections::BTreeMap, time::Duration};

use stepwell_client::{Executor, HandlerError, Start, StepContext, v1};
use stepwell_suite::PostgresOptions;
use stepwell_tests::{Scrape, World, check, until};

/// A look at the log takes in whole rounds of every loop.
const WATCHED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_services_send_two_statements_a_second_at_most_whatever_cannot_go_on_and_count_each() {
    let world = World::set_up(|options| {
        options.database_url = None;
        // What is told of steps that nobody serves is told before the look at the log.
        options.env = vec![("STEPWELL_UNSERVED_AFTER".into(), "1".into())];
        let settings = [("log_statement", "all"), ("log_line_prefix", "<%a> ")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        options.postgres = PostgresOptions {
            fsync: false,
            settings: settings.into(),
            ..PostgresOptions::default()
        };
    })
    .await;
    // Somebody is there whom they would serve, and has been served once.
    world.define("name: one\nsteps:\n  - name: a\n").await;
    let _feed = world.feed(Start::Latest).await;
    let executor = Executor::new(&world.client, "e")
        .handler("a", async |step: StepContext| Ok::<_, HandlerError>(step.attempt()))
        .handler("fails", async |_| Err::<(), _>(HandlerError::new("No", "never").permanent()))
        .handler("later", async |_| {
            Err::<(), _>(HandlerError::new("Busy", "later").retry_after(Duration::from_secs(3600)))
        });
    let running = world.run(executor);
    let task = world.create("one", &serde_json::json!({})).await;
    world.ended(&task.task_id).await;
    let blocked = blocked(&world).await;

    let addresses = world.suite.addresses();
    let services = [
        ("stepwell-task", &addresses.task[0]),
        ("stepwell-step", &addresses.step[0]),
        ("stepwell-event", &addresses.event[0]),
    ];
    let began = tokio::time::Instant::now();
    let before = (logged(&world), counted(&services).await);
    let still = (blocked.clone(), head(&world).await);
    tokio::time::sleep(WATCHED).await;
    let after = (logged(&world), counted(&services).await);
    // A busy machine looks again later than it was to.
    let watched = began.elapsed();
    let mut now = Vec::new();
    for task in &blocked {
        now.push(world.task(&task.task_id).await);
    }
    assert_eq!((now, head(&world).await), still, "no transition and no event");
    for (name, _) in services {
        let of = |statements: &BTreeMap<String, u64>| statements.get(name).copied().unwrap_or(0);
        let logged = of(&after.0) - of(&before.0);
        let counted = of(&after.1) - of(&before.1);
        let allowed = 2 * (watched.as_secs() + 1);
        assert!(logged <= allowed, "{name}: {logged} statements in {watched:?}");
        // The two looks are not at one moment.
        assert!(logged.abs_diff(counted) <= 4, "{name}: {logged} in the log, {counted} counted");
    }
    running.stop().await;
    check(&mut world.connection().await).await;
}

/// Tasks that cannot go on, each for a reason of its own, once they have come to where they stay.
async fn blocked(world: &World) -> Vec<v1::Task> {
    let mut told = world.feed(Start::Latest).await;
    let mut tasks = Vec::new();
    for (name, steps, last) in [
        ("failed", "[{name: fails}, {name: a, depends_on: [fails]}]", "task.failed"),
        ("unserved", "[{name: a}, {name: nobody, depends_on: [a]}]", "step.completed"),
        ("later", "[{name: later}, {name: a, depends_on: [later]}]", "step.retry_requested"),
        (
            "paused",
            "[{name: nobody}, {name: a, depends_on: [nobody]}]",
            "task.initialize_requested",
        ),
    ] {
        world.define(&format!("{{name: {name}, steps: {steps}}}")).await;
        let mut feed = world.feed(Start::Latest).await;
        let task = world.create(name, &serde_json::json!({})).await;
        until(&mut feed, |event| event.name == last).await;
        tasks.push(task.task_id);
    }
    let pause = v1::PauseTaskRequest { task_id: tasks[3].clone(), ..Default::default() };
    world.client.pause_task(pause).await.unwrap();
    // Now a step is ready that somebody would run.
    let step_id = stepwell_proto::id::step_id(&tasks[3], 0);
    let resolve = v1::ResolveStepRequest { step_id, ..Default::default() };
    world.client.resolve_step(resolve).await.unwrap();
    until(&mut told, |event| event.name == "step.unserved").await;
    let mut blocked = Vec::new();
    for task_id in &tasks {
        blocked.push(world.task(task_id).await);
    }
    let states: Vec<_> = blocked.iter().map(|task| (task.state().word(), task.paused)).collect();
    let open = ("in_progress", false);
    assert_eq!(states, [("error", false), open, open, ("pending", true)]);
    blocked
}

/// How far the log has come.
async fn head(world: &World) -> i64 {
    let last = "select max(position) from stepwell.event";
    sqlx::query_scalar(last).fetch_one(&mut world.connection().await).await.unwrap()
}

/// Statements in Postgres' log, by the application that sent them.
fn logged(world: &World) -> BTreeMap<String, u64> {
    let log = std::fs::read_to_string(world.suite.postgres().unwrap().log_path()).unwrap();
    let mut statements = BTreeMap::new();
    for line in log.lines() {
        let Some((name, rest)) = line.strip_prefix('<').and_then(|l| l.split_once("> ")) else {
            continue;
        };
        if rest.starts_with("LOG:  execute ") || rest.starts_with("LOG:  statement: ") {
            *statements.entry(name.to_owned()).or_default() += 1;
        }
    }
    statements
}

/// What the services say they have sent.
async fn counted(services: &[(&str, &String)]) -> BTreeMap<String, u64> {
    let mut statements = BTreeMap::new();
    for (name, address) in services {
        let scrape = Scrape::of(address).await;
        let sent = scrape.sum("stepwell_database_statement_seconds_count", &[]);
        statements.insert((*name).to_owned(), sent as u64);
    }
    statements
}
