//! Who asked for a move and why: JSON text in the move's events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stepwell_proto::refusal::Refusal;

/// What a person says of a move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    /// Who asks.
    pub by: String,
    /// Why.
    pub reason: String,
    /// The bulk operation that makes the move; empty: it is made by itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operation_id: String,
    /// The caller's id of the request that asks; empty: it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// The step was not to run at all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// What the step's children read as its result, if it is short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Why the task is, from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_reason: Option<String>,
    /// The task's labels from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// How urgent the task is, from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// Attempts the step may make in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<i32>,
    /// What the step's handler gets from now on, if it is short; empty: what its definition says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// There is such a config, and it is not short.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub config_omitted: bool,
    /// There is a result, and it is not short.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub result_omitted: bool,
    /// Facts that the task keeps from now on; without their texts if these are not short.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Their texts are not short.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub annotations_omitted: bool,
    /// Names of facts that the task keeps no longer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// A result, a config or facts up to this size travel in events.
const TRAVELS_BYTES_MAX: usize = 8 << 10;
const REASON_BYTES_MAX: usize = 1024;
const BY_BYTES_MAX: usize = 256;
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Of a step that may be tried again by hand, at once.
const ATTEMPTS_MAX: i32 = 1000;

/// What is wrong with the id of a request; an empty one is none.
pub fn request_id_fault(id: &str) -> Option<(String, String)> {
    let is_right =
        id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
    let what = format!("at most {REQUEST_ID_BYTES_MAX} printable ASCII characters, no spaces");
    (!is_right).then(|| ("request_id".to_owned(), what))
}

impl Note {
    /// Who and why.
    pub fn new(by: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { by: by.into(), reason: reason.into(), ..Self::default() }
    }

    /// What a request says: the reason, in the field `path` who asks, and its id.
    pub fn read(
        reason: String,
        path: &str,
        by: String,
        request_id: String,
    ) -> Result<Self, Refusal> {
        let mut faults = Vec::new();
        for (path, text, max) in [("reason", &reason, REASON_BYTES_MAX), (path, &by, BY_BYTES_MAX)]
        {
            if text.len() > max || text.contains('\0') {
                faults.push((path.to_owned(), format!("at most {max} bytes, without NUL")));
            }
        }
        faults.extend(request_id_fault(&request_id));
        if !faults.is_empty() {
            return Err(Refusal::fields(faults));
        }
        let by = if by.is_empty() { "unknown".to_owned() } else { by };
        Ok(Self { request_id, ..Self::new(by, reason) })
    }

    /// The same of a step that gets a result.
    pub(crate) fn with_result(mut self, result: Option<&str>) -> Self {
        (self.result, self.result_omitted) = travels(result);
        self
    }

    /// The same of a step that gets a config.
    pub(crate) fn with_config(mut self, config: Option<&str>) -> Self {
        (self.config, self.config_omitted) = travels(config);
        self
    }

    /// The same of a task that keeps facts, and forgets those of other names.
    pub(crate) fn with_annotations(
        mut self,
        set: &BTreeMap<String, String>,
        removed: &[String],
    ) -> Self {
        let bytes: usize = set.iter().map(|(name, text)| name.len() + text.len()).sum();
        self.annotations_omitted = bytes > TRAVELS_BYTES_MAX;
        let text = |text: &String| match self.annotations_omitted {
            false => text.clone(),
            true => String::new(),
        };
        self.annotations = set.iter().map(|(name, of)| (name.clone(), text(of))).collect();
        self.removed = removed.to_vec();
        self
    }

    /// As it is stored.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// Reads what was stored; nothing was: nobody said anything.
    pub(crate) fn from_text(text: Option<&str>) -> Self {
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

/// A text if it is short, and whether there is one that is not.
fn travels(text: Option<&str>) -> (Option<String>, bool) {
    let short = text.filter(|text| text.len() <= TRAVELS_BYTES_MAX).map(str::to_owned);
    let omitted = text.is_some() && short.is_none();
    (short, omitted)
}

/// The field `attempts` of a request to try again; none: it does not say.
pub fn more_attempts(attempts: i32) -> Result<Option<i32>, Refusal> {
    match attempts {
        0 => Ok(None),
        1..=ATTEMPTS_MAX => Ok(Some(attempts)),
        _ => Err(Refusal::field("attempts", format!("must be from 1 to {ATTEMPTS_MAX}"))),
    }
}
