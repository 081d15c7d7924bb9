//! A Postgres of our own: as root and as anybody, with data that goes and data that stays.

use nix::unistd::geteuid;
use sqlx::{Connection, Executor, PgConnection};
use stepwell_suite::{Error, Guard, Postgres, PostgresOptions};

use crate::{Test, block_on, traces::Ground};

pub(crate) const TESTS: &[Test] = &[
    ("a_postgres_answers_and_goes", a_postgres_answers_and_goes),
    ("it_runs_for_a_user_without_rights", it_runs_for_a_user_without_rights),
    ("without_programs_the_fix_is_named", without_programs_the_fix_is_named),
    ("the_environment_leads_to_no_other_postgres", the_environment_leads_to_no_other_postgres),
    ("data_that_stays_is_there_again", data_that_stays_is_there_again),
    ("data_has_one_postgres_at_a_time", data_has_one_postgres_at_a_time),
    ("data_that_was_cut_short_is_made_anew", data_that_was_cut_short_is_made_anew),
    ("a_setting_that_is_wrong_is_shown", a_setting_that_is_wrong_is_shown),
];

/// It does what a Postgres does.
pub(crate) async fn answers(postgres: &Postgres) {
    postgres.create_database("of_test", None).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url("of_test")).await.unwrap();
    let one: i32 = sqlx::query_scalar("select 1").fetch_one(&mut connection).await.unwrap();
    assert_eq!(one, 1);
    let encoding: String =
        sqlx::query_scalar("show server_encoding").fetch_one(&mut connection).await.unwrap();
    assert_eq!(encoding, "UTF8");
    let reached: String =
        sqlx::query_scalar("show listen_addresses").fetch_one(&mut connection).await.unwrap();
    assert_eq!(reached, "", "by its socket only");
    let port: String = sqlx::query_scalar("show port").fetch_one(&mut connection).await.unwrap();
    assert_eq!(port, "5432", "as its URL says, to whoever has another environment");
}

fn guard() -> Guard {
    Guard::start(&std::env::current_exe().unwrap()).unwrap()
}

fn staying(ground: &Ground) -> PostgresOptions {
    let data_dir = Some(ground.path().join("data/of the user"));
    PostgresOptions { data_dir, fsync: false, ..PostgresOptions::default() }
}

fn a_postgres_answers_and_goes() {
    block_on(async {
        let guard = guard();
        let postgres = Postgres::start(&guard, &PostgresOptions::default()).await.unwrap();
        answers(&postgres).await;
        let folder = postgres.log_path().parent().unwrap().to_owned();
        let process = postgres.process().clone();
        guard.stop().await.unwrap();
        assert_eq!(process.ended().unwrap().code, Some(0), "it was stopped in peace");
        assert!(!folder.exists());
    });
}

fn it_runs_for_a_user_without_rights() {
    if !geteuid().is_root() {
        println!("  the other tests run as one already");
        return;
    }
    let ground = Ground::new();
    let parent = ground.command(&["answer"]);
    let mut as_nobody = std::process::Command::new("setpriv");
    as_nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
    as_nobody.arg(parent.get_program()).args(parent.get_args()).env("TMPDIR", ground.path());
    match as_nobody.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("  not tested: this machine has no setpriv");
        }
        done => {
            let done = done.unwrap();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            if said.contains("failed to execute") {
                println!("  not tested: nobody may not run this program: {said}");
                return;
            }
            assert!(done.status.success(), "{said}");
        }
    }
    ground.is_left_clean();
}

fn without_programs_the_fix_is_named() {
    let ground = Ground::new();
    let done = ground.command(&["answer"]).env("STEPWELL_PG_BIN", "/nowhere").output().unwrap();
    assert!(!done.status.success());
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.starts_with("error: STEPWELL_PG_BIN is /nowhere, which has no"), "{said}");
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    ground.is_left_clean();
}

/// What a user has set for another Postgres.
fn the_environment_leads_to_no_other_postgres() {
    let ground = Ground::new();
    let mut parent = ground.command(&["answer"]);
    parent.envs([("PGHOST", "/nowhere"), ("PGUSER", "nobody"), ("PGDATABASE", "none")]);
    parent.envs([("PGPORT", "6000"), ("PGSSLMODE", "require"), ("PGDATA", "/nowhere")]);
    let done = parent.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    ground.is_left_clean();
}

fn data_that_stays_is_there_again() {
    let ground = Ground::new();
    block_on(async {
        for again in [false, true] {
            let guard = guard();
            let postgres = Postgres::start(&guard, &staying(&ground)).await.unwrap();
            let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
            if again {
                connection.execute("select from kept").await.unwrap();
            } else {
                connection.execute("create table kept ()").await.unwrap();
            }
            guard.stop().await.unwrap();
        }
    });
    let beside = std::fs::read_dir(ground.path().join("data")).unwrap().count();
    assert_eq!(beside, 1, "nothing is left of how it was made");
}

fn data_has_one_postgres_at_a_time() {
    let ground = Ground::new();
    block_on(async {
        let (first, second) = (guard(), guard());
        let postgres = Postgres::start(&first, &staying(&ground)).await.unwrap();
        let Err(refused) = Postgres::start(&second, &staying(&ground)).await else {
            panic!("two at once")
        };
        let refused = refused.to_string();
        assert!(refused.contains("another Postgres runs on"), "{refused}");
        second.stop().await.unwrap();
        answers(&postgres).await;
        // What one left that was killed is in nobody's way.
        postgres.process().kill(nix::sys::signal::Signal::SIGKILL).await.unwrap();
        postgres.process().wait().await;
        first.stop().await.unwrap();
        let third = guard();
        let postgres = started(&third, &ground).await;
        let mut connection = PgConnection::connect(&postgres.url("of_test")).await.unwrap();
        connection.execute("select 1").await.unwrap();
        third.stop().await.unwrap();
    });
}

/// Those of a Postgres that was killed see that in a moment, and refuse another one until then.
async fn started(guard: &Guard, ground: &Ground) -> Postgres {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match Postgres::start(guard, &staying(ground)).await {
            Ok(postgres) => return postgres,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    }
}

fn data_that_was_cut_short_is_made_anew() {
    let ground = Ground::new();
    let data = ground.path().join("data");
    let mut parent = ground.parent(&["stay", data.join("of the user").to_str().unwrap()]);
    // Killed while initdb is at work.
    while !std::fs::read_dir(&data).is_ok_and(|mut made| made.next().is_some()) {
        assert!(parent.try_wait().unwrap().is_none(), "it does not end");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read_dir(&data).unwrap().next().is_some() {
        assert!(std::time::Instant::now() < deadline, "the guard removes what was begun");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    block_on(async {
        let guard = guard();
        answers(&Postgres::start(&guard, &staying(&ground)).await.unwrap()).await;
        guard.stop().await.unwrap();
    });
}

fn a_setting_that_is_wrong_is_shown() {
    block_on(async {
        let guard = guard();
        let settings = vec![("no_such_setting".to_owned(), "on".to_owned())];
        let options = PostgresOptions { settings, ..PostgresOptions::default() };
        let Err(Error::Failed(refused)) = Postgres::start(&guard, &options).await else {
            panic!("it cannot start")
        };
        assert!(refused.contains("no_such_setting"), "the end of its log: {refused}");
        guard.stop().await.unwrap();
    });
}
