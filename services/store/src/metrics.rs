//! What is measured of the database's use: each statement, and the pool. Which verb a statement calls
//! is measured by its caller.

use std::time::{Duration, Instant};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use sqlx::{Error, PgPool};

/// Whose connection a statement takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Connection {
    /// One out of the pool.
    Pool,
    /// A loop's own.
    Own,
}

/// The instruments. Those by default measure nothing.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    statement: Option<Statement>,
}

#[derive(Debug)]
struct Statement {
    seconds: Histogram<f64>,
    pool_wait: Histogram<f64>,
    errors: Counter<u64>,
    pool: [KeyValue; 1],
    own: [KeyValue; 1],
}

impl Metrics {
    /// Declares them; the pool is looked at when somebody reads.
    pub(crate) fn new(meter: &Meter, pool: &PgPool, pool_max: u32) -> Self {
        let connections = pool.clone();
        meter
            .u64_observable_gauge("stepwell_database_pool_connections")
            .with_description("Connections of the pool for reads, by whether they are in use")
            .with_callback(move |seen| {
                let idle = u64::try_from(connections.num_idle()).unwrap_or(0);
                let used = u64::from(connections.size()).saturating_sub(idle);
                seen.observe(idle, &[KeyValue::new("state", "idle")]);
                seen.observe(used, &[KeyValue::new("state", "used")]);
            })
            .build();
        meter
            .u64_observable_gauge("stepwell_database_pool_connections_max")
            .with_description("Connections the pool for reads may have")
            .with_callback(move |seen| seen.observe(u64::from(pool_max), &[]))
            .build();
        let seconds = meter
            .f64_histogram("stepwell_database_statement_seconds")
            .with_description(
                "From sending a statement to its answer or error, by whose connection it took: \
                 the pool's or a loop's own",
            )
            .with_unit("s")
            .build();
        let pool_wait = meter
            .f64_histogram("stepwell_database_pool_wait_seconds")
            .with_description("Waiting for a connection out of the pool")
            .with_unit("s")
            .build();
        let errors = meter
            .u64_counter("stepwell_database_errors_total")
            .with_description("Statements that failed, by kind of error")
            .build();
        for kind in KINDS {
            errors.add(0, &[KeyValue::new("kind", kind)]);
        }
        let of = |whose| [KeyValue::new("connection", whose)];
        let statement = Statement { seconds, pool_wait, errors, pool: of("pool"), own: of("own") };
        Self { statement: Some(statement) }
    }

    /// A statement was answered, or was not.
    pub(crate) fn answered<T>(&self, whose: Connection, since: Instant, answer: &Result<T, Error>) {
        let Some(statement) = &self.statement else { return };
        let label = match whose {
            Connection::Pool => &statement.pool,
            Connection::Own => &statement.own,
        };
        statement.seconds.record(since.elapsed().as_secs_f64(), label);
        if let Err(error) = answer {
            statement.errors.add(1, &[KeyValue::new("kind", kind(error))]);
        }
    }

    /// A connection came out of the pool, or none did.
    pub(crate) fn pool_waited(&self, waited: Duration) {
        if let Some(statement) = &self.statement {
            statement.pool_wait.record(waited.as_secs_f64(), &[]);
        }
    }
}

const KINDS: [&str; 5] = ["connection", "timeout", "conflict", "data", "other"];

/// A word for an error: of a few, so that they can be a label.
fn kind(error: &Error) -> &'static str {
    let code = match error {
        Error::Database(error) => error.code().unwrap_or_default(),
        Error::Io(_) | Error::Tls(_) | Error::Protocol(_) | Error::PoolTimedOut => {
            return "connection";
        }
        _ => return "other",
    };
    match code.as_ref() {
        "57014" | "55P03" | "25P03" => "timeout",
        code if code.starts_with("40") => "conflict",
        code if code.starts_with("22") || code.starts_with("23") => "data",
        code if code.starts_with("08") || code.starts_with("57P") || code.starts_with("53") => {
            "connection"
        }
        _ => "other",
    }
}
