//! The benchmark as its user runs it, small: that it measures is tested, not what.

use std::process::{Command, Output};

use serde_json::Value;
use stepwell_tests::World;

fn bench(args: &[&str]) -> Output {
    let program = stepwell_suite::built_stepwell().unwrap();
    Command::new(program).arg("bench").args(args).output().unwrap()
}

/// The report of a run that succeeded.
fn report(args: &[&str]) -> Value {
    let brief = ["--warm-up", "1", "--duration", "2", "--output", "json"];
    let ran = bench(&[args, &brief].concat());
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

fn figure(report: &Value, key: &str) -> f64 {
    report.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("{key} in {report}"))
}

#[test]
fn a_benchmark_counts_every_step_and_event_and_writes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let page_arg = page.display().to_string();
    let report = report(&[
        "--shape",
        "diamond",
        "--in-flight",
        "8",
        "--executors",
        "2",
        "--subscribers",
        "3",
        "--fail-rate",
        "0.2",
        "--oversupply",
        "1",
        "--report",
        &page_arg,
    ]);
    let total = |key: &str| report["totals"][key].as_u64().unwrap();
    let (tasks, steps) = (total("tasks_created"), total("steps_created"));
    assert!(tasks > 8 && steps == 4 * tasks && total("steps_completed") == steps, "{report}");
    let failed = total("attempts_failed");
    assert!(failed > 0, "a fifth of all attempts fails");
    assert_eq!(total("events_per_subscriber"), 3 * tasks + 2 * steps + 3 * failed);
    for times in ["create", "start", "hand_over", "end_to_end", "delivery"] {
        assert!(figure(&report, &format!("/{times}/p50_ms")) > 0.0, "{times}");
        assert!(
            figure(&report, &format!("/{times}/p99_ms"))
                <= figure(&report, &format!("/{times}/max_ms"))
        );
    }
    for key in [
        "/steps_per_second",
        "/tasks_per_second",
        "/p50_ms",
        "/p99_ms",
        "/events_per_step",
        "/database/wal_bytes_per_step",
        "/database/commits_per_step",
        "/database/statements_per_step",
        "/processes/postgres/cpu_seconds",
        "/processes/step-service/rss_bytes_max",
        "/oversupply/recovery_seconds",
    ] {
        assert!(figure(&report, key) > 0.0, "{key}");
    }
    assert_eq!(report["series"].as_array().unwrap().len(), 2);
    assert!(!report["statements"].as_array().unwrap().is_empty());
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.matches("<svg").count() == 5);
    let outside: Vec<&str> = page.matches("src=").chain(page.matches("<script")).collect();
    assert!(outside.is_empty(), "the page needs nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_benchmark_at_a_rate_measures_services_that_run_already() {
    let world = World::start().await;
    let addresses = world.suite.addresses();
    let address = [&addresses.task[0], &addresses.step[0], &addresses.event[0]];
    let address = address.map(String::as_str).join(",");
    let url = world.suite.database_url().to_owned();
    let report = tokio::task::spawn_blocking(move || {
        report(&[
            "--address",
            &address,
            "--database-url",
            &url,
            "--rate",
            "40",
            "--shape",
            "one",
            "--open-transaction",
        ])
    });
    let report = report.await.unwrap();
    let tasks = report["totals"]["tasks_created"].as_u64().unwrap();
    // Three seconds of forty, and what a stall makes it catch up.
    assert!((100..=200).contains(&tasks), "{tasks}");
    assert_eq!(report["totals"]["steps_completed"].as_u64(), Some(tasks));
    assert!(report["database"]["wal_bytes"].as_i64().unwrap() > 0);
    assert!(report["database"]["statements"].is_null(), "that server does not count them");
}

