//! The suite: a database and the three services over it, each a process of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use crate::{Error, Guard, Postgres, PostgresOptions, Process, postgres::tail, protocol::Command};

const UP_WITHIN: Duration = Duration::from_secs(60);

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// task-service.
    Task,
    /// step-service.
    Step,
    /// event-service.
    Event,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Task, Self::Step, Self::Event];

    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Step => "step",
            Self::Event => "event",
        }
    }
}

/// How many copies of each service.
#[derive(Clone, Copy, Debug)]
pub struct Nodes {
    /// Copies of task-service.
    pub task: usize,
    /// Copies of step-service.
    pub step: usize,
    /// Copies of event-service.
    pub event: usize,
}

/// Where the logs go.
#[derive(Clone, Debug)]
pub enum Logs {
    /// Into files in a folder that goes with the suite.
    Files,
    /// To our own standard error.
    Inherit,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct SuiteOptions {
    /// The `stepwell` program: it is the services and the guard too.
    pub executable: PathBuf,
    /// A database that is there; none: a private Postgres.
    pub database_url: Option<String>,
    /// Services that reach the same database by another URL.
    pub detours: Vec<(Kind, String)>,
    /// How the private Postgres is set up.
    pub postgres: PostgresOptions,
    /// How many copies.
    pub nodes: Nodes,
    /// Ports of the first task-, step- and event-service; none: free ones.
    pub ports: Option<[u16; 3]>,
    /// Where the services' logs go.
    pub logs: Logs,
    /// Further arguments for every service.
    pub args: Vec<String>,
    /// Further variables of every service's environment.
    pub env: Vec<(String, String)>,
}

impl SuiteOptions {
    /// One of each, over a Postgres that goes with the suite.
    pub fn new(executable: impl Into<PathBuf>) -> Self {
        Self {
            executable: executable.into(),
            database_url: None,
            detours: Vec::new(),
            postgres: PostgresOptions::default(),
            nodes: Nodes { task: 1, step: 1, event: 1 },
            ports: None,
            logs: Logs::Files,
            args: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// Where the services listen: `http://127.0.0.1:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Of task-services.
    pub task: Vec<String>,
    /// Of step-services.
    pub step: Vec<String>,
    /// Of event-services.
    pub event: Vec<String>,
}

struct Node {
    kind: Kind,
    index: usize,
    process: Process,
    address: String,
}

/// A running suite.
pub struct Suite {
    options: SuiteOptions,
    guard: Guard,
    postgres: Option<Postgres>,
    database_url: String,
    folder: PathBuf,
    nodes: Vec<Node>,
}

impl Suite {
    /// Starts everything; answers when all services are ready. If something does not start, all of
    /// it is undone first.
    pub async fn start(options: SuiteOptions) -> Result<Self, Error> {
        let guard = Guard::start(&options.executable)?;
        match Self::start_guarded(options, guard.clone()).await {
            Ok(suite) => Ok(suite),
            Err(error) => {
                guard.stop().await.ok();
                Err(error)
            }
        }
    }

    async fn start_guarded(options: SuiteOptions, guard: Guard) -> Result<Self, Error> {
        let folder = guard.folder(None, None).await?;
        let (postgres, database_url) = match &options.database_url {
            Some(url) => (None, url.clone()),
            None => {
                let postgres = Postgres::start(&guard, &options.postgres).await?;
                let url = postgres.url("stepwell");
                ensure_database(&postgres).await?;
                (Some(postgres), url)
            }
        };
        stepwell_store::migrate(&database_url).await?;
        let mut suite = Self { options, guard, postgres, database_url, folder, nodes: Vec::new() };
        let Nodes { task, step, event } = suite.options.nodes;
        let mut started = Vec::new();
        for (kind, n) in Kind::ALL.into_iter().zip([task, step, event]) {
            for index in 0..n {
                started.push((kind, index, suite.launch(kind, index, None).await?));
            }
        }
        for (kind, index, process) in started {
            let address = suite.ready(kind, index, &process).await?;
            suite.nodes.push(Node { kind, index, process, address });
        }
        Ok(suite)
    }

    fn file(&self, kind: Kind, index: usize, what: &str) -> PathBuf {
        self.folder.join(format!("{}-{index}.{what}", kind.word()))
    }

    async fn launch(
        &self,
        kind: Kind,
        index: usize,
        address: Option<&str>,
    ) -> Result<Process, Error> {
        let file = self.file(kind, index, "address");
        std::fs::remove_file(&file).ok();
        let place = Kind::ALL.iter().position(|k| *k == kind).unwrap_or(0);
        let port = self.options.ports.filter(|_| index == 0).map_or(0, |ports| ports[place]);
        let listen = address
            .and_then(|address| address.strip_prefix("http://"))
            .map_or_else(|| format!("127.0.0.1:{port}"), str::to_owned);
        let mut args = vec!["serve".to_owned(), kind.word().to_owned()];
        let detour = self.options.detours.iter().find(|(of, _)| *of == kind);
        let database_url = detour.map_or(&self.database_url, |(_, url)| url);
        for (name, value) in [
            ("--database-url", database_url.as_str()),
            ("--listen", &listen),
            ("--address-file", &file.display().to_string()),
        ] {
            args.extend([name.to_owned(), value.to_owned()]);
        }
        args.extend(self.options.args.iter().cloned());
        self.guard.spawn(self.command(args, self.log(kind, index))).await
    }

    fn log(&self, kind: Kind, index: usize) -> Option<PathBuf> {
        match self.options.logs {
            Logs::Files => Some(self.file(kind, index, "log")),
            Logs::Inherit => None,
        }
    }

    fn command(&self, args: Vec<String>, log: Option<PathBuf>) -> Command {
        let env = self.options.env.clone();
        Command { log, env, ..Command::new(&self.options.executable).args(args) }
    }

    /// Waits until a service answers that it is ready; its address.
    async fn ready(&self, kind: Kind, index: usize, process: &Process) -> Result<String, Error> {
        let deadline = Instant::now() + UP_WITHIN;
        let file = self.file(kind, index, "address");
        loop {
            if let Ok(address) = std::fs::read_to_string(&file)
                && is_ready(&address).await
            {
                return Ok(address);
            }
            if process.ended().is_some() || Instant::now() > deadline {
                let log = self.log(kind, index).map(|log| tail(&log)).unwrap_or_default();
                let word = kind.word();
                return Err(Error::Failed(format!("{word}-service did not start\n{log}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where the services listen.
    pub fn addresses(&self) -> Addresses {
        let of = |kind| {
            let nodes = self.nodes.iter().filter(move |n| n.kind == kind);
            nodes.map(|n| n.address.clone()).collect()
        };
        Addresses { task: of(Kind::Task), step: of(Kind::Step), event: of(Kind::Event) }
    }

    /// The database.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// The private Postgres, if it has one.
    pub fn postgres(&self) -> Option<&Postgres> {
        self.postgres.as_ref()
    }

    /// The process of a service.
    pub fn process(&self, kind: Kind, index: usize) -> Option<&Process> {
        self.nodes.iter().find(|n| n.kind == kind && n.index == index).map(|n| &n.process)
    }

    /// The log of a service, if it goes to a file.
    pub fn log_of(&self, kind: Kind, index: usize) -> String {
        let log = self.log(kind, index);
        log.and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default()
    }

    /// The last lines of each service's log, for whoever looks for what went wrong.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for node in &self.nodes {
            let (kind, index) = (node.kind, node.index);
            if let Some(log) = self.log(kind, index) {
                words.push_str(&format!("── {}-service {index}\n{}\n", kind.word(), tail(&log)));
            }
        }
        words
    }

    /// Waits until some service or the private Postgres ends; its name.
    pub fn any_ended(&self) -> impl Future<Output = String> + use<> {
        let mut watched: Vec<(String, Process)> = self
            .nodes
            .iter()
            .map(|n| (format!("{}-service", n.kind.word()), n.process.clone()))
            .collect();
        watched.extend(self.postgres.iter().map(|p| ("Postgres".to_owned(), p.process().clone())));
        async move {
            let (send, mut ended) = tokio::sync::mpsc::channel(1);
            for (name, process) in watched {
                let send = send.clone();
                tokio::spawn(async move {
                    process.wait().await;
                    // Only the first one counts.
                    let _ = send.try_send(name);
                });
            }
            ended.recv().await.unwrap_or_default()
        }
    }

    /// Starts a service again, on the same address, after its process has ended.
    pub async fn restart(&mut self, kind: Kind, index: usize) -> Result<(), Error> {
        let node = self.nodes.iter().position(|n| n.kind == kind && n.index == index);
        let node = node.ok_or_else(|| Error::Failed("there is no such service".into()))?;
        self.nodes[node].process.wait().await;
        let address = self.nodes[node].address.clone();
        let process = self.launch(kind, index, Some(&address)).await?;
        self.ready(kind, index, &process).await?;
        self.nodes[node].process = process;
        Ok(())
    }

    /// What services find in their environment when they are started from now on.
    pub fn set_env(&mut self, env: Vec<(String, String)>) {
        self.options.env = env;
    }

    /// Starts the private Postgres again, on the same data, after its process has ended. Answers
    /// once it takes connections.
    pub async fn restart_postgres(&mut self) -> Result<(), Error> {
        match &mut self.postgres {
            Some(postgres) => postgres.restart(&self.guard).await,
            None => Err(Error::Failed("the suite has no Postgres of its own".into())),
        }
    }

    /// Starts a further process of our program, such as an executor. Its output goes to a file in
    /// the suite's folder, or where ours goes.
    pub async fn spawn(&self, name: &str, args: Vec<String>) -> Result<Process, Error> {
        let log = match self.options.logs {
            Logs::Files => Some(self.folder.join(format!("{name}.log"))),
            Logs::Inherit => None,
        };
        self.guard.spawn(self.command(args, log)).await
    }

    /// The guard, to start programs other than ours.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// A folder that goes with the suite: logs, and whatever else is needed meanwhile.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stops everything and waits for it.
    pub async fn stop(self) -> Result<(), Error> {
        self.guard.stop().await
    }
}

async fn ensure_database(postgres: &Postgres) -> Result<(), Error> {
    match postgres.create_database("stepwell", None).await {
        // There already, in a Postgres whose data stays.
        Err(Error::Database(_, sqlx::Error::Database(e)))
            if e.code().as_deref() == Some("42P04") =>
        {
            Ok(())
        }
        answer => answer,
    }
}

async fn is_ready(address: &str) -> bool {
    let Some(host) = address.strip_prefix("http://") else { return false };
    let asked = async {
        let mut stream = TcpStream::connect(host).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), asked).await, Ok(Ok(true)))
}
