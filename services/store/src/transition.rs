//! The log of one task: what became of it and of its steps, page by page, and in figures. The index `event_task` finds
//! its events, however old it is and however long the log. In words: `transition/told.rs`.

mod told;

use std::collections::HashMap;

use sqlx::types::{
    Uuid,
    chrono::{DateTime, Utc},
};
use stepwell_proto::v1::{GetTransitionStatisticsResponse, State, Transition, TransitionCount};

use crate::{Error, EventRow, Store, definition::timestamp, task::state};

use told::Told;

/// Events of a task that a page looks at, and again so many before it.
const LOOKED_AT_MAX: i32 = 10_000;
/// Events of a task that figures are of.
const COUNTED_MAX: i32 = 100_000;
/// Texts of the events of a page, about: one that would have more is shorter, but has one in any case.
const TEXTS_BYTES_MAX: i64 = 1 << 20;

/// Which transitions of a task are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transitions {
    /// Only of this step, its creation included.
    pub step: Option<i32>,
    /// Only the task's own.
    pub only_task: bool,
    /// Only to these states; none: to any.
    pub to_states: Vec<State>,
    /// Only of steps that had made so many attempts.
    pub attempt: Option<i32>,
    /// Only at this time or after it.
    pub from: Option<DateTime<Utc>>,
    /// Only before this time.
    pub until: Option<DateTime<Utc>>,
    /// What moves nothing, too.
    pub changes: bool,
    /// Backwards.
    pub newest_first: bool,
}

impl Transitions {
    /// How many events a page of so many transitions looks at. What picks none out finds them among few.
    fn looked_at(&self, limit: i32) -> i32 {
        let few = Self { changes: false, newest_first: false, ..self.clone() } == Self::default();
        if few { (2 * limit + 100).min(LOOKED_AT_MAX) } else { LOOKED_AT_MAX }
    }
}

/// A page of transitions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TransitionPage {
    /// The transitions.
    pub transitions: Vec<Transition>,
    /// The position beyond which the next page begins; none: this is the last one.
    pub next: Option<i64>,
    /// The oldest are still kept.
    pub complete: bool,
    /// From when on the log is kept; none: nothing of it is.
    pub kept_from: Option<DateTime<Utc>>,
}

/// Whose log it is.
struct Whose {
    key: i64,
    uid: Uuid,
    definition: i32,
    first_position: i64,
    created_at: DateTime<Utc>,
    initiator: String,
}

/// What a page looked at.
struct Look {
    n: i64,
    low: Option<i64>,
    high: Option<i64>,
    /// How many of the events are asked for.
    found: i64,
    /// The first of these, each with the transition before it, if the page looked at that.
    rows: Vec<(EventRow, Option<Before>)>,
}

/// The transition before another one.
#[derive(Clone, Copy)]
struct Before {
    at: DateTime<Utc>,
    session: Option<i64>,
}

/// What was before a page.
struct Earlier {
    of_steps: HashMap<Option<i32>, Before>,
    /// There is nothing before that.
    is_all: bool,
}

impl Store {
    /// Transitions of a task beyond a position, `limit` at most; none: there is no such task or step. A page looks at a
    /// bounded number of the task's events, so a short one need not be the last.
    pub async fn transitions(
        &self,
        uid: Uuid,
        which: &Transitions,
        beyond: Option<i64>,
        limit: i32,
    ) -> Result<Option<TransitionPage>, Error> {
        let Some(whose) = self.whose(uid).await? else { return Ok(None) };
        let definition = self.definition(whose.definition).await?;
        if which.step.is_some_and(|no| definition.step(no).is_none()) {
            return Ok(None);
        }
        let look = self.look(&whose, which, beyond, limit).await?;
        let unknown = look.rows.iter().filter(|(_, before)| before.is_none());
        let unknown: Vec<Option<i32>> = unknown.map(|(event, _)| event.no).collect();
        let earlier = match look.low.filter(|low| *low > whose.first_position) {
            Some(low) if !unknown.is_empty() => self.earlier(&whose, low, &unknown).await?,
            _ => Earlier { of_steps: HashMap::new(), is_all: true },
        };
        // Asked after the read: what was dropped before it is known then.
        let (earliest, kept_from) = self.kept_from().await?;
        let complete = whose.first_position > earliest;
        let end = if which.newest_first { look.low } else { look.high };
        let returned = i64::try_from(look.rows.len()).unwrap_or(i64::MAX);
        let next = match look.rows.last() {
            Some((last, _)) if returned < look.found => Some(last.position),
            _ => end.filter(|_| look.n >= i64::from(which.looked_at(limit))),
        };
        let of_step = which.step;
        let told = Told { whose: &whose, definition: &definition, of_step, complete };
        let transition = |(row, before): (EventRow, Option<Before>)| {
            let before = before.or_else(|| earlier.of_steps.get(&row.no).copied());
            told.transition(&row, before, earlier.is_all)
        };
        let transitions = look.rows.into_iter().map(transition).collect::<Result<_, _>>()?;
        Ok(Some(TransitionPage { transitions, next, complete, kept_from }))
    }

