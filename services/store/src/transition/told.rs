//! A row of the log as a transition, and in words. Pure.

use std::time::Duration;

use sqlx::types::chrono::{DateTime, Utc};
use stepwell_proto::{
    catalog::event_type_by_number,
    id::{executor_id, step_id},
    time::DURATION_MAX,
    v1::{ActorKind, Transition},
};

use super::{Before, Whose};
use crate::{Error, EventRow, Note, StoredDefinition, StoredFailure, timestamp};

/// What rows are told from.
pub(super) struct Told<'a> {
    pub(super) whose: &'a Whose,
    pub(super) definition: &'a StoredDefinition,
    /// It is told of one step: the creation of its task is its own.
    pub(super) of_step: Option<i32>,
    /// The log of the task is kept from its beginning.
    pub(super) complete: bool,
}

impl Told<'_> {
    /// `is_all`: if nothing is known of what was before, only the creation was.
    pub(super) fn transition(
        &self,
        row: &EventRow,
        before: Option<Before>,
        is_all: bool,
    ) -> Result<Transition, Error> {
        let number = u32::try_from(row.r#type).unwrap_or(0);
        let of_type = event_type_by_number(number)
            .ok_or_else(|| Error::Inconsistent(format!("event type {number} has no transition")))?;
        let created =
            (is_all && self.complete && row.no.is_some()).then_some(self.whose.created_at);
        let since = before.map(|before| before.at).or(created);
        let since = since.filter(|_| row.from_state != Some(row.to_state));
        let mut told = Transition {
            position: row.position,
            event: of_type.name.to_owned(),
            from_state: row.from_state.unwrap_or(0).into(),
            to_state: row.to_state.into(),
            time: Some(timestamp(row.at)),
            attempt: row.attempt.unwrap_or(0),
            actor_kind: ActorKind::Engine.into(),
            since_previous: since.map(|since| passed(since, row.at)),
            ..Transition::default()
        };
        if let Some(no) = row.no {
            self.is_of(&mut told, no);
        }
        told.description = match number {
            20 => self.created(&mut told),
            21..=30 => self.of_task(&mut told, row, number),
            _ => self.of_step(&mut told, row, number, before),
        };
        Ok(told)
    }

    fn is_of(&self, told: &mut Transition, no: i32) {
        told.step_id = step_id(&self.whose.uid.to_string(), no);
        told.step_name = self.name(no).to_owned();
    }

    fn name(&self, no: i32) -> &str {
        self.definition.step(no).map_or("", |step| &step.name)
    }

    /// The creation of the task, and of all its steps with it.
    fn created(&self, told: &mut Transition) -> String {
        told.actor_kind = ActorKind::Caller.into();
        told.actor.clone_from(&self.whose.initiator);
        let Some(no) = self.of_step else { return "Task initialized".to_owned() };
        "step.initialize_requested".clone_into(&mut told.event);
        self.is_of(told, no);
        "Step initialized and ready for execution".to_owned()
    }

    fn of_task(&self, told: &mut Transition, row: &EventRow, number: u32) -> String {
        if matches!(number, 22 | 23) {
            told.ran_for = row.mark.map(|since| passed(since, row.at));
        }
        if number >= 24 {
            asked(told, Note::from_text(row.text.as_deref()));
        }
        match number {
            21 => "Task started".to_owned(),
            22 => "Task completed".to_owned(),
            23 => {
                let failed = row.names.iter().flatten().map(|no| self.name(*no));
                "steps_in_error_state".clone_into(&mut told.error_message);
                told.r#final = true;
                let failed = failed.collect::<Vec<_>>().join(", ");
                format!("Task encountered an error: {} ({failed})", told.error_message)
            }
            24 => format!("Task cancelled due to {}", why(told, "manual cancellation")),
            25 => format!("Task retry requested by {}", who(told)),
            26 => format!("Task manually resolved by {}", who(told)),
            27 => format!("Task updated by {}", who(told)),
            28 => format!("Task paused by {}", who(told)),
            29 => format!("Task resumed by {}", who(told)),
            _ => format!("Task annotated by {}", who(told)),
        }
    }

    fn of_step(
        &self,
        told: &mut Transition,
        row: &EventRow,
        number: u32,
        before: Option<Before>,
    ) -> String {
        // Who had the lease stands in the row with which it was given.
        let had = before.and_then(|before| before.session);
        match number {
            40 => {
                leased(told, row.session);
                format!("Step execution started (attempt #{})", told.attempt)
            }
            41 => {
                leased(told, had);
                told.ran_for = row.mark.map(|since| passed(since, row.at));
                format!("Step completed successfully{}", within(told.ran_for.as_ref()))
            }
            42 => {
                if row.mark.is_some() {
                    leased(told, had);
                }
                failed(told, row)
            }
            43 => {
                asked(told, Note::from_text(row.text.as_deref()));
                told.retry_time = row.mark.map(timestamp);
                format!("Step retry attempt #{}", told.attempt + 1)
            }
            44 => {
                leased(told, had);
                told.ran_for = row.mark.map(|since| passed(since, row.at));
                told.reason = row.text.clone().unwrap_or_default();
                format!("Step handed back: {}", why(told, "no reason was given"))
            }
            48 => {
                let handler = row.no.and_then(|no| self.definition.step(no));
                let handler = handler.map_or("", |step| &step.handler);
                format!("Step waits: nobody serves {handler}")
            }
            _ => {
                asked(told, Note::from_text(row.text.as_deref()));
                match number {
                    45 => format!("Step cancelled due to {}", why(told, "manual cancellation")),
                    46 if told.actor.is_empty() => {
                        format!("Step manually resolved by {}", why(told, "its task"))
                    }
                    46 => format!("Step manually resolved by {}", who(told)),
                    _ => format!("Step updated by {}", who(told)),
                }
            }
        }
    }
}

