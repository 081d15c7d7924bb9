//! What is told of the whole equals what is counted one by one, on tasks that chance moved.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use stepwell_proto::v1::{Concurrency, State};
use stepwell_store::{
    Ending, EventRow, Move, Named, Note, StoredDefinition, StoredFailure, TasksWent, Went,
    WholeBounds, Window,
};
use stepwell_tests::{Rows, complete, new_task, report};
use uuid::Uuid;

/// Draws by chance, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % u64::try_from(n).unwrap()).unwrap()
    }
}

/// Tasks of several definitions that were moved by chance: claimed, completed, failed, handed back, cancelled,
/// resolved, retried, paused.
async fn moved(rows: &Rows, seed: u64) -> Vec<Uuid> {
    let mut dice = Dice(seed);
    let keyed = |d: &mut stepwell_proto::v1::Definition| {
        d.concurrency = Some(Concurrency { key: "k".into(), limit: 1 });
    };
    let definitions: [Arc<StoredDefinition>; 4] = [
        rows.define("a; b: a; c: a; d: b c").await,
        rows.define_with("a; b; c: b", |d| d.max_parallel_steps = 1).await,
        rows.define_with("a; b: a", keyed).await,
        rows.define("a; b").await,
    ];
    let mut writer = rows.writer().await;
    let mut uids = Vec::new();
    let note = Note::new("who", "why");
    for _ in 0..30 {
        let definition = &definitions[dice.below(4)];
        let mut tasks: Vec<_> = (0..=dice.below(3)).map(|_| new_task(definition)).collect();
        if definition.definition.concurrency.is_some() {
            tasks.iter_mut().for_each(|task| task.concurrency = Some(5));
        }
        writer.create_tasks(&rows.store, &mut tasks).await.unwrap();
        uids.extend(tasks.iter().map(|task| task.uid));
        while writer.grant_keys().await.unwrap().1 {}
        let of = &definitions[dice.below(4)];
        let leases = rows.claim(&mut writer, of.queues[0], dice.below(4)).await;
        let failure = |class: &str, is_final| {
            StoredFailure { error_class: class.into(), is_final, ..StoredFailure::default() }
                .to_text()
        };
        let reports: Vec<_> = leases
            .iter()
            .filter_map(|lease| match dice.below(7) {
                0 => None,
                1 => Some(report(lease, Ending::Fail { wait_ms: None }, &failure("Broken", true))),
                2 => {
                    let later = Ending::Fail { wait_ms: Some(60_000) };
                    Some(report(lease, later, &failure("Busy", false)))
                }
                3 => {
                    let soon = Ending::Fail { wait_ms: Some(0) };
                    Some(report(lease, soon, &failure("Flaky", false)))
                }
                4 => Some(report(lease, Ending::HandBack, "")),
                _ => Some(complete(lease, "1")),
            })
            .collect();
        if !reports.is_empty() {
            rows.settle(&mut writer, &reports).await;
        }
        let uid = uids[dice.below(uids.len())];
        let number = i32::try_from(dice.below(3)).unwrap();
        match dice.below(8) {
            0 => drop(rows.cancel(uid).await),
            1 => drop(rows.store.pause_tasks(&[uid], true, &note).await.unwrap()),
            2 => drop(rows.store.move_step(uid, number, &Move::Cancel, &note).await.unwrap()),
            3 => {
                let resolve = Move::Resolve { result: None };
                rows.store.move_step(uid, number, &resolve, &note).await.unwrap();
            }
            4 => drop(rows.store.retry_tasks(&[uid], None, &note).await.unwrap()),
            5 => drop(rows.store.resolve_tasks(&[uid], &note).await.unwrap()),
            _ => {}
        }
    }
    uids
}

