//! How a task goes, as its events tell: what `stepwell task run` and `stepwell task watch` draw. Pure: events go
//! in, lines come out. What follows the stream and moves the terminal is in `follow.rs`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use stepwell_proto::v1::{Event, State, Step, Task, event::Detail};

use crate::{output, span::shown};

/// More steps than this are counted by handler.
const STEPS_MAX: usize = 30;
/// Lines at most, the footer left out.
const LINES_MAX: usize = 30;
/// Names are cut behind so many characters.
const NAME_MAX: usize = 32;
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// A task under way.
pub(crate) struct Progress {
    state: State,
    paused: bool,
    begun: Instant,
    steps: Vec<Row>,
}

struct Row {
    name: String,
    handler: String,
    state: State,
    attempt: i32,
    max_attempts: i32,
    started: Option<Instant>,
    took: Option<Duration>,
    note: String,
}

impl Row {
    fn of(step: &Step, now: Instant) -> Self {
        let runs = step.state() == State::InProgress;
        let error = step.last_error.as_ref().filter(|_| step.state() != State::Complete);
        Self {
            name: step.name.clone(),
            handler: step.handler.clone(),
            state: step.state(),
            attempt: step.attempt,
            max_attempts: step.max_attempts,
            started: runs.then(|| now.checked_sub(since(step)).unwrap_or(now)),
            took: None,
            note: error
                .map(|error| failure(&error.error_class, &error.message))
                .unwrap_or_default(),
        }
    }

    fn waits_for_retry(&self) -> bool {
        self.state == State::Pending && self.attempt > 0
    }

    fn mark(&self, paused: bool, frame: usize) -> char {
        match self.state {
            State::Complete | State::ResolvedManually => '✔',
            State::Error => '✖',
            State::Cancelled => '⊘',
            State::InProgress => SPINNER[frame % SPINNER.len()],
            State::Pending | State::Unspecified if paused => '⏸',
            State::Pending | State::Unspecified if self.waits_for_retry() => '↻',
            State::Pending | State::Unspecified => '·',
        }
    }

    fn line(
        &self,
        width: usize,
        paused: bool,
        now: Instant,
        frame: usize,
        coloured: bool,
    ) -> String {
        let name = output::cut(&self.name, NAME_MAX);
        let mark = format!("{} {name:<width$}", self.mark(paused, frame));
        let mut parts = vec![output::state_text(self.state.word(), &mark, coloured)];
        if self.attempt > 1 || self.waits_for_retry() {
            parts.push(format!("{}/{}", self.attempt, self.max_attempts));
        }
        let took = self.took.or_else(|| self.started.map(|at| now.saturating_duration_since(at)));
        parts.extend(took.map(shown));
        match self.state {
            State::ResolvedManually => parts.push("by hand".into()),
            State::Cancelled => parts.push("cancelled".into()),
            _ => {}
        }
        if !self.note.is_empty() {
            parts.push(output::plain(&self.note));
        }
        parts.join("  ")
    }
}

impl Progress {
    /// As the task is.
    pub(crate) fn of(task: &Task, now: Instant) -> Self {
        Self {
            state: task.state(),
            paused: task.paused,
            begun: now,
            steps: task.steps.iter().map(|step| Row::of(step, now)).collect(),
        }
    }

    /// Goes on by an event.
    pub(crate) fn take(&mut self, event: &Event, now: Instant) {
        if event.step_name.is_empty() {
            if event.to_state() != State::Unspecified {
                self.state = event.to_state();
            }
            match event.detail {
                Some(Detail::TaskPaused(_)) => self.paused = true,
                Some(Detail::TaskResumed(_)) => self.paused = false,
                _ => {}
            }
            return;
        }
        let Some(step) = self.steps.iter_mut().find(|step| step.name == event.step_name) else {
            return;
        };
        step.attempt = step.attempt.max(event.attempt);
        match event.to_state() {
            State::Unspecified => {}
            State::InProgress => {
                (step.state, step.started, step.took) = (State::InProgress, Some(now), None);
                step.note.clear();
            }
            state => {
                step.took = step.started.take().map(|at| now.saturating_duration_since(at));
                step.state = state;
            }
        }
        match &event.detail {
            Some(Detail::StepCompleted(completed)) => {
                step.took = completed.ran_for.and_then(|ran| ran.try_into().ok()).or(step.took);
                step.note.clear();
            }
            Some(Detail::StepFailed(failed)) => {
                let error = failed.error.clone().unwrap_or_default();
                step.note = failure(&error.error_class, &error.message);
                step.max_attempts = failed.max_attempts.max(step.max_attempts);
            }
            Some(Detail::StepUpdated(updated)) if updated.max_attempts > 0 => {
                step.max_attempts = updated.max_attempts;
            }
            Some(Detail::StepUnserved(_)) => step.note = "no executor offers its handler".into(),
            // What the handler tells while it runs.
            Some(Detail::CustomEvent(custom)) => {
                step.note = format!("{} {}", event.name, custom.data);
            }
            _ => {}
        }
    }

