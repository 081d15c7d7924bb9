//! A database full of tasks, written straight into its tables: for what reads cost among many.

use sqlx::{Connection, PgConnection};

use crate::Error;

/// Writes so many tasks of the definitions of a namespace, beside those that are there, as if they had been created
/// one a second until now. Of each thousand:
///
/// - 10 are pending, the seventh of each hundred, 1 is in error, the eighth, and the others are complete;
/// - the last is of the definition that was registered last, the others are of the others in turns;
/// - every tenth has the tags `tenth` and `lot-<which thousand>`, and the annotations `team = payments` and
///   `order = <its number>`;
/// - three that follow each other have one correlation id, `order-<which three>`.
///
/// They have no events and wait in no queue: nobody runs those that are pending.
pub async fn fill(database_url: &str, namespace: &str, tasks: u32) -> Result<(), Error> {
    let failed = |error| Error::Database("cannot fill the database".into(), error);
    let mut connection = PgConnection::connect(database_url).await.map_err(failed)?;
    let of = "select array(select id from stepwell.definition where namespace = $1 order by id)";
    let definitions: Vec<i32> =
        sqlx::query_scalar(of).bind(namespace).fetch_one(&mut connection).await.map_err(failed)?;
    if definitions.is_empty() {
        return Err(Error::Failed(format!("the namespace {namespace} has no definitions")));
    }
    let mut filling = connection.begin().await.map_err(failed)?;
    let first: i64 = sqlx::query_scalar("select nextval('stepwell.task_id')")
        .fetch_one(&mut *filling)
        .await
        .map_err(failed)?;
    // The keys that follow are ours.
    sqlx::query("select setval('stepwell.task_id', $1)")
        .bind(first + i64::from(tasks))
        .execute(&mut *filling)
        .await
        .map_err(failed)?;
    for text in [
        "insert into stepwell.task (id, uid, definition, state, live_n, started_at, finished_at, failed_n)
         select $1 + i, ('0198c0de-0000-7000-8000-' || lpad(to_hex($1 + i), 12, '0'))::uuid,
                ($3::int[])[case when i % 1000 = 0 then cardinality($3::int[])
                                 else 1 + i % greatest(cardinality($3::int[]) - 1, 1) end],
                case i % 100 when 7 then 1 else case i % 1000 when 8 then 4 else 3 end end,
                (i % 100 = 7)::int,
                case when i % 100 <> 7 then now() - ($2 - i) * interval '1 s' + interval '1 s' end,
                case when i % 100 <> 7 then now() - ($2 - i) * interval '1 s' + interval '5 s' end, (i % 1000 = 8)::int
           from generate_series(1, $2) i",
        "insert into stepwell.task_detail (task, hash, context, initiator, source_system, reason, tags, annotations,
                                           created_at, first_position, correlation_id)
         select $1 + i, '', '{\"amount\": 7}', 'user-' || i % 100, 'shop', 'unknown',
                case when i % 10 = 0 then array['tenth', 'lot-' || i / 1000] else '{}' end,
                case when i % 10 = 0 then jsonb_build_object('team', 'payments', 'order', i::text) else '{}' end,
                now() - ($2 - i) * interval '1 s', 0, 'order-' || i / 3
           from generate_series(1, $2) i where $3::int[] is not null",
        "insert into stepwell.task_tag
         select tag, $1 + i from generate_series(10, $2, 10) i, unnest(array['tenth', 'lot-' || i / 1000]) tag
          where $3::int[] is not null",
        "insert into stepwell.task_annotation
         select key, value, task from stepwell.task_detail, jsonb_each_text(annotations)
          where task > $1 and task <= $1 + $2 and $3::int[] is not null",
        "insert into stepwell.step (key, state, waiting_on, max_attempts, queue, children)
         select t.id * 16384 + p.no, t.state, case t.state when 1 then p.waiting_on else 0 end, p.max_attempts, p.queue, p.children
           from stepwell.task t join stepwell.step_template p on p.definition = t.definition
          where t.id > $1 and t.id <= $1 + $2 and $3::int[] is not null",
    ] {
        sqlx::query(text)
            .bind(first)
            .bind(i64::from(tasks))
            .bind(&definitions)
            .execute(&mut *filling)
            .await
            .map_err(failed)?;
    }
    filling.commit().await.map_err(failed)?;
    // What is known of tables, and which rows everybody sees, is as in one that has been in use.
    sqlx::raw_sql("vacuum analyze").execute(&mut connection).await.map_err(failed)?;
    Ok(())
}