#[tokio::test]
async fn the_whole_is_the_sum_of_what_each_task_is_told_to_be() {
    for seed in 1..4 {
        let rows = Rows::new().await;
        let uids = moved(&rows, seed).await;
        let bounds = WholeBounds::default();
        let whole = rows.store.whole("", Duration::from_secs(3600), bounds).await.unwrap();
        assert!(whole.open_complete && whole.ended_complete && whole.ready_complete);
        let (mut open, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for (uid, context) in rows.store.task_contexts(&uids).await.unwrap() {
            let task = rows.store.task(uid).await.unwrap().unwrap();
            let of = (task.namespace, task.definition_name, context.state());
            match context.state() {
                State::Pending | State::InProgress => {
                    let stands = (context.execution_status() as i32, context.health() as i32);
                    *open.entry((of, stands)).or_insert(0) += 1;
                }
                _ => *ended.entry(of).or_insert(0) += 1,
            }
        }
        let of = |of: &Named, state| (of.namespace.clone(), of.name.clone(), state);
        let told: BTreeMap<_, i64> = whole
            .open
            .iter()
            .map(|tasks| {
                let (status, health) = tasks.stands.unwrap();
                ((of(&tasks.of, tasks.state), (status as i32, health as i32)), tasks.n)
            })
            .collect();
        assert_eq!(told, open, "seed {seed}");
        let kinds: BTreeSet<_> = told.keys().map(|(_, stands)| *stands).collect();
        assert!(kinds.len() >= 4, "chance has to reach something: {kinds:?}");
        let told: BTreeMap<_, i64> =
            whole.ended.iter().map(|tasks| (of(&tasks.of, tasks.state), tasks.n)).collect();
        assert_eq!(told, ended, "seed {seed}");

        // What is ready, by handler: as the survey has it.
        let survey = rows.store.survey().await.unwrap().ready;
        assert_eq!(
            whole.ready.iter().map(|ready| ready.steps).sum::<i64>(),
            survey.iter().map(|ready| ready.steps).sum::<i64>()
        );
        let ages = whole.ready.iter().filter_map(|ready| ready.oldest.map(|(.., at)| at));
        assert!(ages.collect::<Vec<_>>().is_sorted());
    }
}

#[tokio::test]
async fn what_is_not_counted_is_said_and_what_ended_long_ago_is_not_asked_for() {
    let rows = Rows::new().await;
    let (one, other) = (rows.define("a; b: a").await, rows.define("a").await);
    rows.create_many(&one, 3).await;
    let keys = rows.create_many(&other, 4).await;
    for key in &keys[..3] {
        rows.cancel(rows.one("select uid from stepwell.task where id = $1", *key).await).await;
    }
    let age =
        "update stepwell.task set finished_at = finished_at - interval '2 hours' where id = $1";
    rows.execute(age, keys[0]).await;
    let hour = Duration::from_secs(3600);
    let asked = async |bounds| rows.store.whole("", hour, bounds).await.unwrap();
    let whole = WholeBounds::default();
    let is = asked(whole).await;
    assert_eq!(
        is.ended.iter().map(|of| (of.state, of.n)).collect::<Vec<_>>(),
        [(State::Cancelled, 2)]
    );
    assert_eq!(is.open.iter().map(|of| of.n).sum::<i64>(), 4);
    // Three tasks of two steps, and one of one.
    for (bounds, looked_at, open_complete, ended_complete) in [
        (WholeBounds { steps: 7, tasks: 4, ..whole }, 4, true, true),
        (WholeBounds { steps: 6, ..whole }, 3, false, true),
        (WholeBounds { steps: 3, ..whole }, 1, false, true),
        (WholeBounds { tasks: 3, ..whole }, 4, false, true),
        (WholeBounds { tasks: 1, ..whole }, 2, false, false),
    ] {
        let is = asked(bounds).await;
        let seen = is.open.iter().filter(|of| of.stands.is_some()).map(|of| of.n).sum::<i64>();
        assert_eq!(
            (seen, is.open_complete, is.ended_complete),
            (looked_at, open_complete, ended_complete),
            "{bounds:?}"
        );
    }
    let is = asked(WholeBounds { queues: 1, ..whole }).await;
    assert_eq!((is.ready.len(), is.ready_complete), (1, false));
    let is = rows.store.whole("elsewhere", hour, whole).await.unwrap();
    assert!(is.open.is_empty() && is.ended.is_empty() && is.ready.is_empty());
}

fn window() -> Window {
    Window {
        until: None,
        length_us: 3_600_000_000,
        namespace: String::new(),
        name: String::new(),
        version: None,
        slowest: 5,
        events_max: 200_000,
    }
}

/// The percentile as it is defined: between the two nearest.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "few values"
)]
fn percentile(sorted: &[f64], of: f64) -> f64 {
    let place = of * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

fn figures(mut seconds: Vec<f64>) -> (i64, Vec<f64>) {
    seconds.sort_by(f64::total_cmp);
    let Some(longest) = seconds.last() else { return (0, Vec::new()) };
    let of = |p| percentile(&seconds, p);
    (i64::try_from(seconds.len()).unwrap(), vec![of(0.5), of(0.9), of(0.99), *longest])
}

fn close(told: &stepwell_store::Durations, wanted: (i64, Vec<f64>)) {
    assert_eq!((told.n, told.figures.len()), (wanted.0, wanted.1.len()));
    for (is, wanted) in told.figures.iter().zip(wanted.1) {
        assert!((is - wanted).abs() < 1e-6, "{is} is not {wanted}");
    }
}

fn seconds(of: chrono::TimeDelta) -> f64 {
    of.as_seconds_f64()
}

/// Counted one by one: how often each step was leased, completed, failed, tried again and handed back; how long its
/// executions took, and how long they had waited.
#[derive(Default)]
struct Counted {
    counts: [i64; 5],
    runs: Vec<f64>,
    waits: Vec<f64>,
}

fn counted(log: &[EventRow], roots: &BTreeMap<i32, Vec<i32>>) -> BTreeMap<(i32, i32), Counted> {
    let mut ready = BTreeMap::new();
    let mut steps: BTreeMap<(i32, i32), Counted> = BTreeMap::new();
    for row in log {
        let no = row.no.unwrap_or(-1);
        let step = steps.entry((row.definition, no)).or_default();
        match row.r#type {
            20 => {
                ready.extend(roots[&row.definition].iter().map(|no| ((row.task, *no), row.at)));
            }
            40 => {
                step.counts[0] += 1;
                let since: chrono::DateTime<chrono::Utc> = ready[&(row.task, no)];
                step.waits.push(seconds(row.at - since).max(0.0));
            }
            41 | 42 => {
                step.counts[usize::try_from(row.r#type - 40).unwrap()] += 1;
                step.runs.push(seconds(row.at - row.mark.unwrap()));
            }
            43 => {
                step.counts[3] += i64::from(row.mark.is_some());
                ready.insert((row.task, no), row.mark.unwrap_or(row.at));
            }
            44 => {
                step.counts[4] += 1;
                ready.insert((row.task, no), row.at);
            }
            _ => {}
        }
        if matches!(row.r#type, 41 | 46) {
            for child in row.names.iter().flatten() {
                ready.insert((row.task, *child), row.at);
            }
        }
    }
    steps.retain(|(_, no), step| *no >= 0 && step.counts != [0; 5]);
    steps
}

#[tokio::test]
async fn what_is_told_of_a_window_is_what_is_counted_event_by_event() {
    for seed in 11..14 {
        let rows = Rows::new().await;
        moved(&rows, seed).await;
        let log = rows.store.read_after(0, 1_000_000).await.unwrap();
        let went = rows.store.went(&window()).await.unwrap().unwrap();
        assert!(went.complete);
        assert_eq!(went.events, i64::try_from(log.len()).unwrap());
        let ids: BTreeSet<i32> = log.iter().map(|row| row.definition).collect();
        let (mut names, mut roots) = (BTreeMap::new(), BTreeMap::new());
        for id in ids {
            let definition = rows.store.definition(id).await.unwrap();
            let of = (0..).zip(&definition.parents).filter(|(_, parents)| parents.is_empty());
            roots.insert(id, of.map(|(no, _)| no).collect::<Vec<i32>>());
            names.insert(definition.definition.name.clone(), definition);
        }

        // Steps.
        let wanted = counted(&log, &roots);
        assert_eq!(went.steps.len(), wanted.len(), "seed {seed}");
        for told in &went.steps {
            let definition = &names[&told.of.name];
            let no = definition.definition.steps.iter().position(|s| s.name == told.step).unwrap();
            let wanted = &wanted[&(definition.id, i32::try_from(no).unwrap())];
            let counts = [told.started, told.completed, told.failed, told.retried, told.returned];
            assert_eq!(counts, wanted.counts, "{} {}", told.of.name, told.step);
            close(&told.execution, figures(wanted.runs.clone()));
            close(&told.wait, figures(wanted.waits.clone()));
        }
        let started: i64 = wanted.values().map(|step| step.counts[0]).sum();
        assert!(started > 10, "chance has to reach something");

        // Tasks.
        let of = |wanted: Option<i32>| -> Vec<&EventRow> {
            let tasks = log.iter().filter(|row| row.no.is_none());
            tasks.filter(|row| wanted.is_none_or(|id| row.definition == id)).collect()
        };
        let created: BTreeMap<i64, _> =
            log.iter().filter(|row| row.r#type == 20).map(|row| (row.task, row.at)).collect();
        for told in &went.tasks {
            let TasksWent { created: made, completed, failed, cancelled, resolved, .. } = told;
            let events = of(told.of.as_ref().map(|of| names[&of.name].id));
            let n = |number| events.iter().filter(|row| row.r#type == number).count();
            let told_counts = [made, completed, failed, cancelled, resolved];
            let wanted = [20, 22, 23, 24, 26].map(|number| i64::try_from(n(number)).unwrap());
            assert_eq!(told_counts.map(|n| *n), wanted);
            let ends = events.iter().filter(|row| matches!(row.r#type, 22 | 23));
            let took: Vec<f64> = ends.map(|row| seconds(row.at - created[&row.task])).collect();
            assert_eq!(told.duration.n, i64::try_from(took.len()).unwrap());
            if let (Some(told), Some(wanted)) =
                (told.duration.figures.last(), took.iter().copied().reduce(f64::max))
            {
                // The row says when it was asked for, the event when it was appended.
                assert!((told - wanted).abs() < 0.5, "{told} is not {wanted}");
            }
        }
        assert_eq!(went.tasks.len(), names.len() + 1);

        // Why, and the slowest.
        let mut classes: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for row in log.iter().filter(|row| row.r#type == 42) {
            let failure = StoredFailure::from_text(row.text.as_deref().unwrap());
            let class = classes.entry(failure.error_class).or_default();
            (class.0, class.1) = (class.0 + 1, class.1 + i64::from(failure.is_final));
        }
        let told: BTreeMap<_, _> =
            went.errors.iter().map(|of| (of.class.clone(), (of.n, of.final_n))).collect();
        assert_eq!(told, classes);
        let mut runs: Vec<f64> = wanted.values().flat_map(|step| step.runs.clone()).collect();
        runs.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(went.slow_executions.len(), 5.min(runs.len()));
        for (slow, wanted) in went.slow_executions.iter().zip(runs) {
            assert!((slow.seconds - wanted).abs() < 1e-6);
        }
    }
}

#[tokio::test]
async fn of_a_long_window_the_last_whole_commits_are_read_and_said_and_filters_narrow_it() {
    let rows = Rows::new().await;
    let (one, other) = (rows.define("a").await, rows.define("a").await);
    rows.create_many(&one, 10).await;
    rows.create_many(&other, 3).await;
    rows.create_many(&one, 2).await;
    let asked = async |window: Window| rows.store.went(&window).await.unwrap().unwrap();
    let created = |went: &Went| went.tasks.iter().map(|of| of.created).collect::<Vec<_>>();
    assert_eq!(created(&asked(window()).await), [15, 12, 3]);
    for (events_max, complete, wanted) in [
        (15, true, vec![15, 12, 3]),
        (14, false, vec![5, 3, 2]),
        (4, false, vec![2, 2]),
        (1, false, vec![0]),
    ] {
        let went = asked(Window { events_max, ..window() }).await;
        assert_eq!((went.complete, created(&went)), (complete, wanted), "{events_max}");
        // The window begins an hour ago, the events just now.
        assert_eq!(went.until - went.since < chrono::TimeDelta::minutes(30), !complete);
    }
    let named = Window { name: other.definition.name.clone(), ..window() };
    assert_eq!(created(&asked(named.clone()).await), [3, 3]);
    assert_eq!(created(&asked(Window { version: Some([2, 0, 0]), ..named }).await), [0]);
    assert_eq!(created(&asked(Window { namespace: "elsewhere".into(), ..window() }).await), [0]);

    // Half of it two hours ago.
    let age = "update stepwell.event set at = at - interval '2 hours' where position <= $1";
    rows.execute(age, 10).await;
    assert_eq!(created(&asked(window()).await), [5, 3, 2]);
    let until = Some(chrono::Utc::now() - chrono::TimeDelta::hours(1));
    let went = asked(Window { until, length_us: 7_200_000_000, ..window() }).await;
    assert_eq!((created(&went), went.events), (vec![10, 10], 10));
}

#[tokio::test]
async fn a_window_that_begins_before_what_is_kept_is_refused_with_the_earliest_time() {
    let rows = Rows::new().await;
    let mut connection = rows.connection().await;
    stepwell_tests::cut_log(&mut connection, 4, 5).await;
    let definition = rows.define("a").await;
    rows.create_many(&definition, 3).await;
    rows.create_many(&definition, 5).await;
    let age = "update stepwell.event set at = at - interval '2 hours' where position <= $1";
    rows.execute(age, 3).await;
    let day = Window { length_us: 86_400_000_000, ..window() };
    assert!(rows.store.went(&day).await.unwrap().is_ok(), "nothing is gone");
    let keep = stepwell_store::Keep { age: Some(Duration::from_secs(3600)), bytes: None };
    assert_eq!(rows.store.drop_old_events(keep).await.unwrap(), 1);
    let earliest = rows.store.went(&day).await.unwrap().unwrap_err();
    let first = rows.store.read_after(rows.store.earliest().await.unwrap(), 1).await.unwrap();
    assert_eq!(earliest, first[0].at);
    let short = Window { length_us: 1, ..window() };
    assert_eq!(rows.store.went(&short).await.unwrap().unwrap().events, 0);
}
