//! The whole at one moment. What the store counted is put together here, which is pure; each answer is kept for a
//! while, so that many who look cost as much as one.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use stepwell_proto::{
    id::step_id,
    refusal::Refusal,
    v1::{
        ErrorReason, ExecutionStatusCount, GetOverviewRequest, HandlerSlots, Health, Overview,
        ReadySteps, State, TaskCounts,
    },
};
use stepwell_store::{Named, Store, Whole, WholeBounds, timestamp};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::rule;

const WINDOW_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const WINDOW_MIN: Duration = Duration::from_secs(60);
const WINDOW_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// An answer is given again for so long.
const KEPT: Duration = Duration::from_secs(2);
/// Answers that are kept: each has its namespace and window.
const KEPT_MAX: usize = 16;
/// One is made at a time; longest wait for others that are made before.
const TURN_MAX: Duration = Duration::from_secs(5);
/// Most definitions, ready steps and handlers of an answer.
const DEFINITIONS_MAX: usize = 1_000;
const READY_MAX: usize = 500;
const HANDLERS_MAX: usize = 1_000;

/// The answers of a while. Who asks while one is made waits for it, but not for ever.
pub(crate) struct Overviews {
    kept: Mutex<Vec<(String, Duration, Instant, Overview)>>,
    turn: Semaphore,
}

