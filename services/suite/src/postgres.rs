//! A private Postgres: made by initdb, reached by a unix socket only.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::Signal,
    unistd::{User, geteuid},
};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, timeout_at};

use crate::{
    Error, Guard, Process,
    binaries::binaries,
    folder,
    protocol::{Command, Kind},
};

const UP_WITHIN: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 30;
/// Names the socket; nothing listens on a port.
const PORT: u16 = 5432;

/// How it is set up.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Where its data is and stays; none: in a folder that goes with the guard.
    pub data_dir: Option<PathBuf>,
    /// False only where a crash of the machine is not what is tested: then nothing waits for the
    /// disk. What was committed survives a crash of Postgres either way.
    pub fsync: bool,
    /// Further settings, as in postgresql.conf; they override ours.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { data_dir: None, fsync: true, settings: Vec::new() }
    }
}

/// Where the data of a Postgres that stays is by default: in the user's folder for data, for root in
/// the system's, since Postgres runs as another user then.
pub fn default_data_dir() -> PathBuf {
    if geteuid().is_root() {
        return "/var/lib/stepwell/pg".into();
    }
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || set("HOME").map(|home| home.join(".local/share"));
    set("XDG_DATA_HOME").or_else(home).unwrap_or_else(std::env::temp_dir).join("stepwell/pg")
}

/// A running Postgres. It goes with its guard.
pub struct Postgres {
    socket: PathBuf,
    data: PathBuf,
    log: PathBuf,
    command: Command,
    process: Process,
}

