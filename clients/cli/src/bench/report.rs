//! What a run came to: for people a table, for programs JSON.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use stepwell_suite::{Counters, ServerSetup};

use super::{
    Mark, Run,
    load::Load,
    watch::{Look, POSTGRES},
    worker::{Counted, Executed, Seen, histogram},
};

/// A run. The fields are the keys of the JSON; `docs/performance.md` explains each.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) shape: String,
    pub(super) in_flight: Option<u32>,
    pub(super) rate: Option<f64>,
    pub(super) payload_bytes: u32,
    pub(super) executors: u8,
    pub(super) slots: u16,
    pub(super) subscribers: u16,
    pub(super) fail_rate: f64,
    pub(super) open_transaction: bool,
    pub(super) machine: Machine,
    pub(super) seconds: f64,
    pub(super) tasks: u64,
    pub(super) steps: u64,
    pub(super) tasks_per_second: f64,
    pub(super) steps_per_second: f64,
    /// Of the whole time from a task's creation to the news of its end.
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) create: Quantiles,
    pub(super) start: Quantiles,
    pub(super) hand_over: Quantiles,
    pub(super) end_to_end: Quantiles,
    pub(super) delivery: Quantiles,
    pub(super) events_per_step: Option<f64>,
    pub(super) database: Option<Database>,
    pub(super) wait_events: BTreeMap<String, f64>,
    /// Those that took the most time, at most 20.
    pub(super) statements: Vec<Statement>,
    pub(super) processes: BTreeMap<String, Cost>,
    /// Processors in use by what is not ours.
    pub(super) other_cpus: f64,
    pub(super) oversupply: Option<Oversupply>,
    pub(super) totals: Totals,
    pub(super) series: Vec<Second>,
}

#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) cpus: usize,
    pub(super) memory_bytes: u64,
    pub(super) system: String,
    pub(super) postgres: Option<String>,
    pub(super) postgres_settings: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: u64,
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

#[derive(Serialize)]
pub(super) struct Database {
    pub(super) statements: Option<i64>,
    pub(super) commits: i64,
    pub(super) wal_bytes: i64,
    pub(super) dead_tuples: i64,
    pub(super) statements_per_step: Option<f64>,
    pub(super) commits_per_step: f64,
    pub(super) wal_bytes_per_step: f64,
}

#[derive(Serialize)]
pub(super) struct Statement {
    pub(super) text: String,
    pub(super) calls: i64,
    pub(super) rows: i64,
    pub(super) milliseconds: f64,
    pub(super) microseconds_per_step: f64,
}

#[derive(Serialize)]
pub(super) struct Cost {
    pub(super) cpu_seconds: f64,
    pub(super) cpu_seconds_per_1000_steps: f64,
    pub(super) rss_bytes_max: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Oversupply {
    pub(super) offered_tasks_per_second: f64,
    pub(super) tasks_per_second: f64,
    pub(super) under_way_max: u64,
    pub(super) rss_bytes_max: u64,
    pub(super) recovery_seconds: f64,
}

/// Of the whole run, warm-up and all.
#[derive(Default, Serialize)]
pub(super) struct Totals {
    pub(super) tasks_created: u64,
    pub(super) steps_created: u64,
    pub(super) steps_completed: u64,
    pub(super) attempts_failed: u64,
    pub(super) events_per_subscriber: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Second {
    pub(super) tasks_per_second: f64,
    pub(super) steps_per_second: f64,
    pub(super) in_flight: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) machine: f64,
    pub(super) rss_bytes: BTreeMap<String, u64>,
    pub(super) waits: BTreeMap<String, u32>,
}

impl Quantiles {
    pub(super) fn of(counted: &Counted) -> Self {
        let mut times = histogram();
        for (value, count) in counted {
            times.saturating_record_n(*value, *count);
        }
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            count: times.len(),
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: times.max() as f64 / 1000.0,
        }
    }
}

impl Second {
    pub(super) fn new(
        took: f64,
        tasks: u64,
        steps: u64,
        in_flight: u64,
        times: &Counted,
        look: Look,
        sessions: Vec<String>,
    ) -> Self {
        let times = Quantiles::of(times);
        let mut waits = BTreeMap::new();
        for session in sessions {
            *waits.entry(session).or_default() += 1;
        }
        Self {
            tasks_per_second: tasks as f64 / took,
            steps_per_second: steps as f64 / took,
            in_flight,
            p50_ms: times.p50_ms,
            p99_ms: times.p99_ms,
            machine: look.machine,
            rss_bytes: look.rss_bytes,
            waits,
        }
    }
}

