//! Executors: leases, handlers, outcomes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use stepwell_client::{Client, Error, Executor, HandlerError, Report, StepContext, v1::*};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::fake::{Fake, failure_of, ids, lease_of, result_of, within};

/// An executor that runs beside the test.
pub struct Running {
    shutdown: CancellationToken,
    run: JoinHandle<Result<Report, Error>>,
}

impl Running {
    pub fn new(executor: Executor) -> Self {
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(executor.run(shutdown.clone().cancelled_owned()));
        Self { shutdown, run }
    }

    /// Asks it to stop.
    pub fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Waits for its end.
    pub async fn end(self) -> Result<Report, Error> {
        within("the executor's end", self.run).await.unwrap()
    }
}

/// A handler that says when it starts and goes on once it is let, and one that answers at once.
pub struct Gate {
    pub started: mpsc::Receiver<String>,
    pub let_go: Arc<Semaphore>,
    /// How many ran at once, at most.
    pub most: Arc<AtomicUsize>,
    pub dropped: mpsc::Receiver<String>,
    /// Handlers that were told to stop; they do not.
    pub told: mpsc::Receiver<String>,
}

/// Says that a handler was dropped or ended.
struct Guard(String, mpsc::Sender<String>, Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.2.fetch_sub(1, Ordering::SeqCst);
        self.1.try_send(self.0.clone()).unwrap();
    }
}

/// An executor with the handlers `gated` and `quick`.
pub fn gated(fake: &Fake, slots: usize) -> (Executor, Gate) {
    gated_at(&fake.client(), slots)
}

/// The same, at other addresses.
pub fn gated_at(client: &Client, slots: usize) -> (Executor, Gate) {
    let (starts, started) = mpsc::channel(100);
    let (drops, dropped) = mpsc::channel(100);
    let (tells, told) = mpsc::channel(100);
    let (let_go, most) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Gate { started, let_go: let_go.clone(), most: most.clone(), dropped, told };
    let now = Arc::new(AtomicUsize::new(0));
    let handler = move |step: StepContext| {
        let (starts, drops, tells) = (starts.clone(), drops.clone(), tells.clone());
        let let_go = let_go.clone();
        let (now, most) = (now.clone(), most.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _guard = Guard(step.step_name().to_owned(), drops, now);
            starts.send(step.step_name().to_owned()).await.unwrap();
            tokio::select! {
                permit = let_go.acquire() => permit.unwrap().forget(),
                () = step.cancelled() => {
                    tells.send(step.step_name().to_owned()).await.unwrap();
                    let_go.acquire().await.unwrap().forget();
                }
            }
            Ok(step.step_name().to_owned())
        }
    };
    let executor = Executor::new(client, "test").slots(slots).handler("gated", handler);
    (executor.handler("quick", |step| async move { Ok(step.step_id().to_owned()) }), gate)
}

impl Gate {
    pub async fn starts(&mut self, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < count {
            names.push(within("a handler to start", self.started.recv()).await.unwrap());
        }
        names.sort();
        names
    }

    pub fn let_go(&self, count: usize) {
        self.let_go.add_permits(count);
    }
}

