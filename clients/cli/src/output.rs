//! What is printed: tables for people, ProtoJSON and YAML for programs, names for scripts. Answers go to
//! standard output, everything else to standard error; neither's form depends on a terminal, only colours and
//! the width of tables do.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    sync::OnceLock,
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use comfy_table::{Color, ColumnConstraint, ContentArrangement, presets::NOTHING};
use prost::Message;
use serde::{Serialize, Serializer};
use serde_json::Value;
use stepwell_proto::proto_json::{self, ProtoJson};

use crate::fault::Fault;

/// Narrower than this, tables break names too.
const NAMES_WHOLE_FROM: u16 = 100;
const WIDTH_MIN: u16 = 20;

/// How answers look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For people, with more columns.
    Wide,
    /// ProtoJSON: one document, of several things an array.
    Json,
    /// ProtoJSON: one thing a line.
    Jsonl,
    /// The same as JSON, as YAML.
    Yaml,
    /// Names or ids only, one a line.
    Name,
}

/// The formats of what has no names.
pub(crate) fn of_reports() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(["table", "wide", "json", "jsonl", "yaml"])
        .map(|word| Format::from_str(&word, false).unwrap_or_default())
}

/// When there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Colours {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How everything is printed, whichever the command.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Printing")]
pub(crate) struct Printing {
    /// Whether there are colours.
    #[arg(long, value_enum, default_value_t, global = true)]
    color: Colours,
    /// Tables without the line of headers.
    #[arg(long, global = true)]
    no_headers: bool,
}

static NO_HEADERS: OnceLock<bool> = OnceLock::new();

impl Printing {
    /// Holds for the process from now on.
    pub(crate) fn apply(self) {
        match self.color {
            Colours::Auto => ColorChoice::Auto,
            Colours::Always => ColorChoice::Always,
            Colours::Never => ColorChoice::Never,
        }
        .write_global();
        let _ = NO_HEADERS.set(self.no_headers);
    }
}

/// Whether standard output has colours.
pub(crate) fn colours() -> bool {
    !matches!(AutoStream::choice(&std::io::stdout()), ColorChoice::Never)
}

/// Whether standard error has colours.
pub(crate) fn colours_of_notes() -> bool {
    !matches!(AutoStream::choice(&std::io::stderr()), ColorChoice::Never)
}

/// Empties the terminal.
pub(crate) fn clear() -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    write!(out, "\x1b[H\x1b[2J")?;
    out.flush()?;
    Ok(())
}

/// What the contract has, and scripts have a name for.
pub(crate) trait Thing: Message + Sized + 'static {
    /// The message in the contract: `Task`.
    const MESSAGE: &'static str;

    /// Its name or id, as other commands take it.
    fn name(&self) -> String;
}

/// A thing with columns.
pub(crate) trait Listed: Thing {
    /// They are, from left to right.
    const COLUMNS: &'static [Column<Self>];
}

/// A column of a table.
pub(crate) struct Column<T> {
    head: &'static str,
    kind: Kind,
    cell: fn(&T) -> String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    State,
    Wide,
}

/// A column that is always there.
pub(crate) const fn column<T>(head: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { head, kind: Kind::Plain, cell }
}

/// A column with a state, coloured.
pub(crate) const fn state<T>(head: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { head, kind: Kind::State, cell }
}

/// A column of `-o wide`.
pub(crate) const fn wide<T>(head: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { head, kind: Kind::Wide, cell }
}

/// Things as they are printed, a page after the other.
pub(crate) struct Listing<T> {
    format: Format,
    things: Vec<T>,
}

impl<T: Listed> Listing<T> {
    /// Prints some more, or keeps them until the end where they make one document or table.
    pub(crate) fn add(&mut self, things: impl IntoIterator<Item = T>) -> Result<(), Fault> {
        for thing in things {
            match self.format {
                Format::Jsonl | Format::Name => self.format.one(&thing, String::new)?,
                Format::Table | Format::Wide | Format::Json | Format::Yaml => {
                    self.things.push(thing);
                }
            }
        }
        Ok(())
    }

