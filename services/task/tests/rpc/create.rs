//! Creating tasks, alone and in batches.

use std::collections::HashSet;

use stepwell_proto::v1::{
    BatchCreateTasksRequest, BatchCreateTasksResult, CreateTaskRequest, ErrorReason, State,
    batch_create_tasks_result::Outcome,
};

use crate::{PAIR, World, answer, new_id, request};

async fn batch(
    world: &World,
    requests: Vec<CreateTaskRequest>,
) -> Result<Vec<BatchCreateTasksResult>, stepwell_proto::refusal::Refusal> {
    let request = BatchCreateTasksRequest { requests };
    Ok(answer(world.client().batch_create_tasks(request).await)?.results)
}

#[tokio::test]
async fn a_task_is_there_with_its_steps_when_the_call_answers() {
    let world = World::new().await;
    world.register(PAIR).await;
    let context = r#"{ "n": 12345678901234567890123, "rate": 1.10 }"#;
    let request = CreateTaskRequest { tags: vec!["a".into(), "ö\"".into()], ..request(context) };
    let (task, already_existed) = world.create(request.clone()).await.unwrap();
    assert!(!already_existed);
    assert_eq!((task.task_id.as_str(), task.state()), (request.task_id.as_str(), State::Pending));
    assert_eq!((task.context.as_str(), task.tags.as_slice()), (context, request.tags.as_slice()));
    assert_eq!((task.initiator.as_str(), task.total_steps), ("unknown", 2));
    assert!(task.steps.is_empty());

    let mut read = world.get(&task.task_id).await.unwrap();
    let steps = std::mem::take(&mut read.steps);
    assert_eq!(read, task);
    let [first, second] = steps.as_slice() else { panic!("two steps") };
    assert_eq!(first.step_id, format!("{}.0", task.task_id));
    assert_eq!((first.waiting_on, second.waiting_on), (0, 1));
    assert_eq!(
        (second.handler.as_str(), second.depends_on.as_slice()),
        ("second", &["first".into()][..])
    );
}

