//! The compiled context schemas of definitions, and their defaults.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jsonschema::Validator;
use stepwell_store::StoredDefinition;

use crate::rule::{Defaults, schema::compile};

/// Most compiled schemas that are kept.
const KEPT_MAX: usize = 1_000;

/// A context schema.
pub struct Schema {
    /// Says whether a context fits.
    pub validator: Validator,
    /// What it says otherwise of what is missing; none: nothing.
    pub defaults: Option<Defaults>,
}

/// Compiled schemas by definition, up to a bound; past it some are forgotten and compiled again.
#[derive(Default)]
pub struct Validators(Mutex<HashMap<i32, Arc<Schema>>>);

impl Validators {
    /// The definition's schema; none: it takes any object.
    pub fn of(&self, stored: &StoredDefinition) -> Option<Arc<Schema>> {
        if stored.definition.context_schema.is_empty() {
            return None;
        }
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&stored.id).cloned();
        kept.or_else(|| self.compile(stored))
    }

    fn compile(&self, stored: &StoredDefinition) -> Option<Arc<Schema>> {
        let text = &stored.definition.context_schema;
        let schema = match compile(&serde_json::from_str(text).ok()?) {
            Ok(validator) => {
                let defaults = Defaults::of(text).unwrap_or_else(|(_, what)| {
                    // It was read when it was registered, by an earlier build perhaps.
                    tracing::error!(definition = stored.id, what, "defaults cannot be read");
                    None
                });
                Arc::new(Schema { validator, defaults })
            }
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
        kept.insert(stored.id, Arc::clone(&schema));
        Some(schema)
    }
}
