//! What became of each order against what its line says must become of it.

use stepwell_client::Client;
use stepwell_examples::checkout::Line;
use stepwell_proto::v1::{GetTaskRequest, State, Task};

use crate::fault::Fault;

/// Differences, one sentence each; none when all is as it must be.
pub(crate) async fn judge(client: &Client, tasks: &[(String, Line)]) -> Result<Vec<String>, Fault> {
    let mut differences = Vec::new();
    for (i, (task_id, line)) in tasks.iter().enumerate() {
        let request = GetTaskRequest { task_id: task_id.clone(), ..GetTaskRequest::default() };
        let task = client.get_task(request).await?.task.unwrap_or_default();
        let found = differences_of(&task, line);
        differences.extend(found.into_iter().map(|what| format!("order {}: {what}", i + 1)));
    }
    Ok(differences)
}

fn differences_of(task: &Task, line: &Line) -> Vec<String> {
    let expect = &line.expect;
    let mut found = Vec::new();
    let mut compare = |what: &str, is: String, must: String| {
        if is != must {
            found.push(format!("{what} is {is:?}, must be {must:?}"));
        }
    };
    compare("the state", task.state().word().to_owned(), expect.state.clone());
    let failed = task.steps.iter().find(|step| step.state() == State::Error);
    let failed_step = failed.map(|step| step.name.clone()).unwrap_or_default();
    compare("the failed step", failed_step, expect.failed_step.clone());
    let error = failed.and_then(|step| step.last_error.as_ref());
    let code = error.map(|error| error.error_code.clone()).unwrap_or_default();
    compare("the error code", code, expect.error_code.clone());
    for step in &task.steps {
        let must = expect.attempts.get(&step.name).copied().unwrap_or(0);
        compare(
            &format!("the attempts of {}", step.name),
            step.attempt.to_string(),
            must.to_string(),
        );
    }
    found
}
