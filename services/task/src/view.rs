//! How tasks stand, for people: contexts, summaries, graphs and the readiness of steps. Read by the store in one
//! moment each, put together here, which is pure.

use prost::Message;
use stepwell_proto::{
    id::step_id,
    page::{self, place, token},
    refusal::Refusal,
    v1::{
        BatchGetTaskContextsRequest, BatchGetTaskContextsResponse, BatchGetTaskContextsResult,
        BlockedStep, GetTaskResponse, GraphStep, ListStepReadinessRequest,
        ListStepReadinessResponse, Obstacle, ObstacleKind, ProcessingStrategy, Standing, State,
        StepReadiness, StepRef, Task, TaskContext, TaskGraph, TaskSummary,
        batch_get_task_contexts_result::Outcome,
    },
};
use stepwell_serve::MESSAGE_BYTES_MAX;
use stepwell_store::{StandingStep, Store, Summed, TaskSteps, timestamp};
use uuid::Uuid;

use crate::{
    bulk::page_size,
    graph::{drawn, number},
    service::{task_id, task_not_found},
};

/// Most tasks of a batch, and the most steps they have together.
const BATCH_MAX: usize = 100;
const BATCH_STEPS_MAX: i64 = 100_000;
/// Most steps of a list of a summary, and its bytes.
const LISTED_MAX: usize = 1_000;
const LISTED_BYTES_MAX: usize = 1 << 20;
/// Most steps of a page of readiness, and its bytes.
const PAGE_MAX: i32 = 1_000;
const PAGE_BYTES_MAX: usize = 2 << 20;

/// How a task stands.
pub(crate) async fn context(store: &Store, uid: Uuid) -> Result<TaskContext, Refusal> {
    store.task_contexts(&[uid]).await?.remove(&uid).ok_or_else(|| task_not_found(uid))
}

/// How many tasks stand.
pub(crate) async fn contexts(
    store: &Store,
    request: BatchGetTaskContextsRequest,
) -> Result<BatchGetTaskContextsResponse, Refusal> {
    if !(1..=BATCH_MAX).contains(&request.task_ids.len()) {
        return Err(Refusal::field("task_ids", format!("1 to {BATCH_MAX} are wanted")));
    }
    let (mut uids, mut faults) = (Vec::new(), Vec::new());
    for (i, text) in request.task_ids.iter().enumerate() {
        match crate::plan::uid(text) {
            Ok(uid) => uids.push(uid),
            Err(what) => faults.push((format!("task_ids[{i}]"), what)),
        }
    }
    if !faults.is_empty() {
        return Err(Refusal::fields(crate::rule::bounded(faults)));
    }
    let steps = store.steps_of(&uids).await?;
    if steps > BATCH_STEPS_MAX {
        let what = format!("they have {steps} steps; at most {BATCH_STEPS_MAX} are allowed");
        return Err(Refusal::field("task_ids", what));
    }
    let found = store.task_contexts(&uids).await?;
    let outcome = |uid: &Uuid| match found.get(uid) {
        Some(context) => Outcome::Context(context.clone()),
        None => Outcome::Refusal(task_not_found(*uid).into()),
    };
    let results = uids.iter().map(|uid| BatchGetTaskContextsResult { outcome: Some(outcome(uid)) });
    Ok(BatchGetTaskContextsResponse { results: results.collect() })
}

/// How a task stands, and which steps that comes from.
pub(crate) async fn summary(store: &Store, uid: Uuid) -> Result<TaskSummary, Refusal> {
    let summed = store.task_summed(uid).await?.ok_or_else(|| task_not_found(uid))?;
    Ok(summary_of(&summed))
}