    /// That were all.
    pub(crate) fn end(self) -> Result<(), Fault> {
        match self.format {
            Format::Jsonl | Format::Name => Ok(()),
            Format::Table | Format::Wide => line(self.format.rows(&self.things)),
            Format::Json | Format::Yaml => {
                let things = self.things.iter().map(|thing| proto_json(T::MESSAGE, thing));
                self.format.document(&things.collect::<Result<Vec<_>, _>>()?)
            }
        }
    }
}

impl Format {
    /// True when a person reads it.
    pub(crate) fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }

    /// Several things, which may come in pages.
    pub(crate) fn listing<T: Listed>(self) -> Listing<T> {
        Listing { format: self, things: Vec::new() }
    }

    /// Several things.
    pub(crate) fn all<T: Listed>(self, things: Vec<T>) -> Result<(), Fault> {
        let mut listing = self.listing();
        listing.add(things)?;
        listing.end()
    }

    /// One thing; `text` makes what people read.
    pub(crate) fn one<T: Thing>(
        self,
        thing: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Fault> {
        self.answer(T::MESSAGE, thing, [thing.name()], text)
    }

    /// An answer that is no thing itself, and the names of what it is about.
    pub(crate) fn answer<S: AsRef<str>>(
        self,
        name: &str,
        answer: &impl Message,
        names: impl IntoIterator<Item = S>,
        text: impl FnOnce() -> String,
    ) -> Result<(), Fault> {
        match self {
            Self::Table | Self::Wide => line(text()),
            Self::Name => names.into_iter().try_for_each(|name| line(plain(name.as_ref()))),
            Self::Json | Self::Jsonl | Self::Yaml => self.document(&proto_json(name, answer)?),
        }
    }

    /// One thing as a row.
    pub(crate) fn row<T: Listed>(self, thing: &T) -> Result<(), Fault> {
        self.one(thing, || self.rows(std::slice::from_ref(thing)))
    }

    /// One of things that never end: they cannot be one document, so JSON has one a line, and YAML a document
    /// each.
    pub(crate) fn next<T: Thing>(
        self,
        thing: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Fault> {
        match self {
            Self::Json => Self::Jsonl.one(thing, text),
            Self::Yaml => {
                line("---")?;
                self.one(thing, text)
            }
            Self::Table | Self::Wide | Self::Jsonl | Self::Name => self.one(thing, text),
        }
    }

    /// A value as the one document of an answer. For people there is none.
    pub(crate) fn document(self, value: &impl Serialize) -> Result<(), Fault> {
        let unwritten = |error: &dyn std::error::Error| Fault::new(error.to_string());
        line(match self {
            Self::Jsonl => escaped(serde_json::to_string(value).map_err(|e| unwritten(&e))?),
            Self::Yaml => {
                let value = serde_json::to_value(value).map_err(|e| unwritten(&e))?;
                let text = serde_saphyr::to_string(&Json(&value)).map_err(|e| unwritten(&e))?;
                text.trim_end().to_owned()
            }
            Self::Json | Self::Table | Self::Wide | Self::Name => {
                escaped(serde_json::to_string_pretty(value).map_err(|e| unwritten(&e))?)
            }
        })
    }

    /// What is not of the contract, such as a report ([`of_reports`]); `text` makes what people read.
    pub(crate) fn report(
        self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Fault> {
        match self {
            Self::Table | Self::Wide | Self::Name => line(text()),
            Self::Json | Self::Jsonl | Self::Yaml => self.document(value),
        }
    }

    /// Things, a row each.
    pub(crate) fn rows<T: Listed>(self, things: &[T]) -> String {
        let columns =
            || T::COLUMNS.iter().filter(|column| self == Self::Wide || column.kind != Kind::Wide);
        let mut table = table(&columns().map(|column| column.head).collect::<Vec<_>>());
        for thing in things {
            table.add_row(columns().map(|column| {
                let text = (column.cell)(thing);
                match column.kind {
                    Kind::State => state_cell(&text),
                    Kind::Plain | Kind::Wide => text.into(),
                }
            }));
        }
        table.keep_names();
        text(&table)
    }
}

/// JSON for another serialiser: it knows nothing of how `serde_json` keeps numbers.
struct Json<'v>(&'v Value);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => to.serialize_unit(),
            Value::Bool(is) => to.serialize_bool(*is),
            Value::String(text) => to.serialize_str(text),
            Value::Array(all) => to.collect_seq(all.iter().map(Json)),
            Value::Object(all) => to.collect_map(all.iter().map(|(key, of)| (key, Json(of)))),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => to.serialize_i64(number),
                (None, Some(number)) => to.serialize_u64(number),
                (None, None) => to.serialize_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
        }
    }
}

