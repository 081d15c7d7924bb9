//! What keeps a step from running, as far as the tables say: read for one step here, for all steps of a
//! task in `view`, and put into words in one place, which is pure.

use std::sync::Arc;

use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};
use stepwell_proto::v1::{Obstacle, ObstacleKind, State};

use crate::{Error, Store, StoredDefinition, definition::timestamp, task::state};

/// A message names so many parents; all of them stand beside it.
const NAMED_MAX: usize = 10;

/// A step and what is around it, from one snapshot.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The step's state.
    pub step: State,
    /// Its task's state.
    pub task: State,
    /// Its task's definition.
    pub definition: Arc<StoredDefinition>,
    /// Its task is paused, or the task's definition or namespace.
    pub paused: bool,
    /// Its task waits for its concurrency key.
    pub held: bool,
    /// Steps of its task that may be in progress at once; 0: any number.
    pub max_parallel: i32,
    /// Steps of its task that are in progress, if that is counted.
    pub running: i32,
    /// It waits until then, for a retry.
    pub not_before: Option<DateTime<Utc>>,
    /// Parents that are neither complete nor resolved.
    pub parents: Vec<Parent>,
}

/// A parent that is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Parent {
    /// Its number.
    pub number: i32,
    /// Its state.
    pub state: State,
    /// It waits behind a step in error or a cancelled one.
    pub blocked: bool,
}

impl Parent {
    fn obstacle(self) -> ObstacleKind {
        match self.state {
            State::Cancelled => ObstacleKind::ParentCancelled,
            State::Error => ObstacleKind::ParentFailed,
            _ if self.blocked => ObstacleKind::ParentBlocked,
            _ => ObstacleKind::Parents,
        }
    }
}

impl Surroundings {
    /// True when the step needs a slot some day: it is pending or in error, and its task has not ended.
    pub fn needs_slot(&self) -> bool {
        matches!(self.step, State::Pending | State::Error) && self.is_open()
    }

    fn is_open(&self) -> bool {
        matches!(self.task, State::Pending | State::InProgress | State::Error)
    }

    /// Everything of its task that keeps the step from being started, what lasts longest first. Empty for
    /// one that runs.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        use ObstacleKind as Kind;
        let mut found = Vec::new();
        let mut add = |kind: Kind, message: String| {
            found.push(Obstacle { kind: kind.into(), message, ..Obstacle::default() });
        };
        match self.step {
            State::InProgress => return found,
            State::Pending => {}
            State::Error => add(Kind::StepFailed, "it failed for good; retry or resolve it".into()),
            state => {
                add(Kind::StepEnded, format!("it is {}", state.word()));
                return found;
            }
        }
        if !self.is_open() {
            add(Kind::TaskEnded, format!("its task is {}", self.task.word()));
            return found;
        }
        self.waits_for(&mut found);
        let mut add = |kind: Kind, message: String| {
            found.push(Obstacle { kind: kind.into(), message, ..Obstacle::default() });
        };
        if self.paused {
            add(Kind::Paused, "its task is paused, or its definition".into());
        }
        if self.held {
            add(Kind::Key, "its task waits for its concurrency key".into());
        }
        if self.max_parallel > 0 && self.running >= self.max_parallel {
            let message =
                format!("{} of {} steps of its task run", self.running, self.max_parallel);
            add(Kind::TaskFull, message);
        }
        if let Some(until) = self.not_before {
            found.push(Obstacle {
                kind: Kind::BackOff.into(),
                message: "its retry waits for its time".into(),
                until: Some(timestamp(until)),
                ..Obstacle::default()
            });
        }
        found
    }

    fn waits_for(&self, found: &mut Vec<Obstacle>) {
        for (kind, what) in [
            (ObstacleKind::ParentCancelled, "it can never run: these are cancelled:"),
            (ObstacleKind::ParentBlocked, "it waits for what cannot go on either:"),
            (ObstacleKind::ParentFailed, "it waits for what failed for good:"),
            (ObstacleKind::Parents, "it waits for"),
        ] {
            let of_kind = self.parents.iter().filter(|parent| parent.obstacle() == kind);
            let numbers: Vec<i32> = of_kind.map(|parent| parent.number).collect();
            let parents: Vec<String> = self.definition.names(&numbers).map(str::to_owned).collect();
            if !parents.is_empty() {
                let mut message =
                    format!("{what} {}", parents[..parents.len().min(NAMED_MAX)].join(", "));
                if parents.len() > NAMED_MAX {
                    message += &format!(" and {} more", parents.len() - NAMED_MAX);
                }
                found.push(Obstacle { kind: kind.into(), message, parents, until: None });
            }
        }
    }
}

