//! `stepwell bench`: tasks through a whole suite, executors and subscribers as processes of their
//! own, everything over gRPC; what it took, what it cost, and whether everything was done that was
//! asked for.

mod compare;
mod feed;
mod ground;
mod lateness;
mod load;
mod page;
mod read;
mod report;
mod shape;
mod watch;
mod worker;

use std::{
    collections::HashMap,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{Args, Subcommand};
use serde::Serialize;
use stepwell_client::{CancellationToken, Client};
use stepwell_suite::{Counters, Signal, StatementCount};
use tokio::time::Instant;

pub(crate) use self::worker::{ExecutorProcess, SubscriberProcess};
use self::{
    ground::{Ground, Own},
    load::{Load, Pace},
    report::{Oversupply, Report, Second},
    shape::Shape,
    watch::{Look, Watch},
};
use crate::{
    example::told_to_stop,
    fault::Fault,
    output::{self, Format},
};

/// The namespace of all that a benchmark makes.
const NAMESPACE: &str = "bench";
const ENDS_WITHIN: Duration = Duration::from_secs(300);
/// In the oversupply, so many times the tasks that were done before.
const OVERSUPPLY: f64 = 1.5;

/// Measures, unless it is told to stop, and prints what it came to.
async fn tell<R: Serialize>(
    measure: impl Future<Output = Result<R, Fault>>,
    format: Format,
    table: fn(&R) -> output::Table,
) -> Result<ExitCode, Fault> {
    let report = tokio::select! {
        report = measure => report?,
        () = told_to_stop() => return Ok(ExitCode::from(130)),
    };
    format.report(&report, || output::text(&table(&report)))?;
    Ok(ExitCode::SUCCESS)
}

/// `stepwell bench`
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Run two builds or settings in turns, and say how they compare.
    Compare(compare::Compare),
    /// Measure how late retries and time-outs come, at low load.
    Lateness(lateness::Lateness),
    /// Measure what the feed costs when many follow it, and when nothing happens.
    Feed(feed::Feed),
    /// Measure what reads take among many tasks.
    Read(read::Read),
}

/// One run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Run {
    /// What a task looks like: one, linear3, fan10 (1, 10 at once, 1), diamond, random, chain:N or
    /// fan:N.
    #[arg(long, default_value = "linear3")]
    shape: Shape,
    /// Tasks under way at all times. 1 to 100,000.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// Create so many tasks a second instead, however long they take. Times then count from when a
    /// task was due.
    #[arg(long, conflicts_with = "in_flight", allow_negative_numbers = true, value_parser = positive)]
    rate: Option<f64>,
    /// How long to measure. Seconds, 1 to 86,400.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// How long to run before. Seconds, 1 to 86,400.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    warm_up: u64,
    /// After the measurement, create half as many tasks again a second as were done, for so long,
    /// and see how long it takes to catch up. Seconds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    oversupply: Option<u64>,
    /// Bytes of a task's context and of each step's result. 0 to 1,048,576.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    payload: u32,
    /// Executors, each a process. 1 to 64.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    executors: u8,
    /// Steps that each executor runs at once; as many as tasks are in flight unless given, but at
    /// least 16. 1 to 10,000.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    slots: Option<u16>,
    /// Streams that read every event, in one process. 0 to 10,000.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    subscribers: u16,
    /// Share of attempts that fail and are tried again. 0 to 0.9.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    fail_rate: f64,
    /// Services that run already, instead of a suite of its own: addresses of task-, step- and
    /// event-service, with commas.
    #[arg(long, value_parser = three, conflicts_with_all = ["executable", "set", "postgres"])]
    address: Option<[String; 3]>,
    /// Where those keep their data, to count what it costs there.
    #[arg(long, requires = "address")]
    database_url: Option<String>,
    #[command(flatten)]
    own: Own,
    /// Hold a transaction open in the database for the whole run.
    #[arg(long)]
    open_transaction: bool,
    /// Write a page with plots to this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// How the result looks.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: Format,
}

fn positive(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=1e6).contains(rate));
    rate.ok_or_else(|| "a number from 0.01 to 1,000,000 is wanted".into())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=0.9).contains(share));
    share.ok_or_else(|| "a number from 0 to 0.9 is wanted".into())
}

