//! What tests need: the program they test, built; and a database of their own in a Postgres that
//! all tests of a process share.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tokio::sync::OnceCell;

use crate::{Error, Guard, Postgres, PostgresOptions, postgres::create_database};

/// A database of one test. It goes with the test process.
#[derive(Clone, Debug)]
pub struct TestDatabase {
    /// Where it is.
    pub url: String,
}

struct Cluster {
    /// Its standard input stays open as long as this process lives.
    _guard: Guard,
    postgres: Postgres,
}

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
const TEMPLATE: &str = "stepwell_template";

/// A migrated database that nobody else uses.
pub async fn test_database() -> Result<TestDatabase, Error> {
    let cluster = CLUSTER.get_or_try_init(start).await?;
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    create_database(&cluster.postgres.url("postgres"), &name, Some(TEMPLATE)).await?;
    Ok(TestDatabase { url: cluster.postgres.url(&name) })
}

async fn start() -> Result<Cluster, Error> {
    let guard = Guard::start(&built_stepwell()?)?;
    let options = PostgresOptions { fsync: false, ..PostgresOptions::default() };
    let postgres = Postgres::start(&guard, &options).await?;
    postgres.create_database(TEMPLATE, None).await?;
    stepwell_store::migrate(&postgres.url(TEMPLATE)).await?;
    Ok(Cluster { _guard: guard, postgres })
}

/// The `stepwell` program in the profile of the running test, built if it is not: testing a package
/// does not build the programs of others. It can be told to die at points.
pub fn built_stepwell() -> Result<PathBuf, Error> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build(&["--features", "failpoints"])).clone().map_err(Error::Failed)
}

fn build(features: &[&str]) -> Result<PathBuf, String> {
    // <target>/<profile>/deps/<test>
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let profile = test.parent().and_then(Path::parent).ok_or("the test has no target folder")?;
    let target = profile.parent().ok_or("the test has no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut build = Command::new(cargo);
    // Cargo's own lock keeps tests that run side by side apart.
    build.args(["build", "--quiet", "--package", "stepwell-cli"]).args(features);
    build.arg("--target-dir").arg(target);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package would be taken for a changed environment by the build
    // scripts of others, and half the workspace would be built anew.
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| told.starts_with(p)) {
            build.env_remove(name);
        }
    }
    if profile.file_name().is_some_and(|name| name == "release") {
        build.arg("--release");
    }
    let built = build.output().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        return Err(format!("`stepwell` cannot be built:\n{said}"));
    }
    Ok(profile.join("stepwell"))
}
