//! The programs as their user starts them, beside a checkout that runs: what they print is what happened.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{collections::BTreeMap, process::Stdio};

use serde_json::Value;
use stepwell_client::v1;
use stepwell_examples::checkout::{self, Line};
use stepwell_tests::{SOON, World};
use tokio::process::{Child, Command};

/// The shipped orders that a test checks out: some of every kind.
const ORDERS: usize = 40;

fn start(world: &World, program: &str, args: &[&str]) -> Child {
    Command::new(program)
        .args(args)
        .env("STEPWELL_EVENT_ADDRESS", world.suite.addresses().event.join(","))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What it printed until it ended well.
async fn said(program: Child) -> String {
    let output = tokio::time::timeout(SOON, program.wait_with_output()).await.unwrap().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains(", 0 failed"), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks the orders out; each with its task as it ended.
async fn check_out(world: &World) -> Vec<(Line, v1::Task)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(checkout::serve(listener));
    world.define(checkout::DEFINITION).await;
    let running = world.run(checkout::executor(&world.client, "e", &servers, 16));
    let mut tasks = Vec::new();
    for line in checkout::read(checkout::ORDERS).unwrap().into_iter().take(ORDERS) {
        let task = world.client.task(checkout::NAME).namespace(checkout::NAMESPACE);
        tasks.push((task.context(&line.order).create().await.unwrap().task_id, line));
    }
    let mut ended = Vec::new();
    for (task, line) in tasks {
        ended.push((line, world.ended(&task).await));
    }
    running.stop().await;
    ended
}

/// What `create_order` returned; none: the task did not come so far.
fn written(task: &v1::Task) -> Option<Value> {
    let step = task.steps.iter().find(|step| step.name == "create_order")?;
    (step.state() == v1::State::Complete).then(|| serde_json::from_str(&step.result).unwrap())
}

/// The mails that ought to be written, sorted.
fn mails(ended: &[(Line, v1::Task)]) -> Vec<String> {
    let mut mails = Vec::new();
    for (line, task) in ended {
        let customer = &line.order.customer_info.email;
        if let Some(order) = written(task) {
            let (number, total) = (order["order_number"].as_str().unwrap(), &order["total_amount"]);
            mails.push(format!("to {customer}: your order {number} over {total} is confirmed"));
        }
        if line.expect.state == "error" {
            let (step, task) = (&line.expect.failed_step, &task.task_id);
            mails.push(format!(
                "to ops@shop: the order of {customer} failed at {step} (task {task})"
            ));
        }
    }
    mails.sort();
    mails
}

fn sorted(said: &str) -> Vec<String> {
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn customers_are_told_of_their_orders_and_the_shop_of_those_that_fail() {
    let world = World::start().await;
    let all = ORDERS.to_string();
    let args = ["--from", "earliest", "--shop", "ops@shop", "--tasks", &all];
    let program = start(&world, env!("CARGO_BIN_EXE_order-notifications"), &args);
    let ended = check_out(&world).await;
    let wanted = mails(&ended);
    assert!(wanted.len() > ORDERS / 2 && wanted.iter().any(|mail| mail.contains("failed at")));
    assert_eq!(sorted(&said(program).await), wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_durable_subscription_one_program_goes_on_where_the_other_stopped() {
    let world = World::start().await;
    let ended = check_out(&world).await;
    let mut lines = String::new();
    for tasks in [ORDERS / 2, ORDERS - ORDERS / 2] {
        let tasks = tasks.to_string();
        let args = ["--subscription", "mails", "--from", "earliest", "--shop", "ops@shop"];
        let args = [&args[..], &["--tasks", &tasks]].concat();
        let program = start(&world, env!("CARGO_BIN_EXE_order-notifications"), &args);
        lines += &said(program).await;
    }
    // Who ordered is remembered by the program only: the second one writes of some orders to the shop.
    let numbers = |lines: Vec<String>| {
        let number = |line: &String| {
            line.split_whitespace().find(|word| word.starts_with("ORD-")).map(str::to_owned)
        };
        let mut numbers: Vec<String> = lines.iter().filter_map(number).collect();
        numbers.sort();
        numbers
    };
    assert_eq!(sorted(&lines).len(), mails(&ended).len());
    assert_eq!(numbers(sorted(&lines)), numbers(mails(&ended)), "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_third_failure_within_an_hour_is_an_alert() {
    let world = World::start().await;
    let all = ORDERS.to_string();
    let args = ["--from", "earliest", "--failures", "3", "--tasks", &all];
    let program = start(&world, env!("CARGO_BIN_EXE_failure-alerts"), &args);
    let ended = check_out(&world).await;
    let failed = ended.iter().filter(|(line, _)| line.expect.state == "error").count();
    assert!(failed >= 6);
    let said = said(program).await;
    assert_eq!(said.lines().count(), failed / 3, "{said}");
    let begin = "ALERT ecommerce/process_order: 3 failures within 3600s, the last at ";
    assert!(said.lines().all(|line| line.starts_with(begin)), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_figures_are_those_of_the_run() {
    let world = World::start().await;
    let all = ORDERS.to_string();
    let args = ["--from", "earliest", "--listen", "127.0.0.1:0", "--tasks", &all];
    let program = start(&world, env!("CARGO_BIN_EXE_metrics-collector"), &args);
    let ended = check_out(&world).await;
    let said = said(program).await;
    let value = |name: &str, labels: &[&str]| -> Option<f64> {
        let is_it = |line: &&str| {
            line.starts_with(&format!("{name}{{")) && labels.iter().all(|of| line.contains(of))
        };
        said.lines().find(is_it).and_then(|line| line.rsplit(' ').next()?.parse().ok())
    };
    for (state, word) in [("complete", "complete"), ("error", "error")] {
        let n = ended.iter().filter(|(line, _)| line.expect.state == state).count();
        let label = format!(r#"state="{word}""#);
        assert_eq!(value("business_tasks_total", &[&label]), Some(n as f64), "{said}");
        assert_eq!(value("business_task_seconds_count", &[&label]), Some(n as f64), "{said}");
    }
    let mut revenue: BTreeMap<String, f64> = BTreeMap::new();
    for order in ended.iter().filter_map(|(_, task)| written(task)) {
        let tier = order["customer_tier"].as_str().unwrap().to_owned();
        *revenue.entry(tier).or_default() += order["total_amount"].as_f64().unwrap();
    }
    assert!(!revenue.is_empty());
    for (tier, total) in revenue {
        let told = value("business_revenue_total", &[&format!(r#"customer_tier="{tier}""#)]);
        assert!((told.unwrap() - total).abs() < 0.005, "{tier}: {told:?}, {total} is expected");
    }
    let declined = ended.iter().filter(|(line, _)| line.expect.failed_step == "process_payment");
    let labels = [r#"step="process_payment""#, r#"state="error""#];
    assert_eq!(value("business_steps_total", &labels), Some(declined.count() as f64));
}
