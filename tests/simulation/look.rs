//! The model in the words of the tables, a line for each row, to be laid beside them.

use stepwell_proto::v1::State;

use super::{
    database::Rows,
    model::{Claimant, Event, Id, Model},
};

/// A row as Postgres writes one.
macro_rules! line {
    ($($value:expr),+ $(,)?) => { format!("({})", [$(text(&$value)),+].join(",")) };
}

/// What the tables are to hold, and the log to have in addition.
pub fn expected(model: &Model) -> Rows {
    let ready = ranked(model);
    Rows {
        tasks: lines(model.tasks.iter().enumerate().filter_map(|(task, of)| {
            let of = of.as_ref()?;
            Some(line![
                task,
                number(of.state),
                model.live(task),
                model.in_state(task, State::Error),
                model.in_state(task, State::Cancelled),
                of.started_at,
                of.finished_at,
                model.is_ruled(task),
                of.paused,
                of.held,
                model.is_ruled(task).then(|| model.in_state(task, State::InProgress)),
                of.deadline,
                of.priority,
                (!of.facts.is_empty()).then(|| {
                    let facts = of.facts.iter().map(|(name, text)| format!("{name}={text}"));
                    facts.collect::<Vec<_>>().join("+")
                })
            ])
        })),
        facts: lines(model.tasks.iter().enumerate().flat_map(|(task, of)| {
            let facts = of.iter().flat_map(|of| &of.facts);
            facts.map(move |(name, text)| line![task, *name, *text])
        })),
        identities: lines(model.identities.iter().map(|(key, task)| line![*key, *task])),
        steps: lines(model.steps().into_iter().map(|id| step(model, id))),
        ready: lines(ready.into_iter()),
        parked: lines(
            model.parked.iter().map(|p| line![p.id.task, model.queue(p.id), p.id.no, p.attempt]),
        ),
        timers: lines(
            model
                .timers
                .iter()
                .map(|t| line![t.due, t.id.task, t.id.no, t.attempt, t.clock as i32]),
        ),
        signals: {
            let mut signals: Vec<_> = model.signals.iter().collect();
            signals.sort_by_key(|signal| (signal.id, signal.token));
            lines(
                signals
                    .into_iter()
                    .map(|s| line![s.node, s.session, s.id.task, s.id.no, s.token, s.attempt]),
            )
        },
        nodes: {
            let nodes = model.nodes.iter().enumerate().filter(|(_, node)| !node.gone);
            lines(nodes.map(|(no, n)| line![no, n.lease_until, n.retired_at, n.taken_by]))
        },
        keys: {
            let room = |key: usize| model.plans[key].rules.room.map(i32::from);
            let line = |c: &Claimant| line![c.key, c.task, room(c.key), c.granted];
            lines(model.claimants.iter().map(line))
        },
        wake: lines(model.wake.iter().map(ToString::to_string)),
        pauses: lines(model.pauses.iter().map(|(namespace, name)| line![*namespace, *name])),
        plans: lines((0..model.plans.len()).map(|plan| line![plan, model.is_stopped(plan)])),
        events: {
            let mut events: Vec<&Event> = model.events.iter().collect();
            events.sort_by_key(|event| (event.task, event.no));
            lines(events.into_iter().map(event))
        },
        strange: 0,
    }
}