impl Report {
    pub(super) fn new(
        run: &Run,
        setup: Option<ServerSetup>,
        before: &Mark,
        after: &Mark,
        series: Vec<Second>,
    ) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        let (tasks, steps) = (after.ended.0 - before.ended.0, after.ended.1 - before.ended.1);
        let machine = Machine::here(setup);
        let processes = costs(before, after, steps, &series);
        let ours: f64 = processes.values().map(|cost| cost.cpu_seconds).sum();
        let busy = series.iter().map(|s| s.machine).sum::<f64>() / series.len().max(1) as f64;
        let other_cpus = (busy * machine.cpus as f64 - ours / seconds).max(0.0);
        let counters = before.counters.zip(after.counters);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            shape: run.shape.to_string(),
            in_flight: run.rate.is_none().then_some(run.in_flight),
            rate: run.rate,
            payload_bytes: run.payload,
            executors: run.executors,
            slots: run.slots(),
            subscribers: run.subscribers,
            fail_rate: run.fail_rate,
            open_transaction: run.open_transaction,
            machine,
            seconds,
            tasks,
            steps,
            tasks_per_second: tasks as f64 / seconds,
            steps_per_second: steps as f64 / seconds,
            p50_ms: 0.0,
            p95_ms: 0.0,
            p99_ms: 0.0,
            create: Quantiles::default(),
            start: Quantiles::default(),
            hand_over: Quantiles::default(),
            end_to_end: Quantiles::default(),
            delivery: Quantiles::default(),
            events_per_step: None,
            database: counters.map(|(before, after)| Database::between(before, after, steps)),
            wait_events: waits(&series),
            statements: statements(before, after, steps),
            processes,
            other_cpus,
            oversupply: None,
            totals: Totals::default(),
            series,
        }
    }

    pub(super) fn take_load(&mut self, load: &Load) {
        self.create = Quantiles::of(&load.create_times().take());
        self.end_to_end = Quantiles::of(&load.end_to_end_times().take());
        self.p50_ms = self.end_to_end.p50_ms;
        self.p95_ms = self.end_to_end.p95_ms;
        self.p99_ms = self.end_to_end.p99_ms;
    }

    pub(super) fn take_workers(&mut self, executed: &Executed, seen: &Seen) {
        self.start = Quantiles::of(&executed.start);
        self.hand_over = Quantiles::of(&executed.hand_over);
        self.delivery = Quantiles::of(&seen.delivery);
    }

    /// Was everything done that was asked for, once, and does the log say so? Otherwise: what differs.
    pub(super) fn judge(
        &mut self,
        load: &Load,
        executed: &Executed,
        seen: &Seen,
    ) -> Result<(), Vec<String>> {
        let (tasks, steps) = load.created();
        let events = seen.streams.first().map(|stream| stream.values().sum::<u64>());
        self.events_per_step = events.map(|events| events as f64 / steps.max(1) as f64);
        self.totals = Totals {
            tasks_created: tasks,
            steps_created: steps,
            steps_completed: executed.completed,
            attempts_failed: executed.failed,
            events_per_subscriber: events,
        };
        let faults = differences(tasks, steps, load.astray(), executed, seen);
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        for (name, value) in self.rows() {
            table.add_row([name, value]);
        }
        table.to_string()
    }

    /// What people want to know, in words.
    pub(super) fn rows(&self) -> Vec<(String, String)> {
        let mut rows: Vec<(String, String)> = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        let pace = match (self.in_flight, self.rate) {
            (_, Some(rate)) => format!("{rate} tasks/s offered"),
            (n, None) => format!("{} tasks in flight", n.unwrap_or(0)),
        };
        row("load", format!("{}, {pace}, {} B", self.shape, self.payload_bytes));
        row(
            "workers",
            format!(
                "{} executors of {} slots, {} subscribers",
                self.executors, self.slots, self.subscribers
            ),
        );
        row("steps per second", format!("{:.0}", self.steps_per_second));
        row("tasks per second", format!("{:.0}", self.tasks_per_second));
        for (name, times) in [
            ("create", self.create),
            ("creation to start", self.start),
            ("hand-over", self.hand_over),
            ("end to end", self.end_to_end),
            ("commit to subscriber", self.delivery),
        ] {
            if times.count > 0 {
                row(
                    name,
                    format!(
                        "p50 {:.2}  p95 {:.2}  p99 {:.2}  max {:.0} ms",
                        times.p50_ms, times.p95_ms, times.p99_ms, times.max_ms
                    ),
                );
            }
        }
        if let Some(events) = self.events_per_step {
            row("event rows per step", format!("{events:.2}"));
        }
        if let Some(database) = &self.database {
            row("WAL per step", format!("{:.2} KiB", database.wal_bytes_per_step / 1024.0));
            row("commits per step", format!("{:.4}", database.commits_per_step));
            if let Some(statements) = database.statements_per_step {
                row("statements per step", format!("{statements:.4}"));
            }
            row("dead rows", database.dead_tuples.to_string());
        }
        for (name, cost) in &self.processes {
            let rss = cost.rss_bytes_max.map(|rss| format!(", {} MiB", rss >> 20));
            row(
                name,
                format!(
                    "{:.2} CPUs, {:.1} ms per 1,000 steps{}",
                    cost.cpu_seconds / self.seconds,
                    cost.cpu_seconds_per_1000_steps * 1000.0,
                    rss.unwrap_or_default()
                ),
            );
        }
        row(
            "others on this machine",
            format!("{:.2} of {} CPUs", self.other_cpus, self.machine.cpus),
        );
        let mut waits: Vec<_> = self.wait_events.iter().collect();
        waits.sort_by(|a, b| b.1.total_cmp(a.1));
        let waits = waits.iter().take(5).map(|(name, n)| format!("{name} {n:.1}"));
        row("sessions wait for", waits.collect::<Vec<_>>().join(", "));
        for statement in self.statements.iter().take(6) {
            let short: String = statement.text.chars().take(60).collect();
            row(
                "database time",
                format!(
                    "{:.1} µs per step in {} calls: {short}",
                    statement.microseconds_per_step, statement.calls
                ),
            );
        }
        if let Some(over) = &self.oversupply {
            row(
                "oversupply",
                format!(
                    "{:.0} tasks/s offered, {:.0} done, {} under way at most, {} MiB, caught up in {:.1} s",
                    over.offered_tasks_per_second,
                    over.tasks_per_second,
                    over.under_way_max,
                    over.rss_bytes_max >> 20,
                    over.recovery_seconds
                ),
            );
        }
        rows
    }
}

