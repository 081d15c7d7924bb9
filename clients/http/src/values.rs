//! The values that a call's templates name: the task's context, what parents returned, ids, secrets.

use std::borrow::Cow;

use serde_json::Value;
use stepwell_client::{HandlerError, StepContext};

use crate::{problem::Problem, secrets::Secrets, template::Place};

/// What is known to one attempt.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    pub(crate) context: Value,
    /// Results of the parents that are named, by their names.
    pub(crate) parents: Vec<(String, Value)>,
    pub(crate) step_id: String,
    pub(crate) task_id: String,
    pub(crate) attempt: i32,
    pub(crate) secrets: &'a Secrets,
}

impl<'a> Values<'a> {
    /// Reads what the places need, and fetches results that did not travel with the lease.
    pub(crate) async fn gather(
        step: &StepContext,
        places: &[&Place],
        secrets: &'a Secrets,
    ) -> Result<Self, HandlerError> {
        let needs_context = places.iter().any(|place| matches!(place, Place::Context(_)));
        let context = if needs_context { step.input()? } else { Value::Null };
        let mut parents: Vec<(String, Value)> = Vec::new();
        for place in places {
            let Place::Steps(path) = place else { continue };
            let Some((name, _)) = parent_of(step.parents(), path) else { continue };
            if !parents.iter().any(|(known, _)| known == name) {
                parents.push((name.to_owned(), step.parent(name).await?));
            }
        }
        Ok(Self {
            context,
            parents,
            step_id: step.step_id().to_owned(),
            task_id: step.task_id().to_owned(),
            attempt: step.attempt(),
            secrets,
        })
    }

    /// The value of a place.
    pub(crate) fn value(&self, place: &Place) -> Result<Cow<'_, Value>, Problem> {
        let missing = |what| Problem::Missing { path: place.to_string(), what };
        match place {
            Place::Context(keys) => {
                let found = down(&self.context, keys.iter().map(String::as_str));
                found.map(Cow::Borrowed).ok_or_else(|| missing("is not there"))
            }
            Place::Steps(path) => {
                let names = self.parents.iter().map(|(name, _)| name.as_str());
                let (name, keys) =
                    parent_of(names, path).ok_or_else(|| missing("names no parent of the step"))?;
                let result = self.parents.iter().find(|(known, _)| known == name);
                let found = result.and_then(|(_, value)| down(value, keys.into_iter()));
                found.map(Cow::Borrowed).ok_or_else(|| missing("is not there"))
            }
            Place::Secret(name) => {
                let secret = self.secrets.get(name);
                let secret = secret.ok_or_else(|| missing("is not known to this executor"))?;
                Ok(Cow::Owned(secret.into()))
            }
            Place::StepId => Ok(Cow::Owned(self.step_id.as_str().into())),
            Place::TaskId => Ok(Cow::Owned(self.task_id.as_str().into())),
            Place::Attempt => Ok(Cow::Owned(self.attempt.into())),
        }
    }

    /// The value of a place as text: strings as they are, numbers with their digits. Nothing is
    /// missing, and lists and objects cannot stand there. `key` is where it shall stand.
    pub(crate) fn text(&self, key: &str, place: &Place) -> Result<String, Problem> {
        let value = self.value(place)?;
        scalar(&value).ok_or_else(|| match *value {
            Value::Null => Problem::Missing { path: place.to_string(), what: "is null" },
            _ => Problem::value(key, format!("${{{place}}} is a list or an object")),
        })
    }
}

/// A value as text, unless it is null, a list or an object.
pub(crate) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The parent with the longest name that the path begins with, and the keys that follow: names may
/// contain dots.
fn parent_of<'a, 'p>(
    names: impl Iterator<Item = &'a str>,
    path: &'p str,
) -> Option<(&'a str, Vec<&'p str>)> {
    let begins = names.filter_map(|name| {
        let rest = path.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with('.')).then_some((name, rest))
    });
    let (name, rest) = begins.max_by_key(|(name, _)| name.len())?;
    Some((name, rest.split('.').skip(1).collect()))
}

/// Goes down keys of objects and places of lists, from 0.
fn down<'v, 'k>(value: &'v Value, mut keys: impl Iterator<Item = &'k str>) -> Option<&'v Value> {
    keys.try_fold(value, |value, key| match value {
        Value::Object(object) => object.get(key),
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn values<'a>(context: &str, secrets: &'a Secrets) -> Values<'a> {
        let result = |text| serde_json::from_str(text).unwrap();
        Values {
            context: serde_json::from_str(context).unwrap(),
            parents: vec![
                ("cart".into(), result(r#"{"items": [{"id": 7}], "v1": "short"}"#)),
                ("cart.v1".into(), result(r#"{"total": 12.50}"#)),
            ],
            step_id: "t.3".into(),
            task_id: "t".into(),
            attempt: 2,
            secrets,
        }
    }

    fn place(path: &str) -> Place {
        let template = crate::template::Template::parse(&format!("${{{path}}}")).unwrap();
        template.single().unwrap().clone()
    }

    #[test]
    fn values_are_found_by_their_paths_and_numbers_keep_their_digits() {
        let secrets = crate::secrets::tests::secrets(&[("KEY", "s3cr3t")]);
        let context =
            r#"{"a": {"b": [true, 1.10]}, "n": null, "": 1, "big": 12345678901234567890123}"#;
        let values = values(context, &secrets);
        for (path, json) in [
            ("context.a.b.1", "1.10"),
            ("context.big", "12345678901234567890123"),
            ("context.a", r#"{"b":[true,1.10]}"#),
            ("context.n", "null"),
            ("steps.cart.items.0.id", "7"),
            ("steps.cart.v1.total", "12.50"),
            ("steps.cart.v1", r#"{"total":12.50}"#),
            ("step.id", r#""t.3""#),
            ("step.attempt", "2"),
            ("task.id", r#""t""#),
            ("secret.KEY", r#""s3cr3t""#),
        ] {
            assert_eq!(values.value(&place(path)).unwrap().to_string(), json, "{path}");
        }
        for (path, text) in
            [("context.a.b.0", "true"), ("context.a.b.1", "1.10"), ("step.id", "t.3")]
        {
            assert_eq!(values.text("url", &place(path)).unwrap(), text);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_path() {
        let secrets = Secrets::default();
        let values = values(r#"{"a": {"b": [1]}, "n": null}"#, &secrets);
        for (path, what) in [
            ("context.c", "${context.c} is not there"),
            ("context.a.b.1", "${context.a.b.1} is not there"),
            ("context.a.b.x", "${context.a.b.x} is not there"),
            ("context.n.x", "${context.n.x} is not there"),
            ("context.n", "${context.n} is null"),
            ("steps.cart.none", "${steps.cart.none} is not there"),
            ("steps.cartoon", "${steps.cartoon} names no parent of the step"),
            ("secret.NONE", "${secret.NONE} is not known to this executor"),
        ] {
            let problem = values.text("url", &place(path)).unwrap_err();
            assert_eq!((problem.class(), problem.to_string().as_str()), ("MissingValue", what));
        }
        let problem = values.text("url", &place("context.a")).unwrap_err();
        assert_eq!(problem.class(), "InvalidValue");
    }
}
