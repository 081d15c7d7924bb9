//! Why a step does not run: what its task says, and what the executors are. Pure.

use semver::{Version, VersionReq};
use stepwell_proto::v1::{Executor, Obstacle, ObstacleKind, StepTemplate};
use stepwell_store::Surroundings;

/// Everything that keeps the step from being started, what lasts longest first. Empty for one that runs.
pub(crate) fn obstacles(
    of: &Surroundings,
    template: &StepTemplate,
    executors: &[Executor],
) -> Vec<Obstacle> {
    let mut found = of.obstacles();
    if of.needs_slot() {
        found.extend(no_slot(of, template, executors));
    }
    found
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

    use stepwell_proto::v1::{Definition, HandlerOffer, State};
    use stepwell_store::{Parent, StoredDefinition};

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
            ..StoredDefinition::default()
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
    fn executors_are_told_last_and_only_of_steps_that_need_one() {
        let (mut of, _) = around();
        let parent = |number, state| Parent { number, state, blocked: false };
        of.parents = vec![parent(0, State::Error), parent(1, State::Cancelled)];
        use ObstacleKind::{NoExecutor, ParentCancelled, ParentFailed, StepEnded};
        assert_eq!(kinds(&of, &[]), [ParentCancelled, ParentFailed, NoExecutor]);
        of.step = State::InProgress;
        assert_eq!(kinds(&of, &[]), []);
        of.step = State::Complete;
        assert_eq!(kinds(&of, &[]), [StepEnded]);
    }
}
