//! The log of one task: told whole and in pages, however old the task is, and what is said when it is kept no longer.

use std::{collections::HashMap, time::Duration};

use sqlx::{
    Row,
    types::chrono::{DateTime, Utc},
};
use stepwell_proto::v1::{ActorKind, State, Transition};
use stepwell_store::{Ending, EventRow, Keep, Move, Transitions, Writer, migrate};
use stepwell_tests::{Rows, cut_log};

use super::operate::{FAILS, RESOLVE, RETRY, Run, note};

/// All pages of so many.
async fn told(run: &Run, which: &Transitions, size: i32) -> Vec<Transition> {
    let (mut all, mut beyond) = (Vec::new(), None);
    loop {
        let page = run.rows.store.transitions(run.uid, which, beyond, size).await.unwrap().unwrap();
        assert!(page.transitions.len() <= usize::try_from(size).unwrap());
        all.extend(page.transitions);
        beyond = page.next;
        if beyond.is_none() {
            return all;
        }
    }
}

/// A task that went through much: two steps failed and were tried again, one was resolved, one cancelled.
async fn busy() -> Run {
    let mut run = Run::of("a; b: a; c: a; d: b; e; f: e").await;
    let later = Ending::Fail { wait_ms: Some(0) };
    run.run(&[(0, Ending::Complete), (4, later)]).await;
    run.run(&[(4, Ending::HandBack), (1, FAILS)]).await;
    run.moves(1, RETRY).await;
    run.run(&[(1, FAILS)]).await;
    run.moves(1, RESOLVE).await;
    run.moves(5, Move::Cancel).await;
    run.rows.store.pause_tasks(&[run.uid], true, &note()).await.unwrap();
    run.rows.store.pause_tasks(&[run.uid], false, &note()).await.unwrap();
    run.run(&[(3, Ending::Complete)]).await;
    run.rows.cancel(run.uid).await;
    run.check().await;
    run
}

/// Its rows of the log, straight from the table.
async fn log(run: &Run) -> Vec<EventRow> {
    let rows = run.rows.store.read_after(0, 10_000).await.unwrap();
    rows.into_iter().filter(|row| row.task == run.key).collect()
}

fn us(of: &prost_types::Duration) -> i64 {
    of.seconds * 1_000_000 + i64::from(of.nanos) / 1_000
}

