//! `stepwell bench feed`: what the feed costs when many follow it. Most subscriptions match one task each, some
//! match everything; events come at a rate, and each must be delivered to each that matches it, once. After that
//! nobody does anything, and a few follow.

use std::{
    ops::Range,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use stepwell_client::{Addresses, Client};
use stepwell_proto::v1::{
    BatchCreateTasksRequest, CreateTaskRequest, Event, EventFilter, SubscribeRequest,
    SubscribeResponse, UpdateTaskRequest, batch_create_tasks_result::Outcome,
    event_service_client::EventServiceClient, subscribe_response::Kind as Said,
};
use stepwell_suite::{Kind, Suite};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tonic::{Streaming, transport::Channel};

use super::{NAMESPACE, ground::Own, tell, watch::Watch, worker::histogram};
use crate::{
    fault::Fault,
    output::{self, Format},
};

const DEFINITION: &str = "followed";
/// Of so many events one is about a task that somebody follows.
const FOLLOWED: u64 = 20;
/// Events are made so often.
const BEATS_PER_SECOND: u32 = 50;
/// Beats that may still be under way when the next is due: a machine that is slower makes fewer events.
const BEATS_UNDER_WAY_MAX: usize = 16;
/// Tasks that are created by one call.
const TASKS_MAX: usize = 1_000;
/// When nothing was delivered for so long, something is missing.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
const EVENT_SERVICE: &str = "event-service";

/// `stepwell bench feed`
#[derive(Args)]
pub(crate) struct Feed {
    /// Subscriptions to one task each. 0 to 10,000.
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    narrow: u16,
    /// Subscriptions to every event. 1 to 10,000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    wide: u16,
    /// Connections that share them. 1 to 1,000.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    /// Events a second, as far as the machine can. 50 to 50,000.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(50..=50_000))]
    rate: u32,
    /// How long to make events. Seconds, 1 to 3,600.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    duration: u64,
    /// How long nobody does anything after that. Seconds, 1 to 3,600.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    idle: u64,
    /// Subscriptions to every event meanwhile. 0 to 10,000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    idle_subscriptions: u16,
    #[command(flatten)]
    own: Own,
    /// How the result looks.
    #[arg(short, long, default_value = "table", value_parser = output::of_reports())]
    output: Format,
}

/// What it came to. The fields are the keys of the JSON.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    cpus: usize,
    wide: u16,
    narrow: u16,
    connections: u16,
    rate: u32,
    events: u64,
    deliveries: u64,
    /// From the first event to the last delivery.
    seconds: f64,
    events_per_second: f64,
    deliveries_per_second: f64,
    /// From an event's time in the database to its receipt on the same machine.
    wide_delivery: Times,
    narrow_delivery: Times,
    busy: Cost,
    /// Statements of event-service for one event: of its tail, and all others.
    tail_statements_per_event: f64,
    other_statements_per_event: f64,
    idle_subscriptions: u16,
    idle: Cost,
}

/// Quantiles of times.
#[derive(Serialize)]
struct Times {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Times {
    fn of(times: &Histogram<u64>) -> Self {
        let ms = |micros: u64| micros as f64 / 1000.0;
        Self {
            count: times.len(),
            p50_ms: ms(times.value_at_quantile(0.5)),
            p99_ms: ms(times.value_at_quantile(0.99)),
            max_ms: ms(times.max()),
        }
    }
}

/// What event-service took for a while.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    /// Share of one processor.
    cpu: f64,
    /// Resident bytes, at most.
    rss_bytes_max: u64,
    /// Statements of the tail, and all others, in a second.
    tail_statements_per_second: f64,
    other_statements_per_second: f64,
}

/// Statements that a service has sent: on connections of its loops, and on those of its pool.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Statements {
    own: f64,
    pool: f64,
}

