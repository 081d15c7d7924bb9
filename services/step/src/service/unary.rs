//! Executors that cannot hold a stream. Each has a session like any other, and takes out of its outbox by
//! calls what others get pushed. It gets leases only while it asks for them, and lives by its calls: when
//! none comes for a while the session is dropped, as that of a broken stream is.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use stepwell_proto::{
    id::{LeaseId, executor_id, parse_executor_id},
    refusal::Refusal,
    time::duration,
    v1::{
        Ack, AcquireStepsRequest, AcquireStepsResponse, ErrorReason, ExtendLeasesRequest,
        ExtendLeasesResponse, Hello, Lease, Outcome, ReportOutcomesRequest, ReportOutcomesResponse,
        acquire_steps_request::Executor,
    },
};
use tokio::{sync::Notify, time::Instant};
use tracing::Instrument;

use super::{Session, Steps, shutting_down};
use crate::{
    offer::{HELD_MAX, SLOTS_MAX},
    outbox::Taken,
    sessions::Sessions,
};

const WAIT_DEFAULT: Duration = Duration::from_secs(20);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Outcomes of one call.
const REPORT_MAX: usize = 1000;

/// The executors that live by calls; as many as streams at most, for they are sessions too.
#[derive(Default)]
pub(super) struct Callers(Mutex<HashMap<i64, Arc<Caller>>>);

struct Caller {
    session: Arc<Session>,
    /// The last answer with something in it, until the executor says that it has it. Held by the call
    /// that asks for leases.
    last: tokio::sync::Mutex<Last>,
    /// One report at a time.
    reporting: Arc<tokio::sync::Mutex<()>>,
    /// Which call it is that asks for leases; the ones before it give up.
    turn: AtomicU64,
    passed: Notify,
    life: Mutex<Life>,
}

struct Last {
    answer: AcquireStepsResponse,
    /// When it last asked.
    asked: Instant,
}

struct Life {
    /// Calls that run.
    calls: usize,
    /// When the last one ended.
    ended: Instant,
}

/// A call of an executor, which is alive as long as it runs.
struct Call(Arc<Caller>);

/// A session that asks for leases, until this is dropped.
struct Asking<'a>(&'a Sessions, i64);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.ask(self.1, 0);
    }
}

impl Callers {
    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Arc<Caller>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call of an executor.
    fn enter(&self, executor_id: &str) -> Result<Call, Refusal> {
        let session = parse_executor_id(executor_id)
            .ok_or_else(|| Refusal::field("executor_id", "must be a welcome's `executor_id`"))?;
        // Under the lock: who is about to be dropped is not entered any more.
        let callers = self.lock();
        callers.get(&session).map(Call::begin).ok_or_else(|| not_here(session))
    }

    /// Forgets an executor that was closed, or from which nothing was heard for so long.
    fn forget(&self, caller: &Caller, closed: bool, silence: Duration) -> bool {
        let mut callers = self.lock();
        let gone = closed || {
            let life = caller.life();
            life.calls == 0 && life.ended.elapsed() >= silence
        };
        if gone {
            callers.remove(&caller.session.id);
        }
        gone
    }
}

impl Caller {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> &Sessions {
        &self.session.steps.0.sweeps.sessions
    }

    /// The last answer again, without leases that are void or reported by now.
    fn again(&self, last: &AcquireStepsResponse) -> AcquireStepsResponse {
        let mut again = last.clone();
        again.leases.retain(|lease| {
            let lease = LeaseId::decode(&lease.lease_id);
            lease.is_some_and(|lease| self.sessions().holds(self.session.id, lease))
        });
        again
    }

    /// Leases that came after the call that asked for them go back when no other call fetches them.
    fn return_unasked(&self, patience: Duration) {
        let Ok(last) = self.last.try_lock() else { return };
        if last.asked.elapsed() < patience {
            return;
        }
        let unsent = self.session.outbox.take_leases();
        let unsent: Vec<LeaseId> =
            unsent.iter().filter_map(|lease: &Lease| LeaseId::decode(&lease.lease_id)).collect();
        if !unsent.is_empty() {
            self.session.steps.0.sweeps.dispatch.take_back(self.session.id, unsent);
        }
    }
}

