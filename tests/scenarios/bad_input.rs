//! Bad input: a typed error with reason and field, and nothing written.

use stepwell_client::{Client, Error, v1};
use stepwell_proto::v1::ErrorReason;
use stepwell_tests::World;

fn refused(error: &Error) -> (ErrorReason, Vec<String>) {
    match error {
        Error::Refused(refusal) => {
            let paths = refusal.violations.iter().map(|(path, _)| path.clone()).collect();
            (refusal.reason, paths)
        }
        other => panic!("{other}"),
    }
}

async fn create(client: &Client, request: v1::CreateTaskRequest) -> (ErrorReason, Vec<String>) {
    refused(&client.create_task(request).await.unwrap_err())
}

fn request(context: &str) -> v1::CreateTaskRequest {
    v1::CreateTaskRequest {
        definition_name: "d".into(),
        context: context.into(),
        ..v1::CreateTaskRequest::default()
    }
}

const DEFINITION: &str = "
name: d
context_schema: {type: object, required: [n], properties: {n: {type: integer}}}
steps: [{name: a}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_task_is_refused_with_reason_and_field_and_writes_nothing() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let before = world.rows().await;
    let client = &world.client;
    let unknown = v1::CreateTaskRequest { definition_name: "no".into(), ..request("{}") };
    assert_eq!(create(client, unknown).await.0, ErrorReason::DefinitionNotFound);
    let version = v1::CreateTaskRequest { definition_version: "9.9.9".into(), ..request("{}") };
    assert_eq!(create(client, version).await.0, ErrorReason::DefinitionNotFound);
    let deep = format!(r#"{}1{}"#, r#"{"a":"#.repeat(65), "}".repeat(65));
    let large = format!(r#"{{"n": 1, "x": "{}"}}"#, "x".repeat(1 << 20));
    for context in ["{", "[]", r#"{"n": "\u0000"}"#, r#"{"n": "\ud800"}"#, &deep, &large] {
        let (reason, paths) = create(client, request(context)).await;
        assert_eq!((reason, paths), (ErrorReason::InvalidRequest, vec!["context".to_owned()]));
    }
    let (reason, paths) = create(client, request(r#"{"n": "one"}"#)).await;
    assert_eq!(
        (reason, paths),
        (ErrorReason::ContextSchemaViolation, vec!["context/n".to_owned()])
    );
    let bad_id = v1::CreateTaskRequest { task_id: "7".into(), ..request(r#"{"n": 1}"#) };
    assert_eq!(create(client, bad_id).await.1, ["task_id"]);
    let batch =
        v1::BatchCreateTasksRequest { requests: vec![request(r#"{"n": 1}"#), request("[]")] };
    let error = client.batch_create_tasks(batch).await.unwrap_err();
    assert_eq!(refused(&error).1, ["requests[1].context"]);
    assert_eq!(world.rows().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_answers_its_task_and_a_reused_id_is_refused() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let id = uuid::Uuid::now_v7().to_string();
    let first = v1::CreateTaskRequest { task_id: id.clone(), ..request(r#"{"n": 1}"#) };
    let created = world.client.create_task(first.clone()).await.unwrap();
    assert!(!created.already_existed);
    let spelled = v1::CreateTaskRequest { context: r#"{ "n":1 }"#.into(), ..first.clone() };
    let again = world.client.create_task(spelled).await.unwrap();
    assert!(again.already_existed);
    assert_eq!(again.task.unwrap().task_id, id);
    let before = world.rows().await;
    let other = v1::CreateTaskRequest { context: r#"{"n": 2}"#.into(), ..first };
    assert_eq!(create(&world.client, other).await.0, ErrorReason::RequestIdReused);
    assert_eq!(world.rows().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_definition_is_refused_with_the_place_and_writes_nothing() {
    let world = World::start().await;
    let before = world.rows().await;
    for (yaml, path, what) in [
        (
            "name: d\nsteps:\n  - {name: a, depends_on: [c]}\n  - {name: b, depends_on: [a]}\n  - {name: c, depends_on: [b]}",
            "steps",
            "→",
        ),
        (
            "name: d\nsteps:\n  - {name: a, depends_on: [bb]}\n  - {name: b}",
            "steps[0].depends_on[0]",
            "b",
        ),
        ("name: d\nsteps:\n  - {name: a, handler: 'no spaces'}", "steps[0].handler", "' '"),
        ("name: d\nstep:\n  - {name: a}", "step", "steps"),
        ("name: d\nsteps:\n  - {name: a, timeout: soon}", "steps[0].timeout", "duration"),
        ("name: [", "yaml", ""),
        ("name: d", "steps", ""),
    ] {
        let error = world.client.register_yaml(yaml).await.unwrap_err();
        let Error::Refused(refusal) = &error else { panic!("{error}") };
        assert_eq!(refusal.reason, ErrorReason::InvalidDefinition, "{yaml}");
        let found = refusal.violations.iter().any(|(p, w)| p.starts_with(path) && w.contains(what));
        assert!(found, "{yaml}: {:?}", refusal.violations);
    }
    assert_eq!(world.rows().await, before);
    world.define(DEFINITION).await;
    assert!(world.client.register_yaml(DEFINITION).await.unwrap().already_existed);
    let changed = DEFINITION.replace("name: a", "name: b");
    let error = world.client.register_yaml(changed).await.unwrap_err();
    assert_eq!(refused(&error).0, ErrorReason::DefinitionChanged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_for_an_unknown_lease_is_refused_as_lost() {
    use v1::{
        Completion, Hello, Outcome, WorkRequest, outcome::Kind,
        step_service_client::StepServiceClient,
    };
    let world = World::start().await;
    world.define(DEFINITION).await;
    let before = world.rows().await;
    let address = world.suite.addresses().step[0].clone();
    let mut service = StepServiceClient::connect(address).await.unwrap();
    let hello = Hello {
        handlers: vec![v1::HandlerOffer { name: "other".into(), ..Default::default() }],
        slots: 1,
        ..Hello::default()
    };
    let lease = stepwell_proto::id::LeaseId { step: 1 << 14, token: 7, attempt: 1 }.encode();
    let outcome = |lease_id: String| Outcome {
        lease_id,
        kind: Some(Kind::Complete(Completion { result: "1".into() })),
        ..Outcome::default()
    };
    let requests = [
        WorkRequest { hello: Some(hello), ..WorkRequest::default() },
        WorkRequest {
            outcomes: vec![outcome(lease.clone()), outcome("no lease".into())],
            ..WorkRequest::default()
        },
    ];
    let (send, receive) = tokio::sync::mpsc::channel(4);
    for request in requests {
        send.send(request).await.unwrap();
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut answers = service.work(requests).await.unwrap().into_inner();
    let welcome = answers.message().await.unwrap().unwrap().welcome.unwrap();
    assert_eq!(welcome.unmatched_handlers, ["other"]);
    let mut reasons = std::collections::HashMap::new();
    while reasons.len() < 2 {
        for ack in answers.message().await.unwrap().unwrap().acks {
            reasons.insert(ack.lease_id, ack.refusal.unwrap().reason());
        }
    }
    assert_eq!(reasons[&lease], ErrorReason::LeaseLost);
    assert_eq!(reasons["no lease"], ErrorReason::InvalidRequest);
    assert_eq!(world.rows().await, before);
}
