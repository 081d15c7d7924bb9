//! What makes two requests for tasks the same, and contexts with defaults.

use prost_types::Duration;
use stepwell_proto::v1::{
    BatchCreateTasksRequest, CreateTaskRequest, ErrorReason, batch_create_tasks_result::Outcome,
};

use crate::{PAIR, World, answer, request};

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn with_key(key: &str, context: &str) -> CreateTaskRequest {
    CreateTaskRequest { idempotency_key: key.into(), ..request(context) }
}

fn deduped(context: &str) -> CreateTaskRequest {
    CreateTaskRequest { dedup_window: seconds(60), ..request(context) }
}

#[tokio::test]
async fn a_key_of_the_caller_answers_the_task_that_is_there_and_other_content_is_refused() {
    let world = World::new().await;
    world.register(PAIR).await;
    let (first, existed) =
        world.create(with_key("order 7", r#"{"n": 1, "x": [2]}"#)).await.unwrap();
    assert!(!existed);
    // Another id, laid out otherwise, after a newer version came: the same.
    world.register(&PAIR.replace("1.0.0", "2.0.0")).await;
    let again = world.create(with_key("order 7", r#"{"x":[2],"n":1}"#)).await.unwrap();
    assert_eq!(again, (first.clone(), true));
    let other = with_key("order 7", r#"{"n": 2}"#);
    let refusal = world.create(other.clone()).await.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::RequestIdReused);
    assert_eq!(refusal.metadata["idempotency_key"], "order 7");
    assert!(!world.has(&other.task_id).await);
    // Keys are of one definition.
    world.register("name: other\nsteps: [{name: a}]").await;
    let elsewhere = CreateTaskRequest { definition_name: "other".into(), ..other };
    assert!(!world.create(elsewhere).await.unwrap().1);
    // Past its window the key is free.
    let late = CreateTaskRequest {
        idempotency_window: Some(Duration { seconds: 0, nanos: 1_000_000 }),
        ..with_key("order 7", r#"{"n": 3}"#)
    };
    let (late, existed) = world.create(late).await.unwrap();
    assert!(!existed);
    let again = world.create(with_key("order 7", r#"{"n": 3}"#)).await.unwrap();
    assert_eq!((again.0.task_id, again.1), (late.task_id, true));
}

#[tokio::test]
async fn requests_that_say_the_same_are_one_if_that_is_asked_for() {
    let world = World::new().await;
    world
        .register(&PAIR.replace(
            "- name: first",
            "- {name: first, skippable: true}\n  - {name: third, skippable: true}",
        ))
        .await;
    let base = CreateTaskRequest {
        bypass_steps: vec!["first".into(), "third".into()],
        ..deduped(r#"{"n": 1, "x": 2}"#)
    };
    let (first, _) = world.create(base.clone()).await.unwrap();
    let same = |change: &dyn Fn(&mut CreateTaskRequest)| {
        let mut request = CreateTaskRequest { task_id: crate::new_id(), ..base.clone() };
        change(&mut request);
        request
    };
    for (what, change) in [
        (
            "order of keys",
            &(|r: &mut CreateTaskRequest| r.context = r#"{"x":2,"n":1}"#.into()) as &dyn Fn(&mut _),
        ),
        ("order of steps", &|r: &mut CreateTaskRequest| r.bypass_steps.reverse()),
        ("tags", &|r: &mut CreateTaskRequest| r.tags = vec!["t".into()]),
        ("priority", &|r: &mut CreateTaskRequest| r.priority = 1),
        ("correlation", &|r: &mut CreateTaskRequest| r.correlation_id = "c".into()),
    ] {
        let (task, existed) = world.create(same(change)).await.unwrap();
        assert_eq!((&task.task_id, existed), (&first.task_id, true), "{what}");
    }
    for (what, change) in [
        (
            "context",
            &(|r: &mut CreateTaskRequest| r.context = r#"{"n": 1, "x": 2.0}"#.into())
                as &dyn Fn(&mut _),
        ),
        ("steps", &|r: &mut CreateTaskRequest| r.bypass_steps.truncate(1)),
        ("version", &|r: &mut CreateTaskRequest| r.definition_version = "1.0.0".into()),
        ("initiator", &|r: &mut CreateTaskRequest| r.initiator = "me".into()),
        ("source", &|r: &mut CreateTaskRequest| r.source_system = "me".into()),
        ("reason", &|r: &mut CreateTaskRequest| r.reason = "me".into()),
        ("not asked for", &|r: &mut CreateTaskRequest| r.dedup_window = None),
    ] {
        assert!(!world.create(same(change)).await.unwrap().1, "{what}");
    }
}

#[tokio::test]
async fn a_definition_says_which_requests_are_the_same_and_a_request_counts_more() {
    let world = World::new().await;
    world.register("name: pair\nidentity: {strategy: hash}\nsteps: [{name: a}]").await;
    let (first, _) = world.create(request("{}")).await.unwrap();
    assert_eq!(world.create(request("{}")).await.unwrap(), (first.clone(), true));
    let alone = CreateTaskRequest { dedup_window: seconds(0), ..request("{}") };
    assert!(!world.create(alone).await.unwrap().1);
    assert!(!world.create(with_key("k", "{}")).await.unwrap().1, "a key is enough");

    world.register("name: pair\nversion: 1.0.0\nidentity: {strategy: key, window: 24h}\nsteps: [{name: a}]").await;
    let refusal = world.create(request("{}")).await.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
    assert_eq!(refusal.violations[0].0, "idempotency_key");
    assert!(world.create(with_key("k", "{}")).await.unwrap().1);
    let sql = "update stepwell.task_detail set created_at = created_at - interval '25 hours'";
    let mut connection =
        <sqlx::PgConnection as sqlx::Connection>::connect(&world.database.url).await.unwrap();
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    assert!(!world.create(with_key("k", "{}")).await.unwrap().1, "the definition's window");
}

#[tokio::test]
async fn a_batch_finds_what_is_the_same_in_itself_and_refuses_a_reused_key_alone() {
    let world = World::new().await;
    world.register(PAIR).await;
    let requests = vec![
        with_key("a", r#"{"n": 1}"#),
        with_key("a", r#"{"n": 1}"#),
        with_key("a", r#"{"n": 2}"#),
        deduped(r#"{"n": 3}"#),
        deduped(r#"{"n": 3}"#),
        request(r#"{"n": 4}"#),
    ];
    let ids: Vec<String> = requests.iter().map(|request| request.task_id.clone()).collect();
    let batch = BatchCreateTasksRequest { requests };
    let results = answer(world.client().batch_create_tasks(batch).await).unwrap().results;
    let told: Vec<(Option<&str>, bool)> = results
        .iter()
        .map(|result| match &result.outcome {
            Some(Outcome::Task(task)) => (Some(task.task_id.as_str()), result.already_existed),
            Some(Outcome::Refusal(refusal)) => {
                assert_eq!(refusal.reason(), ErrorReason::RequestIdReused);
                (None, result.already_existed)
            }
            None => panic!("an answer"),
        })
        .collect();
    let id = |i: usize| Some(ids[i].as_str());
    assert_eq!(
        told,
        [
            (id(0), false),
            (id(0), true),
            (None, false),
            (id(3), false),
            (id(3), true),
            (id(5), false)
        ]
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_key_or_a_window_is_refused_with_its_field() {
    let world = World::new().await;
    world.register(PAIR).await;
    let long = "x".repeat(257);
    for (request, path) in [
        (with_key(&long, "{}"), "idempotency_key"),
        (with_key("a\0", "{}"), "idempotency_key"),
        (
            CreateTaskRequest { idempotency_window: seconds(1), ..request("{}") },
            "idempotency_window",
        ),
        (
            CreateTaskRequest { idempotency_window: seconds(0), ..with_key("k", "{}") },
            "idempotency_window",
        ),
        (
            CreateTaskRequest { idempotency_window: seconds(366 * 86_400), ..with_key("k", "{}") },
            "idempotency_window",
        ),
        (CreateTaskRequest { dedup_window: seconds(-1), ..request("{}") }, "dedup_window"),
        (
            CreateTaskRequest { dedup_window: seconds(366 * 86_400), ..request("{}") },
            "dedup_window",
        ),
        (
            CreateTaskRequest {
                dedup_window: Some(Duration { seconds: 0, nanos: 1 }),
                ..request("{}")
            },
            "dedup_window",
        ),
        (CreateTaskRequest { dedup_window: seconds(60), ..with_key("k", "{}") }, "dedup_window"),
    ] {
        let refusal = world.create(request.clone()).await.unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
        let paths: Vec<&str> = refusal.violations.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, [path], "{:?}", refusal.violations);
        assert!(!world.has(&request.task_id).await);
    }
}

const FILLED: &str = r#"
name: pair
context_schema:
  required: [n, rate]
  properties:
    n: {type: integer}
    rate: {type: number, default: 1.10}
    big: {default: 12345678901234567890123}
    address: {type: object, default: {}, properties: {country: {default: DE}}}
    lines: {items: {properties: {amount: {type: integer, default: 1}}}}
concurrency: {key: address.country}
steps: [{name: a}]
"#;

#[tokio::test]
async fn defaults_are_put_into_the_context_and_kept_and_the_request_stays_the_one_that_was_sent() {
    let world = World::new().await;
    world.register(FILLED).await;
    let sent = request(r#"{ "z": 1e3, "n": 10, "lines": [{}, {"amount": 2}] }"#);
    let filled = r#"{ "z": 1e3, "n": 10, "lines": [{"amount":1}, {"amount": 2}],"rate":1.10,"big":12345678901234567890123,"address":{"country":"DE"} }"#;
    let (task, _) = world.create(sent.clone()).await.unwrap();
    assert_eq!(task.context, filled);
    assert_eq!(world.get(&task.task_id).await.unwrap().context, filled);
    assert!(world.create(sent.clone()).await.unwrap().1, "a repeat");
    let spelt_out = CreateTaskRequest { context: filled.into(), ..sent };
    let refusal = world.create(spelt_out).await.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::RequestIdReused);

    let whole = r#" {"n": 1,  "rate": 2e0, "big": 1, "address": {"country": "FR"}} "#;
    assert_eq!(world.create(request(whole)).await.unwrap().0.context, whole);

    let wrong = request(r#"{"lines": [{"amount": "x"}, 7, {"amount": "y"}], "rate": "z"}"#);
    let refusal = world.create(wrong.clone()).await.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::ContextSchemaViolation);
    let mut paths: Vec<&str> = refusal.violations.iter().map(|(path, _)| path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        ["context", "context/lines/0/amount", "context/lines/2/amount", "context/rate"]
    );
    assert!(!world.has(&wrong.task_id).await);
}

#[tokio::test]
async fn defaults_that_make_contexts_too_large_are_refused_one_by_one_and_together() {
    let world = World::new().await;
    let text = "x".repeat(200_000);
    world
        .register(&format!(
            "name: pair\ncontext_schema: {{$defs: {{t: {{default: {text}}}}}, properties: {{t: {{$ref: '#/$defs/t'}}, l: {{items: {{properties: {{t: {{$ref: '#/$defs/t'}}}}}}}}}}}}\nsteps: [{{name: a}}]"
        ))
        .await;
    let refusal = world.create(request(r#"{"l": [{}, {}, {}, {}, {}]}"#)).await.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::ContextSchemaViolation);
    assert!(refusal.violations[0].1.contains("bytes with its defaults"), "{refusal:?}");
    let requests: Vec<CreateTaskRequest> = (0..90).map(|_| request("{}")).collect();
    let id = requests[0].task_id.clone();
    let batch = BatchCreateTasksRequest { requests };
    let refusal = answer(world.client().batch_create_tasks(batch).await).unwrap_err();
    assert_eq!(
        (refusal.reason, refusal.violations[0].0.as_str()),
        (ErrorReason::InvalidRequest, "requests")
    );
    assert!(!world.has(&id).await);
}