impl Store {
    /// What keeps a step from running; none: there is no such step.
    pub async fn surroundings(
        &self,
        uid: Uuid,
        number: i32,
    ) -> Result<Option<Surroundings>, Error> {
        let found = sqlx::query!(
            r#"select t.id as "id!", t.definition as "definition!" from stepwell.task t where t.uid = $1"#,
            uid
        )
        .fetch_optional(self.reads())
        .await?;
        let Some(task) = found else { return Ok(None) };
        let definition = self.definition(task.definition).await?;
        let Some(parents) = usize::try_from(number).ok().and_then(|n| definition.parents.get(n))
        else {
            return Ok(None);
        };
        let row = sqlx::query!(
            r#"select s.state as "step!", t.state as "task!", t.paused or (select paused from stepwell.definition where id = t.definition) as "paused!",
                      t.held as "held!",
                      t.max_parallel as "max_parallel!", t.running_n as "running!",
                      case when s.not_before > clock_timestamp() then s.not_before end as not_before,
                      p.numbers as "parents!", p.states as "states!", p.blocked as "blocked!"
                 from stepwell.task t, stepwell.step s,
                      lateral (select coalesce(array_agg((p.key & 16383)::int order by p.key), '{}') as numbers,
                                      coalesce(array_agg(p.state order by p.key), '{}') as states,
                                      coalesce(array_agg(p.blocked order by p.key), '{}') as blocked
                                 from unnest($3::int[]) i(no),
                                      lateral (select key, state,
                                                      t.failed_n + t.cancelled_n > 0 and state = 1 and
                                                      key in (select stepwell.blocked_steps(array[$4::uuid])) as blocked
                                                 from stepwell.step where key = ($1::bigint << 14) + i.no offset 0) p
                                where p.state not in (3, 6)) p
                where t.id = $1 and s.key = ($1::bigint << 14) + $2::int"#,
            task.id,
            number,
            parents,
            uid,
        )
        .fetch_optional(self.reads())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let parents = row.parents.into_iter().zip(row.states).zip(row.blocked);
        let parent = |((number, of), blocked)| Ok(Parent { number, state: state(of)?, blocked });
        Ok(Some(Surroundings {
            step: state(row.step)?,
            task: state(row.task)?,
            paused: row.paused,
            held: row.held,
            max_parallel: row.max_parallel,
            running: row.running,
            not_before: row.not_before,
            parents: parents.map(parent).collect::<Result<_, Error>>()?,
            definition,
        }))
    }
}

#[cfg(test)]
mod tests {
    use stepwell_proto::v1::{Definition, StepTemplate};

    use super::*;

    fn step(name: &str) -> StepTemplate {
        StepTemplate { name: name.into(), ..StepTemplate::default() }
    }

    /// A step that depends on as many as there are names, ready to run.
    fn around(names: impl Iterator<Item = String>) -> Surroundings {
        let mut steps: Vec<StepTemplate> = names.map(|name| step(&name)).collect();
        let parents = (0..).take(steps.len()).collect();
        steps.push(step("it"));
        let definition = StoredDefinition {
            id: 1,
            version: [1, 2, 0],
            queues: vec![1; steps.len()],
            parents: vec![parents],
            children: Vec::new(),
            is_timed: false,
            definition: Definition { steps, ..Definition::default() },
        };
        Surroundings {
            step: State::Pending,
            task: State::InProgress,
            definition: Arc::new(definition),
            paused: false,
            held: false,
            max_parallel: 0,
            running: 0,
            not_before: None,
            parents: Vec::new(),
        }
    }

    fn kinds(of: &Surroundings) -> Vec<ObstacleKind> {
        of.obstacles().iter().map(Obstacle::kind).collect()
    }

    #[test]
    fn everything_in_the_way_is_told_at_once_and_parents_by_name() {
        let mut of = around(["a", "b", "c", "d"].map(str::to_owned).into_iter());
        assert_eq!(kinds(&of), []);
        let parent = |number, state, blocked| Parent { number, state, blocked };
        of.parents = vec![
            parent(0, State::InProgress, false),
            parent(1, State::Error, false),
            parent(2, State::Pending, true),
            parent(3, State::Cancelled, false),
        ];
        (of.paused, of.held, of.max_parallel, of.running) = (true, true, 2, 2);
        of.not_before = Some("2026-11-28T12:00:00Z".parse().unwrap());
        let found = of.obstacles();
        use ObstacleKind::{
            BackOff, Key, ParentBlocked, ParentCancelled, ParentFailed, Parents, Paused, TaskFull,
        };
        assert_eq!(
            kinds(&of),
            [ParentCancelled, ParentBlocked, ParentFailed, Parents, Paused, Key, TaskFull, BackOff]
        );
        let named: Vec<&str> =
            found.iter().flat_map(|found| &found.parents).map(String::as_str).collect();
        assert_eq!(named, ["d", "c", "b", "a"]);
        assert!(found[7].until.is_some() && of.needs_slot());
    }

    #[test]
    fn a_message_names_ten_parents_and_the_list_has_all() {
        let mut of = around((0..12).map(|n| format!("p{n}")));
        let parent = |number| Parent { number, state: State::Pending, blocked: false };
        of.parents = (0..12).map(parent).collect();
        let found = of.obstacles();
        assert!(found[0].message.ends_with("p8, p9 and 2 more"), "{}", found[0].message);
        assert_eq!(found[0].parents.len(), 12);
    }

    #[test]
    fn what_has_ended_or_runs_needs_no_slot() {
        let mut of = around(std::iter::empty());
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
            assert_eq!((kinds(&of), of.needs_slot()), (kinds_of, false), "{step:?} {task:?}");
        }
    }
}
