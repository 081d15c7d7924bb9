//! How a task stands, as people are told it.

use std::collections::BTreeMap;

use serde_json::json;
use stepwell_client::{Client, Error, Executor, HandlerError, Start, v1};
use stepwell_proto::id::step_id;
use stepwell_suite::PostgresOptions;
use stepwell_tests::{World, check, until};

use super::cli::stepwell;

/// Two roots, and a chain behind the second.
const FOUR: &str = "
name: four
steps:
  - {name: one}
  - {name: two}
  - {name: three, depends_on: [two]}
  - {name: four, depends_on: [three]}
";

/// A world without executors, and a fresh task in it.
async fn fresh() -> (World, String) {
    let world = World::start().await;
    world.define(FOUR).await;
    let task_id = world.create("four", &json!({})).await.task_id;
    (world, task_id)
}

async fn context(client: &Client, task_id: &str) -> v1::TaskContext {
    let request = v1::GetTaskContextRequest { task_id: task_id.into() };
    client.get_task_context(request).await.unwrap().context.unwrap()
}

async fn summary(client: &Client, task_id: &str) -> v1::TaskSummary {
    let request = v1::GetTaskSummaryRequest { task_id: task_id.into() };
    client.get_task_summary(request).await.unwrap().summary.unwrap()
}

async fn graph(client: &Client, task_id: &str) -> v1::TaskGraph {
    let request = v1::GetTaskGraphRequest { task_id: task_id.into() };
    client.get_task_graph(request).await.unwrap().graph.unwrap()
}

/// All pages, of so many steps each.
async fn readiness(client: &Client, task_id: &str, page_size: i32) -> Vec<v1::StepReadiness> {
    let (mut steps, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            v1::ListStepReadinessRequest { task_id: task_id.into(), page_size, page_token };
        let page = client.list_step_readiness(request).await.unwrap();
        assert!(page.steps.len() <= usize::try_from(page_size).unwrap());
        steps.extend(page.steps);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return steps;
        }
    }
}