/// Somebody asked, or nobody did.
fn asked(told: &mut Transition, note: Note) {
    if !note.by.is_empty() {
        told.actor_kind = ActorKind::Caller.into();
    }
    (told.actor, told.reason) = (note.by, note.reason);
    (told.request_id, told.operation_id) = (note.request_id, note.operation_id);
}

/// An executor has or had the lease; none: it is not known which.
fn leased(told: &mut Transition, session: Option<i64>) {
    told.actor_kind = ActorKind::Executor.into();
    told.actor = session.map(executor_id).unwrap_or_default();
}

fn failed(told: &mut Transition, row: &EventRow) -> String {
    let failure = StoredFailure::from_text(row.text.as_deref().unwrap_or_default());
    told.ran_for = row.mark.map(|since| passed(since, row.at));
    told.r#final = failure.is_final;
    let wait = failure.backoff_ms.map(|ms| Duration::from_millis(ms).min(DURATION_MAX));
    told.retry_time = wait.map(|wait| timestamp(row.at + wait));
    (told.error_class, told.error_message) = (failure.error_class, failure.message);
    let scheduled = if told.r#final { "" } else { " (retry scheduled)" };
    format!("Step failed: {}{scheduled}", told.error_message)
}

fn who(told: &Transition) -> &str {
    if told.actor.is_empty() { "the engine" } else { &told.actor }
}

fn why<'a>(told: &'a Transition, unknown: &'a str) -> &'a str {
    if told.reason.is_empty() { unknown } else { &told.reason }
}

/// How long it took, in words.
fn within(ran_for: Option<&prost_types::Duration>) -> String {
    let seconds = ran_for.map(|of| of.seconds as f64 + f64::from(of.nanos) / 1e9);
    seconds.map(|seconds| format!(" in {seconds:.3}s")).unwrap_or_default()
}