impl Default for Overviews {
    fn default() -> Self {
        Self { kept: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Overviews {
    pub(crate) async fn get(
        &self,
        store: &Store,
        request: GetOverviewRequest,
    ) -> Result<Overview, Refusal> {
        let (namespace, window) = read(request)?;
        if let Some(overview) = self.known(&namespace, window) {
            return Ok(overview);
        }
        let _turn = self.turn(TURN_MAX).await?;
        if let Some(overview) = self.known(&namespace, window) {
            return Ok(overview);
        }
        let whole = store.whole(&namespace, window, WholeBounds::default()).await?;
        let overview = overview(&whole);
        self.keep(namespace, window, overview.clone());
        Ok(overview)
    }

    async fn turn(&self, longest: Duration) -> Result<SemaphorePermit<'_>, Refusal> {
        match tokio::time::timeout(longest, self.turn.acquire()).await {
            Ok(turn) => Ok(turn.expect("is never closed")),
            Err(_) => Err(Refusal::new(ErrorReason::Overloaded, "others look at the whole")
                .retry_after(Duration::from_secs(1))),
        }
    }

    fn known(&self, namespace: &str, window: Duration) -> Option<Overview> {
        let mut kept = self.kept.lock().expect("no holder panics");
        kept.retain(|(_, _, at, _)| at.elapsed() < KEPT);
        let of = kept.iter().find(|(of, length, ..)| of == namespace && *length == window);
        of.map(|(.., overview)| overview.clone())
    }

    fn keep(&self, namespace: String, window: Duration, overview: Overview) {
        let mut kept = self.kept.lock().expect("no holder panics");
        kept.truncate(KEPT_MAX - 1);
        kept.insert(0, (namespace, window, Instant::now(), overview));
    }
}

/// The namespace and the window that are asked for.
fn read(request: GetOverviewRequest) -> Result<(String, Duration), Refusal> {
    let mut faults = Vec::new();
    if !request.namespace.is_empty() {
        faults.extend(rule::name_fault(&request.namespace).map(|what| ("namespace".into(), what)));
    }
    let window = match request.window {
        None => WINDOW_DEFAULT,
        Some(sent) => stepwell_proto::time::duration(&sent)
            .filter(|window| (WINDOW_MIN..=WINDOW_MAX).contains(window))
            .unwrap_or_else(|| {
                faults.push(("window".into(), "1 min to 30 days".into()));
                WINDOW_DEFAULT
            }),
    };
    if faults.is_empty() { Ok((request.namespace, window)) } else { Err(Refusal::fields(faults)) }
}

/// Counts as they grow.
#[derive(Clone, Default)]
struct Counts {
    counts: TaskCounts,
    statuses: BTreeMap<i32, i64>,
}

impl Counts {
    fn state(&mut self, state: State, n: i64) {
        let counts = &mut self.counts;
        *match state {
            State::Pending => &mut counts.pending_tasks,
            State::InProgress => &mut counts.in_progress_tasks,
            State::Complete => &mut counts.complete_tasks,
            State::Error => &mut counts.error_tasks,
            State::Cancelled => &mut counts.cancelled_tasks,
            State::ResolvedManually => &mut counts.resolved_tasks,
            State::Unspecified => return,
        } += n;
    }

    fn health(&mut self, health: Health, n: i64) {
        let counts = &mut self.counts;
        *match health {
            Health::Healthy => &mut counts.healthy_tasks,
            Health::Recovering => &mut counts.recovering_tasks,
            Health::Blocked => &mut counts.blocked_tasks,
            Health::Unspecified => return,
        } += n;
    }

    fn open(&self) -> i64 {
        self.counts.pending_tasks + self.counts.in_progress_tasks
    }

    fn done(self, namespace: String, name: String, version: String) -> TaskCounts {
        let statuses = self.statuses.into_iter();
        TaskCounts {
            namespace,
            definition_name: name,
            definition_version: version,
            execution_statuses: statuses
                .map(|(execution_status, tasks)| ExecutionStatusCount { execution_status, tasks })
                .collect(),
            ..self.counts
        }
    }
}

fn overview(whole: &Whole) -> Overview {
    let mut all = Counts::default();
    let mut namespaces: BTreeMap<String, Counts> = BTreeMap::new();
    let mut definitions: BTreeMap<Named, Counts> = BTreeMap::new();
    let mut count = |of: &Named, add: &dyn Fn(&mut Counts)| {
        add(&mut all);
        add(namespaces.entry(of.namespace.clone()).or_default());
        add(definitions.entry(of.clone()).or_default());
    };
    for open in &whole.open {
        count(&open.of, &|counts| {
            counts.state(open.state, open.n);
            if let Some((status, health)) = open.stands {
                *counts.statuses.entry(status.into()).or_insert(0) += open.n;
                counts.health(health, open.n);
            }
        });
    }
    for ended in &whole.ended {
        count(&ended.of, &|counts| counts.state(ended.state, ended.n));
    }
    let mut definitions: Vec<(Named, Counts)> = definitions.into_iter().collect();
    definitions.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.open()));
    definitions.truncate(DEFINITIONS_MAX);
    let ready = whole.ready.iter().take(READY_MAX).map(|ready| ReadySteps {
        namespace: ready.of.namespace.clone(),
        definition_name: ready.of.name.clone(),
        definition_version: ready.of.version.clone(),
        handler: ready.handler.clone(),
        steps: ready.steps,
        oldest_step_id: ready
            .oldest
            .map(|(uid, no, _)| step_id(&uid.to_string(), no))
            .unwrap_or_default(),
        oldest_ready_time: ready.oldest.map(|(.., at)| timestamp(at)),
        paused: ready.paused,
    });
    let handlers = whole.offers.iter().take(HANDLERS_MAX).map(|offer| HandlerSlots {
        namespace: offer.namespace.clone(),
        handler: offer.handler.clone(),
        executors: i32::try_from(offer.executors).unwrap_or(i32::MAX),
        slots: offer.slots,
        slots_used: offer.used,
    });
    let no = String::new;
    Overview {
        as_of: Some(timestamp(whole.at)),
        ended_since: Some(timestamp(whole.since)),
        all: Some(all.done(no(), no(), no())),
        namespaces: namespaces
            .into_iter()
            .map(|(namespace, counts)| counts.done(namespace, no(), no()))
            .collect(),
        definitions: definitions
            .into_iter()
            .map(|(of, counts)| counts.done(of.namespace, of.name, of.version))
            .collect(),
        open_complete: whole.open_complete,
        ended_complete: whole.ended_complete,
        ready: ready.collect(),
        ready_complete: whole.ready_complete,
        handlers: handlers.collect(),
        handlers_complete: whole.offers.len() <= HANDLERS_MAX,
    }
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::ExecutionStatus::{self, HasReadySteps, Processing};
    use stepwell_store::{EndedTasks, OpenTasks};

    use super::*;

    fn named(namespace: &str, name: &str) -> Named {
        Named { namespace: namespace.into(), name: name.into(), version: "1.0.0".into() }
    }