fn summary_of(summed: &Summed) -> TaskSummary {
    let (context, task) = (&summed.context, &summed.steps);
    let listed = |is: &dyn Fn(usize, &StandingStep) -> bool| -> Vec<i32> {
        let steps = task.steps.iter().enumerate().filter(|(i, step)| is(*i, step));
        steps.map(|(i, _)| number(i)).collect()
    };
    let roots = listed(&|i, _| task.definition.parents[i].is_empty());
    let ready = listed(&|_, step| step.standing == Standing::Ready);
    let blocked = listed(&|_, step| step.standing == Standing::Blocked);
    let (strategy, most) = strategy(context.ready_steps);
    TaskSummary {
        root_step_count: number(roots.len()),
        root_steps: fitting(roots.iter().map(|n| step_ref(task, *n)), LISTED_MAX, LISTED_BYTES_MAX),
        next_executable_steps: fitting(
            ready.iter().map(|n| step_ref(task, *n)),
            LISTED_MAX,
            LISTED_BYTES_MAX,
        ),
        blocked_steps: fitting(
            blocked.iter().map(|n| BlockedStep {
                step: Some(step_ref(task, *n)),
                reasons: obstacles(task, *n).into_iter().filter(blocks).collect(),
            }),
            LISTED_MAX,
            LISTED_BYTES_MAX,
        ),
        processing_strategy: strategy.into(),
        batch_size: most.min(context.ready_steps).min(summed.room.unwrap_or(most)),
        context: Some(context.clone()),
    }
}

/// What so many ready steps call for, and how many of them to take at most.
fn strategy(ready: i32) -> (ProcessingStrategy, i32) {
    match ready {
        ..1 => (ProcessingStrategy::Waiting, 0),
        1 => (ProcessingStrategy::Sequential, 1),
        2..=5 => (ProcessingStrategy::SmallParallel, 3),
        6.. => (ProcessingStrategy::BatchParallel, 10),
    }
}

fn blocks(obstacle: &Obstacle) -> bool {
    matches!(
        obstacle.kind(),
        ObstacleKind::ParentCancelled | ObstacleKind::ParentBlocked | ObstacleKind::ParentFailed
    )
}

/// What depends on what, with states.
pub(crate) async fn graph(store: &Store, uid: Uuid) -> Result<TaskGraph, Refusal> {
    let task = store.task_steps(uid).await?.ok_or_else(|| task_not_found(uid))?;
    Ok(graph_of(&task))
}

/// A task with its steps, and what of them depends on what.
pub(crate) async fn with_graph(
    store: &Store,
    uid: Uuid,
    include_results: bool,
) -> Result<GetTaskResponse, Refusal> {
    let found = store.task_with_standings(uid, include_results).await?;
    let (task, steps) = found.ok_or_else(|| task_not_found(uid))?;
    Ok(beside(task, graph_of(&steps)))
}

/// The graph beside the task, if both fit into an answer.
fn beside(task: Task, graph: TaskGraph) -> GetTaskResponse {
    let fits = task.encoded_len() + graph.encoded_len() <= MESSAGE_BYTES_MAX - (64 << 10);
    let graph = Some(graph).filter(|_| fits);
    GetTaskResponse { task: Some(task), graph, graph_omitted: !fits }
}

fn graph_of(task: &TaskSteps) -> TaskGraph {
    let (depths, drawing) = drawn(&task.definition);
    let standing = task.steps.iter().zip(drawing.parents).zip(&task.definition.children);
    let steps = standing.enumerate().map(|(i, ((step, parents), children))| GraphStep {
        number: number(i),
        name: name(task, number(i)),
        state: step.state.into(),
        standing: step.standing.into(),
        parent_count: number(parents.len()),
        child_count: number(children.len()),
        is_root: parents.is_empty(),
        is_leaf: children.is_empty(),
        level: number(depths.levels[i]),
        distance: number(depths.distances[i]),
        parents,
        children: children.clone(),
    });
    TaskGraph {
        task_id: task.uid.to_string(),
        state: task.state.into(),
        steps: steps.collect(),
        edges: drawing.edges,
        levels: drawing.levels,
        longest_path: drawing.longest_path,
    }
}

