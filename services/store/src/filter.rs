//! Which tasks are meant, as the verbs read it (`migrations/verbs/86_bulk.sql`): JSON text, the same for the
//! same filter.

use serde::{Deserialize, Serialize};
use sqlx::types::chrono::{DateTime, Utc};
use stepwell_proto::v1;

use crate::{Error, definition::timestamp};

/// Which tasks are meant: those that fit every field. Checked before it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Namespaces of their definitions, any of these; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Names of their definitions, any of these; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub definition_names: Vec<String>,
    /// Versions of their definitions, any of these; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub definition_versions: Vec<String>,
    /// Numbers of the states they are in, any of these; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<i32>,
    /// Labels, all of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Created then or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_after: Option<DateTime<Utc>>,
    /// Created before then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_before: Option<DateTime<Utc>>,
    /// Who asked for them, any of these; empty: anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initiators: Vec<String>,
    /// Which systems asked for them, any of these; empty: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_systems: Vec<String>,
}

impl Filter {
    /// As it is stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// Reads what was stored.
    pub(crate) fn from_text(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|error| Error::Inconsistent(format!("filter: {error}")))
    }

    /// As callers see it.
    pub(crate) fn into_proto(self) -> v1::TaskFilter {
        v1::TaskFilter {
            namespaces: self.namespaces,
            definition_names: self.definition_names,
            definition_versions: self.definition_versions,
            states: self.states,
            tags: self.tags,
            created_after: self.created_after.map(timestamp),
            created_before: self.created_before.map(timestamp),
            initiators: self.initiators,
            source_systems: self.source_systems,
        }
    }
}
