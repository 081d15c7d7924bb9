//! The verbs' plans do not depend on how full the tables were when they were made: rows read per
//! step stay the same from the first batch on empty, vacuumed tables to the last.

use stepwell_store::{Report, Writer};
use stepwell_tests::{Rows, child_slots, complete};

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
            let before = rows_read(&mut writer).await;
            run(&rows, &mut writer, &definition, batch).await;
            if round < measured || round >= rounds - measured {
                read.push(rows_read(&mut writer).await - before);
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

/// Rows that indexes and scans have fetched in this database so far. The session that did it is
/// made to report first.
async fn rows_read(writer: &mut Writer) -> i64 {
    let connection = writer.connection();
    sqlx::raw_sql("select pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
        .execute(&mut *connection)
        .await
        .unwrap();
    sqlx::query_scalar(
        "select sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint \
           from pg_stat_user_tables where schemaname = 'stepwell'",
    )
    .fetch_one(connection)
    .await
    .unwrap()
}
