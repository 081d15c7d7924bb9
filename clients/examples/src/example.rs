//! What an example is: definitions, executors, servers that they call, and inputs with what must become of
//! each. [`Example::check`] runs all of them and tells what became otherwise.

use std::{collections::BTreeMap, time::Duration};

use axum::{Router, serve::ListenerExt};
use serde::Deserialize;
use serde_json::Value;
use stepwell_client::{Client, Error, Executor, Start, Subscription, v1};
use tokio::net::TcpListener;

/// How long a task of an example may take. Most take less than a second.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// An example.
#[derive(Clone, Copy)]
pub struct Example {
    /// Its name: `analytics`.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Its definitions, as they are registered, each with its namespace.
    pub definitions: &'static [(&'static str, &'static str)],
    /// Namespace and name of the definition whose tasks the inputs are.
    pub of: (&'static str, &'static str),
    /// Its inputs: a JSON array of [`Input`].
    pub inputs: &'static str,
    pub(crate) servers: fn() -> Router,
    pub(crate) executors: fn(&Client, &str) -> Result<Vec<Executor>, String>,
}

/// The context of a task, and what must become of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// What is special about it.
    pub about: String,
    /// Namespace and name of the definition, where it is another one than that of the example.
    pub of: Option<(String, String)>,
    /// The context.
    pub context: Value,
    /// What a person says of steps that wait for one: the result of each.
    #[serde(default)]
    pub people: BTreeMap<String, Value>,
    /// What must become of it.
    pub expect: Expectation,
}

/// How a task must end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// `complete` or `error`.
    pub state: String,
    /// The steps in error, each with the code of its failure.
    #[serde(default)]
    pub failed: BTreeMap<String, String>,
    /// The steps that were resolved, by a person or a program.
    #[serde(default)]
    pub resolved: Vec<String>,
    /// Attempts of each complete step that took another number than one. None: any.
    #[serde(default)]
    pub attempts: BTreeMap<String, Option<i32>>,
    /// The steps that were never started: they are pending.
    #[serde(default)]
    pub pending: Vec<String>,
    /// What results have, those of steps that are not named aside: objects may have more members.
    #[serde(default)]
    pub results: BTreeMap<String, Value>,
    /// What the messages of failures contain.
    #[serde(default)]
    pub messages: BTreeMap<String, String>,
}

impl Example {
    /// Its inputs.
    pub fn inputs(&self) -> Result<Vec<Input>, String> {
        serde_json::from_str(self.inputs).map_err(|error| format!("{}: {error}", self.name))
    }

    /// Its executors, which call the servers at `http://host:port`. Errors: what is no such address.
    pub fn executors(&self, client: &Client, servers: &str) -> Result<Vec<Executor>, String> {
        (self.executors)(client, servers.trim_end_matches('/'))
    }

