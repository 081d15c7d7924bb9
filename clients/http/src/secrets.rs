//! Secrets: values that only the executor knows. They go into requests and nowhere else: what comes
//! back has them replaced.

use std::{collections::BTreeMap, ffi::OsString, fmt};

use percent_encoding::utf8_percent_encode;
use serde_json::{Map, Value};
use url::Url;

use crate::{
    Error,
    request::VALUE,
    template::{Place, is_secret_name},
};

/// What stands where a secret stood.
const HIDDEN: &str = "***";
/// A shorter secret would be found everywhere.
const BYTES_MIN: usize = 4;
const BYTES_MAX: usize = 8 << 10;
const PREFIX: &str = "STEPWELL_HTTP_SECRET_";

/// Secrets by name.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// Those of the environment: `${secret.TOKEN}` is the variable `STEPWELL_HTTP_SECRET_TOKEN`.
    ///
    /// Errors: a name has other characters than capitals, digits and `_`, or more than 64; a secret
    /// is no UTF-8, or has fewer than 4 bytes or more than 8 KiB.
    pub fn from_env() -> Result<Self, Error> {
        Self::read(std::env::vars_os())
    }

    fn read(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        let mut secrets = BTreeMap::new();
        for (variable, secret) in variables {
            let variable = variable.to_string_lossy();
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            let wrong = |what| Error::Secret { variable: variable.clone().into_owned(), what };
            if !is_secret_name(name) {
                return Err(wrong("has a name of other characters than capitals, digits and `_`"));
            }
            let secret = secret.into_string().map_err(|_| wrong("is no UTF-8"))?;
            if !(BYTES_MIN..=BYTES_MAX).contains(&secret.len()) {
                return Err(wrong("must have 4 bytes to 8 KiB"));
            }
            secrets.insert(name.to_owned(), secret);
        }
        Ok(Self(secrets))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Hides those that a call uses.
    pub(crate) fn hider(&self, places: &[&Place]) -> Hider {
        let used = places.iter().filter_map(|place| match place {
            Place::Secret(name) => self.get(name),
            _ => None,
        });
        let mut forms: Vec<String> = used.flat_map(forms).collect();
        // One that contains another goes first.
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        Hider(forms)
    }
}

/// Names only.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A secret as it is, as it stands in the path of a url, in its host, and in JSON text. Of a secret
/// that is a url, host and path are secret, too.
fn forms(secret: &str) -> Vec<String> {
    let json = Value::from(secret).to_string();
    let mut forms = vec![
        secret.to_owned(),
        utf8_percent_encode(secret, VALUE).to_string(),
        secret.to_ascii_lowercase(),
        json[1..json.len() - 1].to_owned(),
    ];
    if let Ok(url) = Url::parse(secret) {
        let parts = [url.host_str(), Some(url.path().trim_end_matches('/'))];
        let parts = parts.into_iter().flatten().filter(|part| part.len() >= BYTES_MIN);
        forms.extend(parts.map(str::to_owned));
    }
    forms
}

/// Replaces the secrets of a call by `***`.
#[derive(Clone, Default)]
pub(crate) struct Hider(Vec<String>);

impl Hider {
    pub(crate) fn text(&self, text: String) -> String {
        self.0.iter().fold(text, |text, form| {
            if text.contains(form.as_str()) { text.replace(form.as_str(), HIDDEN) } else { text }
        })
    }

    pub(crate) fn value(&self, value: Value) -> Value {
        if self.0.is_empty() {
            return value;
        }
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(list) => list.into_iter().map(|value| self.value(value)).collect(),
            Value::Object(object) => {
                let hidden = object.into_iter();
                let hidden = hidden.map(|(key, value)| (self.text(key), self.value(value)));
                Value::Object(hidden.collect::<Map<_, _>>())
            }
            Value::Number(number) => {
                let digits = number.to_string();
                let hidden = self.text(digits.clone());
                if hidden == digits { Value::Number(number) } else { Value::String(hidden) }
            }
            Value::Null | Value::Bool(_) => value,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn secrets(secrets: &[(&str, &str)]) -> Secrets {
        let variable = |&(name, secret): &(&str, &str)| {
            (OsString::from(format!("{PREFIX}{name}")), OsString::from(secret))
        };
        Secrets::read(secrets.iter().map(variable)).unwrap()
    }

    #[test]
    fn secrets_are_variables_and_are_not_shown() {
        let all = [("STEPWELL_HTTP_SECRET_A_1", "s3cr3t"), ("STEPWELL_HTTP_SLOTS", "3")];
        let read = Secrets::read(all.iter().map(|(n, s)| ((*n).into(), (*s).into()))).unwrap();
        assert_eq!((read.get("A_1"), read.get("SLOTS")), (Some("s3cr3t"), None));
        assert_eq!(format!("{read:?}"), "{\"A_1\"}");
    }

    #[test]
    fn a_secret_that_cannot_be_used_or_hidden_is_refused() {
        let long = "x".repeat(BYTES_MAX + 1);
        for (name, secret) in [("a", "s3cr3t"), ("", "s3cr3t"), ("A", "abc"), ("A", &long)] {
            let variable = (format!("{PREFIX}{name}").into(), secret.into());
            let refused = Secrets::read(std::iter::once(variable)).unwrap_err().to_string();
            assert!(refused.starts_with(PREFIX) && !refused.contains("s3cr3t"), "{refused}");
        }
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_comes_back() {
        let all = secrets(&[("A", "to/ken\""), ("B", "ken\""), ("C", "12345"), ("D", "other")]);
        let used = ["A", "B", "C"].map(|name| Place::Secret(name.into()));
        let hider = all.hider(&used.iter().collect::<Vec<_>>());
        for (text, hidden) in [
            ("a to/ken\" b", "a *** b"),
            ("a=to%2Fken%22", "a=***"),
            (r#"{"a":"to/ken\""}"#, r#"{"a":"***"}"#),
            ("broken\"", "bro***"),
            ("another", "another"),
        ] {
            assert_eq!(hider.text(text.into()), hidden);
        }
        let webhook = secrets(&[("U", "https://Hooks.example/services/T0/B1/?k=v")]);
        let place = Place::Secret("U".into());
        let of_url = webhook.hider(&[&place]);
        for (text, hidden) in [
            ("POST hooks.example/services/T0/B1/x: 500", "POST ******/x: 500"),
            ("hooks.example is not allowed", "*** is not allowed"),
        ] {
            assert_eq!(of_url.text(text.into()), hidden);
        }
        let value = json!({"to/ken\"": ["ken\"", 12345, 1234, 91_234_567, null, true]});
        let hidden = json!({"***": ["***", "***", 1234, "9***67", null, true]});
        assert_eq!(hider.value(value), hidden);
    }
}
