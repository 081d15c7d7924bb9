//! A live system gets a newer schema: nobody is held up, and what the verbs of an earlier release do meanwhile is not
//! lost.

use std::{borrow::Cow, path::Path, time::Duration};

use sqlx::{Connection, PgConnection, migrate::Migrator};
use stepwell_store::migrate;
use stepwell_tests::{Rows, check};

use super::races::{hold_log, release};

/// Before there were rows of tags.
const EARLIER: i64 = 19;

/// What verbs of the earlier release do to tasks and their tags, with a latch wherever one may stand when another
/// release comes.
const EARLIER_VERBS: &str = "
    insert into stepwell.definition (namespace, name, version, hash, content, roots) values ('n', 'd', '{1,0,0}', '', '', 1);
    create function stepwell.earlier_create(p_first int, p_second int, p_id bigint, p_tags text[]) returns void
      language plpgsql as $$
    begin
      perform pg_advisory_xact_lock(p_first);
      insert into stepwell.task (id, uid, definition, state, live_n) values (p_id, gen_random_uuid(), 1, 1, 1);
      perform pg_advisory_xact_lock(p_second);
      insert into stepwell.task_detail (task, hash, context, initiator, source_system, reason, tags, created_at, first_position)
      values (p_id, '', '', '', '', '', p_tags, clock_timestamp(), 1);
    end $$;
    create function stepwell.earlier_update(p_first int, p_id bigint, p_tags text[]) returns void language plpgsql as $$
    begin
      perform pg_advisory_xact_lock(p_first);
      perform from stepwell.task where id = p_id for no key update;
      update stepwell.task_detail set tags = p_tags where task = p_id;
    end $$;";