#[tokio::test]
async fn every_transition_is_told_once_with_what_was_before_it_in_pages_of_any_size_and_backwards()
{
    let run = busy().await;
    let rows = log(&run).await;
    let moves: Vec<&EventRow> =
        rows.iter().filter(|row| row.from_state != Some(row.to_state)).collect();
    assert_eq!(rows.len() - moves.len(), 2, "it was paused and resumed");
    let forwards = Transitions::default();
    let whole = told(&run, &forwards, 1_000).await;
    let positions: Vec<i64> = whole.iter().map(|of| of.position).collect();
    assert_eq!(positions, moves.iter().map(|row| row.position).collect::<Vec<_>>());
    let created = moves[0].at;
    let mut last: HashMap<Option<i32>, &EventRow> = HashMap::new();
    for (of, row) in whole.iter().zip(&moves) {
        let before = last.insert(row.no, row);
        let since = match before {
            Some(before) => Some((row.at - before.at).num_microseconds().unwrap()),
            // The task's own first has none; a step is created with its task.
            None => row.no.map(|_| (row.at - created).num_microseconds().unwrap()),
        };
        let known = of.since_previous.as_ref().map(us);
        let near = known.zip(since).is_none_or(|(known, since)| (known - since).abs() < 50_000);
        assert!(known.is_some() == since.is_some() && near, "{of:?}: {since:?}");
        let had_lease = row.no.is_some() && matches!(row.r#type, 40 | 41 | 42 | 44);
        assert_eq!(had_lease, of.actor_kind() == ActorKind::Executor, "{of:?}");
        assert_eq!(had_lease, of.actor == "0-7", "{of:?}");
    }
    let backwards = Transitions { newest_first: true, ..Transitions::default() };
    for size in [1, 2, 3, 7] {
        assert_eq!(told(&run, &forwards, size).await, whole, "pages of {size}");
        let mut reversed = told(&run, &backwards, size).await;
        reversed.reverse();
        assert_eq!(reversed, whole, "backwards, pages of {size}");
    }
    let with_changes = Transitions { changes: true, ..Transitions::default() };
    assert_eq!(told(&run, &with_changes, 5).await.len(), rows.len());
}

#[tokio::test]
async fn a_filter_picks_out_a_step_the_task_alone_states_attempts_and_times() {
    let run = busy().await;
    let whole = told(&run, &Transitions::default(), 1_000).await;
    for number in 0..6 {
        let of_step = Transitions { step: Some(number), ..Transitions::default() };
        let told = told(&run, &of_step, 2).await;
        assert_eq!(told[0].event, "step.initialize_requested");
        let id = stepwell_proto::id::step_id(&run.uid.to_string(), number);
        assert!(told.iter().all(|of| of.step_id == id), "{told:?}");
        let others: Vec<_> = whole.iter().filter(|of| of.step_id == id).cloned().collect();
        assert_eq!(told[1..], others, "and its creation");
    }
    let alone = Transitions { only_task: true, ..Transitions::default() };
    let alone = told(&run, &alone, 2).await;
    let own: Vec<_> = whole.iter().filter(|of| of.step_id.is_empty()).cloned().collect();
    assert_eq!(alone, own);
    let failed =
        Transitions { to_states: vec![State::Error, State::Cancelled], ..Transitions::default() };
    let failed = told(&run, &failed, 2).await;
    let wanted = whole.iter().filter(|of| matches!(of.to_state(), State::Error | State::Cancelled));
    assert_eq!(failed, wanted.cloned().collect::<Vec<_>>());
    let second = Transitions { attempt: Some(2), ..Transitions::default() };
    let second = told(&run, &second, 2).await;
    assert_eq!(second, whole.iter().filter(|of| of.attempt == 2).cloned().collect::<Vec<_>>());
    assert!(!second.is_empty());
    let rows = log(&run).await;
    let (from, until) = (rows[4].at, rows[9].at);
    let between = Transitions { from: Some(from), until: Some(until), ..Transitions::default() };
    let between = told(&run, &between, 2).await.len();
    let moves = rows.iter().filter(|row| row.from_state != Some(row.to_state));
    assert_eq!(between, moves.filter(|row| row.at >= from && row.at < until).count());
    let nobody = Transitions { step: Some(6), ..Transitions::default() };
    assert_eq!(run.rows.store.transitions(run.uid, &nobody, None, 9).await.unwrap(), None);
}

#[tokio::test]
async fn figures_are_those_of_the_transitions_of_the_task_of_a_step_and_of_the_task_alone() {
    let run = busy().await;
    for (step, only_task) in [(None, false), (Some(1), false), (Some(4), false), (None, true)] {
        let which = Transitions { step, only_task, ..Transitions::default() };
        let told = told(&run, &which, 1_000).await;
        let of = run.rows.store.transition_statistics(run.uid, step, only_task).await;
        let of = of.unwrap().unwrap();
        assert_eq!(of.total, i64::try_from(told.len()).unwrap());
        for count in &of.by_state {
            let told = told.iter().filter(|of| of.to_state == count.state).count();
            assert_eq!(count.count, i64::try_from(told).unwrap(), "{:?}", count.state());
        }
        assert_eq!(of.by_state.iter().map(|count| count.count).sum::<i64>(), of.total);
        let retries = told.iter().filter(|of| of.event.ends_with(".retry_requested")).count();
        assert_eq!((of.retries, of.last_day), (i64::try_from(retries).unwrap(), of.total));
        let ends = |of: &&Transition| matches!(&*of.event, "step.completed" | "step.failed");
        let ran = told.iter().filter(ends).filter_map(|of| of.ran_for.as_ref()).map(us);
        let ran: Vec<i64> = ran.collect();
        let mean =
            (!ran.is_empty()).then(|| ran.iter().sum::<i64>() / i64::try_from(ran.len()).unwrap());
        let known = of.average_execution_time.as_ref().map(us);
        assert!(known.is_some() == mean.is_some());
        assert!(known.zip(mean).is_none_or(|(known, mean)| (known - mean).abs() <= 1));
        assert!(of.complete && of.average_time_between.is_some());
        let ends = (told[0].time, told[told.len() - 1].time);
        assert_eq!((of.first_time, of.last_time), ends);
    }
    let nobody = run.rows.store.transition_statistics(run.uid, Some(6), false).await.unwrap();
    assert_eq!(nobody, None);
}

#[tokio::test]
async fn a_page_looks_at_ten_thousand_events_and_says_where_to_go_on_even_if_it_found_nothing() {
    let steps: Vec<String> = (0..10_000).map(|n| format!("s{n}")).collect();
    let run = Run::of(&steps.join(";")).await;
    run.rows.cancel(run.uid).await;
    let failed = Transitions { to_states: vec![State::Error], ..Transitions::default() };
    let page = run.rows.store.transitions(run.uid, &failed, None, 10).await.unwrap().unwrap();
    assert!(page.transitions.is_empty() && page.next.is_some(), "{page:?}");
    let rest = run.rows.store.transitions(run.uid, &failed, page.next, 10).await.unwrap().unwrap();
    assert_eq!((rest.transitions.len(), rest.next), (0, None));
    // Each step was created as long ago as its task, also where that lies far back.
    let last = Transitions { newest_first: true, step: Some(9_999), ..Transitions::default() };
    let told = told(&run, &last, 10).await;
    let words: Vec<_> = told.iter().map(|of| of.description.as_str()).collect();
    assert_eq!(words, ["Step cancelled due to why", "Step initialized and ready for execution"]);
    assert!(told[0].since_previous.is_some());
}

#[tokio::test]
async fn what_is_kept_no_longer_is_missed_and_said_to_be() {
    let rows = Rows::new().await;
    cut_log(&mut rows.connection().await, 100, 10).await;
    let definition = rows.define("a; b").await;
    let mut run = Run::in_rows(rows, definition.clone(), Vec::new()).await;
    run.run(&[(0, Ending::Complete)]).await;
    let page = async |run: &Run| {
        let which = Transitions::default();
        run.rows.store.transitions(run.uid, &which, None, 100).await.unwrap().unwrap()
    };
    let before = page(&run).await;
    assert!(before.complete && before.transitions.len() == 5, "{before:?}");
    run.rows.create_many(&definition, 150).await;
    run.rows
        .execute("update stepwell.event set at = at - interval '2 hours' where position < $1", 100)
        .await;
    let keep = Keep { age: Some(Duration::from_secs(3600)), bytes: None };
    assert_eq!(run.rows.store.drop_old_events(keep).await.unwrap(), 1);
    run.rows.cancel(run.uid).await;
    let after = page(&run).await;
    let told: Vec<_> = after.transitions.iter().map(|of| of.event.as_str()).collect();
    assert_eq!(told, ["step.cancelled", "task.cancelled"]);
    assert!(!after.complete && after.kept_from.is_some() && after.next.is_none());
    assert!(after.transitions.iter().all(|of| of.since_previous.is_none()), "{after:?}");
    let of = run.rows.store.transition_statistics(run.uid, None, false).await.unwrap().unwrap();
    assert!(!of.complete && of.total == 2);
}

#[tokio::test]
async fn figures_are_not_complete_where_none_of_the_last_hundred_thousand_events_counts() {
    let run = Run::of("a").await;
    let known = run.rows.store.transition_statistics(run.uid, Some(0), false).await;
    assert!(known.unwrap().unwrap().complete);
    let changes = "insert into stepwell.event (position, batch, at, task, uid, definition, type, from_state, to_state)
                   select p, p, clock_timestamp(), $1, gen_random_uuid(), 1, 27, 1, 1
                     from generate_series(1001::bigint, 101000) p";
    assert_eq!(run.rows.execute(changes, run.key).await, 100_000);
    for (step, only_task) in [(None, false), (Some(0), false), (None, true)] {
        let of = run.rows.store.transition_statistics(run.uid, step, only_task).await;
        let of = of.unwrap().unwrap();
        assert_eq!((of.total, of.complete), (0, false), "{of:?}");
        assert!(of.by_state.is_empty() && of.first_time.is_none() && of.last_time.is_none());
    }
}

#[tokio::test]
async fn texts_that_are_beyond_a_page_are_not_fetched() {
    let mut run = Run::of("a; b; c; d").await;
    run.run(&[(0, FAILS), (1, FAILS), (2, FAILS), (3, FAILS)]).await;
    let longer = "update stepwell.event set text = rpad(text, 1000) where task = $1 and type = 42";
    assert_eq!(run.rows.execute(longer, run.key).await, 4);
    let page = async |bytes: i64| -> Vec<(Option<i32>, bool)> {
        let states: [i16; 1] = [4];
        let rows = sqlx::query(LOOK)
            .bind(run.key)
            .bind(0_i64)
            .bind(i64::MAX)
            .bind(false)
            .bind(100_i64)
            .bind(false)
            .bind(None::<i32>)
            .bind(false)
            .bind(&states[..])
            .bind(None::<i32>)
            .bind(None::<DateTime<Utc>>)
            .bind(None::<DateTime<Utc>>)
            .bind(bytes)
            .bind(4_i64)
            .fetch_all(&mut run.rows.connection().await)
            .await
            .unwrap();
        let of = |row: &sqlx::postgres::PgRow| {
            let text: Option<String> = row.get("text?");
            (text.map(|text| i32::try_from(text.len()).unwrap()), row.get("over?"))
        };
        rows.iter().map(of).collect()
    };
    let (told, left) = ((Some(1000), false), (None, true));
    assert_eq!(page(2_500).await, [told, told, left, left]);
    assert_eq!(page(10).await, [(Some(1000), true), left, left, left], "one in any case");
}

/// Blocks that the statement of a page of this task touches.
async fn touched(writer: &mut Writer, run: &Run, backwards: bool, looked_at: i64) -> i64 {
    let (key, first) = (run.key, 0);
    let explained = format!(
        "explain (analyze, buffers, costs off, timing off)
         execute look({key}, {first}, {}, {backwards}, {looked_at}, false, null, false, '{{}}', null, null, null, 1048576, 100)",
        i64::MAX
    );
    let plan: Vec<String> = sqlx::raw_sql(sqlx::AssertSqlSafe(explained))
        .fetch_all(writer.connection())
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let buffers = plan.iter().find_map(|line| line.trim().strip_prefix("Buffers: shared "));
    let counts = buffers.unwrap_or_else(|| panic!("{plan:#?}")).split_whitespace();
    let counts = counts.filter_map(|part| part.strip_prefix("hit=").or(part.strip_prefix("read=")));
    counts.map(|n| n.parse::<i64>().unwrap()).sum()
}

const LOOK: &str = include_str!("../../services/store/src/transition/look.sql");

#[tokio::test]
async fn the_log_of_an_old_task_among_a_million_events_is_found_in_as_few_blocks_as_of_a_new_one() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a; c: b").await;
    let mut old = Run::in_rows(rows, definition.clone(), Vec::new()).await;
    let mut reader = old.rows.writer().await;
    // Its plan is made while the log is empty, and known to be.
    let prepared = format!(
        "vacuum analyze stepwell.event; \
         prepare look(bigint, bigint, bigint, bool, bigint, bool, int, bool, smallint[], int, timestamptz, timestamptz, bigint, bigint) as {LOOK}"
    );
    for statement in prepared.splitn(2, "; ") {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(reader.connection()).await.unwrap();
    }
    touched(&mut reader, &old, false, 300).await;
    old.run(&[(0, FAILS)]).await;
    // Others came meanwhile, a million events of a thousand tasks.
    let others = "insert into stepwell.event (position, batch, at, task, uid, definition, type, from_state, to_state)
                  select p, p, clock_timestamp(), 1000000 + p % 1000, gen_random_uuid(), 1, 27, 1, 1
                    from generate_series(1001::bigint, 1001000) p where $1 > 0";
    old.rows.execute(others, 1).await;
    old.rows.one::<i64>("select setval('stepwell.position', 1002000) where $1 > 0", 1).await;
    old.moves(0, RETRY).await;
    old.run(&[(0, Ending::Complete)]).await;
    for backwards in [false, true] {
        let few = touched(&mut reader, &old, backwards, 300).await;
        assert!((1..=120).contains(&few), "{few} blocks, backwards: {backwards}");
        let many = touched(&mut reader, &old, backwards, 10_000).await;
        assert!(many <= few, "it looks at the events of the task alone: {many}, {few}");
    }
    let told = told(&old, &Transitions::default(), 100).await;
    assert_eq!(told.len(), old.log(0).await.len());
}

