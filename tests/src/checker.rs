//! The judge of a chaos run: from what producers, executors and subscribers wrote into their
//! histories and from the database, it says which promises were broken. It shares no code with the
//! services, and the database's own invariants come on top (`check`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

use serde_json::Value;
use sqlx::{PgConnection, Row};
use stepwell_proto::id::LeaseId;

use crate::history::{SHAPES, read};

/// How a run went.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Promises that were broken; none: all held.
    pub violations: Vec<String>,
    /// How much was looked at.
    pub counts: BTreeMap<&'static str, usize>,
}

impl Verdict {
    fn broken(&mut self, what: String) {
        // A broken run breaks everywhere: the first ones tell.
        if self.violations.len() < 50 {
            self.violations.push(what);
        }
    }

    fn count(&mut self, what: &'static str, n: usize) {
        *self.counts.entry(what).or_default() += n;
    }
}

/// One event of the log.
struct Logged {
    position: i64,
    batch: i64,
    name: String,
    step: Option<i64>,
    attempt: Option<i32>,
}

/// Judges a run that has come to rest by the histories in a folder and the database.
pub async fn violations(folder: &Path, connection: &mut PgConnection) -> Verdict {
    let mut verdict = Verdict::default();
    let mut histories: Vec<(String, Vec<Value>)> = Vec::new();
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        if name.ends_with(".jsonl") {
            histories.push((name, read(&file.path())));
        }
    }
    let log = log(connection).await;
    verdict.count("events", log.len());
    verdict.count("histories", histories.len());
    let entries: Vec<&Value> = histories.iter().flat_map(|(_, entries)| entries).collect();
    judge_tasks(&mut verdict, connection, &entries).await;
    judge_results(&mut verdict, connection).await;
    judge_executors(&mut verdict, connection, &entries, &log).await;
    for (name, entries) in histories.iter().filter(|(name, _)| name.starts_with("subscriber")) {
        judge_subscriber(&mut verdict, name, entries, &log);
    }
    judge_subscribers_over_restarts(&mut verdict, &histories, &log);
    judge_rest(&mut verdict, connection).await;
    verdict
}

async fn log(connection: &mut PgConnection) -> Vec<Logged> {
    let rows = sqlx::query(
        "select position, batch, type, case when no is not null then task << 14 | no end as step,
                attempt
           from stepwell.event order by position",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    let logged = rows.iter().map(|row| {
        let number = u32::try_from(row.get::<i16, _>("type")).unwrap();
        Logged {
            position: row.get("position"),
            batch: row.get("batch"),
            name: stepwell_proto::catalog::event_type_by_number(number)
                .map_or("custom", |of_type| of_type.name)
                .to_owned(),
            step: row.get("step"),
            attempt: row.get("attempt"),
        }
    });
    logged.collect()
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_default()
}

/// What was acknowledged exists; every task ends, as it must, and as its producer was told.
async fn judge_tasks(verdict: &mut Verdict, connection: &mut PgConnection, entries: &[&Value]) {
    let rows = sqlx::query("select uid::text, state from stepwell.task")
        .fetch_all(connection)
        .await
        .unwrap();
    let states: HashMap<String, i16> =
        rows.iter().map(|row| (row.get("uid"), row.get("state"))).collect();
    let words = ["", "pending", "in_progress", "complete", "error", "cancelled", "resolved"];
    let word = |task: &str| states.get(task).map(|state| words[*state as usize]);
    verdict.count("tasks", states.len());
    let mut asked = HashSet::new();
    for entry in entries {
        let task = text(entry, "task");
        match text(entry, "what") {
            "create" => {
                asked.insert(task.to_owned());
                let shape = SHAPES.iter().find(|s| s.name == text(entry, "shape")).unwrap();
                let must = if shape.last.is_some() { "complete" } else { "error" };
                if let Some(is) = word(task).filter(|is| *is != must) {
                    verdict.broken(format!("task {task} ({}) is {is}, not {must}", shape.name));
                }
            }
            "created" if word(task).is_none() => {
                verdict.broken(format!("task {task} was acknowledged and is not there"));
            }
            "end" if word(task) != Some(text(entry, "state")) => {
                let (told, is) = (text(entry, "state"), word(task));
                verdict.broken(format!("task {task} ended as {told} and is {is:?}"));
            }
            _ => {}
        }
    }
    for task in states.keys().filter(|task| !asked.contains(*task)) {
        verdict.broken(format!("nobody asked for task {task}"));
    }
}

