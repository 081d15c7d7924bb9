//! From words to a tree.
//!
//! ```text
//! filter      = [expression]
//! expression  = factor {"AND" factor}
//! factor      = term {"OR" term}
//! term        = ["NOT" | "-"] ("(" expression ")" | restriction)
//! restriction = field ("=" | "!=" | "<" | "<=" | ">" | ">=" | ":") value
//! ```

use std::time::Duration;

use chrono::{DateTime, Datelike, Timelike, Utc};
use stepwell_proto::time::written;
use uuid::Uuid;

use crate::{
    Compare, DEPTH_MAX, Expr, Fault, Moment, OPEN_STARTS_MAX, Pattern, TERMS_MAX, Text,
    field::{self, Field, shown},
    lex::{Kind, Sign, Token, pattern, tokens},
};

/// No moment is longer ago.
const AGO_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// What a text means; none: it says nothing, and any task fits.
pub fn parse(text: &str) -> Result<Option<Expr>, Fault> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        depth: 0,
        terms: 0,
        open_starts: 0,
        derived: Vec::new(),
    };
    if parser.peek().kind == Kind::End {
        return Ok(None);
    }
    let expr = parser.expression()?;
    let next = parser.peek();
    if next.kind != Kind::End {
        let wanted = match &next.kind {
            Kind::Close => "this parenthesis was not opened".to_owned(),
            _ => format!("{} is not wanted here, but `AND`, `OR` or the end", parser.found()),
        };
        let fault = Fault::new(next.offset, wanted);
        return Err(match &next.kind {
            Kind::Word(word) if ["and", "or"].contains(&word.to_lowercase().as_str()) => {
                fault.suggest(word.to_uppercase())
            }
            _ => fault,
        });
    }
    let conjuncts = match &expr {
        Expr::And(parts) => parts.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut seen = 0;
    for conjunct in conjuncts {
        let derived = count(conjunct);
        if derived > 0 && !is_derived(conjunct) {
            let what = "`execution_status` and `health` stand only in parts of their own, joined by `AND` to the rest: \
                        they are worked out for the tasks that fit the rest";
            return Err(Fault::new(parser.derived[seen], what));
        }
        seen += derived;
    }
    Ok(Some(expr))
}

/// How many comparisons are with what is derived.
fn count(expr: &Expr) -> usize {
    match expr {
        Expr::And(parts) | Expr::Or(parts) => parts.iter().map(count).sum(),
        Expr::Not(part) => count(part),
        Expr::Status(_) | Expr::Health(_) => 1,
        _ => 0,
    }
}

