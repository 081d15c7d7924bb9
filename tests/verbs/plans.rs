//! The verbs' plans do not depend on how full the tables were when they were made: rows read per
//! step stay the same from the first batch on empty, vacuumed tables to the last.

use stepwell_store::{Report, Writer};
use stepwell_tests::{Rows, child_slots, complete};

use super::wide::Cost;

const STEPS: usize = 20_000;

#[tokio::test]
async fn a_step_costs_the_last_batches_what_it_cost_the_first() {
    for batch in [1, 100, 500] {
        let rows = Rows::new().await;
        let definition = rows.define("a; b: a; c: b").await;
        let mut connection = rows.connection().await;
        let vacuum =
            "vacuum analyze stepwell.task, stepwell.step, stepwell.ready_step, stepwell.event";
        sqlx::raw_sql(vacuum).execute(&mut connection).await.unwrap();
        let mut writer = rows.writer().await;
        let steps = if batch == 1 { STEPS / 20 } else { STEPS };
        let rounds = steps / 3 / batch;
        let measured = rounds.div_ceil(5).max(1);
        let mut read = Vec::new();
        for round in 0..rounds {
            let before = Cost::so_far(&mut writer).await.read;
            run(&rows, &mut writer, &definition, batch).await;
            if round < measured || round >= rounds - measured {
                read.push(Cost::so_far(&mut writer).await.read - before);
            }
        }
        let first: i64 = read[..measured].iter().sum();
        let last: i64 = read[measured..].iter().sum();
        assert!(first > 0 && last <= 2 * first, "batch {batch}: {first} rows, then {last}");
        let per_step = last as f64 / (measured * batch * 3) as f64;
        assert!(per_step < 60.0, "batch {batch}: {per_step} rows read per step");
    }
}

/// A batch of tasks from creation to end.
async fn run(
    rows: &Rows,
    writer: &mut Writer,
    definition: &std::sync::Arc<stepwell_store::StoredDefinition>,
    batch: usize,
) {
    rows.create_with(writer, definition, batch).await;
    let queue = definition.queues[0];
    let mut leases = rows.claim(writer, queue, batch).await;
    assert_eq!(leases.len(), batch);
    while !leases.is_empty() {
        let done: Vec<Report> = leases.iter().map(|lease| complete(lease, "{}")).collect();
        let slots = child_slots(&vec![1; batch]);
        leases = writer.settle(&done, &slots, rows.node, None).await.unwrap().leases;
    }
}