impl Statements {
    async fn of(address: &str) -> Result<Self, Fault> {
        let host = address.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).await?;
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if !answer.starts_with("HTTP/1.1 200") {
            return Err(Fault::new("the event-service does not tell what it has measured"));
        }
        Ok(Self::read(&answer))
    }

    fn read(text: &str) -> Self {
        let of = |whose: &str| {
            let counts = text
                .lines()
                .filter(|line| line.starts_with("stepwell_database_statement_seconds_count{"))
                .filter(|line| line.contains(&format!("connection=\"{whose}\"")));
            counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        Self { own: of("own"), pool: of("pool") }
    }
}

/// Deliveries of subscriptions of one kind.
struct Seen {
    events: AtomicU64,
    /// By connection.
    times: Vec<Mutex<Histogram<u64>>>,
}

impl Seen {
    fn new(connections: u16) -> Arc<Self> {
        let times = (0..connections).map(|_| Mutex::new(histogram())).collect();
        Arc::new(Self { events: AtomicU64::new(0), times })
    }

    fn take(&self, connection: usize, events: &[Event], now: SystemTime) {
        let ours = events.iter().filter(|event| is_ours(event));
        let mut times = self.times[connection].lock().unwrap_or_else(PoisonError::into_inner);
        let mut n = 0;
        for event in ours {
            n += 1;
            times.saturating_record(passed(event, now));
        }
        drop(times);
        self.events.fetch_add(n, Ordering::Relaxed);
    }

    fn seen(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    fn times(&self) -> Times {
        let mut all = histogram();
        for times in &self.times {
            let times = times.lock().unwrap_or_else(PoisonError::into_inner);
            all.add(&*times).expect("of the same bounds");
        }
        Times::of(&all)
    }
}

/// What the benchmark makes, and nothing that a service has to say beside.
fn is_ours(event: &Event) -> bool {
    matches!(event.name.as_str(), "task.initialize_requested" | "task.updated")
}

/// Microseconds since the event's time.
fn passed(event: &Event, now: SystemTime) -> u64 {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let at = event.at.unwrap_or_default();
    let at = i128::from(at.seconds) * 1_000_000 + i128::from(at.nanos / 1000);
    let passed = i128::try_from(now).unwrap_or(i128::MAX) - at;
    u64::try_from(passed.max(0)).unwrap_or(u64::MAX)
}

/// Subscriptions over connections that they share.
struct Followers {
    connections: Vec<EventServiceClient<Channel>>,
    next: usize,
    tasks: JoinSet<Fault>,
}

impl Followers {
    async fn connect(address: &str, connections: u16) -> Result<Self, Fault> {
        let mut all = Vec::new();
        for _ in 0..connections {
            let connected = EventServiceClient::connect(address.to_owned()).await;
            all.push(connected.map_err(|error| Fault::new(error.to_string()))?);
        }
        Ok(Self { connections: all, next: 0, tasks: JoinSet::new() })
    }

    /// One more: of everything, or of one task. What happens from now on is delivered.
    async fn follow(&mut self, task: Option<&String>, seen: &Arc<Seen>) -> Result<(), Fault> {
        let connection = self.next % self.connections.len();
        self.next += 1;
        let filter =
            EventFilter { task_ids: task.into_iter().cloned().collect(), ..Default::default() };
        let request = SubscribeRequest { filter: Some(filter), ..SubscribeRequest::default() };
        let answer = self.connections[connection].subscribe(request).await;
        let feed = answer.map_err(|status| Fault::new(status.to_string()))?.into_inner();
        self.tasks.spawn(read(feed, connection, Arc::clone(seen)));
        Ok(())
    }

