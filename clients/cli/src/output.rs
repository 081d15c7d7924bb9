//! What is printed: tables for people, ProtoJSON for programs.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
};

use clap::ValueEnum;
pub(crate) use comfy_table::Table;
use comfy_table::presets::NOTHING;
use prost::Message;
use stepwell_proto::proto_json;

use crate::fault::Fault;

/// How answers look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// ProtoJSON, one object a line.
    Json,
}

/// A message as ProtoJSON.
pub(crate) fn json(name: &str, message: &impl Message) -> Result<String, Fault> {
    let json = proto_json::value(name, message).map_err(|error| Fault::new(error.to_string()))?;
    serde_json::to_string(&json).map_err(|error| Fault::new(error.to_string()))
}

/// Prints a line to standard output.
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    Ok(())
}

/// A table without lines around it.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}

/// A text, so many characters of it at most.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Labels as `name=value`, one after the other.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> String {
    let shown = labels.iter().map(|(label, value)| format!("{label}={value}"));
    shown.collect::<Vec<_>>().join(", ")
}

/// True when progress may move about on standard error.
pub(crate) fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A time as `HH:MM:SS.mmm`, UTC.
pub(crate) fn time_of_day(at: Option<&prost_types::Timestamp>) -> String {
    let Some(at) = at else { return String::new() };
    let (seconds, millis) = (at.seconds.rem_euclid(86_400), at.nanos / 1_000_000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
