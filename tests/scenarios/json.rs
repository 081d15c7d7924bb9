//! Callers without gRPC: requests in JSON, from `curl` or a browser, and gRPC-Web.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use reqwest::{Response, header::HeaderMap};
use serde_json::{Value, json};
use stepwell_proto::v1::{
    self, CreateTaskRequest, EventFilter, GetTaskRequest, SubscribeRequest, SubscribeResponse,
    subscribe_response::Kind,
};
use stepwell_suite::Nodes;
use stepwell_tests::{World, http};

const JSON: &str = "application/json";

async fn post(address: &str, method: &str, kind: &str, body: impl Into<reqwest::Body>) -> Response {
    let url = format!("{address}/stepwell.v1.{method}");
    http().post(url).header("content-type", kind).body(body).send().await.unwrap()
}

async fn value(answer: Response) -> Value {
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

async fn call(address: &str, method: &str, body: &Value) -> (u16, Value) {
    let answer = post(address, method, JSON, body.to_string()).await;
    (answer.status().as_u16(), value(answer).await)
}

/// The detail of this kind.
fn detail<'a>(error: &'a Value, kind: &str) -> &'a Value {
    let details = error["details"].as_array().unwrap_or_else(|| panic!("{error}"));
    let found = details.iter().find(|of| of["type"] == kind);
    &found.unwrap_or_else(|| panic!("no {kind}: {error}"))["debug"]
}

fn frame(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &message].concat()
}

