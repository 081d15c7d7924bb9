//! `stepwell demo`: the whole thing once, end to end. A suite of its own, the example's servers and
//! executors as processes, a few hundred orders, progress from the event stream, and a judgement on
//! every order by what its line in the file says must become of it.

mod follow;
mod judge;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use stepwell_client::{Client, Start, Subscription, v1::CreateTaskRequest};
use stepwell_examples::checkout::{self, Line};
use stepwell_proto::v1::BatchCreateTasksRequest;
use stepwell_suite::{Process, Signal, Suite, SuiteOptions};
use uuid::Uuid;

use crate::{
    connect::client_of,
    example::{self, told_to_stop},
    fault::Fault,
    output,
};

const CREATE_AT_ONCE: usize = 50;
const ENDS_WITHIN: Duration = Duration::from_secs(300);

/// `stepwell demo`
#[derive(Args)]
pub(crate) struct Demo {
    /// Orders to check out, one JSON object a line; the shipped ones unless given.
    #[arg(long)]
    orders: Option<PathBuf>,
    /// Executors, each a process. 1 to 16.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    executors: u8,
    /// Steps that each executor runs at once. 1 to 1,000.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    slots: u16,
    /// Print every event as a JSON line to this file.
    #[arg(long)]
    events: Option<PathBuf>,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let lines = self.lines()?;
        tokio::select! {
            ended = self.check_out(lines) => ended,
            () = told_to_stop() => Ok(ExitCode::from(130)),
        }
    }

    fn lines(&self) -> Result<Vec<Line>, Fault> {
        let Some(file) = &self.orders else {
            return checkout::read(checkout::ORDERS).map_err(Fault::new);
        };
        let shown = file.display();
        let text = std::fs::read_to_string(file).map_err(|error| {
            Fault::usage(format!("cannot read {shown}")).because(error.to_string())
        })?;
        let lines = checkout::read(&text)
            .map_err(|why| Fault::usage(format!("{shown} is not a file of orders")).because(why))?;
        if lines.is_empty() {
            return Err(Fault::usage(format!("{shown} has no orders")));
        }
        Ok(lines)
    }

    async fn check_out(&self, lines: Vec<Line>) -> Result<ExitCode, Fault> {
        output::note("starting Postgres and the three services");
        let suite = Suite::start(SuiteOptions::new(std::env::current_exe()?)).await?;
        let client = client_of(&suite)?;
        client.register_yaml(checkout::DEFINITION).await?;
        let executors = self.start_executors(&suite).await?;

        // The subscriber is there before the first task, so nothing is missed.
        let all = Subscription::new().names(["*"]).from(Start::Latest);
        let feed = client.subscribe(all).await?;
        let tasks: Vec<(String, Line)> =
            lines.into_iter().map(|line| (Uuid::now_v7().to_string(), line)).collect();
        let mut follower = follow::Follower::new(tasks.len(), self.events.as_deref())?;
        let creating = create(&client, &tasks);
        let following = tokio::time::timeout(ENDS_WITHIN, follower.follow(feed));
        let (created, followed) = tokio::join!(creating, following);
        created?;
        let late = || Fault::new(format!("not all tasks ended within {ENDS_WITHIN:?}"));
        followed.map_err(|_| late())??;

        let differences = judge::judge(&client, &tasks).await?;
        let hand_overs = hand_overs(&suite, &executors).await?;
        output::line(follower.report().table(&tasks, &hand_overs))?;
        suite.stop().await?;
        if differences.is_empty() {
            output::line(format!(
                "all {} orders ended as their input says they must",
                tasks.len()
            ))?;
            output::note("other examples, whose parts `stepwell example` runs:");
            for other in example::others() {
                output::note(format!("  {other}"));
            }
            return Ok(ExitCode::SUCCESS);
        }
        for difference in differences.iter().take(20) {
            output::note(format!("  {difference}"));
        }
        Err(Fault::new(format!("{} orders ended otherwise than they must", differences.len())))
    }

    async fn start_executors(&self, suite: &Suite) -> Result<Vec<Process>, Fault> {
        let words =
            |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.to_owned()).collect() };
        let file = suite.folder().join("servers.address");
        let mut servers = words(&["example", "checkout", "servers", "--listen", "127.0.0.1:0"]);
        servers.extend(["--address-file".to_owned(), file.display().to_string()]);
        let process = suite.spawn("servers", servers).await?;
        let address = loop {
            if let Ok(address) = std::fs::read_to_string(&file) {
                break address;
            }
            if process.ended().is_some() {
                return Err(Fault::new("the example's servers did not start"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let mut executors = Vec::new();
        for n in 1..=self.executors {
            let hand_overs = hand_overs_file(suite, usize::from(n));
            let mut executor = words(&["example", "checkout", "executor"]);
            for (option, value) in [
                ("--name", format!("checkout-{n}")),
                ("--servers", address.clone()),
                ("--slots", self.slots.to_string()),
                ("--hand-overs", hand_overs.display().to_string()),
                ("--task-address", suite.addresses().task.join(",")),
                ("--step-address", suite.addresses().step.join(",")),
                ("--event-address", suite.addresses().event.join(",")),
            ] {
                executor.extend([option.to_owned(), value]);
            }
            executors.push(suite.spawn(&format!("executor-{n}"), executor).await?);
        }
        Ok(executors)
    }
}

fn hand_overs_file(suite: &Suite, n: usize) -> PathBuf {
    suite.folder().join(format!("executor-{n}.hand-overs"))
}

/// Stops the executors and asks them how long hand-overs took; sorted.
async fn hand_overs(suite: &Suite, executors: &[Process]) -> Result<Vec<Duration>, Fault> {
    let mut all = Vec::new();
    for (i, executor) in executors.iter().enumerate() {
        executor.kill(Signal::SIGTERM).await?;
        executor.wait().await;
        let text = std::fs::read_to_string(hand_overs_file(suite, i + 1))?;
        all.extend(text.lines().filter_map(|line| line.parse().ok()).map(Duration::from_micros));
    }
    all.sort_unstable();
    Ok(all)
}

async fn create(client: &Client, tasks: &[(String, Line)]) -> Result<(), Fault> {
    for some in tasks.chunks(CREATE_AT_ONCE) {
        let requests = some.iter().map(|(task_id, line)| {
            let context = serde_json::to_string(&line.order);
            let context = context.map_err(|error| Fault::new(error.to_string()))?;
            Ok(CreateTaskRequest {
                task_id: task_id.clone(),
                namespace: checkout::NAMESPACE.into(),
                definition_name: checkout::NAME.into(),
                context,
                initiator: "demo".into(),
                ..CreateTaskRequest::default()
            })
        });
        let requests = requests.collect::<Result<_, Fault>>()?;
        client.batch_create_tasks(BatchCreateTasksRequest { requests }).await?;
    }
    Ok(())
}
