//! The words of a filter, with their offsets.

use crate::{BYTES_MAX, Compare, Fault, Pattern};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Open,
    Close,
    And,
    Or,
    Not,
    Minus,
    Sign(Sign),
    /// As it is written, without quotes.
    Word(String),
    /// Was in quotes.
    Quoted(Pattern),
    End,
}

/// What may stand between a field and a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    Compare(Compare),
    Other,
    Has,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) offset: usize,
    pub(crate) end: usize,
}

/// The words of a text, the last one is its end.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, Fault> {
    if text.len() > BYTES_MAX {
        let what = format!("the filter has {} bytes; at most {BYTES_MAX} are allowed", text.len());
        return Err(Fault::new(BYTES_MAX, what));
    }
    if let Some(offset) = text.find('\0') {
        return Err(Fault::new(offset, "NUL may not stand in a filter"));
    }
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (kind, len) = match first {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '(' => (Kind::Open, 1),
            ')' => (Kind::Close, 1),
            '-' => (Kind::Minus, 1),
            '"' | '\'' => quoted(text, at, first)?,
            _ => match sign(rest) {
                Some((sign, len)) => (Kind::Sign(sign), len),
                None => word(rest, at)?,
            },
        };
        tokens.push(Token { kind, offset: at, end: at + len });
        at += len;
    }
    tokens.push(Token { kind: Kind::End, offset: at, end: at });
    Ok(tokens)
}

fn sign(rest: &str) -> Option<(Sign, usize)> {
    let signs = [
        ("!=", Sign::Other),
        ("<=", Sign::Compare(Compare::AtMost)),
        (">=", Sign::Compare(Compare::AtLeast)),
        ("<", Sign::Compare(Compare::Below)),
        (">", Sign::Compare(Compare::Above)),
        ("=", Sign::Compare(Compare::Is)),
        (":", Sign::Has),
    ];
    let found = signs.into_iter().find(|(text, _)| rest.starts_with(text));
    found.map(|(text, sign)| (sign, text.len()))
}

fn word(rest: &str, at: usize) -> Result<(Kind, usize), Fault> {
    let ends = |c: char| c.is_whitespace() || c.is_control() || "()\"'=<>!:,\\".contains(c);
    let len = rest.find(ends).unwrap_or(rest.len());
    let kind = match &rest[..len] {
        "" => {
            let c = rest.chars().next().unwrap_or_default();
            let what = format!("{c:?} may stand only in quotes");
            return Err(Fault::new(at, what));
        }
        "AND" => Kind::And,
        "OR" => Kind::Or,
        "NOT" => Kind::Not,
        word => Kind::Word(word.to_owned()),
    };
    Ok((kind, len))
}

/// A text in quotes: `\"`, `\'`, `\\` and `\*` stand for what follows the backslash, a `*` at its beginning or end
/// for anything.
fn quoted(text: &str, at: usize, quote: char) -> Result<(Kind, usize), Fault> {
    let mut read: Vec<(usize, char, bool)> = Vec::new();
    let mut chars = text[at + 1..].char_indices().map(|(i, c)| (at + 1 + i, c));
    while let Some((offset, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, c)) if "\"'\\*".contains(c) => read.push((offset, c, true)),
                _ => {
                    let what = "after a backslash `\"`, `'`, `\\` or `*` is wanted";
                    return Err(Fault::new(offset, what));
                }
            },
            c if c == quote => {
                let pattern = pattern(&read)?;
                return Ok((Kind::Quoted(pattern), offset + 1 - at));
            }
            c => read.push((offset, c, false)),
        }
    }
    Err(Fault::new(at, "the quotes that begin here have no end"))
}

/// What a text is like: characters with their offsets, and whether a backslash came before them.
pub(crate) fn pattern(read: &[(usize, char, bool)]) -> Result<Pattern, Fault> {
    let star = |place: Option<&(usize, char, bool)>| matches!(place, Some((_, '*', false)));
    let open_start = star(read.first());
    let rest = if open_start { &read[1..] } else { read };
    let open_end = star(rest.last());
    let rest = if open_end { &rest[..rest.len() - 1] } else { rest };
    if let Some((offset, ..)) = rest.iter().find(|place| star(Some(place))) {
        let what =
            "`*` stands at the beginning or the end of a value; `\\*` in quotes means itself";
        return Err(Fault::new(*offset, what));
    }
    if rest.is_empty() && open_start {
        return Ok(Pattern::any());
    }
    Ok(Pattern { text: rest.iter().map(|(_, c, _)| *c).collect(), open_start, open_end })
}