/// Each complete step has the result of the very attempt that completed it, and it is right: one
/// more than the sum of its parents.
async fn judge_results(verdict: &mut Verdict, connection: &mut PgConnection) {
    let rows = sqlx::query(
        "select s.key, s.attempt, s.last_token, s.result, d.name, t.state,
                s.children = '{}' as is_last,
                (select coalesce(sum((p.result::json->>'n')::int), 0) from stepwell.step p
                  where p.key between t.id << 14 and (t.id << 14) + 16383
                    and (s.key & 16383)::int = any(p.children)) as sum
           from stepwell.step s
           join stepwell.task t on t.id = s.key >> 14
           join stepwell.definition d on d.id = t.definition
          where s.state = 3",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    verdict.count("completed steps", rows.len());
    for row in &rows {
        let (key, attempt): (i64, i32) = (row.get("key"), row.get("attempt"));
        let result: Value = serde_json::from_str(row.get("result")).unwrap();
        let lease = LeaseId::decode(text(&result, "lease"));
        let of_it = lease.is_some_and(|lease| {
            lease.step == key
                && lease.attempt == attempt
                && Some(lease.token) == row.get::<Option<i64>, _>("last_token")
        });
        if !of_it {
            verdict.broken(format!("step {key} attempt {attempt} has another's result {result}"));
        }
        let (n, sum): (i64, i64) = (result["n"].as_i64().unwrap_or_default(), row.get("sum"));
        if n != sum + 1 {
            verdict.broken(format!("step {key} says {n} with parents' {sum}"));
        }
        let shape = SHAPES.iter().find(|s| s.name == row.get::<&str, _>("name")).unwrap();
        if row.get::<bool, _>("is_last") && row.get::<i16, _>("state") == 3 && shape.last != Some(n)
        {
            verdict.broken(format!("a {} task ends with {n}", shape.name));
        }
    }
}

/// What an executor was told to be accepted is in the log and in the step; what was refused is not;
/// nobody ran what was not leased to him.
async fn judge_executors(
    verdict: &mut Verdict,
    connection: &mut PgConnection,
    entries: &[&Value],
    log: &[Logged],
) {
    let mut ended: HashMap<(i64, i32), Vec<&str>> = HashMap::new();
    let mut leased = HashSet::new();
    for event in log {
        let (Some(step), Some(attempt)) = (event.step, event.attempt) else { continue };
        match event.name.as_str() {
            "step.execution_requested" => {
                leased.insert((step, attempt));
            }
            "step.completed" | "step.failed" | "step.lease_returned" => {
                ended.entry((step, attempt)).or_default().push(&event.name);
            }
            _ => {}
        }
    }
    let rows = sqlx::query("select key, last_token, last_kind from stepwell.step")
        .fetch_all(connection)
        .await
        .unwrap();
    let last: HashMap<i64, (Option<i64>, Option<i16>)> = rows
        .iter()
        .map(|row| (row.get("key"), (row.get("last_token"), row.get("last_kind"))))
        .collect();
    let mut outcomes: HashMap<&str, &Value> = HashMap::new();
    let mut tokens: HashMap<(i64, i32), i64> = HashMap::new();
    for entry in entries {
        let lease_id = text(entry, "lease");
        let Some(lease) = LeaseId::decode(lease_id) else { continue };
        let key = (lease.step, lease.attempt);
        match text(entry, "what") {
            "leased" => {
                verdict.count("leases seen", 1);
                if !leased.contains(&key) {
                    verdict.broken(format!("lease {key:?} is not in the log"));
                }
                if *tokens.entry(key).or_insert(lease.token) != lease.token {
                    verdict.broken(format!("attempt {key:?} was leased twice"));
                }
            }
            "outcome" => {
                outcomes.insert(lease_id, entry);
            }
            "ack" if entry["refused"].is_null() => {
                verdict.count("outcomes accepted", 1);
                let Some(outcome) = outcomes.get(lease_id) else {
                    verdict.broken(format!("{key:?} was acknowledged without an outcome"));
                    continue;
                };
                let must = match text(outcome, "kind") {
                    "complete" => "step.completed",
                    "fail" => "step.failed",
                    _ => "step.lease_returned",
                };
                // A failed attempt may have been retried since, so the step may be further.
                if ended.get(&key).is_none_or(|names| *names != [must]) {
                    let is = ended.get(&key);
                    verdict.broken(format!("{key:?} was accepted as {must} and is {is:?}"));
                }
            }
            "ack" => {
                verdict.count("outcomes refused", 1);
                if last.get(&lease.step) == Some(&(Some(lease.token), Some(1))) {
                    verdict.broken(format!("{key:?} was refused, and it completed the step"));
                }
            }
            _ => {}
        }
    }
}

/// One subscriber's life: in order, no event twice, none left out between the first and the last.
fn judge_subscriber(verdict: &mut Verdict, name: &str, entries: &[Value], log: &[Logged]) {
    let seen: Vec<(i64, &str)> = delivered(entries).collect();
    verdict.count("events delivered", seen.len());
    let Some((first, _)) = seen.first() else { return };
    let from = log.partition_point(|event| event.position < *first);
    let must = log[from..].iter().map(|event| (event.position, event.name.as_str()));
    for (n, (seen, must)) in seen.iter().zip(must).enumerate() {
        if *seen != must {
            verdict.broken(format!("{name}: event {n} is {seen:?}, in the log {must:?}"));
            return;
        }
    }
    if seen.len() > log.len() - from {
        verdict.broken(format!("{name}: more events than the log has"));
    }
    // A cursor never lies inside a commit.
    for entry in entries.iter().filter(|e| text(e, "what") == "delivered") {
        let events = entry["events"].as_array().unwrap();
        if entry["cursor"].is_null() || events.is_empty() {
            continue;
        }
        let last = events[events.len() - 1][0].as_i64().unwrap();
        let at = log.partition_point(|event| event.position <= last);
        if at > 0 && at < log.len() && log[at].batch == log[at - 1].batch {
            verdict.broken(format!("{name}: a cursor after {last}, inside a commit"));
        }
    }
}

fn delivered(entries: &[Value]) -> impl Iterator<Item = (i64, &str)> {
    let all = entries.iter().filter(|entry| text(entry, "what") == "delivered");
    all.flat_map(|entry| entry["events"].as_array().unwrap())
        .map(|event| (event[0].as_i64().unwrap(), event[1].as_str().unwrap()))
}

/// All lives of one subscriber together: each goes on at the latest where the one before it saved
/// its cursor, so that all of them have seen all of the log.
fn judge_subscribers_over_restarts(
    verdict: &mut Verdict,
    histories: &[(String, Vec<Value>)],
    log: &[Logged],
) {
    // subscriber-<n>.<life>.jsonl
    let mut lives: BTreeMap<&str, Vec<(usize, &[Value])>> = BTreeMap::new();
    for (name, entries) in histories.iter().filter(|(name, _)| name.starts_with("subscriber")) {
        let mut parts = name.split('.');
        let who = parts.next().unwrap();
        let life = parts.next().and_then(|life| life.parse().ok()).unwrap();
        lives.entry(who).or_default().push((life, entries));
    }
    for (who, mut lives) in lives {
        lives.sort_by_key(|(life, _)| *life);
        let mut next = 0;
        for (life, entries) in lives {
            let positions: Vec<i64> = delivered(entries).map(|(position, _)| position).collect();
            let (Some(first), Some(last)) = (positions.first(), positions.last()) else { continue };
            let from = log.partition_point(|event| event.position < *first);
            if from > next {
                let missed = from - next;
                verdict.broken(format!("{who}: life {life} missed {missed} events"));
            }
            next = next.max(log.partition_point(|event| event.position <= *last));
        }
        if next != log.len() {
            verdict.broken(format!("{who}: {} events never came", log.len() - next));
        }
    }
}

/// Nothing is left running, waiting or owed.
async fn judge_rest(verdict: &mut Verdict, connection: &mut PgConnection) {
    for (what, sql) in [
        ("open tasks", "select count(*) from stepwell.task where state in (1, 2)"),
        ("leases", "select count(*) from stepwell.step where state = 2"),
        ("ready steps", "select count(*) from stepwell.ready_step"),
        ("timers", "select count(*) from stepwell.timer"),
        ("signals", "select count(*) from stepwell.signal"),
    ] {
        let n: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
        if n != 0 {
            verdict.broken(format!("{n} {what} are left"));
        }
    }
}
