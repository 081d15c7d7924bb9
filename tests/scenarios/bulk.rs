//! Many tasks by a filter, over the wire and on the command line.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use stepwell_client::{Error, Limits, Start, v1};
use stepwell_proto::v1::{
    BulkOperation, BulkPreview, BulkState, ErrorReason, bulk_action::Action, event::Detail,
    start_bulk_operation_response::Outcome,
};
use stepwell_suite::{Kind, Nodes, Signal};
use stepwell_tests::{SOON, Scrape, World, check, until};
use uuid::Uuid;

use super::cli::stepwell;

const CANCEL: Action = Action::Cancel(v1::BulkCancel { r#override: false });

/// Tasks that nobody runs, oldest first.
async fn create(world: &World, definition: &str, tag: &str, n: usize) -> Vec<String> {
    let request = v1::CreateTaskRequest {
        definition_name: definition.into(),
        tags: vec![tag.into()],
        ..Default::default()
    };
    let requests = vec![request; n];
    let request = v1::BatchCreateTasksRequest { requests };
    let answer = world.client.batch_create_tasks(request).await.unwrap();
    let id = |result: v1::BatchCreateTasksResult| match result.outcome {
        Some(v1::batch_create_tasks_result::Outcome::Task(task)) => task.task_id,
        other => panic!("{other:?}"),
    };
    answer.results.into_iter().map(id).collect()
}

fn tagged(tag: &str) -> String {
    format!("tags:{tag}")
}

fn request(action: Action, filter: String) -> v1::StartBulkOperationRequest {
    v1::StartBulkOperationRequest {
        operation_id: Uuid::now_v7().to_string(),
        action: Some(v1::BulkAction { action: Some(action) }),
        filter,
        reason: "the gateway is gone".into(),
        requested_by: "ops@shop".into(),
        dry_run: false,
    }
}

async fn start(
    world: &World,
    request: &v1::StartBulkOperationRequest,
) -> Result<(BulkOperation, bool), Error> {
    let answer = world.client.start_bulk_operation(request.clone()).await?;
    match answer.outcome {
        Some(Outcome::Operation(operation)) => Ok((operation, answer.already_existed)),
        other => panic!("{other:?}"),
    }
}

async fn preview(world: &World, request: &v1::StartBulkOperationRequest) -> BulkPreview {
    let request = v1::StartBulkOperationRequest { dry_run: true, ..request.clone() };
    match world.client.start_bulk_operation(request).await.unwrap().outcome {
        Some(Outcome::Preview(preview)) => preview,
        other => panic!("{other:?}"),
    }
}

/// The operation once it has ended.
async fn ended(world: &World, operation_id: &str) -> BulkOperation {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let request = v1::GetBulkOperationRequest { operation_id: operation_id.into() };
        let operation = world.client.get_bulk_operation(request).await.unwrap().operation.unwrap();
        if operation.state() != BulkState::Running {
            return operation;
        }
        assert!(tokio::time::Instant::now() < deadline, "{operation:?}");
        tokio::task::yield_now().await;
    }
}

fn progress(operation: &BulkOperation) -> (BulkState, i64, i64, i64) {
    let it = operation;
    (it.state(), it.matched_tasks, it.moved_tasks, it.left_tasks)
}

fn reason(refused: &Error) -> ErrorReason {
    refused.reason().unwrap_or_else(|| panic!("{refused}"))
}

/// True from the n-th of these events on.
fn nth(n: usize, name: &'static str) -> impl Fn(&v1::Event) -> bool {
    let seen = AtomicUsize::new(0);
    move |event| event.name == name && seen.fetch_add(1, Ordering::Relaxed) + 1 == n
}

/// Ids of the tasks that an operation cancelled, an entry for each time.
fn cancelled(events: &[v1::Event], operation_id: &str) -> Vec<String> {
    let of_operation = events.iter().filter(|event| match &event.detail {
        Some(Detail::TaskCancelled(it)) => it.operation_id == operation_id,
        _ => false,
    });
    of_operation.map(|event| event.task_id.clone()).collect()
}

/// Waits until task-services have counted so many of what cancelling operations did.
async fn counted(world: &World, what: &str, ending: Option<&str>, n: f64) {
    let labels: Vec<_> =
        [("action", "cancel")].into_iter().chain(ending.map(|it| ("ending", it))).collect();
    let name = format!("stepwell_bulk_{what}_total");
    let counting = async {
        loop {
            let mut sum = 0.0;
            for address in &world.suite.addresses().task {
                sum += Scrape::of(address).await.sum(&name, &labels);
            }
            if sum >= n {
                return sum;
            }
        }
    };
    let sum = tokio::time::timeout(SOON, counting).await;
    assert_eq!(sum, Ok(n), "{name} {ending:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_says_what_is_moved_and_the_events_say_by_which_operation() {
    let world = World::with(Nodes { task: 2, step: 1, event: 1 }, &[]).await;
    world.define("{name: order, steps: [{name: a}, {name: b, depends_on: [a]}]}").await;
    let meant = create(&world, "order", "eu", 230).await;
    create(&world, "order", "us", 30).await;
    let start_of = request(CANCEL, tagged("eu"));
    let before = world.rows().await;
    let found = preview(&world, &start_of).await;
    let newest: Vec<String> = meant.iter().rev().take(10).cloned().collect();
    assert_eq!((found.matching_tasks, found.at_least), (230, false));
    assert_eq!(found.first_task_ids, newest);
    assert_eq!(world.rows().await, before, "a preview writes nothing");

    let mut feed = world.feed(Start::Latest).await;
    let (operation, existed) = start(&world, &start_of).await.unwrap();
    assert_eq!((operation.filter, existed), (tagged("eu"), false));
    let events = until(&mut feed, nth(230, "task.cancelled")).await;
    let moved = cancelled(&events, &start_of.operation_id);
    assert_eq!(moved.len(), 230);
    assert_eq!(moved.iter().collect::<HashSet<_>>(), meant.iter().collect::<HashSet<_>>());
    let step = events.iter().find_map(|event| match &event.detail {
        Some(Detail::StepCancelled(it)) => Some(it.clone()),
        _ => None,
    });
    let step = step.unwrap();
    assert_eq!((step.operation_id, step.cancelled_by), (operation.operation_id, "ops@shop".into()));
    let done = ended(&world, &start_of.operation_id).await;
    assert_eq!(progress(&done), (BulkState::Done, 230, 230, 0));

    let (again, existed) = start(&world, &start_of).await.unwrap();
    assert!(existed && again == done, "a repeat answers the operation");
    let other = v1::StartBulkOperationRequest { reason: "another".into(), ..start_of.clone() };
    let refused = start(&world, &other).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::RequestIdReused);
    // The same on the same tasks: they fit, and there is nothing left to do.
    let again = request(CANCEL, tagged("eu"));
    start(&world, &again).await.unwrap();
    let again = ended(&world, &again.operation_id).await;
    assert_eq!(progress(&again), (BulkState::Done, 230, 0, 230));
    for (name, ending, n) in
        [("started", None, 2.0), ("moved", None, 230.0), ("ended", Some("done"), 2.0)]
    {
        counted(&world, name, ending, n).await;
    }
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_whose_service_is_killed_goes_on_and_moves_each_task_once() {
    let mut world = World::start().await;
    world.define("{name: order, steps: [{name: a}]}").await;
    let meant = create(&world, "order", "eu", 430).await;
    // It gets stuck in its third chunk.
    let mut latch = world.connection().await;
    sqlx::query("begin").execute(&mut latch).await.unwrap();
    sqlx::query("select from stepwell.task where uid = $1::text::uuid for update")
        .bind(&meant[180])
        .execute(&mut latch)
        .await
        .unwrap();
    let mut feed = world.feed(Start::Latest).await;
    let of_all = request(CANCEL, tagged("eu"));
    start(&world, &of_all).await.unwrap();
    let mut events = until(&mut feed, nth(200, "task.cancelled")).await;
    world.suite.process(Kind::Task, 0).unwrap().kill(Signal::SIGKILL).await.unwrap();
    sqlx::query("rollback").execute(&mut latch).await.unwrap();
    world.suite.restart(Kind::Task, 0).await.unwrap();
    events.extend(until(&mut feed, nth(230, "task.cancelled")).await);
    let done = ended(&world, &of_all.operation_id).await;
    assert_eq!(progress(&done), (BulkState::Done, 430, 430, 0));
    let moved = cancelled(&events, &of_all.operation_id);
    assert_eq!(moved.len(), 430, "each once");
    assert_eq!(moved.iter().collect::<HashSet<_>>(), meant.iter().collect::<HashSet<_>>());
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_stopped_between_chunks_and_what_it_moved_stays_moved() {
    let world = World::start().await;
    world.define("{name: order, steps: [{name: a}]}").await;
    let meant = create(&world, "order", "eu", 330).await;
    let mut latch = world.connection().await;
    sqlx::query("begin").execute(&mut latch).await.unwrap();
    sqlx::query("select from stepwell.task where uid = $1::text::uuid for update")
        .bind(&meant[180])
        .execute(&mut latch)
        .await
        .unwrap();
    let mut feed = world.feed(Start::Latest).await;
    let of_all = request(CANCEL, tagged("eu"));
    start(&world, &of_all).await.unwrap();
    until(&mut feed, nth(100, "task.cancelled")).await;
    let stop = v1::CancelBulkOperationRequest { operation_id: of_all.operation_id.clone() };
    // The chunk that is stuck comes to nothing when its time is up, or to its end when it is let go.
    let stopping = world.client.cancel_bulk_operation(stop.clone());
    let let_go = sqlx::query("rollback").execute(&mut latch);
    let (stopped, let_go) = tokio::join!(stopping, let_go);
    let_go.unwrap();
    let stopped = stopped.unwrap().operation.unwrap();
    let (state, matched, moved, left) = progress(&stopped);
    assert_eq!((state, left), (BulkState::Cancelled, 0));
    assert!(matched == moved && (100..330).contains(&moved), "{stopped:?}");
    assert!(world.client.cancel_bulk_operation(stop).await.unwrap().already_in_state);
    let filter = format!("{} AND state = pending", tagged("eu"));
    let left = v1::ListTasksRequest { filter, page_size: 1000, ..Default::default() };
    let left = world.client.list_tasks(left).await.unwrap().tasks.len();
    assert_eq!(i64::try_from(left).unwrap() + moved, 330, "nothing is moved after the stop");
    let moved = f64::from(i32::try_from(moved).unwrap());
    for (name, ending, n) in [
        ("started", None, 1.0),
        ("moved", None, moved),
        ("ended", Some("done"), 0.0),
        ("ended", Some("cancelled"), 1.0),
    ] {
        counted(&world, name, ending, n).await;
    }
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_long_ago_is_counted_from_the_moment_of_each_call_by_lists_and_operations() {
    let world = World::start().await;
    world.define("{name: order, steps: [{name: a}]}").await;
    let ids = create(&world, "order", "eu", 2).await;
    let age = "update stepwell.task_detail set created_at = created_at - interval '2 hours'
                where task = (select id from stepwell.task where uid = $1)";
    let age = sqlx::query(age).bind(ids[0].parse::<Uuid>().unwrap());
    age.execute(&mut world.connection().await).await.unwrap();
    for (filter, found) in [
        ("create_time > \"-1h\"", &ids[1..]),
        ("create_time < \"-1h\" AND create_time > \"-2h1m\"", &ids[..1]),
        ("create_time < \"-121m\"", &[]),
    ] {
        let list = v1::ListTasksRequest { filter: filter.into(), ..Default::default() };
        let listed = world.client.list_tasks(list).await.unwrap().tasks;
        let listed: Vec<&str> = listed.iter().map(|task| task.task_id.as_str()).collect();
        assert_eq!(listed, found, "{filter}");
        let meant = preview(&world, &request(CANCEL, filter.to_owned())).await;
        assert_eq!(meant.first_task_ids, found, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_list_or_an_operation_is_refused_with_its_field_and_writes_nothing() {
    let world = World::start().await;
    world.define("{name: order, steps: [{name: a}]}").await;
    create(&world, "order", "eu", 5).await;
    let client = &world.client;
    let before = world.rows().await;
    let list = |filter, page_size, page_token: &str| v1::ListTasksRequest {
        filter,
        page_size,
        page_token: page_token.into(),
        order_by: String::new(),
    };
    let ordered = |order_by: &str, page_token: &str| v1::ListTasksRequest {
        order_by: order_by.into(),
        ..list(tagged("eu"), 2, page_token)
    };
    let first = client.list_tasks(list(tagged("eu"), 2, "")).await.unwrap();
    assert_eq!((first.tasks.len(), first.tasks[0].context.as_str()), (2, ""));
    let token = first.next_page_token.as_str();
    let rest = client.list_tasks(list(tagged("eu"), 1000, token)).await.unwrap();
    assert_eq!((rest.tasks.len(), rest.next_page_token.as_str()), (3, ""));
    let operations = |page_size, page_token: &str| v1::ListBulkOperationsRequest {
        page_size,
        page_token: page_token.into(),
        ..Default::default()
    };
    // With a time that no task has.
    let at = |micros| {
        let received = stepwell_proto::id::PageToken::decode(token).unwrap();
        stepwell_proto::id::PageToken { at: Some(micros), ..received }.encode()
    };
    for refused in [
        client.list_tasks(list(tagged("us"), 2, token)).await.unwrap_err(),
        client.list_tasks(list(String::new(), 2, token)).await.unwrap_err(),
        client.list_tasks(ordered("create_time", token)).await.unwrap_err(),
        client.list_tasks(list(tagged("eu"), 2, "AAAA")).await.unwrap_err(),
        client.list_tasks(list(tagged("eu"), 2, &at(-1))).await.unwrap_err(),
        client.list_tasks(list(tagged("eu"), 2, &at(253_402_300_800_000_000))).await.unwrap_err(),
        client.list_tasks(list(tagged("eu"), 2, &at(i64::MAX))).await.unwrap_err(),
        client.list_bulk_operations(operations(0, token)).await.unwrap_err(),
    ] {
        assert_eq!(reason(&refused), ErrorReason::PageTokenInvalid);
        assert!(refused.to_string().contains("page_token"), "{refused}");
    }
    for (filter, offset, what) in [
        ("stat = error", "0", "did you mean `state`?"),
        ("tags:eu AND", "11", "name of a field"),
        ("tags:eu; drop table stepwell.task", "9", "`AND`"),
        ("reason = \"\0\"", "10", "NUL"),
        (&"(".repeat(4096), "20", "parentheses"),
        (&" ".repeat(5000), "4096", "4096"),
        (&vec!["priority = 1"; 101].join(" OR "), "1600", "100"),
        (&vec!["tags:*x"; 21].join(" OR "), "225", "20"),
        ("paused = true OR health = blocked", "17", "parts of their own"),
    ] {
        let bulk = request(CANCEL, filter.to_owned());
        for refused in [
            client.list_tasks(list(filter.into(), 2, "")).await.unwrap_err(),
            client.start_bulk_operation(bulk).await.unwrap_err(),
        ] {
            let Error::Refused(refusal) = &refused else { panic!("{refused:?}") };
            assert_eq!(refusal.reason, ErrorReason::FilterInvalid);
            assert_eq!(refusal.metadata["offset"], offset, "{refused}");
            assert_eq!(refusal.violations[0].0, "filter");
            assert!(refused.to_string().contains(what), "{refused}");
        }
    }
    for (refused, field) in [
        (client.list_tasks(list(String::new(), 1001, "")).await.unwrap_err(), "page_size"),
        (client.list_tasks(list(String::new(), -1, "")).await.unwrap_err(), "page_size"),
        (client.list_tasks(ordered("priority", "")).await.unwrap_err(), "order_by"),
        (client.list_bulk_operations(operations(101, "")).await.unwrap_err(), "page_size"),
    ] {
        assert_eq!(reason(&refused), ErrorReason::InvalidRequest);
        assert!(refused.to_string().contains(field), "{refused}");
    }
    let ok = request(CANCEL, tagged("eu"));
    let retry = |attempts| Action::Retry(v1::BulkRetry { attempts });
    for (request, field) in [
        (v1::StartBulkOperationRequest { operation_id: "7".into(), ..ok.clone() }, "operation_id"),
        (v1::StartBulkOperationRequest { action: None, ..ok.clone() }, "action"),
        (v1::StartBulkOperationRequest { filter: String::new(), ..ok.clone() }, "filter"),
        (request(CANCEL, " ".to_owned()), "filter"),
        (request(CANCEL, "execution_status = paused".to_owned()), "filter"),
        (request(retry(1001), tagged("eu")), "action.retry.attempts"),
        (v1::StartBulkOperationRequest { reason: "x".repeat(1025), ..ok.clone() }, "reason"),
        (
            v1::StartBulkOperationRequest { requested_by: "x".repeat(257), ..ok.clone() },
            "requested_by",
        ),
    ] {
        for dry_run in [false, true] {
            let request = v1::StartBulkOperationRequest { dry_run, ..request.clone() };
            let refused = client.start_bulk_operation(request).await.unwrap_err();
            assert_eq!(reason(&refused), ErrorReason::InvalidRequest);
            assert!(refused.to_string().contains(field), "{refused}");
        }
    }
    let nobody = || "00000000-0000-7000-8000-000000000000".to_owned();
    let get = v1::GetBulkOperationRequest { operation_id: nobody() };
    let refused = client.get_bulk_operation(get).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::BulkOperationNotFound);
    let stop = |operation_id| v1::CancelBulkOperationRequest { operation_id };
    let refused = client.cancel_bulk_operation(stop(nobody())).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::BulkOperationNotFound);
    assert_eq!(world.rows().await, before);

    start(&world, &ok).await.unwrap();
    ended(&world, &ok.operation_id).await;
    let refused = client.cancel_bulk_operation(stop(ok.operation_id)).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::BulkOperationDone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn previews_beyond_two_are_refused_until_one_is_done() {
    let world = World::start().await;
    world.define("{name: order, steps: [{name: a}]}").await;
    create(&world, "order", "eu", 3).await;
    let once = Limits { attempts: 1, ..Limits::default() };
    let client = world.client.clone().with_limits(once);
    let request = v1::StartBulkOperationRequest { dry_run: true, ..request(CANCEL, tagged("eu")) };
    let mut latch = world.connection().await;
    sqlx::query("begin").execute(&mut latch).await.unwrap();
    sqlx::query("lock table stepwell.task_detail").execute(&mut latch).await.unwrap();
    let counting = [request.clone(), request.clone()].map(|request| {
        let client = client.clone();
        tokio::spawn(async move { client.start_bulk_operation(request).await })
    });
    let deadline = tokio::time::Instant::now() + SOON;
    let mut look = world.connection().await;
    let waiting = "select count(*) from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut look).await.unwrap() < 2 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let refused = client.start_bulk_operation(request.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::Overloaded);
    sqlx::query("rollback").execute(&mut latch).await.unwrap();
    for counted in counting {
        assert!(matches!(
            counted.await.unwrap().unwrap().outcome,
            Some(Outcome::Preview(found)) if found.matching_tasks == 3
        ));
    }
    assert_eq!(preview(&world, &request).await.matching_tasks, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_moves_many_tasks_on_the_command_line() {
    let world = World::start().await;
    world.define("{name: order, steps: [{name: a}]}").await;
    let meant = create(&world, "order", "eu", 12).await;
    create(&world, "order", "us", 3).await;
    let (code, out, err) = stepwell(&world, &["task", "list", "--tag", "eu", "--limit", "7"], "");
    assert!(code == 0 && out.contains(&meant[11]) && !out.contains(&meant[4]), "{out}{err}");
    let token = err.trim().rsplit_once(' ').unwrap().1;
    let rest = ["task", "list", "--tag", "eu", "--page-token", token, "-o", "json"];
    let (code, out, _) = stepwell(&world, &rest, "");
    let page: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, page.as_array().unwrap().len()), (0, 5));
    let (code, _, err) = stepwell(&world, &["task", "list", "--page-token", token], "");
    assert!(code == 2 && err.contains("PAGE_TOKEN_INVALID"), "{code} {err}");
    let (code, _, err) = stepwell(&world, &["task", "list", "--state", "done"], "");
    assert!(code == 2 && err.contains("resolved_manually"), "{code} {err}");

    let bulk = ["task", "bulk", "cancel", "--tag", "eu", "--state", "pending", "--by", "me"];
    let (code, out, _) = stepwell(&world, &[&bulk[..], &["--dry-run"]].concat(), "");
    assert!(code == 0 && out.contains("12 tasks fit") && out.contains(&meant[11]), "{out}");
    let (code, out, _) = stepwell(&world, &[&bulk[..], &["--wait", "-o", "json"]].concat(), "");
    let done: serde_json::Value = serde_json::from_str(&out).unwrap();
    let state = (done["state"].as_str(), done["movedTasks"].as_str());
    assert_eq!((code, state), (0, (Some("BULK_STATE_DONE"), Some("12"))));
    let id = done["operationId"].as_str().unwrap();
    let (code, out, _) = stepwell(&world, &["task", "bulk", "describe", id], "");
    assert!(code == 0 && out.contains("cancel") && out.contains("done"), "{out}");
    let (code, out, _) = stepwell(&world, &["task", "bulk", "list", "--state", "done"], "");
    assert!(code == 0 && out.contains(id), "{out}");
    let (code, _, err) = stepwell(&world, &["task", "bulk", "stop", id], "");
    assert!(code == 4 && err.contains("BULK_OPERATION_DONE"), "{code} {err}");
    let (code, _, err) = stepwell(&world, &["task", "bulk", "retry"], "");
    assert!(code == 2 && err.contains("filter"), "{code} {err}");
    let (code, out, _) =
        stepwell(&world, &["task", "bulk", "resolve", "--tag", "us", "--wait"], "");
    assert!(code == 0 && out.contains("done"), "{out}");
}
