//! The processes beside the load: an executor whose handlers answer at once, and a subscriber that
//! reads everything. Each measures between two signals and writes what it saw to a file at its end.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};
use rand::{
    SeedableRng,
    distr::{Alphanumeric, SampleString},
    rngs::SmallRng,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use stepwell_client::{
    Addresses, CancellationToken, Client, EventStream, Executor, HandlerError, Start, StepContext,
    Subscription,
};
use tokio::signal::unix::{SignalKind, signal};

use super::NAMESPACE;
use crate::{example::told_to_stop, fault::Fault};

/// No attempt after this one is made to fail.
const FAILING_ATTEMPTS_MAX: i32 = 10;
/// A subscriber that was told to stop waits no longer than this for what it has not seen.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// Microseconds on the machine's monotonic clock, which all its processes share.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// JSON text of about so many bytes, which says when it was made. Nothing makes it smaller.
pub(super) fn stamped(at: u64, bytes: usize) -> String {
    let bare = format!("{{\"at\":{at},\"pad\":\"\"}}");
    let mut random = SmallRng::seed_from_u64(at);
    let pad = Alphanumeric.sample_string(&mut random, bytes.saturating_sub(bare.len()));
    format!("{{\"at\":{at},\"pad\":\"{pad}\"}}")
}

/// When such a text was made. It is read as it was written, since it is stored as text.
fn stamp(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("{\"at\":")?;
    digits[..digits.find(',')?].parse().ok()
}

/// Times, counted while measuring. Cheap to clone.
#[derive(Clone)]
pub(super) struct Times(Arc<Inner>);

struct Inner {
    measuring: Arc<AtomicBool>,
    times: Mutex<Histogram<u64>>,
}

/// Microseconds up to a day, three digits each.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 86_400_000_000, 3).expect("fixed bounds")
}

/// Each value with how often it occurred.
pub(super) type Counted = Vec<(u64, u64)>;

impl Times {
    pub(super) fn new(measuring: &Arc<AtomicBool>) -> Self {
        let times = Mutex::new(histogram());
        Self(Arc::new(Inner { measuring: Arc::clone(measuring), times }))
    }

    pub(super) fn record(&self, micros: u64) {
        if self.0.measuring.load(Ordering::Relaxed) {
            let mut times = self.0.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.saturating_record(micros);
        }
    }

    pub(super) fn since(&self, at: u64) {
        self.record(now().saturating_sub(at));
    }

    /// All of it, and none is left.
    pub(super) fn take(&self) -> Counted {
        let mut times = self.0.times.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = times.iter_recorded();
        let counted = counted.map(|v| (v.value_iterated_to(), v.count_at_value())).collect();
        times.reset();
        counted
    }
}

/// A client of one service. A worker needs no other, but a client wants to know them all.
fn client_of(address: String) -> Result<Client, Fault> {
    let all = || vec![address.clone()];
    Ok(Client::connect(Addresses { task: all(), step: all(), event: all() })?)
}

/// Measures from SIGUSR1 to SIGUSR2.
fn measure_between_signals() -> std::io::Result<Arc<AtomicBool>> {
    let measuring = Arc::<AtomicBool>::default();
    let mut begin = signal(SignalKind::user_defined1())?;
    let mut end = signal(SignalKind::user_defined2())?;
    let told = Arc::clone(&measuring);
    tokio::spawn(async move {
        begin.recv().await;
        told.store(true, Ordering::Relaxed);
        end.recv().await;
        told.store(false, Ordering::Relaxed);
    });
    Ok(measuring)
}

/// Writes a file whole or not at all.
pub(super) fn write(file: &Path, what: &impl Serialize) -> Result<(), Fault> {
    let text = serde_json::to_vec(what).map_err(|error| Fault::new(error.to_string()))?;
    let written = file.with_extension("new");
    std::fs::write(&written, text)?;
    std::fs::rename(&written, file)?;
    Ok(())
}

pub(super) fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Fault> {
    let text = std::fs::read(file)
        .map_err(|error| Fault::new(format!("cannot read {}: {error}", file.display())))?;
    serde_json::from_slice(&text).map_err(|error| Fault::new(error.to_string()))
}

/// Where a worker says that it is there.
pub(super) fn ready_file(out: &Path) -> PathBuf {
    out.with_extension("ready")
}

/// Where a subscriber is told how many events each of its streams must see.
pub(super) fn expected_file(out: &Path) -> PathBuf {
    out.with_extension("expected")
}

/// `stepwell __bench-executor`
#[derive(Args)]
pub(crate) struct ExecutorProcess {
    #[arg(long)]
    step_address: String,
    #[arg(long)]
    slots: usize,
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    fail_rate: f64,
    #[arg(long)]
    out: PathBuf,
}

/// What an executor saw.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Executed {
    /// Handlers that returned a result, and those that failed as asked.
    pub(super) completed: u64,
    pub(super) failed: u64,
    /// From a task's creation to its first step's start.
    pub(super) start: Counted,
    /// From a step's last parent's end to its own start.
    pub(super) hand_over: Counted,
}