/// Lays the tables beside the model. Of the log's order within one call only this is asked for: each step
/// and each task goes its way, and nothing of a task follows its end.
pub fn differences(model: &Model, mut found: Rows) -> Result<(), String> {
    let log: Vec<&str> = found.events.lines().collect();
    let task_of = |line: &str| line[1..].split(',').next().map(str::to_owned);
    let of = |line: &str| {
        let mut parts = line[1..].split(',').map(|part| part.parse::<i64>().ok());
        (parts.next().flatten(), parts.next().flatten(), parts.nth(2).flatten())
    };
    for (at, line) in log.iter().enumerate() {
        let (_, no, to) = of(line);
        let ends = no.is_none() && to.is_some_and(|to| to > 2);
        // A task in error may go on and end again in one call.
        if ends && log[at + 1..].iter().any(|later| task_of(later) == task_of(line)) {
            return Err(format!("events of a task after its end:\n{}", found.events));
        }
    }
    let mut sorted = log.clone();
    sorted.sort_by_key(|line| (of(line).0, of(line).1));
    found.events = sorted.join("\n");
    let expected = expected(model);
    if expected == found {
        return Ok(());
    }
    let mut text = String::new();
    if found.strange > 0 {
        text += "\nevents of another batch, time or task, or with holes between them";
    }
    let parts = [
        (
            "task, state, live, failed, cancelled, started, finished, ruled, paused, held, running, \
             deadline, priority, facts",
            expected.tasks,
            found.tasks,
        ),
        (
            "task, step, state, waiting on, attempt, most, not before, leased at, token, node, \
             session, last token, last kind, result, last error, due, queue",
            expected.steps,
            found.steps,
        ),
        ("fact: task, name, text", expected.facts, found.facts),
        ("identity: key, task", expected.identities, found.identities),
        ("ready: queue, place, task, step, attempt", expected.ready, found.ready),
        ("parked: task, queue, step, attempt", expected.parked, found.parked),
        ("timer: due, task, step, attempt, kind", expected.timers, found.timers),
        ("signal: node, session, task, step, token, attempt", expected.signals, found.signals),
        ("key: key, task, room, granted", expected.keys, found.keys),
        ("key to look at", expected.wake, found.wake),
        ("pause: namespace, definition", expected.pauses, found.pauses),
        ("plan, paused", expected.plans, found.plans),
        ("node, lease until, retired, taken by", expected.nodes, found.nodes),
        (
            "event: task, step, type, from, to, attempt, session, mark, names",
            expected.events,
            found.events,
        ),
    ];
    for (name, expected, found) in parts {
        let (expected, found): (Vec<_>, Vec<_>) =
            (expected.lines().collect(), found.lines().collect());
        if expected != found {
            text += &format!("\n({name})");
            let missing = expected.iter().filter(|line| !found.contains(line));
            text.extend(missing.map(|line| format!("\n  model    {line}")));
            let other = found.iter().filter(|line| !expected.contains(line));
            text.extend(other.map(|line| format!("\n  database {line}")));
        }
    }
    Err(text)
}

fn step(model: &Model, id: Id) -> String {
    let step = model.step(id);
    line![
        id.task,
        id.no,
        number(step.state),
        model.waiting_on(id),
        step.attempt,
        step.max_attempts,
        step.not_before,
        step.leased_at,
        step.lease.map(|lease| lease.token),
        step.lease.map(|lease| lease.node),
        step.lease.map(|lease| lease.session),
        step.last.map(|last| last.0),
        step.last.map(|last| last.1 as i32),
        step.result,
        step.last_error,
        step.due,
        step.queue
    ]
}

/// Places are compared by their order alone.
fn ranked(model: &Model) -> Vec<String> {
    let places = model.places();
    let rank = |place| places.partition_point(|before| *before <= place);
    let row = |row: &super::model::Row| {
        line![row.queue, rank(row.place), row.id.task, row.id.no, row.attempt]
    };
    model.ready.iter().map(row).collect()
}

fn event(event: &Event) -> String {
    let names: Vec<String> = event.names.iter().map(ToString::to_string).collect();
    line![
        event.task,
        event.no,
        event.kind,
        event.from.map(number),
        number(event.to),
        event.attempt,
        event.session,
        event.mark,
        names.join("+")
    ]
}

fn number(state: State) -> i32 {
    state.into()
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

/// A value as Postgres writes it in a row; what is not there, as nothing.
fn text(value: &impl Text) -> String {
    value.text()
}

trait Text {
    fn text(&self) -> String;
}

macro_rules! texts {
    ($($type:ty),+) => { $(impl Text for $type {
        fn text(&self) -> String {
            self.to_string()
        }
    })+ };
}
texts!(u8, i32, i64, u32, usize, String);

impl Text for bool {
    fn text(&self) -> String {
        if *self { "t" } else { "f" }.into()
    }
}

impl<T: Text> Text for Option<T> {
    fn text(&self) -> String {
        self.as_ref().map_or_else(String::new, Text::text)
    }
}
