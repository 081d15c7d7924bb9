//! Which tasks are meant, as `migrations/verbs/86_bulk.sql` reads it: what a person wrote, taken apart into what leads
//! straight to tasks and what is asked of each that is looked at. The latter is a jsonpath, so it is data: no text of
//! a filter becomes part of a statement.

use std::fmt::Write as _;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde::Serialize;
use sqlx::types::Uuid;
use stepwell_filter::{Compare, Expr, Flag, Moment, Pattern, Text, Time};
use stepwell_proto::v1::{ExecutionStatus, Health, State};

/// Which tasks are meant, at the moment it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    written: String,
    parts: Parts,
}

/// Lists say: one of these; of tags and annotations: all of these. None: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Parts {
    #[serde(skip_serializing_if = "Option::is_none")]
    nothing: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<Uuid>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_ids: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initiators: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_systems: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    states: Option<Vec<i32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Vec<(String, String)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_from: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_until: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_from: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_until: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wants_definition: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wants_times: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wants_annotations: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statuses: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healths: Option<Vec<String>>,
}

impl Filter {
    /// What was written and read; times that count from now do so from this moment.
    pub fn new(written: impl Into<String>, expr: &Expr, now: DateTime<Utc>) -> Self {
        let mut parts = Parts::default();
        let (mut of_definition, mut others) = (Vec::new(), Vec::new());
        let mut conjuncts = vec![expr];
        while let Some(conjunct) = conjuncts.pop() {
            match conjunct {
                Expr::And(several) => conjuncts.extend(several.iter().rev()),
                one if parts.take(one, now) => {}
                one if all(
                    one,
                    |leaf| matches!(leaf, Expr::Text(text, _) if text.is_of_definition()),
                ) =>
                {
                    of_definition.push(one);
                }
                one => others.push(one),
            }
        }
        parts.definition = path_of(&of_definition, now);
        parts.fits = path_of(&others, now);
        let wants = |is: fn(&Expr) -> bool| others.iter().any(|expr| any(expr, is)).then_some(true);
        parts.wants_definition =
            wants(|leaf| matches!(leaf, Expr::Text(text, _) if text.is_of_definition()));
        parts.wants_times = wants(|leaf| matches!(leaf, Expr::Time(..) | Expr::Set(_)));
        parts.wants_annotations = wants(|leaf| matches!(leaf, Expr::Annotation(..)));
        Self { written: written.into(), parts }
    }

    /// As it was written.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// It asks how tasks stand as wholes.
    pub fn is_derived(&self) -> bool {
        self.parts.statuses.is_some() || self.parts.healths.is_some()
    }

    /// As it is stored, and read by verbs.
    pub fn to_text(&self) -> String {
        serde_json::to_string(&self.parts).expect("plain data")
    }
}

