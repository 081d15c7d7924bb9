//! A private Postgres: found on the machine, made by initdb, reached by a unix socket only.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{User, geteuid};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::{Error, Guard, Process, protocol::Command};

const UP_WITHIN: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 15;

/// How it is set up.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Where its data is and stays; none: in a folder that goes with the guard.
    pub data_dir: Option<PathBuf>,
    /// False only where a crash of the machine is not what is tested: then commits do not wait for
    /// the disk.
    pub fsync: bool,
    /// Further settings, as in postgresql.conf.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { data_dir: None, fsync: true, settings: Vec::new() }
    }
}

/// A running Postgres.
pub struct Postgres {
    socket: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Postgres {
    /// Finds, makes and starts it.
    pub async fn start(guard: &Guard, options: &PostgresOptions) -> Result<Self, Error> {
        let bin = binaries()?;
        let user = unprivileged()?;
        let folder = guard.folder(user).await?;
        let log = folder.join("log");
        let data = match &options.data_dir {
            Some(data) => keep(data, user)?,
            None => folder.join("data"),
        };
        let command = |program: &str, args: Vec<String>, last: bool| Command {
            program: bin.join(program),
            args,
            env: Vec::new(),
            log: Some(log.clone()),
            user,
            last,
        };
        if !data.join("PG_VERSION").exists() {
            init(guard, &data, &command).await?;
        }
        let mut args = vec!["-D".to_owned(), data.display().to_string()];
        let set = [
            ("listen_addresses", ""),
            ("unix_socket_directories", &folder.display().to_string()),
            ("max_connections", "200"),
            ("shared_buffers", "256MB"),
            ("max_wal_size", "4GB"),
            ("min_wal_size", "1GB"),
            ("autovacuum_naptime", "5s"),
            ("jit", "off"),
            ("fsync", if options.fsync { "on" } else { "off" }),
            ("synchronous_commit", if options.fsync { "on" } else { "off" }),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (name, value) in set.into_iter().chain(options.settings.iter().cloned()) {
            args.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        let process = guard.spawn(command("postgres", args, true)).await?;
        let postgres = Self { socket: folder, log, process };
        postgres.up().await?;
        Ok(postgres)
    }

    async fn up(&self) -> Result<(), Error> {
        let deadline = Instant::now() + UP_WITHIN;
        loop {
            let failed = match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => {
                    // It answered: that was the question.
                    drop(connection);
                    return Ok(());
                }
                Err(error) => error.to_string(),
            };
            let ended = self.process.ended().is_some();
            if ended || Instant::now() > deadline {
                let log = tail(&self.log);
                return Err(Error::Failed(format!("Postgres did not start: {failed}\n{log}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        let host = self.socket.display().to_string().replace('/', "%2F");
        format!("postgres://stepwell@localhost/{database}?host={host}")
    }

    /// Makes a database, empty or a copy of another.
    pub async fn create_database(&self, name: &str, template: Option<&str>) -> Result<(), Error> {
        create_database(&self.url("postgres"), name, template).await
    }

    /// The process, to stop or kill it.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

pub(crate) async fn create_database(
    url: &str,
    name: &str,
    template: Option<&str>,
) -> Result<(), Error> {
    let failed = |error| Error::Database(format!("cannot create the database {name}"), error);
    let mut connection = PgConnection::connect(url).await.map_err(failed)?;
    let template = template.unwrap_or("template1");
    // Names are ours: letters, digits, underscores.
    let sql = sqlx::AssertSqlSafe(format!("create database {name} template {template}"));
    sqlx::raw_sql(sql).execute(&mut connection).await.map_err(failed)?;
    Ok(())
}

async fn init(
    guard: &Guard,
    data: &Path,
    command: &impl Fn(&str, Vec<String>, bool) -> Command,
) -> Result<(), Error> {
    let mut said = String::new();
    for locale in ["C.UTF-8", "C"] {
        let args = [
            "-D".to_owned(),
            data.display().to_string(),
            format!("--locale={locale}"),
            "--encoding=UTF8".to_owned(),
            "--auth=trust".to_owned(),
            "--username=stepwell".to_owned(),
        ];
        let command = command("initdb", args.to_vec(), false);
        let log = command.log.clone();
        let exit = guard.spawn(command).await?.wait().await;
        if exit.code == Some(0) {
            return Ok(());
        }
        said = log.map(|log| tail(&log)).unwrap_or_default();
    }
    Err(Error::Failed(format!("initdb failed:\n{said}")))
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Postgres refuses to run as root: then as whom.
fn unprivileged() -> Result<Option<(u32, u32)>, Error> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Ok(Some(user)) = User::from_name(name) {
            return Ok(Some((user.uid.as_raw(), user.gid.as_raw())));
        }
    }
    Err(Error::Missing(
        "Postgres refuses to run as root, and this machine has neither a user `postgres` nor \
         `nobody`: run as another user"
            .into(),
    ))
}

/// A folder that stays.
fn keep(data: &Path, user: Option<(u32, u32)>) -> Result<PathBuf, Error> {
    let refused = |error| Error::Io(format!("cannot use {}", data.display()), error);
    std::fs::create_dir_all(data).map_err(refused)?;
    let data = data.canonicalize().map_err(refused)?;
    if let Some((uid, gid)) = user {
        chown(&data, Some(uid), Some(gid)).map_err(refused)?;
    }
    Ok(data)
}

/// The folder with `initdb` and `postgres`.
fn binaries() -> Result<PathBuf, Error> {
    if let Some(given) = std::env::var_os("STEPWELL_PG_BIN") {
        let given = PathBuf::from(given);
        if complete(&given) {
            return Ok(given);
        }
        return Err(Error::Missing(format!(
            "STEPWELL_PG_BIN is {}, which has no `initdb` and `postgres`",
            given.display()
        )));
    }
    let mut versions = Vec::new();
    for place in ["/usr/lib/postgresql", "/usr/local/opt", "/opt/homebrew/opt", "/usr/pgsql"] {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            if let Ok(version) = digits.parse::<u32>() {
                versions.push((version, entry.path().join("bin")));
            }
        }
    }
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).collect::<Vec<_>>().into_iter();
    // What stands in its own folder first: programs on the PATH may be links out of it.
    let places = versions.into_iter().rev().map(|(_, bin)| bin).chain(on_path);
    places.into_iter().find(|bin| complete(bin)).ok_or_else(|| {
        Error::Missing(
            "no Postgres on this machine: install one (Debian: `apt-get install postgresql`), or \
             say where its programs are by STEPWELL_PG_BIN"
                .into(),
        )
    })
}

fn complete(bin: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| bin.join(program).is_file())
}