fn three(text: &str) -> Result<[String; 3], String> {
    let addresses: Vec<String> = text.split(',').map(str::to_owned).collect();
    addresses.try_into().map_err(|_| "three addresses with commas are wanted".into())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is wanted")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Bench {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        match self.command {
            Some(Command::Compare(compare)) => return compare.run().await,
            Some(Command::Lateness(lateness)) => return lateness.run().await,
            Some(Command::Feed(feed)) => return feed.run().await,
            Some(Command::Read(read)) => return read.run().await,
            None => {}
        }
        let output = self.run.output;
        let page = self.run.report.clone();
        let report = tokio::select! {
            report = self.run.run() => report?,
            () = told_to_stop() => return Ok(ExitCode::from(130)),
        };
        if let Some(file) = page {
            std::fs::write(&file, page::page(&report)?)?;
            output::note(format!("the page is {}", file.display()));
        }
        output.report(&report, || report.table())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What is read at the ends of the measurement.
struct Mark {
    at: Instant,
    look: Look,
    counters: Option<Counters>,
    statements: HashMap<(i64, bool), StatementCount>,
    ended: (u64, u64),
}

impl Run {
    fn slots(&self) -> u16 {
        let tasks = self.rate.map_or(self.in_flight, |_| 1024);
        let each = tasks.div_ceil(u32::from(self.executors)).clamp(16, 10_000);
        self.slots.unwrap_or(u16::try_from(each).unwrap_or(u16::MAX))
    }

    fn pace(&self) -> Pace {
        match self.rate {
            Some(rate) => Pace::Rate(rate),
            None => Pace::InFlight(usize::try_from(self.in_flight).unwrap_or(usize::MAX)),
        }
    }

    async fn run(&self) -> Result<Report, Fault> {
        let mut ground = Ground::prepare(self).await?;
        let answer = self.run_on(&mut ground).await;
        let ended = ground.stop().await;
        let report = answer?;
        ended?;
        Ok(report)
    }

    async fn run_on(&self, ground: &mut Ground) -> Result<Report, Fault> {
        let client = Client::connect(ground.addresses.clone())?;
        let definitions = self.shape.definitions();
        for definition in &definitions {
            client.register_yaml(&definition.yaml).await?;
        }
        let measuring = Arc::<AtomicBool>::default();
        let load = Load::new(client, definitions, self.payload as usize, &measuring);
        ground.start_workers(self).await?;
        let held =
            if self.open_transaction { Some(ground.open_transaction().await?) } else { None };

        let feed = load.feed().await?;
        let following = {
            let load = load.clone();
            tokio::spawn(async move { load.follow(feed).await })
        };
        let broken = async {
            match following.await {
                Ok(Err(fault)) => fault,
                _ => Fault::new("the feed ended"),
            }
        };
        let phases = self.phases(ground, &load, &measuring);
        let mut report = tokio::select! {
            report = phases => report?,
            fault = broken => return Err(fault),
        };
        drop(held);
        let (executed, seen) = ground.stop_workers(&load).await?;
        report.take_workers(&executed, &seen);
        report.judge(&load, &executed, &seen).map_err(|faults| {
            let what = "what was done is not what was asked for";
            faults.into_iter().fold(Fault::new(what), Fault::because)
        })?;
        Ok(report)
    }

    async fn phases(
        &self,
        ground: &mut Ground,
        load: &Load,
        measuring: &Arc<AtomicBool>,
    ) -> Result<Report, Fault> {
        output::note(format!("warm-up: {} s", self.warm_up));
        let mut creating = Creating::start(load, self.pace());
        creating.during(tokio::time::sleep(Duration::from_secs(self.warm_up))).await?;

        output::note(format!("measuring: {} s", self.duration));
        let mut watch = ground.watch()?;
        watch.look();
        ground.signal_workers(Signal::SIGUSR1).await?;
        measuring.store(true, Ordering::Relaxed);
        load.lately().take();
        let before = mark(ground, &mut watch, load).await?;
        let mut seconds = Vec::new();
        let watching = self.watch(ground, &mut watch, load, &mut seconds);
        creating.during(watching).await??;
        let after = mark(ground, &mut watch, load).await?;
        measuring.store(false, Ordering::Relaxed);
        ground.signal_workers(Signal::SIGUSR2).await?;

        let mut report = Report::new(self, ground.setup().await?, &before, &after, seconds);
        report.take_load(load);
        creating.stop().await?;
        if let Some(seconds) = self.oversupply {
            let rate = report.tasks_per_second * OVERSUPPLY;
            report.oversupply = Some(oversupply(load, &mut watch, rate, seconds).await?);
        }
        let rest = tokio::time::timeout(ENDS_WITHIN, load.down_to(0)).await;
        rest.map_err(|_| Fault::new(format!("not all tasks ended within {ENDS_WITHIN:?}")))?;
        Ok(report)
    }