impl Parts {
    /// Takes a conjunct that is looked up, or asked of a column; false: it is none.
    fn take(&mut self, conjunct: &Expr, now: DateTime<Utc>) -> bool {
        if all(conjunct, |leaf| matches!(leaf, Expr::State(_))) {
            let fits = (1..=6).filter(|n| {
                holds(conjunct, &|leaf| matches!(leaf, Expr::State(state) if *state as i32 == *n))
            });
            self.narrow(fits.collect(), |it| &mut it.states);
            return true;
        }
        if all(conjunct, |leaf| matches!(leaf, Expr::Status(_))) {
            let known = (1..=10).filter_map(|n| ExecutionStatus::try_from(n).ok());
            let fits = known.filter(|of| holds(conjunct, &|leaf| *leaf == Expr::Status(*of)));
            let fits: Vec<ExecutionStatus> = fits.collect();
            let mut states: Vec<i32> = fits.iter().flat_map(|of| states_of(*of)).copied().collect();
            states.sort_unstable();
            states.dedup();
            self.narrow(states, |it| &mut it.states);
            let words =
                fits.iter().map(|of| of.as_str_name().trim_start_matches("EXECUTION_STATUS_"));
            self.narrow(words.map(str::to_lowercase).collect(), |it| &mut it.statuses);
            return true;
        }
        if all(conjunct, |leaf| matches!(leaf, Expr::Health(_))) {
            let known = (1..=3).filter_map(|n| Health::try_from(n).ok());
            let fits = known.filter(|of| holds(conjunct, &|leaf| *leaf == Expr::Health(*of)));
            let words =
                fits.map(|of| of.as_str_name().trim_start_matches("HEALTH_").to_lowercase());
            self.narrow(words.collect(), |it| &mut it.healths);
            return true;
        }
        let id = |leaf: &Expr| match leaf {
            Expr::Id(id) => Some(*id),
            _ => None,
        };
        if let Some(ids) = alternatives(conjunct, id) {
            self.narrow(ids, |it| &mut it.ids);
            return true;
        }
        for (text, list) in TEXTS {
            let value = |leaf: &Expr| match leaf {
                Expr::Text(of, like) if *of == text && like.is_exact() => Some(like.text.clone()),
                _ => None,
            };
            if let Some(values) = alternatives(conjunct, value) {
                self.narrow(values, list);
                return true;
            }
        }
        match conjunct {
            Expr::Tag(like) if like.is_exact() => {
                self.tags.get_or_insert_default().push(like.text.clone());
                true
            }
            Expr::Annotation(name, like) if like.is_exact() => {
                self.annotated(name, &like.text);
                true
            }
            Expr::Time(time @ (Time::Create | Time::End), compare, moment) => {
                self.bound(*time, *compare, moment.when(now));
                true
            }
            _ => false,
        }
    }

    /// Only these are left, of those that were.
    fn narrow<T: PartialEq>(&mut self, mut to: Vec<T>, of: fn(&mut Self) -> &mut Option<Vec<T>>) {
        let list = of(self);
        if let Some(before) = list {
            to.retain(|one| before.contains(one));
        }
        let nothing = to.is_empty();
        *list = Some(to);
        if nothing {
            self.nothing = Some(true);
        }
    }

    fn annotated(&mut self, name: &str, text: &str) {
        let list = self.annotations.get_or_insert_default();
        match list.iter().find(|(of, _)| of == name) {
            // No fact has two texts.
            Some((_, other)) if other != text => self.nothing = Some(true),
            Some(_) => {}
            None => list.push((name.to_owned(), text.to_owned())),
        }
    }

    fn bound(&mut self, time: Time, compare: Compare, at: DateTime<Utc>) {
        // The database has no later years than people write.
        let next = at.checked_add_signed(TimeDelta::microseconds(1)).filter(|at| at.year() <= 9999);
        let (from, until) = match time {
            Time::End => (&mut self.ended_from, &mut self.ended_until),
            _ => (&mut self.created_from, &mut self.created_until),
        };
        let mut least = |at: DateTime<Utc>| *from = Some(from.map_or(at, |it| it.max(at)));
        let mut most = |at: DateTime<Utc>| *until = Some(until.map_or(at, |it| it.min(at)));
        match (compare, next) {
            (Compare::Below, _) => most(at),
            (Compare::AtMost, next) => most(next.unwrap_or(at)),
            (Compare::Is, next) => {
                least(at);
                most(next.unwrap_or(at));
            }
            (Compare::AtLeast, _) => least(at),
            (Compare::Above, Some(next)) => least(next),
            (Compare::Above, None) => self.nothing = Some(true),
        }
    }
}

/// Where one list of a filter is.
type List = fn(&mut Parts) -> &mut Option<Vec<String>>;

/// Texts that are asked of their columns, if they are said whole.
const TEXTS: [(Text, List); 3] = [
    (Text::CorrelationId, |it| &mut it.correlation_ids),
    (Text::Initiator, |it| &mut it.initiators),
    (Text::SourceSystem, |it| &mut it.source_systems),
];

