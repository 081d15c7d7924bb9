//! Nodes: the step-service processes in whose names leases are given. A node lives as long as it
//! extends its own lease; once it is retired another walks the leases it left.

use std::time::Duration;

use sqlx::postgres::types::PgInterval;

use crate::{Error, LeaseRow, SignalRow, Store, Writer};

/// A retired node whose leases are to be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// Its id.
    pub node: i32,
    /// The last task that was walked; 0: none.
    pub walked: i64,
    /// How long its executors may still come back.
    pub wait: Duration,
}

impl Store {
    /// Registers a step-service process; its leases carry the id. It lives this long unless it
    /// extends its lease.
    pub async fn register_node(&self, lease: Duration) -> Result<i32, Error> {
        let id = sqlx::query_scalar!(
            "insert into stepwell.node (lease_until) values (clock_timestamp() + $1) returning id",
            interval(lease)
        )
        .fetch_one(self.reads())
        .await?;
        Ok(id)
    }
}

impl Writer {
    /// The node lives for so long from now on. False: it is retired, and must go on under another
    /// id.
    pub async fn extend_node(&mut self, node: i32, lease: Duration) -> Result<bool, Error> {
        let extended = sqlx::query!(
            "update stepwell.node set lease_until = clock_timestamp() + $2
              where id = $1 and retired_at is null",
            node,
            interval(lease)
        )
        .execute(&mut self.connection)
        .await?;
        Ok(extended.rows_affected() == 1)
    }

    /// Gives up a node's id: after it no lease can be given in its name.
    pub async fn retire_node(&mut self, node: i32) -> Result<(), Error> {
        sqlx::query_scalar!("select stepwell.retire_node($1)", node)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Gives up a node's id for a new one, which has the old one's leases to walk.
    pub async fn renew_node(&mut self, old: i32, lease: Duration) -> Result<i32, Error> {
        let id = sqlx::query_scalar!(
            r#"select stepwell.renew_node($1, $2) as "id!""#,
            old,
            millis(lease)
        )
        .fetch_one(&mut self.connection)
        .await?;
        Ok(id)
    }

    /// Declares nodes dead whose lease is over, if it may, and takes over what nobody walks.
    /// Answers all that this node has taken over.
    pub async fn take_over(
        &mut self,
        node: i32,
        lease: Duration,
        grace: Duration,
        may_declare: bool,
    ) -> Result<Vec<TakenOver>, Error> {
        let row = sqlx::query!(
            r#"select t_node as node, t_walked as walked, t_wait_ms as wait
                 from stepwell.take_over($1, $2, $3, $4)"#,
            node,
            millis(lease),
            millis(grace),
            may_declare,
        )
        .fetch_one(&mut self.connection)
        .await?;
        let (nodes, walked) = (row.node.unwrap_or_default(), row.walked.unwrap_or_default());
        let waits = row.wait.unwrap_or_default();
        let taken = nodes.into_iter().zip(walked).zip(waits).map(|((node, walked), wait)| {
            let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
            TakenOver { node, walked, wait }
        });
        Ok(taken.collect())
    }

    /// The leases a node has given that are still running, of open tasks after `after`, `chunk` of
    /// them. Answers them and the task to go on after; none: that was the last chunk.
    pub async fn leases_of(
        &mut self,
        node: i32,
        after: i64,
        chunk: i64,
    ) -> Result<(Vec<LeaseRow>, Option<i64>), Error> {
        let rows = sqlx::query!(
            r#"select t.id, s.key as "step?", s.token as "token?", s.session as "session?",
                      s.attempt as "attempt?", s.max_attempts as "max_attempts?", s.queue as "queue?"
                 from (select id from stepwell.task where finished_at is null and id > $2
                        order by id limit $3) t
                 left join lateral (
                      select * from stepwell.step s
                       where s.key between t.id << 14 and (t.id << 14) + 16383
                         and s.state = 2 and s.node = $1 offset 0) s on true
                order by t.id"#,
            node,
            after,
            chunk,
        )
        .fetch_all(&mut self.connection)
        .await?;
        let last = rows.last().map(|row| row.id);
        let leases = rows.into_iter().filter_map(|row| {
            Some(LeaseRow {
                step: row.step?,
                token: row.token?,
                attempt: row.attempt?,
                max_attempts: row.max_attempts?,
                queue: row.queue?,
                session: row.session?,
                own_config: false,
            })
        });
        Ok((leases.collect(), last))
    }

    /// The walk over a node's leases has come to this task. Only for the node that walks.
    pub async fn walked(&mut self, node: i32, by: i32, task: i64) -> Result<(), Error> {
        sqlx::query!(
            "update stepwell.node set walked = $3 where id = $1 and taken_by = $2",
            node,
            by,
            task
        )
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// The walk is over: nothing is left of the node.
    pub async fn forget_node(&mut self, node: i32, by: i32) -> Result<(), Error> {
        sqlx::query!(
            "with gone as (delete from stepwell.node where id = $1 and taken_by = $2 returning id),
                  executors as (delete from stepwell.executor where node in (select id from gone))
             delete from stepwell.signal where node in (select id from gone)",
            node,
            by
        )
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Signals for these nodes, oldest first, at most 1,000.
    pub async fn signals(&mut self, nodes: &[i32]) -> Result<Vec<SignalRow>, Error> {
        let rows = sqlx::query_as!(
            SignalRow,
            r#"select s.id as "id!", s.session as "session!", s.key as "step!", s.token as "token!",
                      s.attempt as "attempt!", s.reason as "reason!", s.stop as "stop!"
                 from unnest($1::int[]) n(node),
                      lateral (select * from stepwell.signal s where s.node = n.node
                                order by s.node, s.id limit 1000) s
                order by s.id limit 1000"#,
            nodes
        )
        .fetch_all(&mut self.connection)
        .await?;
        Ok(rows)
    }

    /// These signals were passed on.
    pub async fn drop_signals(&mut self, ids: &[i64]) -> Result<(), Error> {
        sqlx::query!("delete from stepwell.signal where id = any($1)", ids)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
