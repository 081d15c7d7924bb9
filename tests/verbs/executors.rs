//! What is written of executors, and what is told of them.

use std::{collections::BTreeMap, time::Duration};

use stepwell_proto::id::executor_id;
use stepwell_store::{ExecutorState, NewExecutor, Offering};
use stepwell_tests::Rows;

fn state(session: i64) -> ExecutorState {
    ExecutorState { session, slots: 5, used: 2, draining: false, heard_ms: 1000 }
}

/// Writes executors of a node that offer these handlers; answers which of the changed were there.
async fn write(
    rows: &Rows,
    node: i32,
    changed: &[ExecutorState],
    new: &[(i64, &str, &[&str])],
) -> Vec<i64> {
    let labels = BTreeMap::from([("region".to_owned(), "eu".to_owned())]);
    let new: Vec<NewExecutor<'_>> = new
        .iter()
        .map(|(session, namespace, handlers)| NewExecutor {
            state: state(*session),
            name: "e \"1\"",
            namespace,
            sdk: "rust/1",
            handlers: handlers.iter().map(|name| (*name, ">=1, <2".to_owned())).collect(),
            labels: &labels,
            stop_asked: false,
            age_ms: 60_000,
        })
        .collect();
    rows.writer().await.write_executors(node, &[], changed, &new).await.unwrap()
}

async fn listed(rows: &Rows, namespace: &str, handler: &str) -> Vec<String> {
    let wanted = Offering { namespace: namespace.into(), handler: handler.into() };
    let page = rows.store.executors(&wanted, 0, 100).await.unwrap();
    page.items.into_iter().map(|executor| executor.executor_id).collect()
}

#[tokio::test]
async fn executors_are_told_as_they_were_written_and_only_those_of_living_nodes() {
    let rows = Rows::new().await;
    let other = rows.store.register_node(Duration::from_secs(300)).await.unwrap();
    write(&rows, rows.node, &[], &[(1, "shop", &["pay", "ship"]), (2, "shop", &["pay"])]).await;
    write(&rows, other, &[], &[(3, "bank", &["pay"])]).await;
    let (one, two, three) = (executor_id(1), executor_id(2), executor_id(3));
    assert_eq!(listed(&rows, "", "").await, [&*one, &two, &three]);
    assert_eq!(listed(&rows, "shop", "ship").await, [&*one]);
    assert_eq!(listed(&rows, "", "pay").await.len(), 3);
    assert_eq!(listed(&rows, "bank", "ship").await.len(), 0);

    let executor = rows.store.executor(1).await.unwrap().unwrap();
    assert_eq!((executor.name.as_str(), executor.labels["region"].as_str()), ("e \"1\"", "eu"));
    assert_eq!((executor.slots, executor.slots_used, executor.node), (5, 2, rows.node));
    assert_eq!(executor.handlers[1].definition_versions, ">=1, <2");
    let age = executor.last_seen_time.unwrap().seconds - executor.connect_time.unwrap().seconds;
    assert!((58..=60).contains(&age), "{age}");

    let changed = ExecutorState { used: 0, draining: true, ..state(2) };
    assert_eq!(write(&rows, rows.node, &[changed, state(9)], &[]).await, [2], "9 is not there");
    let executor = rows.store.executor(2).await.unwrap().unwrap();
    assert_eq!((executor.slots_used, executor.draining), (0, true));

    // A node that is retired, or did not extend its lease, has no executors.
    let mut writer = rows.writer().await;
    assert!(writer.extend_node(rows.node, Duration::ZERO).await.unwrap());
    assert_eq!(listed(&rows, "", "").await, [&*three]);
    assert!(writer.extend_node(rows.node, Duration::from_secs(300)).await.unwrap());
    writer.retire_node(other).await.unwrap();
    assert_eq!(listed(&rows, "", "").await, [&*one, &two]);
    // And what it left goes with it.
    let taken = writer.take_over(rows.node, Duration::from_secs(300), Duration::ZERO, false).await;
    assert_eq!(taken.unwrap()[0].node, other);
    writer.forget_node(other, rows.node).await.unwrap();
    let left = rows.one::<i64>("select count(*) from stepwell.executor where $1 > 0", 1).await;
    assert_eq!(left, 2);
}