    /// The state it ended in.
    pub(crate) fn ended(&self) -> Option<State> {
        match self.state {
            State::Unspecified | State::Pending | State::InProgress => None,
            ended => Some(ended),
        }
    }

    /// What is to be seen now; the last line counts.
    pub(crate) fn lines(&self, now: Instant, frame: usize, coloured: bool) -> Vec<String> {
        let mut lines = if self.steps.len() > STEPS_MAX {
            self.by_handler(frame, coloured)
        } else {
            let names = self.steps.iter().map(|step| step.name.chars().count().min(NAME_MAX));
            let width = names.max().unwrap_or_default();
            let steps = self.steps.iter();
            steps.map(|step| step.line(width, self.paused, now, frame, coloured)).collect()
        };
        if lines.len() > LINES_MAX {
            let more = lines.len() - LINES_MAX;
            lines.truncate(LINES_MAX);
            lines.push(format!("  and {more} more"));
        }
        lines.push(self.footer(now, coloured));
        lines
    }

    fn by_handler(&self, frame: usize, coloured: bool) -> Vec<String> {
        let mut handlers: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for step in &self.steps {
            handlers.entry(&step.handler).or_default().push(step);
        }
        let width = handlers.keys().map(|name| name.chars().count().min(NAME_MAX)).max();
        let width = width.unwrap_or_default();
        handlers
            .into_iter()
            .map(|(name, steps)| {
                // The one that stands for all: what fails before what runs, that before what waits.
                let worst = steps.iter().min_by_key(|step| match step.state {
                    State::Error => 0,
                    State::InProgress => 1,
                    State::Pending | State::Unspecified => 2,
                    State::Cancelled => 3,
                    State::Complete | State::ResolvedManually => 4,
                });
                let (state, mark) = worst.map_or((State::Pending, '·'), |step| {
                    (step.state, step.mark(self.paused, frame))
                });
                let named = format!("{mark} {:<width$}", output::cut(name, NAME_MAX));
                let named = output::state_text(state.word(), &named, coloured);
                format!("{named}  {}", counts(steps.into_iter()))
            })
            .collect()
    }

    fn footer(&self, now: Instant, coloured: bool) -> String {
        let word = self.state.word();
        let paused = if self.paused { ", paused" } else { "" };
        let took = shown(now.saturating_duration_since(self.begun));
        let word = output::state_text(word, word, coloured);
        format!("{}  {word}{paused}  {took}", counts(self.steps.iter()))
    }
}

/// How many of them stand how; what there is none of is left out.
fn counts<'s>(steps: impl Iterator<Item = &'s Row> + Clone) -> String {
    let n = |is: fn(&Row) -> bool| steps.clone().filter(|step| is(step)).count();
    let done = n(|step| matches!(step.state, State::Complete | State::ResolvedManually));
    let mut text = format!("{done}/{} steps", steps.clone().count());
    for (n, what) in [
        (n(|step| step.state == State::InProgress), "running"),
        (n(Row::waits_for_retry), "to be tried again"),
        (n(|step| step.state == State::Error), "failed"),
        (n(|step| step.state == State::Cancelled), "cancelled"),
    ] {
        if n > 0 {
            text += &format!(", {n} {what}");
        }
    }
    text
}

/// How long a step has run, by this machine's clock.
fn since(step: &Step) -> Duration {
    let Some(at) = step.start_time else { return Duration::ZERO };
    let Ok(at) = std::time::SystemTime::try_from(at) else { return Duration::ZERO };
    at.elapsed().unwrap_or_default()
}