impl Machine {
    fn here(setup: Option<ServerSetup>) -> Self {
        let system = sysinfo::System::new_with_specifics(
            sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::everything()),
        );
        let long = sysinfo::System::long_os_version().unwrap_or_default();
        let kernel = sysinfo::System::kernel_version().unwrap_or_default();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            memory_bytes: system.map_or(0, |system| system.total_memory()),
            system: format!("{long}, kernel {kernel}"),
            postgres: setup.as_ref().map(|setup| setup.version.clone()),
            postgres_settings: setup.map(|s| s.settings.into_iter().collect()).unwrap_or_default(),
        }
    }
}

impl Database {
    fn between(before: Counters, after: Counters, steps: u64) -> Self {
        let steps = steps.max(1) as f64;
        let statements = before.statements.zip(after.statements).map(|(b, a)| a - b);
        let commits = after.commits - before.commits;
        let wal_bytes = after.wal_bytes - before.wal_bytes;
        Self {
            statements,
            commits,
            wal_bytes,
            dead_tuples: after.dead_tuples,
            statements_per_step: statements.map(|n| n as f64 / steps),
            commits_per_step: commits as f64 / steps,
            wal_bytes_per_step: wal_bytes as f64 / steps,
        }
    }
}

fn costs(before: &Mark, after: &Mark, steps: u64, series: &[Second]) -> BTreeMap<String, Cost> {
    let used = after.look.cpu_seconds.iter();
    used.map(|(name, end)| {
        let cpu_seconds = end - before.look.cpu_seconds.get(name).copied().unwrap_or(0.0);
        let rss = series.iter().filter_map(|second| second.rss_bytes.get(name)).max();
        let cost = Cost {
            cpu_seconds,
            cpu_seconds_per_1000_steps: cpu_seconds / (steps.max(1) as f64 / 1000.0),
            rss_bytes_max: rss.copied().filter(|_| name != POSTGRES),
        };
        (name.clone(), cost)
    })
    .collect()
}

/// Sessions in each kind of wait, on average.
fn waits(series: &[Second]) -> BTreeMap<String, f64> {
    let mut waits: BTreeMap<String, f64> = BTreeMap::new();
    for second in series {
        for (name, n) in &second.waits {
            *waits.entry(name.clone()).or_default() += f64::from(*n) / series.len() as f64;
        }
    }
    waits
}