    /// What became of a task and its steps, or of one of these, or of the task alone, in figures; none: there is no
    /// such task or step.
    pub async fn transition_statistics(
        &self,
        uid: Uuid,
        step: Option<i32>,
        only_task: bool,
    ) -> Result<Option<GetTransitionStatisticsResponse>, Error> {
        let Some(whose) = self.whose(uid).await? else { return Ok(None) };
        let definition = self.definition(whose.definition).await?;
        if step.is_some_and(|no| definition.step(no).is_none()) {
            return Ok(None);
        }
        let rows = sqlx::query!(
            r#"with w as materialized (
                 select position, no, type, from_state, to_state, at, mark from stepwell.event
                  where (task, position + 0) >= ($1, $2) and (task, position + 0) <= ($1, 9223372036854775807)
                  order by task desc, position + 0 desc limit $3),
               t as (
                 select *, at - lag(at) over (partition by case when $4::int is null then no end order by position) gap from w
                  where from_state is distinct from to_state
                    and ($4::int is null or no = $4 or type = 20) and (no is null or not $5)),
               g as (
                 select to_state, count(*) n, count(*) filter (where type in (25, 43)) retries,
                        count(*) filter (where at > statement_timestamp() - interval '24 hours') last_day,
                        count(mark) filter (where type in (41, 42)) ran,
                        coalesce(sum(extract(epoch from at - mark) * 1e6) filter (where type in (41, 42)), 0)::bigint ran_us,
                        count(gap) gaps, coalesce(sum(extract(epoch from gap) * 1e6), 0)::bigint gaps_us,
                        min(at) "first", max(at) "last"
                   from t group by to_state)
               select s.n as "looked_at!", g.to_state as "to_state?", coalesce(g.n, 0) as "n!",
                      coalesce(g.retries, 0) as "retries!", coalesce(g.last_day, 0) as "last_day!",
                      coalesce(g.ran, 0) as "ran!", coalesce(g.ran_us, 0) as "ran_us!", coalesce(g.gaps, 0) as "gaps!",
                      coalesce(g.gaps_us, 0) as "gaps_us!", g.first as "first?", g.last as "last?"
                 from (select count(*) n from w) s left join g on true order by g.to_state"#,
            whose.key,
            whose.first_position,
            i64::from(COUNTED_MAX),
            step,
            only_task,
        )
        .fetch_all(self.reads())
        .await?;
        let (earliest, _) = self.kept_from().await?;
        let looked_at = rows.first().map_or(0, |row| row.looked_at);
        let mut answer = GetTransitionStatisticsResponse {
            complete: whose.first_position > earliest && looked_at < i64::from(COUNTED_MAX),
            first_time: rows.iter().filter_map(|row| row.first).min().map(timestamp),
            last_time: rows.iter().filter_map(|row| row.last).max().map(timestamp),
            ..GetTransitionStatisticsResponse::default()
        };
        let (mut ran, mut gaps) = (Mean::default(), Mean::default());
        for row in rows {
            // None of the events fits: there is one row, of no state.
            let Some(to_state) = row.to_state else { continue };
            answer.total += row.n;
            answer.retries += row.retries;
            answer.last_day += row.last_day;
            ran.add(row.ran, row.ran_us);
            gaps.add(row.gaps, row.gaps_us);
            let state = state(to_state)?.into();
            answer.by_state.push(TransitionCount { state, count: row.n });
        }
        (answer.average_execution_time, answer.average_time_between) = (ran.mean(), gaps.mean());
        Ok(Some(answer))
    }

    async fn whose(&self, uid: Uuid) -> Result<Option<Whose>, Error> {
        let whose = sqlx::query_as!(
            Whose,
            r#"select t.id as "key!", t.uid as "uid!", t.definition as "definition!", d.first_position as "first_position!",
                      d.created_at as "created_at!", d.initiator as "initiator!"
                 from (select id, uid, definition from stepwell.task where uid = $1 offset 0) t,
                      lateral (select * from stepwell.task_detail where task = t.id offset 0) d"#,
            uid,
        )
        .fetch_optional(self.reads())
        .await?;
        Ok(whose)
    }

    /// Looks at events of a task beyond a position, and reads those that are asked for.
    async fn look(
        &self,
        whose: &Whose,
        which: &Transitions,
        beyond: Option<i64>,
        limit: i32,
    ) -> Result<Look, Error> {
        let first = whose.first_position - 1;
        let (after, until) = match which.newest_first {
            true => (first, beyond.unwrap_or(i64::MAX)),
            false => (beyond.unwrap_or(first).max(first), i64::MAX),
        };
        let states: Vec<i16> = which.to_states.iter().map(|state| *state as i16).collect();
        let rows = sqlx::query_file!(
            "src/transition/look.sql",
            whose.key,
            after,
            until,
            which.newest_first,
            i64::from(which.looked_at(limit)),
            which.changes,
            which.step,
            which.only_task,
            &states,
            which.attempt,
            which.from,
            which.until,
            TEXTS_BYTES_MAX,
            i64::from(limit),
        )
        .fetch_all(self.reads())
        .await?;
        let whole = rows.first().map(|row| (row.n, row.low, row.high, row.found));
        let (n, low, high, found) = whole.unwrap_or_default();
        let rows = rows.into_iter().enumerate().map_while(|(i, row)| {
            let fits = i == 0 || row.over != Some(true);
            let event = EventRow {
                position: row.position.filter(|_| fits)?,
                batch: row.batch?,
                at: row.at?,
                task: whose.key,
                uid: whose.uid,
                definition: row.definition?,
                no: row.no,
                r#type: row.r#type?,
                from_state: row.from_state,
                to_state: row.to_state?,
                attempt: row.attempt,
                session: row.session,
                mark: row.mark,
                text: row.text,
                names: row.names,
                trace: None,
            };
            let session = row.before_session;
            Some((event, row.before_at.map(|at| Before { at, session })))
        });
        Ok(Look { n, low, high, found, rows: rows.collect() })
    }

    /// The last transitions of these steps, and of the task, before a position.
    async fn earlier(
        &self,
        whose: &Whose,
        before: i64,
        steps: &[Option<i32>],
    ) -> Result<Earlier, Error> {
        let numbers: Vec<i32> = steps.iter().copied().flatten().collect();
        let rows = sqlx::query!(
            r#"with w as materialized (
                 select position, no, from_state, to_state, at, session from stepwell.event
                  where (task, position + 0) >= ($1, $2) and (task, position + 0) < ($1, $3)
                  order by task desc, position + 0 desc limit $4),
               l as (
                 select distinct on (no) no, at, session from w
                  where from_state is distinct from to_state and (no = any($5) or no is null and $6)
                  order by no, position desc)
               select s.n as "n!", l.no as "no?", l.at as "at?", l.session as "session?"
                 from (select count(*) n from w) s left join l on true"#,
            whose.key,
            whose.first_position,
            before,
            i64::from(LOOKED_AT_MAX),
            &numbers,
            steps.contains(&None),
        )
        .fetch_all(self.reads())
        .await?;
        let is_all = rows.first().is_none_or(|row| row.n < i64::from(LOOKED_AT_MAX));
        let of_steps =
            rows.into_iter().filter_map(|r| Some((r.no, Before { at: r.at?, session: r.session })));
        Ok(Earlier { of_steps: of_steps.collect(), is_all })
    }

    /// The place before the first event that is kept, and when that was.
    async fn kept_from(&self) -> Result<(i64, Option<DateTime<Utc>>), Error> {
        let row = sqlx::query!(
            r#"select e.earliest as "earliest!",
                      (select at from stepwell.event where position > e.earliest order by position limit 1) as at
                 from (select stepwell.earliest() earliest offset 0) e"#
        )
        .fetch_one(self.reads())
        .await?;
        Ok((row.earliest, row.at))
    }
}

/// A mean of times, in microseconds.
#[derive(Default)]
struct Mean {
    n: i64,
    us: i64,
}

impl Mean {
    fn add(&mut self, n: i64, us: i64) {
        self.n += n;
        self.us = self.us.saturating_add(us);
    }

    fn mean(&self) -> Option<prost_types::Duration> {
        let us = u64::try_from(self.us.max(0)).ok()?.checked_div(u64::try_from(self.n).ok()?)?;
        prost_types::Duration::try_from(std::time::Duration::from_micros(us)).ok()
    }
}
