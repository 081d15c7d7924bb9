//! Text with values in it: `https://api/${context.id}` → pieces. What the values are is known to
//! `values.rs`.

use std::fmt;

/// A text, some pieces of which are values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Stands as it is.
    Text(String),
    /// Stands for a value.
    Place(Place),
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `context` and the keys to go down.
    Context(Vec<String>),
    /// `steps` and what follows: the name of a parent, which may itself contain dots, and keys.
    Steps(String),
    /// `secret` and its name.
    Secret(String),
    /// `step.id`
    StepId,
    /// `step.attempt`
    Attempt,
    /// `task.id`
    TaskId,
}

impl Template {
    /// Reads it: `${…}` is a value, `$${` a literal `${`. Or what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find("${") {
            let (before, found) = rest.split_at(at);
            literal.push_str(before);
            let inside = &found[2..];
            if before.ends_with('$') {
                // `$${`: its first dollar is there already.
                literal.push('{');
                rest = inside;
                continue;
            }
            let end = inside.find('}').ok_or_else(|| {
                format!("`{}` has no `}}`; a literal `${{` is written `$${{`", head(found))
            })?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Place(Place::parse(&inside[..end])?));
            rest = &inside[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self(pieces))
    }

    /// A text without values.
    pub(crate) fn literal(text: impl Into<String>) -> Self {
        let text = text.into();
        Self(if text.is_empty() { Vec::new() } else { vec![Piece::Text(text)] })
    }

    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// The values it needs.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Place(place) => Some(place),
            Piece::Text(_) => None,
        })
    }

    /// The value, if it is nothing else.
    pub(crate) fn single(&self) -> Option<&Place> {
        match self.0.as_slice() {
            [Piece::Place(place)] => Some(place),
            _ => None,
        }
    }
}

/// As it is written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(&text.replace("${", "$${")),
            Piece::Place(place) => write!(f, "${{{place}}}"),
        })
    }
}

impl Place {
    /// True when nobody may see the value.
    pub(crate) fn is_secret(&self) -> bool {
        matches!(self, Self::Secret(_))
    }

    fn parse(path: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "`${{{}}}` is unknown; there are context, steps.NAME, step.id, step.attempt, task.id \
                 and secret.NAME",
                head(path)
            )
        };
        let (root, keys) = match path.split_once('.') {
            Some((root, keys)) => (root, Some(keys)),
            None => (path, None),
        };
        if keys.is_some_and(|keys| keys.split('.').any(str::is_empty)) {
            return Err(format!("`${{{}}}` has an empty part", head(path)));
        }
        match (root, keys) {
            ("context", None) => Ok(Self::Context(Vec::new())),
            ("context", Some(keys)) => {
                Ok(Self::Context(keys.split('.').map(str::to_owned).collect()))
            }
            ("steps", Some(keys)) => Ok(Self::Steps(keys.to_owned())),
            ("secret", Some(name)) if is_secret_name(name) => Ok(Self::Secret(name.to_owned())),
            ("secret", Some(name)) => Err(format!(
                "`{}` is no name of a secret: capitals, digits and `_`, at most 64",
                head(name)
            )),
            ("step", Some("id")) => Ok(Self::StepId),
            ("step", Some("attempt")) => Ok(Self::Attempt),
            ("task", Some("id")) => Ok(Self::TaskId),
            _ => Err(unknown()),
        }
    }
}

/// As it stands between the braces.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Context(keys) if keys.is_empty() => f.write_str("context"),
            Self::Context(keys) => write!(f, "context.{}", keys.join(".")),
            Self::Steps(keys) => write!(f, "steps.{keys}"),
            Self::Secret(name) => write!(f, "secret.{name}"),
            Self::StepId => f.write_str("step.id"),
            Self::Attempt => f.write_str("step.attempt"),
            Self::TaskId => f.write_str("task.id"),
        }
    }
}

/// Names of secrets are ends of names of environment variables.
pub(crate) fn is_secret_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// The beginning of a text, for messages.
pub(crate) fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context(keys: &[&str]) -> Piece {
        Piece::Place(Place::Context(keys.iter().map(|&key| key.to_owned()).collect()))
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    #[test]
    fn values_stand_between_braces_and_everything_else_as_it_is() {
        for (written, pieces) in [
            ("", vec![]),
            ("plain $5 {x} $", vec![text("plain $5 {x} $")]),
            ("${context}", vec![context(&[])]),
            ("/a/${context.b.0}?c", vec![text("/a/"), context(&["b", "0"]), text("?c")]),
            ("${step.id}${step.attempt}${task.id}", {
                vec![
                    Piece::Place(Place::StepId),
                    Piece::Place(Place::Attempt),
                    Piece::Place(Place::TaskId),
                ]
            }),
            ("${steps.fetch.v1/cart.id}", {
                vec![Piece::Place(Place::Steps("fetch.v1/cart.id".into()))]
            }),
            ("Bearer ${secret.TOKEN_2}", {
                vec![text("Bearer "), Piece::Place(Place::Secret("TOKEN_2".into()))]
            }),
            ("$${context}", vec![text("${context}")]),
            ("$$${", vec![text("$${")]),
            ("$${${context.a}", vec![text("${"), context(&["a"])]),
        ] {
            assert_eq!(Template::parse(written), Ok(Template(pieces)), "{written}");
        }
    }

    #[test]
    fn what_no_value_can_be_meant_by_is_named() {
        for (written, word) in [
            ("${context.a", "no `}`"),
            ("${}", "unknown"),
            ("${env.HOME}", "`${env.HOME}` is unknown"),
            ("${step.name}", "unknown"),
            ("${steps}", "unknown"),
            ("${ context.a }", "unknown"),
            ("${context..a}", "empty part"),
            ("${context.}", "empty part"),
            ("${secret.lower}", "no name of a secret"),
            ("${secret.A.B}", "no name of a secret"),
        ] {
            let wrong = Template::parse(written).unwrap_err();
            assert!(wrong.contains(word), "{written}: {wrong}");
        }
    }

    /// Pieces as they are read: no two texts side by side, and no dollar right before a value, which
    /// would make it literal.
    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        let keys = prop::collection::vec("[a-z0-9_-]{1,4}", 0..3);
        let place = prop_oneof![
            keys.prop_map(Place::Context),
            "[a-z]{1,3}(\\.[a-z0-9/]{1,3}){0,2}".prop_map(Place::Steps),
            "[A-Z0-9_]{1,4}".prop_map(Place::Secret),
            Just(Place::StepId),
            Just(Place::Attempt),
            Just(Place::TaskId),
        ];
        let text = "[${}a-c.é]{0,5}[{}a-c.é]".prop_map(Piece::Text);
        let piece = prop_oneof![text, place.prop_map(Piece::Place)];
        prop::collection::vec(piece, 0..6).prop_map(|mut pieces| {
            pieces.dedup_by(|a, b| matches!((a, b), (Piece::Text(_), Piece::Text(_))));
            pieces
        })
    }

    proptest! {
        #[test]
        fn any_text_can_be_written_so_that_it_is_read_as_itself(text in "[${}a-c.é]{0,12}") {
            let written = Template::literal(text.clone()).to_string();
            prop_assert_eq!(Template::parse(&written), Ok(Template::literal(text)));
        }

        #[test]
        fn what_is_written_is_read_as_it_was(pieces in pieces()) {
            let template = Template(pieces);
            prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
        }

        #[test]
        fn what_is_read_is_written_as_it_was(text in "([$]{0,2}[{](context|step.id|x)?[}]?|a){0,5}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(template.to_string(), text);
            }
        }
    }
}
