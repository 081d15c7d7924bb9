//! The language in which tasks are found: filters after [AIP-160](https://google.aip.dev/160), read, checked and
//! written. Pure: it knows the fields of a task, but neither tasks nor where they are. docs/reading.md has it for
//! people.
//!
//! Text goes through it in this order: `lex` (words with their offsets) → `parse` (a tree, checked against
//! `field`) → [`Expr`], which can be written again.

mod expr;
mod field;
mod lex;
mod parse;

use std::fmt;

pub use expr::{Compare, Expr, Flag, Moment, Pattern, Text, Time, quoted};
pub use parse::parse;

/// Most bytes of a filter.
pub const BYTES_MAX: usize = 4096;
/// Most comparisons in it.
pub const TERMS_MAX: usize = 100;
/// Most texts in it before which anything may stand. Each is searched for by an expression of its own, and the database
/// has 32 at hand: with more it would make each anew for every task.
pub const OPEN_STARTS_MAX: usize = 20;
/// Most parentheses around anything in it.
pub const DEPTH_MAX: usize = 20;

/// What is wrong with a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: so many bytes of the text come before it.
    pub offset: usize,
    /// What is wrong, and what is wanted there.
    pub what: String,
    /// What may have been meant; none: nothing is near.
    pub suggestion: Option<String>,
}

impl Fault {
    fn new(offset: usize, what: impl Into<String>) -> Self {
        Self { offset, what: what.into(), suggestion: None }
    }

    #[must_use]
    fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}: {}", self.offset, self.what)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}
