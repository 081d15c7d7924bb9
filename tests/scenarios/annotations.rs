//! Facts that people and programs keep with a task, over real processes.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stepwell_client::{Error, Start, v1};
use stepwell_proto::v1::ErrorReason;
use stepwell_tests::{World, check, until};

use super::cli::stepwell;

const DEFINITION: &str = "{name: order, steps: [{name: a}]}";

fn facts<const N: usize>(facts: [(&str, &str); N]) -> BTreeMap<String, String> {
    facts.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_given_at_creation_and_later_are_told_with_the_task_and_in_its_events_after_its_end_too()
 {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let mut feed = world.feed(Start::Latest).await;
    let created = world.client.task("order").annotation("order", "17").create().await.unwrap();
    assert_eq!(created.annotations, facts([("order", "17")]));
    let id = created.task_id.clone();
    let task = world.client.annotate(&id, [("carrier", "post")]).await.unwrap();
    assert_eq!(task.annotations, facts([("order", "17"), ("carrier", "post")]));
    let cancel = v1::CancelTaskRequest { task_id: id.clone(), ..Default::default() };
    world.client.cancel_task(cancel).await.unwrap();
    let request = v1::AnnotateTaskRequest {
        task_id: id.clone(),
        set: facts([("ticket", "S-17")]),
        remove: vec!["carrier".into()],
        reason: "lost".into(),
        annotated_by: "ops@shop".into(),
        request_id: "r-1".into(),
    };
    for _ in 0..2 {
        let answer = world.client.annotate_task(request.clone()).await.unwrap().task.unwrap();
        assert_eq!(answer.annotations, facts([("order", "17"), ("ticket", "S-17")]));
    }
    let other = v1::AnnotateTaskRequest { set: facts([("ticket", "S-18")]), ..request.clone() };
    let reused = world.client.annotate_task(other).await.unwrap_err();
    assert_eq!(reused.reason(), Some(ErrorReason::RequestIdReused));
    let is_last = |event: &v1::Event| event.name == "task.annotated" && event.to_state == 5;
    let told = until(&mut feed, is_last).await;
    let told: Vec<_> = told.into_iter().filter(|event| event.name == "task.annotated").collect();
    assert_eq!(told.len(), 2, "the repeat changed nothing");
    let Some(v1::event::Detail::TaskAnnotated(last)) = &told[1].detail else { panic!("{told:?}") };
    assert_eq!((&last.set, &last.removed), (&request.set, &request.remove));
    assert_eq!((last.annotated_by.as_str(), last.request_id.as_str()), ("ops@shop", "r-1"));
    let read = world.task(&id).await;
    assert_eq!(read.annotations, facts([("order", "17"), ("ticket", "S-17")]));
    let listed = world.client.list_tasks(v1::ListTasksRequest::default()).await.unwrap().tasks;
    assert_eq!(listed[0].annotations, read.annotations);
    check(&mut world.connection().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_created_again_with_other_facts_is_another_request_and_with_the_same_it_is_there() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let id = "0198c0de-4a11-7c52-9e0f-3b1de5a7f0aa";
    let create = async |fact: &str| {
        world.client.task("order").id(id).annotation("order", fact).create().await
    };
    create("17").await.unwrap();
    world.client.annotate(id, [("order", "18")]).await.unwrap();
    assert_eq!(create("17").await.unwrap().annotations, facts([("order", "18")]));
    let reused: Error = create("19").await.unwrap_err();
    assert_eq!(reused.reason(), Some(ErrorReason::RequestIdReused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_facts_are_refused_with_their_fields_and_change_nothing() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let id = world.create("order", &json!({})).await.task_id;
    let full = (0..64).map(|n| (format!("k{n}"), String::new()));
    world.client.annotate(&id, full).await.unwrap();
    let before = (world.rows().await, world.task(&id).await);
    let refused = async |set: BTreeMap<String, String>, remove: &[&str]| {
        let remove = remove.iter().map(|&name| name.to_owned()).collect();
        let task_id = id.clone();
        let request = v1::AnnotateTaskRequest { task_id, set, remove, ..Default::default() };
        let error = world.client.annotate_task(request).await.unwrap_err();
        (error.reason().unwrap(), error.to_string())
    };
    for (set, remove, what) in [
        (facts([("a b", "x")]), &[][..], "set[\"a b\"]"),
        (facts([("k1", "\0")]), &[], "NUL"),
        (facts([("k1", &*"x".repeat(1025))]), &[], "at most 1024"),
        (facts([]), &[], "`remove` is wanted"),
        (facts([("k1", "x")]), &["k1"], "remove[0]"),
    ] {
        let (reason, text) = refused(set, remove).await;
        assert!(reason == ErrorReason::InvalidRequest && text.contains(what), "{text}");
    }
    let (reason, text) = refused(facts([("one_more", "x")]), &[]).await;
    assert!(reason == ErrorReason::AnnotationLimit && text.contains("64"), "{text}");
    let nobody = "0198c0de-4a11-7c52-9e0f-3b1de5a7f0bb";
    let missing = world.client.annotate(nobody, [("a", "b")]).await.unwrap_err();
    assert_eq!(missing.reason(), Some(ErrorReason::TaskNotFound));
    let create = world.client.task("order").annotation("a b", "x").create().await.unwrap_err();
    assert_eq!(create.reason(), Some(ErrorReason::InvalidRequest));
    assert!(create.to_string().contains("annotations[\"a b\"]"), "{create}");
    assert_eq!((world.rows().await, world.task(&id).await), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_are_kept_and_forgotten_on_the_command_line() {
    let world = World::start().await;
    world.define(DEFINITION).await;
    let create = ["task", "create", "order", "--annotation", "order=17", "--annotation", "sum=a=b"];
    let (code, out, err) = stepwell(&world, &create, "");
    assert_eq!(code, 0, "{err}");
    let id = out.trim().to_owned();
    let annotate = ["task", "annotate", &id, "carrier=post", "sum-", "--reason", "why"];
    let (code, out, err) = stepwell(&world, &annotate, "");
    assert!(
        code == 0 && out.contains("carrier = post") && out.contains("order = 17"),
        "{out}{err}"
    );
    assert!(!out.contains("sum"), "{out}");
    let (_, out, _) = stepwell(&world, &["task", "get", &id, "-o", "json"], "");
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["annotations"], json!({"carrier": "post", "order": "17"}));
    let (code, _, err) = stepwell(&world, &["task", "annotate", &id, "carrier"], "");
    assert!(code == 2 && err.contains("NAME=TEXT"), "{err}");
    let (code, _, err) = stepwell(&world, &["task", "annotate", &id, "a=1", "a=2"], "");
    assert!(code == 2 && err.contains("twice"), "{err}");
    let (code, _, err) = stepwell(&world, &["task", "annotate", &id, "a b=1"], "");
    assert!(code == 2 && err.contains("a b"), "{err}");
}