fn passed(since: DateTime<Utc>, until: DateTime<Utc>) -> prost_types::Duration {
    // None if the clock was set back.
    let passed = (until - since).to_std().unwrap_or_default();
    prost_types::Duration::try_from(passed).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use sqlx::types::Uuid;
    use stepwell_proto::v1::{Definition, StepTemplate};

    use super::*;

    /// Row by row: the number, the states, the attempt, how long before it what it ends began, the text, and the
    /// words.
    type Case = (i16, (i16, i16), i32, Option<i64>, &'static str, &'static str);

    const BY: &str = r#"{"by": "ops@shop", "reason": "because"}"#;
    const FAILED: &str = r#"{"error_class": "Down", "message": "no gateway", "backoff_ms": 4000, "max_attempts": 3}"#;
    const FINAL: &str = r#"{"error_class": "Down", "message": "no gateway", "final": true}"#;

    const OF_TASK: &[Case] = &[
        (20, (0, 1), 0, None, "", "Task initialized"),
        (21, (1, 2), 0, None, "", "Task started"),
        (22, (2, 3), 0, Some(1_250), "", "Task completed"),
        (
            23,
            (2, 4),
            0,
            Some(1_250),
            "",
            "Task encountered an error: steps_in_error_state (charge)",
        ),
        (24, (2, 5), 0, None, BY, "Task cancelled due to because"),
        (24, (2, 5), 0, None, r#"{"by": "ops@shop"}"#, "Task cancelled due to manual cancellation"),
        (25, (4, 1), 0, None, BY, "Task retry requested by ops@shop"),
        (26, (4, 6), 0, None, BY, "Task manually resolved by ops@shop"),
        (27, (1, 1), 0, None, BY, "Task updated by ops@shop"),
        (28, (1, 1), 0, None, BY, "Task paused by ops@shop"),
        (29, (1, 1), 0, None, BY, "Task resumed by ops@shop"),
        (30, (3, 3), 0, None, BY, "Task annotated by ops@shop"),
    ];

    const OF_STEP: &[Case] = &[
        (20, (0, 1), 0, None, "", "Step initialized and ready for execution"),
        (40, (1, 2), 2, None, "", "Step execution started (attempt #2)"),
        (41, (2, 3), 2, Some(42), "", "Step completed successfully in 0.042s"),
        (42, (2, 4), 2, Some(42), FAILED, "Step failed: no gateway (retry scheduled)"),
        (42, (2, 4), 3, Some(42), FINAL, "Step failed: no gateway"),
        (42, (1, 4), 0, None, FINAL, "Step failed: no gateway"),
        (43, (4, 1), 2, Some(-4_000), "", "Step retry attempt #3"),
        (43, (4, 1), 3, None, BY, "Step retry attempt #4"),
        (44, (2, 1), 1, Some(5), "busy", "Step handed back: busy"),
        (45, (1, 5), 0, None, BY, "Step cancelled due to because"),
        (46, (4, 6), 3, None, BY, "Step manually resolved by ops@shop"),
        (
            46,
            (1, 6),
            0,
            None,
            r#"{"reason": "bypass_steps", "skipped": true}"#,
            "Step manually resolved by bypass_steps",
        ),
        (47, (1, 1), 0, None, BY, "Step updated by ops@shop"),
        (48, (1, 1), 0, None, "", "Step waits: nobody serves pay"),
    ];

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_800_000_000_000 + ms).unwrap()
    }

    fn told(case: &Case, step: Option<i32>, before: Option<Before>) -> Transition {
        let (number, (from, to), attempt, mark, text, _) = *case;
        let steps = ["charge", "ship"].map(|name| StepTemplate {
            name: name.into(),
            handler: "pay".into(),
            ..StepTemplate::default()
        });
        let definition = Definition { steps: steps.into(), ..Definition::default() };
        let definition = StoredDefinition { definition, ..StoredDefinition::default() };
        let whose = Whose {
            key: 1,
            uid: Uuid::nil(),
            definition: 1,
            first_position: 1,
            created_at: at(-10_000),
            initiator: "web".into(),
        };
        let told = Told { whose: &whose, definition: &definition, of_step: step, complete: true };
        let row = EventRow {
            position: 7,
            batch: 7,
            at: at(0),
            task: 1,
            uid: Uuid::nil(),
            definition: 1,
            no: step.filter(|_| number != 20),
            r#type: number,
            from_state: (from > 0).then_some(from),
            to_state: to,
            attempt: Some(attempt),
            session: (number == 40).then_some(0x1_0000_002a),
            mark: mark.map(|ms| at(-ms)),
            text: (!text.is_empty()).then(|| text.to_owned()),
            names: (number == 23).then(|| vec![0]),
            trace: None,
        };
        told.transition(&row, before, true).unwrap()
    }

    fn seconds(of: Option<prost_types::Duration>) -> Option<f64> {
        of.map(|of| of.seconds as f64 + f64::from(of.nanos) / 1e9)
    }

    #[test]
    fn each_kind_of_transition_is_told_in_its_words() {
        for (cases, step) in [(OF_TASK, None), (OF_STEP, Some(0))] {
            for case in cases {
                let told = told(case, step, None);
                assert_eq!(told.description, case.5);
                assert_eq!((told.from_state, told.to_state), (case.1.0.into(), case.1.1.into()));
                assert_eq!(
                    (told.step_name.as_str(), told.attempt),
                    (step.map_or("", |_| "charge"), case.2)
                );
                let by = case.4.contains("ops@shop");
                assert_eq!(by, told.actor == "ops@shop" && told.actor_kind() == ActorKind::Caller);
            }
        }
    }

    #[test]
    fn every_recorded_event_that_has_a_state_is_told_here() {
        let numbers: std::collections::BTreeSet<u32> =
            OF_TASK.iter().chain(OF_STEP).map(|case| u32::try_from(case.0).unwrap()).collect();
        let recorded = stepwell_proto::catalog::EVENTS.iter().filter(|of| of.is_recorded());
        assert_eq!(numbers, recorded.map(|of| of.number).collect());
    }

    #[test]
    fn what_ends_an_attempt_says_who_had_it_how_long_it_ran_and_when_it_is_tried_again() {
        let leased = Before { at: at(-42), session: Some(0x1_0000_002a) };
        for case in [&OF_STEP[2], &OF_STEP[3]] {
            let told = told(case, Some(0), Some(leased));
            assert_eq!(told.actor_kind(), ActorKind::Executor);
            assert_eq!(told.actor, executor_id(0x1_0000_002a));
            assert_eq!(
                (seconds(told.ran_for), seconds(told.since_previous)),
                (Some(0.042), Some(0.042))
            );
        }
        let failed = told(&OF_STEP[3], Some(0), Some(leased));
        assert_eq!((failed.error_class.as_str(), failed.r#final), ("Down", false));
        assert_eq!(failed.retry_time, Some(timestamp(at(4_000))));
        let retried = told(&OF_STEP[6], Some(0), None);
        assert_eq!(retried.retry_time, Some(timestamp(at(4_000))));
        assert_eq!(
            (retried.actor_kind(), seconds(retried.since_previous)),
            (ActorKind::Engine, Some(10.0))
        );
        let waited_too_long = told(&OF_STEP[5], Some(0), None);
        assert_eq!(waited_too_long.actor_kind(), ActorKind::Engine);
        let created = told(&OF_TASK[0], None, None);
        assert_eq!((created.actor.as_str(), created.since_previous), ("web", None));
        assert_eq!(told(&OF_TASK[8], None, Some(leased)).since_previous, None, "it moves nothing");
    }
}
