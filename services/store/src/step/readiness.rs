//! What keeps a step from running, as far as the tables say.

use std::sync::Arc;

use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};
use stepwell_proto::v1::State;

use crate::{Error, Store, StoredDefinition, task::state};

/// A step and what is around it, from one snapshot.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The step's state.
    pub step: State,
    /// Its task's state.
    pub task: State,
    /// Its task's definition.
    pub definition: Arc<StoredDefinition>,
    /// Its task is paused.
    pub paused: bool,
    /// The task's definition is paused, or its namespace.
    pub definition_paused: bool,
    /// Its task waits for its concurrency key.
    pub held: bool,
    /// Steps of its task that may be in progress at once; 0: any number.
    pub max_parallel: i32,
    /// Steps of its task that are in progress, if that is counted.
    pub running: i32,
    /// It waits until then, for a retry.
    pub not_before: Option<DateTime<Utc>>,
    /// Parents that are neither complete nor resolved, with their states.
    pub parents: Vec<(i32, State)>,
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
            r#"select s.state as "step!", t.state as "task!", t.paused as "paused!",
                      (select paused from stepwell.definition where id = t.definition) as "definition_paused!", t.held as "held!",
                      t.max_parallel as "max_parallel!", t.running_n as "running!",
                      case when s.not_before > clock_timestamp() then s.not_before end as not_before,
                      array(select (p.key & 16383)::int from unnest($3::int[]) i(no),
                                   lateral (select key, state from stepwell.step
                                             where key = ($1::bigint << 14) + i.no offset 0) p
                             where p.state not in (3, 6) order by p.key) as "parents!",
                      array(select p.state from unnest($3::int[]) i(no),
                                   lateral (select key, state from stepwell.step
                                             where key = ($1::bigint << 14) + i.no offset 0) p
                             where p.state not in (3, 6) order by p.key) as "states!"
                 from stepwell.task t, stepwell.step s
                where t.id = $1 and s.key = ($1::bigint << 14) + $2::int"#,
            task.id,
            number,
            parents,
        )
        .fetch_optional(self.reads())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let parents = row.parents.into_iter().zip(row.states);
        Ok(Some(Surroundings {
            step: state(row.step)?,
            task: state(row.task)?,
            paused: row.paused,
            definition_paused: row.definition_paused,
            held: row.held,
            max_parallel: row.max_parallel,
            running: row.running,
            not_before: row.not_before,
            parents: parents.map(|(no, of)| Ok((no, state(of)?))).collect::<Result<_, Error>>()?,
            definition,
        }))
    }
}
