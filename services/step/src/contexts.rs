//! Contexts of tasks whose steps were leased lately: they never change.

use std::sync::Arc;

use stepwell_serve::Recent;
use stepwell_trace::TraceContext;
use uuid::Uuid;

/// By task key.
pub(crate) type Contexts = Recent<i64, Known>;

/// About so many bytes of them are kept.
pub(crate) const BYTES_MAX: usize = 64 << 20;

/// What never changes of a task.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Its id.
    pub(crate) uid: Uuid,
    /// Its context.
    pub(crate) context: Arc<str>,
    /// Where in a trace it goes on.
    pub(crate) trace: Option<TraceContext>,
}

impl Known {
    /// How many bytes it holds beside itself.
    pub(crate) fn bytes(&self) -> usize {
        self.context.len()
    }
}
