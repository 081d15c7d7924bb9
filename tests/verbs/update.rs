//! What is changed of steps, and when it holds.

use stepwell_proto::v1::{
    Event,
    State::{Cancelled, Complete, Error, InProgress, Pending, ResolvedManually},
    StepUpdated,
    event::Detail,
};
use stepwell_store::{Ending, Move, Update, Updated};
use stepwell_tests::{check, child_slots, complete};

use super::{
    operate::{FAILS, RESOLVE, RETRY, Run, note},
    races::{hold, race},
};

fn config(text: &str) -> Update {
    Update { config: Some(text.to_owned()), ..Update::default() }
}

async fn update(run: &Run, number: i32, update: &Update) -> Updated {
    run.rows.store.update_step(run.uid, number, update, &note(), None).await.unwrap().unwrap()
}

/// What the step's handler would be given in place of its definition's config.
async fn own_config(run: &Run, number: i32) -> Option<String> {
    let key = run.step(number);
    let mut inputs = run.rows.store.inputs(&[], &[], &[key], (1000, 1000)).await.unwrap();
    inputs.configs.remove(&key)
}

async fn said(run: &Run) -> Vec<StepUpdated> {
    let rows = run.rows.store.read_after(0, 1000).await.unwrap();
    let events = rows.iter().map(|row| stepwell_store::event(row, &run.definition).unwrap());
    let details = events.filter_map(|event: Event| match event.detail {
        Some(Detail::StepUpdated(said)) => Some(said),
        _ => None,
    });
    details.collect()
}