#[test]
fn reads_are_measured_among_as_many_tasks_as_are_wanted() {
    let ran = bench(&["read", "--tasks", "3000", "--calls", "3", "--output", "json"]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let reads = report["reads"].as_array().unwrap();
    assert_eq!(reads.len(), 22);
    for read in reads {
        assert!(
            figure(read, "/p50_ms") > 0.0 && figure(read, "/p50_ms") <= figure(read, "/p99_ms")
        );
    }
    let answered = |name: &str| {
        let read = reads.iter().find(|read| read["read"] == name).unwrap();
        figure(read, "/answered")
    };
    for (name, tasks) in [
        ("task", 1.0),
        ("newest", 100.0),
        ("open", 30.0),
        ("in_error", 3.0),
        ("rare_tag", 100.0),
        ("frequent_annotation", 100.0),
        ("rare_annotation", 1.0),
        ("overview", 1.0),
        ("correlation_id", 3.0),
        ("definition", 3.0),
        ("execution_status", 30.0),
        ("nothing_found", 0.0),
    ] {
        assert!((tasks - answered(name)).abs() <= 1.0, "{name}: {}", answered(name));
    }
}

#[test]
fn two_settings_are_compared_in_turns() {
    let ran = bench(&[
        "compare",
        "--rounds",
        "1",
        "--output",
        "json",
        "--payload 50",
        "--payload 5000",
        "--",
        "--in-flight",
        "4",
        "--warm-up",
        "1",
        "--duration",
        "1",
    ]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let compared: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let wal = &compared["medians"]["database.wal_bytes_per_step"];
    assert!(wal["ratio"].as_f64().unwrap() > 2.0, "larger payloads, larger log: {wal}");
    assert_eq!(compared["a"][0]["payload_bytes"], 50);
    assert_eq!(compared["b"][0]["payload_bytes"], 5000);
}

#[test]
fn a_benchmark_that_is_told_nonsense_says_so() {
    for (args, what) in [
        (&["--shape", "square"][..], "one, linear3"),
        (&["--in-flight", "0"], "--in-flight"),
        (&["--rate", "-1"], "--rate"),
        (&["--fail-rate", "1"], "0 to 0.9"),
        (&["--address", "http://127.0.0.1:1"], "three addresses"),
        (&["--postgres", "fsync"], "NAME=VALUE"),
        (&["compare", "/not/there", "--payload 1"], "there is no program"),
    ] {
        let ran = bench(args);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(2), "{said}");
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn how_late_each_kind_of_what_is_due_comes_is_measured_by_its_events() {
    let ran = bench(&["lateness", "--tasks", "3", "--rate", "30", "--output", "json"]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let kinds = report["kinds"].as_array().unwrap();
    let counts: Vec<_> =
        kinds.iter().map(|kind| (kind["kind"].as_str(), kind["count"].as_u64())).collect();
    let three =
        ["queue_timeout", "attempt_timeout", "heartbeat_timeout", "total_timeout", "deadline"];
    let three = three.map(|kind| (Some(kind), Some(3)));
    assert_eq!(counts, [&[(Some("back_off"), Some(9))], &three[..]].concat());
    for kind in kinds {
        let of = |key| figure(kind, key);
        assert!(of("/p50_ms") <= of("/p99_ms") && of("/p99_ms") <= of("/max_ms"), "{kind}");
    }
}

#[test]
fn what_the_feed_costs_is_measured_with_each_event_delivered_once_to_each_that_matches_it() {
    let small = ["--wide", "3", "--narrow", "5", "--connections", "2", "--rate", "110"];
    let brief = ["--duration", "1", "--idle", "1", "--idle-subscriptions", "4"];
    let ran = bench(&[&["feed", "--output", "json"][..], &small, &brief].concat());
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let count = |key: &str| report.pointer(key).and_then(Value::as_u64).unwrap();
    let (events, narrow) = (count("/events"), count("/narrow_delivery/count"));
    assert!(events >= 20 && narrow >= 5, "{report}");
    assert_eq!(count("/wide_delivery/count"), 3 * events);
    assert_eq!(count("/deliveries"), 3 * events + narrow);
    for times in ["wide_delivery", "narrow_delivery"] {
        let of = |key: &str| figure(&report, &format!("/{times}/{key}"));
        assert!(0.0 < of("p50_ms") && of("p50_ms") <= of("p99_ms"), "{report}");
        assert!(of("p99_ms") <= of("max_ms"), "{report}");
    }
    for key in [
        "/events_per_second",
        "/tail_statements_per_event",
        "/busy/cpu",
        "/busy/rss_bytes_max",
        "/idle/rss_bytes_max",
    ] {
        assert!(figure(&report, key) > 0.0, "{key}: {report}");
    }
}