impl Call {
    fn begin(caller: &Arc<Caller>) -> Self {
        caller.life().calls += 1;
        caller.sessions().hear(caller.session.id);
        Self(Arc::clone(caller))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut life = self.0.life();
        (life.calls, life.ended) = (life.calls - 1, Instant::now());
        drop(life);
        self.0.sessions().hear(self.0.session.id);
    }
}

impl Steps {
    pub(super) async fn acquire(
        &self,
        request: AcquireStepsRequest,
    ) -> Result<AcquireStepsResponse, Refusal> {
        match &request.executor {
            None => Err(Refusal::field("executor_id", "an executor id or a hello is wanted")),
            Some(Executor::Hello(hello)) => self.greet(hello.clone()).await,
            Some(Executor::ExecutorId(id)) => {
                let (max, wait) = terms(&request)?;
                let call = self.0.callers.enter(id)?;
                self.lease(&call.0, max, wait, request.answer).await
            }
        }
    }

    async fn greet(&self, hello: Hello) -> Result<AcquireStepsResponse, Refusal> {
        let session = self.open(hello, true).await?;
        let welcome = session.outbox.take_welcome();
        let now = Instant::now();
        let last = Last { answer: AcquireStepsResponse::default(), asked: now };
        let caller = Arc::new(Caller {
            session,
            last: last.into(),
            reporting: Arc::default(),
            turn: AtomicU64::new(0),
            passed: Notify::new(),
            life: Mutex::new(Life { calls: 0, ended: now }),
        });
        self.0.callers.lock().insert(caller.session.id, Arc::clone(&caller));
        let span = caller.session.span.clone();
        tokio::spawn(self.clone().watch(caller).instrument(span));
        Ok(AcquireStepsResponse { welcome, ..AcquireStepsResponse::default() })
    }

    /// Drops an executor that is silent, or whose node goes down.
    async fn watch(self, caller: Arc<Caller>) {
        let (heartbeat, silence) = (self.0.bounds.heartbeat, caller.session.silence());
        loop {
            let ended = tokio::time::timeout(heartbeat, caller.session.outbox.ended()).await;
            if self.0.callers.forget(&caller, ended.is_ok(), silence) {
                if ended.is_err() {
                    tracing::info!(?silence, "nothing was heard; session ended");
                }
                return;
            }
            caller.return_unasked(heartbeat);
        }
    }

    /// Waits for something to answer; not longer than until the next call of the same executor.
    async fn lease(
        &self,
        caller: &Caller,
        max: usize,
        wait: Duration,
        answer: i64,
    ) -> Result<AcquireStepsResponse, Refusal> {
        let turn = caller.turn.fetch_add(1, Ordering::AcqRel) + 1;
        caller.passed.notify_waiters();
        let mut last = caller.last.lock().await;
        last.asked = Instant::now();
        let number = last.answer.answer;
        if number > 0 && answer == number - 1 {
            return Ok(caller.again(&last.answer));
        }
        if answer != number {
            let what = format!("must be that of the last response or the one before: {number}");
            return Err(Refusal::field("answer", what));
        }
        last.answer = AcquireStepsResponse { answer: number, ..AcquireStepsResponse::default() };
        let passed = caller.passed.notified();
        if caller.turn.load(Ordering::Acquire) != turn {
            return Ok(last.answer.clone());
        }
        let (session, begun) = (&caller.session, self.0.shutdown.begun());
        let until = Instant::now() + if begun { Duration::ZERO } else { wait };
        caller.sessions().ask(session.id, max.saturating_sub(session.outbox.waiting()));
        let asking = Asking(caller.sessions(), session.id);
        let taken = tokio::select! {
            biased;
            taken = session.outbox.take(max, until) => taken,
            () = passed => Taken::default(),
        };
        drop(asking);
        last.asked = Instant::now();
        let Taken { leases, cancels, drain, closed } = taken;
        if !leases.is_empty() || !cancels.is_empty() || drain.is_some() {
            let (welcome, answer) = (None, number + 1);
            last.answer = AcquireStepsResponse { welcome, leases, cancels, drain, answer };
        } else if begun || self.0.shutdown.begun() && closed {
            return Err(shutting_down());
        } else if closed {
            return Err(not_here(session.id));
        }
        Ok(last.answer.clone())
    }

