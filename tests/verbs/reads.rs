//! What reads cost among many tasks: which index leads them, and how many blocks they touch. The database is set as
//! services set it.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgConnection, Row};
use stepwell_store::Order;
use stepwell_tests::Rows;
use uuid::Uuid;

use super::bulk::{filter, walk};

const TASKS: u32 = 1_000_000;
const NAMESPACE: &str = "many";
/// What a page of 100 tasks may touch: eight blocks for each of the five hundred that are looked at if not all of the
/// first hundred fit, eight for each that is answered, and some to begin with.
const PAGE_BLOCKS: i64 = 5_500;

/// Many tasks.
async fn filled() -> Rows {
    let rows = Rows::new().await;
    for name in ["a", "b", "c", "rare"] {
        let named = |it: &mut stepwell_proto::v1::Definition| {
            (it.namespace, it.name) = (NAMESPACE.into(), name.into());
        };
        rows.define_with("one; two: one", named).await;
    }
    stepwell_suite::fill(&rows.database.url, NAMESPACE, TASKS).await.unwrap();
    rows
}

/// Blocks that a statement touches, and the indexes of tasks that it looks into.
pub(super) async fn cost(
    connection: &mut PgConnection,
    statement: &str,
    arguments: &[&str],
) -> (i64, BTreeSet<String>) {
    let prepared = format!("prepare asked as {statement}");
    let list: Vec<String> =
        arguments.iter().map(|text| format!("'{}'", text.replace('\'', "''"))).collect();
    let call = if list.is_empty() { String::new() } else { format!("({})", list.join(", ")) };
    sqlx::raw_sql(sqlx::AssertSqlSafe(prepared)).execute(&mut *connection).await.unwrap();
    let explained =
        format!("explain (analyze, buffers, costs off, timing off) execute asked{call}");
    // Once for what a session reads first.
    let mut told = (Vec::new(), BTreeSet::new());
    for _ in 0..2 {
        sqlx::raw_sql("begin").execute(&mut *connection).await.unwrap();
        let before = scans(connection).await;
        let plan = sqlx::raw_sql(sqlx::AssertSqlSafe(explained.clone()));
        let plan = plan.fetch_all(&mut *connection).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        let after = scans(connection).await;
        sqlx::raw_sql("rollback").execute(&mut *connection).await.unwrap();
        let used =
            after.into_iter().filter(|(name, n)| *n > before.get(name).copied().unwrap_or(0));
        told = (plan, used.map(|(name, _)| name).collect());
    }
    sqlx::raw_sql("deallocate asked").execute(&mut *connection).await.unwrap();
    let (plan, indexes) = told;
    assert!(!plan.iter().any(|line| line.contains("Seq Scan on task")), "{plan:#?}");
    let buffers = plan.iter().find_map(|line| line.trim().strip_prefix("Buffers: shared "));
    let counts = buffers.unwrap_or_else(|| panic!("{plan:#?}")).split_whitespace();
    let counts = counts.filter_map(|part| part.strip_prefix("hit=").or(part.strip_prefix("read=")));
    (counts.map(|n| n.parse::<i64>().unwrap()).sum(), indexes)
}

/// How often this session has looked into each index of tasks and steps, since it last told so.
async fn scans(connection: &mut PgConnection) -> BTreeMap<String, i64> {
    let scans = "select c.relname::text, pg_stat_get_xact_numscans(c.oid) from pg_class c
                  where c.relkind = 'i' and c.relnamespace = 'stepwell'::regnamespace
                    and c.relname ~ '^(task|step_pkey)'";
    sqlx::query_as(scans).fetch_all(connection).await.unwrap().into_iter().collect()
}

/// The statement of the store with all these words.
pub(super) fn statement(words: &[&str]) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".sqlx");
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let text = std::fs::read_to_string(file.path()).unwrap();
        let query: serde_json::Value = serde_json::from_str(&text).unwrap();
        let text = query["query"].as_str().unwrap();
        if words.iter().all(|word| text.contains(word)) {
            found.push(text.to_owned());
        }
    }
    assert_eq!(found.len(), 1, "{words:?}: {found:#?}");
    found.remove(0)
}

