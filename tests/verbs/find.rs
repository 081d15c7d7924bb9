//! Filters over tasks as the database reads them, beside what they mean said once more: random filters over random
//! tasks, in every order, in pages of every size.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use sqlx::types::chrono::{DateTime, Utc};
use stepwell_filter::{Compare, Expr, Flag, Moment, Pattern, Text, Time};
use stepwell_proto::v1::{self, ExecutionStatus, Health, State};
use stepwell_store::{Ending, Filter, Note, Order};
use stepwell_tests::{Rows, complete, new_task, report};
use uuid::Uuid;

use super::bulk::{filter, walk};

/// A task with all that a filter may ask.
struct Kept {
    task: v1::Task,
    annotations: BTreeMap<String, String>,
    context: v1::TaskContext,
}

const TEXTS: [&str; 9] =
    ["a", "ab", "ba", "aba", "b.c", "'; drop table stepwell.task; --", "ü\"\\*\n$", "%", ""];
const BEGAN: i64 = 1_700_000_000_000_000;

fn moment(at: Option<prost_types::Timestamp>) -> Option<DateTime<Utc>> {
    let at = at?;
    DateTime::from_timestamp(at.seconds, at.nanos.unsigned_abs())
}

/// Tasks in every state, each different.
async fn many(rows: &Rows) -> Vec<Kept> {
    let mut writer = rows.writer().await;
    let note = Note::new("who", "why");
    for (namespace, name, version) in [
        ("a", "ab", "1.0.0"),
        ("a", "ba", "1.10.0"),
        ("ab", "ab", "2.0.0"),
        ("b.c", "aba", "10.0.0"),
    ] {
        let definition = rows
            .define_with("a; b; c: b", |it| {
                (it.namespace, it.name, it.version) =
                    (namespace.into(), name.into(), version.into());
            })
            .await;
        let mut tasks = Vec::new();
        for n in 0..16 {
            let mut task = [new_task(&definition)];
            task[0].tags = TEXTS[..n % 4].iter().map(|&tag| tag.to_owned()).collect();
            task[0].priority = i16::try_from(n % 6).ok().filter(|n| *n > 0);
            writer.create_tasks(&rows.store, &mut task).await.unwrap();
            tasks.push(task[0].uid);
        }
        // Both roots of the first eight; the others wait. Four of them end in error.
        let leases = rows.claim(&mut writer, definition.queues[0], 16).await;
        let mut ended = Vec::new();
        for (n, lease) in leases.iter().enumerate() {
            ended.extend(match n {
                0..8 if n % 2 == 0 => Some(complete(lease, "1")),
                0..8 | 8 | 11 => Some(report(lease, Ending::Fail { wait_ms: None }, "{}")),
                9 | 12 => Some(report(lease, Ending::Fail { wait_ms: Some(3_600_000) }, "{}")),
                13 => Some(complete(lease, "1")),
                _ => None,
            });
        }
        rows.settle(&mut writer, &ended).await;
        rows.store.resolve_tasks(&tasks[..2], &note).await.unwrap();
        rows.store.cancel_tasks(&tasks[9..11], false, &note).await.unwrap();
        for uid in &tasks[7..9] {
            rows.store.pause_tasks(&[*uid], true, &note).await.unwrap();
        }
        // One is done as a whole.
        for number in 0..3 {
            let resolve = stepwell_store::Move::Resolve { result: None };
            rows.store.move_step(tasks[12], number, &resolve, &note).await.unwrap().unwrap();
        }
    }
    // Tasks of one moment, and what no call changes.
    let mut connection = rows.connection().await;
    for sql in [
        "update stepwell.task_detail d
            set created_at = timestamptz '2023-11-14 22:13:20Z' + n / 3 * interval '1 s' + n / 3 % 2 * interval '1 us',
                initiator = t[1 + n % 9], source_system = t[1 + n % 7], reason = t[1 + n % 8],
                correlation_id = 'c' || n % 10,
                annotations = case n % 3 when 0 then '{}'::jsonb when 1 then jsonb_build_object(t[1 + n % 5], t[1 + n % 4])
                                         else jsonb_build_object('k', t[1 + n % 9], 'b.c', 'x') end
           from (select task, (row_number() over (order by task) - 1)::int n, $1::text[] t from stepwell.task_detail) s
          where d.task = s.task and $1::text[] is not null",
        "insert into stepwell.task_annotation
         select key, value, task from stepwell.task_detail, jsonb_each_text(annotations) where $1::text[] is not null",
        "update stepwell.task t
            set finished_at = case when finished_at is not null then d.created_at + id % 7 * interval '1 s' end,
                started_at = case when started_at is not null then d.created_at + interval '1 s' end,
                deadline = case when id % 5 = 0 then d.created_at + interval '1 h' end, held = id % 6 = 0
           from stepwell.task_detail d where d.task = t.id and $1::text[] is not null",
    ] {
        sqlx::query(sql)
            .bind(TEXTS.map(str::to_owned).to_vec())
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let tasks = walk(rows, &Filter::default(), Order::CreateDesc, 1000, async |_| {}).await;
    let uids: Vec<Uuid> = tasks.iter().map(|task| task.task_id.parse().unwrap()).collect();
    let mut contexts = rows.store.task_contexts(&uids).await.unwrap();
    let mut kept = Vec::new();
    for (task, uid) in tasks.into_iter().zip(uids) {
        let text: String = sqlx::query_scalar(
            "select annotations::text from stepwell.task_detail
              where task = (select id from stepwell.task where uid = $1)",
        )
        .bind(uid)
        .fetch_one(&mut connection)
        .await
        .unwrap();
        let annotations = serde_json::from_str(&text).unwrap();
        kept.push(Kept { task, annotations, context: contexts.remove(&uid).unwrap() });
    }
    kept
}

/// What a filter means.
fn fits(expr: &Expr, it: &Kept) -> bool {
    let task = &it.task;
    let like = |pattern: &Pattern, text: &str| match (pattern.open_start, pattern.open_end) {
        (false, false) => text == pattern.text,
        (false, true) => text.starts_with(&pattern.text),
        (true, false) => text.ends_with(&pattern.text),
        (true, true) => text.contains(&pattern.text),
    };
    let compared = |of: std::cmp::Ordering, compare: Compare| match compare {
        Compare::Below => of.is_lt(),
        Compare::AtMost => of.is_le(),
        Compare::Is => of.is_eq(),
        Compare::AtLeast => of.is_ge(),
        Compare::Above => of.is_gt(),
    };
    let time = |time: &Time| {
        moment(match time {
            Time::Create => task.create_time,
            Time::Start => task.start_time,
            Time::End => task.end_time,
            Time::Deadline => task.deadline,
        })
    };
    match expr {
        Expr::And(parts) => parts.iter().all(|part| fits(part, it)),
        Expr::Or(parts) => parts.iter().any(|part| fits(part, it)),
        Expr::Not(part) => !fits(part, it),
        Expr::Id(id) => task.task_id == id.to_string(),
        Expr::State(state) => task.state() == *state,
        Expr::Text(text, pattern) => like(
            pattern,
            match text {
                Text::Namespace => &task.namespace,
                Text::DefinitionName => &task.definition_name,
                Text::DefinitionVersion => &task.definition_version,
                Text::Initiator => &task.initiator,
                Text::SourceSystem => &task.source_system,
                Text::Reason => &task.reason,
                Text::CorrelationId => &task.correlation_id,
            },
        ),
        Expr::Tag(pattern) => task.tags.iter().any(|tag| like(pattern, tag)),
        Expr::Annotation(key, pattern) => {
            it.annotations.get(key).is_some_and(|value| like(pattern, value))
        }
        Expr::Priority(compare, n) => compared(i64::from(task.priority).cmp(n), *compare),
        Expr::Time(of, compare, Moment::At(at)) => {
            time(of).is_some_and(|time| compared(time.cmp(at), *compare))
        }
        Expr::Time(_, _, Moment::Ago(_)) => panic!("when is that?"),
        Expr::Set(of) => time(of).is_some(),
        Expr::Flag(Flag::Paused, is) => task.paused == *is,
        Expr::Flag(Flag::Held, is) => task.held == *is,
        Expr::Status(status) => it.context.execution_status() == *status,
        Expr::Health(health) => it.context.health() == *health,
    }
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let text =
        prop_oneof![4 => prop::sample::select(TEXTS.to_vec()), 1 => Just("c"), 1 => Just("*")];
    (text, any::<bool>(), any::<bool>()).prop_map(|(text, open_start, open_end)| {
        if text.is_empty() && (open_start || open_end) {
            return Pattern::any();
        }
        Pattern { text: text.to_owned(), open_start, open_end }
    })
}

fn leaf(ids: Vec<Uuid>) -> impl Strategy<Value = Expr> {
    use Compare::{Above, AtLeast, AtMost, Below, Is};
    let compare = || prop::sample::select(vec![Below, AtMost, Is, AtLeast, Above]);
    let at = (0..25_i64, 0..3_i64).prop_map(|(second, micro)| {
        DateTime::from_timestamp_micros(BEGAN + second * 1_000_000 + micro).unwrap()
    });
    let texts = vec![
        Text::Namespace,
        Text::DefinitionName,
        Text::Initiator,
        Text::SourceSystem,
        Text::Reason,
    ];
    prop_oneof![
        2 => prop::sample::select(ids).prop_map(Expr::Id),
        4 => (1..=6).prop_map(|n| Expr::State(State::try_from(n).unwrap())),
        4 => (prop::sample::select(texts), pattern()).prop_map(|(text, like)| Expr::Text(text, like)),
        1 => ("1{0,1}[.0]{0,2}", any::<bool>(), any::<bool>()).prop_map(|(text, open_start, open_end)| {
            let like = if text.is_empty() { Pattern::any() } else { Pattern { text, open_start, open_end } };
            Expr::Text(Text::DefinitionVersion, like)
        }),
        2 => (0..12).prop_map(|n| Expr::Text(Text::CorrelationId, Pattern::exact(format!("c{n}")))),
        3 => pattern().prop_map(Expr::Tag),
        3 => (prop::sample::select(vec!["k", "b.c", "a", "ab", "ü\"\\*\n$"]), pattern())
            .prop_map(|(key, like)| Expr::Annotation(key.to_owned(), like)),
        1 => (compare(), 0..7_i64).prop_map(|(compare, n)| Expr::Priority(compare, n)),
        4 => (prop::sample::select(Time::ALL.to_vec()), compare(), at)
            .prop_map(|(time, compare, at)| Expr::Time(time, compare, Moment::At(at))),
        1 => prop::sample::select(Time::ALL.to_vec()).prop_map(Expr::Set),
        1 => (prop::sample::select(Flag::ALL.to_vec()), any::<bool>())
            .prop_map(|(flag, is)| Expr::Flag(flag, is)),
    ]
}

fn expr(ids: Vec<Uuid>) -> impl Strategy<Value = Expr> {
    let part = leaf(ids).prop_recursive(3, 10, 3, |inner| {
        let several = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            several.clone().prop_map(Expr::And),
            several.prop_map(Expr::Or),
            inner.prop_map(|part| Expr::Not(Box::new(part))),
        ]
    });
    let status = (1..=10).prop_map(|n| Expr::Status(ExecutionStatus::try_from(n).unwrap()));
    let health = (1..=3).prop_map(|n| Expr::Health(Health::try_from(n).unwrap()));
    prop_oneof![
        4 => part.clone(),
        1 => (part.clone(), prop::collection::vec(status, 2..4))
            .prop_map(|(part, some)| Expr::And(vec![Expr::Or(some), part])),
        1 => (part, health).prop_map(|(part, one)| Expr::And(vec![part, Expr::Not(Box::new(one))])),
    ]
}