fn proto_json(name: &str, message: &impl Message) -> Result<ProtoJson, Fault> {
    proto_json::value(name, message).map_err(|error| Fault::new(error.to_string()))
}

/// A message as ProtoJSON on one line.
pub(crate) fn json(name: &str, message: &impl Message) -> Result<String, Fault> {
    serde_json::to_string(&proto_json(name, message)?)
        .map_err(|error| Fault::new(error.to_string()))
}

/// Prints a line to standard output.
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    Ok(())
}

/// Says something beside the answer, on standard error. Nobody there to read it is no fault.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", plain_lines(text.as_ref()));
}

/// Rows of cells. Whoever wrote them: they move no terminal.
pub(crate) struct Table(comfy_table::Table);

/// A cell of a table.
pub(crate) struct Cell(comfy_table::Cell);

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self(comfy_table::Cell::new(plain(text.as_ref())))
    }
}

impl Table {
    /// One row more.
    pub(crate) fn add_row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) {
        self.0.add_row(cells.into_iter().map(|cell| cell.into().0));
    }

    /// True if there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first column is not broken where there is room for it: it is mostly an id, to be copied.
    fn keep_names(&mut self) {
        if width().is_some_and(|width| width >= NAMES_WHOLE_FROM)
            && let Some(first) = self.0.column_mut(0)
        {
            first.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

/// A table without lines around it, as wide as there is room.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING);
    if colours() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if !NO_HEADERS.get().copied().unwrap_or_default() {
        table.set_header(header.iter().copied());
    }
    if let Some(width) = width() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    Table(table)
}

/// A table as text, without blanks around its lines.
pub(crate) fn text(table: &Table) -> String {
    let text = table.0.trim_fmt();
    let lines = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// Columns of the terminal: as `COLUMNS` says, or as it is. None: what is printed goes elsewhere, and is not
/// broken.
pub(crate) fn width() -> Option<u16> {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let is = || terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0);
    told.or_else(is).map(|width: u16| width.max(WIDTH_MIN))
}

/// What others wrote, on one line and without anything that moves a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same of what may have lines.
pub(crate) fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

/// JSON whose texts move no terminal: of control characters it leaves these as they are.
pub(crate) fn escaped(json: String) -> String {
    let is_left = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    if !json.contains(is_left) {
        return json;
    }
    let escape = |c: char| match is_left(c) {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    };
    json.chars().map(escape).collect()
}

/// What a state looks like.
fn tone(state: &str) -> Option<AnsiColor> {
    let word = state.split([',', ' ']).next().unwrap_or_default();
    Some(match word {
        "complete" | "ok" | "done" | "active" => AnsiColor::Green,
        "error" | "fail" | "disabled" => AnsiColor::Red,
        "in_progress" | "running" => AnsiColor::Cyan,
        "resolved_manually" => AnsiColor::Blue,
        "cancelled" | "paused" | "draining" | "warn" => AnsiColor::Yellow,
        _ => return None,
    })
}

/// A state, coloured if `coloured`.
pub(crate) fn state_text(state: &str, text: &str, coloured: bool) -> String {
    match tone(state).filter(|_| coloured) {
        Some(colour) => {
            let style = Style::new().fg_color(Some(colour.into()));
            format!("{style}{text}{style:#}")
        }
        None => text.to_owned(),
    }
}

/// A cell with a state.
pub(crate) fn state_cell(state: &str) -> Cell {
    let colour = tone(state).map(|tone| match tone {
        AnsiColor::Green => Color::DarkGreen,
        AnsiColor::Red => Color::DarkRed,
        AnsiColor::Cyan => Color::DarkCyan,
        AnsiColor::Blue => Color::DarkBlue,
        _ => Color::DarkYellow,
    });
    let Cell(cell) = state.into();
    Cell(match colour {
        Some(colour) => cell.fg(colour),
        None => cell,
    })
}

/// What others wrote, so many characters of it at most, with a mark if there are more.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let text = plain(text);
    if text.chars().count() <= most {
        return text;
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

/// A time as RFC 3339; nothing if there is none.
pub(crate) fn time(at: Option<&prost_types::Timestamp>) -> String {
    at.map(ToString::to_string).unwrap_or_default()
}

/// A time as `HH:MM:SS.mmm`, UTC.
pub(crate) fn time_of_day(at: Option<&prost_types::Timestamp>) -> String {
    let Some(at) = at else { return String::new() };
    let (seconds, millis) = (at.seconds.rem_euclid(86_400), at.nanos / 1_000_000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_moves_no_terminal() {
        let moving = "a\u{1b}[2Jb\nc\rd\u{9b}e";
        assert_eq!(plain(moving), "a [2Jb c d e");
        assert_eq!(plain_lines(moving), "a [2Jb\nc d e");
        assert_eq!(cut(moving, 7), "a [2Jb…");
        let mut table = table(&["ONE", "TWO"]);
        table.add_row([moving.into(), state_cell("error\u{9b}2J")]);
        let shown = text(&table);
        assert!(shown.contains("a [2Jb c d e") && shown.lines().count() == 2, "{shown:?}");
        assert!(!shown.contains(['\u{1b}', '\u{9b}']), "{shown:?}");
    }

    #[test]
    fn data_keep_what_others_wrote_and_move_no_terminal_either() {
        let moving = "\u{1b}[2J\u{7f}\u{9b}2J\u{85}\n\u{9f}\u{a0}\u{2028}";
        for value in [
            serde_json::json!({moving: moving}),
            serde_json::json!({"a": format!("x\ny{moving}\nz\n")}),
            serde_json::json!([moving.repeat(100)]),
        ] {
            let line = escaped(serde_json::to_string(&value).unwrap());
            let pretty = escaped(serde_json::to_string_pretty(&value).unwrap());
            let yaml = serde_saphyr::to_string(&Json(&value)).unwrap();
            for text in [&line, &pretty, &yaml] {
                let moves = |c: char| c.is_control() && c != '\n';
                assert!(!text.contains(moves), "{text:?}");
            }
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
            assert_eq!(serde_json::from_str::<Value>(&pretty).unwrap(), value);
            assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), value);
        }
        assert_eq!(escaped("\"\u{9b}\"".into()), "\"\\u009b\"");
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(cut("größe", 5), "größe");
        assert_eq!(cut("größer", 5), "größ…");
        assert_eq!(cut("日本語の名前", 3), "日本…");
    }

    #[test]
    fn yaml_says_the_same_as_json() {
        let value = serde_json::json!({"b": [1, 2.5, null, true], "a": {"x": "007", "y": "a: b"}});
        let text = serde_saphyr::to_string(&Json(&value)).unwrap();
        let again: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(again.to_string(), value.to_string(), "{text}");
    }

    #[test]
    fn a_state_has_its_colour_only_where_there_are_colours() {
        assert_eq!(state_text("error", "x", false), "x");
        assert_eq!(state_text("error, paused", "x", true), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(state_text("pending", "x", true), "x");
    }
}