/// The first frame of these bytes, if it is whole: its flag, and what is in it.
fn first_frame(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize;
    Some((bytes[0], bytes.get(5..5 + length)?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_defined_created_and_read_by_posts_of_json_alone() {
    let world = World::start().await;
    let addresses = world.suite.addresses();
    let (task, event) = (&addresses.task[0], &addresses.event[0]);
    let (status, answer) = call(
        task,
        "TaskService/RegisterDefinition",
        &json!({"definition": {
            "name": "greet",
            "steps": [{"name": "a", "retry": {"maxAttempts": 2, "multiplier": 1.5}, "timeout": "2.5s"}],
        }}),
    )
    .await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["definition"]["steps"][0]["timeout"], "2.500s");
    let url = format!("{task}/stepwell.v1.TaskService/CreateTask");
    // As `curl -d` sends it; and with the contract's own names of fields.
    let created = http()
        .post(&url)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("x-request-id", "order-17")
        .header("x-correlation-id", "cart-9")
        .body(r#"{"definition_name": "greet", "context": "{\"who\": \"you\"}", "tags": ["x"]}"#);
    let created = created.send().await.unwrap();
    assert_eq!(created.status(), 200);
    assert_eq!(created.headers()["content-type"], JSON);
    assert_eq!(created.headers()["x-request-id"], "order-17");
    assert!(created.headers().keys().all(|name| !name.as_str().starts_with("grpc-")));
    let created = value(created).await["task"].clone();
    assert_eq!(
        (&created["state"], &created["correlationId"]),
        (&json!("STATE_PENDING"), &json!("cart-9"))
    );
    let id = created["taskId"].as_str().unwrap().to_owned();
    let (_, read) = call(task, "TaskService/GetTask", &json!({"taskId": id})).await;
    assert_eq!(read["task"]["steps"][0]["name"], "a");
    assert_eq!(world.task(&id).await.context, "{\"who\": \"you\"}", "byte for byte");
    let (_, listed) =
        call(event, "EventService/ListEvents", &json!({"filter": {"taskIds": [id]}})).await;
    let position = listed["events"][0]["position"].as_str().unwrap();
    assert!(position.parse::<i64>().unwrap() > 0, "large numbers are text");
    // The same as it is encoded.
    let request = GetTaskRequest { task_id: id.clone(), ..GetTaskRequest::default() };
    let answer =
        post(task, "TaskService/GetTask", "application/proto", request.encode_to_vec()).await;
    assert_eq!(answer.headers()["content-type"], "application/proto");
    let answer = v1::GetTaskResponse::decode(answer.bytes().await.unwrap()).unwrap();
    assert_eq!(answer.task.unwrap().task_id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_in_json_says_the_code_the_reason_and_the_fields() {
    let world = World::start().await;
    let task = &world.suite.addresses().task[0];
    let none = json!({"taskId": "0198c0de-0000-7000-8000-000000000001"});
    let (status, error) = call(task, "TaskService/GetTask", &none).await;
    assert_eq!((status, &error["code"]), (404, &json!("not_found")));
    assert_eq!(detail(&error, "google.rpc.ErrorInfo")["reason"], "TASK_NOT_FOUND");
    let wrong = json!({"requests": [{"definitionName": "a"}, {"definitionName": 7}]});
    for (method, body, field) in [
        ("GetTask", json!({"taskId": "x"}), "task_id"),
        ("GetTask", json!({"task": "x"}), ""),
        ("BatchCreateTasks", wrong, "requests[1].definitionName"),
        ("CreateTask", json!([]), ""),
    ] {
        let (status, error) = call(task, &format!("TaskService/{method}"), &body).await;
        assert_eq!((status, &error["code"]), (400, &json!("invalid_argument")), "{error}");
        assert_eq!(detail(&error, "google.rpc.ErrorInfo")["reason"], "INVALID_REQUEST");
        let violation = &detail(&error, "google.rpc.BadRequest")["fieldViolations"][0];
        assert_eq!(violation["field"].as_str().unwrap_or_default(), field, "{body}: {error}");
    }
    let syntax = value(post(task, "TaskService/GetTask", JSON, "{\"taskId\": }").await).await;
    assert!(syntax["message"].as_str().unwrap().contains("line 1 column 12"), "{syntax}");

    let url = format!("{task}/stepwell.v1.TaskService/GetTask");
    let headers = |kind: &str| {
        HeaderMap::from_iter([("content-type".parse().unwrap(), kind.parse().unwrap())])
    };
    for (request, status, allow) in [
        (http().get(&url), 405, Some("POST")),
        (http().post(&url).headers(headers("text/plain")).body("{}"), 415, None),
        // A form of a page of another origin is sent without asking us.
        (
            http()
                .post(&url)
                .headers(headers("application/x-www-form-urlencoded"))
                .header("origin", "http://evil.example")
                .body("{}"),
            403,
            None,
        ),
        (
            http().post(&url).headers(headers(JSON)).header("content-encoding", "br").body("{}"),
            501,
            None,
        ),
        (
            http()
                .post(&url)
                .headers(headers(JSON))
                .header("connect-protocol-version", "2")
                .body("{}"),
            400,
            None,
        ),
        (
            http()
                .post(url.replace("GetTask", "ListTasks"))
                .headers(headers(JSON))
                .header("connect-timeout-ms", "1s")
                .body("{}"),
            400,
            None,
        ),
        (http().post(&url).headers(headers(JSON)).body(vec![b' '; 5 << 20]), 400, None),
        (
            http().post(url.replace("GetTask", "GetNothing")).headers(headers(JSON)).body("{}"),
            404,
            None,
        ),
        (
            http()
                .post(url.replace("TaskService/GetTask", "StepService/Work"))
                .headers(headers(JSON))
                .body("{}"),
            501,
            None,
        ),
        // A method of another service.
        (
            http()
                .post(url.replace("TaskService/GetTask", "StepService/GetStep"))
                .headers(headers(JSON))
                .body("{}"),
            501,
            None,
        ),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{answer:?}");
        let allowed = answer.headers().get("allow").map(|allow| allow.to_str().unwrap().to_owned());
        assert_eq!(allowed.as_deref(), allow);
        assert!(value(answer).await["code"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zipped_request_is_read_within_bounds_and_a_deadline_is_kept() {
    let world = World::start().await;
    world.define("{name: slow, steps: [{name: a}]}").await;
    let created = world.create("slow", &json!({})).await;
    let task = &world.suite.addresses().task[0];
    let url = |method: &str| format!("{task}/stepwell.v1.TaskService/{method}");
    let zipped = |bytes: &[u8]| {
        let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut zip, bytes).unwrap();
        zip.finish().unwrap()
    };
    let send = |method: &str, kind: &str, body: Vec<u8>| {
        let request = http().post(url(method)).header("content-type", kind);
        request.header("content-encoding", "gzip").body(body).send()
    };
    let request = GetTaskRequest { task_id: created.task_id.clone(), ..GetTaskRequest::default() };
    let text = json!({"taskId": created.task_id}).to_string();
    for (kind, body) in [(JSON, text.into_bytes()), ("application/proto", request.encode_to_vec())]
    {
        let answer = send("GetTask", kind, zipped(&body)).await.unwrap();
        assert_eq!(answer.status(), 200, "{kind}");
    }
    let bomb = send("GetTask", JSON, zipped(&vec![b' '; 64 << 20])).await.unwrap();
    assert_eq!(bomb.status(), 400);
    let error = value(bomb).await;
    assert!(error["message"].as_str().unwrap().contains("too large"), "{error}");
    let garbage = send("GetTask", JSON, b"not zipped".to_vec()).await.unwrap();
    assert_eq!(garbage.status(), 400);

    let waited = http()
        .post(url("WaitTask"))
        .header("content-type", JSON)
        .header("connect-protocol-version", "1")
        .header("connect-timeout-ms", "50")
        .body(json!({"taskId": created.task_id, "timeout": "60s"}).to_string());
    let waited = waited.timeout(Duration::from_secs(30)).send().await.unwrap();
    assert_eq!(waited.status(), 504);
    assert_eq!(value(waited).await["code"], "deadline_exceeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_web_calls_and_follows_the_feed_over_http_1() {
    let world = World::start().await;
    world.define("{name: web, steps: [{name: a}]}").await;
    let addresses = world.suite.addresses();
    let (task, event) = (&addresses.task[0], &addresses.event[0]);
    let filter = EventFilter { names: vec!["task.*".into()], ..EventFilter::default() };
    let subscribe = SubscribeRequest { filter: Some(filter), ..SubscribeRequest::default() };
    let mut feed =
        post(event, "EventService/Subscribe", "application/grpc-web+proto", frame(&subscribe))
            .await;
    assert_eq!(feed.status(), 200);

    let create =
        CreateTaskRequest { definition_name: "web".into(), ..CreateTaskRequest::default() };
    let kind = "application/grpc-web+proto";
    let answer = post(task, "TaskService/CreateTask", kind, frame(&create)).await;
    assert_eq!(answer.headers()["content-type"], kind);
    let bytes: Bytes = answer.bytes().await.unwrap();
    let (flag, message) = first_frame(&bytes).unwrap();
    assert_eq!(flag, 0);
    let created = v1::CreateTaskResponse::decode(message).unwrap().task.unwrap();
    let (flag, trailers) = first_frame(&bytes[5 + message.len()..]).unwrap();
    assert_eq!(flag, 0x80);
    assert!(String::from_utf8_lossy(trailers).contains("grpc-status:0"));

    let mut got = Vec::new();
    'feed: loop {
        got.extend(feed.chunk().await.unwrap().expect("it goes on"));
        while let Some((flag, message)) = first_frame(&got) {
            assert_eq!(flag, 0, "no trailers yet");
            let length = 5 + message.len();
            let response = SubscribeResponse::decode(message).unwrap();
            got.drain(..length);
            let Some(Kind::Events(batch)) = response.kind else { continue };
            if batch.events.iter().any(|event| event.task_id == created.task_id) {
                break 'feed;
            }
        }
    }

    let none = GetTaskRequest { task_id: "x".into(), ..GetTaskRequest::default() };
    let refused = post(task, "TaskService/GetTask", kind, frame(&none)).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["grpc-status"]),
        (200, &"3".parse().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_may_call_only_if_its_origin_is_allowed() {
    let nodes = Nodes { task: 1, step: 1, event: 1 };
    let world = World::with(nodes, &["--allow-origins", "https://console.example"]).await;
    let url = format!("{}/stepwell.v1.TaskService/ListTasks", world.suite.addresses().task[0]);
    let preflight = |origin: &'static str| {
        let request = http().request(reqwest::Method::OPTIONS, &url).header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type,connect-protocol-version")
            .send()
    };
    let ours = preflight("https://console.example").await.unwrap();
    let headers = ours.headers();
    assert_eq!(headers["access-control-allow-origin"], "https://console.example");
    assert!(headers["access-control-allow-headers"].to_str().unwrap().contains("content-type"));
    let theirs = preflight("https://evil.example").await.unwrap();
    assert!(!theirs.headers().contains_key("access-control-allow-origin"));
    let called =
        http().post(&url).header("content-type", JSON).header("origin", "https://console.example");
    let called = called.body("{}").send().await.unwrap();
    assert_eq!(called.headers()["access-control-allow-origin"], "https://console.example");
    assert!(
        called.headers()["access-control-expose-headers"].to_str().unwrap().contains("grpc-status")
    );
}

/// Where a value does not fit a schema of the document.
fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    let validator = jsonschema::draft202012::new(&whole).unwrap();
    validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openapi_of_each_port_describes_what_it_answers() {
    let world = World::start().await;
    world.define("{name: described, steps: [{name: a, requires: {region: eu}}]}").await;
    let task_id = world.create("described", &json!({"n": 1})).await.task_id;
    let addresses = world.suite.addresses();
    let mut described = 0;
    for (address, calls) in [
        (
            &addresses.task[0],
            vec![
                ("TaskService/GetTask", json!({"taskId": task_id, "includeResults": true})),
                ("TaskService/GetDefinition", json!({"name": "described"})),
                ("TaskService/ListTasks", json!({"pageSize": 5})),
                ("TaskService/GetTaskSummary", json!({"taskId": task_id})),
                ("TaskService/GetTaskGraph", json!({"taskId": task_id})),
                ("TaskService/GetTask", json!({"taskId": "x"})),
            ],
        ),
        (
            &addresses.step[0],
            vec![
                ("StepService/GetStep", json!({"stepId": format!("{task_id}.0")})),
                ("StepService/ListExecutors", json!({})),
            ],
        ),
        (
            &addresses.event[0],
            vec![
                ("EventService/ListEvents", json!({"filter": {"taskIds": [task_id]}})),
                ("EventService/ListEventTypes", json!({})),
                ("SubscriptionService/ListSubscriptions", json!({})),
            ],
        ),
    ] {
        let answer = http().get(format!("{address}/openapi.json")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], JSON);
        let document = value(answer).await;
        assert_eq!(document["openapi"], "3.1.0");
        let services: Vec<_> =
            document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
        let paths = document["paths"].as_object().unwrap();
        assert!(
            paths
                .keys()
                .all(|path| services.iter().any(|name| path.contains(name.as_str().unwrap())))
        );
        described += paths.len();
        for (method, request) in calls {
            let operation = &paths[&format!("/stepwell.v1.{method}")]["post"];
            let schema = |of: &Value| of["content"][JSON]["schema"].clone();
            let (status, answer) = call(address, method, &request).await;
            let kind = if status == 200 { "200" } else { "default" };
            for (schema, value) in [
                (schema(&operation["requestBody"]), &request),
                (schema(&operation["responses"][kind]), &answer),
            ] {
                let faults = faults(&document, &schema, value);
                assert!(faults.is_empty(), "{method}: {faults:?} {value}");
            }
        }
        // Every schema that is referred to is there.
        let text = document.to_string();
        for name in text.split("#/components/schemas/").skip(1) {
            let name = name.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
    let unary = stepwell_proto::proto_json::METHODS.values().flatten().count();
    assert_eq!(described, unary, "each method that does not stream is described once");
}