    /// Why one of them broke.
    async fn broken(&mut self) -> Fault {
        match self.tasks.join_next().await {
            Some(Ok(fault)) => fault,
            Some(Err(error)) => Fault::new(error.to_string()),
            None => std::future::pending().await,
        }
    }
}

async fn read(mut feed: Streaming<SubscribeResponse>, connection: usize, seen: Arc<Seen>) -> Fault {
    loop {
        match feed.message().await {
            Ok(Some(SubscribeResponse { kind: Some(Said::Events(batch)), .. })) => {
                seen.take(connection, &batch.events, SystemTime::now());
            }
            Ok(Some(SubscribeResponse { kind: Some(Said::End(_)), .. }) | None) => {
                return Fault::new("a subscription ended");
            }
            Ok(Some(_)) => {}
            Err(status) => return Fault::new(status.to_string()),
        }
    }
}

/// Makes events.
#[derive(Clone)]
struct Making {
    client: Client,
    followed: Arc<Vec<String>>,
}

impl Making {
    /// Creates tasks that nobody follows, and changes some that somebody does.
    async fn beat(self, n: u64, updates: Range<u64>) -> Result<(), Fault> {
        let created = n - (updates.end - updates.start);
        let creating = create(&self.client, usize::try_from(created).unwrap_or_default());
        let updating = async {
            for i in updates {
                let at = usize::try_from(i).unwrap_or_default() % self.followed.len();
                let request = UpdateTaskRequest {
                    task_id: self.followed[at].clone(),
                    task_reason: Some(format!("change {i}")),
                    ..UpdateTaskRequest::default()
                };
                self.client.update_task(request).await?;
            }
            Ok::<_, Fault>(())
        };
        tokio::try_join!(creating, updating)?;
        Ok(())
    }
}

/// Creates tasks of which no step is ever run; their ids.
async fn create(client: &Client, n: usize) -> Result<Vec<String>, Fault> {
    let mut ids = Vec::with_capacity(n);
    while ids.len() < n {
        let request = CreateTaskRequest {
            namespace: NAMESPACE.into(),
            definition_name: DEFINITION.into(),
            initiator: "bench".into(),
            ..CreateTaskRequest::default()
        };
        let requests = vec![request; (n - ids.len()).min(TASKS_MAX)];
        for result in client.batch_create_tasks(BatchCreateTasksRequest { requests }).await?.results
        {
            match result.outcome {
                Some(Outcome::Task(task)) => ids.push(task.task_id),
                other => return Err(Fault::new(format!("a task was not created: {other:?}"))),
            }
        }
    }
    Ok(ids)
}

impl Feed {
    pub(super) async fn run(self) -> Result<ExitCode, Fault> {
        let measure = self.own.run(async |suite| self.measure_on(suite).await);
        tell(measure, self.output, table).await
    }