fn names(steps: &[v1::StepRef]) -> Vec<&str> {
    steps.iter().map(|step| step.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_of_a_fresh_task_says_whether_it_is_ready_and_what_it_waits_for() {
    let (world, task_id) = fresh().await;
    let steps = readiness(&world.client, &task_id, 1000).await;
    assert_eq!(steps.len(), 4);
    for (number, (step, name)) in (0..).zip(steps.iter().zip(["one", "two", "three", "four"])) {
        let of = step.step.as_ref().unwrap();
        let id = step_id(&task_id, number);
        assert_eq!((of.step_id.as_str(), of.number, of.name.as_str()), (id.as_str(), number, name));
        assert_eq!((step.attempt, step.max_attempts, step.attempts_left), (0, 3, 3));
        assert!(step.retry_eligible && step.next_attempt_time.is_none());
    }
    let parents: Vec<_> =
        steps.iter().map(|step| (step.total_parents, step.completed_parents)).collect();
    assert_eq!(parents, [(0, 0), (0, 0), (1, 0), (1, 0)]);
    for root in &steps[..2] {
        assert!(root.ready && root.dependencies_satisfied && root.obstacles.is_empty());
        assert_eq!(root.standing(), v1::Standing::Ready);
    }
    for (dependant, parent) in steps[2..].iter().zip(["two", "three"]) {
        assert!(!dependant.ready && !dependant.dependencies_satisfied);
        assert_eq!(dependant.standing(), v1::Standing::Waiting);
        let kinds: Vec<_> = dependant.obstacles.iter().map(v1::Obstacle::kind).collect();
        assert_eq!(kinds, [v1::ObstacleKind::Parents]);
        assert_eq!(dependant.obstacles[0].parents, [parent]);
    }
    assert_eq!(readiness(&world.client, &task_id, 3).await, steps, "page by page too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_graph_of_a_task_has_each_edge_from_both_sides_and_how_deep_each_step_lies() {
    let (world, task_id) = fresh().await;
    let steps = "[{name: d, depends_on: [a, c]}, {name: a}, {name: b, depends_on: [a]}, \
                  {name: c, depends_on: [b]}]";
    world.define(&format!("{{name: skew, steps: {steps}}}")).await;
    let of = graph(&world.client, &task_id).await;
    assert_eq!(
        (of.task_id.as_str(), of.state(), of.steps.len()),
        (&*task_id, v1::State::Pending, 4)
    );
    let around: Vec<_> = of.steps.iter().map(|s| (&s.parents[..], &s.children[..])).collect();
    assert_eq!(
        around,
        [(&[][..], &[][..]), (&[], &[2]), (&[1], &[3]), (&[2], &[])] as [(&[i32], &[i32]); 4]
    );
    for step in &of.steps {
        let counts = (step.parents.len(), step.children.len());
        let told = (step.parent_count, step.child_count);
        assert_eq!(told, (i32::try_from(counts.0).unwrap(), i32::try_from(counts.1).unwrap()));
        assert_eq!((step.is_root, step.is_leaf), (counts.0 == 0, counts.1 == 0));
        assert_eq!((step.is_root, step.is_root), (step.level == 0, step.distance == 0));
    }
    let depths: Vec<_> = of.steps.iter().map(|step| (step.level, step.distance)).collect();
    assert_eq!(depths, [(0, 0), (0, 0), (1, 1), (2, 2)]);
    let edges: Vec<_> = of.edges.iter().map(|edge| (edge.parent, edge.child)).collect();
    assert_eq!(edges, [(1, 2), (2, 3)]);

    // The longest way is the level, the shortest the distance.
    let skew = world.create("skew", &json!({})).await.task_id;
    let of = graph(&world.client, &skew).await;
    assert_eq!((of.steps[0].level, of.steps[0].distance), (3, 1));
    let levels: Vec<&[i32]> = of.levels.iter().map(|level| level.steps.as_slice()).collect();
    assert_eq!(levels, [&[1], &[2], &[3], &[0]] as [&[i32]; 4]);
    assert_eq!(of.longest_path, [1, 2, 3, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_counts_of_a_fresh_task_add_up_and_its_summary_has_every_list_and_writes_nothing() {
    let (world, task_id) = fresh().await;
    let before = world.rows().await;
    let is = context(&world.client, &task_id).await;
    let wanted = v1::TaskContext {
        task_id: task_id.clone(),
        state: v1::State::Pending.into(),
        total_steps: 4,
        pending_steps: 4,
        ready_steps: 2,
        waiting_steps: 2,
        execution_status: v1::ExecutionStatus::HasReadySteps.into(),
        recommended_action: v1::RecommendedAction::ExecuteReadySteps.into(),
        health: v1::Health::Healthy.into(),
        ..v1::TaskContext::default()
    };
    assert_eq!(is, wanted);
    let of = summary(&world.client, &task_id).await;
    assert_eq!(of.context.as_ref(), Some(&wanted));
    assert_eq!((of.root_step_count, names(&of.root_steps)), (2, vec!["one", "two"]));
    assert_eq!(names(&of.next_executable_steps), ["one", "two"]);
    assert_eq!(of.next_executable_steps[1].step_id, step_id(&task_id, 1));
    assert!(of.blocked_steps.is_empty());
    assert_eq!(
        (of.processing_strategy(), of.batch_size),
        (v1::ProcessingStrategy::SmallParallel, 2)
    );

    let resolve = |number| v1::ResolveStepRequest {
        step_id: step_id(&task_id, number),
        ..v1::ResolveStepRequest::default()
    };
    assert_eq!(world.rows().await, before);
    world.client.resolve_step(resolve(0)).await.unwrap();
    let of = summary(&world.client, &task_id).await;
    let is = of.context.clone().unwrap();
    assert_eq!((is.complete_steps, is.resolved_steps, is.completion_percentage), (1, 1, 25.0));
    assert_eq!((of.processing_strategy(), of.batch_size), (v1::ProcessingStrategy::Sequential, 1));
    for number in 1..4 {
        world.client.resolve_step(resolve(number)).await.unwrap();
    }
    let of = summary(&world.client, &task_id).await;
    let is = of.context.clone().unwrap();
    assert_eq!(
        (is.execution_status(), is.recommended_action(), is.health(), is.completion_percentage),
        (v1::ExecutionStatus::AllComplete, v1::RecommendedAction::None, v1::Health::Healthy, 100.0)
    );
    assert!(of.next_executable_steps.is_empty());
    assert_eq!((of.processing_strategy(), of.batch_size), (v1::ProcessingStrategy::Waiting, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_step_failed_says_what_that_blocks_and_what_goes_on() {
    let world = World::start().await;
    let steps = "[{name: fails}, {name: after, depends_on: [fails]}, {name: last, depends_on: [after]}, \
                  {name: gone}, {name: behind, depends_on: [gone]}, {name: idle}]";
    world.define(&format!("{{name: broken, steps: {steps}}}")).await;
    let executor = Executor::new(&world.client, "e")
        .handler("fails", async |_| Err::<(), _>(HandlerError::new("No", "never").permanent()));
    let running = world.run(executor);
    let mut feed = world.feed(Start::Latest).await;
    let task_id = world.create("broken", &json!({})).await.task_id;
    let cancel = v1::CancelStepRequest { step_id: step_id(&task_id, 3), ..Default::default() };
    world.client.cancel_step(cancel).await.unwrap();
    until(&mut feed, |event| event.name == "step.failed").await;
    running.stop().await;

    let of = summary(&world.client, &task_id).await;
    let is = of.context.clone().unwrap();
    assert_eq!(
        (is.error_steps, is.cancelled_steps, is.blocked_steps, is.ready_steps, is.waiting_steps),
        (1, 1, 3, 1, 0)
    );
    assert_eq!(
        (is.execution_status(), is.health()),
        (v1::ExecutionStatus::HasReadySteps, v1::Health::Recovering)
    );
    let blocked: Vec<_> = of
        .blocked_steps
        .iter()
        .map(|blocked| {
            let reasons = blocked.reasons.iter().map(|reason| (reason.kind(), &reason.parents[..]));
            (blocked.step.as_ref().unwrap().name.as_str(), reasons.collect::<Vec<_>>())
        })
        .collect();
    use v1::ObstacleKind::{ParentBlocked, ParentCancelled, ParentFailed};
    assert_eq!(
        blocked,
        [
            ("after", vec![(ParentFailed, &["fails".to_owned()][..])]),
            ("last", vec![(ParentBlocked, &["after".to_owned()])]),
            ("behind", vec![(ParentCancelled, &["gone".to_owned()])]),
        ]
    );
    // Whoever asks about one step is told the same, and of executors besides.
    for step in readiness(&world.client, &task_id, 2).await {
        let step_id = step.step.unwrap().step_id;
        let request = v1::GetStepReadinessRequest { step_id };
        let mut alone = world.client.get_step_readiness(request).await.unwrap();
        alone.obstacles.retain(|obstacle| obstacle.kind() != v1::ObstacleKind::NoExecutor);
        assert_eq!((alone.state, alone.obstacles), (step.state, step.obstacles));
    }

    let (code, out, _) = stepwell(&world, &["task", "summary", &task_id], "");
    assert_eq!(code, 0);
    for line in [
        "in_progress, recovering, 0 %",
        "has_ready_steps: execute_ready_steps",
        "6 steps: 1 ready, 3 blocked, 1 in error, 1 cancelled",
        "next (sequential, 1): idle",
        "blocked: after: it waits for what failed for good: fails",
        "blocked: behind: it can never run: these are cancelled: gone",
    ] {
        assert!(out.contains(line), "{line} is not in\n{out}");
    }
    let (code, out, _) = stepwell(&world, &["task", "graph", &task_id], "");
    let last = out.lines().find(|line| line.contains("last")).unwrap_or_else(|| panic!("{out}"));
    let last: Vec<&str> = last.split_whitespace().collect();
    assert_eq!((code, last), (0, vec!["2", "2", "last", "pending,", "blocked", "after"]));
    assert!(out.contains("longest path: fails > after > last"), "{out}");
    for (what, field, n) in [("summary", "blockedSteps", 3), ("graph", "steps", 6)] {
        let (code, out, _) = stepwell(&world, &["task", what, &task_id, "-o", "json"], "");
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, json[field].as_array().unwrap().len()), (0, n), "{out}");
    }

    let pause = v1::PauseTaskRequest { task_id: task_id.clone(), ..Default::default() };
    world.client.pause_task(pause).await.unwrap();
    let is = context(&world.client, &task_id).await;
    assert_eq!((is.ready_steps, is.parked_steps), (0, 1));
    assert_eq!(
        (is.execution_status(), is.recommended_action(), is.health()),
        (v1::ExecutionStatus::Paused, v1::RecommendedAction::ResumeTask, v1::Health::Blocked)
    );
    check(&mut world.connection().await).await;
}

fn reason(error: &Error) -> (v1::ErrorReason, String) {
    let Error::Refused(refusal) = error else { panic!("{error:?}") };
    let fields: Vec<&str> = refusal.violations.iter().map(|(field, _)| field.as_str()).collect();
    (refusal.reason, fields.join(","))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_question_about_how_a_task_stands_is_refused_with_its_field() {
    use v1::ErrorReason::{InvalidRequest, PageTokenInvalid, TaskNotFound};
    let (world, task_id) = fresh().await;
    let (client, nobody) = (&world.client, "00000000-0000-7000-8000-000000000000");
    let list = |task_id: &str, page_size, page_token: &str| v1::ListStepReadinessRequest {
        task_id: task_id.into(),
        page_size,
        page_token: page_token.into(),
    };
    for (id, wanted) in
        [(nobody, (TaskNotFound, String::new())), ("seven", (InvalidRequest, "task_id".to_owned()))]
    {
        let task_id = id.to_owned();
        let request = v1::GetTaskContextRequest { task_id: task_id.clone() };
        assert_eq!(reason(&client.get_task_context(request).await.unwrap_err()), wanted);
        let request = v1::GetTaskSummaryRequest { task_id: task_id.clone() };
        assert_eq!(reason(&client.get_task_summary(request).await.unwrap_err()), wanted);
        let request = v1::GetTaskGraphRequest { task_id };
        assert_eq!(reason(&client.get_task_graph(request).await.unwrap_err()), wanted);
        let refused = client.list_step_readiness(list(id, 0, "")).await.unwrap_err();
        assert_eq!(reason(&refused), wanted);
    }
    let page = client.list_step_readiness(list(&task_id, 1, "")).await.unwrap();
    let other = world.create("four", &json!({})).await.task_id;
    for (request, wanted, field) in [
        (list(&task_id, 1001, ""), InvalidRequest, "page_size"),
        (list(&task_id, -1, ""), InvalidRequest, "page_size"),
        (list(&task_id, 1, "AAAA"), PageTokenInvalid, "page_token"),
        (list(&other, 1, &page.next_page_token), PageTokenInvalid, "page_token"),
    ] {
        let refused = client.list_step_readiness(request).await.unwrap_err();
        assert_eq!(reason(&refused), (wanted, field.to_owned()));
    }

    let batch = |task_ids: &[&str]| v1::BatchGetTaskContextsRequest {
        task_ids: task_ids.iter().map(|&id| id.to_owned()).collect(),
    };
    for (ids, field) in [
        (vec![], "task_ids"),
        (vec![task_id.as_str(); 101], "task_ids"),
        (vec![&task_id, "seven"], "task_ids[1]"),
    ] {
        let refused = client.batch_get_task_contexts(batch(&ids)).await.unwrap_err();
        assert_eq!(reason(&refused), (InvalidRequest, field.to_owned()));
    }
    let ids = batch(&[&other, nobody, &task_id, &other]);
    let answer = client.batch_get_task_contexts(ids).await.unwrap();
    let told: Vec<String> = answer
        .results
        .into_iter()
        .map(|result| match result.outcome.unwrap() {
            v1::batch_get_task_contexts_result::Outcome::Context(context) => context.task_id,
            v1::batch_get_task_contexts_result::Outcome::Refusal(refusal) => {
                assert_eq!(refusal.reason(), TaskNotFound);
                refusal.metadata["task_id"].clone()
            }
        })
        .collect();
    assert_eq!(told, [&other, nobody, &task_id, &other]);
}

/// Statements about tasks that task-service has sent so far, by Postgres' own log.
fn sent(world: &World) -> usize {
    let log = std::fs::read_to_string(world.suite.postgres().unwrap().log_path()).unwrap();
    let asks = |line: &&str| {
        line.starts_with("<stepwell-task> LOG:  execute ")
            || line.starts_with("<stepwell-task> LOG:  statement: ")
    };
    // Texts go over several lines; the ids of a statement's parameters come with the next one.
    let starts: Vec<&str> = log.split_inclusive('\n').collect();
    let mut statements: Vec<String> = Vec::new();
    for line in starts {
        match line.starts_with('<') {
            true => statements.push(line.to_owned()),
            false => statements.last_mut().into_iter().for_each(|text| text.push_str(line)),
        }
    }
    let about = ["stepwell.task", "stepwell.step", "stepwell.definition", "from_state"];
    let statements = statements.iter().map(String::as_str).filter(asks);
    statements.filter(|text| about.iter().any(|table| text.contains(table))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_takes_as_many_statements_for_ten_thousand_steps_as_for_four_and_is_bounded() {
    let world = World::set_up(|options| {
        options.database_url = None;
        let settings = [("log_statement", "all"), ("log_line_prefix", "<%a> ")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        options.postgres = PostgresOptions {
            fsync: false,
            settings: settings.into(),
            ..PostgresOptions::default()
        };
    })
    .await;
    world.define(FOUR).await;
    let wide: String =
        (1..10_000).map(|n| format!("  - {{name: s{n}, depends_on: [root]}}\n")).collect();
    world.define(&format!("name: wide\nsteps:\n  - name: root\n{wide}")).await;
    let mut tasks = vec![world.create("four", &json!({})).await.task_id];
    for _ in 0..11 {
        tasks.push(world.create("wide", &json!({})).await.task_id);
    }
    let client = &world.client;
    let mut counts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for task_id in &tasks[..2] {
        let before = sent(&world);
        let is = context(client, task_id).await;
        assert_eq!(is.pending_steps, is.total_steps);
        counts.entry("context").or_default().push(sent(&world) - before);
        let before = sent(&world);
        let of = summary(client, task_id).await;
        assert_eq!(of.context.unwrap(), is);
        counts.entry("summary").or_default().push(sent(&world) - before);
        let before = sent(&world);
        let of = graph(client, task_id).await;
        assert_eq!(i32::try_from(of.steps.len()), Ok(is.total_steps));
        counts.entry("graph").or_default().push(sent(&world) - before);
        let before = sent(&world);
        let request =
            v1::ListStepReadinessRequest { task_id: task_id.clone(), ..Default::default() };
        let page = client.list_step_readiness(request).await.unwrap();
        assert!(page.steps.len() == 4 || page.steps.len() == 100);
        counts.entry("page").or_default().push(sent(&world) - before);
        let before = sent(&world);
        let request = v1::GetTaskRequest { task_id: task_id.clone(), ..Default::default() };
        let task = client.get_task(request).await.unwrap().task.unwrap();
        assert_eq!(i32::try_from(task.steps.len()), Ok(is.total_steps));
        counts.entry("task").or_default().push(sent(&world) - before);
        let before = sent(&world);
        let filter = format!("task_id = \"{task_id}\" AND execution_status = has_ready_steps");
        let request = v1::ListTasksRequest { filter, ..Default::default() };
        assert_eq!(client.list_tasks(request).await.unwrap().tasks.len(), 1);
        counts.entry("list").or_default().push(sent(&world) - before);
    }
    for task_id in &tasks[..2] {
        let cancel = v1::CancelTaskRequest { task_id: task_id.clone(), ..Default::default() };
        client.cancel_task(cancel).await.unwrap();
        let before = sent(&world);
        let get = v1::GetTaskRequest { task_id: task_id.clone(), ..Default::default() };
        client.get_task(get.clone()).await.unwrap();
        counts.entry("task that has ended").or_default().push(sent(&world) - before);
        let before = sent(&world);
        let get = v1::GetTaskRequest { include_graph: true, ..get };
        let got = client.get_task(get).await.unwrap();
        assert!(got.graph.is_some_and(|graph| graph.steps.len() == got.task.unwrap().steps.len()));
        counts.entry("task and graph").or_default().push(sent(&world) - before);
        let scope = Some(v1::TransitionScope { task_id: task_id.clone(), ..Default::default() });
        for (newest_first, what) in [(false, "first transitions"), (true, "last transitions")] {
            let before = sent(&world);
            let request = v1::ListTransitionsRequest {
                scope: scope.clone(),
                newest_first,
                ..Default::default()
            };
            let page = client.list_transitions(request).await.unwrap();
            assert!(page.transitions.len() == 6 || page.transitions.len() == 100);
            counts.entry(what).or_default().push(sent(&world) - before);
        }
        let before = sent(&world);
        let request = v1::GetTransitionStatisticsRequest { scope };
        let of = client.get_transition_statistics(request).await.unwrap();
        assert!(of.total == 6 || of.total == 10_002, "{of:?}");
        counts.entry("figures").or_default().push(sent(&world) - before);
    }
    // What was before the last of many is asked for by one statement more.
    assert_eq!(counts.remove("last transitions"), Some(vec![2, 3]));
    for n in [2, 10] {
        let before = sent(&world);
        let request = v1::BatchGetTaskContextsRequest { task_ids: tasks[..n].to_vec() };
        let answer = client.batch_get_task_contexts(request).await.unwrap();
        assert_eq!(answer.results.len(), n);
        counts.entry("batch").or_default().push(sent(&world) - before);
    }
    let wanted = [
        ("batch", 2),
        ("context", 1),
        ("figures", 2),
        ("first transitions", 2),
        ("graph", 1),
        ("list", 1),
        ("page", 1),
        ("summary", 1),
        ("task", 2),
        ("task and graph", 3),
        ("task that has ended", 2),
    ];
    assert_eq!(counts, wanted.map(|(view, n)| (view, vec![n, n])).into(), "once they are known");

    let all = readiness(client, &tasks[2], 1000).await;
    assert_eq!((all.len(), all.iter().filter(|step| step.ready).count()), (10_000, 1));
    let request = v1::BatchGetTaskContextsRequest { task_ids: tasks.clone() };
    let refused = client.batch_get_task_contexts(request).await.unwrap_err();
    assert_eq!(reason(&refused), (v1::ErrorReason::InvalidRequest, "task_ids".to_owned()));
}