/// A page of what is in the way of each step.
pub(crate) async fn readiness(
    store: &Store,
    request: ListStepReadinessRequest,
) -> Result<ListStepReadinessResponse, Refusal> {
    let uid = task_id(&request.task_id)?;
    let size = page_size(request.page_size, PAGE_MAX)?;
    let list = page::list("readiness", uid);
    let first = place(&request.page_token, list)?.unwrap_or(0);
    let task = store.task_steps(uid).await?.ok_or_else(|| task_not_found(uid))?;
    let first = i32::try_from(first).unwrap_or(i32::MAX);
    let steps = (first..number(task.steps.len())).map_while(|n| readiness_of(&task, n));
    let steps = fitting(steps, usize::try_from(size).unwrap_or(0), PAGE_BYTES_MAX);
    let next = first.saturating_add(number(steps.len()));
    let next = (next < number(task.steps.len())).then_some(i64::from(next));
    Ok(ListStepReadinessResponse { steps, next_page_token: token(list, next) })
}

fn readiness_of(task: &TaskSteps, number: i32) -> Option<StepReadiness> {
    let at = usize::try_from(number).ok()?;
    let step = task.steps.get(at)?;
    let total_parents = self::number(task.definition.parents.get(at)?.len());
    let attempts_left = (step.max_attempts - step.attempt).max(0);
    let under_way = matches!(step.state, State::Pending | State::InProgress);
    Some(StepReadiness {
        step: Some(step_ref(task, number)),
        state: step.state.into(),
        standing: step.standing.into(),
        total_parents,
        completed_parents: total_parents - step.waiting_on,
        dependencies_satisfied: step.waiting_on == 0,
        retry_eligible: under_way && attempts_left > 0,
        attempt: step.attempt,
        max_attempts: step.max_attempts,
        attempts_left,
        next_attempt_time: step.not_before.map(timestamp),
        ready: step.standing == Standing::Ready,
        obstacles: obstacles(task, number),
    })
}

fn obstacles(task: &TaskSteps, number: i32) -> Vec<Obstacle> {
    task.surroundings(number).map(|of| of.obstacles()).unwrap_or_default()
}

fn step_ref(task: &TaskSteps, number: i32) -> StepRef {
    let step_id = step_id(&task.uid.to_string(), number);
    StepRef { step_id, number, name: name(task, number) }
}

fn name(task: &TaskSteps, number: i32) -> String {
    task.definition.step(number).map(|step| step.name.clone()).unwrap_or_default()
}