/// It is about one thing that is derived, and nothing else.
fn is_derived(expr: &Expr) -> bool {
    fn all(expr: &Expr, is: fn(&Expr) -> bool) -> bool {
        match expr {
            Expr::Or(parts) => parts.iter().all(|part| all(part, is)),
            Expr::Not(part) => all(part, is),
            one => is(one),
        }
    }
    all(expr, |one| matches!(one, Expr::Status(_)))
        || all(expr, |one| matches!(one, Expr::Health(_)))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    terms: usize,
    open_starts: usize,
    /// Where what is derived is named.
    derived: Vec<usize>,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at]
    }

    /// The next word; the end stays the next one.
    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn takes(&mut self, kind: &Kind) -> bool {
        let is = self.peek().kind == *kind;
        if is {
            self.next();
        }
        is
    }

    /// What stands here, for a message.
    fn found(&self) -> String {
        match &self.peek().kind {
            Kind::Open => "`(`".to_owned(),
            Kind::Close => "`)`".to_owned(),
            Kind::And => "`AND`".to_owned(),
            Kind::Or => "`OR`".to_owned(),
            Kind::Not => "`NOT`".to_owned(),
            Kind::Minus => "`-`".to_owned(),
            Kind::Sign(Sign::Compare(compare)) => format!("`{}`", compare.sign()),
            Kind::Sign(Sign::Other) => "`!=`".to_owned(),
            Kind::Sign(Sign::Has) => "`:`".to_owned(),
            Kind::Word(word) => shown(word),
            Kind::Quoted(pattern) => shown(&pattern.text),
            Kind::End => "the end".to_owned(),
        }
    }

    fn expression(&mut self) -> Result<Expr, Fault> {
        let mut parts = vec![self.factor()?];
        while self.takes(&Kind::And) {
            parts.push(self.factor()?);
        }
        Ok(one_or(parts, Expr::And))
    }

    fn factor(&mut self) -> Result<Expr, Fault> {
        let mut parts = vec![self.term()?];
        while self.takes(&Kind::Or) {
            parts.push(self.term()?);
        }
        Ok(one_or(parts, Expr::Or))
    }

    fn term(&mut self) -> Result<Expr, Fault> {
        if self.takes(&Kind::Not) || self.takes(&Kind::Minus) {
            return Ok(Expr::Not(Box::new(self.simple()?)));
        }
        self.simple()
    }

    fn simple(&mut self) -> Result<Expr, Fault> {
        let opened = self.peek().offset;
        if !self.takes(&Kind::Open) {
            return self.restriction();
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let what = format!("at most {DEPTH_MAX} parentheses may stand around anything");
            return Err(Fault::new(opened, what));
        }
        let expr = self.expression()?;
        if !self.takes(&Kind::Close) {
            let what = format!(
                "{} is not wanted here, but `AND`, `OR` or `)` for the `(` at {opened}",
                self.found()
            );
            return Err(Fault::new(self.peek().offset, what));
        }
        self.depth -= 1;
        Ok(expr)
    }

    fn restriction(&mut self) -> Result<Expr, Fault> {
        let wanted = format!("{} is not wanted here, but the name of a field", self.found());
        let name = self.next();
        let field = match &name.kind {
            Kind::Word(word) => {
                let key = self.peek().clone();
                match (word.strip_suffix('.'), key.kind) {
                    (Some("annotations"), Kind::Quoted(key_text)) if key.offset == name.end => {
                        self.next();
                        if !key_text.is_exact() {
                            return Err(Fault::new(
                                key.offset,
                                "the key of an annotation has no `*`",
                            ));
                        }
                        Field::Annotations(Some(key_text.text))
                    }
                    _ => match (field::field(word, name.offset), &self.peek().kind) {
                        (Ok(field), _) => field,
                        // Nothing is compared: it is a word that was to be searched for.
                        (Err(fault), Kind::Sign(_)) => return Err(fault),
                        (Err(fault), _) => return Err(literal(word, name.offset, fault)),
                    },
                }
            }
            Kind::Quoted(pattern) => {
                let fault = Fault::new(name.offset, wanted);
                return Err(literal(&pattern.text, name.offset, fault));
            }
            _ => return Err(Fault::new(name.offset, wanted)),
        };
        self.terms += 1;
        if self.terms > TERMS_MAX {
            let what = format!("at most {TERMS_MAX} comparisons are allowed");
            return Err(Fault::new(name.offset, what));
        }
        if matches!(field, Field::Annotations(Some(ref key)) if key.is_empty()) {
            return Err(Fault::new(name.end, "the key of an annotation is wanted"));
        }
        if matches!(field, Field::Status | Field::Health) {
            self.derived.push(name.offset);
        }
        let Kind::Sign(sign) = self.peek().kind else {
            let what =
                format!("{} is not wanted here, but one of {}", self.found(), signs_of(&field));
            let fault = Fault::new(self.peek().offset, what);
            return Err(match field {
                Field::Flag(flag) => fault.suggest(format!("{} = true", flag.name())),
                _ => fault,
            });
        };
        let sign_at = self.next().offset;
        let value = self.value()?;
        if value.pattern.open_start && !value.pattern.text.is_empty() {
            self.open_starts += 1;
            if self.open_starts > OPEN_STARTS_MAX {
                let what = format!("at most {OPEN_STARTS_MAX} texts may begin with `*`");
                return Err(Fault::new(value.offset, what));
            }
        }
        compare(&field, sign, sign_at, &value)
    }

    fn value(&mut self) -> Result<Value, Fault> {
        let found = format!("{} is not wanted here, but a value", self.found());
        let token = self.next();
        let negative = token.kind == Kind::Minus && self.peek().offset == token.end;
        let (word, offset, at) = match token.kind {
            Kind::Quoted(pattern) => return Ok(Value { pattern, offset: token.offset }),
            Kind::Minus if negative => match self.next().kind {
                Kind::Word(word) => (format!("-{word}"), token.offset, token.offset),
                _ => return Err(Fault::new(token.offset, found)),
            },
            Kind::Word(word) => (word, token.offset, token.offset),
            Kind::Open => {
                let what = "one value is wanted: say `field = a OR field = b` for one of several";
                return Err(Fault::new(token.offset, what));
            }
            _ => return Err(Fault::new(token.offset, found)),
        };
        let read: Vec<_> = word.char_indices().map(|(i, c)| (at + i, c, false)).collect();
        Ok(Value { pattern: pattern(&read)?, offset })
    }
}