/// The events of so many tasks with so many steps in all, of which so many attempts failed.
pub(super) fn expected(tasks: u64, steps: u64, failed: u64) -> [(&'static str, u64); 7] {
    [
        ("task.initialize_requested", tasks),
        ("task.start_requested", tasks),
        ("task.completed", tasks),
        ("step.execution_requested", steps + failed),
        ("step.completed", steps),
        ("step.failed", failed),
        ("step.retry_requested", failed),
    ]
}

/// What a number of tasks with steps in all must have come to, and did not.
fn differences(
    tasks: u64,
    steps: u64,
    astray: u64,
    executed: &Executed,
    seen: &Seen,
) -> Vec<String> {
    let failed = executed.failed;
    let mut faults = Vec::new();
    let mut same = |what: &str, is: u64, must: u64| {
        if is != must {
            faults.push(format!("{what}: {is}, must be {must}"));
        }
    };
    same("steps executed", executed.completed, steps);
    same("tasks ended otherwise than complete", astray, 0);
    let expected = expected(tasks, steps, failed);
    for (n, stream) in seen.streams.iter().enumerate() {
        for (name, must) in expected {
            let is = stream.get(name).copied().unwrap_or(0);
            same(&format!("stream {n}: {name}"), is, must);
        }
        for (name, is) in stream {
            if expected.iter().all(|(known, _)| known != name) {
                same(&format!("stream {n}: {name}"), *is, 0);
            }
        }
    }
    faults
}

const STATEMENTS_MAX: usize = 20;

/// By the time they took between the marks.
fn statements(before: &Mark, after: &Mark, steps: u64) -> Vec<Statement> {
    let mut statements: Vec<Statement> = after
        .statements
        .iter()
        .map(|(id, end)| {
            let begin = before.statements.get(id).cloned().unwrap_or_default();
            let milliseconds = end.milliseconds - begin.milliseconds;
            Statement {
                text: end.text.split_whitespace().collect::<Vec<_>>().join(" "),
                calls: end.calls - begin.calls,
                rows: end.rows - begin.rows,
                milliseconds,
                microseconds_per_step: milliseconds * 1000.0 / steps.max(1) as f64,
            }
        })
        .filter(|statement| statement.calls > 0)
        .collect();
    statements.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    statements.truncate(STATEMENTS_MAX);
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(counts: &[(&str, u64)]) -> Seen {
        let stream = counts.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        Seen { streams: vec![stream], ..Seen::default() }
    }

    const RIGHT: [(&str, u64); 7] = [
        ("task.initialize_requested", 2),
        ("task.start_requested", 2),
        ("task.completed", 2),
        ("step.execution_requested", 7),
        ("step.completed", 6),
        ("step.failed", 1),
        ("step.retry_requested", 1),
    ];

    #[test]
    fn a_run_in_which_everything_happened_once_is_right() {
        let executed = Executed { completed: 6, failed: 1, ..Executed::default() };
        assert!(differences(2, 6, 0, &executed, &seen(&RIGHT)).is_empty());
        assert!(differences(2, 6, 0, &executed, &Seen::default()).is_empty());
    }

    #[test]
    fn a_step_run_twice_a_task_astray_and_an_event_lost_or_doubled_are_noticed() {
        let right = Executed { completed: 6, failed: 1, ..Executed::default() };
        let twice = Executed { completed: 7, failed: 1, ..Executed::default() };
        assert_eq!(differences(2, 6, 0, &twice, &seen(&RIGHT)), ["steps executed: 7, must be 6"]);
        assert_eq!(differences(2, 6, 1, &right, &seen(&RIGHT)).len(), 1);
        for place in 0..RIGHT.len() {
            let mut counts = RIGHT;
            counts[place].1 += 1;
            assert_eq!(differences(2, 6, 0, &right, &seen(&counts)).len(), 1, "{counts:?}");
            counts[place].1 -= 2;
            assert_eq!(differences(2, 6, 0, &right, &seen(&counts)).len(), 1, "{counts:?}");
        }
        let strange = [&RIGHT[..], &[("step.lease_returned", 1)]].concat();
        assert_eq!(
            differences(2, 6, 0, &right, &seen(&strange)),
            ["stream 0: step.lease_returned: 1, must be 0"]
        );
    }
}