    /// Looks once a second.
    async fn watch(
        &self,
        ground: &mut Ground,
        watch: &mut Watch,
        load: &Load,
        seconds: &mut Vec<Second>,
    ) -> Result<(), Fault> {
        let began = Instant::now();
        let mut before = load.ended();
        let mut last = began;
        for second in 1..=self.duration {
            tokio::time::sleep_until(began + Duration::from_secs(second)).await;
            let (ended, now) = (load.ended(), Instant::now());
            let took = (now - std::mem::replace(&mut last, now)).as_secs_f64();
            let waits = ground.waits().await?;
            let (tasks, steps) = (ended.0 - before.0, ended.1 - before.1);
            let look = watch.look();
            let under_way = load.under_way();
            seconds.push(Second::new(
                took,
                tasks,
                steps,
                under_way,
                &load.lately().take(),
                look,
                waits,
            ));
            before = ended;
        }
        Ok(())
    }
}

async fn mark(ground: &mut Ground, watch: &mut Watch, load: &Load) -> Result<Mark, Fault> {
    let counters = ground.counters().await?;
    let statements = ground.statements().await?;
    Ok(Mark { at: Instant::now(), look: watch.look(), counters, statements, ended: load.ended() })
}

/// Tasks being created beside.
struct Creating {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Fault>>,
}

impl Creating {
    fn start(load: &Load, pace: Pace) -> Self {
        let stop = CancellationToken::new();
        let (load, told) = (load.clone(), stop.clone());
        Self { stop, task: tokio::spawn(async move { load.create(pace, told).await }) }
    }

    /// Waits for something else, unless creating breaks.
    async fn during<T>(&mut self, other: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::select! {
            done = other => Ok(done),
            ended = &mut self.task => match ended {
                Ok(Err(fault)) => Err(fault),
                _ => Err(Fault::new("creating tasks broke")),
            },
        }
    }

    async fn stop(self) -> Result<(), Fault> {
        self.stop.cancel();
        self.task.await.map_err(|error| Fault::new(error.to_string()))?
    }
}

/// More than can be done, and how long it takes to get over it.
async fn oversupply(
    load: &Load,
    watch: &mut Watch,
    rate: f64,
    seconds: u64,
) -> Result<Oversupply, Fault> {
    output::note(format!("oversupply: {rate:.0} tasks a second for {seconds} s"));
    let usual = load.under_way();
    let ended = load.ended().0;
    let began = Instant::now();
    let mut creating = Creating::start(load, Pace::Rate(rate));
    let (mut under_way_max, mut rss_max) = (0, 0);
    for second in 1..=seconds {
        creating.during(tokio::time::sleep_until(began + Duration::from_secs(second))).await?;
        under_way_max = under_way_max.max(load.under_way());
        rss_max = rss_max.max(watch.look().rss_bytes.values().sum());
    }
    creating.stop().await?;
    let tasks_per_second = (load.ended().0 - ended) as f64 / began.elapsed().as_secs_f64();
    let over = Instant::now();
    let recovered = tokio::time::timeout(ENDS_WITHIN, load.down_to(usual)).await;
    recovered.map_err(|_| Fault::new("the backlog did not go away"))?;
    Ok(Oversupply {
        offered_tasks_per_second: rate,
        tasks_per_second,
        under_way_max,
        rss_bytes_max: rss_max,
        recovery_seconds: over.elapsed().as_secs_f64(),
    })
}