/// A word that is compared with nothing.
fn literal(word: &str, offset: usize, fault: Fault) -> Fault {
    if fault.suggestion.is_some() {
        return fault;
    }
    let what = format!("{} is compared with no field, and nothing is searched for", shown(word));
    Fault::new(offset, what).suggest(format!("tags:{}", crate::quoted(word)))
}

fn one_or(mut parts: Vec<Expr>, several: fn(Vec<Expr>) -> Expr) -> Expr {
    match parts.pop() {
        Some(one) if parts.is_empty() => one,
        last => {
            parts.extend(last);
            several(parts)
        }
    }
}

struct Value {
    pattern: Pattern,
    offset: usize,
}

impl Value {
    /// The text, which may not be a pattern.
    fn plain(&self, what: &str) -> Result<&str, Fault> {
        if self.pattern.is_exact() {
            return Ok(&self.pattern.text);
        }
        Err(Fault::new(self.offset, format!("{what} is wanted, without `*`")))
    }
}

/// The signs that may follow a field.
fn signs_of(field: &Field) -> &'static str {
    match field {
        Field::Id | Field::State | Field::Text(_) | Field::Flag(_) => "`=` and `!=`",
        Field::Status | Field::Health => "`=` and `!=`",
        Field::Tags | Field::Annotations(None) => "`:`",
        Field::Annotations(Some(_)) => "`=`, `!=` and `:`",
        Field::Priority => "`=`, `!=`, `<`, `<=`, `>` and `>=`",
        Field::Time(_) => "`=`, `!=`, `<`, `<=`, `>`, `>=` and `:*`",
    }
}

fn compare(field: &Field, sign: Sign, sign_at: usize, value: &Value) -> Result<Expr, Fault> {
    let refused = || {
        let (sign, signs) = (sign_text(sign), signs_of(field));
        let fault =
            Fault::new(sign_at, format!("`{sign}` does not go with this field, but {signs}"));
        match (field, sign) {
            (Field::Tags, "=" | "!=") => fault.suggest(format!(
                "{}tags:{}",
                if sign == "=" { "" } else { "NOT " },
                value.pattern
            )),
            (Field::Text(text), ":") => {
                fault.suggest(format!("{} = {}", text.name(), value.pattern))
            }
            _ => fault,
        }
    };
    // What `=` says; `!=` is its contrary.
    let is = match field {
        Field::Priority | Field::Time(_) => return ordered(field, sign, value, refused),
        Field::Tags if sign == Sign::Has => return Ok(Expr::Tag(value.pattern.clone())),
        Field::Annotations(None) if sign == Sign::Has => {
            let key = value.plain("the key of an annotation")?;
            if key.is_empty() {
                return Err(Fault::new(value.offset, "the key of an annotation is wanted"));
            }
            return Ok(Expr::Annotation(key.to_owned(), Pattern::any()));
        }
        Field::Annotations(Some(key)) if sign == Sign::Has => {
            return Ok(Expr::Annotation(key.clone(), value.pattern.clone()));
        }
        _ if !matches!(sign, Sign::Compare(Compare::Is) | Sign::Other) => return Err(refused()),
        Field::Tags | Field::Annotations(None) => return Err(refused()),
        Field::Annotations(Some(key)) => Expr::Annotation(key.clone(), value.pattern.clone()),
        Field::Text(Text::DefinitionVersion) => version(value)?,
        Field::Text(text) => Expr::Text(*text, value.pattern.clone()),
        Field::Id => {
            let text = value.plain("the id of a task")?;
            let id = Uuid::try_parse(text)
                .map_err(|_| Fault::new(value.offset, format!("{} is no UUID", shown(text))))?;
            Expr::Id(id)
        }
        Field::State => Expr::State(field::state(value.plain("a state")?, value.offset)?),
        Field::Status => {
            Expr::Status(field::status(value.plain("an execution status")?, value.offset)?)
        }
        Field::Health => Expr::Health(field::health(value.plain("a health")?, value.offset)?),
        Field::Flag(flag) => match value.plain("`true` or `false`")? {
            "true" => Expr::Flag(*flag, true),
            "false" => Expr::Flag(*flag, false),
            other => {
                let what = format!("`true` or `false` is wanted, not {}", shown(other));
                return Err(Fault::new(value.offset, what));
            }
        },
    };
    Ok(if sign == Sign::Other { Expr::Not(Box::new(is)) } else { is })
}