/// The states that a task may be in that stands so.
fn states_of(status: ExecutionStatus) -> &'static [i32] {
    use ExecutionStatus as Is;
    match status {
        Is::AllComplete => &[State::Complete as i32],
        Is::Cancelled => &[State::Cancelled as i32],
        Is::ResolvedManually => &[State::ResolvedManually as i32],
        Is::BlockedByFailures => &[State::Error as i32],
        _ => &[State::Pending as i32, State::InProgress as i32],
    }
}

/// All its comparisons are so.
fn all(expr: &Expr, is: fn(&Expr) -> bool) -> bool {
    match expr {
        Expr::And(parts) | Expr::Or(parts) => parts.iter().all(|part| all(part, is)),
        Expr::Not(part) => all(part, is),
        leaf => is(leaf),
    }
}

/// One of its comparisons is so.
fn any(expr: &Expr, is: fn(&Expr) -> bool) -> bool {
    match expr {
        Expr::And(parts) | Expr::Or(parts) => parts.iter().any(|part| any(part, is)),
        Expr::Not(part) => any(part, is),
        leaf => is(leaf),
    }
}

/// Whether it holds where its comparisons do so.
fn holds(expr: &Expr, leaf: &dyn Fn(&Expr) -> bool) -> bool {
    match expr {
        Expr::And(parts) => parts.iter().all(|part| holds(part, leaf)),
        Expr::Or(parts) => parts.iter().any(|part| holds(part, leaf)),
        Expr::Not(part) => !holds(part, leaf),
        one => leaf(one),
    }
}

/// The values of which one is wanted, each once; none: it says something else.
fn alternatives<T: PartialEq>(
    expr: &Expr,
    value: impl Fn(&Expr) -> Option<T> + Copy,
) -> Option<Vec<T>> {
    let Expr::Or(parts) = expr else { return Some(vec![value(expr)?]) };
    let mut values = Vec::new();
    for part in parts {
        for one in alternatives(part, value)? {
            if !values.contains(&one) {
                values.push(one);
            }
        }
    }
    Some(values)
}

/// A jsonpath that holds if all of these do.
fn path_of(conjuncts: &[&Expr], now: DateTime<Utc>) -> Option<String> {
    if conjuncts.is_empty() {
        return None;
    }
    let mut path = String::new();
    joined(conjuncts.iter().copied(), " && ", now, &mut path);
    Some(path)
}

fn joined<'e>(
    parts: impl Iterator<Item = &'e Expr>,
    word: &str,
    now: DateTime<Utc>,
    path: &mut String,
) {
    for (i, part) in parts.enumerate() {
        path.push_str(if i > 0 { word } else { "" });
        path.push('(');
        write(part, now, path);
        path.push(')');
    }
}

fn write(expr: &Expr, now: DateTime<Utc>, path: &mut String) {
    // Writing into a string cannot fail.
    let _ = match expr {
        Expr::And(parts) => return joined(parts.iter(), " && ", now, path),
        Expr::Or(parts) => return joined(parts.iter(), " || ", now, path),
        Expr::Not(part) => {
            path.push_str("!(");
            write(part, now, path);
            path.push(')');
            return;
        }
        Expr::Id(id) => write!(path, "$.task_id == \"{id}\""),
        Expr::State(state) => write!(path, "$.state == {}", *state as i32),
        Expr::Text(text, like) => return like_this(&format!("$.{}", text.name()), like, path),
        Expr::Tag(like) => return like_this("$.tags[*]", like, path),
        Expr::Annotation(key, like) => {
            return like_this(&format!("$.annotations.{}", literal(key)), like, path);
        }
        Expr::Priority(compare, n) => write!(path, "$.priority {} {n}", sign(*compare)),
        Expr::Time(time, compare, moment) => {
            let at = match moment {
                Moment::At(at) => *at,
                ago @ Moment::Ago(_) => ago.when(now),
            };
            write!(path, "$.{} {} {}", time.name(), sign(*compare), at.timestamp_micros())
        }
        Expr::Set(time) => write!(path, "!($.{} == null)", time.name()),
        Expr::Flag(flag @ (Flag::Paused | Flag::Held), is) => {
            write!(path, "$.{} == {is}", flag.name())
        }
        // What is derived is a conjunct: a filter that was read has it nowhere else.
        Expr::Status(_) | Expr::Health(_) => write!(path, "1 == 0"),
    };
}

