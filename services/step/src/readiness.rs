//! Why a step does not run: what is around it, put into words. Pure.

use semver::{Version, VersionReq};
use stepwell_proto::v1::{Executor, Obstacle, ObstacleKind, State, StepTemplate};
use stepwell_store::{Surroundings, timestamp};

/// Everything that keeps the step from being started, what lasts longest first. Empty for one that runs.
pub(crate) fn obstacles(
    of: &Surroundings,
    template: &StepTemplate,
    executors: &[Executor],
) -> Vec<Obstacle> {
    use ObstacleKind as Kind;
    let mut found = Vec::new();
    let mut add = |kind: Kind, message: String| {
        found.push(Obstacle { kind: kind.into(), message, ..Obstacle::default() });
    };
    match of.step {
        State::InProgress => return found,
        State::Pending => {}
        State::Error => add(Kind::StepFailed, "it failed for good; retry or resolve it".into()),
        state => {
            add(Kind::StepEnded, format!("it is {}", state.word()));
            return found;
        }
    }
    if !matches!(of.task, State::Pending | State::InProgress | State::Error) {
        add(Kind::TaskEnded, format!("its task is {}", of.task.word()));
        return found;
    }
    parents(of, &mut found);
    let mut add = |kind: Kind, message: String| {
        found.push(Obstacle { kind: kind.into(), message, ..Obstacle::default() });
    };
    if of.paused {
        add(Kind::Paused, "its task is paused".into());
    }
    if of.held {
        add(Kind::Key, "its task waits for its concurrency key".into());
    }
    if of.max_parallel > 0 && of.running >= of.max_parallel {
        let message = format!("{} of {} steps of its task run", of.running, of.max_parallel);
        add(Kind::TaskFull, message);
    }
    if let Some(until) = of.not_before {
        found.push(Obstacle {
            kind: Kind::BackOff.into(),
            message: "its retry waits for its time".into(),
            until: Some(timestamp(until)),
            ..Obstacle::default()
        });
    }
    found.extend(no_slot(of, template, executors));
    found
}

fn parents(of: &Surroundings, found: &mut Vec<Obstacle>) {
    let names = |cancelled: bool| -> Vec<String> {
        let parents =
            of.parents.iter().filter(|(_, state)| (*state == State::Cancelled) == cancelled);
        let numbers: Vec<i32> = parents.map(|(number, _)| *number).collect();
        of.definition.names(&numbers).map(str::to_owned).collect()
    };
    for (cancelled, kind, what) in [
        (true, ObstacleKind::ParentCancelled, "it can never run: these are cancelled:"),
        (false, ObstacleKind::Parents, "it waits for"),
    ] {
        let parents = names(cancelled);
        if !parents.is_empty() {
            let message = format!("{what} {}", parents.join(", "));
            found.push(Obstacle { kind: kind.into(), message, parents, until: None });
        }
    }
}

/// What is wrong with the executors that could run it.
fn no_slot(of: &Surroundings, template: &StepTemplate, executors: &[Executor]) -> Option<Obstacle> {
    let part = |n: i32| u64::try_from(n).unwrap_or(0);
    let [major, minor, patch] = of.definition.version.map(part);
    let version = Version::new(major, minor, patch);
    let mut able =
        executors.iter().filter(|executor| runs(executor, template, &version)).peekable();
    let (kind, message) = if able.peek().is_none() {
        let handler = &template.handler;
        let message = format!("no executor is connected that runs {handler} for {version}");
        let labels: Vec<String> =
            template.requires.iter().map(|(label, value)| format!("{label}={value}")).collect();
        let with = if labels.is_empty() { String::new() } else { " with ".to_owned() };
        (ObstacleKind::NoExecutor, format!("{message}{with}{}", labels.join(", ")))
    } else if able.all(|executor| executor.slots_used >= executor.slots) {
        let message = "all slots of the executors that could run it are busy".to_owned();
        (ObstacleKind::SlotsBusy, message)
    } else {
        return None;
    };
    Some(Obstacle { kind: kind.into(), message, ..Obstacle::default() })
}

fn runs(executor: &Executor, template: &StepTemplate, version: &Version) -> bool {
    let offered = executor.handlers.iter().filter(|offer| offer.name == template.handler);
    !executor.draining
        && offered.into_iter().any(|offer| in_range(&offer.definition_versions, version))
        && template.requires.iter().all(|(label, value)| executor.labels.get(label) == Some(value))
}

