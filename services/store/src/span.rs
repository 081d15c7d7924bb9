//! The span of a verb: how many rows it was given, and how many it answered. Only made for an
//! exporter.

use stepwell_trace::TARGET;
use tracing::{Instrument, Span, field::Empty};

use crate::Error;

/// Calls a verb in a span of its own, `db.` and the verb's name. `answered` counts the rows of the
/// answer.
pub(crate) async fn verb<T>(
    name: &'static str,
    rows: usize,
    answered: impl Fn(&T) -> usize,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let span = of_verb(name, rows);
    if span.is_disabled() {
        return call.await;
    }
    let answer = call.instrument(span.clone()).await;
    match &answer {
        Ok(answer) => span.record("stepwell.rows_answered", number(answered(answer))),
        // Only what kind of error it was: the message may quote what was stored.
        Err(error) => span
            .record("otel.status_code", "ERROR")
            .record("db.response.status_code", error.code().unwrap_or_else(|| "no answer".into())),
    };
    answer
}

/// A number as exporters take it.
fn number(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn of_verb(name: &'static str, rows: usize) -> Span {
    tracing::trace_span!(
        target: TARGET,
        "db.verb",
        otel.name = name,
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "postgresql",
        db.response.status_code = Empty,
        stepwell.rows = number(rows),
        stepwell.rows_answered = Empty,
    )
}
