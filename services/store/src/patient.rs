//! Statements whose answer may never come: a database that is cut off without a word is noticed
//! here, because the database's own time-outs need a connection to be told through.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt, StreamExt, TryFutureExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Describe, Either, Error, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::timeout;

use crate::metrics::{Connection, Metrics};

type Answer = Either<PgQueryResult, PgRow>;

/// A connection that answers in time or is of no more use.
#[derive(Debug)]
pub(crate) struct Patient {
    pub(crate) connection: PgConnection,
    pub(crate) patience: Duration,
    pub(crate) metrics: Arc<Metrics>,
}

/// A connection out of the pool for one statement; it does not go back if it is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reads<'c> {
    pub(crate) pool: &'c PgPool,
    pub(crate) patience: Duration,
    pub(crate) metrics: &'c Metrics,
}

/// What a statement comes to, or that nothing came.
pub(crate) async fn within<T>(
    patience: Duration,
    statement: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(patience, statement).await.unwrap_or_else(|_| Err(silent(patience)))
}

/// The same, measured.
async fn measured<T>(
    metrics: &Metrics,
    whose: Connection,
    patience: Duration,
    statement: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let since = Instant::now();
    let answer = within(patience, statement).await;
    metrics.answered(whose, since, &answer);
    answer
}

impl Reads<'_> {
    async fn acquire(&self) -> Result<PoolConnection<Postgres>, Error> {
        let since = Instant::now();
        let connection = self.pool.acquire().await;
        self.metrics.pool_waited(since.elapsed());
        connection
    }
}

/// Nothing came.
pub(crate) fn silent(patience: Duration) -> Error {
    let what = format!("no answer within {patience:?}");
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, what))
}

fn all<'e>(
    answers: impl Future<Output = Result<Vec<Answer>, Error>> + Send + 'e,
) -> BoxStream<'e, Result<Answer, Error>> {
    let answers = answers.map_ok(|answers| stream::iter(answers.into_iter().map(Ok)));
    stream::once(answers).try_flatten().boxed()
}

impl<'c> Executor<'c> for &'c mut Patient {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Answer, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let Patient { connection, patience, metrics } = self;
        let statement = connection.fetch_many(query).try_collect();
        all(measured(metrics, Connection::Own, *patience, statement))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let Patient { connection, patience, metrics } = self;
        let statement = connection.fetch_optional(query);
        measured(metrics, Connection::Own, *patience, statement).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.connection.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.connection.describe(sql)
    }
}

impl<'c> Executor<'c> for Reads<'c> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Answer, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        all(async move {
            let mut connection = self.acquire().await?;
            let statement = connection.fetch_many(query).try_collect();
            let answer = measured(self.metrics, Connection::Pool, self.patience, statement).await;
            if matches!(&answer, Err(Error::Io(_))) {
                connection.close_on_drop();
            }
            answer
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        async move {
            let mut connection = self.acquire().await?;
            let statement = connection.fetch_optional(query);
            let answer = measured(self.metrics, Connection::Pool, self.patience, statement).await;
            if matches!(&answer, Err(Error::Io(_))) {
                connection.close_on_drop();
            }
            answer
        }
        .boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.pool.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.pool.describe(sql)
    }
}