/// A comparison of what is more or less.
fn ordered(
    field: &Field,
    sign: Sign,
    value: &Value,
    refused: impl Fn() -> Fault,
) -> Result<Expr, Fault> {
    let compare = match sign {
        Sign::Compare(compare) => compare,
        Sign::Other => Compare::Is,
        Sign::Has => match field {
            Field::Time(time) if value.pattern == Pattern::any() => return Ok(Expr::Set(*time)),
            _ => return Err(refused()),
        },
    };
    let is = match field {
        Field::Time(time) => Expr::Time(*time, compare, moment(value)?),
        _ => {
            let text = value.plain("a whole number")?;
            let n = text.parse().map_err(|_| {
                Fault::new(value.offset, format!("a whole number is wanted, not {}", shown(text)))
            })?;
            Expr::Priority(compare, n)
        }
    };
    Ok(if sign == Sign::Other { Expr::Not(Box::new(is)) } else { is })
}

fn version(value: &Value) -> Result<Expr, Fault> {
    let plain = |c: char| c.is_ascii_digit() || c == '.';
    if value.pattern.text.chars().all(plain) {
        return Ok(Expr::Text(Text::DefinitionVersion, value.pattern.clone()));
    }
    let what = "a version is wanted, such as `1.0.0` or `1.*`";
    Err(Fault::new(value.offset, what))
}

/// `2026-11-28T09:30:00Z`, or `-1h` for an hour ago.
fn moment(value: &Value) -> Result<Moment, Fault> {
    let text = value.plain("a time")?;
    let wanted = || {
        let what = format!(
            "a time is wanted, such as \"2026-11-28T09:30:00Z\", or \"-1h\" for an hour ago, not {}",
            shown(text)
        );
        Fault::new(value.offset, what)
    };
    if let Some(ago) = text.strip_prefix('-') {
        let ago = written(ago).filter(|ago| *ago <= AGO_MAX).ok_or_else(wanted)?;
        let ago = Duration::from_millis(u64::try_from(ago.as_millis()).map_err(|_| wanted())?);
        return Ok(Moment::Ago(ago));
    }
    let at = DateTime::parse_from_rfc3339(text).map_err(|_| wanted())?.with_timezone(&Utc);
    let micros = at.with_nanosecond(at.nanosecond() / 1000 * 1000).unwrap_or(at);
    Some(micros)
        .filter(|at| (1970..=9999).contains(&at.year()))
        .map(Moment::At)
        .ok_or_else(|| Fault::new(value.offset, "a time from 1970 to 9999 is wanted"))
}

fn sign_text(sign: Sign) -> &'static str {
    match sign {
        Sign::Compare(compare) => compare.sign(),
        Sign::Other => "!=",
        Sign::Has => ":",
    }
}

#[cfg(test)]
mod tests;