#[tokio::test]
async fn a_lease_says_that_its_step_has_a_config_of_its_own_however_it_was_given() {
    let mut run = Run::of("a; b: a; c: a").await;
    assert!(update(&run, 0, &config(r#"{"v": 1}"#)).await.done);
    assert!(update(&run, 1, &config("{}")).await.done);
    let leases = run.rows.claim(&mut run.writer, run.definition.queues[0], 9).await;
    assert!(leases[0].own_config, "claimed");
    assert_eq!(own_config(&run, 0).await.as_deref(), Some(r#"{"v": 1}"#));
    let done = [complete(&leases[0], "1")];
    let node = run.rows.node;
    let settled = run.writer.settle(&done, &child_slots(&[2]), node, None).await.unwrap();
    let mut own: Vec<_> = settled.leases.iter().map(|l| (l.step, l.own_config)).collect();
    own.sort_unstable();
    assert_eq!(own, [(run.step(1), true), (run.step(2), false)], "handed over");
    assert_eq!(own_config(&run, 1).await.as_deref(), Some("{}"));
    assert_eq!(own_config(&run, 2).await, None);
    run.check().await;
}

#[tokio::test]
async fn a_config_stays_over_retries_until_it_is_changed_or_is_the_definition_s_again() {
    let mut run = Run::of("a").await;
    update(&run, 0, &config(r#"{"v": 1}"#)).await;
    run.run(&[(0, FAILS)]).await;
    run.moves(0, RETRY).await;
    let more = Update { max_attempts: Some(9), ..Update::default() };
    update(&run, 0, &more).await;
    let step = run.rows.store.step(run.uid, 0).await.unwrap().unwrap();
    assert_eq!((step.config.as_deref(), step.max_attempts), (Some(r#"{"v": 1}"#), 9));
    let both = Update { max_attempts: Some(7), ..config(r#"{"v": 2}"#) };
    update(&run, 0, &both).await;
    let step = run.rows.store.step(run.uid, 0).await.unwrap().unwrap();
    assert_eq!((step.config.as_deref(), step.max_attempts), (Some(r#"{"v": 2}"#), 7));
    update(&run, 0, &config("")).await;
    let step = run.rows.store.step(run.uid, 0).await.unwrap().unwrap();
    assert_eq!((step.config, step.config_omitted, step.max_attempts), (None, false, 7));
    let lease = run.rows.claim(&mut run.writer, run.definition.queues[0], 1).await[0];
    assert!(!lease.own_config);
    let said: Vec<_> = said(&run).await.into_iter().map(|s| (s.max_attempts, s.config)).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        said,
        [(0, text(r#"{"v": 1}"#)), (9, None), (7, text(r#"{"v": 2}"#)), (0, text(""))]
    );
    run.check().await;
}

#[tokio::test]
async fn a_large_config_is_told_where_one_step_is_asked_for_and_left_out_of_events_and_tasks() {
    let run = Run::of("a; b").await;
    let exactly = |bytes: usize| format!(r#"{{"v":"{}"}}"#, "x".repeat(bytes - 8));
    for (bytes, omitted) in [(8192, false), (8193, true)] {
        update(&run, 0, &config(&exactly(bytes))).await;
        let step = run.rows.store.step(run.uid, 0).await.unwrap().unwrap();
        assert_eq!((step.config.unwrap().len(), step.config_omitted), (bytes, false));
        let said = said(&run).await.pop().unwrap();
        assert_eq!((said.config.is_none(), said.config_omitted), (omitted, omitted));
    }
    let task = run.rows.store.task_with_steps(run.uid, true).await.unwrap().unwrap();
    let told: Vec<_> = task.steps.into_iter().map(|s| (s.config, s.config_omitted)).collect();
    assert_eq!(told, [(None, true), (None, false)]);
}

#[tokio::test]
async fn a_step_is_changed_while_it_is_pending_or_in_error_and_else_left_without_a_trace() {
    for state in [Pending, InProgress, Complete, Error, Cancelled, ResolvedManually] {
        // The other step keeps the task open.
        let mut run = Run::of("a; b").await;
        match state {
            InProgress => run.run(&[]).await,
            Complete => run.run(&[(0, Ending::Complete)]).await,
            Error => run.run(&[(0, FAILS)]).await,
            Cancelled => run.moves(0, Move::Cancel).await,
            ResolvedManually => run.moves(0, RESOLVE).await,
            _ => {}
        }
        let before = run.log(0).await.len();
        let updated = update(&run, 0, &config(r#"{"v": 1}"#)).await;
        let allowed = matches!(state, Pending | Error);
        assert_eq!((updated.is, updated.done), (state, allowed));
        let log = run.log(before).await;
        assert_eq!(log, if allowed { vec!["0 step.updated"] } else { vec![] }, "{state:?}");
        assert_eq!(own_config(&run, 0).await.is_some(), allowed, "{state:?}");
        run.check().await;
    }
}

#[tokio::test]
async fn nothing_is_changed_of_a_task_that_has_ended_or_of_a_step_that_made_more_attempts() {
    let mut run = Run::of("a; b: a").await;
    run.run(&[(0, FAILS)]).await;
    let both = Update { max_attempts: Some(1), ..config("{}") };
    assert!(update(&run, 0, &both).await.done, "one attempt was made");
    run.moves(0, RETRY).await;
    run.run(&[(0, FAILS)]).await;
    let more = Update { max_attempts: Some(1), ..config(r#"{"v": 2}"#) };
    let updated = update(&run, 0, &more).await;
    assert_eq!((updated.is, updated.attempt, updated.done), (Error, 2, false));
    assert_eq!(own_config(&run, 0).await.as_deref(), Some("{}"), "neither of both");
    run.rows.cancel(run.uid).await;
    let updated = update(&run, 1, &config("{}")).await;
    assert_eq!((updated.task, updated.done), (Cancelled, false));
    let nobody =
        run.rows.store.update_step(run.uid, 7, &config("{}"), &note(), None).await.unwrap();
    assert_eq!(nobody, None);
    check(&mut run.rows.connection().await).await;
}

#[tokio::test]
async fn an_update_and_a_claim_that_meet_agree_on_the_config_in_both_orders() {
    for update_first in [true, false] {
        let run = Run::of("a").await;
        let mut writer = run.rows.writer().await;
        let wanted = config(r#"{"v": 1}"#);
        let updating = update(&run, 0, &wanted);
        let claiming = run.rows.claim(&mut writer, run.definition.queues[0], 1);
        let latch = hold(&run.rows, run.key).await;
        let (updated, leases) = if update_first {
            race(&run.rows, latch, updating, claiming).await
        } else {
            let (leases, updated) = race(&run.rows, latch, claiming, updating).await;
            (updated, leases)
        };
        assert_eq!((updated.done, leases[0].own_config), (update_first, update_first));
        run.check().await;
    }
}
