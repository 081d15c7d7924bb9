//! The engine as a whole against a model of it: lists of operations drawn by chance, on graphs drawn by
//! chance, carried out by the real verbs on Postgres and by a small model; after each the two agree on
//! what was answered, on every row and on every event.
//!
//! `STEPWELL_SIMULATION_CASES` runs more cases; the seed is printed, and `STEPWELL_SIMULATION_SEED` repeats
//! it. A case that fails is shrunk and printed: paste it into `regressions.rs`.
//!
//! Two calls never meet here: what they do then is for the races in `tests/verbs`.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod dag;
mod database;
mod look;
mod model;
mod mutate;
mod operation;
mod regressions;
mod run;
mod view;

use std::{collections::BTreeSet, time::Instant};

use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner,
};
use stepwell_proto::{catalog::EVENTS, v1::State};

use database::Database;
use model::SIGHTS;
use operation::{Case, cases};
use regressions::regressions;
use run::{Coverage, run};

/// Cases without further words.
const CASES: u32 = 2_000;
/// Cases run side by side, each in a database of its own.
const WORKERS: u32 = 2;
/// One case in so many has its rows looked at by the invariants as well, and what the views make of them.
const THOROUGH: usize = 50;
/// Functions of `migrations/verbs` that no operation calls, because others do, or because they move nothing.
const INTERNAL: &[&str] = &[
    "append",
    "new_token",
    "end_tasks",
    "count_steps",
    "moved",
    "behind_cancelled",
    "signal_void",
    "gate",
    "start_clocks",
    "count_running",
    "blocked_steps",
    "step_readiness",
    "task_context",
    "extend_request",
    "seen_request",
    "update_task_once",
    "update_step_once",
    "annotate_task_once",
    "add_queues",
    "queue_at",
    "drop_tasks",
];

/// What a worker does: cases in its database until one fails.
struct Worker {
    runtime: tokio::runtime::Runtime,
    database: Database,
    coverage: Coverage,
    /// One case in so many is thorough.
    thorough_every: usize,
}

impl Worker {
    /// With a fresh database, in which these statements are carried out first.
    fn new(statements: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let database = runtime.block_on(async {
            let url = stepwell_suite::test_database().await.unwrap().url;
            Database::with(&url, statements).await
        });
        Self { runtime, database, coverage: Coverage::default(), thorough_every: THOROUGH }
    }

    fn run(&mut self, case: &Case) -> Result<(), String> {
        let thorough = self.coverage.cases.is_multiple_of(self.thorough_every);
        self.runtime.block_on(run(case, &mut self.database, &mut self.coverage, thorough))
    }

    /// Runs so many cases. The error is a shrunk case and what it shows.
    fn run_many(&mut self, seed: u64, config: Config) -> Result<(), (String, Case)> {
        let bytes: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(32).collect();
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let worker = std::cell::RefCell::new(self);
        let result = TestRunner::new_with_rng(config, rng)
            .run(&cases(), |case| worker.borrow_mut().run(&case).map_err(TestCaseError::fail));
        match result {
            Ok(()) => Ok(()),
            Err(TestError::Fail(why, case)) => Err((why.to_string(), case)),
            Err(TestError::Abort(why)) => panic!("no cases: {why}"),
        }
    }
}

fn set<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
}

#[test]
fn verbs_and_model_agree_after_every_operation_of_every_case() {
    let seed = set("STEPWELL_SIMULATION_SEED").unwrap_or_else(rand::random::<u32>);
    let cases = set("STEPWELL_SIMULATION_CASES").unwrap_or(CASES);
    println!("STEPWELL_SIMULATION_SEED={seed}");
    let began = Instant::now();
    let worker = |number: u32| {
        move || {
            let mut worker = Worker::new("");
            let config = Config {
                cases: cases.div_ceil(WORKERS),
                failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/simulation/proptest-regressions.txt"
                )))),
                max_shrink_iters: 10_000,
                max_shrink_time: 40_000,
                ..Config::default()
            };
            for (name, case) in regressions() {
                worker.run(&case).unwrap_or_else(|found| panic!("{name}: {found}"));
            }
            let result = worker.run_many(u64::from(seed) << 32 | u64::from(number), config);
            worker.coverage.verbs = worker.database.called;
            result.map(|()| worker.coverage)
        }
    };
    let threads: Vec<_> = (0..WORKERS).map(|number| std::thread::spawn(worker(number))).collect();
    let mut coverage = Coverage::default();
    for thread in threads {
        match thread.join().unwrap() {
            Ok(of_worker) => coverage.add(of_worker),
            Err((why, case)) => panic!("{why}\n\n{}", serde_json::to_string(&case).unwrap()),
        }
    }
    let rarest = coverage.edges.iter().min_by_key(|(_, times)| **times);
    let ((event, from, to), times) = rarest.expect("steps move");
    let of_sight = |sight: &&'static str| coverage.met.get(*sight).copied().unwrap_or_default();
    let sight = SIGHTS.iter().min_by_key(|sight| of_sight(sight)).expect("there are some");
    let met = of_sight(sight);
    println!(
        "{} cases, {} operations ({} fenced), {} events, {} steps out of time, {} keys given, {} edges (event {event} from {from:?} to {to:?} \
         only {times} times), {sight:?} in only {met} cases, in {:.0} s",
        coverage.cases,
        coverage.operations,
        coverage.fenced,
        coverage.events,
        coverage.late,
        coverage.given,
        coverage.edges.len(),
        began.elapsed().as_secs_f64()
    );
    // A few cases cannot be asked for everything.
    if cases >= CASES {
        everything_was_taken(&coverage);
    }
}

/// An event that moves nothing, and hangs on who is connected: `verbs::unserved` has it.
const WORD: &str = "step.unserved";

/// Every edge of the catalog, every verb, and what the model says is worth seeing.
fn everything_was_taken(coverage: &Coverage) {
    let recorded = EVENTS.iter().filter(|event| event.is_recorded() && event.name != WORD);
    let edges = recorded.filter_map(|event| Some((event, event.edge.as_ref()?)));
    let all = edges.flat_map(|(event, edge)| {
        let created = edge.from.is_empty().then_some(None);
        let from = edge.from.iter().copied().map(Some).chain(created);
        from.filter_map(|from: Option<State>| Some((event.number, from, edge.to.or(from)?)))
    });
    let untaken: Vec<_> = all.filter(|edge| !coverage.edges.contains_key(edge)).collect();
    assert!(untaken.is_empty(), "edges that no case took: {untaken:?}");
    assert!(coverage.late > 0, "no step ran out of time");
    assert!(coverage.given > 0, "no concurrency key was given");
    let unmet: Vec<_> = SIGHTS.iter().filter(|sight| !coverage.met.contains_key(*sight)).collect();
    assert!(unmet.is_empty(), "what no case has met: {unmet:?}");
    let verbs: BTreeSet<&str> = mutate::functions().collect();
    let called = coverage.verbs.iter().copied().chain(INTERNAL.iter().copied());
    let called: BTreeSet<&str> = called.collect();
    assert_eq!(verbs, called, "functions in migrations/verbs, and those that are accounted for");
}