#[tokio::test]
async fn partitions_that_were_there_before_the_index_get_it_beside_those_who_append() {
    let rows = Rows::new().await;
    cut_log(&mut rows.connection().await, 100, 10).await;
    let definition = rows.define("a").await;
    for _ in 0..3 {
        rows.create_many(&definition, 60).await;
    }
    // As an earlier release left it, and as a migration that was cut off did.
    let earlier = "drop index stepwell.event_task;
                   create index event_task on only stepwell.event (task, (position + 0));
                   create index event_0000000000000000100_task on stepwell.event_0000000000000000100 (task)";
    let mut connection = rows.connection().await;
    sqlx::raw_sql(earlier).execute(&mut connection).await.unwrap();
    let missing = "select count(*) from stepwell.event_partitions() p
                    where not exists (select from pg_index i join pg_inherits h on h.inhrelid = i.indexrelid
                                       where i.indrelid = p.r_id and h.inhparent = 'stepwell.event_task'::regclass
                                         and i.indisvalid and pg_get_indexdef(i.indexrelid) like '%+ 0)))')
                      and $1 = 0";
    assert_eq!(rows.one::<i64>(missing, 0).await, 10);
    // Somebody who appends is not held up.
    let (migrated, ()) = tokio::join!(migrate(&rows.database.url), async {
        for n in 0..200 {
            let append = "insert into stepwell.event (position, batch, at, task, uid, definition, type, from_state, to_state)
                          select 300 + $1, 300 + $1, clock_timestamp(), 7, gen_random_uuid(), 1, 27, 1, 1";
            assert_eq!(rows.execute(append, n).await, 1);
        }
    });
    migrated.unwrap();
    assert_eq!(rows.one::<i64>(missing, 0).await, 0);
    let valid = "select count(*) from pg_index where indexrelid = 'stepwell.event_task'::regclass and indisvalid and $1 = 0";
    assert_eq!(rows.one::<i64>(valid, 0).await, 1);
    // Those to come have it from the beginning, and another migration finds nothing to do.
    migrate(&rows.database.url).await.unwrap();
    assert_eq!(rows.one::<i64>(missing, 0).await, 0);
}