/// Leaves a database as the earlier release has it.
async fn earlier(rows: &Rows) -> PgConnection {
    let mut connection = rows.connection().await;
    let nothing = "drop schema stepwell cascade; drop table public.stepwell_migration";
    sqlx::raw_sql(nothing).execute(&mut connection).await.unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("migrations");
    let all = Migrator::new(folder).await.unwrap();
    let there: Vec<_> = all.iter().filter(|it| it.version <= EARLIER).cloned().collect();
    assert_eq!(there.last().unwrap().version, EARLIER);
    let mut migrator = Migrator { migrations: Cow::Owned(there), ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name("public.stepwell_migration");
    migrator.run(&mut connection).await.unwrap();
    sqlx::raw_sql(EARLIER_VERBS).execute(&mut connection).await.unwrap();
    connection
}

/// Calls a verb, on a connection of its own.
fn call(url: &str, verb: String) -> tokio::task::JoinHandle<()> {
    let url = url.to_owned();
    tokio::spawn(async move {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let call = sqlx::AssertSqlSafe(format!("select stepwell.{verb}"));
        sqlx::raw_sql(call).execute(&mut connection).await.unwrap();
    })
}

/// The tasks that a tag finds, by key.
async fn tagged(connection: &mut PgConnection, tag: &str) -> Vec<i64> {
    let sql = "select array(select unnest(m_task) order by 1) from
               stepwell.match_tasks(json_build_object('tags', array[$1]), 1, null, null, 10000, 10000, 0, null)";
    sqlx::query_scalar(sql).bind(tag).fetch_one(connection).await.unwrap()
}

async fn indexes(rows: &Rows) -> Vec<String> {
    let mut connection = rows.connection().await;
    sqlx::query_scalar(
        "select pg_get_indexdef(indexrelid) from pg_index
          where indrelid in ('stepwell.task'::regclass, 'stepwell.task_detail'::regclass) and indisvalid order by 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn tasks_made_and_changed_while_a_live_system_is_upgraded_are_found_by_their_tags() {
    let rows = Rows::new().await;
    let wanted = indexes(&rows).await;
    let mut connection = earlier(&rows).await;
    let url = rows.database.url.as_str();
    let many = "insert into stepwell.task (id, uid, definition, state, live_n)
                select n, gen_random_uuid(), 1, 1, 1 from generate_series(100, 3099) n;
                insert into stepwell.task_detail (task, hash, context, initiator, source_system, reason, tags, created_at, first_position)
                select n, '', '', '', '', '', case when n % 3 > 0 then '{many}'::text[] else '{}' end, now(), 1
                  from generate_series(100, 3099) n;
                select stepwell.earlier_create(1, 1, 1, '{a,a,b}');
                select stepwell.earlier_create(1, 1, 5, '{a}');";
    sqlx::raw_sql(many).execute(&mut connection).await.unwrap();

    // One verb has begun and touched nothing, one has made its task, one has changed another, and one has done all but
    // to commit.
    let mut latch = rows.connection().await;
    let hold = "begin; select pg_advisory_xact_lock(76), pg_advisory_xact_lock(77)";
    sqlx::raw_sql(hold).execute(&mut latch).await.unwrap();
    let mut open = rows.connection().await;
    let done = "begin; select stepwell.earlier_create(2, 2, 2, '{a}')";
    sqlx::raw_sql(done).execute(&mut open).await.unwrap();
    let verbs = [
        call(url, "earlier_create(76, 3, 3, '{a}')".into()),
        call(url, "earlier_create(4, 77, 4, '{a}')".into()),
        call(url, "earlier_update(76, 5, '{c}')".into()),
    ];
    rows.in_line(3).await;
    let written = "select count(*) from stepwell.task_tag where task > $1";
    let meanwhile = async {
        rows.in_line(4).await;
        sqlx::raw_sql("commit").execute(&mut open).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let replaced = "select to_regproc('stepwell.fill_tags') is not null";
        while !sqlx::query_scalar::<_, bool>(replaced).fetch_one(&mut connection).await.unwrap() {
            assert!(tokio::time::Instant::now() < deadline, "the verbs are not replaced");
            tokio::task::yield_now().await;
        }
        rows.in_line(4).await;
        // The new verbs find what there is, though no tag has rows yet.
        assert_eq!(rows.one::<i64>(written, 0).await, 0);
        assert_eq!(tagged(&mut connection, "a").await, [1, 2, 5]);
        assert_eq!(tagged(&mut connection, "many").await.len(), 2_000);
        release(latch).await;
        for verb in verbs {
            verb.await.unwrap();
        }
    };
    let (upgraded, ()) = tokio::join!(migrate(url), meanwhile);
    upgraded.unwrap();

    let tags = "select string_agg(task || tag, ' ' order by task, tag) from stepwell.task_tag where task < $1";
    assert_eq!(rows.one::<String>(tags, 100).await, "1a 1b 2a 3a 4a 5c");
    assert_eq!(rows.one::<i64>(written, 99).await, 2_000);
    let left = "select count(*) from stepwell.task_untagged where place > $1";
    assert_eq!(rows.one::<i64>(left, -1).await, 0, "tags lead from now on");
    for (tag, found) in [("a", vec![1, 2, 3, 4]), ("c", vec![5])] {
        assert_eq!(tagged(&mut connection, tag).await, found);
    }
    assert_eq!(indexes(&rows).await, wanted);
}

#[tokio::test]
async fn rows_of_tags_are_written_task_by_task_beside_those_who_change_tags_and_go_on_where_they_were_cut_off()
 {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut tasks: Vec<_> = (0..6).map(|_| stepwell_tests::new_task(&definition)).collect();
    tasks.iter_mut().step_by(2).for_each(|task| task.tags = vec!["old".into(), "x".into()]);
    rows.writer().await.create_tasks(&rows.store, &mut tasks).await.unwrap();
    let keys: Vec<i64> = tasks.iter().map(|task| task.key.unwrap()).collect();
    let mut connection = rows.connection().await;
    let untagged = "delete from stepwell.task_tag; insert into stepwell.task_untagged values (9223372036854775807)";
    sqlx::raw_sql(untagged).execute(&mut connection).await.unwrap();
    let fill = "select stepwell.fill_tags(3) where $1 = 0";
    assert!(rows.one::<bool>(fill, 0).await);
    let written =
        "select array_agg(distinct task order by task) from stepwell.task_tag where task > $1";
    assert_eq!(rows.one::<Vec<i64>>(written, 0).await, [keys[4]], "the newest three");

    // A task whose tags are being changed is waited for.
    let change = "begin; select from stepwell.update_task($1, null, '{new}', null, '{}')";
    let change = change.replace("$1", &format!("'{}'", tasks[2].uid));
    sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut connection).await.unwrap();
    let (more, ()) = tokio::join!(
        async {
            let mut filling = rows.connection().await;
            let fill = "select stepwell.fill_tags(3)";
            sqlx::query_scalar::<_, bool>(fill).fetch_one(&mut filling).await.unwrap()
        },
        async {
            rows.in_line(1).await;
            sqlx::raw_sql("commit").execute(&mut connection).await.unwrap();
        },
    );
    assert!(more);
    migrate(&rows.database.url).await.unwrap();
    assert!(!rows.one::<bool>(fill, 0).await, "nothing is left");
    check(&mut connection).await;
}

#[tokio::test]
async fn indexes_that_are_missing_or_half_made_are_made_beside_those_who_write() {
    let rows = Rows::new().await;
    let wanted = indexes(&rows).await;
    let definition = rows.define("a").await;
    rows.create_many(&definition, 3).await;
    let mut connection = rows.connection().await;
    let cut_off = "drop index stepwell.task_created;
                   drop index stepwell.task_ended;
                   create index task_ended on stepwell.task (finished_at);
                   update pg_index set indisvalid = false where indexrelid = 'stepwell.task_ended'::regclass";
    sqlx::raw_sql(cut_off).execute(&mut connection).await.unwrap();
    assert_eq!(indexes(&rows).await.len(), wanted.len() - 2);
    // Somebody who writes is waited for, and holds up nobody else.
    let mut writes = rows.connection().await;
    let hold = "begin; lock table stepwell.task, stepwell.task_detail in row exclusive mode";
    sqlx::raw_sql(hold).execute(&mut writes).await.unwrap();
    let (migrated, ()) = tokio::join!(migrate(&rows.database.url), async {
        rows.in_line(1).await;
        assert_eq!(rows.create_many(&definition, 3).await.len(), 3);
        rows.in_line(1).await;
        release(writes).await;
    });
    migrated.unwrap();
    assert_eq!(indexes(&rows).await, wanted);
}

#[tokio::test]
async fn a_verb_that_runs_while_the_verbs_are_replaced_comes_to_its_end() {
    let rows = Rows::new().await;
    let definition = rows.define("a").await;
    let mut writer = rows.writer().await;
    let latch = hold_log(&rows).await;
    let (made, ()) = tokio::join!(rows.create_with(&mut writer, &definition, 2), async {
        rows.in_line(1).await;
        migrate(&rows.database.url).await.unwrap();
        release(latch).await;
    });
    assert_eq!(made.len(), 2);
    let leases = rows.claim(&mut writer, definition.queues[0], 10).await;
    assert_eq!(leases.len(), 2);
    check(&mut rows.connection().await).await;
}
