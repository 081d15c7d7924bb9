//! What the views say of tasks, made from the model in the plainest way: each count is counted, each way up a graph
//! is walked.

use stepwell_proto::v1::State;

use super::model::{Id, Model};

/// Lays the views beside the model; a line for each task.
pub fn differences(model: &Model, found: &[String]) -> Result<(), String> {
    let created = (0..model.tasks.len()).filter(|task| model.tasks[*task].is_some());
    let expected: Vec<String> = created.map(|task| line(model, task)).collect();
    if expected == found {
        return Ok(());
    }
    Err(format!("views: expected\n{}\nfound\n{}", expected.join("\n"), found.join("\n")))
}

fn line(model: &Model, task: usize) -> String {
    let of = model.task(task);
    let steps: Vec<Id> = (0..of.steps.len()).map(|no| Id { task, no }).collect();
    let standings: Vec<&str> = steps.iter().map(|id| standing(model, *id)).collect();
    let are = |word: &str| standings.iter().filter(|standing| **standing == word).count();
    let are_in = |state: State| steps.iter().filter(|id| model.step(**id).state == state).count();
    let retrying = steps.iter().filter(|id| {
        let step = model.step(**id);
        matches!(step.state, State::Pending | State::InProgress) && step.last_error.is_some()
    });
    let complete = are_in(State::Complete) + are_in(State::ResolvedManually);
    let mut words = vec![
        task.to_string(),
        (of.state as i32).to_string(),
        yes(is_paused(model, task)),
        yes(is_held(model, task)),
    ];
    words.extend(room(model, task).map(|room| room.to_string()));
    let counts = [
        steps.len(),
        are_in(State::Pending),
        are_in(State::InProgress),
        complete,
        are_in(State::ResolvedManually),
        are_in(State::Error),
        are_in(State::Cancelled),
        are("ready"),
        are("parked"),
        are("backing_off"),
        are("waiting"),
        are("blocked"),
        retrying.count(),
    ];
    words.extend(counts.map(|n| n.to_string()));
    words.push(status(model, task, &standings).to_owned());
    words.push(health(model, task, &standings).to_owned());
    words.push((complete * 10_000 / steps.len()).to_string());
    words.extend(standings.into_iter().map(str::to_owned));
    words.join(" ")
}

fn yes(is: bool) -> String {
    if is { "t" } else { "f" }.to_owned()
}

fn is_paused(model: &Model, task: usize) -> bool {
    let of = model.task(task);
    of.paused || model.is_stopped(of.plan)
}

fn is_held(model: &Model, task: usize) -> bool {
    model.task(task).held && model.is_open(task)
}

/// How many steps may be started; none: any number.
fn room(model: &Model, task: usize) -> Option<usize> {
    let most = usize::from(model.plans[model.task(task).plan].rules.max_parallel);
    if is_paused(model, task) || is_held(model, task) || !model.is_open(task) {
        return Some(0);
    }
    (most > 0).then(|| most.saturating_sub(model.in_state(task, State::InProgress)))
}

fn standing(model: &Model, id: Id) -> &'static str {
    if model.step(id).state != State::Pending {
        "-"
    } else if model.waiting_on(id) > 0 {
        if is_blocked(model, id) { "blocked" } else { "waiting" }
    } else if model.step(id).not_before.is_some_and(|until| until > model.now) {
        "backing_off"
    } else if room(model, id.task) == Some(0) {
        "parked"
    } else {
        "ready"
    }
}

/// True if some way up from it, over steps that are pending, comes to one in error or a cancelled one.
fn is_blocked(model: &Model, id: Id) -> bool {
    let plan = &model.plans[model.task(id.task).plan];
    let mut above = vec![id.no];
    for at in 0.. {
        let Some(no) = above.get(at) else { break };
        for parent in &plan.steps[*no].parents {
            match model.step(Id { no: *parent, ..id }).state {
                State::Error | State::Cancelled => return true,
                State::Pending if !above.contains(parent) => above.push(*parent),
                _ => {}
            }
        }
    }
    false
}

fn status(model: &Model, task: usize, standings: &[&str]) -> &'static str {
    let of = model.task(task);
    let any = |words: &[&str]| standings.iter().any(|standing| words.contains(standing));
    match of.state {
        State::Complete => "all_complete",
        State::Cancelled => "cancelled",
        State::ResolvedManually => "resolved_manually",
        State::Error => "blocked_by_failures",
        _ if any(&["ready"]) => "has_ready_steps",
        _ if model.in_state(task, State::InProgress) > 0 => "processing",
        _ if is_paused(model, task) => "paused",
        _ if of.held => "waiting_for_key",
        // Nothing else leaves a task open.
        _ => "backing_off",
    }
}

fn health(model: &Model, task: usize, standings: &[&str]) -> &'static str {
    let of = model.task(task);
    let stuck = model.in_state(task, State::Error) > 0 || standings.contains(&"blocked");
    let failed_before = |no: &usize| {
        let step = model.step(Id { task, no: *no });
        matches!(step.state, State::Pending | State::InProgress) && step.last_error.is_some()
    };
    let retrying = (0..of.steps.len()).any(|no| failed_before(&no));
    match (stuck, standings.contains(&"ready"), retrying) {
        _ if matches!(of.state, State::Complete | State::Cancelled | State::ResolvedManually) => {
            "healthy"
        }
        (true, false, _) => "blocked",
        (true, true, _) | (false, _, true) => "recovering",
        (false, _, false) => "healthy",
    }
}