fn ordered(mut tasks: Vec<&Kept>, order: Order) -> Vec<String> {
    // As they come they are the newest first.
    tasks.reverse();
    if matches!(order, Order::End | Order::EndDesc) {
        tasks.retain(|it| it.task.end_time.is_some());
        tasks.sort_by_key(|it| moment(it.task.end_time));
    }
    if matches!(order, Order::CreateDesc | Order::EndDesc) {
        tasks.reverse();
    }
    tasks.iter().map(|it| it.task.task_id.clone()).collect()
}

#[test]
fn any_filter_finds_in_any_order_and_page_by_page_what_a_look_at_every_task_finds() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let rows = runtime.block_on(Rows::new());
    let all = runtime.block_on(many(&rows));
    let of = |state: State| all.iter().filter(|it| it.task.state() == state).count();
    for state in (1..=6).map(|n| State::try_from(n).unwrap()) {
        assert!(of(state) >= 4, "{state:?}");
    }
    let ids: Vec<Uuid> = all.iter().map(|it| it.task.task_id.parse().unwrap()).collect();
    let orders = vec![Order::CreateDesc, Order::Create, Order::EndDesc, Order::End];
    let cases =
        (expr(ids), prop::sample::select(orders), prop::sample::select(vec![1, 3, 20, 100]));
    let told = OnceLock::new();
    let mut runner =
        TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let mut found = std::cell::Cell::new(0);
    let ran = runner.run(&cases, |(expr, order, size)| {
        let written = expr.to_string();
        let meant = filter(&written);
        let expected: Vec<&Kept> = all.iter().filter(|it| fits(&expr, it)).collect();
        let (n, expected_order) = (expected.len(), ordered(expected, order));
        let listed = runtime.block_on(walk(&rows, &meant, order, size, async |_| {}));
        let listed: Vec<String> = listed.into_iter().map(|task| task.task_id).collect();
        prop_assert_eq!(listed, expected_order, "{} {:?} {}", written, order, meant.to_text());
        let counted = rows.store.count_tasks(&meant, 1000, Duration::from_secs(60));
        let counted = runtime.block_on(counted).unwrap();
        if !meant.is_derived() {
            prop_assert_eq!((counted.tasks, counted.at_least), (n as i64, false), "{}", written);
        }
        if (1..all.len()).contains(&n) {
            found.set(found.get() + 1);
            told.get_or_init(|| written.clone());
        }
        Ok(())
    });
    ran.unwrap();
    assert!(*found.get_mut() > 60, "filters tell tasks apart: {found:?}, {told:?}");
}