#[tokio::test]
async fn among_a_million_tasks_each_read_is_led_by_its_index_to_few_blocks() {
    let rows = filled().await;
    let mut writer = rows.writer().await;
    let connection = writer.connection();
    let pages = statement(&["stepwell.match_tasks(", "with ordinality"]);
    let page = async |connection: &mut PgConnection, written: &str, order: &str| {
        let meant = filter(written).to_text();
        let (at, key) = match order {
            "2" | "4" => ("-infinity", "-1"),
            _ => ("infinity", "9223372036854775807"),
        };
        let arguments = [&meant, order, at, key, "10000", "100", "100000", "1048576"];
        cost(connection, &pages, &arguments).await
    };
    let recent = "create_time > \"-10m\"";
    for (written, order, index) in [
        ("", "1", "task_pkey"),
        ("", "2", "task_pkey"),
        ("", "3", "task_ended"),
        ("", "4", "task_ended"),
        ("state = pending OR state = in_progress", "1", "task_open"),
        ("state = error", "1", "task_failed"),
        ("state = error", "2", "task_failed"),
        ("tags:tenth", "1", "task_tag_pkey"),
        ("tags:lot-3", "1", "task_tag_pkey"),
        ("tags:lot-3 AND tags:tenth", "2", "task_tag_pkey"),
        ("tags:nowhere", "1", "task_tag_pkey"),
        ("annotations.team = payments", "1", "task_annotation_pkey"),
        ("annotations.order = 3000 AND tags:tenth", "2", "task_annotation_pkey"),
        ("annotations.order = 1700 AND annotations.team = payments", "1", "task_annotation_pkey"),
        ("annotations.order = nothing", "2", "task_annotation_pkey"),
        ("correlation_id = order-700", "1", "task_correlation"),
        ("correlation_id = order-700 OR correlation_id = order-7000", "1", "task_correlation"),
        ("definition_name = rare", "1", "task_definition"),
        ("namespace = many AND definition_name = \"*r*\"", "2", "task_definition"),
        (recent, "1", "task_created"),
        ("create_time < \"-40h\"", "1", "task_created"),
        ("end_time < \"-40h\"", "3", "task_ended"),
        ("end_time > \"-40h\" AND state = complete", "4", "task_ended"),
        ("task_id = \"0198c0de-0000-7000-8000-0000000003e8\"", "1", "task_uid_key"),
    ] {
        let (blocks, indexes) = page(connection, written, order).await;
        assert!(blocks <= PAGE_BLOCKS, "{written:?} {order}: {blocks} blocks by {indexes:?}");
        assert!(indexes.contains(index), "{written:?} {order}: {indexes:?}");
    }
    // What a time excludes is not gone through, wherever it lies.
    for (near, far, order) in [
        ("create_time < \"-1h\"", "create_time < \"-270h\"", "1"),
        ("create_time > \"-270h\"", "create_time > \"-1h\"", "2"),
        ("end_time < \"-1h\"", "end_time < \"-270h\"", "3"),
        ("end_time > \"-270h\"", "end_time > \"-1h\"", "4"),
    ] {
        let ((one, _), (other, _)) =
            (page(connection, near, order).await, page(connection, far, order).await);
        assert!(other < one + 100, "{far} {order}: {other} blocks, and {one} for {near}");
    }
    // What has no index is looked for in as many tasks as a page looks at, and how they stand in fewer.
    for (written, most) in [
        ("initiator = nobody", 130_000),
        ("NOT source_system = shop", 130_000),
        ("reason = \"*x*\" OR paused = true", 130_000),
        ("execution_status = processing", 30_000),
        ("state = pending AND health = blocked", 30_000),
    ] {
        let (blocks, _) = page(connection, written, "1").await;
        assert!(blocks <= most, "{written}: {blocks} blocks");
    }

    let uid = "{0198c0de-0000-7000-8000-0000000003e8}";
    for (name, text, index, most) in [
        ("a task", statement(&["d.hash as \"hash!\"", "unnest($1::uuid[])"]), "task_uid_key", 40),
        ("its context", statement(&["stepwell.task_context($1)"]), "step_pkey", 100),
    ] {
        let arguments = [uid, "false"];
        let arguments = if text.contains("$2") { &arguments[..] } else { &arguments[..1] };
        let (blocks, indexes) = cost(connection, &text, arguments).await;
        assert!(blocks <= most, "{name}: {blocks} blocks by {indexes:?}");
        assert!(indexes.contains(index), "{name}: {indexes:?}");
    }
    let readiness = "select * from stepwell.step_readiness($1::uuid[])";
    let (blocks, indexes) = cost(connection, readiness, &[uid]).await;
    assert!(blocks <= 60 && indexes.contains("step_pkey"), "{blocks} blocks by {indexes:?}");
}

#[tokio::test]
async fn a_walk_through_many_tasks_comes_to_each_that_fits_once_whatever_leads_it() {
    let rows = Rows::new().await;
    for name in ["a", "b", "rare"] {
        let named = |it: &mut stepwell_proto::v1::Definition| {
            (it.namespace, it.name) = (NAMESPACE.into(), name.into());
        };
        rows.define_with("one; two: one", named).await;
    }
    stepwell_suite::fill(&rows.database.url, NAMESPACE, 12_000).await.unwrap();
    for (written, found) in [
        ("", 12_000),
        ("namespace = many", 12_000),
        ("definition_name = rare OR definition_name = a", 6_000),
        ("state = pending OR state = error", 132),
        ("tags:tenth", 1_200),
        ("tags:lot-3 AND tags:tenth", 100),
        ("annotations.team = payments", 1_200),
        ("annotations.order = 3000 OR annotations.order = 3010", 2),
        ("annotations.order = 3000 AND tags:lot-3", 1),
        ("annotations.team = payments AND tags:lot-3", 100),
        ("correlation_id = order-1 OR correlation_id = order-2000", 6),
        ("create_time > \"-100h\"", 12_000),
        ("initiator = user-7", 120),
        ("execution_status = has_ready_steps", 120),
        ("execution_status = blocked_by_failures", 12),
        ("health = blocked AND tags:tenth", 0),
    ] {
        let meant = filter(written);
        for order in [Order::CreateDesc, Order::Create] {
            let listed = walk(&rows, &meant, order, 1_000, async |_| {}).await;
            let ids: BTreeSet<Uuid> =
                listed.iter().map(|task| task.task_id.parse().unwrap()).collect();
            assert_eq!((listed.len(), ids.len()), (found, found), "{written} {order:?}");
            let times: Vec<_> = listed
                .iter()
                .map(|task| task.create_time.map(|at| (at.seconds, at.nanos)))
                .collect();
            match order {
                Order::Create => assert!(times.is_sorted(), "{written}"),
                _ => assert!(times.iter().rev().is_sorted(), "{written}"),
            }
        }
    }
}