    async fn measure_on(&self, suite: &Suite) -> Result<Report, Fault> {
        let stepwell_suite::Addresses { task, step, event } = suite.addresses();
        let address = event[0].clone();
        let client = Client::connect(Addresses { task, step, event })?;
        let yaml = format!(
            "namespace: {NAMESPACE}\nname: {DEFINITION}\nversion: 1.0.0\nsteps:\n  - {{name: s, handler: nobody}}\n"
        );
        client.register_yaml(yaml).await?;
        let followed = Arc::new(create(&client, self.narrow.into()).await?);

        let mut followers = Followers::connect(&address, self.connections).await?;
        let (wide, narrow) = (Seen::new(self.connections), Seen::new(self.connections));
        for task in followed.iter() {
            followers.follow(Some(task), &narrow).await?;
        }
        for _ in 0..self.wide {
            followers.follow(None, &wide).await?;
        }
        output::note(format!("making {} events a second for {} s", self.rate, self.duration));
        let mut meter = Meter::start(suite, &address).await?;
        let began = Instant::now();
        let making = Making { client, followed };
        let made = async {
            let (events, updates) = self.make(&making, &mut meter).await?;
            let wanted = (events * u64::from(self.wide), updates);
            delivered([&wide, &narrow], wanted, &mut meter).await?;
            Ok::<_, Fault>((events, wanted.0 + wanted.1))
        };
        let (events, deliveries) = tokio::select! {
            made = made => made?,
            fault = followers.broken() => return Err(fault),
        };
        let seconds = began.elapsed().as_secs_f64();
        let (busy, statements) = meter.cost().await?;
        drop(followers);

        output::note(format!("nothing happens for {} s", self.idle));
        let mut followers = Followers::connect(&address, self.connections).await?;
        let nothing = Seen::new(self.connections);
        for _ in 0..self.idle_subscriptions {
            followers.follow(None, &nothing).await?;
        }
        let mut meter = Meter::start(suite, &address).await?;
        let until = Instant::now() + Duration::from_secs(self.idle);
        tokio::select! {
            () = meter.look_until(until) => {}
            fault = followers.broken() => return Err(fault),
        }
        let (idle, _) = meter.cost().await?;
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            wide: self.wide,
            narrow: self.narrow,
            connections: self.connections,
            rate: self.rate,
            events,
            deliveries,
            seconds,
            events_per_second: events as f64 / seconds,
            deliveries_per_second: deliveries as f64 / seconds,
            wide_delivery: wide.times(),
            narrow_delivery: narrow.times(),
            busy,
            tail_statements_per_event: statements.own / events as f64,
            other_statements_per_event: statements.pool / events as f64,
            idle_subscriptions: self.idle_subscriptions,
            idle,
        })
    }

    /// Makes events at the rate; how many, and how many of them about tasks that are followed.
    async fn make(&self, making: &Making, meter: &mut Meter) -> Result<(u64, u64), Fault> {
        let began = Instant::now();
        let ends = began + Duration::from_secs(self.duration);
        let (mut events, mut updates, mut beat) = (0_u64, 0_u64, 0_u32);
        let mut under_way = JoinSet::new();
        while Instant::now() < ends {
            beat += 1;
            let all = u64::from(self.rate) * u64::from(beat) / u64::from(BEATS_PER_SECOND);
            let (n, last) = (all - events, updates);
            events = all;
            if !making.followed.is_empty() {
                updates += n.div_ceil(FOLLOWED);
            }
            if under_way.len() >= BEATS_UNDER_WAY_MAX {
                ended(under_way.join_next().await)?;
            }
            under_way.spawn(making.clone().beat(n, last..updates));
            meter.look();
            sleep_until(began + Duration::from_secs(1) * beat / BEATS_PER_SECOND).await;
        }
        while let Some(beat) = under_way.join_next().await {
            ended(Some(beat))?;
        }
        Ok((events, updates))
    }
}

fn ended(beat: Option<Result<Result<(), Fault>, tokio::task::JoinError>>) -> Result<(), Fault> {
    match beat {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(Fault::new(error.to_string())),
        None => Ok(()),
    }
}