#[tokio::test]
async fn lists_are_read_in_pages_that_are_bounded_and_have_each_once() {
    let rows = Rows::new().await;
    rows.define("a").await;
    let names: Vec<String> = (0..1000).map(|n| format!("{n:064}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let new: Vec<(i64, &str, &[&str])> =
        (1..=40).map(|session| (session, "shop", names.as_slice())).collect();
    write(&rows, rows.node, &[], &new).await;
    let (mut after, mut seen, mut pages) = (0, Vec::new(), 0);
    // Forty of about 100 KB.
    loop {
        let page = rows.store.executors(&Offering::default(), after, 100).await.unwrap();
        pages += 1;
        let bytes: usize = page.items.iter().flat_map(|e| &e.handlers).map(|h| h.name.len()).sum();
        assert!(bytes <= 2 << 20, "{bytes}");
        seen.extend(page.items.into_iter().map(|executor| executor.executor_id));
        if !page.more {
            break;
        }
        after = i64::try_from(seen.len()).unwrap();
    }
    assert_eq!(seen, (1..=40).map(executor_id).collect::<Vec<_>>());
    assert!(pages > 1, "they are bounded in bytes");

    let mut seen: Vec<(String, String)> = Vec::new();
    loop {
        let last = seen.last().cloned().unwrap_or_default();
        let page = rows.store.handlers(&Offering::default(), (&last.0, &last.1), 300).await;
        let page = page.unwrap();
        seen.extend(page.items.into_iter().map(|handler| (handler.namespace, handler.name)));
        if !page.more {
            break;
        }
    }
    assert!(seen.is_sorted() && seen.len() == 1001, "{}", seen.len());
    assert_eq!(seen[0], ("default".to_owned(), "h".to_owned()));
}

#[tokio::test]
async fn a_handler_is_told_with_its_executors_and_whether_it_is_used() {
    let rows = Rows::new().await;
    rows.define("a").await;
    // The first offers one handler twice, for two ranges: its slots count once.
    write(&rows, rows.node, &[], &[(1, "default", &["h", "h"]), (2, "default", &["h", "x"])]).await;
    write(&rows, rows.node, &[ExecutorState { draining: true, ..state(2) }], &[]).await;
    let page = rows.store.handlers(&Offering::default(), ("", ""), 100).await.unwrap();
    let told: Vec<_> = page.items.iter().map(|h| (h.name.as_str(), h.executors, h.slots)).collect();
    assert_eq!(told, [("h", 1, 5), ("x", 0, 0)], "one that drains takes no steps");
    let h = &page.items[0];
    assert_eq!((h.slots_used, h.used, page.items[1].used), (2, true, false));
    assert_eq!(h.definition_versions, [">=1, <2"]);
    let wanted = Offering { handler: "x".into(), ..Offering::default() };
    assert_eq!(rows.store.handlers(&wanted, ("", ""), 100).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn an_executor_is_told_to_stop_once_and_stays_so() {
    let rows = Rows::new().await;
    write(&rows, rows.node, &[], &[(7, "shop", &["pay"])]).await;
    assert_eq!(rows.store.stop_executor(8, "enough").await.unwrap(), None);
    let (one, other) =
        tokio::join!(rows.store.stop_executor(7, "enough"), rows.store.stop_executor(7, "enough"));
    let mut told = [one.unwrap(), other.unwrap()];
    told.sort_unstable();
    assert_eq!(told, [Some(false), Some(true)]);
    let mut writer = rows.writer().await;
    let signals = writer.signals(&[rows.node]).await.unwrap();
    assert_eq!(signals.len(), 1);
    assert_eq!(
        (signals[0].session, signals[0].stop, signals[0].reason.as_str()),
        (7, true, "enough")
    );
    // Its node, which has not heard of it yet, writes what it knows.
    assert_eq!(write(&rows, rows.node, &[state(7)], &[]).await, [7]);
    assert!(rows.store.executor(7).await.unwrap().unwrap().draining);
    writer.retire_node(rows.node).await.unwrap();
    assert_eq!(rows.store.stop_executor(7, "enough").await.unwrap(), None, "its node is gone");
}