    /// Serves what its executors call until the process ends.
    pub async fn serve(&self, listener: TcpListener) -> std::io::Result<()> {
        let listener = listener.tap_io(|stream| {
            // Without it answers may wait for an acknowledgement, but they come all the same.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, (self.servers)()).await
    }

    /// Runs all inputs, over executors that are there, and answers what became otherwise than it must, one
    /// sentence each.
    pub async fn check(&self, client: &Client) -> Result<Vec<String>, Error> {
        let mut tasks = Vec::new();
        for input in self.inputs().map_err(Error::Invalid)? {
            let (namespace, name) = match &input.of {
                Some((namespace, name)) => (namespace.as_str(), name.as_str()),
                None => self.of,
            };
            let task = client.task(name).namespace(namespace).context(&input.context);
            let task = task.initiator("example").reason(input.about.clone()).create().await?;
            tasks.push((task.task_id, input));
        }
        let mut differences = Vec::new();
        for (task_id, input) in &tasks {
            answer(client, task_id, &input.people).await?;
            client.wait_task(task_id, ENDS_WITHIN).await?;
            let request = v1::GetTaskRequest {
                task_id: task_id.clone(),
                include_results: true,
                ..Default::default()
            };
            let task = client.get_task(request).await?.task.unwrap_or_default();
            let found = input.expect.differences(&task).into_iter();
            differences.extend(found.map(|what| format!("{}: {what}", input.about)));
        }
        Ok(differences)
    }
}

/// Resolves steps as people would, once all that they depend on is done.
async fn answer(
    client: &Client,
    task_id: &str,
    people: &BTreeMap<String, Value>,
) -> Result<(), Error> {
    for (name, result) in people {
        let ready = Subscription::new().names(["step.completed"]).tasks([task_id]);
        let mut feed = client.subscribe(ready.from(Start::Earliest)).await?;
        let mut released = false;
        while !released && let Some(delivery) = feed.next().await {
            released = delivery?.events.iter().any(|event| match &event.detail {
                Some(v1::event::Detail::StepCompleted(completed)) => {
                    completed.released.contains(name)
                }
                _ => false,
            });
        }
        let request = v1::GetTaskRequest { task_id: task_id.to_owned(), ..Default::default() };
        let task = client.get_task(request).await?.task.unwrap_or_default();
        let step = task.steps.into_iter().find(|step| step.name == *name);
        let request = v1::ResolveStepRequest {
            step_id: step.unwrap_or_default().step_id,
            resolved_by: "example".into(),
            reason: "a person said so".into(),
            result: result.to_string(),
            ..v1::ResolveStepRequest::default()
        };
        client.resolve_step(request).await?;
    }
    Ok(())
}

impl Expectation {
    /// What became of a task otherwise than it must, one sentence each.
    pub fn differences(&self, task: &v1::Task) -> Vec<String> {
        let mut found = Vec::new();
        if task.state().word() != self.state {
            found.push(format!("the state is {}, must be {}", task.state().word(), self.state));
        }
        for step in &task.steps {
            let name = &step.name;
            let error = step.last_error.clone().unwrap_or_default();
            let failed = self.failed.get(name);
            let state = if failed.is_some() {
                v1::State::Error
            } else if self.pending.contains(name) {
                v1::State::Pending
            } else if self.resolved.contains(name) {
                v1::State::ResolvedManually
            } else {
                v1::State::Complete
            };
            if step.state() != state {
                let (is, must) = (step.state().word(), state.word());
                found.push(format!(
                    "{name} is {is}, must be {must} ({}: {})",
                    error.error_code, error.message
                ));
            }
            if failed.is_some_and(|code| *code != error.error_code) {
                found.push(format!("{name} failed with {}: {}", error.error_code, error.message));
            }
            let attempts = match self.attempts.get(name) {
                Some(attempts) => *attempts,
                None => Some(i32::from(matches!(state, v1::State::Complete | v1::State::Error))),
            };
            if attempts.is_some_and(|attempts| attempts != step.attempt) {
                found.push(format!("{name} took {} attempts: {}", step.attempt, error.message));
            }
            if let Some(text) = self.messages.get(name)
                && !error.message.contains(text)
            {
                found.push(format!("{name} says {:?}, not {text:?}", error.message));
            }
            if let Some(must) = self.results.get(name) {
                let is = serde_json::from_str(&step.result).unwrap_or_default();
                if !contains(&is, must) {
                    found.push(format!("{name} returned {is}, must be {must}"));
                }
            }
        }
        let named = self.failed.keys().chain(self.attempts.keys()).chain(self.results.keys());
        let named = named.chain(&self.pending).chain(&self.resolved).chain(self.messages.keys());
        for name in named.filter(|name| task.steps.iter().all(|step| step.name != **name)) {
            found.push(format!("there is no step {name}"));
        }
        found
    }
}

/// Whether a value is what it must be; its objects may have more members.
fn contains(is: &Value, must: &Value) -> bool {
    match (is, must) {
        (Value::Object(is), Value::Object(must)) => {
            must.iter().all(|(key, must)| is.get(key).is_some_and(|is| contains(is, must)))
        }
        (Value::Array(is), Value::Array(must)) => {
            is.len() == must.len() && is.iter().zip(must).all(|(is, must)| contains(is, must))
        }
        _ => is == must,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task() -> v1::Task {
        let step = |name: &str, state: v1::State, attempt: i32| v1::Step {
            name: name.into(),
            state: state.into(),
            attempt,
            ..v1::Step::default()
        };
        let mut paid = step("pay", v1::State::Error, 2);
        paid.last_error = Some(v1::Failure { error_code: "NO".into(), ..v1::Failure::default() });
        let mut looked = step("look", v1::State::Complete, 1);
        looked.result = r#"{"sum": 7.50, "all": [{"a": 1, "b": 2}]}"#.into();
        let steps = vec![looked, paid, step("ask", v1::State::ResolvedManually, 0)];
        v1::Task {
            state: v1::State::Error.into(),
            steps: [steps, vec![step("send", v1::State::Pending, 0)]].concat(),
            ..v1::Task::default()
        }
    }

    fn expectation(change: impl FnOnce(&mut Value)) -> Expectation {
        let mut expect = json!({
            "state": "error", "failed": {"pay": "NO"}, "attempts": {"pay": 2},
            "resolved": ["ask"], "pending": ["send"],
            "results": {"look": {"all": [{"a": 1}]}},
        });
        change(&mut expect);
        serde_json::from_value(expect).unwrap()
    }

    #[test]
    fn a_task_that_ended_as_it_must_has_no_differences_and_any_other_has_its_own() {
        assert_eq!(expectation(|_| {}).differences(&task()), Vec::<String>::new());
        type Change = (fn(&mut Value), &'static str);
        let changes: [Change; 9] = [
            (|e| e["state"] = json!("complete"), "the state is error"),
            (|e| e["failed"]["pay"] = json!("YES"), "pay failed with NO"),
            (|e| e["failed"] = json!({}), "pay is error, must be complete"),
            (|e| e["attempts"]["pay"] = json!(3), "pay took 2 attempts"),
            (|e| e["resolved"] = json!([]), "ask is resolved_manually, must be complete"),
            (|e| e["pending"] = json!(["send", "look"]), "look is complete, must be pending"),
            (|e| e["results"]["look"]["all"] = json!([{"a": 2}]), "look returned"),
            (|e| e["messages"] = json!({"pay": "why"}), "pay says"),
            (|e| e["results"]["lok"] = json!(1), "there is no step lok"),
        ];
        for (change, said) in changes {
            let found = expectation(change).differences(&task());
            assert!(found.iter().any(|what| what.contains(said)), "{said}: {found:?}");
        }
    }
}