impl Postgres {
    /// Finds, makes and starts it.
    pub async fn start(guard: &Guard, options: &PostgresOptions) -> Result<Self, Error> {
        let place =
            Place { guard, bin: binaries()?, owner: Owner::of_postgres()?, folder: PathBuf::new() };
        let place = Place { folder: guard.folder(None, place.owner.ids()).await?, ..place };
        let data = match &options.data_dir {
            None => place.init(&place.folder).await?,
            Some(data) => place.keep(data).await?,
        };
        let mut args = vec!["-D".to_owned(), data.display().to_string()];
        for (name, value) in settings(options, &place.folder) {
            args.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        let command = place.command("postgres", args, Kind::Postgres);
        let process = guard.spawn(command.clone()).await?;
        let (socket, log) = (place.folder.clone(), place.log());
        let postgres = Self { socket, data, log, command, process };
        postgres.up().await?;
        Ok(postgres)
    }

    /// Starts it again on the same data after its process has ended, however it ended. Answers once
    /// it takes connections.
    pub async fn restart(&mut self, guard: &Guard) -> Result<(), Error> {
        self.process.wait().await;
        let deadline = Instant::now() + UP_WITHIN;
        loop {
            self.process = guard.spawn(self.command.clone()).await?;
            match self.up().await {
                // After a SIGKILL its former children may take a moment to notice and go.
                Err(_) if self.process.ended().is_some() && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => return answer,
            }
        }
    }

    async fn up(&self) -> Result<(), Error> {
        let deadline = Instant::now() + UP_WITHIN;
        loop {
            let url = self.url("postgres");
            let failed = match timeout_at(deadline, PgConnection::connect(&url)).await {
                Ok(Ok(connection)) => {
                    connection.close().await.ok();
                    return Ok(());
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it does not answer".to_owned(),
            };
            if self.process.ended().is_some() || Instant::now() >= deadline {
                return Err(self.not_up(&failed));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn not_up(&self, failed: &str) -> Error {
        let log = tail(&self.log);
        if log.contains("\"postmaster.pid\" already exists") {
            return Error::Failed(format!(
                "another Postgres runs on {}: stop it (is Stepwell running in another terminal?), \
                 or use another folder",
                self.data.display()
            ));
        }
        Error::Failed(format!("Postgres did not start: {failed}\n{log}"))
    }

    /// Starts a standby that follows this one, in a folder of its own.
    pub async fn standby(&self, guard: &Guard) -> Result<Self, Error> {
        let place =
            Place { guard, bin: binaries()?, owner: Owner::of_postgres()?, folder: PathBuf::new() };
        let place = Place { folder: guard.folder(None, place.owner.ids()).await?, ..place };
        let data = place.folder.join("data");
        let args = ["-D", &data.display().to_string(), "-R", "-X", "stream", "-c", "fast", "-h"]
            .map(str::to_owned)
            .into_iter()
            .chain([self.socket.display().to_string()])
            .chain(["-p".to_owned(), PORT.to_string(), "-U".to_owned(), "stepwell".to_owned()]);
        let copy = place.command("pg_basebackup", args.collect(), Kind::Ordinary);
        if guard.spawn(copy).await?.wait().await.code != Some(0) {
            return Err(Error::Failed(format!("pg_basebackup failed:\n{}", tail(&place.log()))));
        }
        let mut args = vec!["-D".to_owned(), data.display().to_string()];
        for (name, value) in settings(&PostgresOptions::default(), &place.folder) {
            args.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        let command = place.command("postgres", args, Kind::Postgres);
        let process = guard.spawn(command.clone()).await?;
        let (socket, log) = (place.folder.clone(), place.log());
        let standby = Self { socket, data, log, command, process };
        standby.up().await?;
        Ok(standby)
    }

    /// The file of the socket that it is reached by.
    pub fn socket(&self) -> PathBuf {
        self.socket.join(format!(".s.PGSQL.{PORT}"))
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        let host = percent_encoded(&self.socket.display().to_string());
        // What is not said here is taken from the environment: PGPORT, PGSSLMODE.
        format!("postgres://stepwell@localhost:{PORT}/{database}?host={host}&sslmode=disable")
    }

    /// Makes a database, empty or a copy of another.
    pub async fn create_database(&self, name: &str, template: Option<&str>) -> Result<(), Error> {
        create_database(&self.url("postgres"), name, template).await
    }

    /// The process, to hold or kill it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The file with its log. It goes with the guard.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Stops it: open transactions are rolled back, what is committed is written.
    pub async fn stop(self) -> Result<(), Error> {
        if self.process.ended().is_none() {
            self.process.kill(Signal::SIGINT).await?;
        }
        self.process.wait().await;
        Ok(())
    }
}

fn settings(options: &PostgresOptions, socket: &Path) -> Vec<(String, String)> {
    let fsync = if options.fsync { "on" } else { "off" };
    let ours = [
        ("listen_addresses", ""),
        ("port", &PORT.to_string()),
        ("unix_socket_directories", &socket.display().to_string()),
        ("max_connections", "200"),
        ("shared_buffers", "256MB"),
        ("max_wal_size", "4GB"),
        ("min_wal_size", "1GB"),
        ("autovacuum_naptime", "5s"),
        ("jit", "off"),
        ("fsync", fsync),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    ours.into_iter().chain(options.settings.iter().cloned()).collect()
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
    connection.close().await.map_err(failed)
}

/// As whom Postgres runs: it refuses to run as root.
struct Owner(Option<User>);

impl Owner {
    fn of_postgres() -> Result<Self, Error> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        let found = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok()?);
        found.map(|user| Self(Some(user))).ok_or_else(|| {
            Error::Missing(
                "Postgres refuses to run as root, and this machine has neither a user `postgres` \
                 nor `nobody`: run as another user"
                    .into(),
            )
        })
    }

    fn ids(&self) -> Option<(u32, u32)> {
        self.0.as_ref().map(|user| (user.uid.as_raw(), user.gid.as_raw()))
    }
}

/// What it takes to run a program of Postgres.
struct Place<'a> {
    guard: &'a Guard,
    bin: PathBuf,
    owner: Owner,
    folder: PathBuf,
}

impl Place<'_> {
    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn command(&self, program: &str, args: Vec<String>, kind: Kind) -> Command {
        let (log, user) = (Some(self.log()), self.owner.ids());
        Command { log, user, kind, ..Command::new(self.bin.join(program)).args(args) }
    }

    /// Makes the data in a folder.
    async fn init(&self, within: &Path) -> Result<PathBuf, Error> {
        let data = within.join("data");
        // Not every system has the first.
        for locale in ["C.UTF-8", "C"] {
            let args = [
                "-D".to_owned(),
                data.display().to_string(),
                format!("--locale={locale}"),
                "--encoding=UTF8".to_owned(),
                "--auth=trust".to_owned(),
                "--username=stepwell".to_owned(),
            ];
            let init = self.command("initdb", args.into(), Kind::Ordinary);
            if self.guard.spawn(init).await?.wait().await.code == Some(0) {
                return Ok(data);
            }
        }
        Err(Error::Failed(format!("initdb failed:\n{}", tail(&self.log()))))
    }

    /// Data that stays. It is made beside its place and moved there whole, so that what was cut
    /// short never stays.
    async fn keep(&self, data: &Path) -> Result<PathBuf, Error> {
        let refused = |error| Error::Io(format!("cannot use {}", data.display()), error);
        let data = std::path::absolute(data).map_err(refused)?;
        let parent = data.parent().unwrap_or(&data).to_owned();
        std::fs::create_dir_all(&parent).map_err(refused)?;
        if let Owner(Some(user)) = &self.owner
            && !folder::is_open(&parent)
        {
            return Err(Error::Failed(format!(
                "Postgres refuses to run as root, and {} is closed to the user `{}` that it runs \
                 as: run as another user, or use another folder",
                parent.display(),
                user.name
            )));
        }
        if data.join("PG_VERSION").exists() {
            return Ok(data);
        }
        let made = self.guard.folder(Some(&parent), self.owner.ids()).await?;
        let made = self.init(&made).await?;
        // Over an empty folder too, but not over one that is not.
        std::fs::rename(&made, &data).map_err(refused)?;
        Ok(data)
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("a string takes it"),
        }
        encoded
    })
}