/// The first of these, so many and so many bytes at most, but one in any case.
fn fitting<M: Message>(items: impl Iterator<Item = M>, most: usize, bytes_max: usize) -> Vec<M> {
    let mut bytes = 0;
    let fits = |(i, item): &(usize, M)| {
        // With its tag and length.
        bytes += item.encoded_len() + 6;
        *i == 0 || bytes <= bytes_max
    };
    items.take(most).enumerate().take_while(fits).map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stepwell_proto::v1::{Definition, StepTemplate};
    use stepwell_store::StoredDefinition;

    use super::*;

    /// As large as a task may be: each step with the ten before it as parents, under long names.
    fn largest(standing: Standing) -> TaskSteps {
        let parents: Vec<Vec<i32>> =
            (0..10_000).map(|n: i32| ((n - 10).max(0)..n).collect()).collect();
        let mut children = vec![Vec::new(); parents.len()];
        for (child, parents) in parents.iter().enumerate() {
            parents.iter().for_each(|p| children[usize::try_from(*p).unwrap()].push(number(child)));
        }
        let template = |n: usize| StepTemplate { name: format!("{n:0>64}"), ..Default::default() };
        let step = StandingStep {
            state: State::Pending,
            standing,
            waiting_on: 10,
            attempt: 1_000,
            max_attempts: 1_000,
            not_before: None,
        };
        let definition = StoredDefinition {
            id: 1,
            version: [1, 0, 0],
            definition: Definition {
                steps: (0..parents.len()).map(template).collect(),
                ..Definition::default()
            },
            queues: vec![1; parents.len()],
            parents,
            children,
            ..StoredDefinition::default()
        };
        TaskSteps {
            uid: Uuid::now_v7(),
            state: State::InProgress,
            steps: vec![step; definition.parents.len()],
            definition: Arc::new(definition),
            paused: false,
            held: false,
            running: 0,
        }
    }

    #[test]
    fn the_largest_graph_fits_into_an_answer() {
        let graph = graph_of(&largest(Standing::Blocked));
        assert_eq!(
            (graph.steps.len(), graph.edges.len(), graph.levels.len()),
            (10_000, 99_945, 10_000)
        );
        let bytes = graph.encoded_len();
        assert!(bytes < MESSAGE_BYTES_MAX - (64 << 10), "{bytes} bytes");
    }

    #[test]
    fn a_graph_that_does_not_fit_beside_its_task_is_left_out_and_said_to_be() {
        let graph = graph_of(&largest(Standing::Blocked));
        let task = |bytes| Task { context: "x".repeat(bytes), ..Task::default() };
        let small = beside(task(1), TaskGraph::default());
        assert!(small.graph.is_some() && !small.graph_omitted);
        let large = beside(task(3 << 20), graph);
        assert!(large.graph.is_none() && large.graph_omitted);
        assert_eq!(large.task, Some(task(3 << 20)));
    }

    #[test]
    fn the_lists_of_the_largest_summary_are_cut_and_their_counts_are_whole() {
        for (standing, ready_steps, blocked_steps) in
            [(Standing::Blocked, 0, 10_000), (Standing::Ready, 10_000, 0)]
        {
            let context = TaskContext { ready_steps, blocked_steps, ..TaskContext::default() };
            let summed = Summed { context, room: None, steps: largest(standing) };
            let summary = summary_of(&summed);
            let bytes = summary.encoded_len();
            assert!(bytes < MESSAGE_BYTES_MAX - (64 << 10), "{bytes} bytes");
            let listed = summary.blocked_steps.len() + summary.next_executable_steps.len();
            assert!((100..=1_000).contains(&listed), "{listed}");
            assert_eq!(summary.context, Some(summed.context));
        }
    }

    #[test]
    fn a_list_has_one_in_any_case_and_ends_before_what_does_not_fit() {
        let items = || (1..=9).map(|n| StepRef { name: "x".repeat(100 * n), ..Default::default() });
        let lengths = |most, bytes_max| fitting(items(), most, bytes_max).len();
        assert_eq!(
            [lengths(9, 0), lengths(9, 350), lengths(9, 9_999), lengths(4, 9_999)],
            [1, 2, 9, 4]
        );
    }

    #[test]
    fn the_number_of_ready_steps_decides_the_strategy_and_the_room_of_the_task_the_batch() {
        use ProcessingStrategy::{BatchParallel, Sequential, SmallParallel, Waiting};
        for (ready, room, wanted, batch) in [
            (0, None, Waiting, 0),
            (1, None, Sequential, 1),
            (2, None, SmallParallel, 2),
            (5, None, SmallParallel, 3),
            (6, None, BatchParallel, 6),
            (11, None, BatchParallel, 10),
            (11, Some(4), BatchParallel, 4),
            (5, Some(9), SmallParallel, 3),
        ] {
            let context = TaskContext { ready_steps: ready, ..TaskContext::default() };
            let mut steps = largest(Standing::Waiting);
            steps.steps.truncate(1);
            let summary = summary_of(&Summed { context, room, steps });
            assert_eq!(
                (summary.processing_strategy(), summary.batch_size),
                (wanted, batch),
                "{ready}"
            );
        }
    }
}