#[tokio::test]
async fn a_repeat_answers_the_same_task_and_other_content_is_refused() {
    let world = World::new().await;
    world.register(PAIR).await;
    let first = request(r#"{"n": 1, "x": 2}"#);
    let (task, _) = world.create(first.clone()).await.unwrap();

    // Laid out otherwise, and after a newer version came: still the same request.
    world.register(&PAIR.replace("1.0.0", "2.0.0")).await;
    let repeat = CreateTaskRequest { context: r#"{"x":2,"n":1}"#.into(), ..first.clone() };
    assert_eq!(world.create(repeat).await.unwrap(), (task.clone(), true));

    for other in [
        CreateTaskRequest { context: r#"{"n": 2, "x": 2}"#.into(), ..first.clone() },
        CreateTaskRequest { reason: "another".into(), ..first.clone() },
        CreateTaskRequest { definition_version: "1.0.0".into(), ..first.clone() },
    ] {
        let refusal = world.create(other).await.unwrap_err();
        assert_eq!(refusal.reason, ErrorReason::RequestIdReused);
        assert_eq!(refusal.metadata["task_id"], first.task_id);
    }
    let mut read = world.get(&first.task_id).await.unwrap();
    read.steps.clear();
    assert_eq!(read, task);
}

#[tokio::test]
async fn a_task_without_an_id_gets_one_each_time() {
    let world = World::new().await;
    world.register(PAIR).await;
    let request = CreateTaskRequest { task_id: String::new(), ..request("") };
    let (one, _) = world.create(request.clone()).await.unwrap();
    let (other, _) = world.create(request).await.unwrap();
    assert_ne!(one.task_id, other.task_id);
    assert_eq!(one.context, "{}");
}

#[tokio::test]
async fn a_wrong_request_is_refused_with_its_field_and_writes_nothing() {
    let world = World::new().await;
    world.register(PAIR).await;
    let deep = format!("{}{}", r#"{"a":"#.repeat(65), "}".repeat(65));
    let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(1 << 20));
    let named = |name: &str| CreateTaskRequest { definition_name: name.into(), ..request("{}") };
    for (request, reason, field) in [
        (request("{"), ErrorReason::InvalidRequest, "context"),
        (request("[]"), ErrorReason::InvalidRequest, "context"),
        (request(&deep), ErrorReason::InvalidRequest, "context"),
        (request(&large), ErrorReason::InvalidRequest, "context"),
        (request(r#"{"a": "\u0000"}"#), ErrorReason::InvalidRequest, "context"),
        (request(r#"{"a": "\udead"}"#), ErrorReason::InvalidRequest, "context"),
        (request(r#"{"n": "x"}"#), ErrorReason::ContextSchemaViolation, "context/n"),
        (named(""), ErrorReason::InvalidRequest, "definition_name"),
        (named("a\0"), ErrorReason::InvalidRequest, "definition_name"),
        (named("nowhere"), ErrorReason::DefinitionNotFound, ""),
        (
            CreateTaskRequest { definition_version: "3.0.0".into(), ..request("{}") },
            ErrorReason::DefinitionNotFound,
            "",
        ),
        (
            CreateTaskRequest { reason: "a\0".into(), ..request("{}") },
            ErrorReason::InvalidRequest,
            "reason",
        ),
        (
            CreateTaskRequest { tags: vec!["x".repeat(129)], ..request("{}") },
            ErrorReason::InvalidRequest,
            "tags[0]",
        ),
    ] {
        let id = request.task_id.clone();
        let refusal = world.create(request).await.unwrap_err();
        assert_eq!(refusal.reason, reason, "{refusal}");
        let path = refusal.violations.first().map_or("", |(path, _)| path);
        assert_eq!(path, field, "{refusal}");
        assert!(!world.has(&id).await);
    }
    let bad_id = CreateTaskRequest { task_id: "7".into(), ..request("{}") };
    assert_eq!(world.create(bad_id).await.unwrap_err().violations[0].0, "task_id");
}

#[tokio::test]
async fn callers_at_once_do_not_harm_each_other_and_each_id_is_made_once() {
    let world = World::new().await;
    world.register(PAIR).await;
    let ids: Vec<String> = (0..150).map(|_| new_id()).collect();
    let calls = ids.iter().chain(&ids).enumerate().map(|(i, id)| {
        // Every tenth does not fit its definition.
        let context = if i % 10 == 0 { r#"{"n": "x"}"# } else { r#"{"n": 1}"# };
        let request = CreateTaskRequest { task_id: id.clone(), ..request(context) };
        let world = &world;
        async move { (id, world.create(request).await) }
    });
    let (mut new, mut refused) = (HashSet::new(), 0);
    for (id, answer) in futures::future::join_all(calls).await {
        match answer {
            Ok((_, true)) => {}
            Ok((_, false)) => assert!(new.insert(id), "{id} was made twice"),
            Err(refusal) => {
                assert_eq!(refusal.reason, ErrorReason::ContextSchemaViolation);
                refused += 1;
            }
        }
    }
    assert_eq!((new.len(), refused), (135, 30));
}

#[tokio::test]
async fn a_batch_answers_each_request_in_order() {
    let world = World::new().await;
    world.register(PAIR).await;
    let (old, _) = world.create(request(r#"{"n": 1}"#)).await.unwrap();
    let mut requests: Vec<_> = (0..1000).map(|i| request(&format!(r#"{{"n": {i}}}"#))).collect();
    requests[3] = CreateTaskRequest { task_id: old.task_id.clone(), ..request(r#"{"n": 1}"#) };
    requests[5] = CreateTaskRequest { task_id: old.task_id.clone(), ..request(r#"{"n": 2}"#) };
    // An id may stand in a batch only once.
    let twice = batch(&world, requests.clone()).await.unwrap_err();
    assert_eq!(twice.violations[0].0, "requests");
    requests[5].task_id = new_id();
    let reused = CreateTaskRequest { task_id: requests[5].task_id.clone(), ..request("{}") };
    world.create(reused).await.unwrap();

    let results = batch(&world, requests.clone()).await.unwrap();
    assert_eq!(results.len(), 1000);
    for (i, (result, request)) in results.iter().zip(&requests).enumerate() {
        match result.outcome.as_ref().unwrap() {
            Outcome::Task(task) => {
                assert_eq!((&task.task_id, task.context.as_str()), (&request.task_id, ""));
                assert_eq!(result.already_existed, i == 3);
            }
            Outcome::Refusal(refusal) => {
                assert_eq!((i, refusal.reason()), (5, ErrorReason::RequestIdReused));
            }
        }
    }
    assert!(world.has(&requests[999].task_id).await);
}

#[tokio::test]
async fn one_wrong_request_refuses_its_whole_batch() {
    let world = World::new().await;
    world.register(PAIR).await;
    for (wrong, reason, field) in [
        (request("{"), ErrorReason::InvalidRequest, "requests[1].context"),
        (request(r#"{"n": ""}"#), ErrorReason::ContextSchemaViolation, "requests[1].context/n"),
        (
            CreateTaskRequest { definition_name: "nowhere".into(), ..request("{}") },
            ErrorReason::DefinitionNotFound,
            "",
        ),
    ] {
        let right = request("{}");
        let refusal = batch(&world, vec![right.clone(), wrong]).await.unwrap_err();
        assert_eq!(refusal.reason, reason);
        assert_eq!(refusal.violations.first().map_or("", |(path, _)| path), field);
        assert!(!world.has(&right.task_id).await);
    }
    let many = vec![request("{}"); 1001];
    assert_eq!(batch(&world, many).await.unwrap_err().violations[0].0, "requests");
    assert!(batch(&world, Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn tasks_of_many_steps_are_made_in_bounded_calls() {
    let world = World::new().await;
    let steps: String = (0..3000).map(|i| format!("  - {{name: s{i}}}\n")).collect();
    world.register(&format!("name: pair\nsteps:\n{steps}")).await;
    let requests: Vec<_> = (0..20).map(|_| request("{}")).collect();
    let results = batch(&world, requests.clone()).await.unwrap();
    assert!(results.iter().all(|r| matches!(r.outcome, Some(Outcome::Task(_)))));
    assert_eq!(world.get(&requests[19].task_id).await.unwrap().steps.len(), 3000);
}

#[tokio::test]
async fn a_task_belongs_to_what_its_request_or_its_call_says() {
    let world = World::new().await;
    world.register(PAIR).await;
    let own = CreateTaskRequest { correlation_id: "own".into(), ..request(r#"{"n": 1}"#) };
    let other = request(r#"{"n": 1}"#);
    let requests = vec![own.clone(), other.clone()];
    let mut call = tonic::Request::new(BatchCreateTasksRequest { requests });
    call.metadata_mut().insert("x-correlation-id", "of-the-call".parse().unwrap());
    answer(world.client().batch_create_tasks(call).await).unwrap();
    assert_eq!(world.get(&own.task_id).await.unwrap().correlation_id, "own");
    assert_eq!(world.get(&other.task_id).await.unwrap().correlation_id, "of-the-call");

    // A repeat is the same request, whatever it belongs to; the task stays with what it has.
    let repeat = CreateTaskRequest { correlation_id: "another".into(), ..own };
    let (task, already_existed) = world.create(repeat.clone()).await.unwrap();
    assert!(already_existed);
    assert_eq!(task.correlation_id, "own");

    let bad = CreateTaskRequest { correlation_id: "a b".into(), task_id: new_id(), ..repeat };
    let refusal = world.create(bad.clone()).await.unwrap_err();
    assert_eq!(refusal.reason, ErrorReason::InvalidRequest);
    assert_eq!(refusal.violations[0].0, "correlation_id");
    assert!(!world.has(&bad.task_id).await);
}