#[tokio::test]
async fn tags_that_were_changed_lead_to_their_task_and_those_it_had_do_not() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut writer = rows.writer().await;
    let mut task = [new_task(&definition)];
    task[0].tags = vec!["a".into(), "b".into(), "a".into()];
    writer.create_tasks(&rows.store, &mut task).await.unwrap();
    let found = async |tag: &str| {
        let meant = filter(&format!("tags:{tag}"));
        walk(&rows, &meant, Order::CreateDesc, 10, async |_| {}).await.len()
    };
    assert_eq!((found("a").await, found("b").await, found("c").await), (1, 1, 0));
    let change = "select stepwell.update_task($1, null, $2, null, '{}')";
    for (tags, left) in
        [(vec!["b", "c", "c"], (0, 1, 1)), (vec![], (0, 0, 0)), (vec!["a"], (1, 0, 0))]
    {
        sqlx::query(change)
            .bind(task[0].uid)
            .bind(tags.iter().map(|&tag| tag.to_owned()).collect::<Vec<String>>())
            .execute(&mut rows.connection().await)
            .await
            .unwrap();
        assert_eq!((found("a").await, found("b").await, found("c").await), left);
    }
    stepwell_tests::check(&mut rows.connection().await).await;
}

#[tokio::test]
async fn a_walk_by_keys_goes_on_by_times_where_it_was_when_what_leads_it_has_changed() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let keys = rows.create_many(&definition, 9).await;
    let later = "update stepwell.task_detail set created_at = timestamptz '2023-11-14 22:13:20Z' + task * interval '1 s'
                  where task > $1";
    assert_eq!(rows.execute(later, 0).await, 9);
    let next = async |order: i32, key: i64| -> (Vec<i64>, Option<i64>) {
        let sql = "select m_task, m_next from
                   stepwell.match_tasks('{\"created_until\": \"2100-01-01\"}', $1, null, $2, 10000, 100, 0, null)";
        let query = sqlx::query_as(sql).bind(order).bind(key);
        query.fetch_one(&mut rows.connection().await).await.unwrap()
    };
    let below: Vec<i64> = keys[..4].iter().rev().copied().collect();
    assert_eq!(next(1, keys[4]).await, (below.clone(), None));
    assert_eq!(next(2, keys[4]).await, (keys[5..].to_vec(), None));
    // The task that it came to may be gone meanwhile.
    assert_eq!(rows.execute("delete from stepwell.task_detail where task = $1", keys[4]).await, 1);
    assert_eq!(next(1, keys[4]).await, (below, None));
    assert_eq!(next(2, keys[4]).await, (keys[5..].to_vec(), None));
    assert_eq!(next(1, keys[0]).await, (Vec::new(), None));
    assert_eq!(next(2, keys[8]).await, (Vec::new(), None));
}

#[tokio::test]
async fn how_tasks_stand_is_looked_at_for_as_many_as_have_the_steps_that_may_be() {
    let rows = Rows::new().await;
    let definition = rows.define("a; b: a; c: b").await;
    let keys = rows.create_many(&definition, 7).await;
    let sql = "select m_task, m_next from
               stepwell.match_tasks('{\"healths\": [\"healthy\"]}', 1, null, $1, 10000, 100, $2, null)";
    for (steps, each) in [(0, 1), (3, 1), (8, 2), (9, 3), (100, 7)] {
        let (mut after, mut seen) = (None::<i64>, Vec::new());
        loop {
            let (tasks, next): (Vec<i64>, Option<i64>) = sqlx::query_as(sql)
                .bind(after)
                .bind(steps)
                .fetch_one(&mut rows.connection().await)
                .await
                .unwrap();
            assert!(tasks.len() == each || next.is_none(), "{steps}: {tasks:?}");
            seen.extend(tasks);
            let Some(next) = next else { break };
            after = Some(next);
        }
        assert_eq!(seen, keys.iter().rev().copied().collect::<Vec<_>>(), "{steps}");
    }
}