fn sign(compare: Compare) -> &'static str {
    match compare {
        Compare::Is => "==",
        other => other.sign(),
    }
}

fn like_this(what: &str, like: &Pattern, path: &mut String) {
    let text = literal(&like.text);
    let _ = match (like.open_start, like.open_end) {
        (false, false) => write!(path, "{what} == {text}"),
        (false, true) => write!(path, "{what} starts with {text}"),
        _ if like.text.is_empty() => write!(path, "exists({what})"),
        (true, end) => {
            let mut expression = String::new();
            for c in like.text.chars() {
                if c.is_ascii() && !c.is_ascii_alphanumeric() {
                    expression.push('\\');
                }
                expression.push(c);
            }
            expression.push_str(if end { "" } else { "$" });
            write!(path, "{what} like_regex {}", literal(&expression))
        }
    };
}

/// A text as a jsonpath has it.
fn literal(text: &str) -> String {
    serde_json::to_string(text).expect("a string has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000, 0).expect("a time")
    }

    fn text_of(filter: &str) -> String {
        let expr = stepwell_filter::parse(filter).unwrap().unwrap();
        Filter::new(filter, &expr, now()).to_text()
    }

    #[test]
    fn what_leads_to_tasks_is_taken_out_and_the_rest_is_a_path() {
        for (filter, parts) in [
            ("state != complete AND state != error OR state = error", r#"{"states":[1,2,4,5,6]}"#),
            ("state = error AND state = pending", r#"{"nothing":true,"states":[]}"#),
            (
                "tags:a AND (tags:\"b\" AND paused = true)",
                r#"{"tags":["a","b"],"fits":"($.paused == true)"}"#,
            ),
            (
                "correlation_id = a OR correlation_id = b OR correlation_id = a",
                r#"{"correlation_ids":["a","b"]}"#,
            ),
            (
                "initiator = a AND initiator = b OR initiator = a AND source_system != c",
                r#"{"initiators":["a"],"fits":"(!($.source_system == \"c\"))"}"#,
            ),
            (
                "create_time > -1s AND end_time <= \"1970-01-02T00:00:00Z\"",
                r#"{"created_from":"1970-01-12T13:46:39.000001Z","ended_until":"1970-01-02T00:00:00.000001Z"}"#,
            ),
            (
                "definition_name = \"a*\" AND NOT namespace = b",
                r#"{"definition":"($.definition_name starts with \"a\") && (!($.namespace == \"b\"))"}"#,
            ),
            (
                "namespace = a OR start_time < \"1970-01-01T00:00:01Z\"",
                r#"{"fits":"(($.namespace == \"a\") || ($.start_time < 1000000))","wants_definition":true,"wants_times":true}"#,
            ),
            ("reason = \"*a.\\\"b\"", r#"{"fits":"($.reason like_regex \"a\\\\.\\\\\\\"b$\")"}"#),
            (
                "annotations.\"k\\\"k\":*",
                r#"{"fits":"(exists($.annotations.\"k\\\"k\"))","wants_annotations":true}"#,
            ),
            (
                "annotations.b = 1 AND annotations.a = \"\" AND annotations.b = 1 AND annotations.c = \"x*\"",
                r#"{"annotations":[["b","1"],["a",""]],"fits":"($.annotations.\"c\" starts with \"x\")","wants_annotations":true}"#,
            ),
            (
                "annotations.a = 1 AND annotations.a = 2",
                r#"{"nothing":true,"annotations":[["a","1"]]}"#,
            ),
            (
                "execution_status = all_complete OR execution_status = blocked_by_failures",
                r#"{"states":[3,4],"statuses":["blocked_by_failures","all_complete"]}"#,
            ),
            ("create_time > \"9999-12-31T23:59:59.999999Z\"", r#"{"nothing":true}"#),
        ] {
            assert_eq!(text_of(filter), parts, "{filter}");
        }
    }
}