fn failure(class: &str, message: &str) -> String {
    format!("{class}: {message}")
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::{
        Failure, StepCompleted, StepExecutionRequested, StepFailed, StepRetryRequested,
        TaskCompleted, TaskPaused,
    };

    use super::*;

    fn task(steps: usize) -> Task {
        let steps = (0..steps).map(|i| Step {
            name: format!("s{i}"),
            handler: if i % 2 == 0 { "even" } else { "odd" }.into(),
            state: State::Pending.into(),
            max_attempts: 3,
            ..Step::default()
        });
        Task { state: State::Pending.into(), steps: steps.collect(), ..Task::default() }
    }

    fn event(step: &str, attempt: i32, to: State, detail: Detail) -> Event {
        Event {
            step_name: step.into(),
            attempt,
            to_state: to.into(),
            detail: Some(detail),
            ..Event::default()
        }
    }

    fn started(step: &str, attempt: i32) -> Event {
        let detail = Detail::StepExecutionRequested(StepExecutionRequested::default());
        event(step, attempt, State::InProgress, detail)
    }

    #[test]
    fn each_step_goes_from_waiting_over_running_and_retries_to_its_end() {
        let now = Instant::now();
        let mut progress = Progress::of(&task(2), now);
        assert_eq!(progress.lines(now, 0, false), ["· s0", "· s1", "0/2 steps  pending  0s"]);
        progress.take(&started("s0", 1), now);
        let later = now + Duration::from_millis(1_500);
        let lines = progress.lines(later, 1, false);
        assert_eq!(lines[0], "⠙ s0  1.5s");
        assert_eq!(lines[2], "0/2 steps, 1 running  pending  1.5s");
        let error = Failure {
            error_class: "Busy".into(),
            message: "no\u{1b}room".into(),
            ..Failure::default()
        };
        let failed = StepFailed { error: Some(error), max_attempts: 3, ..StepFailed::default() };
        progress.take(&event("s0", 1, State::Error, Detail::StepFailed(failed)), later);
        assert_eq!(progress.lines(later, 0, false)[0], "✖ s0  1.5s  Busy: no room");
        let again = Detail::StepRetryRequested(StepRetryRequested::default());
        progress.take(&event("s0", 1, State::Pending, again), later);
        assert_eq!(progress.lines(later, 0, false)[0], "↻ s0  1/3  Busy: no room");
        progress.take(&started("s0", 2), later);
        assert_eq!(progress.lines(later, 0, false)[0], "⠋ s0  2/3  0s");
        let ran_for = Some(prost_types::Duration { seconds: 75, nanos: 0 });
        let done = StepCompleted { ran_for, ..StepCompleted::default() };
        progress.take(&event("s0", 2, State::Complete, Detail::StepCompleted(done)), later);
        assert_eq!(progress.lines(later, 0, false)[0], "✔ s0  2/3  1m15s");
        assert_eq!(progress.ended(), None);
    }

    #[test]
    fn a_pause_is_seen_and_the_end_of_the_task_ends_it() {
        let now = Instant::now();
        let mut progress = Progress::of(&task(1), now);
        let paused = Detail::TaskPaused(TaskPaused::default());
        progress.take(&event("", 0, State::Unspecified, paused), now);
        let lines = progress.lines(now, 0, false);
        assert_eq!(lines, ["⏸ s0", "0/1 steps  pending, paused  0s"]);
        let completed = Detail::TaskCompleted(TaskCompleted::default());
        progress.take(&event("", 0, State::Complete, completed), now);
        assert_eq!(progress.ended(), Some(State::Complete));
    }

    #[test]
    fn more_than_thirty_steps_are_counted_by_handler() {
        let now = Instant::now();
        let mut progress = Progress::of(&task(31), now);
        progress.take(&started("s1", 1), now);
        let lines = progress.lines(now, 0, false);
        assert_eq!(lines[0], "· even  0/16 steps");
        assert_eq!(lines[1], "⠋ odd   0/15 steps, 1 running");
        assert_eq!(lines[2], "0/31 steps, 1 running  pending  0s");
        let mut many = task(5_000);
        many.steps.iter_mut().for_each(|step| step.handler.clone_from(&step.name));
        let lines = Progress::of(&many, now).lines(now, 0, false);
        assert_eq!(lines.len(), LINES_MAX + 2);
        assert_eq!(lines[LINES_MAX], "  and 4970 more");
    }
}
