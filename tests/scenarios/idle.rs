//! What services ask of a database when nothing happens.

use std::{collections::BTreeMap, time::Duration};

use stepwell_client::{Executor, Start, StepContext};
use stepwell_suite::PostgresOptions;
use stepwell_tests::{Scrape, World};

/// A look at the log takes in whole rounds of every loop.
const WATCHED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_services_send_two_statements_a_second_at_most_and_count_each() {
    let world = World::set_up(|options| {
        options.database_url = None;
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
    let executor = Executor::new(&world.client, "e");
    let running = world.run(executor.handler("a", async |step: StepContext| Ok(step.attempt())));
    let task = world.create("one", &serde_json::json!({})).await;
    world.ended(&task.task_id).await;

    let addresses = world.suite.addresses();
    let services = [
        ("stepwell-task", &addresses.task[0]),
        ("stepwell-step", &addresses.step[0]),
        ("stepwell-event", &addresses.event[0]),
    ];
    let before = (logged(&world), counted(&services).await);
    tokio::time::sleep(WATCHED).await;
    let after = (logged(&world), counted(&services).await);
    for (name, _) in services {
        let of = |statements: &BTreeMap<String, u64>| statements.get(name).copied().unwrap_or(0);
        let logged = of(&after.0) - of(&before.0);
        let counted = of(&after.1) - of(&before.1);
        let allowed = 2 * WATCHED.as_secs();
        assert!(logged <= allowed, "{name}: {logged} statements in {WATCHED:?}");
        // The two looks are not at one moment.
        assert!(logged.abs_diff(counted) <= 4, "{name}: {logged} in the log, {counted} counted");
    }
    running.stop().await;
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
