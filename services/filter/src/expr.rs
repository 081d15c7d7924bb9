//! A filter as a tree, and as text again.

use std::{fmt, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use stepwell_proto::v1::{ExecutionStatus, Health, State};
use uuid::Uuid;

/// Which tasks are meant. What is not set of a task equals nothing and is neither before nor after anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// All of these hold; two at least.
    And(Vec<Expr>),
    /// One of these holds; two at least.
    Or(Vec<Expr>),
    /// It does not hold.
    Not(Box<Expr>),
    /// It has this id.
    Id(Uuid),
    /// It is in this state.
    State(State),
    /// A text of it is like this.
    Text(Text, Pattern),
    /// One of its tags is like this.
    Tag(Pattern),
    /// It has an annotation with this key, whose value is like this.
    Annotation(String, Pattern),
    /// Its priority compares so.
    Priority(Compare, i64),
    /// A time of it compares so.
    Time(Time, Compare, Moment),
    /// A time of it is set.
    Set(Time),
    /// It is so, or it is not.
    Flag(Flag, bool),
    /// It stands so as a whole. Only a conjunct, or one of alternatives that are.
    Status(ExecutionStatus),
    /// Its health is this. Only a conjunct, or one of alternatives that are.
    Health(Health),
}

/// A text of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    /// Namespace of its definition.
    Namespace,
    /// Name of its definition.
    DefinitionName,
    /// Version of its definition.
    DefinitionVersion,
    /// Who asked for it.
    Initiator,
    /// Which system asked for it.
    SourceSystem,
    /// Why it is.
    Reason,
    /// What it belongs to.
    CorrelationId,
}

impl Text {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::DefinitionName,
        Self::DefinitionVersion,
        Self::Initiator,
        Self::SourceSystem,
        Self::Reason,
        Self::CorrelationId,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::DefinitionName => "definition_name",
            Self::DefinitionVersion => "definition_version",
            Self::Initiator => "initiator",
            Self::SourceSystem => "source_system",
            Self::Reason => "reason",
            Self::CorrelationId => "correlation_id",
        }
    }

    /// It is its definition's.
    pub fn is_of_definition(self) -> bool {
        matches!(self, Self::Namespace | Self::DefinitionName | Self::DefinitionVersion)
    }
}

/// A time of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Time {
    /// When it was created.
    Create,
    /// When its first step was started.
    Start,
    /// When it ended.
    End,
    /// When its time is up.
    Deadline,
}

impl Time {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::Start, Self::End, Self::Deadline];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create_time",
            Self::Start => "start_time",
            Self::End => "end_time",
            Self::Deadline => "deadline",
        }
    }
}

/// What is so of a task, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// No step of it is started until it is resumed.
    Paused,
    /// It waits for its concurrency key.
    Held,
}

impl Flag {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Paused, Self::Held];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Held => "held",
        }
    }
}

/// How two values compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The field's is smaller.
    Below,
    /// The field's is smaller or the same.
    AtMost,
    /// They are the same.
    Is,
    /// The field's is larger or the same.
    AtLeast,
    /// The field's is larger.
    Above,
}

impl Compare {
    /// As it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Below => "<",
            Self::AtMost => "<=",
            Self::Is => "=",
            Self::AtLeast => ">=",
            Self::Above => ">",
        }
    }
}

impl Expr {
    /// It says how long ago something was, so when it is asked decides what it means.
    pub fn counts_from_now(&self) -> bool {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().any(Self::counts_from_now),
            Self::Not(part) => part.counts_from_now(),
            Self::Time(_, _, moment) => matches!(moment, Moment::Ago(_)),
            _ => false,
        }
    }
}

/// A moment that is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This one; counts to the microsecond.
    At(DateTime<Utc>),
    /// So long before it is asked; counts to the millisecond.
    Ago(Duration),
}

impl Moment {
    /// When that is, asked at this time.
    pub fn when(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now - ago,
        }
    }
}

/// What a text is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// What stands in it.
    pub text: String,
    /// Anything may stand before it.
    pub open_start: bool,
    /// Anything may stand after it.
    pub open_end: bool,
}

impl Pattern {
    /// This text and no other.
    pub fn exact(text: impl Into<String>) -> Self {
        Self { text: text.into(), open_start: false, open_end: false }
    }

    /// Any text.
    pub fn any() -> Self {
        Self { text: String::new(), open_start: true, open_end: true }
    }

    /// Only one text is like it.
    pub fn is_exact(&self) -> bool {
        !self.open_start && !self.open_end
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        if self.text.is_empty() && (self.open_start || self.open_end) {
            return f.write_str("*\"");
        }
        if self.open_start {
            f.write_str("*")?;
        }
        escaped(&self.text, f)?;
        f.write_str(if self.open_end { "*\"" } else { "\"" })
    }
}

fn escaped(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    text.chars().try_for_each(|c| {
        if matches!(c, '"' | '\\' | '*') {
            f.write_str("\\")?;
        }
        write!(f, "{c}")
    })
}

/// A text as it is written in a filter, to mean itself.
pub fn quoted(text: &str) -> String {
    Pattern::exact(text).to_string()
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, list: &[Self], word: &str| {
            list.iter().enumerate().try_for_each(|(i, part)| {
                if i > 0 {
                    f.write_str(word)?;
                }
                match part {
                    Self::And(_) | Self::Or(_) => write!(f, "({part})"),
                    part => write!(f, "{part}"),
                }
            })
        };
        match self {
            Self::And(parts) => list(f, parts, " AND "),
            Self::Or(parts) => list(f, parts, " OR "),
            Self::Not(part) => match **part {
                Self::And(_) | Self::Or(_) | Self::Not(_) => write!(f, "NOT ({part})"),
                _ => write!(f, "NOT {part}"),
            },
            Self::Id(id) => write!(f, "task_id = \"{id}\""),
            Self::State(state) => write!(f, "state = {}", state.word()),
            Self::Text(text, pattern) => write!(f, "{} = {pattern}", text.name()),
            Self::Tag(pattern) => write!(f, "tags:{pattern}"),
            Self::Annotation(key, pattern) => {
                write!(f, "annotations.{} = {pattern}", quoted(key))
            }
            Self::Priority(compare, n) => write!(f, "priority {} {n}", compare.sign()),
            Self::Time(time, compare, moment) => {
                let (name, sign) = (time.name(), compare.sign());
                match moment {
                    Moment::At(at) => {
                        let at = at.to_rfc3339_opts(SecondsFormat::Micros, true);
                        write!(f, "{name} {sign} \"{at}\"")
                    }
                    Moment::Ago(ago) => write!(f, "{name} {sign} \"-{}ms\"", ago.as_millis()),
                }
            }
            Self::Set(time) => write!(f, "{}:*", time.name()),
            Self::Flag(flag, is) => write!(f, "{} = {is}", flag.name()),
            Self::Status(status) => {
                let name = status.as_str_name().trim_start_matches("EXECUTION_STATUS_");
                write!(f, "execution_status = {}", name.to_lowercase())
            }
            Self::Health(health) => {
                let name = health.as_str_name().trim_start_matches("HEALTH_");
                write!(f, "health = {}", name.to_lowercase())
            }
        }
    }
}