#[tokio::test]
async fn a_handler_gets_its_input_and_its_outcome_is_reported_and_counted() {
    #[derive(Deserialize)]
    struct Order {
        total: u64,
    }
    let fake = Fake::start().await;
    let executor = Executor::new(&fake.client(), "till").namespace("shop").slots(7).handler(
        "charge",
        |step: StepContext| async move {
            let order: Order = step.input()?;
            let rate: serde_json::Value = step.config()?;
            let cart: Vec<u64> = step.parent("cart").await?;
            let large: String = step.parent("large").await?;
            let again: String = step.parent("large").await?;
            let unknown = step.parent::<u8>("mail").await.unwrap_err();
            let wrong = step.parent::<u8>("cart").await.unwrap_err();
            assert!(step.remaining() > Duration::from_secs(50) && step.attempt() == 1);
            assert!(step.parents().eq(["cart", "large"]) && !step.is_last_attempt());
            let seen = (order.total, rate, cart, large == again, unknown.to_string());
            Ok((seen, wrong.to_string()))
        },
    );
    let running = Running::new(executor);
    let mut work = fake.work().await;
    let hello = work.hello().await;
    assert_eq!((hello.name.as_str(), hello.namespace.as_str(), hello.slots), ("till", "shop", 7));
    assert_eq!(hello.handlers[0].name, "charge");
    assert!(hello.sdk.starts_with("rust/") && hello.held_leases.is_empty());
    work.welcome(&[], &[]).await;
    let parent = |name: &str, result: &str, omitted| StepResult {
        step_name: name.into(),
        result: result.into(),
        omitted,
    };
    let lease = Lease {
        context: r#"{"total": 12}"#.into(),
        config: r#"{"rate": 0.5}"#.into(),
        parents: vec![parent("cart", "[1,2]", false), parent("large", "", true)],
        ..lease_of("charge", "a")
    };
    work.send(WorkResponse { leases: vec![lease], ..Default::default() }).await;
    let call = fake.results().await;
    assert_eq!(call.request.lease_id, "a");
    assert_eq!(call.request.step_names, ["large"]);
    let results = vec![parent("large", r#""big""#, false)];
    call.answer(Ok(ListStepResultsResponse { results }));
    let outcomes = work.outcomes(1).await;
    assert_eq!(
        result_of(&outcomes[0]),
        concat!(
            r#"[[12,{"rate":0.5},[1,2],true,"UnknownParent: \"mail\" is no parent of \"a\""],"#,
            r#""InvalidInput: the result of cart: "#,
            r#"invalid type: sequence, expected u8 at line 1 column 0"]"#
        )
    );
    work.ack(&["a"]).await;
    running.stop();
    work.drained().await;
    let report = Report { sessions: 1, leases: 1, completed: 1, ..Report::default() };
    drop(work);
    assert_eq!(running.end().await.unwrap(), report);
}

#[tokio::test]
async fn errors_and_panics_become_failures() {
    #[derive(Debug, thiserror::Error)]
    #[error("no room")]
    struct GatewayBusy;
    let fake = Fake::start().await;
    let executor = Executor::new(&fake.client(), "test")
        .handler("plain", |_| async {
            Err::<(), _>(GatewayBusy)?;
            Ok(())
        })
        .handler("permanent", |_| async {
            let error = HandlerError::new("CardDeclined", "no").code("CARD_DECLINED").permanent();
            Err::<(), _>(error)
        })
        .handler("later", |_| async {
            Err::<(), _>(HandlerError::new("Busy", "").retry_after(Duration::from_millis(1500)))
        })
        .handler("panic", |step: StepContext| async move {
            if step.attempt() > 0 {
                panic!("attempt {} of {}", step.attempt(), step.max_attempts());
            }
            Ok(())
        })
        .handler_for("versioned", ">=2", |_| async { Ok(()) })
        .handler("unwritable", |_| async { Ok(std::collections::HashMap::from([(vec![1], 1)])) })
        .handler("huge", |_| async { Ok("x".repeat(4 << 20)) })
        .handler("talkative", |step: StepContext| async move {
            let large = step.publish("a.b", &"x".repeat(70_000)).await.unwrap_err();
            assert!(large.to_string().contains("65536"), "{large}");
            step.publish_at_end("a.b", &"x".repeat(70_000))?;
            Err::<(), _>(HandlerError::new("Late", "too late"))
        });
    let _running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    let mut failure = async |handler: &str| {
        work.lease(handler, &[handler]).await;
        let outcomes = work.outcomes(1).await;
        work.ack(&[handler]).await;
        failure_of(&outcomes[0]).clone()
    };
    let plain = failure("plain").await;
    assert_eq!((plain.error_class.as_str(), plain.message.as_str()), ("GatewayBusy", "no room"));
    assert!(plain.retryable && plain.backtrace[0].contains("executor.rs:"), "{plain:?}");
    let permanent = failure("permanent").await;
    assert_eq!((permanent.error_code.as_str(), permanent.retryable), ("CARD_DECLINED", false));
    let later = failure("later").await;
    assert_eq!(later.retry_after.unwrap().nanos, 500_000_000);
    let panic = failure("panic").await;
    assert_eq!((panic.error_class.as_str(), panic.retryable), ("Panic", true));
    assert_eq!(panic.message, "attempt 1 of 3");
    let unknown = failure("versioned").await;
    assert_eq!((unknown.error_class.as_str(), unknown.retryable), ("UnknownHandler", true));
    let talkative = failure("talkative").await;
    assert_eq!((talkative.error_class.as_str(), talkative.retryable), ("InvalidEvent", false));
    assert!(talkative.message.ends_with("had failed as Late: too late"), "{talkative:?}");
    for handler in ["unwritable", "huge"] {
        let invalid = failure(handler).await;
        assert_eq!((invalid.error_class.as_str(), invalid.retryable), ("InvalidResult", false));
    }
}

#[tokio::test]
async fn no_more_handlers_run_at_once_than_there_are_slots() {
    let fake = Fake::start().await;
    let (executor, mut gate) = gated(&fake, 2);
    let _running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["a", "b", "c", "d", "e"]).await;
    assert_eq!(gate.starts(2).await, ["a", "b"]);
    // A cancelled handler uses its slot until it is gone.
    work.cancel("a").await;
    assert_eq!(within("the handler to be told", gate.told.recv()).await.unwrap(), "a");
    for next in ["c", "d", "e"] {
        gate.let_go(1);
        assert_eq!(gate.starts(1).await, [next]);
    }
    gate.let_go(2);
    let outcomes = work.outcomes(4).await;
    assert_eq!(ids(&outcomes), ["b", "c", "d", "e"]);
    assert_eq!(gate.most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_cancelled_handler_is_told_and_dropped_and_nothing_is_reported() {
    let fake = Fake::start().await;
    let (told, mut was_told) = mpsc::channel(1);
    let (executor, mut gate) = gated(&fake, 3);
    let executor = executor.handler("listening", move |step: StepContext| {
        let told = told.clone();
        async move {
            step.cancelled().await;
            told.send(()).await.unwrap();
            Ok(())
        }
    });
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    work.lease("gated", &["deaf"]).await;
    work.lease("listening", &["listens"]).await;
    gate.starts(1).await;
    work.cancel("deaf").await;
    work.cancel("listens").await;
    within("the handler to be told", was_told.recv()).await.unwrap();
    assert_eq!(within("the drop", gate.dropped.recv()).await.unwrap(), "deaf");
    work.lease("quick", &["next"]).await;
    assert_eq!(ids(&work.outcomes(1).await), ["next"]);
    work.ack(&["next"]).await;
    running.stop();
    assert!(work.drained().await.is_empty());
    drop(work);
    let report = running.end().await.unwrap();
    assert_eq!((report.voided, report.completed, report.unacknowledged), (2, 1, 0));
}

#[tokio::test]
async fn a_handler_is_told_when_its_time_is_up_and_may_still_report() {
    let fake = Fake::start().await;
    let executor =
        Executor::new(&fake.client(), "test").handler("slow", |step: StepContext| async move {
            step.cancelled().await;
            Ok(step.remaining().is_zero())
        });
    let _running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    let timeout = Duration::from_millis(50).try_into().ok();
    let lease = Lease { timeout, ..lease_of("slow", "a") };
    work.send(WorkResponse { leases: vec![lease], ..Default::default() }).await;
    assert_eq!(result_of(&work.outcomes(1).await[0]), "true");
}

#[tokio::test]
async fn outcomes_that_are_ready_together_travel_together() {
    let fake = Fake::start().await;
    let (executor, _gate) = gated(&fake, 1000);
    let running = Running::new(executor);
    let mut work = fake.work().await;
    work.hello().await;
    work.welcome(&[], &[]).await;
    let names: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    work.lease("quick", &names).await;
    let (mut frames, mut outcomes) = (0, 0);
    while outcomes < 1000 {
        let request = work.request().await.unwrap();
        assert!(request.outcomes.len() <= 256);
        outcomes += request.outcomes.len();
        frames += 1;
    }
    assert_eq!(outcomes, 1000);
    assert!(frames < 1000, "each outcome came alone");
    work.ack(&names).await;
    running.stop();
    drop(work);
    assert_eq!(running.end().await.unwrap().completed, 1000);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let fake = Fake::start().await;
    let executor = || Executor::new(&fake.client(), "test");
    let quick = |_: StepContext| async { Ok(()) };
    for executor in [
        executor(),
        executor().slots(0).handler("a", quick),
        executor().slots(10_001).handler("a", quick),
        executor().handler_for("a", "newest", quick),
    ] {
        let error = executor.run(std::future::pending()).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }
    assert!(fake.is_idle().await);
}
