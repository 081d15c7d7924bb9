//! Tasks are put away: into a file first, and only then out of the database.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::{Value, json};
use stepwell_client::{Error, v1};
use stepwell_tests::World;

use super::{super::cli::stepwell, reason};

/// The ids of the tasks in a file, each line whole.
fn ids(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    let id = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["steps"].as_array().unwrap().len(), 1, "{line}");
        assert_eq!(line["eventsComplete"], json!(true), "{line}");
        assert_eq!(line["task"]["definitionName"], json!("one"));
        assert!(line["task"]["context"].as_str().unwrap().contains("naïve"));
        let events = line["events"].as_array().unwrap();
        assert_eq!(events[0]["name"], json!("task.initialize_requested"));
        line["task"]["taskId"].as_str().unwrap().to_owned()
    };
    text.lines().map(id).collect()
}

async fn there(world: &World, task_id: &str) -> bool {
    let request = v1::GetTaskRequest { task_id: task_id.into(), ..v1::GetTaskRequest::default() };
    match world.client.get_task(request).await {
        Ok(_) => true,
        Err(Error::Refused(refused)) => {
            assert_eq!(refused.reason, v1::ErrorReason::TaskNotFound);
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_is_killed_before_it_removes_loses_nothing_and_the_next_one_goes_on() {
    let world = World::start().await;
    world.define("{name: one, steps: [{name: a}]}").await;
    let mut ended = BTreeSet::new();
    for n in 0..5 {
        let task_id = world.create("one", &json!({"n": n, "text": "naïve\n"})).await.task_id;
        let request =
            v1::CancelTaskRequest { task_id: task_id.clone(), ..v1::CancelTaskRequest::default() };
        world.client.cancel_task(request).await.unwrap();
        ended.insert(task_id);
    }
    let open = world.create("one", &json!({})).await.task_id;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.jsonl");
    let path = file.to_str().unwrap();
    let archive = ["task", "archive", "--older-than", "0s"];
    let with = |more: &[&'static str]| -> Vec<String> {
        let mut args: Vec<String> = archive.iter().map(|&arg| arg.to_owned()).collect();
        args.extend(["--to".to_owned(), path.to_owned()]);
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        args
    };
    let run = |more: &[&'static str]| {
        let args = with(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        stepwell(&world, &args, "")
    };

    let (code, out, err) = stepwell(&world, &[&archive[..], &["--dry-run"]].concat(), "");
    assert_eq!((code, out.trim()), (0, "5 tasks would be exported"), "{err}");
    assert!(!file.exists());

    // It dies when the file is durable and nothing is removed, and leaves half a line behind.
    let addresses = world.suite.addresses();
    let killed = Command::new(stepwell_suite::built_stepwell().unwrap())
        .args(with(&["--remove"]))
        .env("STEPWELL_TASK_ADDRESS", addresses.task.join(","))
        .env("FAILPOINTS", "archive::exported=return")
        .output()
        .unwrap();
    assert!(!killed.status.success() && killed.status.code().is_none(), "{killed:?}");
    assert_eq!(ids(&file).into_iter().collect::<BTreeSet<_>>(), ended);
    for task_id in &ended {
        assert!(there(&world, task_id).await, "nothing was removed");
    }
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("{\"task\":{\"taskId\":\"01");
    std::fs::write(&file, text).unwrap();

    let (code, out, err) = run(&["--remove"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("5 tasks are in") && out.contains("5 of them were removed"), "{out}");
    let written = ids(&file);
    assert_eq!(written.len(), 10, "those it had not removed are there twice");
    assert_eq!(written.into_iter().collect::<BTreeSet<_>>(), ended);
    for task_id in &ended {
        assert!(!there(&world, task_id).await);
    }
    assert!(there(&world, &open).await, "what is open stays");
    let (code, out, _) = run(&["--remove", "-o", "json"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["exported"], &told["removed"]), (0, &json!(0), &json!(0)));
    let (code, _, err) = run(&["--state", "pending"]);
    assert!(code != 0 && err.contains("pending"), "{err}");

    // What is open, or in error without a word for that, is left, each by itself.
    let remove = |task_ids: &[&str]| v1::RemoveTasksRequest {
        tasks: task_ids
            .iter()
            .map(|&id| v1::TaskToRemove { task_id: id.into(), ..v1::TaskToRemove::default() })
            .collect(),
        in_error: false,
    };
    let gone = ended.first().unwrap().as_str();
    let answer = world.client.remove_tasks(remove(&[&open, gone])).await.unwrap();
    assert_eq!((answer.removed_tasks, answer.results[1].removed), (0, true));
    let refusal = answer.results[0].refusal.as_ref().unwrap();
    assert_eq!(refusal.reason(), v1::ErrorReason::TaskNotRemovable);
    assert_eq!((&*refusal.metadata["task_id"], &*refusal.metadata["state"]), (&*open, "pending"));
    let refused = world.client.remove_tasks(remove(&[&open, &open])).await.unwrap_err();
    let wanted = (v1::ErrorReason::InvalidRequest, "tasks[1].task_id".to_owned());
    assert_eq!(reason(&refused), wanted);
    let request = v1::ExportTasksRequest {
        older_than: Some(prost_types::Duration::default()),
        page_token: "AAAA".into(),
        ..v1::ExportTasksRequest::default()
    };
    let refused = world.client.export_tasks(request).await.unwrap_err();
    let wanted = (v1::ErrorReason::PageTokenInvalid, "page_token".to_owned());
    assert_eq!(reason(&refused), wanted);
}