/// A version is in a range of an offer; an empty one has every version.
pub(crate) fn in_range(range: &str, version: &Version) -> bool {
    range.is_empty() || VersionReq::parse(range).is_ok_and(|range| range.matches(version))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stepwell_proto::v1::{Definition, HandlerOffer};
    use stepwell_store::StoredDefinition;

    use super::*;

    /// A step `c` that depends on `a` and `b`, ready to run.
    fn around() -> (Surroundings, StepTemplate) {
        let step = |name: &str| StepTemplate {
            name: name.into(),
            handler: "h".into(),
            ..StepTemplate::default()
        };
        let definition = StoredDefinition {
            id: 1,
            version: [1, 2, 0],
            definition: Definition {
                steps: vec![step("a"), step("b"), step("c")],
                ..Definition::default()
            },
            queues: vec![1; 3],
            parents: vec![vec![], vec![], vec![0, 1]],
            children: vec![vec![2], vec![2], vec![]],
            is_timed: false,
        };
        let of = Surroundings {
            step: State::Pending,
            task: State::InProgress,
            definition: Arc::new(definition),
            paused: false,
            held: false,
            max_parallel: 0,
            running: 0,
            not_before: None,
            parents: Vec::new(),
        };
        (of, step("c"))
    }

    fn executor(range: &str, slots: i32, slots_used: i32) -> Executor {
        let offer = HandlerOffer { name: "h".into(), definition_versions: range.into() };
        Executor { handlers: vec![offer], slots, slots_used, ..Executor::default() }
    }

    fn kinds(of: &Surroundings, executors: &[Executor]) -> Vec<ObstacleKind> {
        let template = &around().1;
        obstacles(of, template, executors).iter().map(Obstacle::kind).collect()
    }

    #[test]
    fn a_step_with_a_free_slot_that_fits_has_nothing_in_its_way() {
        let (of, _) = around();
        assert_eq!(kinds(&of, &[executor(">=1, <2", 1, 0)]), []);
        assert_eq!(kinds(&of, &[executor("", 1, 1), executor("*", 2, 1)]), []);
    }

    #[test]
    fn executors_that_are_busy_or_do_not_fit_are_told_apart() {
        let (of, mut template) = around();
        assert_eq!(kinds(&of, &[]), [ObstacleKind::NoExecutor]);
        assert_eq!(kinds(&of, &[executor(">=2", 1, 0)]), [ObstacleKind::NoExecutor]);
        let draining = Executor { draining: true, ..executor("*", 1, 0) };
        assert_eq!(kinds(&of, &[draining]), [ObstacleKind::NoExecutor]);
        assert_eq!(
            kinds(&of, &[executor("*", 2, 3), executor(">=2", 9, 0)]),
            [ObstacleKind::SlotsBusy]
        );
        template.requires = [("region".to_owned(), "eu".to_owned())].into();
        let mut there = executor("*", 1, 0);
        let missing = obstacles(&of, &template, std::slice::from_ref(&there));
        assert!(missing[0].message.ends_with("runs h for 1.2.0 with region=eu"), "{missing:?}");
        there.labels = template.requires.clone();
        assert_eq!(obstacles(&of, &template, &[there]), []);
    }

    #[test]
    fn everything_in_the_way_is_told_at_once_and_parents_by_name() {
        let (mut of, template) = around();
        of.parents = vec![(0, State::Error), (1, State::Cancelled)];
        (of.paused, of.held, of.max_parallel, of.running) = (true, true, 2, 2);
        of.not_before = Some("2026-11-28T12:00:00Z".parse().unwrap());
        let found = obstacles(&of, &template, &[]);
        let kinds: Vec<_> = found.iter().map(Obstacle::kind).collect();
        use ObstacleKind::{BackOff, Key, NoExecutor, ParentCancelled, Parents, Paused, TaskFull};
        assert_eq!(kinds, [ParentCancelled, Parents, Paused, Key, TaskFull, BackOff, NoExecutor]);
        assert_eq!(
            (&found[0].parents[..], &found[1].parents[..]),
            (&["b".into()][..], &["a".into()][..])
        );
        assert!(found[5].until.is_some());
    }

    #[test]
    fn what_has_ended_or_runs_needs_no_slot() {
        let (mut of, _) = around();
        for (step, task, kinds_of) in [
            (State::InProgress, State::InProgress, vec![]),
            (State::Complete, State::InProgress, vec![ObstacleKind::StepEnded]),
            (State::Cancelled, State::Cancelled, vec![ObstacleKind::StepEnded]),
            (State::Pending, State::ResolvedManually, vec![ObstacleKind::TaskEnded]),
            (
                State::Error,
                State::ResolvedManually,
                vec![ObstacleKind::StepFailed, ObstacleKind::TaskEnded],
            ),
        ] {
            (of.step, of.task) = (step, task);
            assert_eq!(kinds(&of, &[]), kinds_of, "{step:?} {task:?}");
        }
    }
}
