//! The compiled context schemas of definitions.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jsonschema::Validator;
use stepwell_store::StoredDefinition;

use crate::rule::schema::compile;

/// Most compiled schemas that are kept.
const KEPT_MAX: usize = 1_000;

/// Compiled schemas by definition, up to a bound; past it some are forgotten and compiled again.
#[derive(Default)]
pub struct Validators(Mutex<HashMap<i32, Arc<Validator>>>);

impl Validators {
    /// The definition's validator; none: it takes any object.
    pub fn of(&self, stored: &StoredDefinition) -> Option<Arc<Validator>> {
        if stored.definition.context_schema.is_empty() {
            return None;
        }
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&stored.id).cloned();
        kept.or_else(|| self.compile(stored))
    }

    fn compile(&self, stored: &StoredDefinition) -> Option<Arc<Validator>> {
        let schema = serde_json::from_str(&stored.definition.context_schema).ok()?;
        let validator = match compile(&schema) {
            Ok(validator) => Arc::new(validator),
            Err((pointer, what)) => {
                // It was compiled when it was registered, by an earlier build perhaps.
                tracing::error!(definition = stored.id, pointer, what, "schema does not compile");
                return None;
            }
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX
            && let Some(id) = kept.keys().next().copied()
        {
            kept.remove(&id);
        }
        kept.insert(stored.id, Arc::clone(&validator));
        Some(validator)
    }
}