/// Waits until all of it was delivered, and no more.
async fn delivered(
    seen: [&Arc<Seen>; 2],
    (wide, narrow): (u64, u64),
    meter: &mut Meter,
) -> Result<(), Fault> {
    let now = || seen.map(|of| of.seen());
    let mut before = now();
    let mut moved = Instant::now();
    while now() != [wide, narrow] {
        let [of_wide, of_narrow] = now();
        if of_wide > wide || of_narrow > narrow {
            return Err(Fault::new("an event was delivered twice"));
        }
        if std::mem::replace(&mut before, now()) != before {
            moved = Instant::now();
        }
        if moved.elapsed() > ENDS_WITHIN {
            let what = format!(
                "{of_wide} of {wide} and {of_narrow} of {narrow} events were delivered; then \
                 nothing for {ENDS_WITHIN:?}"
            );
            return Err(Fault::new(what));
        }
        meter.look();
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Watches event-service.
struct Meter {
    watch: Watch,
    address: String,
    began: Instant,
    cpu: f64,
    statements: Statements,
    looked: Instant,
    rss_bytes_max: u64,
}

impl Meter {
    async fn start(suite: &Suite, address: &str) -> Result<Self, Fault> {
        let process = suite.process(Kind::Event, 0);
        let pid = process.ok_or_else(|| Fault::new("there is no event-service"))?.pid;
        let mut watch = Watch::new(vec![(EVENT_SERVICE.to_owned(), pid)], None)?;
        let look = watch.look();
        Ok(Self {
            watch,
            address: address.to_owned(),
            began: Instant::now(),
            cpu: look.cpu_seconds.get(EVENT_SERVICE).copied().unwrap_or_default(),
            statements: Statements::of(address).await?,
            looked: Instant::now(),
            rss_bytes_max: look.rss_bytes.get(EVENT_SERVICE).copied().unwrap_or_default(),
        })
    }

    /// Looks at its memory, once a second at most: looking takes time.
    fn look(&mut self) {
        if self.looked.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.looked = Instant::now();
        let look = self.watch.look();
        let rss = look.rss_bytes.get(EVENT_SERVICE).copied().unwrap_or_default();
        self.rss_bytes_max = self.rss_bytes_max.max(rss);
    }

    async fn look_until(&mut self, end: Instant) {
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + Duration::from_secs(1))).await;
            self.look();
        }
    }

    /// What it took since the start, and its statements.
    async fn cost(mut self) -> Result<(Cost, Statements), Fault> {
        let look = self.watch.look();
        let cpu = look.cpu_seconds.get(EVENT_SERVICE).copied().unwrap_or_default();
        let seconds = self.began.elapsed().as_secs_f64();
        let now = Statements::of(&self.address).await?;
        let Statements { own, pool } = self.statements;
        let statements = Statements { own: now.own - own, pool: now.pool - pool };
        let cost = Cost {
            cpu: (cpu - self.cpu) / seconds,
            rss_bytes_max: self.rss_bytes_max,
            tail_statements_per_second: statements.own / seconds,
            other_statements_per_second: statements.pool / seconds,
        };
        Ok((cost, statements))
    }
}

fn table(report: &Report) -> output::Table {
    let mut table = output::table(&["FEED", ""]);
    let mut row = |what: &str, value: String| {
        table.add_row([what.to_owned(), value]);
    };
    let ms = |times: &Times| {
        format!("{:.1} / {:.1} / {:.1} ms", times.p50_ms, times.p99_ms, times.max_ms)
    };
    let cost = |cost: &Cost| {
        let mib = cost.rss_bytes_max as f64 / 1_048_576.0;
        format!(
            "{:.1} % of a processor, {mib:.0} MiB, {:.1} + {:.1} statements/s (tail + others)",
            cost.cpu * 100.0,
            cost.tail_statements_per_second,
            cost.other_statements_per_second
        )
    };
    row("events", format!("{} ({:.0}/s)", report.events, report.events_per_second));
    row("deliveries", format!("{} ({:.0}/s)", report.deliveries, report.deliveries_per_second));
    row("to those of everything, p50 / p99 / max", ms(&report.wide_delivery));
    row("to those of one task, p50 / p99 / max", ms(&report.narrow_delivery));
    row("event-service, busy", cost(&report.busy));
    let (tail, others) = (report.tail_statements_per_event, report.other_statements_per_event);
    row("its statements for one event", format!("{tail:.4} + {others:.4}"));
    row("event-service, idle", cost(&report.idle));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_counted_by_whose_connection_they_took() {
        let text = "\
            # TYPE stepwell_database_statement_seconds histogram\n\
            stepwell_database_statement_seconds_bucket{connection=\"own\",le=\"1\"} 99\n\
            stepwell_database_statement_seconds_count{connection=\"own\"} 12\n\
            stepwell_database_statement_seconds_count{connection=\"pool\",x=\"y\"} 3\n\
            stepwell_database_statement_seconds_count{connection=\"pool\",x=\"z\"} 4\n";
        assert_eq!(Statements::read(text), Statements { own: 12.0, pool: 7.0 });
    }

    #[test]
    fn a_delivery_takes_what_passed_since_the_event_and_never_less_than_nothing() {
        let at = prost_types::Timestamp { seconds: 10, nanos: 500_000_000 };
        let event = Event { at: Some(at), ..Event::default() };
        let after = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        assert_eq!(passed(&event, after(10_750)), 250_000);
        assert_eq!(passed(&event, after(10_000)), 0);
    }
}