impl ExecutorProcess {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let measuring = measure_between_signals()?;
        let (start, hand_over) = (Times::new(&measuring), Times::new(&measuring));
        let (completed, failed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let client = client_of(self.step_address)?;
        let (payload, fail_rate) = (self.payload, self.fail_rate);
        let handler = {
            let (start, hand_over) = (start.clone(), hand_over.clone());
            let (completed, failed) = (Arc::clone(&completed), Arc::clone(&failed));
            move |step: StepContext| {
                let lease = step.lease();
                if step.attempt() == 1 {
                    match lease.parents.iter().filter_map(|p| stamp(&p.result)).max() {
                        Some(ended) => hand_over.since(ended),
                        None => start.since(stamp(&lease.context).unwrap_or_else(now)),
                    }
                }
                let fails = must_fail(&step, fail_rate);
                let count = if fails { &failed } else { &completed };
                count.fetch_add(1, Ordering::Relaxed);
                async move {
                    if fails {
                        return Err(HandlerError::new("AskedFor", "as --fail-rate says"));
                    }
                    RawValue::from_string(stamped(now(), payload))
                        .map_err(|error| HandlerError::new("Bench", error.to_string()))
                }
            }
        };
        let executor = Executor::new(&client, "bench")
            .namespace(NAMESPACE)
            .slots(self.slots)
            .handler("work", handler);
        write(&ready_file(&self.out), &true)?;
        executor.run(told_to_stop()).await?;
        let executed = Executed {
            completed: completed.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            start: start.take(),
            hand_over: hand_over.take(),
        };
        write(&self.out, &executed)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The same attempts fail in every run that has the same ids.
fn must_fail(step: &StepContext, rate: f64) -> bool {
    if rate == 0.0 || step.attempt() > FAILING_ATTEMPTS_MAX {
        return false;
    }
    let mut hasher = DefaultHasher::new();
    (step.step_id(), step.attempt()).hash(&mut hasher);
    (hasher.finish() as f64 / u64::MAX as f64) < rate
}

/// `stepwell __bench-subscriber`
#[derive(Args)]
pub(crate) struct SubscriberProcess {
    #[arg(long)]
    event_address: String,
    #[arg(long)]
    streams: usize,
    #[arg(long)]
    out: PathBuf,
}

/// What a subscriber saw.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// By stream: how many events of each name.
    pub(super) streams: Vec<BTreeMap<String, u64>>,
    /// From an event's time to its arrival.
    pub(super) delivery: Counted,
}

impl SubscriberProcess {
    pub(crate) async fn run(self) -> Result<ExitCode, Fault> {
        let measuring = measure_between_signals()?;
        let delivery = Times::new(&measuring);
        let client = client_of(self.event_address)?;
        let (enough, mut following) = (Enough::default(), Vec::new());
        for _ in 0..self.streams {
            let all = Subscription::new().namespaces([NAMESPACE]).from(Start::Latest);
            let feed = client.subscribe(all).await?;
            following.push(tokio::spawn(follow(feed, delivery.clone(), enough.clone())));
        }
        write(&ready_file(&self.out), &true)?;
        told_to_stop().await;
        enough.after(read(&expected_file(&self.out))?);
        let mut streams = Vec::new();
        for stream in following {
            streams.push(stream.await.map_err(|error| Fault::new(error.to_string()))??);
        }
        write(&self.out, &Seen { streams, delivery: delivery.take() })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How many events a stream must have seen before it may end; nobody knows at first.
#[derive(Clone, Default)]
struct Enough {
    known: CancellationToken,
    events: Arc<AtomicU64>,
}

impl Enough {
    fn after(&self, events: u64) {
        self.events.store(events, Ordering::Release);
        self.known.cancel();
    }

    fn seen(&self, events: u64) -> bool {
        self.known.is_cancelled() && events >= self.events.load(Ordering::Acquire)
    }
}

async fn follow(
    mut feed: EventStream,
    delivery: Times,
    enough: Enough,
) -> Result<BTreeMap<String, u64>, Fault> {
    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    let mut events = 0;
    let late = async {
        enough.known.cancelled().await;
        tokio::time::sleep(SEEN_WITHIN).await;
    };
    tokio::pin!(late);
    let mut known = Box::pin(enough.known.cancelled());
    let mut is_known = false;
    while !enough.seen(events) {
        let delivered = tokio::select! {
            delivered = feed.next() => delivered,
            () = &mut known, if !is_known => {
                is_known = true;
                continue;
            }
            () = &mut late => return Ok(names),
        };
        let Some(delivered) = delivered else { break };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for event in delivered?.events {
            events += 1;
            let at = event.at.unwrap_or_default();
            let at = Duration::new(at.seconds.unsigned_abs(), at.nanos.unsigned_abs());
            let taken = now.saturating_sub(at).as_micros();
            delivery.record(u64::try_from(taken).unwrap_or(u64::MAX));
            match names.get_mut(&event.name) {
                Some(n) => *n += 1,
                None => {
                    names.insert(event.name, 1);
                }
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_and_the_text_has_its_size() {
        for bytes in [0, 24, 100, 5000] {
            let text = stamped(1_234_567, bytes);
            assert_eq!(stamp(&text), Some(1_234_567));
            assert!(text.len() >= bytes && text.len() <= bytes.max(30), "{bytes}: {text}");
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
        assert_eq!(stamp("{}"), None);
    }

    #[test]
    fn nothing_is_recorded_unless_it_is_measured() {
        let measuring = Arc::<AtomicBool>::default();
        let times = Times::new(&measuring);
        times.record(5);
        measuring.store(true, Ordering::Relaxed);
        times.record(7);
        times.record(7);
        measuring.store(false, Ordering::Relaxed);
        times.record(9);
        assert_eq!(times.take(), [(7, 2)]);
        assert!(times.take().is_empty());
    }
}
