//! The CHECK on the log against the catalog.

use stepwell_tests::Rows;

#[tokio::test]
async fn the_log_takes_exactly_the_transitions_of_the_catalog() {
    let rows = Rows::new().await;
    let mut connection = rows.connection().await;
    // Custom events, of a step or a task, stay in whatever state that is in.
    let custom = "select n, e, s, s from (values (100, 'step'), (101, 'task')) x(n, e), generate_series(1, 6) s";
    let legal = format!("{} union all {custom}", stepwell_proto::EDGES);
    let tried = "
        do $$
        declare x record;
        begin
          for x in
            select n, e, f, t from generate_series(0, 110) n, unnest('{task,step}'::text[]) e,
                   unnest('{null,0,1,2,3,4,5,6,7}'::smallint[]) f, unnest('{0,1,2,3,4,5,6,7}'::smallint[]) t
          loop
            begin
              insert into stepwell.event (position, batch, at, task, uid, definition, no, type, from_state, to_state)
              values (0, 0, now(), 1, gen_random_uuid(), 1, case x.e when 'step' then 0 end, x.n, x.f, x.t);
              delete from stepwell.event;
              insert into allowed values (x.n, x.e, x.f, x.t);
            exception when check_violation then null;
            end;
          end loop;
        end $$";
    sqlx::raw_sql("create temp table allowed (n smallint, e text, f smallint, t smallint)")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::raw_sql(tried).execute(&mut connection).await.unwrap();
    let differences: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "with legal (n, e, f, t) as ({legal}),
              l as (select n::smallint, e, f::smallint, t::smallint from legal)
         select 'refused: ' || x::text from (select * from l except select * from allowed) x
         union all
         select 'allowed: ' || x::text from (select * from allowed except select * from l) x"
    )))
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(differences, Vec::<String>::new());
}
