//! The widest and the longest tasks there may be: a step of theirs costs no more than twice one of a task of
//! ten. What is counted is what the database did, not how long that took: rows read and written, and blocks
//! touched, which also tells of dead rows that are passed over.

use std::sync::Arc;

use stepwell_proto::v1::Definition;
use stepwell_store::{ChildSlots, Ending, LeaseRow, Report, StoredDefinition, Writer};
use stepwell_tests::{Rows, check, child_slots, complete, report};

/// The most steps of a task.
const MOST: usize = 10_000;
const FEW: usize = 10;
/// The most that a call leases or settles.
const BATCH: usize = 500;

/// What the database has done for this database so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) read: i64,
    written: i64,
    blocks: i64,
}

impl Cost {
    /// Up to now. The session that did it is made to report first.
    pub(super) async fn so_far(writer: &mut Writer) -> Self {
        let connection = writer.connection();
        sqlx::raw_sql("select pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
            .execute(&mut *connection)
            .await
            .unwrap();
        let (read, written, blocks) = sqlx::query_as(
            "select sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint,
                    sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint,
                    sum(heap_blks_hit + heap_blks_read
                        + coalesce(idx_blks_hit, 0) + coalesce(idx_blks_read, 0))::bigint
               from pg_stat_user_tables join pg_statio_user_tables using (relid)
              where pg_stat_user_tables.schemaname = 'stepwell'",
        )
        .fetch_one(connection)
        .await
        .unwrap();
        Self { read, written, blocks }
    }

    async fn since(self, writer: &mut Writer) -> Self {
        let now = Self::so_far(writer).await;
        Self {
            read: now.read - self.read,
            written: now.written - self.written,
            blocks: now.blocks - self.blocks,
        }
    }

    /// For each of so many steps, at most twice as much as the other for each of so many.
    fn is_at_most_twice(self, steps: usize, other: Self, of: usize) {
        for (what, mine, others) in [
            ("rows read", self.read, other.read),
            ("rows written", self.written, other.written),
            ("blocks touched", self.blocks, other.blocks),
        ] {
            let (mine, others) = (mine as f64 / steps as f64, others as f64 / of as f64);
            assert!(
                others > 0.0 && mine <= 2.0 * others,
                "{what} per step: {mine}, of few {others}"
            );
        }
    }
}

/// Takes a task from its creation to its end. Steps are leased and settled in batches; with `hands_over` each
/// step that completes is followed by its child in the same call.
async fn run(
    rows: &Rows,
    writer: &mut Writer,
    definition: &Arc<StoredDefinition>,
    hands_over: bool,
) {
    let task = rows.create_with(writer, definition, 1).await;
    let mut done = 0;
    let mut leases: Vec<LeaseRow> = Vec::new();
    loop {
        if leases.is_empty() {
            leases = rows.claim(writer, definition.queues[0], BATCH).await;
        }
        if leases.is_empty() {
            break;
        }
        let reports: Vec<Report> = leases.iter().map(|lease| complete(lease, "1")).collect();
        let slots =
            if hands_over { child_slots(&vec![1; leases.len()]) } else { ChildSlots::default() };
        done += reports.len();
        leases = writer.settle(&reports, &slots, rows.node, None).await.unwrap().leases;
    }
    assert_eq!(done, definition.children.len());
    let state = "select state from stepwell.task where id = $1";
    assert_eq!(rows.one::<i16>(state, task[0].key.unwrap()).await, 3);
}

/// Compares one task of most steps with as many as a hundred of few.
async fn compare(
    shape: impl Fn(usize) -> String,
    change: impl Fn(&mut Definition),
    hands_over: bool,
) {
    let rows = Rows::new().await;
    let mut writer = rows.writer().await;
    let few = rows.define_with(&shape(FEW), &change).await;
    let many = rows.define_with(&shape(MOST), &change).await;
    // Once for what a session reads first.
    run(&rows, &mut writer, &few, hands_over).await;
    let before = Cost::so_far(&mut writer).await;
    for _ in 0..100 {
        run(&rows, &mut writer, &few, hands_over).await;
    }
    let of_few = before.since(&mut writer).await;
    let before = Cost::so_far(&mut writer).await;
    run(&rows, &mut writer, &many, hands_over).await;
    before.since(&mut writer).await.is_at_most_twice(MOST, of_few, 100 * FEW);
    check(&mut rows.connection().await).await;
}

fn chain(steps: usize) -> String {
    (1..steps).fold("s0".to_owned(), |all, n| all + &format!("; s{n}: s{}", n - 1))
}

fn fan_out(steps: usize) -> String {
    (1..steps).fold("s0".to_owned(), |all, n| all + &format!("; s{n}: s0"))
}

fn fan_in(steps: usize) -> String {
    let parents = (1..steps).fold(String::new(), |all, n| all + &format!("s{n} "));
    (1..steps).fold(String::new(), |all, n| all + &format!("s{n}; ")) + "s0: " + &parents
}

fn side_by_side(steps: usize) -> String {
    (1..steps).fold("s0".to_owned(), |all, n| all + &format!("; s{n}"))
}

#[tokio::test]
async fn a_step_of_the_longest_chain_costs_what_one_of_a_short_chain_does() {
    compare(chain, |_| {}, true).await;
}

#[tokio::test]
async fn the_most_parents_a_step_can_have_cost_no_more_each_than_a_few() {
    compare(fan_in, |_| {}, false).await;
}

#[tokio::test]
async fn the_most_children_a_step_can_have_are_released_at_once_and_cost_no_more_each_than_a_few() {
    compare(fan_out, |_| {}, false).await;
    let rows = Rows::new().await;
    let definition = rows.define(&fan_out(MOST)).await;
    let task = rows.create(&definition).await;
    let mut writer = rows.writer().await;
    let root = rows.claim(&mut writer, definition.queues[0], 1).await;
    let settled = rows.settle(&mut writer, &[complete(&root[0], "1")]).await;
    assert_eq!(settled.ready, MOST - 1);
    let released = "select cardinality(names) from stepwell.event where task = $1 and type = 41";
    assert_eq!(rows.one::<i32>(released, task).await, i32::try_from(MOST - 1).unwrap());
    check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_step_of_the_widest_limited_task_costs_what_one_of_a_narrow_one_does() {
    compare(side_by_side, |definition| definition.max_parallel_steps = 5, false).await;
}

#[tokio::test]
async fn a_step_of_the_widest_task_is_moved_by_hand_at_the_cost_of_one_of_a_narrow_task() {
    let mut costs = Vec::new();
    for steps in [FEW, MOST] {
        let rows = Rows::new().await;
        let definition = rows.define(&side_by_side(steps)).await;
        let mut writer = rows.writer().await;
        let uid = rows.create_with(&mut writer, &definition, 1).await[0].uid;
        let leases = rows.claim(&mut writer, definition.queues[0], 1).await;
        let fails = Ending::Fail { wait_ms: None };
        rows.settle(&mut writer, &[report(&leases[0], fails, "{}")]).await;
        let before = Cost::so_far(&mut writer).await;
        // Retried, resolved, cancelled.
        for (number, from, to, of) in
            [(0, "{4}", 1, 43), (1, "{1,4}", 6, 46), (2, "{1,2,4}", 5, 45)]
        {
            let moved: bool = sqlx::query_scalar(
                "select (s_moved)[1] from stepwell.move_steps(
                   array[$1], array[$2], $3::text::smallint[], $4::smallint, $5::smallint, '{}', '')",
            )
            .bind(uid)
            .bind(number)
            .bind(from)
            .bind(to)
            .bind(of)
            .fetch_one(writer.connection())
            .await
            .unwrap();
            assert!(moved, "{number}");
        }
        costs.push(before.since(&mut writer).await);
        check(&mut rows.connection().await).await;
    }
    costs[1].is_at_most_twice(1, costs[0], 1);
}