    pub(super) async fn report(
        &self,
        request: ReportOutcomesRequest,
    ) -> Result<ReportOutcomesResponse, Refusal> {
        let ReportOutcomesRequest { executor_id: id, outcomes } = request;
        if !(1..=REPORT_MAX).contains(&outcomes.len()) {
            return Err(Refusal::field("outcomes", format!("1 to {REPORT_MAX}")));
        }
        let call = self.0.callers.enter(&id)?;
        let turn = Arc::clone(&call.0.reporting).lock_owned().await;
        let span = call.0.session.span.clone();
        // Goes on if the executor does not wait for it: what was begun with an outcome must be ended.
        let reporting = async move {
            let acks = call.0.session.report(outcomes).await;
            drop(turn);
            acks
        };
        let acks = tokio::spawn(reporting.instrument(span)).await.map_err(|_| {
            Refusal::new(ErrorReason::Internal, "a fault of the service; see its log")
        })?;
        let acks = acks.ok_or_else(|| {
            if self.0.shutdown.begun() {
                return shutting_down();
            }
            let message = "the database did not answer in time; say hello again and report again";
            Refusal::new(ErrorReason::DatabaseUnavailable, message)
                .retry_after(Duration::from_secs(1))
        })?;
        Ok(ReportOutcomesResponse { acks })
    }

    pub(super) fn extend(
        &self,
        request: &ExtendLeasesRequest,
    ) -> Result<ExtendLeasesResponse, Refusal> {
        if request.lease_ids.len() > HELD_MAX {
            return Err(Refusal::field("lease_ids", format!("at most {HELD_MAX}")));
        }
        let call = self.0.callers.enter(&request.executor_id)?;
        let (session, sessions) = (call.0.session.id, call.0.sessions());
        sessions.progress(session, request.lease_ids.iter().filter_map(|id| LeaseId::decode(id)));
        let lost = request
            .lease_ids
            .iter()
            .filter(|id| !LeaseId::decode(id).is_some_and(|lease| sessions.holds(session, lease)));
        Ok(ExtendLeasesResponse { lost_leases: lost.cloned().collect() })
    }
}

impl Session {
    /// Settles outcomes and waits for their acks. None: the session ended before.
    async fn report(&self, outcomes: Vec<Outcome>) -> Option<Vec<Ack>> {
        self.outbox.forget_acks();
        let leases: Vec<String> = outcomes.iter().map(|o| o.lease_id.clone()).collect();
        let mut strange = Vec::new();
        for outcome in outcomes {
            self.settle(outcome, &mut strange).await;
        }
        if !strange.is_empty() {
            self.answer_strange(strange).await;
        }
        self.outbox.acks_of(&leases).await
    }
}

fn not_here(session: i64) -> Refusal {
    let message = "this node has no such executor that lives by calls; say hello again, and name the leases held";
    Refusal::new(ErrorReason::ExecutorNotFound, message).with("executor_id", executor_id(session))
}

/// How many leases at most, and how long to wait for the first.
fn terms(request: &AcquireStepsRequest) -> Result<(usize, Duration), Refusal> {
    let mut faults = Vec::new();
    let max = match request.max {
        0 => SLOTS_MAX,
        max => max,
    };
    if !(1..=SLOTS_MAX).contains(&max) {
        faults.push(("max".to_owned(), format!("1 to {SLOTS_MAX}")));
    }
    let wait = request.wait.as_ref().map_or(Some(WAIT_DEFAULT), duration);
    let wait = wait.filter(|wait| *wait <= WAIT_MAX).unwrap_or_else(|| {
        faults.push(("wait".to_owned(), format!("0 to {} s", WAIT_MAX.as_secs())));
        WAIT_DEFAULT
    });
    if faults.is_empty() {
        Ok((usize::try_from(max).unwrap_or(0), wait))
    } else {
        Err(Refusal::fields(faults))
    }
}
