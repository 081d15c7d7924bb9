//! The fields that a filter may name, and the words that some of them take.

use stepwell_proto::v1::{ExecutionStatus, Health, State};

use crate::{Fault, Flag, Text, Time};

/// A field of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Id,
    State,
    Text(Text),
    Tags,
    /// One annotation, or with no key all of them.
    Annotations(Option<String>),
    Priority,
    Time(Time),
    Flag(Flag),
    Status,
    Health,
}

/// The field of this name, which may be followed by the key of an annotation.
pub(crate) fn field(name: &str, offset: usize) -> Result<Field, Fault> {
    if let Some(key) = name.strip_prefix("annotations.") {
        return Ok(Field::Annotations(Some(key.to_owned())));
    }
    let text = Text::ALL.into_iter().map(|text| (text.name(), Field::Text(text)));
    let time = Time::ALL.into_iter().map(|time| (time.name(), Field::Time(time)));
    let flag = Flag::ALL.into_iter().map(|flag| (flag.name(), Field::Flag(flag)));
    let others = [
        ("task_id", Field::Id),
        ("state", Field::State),
        ("tags", Field::Tags),
        ("annotations", Field::Annotations(None)),
        ("priority", Field::Priority),
        ("execution_status", Field::Status),
        ("health", Field::Health),
    ];
    let known: Vec<(&str, Field)> =
        others.into_iter().chain(text).chain(time).chain(flag).collect();
    if let Some((_, field)) = known.iter().find(|(known, _)| *known == name) {
        return Ok(field.clone());
    }
    let fault = Fault::new(offset, format!("a task has no field {}", shown(name)));
    Err(match closest(name, known.iter().map(|(known, _)| *known)) {
        Some(near) => fault.suggest(near),
        None => {
            let names: Vec<&str> = known.iter().map(|(known, _)| *known).collect();
            let what = format!("{}; there are {}", fault.what, names.join(", "));
            Fault { what, ..fault }
        }
    })
}

/// The state of this name: `error`, `ERROR` or `STATE_ERROR`.
pub(crate) fn state(name: &str, offset: usize) -> Result<State, Fault> {
    named(name, offset, "STATE_", State::from_str_name, State::as_str_name, 6)
}

pub(crate) fn status(name: &str, offset: usize) -> Result<ExecutionStatus, Fault> {
    let (of, back) = (ExecutionStatus::from_str_name, ExecutionStatus::as_str_name);
    named(name, offset, "EXECUTION_STATUS_", of, back, 10)
}

pub(crate) fn health(name: &str, offset: usize) -> Result<Health, Fault> {
    named(name, offset, "HEALTH_", Health::from_str_name, Health::as_str_name, 3)
}

/// The value of an enum by its name; numbers 1 to `most` are its values.
fn named<E: TryFrom<i32>>(
    name: &str,
    offset: usize,
    prefix: &str,
    of: fn(&str) -> Option<E>,
    back: fn(&E) -> &'static str,
    most: i32,
) -> Result<E, Fault> {
    let wanted = name.to_ascii_uppercase();
    let wanted = wanted.strip_prefix(prefix).unwrap_or(&wanted);
    let known = (1..=most).filter_map(|n| E::try_from(n).ok());
    let known: Vec<String> =
        known.map(|e| back(&e).trim_start_matches(prefix).to_ascii_lowercase()).collect();
    let found = of(&format!("{prefix}{wanted}")).filter(|_| wanted != "UNSPECIFIED");
    found.ok_or_else(|| {
        let what = format!("{} is none of {}", shown(name), known.join(", "));
        let near = closest(&wanted.to_ascii_lowercase(), known.iter().map(String::as_str));
        Fault { offset, what, suggestion: near.map(str::to_owned) }
    })
}

/// The known name that is most like this one, if it is like it at all.
pub(crate) fn closest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    if name.len() > 64 {
        return None;
    }
    let near = known.into_iter().map(|known| (strsim::jaro_winkler(name, known), known));
    near.filter(|(near, _)| *near > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// What was written, as a message shows it.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}