    fn open(
        of: Named,
        state: State,
        stands: Option<(ExecutionStatus, Health)>,
        n: i64,
    ) -> OpenTasks {
        OpenTasks { of, state, stands, n }
    }

    #[tokio::test]
    async fn who_waits_too_long_for_others_is_told_so_and_what_is_known_waits_for_nobody() {
        let overviews = Overviews::default();
        let hour = Duration::from_secs(3600);
        let one = Overview { ready_complete: true, ..Overview::default() };
        let turn = overviews.turn(Duration::ZERO).await.unwrap_or_else(|_| panic!());
        let refused = overviews.turn(Duration::ZERO).await.err().unwrap();
        assert_eq!(refused.reason, ErrorReason::Overloaded);
        overviews.keep("shop".into(), hour, one.clone());
        assert_eq!(overviews.known("shop", hour), Some(one));
        assert_eq!(overviews.known("", hour), None);
        drop(turn);
        assert!(overviews.turn(Duration::ZERO).await.is_ok());
    }

    #[test]
    fn counts_add_up_from_definitions_to_namespaces_to_all() {
        let stands = |status| Some((status, Health::Healthy));
        let sick = Some((HasReadySteps, Health::Recovering));
        let ended = |of, state, n| EndedTasks { of, state, n };
        let now = chrono::Utc::now();
        let whole = Whole {
            at: now,
            since: now,
            open: vec![
                open(named("a", "x"), State::Pending, stands(HasReadySteps), 3),
                open(named("a", "y"), State::InProgress, stands(Processing), 5),
                open(named("a", "y"), State::InProgress, sick, 2),
                open(named("b", "x"), State::InProgress, None, 1),
            ],
            open_complete: false,
            ended: vec![
                ended(named("b", "x"), State::Complete, 7),
                ended(named("c", "z"), State::Error, 4),
                ended(named("c", "z"), State::ResolvedManually, 1),
                ended(named("c", "z"), State::Cancelled, 2),
            ],
            ended_complete: true,
            ready: Vec::new(),
            ready_complete: true,
            offers: Vec::new(),
        };
        let of = overview(&whole);
        let all = of.all.unwrap();
        assert_eq!((all.pending_tasks, all.in_progress_tasks, all.complete_tasks), (3, 8, 7));
        assert_eq!((all.error_tasks, all.cancelled_tasks, all.resolved_tasks), (4, 2, 1));
        assert_eq!((all.healthy_tasks, all.recovering_tasks, all.blocked_tasks), (8, 2, 0));
        let statuses = all.execution_statuses.iter().map(|of| (of.execution_status(), of.tasks));
        assert_eq!(statuses.collect::<Vec<_>>(), [(HasReadySteps, 5), (Processing, 5)]);
        let named = |counts: &[TaskCounts]| -> Vec<String> {
            counts.iter().map(|of| format!("{} {}", of.namespace, of.definition_name)).collect()
        };
        assert_eq!(named(&of.namespaces), ["a ", "b ", "c "]);
        assert_eq!(named(&of.definitions), ["a y", "a x", "b x", "c z"]);
        let sum = |of: &[TaskCounts]| of.iter().map(|of| of.in_progress_tasks).sum::<i64>();
        assert_eq!((sum(&of.namespaces), sum(&of.definitions)), (8, 8));
        assert!(!of.open_complete && of.ended_complete);
    }

    #[test]
    fn a_wrong_question_about_the_whole_is_refused_with_its_field() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let request =
            |namespace: &str, window| GetOverviewRequest { namespace: namespace.into(), window };
        assert_eq!(read(request("", None)), Ok((String::new(), WINDOW_DEFAULT)));
        assert_eq!(read(request("a", seconds(60))), Ok(("a".into(), WINDOW_MIN)));
        for (request, field) in [
            (request("a b", None), "namespace"),
            (request("", seconds(59)), "window"),
            (request("", seconds(-1)), "window"),
            (request("", seconds(30 * 24 * 3600 + 1)), "window"),
        ] {
            assert_eq!(read(request).unwrap_err().violations[0].0, field);
        }
    }
}
