//! The demo as its user runs it: what it says against what the input says, worked out anew in SQL;
//! and that it leaves nothing behind, however it ends.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::Row;
use stepwell_tests::Rows;

/// What the orders that must complete cost, by tier: from the raw JSON alone.
const REVENUE: &str = "
    with line as (select l::jsonb as l from unnest($1::text[]) l),
    price (id, cents) as (values ('1', 2999), ('2', 4999), ('3', 1999), ('4', 8950)),
    cart as (
      select l->'order'->'customer_info'->>'tier' as tier,
             sum((i->>'quantity')::int * p.cents)::int as subtotal, sum((i->>'quantity')::int)::int as pieces
        from line, jsonb_array_elements(l->'order'->'cart_items') i join price p on p.id = i->>'product_id'
       where l->'expect'->>'state' = 'complete'
       group by l)
    select tier, sum(subtotal + round(subtotal * 0.08)
                     + case when pieces <= 4 then 599 when pieces <= 20 then 999 else 1499 end)::bigint as cents
      from cart group by tier";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_s_revenue_is_what_sql_over_the_raw_input_says() {
    let rows = Rows::new().await;
    let lines: Vec<&str> = stepwell_examples::checkout::ORDERS.lines().collect();
    let expected: BTreeMap<String, i64> = sqlx::query(REVENUE)
        .bind(&lines)
        .fetch_all(&mut rows.connection().await)
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get("tier"), row.get("cents")))
        .collect();
    assert_eq!(expected.len(), 3);

    let events = std::env::temp_dir().join(format!("stepwell-events-{}", std::process::id()));
    let demo = Command::new(stepwell_suite::built_stepwell().unwrap())
        .args(["demo", "--events"])
        .arg(&events)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&demo.stdout).into_owned();
    assert!(demo.status.success(), "{said}{}", String::from_utf8_lossy(&demo.stderr));

    // The table.
    for (tier, cents) in &expected {
        let line = said.lines().find(|line| line.contains(&format!("revenue {tier}"))).unwrap();
        let amount = format!("{}.{:02}", cents / 100, cents % 100);
        assert!(line.contains(&amount), "{line}: {amount} is expected");
    }
    // The events: what create_order returned, of tasks that completed.
    let text = std::fs::read_to_string(&events).unwrap();
    std::fs::remove_file(&events).unwrap();
    let told: Vec<&str> = text.lines().collect();
    let from_events: BTreeMap<String, i64> = sqlx::query(
        "with e as (select l::jsonb as e from unnest($1::text[]) l),
              o as (select e->>'taskId' as task, (e->'stepCompleted'->>'result')::jsonb as r
                      from e where e->>'name' = 'step.completed' and e->>'stepName' = 'create_order')
         select r->>'customer_tier' as tier, round(sum((r->>'total_amount')::numeric) * 100)::bigint as cents
           from o where task in (select e->>'taskId' from e where e->>'name' = 'task.completed') group by 1",
    )
    .bind(&told)
    .fetch_all(&mut rows.connection().await)
    .await
    .unwrap()
    .iter()
    .map(|row| (row.get("tier"), row.get("cents")))
    .collect();
    assert_eq!(from_events, expected);
}

/// Processes and folders that a suite leaves: those that name the folder it was told to use.
fn left_behind(folder: &std::path::Path) -> Vec<String> {
    let name = folder.display().to_string();
    let mut left: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let of_process = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let contains = |bytes: &[u8]| bytes.windows(name.len()).any(|w| w == name.as_bytes());
        if contains(&of_process("environ")) || contains(&of_process("cmdline")) {
            let command = String::from_utf8_lossy(&of_process("cmdline")).replace('\0', " ");
            left.push(command);
        }
    }
    left
}

#[test]
fn a_demo_killed_at_any_moment_leaves_no_process_and_no_folder() {
    let stepwell = stepwell_suite::built_stepwell().unwrap();
    let folder = std::env::temp_dir().join(format!("swk{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&folder, everybody).unwrap();
    for moment in [0, 20, 60, 150, 300, 600, 1000, 1500, 2500, 4000] {
        let mut demo = Command::new(&stepwell)
            .arg("demo")
            .env("TMPDIR", &folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment is what is tested: nothing is waited for.
        std::thread::sleep(Duration::from_millis(moment));
        demo.kill().unwrap();
        demo.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !left_behind(&folder).is_empty() {
            let left = left_behind(&folder);
            assert!(Instant::now() < deadline, "after {moment} ms: {left:#?}");
            std::thread::yield_now();
        }
    }
    std::fs::remove_dir(&folder).unwrap();
}
